/*
Tests of what train_gpt_fp8.c has below eight bits: E2M1, stochastic rounding, two-level scales, the
random Hadamard transform, split operands. FP8 build only, built like test_gpt.c:

    gcc -O3 -march=native ... -DPRECISION=0 dev/check/test_below8.c -o build/test_below8 -lm
    build/test_below8               # every group, some seconds
    build/test_below8 --only layer  # the groups whose name contains "layer"

The definitions are written here once more, in doubles, an element at a time. Bits are compared
where bits are promised; elsewhere the tolerance stands beside the check. A "planted fault" feeds a
comparing function what it must refuse.
*/
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h> // declares posix_memalign, before it is another name
#endif
// memory_allocate()'s calls are counted, to hold the memory plan to what is really taken.
static size_t bytes_allocated;
static int counting_memalign(void **p, size_t align, size_t bytes) {
    bytes_allocated += bytes;
    return posix_memalign(p, align, bytes);
}
#define posix_memalign counting_memalign
#define TESTING
#include "../../train_gpt_fp8.c"
#if !IS_FP8
#error "test_below8 tests the FP8 build: compile it with -DPRECISION=0"
#endif
#include "free.h"
#include "definitions.h"

static int passed, failed;
__attribute__((format(printf, 2, 3))) static void check(int ok, const char *format, ...) {
    va_list args;
    *(ok ? &passed : &failed) += 1;
    printf(ok ? "ok   " : "FAIL ");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
}
#define check_none(wrong, name, ...) check((wrong) == 0, name ": %zu differ", __VA_ARGS__, wrong)
#define check_caught(ok, name)       check(ok, "planted fault: " name " is caught")

static void threads_set(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}
// Memory of a group of checks, freed when the group ends.
static void *blocks[4096];
static int block_count;
static void *take(size_t bytes) {
    if (block_count == COUNT(blocks)) abort();
    blocks[block_count] = memory_allocate(bytes);
    return blocks[block_count++];
}
#define TAKE(type, n) ((type *)take((n) * sizeof(type)))
static void take_end(int first) {
    while (block_count > first) free(blocks[--block_count]);
}
static double uniform(uint64_t seed, uint64_t i) { return random_unit(random_u64(seed, 77, i)); }
static double normal(uint64_t seed, uint64_t i) { // by libm
    return sqrt(-2 * log(1 - uniform(seed, 2 * i))) *
           cos(6.283185307179586 * uniform(seed, 2 * i + 1));
}
static stored_t *normal_stored(size_t n, double std, uint64_t seed) {
    stored_t *x = TAKE(stored_t, n);
    for (size_t i = 0; i < n; i++) x[i] = stored_from_float((float)(std * normal(seed, i)));
    return x;
}
// Signal to noise in dB: the larger, the more alike.
static double alike(const double *reference, const double *found, size_t n) {
    double signal = 0, noise = 0;
    for (size_t i = 0; i < n; i++) {
        signal += reference[i] * reference[i];
        noise += (found[i] - reference[i]) * (found[i] - reference[i]);
    }
    return 10 * log10(signal / noise);
}
static int floats_same(float a, float b) { return a == b || (a != a && b != b); }
static uint32_t magnitude_bits(stored_t x) { return float_bits(float_from_stored(x)) & 0x7fffffff; }

// -------------------------------------------------------------------------------------------------
// Definitions

static const Dtype formats[3] = {DTYPE_E4M3, DTYPE_E5M2, DTYPE_E2M1};
static const char *const format_names[3] = {"e4m3", "e5m2", "e2m1"};
static const int last_code[3] = {0x7e, 0x7b, 7}, mantissa[3] = {3, 2, 1};
static double values[3][128]; // of the codes 0 to last_code
#define FORMAT(d) ((d)-DTYPE_E4M3)
static void tables_make(void) {
    static const double e2m1[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    memcpy(values[2], e2m1, sizeof(e2m1));
    for (int f = 0; f < 2; f++)
        for (int c = 0; c <= last_code[f]; c++) values[f][c] = code_value(c, formats[f]);
}
// What a code is worth, its sign in bit 7. E2M1 has no NaN.
static double value_of(int code, Dtype d) {
    const int f = FORMAT(d), c = code & 127;
    if (c > last_code[f]) return NAN;
    return code & 128 ? -values[f][c] : values[f][c];
}
// The last code whose value is not above y >= 0.
static int code_below(double y, int f) {
    int low = 0, high = last_code[f] + 1;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        *(values[f][middle] <= y ? &low : &high) = middle;
    }
    return low;
}
static int is_tiny(float y) { return (float_bits(y) & 0x7fffffff) < 0x00800000; }
// To nearest, ties to the even code, saturating; a NaN becomes 0x7F, E2M1's 6. Denormals are 0.
static int code_nearest(float y, Dtype d) {
    const int f = FORMAT(d), sign = float_bits(y) >> 31 ? 128 : 0;
    if (y != y) return d == DTYPE_E2M1 ? 7 : 0x7f;
    const double a = is_tiny(y) ? 0 : fabs((double)y);
    const int c = code_below(a, f);
    if (c == last_code[f]) return sign | c;
    const double middle = (values[f][c] + values[f][c + 1]) / 2;
    return sign | (a > middle || (a == middle && c % 2) ? c + 1 : c);
}
// Up with the probability of the fraction of the way to the next value. The fraction has as many
// bits as an fp32 number has below the format's mantissa, 23 among denormals, and is cut there. It
// is up if adding as many random bits carries.
static int code_stochastic(float y, Dtype d, uint32_t random) {
    const int f = FORMAT(d), sign = float_bits(y) >> 31 ? 128 : 0;
    const double a = is_tiny(y) ? 0 : fabs((double)y);
    const int c = code_below(a, f), bits = c < 1 << mantissa[f] ? 23 : 23 - mantissa[f];
    if (y != y || c == last_code[f]) return code_nearest(y, d);
    const double way = (a - values[f][c]) / (values[f][c + 1] - values[f][c]);
    return sign | (floor(ldexp(way, bits)) + (random >> (32 - bits)) >= ldexp(1, bits) ? c + 1 : c);
}
// Two-level and other scales by the rules' words. NaN: only through amax.
static float wanted_scale(float amax, float keep, const ScalingRecipe *r) {
    const double max = values[FORMAT(r->format)][last_code[FORMAT(r->format)]];
    int e_max, e;
    if (!(amax >= 0x1p-126f && isfinite(amax))) return keep;
    double scale = max / (double)amax;
    frexp(scale, &e);
    if (r->rounding == ROUNDING_POW2) scale = ldexp(1, e - 1);
    frexp(max, &e_max);
    frexp((double)amax, &e);
    if (r->rounding == ROUNDING_FLOOR) scale = ldexp(1, e_max - e);
    return (float)MIN(MAX(scale, 0x1p-126), 0x1p126);
}
static float wanted_tensor(float amax, const ScalingRecipe *r) {
    return r->rounding == ROUNDING_E4M3 ? 448 * MIN(wanted_scale(amax, 1, r), 0x1p80f) : 1;
}
static float wanted_block(float amax, float tensor, const ScalingRecipe *r, float *inv) {
    const float max = (float)values[FORMAT(r->format)][last_code[FORMAT(r->format)]];
    const float scale = wanted_scale(amax, 1, r), fraction = amax / max * tensor;
    *inv = amax != amax && r->format == DTYPE_E2M1 ? NAN : 1 / scale;
    if (r->rounding != ROUNDING_E4M3) return scale;
    *inv = (float)value_of(code_nearest(fraction, DTYPE_E4M3), DTYPE_E4M3);
    if (*inv < 0x1p-9f) *inv = 0x1p-9f; // E4M3's least
    return tensor / *inv;
}
// An operand's codes as a product reads them: [rows, columns], one a byte.
static int code_in_memory(const uint8_t *q, size_t i, Dtype d) {
    const int nibble = q[i / 2] >> (i % 2 ? 4 : 0) & 15;
    return d == DTYPE_E2M1 ? nibble % 8 + (nibble > 7 ? 128 : 0) : q[i];
}

