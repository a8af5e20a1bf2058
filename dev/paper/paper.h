/*
What the networks of this directory share: parameters, layers, a training step, options and checks.
Every rule of FP8 is the trainer's own: quantize(), Linear, matmul(), scale_advance(), AdamW and the
loss scale. A network declares its parameters and layers, then calls net_allocate(). All sums have
the trainer's fixed orders, so that a run gives the same bits for any thread count.
*/
#define TESTING
#include "../../train_gpt_fp8.c"
#include "../check/arrays.h"

// ---- parameters
// The trainer's Gpt holds recipes, loss scale, weights, gradients and AdamW's moments. AdamW sees
// two parameters here: all matrices, which decay, and all vectors, which do not.
#define PARAMS_MAX     64
#define LAYERS_AT_MOST 32
enum { MATRICES, VECTORS, KINDS };
typedef struct {
    const char *name;
    size_t rows, cols;   // cols is 1 for a vector
    float spread, value; // initially uniform in value +- spread
    size_t offset;       // in floats from the start of net.g.master
} Param;

// A linear layer that a step calls `calls` times, each time with `rows` rows (a recurrent layer is
// called once for each time step). Every call keeps its input for wgrad.
typedef struct {
    const char *name;
    size_t rows, calls, in, out;
    int weight, bias;         // numbers of its parameters; bias -1: none
    int fp8;                  // bit p: product p reads FP8 bytes in the fp8 build; at first all
    stored_t *x;              // [calls][rows, in], which the caller fills
    stored_t *w;              // [out, in] the weight in the stored type; fp32: the master
    uint8_t *bytes[NOPERAND]; // FP8: of x [calls][rows, in], w [out, in], dy [rows, out]
    float *x_inv;             // FP8: [calls] scale_inv of those bytes of x
    float *partial_sums;      // for the bias gradient, [ceil(rows / ROWS)][out]
    Fp8Scale scale[NOPERAND];
} Layer;

static struct {
    Gpt g;
    Param params[PARAMS_MAX];
    Layer layers[LAYERS_AT_MOST];
    int param_count, layer_count;
    long updates; // steps that were not skipped
} net;

// What the options of the command line ask for.
static struct {
    long seed, steps, batch, check;
    double lr;
    const char *recipe, *loss_scale, *sum_order, *dump;
} settings = {1, 1000, 64, 0, 3e-3, "delayed", "auto", "pairs", ""};

static int param_add(const char *name, size_t rows, size_t cols, float spread, float value) {
    EXPECT(net.param_count < PARAMS_MAX, "more than %d parameters", PARAMS_MAX);
    net.params[net.param_count] = (Param){name, rows, cols, spread, value, 0};
    return net.param_count++;
}
static float *param_weights(int i) { return net.g.master + net.params[i].offset; }
static float *param_gradient(int i) { return net.g.grad + net.params[i].offset; }
static size_t param_size(int i) { return net.params[i].rows * net.params[i].cols; }

// weight, bias: names; bias may be NULL. The weight begins uniform in +-spread, the bias as 0.
static Layer *layer_add(const char *weight, const char *bias, size_t calls, size_t rows, size_t in,
                        size_t out, float spread) {
    EXPECT(net.layer_count < LAYERS_AT_MOST, "more than %d layers", LAYERS_AT_MOST);
    Layer *l = &net.layers[net.layer_count++];
    *l = (Layer){.name = weight, .rows = rows, .calls = calls, .in = in, .out = out};
    l->fp8 = ALL_PRODUCTS;
    l->weight = param_add(weight, out, in, spread, 0);
    l->bias = bias ? param_add(bias, out, 1, 0, 0) : -1;
    return l;
}

