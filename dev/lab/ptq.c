/*
Post-training quantization of a model that was trained in 16 bits: the last table of "FP8 Formats
for Deep Learning", at this size.

    make build/lab/ptq && build/lab/ptq MODEL -i CALIBRATION -j VALIDATION [-t T] [-m ROWS]

MODEL: a model file of this trainer or of llm.c. CALIBRATION: text or shards from which the scales
of activations are taken (64 rows); VALIDATION: what is scored, ROWS rows of T tokens. Everything
that is quantized is made of real bytes: INT8 with a scale per output channel of a weight and a
scale per tensor of an activation, the best of three ways to calibrate (largest value;
percentile 99.99; least squared error), sums of the linear layers in int32 (what attention reads is
rounded to INT8 and back to bf16); the calibration is chosen by the score itself; E4M3 and E5M2 with
a scale per tensor from the largest value. Prints loss and perplexity of: 16 bits, weights alone,
weights and activations of the linear layers, the same with the products of attention; then the
paper's study of one exponent bias for all tensors, with the residual stream quantized too.
*/
#undef PRECISION
#define PRECISION 2
#define TESTING
#define PROGRAM "ptq"
#include "../../train_gpt_fp8.c"
#include "lab.h"

typedef enum { NONE, INT8, E4M3, E5M2 } Kind;
typedef enum { BY_MAX, BY_PERCENTILE, BY_ERROR, CALIBRATIONS } Calibration;
static const char *const kind_name[] = {"16 bits", "INT8", "E4M3", "E5M2"},
                         *const calibration_name[] = {"max", "percentile", "least error"};
typedef struct {
    Kind weights, activations;
    int attention, residual; // the products of attention too; the residual stream too
    Calibration calibration; // of INT8's activations
    float fixed_scale;       // FP8: one scale for all tensors, 0: each its own
} Scheme;

// A place in the model where an activation is quantized: what was seen there during calibration.
enum {
    SITE_QKV,
    SITE_ATTPROJ,
    SITE_FC,
    SITE_FCPROJ,
    SITE_Q,
    SITE_K,
    SITE_V,
    SITE_P,
    SITE_RESIDUAL,
    SITE_RESIDUAL_2,
    SITES
};
#define SAMPLES 65536
typedef struct {
    float amax, *samples;
    size_t count, seen;
    float scale[CALIBRATIONS]; // INT8's, by way of calibration; found when it is first needed
} Site;
static struct {
    Gpt g;
    Scheme scheme;
    int calibrates;
    Site *sites; // [L][SITES]
    float *y32;  // [rows, 4C] raw sums
    int8_t *x8, *w8;
    uint8_t *bytes, *wbytes;
    float *channel; // [4C] scales of a weight's rows
    stored_t *wide; // a weight's INT8 values as stored numbers, exact
} lab;

static float format_max(Kind k) { return k == INT8 ? 127 : k == E4M3 ? 448 : 57344; }
static Dtype kind_dtype(Kind k) { return k == E4M3 ? DTYPE_E4M3 : DTYPE_E5M2; }
static int8_t int8_encode(float x) { // round to nearest even, saturating
    const float y = x < -127 ? -127 : x > 127 ? 127 : x;
    return (int8_t)((y + ROUNDER) - ROUNDER);
}

static void site_watch(Site *s, const stored_t *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const float a = fabsf(float_from_stored(x[i]));
        s->amax = MAX(s->amax, a);
        const uint64_t place = s->seen < SAMPLES ? s->seen
                                                 : random_u64(5, 0, s->seen) %
                                                       (s->seen + 1); // every element as likely
        if (place < SAMPLES) s->samples[place] = float_from_stored(x[i]);
        s->count = MIN(++s->seen, SAMPLES);
    }
}
static int compare_magnitudes(const void *a, const void *b) {
    const float x = fabsf(*(const float *)a), y = fabsf(*(const float *)b);
    return (x > y) - (x < y);
}
static float site_scale(Site *s, Kind kind) {
    if (lab.scheme.fixed_scale > 0) return lab.scheme.fixed_scale;
    const float widest = s->amax > 0 ? format_max(kind) / s->amax : 1;
    const Calibration way = lab.scheme.calibration;
    if (kind != INT8 || way == BY_MAX || s->count < 100) return widest;
    if (s->scale[way] > 0) return s->scale[way];
    qsort(s->samples, s->count, sizeof(float), compare_magnitudes);
    if (way == BY_PERCENTILE)
        return s->scale[way] =
                   127 / MAX(fabsf(s->samples[(size_t)(0.9999 * (s->count - 1))]), 1e-30f);
    double least = INFINITY;
    for (float share = 1; share > 0.05f; share *= 0.93f) { // of the largest value, what is not cut
        const float scale = widest / share;
        double error = 0;
        for (size_t i = 0; i < s->count; i++) {
            const double d = s->samples[i] - int8_encode(s->samples[i] * scale) / (double)scale;
            error += d * d;
        }
        if (error < least) least = error, s->scale[way] = scale;
    }
    return s->scale[way];
}

