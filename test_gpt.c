/*
Tests of train_gpt_fp8.c, built like it, once for each precision, instruction set and compiler:

    gcc -O3 -march=native ... -DPRECISION=0 test_gpt.c -o test_gpt_fp8 -lm
    ./test_gpt_fp8                   # every quick check, some seconds
    ./test_gpt_fp8 --only product    # the groups whose name contains "product"
    ./test_gpt_fp8 --exhaustive      # FP8 encoding of all 2^32 floats too, minutes

A check compares the trainer with a second definition, written in the plainest way in
dev/check/definitions.h or here, or itself under a condition that must not matter (threads, tiles, a
stop in between). Bits are compared where the rules of NUMERICS_VERSION promise bits; elsewhere a
tolerance follows from UNIT, the rounding of the stored type. "planted fault" lines feed a comparing
function what it must refuse: a check that cannot fail holds nothing. A check that fails prints what
was found, and where. test_program.c tests the built programs as a whole.

Sections
     A. fp8          encode, decode, quantize, 16-bit types, fma
     B. scale        recipes, scales from amax histories
     C. math         exp, log, sin, sums, tails
     D. product      every bit of the matrix product
     E. layers       against double precision, and finite differences
     F. fp8 layer    signal to noise, non-finite tensors
     G. model        bits for any thread count, overfitting, padding, decoding
     H. data         windows, shards
     I. run          state and model files, options, a whole run done by hand, FP16's overflow
*/
#include "dev/check/counted.h"
#include <inttypes.h>
// The trainer's main stays, under another name: section I starts this program again as a trainer.
#define main trainer_main
#include "train_gpt_fp8.c"
#undef main
#include "dev/check/free.h"
#include "dev/check/definitions.h"

// Unit roundoff of the stored type: the largest relative error of one rounding to nearest.
static const double UNIT = STORED == DTYPE_BF16 ? 0x1p-8 : STORED == DTYPE_FP16 ? 0x1p-11 : 0x1p-24;
// fp32 sums of some hundred terms and exp_fixed_order (4e-7) between the roundings to the stored
// type.
static const double FP32_WORK = 2e-6;

static const char *const dtype_names[DTYPE_COUNT] = {"fp32", "bf16", "fp16", "e4m3", "e5m2"};
static int passed, failed;

__attribute__((format(printf, 4, 5))) static int check_at(int line, int ok, const char *name,
                                                          const char *format, ...) {
    va_list args;
    ok ? passed++ : failed++;
    printf("%s %s", ok ? "ok  " : "FAIL", name);
    if (!ok) {
        printf(" (%s:%d): ", __FILE__, line);
        va_start(args, format);
        vprintf(format, args);
        va_end(args);
    }
    printf("\n");
    fflush(stdout);
    return ok;
}
#define check(ok, name, ...) check_at(__LINE__, ok, name, __VA_ARGS__)
// A planted fault must be caught.
#define check_caught(ok, name) check(ok, "planted fault: " name " is caught", "it passed")
static void check_none_at(int line, size_t wrong, const char *name) {
    check_at(line, !wrong, name, "expected 0 differences, found %zu", wrong);
}
#define check_none(...) check_none_at(__LINE__, __VA_ARGS__)

// A formatted name of a check.
__attribute__((format(printf, 1, 2))) static const char *label(const char *format, ...) {
    static char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return text;
}

// Memory of a group of checks, freed all together when the group ends.
static void *blocks[4096];
static int block_count;
static void *take(size_t bytes) {
    if (block_count == COUNT(blocks)) abort();
    blocks[block_count] = memory_allocate(bytes);
    return blocks[block_count++];
}
static uint8_t *take_bytes(size_t n) { return (uint8_t *)take(n); }
static float *floats(size_t n) { return (float *)take(n * sizeof(float)); }
static double *doubles(size_t n) { return (double *)take(n * sizeof(double)); }
static stored_t *stored(size_t n) { return (stored_t *)take(n * sizeof(stored_t)); }
static void take_end(int first) {
    while (block_count > first) free(blocks[--block_count]);
}

// Normal numbers by libm, independent of gpt_init.
static double normal(uint64_t seed, uint64_t i) {
    double u = 1 - random_unit(random_u64(seed, 1, i)), turn = random_unit(random_u64(seed, 2, i));
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * turn);
}

static float *normal_floats(size_t n, double std, uint64_t seed) {
    float *x = floats(n);
    for (size_t i = 0; i < n; i++) x[i] = (float)(std * normal(seed, i));
    return x;
}

static stored_t *normal_stored(size_t n, double std, uint64_t seed) {
    stored_t *x = stored(n);
    for (size_t i = 0; i < n; i++) x[i] = stored_from_float((float)(std * normal(seed, i)));
    return x;
}

static double *doubles_of_stored(const stored_t *x, size_t n) {
    double *d = doubles(n);
    for (size_t i = 0; i < n; i++) d[i] = (double)float_from_stored(x[i]);
    return d;
}

static double *doubles_of_floats(const float *x, size_t n) {
    double *d = doubles(n);
    for (size_t i = 0; i < n; i++) d[i] = (double)x[i];
    return d;
}

// ---- comparing functions, which the planted faults also go through

// Elements whose bits differ; NaN equals any NaN.
static size_t bits_differ(const float *a, const float *b, size_t n) {
    size_t differ = 0;
    for (size_t i = 0; i < n; i++)
        differ += float_bits(a[i]) != float_bits(b[i]) && !(a[i] != a[i] && b[i] != b[i]);
    return differ;
}

typedef struct {
    double ratio, cosine; // |found| / |reference|, and the angle between the two
    double error, sqnr;   // |found - reference| / |reference|, and the same in dB
} Likeness;

// A NaN anywhere makes all four NaN, and no comparison of a check is true of a NaN.
static Likeness likeness(const double *reference, const double *found, size_t n) {
    double rr = 0, ff = 0, rf = 0, ee = 0;
    for (size_t i = 0; i < n; i++) {
        rr += reference[i] * reference[i];
        ff += found[i] * found[i];
        rf += reference[i] * found[i];
        ee += (found[i] - reference[i]) * (found[i] - reference[i]);
    }
    Likeness l = {1, 1, 0, INFINITY};
    if (rr == 0 && ff == 0) return l;
    l.ratio = sqrt(ff / rr);
    l.cosine = rf / sqrt(rr * ff);
    l.error = sqrt(ee / rr);
    l.sqnr = 10 * log10(rr / ee);
    return l;
}

static Likeness likeness_stored(const double *reference, const stored_t *found, size_t n) {
    return likeness(reference, doubles_of_stored(found, n), n);
}

static Likeness likeness_floats(const double *reference, const float *found, size_t n) {
    return likeness(reference, doubles_of_floats(found, n), n);
}

// A gradient is right when its length and its direction are: Adam hides a wrong length, a plain sum
// hides a wrong direction.
static int gradient_right(Likeness l, double tolerance) {
    return fabs(l.ratio - 1) < tolerance && l.cosine > 1 - tolerance;
}

#if PRECISION == PRECISION_FP32
static void check_gradient_at(int line, const char *of, Likeness l, double tolerance) {
    char name[128];
    snprintf(name, sizeof(name), "finite differences: %s", of);
    check_at(line, gradient_right(l, tolerance), name,
             "norm ratio %.6f, cosine %.6f, expected 1 within %g", l.ratio, l.cosine, tolerance);
}
#endif
static void check_error_at(int line, const char *name, Likeness l, double tolerance) {
    check_at(line, l.error <= tolerance, name, "relative error %.3g, expected at most %.3g",
             l.error, tolerance);
}
#define check_gradient(name, l) check_gradient_at(__LINE__, name, l, FD_TOLERANCE)
#define check_error(...)        check_error_at(__LINE__, __VA_ARGS__)

// ---- recipes, in the words of --recipe
static ScalingRecipe recipe_of(const char *words, int operand) {
    ScalingRecipe recipes[NOPERAND];
    recipe_parse(recipes, words, "test");
    return recipes[operand];
}
static Fp8Scale scale_make(ScalingRecipe recipe) {
    Fp8Scale s;
    memset(&s, 0, sizeof(s));
    s.recipe = recipe;
    s.scale_inv[0] = s.scale_inv[1] = 1;
    s.scale = recipe.rule == SCALING_CONSTANT ? recipe.number : 1;
    return s;
}
static Fp8Scale scale_of(const char *words) { return scale_make(recipe_of(words, OPERAND_X)); }
// A linear layer of tensors as they are stored; and one whose three operands have bytes.
static Linear linear_of(const stored_t *x, const stored_t *w, const float *bias, size_t in,
                        size_t out) {
    Linear f = {.in = in, .out = out, .bias = bias};
    f.operand[OPERAND_X].columns = f.operand[OPERAND_W].columns = in;
    f.operand[OPERAND_DY].columns = out;
    operand_is(&f, OPERAND_X, x);
    operand_is(&f, OPERAND_W, w);
    return f;
}
static void linear_bytes(Linear *f, Fp8Scale *scales, uint8_t *x, uint8_t *w, uint8_t *dy) {
    f->fp8 = ALL_PRODUCTS;
    uint8_t *const bytes[NOPERAND] = {[OPERAND_X] = x, [OPERAND_W] = w, [OPERAND_DY] = dy};
    for (int i = 0; i < NOPERAND; i++) {
        f->operand[i].scale = scales + i;
        f->operand[i].bytes[0] = f->operand[i].bytes[1] = bytes[i];
    }
}
static void linear_gradients(Linear *f, stored_t *dx, const stored_t *dy, float *partial,
                             size_t rows, Record record) {
    operand_is(f, OPERAND_DY, dy);
    linear_backward(f, dx, partial, rows, record);
}

// -------------------------------------------------------------------------------------------------
// A. fp8

// All 256 codes, by fp8_decode and as packing decodes them, many at once.
static void codes_decode(Dtype d) {
    int wrong = 0, vector_wrong = 0, round_trip = 0;
    uint8_t codes[256];
    float packed[256];
    for (int c = 0; c < 256; c++) codes[c] = (uint8_t)c;
    for (int c = 0; c < 256; c += 64) decode_fp32(packed + c, codes + c, 64, d);
    for (int c = 0; c < 256; c++) {
        float want = (float)code_value(c, d), got = fp8_decode((uint8_t)c, d);
        wrong += bits_differ(&want, &got, 1) != 0;
        vector_wrong += !(want == packed[c] || (want != want && packed[c] != packed[c]));
        if ((c & 127) <= max_code(d)) round_trip += fp8_encode(want, d) != c;
    }
    check(!wrong && !vector_wrong,
          label("fp8 %s: all 256 codes decode to the format's definition", dtype_names[d]),
          "%d of fp8_decode and %d of decode_fp32 differ", wrong, vector_wrong);
    check_none(round_trip,
               label("fp8 %s: every finite code survives decode and encode", dtype_names[d]));
}
// Both sides of every midpoint between codes, of every value, and of where saturation is counted
// for the last one.
static long midpoints_wrong(Dtype d, uint32_t *first) {
    const double *values = positive_values[d == DTYPE_E5M2];
    long differ = 0;
    for (int c = 0; c <= max_code(d); c++) {
        double value = values[c],
               next = c < max_code(d) ? values[c + 1] : 2 * value - values[c - 1];
        const double at[3] = {value, (value + next) / 2, next};
        for (int k = 0; k < 3 * 7 * 2; k++) {
            uint32_t near = float_bits((float)at[k / 14]) + (uint32_t)(k / 2 % 7 - 3);
            uint32_t bits = (near & 0x7fffffff) | (uint32_t)(k & 1) << 31;
            if (fp8_encode(bits_float(bits), d) == code_of(bits_float(bits), d)) continue;
            differ++;
            *first = bits;
        }
    }
    return differ;
}
static void test_fp8_codes(void) {
    for (int t = 0; t < 2; t++) {
        Dtype d = t ? DTYPE_E5M2 : DTYPE_E4M3;
        codes_decode(d);
        long differ = 0; // every 4099th float: a prime stride, so that all low bits occur
        uint32_t first = 0;
#pragma omp parallel for reduction(+ : differ)
        for (long i = 0; i < (1l << 32) / 4099; i++) {
            float f = bits_float((uint32_t)(i * 4099));
            differ += fp8_encode(f, d) != code_of(f, d);
        }
        differ += midpoints_wrong(d, &first);
        check(!differ,
              label("fp8 %s: encode is nearest, ties to even, saturating (a million floats, every "
                    "midpoint)",
                    dtype_names[d]),
              "%ld floats differ, e.g. bits %08x", differ, first);
        const float special[4] = {INFINITY, -INFINITY, bits_float(0xffc00001), -0.0f};
        const int want[4] = {max_code(d), 128 | max_code(d), 0x7f, 0x80};
        int wrong = 0;
        for (int i = 0; i < 4; i++) wrong += (fp8_encode(special[i], d) != want[i]) << 4 * i;
        check(!wrong,
              label("fp8 %s: Inf becomes max, every NaN 0x7F, as CUDA's satfinite", dtype_names[d]),
              "%04x of -0, NaN, -Inf, Inf differ", wrong);
    }
    // A truncating encoder, which a comparison of decoded values "within one step" would let
    // through.
    long caught = 0;
    for (long i = 0; i < 100000; i++) {
        float f = bits_float((uint32_t)(i * 42943)), cut = bits_float(float_bits(f) & 0xfff00000);
        caught += code_of(f, DTYPE_E4M3) != fp8_encode(cut, DTYPE_E4M3);
    }
    check_caught(caught > 0, "truncation instead of rounding in encode");
}

// All 2^32 floats, for both formats.
static void test_fp8_exhaustive(void) {
    for (int t = 0; t < 2; t++) {
        Dtype d = t ? DTYPE_E5M2 : DTYPE_E4M3;
        long differ = 0, done = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : differ)
        for (long high = 0; high < 4096; high++) {
            for (uint32_t low = 0; low < 1u << 20; low++) {
                float f = bits_float((uint32_t)high << 20 | low);
                differ += fp8_encode(f, d) != code_of(f, d);
            }
#pragma omp critical
            if (++done % 64 == 0) {
                fprintf(stderr, "\r%s: %ld%% of 2^32 floats", dtype_names[d], done * 100 / 4096);
                fflush(stderr);
            }
        }
        fprintf(stderr, "\r%40s\r", "");
        check(!differ, label("fp8 %s: encode is right for all 2^32 floats", dtype_names[d]),
              "%ld differ", differ);
    }
}

// decode_bf16 of every code and length.
static void codes_decode_bf16(void) {
    int wrong = 0;
    for (int k = 0; k < 2 * 300; k++) {
        Dtype d = k & 1 ? DTYPE_E5M2 : DTYPE_E4M3;
        int length = k / 2;
        uint8_t codes[300];
        uint16_t out[301];
        for (int i = 0; i < 300; i++) codes[i] = (uint8_t)(i * 7 + length);
        out[length] = 0x1234;
        decode_bf16(out, codes, length, d);
        wrong += out[length] != 0x1234;
        for (int i = 0; i < length; i++) {
            float a = float_from_bf16(out[i]), b = fp8_decode(codes[i], d);
            wrong += bits_differ(&a, &b, 1) != 0;
        }
    }
    check_none(
        wrong,
        "fp8: decode_bf16 equals fp8_decode for every code and length, and writes no further");
}
static void quantize_both_ways(uint8_t *q, uint8_t *want, const stored_t *x, size_t n, float scale,
                               Dtype d, Fp8Stats *s, Fp8Stats *slow) {
    Fp8Scale f = {.recipe = {.format = d, .rule = SCALING_CONSTANT}, .scale = scale};
    quantize(q, x, n, &f, RECORD_STATS);
    *s = f.step;
    quantize_slowly(want, x, n, scale, d, slow);
}
static void test_fp8_blocks(void) {
    // 16-bit builds: all stored values there are. fp32: a stride of all floats, with every low bit.
    size_t n = 65536;
    stored_t *x = stored(n);
    uint8_t *q = take_bytes(n + 64), *want = take_bytes(n);
    const float scales[] = {1, 0.37f, 1000.25f, 3e-5f, 0x1p-126f, 0x1p126f, 1e30f};
    Fp8Stats s, slow;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)i * 65551u;
        uint16_t half = (uint16_t)i;
        memcpy(&x[i], sizeof(stored_t) == 2 ? (const void *)&half : (const void *)&bits,
               sizeof(stored_t));
    }
    for (int t = 0; t < 2; t++) {
        Dtype d = t ? DTYPE_E5M2 : DTYPE_E4M3;
        size_t bytes = 0, stats = 0;
        for (size_t k = 0; k < 7 * 3;
             k++) { // odd lengths and starts, so that the loops' tails are run too
            size_t length = n - 5 * (k % 3), at = 2 * (k % 3);
            quantize_both_ways(q, want, x + at, length, scales[k / 3], d, &s, &slow);
            for (size_t i = 0; i < length; i++) bytes += q[i] != want[i];
            stats += !stats_same(&s, &slow);
        }
        check_none(bytes,
                   label("fp8 %s: quantize makes the right bytes of 65536 stored values x 7 scales",
                         dtype_names[d]));
        check_none(
            stats,
            label("fp8 %s: amax, saturated, flushed, non-finite and count equal a slow count",
                  dtype_names[d]));
    }
    quantize_both_ways(q, want, x, n, 2, DTYPE_E4M3, &s, &slow);
    quantize_slowly(want, x, n, 1, DTYPE_E4M3, &slow);
    check(memcmp(q, want, n) != 0 && !stats_same(&s, &slow),
          "planted fault: a scale off by 2 shows in bytes and in statistics", "nothing differed");
    codes_decode_bf16();
}

