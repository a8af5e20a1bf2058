/*
What the trainer makes of numbers below eight bits, for dev/check/check_below8.py. FP8 build only.

    dump_below8 FLOATS RANDOM MATRIX RESULT

FLOATS is raw float32, RANDOM as many uint32, MATRIX raw float32 [128, 256]. RESULT has arrays as
read_arrays() of check_references.py reads them: the values of E2M1's 16 codes; the code of each of
FLOATS; its magnitude rounded stochastically with its number of RANDOM, in three formats; and for
each recipe below, by name, K along MATRIX's columns and then along its rows: codes, the inverses of
its blocks' scales, and scale_inv. A code has its sign in bit 7.
*/
#define TESTING
#include "../../train_gpt_fp8.c"
#include "arrays.h"
#if PRECISION != PRECISION_FP8
#error "dump_below8 reads the FP8 build's quantizer: compile it with -DPRECISION=0"
#endif

static void *read_whole(const char *path, size_t *count) {
    const File f = file_open(path, 0);
    void *x = memory_allocate(f.bytes);
    file_read(&f, 0, x, f.bytes);
    *count = f.bytes / 4;
    close(f.fd);
    return x;
}
static void codes_write(FILE *f, const char *prefix, const uint8_t *q, size_t n, Dtype d) {
    int *codes = (int *)memory_allocate(n * sizeof(int));
    for (size_t i = 0; i < n; i++) codes[i] = code_at(q, i, d);
    ints_write(f, prefix, "codes", codes, n);
    free(codes);
}
static void numbers_write(FILE *f, const float *x, const uint32_t *random, size_t n) {
    static const char *const names[3] = {"e4m3", "e5m2", "e2m1"};
    float values[16];
    int *codes = (int *)memory_allocate(n * sizeof(int));
    for (int c = 0; c < 16; c++)
        values[c] = fp8_decode((uint8_t)(c % 8 + (c > 7 ? 128 : 0)), DTYPE_E2M1);
    array_write(f, "", "values", values, 16);
    for (size_t i = 0; i < n; i++) codes[i] = fp8_encode(x[i], DTYPE_E2M1);
    ints_write(f, "", "encoded", codes, n);
    for (int t = 0; t < 3; t++) {
        for (size_t i = 0; i < n; i++)
            codes[i] = (int)fp8_round_stochastic(float_bits(x[i]) & 0x7fffffff, &fp8_formats[t],
                                                 random[i]);
        ints_write(f, "stochastic/", names[t], codes, n);
    }
    free(codes);
}

int main(int argc, char **argv) {
    EXPECT(argc == 5, "usage: dump_below8 FLOATS RANDOM MATRIX RESULT");
    machine_init(0);
    enum { HEIGHT = 128, WIDTH = 256, MATRIX = HEIGHT * WIDTH };
    static const struct {
        const char *words;
        int operand;
    } recipes[] = {{"mxfp4", OPERAND_X},           {"mxfp4+floor", OPERAND_X},
                   {"nvfp4", OPERAND_X},           {"nvfp4", OPERAND_W},
                   {"nvfp4+e4m3", OPERAND_X},      {"mxfp4+stochastic", OPERAND_X},
                   {"nvfp4+stochastic", OPERAND_X}};
    size_t count, random_count, matrix_count;
    float *x = (float *)read_whole(argv[1], &count);
    uint32_t *random = (uint32_t *)read_whole(argv[2], &random_count);
    float *numbers = (float *)read_whole(argv[3], &matrix_count);
    EXPECT(count == random_count && matrix_count == MATRIX,
           "expected as many random numbers as floats, and %d in %s; found %zu, %zu and %zu",
           MATRIX, argv[3], count, random_count, matrix_count);
    FILE *f = fopen(argv[4], "wb");
    EXPECT(f, "%s: cannot create: %s", argv[4], strerror(errno));
    numbers_write(f, x, random, count);
    static stored_t stored[MATRIX];
    static uint8_t q[MATRIX];
    static float inv[MATRIX];
    for (int i = 0; i < MATRIX; i++) stored[i] = stored_from_float(numbers[i]);
    for (int i = 0; i < 2 * COUNT(recipes); i++) {
        ScalingRecipe all[NOPERAND];
        char prefix[64];
        recipe_parse(all, recipes[i / 2].words, "dump_below8");
        const ScalingRecipe *r = &all[recipes[i / 2].operand];
        const size_t way = i % 2, I = way ? WIDTH : HEIGHT, K = way ? HEIGHT : WIDTH;
        Fp8Scale s;
        memset(&s, 0, sizeof(s));
        s.recipe = *r;
        quantize_blocks(q, inv, stored, HEIGHT, WIDTH, (int)way, &s, RECORD_STATS);
        snprintf(prefix, sizeof(prefix), "%s:%s/%zu/", operand_name[recipes[i / 2].operand],
                 recipes[i / 2].words, way);
        codes_write(f, prefix, q, MATRIX, r->format);
        array_write(f, prefix, "inv", inv, ceil_div(I, r->across) * ceil_div(K, r->along));
        array_write(f, prefix, "scale_inv", &s.scale_inv[way], 1);
    }
    EXPECT(fflush(f) == 0 && !ferror(f), "%s: cannot write: %s", argv[4], strerror(errno));
    fclose(f);
    free(x);
    free(random);
    free(numbers);
    return 0;
}
