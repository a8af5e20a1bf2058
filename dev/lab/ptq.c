/*
Post-training quantization of a model that was trained in 16 bits, as in sections 4.2 and 4.3 of
"FP8 Formats for Deep Learning" (Micikevicius et al. 2022; Table 5); and outliers, which are why
INT8 fails there.

    make build/lab/ptq
    build/lab/ptq MODEL -i CALIBRATION -j VALIDATION [-t T] [-m ROWS]
                  [-f FACTOR|sweep] [-c CHANNELS]

MODEL is a model file of this trainer or of llm.c. A row has T tokens [the model's context]. Of 64
rows of CALIBRATION, text or shards, the first half gives the ranges of activations and the second
half chooses how to calibrate. ROWS rows of VALIDATION are scored [80]; they choose nothing.

INT8, E4M3 and E5M2 are treated alike. (E5M2 is not in Table 5.) A weight has a scale for each
output channel, from the largest value. An activation has one scale, fixed by calibration: from the
largest value, from a percentile of the magnitudes (99.99 or 99.999), or by the least squared error.
All tensors of a line use the same calibration method, the one with the lowest loss on the second
half. "E4M3 with bias b" has one scale, 2^(b - 7), for all weights and activations; bias 7 is E4M3
unscaled.

Everything that is quantized is made of bytes. The trainer's product multiplies FP8 bytes; INT8
products of linear layers have int32 sums. Attention's operands are q, k, v and the normalized
probabilities. The residual stream is quantized before each layernorm but the last, and written back
as bf16, which rounds it again. Embeddings, layernorm and the head stay in 16 bits.

-f FACTOR makes outliers first: in CHANNELS [1] channels of both layernorms of every layer, weight
and bias are multiplied by FACTOR, and the columns of the next weight (qkv, fc) that read them are
divided by it. FACTOR is a power of two, so not a bit of the model's output changes; the program
checks the loss. The divided columns become small beside the rest of their row, which sets the
scale: INT8 rounds them to zero below 1/254 of the row's largest weight; E4M3 keeps them normal down
to 2^-14.8 of it. -f sweep takes ten factors in turn, and quantizes weights and activations apart
and together, so that one sees which of them an outlier breaks.

The size of outliers is the largest magnitude in a tensor (amax), over its root mean square (rms) or
over its median magnitude. The second grows with FACTOR. The first does not, once the outliers make
up most of the rms. INT8 rounds to zero what is below 1/254 of the range: half of a tensor, where
amax/median is 254. Both are printed for any model, so that a trained one can be compared. (Most
outputs of GELU, the input of fcproj, are close to zero, and so are most probabilities; there the
median says little.)
*/
#undef PRECISION
#define PRECISION 2
#define TESTING
#define PROGRAM "ptq"
#include "../../train_gpt_fp8.c"
#include "lab.h"

#define CALIBRATION_ROWS 64
#define BATCH            4     // rows of a forward pass
#define MAGNITUDES       32768 // bf16 numbers without their sign

typedef enum { NONE, INT8, E4M3, E5M2, KINDS } Kind;
static const float kind_max[KINDS] = {0, 127, 448, 57344};
static const struct {
    const char *name;
    Kind kind;
    float fixed_scale; // of all tensors; 0: each has its own
} formats[] = {
    // clang-format off
    {"INT8", INT8, 0}, {"E4M3", E4M3, 0}, {"E5M2", E5M2, 0},
    {"E4M3 with bias 5", E4M3, 0.25f}, {"E4M3 with bias 7", E4M3, 1},
    {"E4M3 with bias 9", E4M3, 4}, {"E4M3 with bias 11", E4M3, 16},
    {"E4M3 with bias 13", E4M3, 64}, {"E4M3 with bias 15", E4M3, 256},
    // clang-format on
};
enum { BY_MAX, BY_9999, BY_99999, BY_ERROR, WAYS };
static const char *const way_name[WAYS] = {"max", "99.99%", "99.999%", "least error"};
// What is quantized; each part adds to the one before it.
enum { WEIGHTS, ACTIVATIONS, ATTENTION, RESIDUAL, PARTS };
static const char *const part_name[PARTS] = {"weights", "+ activations", "+ attention",
                                             "+ residual stream"};
