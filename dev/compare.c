/*
Trains several arms (precisions or recipes) with the same seeds and data, and tests whether their
losses differ.

    make build/compare
    build/compare --arms "fp16,bf16,fp8,fp8 --recipe scale=1" --seeds 5 --out DIR -- -e d4 -x 400
    build/compare --logs log/fp16 log/bf16 log/fp8      compares runs that are there

An arm is the name of a build (fp8, fp16, bf16, fp32; with cu at its end: the CUDA file's build) and
options of its own. Words of a recipe are joined by plus signs here, because commas separate arms:
"fp8 --recipe te+dy:margin=1". The options after -- go to every arm. A seed sets the initial weights
and the order of the data, so that arms are compared in pairs.

The same command continues a comparison that was stopped. It keeps finished runs and resumes the
others from their checkpoints. A run that cannot be resumed (it has no checkpoint, or a damaged log)
is renamed to DIR/ARM-SEED.old-N and trained again. A run that diverged would diverge again. It is
trained again only after its file DIR/ARM-SEED.diverged is removed.

DIR receives one directory for each run, and these files:
    runs.tsv      one row for each run
    summary.tsv   one row for each arm
    report.html   one page with the curves and the scale atlas
    curves.svg    a picture of the losses and the gaps

Options:
    --arms LIST       what is compared, separated by commas [fp16,bf16,fp8]
    --seeds N         seeds 1 to N; or N-M [5]
    --out DIR         [log/compare; with --pool log/pooled, with --logs log/compare-logs]
    --reference NAME  the arm that gaps are measured against, besides bf16 [fp16, or the first arm]
    --jobs N          runs at a time, each on its share of the threads. Small models train faster
                      this way, but tokens/s and seconds are then those of a shared machine. [1]
    --primary ARM     the one comparison declared before looking: shown first, and its p is not
                      corrected for the other arms
    --null            also trains arms that differ in nothing that should count: the reference with
                      another order of sums, and fp32. They show how large chance gaps are
    --placebo ARM     also trains this arm, and marks it: a change that should not count, as
                      "fp8 --bf16 0.fc.fprop"
    --bound X         a gap inside +-X nats counts as none [0.002]
    --pool A,B,..     trains nothing: compares the rows of these runs.tsv (of other seeds or other
                      machines) as one comparison, without curves
    --logs DIR DIR .. trains nothing: compares runs that are there, as log/fp16 and log/fp8. Runs
                      that differ in FP8's options make arms; runs with other data, another
                      model or other seeds are left out, with a line that says why
    --statistics FILE reads two columns of numbers; prints n, mean difference, standard error, 95%
                      interval and p, and stops

Verdicts:
    match      the 95% interval of the gap lies inside the bound
    worse      the whole interval lies above zero (better: below zero)
    undecided  neither; from four seeds on it names the number of seeds that may decide, a guess
Adding seeds until a verdict pleases makes chance verdicts likelier than 1 in 20. So does comparing
many arms: Holm's p is corrected for all arms but the primary one and the null arms.

The noise band shows how far two averages of as many reference runs differ by seed alone, in 95 of
100 cases. Without pairing by seed, a gap inside the band could not be seen.

The last validation is one point of a noisy curve. gap_half therefore compares the means of all
validations after half of the steps.

The BF16 build also validates the last weights of an FP8 arm, and gap_trained is the gap of that
loss to BF16's. This separates the error made during training from the error made when validating in
FP8.

Exit status: 0 the comparison is done, whatever its verdicts are; 1 a run died or diverged; 2 bad
input.
*/
#define TESTING
#define PROGRAM program_name // errors of the trainer's option parser name the arm, too
static char program_name[320] = "compare";
#include "../train_gpt_fp8.c"
#include <sys/wait.h>
#ifdef __linux__
#include <sys/prctl.h>
#else
#define prctl(option, signal) (void)0 // elsewhere the runs of a comparison that is killed go on
#endif

#define ARMS_MAX    32
#define SEEDS_MAX   256
#define POINTS_MAX  4096
#define WORDS_MAX   512
#define RUNS_HEADER "\narm\tseed\tval_loss\tval_loss_bf16\tval_loss_half\ttok_s\tpeak_mib\tstate\n"
static Directory output; // --out, locked; its files are written through it

// ==== 1. statistics ============================================================================

// The regularized incomplete beta function I_x(a, b) by its continued fraction (Lentz; Numerical
// Recipes 6.4).
static double beta_fraction(double a, double b, double x) {
    double c = 1, d = 1 / (1 - (a + b) * x / (a + 1)), h = d;
    for (int m = 1; m < 300; m++) {
        const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        d = 1 / (1 + even * d);
        c = 1 + even / c;
        h *= d * c;
        d = 1 / (1 + odd * d);
        c = 1 + odd / c;
        h *= d * c;
    }
    return h;
}
static double beta_incomplete(double a, double b, double x) {
    if (x <= 0 || x >= 1) return x > 0;
    const double logs = lgamma(a + b) - lgamma(a) - lgamma(b);
    const double front = exp(logs + a * log(x) + b * log1p(-x));
    if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(a, b, x) / a;
    return 1 - front * beta_fraction(b, a, 1 - x) / b;
}
// The share of Student's t distribution beyond +-t.
static double t_two_sided(double t, double df) {
    return beta_incomplete(df / 2, 0.5, df / (df + t * t));
}
// The t beyond which, on both sides together, the share p lies.
static double t_quantile(double p, double df) {
    double low = 0, high = 1e6;
    for (int i = 0; i < 200; i++) {
        const double middle = (low + high) / 2;
        if (t_two_sided(middle, df) > p) low = middle;
        else high = middle;
    }
    return low;
}

// Paired differences: their mean, its standard error, the 95% interval of Student's t, and the
// p-value of "the mean is 0".
typedef struct {
    int n;
    double mean, error, low, high, p;
} Gap;
static Gap gap_of(const double *a, const double *b, int n) {
    Gap g = {n, 0, INFINITY, -INFINITY, INFINITY, 1};
    double squares = 0;
    for (int i = 0; i < n; i++) g.mean += (a[i] - b[i]) / n;
    for (int i = 0; i < n; i++) squares += (a[i] - b[i] - g.mean) * (a[i] - b[i] - g.mean);
    if (n < 2) return g;
    g.error = sqrt(squares / (n - 1) / n);
    const double half = t_quantile(0.05, n - 1) * g.error;
    g.low = g.mean - half;
    g.high = g.mean + half;
    g.p = g.error > 0 ? t_two_sided(g.mean / g.error, n - 1) : g.mean == 0;
    return g;
}

// Holm's p-values of n p-values: the smallest times n, the next times n - 1, and so on, never
// falling and at most 1.
static void holm(const double *p, int n, double *adjusted) {
    double largest = 0;
    for (int i = 0; i < n; i++) adjusted[i] = NAN;
    for (int rank = 0; rank < n; rank++) {
        int smallest = -1;
        for (int i = 0; i < n; i++) {
            if (isnan(adjusted[i]) && (smallest < 0 || p[i] < p[smallest])) smallest = i;
        }
        largest = MAX(largest, MIN(1, (n - rank) * p[smallest]));
        adjusted[smallest] = largest;
    }
}

// How many more seeds a decision may take if mean and spread stay: until the interval lies inside
// the bound, or on one side of zero.
static int seeds_needed(const Gap *g, double bound) {
    const double spread = g->error * sqrt(g->n);
    for (int n = g->n + 1; n < 1000; n++) {
        const double half = t_quantile(0.05, n - 1) * spread / sqrt(n);
        if (fabs(g->mean) + half <= bound || fabs(g->mean) - half > 0) return n - g->n;
    }
    return 1000;
}

// ==== 2. runs ==================================================================================

typedef struct {
    char dir[PATH_MAX], *log;
    char died[256]; // why this run has no final loss, or ""
    int points;     // validations
    double step[POINTS_MAX], val[POINTS_MAX], seconds[POINTS_MAX];
    double final_loss; // the last validation; NAN: unknown
    double final_bf16; // the last validation of the same weights by the BF16 build; NAN: unknown
    double half_loss;  // mean of the validations after half of the steps
    double tok_s, mib;
    long stopped_at;     // its last step
    const char *damaged; // the first line of its rows that is no next row; NULL: there is none
} TrainedRun;
typedef struct {
    char label[256], build[16], options[256], slug[256];
    int is_null, is_placebo;
    TrainedRun *runs; // [seeds]
} Arm;
static struct {
    Arm arms[ARMS_MAX];
    int arm_count, seeds;
    int reference, bf16, primary; // indices of arms; -1 (not the reference): no such arm
    int seed[SEEDS_MAX];
    int width; // of the longest label
    double bound, floor;
    const char *out, *common; // common: what goes to every arm, as a shell would be given it
    char *words[240];         // the same, word by word
    int word_count;
    long steps;       // of a run; 0: unknown
    const char *unit; // of a loss
    char differ[256]; // --logs: in what runs differ that are left out, as "data_hash, steps"
    char data[160];   // hashes of the data, and the version of the bits: "DATA VAL NUMERICS"
} all = {.primary = -1, .bound = 0.002, .unit = "nats a token"};

// The index of the arm with a label; -1: there is none.
static int arm_index(const char *label) {
    for (int a = 0; a < all.arm_count; a++) {
        if (!strcmp(all.arms[a].label, label)) return a;
    }
    return -1;
}

// Appends the options that every run of an arm is given to argv[0 .. n): quiet, the common words,
// the arm's own words, which are cut apart in `text`. Returns how many words there are then.
static int words_of(const Arm *arm, char **argv, int n, char *text) {
    argv[n++] = (char *)"-s";
    argv[n++] = (char *)"0";
    for (int i = 0; i < all.word_count; i++) argv[n++] = all.words[i];
    strcpy(text, arm->options);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) argv[n++] = word;
    argv[n] = NULL;
    return n;
}

static int status_code(int status) {
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
// Runs a program with its output appended to a file; returns its exit status.
static int program_run(char **argv, const char *path) {
    fflush(stdout);
    const pid_t pid = fork();
    EXPECT(pid >= 0, "cannot start %s: %s", argv[0], strerror(errno));
    if (pid == 0) {
        // a comparison that ends early stops its runs, which then write a checkpoint
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0666);
        if (fd >= 0) {
            dup2(fd, 1);
            dup2(fd, 2);
        }
        execv(argv[0], argv);
        _exit(127);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    return status_code(status);
}

// The number after the last `key` in a text, or 0.
static double number_after(const char *text, const char *key) {
    double value = 0;
    for (const char *at = strstr(text, key); at; at = strstr(at, key)) {
        at += strlen(key);
        value = atof(at);
    }
    return value;
}

// Whether a row's validation loss is a number, or the word for none (in older logs a dash).
static int val_is_good(const char *row, int *validated) {
    char *end;
    for (int cell = 0; cell < 3; cell++) row += strcspn(row, "\t\n") + 1;
    *validated = strncmp(row, "-\t", 2) && strncmp(row, "nan\t", 4);
    strtod(row, &end);
    return !*validated || (end > row && *end == '\t');
}
// Reads the rows of a run's log, up to a hole in the steps or a loss that is no number. A last line
// without its end is being written.
static int cells_read(const char *at, double *cells, int n); // NAN: a cell is no number
static void rows_read(TrainedRun *r) {
    double seconds = 0, rates = 0;
    const char *at = strstr(r->log, "\nstep\t");
    for (at = at ? strchr(at + 1, '\n') : NULL; at && strchr(at + 1, '\n'); at = strchr(at, '\n')) {
        double row[9]; // step, .., val_loss, .., ms, tok_s
        int validated;
        if (*++at == '#') continue;
        if (!cells_read(at, row, 9) || row[0] != (double)(r->stopped_at + 1) ||
            !val_is_good(at, &validated)) {
            r->damaged = at;
            break;
        }
        r->stopped_at++;
        seconds += row[7] * 1e-3;
        rates += row[8];
        if (!validated || r->points == POINTS_MAX) continue;
        r->step[r->points] = row[0];
        r->val[r->points] = row[3];
        r->seconds[r->points++] = seconds;
    }
    r->tok_s = r->stopped_at ? rates / r->stopped_at : 0;
}

// The steps that a run shall have. A run that was continued says so in a later line.
static long steps_of(const TrainedRun *r) { return (long)number_after(r->log, "# steps\t"); }

// The mean of a run's validations after half of its steps; NAN: there are none.
static double half_mean(const TrainedRun *r) {
    const long steps = steps_of(r);
    double sum = 0;
    int n = 0;
    for (int p = 0; p < r->points; p++) {
        if (2 * r->step[p] <= (double)steps) continue;
        sum += r->val[p];
        n++;
    }
    return n ? sum / n : NAN;
}

// Reads a run's log. Returns whether the run is whole: its last step is there, with a validation.
static int run_read(TrainedRun *r) {
    char path[PATH_MAX];
    path_print(path, "%s/log.tsv", r->dir);
    free(r->log);
    r->log = text_read(path);
    r->points = 0;
    r->stopped_at = 0;
    r->damaged = NULL;
    r->final_loss = NAN;
    if (!r->log) return 0;
    rows_read(r);
    EXPECT(r->points < POINTS_MAX, "%s: more than %d validations", path, POINTS_MAX - 1);
    const long steps = steps_of(r);
    const int last = r->points - 1;
    const int whole =
        steps > 0 && r->stopped_at == steps && last >= 0 && r->step[last] == (double)steps;
    r->half_loss = half_mean(r);
    if (whole) r->final_loss = r->val[last];
    if (whole && !isfinite(r->final_loss)) {
        snprintf(r->died, sizeof(r->died), "diverged: its last validation loss is not finite");
    }
    return whole;
}

// Whether arms may differ in an option: in FP8's own, in the order of sums and in the loss scale.
static int option_is_own(const OptionSpec *s) {
    return s->scope == (FP8 | FIXED) || (s->scope & OWN) || !strcmp(s->name, "sum-order");
}
// Whether an option makes two runs incomparable: all do that are part of a run's identity, but for
// an arm's own and the seeds.
static int option_is_shared(const OptionSpec *s) {
    return s->scope == FIXED && !option_is_own(s) && strcmp(s->name, "seed") &&
           strcmp(s->name, "data-seed");
}
// An option's default, as a log would have it.
static const char *option_default(const OptionSpec *s, char *value) {
    static Options o;
    option_set(&o, s, s->initial, "default");
    return option_text(&o, s, value);
}
// What a log says of an option. An older log may lack it: then it had the default.
static const char *log_option(const TrainedRun *r, const OptionSpec *s, char *value) {
    if (!*text_value(r->log, s->name, value)) return option_default(s, value);
    if (!strcmp(s->name, "steps")) path_print(value, "%ld", steps_of(r));
    return value;
}
// The name of the first thing in which two runs differ that must be the same, and what both have;
// NULL: there is none. Of `also`, the first n names count.
static const char *config_difference(const TrainedRun *r, const TrainedRun *first, int n,
                                     char *mine, char *theirs) {
    static const char *const also[] = {"data_hash",    "val_hash",  "floor", "numerics",
                                       "attention_by", "val-every", "train", "val"};
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionSpec *s = &option_specs[i];
        if (!option_is_shared(s)) continue;
        if (strcmp(log_option(r, s, mine), log_option(first, s, theirs))) return s->name;
    }
    for (int i = 0; i < n; i++) {
        text_value(r->log, also[i], mine);
        text_value(first->log, also[i], theirs);
        if (!strcmp(also[i], "attention_by") && (!*mine || !*theirs)) continue; // one on the CPU
        if (strcmp(mine, theirs)) return also[i];
    }
    return NULL;
}
enum { SAME_DATA = 5, SAME_COMMAND = 8 }; // how many names of `also` count

