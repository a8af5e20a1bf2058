/*
A ladder of matrix products from FP8 bytes: each file beside this one adds one idea to the one
before it. This runs them all, holds each to the bits of the first, and prints how fast it is. `make
ladder`, or `build/ladder M N K`.
*/
#define TESTING
#include "../../train_gpt_fp8.c"
#include "../bench/peak.h"

static float e4m3_value[256]; // of every code

#include "1_naive.c"
#include "2_blocked.c"
#include "3_packed.c"
#include "4_decode_while_packing.c"
#include "5_register_tile.c"
#include "6_pairs.c"
#include "7_threads.c"

int main(int argc, char **argv) {
    typedef void (*Product)(float *, const uint8_t *, const uint8_t *, int, int, int);
    static const struct {
        const char *name;
        Product product;
        int pairs, threads;
    } rungs[] = {
        {"1 naive", product_naive, 0, 0},
        {"2 blocked", product_blocked, 0, 0},
        {"3 packed", product_packed, 0, 0},
        {"4 decode while packing", product_decode_while_packing, 0, 0},
        {"5 register tile", product_register_tile, 0, 0},
        {"6 bf16 pairs", product_pairs, 1, 0},
        {"7 threads (the trainer's)", product_threads, 0, 1},
    };
    const int M = argc > 3 ? atoi(argv[1]) : 512, N = argc > 3 ? atoi(argv[2]) : 768,
              K = argc > 3 ? atoi(argv[3]) : 768;
    EXPECT(M > 0 && N > 0 && K > 0 && (argc == 1 || argc == 4),
           "expected no argument, or M N K above 0");
    uint8_t *a = (uint8_t *)memory_allocate((size_t)M * K),
            *b = (uint8_t *)memory_allocate((size_t)N * K);
    float *c = (float *)memory_allocate((size_t)M * N * 4),
          *first = (float *)memory_allocate((size_t)M * N * 4);
    machine_init(0);
    for (int i = 0; i < 256; i++) e4m3_value[i] = fp8_decode((uint8_t)i, DTYPE_E4M3);
    workspace_init((size_t)M * N, 4096);
    for (size_t i = 0; i < (size_t)M * K; i++)
        a[i] = fp8_encode((float)random_unit(random_u64(1, 0, i)) * 4 - 2, DTYPE_E4M3);
    for (size_t i = 0; i < (size_t)N * K; i++)
        b[i] = fp8_encode((float)random_unit(random_u64(1, 1, i)) * 4 - 2, DTYPE_E4M3);
    printf("%d x %d x %d, E4M3 bytes, %s, %d threads on the last rung\n%-28s %10s %10s   %s\n", M,
           N, K, ISA_NAME, thread_count(), "", "GFLOP/s", "of peak", "bits");
    int failed = 0;
    for (size_t r = 0; r < sizeof(rungs) / sizeof(rungs[0]); r++) {
        if (rungs[r].pairs && !HAS_PAIRS) {
            printf("%-28s %10s   (this build has no vdpbf16ps)\n", rungs[r].name, "-");
            continue;
        }
        double best = INFINITY,
               peak = rungs[r].threads ? machine_peak_gflops : peak_measure(rungs[r].pairs);
        for (double begin = seconds_now();
             best == INFINITY || seconds_now() - begin < 0.5;) { // the fastest of half a second
            memset(c, 0xff, (size_t)M * N * 4);
            const double t = seconds_now();
            rungs[r].product(c, a, b, M, N, K);
            best = MIN(best, seconds_now() - t);
        }
        if (r == 0) memcpy(first, c, (size_t)M * N * 4);
        const int same = !memcmp(first, c, (size_t)M * N * 4);
        const double gflops = 2.0 * M * N * K / best * 1e-9;
        failed += !same;
        printf("%-28s %10.1f %9.1f%%   %s\n", rungs[r].name, gflops, 100 * gflops / peak,
               same ? "the same" : "DIFFERENT");
    }
    return failed != 0;
}