static void test_fp8_sixteen_bits(void) {
    long bf16 = 0, fp16 = 0, vectors = 0, half = 0;
#pragma omp parallel for reduction(+ : bf16, fp16, vectors)
    for (long block = 0; block < (1l << 32) / 4099 / 16; block++) {
        float f[16];
        stored_t s[16];
        for (int l = 0; l < 16; l++) {
            // The stride visits everything; every second block is moved next to a tie, where
            // rounding is decided.
            uint32_t u = (uint32_t)((block * 16 + l) * 4099);
            if (block & 1) u = (u & 0xffff0000) | (0x8000u - 2 + (uint32_t)l % 5);
            if ((block & 7) == 3) u = (u & 0xffffe000) | (0x1000u - 2 + (uint32_t)l % 5);
            f[l] = bits_float(u);
            uint16_t b = bf16_from_float(f[l]), h = fp16_from_float(f[l]);
            int nan = f[l] != f[l];
            bf16 += nan ? (b & 0x7fff) <= 0x7f80 : b != half_of(f[l], 8, -126);
            fp16 += nan ? (h & 0x7fff) <= 0x7c00 : h != half_of(f[l], 11, -14);
        }
        stored_from_floats(s, f, 16); // a vector at a time
        for (int l = 0; l < 16; l++) {
            volatile float one = f[l]; // alone
            float a = float_from_stored(s[l]), b = float_from_stored(stored_from_float(one));
            vectors += bits_differ(&a, &b, 1);
        }
    }
    for (int h = 0; h < 65536; h++) {
        int e = (h >> 10) & 31, m = h & 1023;
        double sign = h & 0x8000 ? -1 : 1, got = (double)float_from_fp16((uint16_t)h);
        double finite = sign * (e ? ldexp(1024 + m, e - 25) : ldexp(m, -24));
        double want = e < 31 ? finite : m ? NAN : sign * INFINITY;
        half += !(want == got || (want != want && got != got));
    }
    check_none(
        bf16,
        "16 bits: bf16 is rounded to nearest even, denormals flushed first (a million floats)");
    check_none(fp16, "16 bits: fp16 is rounded to nearest even, denormals kept (F16C's rules; a "
                     "million floats)");
    check_none(
        vectors,
        "16 bits: stored_from_floats makes the bits of stored_from_float (a million floats)");
    check_none(half, "16 bits: all 65536 fp16 values are read by their definition");
}

static void test_fp8_fma(void) {
    const uint32_t nasty[] = {0,          0x80000000, 1,          0x807fffff, 0x00800000,
                              0x80800001, 0x3f800000, 0xbf800001, 0x3f7fffff, 0x7f7fffff,
                              0xff7ffffe, 0x7f800000, 0xff800000, 0x7fc00000, 0x20000000,
                              0x1fffffff, 0x5f7fffff, 0x33800000, 0x4b800001, 0x00ffffff};
    int n = (int)(sizeof(nasty) / sizeof(nasty[0]));
    size_t differ = 0, fused = 0;
    float first[3] = {0, 0, 0};
    for (long i = 0; i < n * n * n + 400000; i++) {
        float v[3];
        for (int k = 0; k < 3; k++)
            v[k] = bits_float(nasty[(i / (k == 0 ? 1 : k == 1 ? n : n * n)) % n]);
        // Random; every second c cancels the product but for some bits, every fourth is a tie's
        // neighbour.
        if (i >= n * n * n) {
            for (uint64_t k = 0; k < 3; k++)
                v[k] = bits_float((uint32_t)random_u64(5, k, i) & 0x8fffffff) * 0x1p40f;
            if (i & 1)
                v[2] = bits_float(float_bits(-(float)((double)v[0] * (double)v[1])) ^
                                  (uint32_t)(i % 5));
            if ((i & 3) == 2) v[2] = (float)((double)v[0] * (double)v[1]) * 0x1p24f;
        }
        float got = fmaf(v[0], v[1], v[2]), want = fma_by_integers(v[0], v[1], v[2]);
        if (bits_differ(&got, &want, 1)) {
            differ++;
            memcpy(first, v, sizeof(first));
        }
        volatile float product = v[0] * v[1];
        float twice = product + v[2];
        fused += bits_differ(&twice, &want, 1);
    }
    check(!differ, "fma: fmaf rounds once, flushes denormals (nasty and random cases)",
          "%zu differ, e.g. fma(%a, %a, %a)", differ, (double)first[0], (double)first[1],
          (double)first[2]);
    check(fused > 0, "planted fault: a multiply and an add instead of fma is caught",
          "no case differed");
}

// -------------------------------------------------------------------------------------------------
// B. scale

static void scale_step(Fp8Scale *s, float amax) {
    s->step.amax_bits = float_bits(amax);
    s->step.count = 1;
    scale_advance(s);
}

// Every amax, usable or not, under margins of both formats.
static void scales_of_amaxes(void) {
    const volatile float amaxes[] = {0,
                                     -0.0f,
                                     1e-45f,
                                     1e-40f,
                                     1e-38f,
                                     1.2e-38f,
                                     1e-20f,
                                     1,
                                     448,
                                     3e38f,
                                     bits_float(0x7f7fffff),
                                     INFINITY,
                                     NAN};
    int bad = 0;
    char first[128] = "";
    for (int k = 0; k < 2 * 9; k++) {
        int e5m2 = k & 1, margin = k / 2 * 8;
        ScalingRecipe r =
            recipe_of(label("%s+delayed=3+margin=%d", e5m2 ? "e5m2" : "e4m3", margin), OPERAND_X);
        for (int i = 0; i < COUNT(amaxes); i++) {
            float amax = amaxes[i], s = scale_from_amax(amax, 7, &r);
            double exact = ldexp((e5m2 ? 57344.0 : 448.0) / (double)amax, -margin);
            int usable = amax >= 0x1p-126f && amax < INFINITY;
            float want = usable ? (float)fmin(fmax(exact, 0x1p-126), 0x1p126) : 7;
            if (s == want && s >= 0x1p-126f && s <= 0x1p126f && 1 / s >= 0x1p-126f) continue;
            bad++;
            snprintf(first, sizeof(first), "amax %g, margin %d: %g, expected %g", (double)amax,
                     margin, (double)s, (double)want);
        }
    }
    check(!bad,
          "scale: FP8_MAX / amax / 2^margin in 2^-126 .. 2^126; amax 0, denormal, Inf, NaN keep "
          "the old one",
          "%d cases differ, e.g. %s", bad, first);
}
static void test_scale_update(void) {
    scales_of_amaxes();
    Fp8Scale s = scale_of("delayed=3"), r = scale_of("e5m2+delayed=1+margin=1");
    const volatile float unusable[] = {
        0, 1e-40f, INFINITY, NAN}; // volatile: a compiler folds 1e-40 > 0 without the flush
    for (int i = 0; i < 4; i++) scale_step(&s, unusable[i]);
    check(s.scale == 1 && s.amax_count == 0,
          "scale: with an empty history, an unusable amax changes nothing", "scale %g, %d entries",
          (double)s.scale, (int)s.amax_count);
    const float steps[] = {8, 2, 4, 1, 1, 1}, max_of_3[] = {8, 8, 8, 4, 4, 1};
    int max_wrong = 0, recent_wrong = 0;
    for (int i = 0; i < 6; i++) {
        scale_step(&s, steps[i]);
        scale_step(&r, steps[i]);
        max_wrong += s.scale != 448 / max_of_3[i] || s.amax_count != i + 1;
        recent_wrong += r.scale != 57344 / steps[i] / 2;
    }
    check_none(max_wrong, "scale: a history of 3 rolls, and its maximum makes the scale");
    check_none(recent_wrong,
               "scale: the most recent amax, with its own format's maximum and a margin of 1");
    Fp8Scale before = s;
    for (int i = 0; i < 4; i++) scale_step(&s, unusable[i]);
    check(s.scale == before.scale && s.amax_count == before.amax_count &&
              !memcmp(before.amax_history, s.amax_history, sizeof(s.amax_history)),
          "scale: an unusable amax never enters a history", "scale %g was %g", (double)s.scale,
          (double)before.scale);
    s.step.count = 9;
    s.step.saturated = 3;
    scale_advance(&s);
    check(s.logged.count == 9 && s.logged.saturated == 3 && s.step.count == 0 &&
              s.logged_scale == before.scale,
          "scale: an advance moves the step's statistics to the log and starts again from zero",
          "count %d", (int)s.logged.count);
}

// A scale's life: its first step, later ones, and passes that record nothing.
static void quantize_by_history(const stored_t *x, const stored_t *y, size_t n, float own_x,
                                float own_y) {
    uint8_t *q = take_bytes(n), *want = take_bytes(n);
    Fp8Stats sx, sy;
    Fp8Scale s = scale_of("delayed=4");
    s.scale = 1e-3f; // stale, as after a change of recipe
    float inv = quantize(q, x, n, &s, RECORD_STATS);
    quantize_slowly(want, x, n, own_x, DTYPE_E4M3, &sx);
    check(inv == 1 / own_x && s.scale == own_x && !memcmp(q, want, n),
          "quantize: with an empty history the tensor's own amax makes the scale",
          "scale %g, expected %g", 1 / (double)inv, (double)own_x);
    inv = quantize(q, y, n, &s, RECORD_STATS);
    check(inv == 1 / own_y, "quantize: so it does in every micro-batch of the first step",
          "scale %g, expected %g", 1 / (double)inv, (double)own_y);
    quantize_slowly(want, y, n, own_y, DTYPE_E4M3, &sy);
    Fp8Stats both = sx;
    stats_merge(&both, &sy);
    check(stats_same(&s.step, &both) && s.step.count == 2 * n,
          "quantize: the statistics of a step's micro-batches are merged", "count %d of %d",
          (int)s.step.count, (int)(2 * n));
    scale_advance(&s);
    inv = quantize(q, x, n, &s, RECORD_STATS);
    quantize_slowly(want, x, n, s.scale, DTYPE_E4M3, &sx);
    check(s.scale == 448 / bits_float(both.amax_bits) && inv == 1 / s.scale && !memcmp(q, want, n),
          "quantize: later the scale comes from the history, not from the tensor",
          "scale %g, expected %g", (double)s.scale, 448 / (double)bits_float(both.amax_bits));

    Fp8Scale before = s, empty = scale_of("delayed=4"), untouched = empty;
    quantize(q, y, n, &s, RECORD_NONE);
    check(!memcmp(&before, &s, sizeof(s)),
          "quantize: without recording (validation, sampling) nothing of the scale changes",
          "it changed");
    inv = quantize(q, x, n, &empty, RECORD_NONE);
    check(!memcmp(&untouched, &empty, sizeof(empty)) && inv == 1 / own_x,
          "quantize: nor with an empty history, where the own amax is used",
          "scale %g, expected %g", 1 / (double)inv, (double)own_x);
}
// SQNR and kurtosis: sums in lanes against plain doubles and an independent decoding; the same bits
// for any number of threads.
static void quantize_sqnr(const stored_t *x, size_t n) {
    uint8_t *q = take_bytes(n);
    int wrong = 0;
    double first[3];
    for (int threads = 1; threads <= 3; threads++) {
        double want[3] = {0};
        Fp8Scale s = scale_of("delayed=4");
        threads_set(threads);
        float inv = quantize(q, x, n, &s, RECORD_SQNR);
        for (size_t i = 0; i < n; i++) {
            double v = (double)float_from_stored(x[i]),
                   e = v - code_value(q[i], DTYPE_E4M3) * (double)inv;
            want[0] += v * v;
            want[1] += e * e;
            want[2] += v * v * v * v;
        }
        const double found[3] = {s.step.signal, s.step.noise, s.step.fourth};
        if (threads == 1) memcpy(first, found, sizeof(first));
        wrong += memcmp(first, found, sizeof(first)) != 0;
        for (int k = 0; k < 3; k++) wrong += !(fabs(found[k] / want[k] - 1) <= 1e-5);
    }
    check_none(
        wrong,
        "quantize: SQNR sums equal doubles to 1e-5, with the same bits for 1, 2 and 3 threads");
}
static double largest_e5m2(const stored_t *x, size_t n, Fp8Scale s) {
    uint8_t *q = take_bytes(n);
    double largest = 0;
    quantize(q, x, n, &s, RECORD_STATS);
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(code_value(q[i], DTYPE_E5M2)));
    return largest;
}
static void test_scale_quantize(void) {
    size_t n = 3 * CHUNK + 77;
    stored_t *x = normal_stored(n, 1, 11), *y = normal_stored(n, 4, 12);
    uint8_t *q = take_bytes(n);
    Fp8Stats sx, sy;
    quantize_slowly(q, x, n, 1, DTYPE_E4M3, &sx);
    quantize_slowly(q, y, n, 1, DTYPE_E4M3, &sy);
    float own_x = 448 / bits_float(sx.amax_bits), own_y = 448 / bits_float(sy.amax_bits);
    quantize_by_history(x, y, n, own_x, own_y);

    Fp8Scale c = scale_of("current"), one = scale_of("e5m2+scale=1"), fixed = scale_of("scale=32");
    float i1 = quantize(q, x, n, &c, RECORD_STATS);
    scale_advance(&c);
    float i2 = quantize(q, y, n, &c, RECORD_STATS);
    check(i1 == 1 / own_x && i2 == 1 / own_y,
          "quantize: current scaling takes each tensor's own amax", "scales %g %g, expected %g %g",
          1 / (double)i1, 1 / (double)i2, (double)own_x, (double)own_y);
    float i3 = quantize(q, x, n, &one, RECORD_STATS), i4 = quantize(q, x, n, &fixed, RECORD_STATS);
    check(i3 == 1 && i4 == 0x1p-5f, "quantize: a constant scale is the one given",
          "1 / scale %g %g, expected 1 and 1/32", (double)i3, (double)i4);
    quantize_sqnr(x, n);

    // E5M2 against E4M3's 448 wastes 7 binades at the top: the largest byte used tells.
    Fp8Scale wasted = scale_of("e5m2+scale=2");
    wasted.scale = own_x;
    double top = largest_e5m2(x, n, scale_of("e5m2+current")),
           top_wasted = largest_e5m2(x, n, wasted);
    check(top >= 57344 * 0.75, "quantize: an E5M2 tensor reaches E5M2's own largest values",
          "largest %g of 57344", top);
    check(top_wasted < 57344 * 0.75,
          "planted fault: E5M2 gradients scaled to E4M3's 448 are caught", "largest %g",
          top_wasted);
}

// ---- recipes: a later word wins, and named sets stand for what their authors publish
static void test_recipes(void) {
    static const struct {
        const char *words;
        int rule, dy_format, number, across_w, along;
    } sets[] = {{"delayed", SCALING_DELAYED, DTYPE_E5M2, 16, 0, 0},
                {"te", SCALING_DELAYED, DTYPE_E5M2, 1024, 0, 0},
                {"current", SCALING_CURRENT, DTYPE_E5M2, 0, 0, 0},
                {"deepseek", SCALING_CURRENT, DTYPE_E4M3, 0, 128, 128},
                {"mx", SCALING_CURRENT, DTYPE_E4M3, 0, 1, 32},
                {"none", SCALING_CONSTANT, DTYPE_E4M3, 1, 0, 0},
                {"rowwise", SCALING_CURRENT, DTYPE_E4M3, 0, 1, INT_MAX}};
    size_t differ = 0;
    ScalingRecipe r[NOPERAND];
    if (!IS_FP8) return;
    for (int k = 0; k < COUNT(sets); k++) {
        recipe_parse(r, sets[k].words, "test");
        for (int i = 0; i < NOPERAND; i++) {
            differ += r[i].rule != sets[k].rule || r[i].margin || r[i].along != sets[k].along;
            differ += r[i].number != sets[k].number;
            differ += (int)r[i].format != (i == OPERAND_DY ? sets[k].dy_format : DTYPE_E4M3);
            differ += r[i].across != (i == OPERAND_W ? sets[k].across_w : sets[k].along != 0) ||
                      r[i].rounding != (sets[k].along ? ROUNDING_POW2 : ROUNDING_EXACT);
        }
    }
    check_none(differ, "recipe: all seven named sets stand for what their authors publish");
    recipe_parse(r, "e5m2+w:e4m3+pow2", "test");
    check(r[OPERAND_X].format == DTYPE_E5M2 && r[OPERAND_W].format == DTYPE_E4M3 &&
              r[OPERAND_DY].format == DTYPE_E5M2,
          "recipe: a word for one operand overrides one for all", "%d %d %d", r[0].format,
          r[1].format, r[2].format);
    float scale = scale_from_amax(3, 1, &r[OPERAND_W]);
    check(scale == 128, "recipe: pow2 takes the power of two below 448 / 3", "%g, expected 128",
          (double)scale);
    recipe_parse(r, "margin=2,te,e4m3", "test");
    check(r[OPERAND_DY].number == 1024 && r[OPERAND_DY].margin == 2 &&
              r[OPERAND_DY].format == DTYPE_E4M3 && r[OPERAND_DY].rule == SCALING_DELAYED,
          "recipe: a named set is expanded, words after it change it",
          "dy: history %d, margin %d, format %d, rule %d", (int)r[OPERAND_DY].number,
          r[OPERAND_DY].margin, r[OPERAND_DY].format, r[OPERAND_DY].rule);
    check(recipe_same("te+pow2", "pow2,delayed=1024") && !recipe_same("te", "te+x:margin=1"),
          "recipe: two texts of the same recipe are the same", "recipe_same() says otherwise");
    ScalingRecipe mx = recipe_of("mx+floor", OPERAND_W);
    float tiny = scale_from_amax(0x1p-126f, 1, &mx), unit = scale_from_amax(1, 1, &mx);
    check(tiny == 0x1p126f && unit == 256, "recipe: floor of the smallest amax stays a scale",
          "%g %g, expected 2^126 and 256", (double)tiny, (double)unit);
}