// x [n] rounded to the scheme's activations at a site, by way of its bytes, in place. INT8 and FP8
// values need not be numbers of the stored type, so this rounds twice where a tensor stays in
// memory: for the residual stream and for attention, whose operands are stored.
static void round_trip(int l, int site, stored_t *x, size_t n) {
    Site *s = &lab.sites[l * SITES + site];
    const Kind kind = lab.scheme.activations;
    if (lab.calibrates) return site_watch(s, x, n);
    if (kind == NONE) return;
    const float scale = site_scale(s, kind), inverse = 1 / scale;
    PARALLEL(static) for (size_t i = 0; i < n; i++) {
        const float f = float_from_stored(x[i]) * scale;
        const float back = kind == INT8
                               ? int8_encode(f)
                               : fp8_decode(fp8_encode(f, kind_dtype(kind)), kind_dtype(kind));
        x[i] = stored_from_float(back * inverse);
    }
}

// y [rows, out] = x w^T + bias by the scheme.
static void lab_linear(int l, int i, stored_t *y, const stored_t *x, size_t rows) {
    const Linear f = gpt_linear(&lab.g, l, i);
    const stored_t *w = f.operand[OPERAND_W].stored[OVER_COLUMNS];
    const size_t in = f.in, out = f.out;
    Site *site = &lab.sites[l * SITES + i];
    const Scheme *s = &lab.scheme;
    if (lab.calibrates) site_watch(site, x, rows * in);
    const Kind kw = lab.calibrates ? NONE : s->weights, kx = lab.calibrates ? NONE : s->activations;
    float inverse = 1;
    for (size_t o = 0; o < out; o++) lab.channel[o] = 1;
    Matrix a = matrix(x, STORED, in, 1), b = matrix(w, STORED, in, 1);
    if (kw == INT8) {
        PARALLEL(static) for (size_t o = 0; o < out; o++) {
            float amax = 0;
            for (size_t k = 0; k < in; k++)
                amax = MAX(amax, fabsf(float_from_stored(w[o * in + k])));
            const float scale = amax > 0 ? 127 / amax : 1;
            lab.channel[o] = 1 / scale;
            for (size_t k = 0; k < in; k++) {
                lab.w8[o * in + k] = int8_encode(float_from_stored(w[o * in + k]) * scale);
                // At most 8 bits: exact.
                lab.wide[o * in + k] = stored_from_float(lab.w8[o * in + k]);
            }
        }
        b.data = lab.wide;
    } else if (kw != NONE) {
        float amax = 0;
        for (size_t k = 0; k < out * in; k++) amax = MAX(amax, fabsf(float_from_stored(w[k])));
        const float scale = s->fixed_scale > 0 ? s->fixed_scale
                            : amax > 0         ? format_max(kw) / amax
                                               : 1;
        PARALLEL(static)
        for (size_t k = 0; k < out * in; k++)
            lab.wbytes[k] = fp8_encode(float_from_stored(w[k]) * scale, kind_dtype(kw));
        b = matrix(lab.wbytes, kind_dtype(kw), in, 1), inverse /= scale;
    }
    if (kx == INT8) {
        const float scale = site_scale(site, INT8);
        PARALLEL(static)
        for (size_t k = 0; k < rows * in; k++)
            lab.x8[k] = int8_encode(float_from_stored(x[k]) * scale);
        inverse /= scale;
    } else if (kx != NONE) {
        const float scale = site_scale(site, kx);
        PARALLEL(static)
        for (size_t k = 0; k < rows * in; k++)
            lab.bytes[k] = fp8_encode(float_from_stored(x[k]) * scale, kind_dtype(kx));
        a = matrix(lab.bytes, kind_dtype(kx), in, 1), inverse /= scale;
    }
    if (kx == INT8 && kw == INT8) { // sums in int32
        PARALLEL(static) for (size_t r = 0; r < rows; r++) for (size_t o = 0; o < out; o++) {
            const int8_t *p = lab.x8 + r * in, *q = lab.w8 + o * in;
            int32_t sum = 0;
            for (size_t k = 0; k < in; k++) sum += p[k] * q[k];
            lab.y32[r * out + o] = (float)sum;
        }
    } else matmul(output(lab.y32, DTYPE_FP32, out, 1, NULL, 0), a, b, rows, out, in);
    PARALLEL(static)
    for (size_t r = 0; r < rows; r++)
        for (size_t o = 0; o < out; o++)
            y[r * out + o] = stored_from_float(
                fmaf(lab.y32[r * out + o], inverse * lab.channel[o], f.bias ? f.bias[o] : 0));
}

