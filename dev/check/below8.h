// What test_below8.c compares the trainer with: the definitions of formats, stochastic rounding and
// scales once more, in doubles, an element at a time; and what its checks share. Included after
// definitions.h.

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
    const float max = (float)values[FORMAT(r->format)][last_code[FORMAT(r->format)]];
    return r->rounding == ROUNDING_TWO_LEVEL && amax >= 0x1p-126f && amax <= 0x1.fffffep127f
               ? fminf(448 * max / amax, 0x1p100f)
               : 1;
}
static float wanted_block(float amax, float tensor, const ScalingRecipe *r, float *inv) {
    const float max = (float)values[FORMAT(r->format)][last_code[FORMAT(r->format)]];
    const float scale = wanted_scale(amax, 1, r), fraction = amax / max * tensor;
    *inv = amax != amax && r->format == DTYPE_E2M1 ? NAN : 1 / scale;
    if (r->rounding != ROUNDING_TWO_LEVEL) return tensor / *inv; // of a NaN: no number at all
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
