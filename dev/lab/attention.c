/*
Where FP8 hurts attention: how far rounding what makes queries and keys moves each head's
probabilities, in a trained model.

    make build/lab/attention && build/lab/attention MODEL -j TEXT [-t T] [-m ROWS]

MODEL: a model file of this trainer or of llm.c. TEXT: text or shards, of which ROWS rows [16] of T
tokens [256] are read (where a sidecar tells its stories: whole ones; what pads them does not
count). The forward pass is that of the BF16 build, and every layer gets the input that it has
there, so the figures are those of its own qkv product. FP8 is E4M3, a scale a tensor from its amax,
unless a column names another recipe.

A line a head, means over all queries that see two keys or more: the largest probability; the spread
of the logits, which is the root mean square of their distance to the row's mean (softmax sees
nothing else); the same of the error that FP8 makes in them; and the Kullback-Leibler divergence sum
p ln(p / p8), in nats, of the probabilities p8 that come of: x and w in FP8; x alone; w alone; both,
but for the queries alone; for the keys alone; x in E5M2 (w in BF16); then x and w in FP8, x, w or
both as two E4M3 numbers; and x and w by the recipes mx, nvfp4 and mxfp4. Of the first layer, whose
keys are the tokens' part, the positions' part and a constant that softmax does not see: the spread
that either part alone gives to the logits. Above the table: root mean squares of the embeddings of
the tokens that were read and of the positions.

Below the table, what it costs: the loss in nats a token, and by how much it grows with the operands
of every qkv product in FP8; for what they put out as queries alone, as keys alone, as values alone;
and as keys of one layer alone. Then what it is in each of the ways above with all that the
products put out, by how much it grows, and by how much with the keys alone.
*/
#undef PRECISION
#define PRECISION 2
#define TESTING
#define PROGRAM "attention"
#include "../../train_gpt_fp8.c"
#include "lab.h"

enum {
    // Ways from PARTS on are of the first layer: logits of a part of x.
    T_MAX = 4096,
    WAYS = 14,
    PARTS = 12,
    X_IN_FP8 = 1 << OPERAND_X,
    W_IN_FP8 = 1 << OPERAND_W,
    BOTH_IN_FP8 = X_IN_FP8 | W_IN_FP8
};
static const struct {
    const char *name;
    // In FP8 are: operands of the product; which of its outputs are taken.
    int fp8, queries, keys;
    const char *recipe;
} ways[WAYS] = {{"x, w E4M3", BOTH_IN_FP8, 1, 1, "current"},
                {"x alone", X_IN_FP8, 1, 1, "current"},
                {"w alone", W_IN_FP8, 1, 1, "current"},
                {"queries", BOTH_IN_FP8, 1, 0, "current"},
                {"keys", BOTH_IN_FP8, 0, 1, "current"},
                {"x E5M2", X_IN_FP8, 1, 1, "current+x:e5m2"},
                {"x split", BOTH_IN_FP8, 1, 1, "current+x:split"},
                {"w split", BOTH_IN_FP8, 1, 1, "current+w:split"},
                {"split", BOTH_IN_FP8, 1, 1, "current+split"},
                {"mx", BOTH_IN_FP8, 1, 1, "mx"},
                {"nvfp4", BOTH_IN_FP8, 1, 1, "nvfp4"},
                {"mxfp4", BOTH_IN_FP8, 1, 1, "mxfp4"},
                {"of tokens", 0, 0, 1, "current"},
                {"of positions", 0, 0, 1, "current"}};
typedef struct {
    double largest, spread, error, way[WAYS];
} Sums; // over the rows of a head
static struct {
    Gpt g;
    ValidationSet v;
    int *length; // [B] tokens of a row that count
    // x [R, C] and w [3C, C] in FP8: room for two numbers an element, and for scales of blocks
    uint8_t *bytes[2];
    float *inv[2], *sums_of_products; // [R, 3C]
    stored_t *qkv8, *part;            // [R, 3C], [R, C]
    Sums *sums;                       // [B, NH]
    double queries;                   // that see two keys or more
    // What lab_forward() takes of FP8 operands: QUERIES, KEYS, VALUES; of which layer, -1: of all;
    // in which of the ways.
    int outputs, layer, way;
} lab;

