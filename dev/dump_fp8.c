/*
The trainer's FP8 conversions on given numbers, for dev/check_fp8_ml_dtypes.py. FP8 build only.

    dump_fp8 FLOATS SCALES RESULT

FLOATS and SCALES are raw float32. RESULT, for E4M3 and then for E5M2: the value of every code from fp8_decode() and from
decode_bf16(), the products' path (256 float32 each); a code for each number of FLOATS, from fp8_encode(); for each scale
all 65536 bf16 numbers through quantise(), and its statistics as uint64: amax_bits, saturated, flushed, nonfinite, count.
*/
#define TESTING
#include "../train_gpt_fp8.c"
#if PRECISION != PRECISION_FP8
#error "dump_fp8 reads the FP8 build's quantiser: compile it with -DPRECISION=0"
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

int main(int argc, char **argv) {
    if (argc != 4) fatal(EXIT_BAD_INPUT, "usage: dump_fp8 FLOATS SCALES RESULT");
    machine_init(0);
    size_t count, scale_count;
    float *x = floats_read(argv[1], &count), *scales = floats_read(argv[2], &scale_count);
    FILE *f = fopen(argv[3], "wb");
    if (!f) fatal(EXIT_BAD_INPUT, "%s: %s", argv[3], strerror(errno));
    uint8_t *codes = (uint8_t *)memory_allocate(count);
    static uint16_t all_bf16[65536], decoded[256];
    static uint8_t all_codes[256], quantised[65536];
    for (int i = 0; i < 65536; i++) all_bf16[i] = (uint16_t)i;
    for (int i = 0; i < 256; i++) all_codes[i] = (uint8_t)i;
    for (int e5m2 = 0; e5m2 < 2; e5m2++) {
        const Dtype d = e5m2 ? DTYPE_E5M2 : DTYPE_E4M3;
        float values[2][256];
        decode_bf16(decoded, all_codes, 256, d);
        for (int i = 0; i < 256; i++) values[0][i] = fp8_decode((uint8_t)i, d), values[1][i] = float_from_bf16(decoded[i]);
        fwrite(values, 4, 512, f);
        for (size_t i = 0; i < count; i++) codes[i] = fp8_encode(x[i], d);
        fwrite(codes, 1, count, f);
        const ScalingRecipe recipe = {d, SCALING_STATIC, 1, 1, 0, 0, 0, 0, 0};
        for (size_t i = 0; i < scale_count; i++) {
            Fp8Scale s;
            memset(&s, 0, sizeof(s));
            s.recipe = recipe, s.scale = scales[i];
            quantise(quantised, all_bf16, 65536, &s, 1);
            const uint64_t stats[5] = {s.step.amax_bits, s.step.saturated, s.step.flushed, s.step.nonfinite, s.step.count};
            fwrite(quantised, 1, 65536, f);
            fwrite(stats, 8, 5, f);
        }
    }
    if (fflush(f) != 0 || ferror(f)) fatal(EXIT_BAD_INPUT, "%s: %s", argv[3], strerror(errno));
    fclose(f);
    free(x), free(scales), free(codes);
    return 0;
}