static void layer_allocate(Layer *l) {
    const size_t inputs = l->calls * l->rows * l->in, weights = l->out * l->in;
    l->x = memory_allocate(inputs * sizeof(stored_t));
    l->partial_sums = memory_allocate(ceil_div(l->rows, ROWS) * l->out * sizeof(float));
    if (PRECISION == PRECISION_FP32) l->w = (stored_t *)param_weights(l->weight);
    else l->w = memory_allocate(weights * sizeof(stored_t));
    if (!IS_FP8) return;
    l->bytes[OPERAND_X] = memory_allocate(inputs);
    l->bytes[OPERAND_W] = memory_allocate(weights);
    l->bytes[OPERAND_DY] = memory_allocate(l->rows * l->out);
    l->x_inv = memory_allocate(l->calls * sizeof(float));
    for (int o = 0; o < NOPERAND; o++) {
        Fp8Scale *s = &l->scale[o];
        s->recipe = net.g.recipes[o];
        s->scale = s->recipe.rule == SCALING_CONSTANT ? s->recipe.number : 1;
        s->scale_inv[0] = s->scale_inv[1] = 1;
    }
}

// Memory for everything that was declared, and initial weights of the seed.
static void net_allocate(void) {
    Gpt *g = &net.g;
    size_t largest = 0;
    for (int kind = 0; kind < KINDS; kind++) {
        ParamSpec *s = &g->params[kind];
        s->layers = s->cols = 1;
        s->decays = kind == MATRICES;
        s->offset = g->param_count;
        for (int i = 0; i < net.param_count; i++)
            if ((net.params[i].cols == 1) == (kind == VECTORS)) {
                net.params[i].offset = g->param_count;
                g->param_count += param_size(i);
            }
        s->rows = g->param_count - s->offset;
    }
    slices_make(g); // all of it: there is one process
    float **const arenas[] = {&g->master, &g->grad, &g->m, &g->v};
    for (int i = 0; i < COUNT(arenas); i++)
        *arenas[i] = memory_allocate(g->param_count * sizeof(float));
    for (int i = 0; i < net.param_count; i++) {
        const Param *p = &net.params[i];
        for (size_t k = 0; k < param_size(i); k++)
            param_weights(i)[k] =
                p->value +
                p->spread * (float)(2 * random_unit(random_u64(settings.seed, i, k)) - 1);
    }
    for (int i = 0; i < net.layer_count; i++) {
        Layer *l = &net.layers[i];
        layer_allocate(l);
        largest = MAX(largest, MAX(l->rows * MAX(l->in, l->out), l->in * l->out));
    }
    machine_init(!strcmp(settings.sum_order, "tiles"));
    workspace_init(largest, 0);
}

// ---- layers
// The trainer's linear layer, as call number `call` reads it.
static Linear layer_linear(Layer *l, size_t call) {
    Linear f = {.in = l->in, .out = l->out, .fp8 = IS_FP8 ? l->fp8 : 0};
    f.dw = param_gradient(l->weight);
    if (l->bias >= 0) {
        f.bias = param_weights(l->bias);
        f.dbias = param_gradient(l->bias);
    }
    f.operand[OPERAND_X].columns = f.operand[OPERAND_W].columns = l->in;
    f.operand[OPERAND_DY].columns = l->out;
    operand_is(&f, OPERAND_X, l->x + call * l->rows * l->in);
    operand_is(&f, OPERAND_W, l->w);
    for (int o = 0; IS_FP8 && o < NOPERAND; o++) {
        uint8_t *bytes = l->bytes[o] + (o == OPERAND_X ? call * l->rows * l->in : 0);
        f.operand[o].bytes[OVER_COLUMNS] = f.operand[o].bytes[OVER_ROWS] = bytes;
        f.operand[o].scale = &l->scale[o];
    }
    return f;
}

// Makes what products read of the master weights, once after each update.
static void net_refresh_weights(void) {
    if (net.g.weights_ready) return;
    net.g.weights_ready = 1;
    for (int i = 0; PRECISION != PRECISION_FP32 && i < net.layer_count; i++) {
        Layer *l = &net.layers[i];
        const Linear f = layer_linear(l, 0);
        stored_from_floats(l->w, param_weights(l->weight), l->in * l->out);
        if (IS_FP8) operand_quantize(&f, OPERAND_W, l->w, l->out, OVER_COLUMNS, RECORD_STATS);
    }
}