static void run_compare(const TrainedRun *r, const TrainedRun *first, int seed) {
    char found[PATH_MAX], want[PATH_MAX];
    const char *name = config_difference(r, first, SAME_COMMAND, found, want);
    EXPECT(!name,
           "%s and %s are not of one configuration: %s is '%s' and '%s'; arms differ in FP8's "
           "options alone",
           r->dir, first->dir, name, found, want);
    int same = r->died[0] || first->died[0] || r->points == first->points;
    for (int p = 0; p < MIN(r->points, first->points); p++) {
        same = same && r->step[p] == first->step[p];
    }
    EXPECT(
        same,
        "%s and %s are not validated at the same steps: a log was edited; remove the damaged run",
        r->dir, first->dir);
    path_print(want, "%d", seed);
    EXPECT(!strcmp(text_value(r->log, "seed", found), want) &&
               !strcmp(text_value(r->log, "data-seed", found), want),
           "%s: expected seeds %d, found another; use another --out", r->dir, seed);
}

// What a run's log says of its data: their hashes, the version of the bits, the floor.
static void data_read(const TrainedRun *r) {
    char data[PATH_MAX], val[PATH_MAX], numerics[PATH_MAX], floor[PATH_MAX];
    text_value(r->log, "data_hash", data);
    text_value(r->log, "val_hash", val);
    text_value(r->log, "numerics", numerics);
    snprintf(all.data, sizeof(all.data), "%.40s %.40s %.40s", data, val, numerics);
    all.floor = atof(text_value(r->log, "floor", floor));
    if (number_after(text_value(r->log, "shape", data), "vocabulary ") == 256) {
        all.unit = "nats a byte"; // a token is a byte
    }
}

// Whether two command lines are the same but for quotes, which older directories do not have.
static int words_same(const char *a, const char *b) {
    for (;; a++, b++) {
        a += strspn(a, "'\"");
        b += strspn(b, "'\"");
        if (*a != *b || !*a) return *a == *b;
    }
}

// Waits until no program trains in a directory, and locks it; -1: there is no such directory. A
// trainer that a stopped comparison left behind finishes its step and writes a checkpoint.
static int run_lock(const char *dir) {
    for (int waits = 0; !access(dir, F_OK); waits = 1) {
        const int fd = directory_lock(dir);
        if (fd >= 0) return fd;
        if (!waits) printf("waiting for the program that trains in %s\n", dir);
        usleep(100000);
    }
    return -1;
}

// Writes a text to the file beside a run's directory whose name ends so.
static void file_put(const TrainedRun *r, const char *end, const char *text) {
    char name[PATH_MAX];
    path_print(name, "%s%s", strrchr(r->dir, '/') + 1, end);
    FILE *f = file_begin(&output, name);
    fputs(text, f);
    file_commit(f, &output, name);
}

// Has the BF16 build validate a run's last weights, its output to `path`. The options are those of
// the run's log that say what is validated.
static void validate_in_bf16(const Arm *arm, const TrainedRun *r, const char *model,
                             const char *path) {
    static const char *const options[] = {"train",   "val",      "batch",
                                          "seq-len", "val-rows", "sum-order"};
    char program[64], value[PATH_MAX], part[PATH_MAX], *argv[24];
    int n = 0;
    snprintf(program, sizeof(program), "./train_gpt_bf16%s", arm->build + 3); // "" or "cu"
    if (access(program, X_OK)) return;
    argv[n++] = program;
    argv[n++] = (char *)"--eval";
    argv[n++] = (char *)"--model";
    argv[n++] = (char *)model;
    for (int i = 0; i < 6; i++) {
        if (!*text_value(r->log, options[i], value)) continue;
        argv[n] = (char *)memory_allocate(strlen(options[i]) + strlen(value) + 8);
        sprintf(argv[n++], "--%s=%s", options[i], value);
    }
    if (*text_value(r->log, "attention_by", value)) { // on a GPU: by the same kernels
        argv[n++] = (char *)(strcmp(value, "own") ? "--attention=cudnn" : "--attention=own");
    }
    argv[n] = NULL;
    path_print(part, "%s.part", path);
    unlink(part);
    if (program_run(argv, part) == 0) rename(part, path);
}
static double run_evaluate(const Arm *arm, const TrainedRun *r) {
    char model[PATH_MAX], path[PATH_MAX];
    path_print(path, "%s.bf16", r->dir);
    path_print(model, "%s/model_%08ld.bin", r->dir, r->stopped_at);
    if (access(path, F_OK) && !access(model, F_OK)) validate_in_bf16(arm, r, model, path);
    char *said = text_read(path);
    return said && strstr(said, ": loss ") ? number_after(said, ": loss ") : NAN;
}

// Checks that a run's directory was made by the command that would make it now. The command stands
// beside the directory. Nothing else in DIR is read or removed.
static void run_claim(const Arm *arm, const TrainedRun *r, int seed) {
    char command[4 * PATH_MAX], path[PATH_MAX];
    snprintf(command, sizeof(command), "./train_gpt_%s -s 0 %s %s --seed %d --data-seed %d\n",
             arm->build, all.common, arm->options, seed, seed);
    path_print(path, "%s.command", r->dir);
    char *made_by = text_read(path);
    EXPECT(made_by || access(r->dir, F_OK),
           "%s: there is such a directory, but no word of what made it; use another --out", r->dir);
    EXPECT(!made_by || words_same(made_by, command),
           "%s was made by '%.*s', this would be '%.*s'; use another --out", r->dir,
           (int)strcspn(made_by, "\n"), made_by, (int)strcspn(command, "\n"), command);
    if (!made_by) file_put(r, ".command", command);
    free(made_by);
}

// Whether a run can be resumed: its log has every row up to the newest checkpoint, which is not the
// run's end, after which nothing more would be written to the log.
static int run_can_resume(const TrainedRun *r) {
    if (!r->log) return 0;
    const long newest = checkpoint_newest(r->dir, LONG_MAX);
    return newest >= 0 && newest <= r->stopped_at && newest < steps_of(r);
}

// Renames the directory of a run that cannot be resumed. Nothing is deleted: the directory may have
// checkpoints, or be no run at all.
static void run_set_aside(const TrainedRun *r) {
    char aside[PATH_MAX];
    int k = 0;
    do { path_print(aside, "%s.old-%d", r->dir, ++k); } while (!access(aside, F_OK));
    EXPECT(rename(r->dir, aside) == 0, "%s: cannot be renamed: %s", r->dir, strerror(errno));
    printf("%s cannot go on (no checkpoint, or a damaged log): it is now %s, and is made again\n",
           r->dir, aside);
}

// Ends the program if a trainer refused its input; its last line says why.
static void run_refused(const Arm *arm, int seed, int status, const char *path) {
    if (status != EXIT_BAD_INPUT && status != 127) return;
    char *said = text_read(path), *end = said ? said + strlen(said) : NULL;
    while (end && end > said && end[-1] == '\n') *--end = 0;
    const char *line = said ? strrchr(said, '\n') : NULL;
    if (line) line++;
    else if (said && *said) line = said;
    else line = "no output";
    fatal(EXIT_BAD_INPUT, "arm '%s', seed %d: %s", arm->label, seed, line);
}

// Trains a run, or resumes it; reads its log, and says in r->died why it has no final loss. `lock`
// is that of its directory.
static void arm_train(const Arm *arm, TrainedRun *r, int seed, int lock) {
    char program[64], text[256], number[16], path[PATH_MAX], value[PATH_MAX], *argv[WORDS_MAX];
    int n = 0;
    snprintf(program, sizeof(program), "./train_gpt_%s", arm->build);
    snprintf(number, sizeof(number), "%d", seed);
    argv[n++] = program;
    EXPECT(!r->log || !*text_value(r->log, "seed", value) || atol(value) == seed,
           "%s: expected seed %d, found %s; use another --out", r->dir, seed, value);
    const int resumes = run_can_resume(r);
    if (resumes) {
        argv[n++] = (char *)"-y";
    } else {
        path_print(path, "%s.bf16", r->dir);
        unlink(path);
        path_print(path, "%s.out", r->dir);
        unlink(path);
        if (lock >= 0) run_set_aside(r);
        n = words_of(arm, argv, n, text);
        argv[n++] = (char *)"--seed";
        argv[n++] = number;
        argv[n++] = (char *)"--data-seed";
        argv[n++] = number;
    }
    argv[n++] = (char *)"-o";
    argv[n++] = r->dir;
    argv[n] = NULL;
    close(lock);
    path_print(path, "%s.out", r->dir);
    const int status = program_run(argv, path);
    run_refused(arm, seed, status, path);
    if (status == EXIT_INTERRUPTED) exit(status);
    if (run_read(r)) return;
    const size_t room = sizeof(r->died);
    if (status == EXIT_NONFINITE) {
        snprintf(r->died, room, "diverged at step %ld", r->stopped_at + 1);
        file_put(r, ".diverged", r->died);
    } else if (status > 128) {
        snprintf(r->died, room, "killed by signal %d after step %ld", status - 128, r->stopped_at);
    } else {
        snprintf(r->died, room, "died after step %ld with status %d", r->stopped_at, status);
    }
}

// Makes the run of one arm with the seed at an index, unless it is there already; then reads it.
static void run_make(Arm *arm, int index) {
    TrainedRun *r = &arm->runs[index];
    const int seed = all.seed[index];
    char program[64], path[PATH_MAX], value[PATH_MAX];
    snprintf(program, sizeof(program), "./train_gpt_%s", arm->build);
    path_print(r->dir, "%s/%s-%d", all.out, arm->slug, seed);
    EXPECT(!access(program, X_OK), "arm '%s': %s: no such program; run make", arm->label, program);
    run_claim(arm, r, seed);
    const int lock = run_lock(r->dir); // before anything is looked at
    const int whole = run_read(r);
    path_print(path, "%s.diverged", r->dir);
    char *ended = whole ? NULL : text_read(path);
    if (ended && !r->died[0] && r->log &&
        number_after(ended, "step ") == (double)(r->stopped_at + 1)) {
        snprintf(r->died, sizeof(r->died), "%s", ended); // the file is of this log
    }
    free(ended);
    if (whole || r->died[0]) {
        close(lock);
    } else {
        unlink(path);
        arm_train(arm, r, seed, lock);
    }
    if (!r->log) return;
    path_print(path, "%s.out", r->dir);
    char *said = text_read(path);
    r->mib = said ? number_after(said, "peak memory ") : 0;
    free(said);
    all.floor = atof(text_value(r->log, "floor", value));
    r->final_bf16 = NAN;
    if (!strncmp(arm->build, "fp8", 3) && !r->died[0]) r->final_bf16 = run_evaluate(arm, r);
}

// ==== 3. the verdict ===========================================================================

// Copies a number that every run of an arm has, by its offset in TrainedRun; returns whether it is
// known of all.
enum {
    LAST = offsetof(TrainedRun, final_loss),
    LAST_BF16 = offsetof(TrainedRun, final_bf16),
    HALF = offsetof(TrainedRun, half_loss)
};
static int losses_of(const Arm *arm, size_t field, double *out) {
    for (int s = 0; s < all.seeds; s++) {
        memcpy(&out[s], (const char *)&arm->runs[s] + field, sizeof(double));
        if (arm->runs[s].died[0] || !isfinite(out[s])) return 0;
    }
    return 1;
}

// The paired gap of one arm's numbers to another's, which may be -1: no such arm.
static Gap gap_between(const Arm *arm, size_t field, int other, size_t other_field) {
    double a[SEEDS_MAX], b[SEEDS_MAX];
    if (other < 0 || !losses_of(arm, field, a) || !losses_of(&all.arms[other], other_field, b)) {
        return (Gap){0, NAN, NAN, NAN, NAN, NAN};
    }
    return gap_of(a, b, all.seeds);
}

// What is said of an interval that decides nothing. Few seeds do not tell the spread.
enum { SEEDS_TO_PLAN = 4 };
static void undecided_print(const Gap *g, char *out, size_t room) {
    if (g->n < 2) {
        snprintf(out, room, "undecided: one seed has no error bar");
        return;
    }
    if (g->n < SEEDS_TO_PLAN) {
        snprintf(out, room, "undecided: %d seeds are too few to plan by", g->n);
        return;
    }
    const int more = seeds_needed(g, all.bound);
    const char *text = "undecided: needs %d more seeds";
    if (more == 1) text = "undecided: needs %d more seed";
    if (more >= 1000) text = "undecided: %d more seeds would not do";
    snprintf(out, room, text, more);
}