typedef struct {
    const stored_t *x;
    size_t rows, columns, across, along, per_line, count; // of blocks: in a line along K; all
    int along_rows;
    float *scale, *inv, tensor; // of blocks; one scale: of the only one
    int *code;
    double *value;
    Fp8Stats stats;
} Wanted;
static size_t wanted_block_of(const Wanted *w, size_t i) {
    const size_t row = i / w->columns, column = i % w->columns;
    return (w->along_rows ? column : row) / w->across * w->per_line +
           (w->along_rows ? row : column) / w->along;
}
static void wanted_count(Wanted *w, size_t i, float y, Dtype d) {
    const double x = (double)float_from_stored(w->x[i]), lost = x - w->value[i];
    const uint32_t bits = magnitude_bits(w->x[i]);
    w->stats.amax_bits = MAX(w->stats.amax_bits, bits);
    w->stats.saturated += d == DTYPE_E4M3   ? fabsf(y) > 464
                          : d == DTYPE_E5M2 ? fabsf(y) >= 61440
                                            : fabsf(y) >= 7;
    w->stats.flushed += (w->code[i] & 127) == 0 && bits != 0;
    w->stats.nonfinite += bits >= 0x7f800000;
    w->stats.count++;
    w->stats.signal += x * x;
    w->stats.noise += lost * lost;
    w->stats.fourth += x * x * x * x;
}
// What x becomes under s, which is as it was before the call.
static void wanted_make(Wanted *w, const Fp8Scale *s) {
    const ScalingRecipe *r = &s->recipe;
    const size_t n = w->rows * w->columns, in_blocks = r->along > 0;
    const size_t K = w->along_rows ? w->rows : w->columns, I = n / K;
    w->across = in_blocks ? (size_t)r->across : I;
    w->along = in_blocks ? (size_t)r->along : K;
    w->per_line = ceil_div(K, w->along);
    w->count = ceil_div(I, w->across) * w->per_line;
    w->code = TAKE(int, n);
    w->value = TAKE(double, n);
    w->scale = TAKE(float, w->count);
    w->inv = TAKE(float, w->count);
    uint32_t *top = TAKE(uint32_t, w->count), all = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t *of = &top[wanted_block_of(w, i)];
        *of = MAX(*of, magnitude_bits(w->x[i]));
        all = MAX(all, *of);
    }
    w->tensor = wanted_tensor(bits_float(all), r);
    for (size_t b = 0; b < w->count; b++)
        w->scale[b] = wanted_block(bits_float(top[b]), w->tensor, r, &w->inv[b]);
    if (!in_blocks) {
        w->scale[0] =
            r->rule == SCALING_CONSTANT ? s->scale : wanted_scale(bits_float(all), s->scale, r);
        w->inv[0] = all > 0x7f800000 && r->format == DTYPE_E2M1 ? NAN : 1 / w->scale[0];
    }
    const uint64_t key = random_u64(s->random, s->micro_batches, in_blocks ? w->along_rows : 0);
    for (size_t i = 0; i < n; i++) {
        const size_t b = wanted_block_of(w, i);
        const float y = float_from_stored(w->x[i]) * w->scale[b];
        w->code[i] = r->stochastic ? code_stochastic(y, r->format, random_u32(key, (uint32_t)i))
                                   : code_nearest(y, r->format);
        w->value[i] = value_of(w->code[i], r->format) * (double)w->inv[b] / (double)w->tensor;
        wanted_count(w, i, y, r->format);
    }
}

static Fp8Scale scale_make(ScalingRecipe recipe) {
    Fp8Scale s;
    memset(&s, 0, sizeof(s));
    s.recipe = recipe;
    s.scale = recipe.rule == SCALING_CONSTANT ? recipe.number : 1;
    s.scale_inv[0] = s.scale_inv[1] = 1;
    s.random = 12345;
    return s;
}

// -------------------------------------------------------------------------------------------------
// Codes of E2M1