typedef struct {
    Kind weights, activations;
    int part;
    float fixed_scale;
    int way; // how activations are calibrated
} Scheme;

// A place in a layer where an activation is quantized, and what calibration saw there. The first
// places are the inputs of the linear layers, LIN_QKV to LIN_FCPROJ.
enum { PLACE_Q = NLIN, PLACE_K, PLACE_V, PLACE_P, PLACE_RESIDUAL, PLACE_RESIDUAL_2, PLACES };
// clang-format off
static const char *const place_name[PLACES] = {
    "input of qkv", "input of attproj", "input of fc", "input of fcproj", "q", "k", "v",
    "probabilities", "residual stream before attention", "residual stream before the MLP"};
// clang-format on
typedef struct {
    size_t total, count[MAGNITUDES]; // elements, and how many of them have each magnitude
    float scale[KINDS][WAYS];
} Place;
// Memory for an operand: its bytes; bf16 numbers, before they are quantized or, of INT8, after.
typedef struct {
    uint8_t *bytes;
    stored_t *wide;
} Room;
static struct {
    Gpt g;
    Scheme scheme;
    int calibrates; // the forward pass fills the places
    Place *places;  // [L][PLACES]
    ValidationSet calibration, validation;
    Room room[4];
    float *sums;    // [rows, 4C] of a linear layer, or [T, T] scores
    float *channel; // [4C] scale_inv of a weight's output channels
} lab;

// ---- bytes

static Dtype kind_dtype(Kind kind) { return kind == E4M3 ? DTYPE_E4M3 : DTYPE_E5M2; }
// The scale that maps `range` to the largest value of a format.
static float kind_scale(Kind kind, float range) {
    return range >= 0x1p-100f ? kind_max[kind] / range : 1;
}
INLINE int8_t int8_encode(float x) { // to nearest even, saturating
    const float y = x < -127 ? -127 : x > 127 ? 127 : x;
    return (int8_t)((y + ROUNDER) - ROUNDER);
}
static float round_to(Kind kind, float x) {
    if (kind == INT8) return int8_encode(x);
    return fp8_decode(fp8_encode(x, kind_dtype(kind)), kind_dtype(kind));
}
static void bytes_make(uint8_t *bytes, const stored_t *x, size_t n, Kind kind, float scale) {
    if (kind == INT8) {
        PARALLEL(static)
        for (size_t i = 0; i < n; i++)
            bytes[i] = (uint8_t)int8_encode(float_from_stored(x[i]) * scale);
        return;
    }
    Fp8Scale s = {.recipe = {.format = kind_dtype(kind), .rule = SCALING_CONSTANT}, .scale = scale};
    quantize(bytes, x, n, &s, RECORD_NONE);
}
// n bytes as a matrix that the trainer's product reads. It does not know INT8: it gets these values
// as bf16 numbers, which hold them exactly.
static Matrix bytes_matrix(Room room, size_t n, Kind kind, size_t row_stride) {
    if (kind != INT8) return matrix(room.bytes, kind_dtype(kind), row_stride, 1);
    PARALLEL(static)
    for (size_t i = 0; i < n; i++) room.wide[i] = stored_from_float((int8_t)room.bytes[i]);
    return matrix(room.wide, STORED, row_stride, 1);
}

// ---- calibration

