/*
What a recipe does when something goes wrong: trains as the trainer does, breaks one tensor before
one step, and prints what follows beside an unbroken run of the same seed.

    make build/lab/inject && build/lab/inject FAULT STEP LAYER OPERAND [trainer's options]
    build/lab/inject spike 60 1 fc.w -x 90 --recipe delayed

FAULT says what is done before step STEP (counted from 1):

- zero: the tensor becomes all zeros for one step (x of qkv or fc, w of any linear layer)
- spike: its first element (of x: the first channel) grows 1000 times beyond the largest for one
  step (the same operands)
- nan: its first element becomes NaN for one step (the same operands)
- stale: its delayed scale is 2^10 times too large, as after a jump (any operand)
- flip: the top exponent bit of its first byte flips for one step (w)

x is broken through the layernorm that makes it. Printed: a row a step from STEP - 2 on, loss and
gradient norm of both runs, and amax, scale, saturated and flushed share of the operand in the
broken one; then what became of it: `stopped` (a non-finite value ended the run, the weights
unharmed), or how far the two losses lay apart: in the step itself, at most, and in the last step
(two runs that once differ in a bit never meet again).
*/
#define TESTING
#define PROGRAM "inject"
#include "../../train_gpt_fp8.c"
#include <sys/wait.h>

enum { ZERO, SPIKE, NOT_A_NUMBER, STALE, FLIP, FAULTS };
static const char *const fault_name[FAULTS] = {"zero", "spike", "nan", "stale", "flip"};
static Run run;

// The floats that make operand `which` of a linear layer: a weight, or the layernorm weight and
// bias before it.
static float *fault_target(Gpt *g, int layer, int linear, int which, size_t *n) {
    const int id = which == OPERAND_W ? linear_param[linear] : linear == LIN_QKV ? LN1W : LN2W;
    *n = g->params[id].rows * g->params[id].cols;
    return gpt_param(g, g->master, id, layer);
}

// Breaks the tensor before a step, or puts it back after it. `kept` holds what was there.
static void fault_apply(Gpt *g, int fault, int layer, int linear, int which, float *kept,
                        int undo) {
    Fp8Scale *s = gpt_scale(g, layer, linear, which);
    if (fault == STALE) {
        if (undo) return;
        s->scale *= 1024;
        for (int i = 0; i < AMAX_HISTORY_MAX; i++) s->amax_history[i] /= 1024;
        g->weights_ready = 0;
        return;
    }
    if (fault == FLIP) {
        gpt_refresh_weights(g);
        const Linear f = gpt_linear(g, layer, linear);
        if (!undo)
            // In blocks: of the copy that fprop reads.
            f.operand[OPERAND_W].bytes[OVER_COLUMNS][0] ^= 0x40;
        return;
    }
    size_t n;
    float *w = fault_target(g, layer, linear, which, &n);
    float *bias =
        which == OPERAND_X ? gpt_param(g, g->master, linear == LIN_QKV ? LN1B : LN2B, layer) : NULL;
    if (undo) { // of the update, keep what the fault did not set
        if (fault == ZERO)
            for (size_t i = 0; i < n; i++) w[i] += kept[i];
        else w[0] = kept[0];
        if (bias && fault == ZERO)
            for (size_t i = 0; i < n; i++) bias[i] += kept[n + i];
    } else {
        float amax = 0;
        memcpy(kept, w, n * sizeof(float));
        if (bias) memcpy(kept + n, bias, n * sizeof(float));
        for (size_t i = 0; i < n; i++) amax = MAX(amax, fabsf(w[i]));
        if (fault == ZERO) memset(w, 0, n * sizeof(float));
        if (fault == ZERO && bias) memset(bias, 0, n * sizeof(float));
        if (fault == SPIKE) w[0] = 1000 * amax;
        if (fault == NOT_A_NUMBER) w[0] = NAN;
    }
    g->weights_ready = 0;
}