static size_t encode_differs(const float *x, size_t n, Dtype as) {
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) wrong += fp8_encode(x[i], DTYPE_E2M1) != code_nearest(x[i], as);
    return wrong;
}
static void test_codes(void) {
    uint8_t codes[64], packed[32];
    float decoded[64], *x = TAKE(float, 65536 + 64);
    uint16_t halves[64];
    size_t wrong = 0, n = 65536;
    for (int i = 0; i < 32; i++) packed[i] = (uint8_t)(i * 37 + 5 * (i / 4));
    for (int i = 0; i < 64; i++) codes[i] = (uint8_t)code_in_memory(packed, i, DTYPE_E2M1);
    decode_fp32(decoded, codes, 64, DTYPE_E2M1);
    decode_bf16(halves, codes, 64, DTYPE_E2M1);
    for (int i = 0; i < 64; i++) {
        const float want = (float)value_of(codes[i], DTYPE_E2M1);
        wrong += code_at(packed, i, DTYPE_E2M1) != codes[i] || decoded[i] != want ||
                 float_from_bf16(halves[i]) != want || fp8_decode(codes[i], DTYPE_E2M1) != want ||
                 fp8_encode(want, DTYPE_E2M1) != codes[i];
    }
    for (int c = 0; c < 16; c++) wrong += !memchr(codes, c % 8 + (c > 7 ? 128 : 0), 64);
    check_none(wrong, "codes of e2m1: decoded %d ways, packed in pairs", 3);
    for (int i = 0; i < 65536; i++) x[i] = float_from_bf16((uint16_t)i);
    for (int c = 0; c < 8; c++) // both sides of values and midpoints; the last of saturation
        for (int k = 0; k < 6; k++) {
            const double next = c < 7 ? values[2][c + 1] : 8, middle = (values[2][c] + next) / 2;
            x[n++] = bits_float(float_bits((float)(k < 3 ? middle : next)) + k % 3 - 1);
        }
    check_none(encode_differs(x, n, DTYPE_E2M1),
               "codes of e2m1: all bf16 numbers and every midpoint, Inf, NaN: %zu", n);
    check(fp8_encode(NAN, DTYPE_E2M1) == 7 && fp8_encode(-INFINITY, DTYPE_E2M1) == 0x87 &&
              fp8_encode(-0.0f, DTYPE_E2M1) == 0x80 && fp8_encode(5, DTYPE_E2M1) == 6 &&
              fp8_encode(-2.5f, DTYPE_E2M1) == 0x84,
          "codes of e2m1: NaN is 6, -Inf -6, -0 itself, 5 and 2.5 tie to 4 and 2");
    values[2][7] = 8;
    const size_t fault = encode_differs(x, n, DTYPE_E2M1);
    values[2][7] = 6;
    check_caught(fault > 0, "a largest number of 8");
}

// -------------------------------------------------------------------------------------------------
// Stochastic rounding

typedef uint32_t Rounding(uint32_t, const Fp8Format *, uint32_t);
// Draws in the lower and the upper half of every interval of two codes. *largest: the largest |mean
// error| in standard errors, of a half or of all. Returns how many draws are no neighbor, or not the
// number itself.
static size_t draws(Rounding *rounding, int f, size_t each, double *largest) {
    const Fp8Format *format = fp8_format(formats[f]);
    size_t wrong = 0;
    double all = 0, all_variance = 0;
    *largest = 0;
    for (int half = 0; half < 2 * last_code[f]; half++) {
        const int c = half / 2;
        const double low = values[f][c], width = values[f][c + 1] - low;
        double sum = 0, variance = 0;
        for (uint32_t i = 0, at = half * (uint32_t)each; i < each; i++, at++) {
            const float y = (float)(low + width * (half % 2 + uniform(f, at)) / 2);
            const double way = ((double)y - low) / width;
            const int up = (int)rounding(float_bits(y), format, random_u32(mix64(f), at)) - c;
            wrong += up < 0 || up > 1 || (way == 0 && up) || (way == 1 && !up);
            sum += up - way;
            variance += way * (1 - way);
        }
        *largest = fmax(*largest, fabs(sum) / sqrt(variance));
        all += sum;
        all_variance += variance;
        wrong += rounding(float_bits((float)low), format, (uint32_t)-1) != (uint32_t)c;
    }
    *largest = fmax(*largest, fabs(all) / sqrt(all_variance));
    return wrong;
}
static uint32_t rounding_nearest(uint32_t a, const Fp8Format *f, uint32_t random) {
    return fp8_round_bits(a, f) + 0 * random;
}
static uint32_t rounding_biased(uint32_t a, const Fp8Format *f, uint32_t random) {
    return fp8_round_stochastic(a, f, random - (random >> 6));
}
// Correlation of two streams' numbers, the second `lag` elements later, in standard errors.
static double correlation(uint64_t key, uint64_t other, uint32_t lag) {
    enum { N = 1 << 18 };
    double sum = 0;
    for (uint32_t i = 0; i < N; i++)
        sum += (random_u32(key, i) * 0x1p-32 - 0.5) * (random_u32(other, i + lag) * 0x1p-32 - 0.5);
    return fabs(sum) * 12 / sqrt(N);
}
static void test_stochastic(void) {
    double largest, worst = 0;
    for (int f = 0; f < 3; f++) {
        const size_t each = 1700000 / last_code[f],
                     wrong = draws(fp8_round_stochastic, f, each, &largest);
        check(!wrong && largest < 4,
              "stochastic %s: %d half intervals x %zu draws: %zu no neighbors, mean within %.2f "
              "standard "
              "errors",
              format_names[f], 2 * last_code[f], each, wrong, largest);
        draws(rounding_nearest, f, each, &worst);
        draws(rounding_biased, f, each, &largest);
        check_caught(worst > 4 && largest > 4,
                     "rounding to nearest, and random numbers 1/64 short,");
    }
    Fp8Scale s = scale_make((ScalingRecipe){0});
    const uint64_t key = scale_random(&s, 0);
    double apart = correlation(key, scale_random(&s, 1), 0);
    for (worst = 0, largest = 1; largest <= 1 << 16; largest *= 2)
        worst = fmax(worst, correlation(key, key, (uint32_t)largest));
    s.micro_batches = 1;
    apart = fmax(apart, correlation(key, scale_random(&s, 0), 0));
    s.micro_batches = 0;
    s.random++; // of another tensor
    apart = fmax(apart, correlation(key, scale_random(&s, 0), 0));
    check(worst < 4, "random numbers: elements 1, 2, 4 .. 65536 apart are uncorrelated (%.2f)",
          worst);
    check(apart < 4, "random numbers: ways, micro-batches, tensors are uncorrelated (%.2f)", apart);
    check_caught(correlation(key, key, 0) > 4, "the same key for two tensors");
}

// -------------------------------------------------------------------------------------------------
// Bytes, scales and statistics

