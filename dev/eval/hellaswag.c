/*
HellaSwag: which of four endings of a text does a model find likeliest? (Zellers et al. 2019.)
Chance is 25%.

    python3 data/hellaswag.py && make build/eval/hellaswag_fp8       # or _fp16, _bf16, _fp32
    build/eval/hellaswag_fp8 MODEL data/hellaswag/hellaswag_val.bin [-n TASKS] [-r]

MODEL is a model file of this trainer, of the CUDA trainer or of llm.c; or the directory of a run of
this precision, of which the newest checkpoint is taken. The tasks have llm.c's format, written by
data/hellaswag.py or by llm.c's own script. -n: only the first tasks. -r: first prints one row for
each task, with the summed losses of the four endings in nats and their numbers of tokens.

A row of the model's input is the context and one ending. The loss of an ending is that of its
tokens alone. Two choices are counted: the least mean loss a token, as llm.c chooses, and the least
summed loss, as lm_eval's acc does. (lm_eval's acc_norm divides by the characters of the ending, and
its own task edits the texts.) Of equal losses the first one is chosen.

A context and ending longer than the model's context lose tokens on the left, as in lm_eval; the
number of such tasks is printed. llm.c ends at one. An ending that alone does not fit is an error:
HellaSwag's longest has 411 bytes, so a model of bytes needs a context of 512 (-t 512).

FP8: a run's directory gives the tracked scales. A model file has none: each weight matrix is scaled
by its own amax, each position of x by its own, as in --eval -e. So in every precision a row's loss
does not depend on other rows. The exception is a run of --recipe current, whose x has one amax for
all rows.

A forward pass has the four endings of one task. The head's product and the loss run on the
positions of the endings alone.
*/
#define TESTING
#define PROGRAM "hellaswag"
#include "../../train_gpt_fp8.c"

#define TASKS_MAGIC 20240522
#define ENDINGS     4
#define USAGE       "usage: build/eval/hellaswag_NAME MODEL|RUN TASKS.bin [-n TASKS] [-r]"
#define MORE                                                                                       \
    "RUN: a run's directory, with its scales; MODEL: a model file, FP8 scaled by own amax\n"       \
    "-n: only the first tasks; -r: first a row for each task, with the losses of its endings"

typedef struct {
    int label, context; // the right ending; tokens of the context
    int length[ENDINGS];
    const uint16_t *tokens, *ending[ENDINGS]; // of the context, of the endings
} Task;
typedef struct {
    const char *path;
    int count, V;
    Task *tasks;
    const uint16_t *at, *end; // of what is still to be read
} TaskSet;

// ---- tasks

// Reads a number of min to max.
static int word_read(TaskSet *set, int task, const char *what, int min, int max) {
    EXPECT(set->at < set->end, "%s: task %d: expected %s, found the end of the file", set->path,
           task, what);
    const int found = *set->at++;
    EXPECT(found >= min && found <= max, "%s: task %d: expected %s of %d to %d, found %d",
           set->path, task, what, min, max, found);
    return found;
}
static const uint16_t *tokens_read(TaskSet *set, int task, int *length) {
    *length = word_read(set, task, "a number of tokens", 1, 32767);
    const uint16_t *tokens = set->at;
    for (int i = 0; i < *length; i++) word_read(set, task, "a token", 0, set->V - 1);
    return tokens;
}
static void task_read(TaskSet *set, int task) {
    Task *t = &set->tasks[task];
    const uint16_t *begin = set->at;
    word_read(set, task, "a delimiter", 65535, 65535);
    const int bytes = word_read(set, task, "its bytes", 0, 65535);
    word_read(set, task, "its index", task, task);
    t->label = word_read(set, task, "a label", 0, ENDINGS - 1);
    word_read(set, task, "a number of endings", ENDINGS, ENDINGS);
    t->tokens = tokens_read(set, task, &t->context);
    for (int i = 0; i < ENDINGS; i++) t->ending[i] = tokens_read(set, task, &t->length[i]);
    EXPECT(bytes == 2 * (set->at - begin), "%s: task %d: expected %d bytes, found %d", set->path,
           task, bytes, (int)(2 * (set->at - begin)));
}