// What comes of the tokens' embeddings or of the positions' in the first layer's x: (embedding -
// its mean) rstd weight, [R, C].
static void part_of(stored_t *part, int of_positions) {
    const Gpt *g = &lab.g;
    const size_t C = g->config.C, T = g->config.T, R = g->B * T;
    const float *table = gpt_param(g, g->master, of_positions ? WPE : WTE, 0),
                *weight = gpt_param(g, g->master, LN1W, 0);
    for (size_t r = 0; r < R; r++) {
        const float *e = table + (of_positions ? r % T : (size_t)lab.v.tokens[r]) * C;
        double mean = 0;
        for (size_t c = 0; c < C; c++) mean += e[c] / C;
        for (size_t c = 0; c < C; c++)
            part[r * C + c] = stored_from_float((e[c] - mean) * g->ln_rstd[r] * weight[c]);
    }
}

// Logits of query i against keys 0 .. i, less their mean; q, k: [T, 3C], of which a head's hs
// channels.
static void logits_row(float *s, const stored_t *q, const stored_t *k, int i, int hs,
                       size_t stride) {
    double mean = 0;
    for (int j = 0; j <= i; j++) {
        float sum = 0;
        for (int c = 0; c < hs; c++)
            sum += float_from_stored(q[i * stride + c]) * float_from_stored(k[j * stride + c]);
        s[j] = sum / sqrtf((float)hs), mean += (double)s[j] / (i + 1);
    }
    for (int j = 0; j <= i; j++) s[j] -= mean;
}

// One way, one head of one sequence of n tokens. qkv, qkv8: [n, 3C] from the head's first channel
// on.
static void head_compare(Sums *sums, int way, const stored_t *qkv, const stored_t *qkv8, int n,
                         int C, int hs) {
    const stored_t *q = ways[way].queries ? qkv8 : qkv, *k = (ways[way].keys ? qkv8 : qkv) + C;
    float s[T_MAX], s8[T_MAX], apart[T_MAX], top, top8;
    for (int i = 1; i < n; i++) { // of a single key nothing can be wrong
        double spread = 0, spread8 = 0, error = 0, divergence = 0;
        logits_row(s, qkv, qkv + C, i, hs, 3 * (size_t)C),
            logits_row(s8, q, k, i, hs, 3 * (size_t)C);
        for (int j = 0; j <= i; j++) {
            apart[j] = s[j] - s8[j];
            spread += s[j] * (double)s[j], spread8 += s8[j] * (double)s8[j],
                error += apart[j] * (double)apart[j];
        }
        if (way >= PARTS) {
            sums->way[way] += spread8 / (i + 1);
            continue;
        }
        // sum of p (ln p - ln p8): the mean, by p, of the logits' difference, and the difference of
        // the sums of exponentials
        const double sum = softmax_row(s, i + 1, i + 1, &top),
                     sum8 = softmax_row(s8, i + 1, i + 1, &top8);
        for (int j = 0; j <= i; j++) divergence += s[j] / sum * apart[j];
        sums->way[way] += divergence + top8 - top + log(sum8 / sum);
        if (way == 0)
            sums->largest += 1 / sum, sums->spread += spread / (i + 1),
                sums->error += error / (i + 1);
    }
}

// qkv8 of a layer's x by one of the ways.
static void product_in_fp8(int l, int way, const stored_t *x) {
    const Gpt *g = &lab.g;
    const size_t C = g->config.C, R = (size_t)g->B * g->config.T, wide = 3 * C;
    Linear f = gpt_linear(g, l, LIN_QKV); // in BF16
    operand_is(&f, OPERAND_X, x);
    Linear f8 = f;
    Fp8Scale scales[2] = {{.scale = 1}, {.scale = 1}};
    ScalingRecipe recipes[NOPERAND];
    recipe_parse(recipes, ways[way].recipe, ways[way].name);
    f8.fp8 = f8.split = 1 << FPROP;
    f8.sums = lab.sums_of_products;
    for (int which = OPERAND_X; which <= OPERAND_W; which++) {
        Operand *o = &f8.operand[which];
        scales[which].recipe = recipes[which];
        o->scale = &scales[which];
        o->bytes[OVER_COLUMNS] = lab.bytes[which];
        o->inv[OVER_COLUMNS] = lab.inv[which];
        operand_quantize(&f8, which, o->stored[OVER_COLUMNS], which == OPERAND_X ? R : wide,
                         OVER_COLUMNS, RECORD_NONE);
    }
    const Output out = output(lab.qkv8, STORED, wide, 1, f.bias, 0);
    if (ways[way].fp8 == BOTH_IN_FP8) linear_product(&f8, FPROP, out, R);
    else
        matmul(out, operand(ways[way].fp8 & X_IN_FP8 ? &f8 : &f, OPERAND_X, FPROP, R, 0),
               operand(ways[way].fp8 & W_IN_FP8 ? &f8 : &f, OPERAND_W, FPROP, R, 0), R, wide, C);
    EXPECT(!tensor_nonfinite(lab.qkv8, STORED, R * wide), "qkv of layer %d is not finite", l);
}