// Attention with its four operands rounded by the scheme; in fp32 with plain loops, one row of
// probabilities at a time.
static void lab_attention(int l, stored_t *out, stored_t *qkv, int B) {
    const int T = lab.g.config.T, C = lab.g.config.C, NH = lab.g.config.NH, hs = C / NH;
    if (!lab.scheme.attention && !lab.calibrates)
        return attention_forward(out, qkv, B, T, 0, C, NH);
    stored_t *part = (stored_t *)memory_allocate((size_t)B * T * C * sizeof(stored_t));
    for (int which = 0; which < 3; which++) { // q, k and v, each a tensor of its own
        for (int r = 0; r < B * T; r++)
            memcpy(part + (size_t)r * C, qkv + (size_t)r * 3 * C + which * C, C * sizeof(stored_t));
        round_trip(l, SITE_Q + which, part, (size_t)B * T * C);
        for (int r = 0; r < B * T; r++)
            memcpy(qkv + (size_t)r * 3 * C + which * C, part + (size_t)r * C, C * sizeof(stored_t));
    }
    free(part);
    Site *probabilities = &lab.sites[l * SITES + SITE_P];
    probabilities->amax = 1; // known
    const Kind kind = lab.calibrates ? NONE : lab.scheme.activations;
    const float scale = kind == NONE                 ? 1
                        : lab.scheme.fixed_scale > 0 ? lab.scheme.fixed_scale
                                                     : format_max(kind);
    PARALLEL(dynamic) for (int task = 0; task < B * NH; task++) {
        const stored_t *base = qkv + (size_t)(task / NH) * T * 3 * C + task % NH * hs;
        float p[4096], o[1024], max;
        for (int i = 0; i < T; i++) {
            for (int j = 0; j <= i; j++) {
                float sum = 0;
                for (int c = 0; c < hs; c++)
                    sum += float_from_stored(base[(size_t)i * 3 * C + c]) *
                           float_from_stored(base[(size_t)j * 3 * C + C + c]);
                p[j] = sum / sqrtf((float)hs);
            }
            const float inverse = 1 / softmax_row(p, i + 1, i + 1, &max);
            memset(o, 0, sizeof(o));
            for (int j = 0; j <= i; j++) {
                const float q = p[j] * inverse;
                float w = kind == NONE   ? float_from_stored(stored_from_float(q))
                          : kind == INT8 ? int8_encode(q * scale) / scale
                                         : fp8_decode(fp8_encode(q * scale, kind_dtype(kind)),
                                                      kind_dtype(kind)) /
                                               scale;
                for (int c = 0; c < hs; c++)
                    o[c] += w * float_from_stored(base[(size_t)j * 3 * C + 2 * C + c]);
            }
            stored_t *to = out + ((size_t)(task / NH) * T + i) * C + task % NH * hs;
            for (int c = 0; c < hs; c++) to[c] = stored_from_float(o[c]);
        }
    }
}

// The layernorm before attention (0) or the MLP (1), of a residual stream that is rounded, where
// the scheme says so, after y is added to it.
static void lab_layernorm(int l, int second, const stored_t *y, stored_t *normed, size_t rows) {
    Gpt *g = &lab.g;
    const size_t C = g->config.C;
    gpt_layernorm_forward(g, 2 * l + second, y, normed, rows);
    if (!lab.scheme.residual && !lab.calibrates) return;
    round_trip(l, second ? SITE_RESIDUAL_2 : SITE_RESIDUAL,
               g->residual + (2 * l + second) * (size_t)g->B * g->config.T * C, rows * C);
    gpt_layernorm_forward(g, 2 * l + second, NULL, normed, rows);
}

static double loss_of(const ValidationSet *v) {
    double sum = 0;
    for (long row = 0; row < v->rows; row += lab.g.B) {
        const int B = MIN(lab.g.B, v->rows - row);
        sum += lab_forward(&lab.g, v->tokens + row * v->T, v->targets + row * v->T, B);
    }
    return sum / v->counted;
}