static TaskSet tasks_open(const char *path) {
    const File f = file_open(path, 0);
    TaskSet set = {path, f.header[2], f.header[4] ? f.header[4] : GPT2_VOCAB, NULL, NULL, NULL};
    file_expect(path, "HellaSwag's tasks with magic number", f.header[0], TASKS_MAGIC, TASKS_MAGIC);
    file_expect(path, "version", f.header[1], 1, 1);
    file_expect(path, "tasks", set.count, 1, 65535);
    EXPECT(set.V == 256 || set.V == GPT2_VOCAB, "%s: expected a vocabulary of 256 or %d, found %d",
           path, GPT2_VOCAB, set.V);
    EXPECT(f.bytes > sizeof(FileHeader) && f.bytes % 2 == 0,
           "%s: expected a header and whole tokens, found %zu bytes", path, f.bytes);
    const size_t bytes = f.bytes - sizeof(FileHeader);
    uint16_t *words = (uint16_t *)memory_allocate(bytes);
    file_read(&f, sizeof(FileHeader), words, bytes);
    close(f.fd);
    set.tasks = (Task *)memory_allocate(set.count * sizeof(Task));
    set.at = words;
    set.end = words + bytes / 2;
    for (int i = 0; i < set.count; i++) task_read(&set, i);
    EXPECT(set.at == set.end,
           "%s: expected the end of the file after %d tasks, found %ld more bytes", path, set.count,
           (long)(2 * (set.end - set.at)));
    return set;
}

// ---- the model

// Opens MODEL, a file or a run's directory, for the rows of these tasks.
static void model_open(Run *r, char *path, const TaskSet *set) {
    Options *o = &r->o;
    Gpt *g = &r->g;
    struct stat st;
    *o = options_parse(1, &path, r->given);
    o->resume = !stat(path, &st) && S_ISDIR(st.st_mode);
    r->prompts = 1; // so that T is the model's
    if (o->resume) {
        o->out = path;
        const long step = run_directory(&r->dir, o, 1, 0);
        path_print(r->state.path, "%s/state_%08ld.bin", path, step);
        path_print(r->model, "%s/model_%08ld.bin", path, step);
        state_check(&r->state);
        options_resume(o, r->state.options, r->given, r->state.path);
        r->progress = r->state.progress;
    } else path_print(r->model, "%s", path);
    options_recipes(o, g);
    if (!o->resume) options_bare(o, g);
    run_open_model(r, 0);
    EXPECT(g->config.V == set->V, "%s: expected tasks of a vocabulary of %d, as %s has, found %d",
           set->path, g->config.V, r->model, set->V);
    options_products(o, g);
    g->B = ENDINGS;
}
static void model_start(Run *r) {
    Gpt *g = &r->g;
    memory_check(g);
    backend_start(r);
    gpt_allocate(g);
    model_load(g, &r->model_file);
    if (r->o.resume) state_load(g, &r->state);
    printf("model       %s, %s\n", r->model,
           !IS_FP8       ? PRECISION_NAME
           : r->o.resume ? "fp8 with the run's scales"
                         : "fp8, scaled by own amax: a model file has no tracked scales");
}

// ---- scores

// The summed losses of a task's endings. T: the model's context.
static void task_losses(Gpt *g, const Task *t, int T, int *tokens, int *targets, double *sums) {
    const size_t C = g->config.C;
    int n = 0, begin[ENDINGS], rows = 0; // begin: the first token that is kept; n: of the longest
    for (int e = 0; e < ENDINGS; e++) {
        begin[e] = MAX(t->context + t->length[e] - (T + 1), 0);
        n = MAX(n, t->context + t->length[e] - begin[e] - 1);
    }
    memset(tokens, 0, ENDINGS * n * sizeof(int));
    for (int e = 0; e < ENDINGS; e++) // the last token is a target only
        for (int i = begin[e]; i < t->context + t->length[e] - 1; i++)
            tokens[e * n + i - begin[e]] =
                i < t->context ? t->tokens[i] : t->ending[e][i - t->context];
    gpt_forward_blocks(g, tokens, ENDINGS, n, 0);
    for (int e = 0; e < ENDINGS; e++) { // the positions before the ending's tokens move together
        const size_t first = e * n + t->context - begin[e] - 1;
        memmove(g->lnf + rows * C, g->lnf + first * C, t->length[e] * C * sizeof(stored_t));
        for (int i = 0; i < t->length[e]; i++) targets[rows++] = t->ending[e][i];
    }
    for (int row = 0; row < rows; row += HEAD_ROWS) {
        const int slab = MIN(rows - row, HEAD_ROWS);
        head_forward(g, g->logits, row, slab);
        classifier(g->losses + row, NULL, g->logits, targets + row, slab, g->config.V, g->config.Vp,
                   0);
    }
    const float *loss = g->losses;
    for (int e = 0; e < ENDINGS; e++) {
        sums[e] = 0;
        for (int i = 0; i < t->length[e]; i++) sums[e] += *loss++;
    }
}