// Writes an arm's verdict; returns whether one of its runs died.
static int arm_verdict(const Arm *arm, char *out, size_t room) {
    for (int s = 0; s < all.seeds; s++) {
        if (!arm->runs[s].died[0]) continue;
        snprintf(out, room, "%s (seed %d)", arm->runs[s].died, all.seed[s]);
        return 1;
    }
    const Gap g = gap_between(arm, LAST, all.reference, LAST);
    if (arm == &all.arms[all.reference]) snprintf(out, room, "reference");
    else if (g.n == 0) snprintf(out, room, "undecided: the reference has runs that died");
    else if (g.low >= -all.bound && g.high <= all.bound) snprintf(out, room, "match");
    else if (g.low > 0) snprintf(out, room, "worse by %.4f", g.mean);
    else if (g.high < 0) snprintf(out, room, "better by %.4f", -g.mean);
    else undecided_print(&g, out, room);
    return 0;
}

// What an arm is there for.
static const char *arm_role(const Arm *arm) {
    const int index = (int)(arm - all.arms);
    if (index == all.reference) return "reference";
    if (index == all.primary) return "primary";
    if (arm->is_null) return "null";
    return arm->is_placebo ? "placebo" : "";
}
// An arm's gap to the reference has Holm's p-value over all arms but the primary one, which was
// declared first, and the null arms, which test nothing. NAN: it has none.
static double holm_of(const Arm *arm) {
    double p[ARMS_MAX], adjusted[ARMS_MAX];
    int n = 0, mine = -1;
    for (const Arm *a = all.arms; a < all.arms + all.arm_count; a++) {
        const char *role = arm_role(a);
        const Gap g = gap_between(a, LAST, all.reference, LAST);
        if (g.n < 2 || (*role && strcmp(role, "placebo"))) continue;
        if (a == arm) mine = n;
        p[n++] = g.p;
    }
    holm(p, n, adjusted);
    return mine < 0 ? NAN : adjusted[mine];
}

// Mean over the seeds at validation `point`, and the spread between seeds.
static double mean_at(const Arm *arm, int point, double *spread) {
    double mean = 0, squares = 0;
    for (int s = 0; s < all.seeds; s++) mean += arm->runs[s].val[point] / all.seeds;
    for (int s = 0; s < all.seeds; s++) {
        const double off = arm->runs[s].val[point] - mean;
        squares += off * off;
    }
    if (spread) *spread = all.seeds > 1 ? sqrt(squares / (all.seeds - 1)) : NAN;
    return mean;
}
// Validations that all seeds have; they are at the same steps: run_compare().
static int points_of(const Arm *arm) {
    int points = arm->runs[0].points;
    for (int s = 1; s < all.seeds; s++) points = MIN(points, arm->runs[s].points);
    return points;
}

// Half the noise band at a validation: what the mean over other seeds of the same arm would differ
// by, in 95 of 100 cases.
static double noise_at(const Arm *arm, int point) {
    double spread;
    mean_at(arm, point, &spread);
    if (all.seeds < 2) return NAN;
    return t_quantile(0.05, all.seeds - 1) * spread * sqrt(2.0 / all.seeds);
}

// The first validation at which the arm's mean loss is at most the reference's final one: its step,
// and the mean seconds of training until then; NAN: there is none.
static double steps_to_reference(const Arm *arm, double *seconds) {
    const Arm *reference = &all.arms[all.reference];
    *seconds = NAN;
    if (points_of(reference) < 2) return NAN; // died, or pooled rows, which have no curves
    const double target = mean_at(reference, points_of(reference) - 1, NULL);
    for (int p = 0; p < points_of(arm); p++) {
        if (mean_at(arm, p, NULL) > target) continue;
        *seconds = 0;
        for (int s = 0; s < all.seeds; s++) *seconds += arm->runs[s].seconds[p] / all.seeds;
        return arm->runs[0].step[p];
    }
    return NAN;
}

// What is said of an arm; NAN: unknown.
typedef struct {
    Gap gap, bf16, half; // to the reference, to BF16, of the second half's mean to the reference's
    Gap trained;         // to BF16, when this arm's weights are validated in BF16
    double holm;         // Holm's p of the gap to the reference
    double loss, spread, error, excess, in_bf16, steps, seconds, tok_s, mib;
} Figures;
static Figures figures_of(const Arm *arm) {
    double losses[SEEDS_MAX];
    Figures x = {0};
    x.gap = gap_between(arm, LAST, all.reference, LAST);
    x.bf16 = gap_between(arm, LAST, all.bf16, LAST);
    x.trained = gap_between(arm, LAST_BF16, all.bf16, LAST);
    x.half = gap_between(arm, HALF, all.reference, HALF);
    x.holm = holm_of(arm);
    x.loss = x.spread = x.error = x.excess = x.steps = x.seconds = NAN;
    for (int s = 0; s < all.seeds; s++) {
        const TrainedRun *r = &arm->runs[s];
        x.tok_s += r->tok_s / all.seeds;
        x.mib = MAX(x.mib, r->mib);
        x.in_bf16 += r->final_bf16 / all.seeds;
    }
    if (!losses_of(arm, LAST, losses)) return x;
    x.loss = mean_at(arm, points_of(arm) - 1, &x.spread);
    x.error = x.spread / sqrt(all.seeds);
    if (all.floor > 0) x.excess = x.loss - all.floor;
    x.steps = steps_to_reference(arm, &x.seconds);
    return x;
}

// ==== colors ===================================================================================

// The colors of page, pictures and terminal, readable on white and on black. The precisions come
// first and keep theirs; other arms take the others by turns.
enum { PRECISIONS = 4, COLORS = 12 };
static const char *const palette[COLORS] = {
    "#1f77b4", "#2ca02c", "#7f7f7f", "#e6550d", // fp16, bf16, fp32, fp8
    "#9467bd", "#d6409f", "#0e949f", "#a87b00", "#c0392b", "#5b6bd6", "#6b8e23", "#a0623a"};

// The place of an arm's color: in the palette, or beyond its end, where colors begin again.
static int arm_color_index(const Arm *arm) {
    static const char *const names[2 * PRECISIONS] = {"fp16",   "bf16",   "fp32",   "fp8",
                                                      "fp16cu", "bf16cu", "fp32cu", "fp8cu"};
    int others = 0;
    for (const Arm *a = all.arms; a <= arm; a++) {
        int name = 0;
        while (name < 2 * PRECISIONS && strcmp(a->label, names[name])) name++;
        const int taken = name >= PRECISIONS && arm_index(names[name % PRECISIONS]) >= 0;
        if (name < 2 * PRECISIONS && !taken) {
            if (a == arm) return name % PRECISIONS;
            continue;
        }
        others++;
    }
    return PRECISIONS + others - 1;
}
// How often the other arms' colors have been gone through before this arm: lines are dashed then.
static int arm_color_round(const Arm *arm) {
    return MAX(0, arm_color_index(arm) - PRECISIONS) / (COLORS - PRECISIONS);
}
static const char *arm_color(const Arm *arm) {
    const int index = arm_color_index(arm), others = COLORS - PRECISIONS;
    return palette[index < PRECISIONS ? index : PRECISIONS + (index - PRECISIONS) % others];
}

// ==== 4. tables: runs.tsv, summary.tsv, the screen =============================================

static void runs_header_write(FILE *f) {
    fprintf(f, "# common\t%s\n# data\t%s\n# floor\t%.9g" RUNS_HEADER, all.common, all.data,
            all.floor);
}
static void runs_rows_write(FILE *f, const Arm *arm) {
    for (int s = 0; s < all.seeds; s++) {
        const TrainedRun *r = &arm->runs[s];
        fprintf(f, "%s\t%d\t%.9g\t%.9g\t%.9g", arm->label, all.seed[s], r->final_loss,
                r->final_bf16, r->half_loss);
        fprintf(f, "\t%.1f\t%.1f\t%s\n", r->tok_s, r->mib, r->died[0] ? r->died : "whole");
    }
}

static const char caution[] = "The number of seeds is to be chosen before looking: adding seeds "
                              "until a verdict pleases makes "
                              "chance verdicts likelier than 1 in 20.";

// The arms of a role, as a line of the header.
static void role_write(FILE *f, const char *role) {
    int n = 0;
    for (int a = 0; a < all.arm_count; a++) {
        if (strcmp(arm_role(&all.arms[a]), role)) continue;
        fprintf(f, n++ ? ", " : "# %s\t", role);
        fprintf(f, "%s", all.arms[a].label);
    }
    if (n) fprintf(f, "\n");
}
static void summary_header_write(FILE *f, double noise) {
    fprintf(f, "# common\t%s\n# seeds\t%d\n# bound\t%g\n", all.common, all.seeds, all.bound);
    fprintf(f, "# noise\t%.6f\n# floor\t%.9g\n", noise, all.floor);
    role_write(f, "reference");
    role_write(f, "primary");
    role_write(f, "null");
    role_write(f, "placebo");
    fprintf(f, "# caution\t%s\n", caution);
    fprintf(f,
            "arm\tloss\tseed_spread\tstandard_error\tgap\tgap_low\tgap_high\tgap_p\t"
            "gap_bf16\tgap_bf16_low\tgap_bf16_high\tgap_bf16_p\tevaluated_in_bf16\t"
            "gap_trained\tgap_trained_low\tgap_trained_high\t"
            "gap_half\tgap_half_low\tgap_half_high\t"
            "excess\tsteps_to_reference\tseconds_to_reference\ttok_s\tpeak_mib\tverdict\tp_holm\n");
}
static void gap_columns_write(FILE *f, const Gap *g) {
    const double columns[] = {g->mean, g->low, g->high};
    for (int i = 0; i < COUNT(columns); i++) {
        if (isnan(columns[i])) fprintf(f, "\tnan"); // without a sign: pandas reads it
        else fprintf(f, "\t%+.6f", columns[i]);
    }
}
static void summary_row_write(FILE *f, const char *label, const Figures *x, const char *verdict) {
    fprintf(f, "%s\t%.6f\t%.6f\t%.6f", label, x->loss, x->spread, x->error);
    gap_columns_write(f, &x->gap);
    fprintf(f, "\t%.3g", x->gap.p);
    gap_columns_write(f, &x->bf16);
    fprintf(f, "\t%.3g\t%.6f", x->bf16.p, x->in_bf16);
    gap_columns_write(f, &x->trained);
    gap_columns_write(f, &x->half);
    fprintf(f, "\t%.6f\t%g\t%.1f\t%.0f\t%.1f\t%s\t%.3g\n", x->excess, x->steps, x->seconds,
            x->tok_s, x->mib, verdict, x->holm);
}

// A gap with its interval and p; one seed has none.
static const char *gap_text(const Gap *g, char *out, size_t room) {
    const char *form = g->n == 1 ? "%+8.5f %20s %7s" : "%+8.5f [%+8.5f, %+8.5f] %7.2g";
    if (g->n == 1) snprintf(out, room, form, g->mean, "(one seed)", "-");
    else snprintf(out, room, form, g->mean, g->low, g->high, g->p);
    return out;
}
static void gap_print(const char *label, const char *what, const Gap *g) {
    char text[80];
    printf("%-*s %22s %s\n", all.width, label, what, gap_text(g, text, sizeof(text)));
}
// ---- curves in the terminal: in color a cell has 2 x 4 dots of Braille; without color, as in a
// file, a cell has the letter of its arm, or * where several arms meet.
enum { CELLS_X = 64, CELLS_Y = 14, DOTS_X = 2 * CELLS_X, DOTS_Y = 4 * CELLS_Y, SEVERAL = ARMS_MAX };
typedef struct {
    double x0, x1, y0, y1; // steps x0 .. x1 and losses y0 .. y1 are shown
    unsigned char dots[CELLS_Y][CELLS_X], arm[CELLS_Y][CELLS_X];
} Canvas;
static void canvas_dot(Canvas *c, int x, int y, int arm) {
    static const unsigned char bits[2][4] = {{1, 2, 4, 64}, {8, 16, 32, 128}};
    if (y < 0 || y >= DOTS_Y) return;
    unsigned char *dots = &c->dots[y / 4][x / 2], *owner = &c->arm[y / 4][x / 2];
    if (!isatty(1) && *dots && *owner != arm) *owner = SEVERAL;
    else *owner = (unsigned char)arm;
    *dots |= bits[x % 2][y % 4];
}
// Draws an arm's means, with straight lines between validations.
static void canvas_arm(Canvas *c, int a) {
    const Arm *arm = &all.arms[a];
    const double *step = arm->runs[0].step;
    const int points = points_of(arm);
    int p = 0, last = -1;
    for (int x = 0; x < DOTS_X && points; x++) {
        const double at = c->x0 + (c->x1 - c->x0) * x / (DOTS_X - 1);
        if (at < step[0] || at > step[points - 1]) continue;
        while (p + 2 < points && step[p + 1] < at) p++;
        double mean = mean_at(arm, p, NULL);
        if (p + 1 < points) {
            const double share = (at - step[p]) / (step[p + 1] - step[p]);
            mean += share * (mean_at(arm, p + 1, NULL) - mean);
        }
        const double row = (c->y1 - mean) / (c->y1 - c->y0) * (DOTS_Y - 1);
        const int y = isfinite(row) ? (int)fmax(-1, fmin(DOTS_Y, rint(row))) : DOTS_Y;
        const int from = last < 0 || last == y ? y : last + (y > last ? 1 : -1);
        for (int i = MIN(from, y); i <= MAX(from, y); i++) canvas_dot(c, x, i, a);
        last = y;
    }
}
// The losses after half of the steps, so that the first fall does not flatten what comes later; and
// the steps from where a curve comes into this range.
static void canvas_range(Canvas *c) {
    for (int a = 0; a < all.arm_count; a++) {
        const int points = points_of(&all.arms[a]);
        if (points) c->x1 = MAX(c->x1, all.arms[a].runs[0].step[points - 1]);
    }
    for (int a = 0; a < all.arm_count; a++) {
        for (int p = 0; p < points_of(&all.arms[a]); p++) {
            const double mean = mean_at(&all.arms[a], p, NULL);
            if (2 * all.arms[a].runs[0].step[p] < c->x1 || !isfinite(mean)) continue;
            c->y0 = MIN(c->y0, mean - 1e-4);
            c->y1 = MAX(c->y1, mean + 1e-4);
        }
    }
    for (int a = 0; a < all.arm_count; a++) {
        int p = 0;
        while (p < points_of(&all.arms[a]) && mean_at(&all.arms[a], p, NULL) > c->y1) p++;
        if (p < points_of(&all.arms[a])) {
            c->x0 = MIN(c->x0, all.arms[a].runs[0].step[MAX(p - 1, 0)]);
        }
    }
}
static void color_print(int arm) { // the nearest of a terminal's 6 x 6 x 6 colors
    unsigned rgb;
    sscanf(arm_color(&all.arms[arm]), "#%x", &rgb);
    const unsigned r = (rgb >> 16) * 5 + 127, g = (rgb >> 8 & 255) * 5 + 127;
    printf("\033[38;5;%um", 16 + 36 * (r / 255) + 6 * (g / 255) + ((rgb & 255) * 5 + 127) / 255);
}
static void mark_print(int arm, unsigned dots) {
    if (!isatty(1)) {
        putchar(!dots ? ' ' : arm == SEVERAL ? '*' : "abcdefghijklmnopqrstuvwxyzABCDEF"[arm]);
        return;
    }
    if (dots) color_print(arm);
    printf("\xe2%c%c", 0xa0 + (int)(dots >> 6), 0x80 + (int)(dots & 63)); // U+2800 + dots
    if (dots) printf("\033[0m");
}
static void curves_print(void) {
    Canvas c = {.x0 = INFINITY, .y0 = INFINITY, .y1 = -INFINITY};
    canvas_range(&c);
    if (!(c.y0 <= c.y1) || points_of(&all.arms[all.reference]) < 2) return;
    for (int a = 0; a < all.arm_count; a++) canvas_arm(&c, a);
    printf("\nvalidation loss, %s, mean over seeds (%s)\n", all.unit,
           isatty(1) ? "later arms cover earlier ones" : "*: several arms");
    for (int row = 0; row < CELLS_Y; row++) {
        const double y = c.y1 - (c.y1 - c.y0) * (4 * row + 1.5) / (DOTS_Y - 1);
        if (row % 4 == 1) printf("%9.4f ┤", y);
        else printf("%9s │", "");
        for (int x = 0; x < CELLS_X; x++) mark_print(c.arm[row][x], c.dots[row][x]);
        printf("\n");
    }
    printf("%9s └%-21.0f%-21.0f%21.0f step\n", "", c.x0, c.x0 + (c.x1 - c.x0) / 3, c.x1);
    for (int a = 0; a < all.arm_count; a++) {
        printf("%10s", "");
        mark_print(a, 18);
        printf(" %s\n", all.arms[a].label);
    }
}