enum { PLAIN, ZEROS, A_NAN, AN_INF, WIDE, DATA }; // what is in a tensor
static stored_t *data_make(size_t rows, size_t columns, int kind) {
    stored_t *x = normal_stored(rows * columns, 1, 10 + kind);
    for (size_t i = 0; i < rows * columns; i++) {
        const int e = kind == WIDE ? (int)(uniform(20, i / 5) * 240) - 120 : (int)(i / 7 % 20) - 10;
        x[i] = stored_from_float((float)ldexp((double)float_from_stored(x[i]), e));
        if (kind == ZEROS && i / columns < 20 && i % columns < 40) x[i] = 0;
        if (kind == ZEROS && i / columns % 18 == 2) x[i] = (stored_t)(i % 128); // denormals
    }
    if (kind == A_NAN) x[rows * columns / 3] = 0xffc1;
    if (kind == AN_INF) x[rows * columns / 3] = 0xff80;
    return x;
}
typedef struct {
    size_t codes, scales, counts, sums;
} Differences;
static void quantize_differs(Differences *wrong, const Wanted *w, const uint8_t *q,
                             const float *inv, const Fp8Scale *s) {
    const Fp8Stats *a = &w->stats, *b = &s->step;
    for (size_t i = 0; i < w->rows * w->columns; i++)
        wrong->codes += code_in_memory(q, i, s->recipe.format) != w->code[i];
    for (size_t i = 0; i < w->count; i++) wrong->scales += !floats_same(inv[i], w->inv[i]);
    wrong->counts += !stats_same(a, b);
    wrong->sums += !(fabs(a->signal - b->signal) <= 1e-5 * a->signal &&
                     fabs(a->noise - b->noise) <= 1e-5 * a->noise &&
                     fabs(a->fourth - b->fourth) <= 1e-5 * a->fourth);
}
static void quantize_case(Differences *wrong, Fp8Scale s, const size_t *shape, int kind, int way) {
    const int first = block_count;
    const size_t n = shape[0] * shape[1];
    Wanted w = {data_make(shape[0], shape[1], kind), shape[0], shape[1], .along_rows = way};
    uint8_t *q = TAKE(uint8_t, n);
    float *inv = TAKE(float, n + 1), logged;
    wanted_make(&w, &s);
    if (recipe_blocks(&s.recipe)) {
        quantize_blocks(q, inv, w.x, shape[0], shape[1], way, &s, RECORD_SQNR);
        wrong->scales += !floats_same(s.scale_inv[way], 1 / w.tensor);
        logged = wanted_scale(bits_float(w.stats.amax_bits), 1, &s.recipe);
    } else {
        inv[0] = quantize(q, w.x, n, &s, RECORD_SQNR);
        logged = w.scale[0];
    }
    wrong->scales += s.scale != (s.recipe.rounding == ROUNDING_E4M3 ? w.tensor : logged);
    Differences here = {0, 0, 0, 0};
    quantize_differs(&here, &w, q, inv, &s);
    wrong->codes += here.codes;
    wrong->scales += here.scales;
    wrong->counts += here.counts;
    wrong->sums += kind <= ZEROS && here.sums;
    take_end(first);
}
static Differences quantize_cases(const char *words, int operand, int stochastic) {
    static const size_t shapes[][2] = {{37, 300}, {48, 530}, {130, 34},
                                       {300, 64}, {1, 2},    {1, 1100}};
    ScalingRecipe recipes[NOPERAND];
    Differences wrong = {0, 0, 0, 0};
    recipe_parse(recipes, words, "test");
    recipes[operand].stochastic = stochastic;
    for (int i = 0; i < COUNT(shapes) * DATA * 2; i++) {
        threads_set(1 + i % 3);
        Fp8Scale s = scale_make(recipes[operand]);
        s.micro_batches = i;
        quantize_case(&wrong, s, shapes[i / 2 / DATA], i / 2 % DATA, i % 2);
    }
    return wrong;
}
static void test_quantize(void) {
    static const struct {
        const char *words;
        int operand;
    } list[] = {
        {"e2m1+current", OPERAND_X},      {"e2m1+scale=0.37", OPERAND_X}, {"mxfp4", OPERAND_X},
        {"mxfp4+floor", OPERAND_X},       {"nvfp4", OPERAND_X},           {"nvfp4", OPERAND_W},
        {"nvfp4+e4m3", OPERAND_X},        {"nvfp4+e5m2", OPERAND_W},      {"mx", OPERAND_X},
        {"e2m1+rowwise+e2m1", OPERAND_X}, {"current", OPERAND_X},         {"current", OPERAND_DY}};
    for (int i = 0; i < COUNT(list) * 2; i++) {
        const Differences d = quantize_cases(list[i / 2].words, list[i / 2].operand, i % 2);
        check(!d.codes && !d.scales && !d.counts && !d.sums,
              "quantize: %s of %s%s: %zu codes, %zu scales, %zu counts, %zu sums differ",
              operand_name[list[i / 2].operand], list[i / 2].words, i % 2 ? "+stochastic" : "",
              d.codes, d.scales, d.counts, d.sums);
    }
    static const size_t shape[2] = {32, 64};
    const stored_t *x = data_make(shape[0], shape[1], PLAIN);
    ScalingRecipe recipes[NOPERAND];
    recipe_parse(recipes, "nvfp4+stochastic", "test");
    uint8_t q[32 * 32];
    float inv[32 * 4];
    for (int fault = 0; fault < 2; fault++) {
        Differences wrong = {0, 0, 0, 0};
        Fp8Scale s = scale_make(recipes[OPERAND_X]), other = s;
        Wanted w = {x, shape[0], shape[1], .along_rows = fault};
        other.micro_batches = !fault;
        wanted_make(&w, &other);
        quantize_blocks(q, inv, x, shape[0], shape[1], 0, &s, RECORD_SQNR);
        quantize_differs(&wrong, &w, q, inv, &s);
        if (fault)
            check_caught(wrong.codes && wrong.scales && wrong.sums, "blocks along the wrong index");
        else check_caught(wrong.codes && !wrong.scales, "another micro-batch's random numbers");
    }
}

// -------------------------------------------------------------------------------------------------
// The Hadamard transform