// The ending with the least loss: of a token, or in all.
static int choice(const Task *t, const double *sums, int by_token) {
    int best = 0;
    double least = INFINITY;
    for (int e = 0; e < ENDINGS; e++) {
        const double loss = by_token ? sums[e] / t->length[e] : sums[e];
        if (loss < least) best = e;
        least = MIN(least, loss);
    }
    return best;
}

static void row_print(int task, const Task *t, const double *sums) {
    printf("%d\t%d", task, t->label);
    for (int e = 0; e < ENDINGS; e++) printf("\t%.9g", sums[e]);
    for (int e = 0; e < ENDINGS; e++) printf("\t%d", t->length[e]);
    printf("\n");
}
static void score_print(const char *name, long right, long n) {
    const double p = (double)right / n;
    printf("%s %.4f +- %.4f\n", name, p, sqrt(p * (1 - p) / MAX(n - 1, 1)));
}

static void progress_print(long done, long n, const long *right, double begin) {
    static double printed;
    char left[64];
    const double now = seconds_now();
    if (now - MAX(printed, begin) < (isatty(STDERR_FILENO) ? 0.5 : 60)) return;
    printed = now;
    fprintf(stderr, "%ld/%ld tasks, %s left | accuracy %.4f%s", done, n,
            duration_text((now - begin) * (n - done) / done, left), (double)right[1] / done,
            isatty(STDERR_FILENO) ? "\033[K\r" : "\n");
}

// Scores the first n tasks. right: how many choices are right, by the sum and by the mean.
static void tasks_score(Run *r, const TaskSet *set, long n, int T, int rows, long *right) {
    int *tokens = (int *)memory_allocate(ENDINGS * r->g.config.T * sizeof(int));
    int *targets = (int *)memory_allocate(ENDINGS * r->g.config.T * sizeof(int));
    double sums[ENDINGS];
    const double begin = seconds_now();
    for (long i = 0; i < n; i++) {
        const Task *t = &set->tasks[i];
        task_losses(&r->g, t, T, tokens, targets, sums);
        for (int e = 0; e < ENDINGS; e++)
            if (!isfinite(sums[e]))
                fatal(EXIT_NONFINITE, "task %ld: a loss is not finite; this model diverged", i);
        if (rows) row_print(i, t, sums);
        for (int by_token = 0; by_token < 2; by_token++)
            right[by_token] += choice(t, sums, by_token) == t->label;
        progress_print(i + 1, n, right, begin);
    }
    printf("seconds     %.1f\n", seconds_now() - begin);
}

// Returns how many of the first n tasks lose tokens on the left, and sets the longest row. Ends the
// program if an ending does not fit.
static long tasks_fit(const TaskSet *set, long n, int T, int *longest) {
    long cut = 0;
    *longest = 1;
    for (long i = 0; i < n; i++) {
        const Task *t = &set->tasks[i];
        int most = 0;
        for (int e = 0; e < ENDINGS; e++) most = MAX(most, t->length[e]);
        EXPECT(most <= T, "%s: task %ld: an ending has %d tokens, the model's context %d",
               set->path, i, most, T);
        cut += t->context + most - 1 > T;
        *longest = MAX(*longest, MIN(t->context + most - 1, T));
    }
    return cut;
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    char *files[2] = {NULL, NULL}, *end;
    long n = LONG_MAX, right[2] = {0};
    int rows = 0, T, longest;
    surroundings_init();
    for (int i = 1, file = 0; i < argc; i++) {
        if (!strcmp(argv[i], "--help")) return puts(USAGE "\n" MORE) < 0;
        if (!strcmp(argv[i], "-r")) rows = 1;
        else if (!strcmp(argv[i], "-n") && i + 1 < argc) {
            n = strtol(argv[++i], &end, 10);
            EXPECT(n > 0 && !*end, "option -n: expected a number of tasks, found '%s'", argv[i]);
        } else {
            EXPECT(argv[i][0] != '-' && file < 2, "unexpected argument '%s'; " USAGE, argv[i]);
            files[file++] = argv[i];
        }
    }
    EXPECT(files[1], USAGE);
    const TaskSet set = tasks_open(files[1]);
    n = MIN(n, set.count);
    model_open(r, files[0], &set);
    T = r->g.config.T;
    const long cut = tasks_fit(&set, n, T, &longest);
    if (!r->o.resume) r->g.config.T = longest; // a state has the size of its model
    model_start(r);
    tasks_score(r, &set, n, T, rows, right);
    printf("tasks       %ld, of which %ld lost tokens on the left\n", n, cut);
    score_print("accuracy    by mean loss a token, as llm.c", right[1], n);
    score_print("accuracy    by summed loss                ", right[0], n);
    return EXIT_DONE;
}