// Writes runs.tsv and summary.tsv; returns whether a run died.
static int tables_write(double noise) {
    char verdict[320];
    int died = 0;
    FILE *runs = file_begin(&output, "runs.tsv"), *f = file_begin(&output, "summary.tsv");
    runs_header_write(runs);
    summary_header_write(f, noise);
    for (int a = 0; a < all.arm_count; a++) {
        const Figures x = figures_of(&all.arms[a]);
        died |= arm_verdict(&all.arms[a], verdict, sizeof(verdict));
        runs_rows_write(runs, &all.arms[a]);
        summary_row_write(f, all.arms[a].label, &x, verdict);
    }
    file_commit(runs, &output, "runs.tsv");
    file_commit(f, &output, "summary.tsv");
    return died;
}

static void arm_print(const Arm *arm) {
    char verdict[320], gap[80], adjusted[16] = "-", spread[32] = "-";
    const Figures x = figures_of(arm);
    const char *role = arm == &all.arms[all.reference] ? "" : arm_role(arm);
    arm_verdict(arm, verdict, sizeof(verdict));
    if (!isnan(x.spread)) snprintf(spread, sizeof(spread), "%.5f", x.spread);
    if (!isnan(x.holm)) snprintf(adjusted, sizeof(adjusted), "%.2g", x.holm);
    printf("%-*s %9.5f %9s   %s %7s %9.0f  %s%s%s\n", all.width, arm->label, x.loss, spread,
           gap_text(&x.gap, gap, sizeof(gap)), adjusted, x.tok_s, role, *role ? ": " : "", verdict);
}
// Gaps besides that of the last validation to the reference's.
static void gaps_print(int a) {
    const char *label = all.arms[a].label;
    const Figures x = figures_of(&all.arms[a]);
    if (x.bf16.n && a != all.bf16 && all.bf16 != all.reference) {
        gap_print(label, "gap to bf16", &x.bf16);
    }
    if (x.half.n && a != all.reference) gap_print(label, "second half's mean", &x.half);
    if (x.trained.n) gap_print(label, "validated in BF16", &x.trained);
}

// Writes the tables, and says on the screen what they say; returns whether a run died.
static int summary_write(void) {
    const Arm *reference = &all.arms[all.reference];
    const int points = points_of(reference);
    const double noise = points ? noise_at(reference, points - 1) : NAN;
    const int died = tables_write(noise);
    printf("\n%-*s %9s %9s   %-29s %7s %7s %9s  %s\n", all.width, "arm", "loss", "spread",
           "gap to the reference, 95%", "p", "Holm's", "tok/s", "verdict");
    if (all.primary >= 0) arm_print(&all.arms[all.primary]);
    for (int a = 0; a < all.arm_count; a++) {
        if (a != all.primary) arm_print(&all.arms[a]);
    }
    printf("\n");
    for (int a = 0; a < all.arm_count; a++) gaps_print(a);
    if (isfinite(noise)) {
        printf("seed noise: means of %d runs of %s with other seeds differ by up to "
               "±%.5f (95%%)\n",
               all.seeds, reference->label, noise);
    }
    printf("%s\n", caution);
    curves_print();
    return died;
}

// ==== 5. the page ==============================================================================
// dev/compare.html with rows of TSV in it: a name, then texts or numbers; nan is no number. The
// page reads them; its first lines of script say what the rows are.

// A text as a cell of these rows, and in the picture: no markup, no tabs, no new lines.
static void cell_write(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '&') fputs("&amp;", f);
        else if (*text == '<') fputs("&lt;", f);
        else fputc((unsigned char)*text < 32 ? ' ' : *text, f);
    }
}
static void text_row_write(FILE *f, const char *name, const char *text) {
    fprintf(f, "%s\t", name);
    cell_write(f, text);
    fputc('\n', f);
}
static void row_write(FILE *f, const char *name, const double *x, int n, const char *format) {
    fputs(name, f);
    for (int i = 0; i < n; i++) {
        fputc('\t', f);
        fprintf(f, format, x[i]);
    }
    fputc('\n', f);
}

// ---- rows of a log, thinned
enum { STEP, TOKENS, TRAIN_LOSS, VAL_LOSS, LEARNING_RATE, GRAD_NORM, LOSS_SCALE, MS, TOK_S };
enum { LOG_CELLS = TOK_S + 1, POINTS_SHOWN = 600 };

// Reads n cells of a line as numbers; NAN: it is none. Returns whether the line has them and ends.
static int cells_read(const char *at, double *cells, int n) {
    for (int i = 0; i < n; i++) {
        char *end;
        const size_t width = strcspn(at, "\t\n");
        cells[i] = strtod(at, &end);
        if (width == 0 || end != at + width) cells[i] = NAN;
        at += width;
        if (i < n - 1 && *at++ != '\t') return 0;
    }
    return strchr(at, '\n') != NULL;
}

// Points of a curve, evenly chosen: when there is no room, every second one goes.
typedef struct {
    int n;
    long seen, stride; // every stride-th of those that were seen is there
    double step[POINTS_SHOWN + 1], value[POINTS_SHOWN + 1];
} Thinned;
static void thinned_add(Thinned *t, double step, double value) {
    if (t->n == POINTS_SHOWN) {
        t->n /= 2;
        t->stride *= 2;
        for (int i = 0; i < t->n; i++) {
            t->step[i] = t->step[2 * i];
            t->value[i] = t->value[2 * i];
        }
    }
    if (t->seen++ % t->stride) return;
    t->step[t->n] = step;
    t->value[t->n++] = value;
}
// The newest point is always there. Steps begin at 1.
static void thinned_end(Thinned *t, double step, double value) {
    if (step <= 0 || (t->n && t->step[t->n - 1] >= step)) return;
    t->step[t->n] = step;
    t->value[t->n++] = value;
}
static void thinned_write(FILE *f, const char *name, const Thinned *t) {
    char steps[32];
    snprintf(steps, sizeof(steps), "%s_step", name);
    row_write(f, steps, t->step, t->n, "%.0f");
    row_write(f, name, t->value, t->n, "%.6g");
}

// The curves of a log. Its last line may be torn, which ends them.
typedef struct {
    Thinned train, val, norm;
    double last[LOG_CELLS];    // the newest row; its step is 0 if there is none
    double val_step, val_loss; // the newest validation
    long steps;                // that the run shall have
} LogCurves;
static void log_row_add(LogCurves *c, const double *row) {
    memcpy(c->last, row, sizeof(c->last));
    thinned_add(&c->train, row[STEP], row[TRAIN_LOSS]);
    thinned_add(&c->norm, row[STEP], row[GRAD_NORM]);
    if (isnan(row[VAL_LOSS])) return;
    thinned_add(&c->val, row[STEP], row[VAL_LOSS]);
    c->val_step = row[STEP];
    c->val_loss = row[VAL_LOSS];
}
static void log_curves_read(LogCurves *c, const char *log) {
    static const char key[] = "# steps\t";
    double row[LOG_CELLS];
    memset(c, 0, sizeof(*c));
    c->train.stride = c->val.stride = c->norm.stride = 1;
    for (const char *at = log; at && *at; at = strchr(at, '\n')) {
        at += *at == '\n';
        if (!strncmp(at, key, strlen(key)))
            c->steps = atol(at + strlen(key)); // the last one counts
        if (!isdigit((unsigned char)*at)) continue;
        if (!cells_read(at, row, LOG_CELLS) || isnan(row[STEP])) break;
        log_row_add(c, row);
    }
    thinned_end(&c->train, c->last[STEP], c->last[TRAIN_LOSS]);
    thinned_end(&c->norm, c->last[STEP], c->last[GRAD_NORM]);
    thinned_end(&c->val, c->val_step, c->val_loss);
}

// What a token is: the 256 values of a byte, or a tokenizer's entries.
static const char *loss_unit(const char *log) {
    char shape[PATH_MAX];
    text_value(log, "shape", shape);
    return strstr(shape, "vocabulary 256 ") ? "nats a byte" : "nats a token";
}

// ---- an arm's curves

// An arm's means over the seeds, and its gap to the reference where both have validations. The
// reference's own gap is 0, within the noise band.
typedef struct {
    int points, shared;
    double mean[POINTS_MAX], spread[POINTS_MAX], gap[POINTS_MAX], low[POINTS_MAX], high[POINTS_MAX];
} Curve;
static void curve_make(const Arm *arm, Curve *c) {
    const Arm *reference = &all.arms[all.reference];
    double x[SEEDS_MAX], y[SEEDS_MAX];
    c->points = points_of(arm);
    c->shared = MIN(c->points, points_of(reference));
    for (int p = 0; p < c->points; p++) c->mean[p] = mean_at(arm, p, &c->spread[p]);
    for (int p = 0; p < c->shared; p++) {
        for (int s = 0; s < all.seeds; s++) {
            x[s] = arm->runs[s].val[p];
            y[s] = reference->runs[s].val[p];
        }
        const double noise = noise_at(arm, p);
        const Gap g =
            arm == reference ? (Gap){.low = -noise, .high = noise} : gap_of(x, y, all.seeds);
        c->gap[p] = g.mean;
        c->low[p] = g.low;
        c->high[p] = g.high;
    }
}

// The formats of a run's operands x, w and dy, as the trainer itself reads the options in its log.
static void formats_read(const char *log, const char *where, Dtype *formats) {
    static Gpt g;
    char *argv[] = {program_name, NULL}, value[PATH_MAX];
    int given[OPTION_COUNT] = {0};
    Options o = options_parse(1, argv, given);
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionSpec *s = &option_specs[i];
        if (s->scope != (FP8 | FIXED) || !*text_value(log, s->name, value)) continue;
        option_set(&o, s, value, where);
    }
    options_recipes(&o, &g);
    for (int i = 0; i < NOPERAND; i++) formats[i] = g.recipes[i].format;
}

// The scale atlas: the rows of the first seed's scales.tsv, of at most 250 of its steps, evenly, so
// that the page of a large model stays below 3 MB.
enum { AMAX, SCALE, SATURATED, FLUSHED, SQNR, KURTOSIS, STALE, QUANTITIES };
typedef struct {
    size_t steps, tensors;
    double *when;                 // [steps]
    double (*values)[QUANTITIES]; // [steps][tensors]
    char (*labels)[48];           // [tensors]
} Atlas;

// Reads a row of scales.tsv. Returns whether it is a whole one; `tensor` receives the layer and the
// operand. (sscanf would look for the end of the whole text at each call.)
static int atlas_row(const char *at, const Dtype *formats, double *step, char *tensor, double *v) {
    double place[2], cells[7]; // cells: amax to kurtosis, which older logs do not have
    const char *name = at + strcspn(at, "\t\n");
    name += *name == '\t';
    name += strcspn(name, "\t\n");
    name += *name == '\t';
    const int length = (int)strcspn(name, "\t\n");
    if (!cells_read(at, place, 2) || name[length] != '\t') return 0;
    if (!cells_read(name + length + 1, cells, 6)) return 0;
    if (!cells_read(name + length + 1, cells, 7)) cells[6] = NAN;
    *step = place[0];
    snprintf(tensor, 48, "%.0f %.*s", place[1], MIN(length, 31), name);
    int operand = 0;
    for (int i = 0; i < NOPERAND; i++) {
        const int n = (int)strlen(operand_name[i]);
        if (length > n && name[length - n - 1] == '.' &&
            !strncmp(name + length - n, operand_name[i], n)) {
            operand = i;
        }
    }
    memcpy(v, cells, 4 * sizeof(double)); // AMAX to FLUSHED
    v[SQNR] = cells[5];
    v[KURTOSIS] = cells[6];
    // binades by which the amax lies above what the scale can hold; below 0: room that is left
    const double widest = fp8_format(formats[operand])->max;
    v[STALE] = v[AMAX] > 0 ? log2(v[SCALE] * v[AMAX] / widest) : NAN;
    return !isnan(*step) && !isnan(place[1]);
}