// -------------------------------------------------------------------------------------------------
// C. math

static void math_functions(void) {
    double worst = 0, worst_log = 0, worst_sin = 0, worst_power = 0, s, c;
    for (double x = -87; x <= 88; x += 0.0007)
        for (int l = 0; l < 16; l++) {
            float in = (float)(x + 0.00004 * l);
            worst = fmax(worst, fabs((double)exp_fixed_order(in) / exp((double)in) - 1));
        }
    const float special[6] = {-INFINITY, NAN, 0, -200, 88.3f, INFINITY};
    float out[6];
    for (int l = 0; l < 6; l++) out[l] = exp_fixed_order(special[l]);
    check(out[0] == 0 && out[1] != out[1] && out[2] == 1 && out[3] == 0 && out[5] == out[4] &&
              isfinite(out[5]),
          "math: exp(-Inf) is 0, exp(NaN) NaN, exp(0) 1, and above 88.3 it saturates",
          "%g %g %g %g %g %g", (double)out[0], (double)out[1], (double)out[2], (double)out[3],
          (double)out[4], (double)out[5]);
    for (int i = 1; i < 100000; i++) {
        double x = ldexp(1 + (double)(i % 997) / 997, i % 300 - 150), u = (double)i / 100000;
        if (fabs(log(x)) > 1e-3) worst_log = fmax(worst_log, fabs(log_fixed_order(x) / log(x) - 1));
        sincos_turns(u, &s, &c);
        worst_sin = fmax(worst_sin, fmax(fabs(s - sin(6.283185307179586 * u)),
                                         fabs(c - cos(6.283185307179586 * u))));
        worst_power = fmax(worst_power, fabs(power_int(0.9997, i) / pow(0.9997, i) - 1));
    }
    // exp: 3 ulp of fp32. log: 11 terms, 6e-19, some roundings. sin: of numbers below 1. power:
    // errors add up to n 2^-53.
    check(worst < 4e-7, "math: exp_fixed_order is within 4e-7 of exp() on -87 .. 88",
          "relative error %.3g", worst);
    check(worst_log < 1e-14, "math: log_fixed_order equals log() to 1e-14", "relative error %.3g",
          worst_log);
    check(worst_sin < 2e-15, "math: sincos_turns equals sin() and cos() to 2e-15", "error %.3g",
          worst_sin);
    check(worst_power < 1e-11, "math: power_int equals pow() to 1e-11", "relative error %.3g",
          worst_power);
    sincos_turns(0.25, &s, &c);
    check(s == 1 && c == 0 && log_fixed_order(1) == 0 && power_int(3, 0) == 1,
          "math: exact at a quarter turn, ln 1 and x^0", "%g %g %g %g, expected 1 0 0 1", s, c,
          log_fixed_order(1), power_int(3, 0));
}
static void test_math(void) {
    float *terms = floats(100);
    int ascending_differs = 0, wrong = 0;
    math_functions();
    for (size_t l = 0; l < 100; l++) terms[l] = (float)normal(200, l);
    for (size_t n = 0; n <= 100; n++) {
        float sum, ascending = 0, tree[16] = {0};
        for (size_t i = 0; i < n; i++) tree[i % 16] += terms[i];
        for (int l = 0; l < 16; l++) ascending += tree[l];
        for (int half = 8; half > 0; half /= 2)
            for (int l = 0; l < half; l++) tree[l] += tree[l + half];
        STRIPED_SUM(sum, i, n, terms[i]);
        wrong += sum != tree[0];
        ascending_differs += sum != ascending;
    }
    check_none(wrong,
               "math: STRIPED_SUM adds element i to lane i % 16, and lanes at distance 8, 4, "
               "2, 1, for 0 .. 100 terms");
    check(ascending_differs > 0, "planted fault: lanes summed in ascending order have other bits",
          "no sum of 100 differs");
}

// -------------------------------------------------------------------------------------------------
// D. product

// ordinary: numbers around 1. tiny: products around 2^-126, every eighth element a denormal.
// special: a few Inf and NaN.
enum { ORDINARY, TINY, SPECIAL, TIES };
static uint32_t random_element(Dtype d, int mode, uint64_t i) {
    uint64_t r = random_u64(77, mode, i);
    float f = (float)((random_unit(r) - 0.5) * 4);
    if (mode == TINY) {
        if (r % 8 == 0)
            return dtype_size[d] == 1   ? (uint32_t)(r >> 8 & 0x83)
                   : dtype_size[d] == 2 ? (uint32_t)(r >> 8 & 0x807f)
                                        : (uint32_t)(r >> 8 & 0x807fffff);
        return d == DTYPE_FP32 || d == DTYPE_BF16
                   ? dtype_bits(d, f * bits_float((uint32_t)(52 + r % 25) << 23))
                   : dtype_bits(d, f * 0x1p-10f);
    }
    // 2^30, to which 2^6 (1 + 2^-30) is added: rounded to double first, it would be a tie.
    if (mode == TIES) {
        static const float values[4] = {32768, 8 * (1 + 0x1p-10f), 8 * (1 - 0x1p-10f + 0x1p-20f),
                                        -8 * (1 + 0x1p-10f)};
        return float_bits(values[r >> 20 & 3]);
    }
    if (mode == SPECIAL && r % 701 == 0) return dtype_bits(d, r & 1024 ? NAN : INFINITY);
    return dtype_bits(d, f);
}

// Whether this build and machine have an instruction for pairs of bf16 in the given order of sums.
static int instruction_exists(int in_tiles) {
    static int amx = -1;
    if (amx < 0) { // what machine_init() chose for this order
        int before = product_in_tiles, pairs = product_uses_pairs;
        machine_init(1);
        amx = product_uses_pairs;
        product_in_tiles = before;
        product_uses_pairs = pairs;
    }
    return in_tiles ? amx : HAS_PAIRS;
}

// An operand [rows, K] in both layouts, padded with 0xff (NaN in every type), so that a read too
// far is seen.
enum { PAD = 3 };
typedef struct {
    float *values; // what its elements stand for
    Matrix layout[2];
} RandomMatrix;
static RandomMatrix operand_random(Dtype d, size_t rows, size_t K, int mode, int which) {
    RandomMatrix o = {floats(rows * K), {{0}}};
    size_t along = K + PAD, across = rows + PAD;
    char *data[2] = {(char *)take(rows * along * dtype_size[d]),
                     (char *)take(K * across * dtype_size[d])};
    memset(data[0], 0xff, rows * along * dtype_size[d]);
    memset(data[1], 0xff, K * across * dtype_size[d]);
    for (size_t i = 0; i < rows * K; i++) {
        size_t row = i / K, k = i % K;
        uint32_t bits = random_element(d, mode, i * 2 + which);
        o.values[i] = dtype_value(d, bits);
        dtype_put(data[0], d, row * along + k, bits);
        dtype_put(data[1], d, k * across + row, bits);
    }
    o.layout[0] = matrix(data[0], d, along, 1);
    o.layout[1] = matrix(data[1], d, 1, across);
    return o;
}
// want [M, N]: chains over rows of a and b.
static void chains(float *want, const float *a, const float *b, size_t M, size_t N, size_t K) {
#pragma omp parallel for
    for (size_t i = 0; i < M * N; i++) want[i] = chain(a + i / N * K, b + i % N * K, K, 0);
}

typedef struct {
    size_t cases, differ, touched;
    char first[160];
} ProductResult;
enum { FORM_FP32, FORM_ACCUMULATED, FORM_BIAS, FORM_STORED, FORMS };

// One product in one form, against `want` [M, N]; old [M, stride] is what lies under it.
static void product_once(ProductResult *result, const RandomMatrix *a, const RandomMatrix *b,
                         size_t M, size_t N, size_t K, int form, int variant, const float *want,
                         const float *old, const float *bias, float scale) {
    int first = block_count, fp32 = form <= FORM_ACCUMULATED;
    int la = variant & 1, lb = variant >> 1 & 1, threads = 1 + (variant >> 2) % 3,
        pairs = variant / 12;
    size_t stride = N + 5;
    if (pairs == 1 && !instruction_exists(product_in_tiles)) return;
    if (pairs == 2 && M * N * K > 200000) return; // the definition is slow
    if (threads > 1 && (M < 13 || form == FORM_ACCUMULATED || (form + la + lb + threads) % 2))
        return; // for time
    float *out32 = floats(M * stride), *got = floats(M * N);
    stored_t *out16 = stored(M * stride);
    product_uses_pairs = pairs == 1;
    threads_set(threads);
    workspace.threads = threads;
    memcpy(out32, old, M * stride * 4);
    for (size_t i = 0; i < M * stride; i++) out16[i] = stored_from_float(old[i]);
    (pairs == 2 ? matmul_reference : matmul_packed)(
        output(fp32 ? (void *)out32 : (void *)out16, fp32 ? DTYPE_FP32 : STORED, stride, scale,
               form == FORM_BIAS ? bias : NULL, form == FORM_ACCUMULATED),
        a->layout[la], b->layout[lb], M, N, K);
    for (size_t i = 0; i < M * stride; i++) {
        float v = fp32 ? out32[i] : float_from_stored(out16[i]);
        float was = fp32 ? old[i] : float_from_stored(stored_from_float(old[i]));
        if (i % stride < N) got[i / stride * N + i % stride] = v;
        else result->touched += float_bits(v) != float_bits(was);
    }
    size_t differ = bits_differ(want, got, M * N);
    if (differ && !result->differ)
        snprintf(result->first, sizeof(result->first),
                 "%zu x %zu x %zu, layouts %d %d, form %d, %d threads, way %d: %zu elements", M, N,
                 K, la, lb, form, threads, pairs, differ);
    result->cases++;
    result->differ += differ != 0;
    take_end(first);
}
// One shape, in every layout, epilogue, instruction and number of threads, against chains made
// once.
static void product_shape(ProductResult *result, const Dtype *d, const size_t *shape, int mode) {
    int first = block_count;
    size_t M = shape[0], N = shape[1], K = shape[2], stride = N + 5;
    RandomMatrix a = operand_random(d[0], M, K, mode, 0), b = operand_random(d[1], N, K, mode, 1);
    float *acc = floats(M * N), *bias = floats(N), *old = floats(M * stride), *want = floats(M * N);
    float scale = mode == TINY ? 1 : 0.3f;
    threads_set(2);
    chains(acc, a.values, b.values, M, N, K);
    for (size_t j = 0; j < N; j++) bias[j] = mode == TINY ? 0 : (float)normal(8, j);
    for (size_t i = 0; i < M * stride; i++) old[i] = (float)normal(9, i);
    for (int form = 0; form < FORMS; form++) {
        for (size_t i = 0; i < M * N; i++) {
            float v = acc[i] * scale;
            if (form == FORM_ACCUMULATED) v = fmaf(acc[i], scale, old[i / N * stride + i % N]);
            if (form == FORM_BIAS) v = fmaf(acc[i], scale, bias[i % N]);
            want[i] = form <= FORM_ACCUMULATED ? v : float_from_stored(stored_from_float(v));
        }
        for (int variant = 0; variant < 4 * 3 * 3; variant++)
            product_once(result, &a, &b, M, N, K, form, variant, want, old, bias, scale);
    }
    take_end(first);
}

// ---- products of bytes in blocks
#if IS_FP8
typedef struct {
    const char *name, *words;
    int operand;
    size_t across, along;
    int floor;
    Dtype format;
} BlockRecipe;
static const BlockRecipe block_recipes[] = {
    {"rowwise", "rowwise", OPERAND_X, 1, INT_MAX, 0, DTYPE_E4M3},
    {"block, x and dy", "block=1x128", OPERAND_X, 1, 128, 0, DTYPE_E4M3},
    {"block, w", "w:block=128x128", OPERAND_W, 128, 128, 0, DTYPE_E4M3},
    {"mx, up", "mx", OPERAND_X, 1, 32, 0, DTYPE_E4M3},
    {"mx, floor", "mx+floor", OPERAND_X, 1, 32, 1, DTYPE_E4M3},
    {"mx, floor, E5M2", "mx+floor+e5m2", OPERAND_X, 1, 32, 1, DTYPE_E5M2}};

// The scale of a block, in doubles, from the rule's words.
static float block_scale(const BlockRecipe *b, float amax) {
    double most = b->format == DTYPE_E4M3 ? 448 : 57344;
    int e, e_most;
    if (!(amax > 0 && isfinite(amax))) return 1;
    frexp((double)amax, &e);
    frexp(most, &e_most);
    return (float)(b->floor ? ldexp(1, e_most - e) : exp2(floor(log2(most / (double)amax))));
}
typedef struct {
    size_t bytes, counts, sqnr, products;
} BlocksWrong;

// Bytes, scales and counts of a tensor [rows, columns] whose K runs along its columns or its rows.
static void blocks_shape(BlocksWrong *wrong, const BlockRecipe *b, Fp8Scale s, int shape,
                         int along_rows) {
    static const size_t shapes[][2] = {{1, 1}, {37, 300}, {64, 1100}, {130, 33}, {300, 64}};
    size_t rows = shapes[shape][0], columns = shapes[shape][1], count = rows * columns;
    size_t I = along_rows ? columns : rows, K = along_rows ? rows : columns;
    size_t row_blocks = ceil_div(K, b->along), all = ceil_div(I, b->across) * row_blocks;
    stored_t *x = normal_stored(count, 1, 90 + shape);
    uint8_t *q = take_bytes(count);
    float *inv = floats(all), *scale = floats(all), *amax = floats(all);
    size_t *block = (size_t *)take(count * sizeof(size_t));
    Fp8Stats want = {0};
    for (size_t i = 0; i < count;
         i++) { // binades far apart; a quiet row; shape 3 has what is not finite
        size_t row = i / columns, column = i % columns;
        x[i] = stored_from_float(float_from_stored(x[i]) *
                                 bits_float((uint32_t)(117 + i / 7 % 20) << 23));
        if (row == 2) x[i] = 0;
        if (shape == 3 && i % 501 == 77) x[i] = stored_from_float(i % 2 ? NAN : -INFINITY);
        block[i] = (along_rows ? column : row) / b->across * row_blocks +
                   (along_rows ? row : column) / b->along;
    }
    threads_set(1 + shape % 3);
    quantize_blocks(q, inv, x, rows, columns, along_rows, &s, RECORD_SQNR);
    for (size_t i = 0; i < count; i++) {
        float f = float_from_stored(x[i]), so_far = amax[block[i]];
        amax[block[i]] = isnan(f) || isnan(so_far) ? NAN : MAX(so_far, fabsf(f));
    }
    for (size_t k = 0; k < all; k++) scale[k] = block_scale(b, amax[k]);
    for (size_t i = 0; i < count; i++) {
        float f = float_from_stored(x[i]), own = scale[block[i]];
        uint8_t byte = fp8_encode(f * own, b->format);
        double lost = (double)f - (double)fp8_decode(byte, b->format) / (double)own;
        wrong->bytes += q[i] != byte || inv[block[i]] != 1 / own;
        want.saturated += fabsf(f * own) > (b->format == DTYPE_E4M3 ? 464 : 61439.99f) && !isnan(f);
        want.flushed += (byte & 0x7f) == 0 && f != 0;
        want.nonfinite += !isfinite(f);
        want.signal += (double)f * (double)f;
        want.noise += lost * lost;
        want.fourth += (double)f * (double)f * (double)f * (double)f;
    }
    const Fp8Stats *t = &s.step;
    wrong->counts += t->saturated != want.saturated || t->flushed != want.flushed ||
                     t->nonfinite != want.nonfinite || t->count != count;
    wrong->sqnr += isfinite(want.signal) && !(fabs(t->signal - want.signal) <= 1e-5 * want.signal &&
                                              fabs(t->noise - want.noise) <= 1e-5 * want.noise &&
                                              fabs(t->fourth - want.fourth) <= 1e-5 * want.fourth);
}