// y [rows, out] of the input in l->x, for the first `rows` rows of a call.
static void layer_forward(Layer *l, size_t call, void *y, Dtype y_dtype, size_t rows) {
    const Linear f = layer_linear(l, call);
    linear_forward(&f, y, y_dtype, rows, net.g.record);
    if (IS_FP8) l->x_inv[call] = l->scale[OPERAND_X].scale_inv[OVER_ROWS];
}
// dx [rows, in] of dy [rows, out]; adds to the gradients of weight and bias.
static void layer_backward(Layer *l, size_t call, stored_t *dx, const stored_t *dy, size_t rows) {
    Linear f = layer_linear(l, call);
    operand_is(&f, OPERAND_DY, dy);
    if (IS_FP8) l->scale[OPERAND_X].scale_inv[OVER_ROWS] = l->x_inv[call];
    linear_backward(&f, dx, l->partial_sums, rows, net.g.record);
}

// ---- a step
// The part of the trainer's gpt_step() that follows the backward pass. loss: of the batch, whose
// gradients were scaled by the loss scale.
static StepOutcome net_update(double loss, const AdamW *adamw, double grad_clip) {
    Gpt *g = &net.g;
    const float loss_scale = g->loss_scale;
    StepOutcome r = {.loss = loss};
    r.norm = gradient_norm(g, 1 / loss_scale);
    r.skipped = !isfinite(r.norm);
    if (!isfinite(r.loss)) r.nonfinite = "the loss is";
    else if (r.skipped && !(PRECISION == PRECISION_FP16 && loss_scale > 1))
        r.nonfinite = "the gradient is";
    if (r.nonfinite) return r;
    uint64_t saturated = 0; // gradients
    for (int i = 0; IS_FP8 && i < net.layer_count; i++)
        for (int o = 0; o < NOPERAND; o++) {
            Fp8Scale *s = &net.layers[i].scale[o];
            scale_advance(s);
            if (o == OPERAND_DY) saturated += s->logged.saturated;
        }
    if (!r.skipped) {
        const double clip = r.norm > grad_clip ? grad_clip / r.norm : 1;
        if (!adamw_update(g, adamw, clip / loss_scale, ++net.updates))
            r.nonfinite = "weights after the update are";
    }
    loss_scale_update(g, r.skipped || saturated);
    return r;
}

// ---- options: `--name value`; later ones override earlier ones
typedef struct {
    const char *name;
    enum { WHOLE, REAL, WORDS } kind;
    void *value; // long, double or const char *
    double min, max;
    const char *help;
} OptionRow;
static const OptionRow common_options[] = {
    {"seed", WHOLE, &settings.seed, 0, 1e9, "of the initial weights and the order of the data"},
    {"steps", WHOLE, &settings.steps, 1, 1e7, "optimizer steps"},
    {"batch", WHOLE, &settings.batch, 1, 4096, "examples a step"},
    {"lr", REAL, &settings.lr, 1e-9, 1e3, "peak learning rate"},
    {"recipe", WORDS, &settings.recipe, 0, 0,
     "FP8's formats and scales, as the trainer's --recipe"},
    {"loss-scale", WORDS, &settings.loss_scale, 0, 0, "auto, off or a power of two"},
    {"sum-order", WORDS, &settings.sum_order, 0, 0, "pairs or tiles"},
    {"check", WHOLE, &settings.check, 0, 1, "1: gradients against finite differences (fp32)"},
    {"dump", WORDS, &settings.dump, 0, 0,
     "file for the first gradients and all batches; no training"},
};