static void atlas_read(Atlas *t, const char *text, const Dtype *formats) {
    size_t rows = 1, n = 0;
    for (const char *at = text; *at; at++) rows += *at == '\n';
    t->when = (double *)memory_allocate(rows * sizeof(double));
    t->values = (double(*)[QUANTITIES])memory_allocate(rows * sizeof(*t->values));
    t->labels = (char(*)[48])memory_allocate(rows * sizeof(*t->labels));
    t->steps = t->tensors = 0;
    for (const char *at = strchr(text, '\n'); at && at[1]; at = strchr(at + 1, '\n')) {
        double step, *v = t->values[n];
        char tensor[48];
        if (!atlas_row(at + 1, formats, &step, tensor, v)) break;
        if (t->steps == 0 || step != t->when[t->steps - 1]) t->when[t->steps++] = step;
        if (t->steps == 1) strcpy(t->labels[t->tensors++], tensor);
        for (int q = SQNR; q <= KURTOSIS && t->steps > 1; q++) {
            if (isnan(v[q])) v[q] = t->values[n - t->tensors][q]; // as last measured
        }
        n++;
    }
    if (t->tensors) t->steps = n / t->tensors; // whole ones
}

// `text` is a scales.tsv, `log` that run's log.
static void atlas_write(FILE *f, const char *text, const char *log, const char *where) {
    static const char *const names[QUANTITIES] = {"amax", "scale",    "saturated", "flushed",
                                                  "sqnr", "kurtosis", "stale"};
    Dtype formats[NOPERAND];
    Atlas t;
    formats_read(log, where, formats);
    atlas_read(&t, text, formats);
    const size_t every = t.steps / 250 + 1, steps = (t.steps + every - 1) / every;
    double *row = (double *)memory_allocate((steps * t.tensors + 1) * sizeof(double));
    for (size_t i = 0; i < steps; i++) t.when[i] = t.when[i * every];
    fprintf(f, "atlas\n");
    row_write(f, "steps", t.when, steps, "%.0f");
    fprintf(f, "tensors");
    for (size_t i = 0; i < t.tensors; i++) {
        fputc('\t', f);
        cell_write(f, t.labels[i]);
    }
    fputc('\n', f);
    for (int q = 0; q < QUANTITIES; q++) {
        for (size_t i = 0; i < steps; i++) {
            for (size_t k = 0; k < t.tensors; k++) {
                row[i * t.tensors + k] = t.values[i * every * t.tensors + k][q];
            }
        }
        row_write(f, names[q], row, steps * t.tensors, "%.4g");
    }
    free(row);
    free(t.values);
    free(t.when);
    free(t.labels);
}

// The validations of every seed, for single curves and the gaps between them.
static void seeds_write(FILE *f, const Arm *arm) {
    int longest = 0;
    for (int s = 1; s < all.seeds; s++) {
        if (arm->runs[s].points > arm->runs[longest].points) longest = s;
    }
    row_write(f, "step", arm->runs[longest].step, arm->runs[longest].points, "%.0f");
    for (int s = 0; s < all.seeds; s++) {
        fprintf(f, "seed\t%d", all.seed[s]);
        row_write(f, "", arm->runs[s].val, arm->runs[s].points, "%.6g");
    }
}
// The curves and the scale atlas of the first seed.
static void first_seed_write(FILE *f, const TrainedRun *r) {
    static LogCurves curves;
    char path[PATH_MAX];
    if (!r->log) return;
    log_curves_read(&curves, r->log);
    thinned_write(f, "train", &curves.train);
    thinned_write(f, "norm", &curves.norm);
    path_print(path, "%s/scales.tsv", r->dir);
    char *text = text_read(path);
    if (text) atlas_write(f, text, r->log, r->dir);
    free(text);
}

static void arm_write(FILE *f, const Arm *arm, const Curve *c) {
    char verdict[320];
    const Figures x = figures_of(arm);
    const double last[5] = {x.gap.mean, x.gap.low, x.gap.high, x.gap.p, x.holm};
    const double half[3] = {x.half.mean, x.half.low, x.half.high};
    const double trained[3] = {x.trained.mean, x.trained.low, x.trained.high};
    const double bf16[3] = {x.bf16.mean, x.bf16.low, x.bf16.high};
    const double loss[3] = {x.loss, x.error, x.excess};
    const double cost[4] = {x.steps, x.seconds, x.tok_s, x.mib};
    arm_verdict(arm, verdict, sizeof(verdict));
    fprintf(f, "arm\n");
    text_row_write(f, "label", arm->label);
    text_row_write(f, "verdict", verdict);
    text_row_write(f, "role", arm == &all.arms[all.reference] ? "" : arm_role(arm));
    row_write(f, "last", last, 5, "%.7g");
    row_write(f, "half", half, 3, "%.7g");
    row_write(f, "trained", trained, 3, "%.7g");
    row_write(f, "bf16", bf16, 3, "%.7g");
    row_write(f, "loss", loss, 3, "%.7g");
    row_write(f, "cost", cost, 4, "%.7g");
    seeds_write(f, arm);
    row_write(f, "mean", c->mean, c->points, "%.6g");
    row_write(f, "spread", c->spread, c->points, "%.4g");
    row_write(f, "gap", c->gap, c->shared, "%.4g");
    row_write(f, "low", c->low, c->shared, "%.4g");
    row_write(f, "high", c->high, c->shared, "%.4g");
    first_seed_write(f, &arm->runs[0]);
}

// A color for each arm.
static void palette_write(FILE *f) {
    fprintf(f, "palette");
    for (int a = 0; a < all.arm_count; a++) fprintf(f, "\t%s", arm_color(&all.arms[a]));
    fputc('\n', f);
}
static void report_write(const Curve *curves) {
    static const char mark[] = "<!--DATA-->";
    const double settings[5] = {all.seeds, all.bound, all.floor, all.reference, all.bf16};
    char *page = text_read("dev/compare.html"), *data = page ? strstr(page, mark) : NULL;
    EXPECT(data, "dev/compare.html: cannot read the page's template; run this from the project's "
                 "directory");
    FILE *f = file_begin(&output, "report.html");
    fwrite(page, 1, data - page, f);
    text_row_write(f, "common", all.common);
    text_row_write(f, "unit", all.unit);
    if (all.differ[0]) text_row_write(f, "differ", all.differ);
    palette_write(f);
    row_write(f, "settings", settings, 5, "%.9g");
    for (int a = 0; a < all.arm_count; a++) arm_write(f, &all.arms[a], &curves[a]);
    fputs(data + strlen(mark), f);
    file_commit(f, &output, "report.html");
    printf("\nreport      %s/report.html\n", all.out);
}

// ==== 6. the picture ===========================================================================
// curves.svg: the mean loss of every arm with its spread over seeds, and its gap to the reference
// with the 95% interval.

enum { PLOT_LEFT = 76, PLOT_WIDTH = 560, PLOT_HEIGHT = 230, PLOT_TOP = 70 };
// A line in an arm's color; where colors begin again, dashed.
static void svg_stroke(FILE *f, int arm, double width) {
    const int round = arm_color_round(&all.arms[arm]);
    fprintf(f, "stroke=\"%s\" stroke-width=\"%g\"", arm_color(&all.arms[arm]), width);
    if (round) fprintf(f, " stroke-dasharray=\"%d 3\"", 9 / round);
}
typedef struct {
    double top;        // in pixels
    double x1, y0, y1; // steps 0 .. x1 and nats y0 .. y1 are shown
} Panel;
static double plot_x(const Panel *p, double x) { return PLOT_LEFT + PLOT_WIDTH * x / p->x1; }
static double plot_y(const Panel *p, double y) {
    return p->top + PLOT_HEIGHT * (p->y1 - y) / (p->y1 - p->y0);
}

// Lines and numbers at round values (1, 2 or 5 times a power of ten) of one axis, 0 x or 1 y.
static void axis_write(FILE *f, const Panel *p, int axis) {
    const double low = axis ? p->y0 : 0, high = axis ? p->y1 : p->x1;
    double step = pow(10, floor(log10(high - low)));
    for (int k = 0; (high - low) / step < 4; k++) step /= k % 3 == 1 ? 2.5 : 2;
    const double first = ceil(low / step - 1e-9);
    for (int k = 0; k < 12 && (first + k) * step <= high + 1e-9 * step; k++) {
        const double v = (first + k) * step, shown = fabs(v) < step / 2 ? 0 : v;
        if (axis) {
            const double y = plot_y(p, v);
            fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1fh%g\"/>", (double)PLOT_LEFT, y,
                    (double)PLOT_WIDTH);
            fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" class=\"right\">%g</text>\n", PLOT_LEFT - 8.0,
                    y + 4, shown);
        } else {
            const double x = plot_x(p, v), y = p->top + PLOT_HEIGHT;
            fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1fv%g\"/>", x, y, -(double)PLOT_HEIGHT);
            fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" class=\"middle\">%g</text>\n", x, y + 16,
                    shown);
        }
    }
}
static void panel_begin(FILE *f, const Panel *p, const char *title) {
    const double middle = p->top + PLOT_HEIGHT / 2;
    fprintf(f, "<text x=\"%d\" y=\"%g\" class=\"title\">%s</text>\n", PLOT_LEFT, p->top - 10,
            title);
    fprintf(f, "<text x=\"%d\" y=\"%g\" class=\"middle\">step</text>\n", PLOT_LEFT + PLOT_WIDTH / 2,
            p->top + PLOT_HEIGHT + 34);
    fprintf(f, "<text transform=\"translate(16 %g)rotate(-90)\" class=\"middle\">%s</text>\n",
            middle, all.unit);
    axis_write(f, p, 0);
    axis_write(f, p, 1);
}

// Over n validations of one arm: the band between low and high, and the line of the means.
static void panel_band(FILE *f, const Panel *p, const double *steps, const double *low,
                       const double *high, int n, int arm) {
    fprintf(f, "<path clip-path=\"url(#clip%g)\" fill=\"%s\" opacity=\".18\" d=\"", p->top,
            arm_color(&all.arms[arm]));
    for (int i = 0; i < n; i++) {
        fprintf(f, "%c%.1f %.1f", i ? 'L' : 'M', plot_x(p, steps[i]), plot_y(p, high[i]));
    }
    for (int i = n - 1; i >= 0; i--) {
        fprintf(f, "L%.1f %.1f", plot_x(p, steps[i]), plot_y(p, low[i]));
    }
    fprintf(f, "Z\"/>\n");
}
static void panel_line(FILE *f, const Panel *p, const double *steps, const double *mean, int n,
                       int arm) {
    fprintf(f, "<g clip-path=\"url(#clip%g)\"><path fill=\"none\" stroke-linecap=\"round\" ",
            p->top);
    svg_stroke(f, arm, 1.8);
    fprintf(f, " d=\"");
    for (int i = 0; i < n; i++) {
        fprintf(f, "%c%.1f %.1f", i ? 'L' : 'M', plot_x(p, steps[i]), plot_y(p, mean[i]));
    }
    fprintf(f, "h0\"/></g>\n"); // a single point is seen, too
}

// What is drawn of an arm: its first validations whose mean loss is finite.
typedef struct {
    int n, paired;                            // paired: of these, those that the reference has, too
    double low[POINTS_MAX], high[POINTS_MAX]; // around the mean loss
} Drawn;
static void drawn_make(const Curve *c, Drawn *d, Panel *loss, const double *steps) {
    for (d->n = 0; d->n < c->points && isfinite(c->mean[d->n]); d->n++) {
        const int p = d->n;
        const double spread = all.seeds > 1 ? c->spread[p] : 0;
        d->low[p] = c->mean[p] - spread;
        d->high[p] = c->mean[p] + spread;
        loss->x1 = MAX(loss->x1, steps[p]);
    }
}
// The losses of the last four fifths of the steps; the first fall may be cut off.
static void losses_fit(const Drawn *d, Panel *loss, const double *steps) {
    for (int p = 0; p < d->n; p++) {
        if (5 * steps[p] < loss->x1) continue;
        loss->y0 = MIN(loss->y0, d->low[p]);
        loss->y1 = MAX(loss->y1, d->high[p]);
    }
}
// The last gap with its interval, and the gaps of the second half. Earlier gaps and their intervals
// may be cut off. One seed has no intervals: its gaps are drawn alone.
static void gaps_fit(Curve *c, const Drawn *d, Panel *gaps) {
    for (int p = 0; p < d->paired; p++) {
        const int is_last = p == d->paired - 1;
        if (all.seeds < 2) c->low[p] = c->high[p] = c->gap[p];
        if (2 * p < d->paired) continue;
        gaps->y0 = MIN(gaps->y0, is_last ? c->low[p] : c->gap[p]);
        gaps->y1 = MAX(gaps->y1, is_last ? c->high[p] : c->gap[p]);
    }
}