enum { HROWS = 40, HCOLUMNS = 34, HALL = 32 * HCOLUMNS, HN = HROWS * HCOLUMNS };
// 16 rows of a column from x on: by the definition in doubles, and in fp32 by differences and sums
// of numbers 1, 2, 4 and then 8 rows apart.
static void hadamard_reference(double *exact, float *fp32, const stored_t *x, uint32_t signs) {
    float v[2][16];
    for (int i = 0; i < 16; i++) {
        exact[i] = 0;
        for (int j = 0; j < 16; j++) {
            const double term = (double)float_from_stored(x[j * HCOLUMNS]) / 4;
            exact[i] += (__builtin_popcount(i & j) + (signs >> j)) % 2 ? -term : term;
        }
        v[0][i] = float_from_stored(x[i * HCOLUMNS]) * (signs >> i & 1 ? -1 : 1) / 4;
    }
    for (int d = 1, from = 0; d < 16; d *= 2, from = !from)
        for (int i = 0; i < 16; i++)
            v[!from][i] = i & d ? v[from][i ^ d] - v[from][i] : v[from][i] + v[from][i ^ d];
    memcpy(fp32, v[0], sizeof(v[0]));
}
// dy^T x over the first 32 rows, [HCOLUMNS][HCOLUMNS].
static double *products_over_rows(const double *dy, const double *x) {
    double *out = TAKE(double, HCOLUMNS *HCOLUMNS);
    for (int i = 0; i < 32 * HCOLUMNS * HCOLUMNS; i++) {
        const int row = i / HCOLUMNS / HCOLUMNS, at = i % (HCOLUMNS * HCOLUMNS);
        out[at] += dy[row * HCOLUMNS + at / HCOLUMNS] * x[row * HCOLUMNS + at % HCOLUMNS];
    }
    return out;
}
static double *doubles_of(const stored_t *x, size_t n) {
    double *out = TAKE(double, n);
    for (size_t i = 0; i < n; i++) out[i] = (double)float_from_stored(x[i]);
    return out;
}
static void test_hadamard(void) {
    const uint32_t signs = 0xffff5a36;
    size_t order = 0, rounding = 0, ragged = 0;
    double *fp32[2], *rounded[2], *plain[2], back = INFINITY;
    for (int which = 0; which < 2; which++) {
        stored_t *x = normal_stored(HN, 1, 40 + which), *y = TAKE(stored_t, HN),
                 *z = TAKE(stored_t, HN);
        for (int i = 0; i < HN; i++) x[i] = (stored_t)(x[i] - i % 7 * 0x200); // 2^0 to 2^-24
        for (int i = 0; i < HCOLUMNS; i += 3) x[5 * HCOLUMNS + i] = 0x4316;   // an outlier of 150
        hadamard_transform(y, x, HROWS, HCOLUMNS, signs);
        hadamard_transform(z, y, HROWS, HCOLUMNS, 0);
        fp32[which] = TAKE(double, HALL);
        plain[which] = doubles_of(x, HALL);
        rounded[which] = doubles_of(y, HALL);
        for (int at = 0; at < HALL; at++) {
            double exact[16];
            float sums[16];
            const int row = at / HCOLUMNS % 16, top = at - row * HCOLUMNS;
            hadamard_reference(exact, sums, x + top, signs);
            order += y[at] != stored_from_float(sums[row]);
            rounding +=
                !(fabs(rounded[which][at] - exact[row]) <= 0x1p-8 * fabs(exact[row]) + 1e-5);
            fp32[which][at] = (double)sums[row];
            if (signs >> row & 1) z[at] ^= 0x8000;
        }
        back = fmin(back, alike(plain[which], doubles_of(z, HALL), HALL));
        ragged += memcmp(y + HALL, x + HALL, (HN - HALL) * sizeof(stored_t)) != 0;
    }
    check_none(order, "hadamard: the bits of fp32 sums in the order of the text, %d elements",
               2 * HALL);
    check_none(rounding, "hadamard: the matrix in doubles, within bf16's rounding, %d elements",
               2 * HALL);
    check_none(ragged, "hadamard: %d rows at the end stay as they are, tensors", HROWS % 16);
    check(back > 45, "hadamard: its inverse gives the tensor back (%.1f dB)", back);
    const double *want = products_over_rows(plain[0], plain[1]);
    const int n = HCOLUMNS * HCOLUMNS;
    const double in_fp32 = alike(want, products_over_rows(fp32[0], fp32[1]), n),
                 in_bf16 = alike(want, products_over_rows(rounded[0], rounded[1]), n);
    check(in_fp32 > 120, "hadamard: dy^T x stays what it was, in fp32 (%.1f dB)", in_fp32); // 1e-6
    check(in_bf16 > 45, "hadamard: and rounded to bf16 (%.1f dB)", in_bf16);
    check_caught(alike(want, products_over_rows(rounded[0], plain[1]), n) < 10, "x without it");
}

// -------------------------------------------------------------------------------------------------
// Linear layers: split operands, and recipes of four bits

