/*
Times the trainer's matrix product on the shapes of training steps, packing included, from the
operands of this precision (FP8 bytes in the FP8 build), as a share of the peak of the instruction
used, which is measured in turn with each product.

    gcc -O3 -march=native -mprefer-vector-width=512 -ffp-contract=off -fno-math-errno
-fno-trapping-math \ -fopenmp -DPRECISION=0 dev/bench/products.c -o build/products -lm &&
build/products [REPEATS [RULE]]

fprop: x [M, K], w [N, K].  dgrad: the same product with w read across.  wgrad: both operands read
across. RULE, one of fma, pairs and tiles: the first two compute the order `pairs` with fp32
multiply-adds or with vdpbf16ps, the same bits; tiles is the other order. Without RULE: all that
this CPU has instructions for. Rows are tab-separated.
*/
#define TESTING
#include "../../train_gpt_fp8.c"
#include "peak.h"

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// A matrix of uniform numbers in -2 .. 2, [rows, k], or stored as its transpose.
static Matrix matrix_random(size_t rows, size_t k, int across, Dtype dtype, uint64_t seed) {
    unsigned char *data = (unsigned char *)memory_allocate(rows * k * dtype_size[dtype]);
    PARALLEL(static) for (size_t i = 0; i < rows * k; i++) {
        const float f = (float)(random_unit(random_u64(seed, 0, i)) - 0.5) * 4;
        if (dtype == DTYPE_E4M3 || dtype == DTYPE_E5M2) data[i] = fp8_encode(f, dtype);
        else ((stored_t *)data)[i] = stored_from_float(f);
    }
    return across ? matrix(data, dtype, 1, rows) : matrix(data, dtype, k, 1);
}

// tokens, outputs, inputs of a linear layer
static const struct {
    const char *group;
    size_t rows, out, in;
} shapes[] = {
    {"d12", 1024, 2304, 768},   {"d12", 1024, 768, 768},    {"d12", 1024, 3072, 768},
    {"d12", 1024, 768, 3072},   {"d12", 2048, 2304, 768},   {"d12", 2048, 768, 768},
    {"d12", 2048, 3072, 768},   {"d12", 2048, 768, 3072},   {"head", 512, 50304, 768},
    {"C=384", 1024, 384, 384},  {"C=384", 1024, 1536, 384}, {"C=256", 1024, 256, 256},
    {"C=256", 1024, 1024, 256}, {"odd", 1000, 770, 770},    {"odd", 1021, 1009, 997},
    {"odd", 333, 3001, 129},
};

int main(int argc, char **argv) {
    static const char *const rules[] = {"fma", "pairs", "tiles"}, *const kinds[] = {
                                                                      "fprop", "dgrad", "wgrad"};
    const int repeats = argc > 1 && atoi(argv[1]) > 0 ? atoi(argv[1]) : 15;
    double *times = (double *)memory_allocate((size_t)repeats * sizeof(double));
    double *peaks = (double *)memory_allocate((size_t)repeats * sizeof(double));
    machine_init(1);
    const int has_amx = product_uses_pairs;
    workspace_init(4096 * 4096, 4096);
    printf("rule\tgroup\tproduct\tM\tN\tK\tGFLOP/s\tpeak\tshare\n");
    for (int rule = 0; rule < 3; rule++) {
        if ((argc > 2 && strcmp(argv[2], rules[rule])) || (rule == 1 && !HAS_PAIRS) ||
            (rule == 2 && argc < 3 && !has_amx))
            continue;
        product_in_tiles = rule == 2, product_uses_pairs = rule == 1 || (rule == 2 && has_amx);
        for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
            for (int kind = 0; kind < 3; kind++) {
                // fprop: M rows, N outputs, K inputs; dgrad swaps inputs and outputs; wgrad sums
                // over the rows
                const size_t rows = shapes[s].rows, out = shapes[s].out, in = shapes[s].in;
                const size_t M = kind == 2 ? out : rows, N = kind == 0 ? out : in,
                             K = kind == 0   ? in
                                 : kind == 1 ? out
                                             : rows;
                const Dtype x = IS_FP8 ? DTYPE_E4M3 : STORED, dy = IS_FP8 ? DTYPE_E5M2 : STORED;
                Matrix a = matrix_random(M, K, kind == 2, kind == 0 ? x : dy, 1),
                       b = matrix_random(N, K, kind > 0, x, 2);
                float *c = (float *)memory_allocate(M * N * sizeof(float));
                for (int i = -1; i < repeats; i++) {
                    double peak = 0;
#pragma omp parallel reduction(+ : peak)
                    peak += peak_measure(product_uses_pairs);
                    const double begin = seconds_now();
                    matmul(output(c, kind == 2 ? DTYPE_FP32 : STORED, N, 1, NULL, kind == 2), a, b,
                           M, N, K);
                    if (i >= 0) times[i] = seconds_now() - begin, peaks[i] = peak;
                }
                qsort(times, (size_t)repeats, sizeof(double), compare_doubles);
                qsort(peaks, (size_t)repeats, sizeof(double), compare_doubles);
                const double gflops =
                    2.0 * (double)M * (double)N * (double)K / times[repeats / 2] * 1e-9;
                const double peak = peaks[repeats / 2];
                printf("%s\t%s\t%s\t%zu\t%zu\t%zu\t%.0f\t%.0f\t%.1f%%\n", rules[rule],
                       shapes[s].group, kinds[kind], M, N, K, gflops, peak, 100 * gflops / peak);
                fflush(stdout);
                free((void *)(uintptr_t)a.data), free((void *)(uintptr_t)b.data), free(c);
            }
    }
    return 0;
}