static void option_read(const OptionRow *c, const char *text) {
    char *end;
    if (c->kind == WORDS) {
        *(const char **)c->value = text;
        return;
    }
    const double x = strtod(text, &end);
    EXPECT(end != text && !*end && x >= c->min && x <= c->max && (c->kind == REAL || x == (long)x),
           "option --%s: expected a %snumber of %g to %g, found '%s'", c->name,
           c->kind == WHOLE ? "whole " : "", c->min, c->max, text);
    if (c->kind == WHOLE) *(long *)c->value = (long)x;
    else *(double *)c->value = x;
}
static void option_help(const OptionRow *c) {
    char now[64];
    if (c->kind == WORDS) snprintf(now, sizeof(now), "%s", *(const char **)c->value);
    else if (c->kind == WHOLE) snprintf(now, sizeof(now), "%ld", *(long *)c->value);
    else snprintf(now, sizeof(now), "%g", *(double *)c->value);
    printf("  --%-12s %s [%s]\n", c->name, c->help, now);
}
// own: the program's own options. Sets the recipe and the loss scale of net.g.
static void settings_read(int argc, char **argv, const OptionRow *own, int own_count) {
    const int count = COUNT(common_options) + own_count;
    for (int i = 1; i < argc; i++) {
        const int help = !strcmp(argv[i], "--help");
        const OptionRow *found = NULL;
        for (int k = 0; k < count; k++) {
            const OptionRow *c = k < own_count ? &own[k] : &common_options[k - own_count];
            if (help) option_help(c);
            if (!strncmp(argv[i], "--", 2) && !strcmp(argv[i] + 2, c->name)) found = c;
        }
        if (help) exit(EXIT_DONE);
        EXPECT(found, "unknown option '%s'; --help lists them", argv[i]);
        EXPECT(i + 1 < argc, "option %s: expected a value", argv[i]);
        option_read(found, argv[++i]);
    }
    Gpt *g = &net.g;
    EXPECT(!strcmp(settings.sum_order, "pairs") || !strcmp(settings.sum_order, "tiles"),
           "option --sum-order: expected pairs or tiles, found '%s'", settings.sum_order);
    EXPECT(IS_FP8 || !strcmp(settings.recipe, "delayed"),
           "option --recipe: only the fp8 build has recipes");
    recipe_parse(g->recipes, settings.recipe, "option");
    for (int o = 0; o < NOPERAND; o++) {
        const ScalingRecipe *r = &g->recipes[o];
        EXPECT(!recipe_blocks(r),
               "option --recipe: expected one scale a tensor, as in "
               "the paper, found blocks for %s",
               operand_name[o]);
        EXPECT(r->format != DTYPE_E2M1 && !r->split && !r->stochastic,
               "option --recipe: expected FP8, one number an element, to nearest, as in the paper, "
               "found e2m1, split or stochastic for %s",
               operand_name[o]);
    }
    Options o = {0};
    o.loss_scale = (char *)settings.loss_scale;
    g->loss_scale = 1;
    options_loss_scale(&o, g);
}

// ---- training
typedef struct {
    // Forward and backward of the batch of a step; gradients are of its mean loss times loss_scale.
    // Returns the mean loss.
    double (*batch)(long step, float loss_scale);
    void (*test)(double *loss, double *accuracy); // mean loss in nats, accuracy in percent
    void (*dump)(FILE *f); // what `--dump` writes besides weights and gradients
    const char *unit;      // what the loss is of: "a picture"
} Task;

static double task_batch(const Task *task, long step) {
    Gpt *g = &net.g;
    memset(g->grad, 0, g->param_count * sizeof(float));
    net_refresh_weights();
    return task->batch(step, g->loss_scale);
}

// What dev/check/paper_check.py reads.
static void net_dump(const Task *task) {
    FILE *f = fopen(settings.dump, "wb");
    EXPECT(f, "%s: %s", settings.dump, strerror(errno));
    const float loss = (float)task_batch(task, 0);
    array_write(f, "", "loss", &loss, 1);
    for (int i = 0; i < net.param_count; i++) {
        array_write(f, "weight.", net.params[i].name, param_weights(i), param_size(i));
        array_write(f, "gradient.", net.params[i].name, param_gradient(i), param_size(i));
    }
    if (task->dump) task->dump(f);
    EXPECT(!fflush(f) && !ferror(f), "%s: cannot write: %s", settings.dump, strerror(errno));
    fclose(f);
}