enum { LROWS = 72, IN = 96, OUT = 80, LMOST = IN * OUT };
typedef struct {
    Linear f;
    Fp8Scale scale[NOPERAND];
    stored_t *tensor[NOPERAND], *dx;
    float *y;
} Layer;
static size_t layer_rows(int which) { return which == OPERAND_W ? OUT : LROWS; }
// Runs a layer under a recipe, forward and backward. Products in `split` read second numbers.
static void layer_run(Layer *l, const char *words, int split) {
    ScalingRecipe recipes[NOPERAND];
    static const size_t columns[NOPERAND] = {IN, IN, OUT};
    static const double size[NOPERAND] = {1, 0.05, 1e-4};
    float *partial = TAKE(float, ceil_div(LROWS, ROWS) * OUT);
    memset(l, 0, sizeof(*l));
    recipe_parse(recipes, words, "test");
    l->f.in = IN;
    l->f.out = OUT;
    l->f.fp8 = ALL_PRODUCTS;
    l->f.split = split;
    l->f.signs = 0x00009c71;
    l->f.turned = TAKE(stored_t, LROWS * IN);
    l->f.sums = TAKE(float, LROWS *IN);
    l->f.dw = TAKE(float, OUT *IN);
    l->f.first = 1;
    l->f.bias = TAKE(float, OUT);
    for (int i = 0; i < OUT; i++) ((float *)l->f.bias)[i] = (float)normal(60, i);
    for (int which = 0; which < NOPERAND; which++) {
        const size_t n = layer_rows(which) * columns[which];
        Operand *o = &l->f.operand[which];
        l->scale[which] = scale_make(recipes[which]);
        l->scale[which].random += which;
        l->tensor[which] = normal_stored(n, size[which], 50 + which);
        for (int way = 0; way < 2; way++) {
            o->bytes[way] =
                way && !recipe_blocks(&recipes[which]) ? o->bytes[0] : TAKE(uint8_t, 2 * n);
            o->inv[way] = TAKE(float, n);
        }
        o->scale = &l->scale[which];
        o->columns = columns[which];
    }
    l->f.operand[OPERAND_X].stored[OVER_COLUMNS] = l->tensor[OPERAND_X];
    operand_is(&l->f, OPERAND_DY, l->tensor[OPERAND_DY]);
    l->y = TAKE(float, LROWS *OUT);
    l->dx = TAKE(stored_t, LROWS * IN);
    operand_quantize(&l->f, OPERAND_W, l->tensor[OPERAND_W], OUT, OVER_COLUMNS, RECORD_STATS);
    linear_forward(&l->f, l->y, DTYPE_FP32, LROWS, RECORD_STATS);
    linear_backward(&l->f, l->dx, partial, LROWS, RECORD_STATS);
}
// An operand as one of its products reads it, [across K][K], from its bytes: part 0 or 1 of them; -1
// the tensor as it is stored.
static double *layer_operand(const Layer *l, int which, int product, int part) {
    const Operand *o = &l->f.operand[which];
    const ScalingRecipe *r = &l->scale[which].recipe;
    const size_t rows = layer_rows(which), n = rows * o->columns;
    const int way = operand_product[which][1] == product;
    Wanted w = {l->tensor[which], rows, o->columns, 1, 1, 1, 0, .along_rows = way};
    const size_t K = way ? rows : o->columns;
    w.across = recipe_blocks(r) ? (size_t)r->across : n;
    w.along = recipe_blocks(r) ? (size_t)r->along : n;
    w.per_line = ceil_div(K, w.along);
    double *out = TAKE(double, n), unit = l->scale[which].scale_inv[way];
    if (part == 1) unit *= r->format == DTYPE_E4M3 ? 0.0625 : 0.125;
    for (size_t i = 0; i < n; i++) {
        const int code = code_in_memory(o->bytes[way], MAX(part, 0) * n + i, r->format);
        const double inv = recipe_blocks(r) ? o->inv[way][wanted_block_of(&w, i)] : 1;
        const size_t row = i / o->columns, column = i % o->columns;
        out[way ? column * K + row : i] =
            part < 0 ? (double)float_from_stored(w.x[i]) : value_of(code, r->format) * inv * unit;
    }
    return out;
}
typedef struct {
    size_t M, N;
    double *whole, *parts, *found; // of stored numbers where an operand is split; of all parts
    double *first;                 // of the first parts only
    int splits;
} Product;
// Adds a product of two operands; skip: its second parts do not belong to the sum.
static void product_add(double *out, const double *a, const double *b, size_t M, size_t N,
                        size_t K) {
    for (size_t at = 0; at < M * N; at++)
        for (size_t k = 0; k < K; k++) out[at] += a[at / N * K + k] * b[at % N * K + k];
}
static Product layer_product(const Layer *l, int product) {
    const int a = product == FPROP ? OPERAND_X : OPERAND_DY;
    const int b = product == WGRAD ? OPERAND_X : OPERAND_W;
    const size_t M = product == WGRAD ? OUT : LROWS, N = product == FPROP ? OUT : IN;
    const size_t K = product == WGRAD ? LROWS : product == FPROP ? IN : OUT;
    const int on = l->f.split >> product & 1;
    const int sa = on && l->scale[a].recipe.split, sb = on && l->scale[b].recipe.split;
    Product p = {
        M,      N, TAKE(double, M *N), TAKE(double, M *N), TAKE(double, M *N), TAKE(double, M *N),
        sa + sb};
    double *a0 = layer_operand(l, a, product, 0), *b0 = layer_operand(l, b, product, 0);
    product_add(p.first, a0, b0, M, N, K);
    product_add(p.whole, layer_operand(l, a, product, sa ? -1 : 0),
                layer_operand(l, b, product, sb ? -1 : 0), M, N, K);
    product_add(p.parts, a0, b0, M, N, K);
    if (sb) product_add(p.parts, a0, layer_operand(l, b, product, 1), M, N, K);
    if (sa) product_add(p.parts, layer_operand(l, a, product, 1), b0, M, N, K);
    for (size_t i = 0; i < M * N; i++) {
        p.found[i] = product == FPROP   ? (double)l->y[i]
                     : product == DGRAD ? (double)float_from_stored(l->dx[i])
                                        : (double)l->f.dw[i];
        if (product == FPROP) p.found[i] -= (double)l->f.bias[i % OUT];
    }
    return p;
}
// Elements that are not their definition: beyond fp32's rounding of sums with K terms, and in dx
// bf16's.
static size_t product_differs(const Product *p, const double *want, int product) {
    double size = 0;
    size_t wrong = 0;
    for (size_t i = 0; i < p->M * p->N; i++) size = fmax(size, fabs(want[i]));
    for (size_t i = 0; i < p->M * p->N; i++) {
        const double unit = product == DGRAD ? 0x1p-8 * fabs(want[i]) : product == FPROP ? 1e-6 : 0;
        wrong += !(fabs(p->found[i] - want[i]) <= unit + 2e-6 * size);
    }
    return wrong;
}
static void test_layer_split(void) {
    static const struct {
        const char *words;
        int split;
    } list[] = {{"x:split+current", ALL_PRODUCTS},    {"w:split+current", ALL_PRODUCTS},
                {"dy:split+current", ALL_PRODUCTS},   {"split+current", ALL_PRODUCTS},
                {"split+current+e5m2", ALL_PRODUCTS}, {"mx+split", ALL_PRODUCTS},
                {"split+current", 1 << FPROP},        {"split+nvfp4+e4m3", 1 << WGRAD}};
    size_t caught = 0, splitting = 0;
    for (int i = 0; i < COUNT(list); i++) {
        const int first = block_count;
        Layer l;
        layer_run(&l, list[i].words, list[i].split);
        size_t wrong = 0;
        double gain = INFINITY;
        for (int product = 0; product < NPRODUCT; product++) {
            const Product p = layer_product(&l, product);
            const size_t n = p.M * p.N;
            wrong += product_differs(&p, p.parts, product);
            splitting += p.splits > 0;
            caught += p.splits && product_differs(&p, p.first, product) > 0;
            if (p.splits)
                gain = fmin(gain, alike(p.whole, p.found, n) - alike(p.whole, p.first, n));
        }
        check(!wrong && gain > 10,
              "split: %s, products %d: sums of the parts' products (%zu differ), %.1f dB gained",
              list[i].words, list[i].split, wrong, gain);
        take_end(first);
    }
    check_caught(splitting == 17 && caught == splitting, "a second number that is left out");
}
// Two numbers for all bf16 numbers of three powers of ten: exact in E4M3, whose second one has the
// four bits that are left; E5M2's has three of five.
static void test_split(void) {
    static const char *const words[] = {"split+scale=64", "split+scale=64+e5m2", "mx+split"};
    for (int i = 0; i < COUNT(words); i++) {
        enum { N = 16 * 128 };
        stored_t x[N];
        uint8_t q[2 * N];
        float inv[N / 32];
        ScalingRecipe recipes[NOPERAND];
        recipe_parse(recipes, words[i], "test");
        const Dtype d = recipes[OPERAND_X].format;
        Fp8Scale s = scale_make(recipes[OPERAND_X]);
        for (int k = 0; k < N; k++)
            x[k] = (stored_t)(((121 + k / 32 % 8) << 7 | (k % 32 + k / 256 * 32) % 128) ^
                              (k & 32) << 10);
        if (i == 2) quantize_blocks(q, inv, x, 16, 128, 0, &s, RECORD_SQNR);
        else inv[0] = quantize(q, x, N, &s, RECORD_SQNR);
        size_t wrong[2] = {0, 0};
        for (int k = 0; k < N; k++) {
            const double want = (double)float_from_stored(x[k]), unit = inv[i == 2 ? k / 32 : 0];
            const double one = value_of(q[k], d) * unit;
            const double two = value_of(q[N + k], d) * unit * (i == 1 ? 0.125 : 0.0625);
            wrong[0] += !(fabs(one + two - want) <= (i == 1 ? 0x1p-6 * fabs(want) : 0));
            wrong[1] += one != want;
        }
        const double sqnr = 10 * log10(s.step.signal / s.step.noise);
        check(!wrong[0] && (i == 1 ? sqnr > 40 : s.step.noise == 0),
              "split: %s: two numbers give %d bf16 numbers back, %zu do not", words[i], N,
              wrong[0]);
        check_caught(wrong[1] > N / 2, "the first number alone");
    }
}
static void test_layer(void) {
    static const char *const words[] = {"nvfp4",
                                        "nvfp4+stochastic+hadamard",
                                        "mxfp4",
                                        "mxfp4+floor+stochastic+hadamard",
                                        "e2m1+current+stochastic",
                                        "nvfp4+dy:e5m2",
                                        "e2m1+dy:mx"};
    size_t caught = 0;
    for (int i = 0; i < COUNT(words); i++) {
        const int first = block_count;
        Layer l;
        layer_run(&l, words[i], 0);
        size_t wrong = 0;
        double least = INFINITY;
        for (int product = 0; product < NPRODUCT; product++) {
            Product p = layer_product(&l, product);
            const int a = product == FPROP ? OPERAND_X : OPERAND_DY,
                      b = product == WGRAD ? OPERAND_X : OPERAND_W;
            const size_t K = product == WGRAD ? LROWS : product == FPROP ? IN : OUT;
            double *stored = TAKE(double, p.M *p.N);
            product_add(stored, layer_operand(&l, a, product, -1),
                        layer_operand(&l, b, product, -1), p.M, p.N, K);
            wrong += product_differs(&p, p.parts, product);
            least = fmin(least, alike(stored, p.found, p.M * p.N));
            caught += product_differs(&p, stored, product) > 0;
        }
        check(!wrong && least > 8,
              "layer: %s: products of what the codes stand for (%zu differ), at least %.1f dB",
              words[i], wrong, least);
        take_end(first);
    }
    check_caught(caught == NPRODUCT * COUNT(words),
                 "a product of the numbers before they were quantized");
}