// Products of such bytes, a [M, K] and b [N, K], each in both layouts, against chains over the
// numbers that they stand for.
static void blocks_products(BlocksWrong *wrong, const BlockRecipe *r, const Fp8Scale *scale) {
    enum { M = 33, N = 40, K = 300 };
    float *want = floats(M * N), *got = floats(M * N);
    Matrix operands[2][2];
    float *values[2][2];
    for (int k = 0; k < 4; k++) {
        int which = k & 1, layout = k >> 1;
        size_t I = which ? N : M, row_blocks = ceil_div(K, r->along);
        stored_t *x = normal_stored(I * K, 3, 95 + which);
        uint8_t *q = take_bytes(I * K);
        float *inv = floats(ceil_div(I, r->across) * row_blocks), *v = floats(I * K);
        Fp8Scale s = *scale;
        quantize_blocks(q, inv, x, layout ? K : I, layout ? I : K, layout, &s, RECORD_NONE);
        for (size_t i = 0; i < I * K; i++) {
            size_t row = i / K, at = i % K;
            v[i] = fp8_decode(q[layout ? at * I + row : i], r->format) *
                   inv[row / r->across * row_blocks + at / r->along];
        }
        operands[which][layout] = matrix(q, r->format, layout ? 1 : K, layout ? I : 1);
        operands[which][layout].inv = inv;
        operands[which][layout].across = r->across;
        operands[which][layout].along = r->along;
        operands[which][layout].inv_stride = row_blocks;
        values[which][layout] = v;
    }
    int before = product_uses_pairs;
    for (int way = 0; way < 8; way++) {
        int la = way & 1, lb = way >> 1 & 1;
        if (way >= 4 && !instruction_exists(product_in_tiles)) break;
        product_uses_pairs = way >= 4;
        chains(want, values[0][la], values[1][lb], M, N, K);
        matmul(output(got, DTYPE_FP32, N, 1, NULL, 0), operands[0][la], operands[1][lb], M, N, K);
        wrong->products += bits_differ(want, got, M * N);
        if (way >= 4) continue;
        matmul_reference(output(got, DTYPE_FP32, N, 1, NULL, 0), operands[0][la], operands[1][lb],
                         M, N, K);
        wrong->products += bits_differ(want, got, M * N);
    }
    product_uses_pairs = before;
}
static void test_blocks(void) {
    for (int n = 0; n < COUNT(block_recipes); n++) {
        const BlockRecipe *b = &block_recipes[n];
        Fp8Scale s = scale_make(recipe_of(b->words, b->operand));
        BlocksWrong wrong = {0};
        for (int k = 0; k < 5 * 2; k++) blocks_shape(&wrong, b, s, k / 2, k % 2);
        blocks_products(&wrong, b, &s);
        check(!wrong.bytes && !wrong.counts && !wrong.sqnr,
              label("blocks: bytes and scales of %s equal the definition", b->name),
              "%zu elements differ, %zu counts, %zu SQNR", wrong.bytes, wrong.counts, wrong.sqnr);
        check_none(wrong.products,
                   label("blocks: products of %s%s are chains over what the bytes stand for",
                         b->name, product_in_tiles ? ", in tiles," : ""));
    }
    threads_set(2);
}
#else
static void test_blocks(void) {}
#endif

static void product_faults(void) {
    size_t n = 64;
    stored_t *a = normal_stored(n * n, 1, 1), *b = normal_stored(n * n, 1, 2);
    float *fa = floats(n * n), *fb = floats(n * n), *want = floats(n * n), *swapped = floats(n * n);
    float *out = floats(n * n);
    for (size_t i = 0; i < n * n; i++) {
        fa[i] = float_from_stored(a[i]);
        fb[i] = float_from_stored(b[i]);
    }
    chains(want, fa, fb, n, n, n);
    for (size_t i = 0; i < n * n; i++) swapped[i] = chain(fa + i / n * n, fb + i % n * n, n, 1);
    matmul(output(out, DTYPE_FP32, n, 1, NULL, 0), matrix(a, STORED, n, 1), matrix(b, STORED, n, 1),
           n, n, n);
    size_t same = bits_differ(want, out, n * n), other = bits_differ(swapped, out, n * n);
    check(!same && other > 0, "planted fault: a sum in another order is caught",
          "%zu and %zu bits differ, expected 0 and some", same, other);
    matmul(output(out, DTYPE_FP32, n, 1, NULL, 0), matrix(a, STORED, n, 1), matrix(b, STORED, 1, n),
           n, n, n);
    check_caught(bits_differ(want, out, n * n) > 0, "a transposed operand of a square product");
}
static void test_product(void) {
    static const char *const modes[4] = {"ordinary numbers", "tiny numbers and denormals",
                                         "some Inf and NaN", "ties"};
    static const size_t shapes[][3] = {{1, 1, 1},      {2, 3, 7},     {7, 17, 2},   {17, 64, 65},
                                       {65, 130, 64},  {130, 65, 17}, {3, 64, 1},   {64, 7, 130},
                                       {13, 129, 127}, {61, 33, 128}, {6, 5, 1025}, {64, 65, 2100},
                                       {9, 17, 4100},  {1600, 20, 65}};
    static const Dtype kinds[4][2] = {{STORED, STORED},
                                      {DTYPE_E4M3, DTYPE_E4M3},
                                      {DTYPE_E5M2, DTYPE_E4M3},
                                      {DTYPE_E4M3, DTYPE_E5M2}};
    int pairs_before = product_uses_pairs, mode_count = PRECISION == PRECISION_FP32 ? 4 : 3;
    workspace_free();
    threads_set(3);
    workspace_init(65536, 0); // slices for 3 threads, of which fewer are used below
    for (int k = 0; k < (IS_FP8 ? 4 : 1) * mode_count; k++) {
        int mode = k % mode_count;
        const Dtype *d = kinds[k / mode_count];
        ProductResult r;
        memset(&r, 0, sizeof(r));
        for (int i = 0; i < COUNT(shapes); i++)
            if (mode == ORDINARY || i % 3 == 0 || i == 10) product_shape(&r, d, shapes[i], mode);
        check(!r.differ && !r.touched,
              label("product %s x %s%s: the bits of the chain in every layout, epilogue, thread "
                    "count; %s",
                    dtype_names[d[0]], dtype_names[d[1]], product_in_tiles ? " in tiles" : "",
                    modes[mode]),
              "%zu of %zu cases differ, first: %s; %zu elements beyond a row were written",
              r.differ, r.cases, r.first, r.touched);
    }
    product_faults();
    product_uses_pairs = pairs_before;
}

// -------------------------------------------------------------------------------------------------
// E. layers: references in doubles, written from the equations

static void layers_workspace(int T, int hs) {
    AttentionBuffers w;
    workspace_free();
    workspace_init(1 << 18, attention_buffers(&w, NULL, T, hs));
}

static void layer_attention(void) {
    // T across blocks of 64 queries and no multiple of 16; heads of one vector, of four, and not of
    // whole ones.
    static const int shapes[][4] = {
        {2, 70, 32, 2}, {1, 131, 64, 1}, {1, 64, 128, 2}, {2, 5, 24, 2}, {1, 1, 16, 1}};
    // Forward: probabilities and the output are each rounded once. Backward: score gradients (p
    // only for dv), the output.
    double tolerance = 2 * UNIT + FP32_WORK;
    for (size_t k = 0; k < 5; k++) {
        int B = shapes[k][0], T = shapes[k][1], C = shapes[k][2], NH = shapes[k][3];
        size_t n = B * T * C;
        layers_workspace(T, C / NH);
        stored_t *qkv = normal_stored(3 * n, 1, 21 + k), *dout = normal_stored(n, 1, 31 + k);
        stored_t *out = stored(n), *dqkv = stored(3 * n);
        double *want = doubles(n), *dwant = doubles(3 * n), *later = doubles(n);
        attention_reference(want, dwant, doubles_of_stored(dout, n), doubles_of_stored(qkv, 3 * n),
                            B, T, C, NH);
        attention_forward(out, qkv, B, T, 0, C, NH);
        attention_backward(dqkv, dout, qkv, B, T, C, NH);
        check_error(
            label("attention: forward equals the definition in doubles, T %d, head %d", T, C / NH),
            likeness_stored(want, out, n), tolerance);
        check_error(
            label("attention: backward equals the equations in doubles, T %d, head %d", T, C / NH),
            likeness_stored(dwant, dqkv, 3 * n), tolerance);
        if (k) continue;
        // Sees one key too many: what a wrong causal mask would do.
        memcpy(later, want, n * sizeof(double));
        memcpy(later, want + C, (T - 1) * C * sizeof(double));
        check_caught(likeness_stored(later, out, n).error > tolerance,
                     "attention shifted by one position");
    }
}
// With the residual addition; C is no multiple of 16, rows are no multiple of a block.
static void layer_layernorm(void) {
    enum { rows = 75, C = 100, n = rows * C };
    stored_t *a = normal_stored(n, 1, 41), *b = normal_stored(n, 1, 42), *res = stored(n),
             *normed = stored(n);
    stored_t *dout = normal_stored(n, 1, 43), *dres = normal_stored(n, 1, 44);
    float *w = normal_floats(C, 1, 45), *bias = normal_floats(C, 1, 46), *mean = floats(rows),
          *rstd = floats(rows);
    float *dw = normal_floats(C, 1, 47), *db = normal_floats(C, 1, 48),
          *partial = floats(2 * 3 * C);
    double *dx = doubles_of_stored(dres, n), *dw_want = doubles_of_floats(dw, C),
           *db_want = doubles_of_floats(db, C);
    double *y = doubles(n);
    int sum_wrong = 0;
    residual_layernorm_forward(res, normed, mean, rstd, a, b, w, bias, rows, C);
    for (size_t i = 0; i < n; i++) {
        float sum = (float)((double)float_from_stored(a[i]) + (double)float_from_stored(b[i]));
        sum_wrong += float_from_stored(res[i]) != float_from_stored(stored_from_float(sum));
    }
    check_none(sum_wrong, "layernorm: the residual sum is rounded once");
    layernorm_reference(y, doubles_of_stored(res, n), doubles_of_floats(w, C),
                        doubles_of_floats(bias, C), rows, C, doubles_of_stored(dout, n), dx,
                        dw_want, db_want);
    layernorm_backward(dres, dw, db, dout, res, mean, rstd, w, partial, rows, C);
    check_error("layernorm: forward equals the definition in doubles",
                likeness_stored(y, normed, n), UNIT + FP32_WORK);
    check_error("layernorm: backward adds to the gradient of the residual stream",
                likeness_stored(dx, dres, n), UNIT + FP32_WORK);
    check_error("layernorm: backward adds to dweight", likeness_floats(dw_want, dw, C), FP32_WORK);
    check_error("layernorm: backward adds to dbias", likeness_floats(db_want, db, C), FP32_WORK);
}
// Over the range where its branches differ, forwards and backwards.
static void layer_gelu(void) {
    size_t n = 7500;
    double *want = doubles(n), *dwant = doubles(n);
    stored_t *x = normal_stored(n, 3, 51), *y = stored(n), *dx = normal_stored(n, 1, 43);
    for (size_t i = 0; i < n; i++) {
        double v = (double)float_from_stored(x[i]), h = 1e-5;
        want[i] = gelu_reference(v);
        dwant[i] = (gelu_reference(v + h) - gelu_reference(v - h)) / (2 * h) *
                   (double)float_from_stored(dx[i]);
    }
    gelu_forward(y, x, n);
    gelu_backward(dx, x, n);
    check_error("gelu: forward equals tanh's formula in doubles", likeness_stored(want, y, n),
                UNIT + FP32_WORK);
    check_error("gelu: backward equals the slope of the formula", likeness_stored(dwant, dx, n),
                UNIT + FP32_WORK);
    const float at[4] = {-60, 60, -1e4f, 0};
    stored_t far[4], out[4];
    for (int i = 0; i < 4; i++) far[i] = stored_from_float(at[i]);
    gelu_forward(out, far, 4);
    int wrong = 0;
    for (int i = 0; i < 4; i++)
        wrong += float_from_stored(out[i]) != (i == 1 ? float_from_stored(far[1]) : 0);
    check_none(wrong, "gelu: far out it is 0 and x");
}
// Padded columns hold nonsense that must not matter; a target of -1 counts nothing.
static void layer_classifier(void) {
    enum { R = 37, V = 75, Vp = 128 };
    float *logits = normal_floats(R * Vp, 3, 61), *losses = floats(R);
    stored_t *dlogits = stored(R * Vp);
    double *z = doubles_of_floats(logits, R * Vp), *want = doubles(R), *dwant = doubles(R * Vp);
    int targets[R], padding = 0;
    float scale = 0.25f;
    for (int r = 0; r < R; r++) {
        targets[r] = r % 7 == 3 ? -1 : (r * 31) % V;
        if (targets[r] < 0) continue;
        want[r] = cross_entropy_reference(z + r * Vp, V, targets[r]);
        for (int j = 0; j < V; j++)
            dwant[r * Vp + j] = (double)scale * (exp(-cross_entropy_reference(z + r * Vp, V, j)) -
                                                 (j == targets[r]));
    }
    classifier(losses, dlogits, logits, targets, R, V, Vp, scale);
    for (int r = 0; r < R; r++)
        for (int j = V; j < Vp; j++) padding += float_from_stored(dlogits[r * Vp + j]) != 0;
    check_error("classifier: losses equal the definition in doubles",
                likeness_floats(want, losses, R), FP32_WORK);
    check_error("classifier: dlogits equal (p - onehot) * scale",
                likeness_stored(dwant, dlogits, R * Vp), UNIT + FP32_WORK);
    check(!padding && losses[3] == 0,
          "classifier: the padded vocabulary gets exactly zero, a target of -1 no loss",
          "%d not zero, loss %g", padding, (double)losses[3]);
}
// Against doubles, in the builds whose operands are exact.
static void layer_linear(void) {
    enum { M = 45, IN = 70, OUT = 33 };
    layers_workspace(1, 16);
    stored_t *x = normal_stored(M * IN, 1, 71), *dy = normal_stored(M * OUT, 1, 72),
             *y = stored(M * OUT);
    stored_t *dx = stored(M * IN), *w = normal_stored(OUT * IN, 1, 73);
    float *dw = normal_floats(OUT * IN, 1, 74), *db = normal_floats(OUT, 1, 75),
          *b = normal_floats(OUT, 1, 76);
    float *partial = floats(2 * OUT);
    Linear f = linear_of(x, w, b, IN, OUT);
    f.dw = dw;
    f.dbias = db;
    double *xd = doubles_of_stored(x, M * IN), *dyd = doubles_of_stored(dy, M * OUT),
           *wd = doubles_of_stored(w, OUT * IN);
    double *y_want = doubles(M * OUT), *dx_want = doubles(M * IN);
    double *dw_want = doubles_of_floats(dw, OUT * IN), *db_want = doubles_of_floats(db, OUT);
    linear_reference(y_want, xd, wd, doubles_of_floats(b, OUT), M, OUT, IN);
    for (int i = 0; i < M * OUT; i++) {
        int row = i / OUT, o = i % OUT;
        for (int c = 0; c < IN; c++) {
            dx_want[row * IN + c] += dyd[i] * wd[o * IN + c];
            dw_want[o * IN + c] += dyd[i] * xd[row * IN + c];
        }
        db_want[o] += dyd[i];
    }
    linear_forward(&f, y, STORED, M, 0);
    linear_gradients(&f, dx, dy, partial, M, 0);
    check_error("linear: forward equals x w^T + bias in doubles",
                likeness_stored(y_want, y, M * OUT), UNIT + FP32_WORK);
    check_error("linear: dgrad equals dy w", likeness_stored(dx_want, dx, M * IN),
                UNIT + FP32_WORK);
    check_error("linear: wgrad adds dy^T x", likeness_floats(dw_want, dw, OUT * IN), FP32_WORK);
    check_error("linear: the bias gradient adds the column sums of dy",
                likeness_floats(db_want, db, OUT), FP32_WORK);
}
static void test_layers(void) {
    layer_attention();
    layer_layernorm();
    layer_gelu();
    layer_classifier();
    if (!IS_FP8) layer_linear();
}

// ---- gradients against central finite differences, in the fp32 build, where a small step is not
// lost in rounding

#if PRECISION == PRECISION_FP32
// fp32 noise of the loss is about 1e-7 of its terms over a step of 2^-7, the difference's own error
// h^2 / 6 = 1e-5 L'''.
#define FD_TOLERANCE 2e-3
// L = sum w_i y_i + 0.5 c_i y_i^2 with random w and c: no plain sum, which a gradient of ones would
// satisfy.
typedef struct {
    double (*forward)(void *layer); // the loss L of the layer's outputs
    void *layer;
} Objective;

static double weighted_loss(const stored_t *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double v = (double)float_from_stored(y[i]);
        sum += normal(101, i) * v + 0.5 * normal(102, i) * v * v;
    }
    return sum;
}

static void weighted_gradient(stored_t *dy, const stored_t *y, size_t n) {
    for (size_t i = 0; i < n; i++)
        dy[i] = stored_from_float(
            (float)(normal(101, i) + normal(102, i) * (double)float_from_stored(y[i])));
}

// The derivative at up to 96 elements of x; what the trainer says of the same elements lies in
// `gradient`.
static Likeness finite_difference(Objective o, float *x, size_t n, const float *gradient,
                                  int ones) {
    size_t samples = n < 96 ? n : 96;
    double want[96], found[96];
    for (size_t k = 0; k < samples; k++) {
        size_t i = n <= 96 ? k : (random_u64(55, n, k) % n);
        float was = x[i], h = 0x1p-7f;
        x[i] = was + h;
        double up = o.forward(o.layer), width_up = (double)x[i];
        x[i] = was - h;
        double down = o.forward(o.layer), width = width_up - (double)x[i];
        x[i] = was;
        want[k] = (up - down) / width;
        found[k] = ones ? 1 : (double)gradient[i];
    }
    return likeness(want, found, samples);
}

