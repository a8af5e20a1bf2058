/*
What a narrow accumulator costs: dot products of E4M3 bytes with the sums of Hopper's FP8 tensor cores, against their length K.

    make build/lab/accumulator && build/lab/accumulator [ROWS]

Hopper's wgmma aligns the 32 products of a step, and the accumulator with them, to the largest of their exponents, cuts what
lies below 13 fraction bits of it, and adds what is left (arXiv 2512.07004, section 4.1.6). DeepSeek-V3 (arXiv 2412.19437, section
3.3.2) therefore adds the accumulator to an fp32 total, and clears it, every 128 elements of K: promotion. Both are modelled here
(without the unit's cut of the result itself, which adds 3% to the error at K = 128), beside the trainer's own sum, one chain of
fp32 multiply-adds. The error is the root mean square over ROWS x ROWS outputs of the distance to the exact sum of the same bytes,
over the root mean square of the exact sums.
*/
#define TESTING
#include "../../train_gpt_fp8.c"

// The exponent e of |x| = 2^e m, m in [1, 2); of 0 one below all others.
static int exponent_of(double x) {
    int e;
    if (x == 0) return -10000;
    frexp(x, &e);
    return e - 1;
}

// A dot product by such a unit. promote: elements after which the accumulator is added to an fp32 total and cleared, a multiple of
// 32; 0: never.
static float dot_narrow(const float *a, const float *b, int K, int fraction_bits, int promote) {
    float total = 0, acc = 0;
    for (int k0 = 0; k0 < K; k0 += 32) {
        const int n = MIN(32, K - k0);
        double products[32];
        int top = exponent_of(acc);
        for (int i = 0; i < n; i++) {
            products[i] = (double)a[k0 + i] * b[k0 + i]; // exact
            top = MAX(top, exponent_of(products[i]));
        }
        if (top > -10000) {
            const double quantum = ldexp(1, top - fraction_bits);
            long long sum = (long long)(acc / quantum); // a cast cuts towards zero
            for (int i = 0; i < n; i++) sum += (long long)(products[i] / quantum);
            acc = (float)((double)sum * quantum);
        }
        if ((promote && (k0 + 32) % promote == 0) || k0 + 32 >= K) total += acc, acc = 0;
    }
    return total;
}

int main(int argc, char **argv) {
    const int rows = argc > 1 && atoi(argv[1]) > 0 ? atoi(argv[1]) : 32;
    static const struct {
        const char *name;
        int fraction_bits, promote; // 0 bits: the trainer's chain
    } sums[] = {{"fp32 chain (the trainer)", 0, 0},
                {"13 bits", 13, 0},
                {"13 bits, promoted every 128", 13, 128},
                {"13 bits, promoted every 512", 13, 512}};
    enum { SUMS = sizeof(sums) / sizeof(sums[0]), K_MAX = 65536 };
    machine_init(0);
    workspace_init(0, 0);
    uint8_t *bytes[2];
    float *values[2], *out = (float *)memory_allocate((size_t)rows * rows * 4);
    for (int which = 0; which < 2; which++) {
        bytes[which] = (uint8_t *)memory_allocate((size_t)rows * K_MAX);
        values[which] = (float *)memory_allocate((size_t)rows * K_MAX * 4);
    }
    printf("data\tK");
    for (int s = 0; s < SUMS; s++) printf("\t%s", sums[s].name);
    printf("\n");
    for (int shifted = 0; shifted < 2; shifted++) {
        for (int which = 0; which < 2;
             which++) // normal numbers, on 0 or, the left one, on 1, as after a GELU: then sums grow with K
            for (size_t i = 0; i < (size_t)rows * K_MAX; i++) {
                double sine, cosine, u = 1 - random_unit(random_u64(7 + which, 0, i));
                sincos_turns(random_unit(random_u64(7 + which, 1, i)), &sine, &cosine);
                const double x = sqrt(-2 * log_fixed_order(u)) * cosine + (shifted && !which);
                bytes[which][i] = fp8_encode((float)(x * 64), DTYPE_E4M3);
                values[which][i] = fp8_decode(bytes[which][i], DTYPE_E4M3) / 64;
            }
        for (int K = 128; K <= K_MAX; K *= 4) {
            double squares = 0, errors[SUMS] = {0};
            for (int row = 0; row < rows; row++) // products of [1, K] and [rows, K], each row of a at the stride of K_MAX
                matmul(output(out + (size_t)row * rows, DTYPE_FP32, rows, 1.0f / 4096, NULL, 0),
                       matrix(bytes[0] + (size_t)row * K_MAX, DTYPE_E4M3, K_MAX, 1), matrix(bytes[1], DTYPE_E4M3, K_MAX, 1), 1,
                       rows, K);
#pragma omp parallel for reduction(+ : squares, errors[:SUMS])
            for (int i = 0; i < rows * rows; i++) {
                const float *a = values[0] + (size_t)(i / rows) * K_MAX, *b = values[1] + (size_t)(i % rows) * K_MAX;
                double exact = 0;
                for (int k = 0; k < K; k++) exact += (double)a[k] * b[k];
                squares += exact * exact;
                for (int s = 0; s < SUMS; s++) {
                    const double found =
                        sums[s].fraction_bits ? dot_narrow(a, b, K, sums[s].fraction_bits, sums[s].promote) : out[i];
                    errors[s] += (found - exact) * (found - exact);
                }
            }
            printf("%s\t%d", shifted ? "around 1 and 0" : "around 0", K);
            for (int s = 0; s < SUMS; s++) printf("\t%.2e", sqrt(errors[s] / squares));
            printf("\n");
        }
    }
    return 0;
}