// -------------------------------------------------------------------------------------------------
// Models

static Run run;
static char text_path[] = "/tmp/test_below8_XXXXXX";
static void text_make(void) {
    const int fd = mkstemp(text_path);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    for (int i = 0; f && i < 400; i++) fprintf(f, "%d fish swam past %d boats.\n", i, i * 7 % 13);
    if (!f || fclose(f) != 0) fatal(EXIT_BAD_INPUT, "%s: %s", text_path, strerror(errno));
    run.train = dataset_open(text_path);
    dataset_windows(&run.train, "training", 40, 1);
}
static void model_make(const char *recipe, int recompute, const char *split) {
    Gpt *g = &run.g;
    const Config c = {40, 256, 256, 2, 2, 48};
    memset(g, 0, sizeof(*g));
    g->config = c;
    g->B = 2;
    g->training = 1;
    g->recompute = recompute;
    g->seed = 3;
    recipe_parse(g->recipes, recipe, "test");
    products_parse("split", split, c.L, g->split);
    workspace_free();
    gpt_allocate(g);
    gpt_init(g, 7);
    g->record = RECORD_STATS;
}
// Everything that three steps of two micro-batches leave, as one number.
static uint64_t three_steps(const char *recipe, int threads, int recompute) {
    Gpt *g = &run.g;
    uint64_t h = 0;
    threads_set(threads);
    model_make(recipe, recompute, "fprop+dgrad+wgrad");
    const AdamW adamw = {1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f};
    for (long i = 0; i < 3; i++) {
        const Step step = {i, i + 1, 2, 0, 160, 1, adamw};
        const StepOutcome out = gpt_step(g, &step, &run);
        h = checksum(h, &out.loss, sizeof(double));
        if (out.nonfinite) h = i;
    }
    const float *arrays[4] = {g->master, g->grad, g->m, g->v};
    for (int i = 0; i < 4; i++) h = checksum(h, arrays[i], g->param_count * 4);
    for (int i = 0; i < g->scale_count; i++) {
        g->scales[i].recipe.along = 0; // no padding between fields: all bytes count
        h = checksum(h, &g->scales[i], sizeof(Fp8Scale));
    }
    gpt_free(g);
    return h;
}
static const char *const model_recipes[] = {"nvfp4+stochastic+hadamard", "e2m1+stochastic", "mxfp4",
                                            "split", "mx+split+hadamard"};