static float magnitude(size_t code) { return float_from_stored((stored_t)code); }
static void place_watch(Place *p, const stored_t *x, size_t n) {
    p->total += n;
    for (size_t i = 0; i < n; i++) p->count[x[i] & 0x7fff]++;
}
// The magnitude that a share of the elements does not exceed; share 1: the largest.
static float place_range(const Place *p, double share) {
    const size_t cut = (size_t)((1 - share) * p->total);
    size_t above = 0;
    for (size_t code = MAGNITUDES - 1; code > 0; code--) {
        above += p->count[code];
        if (above > cut) return magnitude(code);
    }
    return 0;
}
// The scale with the least squared error. The largest value may saturate.
static float place_least_error(const Place *p, Kind kind) {
    const float amax = place_range(p, 1);
    float best = 1;
    double least = INFINITY;
    for (float range = amax; range > amax / 256; range *= 0.93f) {
        const float scale = kind_scale(kind, range);
        double error = 0;
        for (size_t code = 1; code < MAGNITUDES; code++) {
            if (!p->count[code]) continue;
            const double change = magnitude(code) - round_to(kind, magnitude(code) * scale) / scale;
            error += p->count[code] * change * change;
        }
        if (error >= least) continue;
        least = error;
        best = scale;
    }
    return best;
}
// Takes the largest outliers at a place of all layers into account.
static void outliers_of(int place, double *over_rms, double *over_median) {
    for (int l = 0; l < lab.g.config.L; l++) {
        const Place *p = &lab.places[l * PLACES + place];
        const double amax = place_range(p, 1);
        double squares = 0;
        for (size_t code = 0; code < MAGNITUDES; code++)
            if (p->count[code]) squares += p->count[code] * pow(magnitude(code), 2);
        if (squares == 0) continue;
        *over_rms = MAX(*over_rms, amax / sqrt(squares / p->total));
        *over_median = MAX(*over_median, amax / place_range(p, 0.5));
    }
}
// The mean loss of rows first .. end.
static double loss_of(const ValidationSet *v, long first, long end) {
    double sum = 0;
    size_t counted = 0;
    for (long row = first; row < end; row += BATCH) {
        const int B = MIN(BATCH, end - row), *targets = v->targets + row * v->T;
        sum += lab_forward(&lab.g, v->tokens + row * v->T, targets, B);
        for (int i = 0; i < B * v->T; i++) counted += targets[i] >= 0;
    }
    return sum / counted;
}
static void calibrate(void) {
    const int count = lab.g.config.L * PLACES;
    for (int i = 0; i < count; i++) {
        lab.places[i].total = 0;
        memset(lab.places[i].count, 0, sizeof(lab.places[i].count));
    }
    lab.scheme = (Scheme){.part = RESIDUAL};
    lab.calibrates = 1;
    loss_of(&lab.calibration, 0, lab.calibration.rows / 2);
    lab.calibrates = 0;
    for (int i = 0; i < count; i++)
        for (Kind kind = INT8; kind < KINDS; kind++) {
            Place *p = &lab.places[i];
            p->scale[kind][BY_MAX] = kind_scale(kind, place_range(p, 1));
            p->scale[kind][BY_9999] = kind_scale(kind, place_range(p, 0.9999));
            p->scale[kind][BY_99999] = kind_scale(kind, place_range(p, 0.99999));
            p->scale[kind][BY_ERROR] = place_least_error(p, kind);
        }
}

// ---- the parts of the forward pass