typedef struct {
    float *in, *more, *out, *weight, *bias, *mean, *rstd; // whatever the layer has
    int B, T, C, NH, *tokens;
} Layer;
static double loss_attention(void *p) {
    Layer *l = (Layer *)p;
    attention_forward(l->out, l->in, l->B, l->T, 0, l->C, l->NH);
    return weighted_loss(l->out, (l->B * l->T * l->C));
}

static double loss_layernorm(void *p) {
    Layer *l = (Layer *)p;
    size_t n = (l->T * l->C);
    float *sum = (float *)malloc(n * 4);
    residual_layernorm_forward(sum, l->out, l->mean, l->rstd, l->in, l->more, l->weight, l->bias,
                               l->T, l->C);
    free(sum);
    return weighted_loss(l->out, n);
}

static double loss_gelu(void *p) {
    Layer *l = (Layer *)p;
    gelu_forward(l->out, l->in, l->T);
    return weighted_loss(l->out, l->T);
}

static double loss_linear(void *p) {
    Layer *l = (Layer *)p;
    const Linear f = linear_of(l->in, l->weight, l->bias, l->C, l->NH);
    linear_forward(&f, l->out, STORED, l->T, 0);
    return weighted_loss(l->out, (l->T * l->NH));
}

static double loss_encoder(void *p) {
    Layer *l = (Layer *)p;
    encoder_forward(l->out, l->tokens, l->in, l->more, l->B, l->T, 0, l->C);
    return weighted_loss(l->out, (l->B * l->T * l->C));
}

static double loss_classifier(void *p) {
    Layer *l = (Layer *)p;
    float *logits = (float *)malloc((l->T * l->C) * 4);
    double sum = 0;
    memcpy(logits, l->in, (l->T * l->C) * 4); // the classifier works in place
    classifier(l->out, NULL, logits, l->tokens, l->T, l->NH, l->C, 1);
    for (int r = 0; r < l->T; r++) sum += (double)l->out[r];
    free(logits);
    return sum;
}

static void gradient_attention(void) {
    static const int shapes[][4] = {{2, 37, 32, 2}, {1, 75, 64, 1}, {1, 66, 48, 3}};
    for (int k = 0; k < 3; k++) { // T not a multiple of 64, and beyond 64; heads of 16 and 64
        Layer l = {.B = shapes[k][0], .T = shapes[k][1], .C = shapes[k][2], .NH = shapes[k][3]};
        size_t n = l.B * l.T * l.C;
        layers_workspace(l.T, l.C / l.NH);
        l.in = normal_floats(3 * n, 1, 201);
        l.out = floats(n);
        float *d = floats(n), *dqkv = floats(3 * n);
        Objective o = {loss_attention, &l};
        loss_attention(&l);
        weighted_gradient(d, l.out, n);
        attention_backward(dqkv, d, l.in, l.B, l.T, l.C, l.NH);
        check_gradient(label("attention, T %d, head %d", l.T, l.C / l.NH),
                       finite_difference(o, l.in, 3 * n, dqkv, 0));
        if (k) continue;
        check_caught(!gradient_right(finite_difference(o, l.in, 3 * n, dqkv, 1), FD_TOLERANCE),
                     "a gradient of ones");
        for (size_t i = 0; i < 3 * n; i++) dqkv[i] *= 2;
        check_caught(!gradient_right(finite_difference(o, l.in, 3 * n, dqkv, 0), FD_TOLERANCE),
                     "a gradient of twice the length");
    }
}
static void gradient_layernorm_gelu(void) {
    enum { T = 70, C = 50, n = T * C, GELUS = 333 }; // rows over three blocks of 32
    Layer l = {.T = T,
               .C = C,
               .in = normal_floats(n, 1, 211),
               .more = normal_floats(n, 1, 212),
               .weight = normal_floats(C, 1, 213),
               .bias = normal_floats(C, 1, 214),
               .out = floats(n),
               .mean = floats(T),
               .rstd = floats(T)};
    float *d = floats(n), *dx = floats(n), *dw = floats(C), *db = floats(C), *sum = floats(n);
    Objective layernorm = {loss_layernorm, &l}, gelu = {loss_gelu, &l};
    for (size_t i = 0; i < n; i++) sum[i] = l.in[i] + l.more[i];
    loss_layernorm(&l);
    weighted_gradient(d, l.out, n);
    layernorm_backward(dx, dw, db, d, sum, l.mean, l.rstd, l.weight, floats(8 * C), T, C);
    check_gradient("layernorm, left term of the residual sum",
                   finite_difference(layernorm, l.in, n, dx, 0));
    check_gradient("layernorm, right term", finite_difference(layernorm, l.more, n, dx, 0));
    check_gradient("layernorm, weight", finite_difference(layernorm, l.weight, C, dw, 0));
    check_gradient("layernorm, bias", finite_difference(layernorm, l.bias, C, db, 0));
    l.T = GELUS;
    loss_gelu(&l);
    weighted_gradient(d, l.out, GELUS);
    gelu_backward(d, l.in, GELUS);
    check_gradient("gelu", finite_difference(gelu, l.in, GELUS, d, 0));
}
static void gradient_linear(void) {
    enum { ROWS_X = 35, IN = 40, OUT = 30 };
    Layer l = {.T = ROWS_X,
               .C = IN,
               .NH = OUT,
               .in = normal_floats(ROWS_X * IN, 1, 211),
               .out = floats(ROWS_X * OUT),
               .weight = normal_floats(IN * OUT, 1, 221),
               .bias = normal_floats(OUT, 1, 222)};
    float *d = floats(ROWS_X * OUT), *dx = floats(ROWS_X * IN);
    Linear f = linear_of(l.in, l.weight, l.bias, IN, OUT);
    f.dw = floats(IN * OUT);
    f.dbias = floats(OUT);
    Objective linear = {loss_linear, &l};
    layers_workspace(1, 16);
    loss_linear(&l);
    weighted_gradient(d, l.out, ROWS_X * OUT);
    linear_gradients(&f, dx, d, floats(8 * OUT), ROWS_X, 0);
    check_gradient("linear, x", finite_difference(linear, l.in, ROWS_X * IN, dx, 0));
    check_gradient("linear, w", finite_difference(linear, l.weight, IN * OUT, f.dw, 0));
    check_gradient("linear, bias", finite_difference(linear, l.bias, OUT, f.dbias, 0));
}
static void gradient_ends(void) {
    int tokens[40];
    for (int i = 0; i < 40; i++) tokens[i] = i * i % 11;
    Layer l = {.B = 2,
               .T = 20,
               .C = 24,
               .tokens = tokens,
               .in = normal_floats(11 * 24, 1, 231),
               .more = normal_floats(20 * 24, 1, 232),
               .out = floats(960)};
    float *d = floats(960), *dwte = floats(11 * 24), *dwpe = floats(20 * 24);
    Objective encoder = {loss_encoder, &l}, cross_entropy = {loss_classifier, &l};
    loss_encoder(&l);
    weighted_gradient(d, l.out, 960);
    encoder_backward(dwte, dwpe, d, tokens, 2, 20, 24);
    check_gradient("encoder, token embeddings", finite_difference(encoder, l.in, 11 * 24, dwte, 0));
    check_gradient("encoder, position embeddings",
                   finite_difference(encoder, l.more, 20 * 24, dwpe, 0));
    enum { R = 9, V = 100, Vp = 128 };
    l.T = R;
    l.C = Vp;
    l.NH = V;
    l.in = normal_floats(R * Vp, 2, 241);
    for (int i = 0; i < R; i++) tokens[i] = i == 4 ? -1 : i * 12;
    float *logits = floats(R * Vp), *dlogits = floats(R * Vp);
    memcpy(logits, l.in, R * Vp * 4);
    classifier(floats(R), dlogits, logits, tokens, R, V, Vp, 1);
    check_gradient("classifier", finite_difference(cross_entropy, l.in, R * Vp, dlogits, 0));
}
static void test_gradients(void) {
    gradient_attention();
    gradient_layernorm_gelu();
    gradient_linear();
    gradient_ends();
}
#else
static void test_gradients(void) {}
#endif

// -------------------------------------------------------------------------------------------------
// F. fp8 layer

enum {
    // Its shape, and the sizes of tensors.
    ROWS_X = 130,
    IN = 192,
    OUT = 160,
    X = ROWS_X * IN,
    Y = ROWS_X * OUT,
    W = IN * OUT
};
#if IS_FP8
typedef struct {
    Linear f;
    Fp8Scale scale[NOPERAND];
    ScalingRecipe recipe[NOPERAND];
    uint8_t *w, *kept, *dy_bytes;
    stored_t *x, *y, *dx, *dy, *w16;
    float *partial;
} Fp8Layer;

static Fp8Layer fp8_layer;
static void fp8_layer_make(void) {
    Fp8Layer *l = &fp8_layer;
    memset(l, 0, sizeof(*l));
    recipe_parse(l->recipe, "delayed=4", "test");
    for (int i = 0; i < NOPERAND; i++) l->scale[i] = scale_make(l->recipe[i]);
    l->w = take_bytes(W);
    l->kept = take_bytes(X);
    l->dy_bytes = take_bytes(Y);
    l->x = normal_stored(X, 1, 301);
    l->dy = normal_stored(Y, 1e-5, 302);
    l->w16 = normal_stored(W, 0.02, 303);
    l->y = stored(Y);
    l->dx = stored(X);
    l->partial = floats((ROWS_X + ROWS - 1) / ROWS * OUT);
    l->f = linear_of(l->x, NULL, NULL, IN, OUT);
    l->f.operand[OPERAND_X].stored[OVER_ROWS] = NULL;
    l->f.dw = floats(W);
    l->f.dbias = floats(OUT);
    linear_bytes(&l->f, l->scale, l->kept, l->w, l->dy_bytes);
    l->scale[OPERAND_W].scale_inv[0] = l->scale[OPERAND_W].scale_inv[1] =
        quantize(l->w, l->w16, W, &l->scale[OPERAND_W], RECORD_STATS);
}
static void fp8_layer_run(Fp8Layer *l) {
    memset(l->f.dw, 0, W * 4);
    memset(l->f.dbias, 0, OUT * 4);
    l->f.operand[OPERAND_X].stored[OVER_COLUMNS] = l->x;
    linear_forward(&l->f, l->y, STORED, ROWS_X, RECORD_STATS);
    linear_gradients(&l->f, l->dx, l->dy, l->partial, ROWS_X, RECORD_STATS);
}
static size_t nan_count(const stored_t *x, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += float_from_stored(x[i]) != float_from_stored(x[i]);
    return count;
}

static double cast_sqnr(const stored_t *x, const uint8_t *q, size_t n, Dtype d, float inv) {
    double *back = doubles(n);
    for (size_t i = 0; i < n; i++) back[i] = code_value(q[i], d) * (double)inv;
    return likeness(doubles_of_stored(x, n), back, n).sqnr;
}

static double *transposed(const double *x, size_t rows, size_t columns) {
    double *t = doubles(rows * columns);
    for (size_t i = 0; i < rows * columns; i++) t[i % columns * rows + i / columns] = x[i];
    return t;
}
// torchao's floors: 25 dB for a cast and a product, 18 dB for a layer's output, 17 dB for its
// weight gradient. A cast to m mantissa bits of normal numbers leaves about 6 (m + 1) + 7 dB: 31
// for E4M3, 25 for E5M2.
static void fp8_layer_sqnr(void) {
    const Fp8Layer *l = &fp8_layer;
    double cx = cast_sqnr(l->x, l->kept, X, DTYPE_E4M3, l->scale[OPERAND_X].scale_inv[0]);
    double cw = cast_sqnr(l->w16, l->w, W, DTYPE_E4M3, l->scale[OPERAND_W].scale_inv[0]);
    double cdy = cast_sqnr(l->dy, l->dy_bytes, Y, DTYPE_E5M2, 1 / l->scale[OPERAND_DY].scale);
    check(cx >= 25 && cw >= 25 && cdy >= 25,
          "fp8 layer: SQNR of the casts of x, w and dy is at least 25 dB", "%.1f, %.1f, %.1f dB",
          cx, cw, cdy);
    double *x = doubles_of_stored(l->x, X), *w = doubles_of_stored(l->w16, W),
           *dy = doubles_of_stored(l->dy, Y);
    double *y = doubles(Y), *dx = doubles(X), *dw = doubles(W);
    linear_reference(y, x, w, NULL, ROWS_X, OUT, IN);
    linear_reference(dx, dy, transposed(w, OUT, IN), NULL, ROWS_X, IN, OUT);
    linear_reference(dw, transposed(dy, ROWS_X, OUT), transposed(x, ROWS_X, IN), NULL, OUT, IN,
                     ROWS_X);
    Likeness ly = likeness_stored(y, l->y, Y), ldx = likeness_stored(dx, l->dx, X),
             ldw = likeness_floats(dw, l->f.dw, W);
    check(ly.sqnr >= 25, "fp8 layer: SQNR of the forward product is at least 25 dB", "%.1f dB",
          ly.sqnr);
    // E4M3 times E5M2: the E5M2 operand decides, 25 dB less the 1 dB that the other adds
    check(ldx.sqnr >= 18, "fp8 layer: SQNR of dgrad is at least 18 dB", "%.1f dB", ldx.sqnr);
    check(ldw.sqnr >= 17, "fp8 layer: SQNR of wgrad is at least 17 dB", "%.1f dB", ldw.sqnr);
    check(fabs(ly.ratio - 1) < 0.02 && fabs(ldx.ratio - 1) < 0.02 && fabs(ldw.ratio - 1) < 0.02,
          "fp8 layer: all three products have the right length", "norm ratios %.4f %.4f %.4f",
          ly.ratio, ldx.ratio, ldw.ratio);
    for (size_t i = 0; i < Y; i++) y[i] *= 2;
    check_caught(!gradient_right(likeness_stored(y, l->y, Y), 0.02),
                 "a product whose scale is off by 2");
    float *bias = floats(OUT);
    for (size_t o = 0; o < OUT;
         o++) // blocks of ROWS rows, each ascending, the blocks then ascending
        for (size_t r0 = 0; r0 < ROWS_X; r0 += ROWS) {
            float sum = 0;
            for (size_t r = r0; r < ROWS_X && r < r0 + ROWS; r++)
                sum += float_from_stored(l->dy[r * OUT + o]);
            bias[o] += sum;
        }
    check_none(
        bits_differ(bias, l->f.dbias, OUT),
        "fp8 layer: the bias gradient is the column sum of dy before it is quantized, to the bit");
}
// --bf16: each product has the bits of the layer all in FP8, or of plain bf16, whatever the other
// two have; statistics are those of the operands that became bytes.
static void fp8_layer_bf16(void) {
    Fp8Layer l = fp8_layer;
    stored_t *y_of[2], *dx_of[2];
    float *dw_of[2];
    size_t differ = 0, counted = 0;
    for (int kind = 0; kind < 2; kind++) { // of FP8, of bf16
        Linear f = kind ? linear_of(l.x, l.w16, NULL, IN, OUT) : l.f;
        f.dbias = l.f.dbias;
        f.dw = dw_of[kind] = floats(W);
        y_of[kind] = stored(Y);
        dx_of[kind] = stored(X);
        linear_forward(&f, y_of[kind], STORED, ROWS_X, RECORD_NONE);
        linear_gradients(&f, dx_of[kind], l.dy, l.partial, ROWS_X, RECORD_NONE);
    }
    for (int mask = 0; mask < 8; mask++) {
        int f16 = mask >> FPROP & 1, d16 = mask >> DGRAD & 1, w16 = mask >> WGRAD & 1;
        Fp8Layer m = l;
        linear_bytes(&m.f, m.scale, l.kept, l.w, l.dy_bytes);
        m.f.fp8 = ALL_PRODUCTS & ~mask;
        operand_is(&m.f, OPERAND_W, f16 || d16 ? l.w16 : NULL);
        m.f.operand[OPERAND_X].stored[OVER_ROWS] = w16 ? stored(X) : NULL;
        Fp8Stats *sx = &m.scale[OPERAND_X].step, *sdy = &m.scale[OPERAND_DY].step;
        memset(sx, 0, sizeof(*sx));
        memset(sdy, 0, sizeof(*sdy));
        fp8_layer_run(&m);
        counted += sx->count == (f16 && w16 ? 0 : X) && sdy->count == (d16 && w16 ? 0 : Y);
        differ += memcmp(m.y, y_of[f16], Y * 2) != 0;
        differ += memcmp(m.dx, dx_of[d16], X * 2) != 0;
        differ += memcmp(m.f.dw, dw_of[w16], W * 4) != 0;
    }
    check(!differ && counted == 8 && memcmp(y_of[0], y_of[1], Y * 2) &&
              memcmp(dw_of[0], dw_of[1], W * 4),
          "fp8 layer: every choice of products in bf16 has each product's own bits",
          "%zu products differ, %zu of 8 counts right", differ, counted);
}
enum { ZEROS, LARGE, INFINITE, NOT_A_NUMBER };
static int fp8_special_right(const Fp8Layer *l, int kind, int history, size_t ny, size_t ndx) {
    const Fp8Stats *sx = &l->scale[OPERAND_X].step, *sdy = &l->scale[OPERAND_DY].step;
    int cut = sx->saturated == 1 && sdy->saturated == 1,
        odd = sx->nonfinite == 1 && sdy->nonfinite == 1;
    if (kind == LARGE) return !ny && !ndx && !sx->nonfinite && (history ? cut : sx->saturated == 0);
    if (kind == INFINITE) return !ny && !ndx && odd && cut;
    if (kind == NOT_A_NUMBER) // its own row, no other
        return nan_count(l->y + 7 * OUT, OUT) == OUT && ny == OUT && ndx == IN && odd;
    int nonzero = sx->amax_bits != 0 || sx->nonfinite; // zero in, zero out
    for (size_t i = 0; i < Y; i++) nonzero += float_from_stored(l->y[i]) != 0;
    for (size_t i = 0; i < X; i++) nonzero += float_from_stored(l->dx[i]) != 0;
    for (size_t i = 0; i < W; i++) nonzero += l->f.dw[i] != 0;
    return !nonzero;
}
static void fp8_layer_special(int kind, int history) {
    static const char *const names[4] = {"all zeros", "1e38", "an Inf", "a NaN"};
    static const float odd[4] = {0, 1e38f, INFINITY, NAN};
    Fp8Layer s = fp8_layer;
    for (int i = 0; i < NOPERAND; i++) {
        if (!history) s.scale[i] = scale_make(s.recipe[i]);
        memset(&s.scale[i].step, 0, sizeof(Fp8Stats));
    }
    linear_bytes(&s.f, s.scale, s.kept, s.w, s.dy_bytes);
    s.x = stored(X);
    s.dy = stored(Y);
    if (kind) {
        memcpy(s.x, fp8_layer.x, X * sizeof(stored_t));
        memcpy(s.dy, fp8_layer.dy, Y * sizeof(stored_t));
        s.x[7 * IN + 3] = s.dy[9 * OUT + 5] = stored_from_float(odd[kind]);
    }
    fp8_layer_run(&s);
    size_t ny = nan_count(s.y, Y), ndx = nan_count(s.dx, X);
    const Fp8Stats *sx = &s.scale[OPERAND_X].step, *sdy = &s.scale[OPERAND_DY].step;
    check(fp8_special_right(&s, kind, history, ny, ndx),
          label("fp8 layer: x and dy with %s, %s", names[kind],
                history ? "scaled by their history" : "no history yet"),
          "%zu and %zu NaN, saturated %d %d, nonfinite %d %d", ny, ndx, (int)sx->saturated,
          (int)sdy->saturated, (int)sx->nonfinite, (int)sdy->nonfinite);
    float before = fp8_layer.scale[OPERAND_X].scale;
    scale_advance(&s.scale[OPERAND_X]);
    float after = s.scale[OPERAND_X].scale;
    check(after >= 0x1p-126f && after <= 0x1p126f && (kind == LARGE || !history || after == before),
          label("fp8 layer: the scale after %s, %s, is usable", names[kind],
                history ? "with a history" : "with none"),
          "scale %g was %g", (double)after, (double)before);
}
static void test_fp8_layer(void) {
    Fp8Layer *l = &fp8_layer;
    layers_workspace(1, 16);
    fp8_layer_make();
    fp8_layer_run(l);
    fp8_layer_sqnr();
    fp8_layer_bf16();
    for (int i = 0; i < NOPERAND; i++) memset(&l->scale[i].step, 0, sizeof(Fp8Stats));
    fp8_layer_run(l);
    const Fp8Stats *sx = &l->scale[OPERAND_X].step, *sdy = &l->scale[OPERAND_DY].step;
    check(sx->count == X && sdy->count == Y && sx->saturated == 0 && sdy->nonfinite == 0,
          "fp8 layer: every operand is counted, nothing of a scaled tensor is cut",
          "counts %d %d, %d saturated, %d not finite", (int)sx->count, (int)sdy->count,
          (int)sx->saturated, (int)sdy->nonfinite);
    for (int i = 0; i < NOPERAND; i++) scale_advance(&l->scale[i]);
    for (int k = 0; k < 4 * 2; k++) fp8_layer_special(k / 2, k % 2);
}

