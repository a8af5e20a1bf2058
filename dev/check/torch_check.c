/*
What the trainer computes for a small model, written to a file that dev/check/torch_check.py
compares with PyTorch: loss, logits and every gradient of one batch, then ten optimizer steps. It
prints nothing and judges nothing.

    torch_check MODEL RESULT L NH C T V B n HEAD

writes an llm.c model file (version 3) of L layers, NH heads, C channels, T positions, V tokens, and
the results for a batch of B sequences of n tokens; with HEAD 1 the head of the FP8 build is FP8
too. The steps take the batch as two micro-batches, so that gradients accumulate. RESULT is a list
of float32 arrays, each a line "name count" and its bytes.
*/
#define TESTING
#include "../../train_gpt_fp8.c"
#include "arrays.h"

#define STEPS  10
#define MICROS 2

static FILE *result_open(const char *path) {
    FILE *f = fopen(path, "wb");
    if (!f) fatal(EXIT_BAD_INPUT, "%s: %s", path, strerror(errno));
    return f;
}

static void result_close(FILE *f) {
    if (fflush(f) != 0 || ferror(f))
        fatal(EXIT_BAD_INPUT, "writing the results: %s", strerror(errno));
    fclose(f);
}

// Every parameter-shaped tensor of an arena, times scale.
static void params_write(FILE *f, const Gpt *g, const char *prefix, const float *arena,
                         float scale) {
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        const size_t n = s->layers * s->rows * s->cols;
        float *t = (float *)memory_allocate(n * 4);
        for (size_t i = 0; i < n; i++) t[i] = arena[s->offset + i] * scale;
        array_write(f, prefix, s->name, t, n);
        free(t);
    }
}

// The scale in use of every operand of the blocks' linear layers, [L][NLIN][NOPERAND].
static void scales_write(FILE *f, const Gpt *g, const char *name) {
    const size_t n = (size_t)g->config.L * NLIN * NOPERAND;
    float *t = (float *)memory_allocate(n * 4);
    for (size_t i = 0; i < n; i++) t[i] = g->scales[i].scale;
    array_write(f, "", name, t, n);
    free(t);
}

// Away from the initialization's special points: no bias is 0, no layernorm weight 1, and matrices
// are large enough for attention and GELU to be far from linear. The padded rows of wte stay 0.
static void params_perturb(Gpt *g, uint64_t seed) {
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        float *w = g->master + s->offset;
        for (size_t i = 0; i < s->layers * s->rows * s->cols; i++)
            if (s->init_std > 0) w[i] *= 4;
            else w[i] += (float)(0.4 * random_unit(random_u64(seed, 1000 + (uint64_t)id, i)) - 0.2);
    }
    g->weights_ready = 0;
}

static void model_file_write(const Gpt *g, const char *path) {
    const Config *c = &g->config;
    int32_t header[256] = {20240326, 3, c->T, c->V, c->L, c->NH, c->C, c->Vp};
    FILE *f = result_open(path);
    fwrite(header, 4, 256, f);
    fwrite(g->master, 4, g->param_count, f);
    result_close(f);
}

int main(int argc, char **argv) {
    if (argc != 11) fatal(EXIT_BAD_INPUT, "usage: torch_check MODEL RESULT L NH C T V B n HEAD");
    int arg[8];
    for (int i = 0; i < 8; i++) arg[i] = atoi(argv[3 + i]);
    machine_init(0);
    Gpt g;
    memset(&g, 0, sizeof(g));
    g.config.L = arg[0], g.config.NH = arg[1], g.config.C = arg[2], g.config.T = arg[3],
    g.config.V = arg[4];
    g.config.Vp = (int)round_up((size_t)arg[4], 128);
    g.B = arg[5], g.training = 1, g.fp8_head = arg[7];
    const int B = arg[5], n = arg[6], Vp = g.config.Vp;
    const size_t rows = (size_t)B * (size_t)n, C = (size_t)g.config.C;
    recipe_parse(g.recipes, "delayed", "torch_check");
    gpt_allocate(&g);
    gpt_init(&g, 7);
    params_perturb(&g, 8);
    model_file_write(&g, argv[1]);

    int *tokens = (int *)memory_allocate(rows * sizeof(int)),
        *targets = (int *)memory_allocate(rows * sizeof(int)), counted = 0;
    for (size_t i = 0; i < rows; i++) {
        tokens[i] = (int)(random_u64(9, 0, i) % (uint64_t)g.config.V);
        targets[i] = i % 5 == 3 ? -1 : (int)(random_u64(9, 1, i) % (uint64_t)g.config.V);
        counted += targets[i] >= 0;
    }
    FILE *f = result_open(argv[2]);
    ints_write(f, "", "tokens", tokens, rows);
    ints_write(f, "", "targets", targets, rows);

    // One batch.
    const float loss_scale = gpt_scales_loss(&g) ? LOSS_SCALE_INIT : 1;
    g.record = 1;
    float loss =
        (float)(gpt_forward(&g, tokens, targets, B, n, loss_scale / (float)counted) / counted);
    gpt_backward(&g, tokens, B, n);
    array_write(f, "", "loss", &loss, 1);
    array_write(f, "", "losses", g.losses, rows);
    params_write(f, &g, "grad.", g.grad, 1 / loss_scale);
    float *lnf = (float *)memory_allocate(rows * C * 4),
          *logits = (float *)memory_allocate(rows * (size_t)Vp * 4);
    for (size_t i = 0; i < rows * C; i++) lnf[i] = float_from_stored(g.lnf[i]);
    array_write(f, "", "lnf", lnf, rows * C);
    g.record = 0;
    for (size_t row = 0; row < rows; row += HEAD_ROWS) // the loss made e^z of the model's own
        head_forward(&g, logits + row * (size_t)Vp, row,
                     rows - row < HEAD_ROWS ? rows - row : HEAD_ROWS);
    array_write(f, "", "logits", logits, rows * (size_t)Vp);

    // Ten steps.
    const AdamW optimizer = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f};
    float step_losses[STEPS], norms[STEPS];
    g.record = 1;
    for (long t = 1; t <= STEPS; t++) {
        double sum = 0;
        memset(g.grad, 0, g.param_count * 4);
        for (int micro = 0; micro < MICROS; micro++) {
            const size_t at = (size_t)micro * rows / MICROS;
            sum += gpt_forward(&g, tokens + at, targets + at, B / MICROS, n,
                               loss_scale / (float)counted);
            gpt_backward(&g, tokens + at, B / MICROS, n);
        }
        const double norm = gradient_norm(&g, 1 / loss_scale);
        adamw_update(&g, &optimizer, (norm > 1 ? (float)(1 / norm) : 1) / loss_scale, t);
        for (int i = 0; i < g.scale_count; i++) scale_advance(&g.scales[i]);
        if (IS_FP8 && (t == 1 || t == STEPS))
            scales_write(f, &g, t == 1 ? "scales.1" : "scales.10");
        step_losses[t - 1] = (float)(sum / counted), norms[t - 1] = (float)norm;
    }
    array_write(f, "", "step_losses", step_losses, STEPS);
    array_write(f, "", "norms", norms, STEPS);
    params_write(f, &g, "final.", g.master, 1);
    result_close(f);
    free(tokens), free(targets), free(lnf), free(logits);
    return 0;
}
