/*
Tests of what train_gpt_fp8.c has below eight bits: E2M1, stochastic rounding, two-level scales, the
random Hadamard transform, split operands. FP8 build only, built like test_gpt.c:

    gcc -O3 -march=native ... -DPRECISION=0 dev/check/test_below8.c -o build/test_below8 -lm
    build/test_below8               # every group, some seconds
    build/test_below8 --only layer  # the groups whose name contains "layer"

The definitions are in below8.h, in doubles, an element at a time; the groups about layers and
models in below8_layers.h. Bits are compared where bits are promised; elsewhere the tolerance stands
beside the check. A "planted fault" feeds a comparing function what it must refuse.
*/
#include "counted.h"
#define TESTING
#include "../../train_gpt_fp8.c"
#if !IS_FP8
#error "test_below8 tests the FP8 build: compile it with -DPRECISION=0"
#endif
#include "free.h"
#include "definitions.h"
#include "below8.h"

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
// error| in standard errors, of a half or of all. Returns how many draws are no neighbor, or not
// the number itself.
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
    const uint64_t key = random_u64(s.random, s.micro_batches, 0);
    double apart = correlation(key, random_u64(s.random, s.micro_batches, 1), 0);
    for (worst = 0, largest = 1; largest <= 1 << 16; largest *= 2)
        worst = fmax(worst, correlation(key, key, (uint32_t)largest));
    s.micro_batches = 1;
    apart = fmax(apart, correlation(key, random_u64(s.random, s.micro_batches, 0), 0));
    s.micro_batches = 0;
    s.random++; // of another tensor
    apart = fmax(apart, correlation(key, random_u64(s.random, s.micro_batches, 0), 0));
    check(worst < 4, "random numbers: elements 1, 2, 4 .. 65536 apart are uncorrelated (%.2f)",
          worst);
    check(apart < 4, "random numbers: ways, micro-batches, tensors are uncorrelated (%.2f)", apart);
    check_caught(correlation(key, key, 0) > 4, "the same key for two tensors");
}

// -------------------------------------------------------------------------------------------------
// Bytes, scales and statistics

enum { PLAIN, ZEROS, A_NAN, AN_INF, WIDE, TINY, DATA }; // what is in a tensor
static stored_t *data_make(size_t rows, size_t columns, int kind) {
    stored_t *x = normal_stored(rows * columns, 1, 10 + kind);
    for (size_t i = 0; i < rows * columns; i++) {
        const int e = kind == WIDE ? (int)(uniform(20, i / 5) * 240) - 120
                                   : (int)(i / 7 % 20) - (kind == TINY ? 100 : 10);
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
    wrong->scales += s.scale != logged;
    Differences here = {0, 0, 0, 0};
    quantize_differs(&here, &w, q, inv, &s);
    wrong->codes += here.codes;
    wrong->scales += here.scales;
    wrong->counts += here.counts;
    wrong->sums += kind <= ZEROS && here.sums;
    take_end(first);
}
static Differences quantize_cases(const char *words, int operand, int stochastic) {
    static const size_t shapes[][2] = {{37, 150}, {48, 530}, {130, 34},
                                       {96, 64},  {1, 2},    {1, 1100}};
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
// Split operands

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

// -------------------------------------------------------------------------------------------------
#include "below8_layers.h"

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
    if (!getenv("OMP_WAIT_POLICY")) { // more threads than cores must not spin at every barrier
        setenv("OMP_WAIT_POLICY", "passive", 1);
        execv("/proc/self/exe", argv);
    }
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