// x [rows, width] as a product reads it at a place of layer l: quantized, or as it is.
static Matrix activation(int l, int place, Room room, const stored_t *x, size_t rows,
                         size_t width) {
    Place *p = &lab.places[l * PLACES + place];
    const Scheme *s = &lab.scheme;
    if (lab.calibrates) place_watch(p, x, rows * width);
    if (s->activations == NONE) return matrix(x, STORED, width, 1);
    const float scale = s->fixed_scale > 0 ? s->fixed_scale : p->scale[s->activations][s->way];
    bytes_make(room.bytes, x, rows * width, s->activations, scale);
    Matrix m = bytes_matrix(room, rows * width, s->activations, width);
    m.scale_inv = 1 / scale;
    return m;
}
// The weight of a linear layer likewise, each output channel with its own scale; lab.channel gets
// their inverses.
static Matrix weight(const Linear *f, Room room) {
    const stored_t *w = f->operand[OPERAND_W].stored[OVER_COLUMNS];
    const Kind kind = lab.scheme.weights;
    for (size_t o = 0; o < f->out; o++) {
        lab.channel[o] = 1;
        if (kind == NONE) continue;
        const stored_t *row = w + o * f->in;
        float amax = 0, scale = lab.scheme.fixed_scale;
        for (size_t k = 0; k < f->in; k++) amax = MAX(amax, fabsf(float_from_stored(row[k])));
        if (scale == 0) scale = kind_scale(kind, amax);
        bytes_make(room.bytes + o * f->in, row, f->in, kind, scale);
        lab.channel[o] = 1 / scale;
    }
    if (kind == NONE) return matrix(w, STORED, f->in, 1);
    return bytes_matrix(room, f->out * f->in, kind, f->in);
}
// sums [rows, out] = x w^T of INT8, in int32.
static void int8_product(float *sums, const int8_t *x, const int8_t *w, float scale_inv,
                         size_t rows, size_t out, size_t in) {
    PARALLEL(static)
    for (size_t r = 0; r < rows; r++)
        for (size_t o = 0; o < out; o++) {
            const int8_t *p = x + r * in, *q = w + o * in;
            int32_t sum = 0;
            for (size_t k = 0; k < in; k++) sum += p[k] * q[k];
            sums[r * out + o] = (float)sum * scale_inv;
        }
}
static void lab_linear(int l, int i, stored_t *y, const stored_t *x, size_t rows) {
    const Linear f = gpt_linear(&lab.g, l, i);
    const Matrix a = activation(l, i, lab.room[0], x, rows, f.in), w = weight(&f, lab.room[1]);
    if (lab.scheme.weights == INT8 && lab.scheme.activations == INT8)
        int8_product(lab.sums, (int8_t *)lab.room[0].bytes, (int8_t *)lab.room[1].bytes,
                     a.scale_inv, rows, f.out, f.in);
    else matmul(output(lab.sums, DTYPE_FP32, f.out, 1, NULL, 0), a, w, rows, f.out, f.in);
    PARALLEL(static)
    for (size_t r = 0; r < rows; r++)
        for (size_t o = 0; o < f.out; o++)
            y[r * f.out + o] =
                stored_from_float(fmaf(lab.sums[r * f.out + o], lab.channel[o], f.bias[o]));
}

// A matrix that begins `elements` later in memory.
static Matrix matrix_from(Matrix m, size_t elements) {
    m.data = (const char *)m.data + elements * dtype_size[m.dtype];
    return m;
}
// One head at a time: scores = q k^T / sqrt(hs), then p v. INT8's sums are exact in fp32 as well:
// they stay below 2^24, because a row of p sums to one and hs is at most 1024.
static void lab_attention(int l, stored_t *out, stored_t *qkv, int B) {
    const size_t T = lab.g.config.T, C = lab.g.config.C, hs = C / lab.g.config.NH;
    if (lab.scheme.part < ATTENTION) {
        attention_forward(out, qkv, B, T, 0, C, lab.g.config.NH);
        return;
    }
    stored_t *p = lab.room[3].wide; // [T, T]
    Matrix operands[3];
    for (size_t i = 0; i < 3; i++) { // q, k and v, each a tensor of its own
        stored_t *part = lab.room[i].wide;
        for (size_t r = 0; r < B * T; r++)
            memcpy(part + r * C, qkv + (r * 3 + i) * C, C * sizeof(stored_t));
        operands[i] = activation(l, PLACE_Q + i, lab.room[i], part, B * T, C);
    }
    operands[2].row_stride = 1; // v is read over its rows
    operands[2].k_stride = C;
    for (size_t task = 0; task < (size_t)B * lab.g.config.NH; task++) {
        const size_t at = task / lab.g.config.NH * T * C + task % lab.g.config.NH * hs;
        matmul(output(lab.sums, DTYPE_FP32, T, 1 / sqrtf((float)hs), NULL, 0),
               matrix_from(operands[0], at), matrix_from(operands[1], at), T, T, hs);
        PARALLEL(static) for (size_t i = 0; i < T; i++) {
            float *row = lab.sums + i * T, max;
            const float inverse = 1 / softmax_row(row, i + 1, T, &max);
            for (size_t j = 0; j < T; j++) p[i * T + j] = stored_from_float(row[j] * inverse);
        }
        matmul(output(out + at, STORED, C, 1, NULL, 0),
               activation(l, PLACE_P, lab.room[3], p, T, T), matrix_from(operands[2], at), T, hs,
               T);
    }
}