static double row_print(const char *what, Scheme s, const ValidationSet *v, double base) {
    char best[32] = "";
    double loss = INFINITY;
    for (int way = 0; way < (s.activations == INT8 ? CALIBRATIONS : 1); way++) {
        lab.scheme = s, lab.scheme.calibration = (Calibration)way;
        const double found = loss_of(v);
        if (found < loss)
            loss = found,
            snprintf(best, sizeof(best), "%s", s.activations == INT8 ? calibration_name[way] : "");
    }
    printf("%s\t%.4f\t%.3f\t%+.4f\t%s\n", what, loss, exp(loss), base > 0 ? loss - base : 0, best);
    fflush(stdout);
    return loss;
}

int main(int argc, char **argv) {
    const char *values[] = {NULL, NULL, "256", "80"};
    lab_options(argc, argv, "ijtm", "-i CALIBRATION -j VALIDATION [-t T] [-m ROWS]", values);
    EXPECT(values[0] && values[1], "expected -i CALIBRATION and -j VALIDATION");
    const long T = lab_number(values[2], "-t", 1, 4096),
               rows = lab_number(values[3], "-m", 1, 1 << 20);
    Gpt *g = &lab.g;
    const File model = lab_model(g, argv[1], T);
    EXPECT(g->config.C / g->config.NH <= 1024, "%s: heads of more than 1024 channels", argv[1]);
    g->B = 4;
    Dataset sets[2] = {lab_data(g, values[0], "calibration"), lab_data(g, values[1], "validation")};
    const ValidationSet calibrate = validation_open(&sets[0], T, 64),
                        score = validation_open(&sets[1], T, rows);
    machine_init(0);
    gpt_allocate(g);
    model_load(g, &model);
    const size_t R = (size_t)g->B * T, C = g->config.C;
    lab.sites = (Site *)memory_allocate(g->config.L * SITES * sizeof(Site));
    for (int i = 0; i < g->config.L * SITES; i++)
        lab.sites[i].samples = (float *)memory_allocate(SAMPLES * sizeof(float));
    lab.y32 = (float *)memory_allocate(R * 4 * C * 4),
    lab.x8 = (int8_t *)memory_allocate(R * 4 * C),
    lab.bytes = (uint8_t *)memory_allocate(R * 4 * C);
    lab.w8 = (int8_t *)memory_allocate(4 * C * C),
    lab.wbytes = (uint8_t *)memory_allocate(4 * C * C);
    lab.channel = (float *)memory_allocate(4 * C * 4),
    lab.wide = (stored_t *)memory_allocate(4 * C * C * sizeof(stored_t));
    lab.calibrates = 1;
    loss_of(&calibrate);
    lab.calibrates = 0;

    char name[96];
    printf("what is quantized\tloss\tperplexity\tover 16 bits\tbest calibration\n");
    const double base =
        row_print("nothing: 16 bits", (Scheme){NONE, NONE, 0, 0, BY_MAX, 0}, &score, 0);
    for (Kind k = INT8; k <= E5M2; k++)
        snprintf(name, sizeof(name), "weights: %s", kind_name[k]),
            row_print(name, (Scheme){k, NONE, 0, 0, BY_MAX, 0}, &score, base);
    for (int attention = 0; attention < 2; attention++)
        for (Kind k = INT8; k <= E5M2; k++) {
            snprintf(name, sizeof(name), "linear layers%s: %s", attention ? " and attention" : "",
                     kind_name[k]);
            row_print(name, (Scheme){k, k, attention, 0, BY_MAX, 0}, &score, base);
        }
    printf("\nE4M3 with one exponent bias for all tensors (7 is the format's "
           "own)\tloss\tperplexity\tover 16 bits\n");
    for (int residual = 0; residual < 2; residual++) {
        for (int bias = 5; bias <= 15; bias += 2) {
            snprintf(name, sizeof(name), "linear layers%s: bias %d",
                     residual ? " and residual stream" : "", bias);
            row_print(name, (Scheme){E4M3, E4M3, 0, residual, BY_MAX, ldexpf(1, bias - 7)}, &score,
                      base);
        }
        snprintf(name, sizeof(name), "linear layers%s: a scale per tensor",
                 residual ? " and residual stream" : "");
        row_print(name, (Scheme){E4M3, E4M3, 0, residual, BY_MAX, 0}, &score, base);
    }
    return 0;
}