// Trains in a child, so that a stop is one of the outcomes; writes a line a step to `out`. fault <
// 0: none.
static int train(int argc, char **argv, const char *out, int fault, long step, int layer,
                 int linear, int which) {
    fflush(stdout);
    const pid_t pid = fork();
    EXPECT(pid >= 0, "cannot start: %s", strerror(errno));
    if (pid) {
        int status = 0;
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    }
    Run *r = &run;
    Options *o = &r->o;
    *o = options_parse(argc, argv, r->given);
    r->trains = 1;
    path_print(r->dir.path, "%s", "nowhere");
    r->prompts = 0;
    EXPECT(options_depth(o), "option --model: expected a depth; this trains from new weights");
    EXPECT(step >= 1 && step <= o->steps, "STEP: expected 1 to --steps, %ld, found %ld", o->steps,
           step);
    o->out = strdup(out);
    r->trains = 0; // no directory
    run_open(r);
    r->trains = r->g.training = 1;
    EXPECT(layer >= 0 && layer < r->g.config.L, "LAYER: expected 0 to %d, found %d",
           r->g.config.L - 1, layer);
    static const int readers[NOPERAND] = {1 << FPROP | 1 << WGRAD, READ_W, 1 << DGRAD | 1 << WGRAD};
    EXPECT((fault != STALE && fault != FLIP) || readers[which] & ~r->g.bf16[layer][linear],
           "FAULT %s: no product reads this operand in FP8", fault_name[fault]);
    EXPECT(fault != STALE || recipe_remembers(&r->g.recipes[which]),
           "FAULT stale: only a rule that remembers steps, as --recipe delayed, has a stale scale");
    machine_init(o->sum_order);
    gpt_allocate(&r->g);
    gpt_init(&r->g, o->seed);
    options_loss_scale(o, &r->g);
    float *kept =
        (float *)memory_allocate(8 * (size_t)r->g.config.C * r->g.config.C * sizeof(float));
    unlink(out);
    FILE *f = fopen(out, "wx");
    EXPECT(f, "%s: cannot write: %s; run this from the project's directory", out, strerror(errno));
    r->g.record = RECORD_STATS;
    for (long i = 1; i <= o->steps; i++) {
        double norm;
        float lr;
        if (fault >= 0 && i == step) fault_apply(&r->g, fault, layer, linear, which, kept, 0);
        const double loss = run_step(r, i - 1, &norm, &lr);
        if (fault >= 0 && i == step) fault_apply(&r->g, fault, layer, linear, which, kept, 1);
        const Fp8Scale *s = gpt_scale(&r->g, layer, linear, which);
        const Fp8Stats *t = &s->logged;
        fprintf(f, "%ld\t%.6f\t%.4f\t%.4g\t%.4g\t%.6f\t%.6f\n", i, loss, norm,
                bits_float(t->amax_bits), s->logged_scale,
                t->count ? t->saturated / (double)t->count : 0,
                t->count ? t->flushed / (double)t->count : 0);
        fflush(f);
    }
    _exit(0);
}

int main(int argc, char **argv) {
    int fault = 0, linear = 0, which = 0;
    char text[32];
    EXPECT(argc >= 5, "usage: inject FAULT STEP LAYER OPERAND [trainer's options]; the first lines "
                      "of dev/lab/inject.c explain them");
    while (fault < FAULTS && strcmp(argv[1], fault_name[fault])) fault++;
    EXPECT(fault < FAULTS, "FAULT: expected zero, spike, nan, stale or flip, found '%s'", argv[1]);
    char *end[2];
    const long step = strtol(argv[2], &end[0], 10), layer = strtol(argv[3], &end[1], 10);
    EXPECT(*argv[2] && !*end[0] && *argv[3] && !*end[1] && step > 0 && layer >= 0,
           "STEP and LAYER: expected numbers, found '%s' and '%s'", argv[2], argv[3]);
    for (; linear < NLIN; linear++) {
        for (which = 0; which < NOPERAND; which++)
            if (snprintf(text, sizeof(text), "%s.%s", linear_name[linear], operand_name[which]) >
                    0 &&
                !strcmp(text, argv[4]))
                break;
        if (which < NOPERAND) break;
    }
    EXPECT(linear < NLIN,
           "OPERAND: expected LINEAR.x, LINEAR.w or LINEAR.dy of qkv, attproj, fc or fcproj, found "
           "'%s'",
           argv[4]);
    EXPECT(
        fault == STALE || which == OPERAND_W ||
            (which == OPERAND_X && fault != FLIP && linear != LIN_ATTPROJ && linear != LIN_FCPROJ),
        "FAULT %s cannot break %s: see the table in dev/lab/inject.c", argv[1], argv[4]);
    argv[4] = argv[0];
    const int clean =
        train(argc - 4, argv + 4, "build/lab/clean.tsv", -1, step, layer, linear, which);
    EXPECT(clean == 0, "the unbroken run ended with status %d", clean);
    const int broken =
        train(argc - 4, argv + 4, "build/lab/broken.tsv", fault, step, layer, linear, which);
    if (broken != 0 && broken != EXIT_NONFINITE) return EXIT_BAD_INPUT; // it has said why
    char *a = text_read("build/lab/clean.tsv"), *b = text_read("build/lab/broken.tsv");
    EXPECT(a && b,
           "build/lab/clean.tsv, broken.tsv: expected what the two runs wrote, found no file");
    double x[3], y[7];
    long last = 0, worst_step = 0;
    double at_once = 0, worst = 0, apart = 0;
    printf("step\tloss\tbroken\tnorm\tbroken\tamax\tscale\tsaturated\tflushed\n");
    for (const char *p = a, *q = b; *q && text_row(&p, x, 3) == 3 && text_row(&q, y, 7) == 7;) {
        last = (long)y[0];
        apart = fabs(y[1] - x[1]);
        if (last == step) at_once = apart;
        if (last >= step && apart > worst) worst = apart, worst_step = last;
        if (last >= step - 2 && (last <= step + 8 || last % 10 == 0))
            printf("%ld\t%.4f\t%.4f\t%.3f\t%.3f\t%.4g\t%.4g\t%.4f%%\t%.4f%%\n", last, x[1], y[1],
                   x[2], y[2], y[3], y[4], 100 * y[5], 100 * y[6]);
    }
    if (broken == EXIT_NONFINITE)
        printf("stopped in step %ld: a value was not finite; nothing reached the weights\n",
               last + 1);
    else if (worst == 0) printf("nothing: the same losses to the last bit\n");
    else
        printf("losses apart by %.6f in the step, %.6f at most (step %ld), %.6f in the last\n",
               at_once, worst, worst_step, apart);
    return 0;
}