// y [M, N] = a [M, K] b [N, K]^T of what a product reads of x and w, each under its recipe: how
// many elements differ.
typedef struct {
    const stored_t *x;
    size_t rows, columns;
    int along_rows;
    const ScalingRecipe *recipe;
} MixedOperand;
static size_t mixed_product(MixedOperand a, MixedOperand b, const stored_t *out16,
                            const float *out32) {
    int first = block_count;
    size_t M = a.along_rows ? a.columns : a.rows, N = b.along_rows ? b.columns : b.rows;
    size_t K = a.along_rows ? a.rows : a.columns;
    float *av = floats(M * K), *bv = floats(N * K), *want = floats(M * N);
    float scale = reference_operand(av, a.x, a.rows, a.columns, a.along_rows, a.recipe) *
                  reference_operand(bv, b.x, b.rows, b.columns, b.along_rows, b.recipe);
    size_t wrong = 0;
    chains(want, av, bv, M, N, K);
    for (size_t i = 0; i < M * N; i++)
        wrong +=
            out32 ? out32[i] != want[i] * scale : out16[i] != stored_from_float(want[i] * scale);
    take_end(first);
    return wrong;
}
// Every operand under a rule of its own: the three products' bits are those of the definition.
static void mixed_rules(const int *rules, size_t *wrong) {
    enum { ROWS_X = 70, IN = 140, OUT = 72 };
    static const char *const words[3] = {"e4m3,current", "e4m3,block=1x128,w:block=128x128",
                                         "e5m2,block=1x32"};
    int first = block_count;
    const stored_t *x = normal_stored(ROWS_X * IN, 1, 311),
                   *dy = normal_stored(ROWS_X * OUT, 1e-5, 312);
    const stored_t *w = normal_stored(IN * OUT, 0.02, 313);
    stored_t *y = stored(ROWS_X * OUT), *dx = stored(ROWS_X * IN);
    Fp8Scale s[NOPERAND];
    ScalingRecipe r[NOPERAND];
    for (int i = 0; i < NOPERAND; i++) {
        r[i] = recipe_of(words[rules[i]], i);
        s[i] = scale_make(r[i]);
    }
    Linear f = linear_of(x, NULL, NULL, IN, OUT);
    f.operand[OPERAND_X].stored[OVER_ROWS] = NULL;
    f.dw = floats(IN * OUT);
    linear_bytes(&f, s, take_bytes(ROWS_X * IN), take_bytes(IN * OUT), take_bytes(ROWS_X * OUT));
    for (int i = 0; i < NOPERAND; i++) {
        const size_t n = i == OPERAND_X ? ROWS_X * IN : i == OPERAND_W ? IN * OUT : ROWS_X * OUT;
        if (!recipe_blocks(&r[i])) continue;
        f.operand[i].bytes[OVER_ROWS] = take_bytes(n);
        for (int way = 0; way < 2; way++) f.operand[i].inv[way] = floats(n);
    }
    operand_quantize(&f, OPERAND_W, w, OUT, OVER_COLUMNS, RECORD_NONE);
    linear_forward(&f, y, STORED, ROWS_X, RECORD_STATS);
    linear_gradients(&f, dx, dy, floats(3 * OUT), ROWS_X, RECORD_STATS);
    MixedOperand of[NOPERAND] = {[OPERAND_X] = {x, ROWS_X, IN, 0, &r[OPERAND_X]},
                                 [OPERAND_W] = {w, OUT, IN, 0, &r[OPERAND_W]},
                                 [OPERAND_DY] = {dy, ROWS_X, OUT, 0, &r[OPERAND_DY]}};
    wrong[FPROP] += mixed_product(of[OPERAND_X], of[OPERAND_W], y, NULL);
    of[OPERAND_W].along_rows = 1;
    wrong[DGRAD] += mixed_product(of[OPERAND_DY], of[OPERAND_W], dx, NULL);
    of[OPERAND_DY].along_rows = of[OPERAND_X].along_rows = 1;
    wrong[WGRAD] += mixed_product(of[OPERAND_DY], of[OPERAND_X], NULL, f.dw);
    take_end(first);
}
static void test_fp8_mixed(void) {
    size_t wrong[NPRODUCT] = {0};
    layers_workspace(1, 16);
    for (int k = 0; k < 27; k++) {
        int rules[NOPERAND] = {k % 3, k / 3 % 3, k / 9};
        mixed_rules(rules, wrong);
    }
    check(!wrong[FPROP] && !wrong[DGRAD] && !wrong[WGRAD],
          "fp8 layer: x, w and dy each under a rule of their own, 27 combinations: products to the "
          "bit",
          "%zu outputs, %zu of dx, %zu of dw differ", wrong[FPROP], wrong[DGRAD], wrong[WGRAD]);
}
#else
static void test_fp8_layer(void) {}
static void test_fp8_mixed(void) {}
#endif

// -------------------------------------------------------------------------------------------------
// G. model

// With two sequences 80 rows: three blocks of ROWS, so that the order of blocks shows in the bits.
#define MODEL_T 40
#define MODEL_B 2
#define MODEL_V 60
#define MODEL_R (MODEL_B * MODEL_T)
static int model_tokens[MODEL_R], model_targets[MODEL_R];

// A model with new weights, of a configuration, batch and recipe that are set.
static void model_begin(Gpt *g, uint64_t seed, const char *recipe) {
    recipe_parse(g->recipes, recipe, "test");
    g->training = 1;
    workspace_free();
    gpt_allocate(g);
    gpt_init(g, seed);
    g->record = RECORD_STATS;
}
static void model_make(Gpt *g, int fp8_head, const char *recipe) {
    Config c = {MODEL_T, MODEL_V, 128, 2, 2, 32};
    memset(g, 0, sizeof(*g));
    g->config = c;
    g->B = MODEL_B;
    g->fp8_head = fp8_head;
    model_begin(g, 7, recipe);
    for (int i = 0; i < MODEL_R; i++) {
        model_tokens[i] = (int)(random_u64(1, 1, i) % MODEL_V);
        model_targets[i] = (int)(random_u64(1, 2, i) % MODEL_V);
    }
}
static void model_end(Gpt *g) {
    gpt_free(g);
    layers_workspace(1, 16);
}
static size_t param_size(const ParamSpec *s) { return s->layers * s->rows * s->cols; }

// Gradients of the mean loss over `micro` micro-batches, each a part of the batch; returns that
// loss.
static double model_gradients(Gpt *g, int micro) {
    int rows = MODEL_B / micro;
    float loss_scale = PRECISION == PRECISION_FP16 ? 1024 : 1;
    double loss = 0;
    memset(g->grad, 0, g->param_count * 4);
    for (int k = 0; k < micro; k++) {
        const int *tokens = model_tokens + k * rows * MODEL_T,
                  *targets = model_targets + k * rows * MODEL_T;
        loss += gpt_forward(g, tokens, targets, rows, MODEL_T, loss_scale / (MODEL_B * MODEL_T)) /
                (MODEL_B * MODEL_T);
        gpt_backward(g, tokens, rows, MODEL_T);
    }
    for (size_t i = 0; i < g->param_count; i++) g->grad[i] /= loss_scale; // a power of two: exact
    return loss;
}

static double model_step(Gpt *g, long t, float lr) {
    AdamW adamw = {lr, 0.9f, 0.95f, 1e-8f, 0.1f};
    double loss = model_gradients(g, 1);
    for (int i = 0; i < g->scale_count; i++) scale_advance(&g->scales[i]);
    adamw_update(g, &adamw, 1, t);
    return loss;
}

// Everything a training step leaves behind, as one number.
static uint64_t fingerprint(const Gpt *g) {
    const float *arrays[4] = {g->master, g->grad, g->m, g->v};
    uint64_t h = 0;
    for (int i = 0; i < 4; i++) h = checksum(h, arrays[i], g->param_count * 4);
    for (int i = 0; i < g->scale_count; i++) {
        const Fp8Scale *s = &g->scales[i];
        h = checksum(h, &s->scale, 4);
        h = checksum(h, s->amax_history, AMAX_HISTORY_MAX * 4);
        const int32_t filled = MIN(s->amax_count, (int64_t)s->recipe.number); // of the history
        h = checksum(h, &filled, 4);
        h = checksum(h, &s->logged.amax_bits, 4);
        h = checksum(h, &s->logged.count, 8);
        h = checksum(h, &s->logged.saturated, 8);
        h = checksum(h, &s->logged.flushed, 8);
    }
    return h;
}
// Logits [Vp] after n tokens at position pos, whose keys and values before it are cached.
static const float *gpt_decode(Gpt *g, const int *tokens, int n, int pos) {
    gpt_forward_blocks(g, tokens, 1, n, pos);
    head_forward(g, g->logits, n - 1, 1);
    return g->logits;
}

static uint64_t three_steps(int threads, int fp8_head, int disturbed) {
    Gpt g;
    threads_set(threads);
    model_make(&g, fp8_head, "delayed=3");
    for (long t = 1; t <= 3; t++) {
        model_step(&g, t, 1e-2f);
        if (!disturbed) continue;
        g.record = 0; // validation on other rows, and a sample
        gpt_forward(&g, model_targets, model_tokens, MODEL_B, MODEL_T, 0);
        gpt_decode(&g, model_targets, 5, 0);
        g.record = 1;
    }
    uint64_t h = fingerprint(&g);
    gpt_free(&g);
    return h;
}

// x [R, C] += linear(in) of a layer's matrix and bias.
static void reference_residual(double *x, const double *in, const double *w, const double *b, int R,
                               int C, int K) {
    double *y = doubles(R * C);
    linear_reference(y, in, w, b, R, C, K);
    for (int i = 0; i < R * C; i++) x[i] += y[i];
}
// The losses of the whole model in doubles, straight from the master weights.
static void model_reference(const Gpt *g, double *losses) {
    int B = MODEL_B, T = MODEL_T, C = g->config.C, L = g->config.L, NH = g->config.NH,
        V = g->config.V, R = B * T;
    double *w[NPARAM], *x = doubles(R * C), *n = doubles(R * C), *wide = doubles(R * 4 * C);
    double *logits = doubles(R * V);
    for (int id = 0; id < NPARAM; id++)
        w[id] = doubles_of_floats(g->master + g->params[id].offset, param_size(&g->params[id]));
    for (int i = 0; i < R * C; i++) {
        int r = i / C, c = i % C;
        x[i] = w[WTE][model_tokens[r] * C + c] + w[WPE][r % T * C + c];
    }
    for (int l = 0; l < L; l++) {
        layernorm_reference(n, x, w[LN1W] + l * C, w[LN1B] + l * C, R, C, NULL, NULL, NULL, NULL);
        linear_reference(wide, n, w[QKVW] + l * 3 * C * C, w[QKVB] + l * 3 * C, R, 3 * C, C);
        attention_reference(n, NULL, NULL, wide, B, T, C, NH);
        reference_residual(x, n, w[ATTPROJW] + l * C * C, w[ATTPROJB] + l * C, R, C, C);
        layernorm_reference(n, x, w[LN2W] + l * C, w[LN2B] + l * C, R, C, NULL, NULL, NULL, NULL);
        linear_reference(wide, n, w[FCW] + l * 4 * C * C, w[FCB] + l * 4 * C, R, 4 * C, C);
        for (int i = 0; i < R * 4 * C; i++) wide[i] = gelu_reference(wide[i]);
        reference_residual(x, wide, w[FCPROJW] + l * 4 * C * C, w[FCPROJB] + l * C, R, C, 4 * C);
    }
    layernorm_reference(n, x, w[LNFW], w[LNFB], R, C, NULL, NULL, NULL, NULL);
    linear_reference(logits, n, w[WTE], NULL, R, V, C);
    for (int r = 0; r < R; r++)
        losses[r] = cross_entropy_reference(logits + r * V, V, model_targets[r]);
}
// Small random initial weights make attention uniform and losses equal; larger ones use every part
// of the model.
static void model_enlarge(Gpt *g, float factor) {
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        float width = id == LN1W || id == LN2W || id == LNFW ? 0.2f : 0.1f;
        float *w = g->master + s->offset;
        for (size_t i = 0; i < param_size(s); i++)
            w[i] = s->decays ? w[i] * factor : w[i] + width * (float)normal(400 + id, i);
    }
    g->weights_ready = 0;
}

static void check_bits_at(int line, uint64_t found, uint64_t want, const char *name) {
    check_at(line, found == want, name, "%016" PRIx64 ", expected %016" PRIx64, found, want);
}
#define check_bits(...) check_bits_at(__LINE__, __VA_ARGS__)
static void test_model_bits(void) {
    // From any compiler and instruction set. They change only together with NUMERICS_VERSION.
    static const uint64_t golden[2][4][2] = {{{0x8f32cd341af91179, 0xad4b247489836db1},
                                              {0x970706a4759743e9, 0},
                                              {0xf996a0ed5322630d, 0},
                                              {0x257564028403654f, 0}},
                                             {{0xd39ad3a31c43ccc7, 0xb25384cf7ca2df50},
                                              {0xd16b1d341fec3d1e, 0},
                                              {0xba305cb0cc9a9f19, 0},
                                              {0xa86969c36fadd261, 0}}};
    for (int head = 0; head <= IS_FP8; head++) {
        uint64_t one = three_steps(1, head, 0), two = three_steps(2, head, 0),
                 three = three_steps(3, head, 0);
        const char *with = head ? ", FP8 head" : "";
        check_bits(two == one ? three : two, one,
                   label("model: 1, 2 and 3 threads give the same bits in three steps%s", with));
        check_bits(
            one, golden[product_in_tiles][PRECISION][head],
            label("model: the bits are those of numerics version 1 on every machine%s", with));
        check_bits(three_steps(2, head, 1), one,
                   label("model: validation and sampling between steps change no bit of training%s",
                         with));
    }
    if (instruction_exists(product_in_tiles)) {
        int before = product_uses_pairs;
        product_uses_pairs = 0;
        uint64_t single = three_steps(2, 0, 0);
        product_uses_pairs = 1;
        uint64_t pairs = three_steps(2, 0, 0);
        check_bits(
            pairs, single,
            label("model: %s and fp32 multiply-adds give the same bits", product_instruction()));
        product_uses_pairs = before;
    }
    threads_set(2);
}

