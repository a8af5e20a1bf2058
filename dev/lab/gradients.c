/*
What FP8 does to the gradients of a trained model: the rounding of each operand in each product,
alone, beside BF16.

    make build/lab/gradients && build/lab/gradients BATCHES -e MODEL -i TEXT [trainer's options]
    build/lab/gradients 16 -e log/bf16/model_00000500.bin -i book.txt -b 8 --recipe mx

The gradients of BATCHES micro-batches (2 to 1,024) are computed at the weights of MODEL, which stay
as they are: in BF16, and then in each way of the table below. Scales follow their recipe from one
micro-batch to the next, as in training. The first way is what the options ask for.

A line a way and tensor: the weights that make queries, keys and values, those of the other linear
layers, all of these together ("linear"), and both embeddings. g is BF16's gradient of a
micro-batch, d is what the way makes of it, less g:

- SQNR: 10 log10(sum |g|^2 / sum |d|^2) dB, over all micro-batches
- cosine: 1 - the cosine of the angle between the two, as vectors over all micro-batches
- bias: |mean d| / |mean g| in percent. Means are those of all the data, as far as the micro-batches
  tell: only products of different micro-batches count, <d_i, d_j> with i != j, so that errors that
  have nothing in common add nothing. An estimate below 0 is printed as 0; where that of |mean g|^2
  is, as nan: take more micro-batches.
- gain: <mean d, mean g> / |mean g|^2 in percent, likewise: by how much the way's gradient is longer
  in the direction that reduces the loss. Below 0 it is shorter.

The rows of BF16 itself say, in the place of an SQNR, by how many dB a micro-batch's gradient is
larger than the mean that it is a sample of: 10 log10(mean |g|^2 / |mean g|^2). A way whose SQNR is
as large adds as much noise as the mean is long. The loss is in nats a token.
*/
#define TESTING
#define PROGRAM "gradients"
#include "../../train_gpt_fp8.c"
#include <sys/wait.h>

static const struct {
    const char *name, *recipe, *bf16; // words of --recipe, --bf16
} ways[] = {
    {"as asked", NULL, NULL},
    {"fprop", "delayed", "dgrad+wgrad"},
    {"fprop, x alone", "w:split", "dgrad+wgrad"},
    {"fprop, w alone", "x:split", "dgrad+wgrad"},
    {"fprop but 0.qkv", "delayed", "dgrad+wgrad+0.qkv"},
    {"dgrad", "delayed", "fprop+wgrad"},
    {"dgrad, dy alone", "w:split", "fprop+wgrad"},
    {"dgrad, w alone", "dy:split", "fprop+wgrad"},
    {"wgrad", "delayed", "fprop+dgrad"},
    {"wgrad, dy alone", "x:split", "fprop+dgrad"},
    {"wgrad, dy stochastic", "x:split+dy:stochastic", "fprop+dgrad"},
    {"wgrad, x alone", "dy:split", "fprop+dgrad"},
    {"dgrad, wgrad", "delayed", "fprop"},
    {"the same, dy E4M3", "dy:e4m3", "fprop"},
    {"the same, dy MX", "dy:mx", "fprop"},
    {"the same, dy stochastic", "dy:stochastic", "fprop"},
    {"the same, MX", "mx", "fprop"},
    {"the same, MX, Hadamard", "mx+hadamard", "fprop"},
};

// What the children leave, in memory that they share with their parent.
typedef struct {
    Config config;
    ParamSpec params[NPARAM];
    size_t param_count;
    double loss; // nats a token
} Shared;
static Shared *shared;
static int batches;
static Run run;

static void *shared_memory(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(p != MAP_FAILED, "out of memory: %.1f MiB were needed for gradients; take fewer BATCHES",
           bytes / 1048576.0);
    return p;
}

// Runs in a child: gradients [batches][param_count] of the options; NULL: only what is shared.
static void gradients_make(int argc, char **argv, float *gradients) {
    Run *r = &run;
    Gpt *g = &r->g;
    Options *o = &r->o;
    *o = options_parse(argc, argv, r->given);
    EXPECT(!options_depth(o), "option --model: expected a model file, found a depth");
    o->shards = 1;
    run_open(r); // r->trains is 0: it makes no directory
    EXPECT(r->model[0] && !o->resume, "expected -e MODEL, a file");
    r->trains = g->training = 1;
    tensors_make(g, PRECISION, (size_t[LIVES]){0});
    shared->config = g->config;
    shared->param_count = g->param_count;
    memcpy(shared->params, g->params, sizeof(g->params));
    if (!gradients) _exit(EXIT_DONE);
    const size_t both = 2 * batches * g->param_count * sizeof(float); // what the parent holds
    const double available = memory_available(), needed = mib(memory_plan(g).total + both);
    EXPECT(available == 0 || needed <= available,
           "%.0f MiB are needed, %.0f available; choose fewer BATCHES or a smaller -b", needed,
           available);
    machine_init(o->sum_order);
    gpt_allocate(g);
    model_load(g, &r->model_file);
    options_loss_scale(o, g);
    Step in = {.micro_batches = 1, .tokens = (long)g->B * g->config.T};
    g->record = g->record_weights = RECORD_STATS;
    shared->loss = 0;
    for (int i = 0; i < batches; i++) {
        in.index = i;
        gpt_refresh_weights(g);
        shared->loss += gpt_shard(g, &in, r, 0, (uint64_t)i) / batches;
        for (int k = 0; k < g->scale_count; k++) scale_advance(&g->scales[k]);
        float *to = gradients + i * g->param_count;
        for (size_t k = 0; k < g->param_count; k++) to[k] = g->grad[k] / g->loss_scale;
    }
    _exit(EXIT_DONE);
}
// argv has room for four more words.
static void way_run(int argc, char **argv, const char *recipe, const char *bf16, float *gradients) {
    const char *words[] = {"--recipe", recipe, "--bf16", bf16};
    for (int i = 0; recipe && i < COUNT(words); i++) argv[argc++] = (char *)words[i];
    argv[argc] = NULL;
    fflush(stdout);
    const pid_t pid = fork();
    EXPECT(pid >= 0, "cannot start: %s", strerror(errno));
    if (!pid) gradients_make(argc, argv, gradients);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    if (!WIFEXITED(status) || WEXITSTATUS(status)) _exit(EXIT_BAD_INPUT); // it has said why
}