// The first lines: what all runs share, and in what those differ that are left out.
static void svg_title(FILE *f, double width) {
    const int room = (int)((width - 2 * PLOT_LEFT) / 7), length = (int)strlen(all.common);
    char text[512];
    snprintf(text, sizeof(text), "%d %s: %.*s%s", all.seeds, all.seeds > 1 ? "seeds" : "seed",
             MIN(room, 400), all.common, length > room ? " ..." : "");
    fprintf(f, "<text x=\"%d\" y=\"22\">", PLOT_LEFT);
    cell_write(f, text);
    fprintf(f, "</text>\n");
    if (!all.differ[0]) return;
    fprintf(f, "<text x=\"%d\" y=\"40\" class=\"title\">runs differ in ", PLOT_LEFT);
    cell_write(f, all.differ);
    fprintf(f, ": only those that pair are drawn</text>\n");
}
static void svg_begin(FILE *f, const Panel *loss, const Panel *gaps) {
    const Panel *const panels[2] = {loss, gaps};
    const double width = PLOT_LEFT + PLOT_WIDTH + MAX(220, 60 + 7 * (all.width + 16)),
                 height = gaps->top + PLOT_HEIGHT + 50;
    fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" ", width, height);
    fprintf(f, "width=\"%g\" height=\"%g\">\n", width, height);
    fprintf(f, "<style>text{font:12px sans-serif;fill:#333}.title{font-weight:bold}"
               ".right{text-anchor:end}.middle{text-anchor:middle}"
               ".grid{stroke:#8883;fill:none}.page{fill:#fff}"
               "@media(prefers-color-scheme:dark){text{fill:#ddd}.page{fill:#111}}</style>\n"
               "<rect class=\"page\" width=\"100%%\" height=\"100%%\"/>\n");
    for (int k = 0; k < 2; k++) {
        fprintf(f, "<clipPath id=\"clip%g\"><rect x=\"%d\" y=\"%g\" width=\"%d\" height=\"%d\"/>",
                panels[k]->top, PLOT_LEFT, panels[k]->top, PLOT_WIDTH, PLOT_HEIGHT);
        fprintf(f, "</clipPath>\n");
    }
    svg_title(f, width);
    const int band = all.seeds > 1;
    panel_begin(f, loss, band ? "validation loss: mean and spread over seeds" : "validation loss");
    panel_begin(f, gaps,
                band ? "gap to the reference, 95% interval; gray: the bound; the reference's "
                       "shade: its seed noise"
                     : "gap to the reference; gray: the bound");
    fprintf(f, "<rect x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%.1f\" fill=\"#8882\"/>\n",
            PLOT_LEFT, plot_y(gaps, all.bound), PLOT_WIDTH,
            plot_y(gaps, -all.bound) - plot_y(gaps, all.bound));
}
static void svg_legend(FILE *f, int arm, double y) {
    fprintf(f, "<path ");
    svg_stroke(f, arm, 3);
    fprintf(f, " d=\"M%d %gh18\"/>", PLOT_LEFT + PLOT_WIDTH + 14, y);
    fprintf(f, "<text x=\"%d\" y=\"%g\">", PLOT_LEFT + PLOT_WIDTH + 38, y + 4);
    cell_write(f, all.arms[arm].label);
    fprintf(f, arm == all.reference ? " (the reference)</text>\n" : "</text>\n");
}

static void picture_write(Curve *curves) {
    static Drawn drawn[ARMS_MAX];
    Panel loss = {PLOT_TOP, 1, INFINITY, -INFINITY};
    Panel gaps = {PLOT_TOP + PLOT_HEIGHT + 76, 1, -2 * all.bound, 2 * all.bound};
    unlinkat(output.fd, "curves.svg", 0);
    for (int a = 0; a < all.arm_count; a++) {
        drawn_make(&curves[a], &drawn[a], &loss, all.arms[a].runs[0].step);
    }
    for (int a = 0; a < all.arm_count; a++) {
        losses_fit(&drawn[a], &loss, all.arms[a].runs[0].step);
    }
    if (!(loss.y0 <= loss.y1)) return; // nothing to draw
    loss.y0 -= 0.01 * (loss.y1 - loss.y0) + 1e-4;
    loss.y1 += 0.01 * (loss.y1 - loss.y0) + 1e-4;
    gaps.x1 = loss.x1;
    for (int a = 0; a < all.arm_count; a++) {
        drawn[a].paired = MIN(drawn[a].n, drawn[all.reference].n);
        if (a != all.reference) gaps_fit(&curves[a], &drawn[a], &gaps);
    }
    FILE *f = file_begin(&output, "curves.svg");
    svg_begin(f, &loss, &gaps);
    for (int a = 0; a < all.arm_count; a++) {
        const double *steps = all.arms[a].runs[0].step;
        const Curve *c = &curves[a];
        const Drawn *d = &drawn[a];
        panel_band(f, &loss, steps, d->low, d->high, d->n, a);
        panel_line(f, &loss, steps, c->mean, d->n, a);
        if (a != all.reference || all.seeds > 1) {
            panel_band(f, &gaps, steps, c->low, c->high, d->paired, a);
        }
        if (a != all.reference) panel_line(f, &gaps, steps, c->gap, d->paired, a);
        svg_legend(f, a, loss.top + 12 + 18 * a);
    }
    fprintf(f, "</svg>\n");
    file_commit(f, &output, "curves.svg");
    printf("picture     %s/curves.svg\n", all.out);
}

// ==== 7. the command line ======================================================================

static int statistics_print(const char *path) {
    char *text = text_read(path);
    int n = 0;
    EXPECT(text, "%s: cannot read: %s", path, strerror(ENOENT));
    size_t room = 1;
    for (const char *at = text; *at; at++) room += *at == '\n';
    double *a = (double *)memory_allocate(room * sizeof(double));
    double *b = (double *)memory_allocate(room * sizeof(double));
    for (const char *at = text; *at; n++) { // a row that has no two numbers is an error
        double row[2];
        EXPECT(text_row(&at, row, 2) == 2, "%s: row %d: expected two numbers with a tab between",
               path, n + 1);
        a[n] = row[0];
        b[n] = row[1];
    }
    EXPECT(n >= 2, "%s: expected two columns of at least two numbers, found %d rows", path, n);
    const Gap g = gap_of(a, b, n);
    printf("%d\t%.15g\t%.15g\t%.15g\t%.15g\t%.15g\n", g.n, g.mean, g.error, g.low, g.high, g.p);
    return 0;
}

static int help_print(void) { // what the first lines of this file say
    char *text = text_read("dev/compare.c");
    EXPECT(text, "the help is in the first lines of dev/compare.c; run this from the project's "
                 "directory");
    const int shown = (int)(strstr(text, "*/") - text) - 3;
    printf("%.*s", shown, text + 3);
    return 0;
}

static int word_in(const char *word, const char *const *list, int n) {
    for (int i = 0; i < n; i++) {
        if (!strcmp(word, list[i])) return 1;
    }
    return 0;
}

static void arm_add(char *text) {
    static const char *const builds[8] = {"fp8",   "fp16",   "bf16",   "fp32",
                                          "fp8cu", "fp16cu", "bf16cu", "fp32cu"};
    EXPECT(all.arm_count < ARMS_MAX, "option --arms: at most %d", ARMS_MAX);
    Arm *a = &all.arms[all.arm_count];
    text += strspn(text, " ");
    size_t n = strlen(text);
    while (n > 0 && text[n - 1] == ' ') text[--n] = 0;
    EXPECT(n < sizeof(a->label) - 1, "option --arms: '%.40s...' is too long", text);
    const int build = (int)strcspn(text, " ");
    snprintf(a->label, sizeof(a->label), "%s", text);
    snprintf(a->build, sizeof(a->build), "%.*s", build, text);
    snprintf(a->options, sizeof(a->options), "%s", text + build);
    EXPECT(word_in(a->build, builds, 8),
           "option --arms: an arm begins with fp8, fp16, bf16 or fp32, on a GPU with cu after it; "
           "found '%s'",
           text);
    for (size_t i = 0; i <= n; i++) {
        const int kept = isalnum((unsigned char)text[i]) || !text[i] || text[i] == '.';
        a->slug[i] = kept ? text[i] : '_';
    }
    for (int i = 0; i < all.arm_count; i++) {
        EXPECT(strcmp(all.arms[i].slug, a->slug), "option --arms: '%s' stands there twice", text);
    }
    all.width = MAX(all.width, (int)n);
    all.arm_count++;
}

// The whole of a text as an integer, else 0.
static int integer_parse(const char *text) {
    char *end;
    const long value = strtol(text, &end, 10);
    return *text && !*end && value > 0 && value < 1 << 20 ? (int)value : 0;
}

// Seeds N (1 to N) or N-M.
static void seeds_parse(const char *text) {
    char first[16], last[16] = "", end = 0;
    const int parts = sscanf(text, "%15[0-9]-%15[0-9]%c", first, last, &end);
    const int low = parts == 2 ? integer_parse(first) : 1;
    const int high = integer_parse(parts == 2 ? last : text);
    EXPECT(!end && low >= 1 && high >= low && high - low < SEEDS_MAX,
           "option --seeds: expected N, or N-M, and at most %d seeds; found '%s'", SEEDS_MAX, text);
    for (int seed = low; seed <= high; seed++) all.seed[all.seeds++] = seed;
}

// The words after --, and the line that a shell would be given for them.
static void common_parse(int count, char **words) {
    static char common[PATH_MAX - 64];
    all.common = common;
    for (int i = 0; i < count; i++) {
        static const char plain[] =
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./,:=+@%";
        char *word = words[i];
        const char *quote = "";
        if (!*word || word[strspn(word, plain)]) quote = strchr(word, '\'') ? "\"" : "'";
        EXPECT(all.word_count < 240 && strlen(common) + strlen(word) + 4 < sizeof(common),
               "too many options after --");
        EXPECT(!word[strcspn(word, "\n\t")],
               "after --: tabs and new lines in an option are not supported: %s", word);
        all.words[all.word_count++] = word;
        sprintf(common + strlen(common), "%s%s%s%s", common[0] ? " " : "", quote, word, quote);
    }
}

// Parses what an arm will be given, as its trainer will: unknown words, options of another build.
static Options arm_options(const Arm *arm, Gpt *g) {
    static const char *const own[8] = {"seed", "data-seed", "out",     "resume",
                                       "eval", "help",      "version", "prompt"};
    char text[256], *argv[WORDS_MAX] = {(char *)arm->build};
    int given[OPTION_COUNT] = {0};
    const int is_fp8 = !strncmp(arm->build, "fp8", 3);
    Options o = options_parse(words_of(arm, argv, 1, text), argv, given);
    if (o.val_batches) o.val_rows = o.val_batches * o.batch;
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionSpec *s = &option_specs[i];
        if (!given[i]) continue;
        EXPECT(is_fp8 || !(s->scope & FP8), "option --%s: only the FP8 build has it", s->name);
        EXPECT(!word_in(s->name, own, 8),
               "option --%s: the comparison sets it, or it does not train", s->name);
    }
    if (is_fp8) options_recipes(&o, g);
    const int depth = options_depth(&o);
    if (depth) {
        g->config = options_config(&o, depth, 256);
    } else {
        uint64_t sum;
        const File model = file_open(o.model, 0);
        g->config = model_check(&model, &sum);
        close(model.fd);
    }
    if (is_fp8) options_products(&o, g);
    return o;
}

// The CUDA file has options of its own, which its trainer will check: only the steps are read.
static void steps_parse(void) {
    for (int i = 0; i + 1 < all.word_count; i++) {
        const char *word = all.words[i];
        if (!strcmp(word, "-x") || !strcmp(word, "--steps")) {
            all.steps = integer_parse(all.words[i + 1]);
        }
    }
}

// Checks all arms before anything is trained, and that their configurations are the same.
static void arms_check(void) {
    static TrainedRun runs[2];
    static Gpt g;
    int checked = 0;
    char value[PATH_MAX];
    for (int a = 0; a < all.arm_count; a++) {
        const Arm *arm = &all.arms[a];
        if (strstr(arm->build, "cu")) {
            steps_parse();
            continue;
        }
        snprintf(program_name, sizeof(program_name), "compare: arm '%s'", arm->label);
        const Options o = arm_options(arm, &g);
        all.steps = o.steps;
        const long validations = o.val_every ? o.steps / o.val_every + 1 : 0;
        EXPECT(validations < POINTS_MAX,
               "options --steps, --val-every: at most %d validations, found %ld", POINTS_MAX - 1,
               validations);
        TrainedRun *r = &runs[checked++ > 0];
        r->log = options_lines(&o);
        snprintf(r->dir, sizeof(r->dir), "arm '%s'", arm->label);
        EXPECT(atol(text_value(r->log, "val-every", value)) > 0,
               "expected --val-every above 0: an arm needs validations");
        strcpy(program_name, "compare");
        run_compare(r, &runs[0], 1);
        if (r == &runs[0]) continue;
        free(r->log);
        r->log = NULL;
    }
}

// ==== 8. rows that are pooled ==================================================================

typedef struct {
    int arm, seed;
    double loss, in_bf16, half, tok_s, mib;
    char state[128];
} PoolRow;
static struct {
    PoolRow rows[ARMS_MAX * SEEDS_MAX];
    int n;
    char common[3 * PATH_MAX];
} pool;