// The whole forward pass against doubles. The losses average the roundings of a dozen tensors in a
// row to below one UNIT; FP8's operands have 4 bits, 2.5% an element, of which a product's sum and
// the residual stream leave less.
static void model_forward(Gpt *g) {
    double tolerance = IS_FP8 ? 0.02 : UNIT + FP32_WORK;
    double *losses = doubles(MODEL_R);
    model_reference(g, losses);
    gpt_forward(g, model_tokens, model_targets, MODEL_B, MODEL_T, 0);
    check_error("model: the losses of all tokens equal a forward pass in doubles",
                likeness_floats(losses, g->losses, MODEL_R), tolerance);
    float *projection = gpt_param(g, g->master, ATTPROJW, 1);
    for (int way = 0; way < 2; way++) {
        for (int i = 0; i < 32 * 32; i++) projection[i] = -projection[i];
        if (way == 0) model_reference(g, losses);
    }
    check_caught(likeness_floats(losses, g->losses, MODEL_R).error > tolerance,
                 "one projection subtracted instead of added");
}
#if PRECISION == PRECISION_FP32
// Directional derivatives of the whole model, one parameter tensor at a time: along the gradient
// (its length) mixed with a random direction (its direction). A step of 1e-2 in weights of some
// 0.1: the difference's own error is about 1e-3.
static void model_differences(Gpt *g) {
    float *gradient = floats(g->param_count), *master = floats(g->param_count);
    model_gradients(g, 1);
    memcpy(gradient, g->grad, g->param_count * 4);
    memcpy(master, g->master, g->param_count * 4);
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        size_t n = param_size(s), used = id == WTE ? MODEL_V * s->cols : n;
        float *direction = normal_floats(n, 1, 500 + id), *w = g->master + s->offset;
        double *slope = doubles_of_floats(gradient + s->offset, used), gg = 0, rr = 0, want = 0,
               change[2] = {0, 0};
        for (size_t i = 0; i < used; i++) {
            gg += slope[i] * slope[i];
            rr += (double)direction[i] * (double)direction[i];
        }
        for (size_t i = 0; i < used; i++) {
            direction[i] = (float)(slope[i] / sqrt(gg) + 0.5 * (double)direction[i] / sqrt(rr));
            want += slope[i] * (double)direction[i];
        }
        for (int way = 0; way < 2; way++) {
            for (size_t i = 0; i < used; i++)
                w[i] = master[s->offset + i] + (way ? -0.01f : 0.01f) * direction[i];
            g->weights_ready = 0;
            change[way] =
                gpt_forward(g, model_tokens, model_targets, MODEL_B, MODEL_T, 0) / MODEL_R;
        }
        memcpy(w, master + s->offset, n * 4);
        double found = (change[0] - change[1]) / 0.02;
        check(fabs(found / want - 1) < 0.01,
              label("finite differences: the whole model, %s", s->name),
              "derivative %.6g, gradient says %.6g", found, want);
    }
    g->weights_ready = 0;
}
#endif
// One batch against two halves, with histories of at least one step, so that scales do not depend
// on the tensor.
static void model_micro_batches(Gpt *g) {
    model_step(g, 1, 1e-3f);
    model_step(g, 2, 1e-3f);
    gpt_refresh_weights(g);
    model_gradients(g, 1);
    double *whole = doubles_of_floats(g->grad, g->param_count);
    Fp8Scale none = {0}, *s = IS_FP8 ? gpt_scale(g, 1, LIN_FC, OPERAND_DY) : &none;
    Fp8Stats one = s->step;
    memset(&s->step, 0, sizeof(s->step));
    model_gradients(g, 2);
    // The same products in two chains instead of one: fp32 rounding of sums, and nothing else.
    check_error("model: two micro-batches give the gradient of one batch",
                likeness_floats(whole, g->grad, g->param_count), 10 * FP32_WORK);
    if (!IS_FP8) return;
    check(stats_same(&one, &s->step), "model: and the same FP8 statistics",
          "count %d, amax %08x; of one batch %d, %08x", (int)s->step.count, s->step.amax_bits,
          (int)one.count, one.amax_bits);
    int before = (int)s->amax_count;
    scale_advance(s);
    check(before == 2 && s->amax_count == 3,
          "model: a history advances once a step, whatever the micro-batches",
          "%d, then %d entries, expected 2 and 3", before, (int)s->amax_count);
}
// How many positions have other logits when decoded token by token with a KV cache than in a whole
// prefix.
static int cache_differs(Gpt *g) {
    float *cached = floats(MODEL_T * 128);
    int wrong = 0;
    g->record = RECORD_NONE;
    for (int t = 0; t < MODEL_T; t++)
        memcpy(cached + t * 128, gpt_decode(g, model_tokens + t, 1, t), 128 * 4);
    for (int t = 0; t < MODEL_T; t++)
        wrong += bits_differ(cached + t * 128, gpt_decode(g, model_tokens, t + 1, 0), MODEL_V) != 0;
    return wrong;
}
static void test_model_cache(void) {
    static const char *const recipes[] = {"current",         "delayed=3", "te", "scale=16",
                                          "rowwise",         "deepseek",  "mx", "mx+floor",
                                          "te+x:block=1xall"}; // the last: of a bare model
    int wrong = 0, same = 1;
    for (int i = COUNT(recipes) - 1; i >= 0 && IS_FP8; i--) {
        const Options o = {0};
        Gpt g;
        model_make(&g, 0, recipes[i]);
        if (i < COUNT(recipes) - 1) model_step(&g, 1, 1e-2f);
        else {
            recipe_parse(g.recipes, "te", "test");
            options_bare(&o, &g);
            same = !memcmp(g.recipes, &g.scales->recipe, sizeof(ScalingRecipe));
        }
        if (i) wrong += cache_differs(&g);
        else
            check(cache_differs(&g), "model: planted fault: own amax leaks through positions",
                  "none differs");
        model_end(&g);
    }
    if (IS_FP8)
        check(!wrong && same, "model: a KV cache gives a whole prefix's bits, by 8 recipes",
              "%d positions differ; a bare model's recipe: %d", wrong, same);
}
static void model_decoding(Gpt *g) {
    float *cached = floats(MODEL_T * 128);
    check_none(cache_differs(g),
               "model: decoding through the KV cache gives the bits of a whole forward pass");
    memcpy(cached, gpt_decode(g, model_tokens, 8, 0), 128 * 4);
    gpt_decode(g, model_tokens, 3, 0);
    check_none(bits_differ(cached, gpt_decode(g, model_tokens + 3, 5, 3), MODEL_V),
               "model: several tokens may follow a cached prefix");
    g->record = RECORD_STATS;
}
static void test_model(void) {
    Gpt g;
    threads_set(2);
    bytes_allocated = 0;
    model_make(&g, 0, "delayed=3");
    memory_taken = 0; // by other tests
    size_t not_allocated = PROGRAM_BYTES + ((size_t)thread_count() << 15),
           plan = memory_plan(&g).total - not_allocated;
    double beyond = (double)bytes_allocated - (double)plan;
    // Each of some 35 tensors is rounded up to 64 bytes, each thread's slice to a page.
    check(fabs(beyond) < 35 * 128 + 3 * 4200, "model: the memory plan is what is allocated",
          "planned %zu, %.0f more", plan, beyond);
    model_enlarge(&g, 5);
    model_forward(&g);
#if PRECISION == PRECISION_FP32
    model_differences(&g);
#endif
    model_micro_batches(&g);
    model_decoding(&g);
    gpt_free(&g);

    double loss = 0;
    size_t padded = 0;
    model_make(&g, IS_FP8, "delayed=3");
    for (long t = 1; t <= 120; t++) loss = model_step(&g, t, t < 100 ? 1e-2f : 2e-3f);
    check(loss < 0.1, "model: one batch is learnt by heart in 120 steps (loss below 0.1)",
          "loss %.4f", loss);
    for (size_t i = MODEL_V * 32; i < 128 * 32; i++)
        padded += float_bits(g.master[i]) != 0 || g.grad[i] != 0 || g.m[i] != 0 || g.v[i] != 0;
    check_none(padded, "model: rows of the padded vocabulary are exactly zero after training, "
                       "their gradients too");
    model_end(&g);
}

static void schedules_check(void) {
    static const struct {
        Schedule kind;
        double at[4]; // step 0, after warm-up, in the middle, in the last step
    } schedules[4] = {{COSINE, {0.1, 1, 0.55, 0.1}},
                      {LINEAR, {0.1, 1, 0.55, 0.1}},
                      {CONSTANT, {0.1, 1, 1, 1}},
                      {WSD, {0.1, 1, 1, 0.1}}};
    static const long steps[4] = {0, 10, 55, 100};
    int wrong = 0;
    for (int k = 0; k < 4 * 4; k++) {
        double lr = (double)schedule_lr(schedules[k / 4].kind, 1, 0.1f, steps[k % 4], 10, 101);
        wrong += fabs(lr - schedules[k / 4].at[k % 4]) > 1e-6;
    }
    check_none(
        wrong,
        "optimizer: schedules start at lr / warmup, peak after it and end at the final rate");
}
// --grad-comm fp8: half a unit of E4M3, or of its smallest code; the scale fits amax.
static void test_gradient_codes(void) {
    float x[300], amax = 0;
    uint8_t q[300];
    int wrong = 0;
    for (int i = 0; i < 300; i++) amax = MAX(amax, fabsf(x[i] = normal(7, i) * 3e-5f));
    float inv = gradient_quantize(q, x, 300);
    for (int i = 0; i < 300; i++)
        wrong += fabsf(fp8_decode(q[i], DTYPE_E4M3) * inv - x[i]) >
                 MAX(fabsf(x[i]) / 16, inv * 0x1p-10f);
    wrong += amax > 448 * inv || amax < 224 * inv;
    x[9] = INFINITY;
    wrong += !isnan(gradient_quantize(q, x, 300));
    check_none(wrong, "optimizer: a gradient's FP8 codes, and an Inf in it");
}
// AdamW, clipping's norm and schedules against doubles.
static void test_optimizer(void) {
    Gpt g;
    threads_set(2);
    model_make(&g, 0, "delayed=3");
    size_t n = g.param_count;
    double *w = doubles_of_floats(g.master, n), *m = doubles(n), *v = doubles(n), norm = 0;
    AdamW o = {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f};
    for (long t = 1; t <= 3; t++) {
        norm = 0;
        for (size_t i = 0; i < n; i++) {
            g.grad[i] = (float)(normal(600 + t, i) * 0.1);
            norm += 0.25 * (double)g.grad[i] * (double)g.grad[i];
        }
        adamw_update(&g, &o, 0.5f, t);
        for (int id = 0; id < NPARAM; id++) {
            int layernorm =
                id == LN1W || id == LN1B || id == LN2W || id == LN2B || id == LNFW || id == LNFB;
            // Matrices decay, vectors do not.
            double decay = g.params[id].cols > 1 && !layernorm ? 0.1 : 0;
            for (size_t i = g.params[id].offset;
                 i < g.params[id].offset + param_size(&g.params[id]); i++) {
                double d = 0.5 * (double)g.grad[i];
                m[i] = 0.9 * m[i] + 0.1 * d;
                v[i] = 0.95 * v[i] + 0.05 * d * d;
                double mean = m[i] / (1 - pow(0.9, (double)t)),
                       square = v[i] / (1 - pow(0.95, (double)t));
                w[i] -= 0.01 * (mean / (sqrt(square) + 1e-8) + decay * w[i]);
            }
        }
    }
    check_error("optimizer: three updates of AdamW equal the equations in doubles",
                likeness(w, doubles_of_floats(g.master, n), n),
                1e-6); // beta is a float: 3e-8 relative, over 1 - beta
    double found = gradient_norm(&g, 0.5f);
    check(fabs(found / sqrt(norm) - 1) < 1e-6,
          "optimizer: the gradient norm is that of the scaled gradient", "%.9g, expected %.9g",
          found, sqrt(norm));
    model_end(&g);
    test_gradient_codes();
    schedules_check();
}

// -------------------------------------------------------------------------------------------------
// H. data. The tests work in a directory of their own.

static char work_dir[128];
static char self_path[PATH_MAX];

static void file_put(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0) abort();
}

static unsigned char *file_get(const char *path, size_t *bytes) { // must be there; ends with a 0
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (!f || fstat(fileno(f), &st) != 0) abort();
    unsigned char *data = (unsigned char *)take(st.st_size + 1);
    *bytes = fread(data, 1, st.st_size, f);
    fclose(f);
    return data;
}
// A shard whose tokens count up, so that a token tells its position.
// A shard whose tokens count up, so that a token tells its position.
static void shard_put(const char *path, uint32_t count, uint32_t vocabulary, uint32_t first) {
    uint32_t *shard = (uint32_t *)take(1024 + 2 * count + 4);
    uint16_t *tokens = (uint16_t *)(void *)(shard + 256);
    shard[0] = 20240520;
    shard[1] = 1;
    shard[2] = count;
    shard[3] = vocabulary;
    for (uint32_t i = 0; i < count; i++) tokens[i] = (uint16_t)(first + i);
    file_put(path, shard, 1024 + 2 * count);
}

static int shard_token(const Shard *s, size_t i) {
    unsigned char bytes[2];
    file_read(&s->file, s->begin + i * s->width, bytes, s->width);
    return token_at(bytes, s->width, 0);
}

enum { DATA_T = 16, DATA_N = 40, DATA_WINDOWS = 23 + 15 };
typedef struct {
    int tokens[DATA_N * DATA_T], targets[DATA_N * DATA_T];
} Rows;
static Rows rows_of(const Dataset *d, uint64_t seed, int first, int n) {
    Rows r;
    memset(&r, 0, sizeof(r));
    dataset_batch(d, seed, first, r.tokens, r.targets, n, DATA_T);
    return r;
}
// Three epochs: what windows hold, that each comes once, and in which order and at which offset.
static void data_epochs(const Dataset *d) {
    int order[3][DATA_N], content = 0, permutation = 0, same_order = 0, shifted = 0;
    for (int epoch = 0; epoch < 3; epoch++) {
        Rows r = rows_of(d, 5, epoch * DATA_WINDOWS, DATA_WINDOWS);
        int seen[64] = {0};
        for (int w = 0; w < DATA_WINDOWS; w++) {
            int first = r.tokens[w * DATA_T], second = first >= 1000; // of the second shard
            int index = second ? 23 + (first - 1000) / DATA_T : first / DATA_T;
            int moved = first % DATA_T != (second ? 1000 % DATA_T : 0);
            for (int t = 0; t < DATA_T; t++)
                content += r.tokens[w * DATA_T + t] != first + t ||
                           r.targets[w * DATA_T + t] != first + t + 1;
            content += first + DATA_T >= (second ? 1270 : 400);
            content += !epoch && moved;
            shifted += epoch && moved;
            seen[index]++;
            order[epoch][w] = first;
        }
        for (int i = 0; i < DATA_WINDOWS; i++) permutation += !epoch && seen[i] != 1;
        if (epoch) same_order += !memcmp(order[epoch], order[0], DATA_WINDOWS * sizeof(int));
    }
    check_none(
        content,
        "data: a window is T consecutive tokens of one shard, and its targets the next ones");
    check_none(permutation, "data: an epoch reads every window exactly once");
    check(!same_order && shifted > 0,
          "data: every epoch has another order, and from the second on another offset",
          "%d orders are the same, %d windows moved", same_order, shifted);
}
static void data_order(const Dataset *d) {
    size_t wrong = 0;
    for (int row = DATA_WINDOWS * 2 - 1; row >= 0; row--) { // alone and out of order
        Rows one = rows_of(d, 5, row, 1), four = rows_of(d, 5, row / 4 * 4, 4);
        wrong += memcmp(one.tokens, four.tokens + row % 4 * DATA_T, DATA_T * sizeof(int)) != 0;
        wrong += memcmp(one.targets, four.targets + row % 4 * DATA_T, DATA_T * sizeof(int)) != 0;
    }
    check_none(
        wrong,
        "data: a row depends on seed and number only, not on what was read before or on the batch");
    Rows a = rows_of(d, 6, 0, DATA_WINDOWS), b = rows_of(d, 5, 0, DATA_WINDOWS);
    check(memcmp(a.tokens, b.tokens, sizeof(a.tokens)) != 0,
          "data: another data seed gives another order", "the same");
    wrong = 0;
    for (uint64_t n = 1; n < 300; n = n < 40 ? n + 1 : n * 2 - 3)
        for (uint64_t key = 0; key < 3; key++) {
            char hit[512] = {0};
            for (uint64_t i = 0; i < n; i++) {
                uint64_t p = permute(i, n, mix64(key));
                wrong += p >= n || hit[p]++;
            }
        }
    check_none(wrong, "data: permute() is one to one for every size");
}
// Validation by whole stories, where a sidecar gives their surprisal: 4.5 + 7 + 2 nats over 9 + 14
// + 4 bytes.
static void data_stories(void) {
    static const char tales[] = "one cat.\ntwo big dogs.\nno.\n";
    static const int story_start[3] = {0, 9, 23}, story_bytes[3] = {9, 14, 4};
    char sidecar[512];
    unsigned long long fnv = 14695981039346656037ull;
    for (const char *p = tales; *p; p++) fnv = (fnv ^ (unsigned char)*p) * 1099511628211ull;
    int sidecar_bytes = snprintf(
        sidecar, sizeof(sidecar),
        "# stories\t3\n# fnv1a64\t%016llx\noffset\tbytes\tnats\n0\t9\t4.5\n9\t14\t7\n23\t4\t2\n",
        fnv);
    file_put("tales.txt", tales, strlen(tales));
    file_put("tales.floor.tsv", sidecar, sidecar_bytes);
    Dataset told = dataset_open("tales.txt");
    dataset_windows(&told, "test", DATA_T, 1);
    ValidationSet stories = validation_open(&told, DATA_T, 8);
    int wrong = stories.rows != 3 || stories.counted != 27 || stories.floor != 0.5;
    for (int i = 0; !wrong && i < 3 * DATA_T; i++) {
        int row = i / DATA_T, t = i % DATA_T, inside = t < story_bytes[row];
        const char *story = tales + story_start[row];
        wrong += stories.tokens[i] != (t == 0 || !inside ? '\n' : story[t - 1]);
        wrong += stories.targets[i] != (inside ? story[t] : -1);
    }
    check(!wrong,
          "data: validation stories start a row each, only their bytes count, the floor is theirs",
          "%ld rows, %zu counted, floor %g, %d wrong", stories.rows, stories.counted, stories.floor,
          wrong);
    dataset_windows(&told, "test", 13, 1);
    stories = validation_open(&told, 13, 8);
    check(stories.rows == 2 && stories.counted == 26 && stories.floor == 0,
          "data: with a story longer than the context there are plain windows and no floor",
          "%ld rows, floor %g", stories.rows, stories.floor);
}
static void test_data(void) {
    shard_put("count_0.bin", 400, 65536, 0);
    shard_put("count_1.bin", 270, 65536, 1000);
    Dataset d = dataset_open("count_*.bin");
    dataset_windows(&d, "test", DATA_T, 1);
    if (!check(d.shard_count == 2 && d.tokens == 670 && d.V == 65536 && d.windows == DATA_WINDOWS,
               "data: shards of a glob are opened in order, windows stay inside a shard",
               "%d shards, %zu tokens, %zu windows", d.shard_count, d.tokens, (size_t)d.windows))
        return;
    data_epochs(&d);
    data_order(&d);
    Dataset held = dataset_hold_out(&d);
    check(d.tokens == 603 && held.tokens == 67 && held.shard_count == 1 &&
              shard_token(&held.shards[0], 0) == 1203 &&
              shard_token(&d.shards[1], d.shards[1].count - 1) == 1202,
          "data: the last tenth is held out, and nothing of it stays", "%zu and %zu tokens",
          d.tokens, held.tokens);
    static const char text[] = "no shard, but text\xc3\xa9";
    file_put("text.txt", text, strlen(text));
    Dataset bytes = dataset_open("text.txt");
    check(bytes.V == 256 && bytes.tokens == strlen(text) &&
              shard_token(&bytes.shards[0], 19) == 0xa9,
          "data: of a text, the bytes are the tokens", "%zu tokens", bytes.tokens);
    data_stories();
}