// Sums over elements and micro-batches: <g, g>, <d, d>, <g, d>; and over pairs of micro-batches.
enum { GG, DD, GD, SUMS };
typedef struct {
    double same[SUMS], other[SUMS]; // means over i of <a_i, b_i>; over i != j of <a_i, b_j>
} Compared;
static Compared compare(const float *from, const float *to, size_t at, size_t n) {
    Compared c = {0};
    const size_t P = shared->param_count;
    const double pairs = (double)batches * (batches - 1);
    for (size_t k = at; k < at + n; k++) {
        double g_sum = 0, d_sum = 0, same[SUMS] = {0};
        for (int i = 0; i < batches; i++) {
            const double g = from[i * P + k], d = to[i * P + k] - g;
            g_sum += g;
            d_sum += d;
            same[GG] += g * g;
            same[DD] += d * d;
            same[GD] += g * d;
        }
        const double all[SUMS] = {g_sum * g_sum, d_sum * d_sum, g_sum * d_sum};
        for (int s = 0; s < SUMS; s++) {
            c.same[s] += same[s] / batches;
            c.other[s] += (all[s] - same[s]) / pairs;
        }
    }
    return c;
}
static double decibels(double ratio) { return 10 * log10(ratio); }
// way NULL: BF16's row.
static void row_print(const char *way, const char *tensor, const Compared *c) {
    const double *same = c->same, *other = c->other;
    const double cosine =
        (same[GG] + same[GD]) / sqrt(same[GG] * (same[GG] + 2 * same[GD] + same[DD]));
    const double mean = other[GG] > 0 ? other[GG] : NAN; // |mean g|^2; NAN: it is not seen
    printf("%s\t%s\t%.1f\t%.2e\t%.3f\t%+.3f\n", way ? way : "bf16", tensor,
           decibels(same[GG] / (way ? same[DD] : mean)), 1 - cosine,
           100 * sqrt(MAX(other[DD], 0) / mean), 100 * other[GD] / mean);
}
// qkv's weights are three tensors here: what makes queries, keys and values.
static const struct {
    const char *name;
    int linear, part, parts;
} tensors[] = {{"q", LIN_QKV, 0, 3},           {"k", LIN_QKV, 1, 3}, {"v", LIN_QKV, 2, 3},
               {"attproj", LIN_ATTPROJ, 0, 1}, {"fc", LIN_FC, 0, 1}, {"fcproj", LIN_FCPROJ, 0, 1}};
// way NULL: BF16, compared with itself.
static void way_print(const char *way, const float *from, const float *to) {
    Compared linear = {0};
    char name[64];
    for (int i = 0; i < shared->config.L * COUNT(tensors); i++) {
        const int l = i / COUNT(tensors), t = i % COUNT(tensors);
        const ParamSpec *s = &shared->params[linear_param[tensors[t].linear]];
        const size_t all = s->rows * s->cols, n = all / tensors[t].parts;
        const Compared c = compare(from, to, s->offset + l * all + tensors[t].part * n, n);
        for (int k = 0; k < SUMS; k++) {
            linear.same[k] += c.same[k];
            linear.other[k] += c.other[k];
        }
        snprintf(name, sizeof(name), "%d.%s", l, tensors[t].name);
        row_print(way, name, &c);
    }
    row_print(way, "linear", &linear);
    for (int id = WTE; id <= WPE; id++) {
        const ParamSpec *s = &shared->params[id];
        const Compared c = compare(from, to, s->offset, s->rows * s->cols);
        row_print(way, s->name, &c);
    }
}

int main(int argc, char **argv) {
    char *end = NULL;
    batches = argc > 1 ? (int)strtol(argv[1], &end, 10) : 0;
    EXPECT(argc > 1 && !*end && batches >= 2 && batches <= 1024,
           "usage: gradients BATCHES -e MODEL -i TEXT [trainer's options]; BATCHES: expected 2 to "
           "1024, found '%s'",
           argc > 1 ? argv[1] : "");
    char **words = (char **)memory_allocate((argc + 5) * sizeof(*words));
    words[0] = argv[0];
    for (int i = 2; i < argc; i++) words[i - 1] = argv[i];
    argc--;
    shared = (Shared *)shared_memory(sizeof(*shared));
    way_run(argc, words, NULL, NULL, NULL); // checks the options and tells the sizes
    const size_t bytes = batches * shared->param_count * sizeof(float);
    float *bf16 = (float *)shared_memory(bytes), *fp8 = (float *)shared_memory(bytes);
    way_run(argc, words, "delayed", "fprop+dgrad+wgrad", bf16);
    printf("# loss\t%.6f\nway\ttensor\tSQNR\tcosine\tbias\tgain\n", shared->loss);
    way_print(NULL, bf16, bf16);
    for (int w = 0; w < COUNT(ways); w++) {
        way_run(argc, words, ways[w].recipe, ways[w].bf16, fp8);
        way_print(ways[w].name, bf16, fp8);
    }
    EXPECT(!fflush(stdout), "cannot write the table: %s", strerror(errno));
    return 0;
}