static void runs_allocate(void) { // shared: what a child saw of a run's end is known to its parent
    for (int a = 0; a < all.arm_count; a++) {
        void *runs = mmap(NULL, all.seeds * sizeof(TrainedRun), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        EXPECT(runs != MAP_FAILED, "out of memory");
        all.arms[a].runs = (TrainedRun *)runs;
    }
}

// The first lines of a runs.tsv. Files of other options or other data are errors.
static void pool_header(const char *path, const char *text) {
    char value[PATH_MAX];
    const int first = !all.data[0];
    EXPECT(strstr(text, RUNS_HEADER) && *text_value(text, "common", value),
           "%s: expected a runs.tsv with lines '# common' and '# data'", path);
    EXPECT(first || words_same(pool.common, value),
           "%s: is of other options ('%s') than the first file ('%s')", path, value, pool.common);
    snprintf(pool.common, sizeof(pool.common), "%s", value);
    text_value(text, "data", value);
    EXPECT(first || !strcmp(all.data, value),
           "%s: is of other data or rules ('%s') than the first file ('%s')", path, value,
           all.data);
    snprintf(all.data, sizeof(all.data), "%.159s", value);
    const double floor = atof(text_value(text, "floor", value));
    EXPECT(pool.n == 0 || floor == all.floor,
           "%s: is of another validation set, with floor %g, than the first file, with %g", path,
           floor, all.floor);
    all.floor = floor;
}

// Adds a row, unless its arm is not asked for. Two rows of one arm and seed that differ are an
// error.
static void pool_row(const char *path, const char *at) {
    PoolRow r;
    char label[256];
    EXPECT(sscanf(at, "%255[^\t]\t%d\t%lf\t%lf\t%lf\t%lf\t%lf\t%127[^\n]", label, &r.seed, &r.loss,
                  &r.in_bf16, &r.half, &r.tok_s, &r.mib, r.state) == 8,
           "%s: expected 8 columns, found '%.*s'", path, (int)strcspn(at, "\n"), at);
    EXPECT(isfinite(r.loss) || strcmp(r.state, "whole"),
           "%s: '%s' with seed %d is whole, but has no loss", path, label, r.seed);
    r.arm = arm_index(label);
    if (r.arm < 0) return;
    for (int i = 0; i < pool.n; i++) {
        const PoolRow *twin = &pool.rows[i];
        if (twin->arm != r.arm || twin->seed != r.seed) continue;
        EXPECT(!strcmp(twin->state, r.state) && (twin->loss == r.loss || isnan(r.loss)),
               "%s: '%s' with seed %d is there twice, with losses %.9g and %.9g", path, label,
               r.seed, twin->loss, r.loss);
        return;
    }
    EXPECT(pool.n < ARMS_MAX * SEEDS_MAX, "%s: more rows than fit", path);
    pool.rows[pool.n++] = r;
}

// The seeds that every arm has, in the order of the files.
static void pool_seeds(void) {
    int left_out = 0;
    all.seeds = 0;
    for (int i = 0; i < pool.n; i++) {
        int have = 0;
        for (int j = 0; j < pool.n; j++) have += pool.rows[j].seed == pool.rows[i].seed;
        const int complete = have == all.arm_count;
        if (complete && pool.rows[i].arm == 0 && all.seeds < SEEDS_MAX) {
            all.seed[all.seeds++] = pool.rows[i].seed;
        }
        left_out += !complete;
    }
    EXPECT(all.seeds, "option --pool: no seed that all %d arms have; --arms says which arms",
           all.arm_count);
    if (left_out) printf("%d rows are left out: not every arm has their seed\n", left_out);
}

// Reads the rows of runs.tsv files as runs of the arms, which have no logs.
static void pool_read(const char *files) {
    char *list = strdup(files);
    for (char *path = strtok(list, ","); path; path = strtok(NULL, ",")) {
        char *text = text_read(path);
        struct stat from, to;
        EXPECT(text, "%s: cannot read: %s", path, strerror(ENOENT));
        EXPECT(stat(path, &from) || fstatat(output.fd, "runs.tsv", &to, 0) ||
                   from.st_ino != to.st_ino || from.st_dev != to.st_dev,
               "%s would be written over; use another --out", path);
        pool_header(path, text);
        const char *at = strstr(text, RUNS_HEADER) + strlen(RUNS_HEADER) - 1;
        for (; at && at[1]; at = strchr(at + 1, '\n')) pool_row(path, at + 1);
        free(text);
    }
    free(list);
    all.common = pool.common;
    pool_seeds();
    runs_allocate();
    for (int i = 0; i < pool.n; i++) {
        const PoolRow *row = &pool.rows[i];
        int s = 0;
        while (s < all.seeds && all.seed[s] != row->seed) s++;
        if (s == all.seeds) continue;
        TrainedRun *r = &all.arms[row->arm].runs[s];
        r->final_loss = r->val[0] = row->loss;
        r->final_bf16 = row->in_bf16;
        r->half_loss = row->half;
        r->tok_s = row->tok_s;
        r->mib = row->mib;
        r->points = !strcmp(row->state, "whole");
        if (!r->points) snprintf(r->died, sizeof(r->died), "%s", row->state);
    }
}

// ==== 9. logs that are there ===================================================================
// --logs makes arms of runs that nobody trained for a comparison. It only reads their directories.

// A run, the label of its arm, and its seeds.
typedef struct {
    TrainedRun run;
    char label[256];
    long seed, data_seed;
    int whole, left_out;
} FoundRun;
static struct {
    FoundRun *runs;
    int n;
} found;

// Leaves a run out, and says why in one line.
__attribute__((format(printf, 2, 3))) static void found_leave(FoundRun *f, const char *why, ...) {
    va_list args;
    va_start(args, why);
    printf("left out: %s (%s, seed %ld): ", f->run.dir, f->label, f->seed);
    vprintf(why, args);
    printf("\n");
    va_end(args);
    f->left_out = 1;
}
static void found_differ(const char *name) {
    const size_t n = strlen(all.differ);
    if (strstr(all.differ, name)) return;
    snprintf(all.differ + n, sizeof(all.differ) - n, "%s%s", n ? ", " : "", name);
}

static int option_same(const OptionSpec *s, const char *a, const char *b) {
    return s->kind == OPT_RECIPE ? recipe_same(a, b) : !strcmp(a, b);
}
// Whether an option that does not belong to FP8 differs between runs.
static int option_varies(const OptionSpec *s) {
    char first[PATH_MAX], value[PATH_MAX];
    log_option(&found.runs[0].run, s, first);
    for (int i = 1; i < found.n; i++) {
        if (strcmp(log_option(&found.runs[i].run, s, value), first)) return 1;
    }
    return 0;
}
// The label of a run's arm: its precision, and what options of its own are not the default.
static void found_label(FoundRun *f) {
    char precision[PATH_MAX], value[PATH_MAX], initial[PATH_MAX];
    const int on_gpu = *text_value(f->run.log, "attention_by", value) != 0;
    text_value(f->run.log, "precision", precision);
    size_t n =
        (size_t)snprintf(f->label, sizeof(f->label), "%.8s%s", precision, on_gpu ? "cu" : "");
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionSpec *s = &option_specs[i];
        if (!option_is_own(s)) continue;
        option_default(s, initial);
        if (option_same(s, log_option(&f->run, s, value), initial)) continue;
        if (!(s->scope & FP8) && !option_varies(s)) continue;
        n += (size_t)snprintf(f->label + n, sizeof(f->label) - n, " --%s%s%s", s->name,
                              s->kind == OPT_FLAG ? "" : " ", s->kind == OPT_FLAG ? "" : value);
        EXPECT(n < sizeof(f->label), "%s: the options '%.80s...' are too long for a label",
               f->run.dir, f->label);
    }
    all.width = MAX(all.width, (int)n);
}

// Reads the logs of n directories. A directory that is no run's, or that is named twice, is an
// error; so is a log with a damaged row.
static void found_read(char **dirs, int n) {
    char value[PATH_MAX];
    struct stat mine, other;
    found.n = n;
    all.differ[0] = 0;
    found.runs = (FoundRun *)memory_allocate((size_t)n * sizeof(FoundRun));
    memset(found.runs, 0, (size_t)n * sizeof(FoundRun));
    for (int i = 0; i < n; i++) {
        FoundRun *f = &found.runs[i];
        TrainedRun *r = &f->run;
        path_print(r->dir, "%s", dirs[i]);
        for (size_t end = strlen(r->dir); end > 1 && r->dir[end - 1] == '/';) r->dir[--end] = 0;
        for (int k = 0; k < i && stat(r->dir, &mine) == 0; k++) {
            EXPECT(stat(dirs[k], &other) || mine.st_ino != other.st_ino ||
                       mine.st_dev != other.st_dev,
                   "option --logs: %s and %s are the same directory", dirs[k], dirs[i]);
        }
        f->whole = run_read(r);
        EXPECT(r->log, "option --logs: %s: expected the directory of a run, found no log.tsv in it",
               r->dir);
        EXPECT(*text_value(r->log, "precision", value) && strstr(r->log, "\nstep\t"),
               "%s/log.tsv: expected a trainer's log with its header, found something else",
               r->dir);
        EXPECT(!r->damaged,
               "%s/log.tsv: expected the row of step %ld, found '%.*s'; a row is "
               "damaged or missing",
               r->dir, r->stopped_at + 1, MIN(60, (int)strcspn(r->damaged, "\n")), r->damaged);
        f->seed = atol(text_value(r->log, "seed", value));
        f->data_seed = atol(text_value(r->log, "data-seed", value));
        r->final_bf16 = r->mib = NAN;
    }
    for (int i = 0; i < n; i++) found_label(&found.runs[i]);
}

static int seeds_same(const FoundRun *a, const FoundRun *b) {
    return a->seed == b->seed && a->data_seed == b->data_seed;
}
// The run of an arm with the seeds of another run; NULL: there is none.
static FoundRun *found_run(const char *label, const FoundRun *like) {
    for (int i = 0; i < found.n; i++) {
        FoundRun *f = &found.runs[i];
        if (!f->left_out && !strcmp(f->label, label) && seeds_same(f, like)) return f;
    }
    return NULL;
}
// The first run of an arm, or of the first arm (NULL); NULL: there is none.
static FoundRun *found_first(const char *label) {
    for (int i = 0; i < found.n; i++) {
        FoundRun *f = &found.runs[i];
        if (!f->left_out && (!label || !strcmp(f->label, label))) return f;
    }
    return NULL;
}
static FoundRun *found_reference(const char *label) {
    FoundRun *f = found_first(label ? label : "fp16");
    if (!f && !label) f = found_first("fp16cu");
    EXPECT(f || !label, "option --reference: no finished run is of '%s'; the first is of '%s'",
           label, found_first(NULL) ? found_first(NULL)->label : "none");
    return f ? f : found_first(NULL);
}

// Says of runs that are not finished where they stand, and leaves them out unless `unfinished`.
static void found_unfinished(int unfinished) {
    for (int i = 0; i < found.n; i++) {
        FoundRun *f = &found.runs[i];
        TrainedRun *r = &f->run;
        if (f->whole) continue;
        snprintf(r->died, sizeof(r->died), "unfinished: step %ld of %ld", r->stopped_at,
                 steps_of(r));
        if (!unfinished) found_leave(f, "%s", r->died);
    }
}
// Leaves out runs of another configuration than a run's, and those that are there twice.
static void found_check(const FoundRun *base) {
    char mine[PATH_MAX], theirs[PATH_MAX];
    for (int i = 0; i < found.n; i++) {
        FoundRun *f = &found.runs[i];
        if (f->left_out) continue;
        const char *name = config_difference(&f->run, &base->run, SAME_DATA, mine, theirs);
        const FoundRun *twin = found_run(f->label, f);
        if (name) {
            found_leave(f, "its %s is '%s', that of %s is '%s'", name, mine, base->run.dir, theirs);
            found_differ(name);
        } else if (twin != f) {
            found_leave(f, "%s is of the same arm and seed", twin->run.dir);
        }
    }
}
// Leaves out runs whose seeds another arm lacks, so that all arms have the same seeds; an arm that
// would leave no seed is left out as a whole.
static void found_seeds(const char *reference) {
    for (int i = 0; i < found.n; i++) {
        const FoundRun *first = &found.runs[i];
        if (first->left_out || first != found_first(first->label)) continue;
        int pairs = 0;
        for (int k = 0; k < found.n; k++) {
            const FoundRun *f = &found.runs[k];
            const int counts = !f->left_out && !strcmp(f->label, reference);
            pairs += counts && found_run(first->label, f);
        }
        for (int k = 0; k < found.n && pairs; k++) {
            FoundRun *f = &found.runs[k];
            if (f->left_out || strcmp(f->label, reference) || found_run(first->label, f)) continue;
            found_leave(f, "no run of '%s' has its seeds %ld and %ld", first->label, f->seed,
                        f->data_seed);
            found_differ("seed");
        }
    }
    for (int i = 0; i < found.n; i++) {
        FoundRun *f = &found.runs[i];
        if (f->left_out || found_run(reference, f)) continue;
        found_leave(f, "no run of '%s' that is compared has its seeds %ld and %ld", reference,
                    f->seed, f->data_seed);
        found_differ("seed");
    }
}

// Whether every run that has come to a step has validated there.
static int step_is_shared(double step) {
    for (int i = 0; i < all.arm_count * all.seeds; i++) {
        const TrainedRun *r = &all.arms[i / all.seeds].runs[i % all.seeds];
        int p = 0;
        while (p < r->points && r->step[p] != step) p++;
        if (p == r->points && (double)r->stopped_at >= step) return 0;
    }
    return 1;
}
// Drops the validations that not all runs have.
static void validations_share(void) {
    for (int i = 0; i < all.arm_count * all.seeds; i++) {
        TrainedRun *r = &all.arms[i / all.seeds].runs[i % all.seeds];
        int kept = 0;
        for (int p = 0; p < r->points; p++) {
            if (!step_is_shared(r->step[p])) continue;
            r->step[kept] = r->step[p];
            r->val[kept] = r->val[p];
            r->seconds[kept++] = r->seconds[p];
        }
        r->points = kept;
        r->half_loss = half_mean(r);
    }
}

// The options that all runs share and that are not the default, as a command line has them.
static const char *common_options(const TrainedRun *r) {
    static char text[8 * PATH_MAX];
    char value[PATH_MAX], initial[PATH_MAX];
    size_t n = (size_t)snprintf(text, sizeof(text), "-i %s", text_value(r->log, "train", value));
    for (int i = 0; i < OPTION_COUNT && n < sizeof(text); i++) {
        const OptionSpec *s = &option_specs[i];
        const int own = option_is_own(s) && !(s->scope & FP8) && !option_varies(s);
        if (!option_is_shared(s) && !own) continue;
        option_default(s, initial);
        if (!strcmp(log_option(r, s, value), initial)) continue;
        n += (size_t)snprintf(text + n, sizeof(text) - n, " --%s %s", s->name, value);
    }
    return text;
}