// -------------------------------------------------------------------------------------------------
// I. run

static Directory work_directory(void) {
    Directory d;
    path_print(d.path, ".");
    d.fd = open(".", O_RDONLY | O_DIRECTORY);
    return d;
}

// Saves and loads g; lose: a field that the load is made to lose. Then one step more, whose bits
// are returned.
static uint64_t step_after_load(int lose) {
    Gpt g, h;
    Progress p = {.step = 4, .updates = 4};
    static StateFile f;
    char options[] = "train\tx\n";
    uint64_t sum;
    memset(&f, 0, sizeof(f));
    model_make(&g, IS_FP8, "delayed=3");
    for (long t = 1; t <= 4; t++) model_step(&g, t, 1e-2f);
    g.loss_scale = 512;
    Directory work = work_directory();
    p.model_checksum = model_save(&g, &work, "model.bin");
    state_save(&g, &work, "state.bin", &p, options);
    gpt_free(&g);
    model_make(&h, IS_FP8, "delayed=3");
    File model = file_open("model.bin", 0);
    Config c = model_check(&model, &sum);
    if (sum != p.model_checksum) return 3;
    if (memcmp(&c, &h.config, sizeof(c)) != 0) return 1;
    snprintf(f.path, sizeof(f.path), "state.bin");
    state_check(&f);
    model_load(&h, &model);
    state_load(&h, &f);
    if (h.loss_scale != 512) return 2;
    for (int i = 0; lose == 1 && i < h.scale_count; i++) h.scales[i].amax_count = 0;
    if (lose == 2) memset(h.v, 0, h.param_count * 4);
    model_step(&h, 5, 1e-2f);
    uint64_t print = fingerprint(&h);
    gpt_free(&h);
    return print;
}
static void test_checkpoint(void) {
    Gpt g;
    threads_set(2);
    model_make(&g, IS_FP8, "delayed=3");
    for (long t = 1; t <= 5; t++) model_step(&g, t, 1e-2f);
    uint64_t straight = fingerprint(&g);
    check_bits(step_after_load(0), straight,
               "checkpoint: a step after save and load has the bits of a step without");
    if (IS_FP8)
        check_caught(step_after_load(1) != straight, "the loss of amax histories in a resume");
    check_caught(step_after_load(2) != straight, "the loss of AdamW's second moment in a resume");

    // llm.c's model format: header and order, and its bf16 version.
    size_t n, wrong = 0;
    uint64_t sum;
    unsigned char *file = file_get("model.bin", &n);
    const int32_t want[8] = {20240326, 3, MODEL_T, MODEL_V, 2, 2, 32, 128};
    check(n == 1024 + g.param_count * 4 && !memcmp(file, want, sizeof(want)),
          "checkpoint: the model file has llm.c's header, then fp32 weights", "%zu bytes", n);
    float *weights = floats(g.param_count);
    memcpy(weights, file + 1024, g.param_count * 4);
    memset(file + 4, 0, 4);
    file[4] = 5;
    for (size_t i = 0; i < g.param_count; i++) {
        uint16_t half = bf16_from_float(weights[i]);
        memcpy(file + 1024 + 2 * i, &half, 2);
    }
    gpt_free(&g);
    file_put("bf16.bin", file, 1024 + (n - 1024) / 2);
    model_make(&g, 0, "delayed=3");
    File bf16 = file_open("bf16.bin", 0);
    model_check(&bf16, &sum);
    model_load(&g, &bf16);
    for (size_t i = 0; i < g.param_count; i++)
        wrong += g.master[i] != float_from_bf16(bf16_from_float(weights[i]));
    check_none(wrong, "checkpoint: llm.c's bf16 models are read too");
    model_end(&g);
}

// The lines that a state keeps must be read back to the same options, empty texts included.
static void test_options(void) {
    int given[OPTION_COUNT] = {0};
    char program[] = "x", *argv[2] = {program, NULL};
    Options plain = options_parse(1, argv, given);
    Options o = plain, back = plain, empty_back = plain;
    o.batch = 7;
    o.lr = 0.0123456789;
    o.val = strdup("a file with blanks.txt");
    o.seed = 123456789012345;
    char *lines = options_lines(&o);
    options_resume(&back, lines, given, "test");
    char *lines_back = options_lines(&back);
    check(!strcmp(lines, lines_back), "options: what a checkpoint keeps is read back the same",
          "'%s', expected '%s'", lines_back, lines);
    free(lines);
    free(lines_back);
    lines = options_lines(&plain);
    empty_back.val = strdup("something");
    empty_back.tokenizer = strdup("else");
    options_resume(&empty_back, lines, given, "test");
    check(empty_back.val[0] == 0 && empty_back.tokenizer[0] == 0 && empty_back.batch == plain.batch,
          "options: an empty text is read back as empty", "val '%s', tokenizer '%s'",
          empty_back.val, empty_back.tokenizer);
    free(lines);
}

// Byte text that a small model can work on.
#define TINY_TEXT "tiny.txt"
static void tiny_text(void) {
    char text[6000];
    static const char *const words[8] = {"the", "cat", "sat", "on", "a", "mat", "and", "slept"};
    size_t n = 0;
    for (uint64_t i = 0; n < sizeof(text) - 10; i++)
        n += sprintf(text + n, "%s ", words[random_u64(4, 4, i) % 8]);
    file_put(TINY_TEXT, text, n);
}

// A step from the design: micro-batches, scales once a step, norm, clipping, schedule, AdamW.
// clipped: counts. Returns whether the log's row has the same loss, rate and norm, which Adam would
// hide.
static int step_by_hand(Gpt *g, const Dataset *train, int step, const char *log, int *clipped) {
    int tokens[32], targets[32];
    char want[2][128];
    double loss = 0;
    memset(g->grad, 0, g->param_count * 4);
    for (int micro = 0; micro < 2; micro++) { // 64 tokens a step
        dataset_batch(train, 1, (step * 2 + micro) * 2, tokens, targets, 2, 16);
        loss += gpt_forward(g, tokens, targets, 2, 16, g->loss_scale / 64) / 64;
        gpt_backward(g, tokens, 2, 16);
    }
    double norm = gradient_norm(g, 1 / g->loss_scale), clip = norm > 0.5 ? 0.5 / norm : 1;
    AdamW adamw = {schedule_lr(COSINE, 1e-3f, 0.1f, step, 2, 8), 0.9f, 0.95f, 1e-8f, 0.1f};
    for (int i = 0; i < g->scale_count; i++) scale_advance(&g->scales[i]);
    adamw_update(g, &adamw, (float)(clip / (double)g->loss_scale), step + 1);
    snprintf(want[0], 128, "\n%d\t%d\t%.9g\t", step + 1, 64 * (step + 1), loss);
    snprintf(want[1], 128, "\t%.9g\t%.9g\t", (double)adamw.lr, norm);
    const char *row = strstr(log, want[0]), *rate = row ? strstr(row, want[1]) : NULL;
    *clipped += clip < 1;
    return rate && rate < row + 1 + strcspn(row + 1, "\n");
}
// A whole run of this program as a trainer (OpenMP does not survive a bare fork), and the run once
// more, step by step.
static void test_run(void) {
    Gpt g;
    char line[2 * PATH_MAX];
    size_t n, differ;
    int clipped = 0, rows = 0;
    snprintf(line, sizeof(line),
             "OMP_NUM_THREADS=2 '%s' --as-trainer -l 1e-3 -e d1 --channels 32 --heads 2 -t 16 -b 2 "
             "-d 64 -m 2 -s 0 -u 2 -v 2 -n 8 "
             "-x 8 --grad-clip 0.5 -i " TINY_TEXT " -o run %s > run.txt",
             self_path,
             IS_FP8 ? "--scales-every 1 --fp8-head "
                      "--recipe delayed=3"
                    : "");
    tiny_text();
    int status = system(line);
    if (!check(status == 0, "run: eight steps by this program", "status %d", status)) return;
    const char *log = (const char *)file_get("run/log.tsv", &n);
    Dataset train = dataset_open(TINY_TEXT);
    dataset_hold_out(&train);
    dataset_windows(&train, "training", 16, 1);
    memset(&g, 0, sizeof(g));
    Config c = {16, 256, 256, 1, 2, 32};
    g.config = c;
    g.B = 2;
    g.fp8_head = IS_FP8;
    model_begin(&g, 1, "delayed=3");
    if (PRECISION == PRECISION_FP16) g.loss_scale = 65536;
    for (int step = 0; step < 8; step++) rows += step_by_hand(&g, &train, step, log, &clipped);
    const unsigned char *model = file_get("run/model_00000008.bin", &n);
    differ = n == 1024 + g.param_count * 4
                 ? bits_differ(g.master, (const float *)(const void *)(model + 1024), g.param_count)
                 : n;
    check(!differ && rows == 8 && clipped > 0,
          "run: eight steps done by hand give the same weights, losses, rates and norms",
          "%zu weights differ, %d of 8 rows of the log are the same, %d steps were clipped", differ,
          rows, clipped);
    model_end(&g);
}

// A gradient that overflows FP16: the step is skipped, the loss scale halved, Adam's count stays;
// other builds stop.
static void test_run_overflow(void) {
#if PRECISION == PRECISION_FP16
    static Run r;
    char program[] = "x", *argv[2] = {program, NULL};
    memset(&r, 0, sizeof(r));
    r.o = options_parse(1, argv, r.given);
    threads_set(2);
    model_make(&r.g, 0, "delayed=3");
    r.o.lr = 1e-3;
    r.o.warmup = 0;
    r.o.total_batch = MODEL_R;
    size_t bytes; // the text's, within the small model's vocabulary
    tiny_text();
    unsigned char *tokens = file_get(TINY_TEXT, &bytes);
    for (size_t i = 0; i < bytes; i++) tokens[i] %= MODEL_V;
    file_put("few.txt", tokens, bytes);
    r.train = dataset_open("few.txt");
    dataset_windows(&r.train, "training", MODEL_T, 1);
    float *before = floats(r.g.param_count), lr;
    memcpy(before, r.g.master, r.g.param_count * 4);
    r.g.loss_scale = 0x1p40f;
    double norm = INFINITY;
    int steps = 0, wrong = 0;
    while (steps < 60 && !isfinite(norm)) {
        double loss = run_step(&r, steps, &norm, &lr);
        int overflow = !isfinite(norm), same = !memcmp(before, r.g.master, r.g.param_count * 4);
        steps++;
        wrong += !(loss > 0) || same != overflow || r.progress.updates != !overflow;
        wrong += r.g.loss_scale != ldexpf(1, 40 - steps + !overflow);
    }
    check(!wrong && steps > 5 && steps < 60,
          "overflow: FP16 skips the step and halves the loss scale until the gradients fit; then "
          "Adam's first update",
          "%d wrong, %d steps", wrong, steps);
    model_end(&r.g);
#endif
}

// -------------------------------------------------------------------------------------------------

// All that rests on products, again under --sum-order tiles.
static void test_tiles(void) {
    static void (*const again[])(void) = {test_product,    test_blocks,    test_layers,
                                          test_gradients,  test_fp8_layer, test_fp8_mixed,
                                          test_model_bits, test_model};
    machine_init(1);
    printf("in tiles, by %s:\n", product_instruction());
    for (int i = 0; i < COUNT(again); i++) again[i]();
    machine_init(0);
}

#define TEST(name)                                                                                 \
    { #name, test_##name }
static const struct {
    const char *name;
    void (*run)(void);
} groups[] = {TEST(fp8_codes),   TEST(fp8_blocks),   TEST(fp8_sixteen_bits),
              TEST(fp8_fma),     TEST(scale_update), TEST(scale_quantize),
              TEST(recipes),     TEST(math),         TEST(product),
              TEST(blocks),      TEST(layers),       TEST(gradients),
              TEST(fp8_layer),   TEST(fp8_mixed),    TEST(model_bits),
              TEST(model_cache), TEST(model),        TEST(optimizer),
              TEST(data),        TEST(checkpoint),   TEST(options),
              TEST(run),         TEST(run_overflow), TEST(tiles)};

static int usage(const char *program) {
    printf("usage: %s [--exhaustive] [--only NAME]; groups:", program);
    for (int k = 0; k < COUNT(groups); k++) printf(" %s", groups[k].name);
    printf("\n");
    return EXIT_BAD_INPUT;
}
int main(int argc, char **argv) {
    const char *only = "", *temporary = getenv("TMPDIR");
    int exhaustive = 0;
    if (argc > 1 && !strcmp(argv[1], "--as-trainer")) return trainer_main(argc - 1, argv + 1);
    // More threads than cores must not spin at every barrier; libgomp reads this once, at its
    // start.
    if (!getenv("OMP_WAIT_POLICY")) {
        setenv("OMP_WAIT_POLICY", "passive", 1);
        execv("/proc/self/exe", argv);
    }
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--exhaustive")) exhaustive = 1;
        else if (!strcmp(argv[i], "--only") && i + 1 < argc) only = argv[++i];
        else return usage(argv[0]);
    }
    const char *found = realpath(argv[0], self_path);
    snprintf(work_dir, sizeof(work_dir), "%.80s/test_gpt_XXXXXX",
             temporary && *temporary ? temporary : "/tmp");
    if (!found || !mkdtemp(work_dir) || chdir(work_dir) != 0) {
        printf("cannot make a directory %s\n", work_dir);
        return EXIT_BAD_INPUT;
    }
    machine_init(0);
    values_init();
    layers_workspace(1, 16);
    for (int i = 0; i < COUNT(groups); i++) {
        if (!strstr(groups[i].name, only)) continue;
        double begin = seconds_now();
        groups[i].run();
        take_end(0);
        if (getenv("TEST_TIMES"))
            printf("     %.2f s in %s\n", seconds_now() - begin, groups[i].name);
    }
    if (exhaustive) test_fp8_exhaustive();
    if (system(label("rm -rf %s", work_dir)) != 0) printf("note: %s stays\n", work_dir);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