static void lab_layernorm(int l, int second, const stored_t *y, stored_t *normed, size_t rows) {
    Gpt *g = &lab.g;
    const size_t C = g->config.C;
    stored_t *residual = g->residual + (2 * l + second) * (size_t)g->B * g->config.T * C;
    gpt_layernorm_forward(g, 2 * l + second, y, normed, rows); // adds y
    if (lab.scheme.part < RESIDUAL) return;
    const Matrix m =
        activation(l, second ? PLACE_RESIDUAL_2 : PLACE_RESIDUAL, lab.room[0], residual, rows, C);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < C; c++)
            residual[r * C + c] = stored_from_float(matrix_element(&m, r, c) * m.scale_inv);
    gpt_layernorm_forward(g, 2 * l + second, NULL, normed, rows);
}

// ---- outliers

// Multiplies channels, spread evenly, of all layernorms but the last, and divides the columns that
// read them.
static void outliers_make(float factor, int channels) {
    Gpt *g = &lab.g;
    const size_t C = g->config.C;
    for (int norm = 0; norm < 2 * g->config.L; norm++) {
        const int id = layernorm_param(g, norm), l = norm / 2;
        const int next = linear_param[norm % 2 ? LIN_FC : LIN_QKV];
        float *gain = gpt_param(g, g->master, id, l), *bias = gpt_param(g, g->master, id + 1, l);
        float *w = gpt_param(g, g->master, next, l);
        for (int i = 0; i < channels; i++) {
            const size_t c = i * C / channels;
            gain[c] *= factor;
            bias[c] *= factor;
            for (size_t o = 0; o < g->params[next].rows; o++) w[o * C + c] /= factor;
        }
    }
    g->weights_ready = 0;
}

// ---- tables

// The loss on the validation text. The way to calibrate is chosen on the calibration text.
static double score(Scheme s, const char **way) {
    const ValidationSet *c = &lab.calibration, *v = &lab.validation;
    lab.scheme = s;
    *way = "-";
    if (s.activations == NONE || s.fixed_scale > 0) return loss_of(v, 0, v->rows);
    double least = INFINITY;
    for (lab.scheme.way = 0; lab.scheme.way < WAYS; lab.scheme.way++) {
        const double loss = loss_of(c, c->rows / 2, c->rows);
        if (loss >= least) continue;
        least = loss;
        s.way = lab.scheme.way;
    }
    lab.scheme.way = s.way;
    *way = way_name[s.way];
    return loss_of(v, 0, v->rows);
}
static void tables_print(double base) {
    printf("tensor\tamax/rms\tamax/median\n");
    for (int i = 0; i < PLACES; i++) {
        double over_rms = 0, over_median = 0;
        outliers_of(i, &over_rms, &over_median);
        printf("%s\t%.1f\t%.3g\n", place_name[i], over_rms, over_median);
    }
    printf("\nquantized\tformat\tloss\tperplexity\tover 16 bits\tcalibrated by\n");
    printf("nothing\tbf16\t%.6f\t%.3f\t%+.5f\t-\n", base, exp(base), 0.0);
    for (int part = 0; part < PARTS; part++)
        for (int i = 0; i < COUNT(formats); i++) {
            const Kind kind = formats[i].kind;
            const char *way;
            const Scheme s = {kind, part ? kind : NONE, part, formats[i].fixed_scale, BY_MAX};
            const double loss = score(s, &way);
            printf("%s\t%s\t%.6f\t%.3f\t%+.5f\t%s\n", part_name[part], formats[i].name, loss,
                   exp(loss), loss - base, way);
            fflush(stdout);
        }
}

