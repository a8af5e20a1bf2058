/*
Times the trainer's matrix product on the shapes of a GPT-2 d12 and d6 step, packing included, from the operands of this
precision (FP8 bytes in the FP8 build), as a share of the peak, which is measured in turn with each product.

    gcc -O3 -march=native -mprefer-vector-width=512 -ffp-contract=off -fno-math-errno -fno-trapping-math \
        -fopenmp -DPRECISION=0 dev/bench/products.c -o build/products -lm && build/products [REPEATS]

fprop: x [M, K], w [N, K].  dgrad: the same product with w read across.  wgrad: both operands read across.
Where the CPU has vdpbf16ps, both ways to compute the same bits are timed, each beside its own peak.
*/
#define TESTING
#include "../../train_gpt_fp8.c"

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// A matrix of uniform numbers in -2 .. 2, [rows, k], or stored as its transpose.
static Matrix matrix_random(size_t rows, size_t k, int across, Dtype dtype, uint64_t seed) {
    unsigned char *data = (unsigned char *)memory_allocate(rows * k * dtype_size[dtype]);
    for (size_t i = 0; i < rows * k; i++) {
        const float f = (float)(random_unit(random_u64(seed, 0, i)) - 0.5) * 4;
        if (dtype == DTYPE_E4M3 || dtype == DTYPE_E5M2) data[i] = fp8_encode(f, dtype);
        else ((stored_t *)data)[i] = stored_from_float(f);
    }
    return across ? matrix(data, dtype, 1, rows) : matrix(data, dtype, k, 1);
}

int main(int argc, char **argv) {
    static const size_t shapes[][3] = {{1024, 2304, 768}, {1024, 768, 768}, {1024, 3072, 768},
                                       {1024, 768, 3072}, {1024, 384, 384}, {1024, 1536, 384}};
    static const char *const kinds[] = {"fprop", "dgrad", "wgrad"};
    const int repeats = argc > 1 && atoi(argv[1]) > 0 ? atoi(argv[1]) : 15;
    double *times = (double *)memory_allocate((size_t)repeats * sizeof(double));
    double *peaks = (double *)memory_allocate((size_t)repeats * sizeof(double));
    machine_init();
    workspace_init(4096 * 4096, 4096);
    const int chosen = product_uses_pairs;
    for (int pairs = 0; pairs < 2; pairs++) {
#ifndef __AVX512BF16__
        if (pairs) break;
#endif
        if (pairs && (STORED != DTYPE_BF16)) break;
        product_uses_pairs = pairs;
        printf("%s, %s, %d threads, %s%s\n", PRECISION_NAME, ISA_NAME, thread_count(),
               pairs ? "vdpbf16ps" : "fp32 multiply-adds", pairs == chosen ? " (the trainer's choice here)" : "");
        printf("     M     N     K           GFLOP/s      peak  of peak   (medians of %d, taken in turn)\n", repeats);
        double sum = 0;
        int count = 0;
        for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
            for (int kind = 0; kind < 3; kind++) {
                // fprop: M rows, N outputs, K inputs; dgrad swaps inputs and outputs; wgrad sums over the rows
                const size_t rows = shapes[s][0], out = shapes[s][1], in = shapes[s][2];
                const size_t M = kind == 2 ? out : rows, N = kind == 0 ? out : in, K = kind == 0 ? in : kind == 1 ? out : rows;
                const Dtype x = IS_FP8 ? DTYPE_E4M3 : STORED, dy = IS_FP8 ? DTYPE_E5M2 : STORED;
                Matrix a = matrix_random(M, K, kind == 2, kind == 0 ? x : dy, 1), b = matrix_random(N, K, kind > 0, x, 2);
                float *c = (float *)memory_allocate(M * N * sizeof(float));
                for (int i = -1; i < repeats; i++) {
                    double peak = 0;
#pragma omp parallel reduction(+ : peak)
                    peak += peak_measure(pairs);
                    const double begin = seconds_now();
                    matmul(output(c, DTYPE_FP32, N, 1, NULL, kind == 2), a, b, M, N, K);
                    if (i >= 0) times[i] = seconds_now() - begin, peaks[i] = peak;
                }
                qsort(times, (size_t)repeats, sizeof(double), compare_doubles);
                qsort(peaks, (size_t)repeats, sizeof(double), compare_doubles);
                const double gflops = 2.0 * (double)M * (double)N * (double)K / times[repeats / 2] * 1e-9;
                const double share = 100 * gflops / peaks[repeats / 2];
                printf("%6zu %5zu %5zu  %s  %8.0f  %8.0f   %5.1f%%\n", M, N, K, kinds[kind], gflops, peaks[repeats / 2], share);
                sum += share, count++;
                free((void *)(uintptr_t)a.data), free((void *)(uintptr_t)b.data), free(c);
            }
        printf("                            mean of the shares   %5.1f%%\n", sum / count);
    }
    return 0;
}