static void layer_print(int l) {
    const Gpt *g = &lab.g;
    const int B = g->B, C = g->config.C, NH = g->config.NH, T = g->config.T, hs = C / NH;
    const size_t R = (size_t)B * T, wide = 3 * (size_t)C;
    const stored_t *x = gpt_input(g, l, LIN_QKV), *qkv = g->qkv + l * R * wide;
    memset(lab.sums, 0, B * NH * sizeof(Sums));
    for (int way = 0; way < (l ? PARTS : WAYS); way++) {
        if (way >= PARTS) part_of(lab.part, way > PARTS);
        product_in_fp8(l, way, way < PARTS ? x : lab.part);
        PARALLEL(dynamic) for (int task = 0; task < B * NH; task++) {
            const size_t at = (size_t)(task / NH) * T * wide + task % NH * hs;
            head_compare(&lab.sums[task], way, qkv + at, lab.qkv8 + at, lab.length[task / NH], C,
                         hs);
        }
    }
    for (int h = 0; h < NH; h++) {
        Sums mean = {0};
        for (int b = 0; b < B; b++) {
            const Sums *s = &lab.sums[b * NH + h];
            mean.largest += s->largest / lab.queries, mean.spread += s->spread / lab.queries,
                mean.error += s->error / lab.queries;
            for (int way = 0; way < WAYS; way++) mean.way[way] += s->way[way] / lab.queries;
        }
        printf("%d\t%d\t%.3f\t%.2f\t%.4f", l, h, mean.largest, sqrt(mean.spread), sqrt(mean.error));
        for (int way = 0; way < PARTS; way++) printf("\t%.3g", mean.way[way]);
        for (int way = PARTS; way < WAYS; way++) printf(l ? "\t-" : "\t%.2f", sqrt(mean.way[way]));
        printf("\n");
    }
}

enum { QUERIES = 1, KEYS = 2, VALUES = 4, ALL_OUTPUTS = 7 };
static void lab_layernorm(int l, int second, const stored_t *y, stored_t *normed, size_t rows) {
    gpt_layernorm_forward(&lab.g, 2 * l + second, y, normed, rows);
}
static void lab_linear(int l, int i, stored_t *y, const stored_t *x, size_t rows) {
    const size_t C = lab.g.config.C;
    gpt_linear_forward(&lab.g, l, i, y, rows); // of gpt_input(), which is x
    if (i != LIN_QKV || !lab.outputs || (lab.layer >= 0 && lab.layer != l)) return;
    product_in_fp8(l, lab.way, x);
    for (size_t part = 0; part < rows * 3; part++)
        if (lab.outputs >> part % 3 & 1)
            memcpy(y + part * C, lab.qkv8 + part * C, C * sizeof(stored_t));
}
static void lab_attention(int l, stored_t *out, stored_t *qkv, int B) {
    (void)l;
    attention_forward(out, qkv, B, lab.g.config.T, 0, lab.g.config.C, lab.g.config.NH);
}
static double loss_of(int outputs, int layer, int way) {
    lab.outputs = outputs, lab.layer = layer, lab.way = way;
    return lab_forward(&lab.g, lab.v.tokens, lab.v.targets, lab.g.B) / lab.v.counted;
}