static void test_model_bits(void) {
    uint64_t h[COUNT(model_recipes)];
    for (int i = 0; i < COUNT(model_recipes); i++) {
        const char *words = model_recipes[i];
        h[i] = three_steps(words, 1, 0);
        check(three_steps(words, 2, 0) == h[i] && three_steps(words, 3, 0) == h[i],
              "model: %s: 1, 2 and 3 threads give the same bits", words);
        check(three_steps(words, 2, 1) == h[i], "model: %s: --recompute gives the same bits",
              words);
        for (int k = 0; k < i; k++) h[0] = h[k] == h[i] ? h[k] + 1 : h[0];
    }
    check_caught(h[0] != three_steps("nvfp4+hadamard", 1, 0) &&
                     h[2] != three_steps("mxfp4+floor", 1, 0),
                 "rounding to nearest, and another rule of scales,");
    threads_set(2);
}
// The kept bytes of the first input, made twice of the same tokens, by micro-batch 0 and `other`.
static int kept_differs(const char *recipe, int other) {
    Gpt *g = &run.g;
    int tokens[80];
    const size_t n = 80 * 48 / 2, weights = 12 * 48 * 48 / 2;
    for (int i = 0; i < 80; i++) tokens[i] = 32 + i;
    model_make(recipe, 0, "fprop");
    gpt_forward_blocks(g, tokens, 2, 40, 0);
    uint8_t *kept = memcpy(TAKE(uint8_t, n), g->ln1, n);
    uint8_t *made = memcpy(TAKE(uint8_t, weights), g->weights, weights);
    for (int i = 0; i < g->scale_count; i++) g->scales[i].micro_batches = other;
    gpt_forward_blocks(g, tokens, 2, 40, 0);
    const int differs = memcmp(kept, g->ln1, n) != 0,
              again = memcmp(made, g->weights, weights) != 0;
    gpt_free(g);
    return again ? -1 : differs; // weights: once a step
}
static int cache_differs(const char *recipe) {
    Gpt *g = &run.g;
    int tokens[40], wrong = 0;
    float *cached = TAKE(float, 40 * 256);
    for (int i = 0; i < 40; i++) tokens[i] = (int)(uniform(90, i) * 256);
    model_make(recipe, 0, "fprop");
    g->record = RECORD_NONE;
    for (int t = 0; t < 40; t++) gpt_logits(g, cached + t * 256, tokens + t, 1, t);
    for (int t = 0; t < 40; t++) {
        float whole[256];
        gpt_logits(g, whole, tokens, t + 1, 0);
        wrong += memcmp(whole, cached + t * 256, sizeof(whole)) != 0;
    }
    gpt_free(g);
    return wrong;
}
static void test_model_promises(void) {
    check(kept_differs("e2m1+stochastic", 1) == 1 && kept_differs("e2m1+stochastic", 0) == 0,
          "model: micro-batches round x by other random numbers, weights by one a step");
    check_caught(kept_differs("e2m1", 1) == 0, "rounding to nearest in micro-batches");
    check(!cache_differs("mxfp4") && !cache_differs("mxfp4+split+e4m3"),
          "model: a KV cache gives a whole prefix's bits under mxfp4, and split in blocks");
    const int wrong = cache_differs("nvfp4");
    check_caught(wrong > 0, "model: own amax of nvfp4's tensor, which leaks through positions,");
}
static void test_model_memory(void) {
    size_t kept[2];
    Gpt *g = &run.g;
    for (int i = 0; i < COUNT(model_recipes); i++)
        for (int recompute = 0; recompute < 2; recompute++) {
            bytes_allocated = 0;
            model_make(model_recipes[i], recompute, "first.qkv.fprop");
            memory_taken = 0;
            const size_t not_allocated = PROGRAM_BYTES + ((size_t)thread_count() << 15);
            const double plan = (double)(memory_plan(g).total - not_allocated),
                         more = (double)bytes_allocated - plan;
            // Some 45 tensors are rounded up to 64 bytes, each thread's slice to a page.
            check(fabs(more) < 45 * 128 + 3 * 4200,
                  "model: memory plan of %s%s: %.0f bytes, %.0f more taken", model_recipes[i],
                  recompute ? ", --recompute" : "", plan, more);
            gpt_free(g);
        }
    for (int i = 0; i < 2; i++) {
        model_make(i ? "mxfp4" : "mx", 0, "fprop");
        kept[i] = memory_plan(g).part[KEPT];
        gpt_free(g);
    }
    // ln1, att, ln2 and gelu of two layers have 7 x 48 channels and 80 rows.
    check(kept[0] - kept[1] == 2 * 7 * 48 * 80 / 2,
          "model: operands of E2M1 take half a byte: %zu bytes less", kept[0] - kept[1]);
    check_caught(kept[0] != kept[1], "the same plan for eight bits and four");
}

#define TEST(name)                                                                                 \
    { #name, test_##name }
static const struct {
    const char *name;
    void (*run)(void);
} groups[] = {TEST(codes),          TEST(stochastic),  TEST(quantize), TEST(hadamard),
              TEST(split),          TEST(layer_split), TEST(layer),    TEST(model_bits),
              TEST(model_promises), TEST(model_memory)};
int main(int argc, char **argv) {
    const char *only = argc == 3 && !strcmp(argv[1], "--only") ? argv[2] : "";
    EXPECT(argc == 1 || *only, "usage: test_below8 [--only NAME]");
    machine_init(0);
    values_init();
    tables_make();
    AttentionBuffers w;
    text_make();
    for (int i = 0; i < COUNT(groups); i++) {
        if (!strstr(groups[i].name, only)) continue;
        const double begin = seconds_now();
        workspace_free();
        threads_set(3);
        workspace_init(1 << 18, attention_buffers(&w, NULL, 1, 16));
        groups[i].run();
        take_end(0);
        if (getenv("TEST_TIMES"))
            printf("     %.2f s in %s\n", seconds_now() - begin, groups[i].name);
    }
    unlink(text_path);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