// Makes arms of the runs in n directories, paired by seed with those of the reference: --reference,
// else fp16, else the first. Says what is left out and why. With `unfinished`, runs that have not
// ended stay, and `died` says where they stand. Returns the number of arms; 0: no run is left.
static int logs_read(char **dirs, int n, const char *reference, int unfinished) {
    memset(all.arms, 0, sizeof(all.arms));
    all.arm_count = all.seeds = all.width = 0;
    found_read(dirs, n);
    found_unfinished(unfinished);
    const FoundRun *base = found_reference(reference);
    if (!base) return 0;
    found_check(base);
    found_seeds(base->label);
    for (int i = 0; i < found.n; i++) {
        const FoundRun *f = &found.runs[i];
        if (f->left_out) continue;
        if (arm_index(f->label) < 0) {
            EXPECT(all.arm_count < ARMS_MAX, "option --logs: at most %d arms", ARMS_MAX);
            snprintf(all.arms[all.arm_count++].label, sizeof(all.arms[0].label), "%s", f->label);
        }
        EXPECT(all.seeds < SEEDS_MAX, "option --logs: at most %d seeds", SEEDS_MAX);
        EXPECT(f->seed < INT_MAX, "%s: seed %ld is larger than a table has room for", f->run.dir,
               f->seed);
        if (!strcmp(f->label, base->label)) all.seed[all.seeds++] = (int)f->seed;
    }
    runs_allocate();
    for (int a = 0; a < all.arm_count; a++) {
        int s = 0;
        for (int i = 0; i < found.n; i++) { // in the order of the reference's runs
            const FoundRun *f = &found.runs[i];
            if (f->left_out || strcmp(f->label, base->label)) continue;
            all.arms[a].runs[s++] = found_run(all.arms[a].label, f)->run;
        }
    }
    validations_share();
    all.reference = arm_index(base->label);
    all.bf16 = MAX(arm_index("bf16"), arm_index("bf16cu"));
    all.common = common_options(&base->run);
    data_read(&base->run);
    return all.arm_count;
}

// The directory of the tables must not be one of the runs', nor hold them.
static void out_check(const char *out, char **dirs, int n) {
    struct stat mine, run;
    if (stat(out, &mine)) return;
    for (int i = 0; i < n; i++) {
        char above[PATH_MAX];
        path_print(above, "%s/..", dirs[i]);
        const char *const both[2] = {dirs[i], above};
        for (int k = 0; k < 2; k++) {
            EXPECT(stat(both[k], &run) || run.st_ino != mine.st_ino || run.st_dev != mine.st_dev,
                   "option --out: %s holds the runs; nothing is written there, use another --out",
                   out);
        }
    }
}

// ==== 10. the program ==========================================================================

// Steps of a run that count as done: the rows of its log if this call began it; else those that
// need not be done again, up to its last checkpoint.
static long steps_done(const Arm *arm, int seed, int begun) {
    char path[PATH_MAX], dir[PATH_MAX], tail[1024];
    path_print(dir, "%s/%s-%d", all.out, arm->slug, seed);
    path_print(path, "%s.diverged", dir);
    if (!access(path, F_OK)) return all.steps;
    path_print(path, "%s/log.tsv", dir);
    const int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    const off_t size = lseek(fd, 0, SEEK_END), room = (off_t)sizeof(tail) - 1;
    const ssize_t n = pread(fd, tail, (size_t)room, MAX(size - room, 0));
    close(fd);
    tail[MAX(n, 0)] = 0;
    char *end = strrchr(tail, '\n');
    if (end) *end = 0;
    const char *row = end ? strrchr(tail, '\n') : NULL; // the last whole one
    const long rows = row ? atol(row + 1) : 0;
    if (begun || rows == all.steps) return rows;
    return MAX(checkpoint_newest(dir, LONG_MAX), 0);
}
// Of all runs, the first `begun` of which this call began. Seed by seed, so that a comparison that
// is stopped has pairs.
static long all_steps_done(int begun) {
    long sum = 0;
    for (int i = 0; i < all.arm_count * all.seeds; i++) {
        const Arm *arm = &all.arms[i % all.arm_count];
        sum += steps_done(arm, all.seed[i / all.arm_count], i < begun);
    }
    return sum;
}

static void progress_print(double begin, long steps_before, int begun) {
    static double said;
    const int terminal = isatty(1);
    char left[64];
    if (!all.steps || seconds_now() - MAX(said, begin) < (terminal ? 1 : 60)) return;
    const double total = (double)all.steps * all.arm_count * all.seeds;
    const double done = all_steps_done(begun);
    said = seconds_now();
    if (done <= steps_before) return;
    duration_text((said - begin) / (done - steps_before) * (total - done), left);
    printf("%s%.1f%% of all steps | %s left%s", terminal ? "\r" : "", 100 * done / total, left,
           terminal ? "\033[K" : "\n");
    fflush(stdout);
}
// Waits for the end of a child that made a run; its error ends the program.
static void child_wait(double begin, long steps_before, int begun) {
    int status;
    pid_t child;
    while (1) {
        child = waitpid(-1, &status, WNOHANG);
        if (child > 0 || (child < 0 && errno != EINTR)) break;
        usleep(100000);
        progress_print(begin, steps_before, begun);
    }
    EXPECT(child > 0, "lost a run: %s", strerror(errno));
    if (isatty(1)) printf("\r\033[K");
    const int code = status_code(status);
    if (code == EXIT_BAD_INPUT) exit(code); // it has said why
    if (code) fatal(code, "a run failed or was interrupted; the same command goes on");
}

// Makes run k of all, and says how it ended: what a child does.
static void child_run(int k) {
    Arm *arm = &all.arms[k % all.arm_count];
    const int index = k / all.arm_count;
    TrainedRun *r = &arm->runs[index];
    char loss[32];
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    run_make(arm, index);
    snprintf(loss, sizeof(loss), "loss %.5f", r->final_loss);
    printf("%s[%d/%d] %-*s seed %d: %s\n", isatty(1) ? "\r\033[K" : "", k + 1,
           all.arm_count * all.seeds, all.width, arm->label, all.seed[index],
           r->died[0] ? r->died : loss);
    r->log = NULL; // the child's own memory
    exit(0);
}

// Makes all runs, `jobs` at a time.
static void runs_make(int jobs) {
    const double begin = seconds_now();
    const int total = all.arm_count * all.seeds;
    int running = 0;
    char threads[16];
    runs_allocate();
    printf("%d runs (arms: %d, seeds: %d) in %s. Ctrl-C stops them; the same command goes on. "
           "--help says more.\n",
           total, all.arm_count, all.seeds, all.out);
    const long steps_before = all_steps_done(0);
    snprintf(threads, sizeof(threads), "%d", MAX(1, thread_count() / jobs));
    setenv("OMP_NUM_THREADS", threads, 1);
    for (int k = 0; k < total || running; k++) {
        if (k >= total || running == jobs) {
            child_wait(begin, steps_before, MIN(k, total));
            running--;
        }
        if (k >= total) continue;
        fflush(stdout);
        const pid_t child = fork();
        EXPECT(child >= 0, "cannot start a run: %s", strerror(errno));
        if (child == 0) child_run(k);
        running++;
    }
}

// Reads all runs, which are there now, and checks that they can be compared.
static void runs_read(void) {
    const TrainedRun *first = NULL;
    for (int s = 0; s < all.seeds; s++) {
        for (int a = 0; a < all.arm_count; a++) {
            TrainedRun *r = &all.arms[a].runs[s];
            run_make(&all.arms[a], s);
            if (r->log && !first) first = r;
            if (r->log) run_compare(r, first, all.seed[s]);
        }
    }
    if (!first) return;
    data_read(first);
}

static struct {
    const char *arms, *seeds, *jobs, *bound, *reference, *pool, *statistics, *primary, *placebo;
    char **logs;
    int log_count, null;
} asked = {.bound = "0.002"};

// Reads the options up to --; returns how many words they are.
static int asked_read(int argc, char **argv) {
    const struct {
        const char *name, **value;
    } options[] = {{"--arms", &asked.arms},       {"--seeds", &asked.seeds},
                   {"--out", &all.out},           {"--reference", &asked.reference},
                   {"--jobs", &asked.jobs},       {"--bound", &asked.bound},
                   {"--primary", &asked.primary}, {"--placebo", &asked.placebo},
                   {"--pool", &asked.pool},       {"--statistics", &asked.statistics}};
    const int known = sizeof(options) / sizeof(options[0]);
    int i = 1;
    while (i < argc && strcmp(argv[i], "--")) {
        int k = 0;
        const char *name = argv[i++];
        if (!strcmp(name, "--help")) exit(help_print());
        if (!strcmp(name, "--null")) {
            asked.null = 1;
            continue;
        }
        if (!strcmp(name, "--logs")) {
            asked.logs = argv + i;
            while (i < argc && strncmp(argv[i], "--", 2)) i++;
            asked.log_count = (int)(argv + i - asked.logs);
            EXPECT(asked.log_count, "option --logs: expected directories of runs after it");
            continue;
        }
        while (k < known && strcmp(name, options[k].name)) k++;
        EXPECT(k < known && i < argc, "option '%s': %s; --help says what there is", name,
               k < known ? "needs a value" : "is unknown");
        *options[k].value = argv[i++];
    }
    return i;
}

// The index of the arm that an option names.
static int arm_asked(const char *option, const char *label) {
    const int index = arm_index(label);
    EXPECT(index >= 0, "option %s: '%s' is no arm; the first arm is '%s'", option, label,
           all.arms[0].label);
    EXPECT(index != all.reference, "option %s: '%s' is the reference", option, label);
    return index;
}
// Adds the null arms and the placebo unless they are among the arms.
static void roles_add(void) {
    const Arm *reference = &all.arms[all.reference];
    const char *on_gpu = strstr(reference->build, "cu") ? "cu" : "";
    char texts[3][300] = {"", "", ""};
    if (asked.null) {
        const int is_tiles = strstr(all.common, "sum-order tiles") ||
                             strstr(all.common, "sum-order=tiles") ||
                             strstr(reference->options, "sum-order tiles");
        snprintf(texts[0], sizeof(texts[0]), "fp32%s", on_gpu);
        snprintf(texts[1], sizeof(texts[1]), "%s --sum-order %s", reference->label,
                 is_tiles ? "pairs" : "tiles");
        if (*on_gpu) texts[1][0] = 0; // a GPU's sums have one order
    }
    if (asked.placebo) snprintf(texts[2], sizeof(texts[2]), "%s", asked.placebo);
    for (int i = 0; i < 3; i++) {
        if (texts[i][0] && arm_index(texts[i]) < 0) arm_add(texts[i]);
    }
}
// Marks the primary arm, the placebo, and the null arms: fp32, and the reference with an order of
// sums of its own.
static void roles_mark(void) {
    const Arm *reference = &all.arms[all.reference];
    for (int a = 0; a < all.arm_count && asked.null; a++) {
        char label[300], *order = label;
        snprintf(label, sizeof(label), "%s", all.arms[a].label);
        order = strstr(label, " --sum-order ");
        if (order) *order = 0;
        all.arms[a].is_null =
            a != all.reference && (!strcmp(label, "fp32") || !strcmp(label, "fp32cu") ||
                                   (order && !strcmp(label, reference->label)));
    }
    if (asked.placebo) all.arms[arm_asked("--placebo", asked.placebo)].is_placebo = 1;
    if (asked.primary) all.primary = arm_asked("--primary", asked.primary);
}

// Opens the directory of the tables; it is locked until the program ends.
static void output_open(void) {
    path_print(output.path, "%s", all.out);
    directory_make(output.path);
    output.fd = directory_lock(output.path);
    EXPECT(output.fd >= 0, "%s: another comparison runs in this directory", all.out);
}
static void pictures_write(void) {
    static Curve curves[ARMS_MAX];
    for (int a = 0; a < all.arm_count; a++) curve_make(&all.arms[a], &curves[a]);
    report_write(curves);
    picture_write(curves);
}

static int logs_compare(void) {
    if (!all.out) all.out = "log/compare-logs";
    out_check(all.out, asked.logs, asked.log_count);
    EXPECT(logs_read(asked.logs, asked.log_count, asked.reference, 0) > 1,
           "option --logs: no two arms are left that can be compared");
    roles_mark();
    output_open();
    const int status = summary_write();
    pictures_write();
    return status;
}

// Arms of --arms: trains them, or takes their rows from --pool.
static int arms_compare(void) {
    seeds_parse(asked.seeds ? asked.seeds : "5");
    const int jobs = integer_parse(asked.jobs ? asked.jobs : "1");
    EXPECT(jobs >= 1 && jobs <= 64, "option --jobs: expected 1 to 64, found %d", jobs);
    char *list = strdup(asked.arms ? asked.arms : "fp16,bf16,fp8");
    for (char *arm = strtok(list, ","); arm; arm = strtok(NULL, ",")) arm_add(arm);
    EXPECT(all.arm_count >= 1, "option --arms: expected one at least");
    all.reference = arm_index(asked.reference ? asked.reference : "fp16");
    all.bf16 = MAX(arm_index("bf16"), arm_index("bf16cu"));
    EXPECT(all.reference >= 0 || !asked.reference, "option --reference: '%s' is no arm",
           asked.reference);
    all.reference = MAX(all.reference, 0);
    if (!asked.pool) roles_add();
    roles_mark();
    if (!asked.pool) arms_check();
    if (!all.out) all.out = asked.pool ? "log/pooled" : "log/compare"; // pooling keeps the runs
    output_open();
    if (asked.pool) {
        pool_read(asked.pool);
        return summary_write();
    }
    runs_make(jobs);
    runs_read();
    const int status = summary_write();
    pictures_write();
    return status;
}

// A program that watches runs includes this file and has a main() of its own.
#ifndef WATCH
int main(int argc, char **argv) {
    char *end;
    surroundings_init();
    setvbuf(stdout, NULL, _IOLBF, 0); // progress, also into a file
    const int words = asked_read(argc, argv);
    if (asked.statistics) return statistics_print(asked.statistics);
    EXPECT(
        !asked.logs || (words == argc && !asked.arms && !asked.seeds && !asked.jobs && !asked.pool),
        "option --logs: trains nothing; expected no --arms, --seeds, --jobs, --pool and no words "
        "after --");
    common_parse(MAX(argc - words - 1, 0), argv + MIN(words + 1, argc));
    all.bound = strtod(asked.bound, &end);
    if (*end) all.bound = 0;
    EXPECT(all.bound > 0 && isfinite(all.bound), "option --bound: expected a number above 0");
    return asked.logs ? logs_compare() : arms_compare();
}
#endif
