/*
What a narrow accumulator costs: dot products of E4M3 bytes with the sums of Hopper's FP8 tensor
cores, against their length K.

    make build/lab/accumulator && build/lab/accumulator [ROWS | A B OUT]

Hopper's wgmma aligns the 32 products of a step, and the accumulator with them, to the largest of
their exponents, cuts what lies below 13 fraction bits of it, adds what is left, and cuts the sum to
13 fraction bits (arXiv 2512.07004, section 4.1.6). DeepSeek-V3 (arXiv 2412.19437, section 3.3.2)
therefore adds the accumulator to an fp32 total, and clears it, every 128 elements of K: promotion.
Both are modelled here, beside the trainer's own sum, one chain of fp32 multiply-adds.
dev/check/check_accumulator.py compares this model, bit for bit, with one that was validated on an
H100: with three files, the program reads E4M3 bytes a [M, 512] and b [M, 512] and writes the sums
[M, 2] as fp32, without promotion and with. The error is the root mean square over ROWS x ROWS
outputs of the distance to the exact sum of the same bytes, over the root mean square of the exact
sums.
*/
#define TESTING
#define PROGRAM "accumulator"
#include "../../train_gpt_fp8.c"

// The exponent e of |x| = 2^e m, m in [1, 2); of 0 one below all others.
static int exponent_of(double x) {
    int e;
    if (x == 0) return -10000;
    frexp(x, &e);
    return e - 1;
}

// A dot product by such a unit. promote: elements after which the accumulator is added to an fp32
// total and cleared, a multiple of 32; 0: never.
static float dot_narrow(const float *a, const float *b, int K, int fraction_bits, int promote) {
    float total = 0, acc = 0;
    for (int k0 = 0; k0 < K; k0 += 32) {
        const int n = MIN(32, K - k0);
        double products[32];
        int top = exponent_of(acc);
        for (int i = 0; i < n; i++) {
            // Exact; its exponent is the sum of the two, denormals' being -6.
            products[i] = (double)a[k0 + i] * b[k0 + i];
            if (products[i] != 0)
                top = MAX(top, MAX(exponent_of(a[k0 + i]), -6) + MAX(exponent_of(b[k0 + i]), -6));
        }
        if (top > -10000) {
            const double quantum = ldexp(1, top - fraction_bits);
            long long sum = (long long)(acc / quantum); // a cast cuts towards zero
            for (int i = 0; i < n; i++) sum += (long long)(products[i] / quantum);
            const double kept = ldexp(1, exponent_of((double)sum * quantum) - fraction_bits);
            acc = sum ? (float)((double)(long long)((double)sum * quantum / kept) * kept) : 0;
        }
        if ((promote && (k0 + 32) % promote == 0) || k0 + 32 >= K) total += acc, acc = 0;
    }
    return total;
}

// Dots of row i of one file of bytes with row i of another, without and with promotion, written to
// a third.
static int dots_of_files(char **paths) {
    enum { K = 512 };
    uint8_t row[2][K];
    FILE *a = fopen(paths[0], "rb"), *b = fopen(paths[1], "rb"), *out = fopen(paths[2], "wb");
    EXPECT(a && b && out, "%s, %s, %s: cannot open: %s", paths[0], paths[1], paths[2],
           strerror(errno));
    while (fread(row[0], 1, K, a) == K && fread(row[1], 1, K, b) == K) {
        float values[2][K], sums[2];
        for (int i = 0; i < 2 * K; i++)
            values[i / K][i % K] = fp8_decode(row[i / K][i % K], DTYPE_E4M3);
        for (int i = 0; i < 2; i++) sums[i] = dot_narrow(values[0], values[1], K, 13, i * 128);
        fwrite(sums, 4, 2, out);
    }
    return fclose(a), fclose(b), fclose(out) != 0;
}

int main(int argc, char **argv) {
    if (argc == 4) return dots_of_files(argv + 1);
    const int rows = argc > 1 ? atoi(argv[1]) : 32;
    EXPECT(argc <= 2 && rows > 0 && rows <= 1024,
           "usage: accumulator [ROWS | A B OUT]; ROWS from 1 to 1024 [32]; the first lines of "
           "dev/lab/accumulator.c explain it");
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
             which++) // normal numbers around 0 or, the left one, around 1, as after a GELU
            for (size_t i = 0; i < (size_t)rows * K_MAX; i++) {
                double sine, cosine, u = 1 - random_unit(random_u64(7 + which, 0, i));
                sincos_turns(random_unit(random_u64(7 + which, 1, i)), &sine, &cosine);
                const double x = sqrt(-2 * log_fixed_order(u)) * cosine + (shifted && !which);
                bytes[which][i] = fp8_encode((float)(x * 64), DTYPE_E4M3);
                values[which][i] = fp8_decode(bytes[which][i], DTYPE_E4M3);
            }
        for (int K = 128; K <= K_MAX; K *= 4) {
            double squares = 0, errors[SUMS] = {0};
            for (int row = 0; row < rows;
                 row++) // products of [1, K] and [rows, K], each row of a at the stride of K_MAX
                matmul(output(out + (size_t)row * rows, DTYPE_FP32, rows, 1, NULL, 0),
                       matrix(bytes[0] + (size_t)row * K_MAX, DTYPE_E4M3, K_MAX, 1),
                       matrix(bytes[1], DTYPE_E4M3, K_MAX, 1), 1, rows, K);
#pragma omp parallel for reduction(+ : squares, errors[:SUMS])
            for (int i = 0; i < rows * rows; i++) {
                const float *a = values[0] + (size_t)(i / rows) * K_MAX,
                            *b = values[1] + (size_t)(i % rows) * K_MAX;
                double exact = 0;
                for (int k = 0; k < K; k++) exact += (double)a[k] * b[k];
                squares += exact * exact;
                for (int s = 0; s < SUMS; s++) {
                    const double found =
                        sums[s].fraction_bits
                            ? dot_narrow(a, b, K, sums[s].fraction_bits, sums[s].promote)
                            : out[i];
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