// Multiplies the outliers by a factor, which may not change the model, and calibrates again.
static void outliers_apply(float factor, int channels, double base) {
    const char *way;
    outliers_make(factor, channels);
    const double loss = score((Scheme){0}, &way);
    EXPECT(loss == base, "option -f: expected the 16-bit loss %.9f with outliers too, found %.9f",
           base, loss);
    calibrate();
}
static void sweep_print(int channels, double base) {
    static const float factors[] = {1, 4, 8, 16, 32, 64, 128, 256, 1024, 4096};
    printf("Loss over 16 bits (%.6f). The outliers are in the layernorms' outputs.\n", base);
    printf("factor\tamax/rms\tamax/median\tformat\tweights\tactivations\tboth\tcalibrated by\n");
    for (int i = 0; i < COUNT(factors); i++) {
        double over_rms = 0, over_median = 0;
        if (i > 0) outliers_apply(factors[i] / factors[i - 1], channels, base);
        outliers_of(LIN_QKV, &over_rms, &over_median);
        outliers_of(LIN_FC, &over_rms, &over_median);
        for (int k = 0; k < 3; k++) {
            const Kind kind = formats[k].kind;
            const char *way;
            const double w = score((Scheme){kind, NONE, WEIGHTS, 0, 0}, &way);
            const double x = score((Scheme){NONE, kind, ACTIVATIONS, 0, 0}, &way);
            const double both = score((Scheme){kind, kind, ACTIVATIONS, 0, 0}, &way);
            printf("%g\t%.1f\t%.1f\t%s\t%+.5f\t%+.5f\t%+.5f\t%s\n", factors[i], over_rms,
                   over_median, formats[k].name, w - base, x - base, both - base, way);
            fflush(stdout);
        }
    }
}

// ---- the program

static void lab_allocate(void) {
    const size_t T = lab.g.config.T, C = lab.g.config.C, R = BATCH * T;
    const size_t room = MAX(MAX(R, C) * 4 * C, T * T);
    lab.places = (Place *)memory_allocate(lab.g.config.L * PLACES * sizeof(Place));
    for (int i = 0; i < COUNT(lab.room); i++) {
        lab.room[i].bytes = (uint8_t *)memory_allocate(room);
        lab.room[i].wide = (stored_t *)memory_allocate(room * sizeof(stored_t));
    }
    lab.sums = (float *)memory_allocate(room * sizeof(float));
    lab.channel = (float *)memory_allocate(4 * C * sizeof(float));
}

int main(int argc, char **argv) {
    const char *values[] = {NULL, NULL, NULL, "80", "1", "1"};
    lab_options(argc, argv, "ijtmfc",
                "-i CALIBRATION -j VALIDATION [-t T] [-m ROWS] [-f FACTOR|sweep] [-c CHANNELS]",
                values);
    EXPECT(values[0] && values[1], "expected -i CALIBRATION and -j VALIDATION");
    Gpt *g = &lab.g;
    const int sweep = !strcmp(values[4], "sweep");
    const long factor = sweep ? 1 : lab_number(values[4], "-f", 1, 4096);
    EXPECT((factor & (factor - 1)) == 0, "option -f: expected a power of two, found %ld", factor);
    const File model =
        lab_model(g, argv[1], values[2] ? lab_number(values[2], "-t", 1, 1 << 20) : 0);
    const long rows = lab_number(values[3], "-m", 1, 1 << 20);
    const int T = g->config.T, channels = lab_number(values[5], "-c", 1, g->config.C);
    EXPECT(g->config.C / g->config.NH <= 1024, "%s: heads of more than 1024 channels", argv[1]);
    Dataset sets[2] = {lab_data(g, values[0], "calibration"), lab_data(g, values[1], "validation")};
    lab.calibration = validation_open(&sets[0], T, CALIBRATION_ROWS);
    EXPECT(lab.calibration.rows > 1, "%s: expected two rows of %d tokens or more", values[0], T);
    lab.validation = validation_open(&sets[1], T, rows);
    g->B = BATCH;
    machine_init(0);
    gpt_allocate(g);
    model_load(g, &model);
    lab_allocate();
    const char *way;
    const double base = score((Scheme){0}, &way);
    EXPECT(isfinite(base), "%s: expected a finite loss, found %g", argv[1], base);
    outliers_apply(factor, channels, base);
    if (sweep) sweep_print(channels, base);
    else tables_print(base);
    return 0;
}
