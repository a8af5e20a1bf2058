/*
The trainer's FP8 conversions on given numbers, for dev/check/check_fp8_ml_dtypes.py. FP8 build
only.

    dump_fp8 FLOATS SCALES MATRIX RESULT

FLOATS and SCALES are raw float32. RESULT, for E4M3 and then for E5M2: the value of every code from
fp8_decode() and from decode_bf16(), the products' path (256 float32 each); a code for each number
of FLOATS, from fp8_encode(); for each scale all 65536 bf16 numbers through quantize(), and its
statistics as uint64: amax_bits, saturated, flushed, nonfinite, count. Then, for each recipe in
blocks of `recipes` below, MATRIX, raw float32 [256, 512], through quantize_blocks(), K along its
columns and then along its rows: its bytes, a float32 inverse of each block's scale, [blocks
across K][blocks along it], and as float64 the SQNR and the kurtosis that a log would report. At the
end these two of MATRIX with one scale.
*/
#define TESTING
#include "../../train_gpt_fp8.c"
#if PRECISION != PRECISION_FP8
#error "dump_fp8 reads the FP8 build's quantizer: compile it with -DPRECISION=0"
#endif

static float *floats_read(const char *path, size_t *count) {
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0) fatal(EXIT_BAD_INPUT, "%s: %s", path, strerror(errno));
    *count = (size_t)ftell(f) / 4;
    rewind(f);
    float *x = (float *)memory_allocate(*count * 4);
    if (fread(x, 4, *count, f) != *count) fatal(EXIT_BAD_INPUT, "%s: %s", path, strerror(errno));
    fclose(f);
    return x;
}

static void report_write(FILE *f, const Fp8Scale *s) {
    Fp8Scale ended = *s;
    Gpt g;
    memset(&g, 0, sizeof(g));
    g.scales = &ended;
    scale_advance(&ended);
    const OperandReport r = operand_report(&g, OPERAND_X);
    const double two[2] = {r.sqnr, r.kurtosis};
    fwrite(two, sizeof(two), 1, f);
}

int main(int argc, char **argv) {
    if (argc != 5) fatal(EXIT_BAD_INPUT, "usage: dump_fp8 FLOATS SCALES MATRIX RESULT");
    machine_init(0);
    size_t count, scale_count;
    float *x = floats_read(argv[1], &count), *scales = floats_read(argv[2], &scale_count);
    FILE *f = fopen(argv[4], "wb");
    if (!f) fatal(EXIT_BAD_INPUT, "%s: %s", argv[4], strerror(errno));
    uint8_t *codes = (uint8_t *)memory_allocate(count);
    static uint16_t all_bf16[65536], decoded[256];
    static uint8_t all_codes[256], quantized[65536];
    for (int i = 0; i < 65536; i++) all_bf16[i] = (uint16_t)i;
    for (int i = 0; i < 256; i++) all_codes[i] = (uint8_t)i;
    for (int e5m2 = 0; e5m2 < 2; e5m2++) {
        const Dtype d = e5m2 ? DTYPE_E5M2 : DTYPE_E4M3;
        float values[2][256];
        decode_bf16(decoded, all_codes, 256, d);
        for (int i = 0; i < 256; i++)
            values[0][i] = fp8_decode((uint8_t)i, d), values[1][i] = float_from_bf16(decoded[i]);
        fwrite(values, 4, 512, f);
        for (size_t i = 0; i < count; i++) codes[i] = fp8_encode(x[i], d);
        fwrite(codes, 1, count, f);
        const ScalingRecipe recipe = {.format = d, .rule = SCALING_CONSTANT, .number = 1};
        for (size_t i = 0; i < scale_count; i++) {
            Fp8Scale s;
            memset(&s, 0, sizeof(s));
            s.recipe = recipe, s.scale = scales[i];
            quantize(quantized, all_bf16, 65536, &s, 1);
            const uint64_t stats[5] = {s.step.amax_bits, s.step.saturated, s.step.flushed,
                                       s.step.nonfinite, s.step.count};
            fwrite(quantized, 1, 65536, f);
            fwrite(stats, 8, 5, f);
        }
    }
    enum { ROWS_IN = 256, COLUMNS = 512, MATRIX = ROWS_IN * COLUMNS };
    // the x of each: as check_fp8_ml_dtypes.py has them
    static const char *const recipes[] = {
        "mx+floor",      "mx+floor+e5m2", "mx",
        "mx+e5m2",       "block=1x128",   "block=1x128+e5m2",
        "block=128x128", "rowwise",       "rowwise+e5m2+margin=2"};
    size_t matrix_count;
    float *numbers = floats_read(argv[3], &matrix_count);
    if (matrix_count != MATRIX)
        fatal(EXIT_BAD_INPUT, "%s: expected %d numbers, found %zu", argv[3], MATRIX, matrix_count);
    static stored_t stored[MATRIX];
    static uint8_t bytes[MATRIX];
    static float inv[MATRIX];
    for (int i = 0; i < MATRIX; i++) stored[i] = stored_from_float(numbers[i]);
    for (size_t i = 0; i < 2 * sizeof(recipes) / sizeof(recipes[0]); i++) {
        ScalingRecipe recipe[NOPERAND];
        const ScalingRecipe *r = &recipe[OPERAND_X];
        recipe_parse(recipe, recipes[i / 2], "dump_fp8");
        const size_t along_rows = i % 2, I = along_rows ? COLUMNS : ROWS_IN,
                     K = along_rows ? ROWS_IN : COLUMNS;
        Fp8Scale s;
        memset(&s, 0, sizeof(s));
        s.recipe = *r;
        quantize_blocks(bytes, inv, stored, ROWS_IN, COLUMNS, (int)along_rows, &s, RECORD_SQNR);
        fwrite(bytes, 1, MATRIX, f),
            fwrite(inv, 4, ceil_div(I, r->across) * ceil_div(K, r->along), f);
        report_write(f, &s);
    }
    Fp8Scale s;
    memset(&s, 0, sizeof(s));
    s.recipe = (ScalingRecipe){.format = DTYPE_E4M3, .rule = SCALING_CURRENT};
    quantize(bytes, stored, MATRIX, &s, RECORD_SQNR);
    fwrite(bytes, 1, MATRIX, f);
    report_write(f, &s);
    free(numbers);
    if (fflush(f) != 0 || ferror(f)) fatal(EXIT_BAD_INPUT, "%s: %s", argv[4], strerror(errno));
    fclose(f);
    free(x), free(scales), free(codes);
    return 0;
}