// The slope of the loss along a direction of one parameter, by central differences and by the
// gradient. The direction is half the gradient's own and half random.
#define STEP 5e-4
static int gradient_check(const Task *task) {
    EXPECT(PRECISION == PRECISION_FP32, "option --check: only the fp32 build is exact enough");
    int failed = 0;
    task_batch(task, 0);
    float *gradient = memory_allocate(net.g.param_count * sizeof(float));
    memcpy(gradient, net.g.grad, net.g.param_count * sizeof(float));
    for (int i = 0; i < net.param_count; i++) {
        const size_t n = param_size(i);
        const float *g = gradient + net.params[i].offset;
        float *w = param_weights(i), *kept = memory_allocate(n * sizeof(float));
        double squares = 1e-30, slope = 0, losses[2];
        memcpy(kept, w, n * sizeof(float));
        for (size_t k = 0; k < n; k++) squares += g[k] * g[k];
        for (int side = 0; side < 2; side++) {
            for (size_t k = 0; k < n; k++) {
                const double random = 2 * random_unit(random_u64(99, i, k)) - 1;
                const double d = g[k] / sqrt(squares) + random / sqrt(n);
                slope += d * g[k] / 2; // of both sides
                w[k] = (float)(kept[k] + (side ? 1 : -1) * STEP * d);
            }
            losses[side] = task_batch(task, 0);
        }
        memcpy(w, kept, n * sizeof(float));
        const double found = (losses[1] - losses[0]) / (2 * STEP);
        const int wrong = !(fabs(found - slope) <= 0.01 * fabs(slope) + 1e-4);
        printf("%-4s %-12s slope %+.6f, by differences %+.6f\n", wrong ? "FAIL" : "ok",
               net.params[i].name, slope, found);
        failed += wrong;
        free(kept);
    }
    printf("%d passed, %d failed\n", net.param_count - failed, failed);
    return failed != 0;
}

__attribute__((noreturn)) static void net_diverged(const char *what, long step, double begin) {
    printf("result\tdiverged\tdiverged\t%.0f\n", seconds_now() - begin);
    fatal(EXIT_NONFINITE, "%s not finite in step %ld", what, step);
}

// Trains, tests, and prints the row that dev/paper/runs.sh keeps. Returns the exit status.
static int net_run(const Task *task) {
    Gpt *g = &net.g;
    if (settings.check) return gradient_check(task);
    if (*settings.dump) {
        net_dump(task);
        return EXIT_DONE;
    }
    const double begin = seconds_now();
    double loss, accuracy;
    for (long step = 0; step < settings.steps; step++) {
        const float lr = schedule_lr(COSINE, (float)settings.lr, 0.0f, step,
                                     MAX(settings.steps / 20, 1), settings.steps);
        const AdamW adamw = {lr, 0.9f, 0.95f, 1e-8f, 0.05f};
        g->record = RECORD_STATS;
        const StepOutcome r = net_update(task_batch(task, step), &adamw, 1);
        g->record = RECORD_NONE;
        if (r.nonfinite) net_diverged(r.nonfinite, step + 1, begin);
        if ((step + 1) % MAX(settings.steps / 10, 1) == 0)
            printf("%6ld/%ld | loss %.5f | norm %.3f | loss scale %g | %.0f s\n", step + 1,
                   settings.steps, r.loss, r.norm, g->loss_scale, seconds_now() - begin);
        fflush(stdout);
    }
    net_refresh_weights();
    task->test(&loss, &accuracy);
    if (!isfinite(loss)) net_diverged("the test loss is", settings.steps, begin);
    printf("test: loss %.6f nats %s, accuracy %.2f%%\n", loss, task->unit, accuracy);
    printf("result\t%.6f\t%.4f\t%.0f\n", loss, accuracy, seconds_now() - begin);
    EXPECT(!fflush(stdout), "cannot write the result: %s", strerror(errno));
    return EXIT_DONE;
}