int main(int argc, char **argv) {
    const char *values[] = {NULL, "256", "16"}, *text;
    lab_options(argc, argv, "jtm", "-j TEXT [-t T] [-m ROWS]", values);
    EXPECT((text = values[0]), "expected -j TEXT");
    const long T = lab_number(values[1], "-t", 2, T_MAX),
               rows = lab_number(values[2], "-m", 1, 4096);
    Gpt *g = &lab.g;
    const File model = lab_model(g, argv[1], T);
    Dataset set = lab_data(g, text, "validation");
    g->B = MIN(rows, (long)set.windows); // of stories fewer may fit
    const size_t C = g->config.C, R = (size_t)g->B * T;
    const double available = memory_available();
    const double needed = mib(memory_plan(g).total + R * (23 * C + 8) + 7 * C * C +
                              g->B * g->config.NH * sizeof(Sums));
    EXPECT(available == 0 || needed <= available,
           "%.0f MiB are needed, %.0f available; choose a smaller -m or -t", needed, available);
    lab.v = validation_open(&set, T, g->B);
    g->B = lab.v.rows;
    machine_init(0);
    gpt_allocate(g);
    model_load(g, &model);
    lab.length = (int *)memory_allocate(g->B * sizeof(int)),
    lab.sums = (Sums *)memory_allocate(g->B * g->config.NH * sizeof(Sums));
    for (int which = OPERAND_X; which <= OPERAND_W; which++) {
        const size_t rows = which == OPERAND_X ? R : 3 * C;
        lab.bytes[which] = (uint8_t *)memory_allocate(2 * rows * C);
        lab.inv[which] = (float *)memory_allocate(rows * ceil_div(C, 16) * sizeof(float));
    }
    lab.sums_of_products = (float *)memory_allocate(R * 3 * C * sizeof(float));
    lab.qkv8 = (stored_t *)memory_allocate(R * 3 * C * sizeof(stored_t));
    lab.part = (stored_t *)memory_allocate(R * C * sizeof(stored_t));
    double tokens = 0, positions = 0; // sums of squares
    for (int b = 0; b < g->B; b++) {
        int *n = &lab.length[b];
        for (; *n < T && lab.v.targets[b * T + *n] >= 0; ++*n)
            for (size_t c = 0; c < C; c++) {
                const double token = g->master[lab.v.tokens[b * T + *n] * C + c],
                             place = gpt_param(g, g->master, WPE, 0)[*n * C + c];
                tokens += token * token, positions += place * place;
            }
        lab.queries += *n - 1;
    }
    EXPECT(lab.queries > 0, "%s: no row has two tokens", text);
    printf("embeddings of tokens %.4f, of positions %.4f\nlayer\thead\tlargest p\tspread\terror",
           sqrt(tokens / lab.v.counted / C), sqrt(positions / lab.v.counted / C));
    for (int way = 0; way < WAYS; way++) printf("\t%s", ways[way].name);
    printf("\n");
    const double loss = loss_of(0, -1, 0); // ln1 and qkv of every layer stay
    for (int l = 0; l < g->config.L; l++) layer_print(l);
    const double loss8 = loss_of(ALL_OUTPUTS, -1, 0);
    printf("loss %.6f; with E4M3 in qkv %.6f (%+.6f); for queries alone %+.6f, keys %+.6f, values "
           "%+.6f; keys of layer",
           loss, loss8, loss8 - loss, loss_of(QUERIES, -1, 0) - loss, loss_of(KEYS, -1, 0) - loss,
           loss_of(VALUES, -1, 0) - loss);
    for (int l = 0; l < g->config.L; l++)
        printf("%s %d %+.6f", l ? "," : "", l, loss_of(KEYS, l, 0) - loss);
    printf("\nqkv in\tloss\tmore\tkeys\n");
    for (int way = 0; way < PARTS; way++) {
        if (!ways[way].queries || !ways[way].keys) continue;
        const double all = loss_of(ALL_OUTPUTS, -1, way), keys = loss_of(KEYS, -1, way);
        printf("%s\t%.6f\t%+.6f\t%+.6f\n", ways[way].name, all, all - loss, keys - loss);
    }
    EXPECT(!fflush(stdout), "cannot write the table: %s", strerror(errno));
    return 0;
}
