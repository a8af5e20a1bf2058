/*
Trains several arms (precisions, recipes) with the same seeds and data, and says whether their losses differ.

    make build/compare
    build/compare --arms "fp16,bf16,fp8,fp8 --scaling none" --seeds 5 --out DIR -- -i TRAIN -j VAL -e d4 -x 400 ...

An arm is the name of a build (fp8, fp16, bf16, fp32; with cu after it the CUDA file's) and options of its own; what follows -- goes
to every arm. The seeds set both the initial weights and the order of the data, so that arms are compared in pairs. Runs that are
whole are not run again, stopped ones go on from their checkpoint. A run that cannot go on (it has no checkpoint, or a damaged log)
is renamed to DIR/ARM-SEED.old-N, and made again. One that diverged would do so again, and is run again only when its
DIR/ARM-SEED.diverged is removed. Written to DIR: a directory a run, runs.tsv (a row a run),
summary.tsv (a row an arm), report.html (one page with curves and the scale atlas) and curves.svg (a picture of loss and gap).

    --arms LIST       what is compared, separated by commas ["fp16,bf16,fp8"]
    --seeds N         seeds 1 to N; or N-M [5]
    --out DIR         [log/compare; with --pool log/pooled]
    --reference NAME  the arm that gaps are measured against, besides bf16 [fp16, or the first arm]
    --jobs N          runs at a time, each on its share of the threads: small models train faster so, but tokens/s and seconds are
                      then those of runs that share the machine [1]
    --bound X         gaps inside +-X nats count as none [0.002]
    --pool A,B,..     trains nothing: the rows of these runs.tsv (other seeds, other machines) as one comparison, without curves
    --statistics FILE two columns of numbers: prints n, mean difference, standard error, 95% interval and p, and stops

Verdicts: `match` if the whole 95% interval of the gap lies inside the bound; else `worse` or `better` if it excludes 0; else
`undecided`. The number of seeds that it then names is a guess; seeds added until a verdict pleases, or many arms at once, make
chance verdicts likelier than 1 in 20. The noise band is what the means of two sets of as many runs of the reference, with seeds
of their own, differ by at most in 95 of 100 cases: a gap inside it would not be seen without pairing.

The last validation is one point of a noisy curve: gap_half compares the means of all validations after half of the steps.
An FP8 arm's last weights are validated by the BF16 build as well: that gap (gap_trained) is training's share, the rest is what
FP8 costs in the validation itself.

Exit status: 0 every arm matches the reference (or is better), 1 one is worse, diverged or died, 2 bad input, 3 none is worse but
one is undecided.
*/
#define TESTING
#define PROGRAM program_name // errors of the trainer's option parser name the arm, too
static char program_name[320] = "compare";
#include "../train_gpt_fp8.c"
#include <sys/prctl.h>
#include <sys/wait.h>

#define ARMS_MAX   32
#define SEEDS_MAX  256
#define POINTS_MAX 4096
static Directory output; // --out, locked; the files in it are written through it
#define RUNS_HEADER "\narm\tseed\tval_loss\tval_loss_bf16\tval_loss_half\ttok_s\tpeak_mib\tstate\n"

// ==== 1. statistics ==================================================================================================

// The regularised incomplete beta function I_x(a, b) by its continued fraction (Lentz; Numerical Recipes 6.4).
static double beta_fraction(double a, double b, double x) {
    double c = 1, d = 1 / (1 - (a + b) * x / (a + 1)), h = d;
    for (int m = 1; m < 300; m++) {
        const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        d = 1 / (1 + even * d), c = 1 + even / c, h *= d * c;
        d = 1 / (1 + odd * d), c = 1 + odd / c, h *= d * c;
    }
    return h;
}
static double beta_incomplete(double a, double b, double x) {
    if (x <= 0 || x >= 1) return x > 0;
    const double front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x));
    return x < (a + 1) / (a + b + 2) ? front * beta_fraction(a, b, x) / a : 1 - front * beta_fraction(b, a, 1 - x) / b;
}
// The share of Student's t distribution beyond +-t.
static double t_two_sided(double t, double df) { return beta_incomplete(df / 2, 0.5, df / (df + t * t)); }
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

// Paired differences: their mean, its standard error, the 95% interval of Student's t, and the p-value of "the mean is 0".
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
    g.low = g.mean - half, g.high = g.mean + half;
    g.p = g.error > 0 ? t_two_sided(g.mean / g.error, n - 1) : g.mean == 0;
    return g;
}

// Seeds that a decision may take, if mean and spread stay: until the interval lies inside the bound, or excludes 0.
static int seeds_needed(const Gap *g, double bound) {
    const double spread = g->error * sqrt(g->n);
    for (int n = g->n + 1; n < 1000; n++) {
        const double half = t_quantile(0.05, n - 1) * spread / sqrt(n);
        if (fabs(g->mean) + half <= bound || fabs(g->mean) - half > 0) return n - g->n;
    }
    return 1000;
}

// ==== 2. runs ========================================================================================================

typedef struct {
    char dir[PATH_MAX], *log, died[256]; // died: why this run has no final loss, or ""
    int points;                          // validations
    double step[POINTS_MAX], val[POINTS_MAX], seconds[POINTS_MAX];
    double final_loss, final_bf16; // the last validation, and that of the same weights by the BF16 build; NAN: unknown
    double half_loss;              // mean of the validations after half of the steps
    double tok_s, mib;
    long stopped_at; // its last step
} TrainedRun;
typedef struct {
    char label[256], build[16], options[256], slug[256];
    TrainedRun *runs; // [seeds]
} Arm;
static struct {
    Arm arms[ARMS_MAX];
    int arm_count, seeds, reference, bf16; // the last two: arms, or -1
    int seed[SEEDS_MAX], width;            // width: of the longest label
    double bound, floor;
    const char *out, *common; // common: what goes to every arm, as a shell would be given it
    char *words[240];         // and word by word
    int word_count;
    long steps;     // of a run; 0: unknown
    char data[160]; // hashes of what was read, and the rule of the bits: "DATA VAL NUMERICS"
} all;

// What every run of an arm is given, after argv[0 .. n): quiet, the common words, its own (parted at blanks, in text). Returns how
// many words there are then.
#define WORDS_MAX 512
static int words_of(const Arm *arm, char **argv, int n, char *text) {
    argv[n++] = (char *)"-s", argv[n++] = (char *)"0";
    for (int i = 0; i < all.word_count; i++) argv[n++] = all.words[i];
    strcpy(text, arm->options);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) argv[n++] = word;
    argv[n] = NULL;
    return n;
}

// Runs a program with its output appended to a file; returns its exit status.
static int program_run(char **argv, const char *path) {
    fflush(stdout);
    const pid_t pid = fork();
    EXPECT(pid >= 0, "cannot start %s: %s", argv[0], strerror(errno));
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM); // a comparison that ends early stops its runs, which then write a checkpoint
        const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0666);
        if (fd >= 0) dup2(fd, 1), dup2(fd, 2);
        execv(argv[0], argv);
        _exit(127);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// The number after the last `key` in a text, or 0.
static double number_after(const char *text, const char *key) {
    double value = 0;
    for (const char *at = text; at && (at = strstr(at, key)); at += strlen(key)) value = atof(at + strlen(key));
    return value;
}

// Reads a run's log. Returns whether the run is whole: its last step is there, with a validation loss.
static int run_read(TrainedRun *r) {
    char path[PATH_MAX], value[PATH_MAX];
    path_print(path, "%s/log.tsv", r->dir);
    free(r->log);
    r->log = text_read(path), r->points = 0, r->final_loss = NAN, r->stopped_at = 0;
    if (!r->log) return 0;
    const long steps = atol(text_value(r->log, "steps", value));
    double seconds = 0, rates[2] = {0};
    const char *at = strstr(r->log, "\nstep\t");
    for (at = at ? at + 1 + strcspn(at + 1, "\n") : ""; *at; at += strcspn(at, "\n")) {
        at += *at == '\n';
        double step, tokens, train, ms, tok_s;
        char val[32];
        if (sscanf(at, "%lf\t%lf\t%lf\t%31s\t%*s\t%*s\t%*s\t%lf\t%lf", &step, &tokens, &train, val, &ms, &tok_s) != 6) break;
        char *end;
        const double loss = strtod(val, &end);
        if (step != (double)(r->stopped_at + 1) || (strcmp(val, "-") && *end)) break; // a hole, or no number: the log ends here
        r->stopped_at++, seconds += ms * 1e-3, rates[0] += tok_s, rates[1]++;
        if (!strcmp(val, "-") || r->points == POINTS_MAX) continue;
        r->step[r->points] = step, r->val[r->points] = loss, r->seconds[r->points++] = seconds;
    }
    r->tok_s = rates[1] ? rates[0] / rates[1] : 0;
    EXPECT(r->points < POINTS_MAX, "%s: more than %d validations", path, POINTS_MAX - 1);
    const int whole = steps > 0 && r->stopped_at == steps && r->points && r->step[r->points - 1] == (double)steps;
    int half = 0;
    r->half_loss = 0;
    for (int p = 0; p < r->points; p++)
        if (2 * r->step[p] > (double)steps) r->half_loss += r->val[p], half++;
    r->half_loss = half ? r->half_loss / half : NAN;
    if (whole) r->final_loss = r->val[r->points - 1];
    if (whole && !isfinite(r->final_loss)) snprintf(r->died, sizeof(r->died), "diverged: its last validation loss is not finite");
    return whole;
}

// What makes two runs incomparable: any option that is part of a run's identity, but for FP8's, the seeds, and the order of sums.
static void run_compare(const TrainedRun *r, const TrainedRun *first, int seed) {
    char mine[PATH_MAX], theirs[PATH_MAX], want[32];
    static const char *const also[] = {"data_hash", "val_hash", "numerics", "val-every", "train", "val", "attention_by"};
    for (int i = 0; i < OPTION_COUNT + 7; i++) {
        const OptionSpec *s = i < OPTION_COUNT ? &option_specs[i] : NULL;
        const char *name = s ? s->name : also[i - OPTION_COUNT];
        if (s && (s->scope != FIXED || !strcmp(name, "seed") || !strcmp(name, "data-seed") || !strcmp(name, "sum-order"))) continue;
        text_value(r->log, name, mine), text_value(first->log, name, theirs);
        if (!strcmp(name, "attention_by") && (!*mine || !*theirs)) continue; // one of them ran on the CPU
        EXPECT(!strcmp(mine, theirs),
               "%s and %s are not of one configuration: %s is '%s' and '%s'; arms differ in FP8's options alone", r->dir,
               first->dir, name, mine, theirs);
    }
    int same = r->died[0] || first->died[0] || r->points == first->points;
    for (int p = 0; p < MIN(r->points, first->points); p++) same = same && r->step[p] == first->step[p];
    EXPECT(same, "%s and %s are not validated at the same steps: a log was edited; remove the damaged run", r->dir, first->dir);
    snprintf(want, sizeof(want), "%d", seed);
    EXPECT(!strcmp(text_value(r->log, "seed", mine), want) && !strcmp(text_value(r->log, "data-seed", mine), want),
           "%s: expected seeds %d, found another; use another --out", r->dir, seed);
}

// Whether two command lines are the same but for quotes, which older directories do not have.
static int words_same(const char *a, const char *b) {
    for (;; a++, b++) {
        a += strspn(a, "'\""), b += strspn(b, "'\"");
        if (*a != *b || !*a) return *a == *b;
    }
}

// Waits until no program trains in a directory, and locks it; -1: it is not there. A trainer that a stopped comparison left behind
// finishes its step and writes a checkpoint.
static int run_lock(const char *dir) {
    int fd = -1;
    for (int waits = 0; !access(dir, F_OK) && (fd = directory_lock(dir)) < 0; waits = 1) {
        if (!waits) printf("waiting for the program that trains in %s\n", dir);
        usleep(100000);
    }
    return fd;
}

// Writes a text to the file beside a run's directory whose name ends so.
static void file_put(const TrainedRun *r, const char *end, const char *text) {
    char name[PATH_MAX];
    path_print(name, "%s%s", strrchr(r->dir, '/') + 1, end);
    FILE *f = file_begin(&output, name);
    fputs(text, f);
    file_commit(f, &output, name);
}

// The last validation of the same weights by the BF16 build, in its output at `path`: what part of a gap is the evaluation's. Its
// options are those of the run's log that say what is validated.
static double run_evaluate(const Arm *arm, const TrainedRun *r, char *path) {
    static const char *const options[] = {"train", "val", "batch", "seq-len", "val-rows", "sum-order"};
    char program[64], model[PATH_MAX], value[PATH_MAX], *argv[24];
    int n = 0;
    snprintf(program, sizeof(program), "./train_gpt_bf16%s", arm->build + 3); // this CPU's, or the GPU's
    path_print(model, "%s/model_%08ld.bin", r->dir, r->stopped_at);
    if (access(path, F_OK) && !access(model, F_OK) && !access(program, X_OK)) {
        argv[n++] = program, argv[n++] = strdup("--eval"), argv[n++] = strdup("--model"), argv[n++] = model;
        for (int i = 0; i < 6; i++) {
            if (!*text_value(r->log, options[i], value)) continue;
            argv[n] = (char *)memory_allocate(strlen(options[i]) + strlen(value) + 8);
            sprintf(argv[n++], "--%s=%s", options[i], value);
        }
        if (*text_value(r->log, "attention_by", value)) // on a GPU: by the same kernels
            argv[n++] = strdup(strcmp(value, "own") ? "--attention=cudnn" : "--attention=own");
        argv[n] = NULL;
        char part[PATH_MAX];
        path_print(part, "%s.part", path);
        unlink(part);
        if (program_run(argv, part) == 0) rename(part, path);
    }
    char *said = text_read(path);
    return said && strstr(said, ": loss ") ? number_after(said, ": loss ") : NAN;
}

// Trains one arm with the seed at an index, unless it is there already; then reads it.
static void run_make(Arm *arm, int index) {
    TrainedRun *r = &arm->runs[index];
    const int seed = all.seed[index];
    char program[64], text[256], command[4 * PATH_MAX], output_path[PATH_MAX], path[PATH_MAX], number[16], *argv[WORDS_MAX];
    snprintf(program, sizeof(program), "./train_gpt_%s", arm->build), snprintf(number, sizeof(number), "%d", seed);
    path_print(r->dir, "%s/%s-%d", all.out, arm->slug, seed);
    path_print(output_path, "%s.out", r->dir);
    EXPECT(!access(program, X_OK), "arm '%s': %s: no such program; run make", arm->label, program);
    // what made a directory stands beside it; nothing else in DIR is read, or removed
    snprintf(command, sizeof(command), "%s -s 0 %s %s --seed %d --data-seed %d\n", program, all.common, arm->options, seed, seed);
    path_print(path, "%s.command", r->dir);
    char *made_by = text_read(path);
    EXPECT(made_by || access(r->dir, F_OK), "%s: there is such a directory, but no word of what made it; use another --out",
           r->dir);
    EXPECT(!made_by || words_same(made_by, command), "%s was made by '%.*s', this would be '%.*s'; use another --out", r->dir,
           (int)strcspn(made_by, "\n"), made_by, (int)strcspn(command, "\n"), command);
    if (!made_by) file_put(r, ".command", command);
    free(made_by);
    path_print(path, "%s.diverged", r->dir);
    const int lock = run_lock(r->dir); // before anything is looked at
    const int whole = run_read(r);
    char *ended = whole ? NULL : text_read(path);
    if (ended && !r->died[0] && r->log && number_after(ended, "step ") == (double)(r->stopped_at + 1)) // it is of this log
        snprintf(r->died, sizeof(r->died), "%s", ended);
    free(ended);
    if (!whole && !r->died[0]) {
        unlink(path);
        int n = 0, status;
        argv[n++] = program;
        char steps[PATH_MAX];
        const long newest = checkpoint_newest(r->dir, LONG_MAX);
        EXPECT(!r->log || !*text_value(r->log, "seed", steps) || atol(steps) == seed,
               "%s: expected seed %d, found %s; use another --out", r->dir, seed, steps);
        // goes on where its log has all that the checkpoint counts on; at the run's end nothing would be written to it any more
        if (r->log && newest >= 0 && newest <= r->stopped_at && newest < atol(text_value(r->log, "steps", steps))) {
            close(lock);
            argv[n++] = (char *)"-y", argv[n++] = (char *)"-o", argv[n++] = r->dir, argv[n] = NULL;
        } else {
            char validated[PATH_MAX + 8], aside[PATH_MAX + 32];
            snprintf(validated, sizeof(validated), "%s.bf16", r->dir);
            unlink(validated), unlink(output_path);
            for (int k = 1; lock >= 0; k++) { // nothing is deleted: it may have checkpoints, or not be a run at all
                snprintf(aside, sizeof(aside), "%s.old-%d", r->dir, k);
                if (!access(aside, F_OK)) continue;
                EXPECT(rename(r->dir, aside) == 0, "%s: cannot be renamed: %s", r->dir, strerror(errno));
                printf("%s cannot go on (no checkpoint, or a damaged log): it is now %s, and is made again\n", r->dir, aside);
                break;
            }
            close(lock);
            n = words_of(arm, argv, n, text);
            argv[n++] = (char *)"--seed", argv[n++] = number, argv[n++] = (char *)"--data-seed", argv[n++] = number;
            argv[n++] = (char *)"-o", argv[n++] = r->dir, argv[n] = NULL;
        }
        status = program_run(argv, output_path);
        char *said = text_read(output_path), *end = said ? said + strlen(said) : NULL;
        while (end && end > said && end[-1] == '\n') *--end = 0;
        char *line = end ? strrchr(said, '\n') : NULL;
        EXPECT(status != EXIT_BAD_INPUT && status != 127, "arm '%s', seed %d: %s", arm->label, seed,
               line            ? line + 1
               : said && *said ? said
                               : "no output");
        if (status == EXIT_INTERRUPTED) exit(status);
        if (!run_read(r)) {
            if (status == EXIT_NONFINITE) {
                snprintf(r->died, sizeof(r->died), "diverged at step %ld", r->stopped_at + 1);
                file_put(r, ".diverged", r->died);
            } else if (status > 128)
                snprintf(r->died, sizeof(r->died), "killed by signal %d after step %ld", status - 128, r->stopped_at);
            else snprintf(r->died, sizeof(r->died), "died after step %ld with status %d", r->stopped_at, status);
        }
        free(said);
    } else close(lock);
    if (!r->log) return;
    char *said = text_read(output_path), value[PATH_MAX];
    r->mib = said ? number_after(said, "peak memory ") : 0, all.floor = atof(text_value(r->log, "floor", value));
    free(said);
    r->final_bf16 = NAN;
    path_print(path, "%s.bf16", r->dir);
    if (!strncmp(arm->build, "fp8", 3) && !r->died[0]) r->final_bf16 = run_evaluate(arm, r, path);
}

// ==== 3. the verdict =================================================================================================

// A number that every run of an arm has, by its offset in TrainedRun; whether it is known of all.
static int losses_of(const Arm *arm, size_t field, double *out) {
    for (int s = 0; s < all.seeds; s++) {
        memcpy(&out[s], (const char *)&arm->runs[s] + field, sizeof(double));
        if (arm->runs[s].died[0] || !isfinite(out[s])) return 0;
    }
    return 1;
}
enum {
    LAST = offsetof(TrainedRun, final_loss),
    LAST_BF16 = offsetof(TrainedRun, final_bf16),
    HALF = offsetof(TrainedRun, half_loss)
};

// The paired gap of one arm's numbers to another's, which may be -1: no such arm.
static Gap gap_between(const Arm *arm, size_t field, int other, size_t other_field) {
    double a[SEEDS_MAX], b[SEEDS_MAX];
    if (other < 0 || !losses_of(arm, field, a) || !losses_of(&all.arms[other], other_field, b))
        return (Gap){0, NAN, NAN, NAN, NAN, NAN};
    return gap_of(a, b, all.seeds);
}

// Writes an arm's verdict; returns 0 match or better, 1 worse or diverged, 3 undecided.
static int arm_verdict(const Arm *arm, char *out, size_t room) {
    for (int s = 0; s < all.seeds; s++)
        if (arm->runs[s].died[0]) return snprintf(out, room, "%s (seed %d)", arm->runs[s].died, all.seed[s]), 1;
    if (arm == &all.arms[all.reference]) return snprintf(out, room, "reference"), 0;
    const Gap g = gap_between(arm, LAST, all.reference, LAST);
    if (g.n == 0) return snprintf(out, room, "undecided: the reference has runs that died"), 3;
    if (g.low >= -all.bound && g.high <= all.bound) return snprintf(out, room, "match"), 0;
    if (g.low > 0) return snprintf(out, room, "worse by %.4f", g.mean), 1;
    if (g.high < 0) return snprintf(out, room, "better by %.4f", -g.mean), 0;
    if (g.n < 2) return snprintf(out, room, "undecided: one seed has no error bar"), 3;
    const int more = seeds_needed(&g, all.bound);
    return snprintf(out, room,
                    more == 1     ? "undecided: needs %d more seed"
                    : more < 1000 ? "undecided: needs %d more seeds"
                                  : "undecided: %d more seeds would not do",
                    more),
           3;
}

// Mean over the seeds at validation `point`, and the spread between seeds.
static double mean_at(const Arm *arm, int point, double *spread) {
    double sum = 0, squares = 0;
    for (int s = 0; s < all.seeds; s++) sum += arm->runs[s].val[point] / all.seeds;
    for (int s = 0; s < all.seeds; s++) squares += (arm->runs[s].val[point] - sum) * (arm->runs[s].val[point] - sum);
    if (spread) *spread = all.seeds > 1 ? sqrt(squares / (all.seeds - 1)) : NAN;
    return sum;
}
static int points_of(const Arm *arm) {
    int points = arm->runs[0].points; // all at the same steps: run_compare()
    for (int s = 1; s < all.seeds; s++) points = MIN(points, arm->runs[s].points);
    return points;
}

// Half the noise band at a validation: what the mean over other seeds of the same arm would differ by, 95%.
static double noise_at(const Arm *arm, int point) {
    double spread;
    mean_at(arm, point, &spread);
    return all.seeds > 1 ? t_quantile(0.05, all.seeds - 1) * spread * sqrt(2.0 / all.seeds) : NAN;
}

// The first validation at which the arm's mean loss is at most the reference's final one: its step, and mean seconds of training.
static double steps_to_reference(const Arm *arm, double *seconds) {
    const Arm *reference = &all.arms[all.reference];
    if (points_of(reference) < 2) return *seconds = NAN; // died, or pooled rows, which have no curves
    const double target = mean_at(reference, points_of(reference) - 1, NULL);
    for (int p = 0; p < points_of(arm); p++)
        if (mean_at(arm, p, NULL) <= target) {
            *seconds = 0;
            for (int s = 0; s < all.seeds; s++) *seconds += arm->runs[s].seconds[p] / all.seeds;
            return arm->runs[0].step[p];
        }
    return *seconds = NAN; // never
}

// A curve in eighths of a line, between `low` and `high`.
static void curve_print(const Arm *arm, double low, double high) {
    static const char *const blocks[8] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    const int points = points_of(arm), width = MIN(points, 64);
    for (int i = 0; i < width; i++) {
        const double v = (mean_at(arm, i * points / width, NULL) - low) / (high - low + 1e-30);
        fputs(blocks[(int)fmax(0, fmin(7, v * 8))], stdout);
    }
}

// What is said of an arm; NAN: unknown.
typedef struct {
    Gap gap, bf16, trained, half; // to the reference; to BF16; to BF16 when validated in BF16 (training's share); second half
    double loss, spread, error, excess, in_bf16, steps, seconds, tok_s, mib;
} Figures;
static Figures figures_of(const Arm *arm) {
    double losses[SEEDS_MAX];
    Figures x = {.gap = gap_between(arm, LAST, all.reference, LAST), .bf16 = gap_between(arm, LAST, all.bf16, LAST)};
    x.trained = gap_between(arm, LAST_BF16, all.bf16, LAST), x.half = gap_between(arm, HALF, all.reference, HALF);
    x.loss = x.spread = x.error = x.excess = x.steps = x.seconds = NAN;
    for (int s = 0; s < all.seeds; s++) {
        const TrainedRun *r = &arm->runs[s];
        x.tok_s += r->tok_s / all.seeds, x.mib = MAX(x.mib, r->mib), x.in_bf16 += r->final_bf16 / all.seeds;
    }
    if (!losses_of(arm, LAST, losses)) return x;
    x.loss = mean_at(arm, points_of(arm) - 1, &x.spread), x.error = x.spread / sqrt(all.seeds);
    if (all.floor > 0) x.excess = x.loss - all.floor;
    x.steps = steps_to_reference(arm, &x.seconds);
    return x;
}

static void gap_columns(FILE *f, const Gap *g) { fprintf(f, "\t%+.6f\t%+.6f\t%+.6f", g->mean, g->low, g->high); }
static void gap_print(const char *label, const char *what, const Gap *g) {
    printf("%-*s %22s %+8.5f [%+8.5f, %+8.5f] %5.2g\n", all.width, label, what, g->mean, g->low, g->high, g->p);
}

static int summary_write(void) {
    char verdict[320];
    int worst = 0;
    FILE *runs = file_begin(&output, "runs.tsv"), *f = file_begin(&output, "summary.tsv");
    const Arm *reference = &all.arms[all.reference];
    const double noise = points_of(reference) ? noise_at(reference, points_of(reference) - 1) : NAN;
    fprintf(runs, "# common\t%s\n# data\t%s\n# floor\t%.9g" RUNS_HEADER, all.common, all.data, all.floor);
    fprintf(f, "# common\t%s\n# seeds\t%d\n# bound\t%g\n# noise\t%.6f\n# floor\t%.9g\n# reference\t%s\n", all.common, all.seeds,
            all.bound, noise, all.floor, reference->label);
    fprintf(
        f,
        "arm\tloss\tseed_spread\tstandard_error\tgap\tgap_low\tgap_high\tgap_p\tgap_bf16\tgap_bf16_low\tgap_bf16_high\tgap_bf16_p\t"
        "evaluated_in_bf16\tgap_trained\tgap_trained_low\tgap_trained_high\tgap_half\tgap_half_low\tgap_half_high\t"
        "excess\tsteps_to_reference\tseconds_to_reference\ttok_s\tpeak_mib\tverdict\n");
    printf("\n%-*s %9s %9s   %-33s %9s  %s\n", all.width, "arm", "loss", "spread", "gap to the reference, 95%, p", "tok/s",
           "verdict");
    for (int a = 0; a < all.arm_count; a++) {
        const Arm *arm = &all.arms[a];
        const int status = arm_verdict(arm, verdict, sizeof(verdict));
        worst = status == 1 || worst == 1 ? 1 : MAX(worst, status);
        for (int s = 0; s < all.seeds; s++) {
            const TrainedRun *r = &arm->runs[s];
            fprintf(runs, "%s\t%d\t%.9g\t%.9g\t%.9g\t%.1f\t%.1f\t%s\n", arm->label, all.seed[s], r->final_loss, r->final_bf16,
                    r->half_loss, r->tok_s, r->mib, r->died[0] ? r->died : "whole");
        }
        const Figures x = figures_of(arm);
        fprintf(f, "%s\t%.6f\t%.6f\t%.6f", arm->label, x.loss, x.spread, x.error);
        gap_columns(f, &x.gap), fprintf(f, "\t%.3g", x.gap.p), gap_columns(f, &x.bf16),
            fprintf(f, "\t%.3g\t%.6f", x.bf16.p, x.in_bf16);
        gap_columns(f, &x.trained), gap_columns(f, &x.half);
        fprintf(f, "\t%.6f\t%g\t%.1f\t%.0f\t%.1f\t%s\n", x.excess, x.steps, x.seconds, x.tok_s, x.mib, verdict);
        printf("%-*s %9.5f %9.5f   %+8.5f [%+8.5f, %+8.5f] %5.2g %9.0f  %s\n", all.width, arm->label, x.loss, x.spread, x.gap.mean,
               x.gap.low, x.gap.high, x.gap.p, x.tok_s, verdict);
    }
    file_commit(runs, &output, "runs.tsv"), file_commit(f, &output, "summary.tsv");
    printf("\n");
    for (int a = 0; a < all.arm_count; a++) {
        const Figures x = figures_of(&all.arms[a]);
        if (x.half.n && a != all.reference) gap_print(all.arms[a].label, "second half's mean", &x.half);
        if (x.trained.n) gap_print(all.arms[a].label, "validated in BF16", &x.trained);
    }
    if (isfinite(noise))
        printf("seed noise: means of %d runs of %s with other seeds differ by up to ±%.5f (95%%)\n", all.seeds, reference->label,
               noise);
    double low = INFINITY, high = -INFINITY;
    for (int a = 0; a < all.arm_count; a++)
        for (int p = 0; p < points_of(&all.arms[a]); p++) {
            const double v = mean_at(&all.arms[a], p, NULL);
            low = MIN(low, v), high = MAX(high, v);
        }
    if (!(low <= high) || points_of(reference) == 1) return worst;
    printf("\nvalidation loss, %.3f (low) to %.3f (full), mean over seeds\n", low, high);
    for (int a = 0; a < all.arm_count; a++)
        printf("%-*s ", all.width, all.arms[a].label), curve_print(&all.arms[a], low, high), printf("\n");
    return worst;
}

// ==== 4. the page ====================================================================================================

static void json_text(FILE *f, const char *text) {
    fputc('"', f);
    for (; *text; text++)
        if (*text == '"' || *text == '\\' || *text == '<' || (unsigned char)*text < 32) fprintf(f, "\\u%04x", (unsigned char)*text);
        else fputc(*text, f);
    fputc('"', f);
}
static void json_numbers(FILE *f, const char *name, const double *x, int n, const char *format) {
    fprintf(f, "\"%s\":[", name);
    for (int i = 0; i < n; i++) {
        if (i) fputc(',', f);
        if (isfinite(x[i])) fprintf(f, format, x[i]);
        else fprintf(f, "null");
    }
    fputc(']', f);
}

// Whether an operand, x, w or dy, was E5M2 in a run, by the options in its log.
static int operand_is_e5m2(const char *log, const char *operand) {
    char key[64], own[PATH_MAX], formats[PATH_MAX], scaling[PATH_MAX];
    snprintf(key, sizeof(key), "format-%s", operand);
    if (strcmp(text_value(log, key, own), "same")) return !strcmp(own, "e5m2");
    text_value(log, "formats", formats), text_value(log, "scaling", scaling), snprintf(key, sizeof(key), "scaling-%s", operand);
    const int old = !*text_value(log, key, own); // before there were rules by role, hybrid meant what auto means now
    if (!old && strcmp(own, "same")) snprintf(scaling, sizeof(scaling), "%s", own);
    const int blocks = !strcmp(scaling, "rowwise") || !strcmp(scaling, "block") || !strcmp(scaling, "mx");
    const int hybrid = !strcmp(formats, "hybrid") ? !(old && blocks) : !strcmp(formats, "auto") && !blocks;
    return !strcmp(formats, "e5m2") || (hybrid && !strcmp(operand, "dy"));
}

// The atlas of the first seed's scales.tsv, at most 250 of its steps, evenly: steps, names of its tensors, and for each quantity a
// number a tensor and step.
static void atlas_write(FILE *f, const TrainedRun *r) {
    enum { AMAX, SCALE, SATURATED, FLUSHED, SQNR, STALE, QUANTITIES };
    static const char *const names[QUANTITIES] = {"amax", "scale", "saturated", "flushed", "sqnr", "stale"};
    char path[PATH_MAX];
    path_print(path, "%s/scales.tsv", r->dir);
    char *text = text_read(path);
    if (!text) return (void)fprintf(f, "null");
    size_t rows = 0, steps = 0, tensors = 0;
    for (const char *at = text; *at; at++) rows += *at == '\n';
    double(*values)[QUANTITIES] = (double(*)[QUANTITIES])memory_allocate((rows + 1) * sizeof(*values));
    double *when = (double *)memory_allocate((rows + 1) * sizeof(double)), last = -1;
    char(*labels)[48] = (char(*)[48])memory_allocate((rows + 1) * sizeof(*labels));
    size_t n = 0;
    for (const char *at = strchr(text, '\n'); at && at[1]; at = strchr(at + 1, '\n')) {
        double step, *v = values[n];
        int layer;
        char operand[32], sqnr[32];
        if (sscanf(at + 1, "%lf\t%d\t%31s\t%lf\t%lf\t%lf\t%lf\t%*s\t%31s", &step, &layer, operand, &v[AMAX], &v[SCALE],
                   &v[SATURATED], &v[FLUSHED], sqnr) != 8)
            break;
        const int wide = operand_is_e5m2(r->log, strrchr(operand, '.') ? strrchr(operand, '.') + 1 : operand);
        v[SQNR] = *sqnr != '-' ? atof(sqnr) : steps && step != when[0] ? values[n - tensors][SQNR] : NAN; // as last measured
        v[STALE] =
            v[AMAX] > 0 ? log2(v[SCALE] * v[AMAX] / (wide ? 57344.0 : 448.0)) : NAN; // binades above (cut) or below (room left)
        if (step != last) when[steps++] = last = step;
        if (steps == 1) snprintf(labels[tensors++], sizeof(labels[0]), "%d %s", layer, operand);
        n++;
    }
    if (tensors) steps = n / tensors;
    const size_t every = steps / 250 + 1; // a page of a large model stays below 3 MB
    steps = (steps + every - 1) / every;
    for (size_t i = 0; i < steps; i++) when[i] = when[i * every];
    fprintf(f, "{");
    json_numbers(f, "steps", when, steps, "%.0f");
    fprintf(f, ",\"tensors\":[");
    for (size_t i = 0; i < tensors; i++) fprintf(f, i ? "," : ""), json_text(f, labels[i]);
    fprintf(f, "]");
    double *row = (double *)memory_allocate((n + 1) * sizeof(double));
    for (int q = 0; q < QUANTITIES; q++) {
        for (size_t i = 0; i < tensors * steps; i++) row[i] = values[i / tensors * every * tensors + i % tensors][q];
        fprintf(f, ","), json_numbers(f, names[q], row, tensors * steps, "%.4g");
    }
    fprintf(f, "}");
    free(row), free(values), free(when), free(labels), free(text);
}

// The column of a log as numbers, for the gradient norm; at most 600 of its rows, evenly.
static void column_write(FILE *f, const char *log, int column) {
    double x[2][1200];
    int n = 0, kept = 0, every = 1;
    const char *rows = strstr(log, "\nstep\t");
    rows = rows ? strchr(rows + 1, '\n') : NULL;
    for (const char *at = rows; at && at[1]; at = strchr(at + 1, '\n')) n++;
    every += n / 600, n = 0;
    for (const char *at = rows; at && at[1]; at = strchr(at + 1, '\n')) {
        if (at[1] == '#' || n++ % every) continue;
        const char *field = at + 1;
        x[0][kept] = atof(field);
        for (int c = 0; c < column && field; c++) field = strchr(field, '\t') ? strchr(field, '\t') + 1 : NULL;
        x[1][kept++] = field ? atof(field) : NAN;
    }
    json_numbers(f, "norm_step", x[0], kept, "%.0f"), fprintf(f, ","), json_numbers(f, "norm", x[1], kept, "%.4g");
}

static void report_write(void) {
    static const char mark[] = "/*DATA*/null";
    char verdict[320], *page = text_read("dev/compare.html");
    EXPECT(page && strstr(page, mark), "dev/compare.html: cannot read the page's template; run this from the project's directory");
    FILE *f = file_begin(&output, "report.html");
    char *data = strstr(page, mark);
    fwrite(page, 1, data - page, f);
    fprintf(f, "{\"common\":"), json_text(f, all.common);
    fprintf(f, ",\"seeds\":%d,\"bound\":%g,\"floor\":%.9g,\"reference\":%d,\"bf16\":%d,\"arms\":[", all.seeds, all.bound, all.floor,
            all.reference, all.bf16);
    for (int a = 0; a < all.arm_count; a++) {
        const Arm *arm = &all.arms[a];
        const int points = points_of(arm);
        double mean[POINTS_MAX], spread[POINTS_MAX], gap[POINTS_MAX], low[POINTS_MAX], high[POINTS_MAX];
        const int shared = MIN(points, points_of(&all.arms[all.reference]));
        for (int p = 0; p < points && a == all.reference; p++) gap[p] = 0, high[p] = noise_at(arm, p), low[p] = -high[p];
        for (int p = 0; p < points; p++) mean[p] = mean_at(arm, p, &spread[p]);
        for (int p = 0; p < shared && a != all.reference; p++) {
            double x[SEEDS_MAX], y[SEEDS_MAX];
            for (int s = 0; s < all.seeds; s++) x[s] = arm->runs[s].val[p], y[s] = all.arms[all.reference].runs[s].val[p];
            const Gap g = gap_of(x, y, all.seeds);
            gap[p] = g.mean, low[p] = g.low, high[p] = g.high;
        }
        const Figures x = figures_of(arm);
        const struct {
            const char *name;
            double v[4];
            int n;
        } figures[] = {{"last", {x.gap.mean, x.gap.low, x.gap.high, x.gap.p}, 4},
                       {"half", {x.half.mean, x.half.low, x.half.high}, 3},
                       {"trained", {x.trained.mean, x.trained.low, x.trained.high}, 3},
                       {"bf16", {x.bf16.mean, x.bf16.low, x.bf16.high}, 3},
                       {"loss", {x.loss, x.error, x.excess}, 3},
                       {"cost", {x.steps, x.seconds, x.tok_s, x.mib}, 4}};
        arm_verdict(arm, verdict, sizeof(verdict));
        fprintf(f, "%s{\"label\":", a ? "," : ""), json_text(f, arm->label), fprintf(f, ",\"verdict\":"), json_text(f, verdict);
        for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++)
            fprintf(f, ","), json_numbers(f, figures[i].name, figures[i].v, figures[i].n, "%.7g");
        fprintf(f, ","), json_numbers(f, "step", arm->runs[0].step, points, "%.0f");
        fprintf(f, ","), json_numbers(f, "mean", mean, points, "%.6g"), fprintf(f, ","),
            json_numbers(f, "spread", spread, points, "%.4g");
        fprintf(f, ","), json_numbers(f, "gap", gap, shared, "%.4g"), fprintf(f, ","), json_numbers(f, "low", low, shared, "%.4g");
        fprintf(f, ","), json_numbers(f, "high", high, shared, "%.4g"), fprintf(f, ",");
        column_write(f, arm->runs[0].log ? arm->runs[0].log : "", 5);
        fprintf(f, ",\"atlas\":"), atlas_write(f, &arm->runs[0]), fprintf(f, "}");
    }
    fprintf(f, "]}%s", data + strlen(mark));
    file_commit(f, &output, "report.html");
    printf("\nreport      %s/report.html\n", all.out);
}

// ==== 5. the picture =================================================================================================
// curves.svg: the mean loss of every arm with its spread over seeds, and its gap to the reference with the 95% interval.

enum { PLOT_LEFT = 64, PLOT_WIDTH = 560, PLOT_HEIGHT = 230 };
static const char *const plot_colours[] = {"#888888", "#3b82f6", "#f97316", "#22a06b", "#d6409f", "#8e4ec6", "#b98900", "#0ea5b7"};
enum { COLOURS = sizeof(plot_colours) / sizeof(plot_colours[0]) };
// A line in an arm's colour; where colours begin again, dashed.
static void svg_stroke(FILE *f, int arm, double width) {
    fprintf(f, "stroke=\"%s\" stroke-width=\"%g\"", plot_colours[arm % COLOURS], width);
    if (arm >= COLOURS) fprintf(f, " stroke-dasharray=\"%d 3\"", 9 / (arm / COLOURS));
}
typedef struct {
    double top, x1, y0, y1; // pixels; steps 0 .. x1 and nats y0 .. y1 that are shown
} Panel;
static double plot_x(const Panel *p, double x) { return PLOT_LEFT + PLOT_WIDTH * x / p->x1; }
static double plot_y(const Panel *p, double y) { return p->top + PLOT_HEIGHT * (p->y1 - y) / (p->y1 - p->y0); }

// Frame, title, and lines at round numbers (1, 2 or 5 times a power of ten) on both axes.
static void panel_begin(FILE *f, const Panel *p, const char *title) {
    fprintf(f, "<text x=\"%d\" y=\"%g\" class=\"title\">%s</text>\n", PLOT_LEFT, p->top - 10, title);
    fprintf(f, "<text x=\"%d\" y=\"%g\">step</text>\n", PLOT_LEFT + PLOT_WIDTH + 24, p->top + PLOT_HEIGHT + 16);
    for (int axis = 0; axis < 2; axis++) {
        const double low = axis ? p->y0 : 0, high = axis ? p->y1 : p->x1;
        double step = pow(10, floor(log10(high - low)));
        for (int k = 0; (high - low) / step < 4; k++) step /= k % 3 == 1 ? 2.5 : 2;
        const double first = ceil(low / step - 1e-9);
        for (int k = 0; k < 12 && (first + k) * step <= high + 1e-9 * step; k++) {
            const double v = (first + k) * step, x = axis ? PLOT_LEFT : plot_x(p, v),
                         y = axis ? plot_y(p, v) : p->top + PLOT_HEIGHT;
            fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1f%c%g\"/>", x, y, axis ? 'h' : 'v',
                    axis ? PLOT_WIDTH : -PLOT_HEIGHT * 1.0);
            fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%g</text>\n", axis ? x - 8 : x, axis ? y + 4 : y + 16,
                    axis ? "right" : "middle", fabs(v) < step / 2 ? 0 : v);
        }
    }
}
// One arm, over n validations: the band low .. high; and the line of its means with it.
static void panel_band(FILE *f, const Panel *p, const double *steps, const double *low, const double *high, int n, int arm) {
    fprintf(f, "<path clip-path=\"url(#clip%g)\" fill=\"%s\" opacity=\".18\" d=\"", p->top, plot_colours[arm % COLOURS]);
    for (int i = 0; i < n; i++) fprintf(f, "%c%.1f %.1f", i ? 'L' : 'M', plot_x(p, steps[i]), plot_y(p, high[i]));
    for (int i = n - 1; i >= 0; i--) fprintf(f, "L%.1f %.1f", plot_x(p, steps[i]), plot_y(p, low[i]));
    fprintf(f, "Z\"/>\n");
}
static void panel_curve(FILE *f, const Panel *p, const double *steps, const double *mean, const double *low, const double *high,
                        int n, int arm) {
    panel_band(f, p, steps, low, high, n, arm);
    fprintf(f, "<g clip-path=\"url(#clip%g)\"><path fill=\"none\" stroke-linecap=\"round\" ", p->top), svg_stroke(f, arm, 1.8),
        fprintf(f, " d=\"");
    for (int i = 0; i < n; i++) fprintf(f, "%c%.1f %.1f", i ? 'L' : 'M', plot_x(p, steps[i]), plot_y(p, mean[i]));
    fprintf(f, "h0\"/></g>\n"); // a single point is seen, too
}
static void svg_text(FILE *f, const char *text) {
    for (; *text; text++) fprintf(f, *text == '<' ? "&lt;" : *text == '&' ? "&amp;" : "%c", *text);
}

static void picture_write(void) {
    static double mean[ARMS_MAX][POINTS_MAX], around[2][ARMS_MAX][POINTS_MAX], gap[ARMS_MAX][POINTS_MAX],
        within[2][ARMS_MAX][POINTS_MAX];
    Panel loss = {30, 1, INFINITY, -INFINITY}, gaps = {30 + PLOT_HEIGHT + 64, 1, -2 * all.bound, 2 * all.bound};
    const Arm *reference = &all.arms[all.reference];
    int n[ARMS_MAX], paired[ARMS_MAX]; // validations that all seeds have, with finite losses; and the reference, too
    unlinkat(output.fd, "curves.svg", 0);
    for (int a = -1; a < all.arm_count; a++) { // the reference first
        const Arm *arm = a < 0 ? reference : &all.arms[a];
        const int at = a < 0 ? all.reference : a;
        for (n[at] = 0; n[at] < points_of(arm) && isfinite(mean_at(arm, n[at], NULL)); n[at]++) {}
        paired[at] = MIN(n[at], n[all.reference]);
        for (int p = 0; p < n[at]; p++) {
            double x[SEEDS_MAX], y[SEEDS_MAX], spread;
            mean[at][p] = mean_at(arm, p, &spread);
            if (all.seeds < 2) spread = 0;
            around[0][at][p] = mean[at][p] - spread, around[1][at][p] = mean[at][p] + spread;
            loss.x1 = gaps.x1 = MAX(loss.x1, arm->runs[0].step[p]);
            loss.y0 = MIN(loss.y0, around[0][at][p]), loss.y1 = MAX(loss.y1, around[1][at][p]);
            if (p >= paired[at]) continue;
            for (int s = 0; s < all.seeds; s++) x[s] = arm->runs[s].val[p], y[s] = reference->runs[s].val[p];
            const Gap g = gap_of(x, y, all.seeds);
            gap[at][p] = g.mean, within[0][at][p] = g.n > 1 ? g.low : g.mean, within[1][at][p] = g.n > 1 ? g.high : g.mean;
            if (2 * p < paired[at]) continue; // early ones may be cut
            gaps.y0 = MIN(gaps.y0, within[0][at][p]), gaps.y1 = MAX(gaps.y1, within[1][at][p]);
        }
    }
    if (!(loss.y0 <= loss.y1)) return; // nothing to draw
    loss.y0 -= 0.01 * (loss.y1 - loss.y0) + 1e-4, loss.y1 += 0.01 * (loss.y1 - loss.y0) + 1e-4;
    FILE *f = file_begin(&output, "curves.svg");
    const double width = PLOT_LEFT + PLOT_WIDTH + 300, height = gaps.top + PLOT_HEIGHT + 40;
    fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\">\n", width, height,
            width, height);
    fprintf(
        f,
        "<style>text{font:12px sans-serif;fill:#333}.title{font-weight:bold}.right{text-anchor:end}.middle{text-anchor:middle}"
        ".grid{stroke:#8883;fill:none}.page{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#ddd}.page{fill:#111}}</style>\n"
        "<rect class=\"page\" width=\"100%%\" height=\"100%%\"/>\n");
    const Panel *const panels[2] = {&loss, &gaps};
    for (int k = 0; k < 2; k++)
        fprintf(f, "<clipPath id=\"clip%g\"><rect x=\"%d\" y=\"%g\" width=\"%d\" height=\"%d\"/></clipPath>\n", panels[k]->top,
                PLOT_LEFT, panels[k]->top, PLOT_WIDTH, PLOT_HEIGHT);
    panel_begin(f, &loss, "validation loss, nats a token: mean and spread over seeds");
    panel_begin(f, &gaps, "gap to the reference, 95% interval; gray: the bound, and the reference against itself");
    fprintf(f, "<rect x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%.1f\" fill=\"#8882\"/>\n", PLOT_LEFT, plot_y(&gaps, all.bound),
            PLOT_WIDTH, plot_y(&gaps, -all.bound) - plot_y(&gaps, all.bound));
    for (int a = 0; a < all.arm_count; a++) {
        const double *steps = all.arms[a].runs[0].step, y = loss.top + 12 + 18 * a;
        panel_curve(f, &loss, steps, mean[a], around[0][a], around[1][a], n[a], a);
        if (a == all.reference && all.seeds > 1) {
            for (int p = 0; p < n[a]; p++)
                gap[a][p] = 0, within[1][a][p] = noise_at(reference, p), within[0][a][p] = -within[1][a][p];
            panel_band(f, &gaps, steps, within[0][a], within[1][a], n[a], a);
        }
        if (a != all.reference) panel_curve(f, &gaps, steps, gap[a], within[0][a], within[1][a], paired[a], a);
        fprintf(f, "<path "), svg_stroke(f, a, 3);
        fprintf(f, " d=\"M%d %gh18\"/><text x=\"%d\" y=\"%g\">", PLOT_LEFT + PLOT_WIDTH + 14, y, PLOT_LEFT + PLOT_WIDTH + 38,
                y + 4);
        svg_text(f, all.arms[a].label);
        fprintf(f, a == all.reference ? " (the reference)" : "");
        fprintf(f, "</text>\n");
    }
    fprintf(f, "</svg>\n");
    file_commit(f, &output, "curves.svg");
    printf("picture     %s/curves.svg\n", all.out);
}

// ==== 6. the program =================================================================================================

static int statistics_print(const char *path) {
    char *text = text_read(path);
    int n = 0;
    EXPECT(text, "%s: cannot read: %s", path, strerror(ENOENT));
    size_t room = 1;
    for (const char *at = text; *at; at++) room += *at == '\n';
    double *a = (double *)memory_allocate(room * sizeof(double)), *b = (double *)memory_allocate(room * sizeof(double));
    for (const char *at = text; *at;) { // a row that has no two numbers is an error
        double row[2];
        EXPECT(text_row(&at, row, 2) == 2, "%s: row %d: expected two numbers with a tab between", path, n + 1);
        a[n] = row[0], b[n++] = row[1];
    }
    EXPECT(n >= 2, "%s: expected two columns of at least two numbers, found %d rows", path, n);
    const Gap g = gap_of(a, b, n);
    printf("%d\t%.15g\t%.15g\t%.15g\t%.15g\t%.15g\n", g.n, g.mean, g.error, g.low, g.high, g.p);
    return 0;
}

static void arms_parse(char *text) {
    for (char *arm = strtok(text, ","); arm; arm = strtok(NULL, ",")) {
        EXPECT(all.arm_count < ARMS_MAX, "option --arms: at most %d", ARMS_MAX);
        Arm *a = &all.arms[all.arm_count];
        arm += strspn(arm, " ");
        for (size_t n = strlen(arm); n > 0 && arm[n - 1] == ' ';) arm[--n] = 0;
        EXPECT(strlen(arm) < sizeof(a->label) - 1, "option --arms: '%.40s...' is too long", arm);
        snprintf(a->label, sizeof(a->label), "%s", arm);
        snprintf(a->build, sizeof(a->build), "%.*s", (int)strcspn(arm, " "), arm);
        snprintf(a->options, sizeof(a->options), "%s", arm + strcspn(arm, " "));
        static const char *const builds[] = {"fp8", "fp16", "bf16", "fp32", "fp8cu", "fp16cu", "bf16cu", "fp32cu"};
        int known = 0;
        for (int i = 0; i < 8; i++) known |= !strcmp(a->build, builds[i]);
        EXPECT(known, "option --arms: an arm begins with fp8, fp16, bf16 or fp32, on a GPU with cu after it; found '%s'", arm);
        for (size_t i = 0; i <= strlen(arm); i++)
            a->slug[i] = isalnum((unsigned char)arm[i]) || !arm[i] || arm[i] == '.' ? arm[i] : '_';
        for (int i = 0; i < all.arm_count; i++)
            EXPECT(strcmp(all.arms[i].slug, a->slug), "option --arms: '%s' stands there twice", arm);
        all.width = MAX(all.width, (int)strlen(arm)), all.arm_count++;
    }
}
static int arm_index(const char *label) {
    for (int a = 0; a < all.arm_count; a++)
        if (!strcmp(all.arms[a].label, label)) return a;
    return -1;
}

// The whole of a text as an integer, else 0.
static int integer_parse(const char *text) {
    char *end;
    const long value = strtol(text, &end, 10);
    return *text && !*end && value > 0 && value < 1 << 20 ? (int)value : 0;
}

// Parses what every arm will be given before anything is trained: unknown words, options of another build, arms of different
// configuration.
static void arms_check(void) {
    static const char *const own[9] = {"seed", "data-seed", "out", "resume", "eval", "explain", "help", "version", "prompt"};
    static TrainedRun runs[2];
    static Gpt recipes;
    int checked = 0;
    for (int a = 0; a < all.arm_count; a++) {
        const Arm *arm = &all.arms[a];
        char text[256], *argv[WORDS_MAX] = {(char *)arm->build}, value[PATH_MAX];
        int given[OPTION_COUNT] = {0};
        const int is_fp8 = !strncmp(arm->build, "fp8", 3);
        if (strstr(arm->build, "cu")) { // the CUDA file has options of its own
            for (int i = 0; i + 1 < all.word_count; i++)
                if (!strcmp(all.words[i], "-x") || !strcmp(all.words[i], "--steps")) all.steps = integer_parse(all.words[i + 1]);
            continue;
        }
        snprintf(program_name, sizeof(program_name), "compare: arm '%s'", arm->label);
        Options o = options_parse(words_of(arm, argv, 1, text), argv, given);
        if (o.val_batches) o.val_rows = o.val_batches * o.batch;
        all.steps = o.steps;
        for (int i = 0; i < OPTION_COUNT; i++) {
            const OptionSpec *s = &option_specs[i];
            EXPECT(!given[i] || is_fp8 || !(s->scope & FP8), "option --%s: only the FP8 build has it", s->name);
            for (int k = 0; k < 9; k++)
                EXPECT(!given[i] || strcmp(s->name, own[k]), "option --%s: the comparison sets it, or it does not train", s->name);
        }
        if (is_fp8) options_recipes(&o, given, &recipes);
        const int depth = options_depth(&o);
        if (depth) recipes.config = options_config(&o, depth, 256);
        else {
            uint64_t sum;
            const File model = file_open(o.model, 0);
            recipes.config = model_check(&model, &sum);
            close(model.fd);
        }
        if (is_fp8) options_bf16(&o, &recipes);
        const long validations = o.val_every ? o.steps / o.val_every + 1 : 0;
        EXPECT(validations < POINTS_MAX, "options --steps, --val-every: at most %d validations, found %ld", POINTS_MAX - 1,
               validations);
        TrainedRun *r = &runs[checked++ > 0];
        r->log = options_lines(&o), snprintf(r->dir, sizeof(r->dir), "arm '%s'", arm->label);
        EXPECT(atol(text_value(r->log, "val-every", value)) > 0, "expected --val-every above 0: an arm needs validations");
        strcpy(program_name, "compare");
        run_compare(r, &runs[0], 1);
        if (r == &runs[1]) free(r->log), r->log = NULL;
    }
}

// Seeds N (1 to N) or N-M.
static void seeds_parse(const char *text, int *seeds) {
    char first[16], last[16] = "", end = 0;
    const int parts = sscanf(text, "%15[0-9]-%15[0-9]%c", first, last, &end);
    seeds[0] = parts == 2 ? integer_parse(first) : 1, seeds[1] = integer_parse(parts == 2 ? last : text);
    EXPECT(!end && seeds[0] >= 1 && seeds[1] >= seeds[0] && seeds[1] - seeds[0] < SEEDS_MAX,
           "option --seeds: expected N, or N-M, and at most %d seeds; found '%s'", SEEDS_MAX, text);
}

static int help_print(void) { // what the first lines of this file say
    char *text = text_read("dev/compare.c");
    EXPECT(text, "the help is in the first lines of dev/compare.c; run this from the project's directory");
    const int shown = (int)(strstr(text, "*/") - text) - 3;
    printf("%.*s", shown, text + 3);
    return 0;
}

static void runs_allocate(void) { // shared, so that what a child saw of a run's end is known here
    for (int a = 0; a < all.arm_count; a++) {
        void *runs = mmap(NULL, all.seeds * sizeof(TrainedRun), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        EXPECT(runs != MAP_FAILED, "out of memory");
        all.arms[a].runs = (TrainedRun *)runs;
    }
}

// Rows of runs.tsv files as runs of the arms, without logs; the seeds are those that every arm has. Rows of other options or other
// data, and two rows of one arm and seed that differ, are errors.
static void pool_read(const char *files) {
    typedef struct {
        int arm, seed;
        double loss, in_bf16, half, tok_s, mib;
        char state[128];
    } Row;
    static Row rows[ARMS_MAX * SEEDS_MAX];
    static char common[3 * PATH_MAX];
    int n = 0, left_out = 0;
    char *list = strdup(files), value[PATH_MAX], label[256];
    for (char *path = strtok(list, ","); path; path = strtok(NULL, ",")) {
        char *text = text_read(path);
        struct stat from, to;
        EXPECT(text, "%s: cannot read: %s", path, strerror(ENOENT));
        EXPECT(stat(path, &from) || fstatat(output.fd, "runs.tsv", &to, 0) || from.st_ino != to.st_ino || from.st_dev != to.st_dev,
               "%s would be written over; use another --out", path);
        const char *at = strstr(text, RUNS_HEADER);
        EXPECT(at && *text_value(text, "common", value), "%s: expected a runs.tsv with lines '# common' and '# data'", path);
        EXPECT(!all.data[0] || words_same(common, value), "%s: is of other options ('%s') than the first file ('%s')", path, value,
               common);
        snprintf(common, sizeof(common), "%s", value), text_value(text, "data", value);
        EXPECT(!all.data[0] || !strcmp(all.data, value), "%s: is of other data or rules ('%s') than the first file ('%s')", path,
               value, all.data);
        snprintf(all.data, sizeof(all.data), "%.159s", value);
        const double floor = atof(text_value(text, "floor", value));
        EXPECT(n == 0 || floor == all.floor, "%s: is of another validation set, with floor %g, than the first file, with %g", path,
               floor, all.floor);
        all.floor = floor;
        for (at = strchr(at + 1, '\n'); at && at[1]; at = strchr(at + 1, '\n')) {
            Row r;
            EXPECT(sscanf(at + 1, "%255[^\t]\t%d\t%lf\t%lf\t%lf\t%lf\t%lf\t%127[^\n]", label, &r.seed, &r.loss, &r.in_bf16, &r.half,
                          &r.tok_s, &r.mib, r.state) == 8,
                   "%s: expected 8 columns, found '%.*s'", path, (int)strcspn(at + 1, "\n"), at + 1);
            EXPECT(isfinite(r.loss) || strcmp(r.state, "whole"), "%s: '%s' with seed %d is whole, but has no loss", path, label,
                   r.seed);
            if ((r.arm = arm_index(label)) < 0) continue;
            int twin = 0;
            while (twin < n && (rows[twin].arm != r.arm || rows[twin].seed != r.seed)) twin++;
            EXPECT(twin == n || (!strcmp(rows[twin].state, r.state) && (rows[twin].loss == r.loss || isnan(r.loss))),
                   "%s: '%s' with seed %d is there twice, with losses %.9g and %.9g", path, label, r.seed, rows[twin].loss, r.loss);
            if (twin < n) continue;
            EXPECT(n < ARMS_MAX * SEEDS_MAX, "%s: more rows than fit", path);
            rows[n++] = r;
        }
        free(text);
    }
    free(list);
    all.common = common, all.seeds = 0;
    for (int i = 0; i < n; i++) { // the seeds of the first arm, in the order of the files
        int have = 0;
        for (int j = 0; j < n; j++) have += rows[j].seed == rows[i].seed;
        if (rows[i].arm == 0 && have == all.arm_count && all.seeds < SEEDS_MAX) all.seed[all.seeds++] = rows[i].seed;
        left_out += have != all.arm_count;
    }
    EXPECT(all.seeds, "option --pool: no seed that all %d arms have; --arms says which arms", all.arm_count);
    if (left_out) printf("%d rows are left out: not every arm has their seed\n", left_out);
    runs_allocate();
    for (int s = 0; s < all.seeds; s++)
        for (int i = 0; i < n; i++) {
            if (rows[i].seed != all.seed[s]) continue;
            TrainedRun *r = &all.arms[rows[i].arm].runs[s];
            r->final_loss = rows[i].loss, r->final_bf16 = rows[i].in_bf16, r->half_loss = rows[i].half, r->tok_s = rows[i].tok_s,
            r->mib = rows[i].mib;
            if (strcmp(rows[i].state, "whole")) snprintf(r->died, sizeof(r->died), "%s", rows[i].state);
            else r->points = 1, r->val[0] = r->final_loss;
        }
}

// Steps of a run that count as done: the rows of its log where it was begun by this call; else those that need not be done again,
// up to its last checkpoint.
static long steps_done(const Arm *arm, int seed, int begun) {
    char path[PATH_MAX], dir[PATH_MAX], tail[1024];
    path_print(dir, "%s/%s-%d", all.out, arm->slug, seed), path_print(path, "%s.diverged", dir);
    if (!access(path, F_OK)) return all.steps;
    path_print(path, "%s/log.tsv", dir);
    const int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    const off_t size = lseek(fd, 0, SEEK_END), room = (off_t)sizeof(tail) - 1;
    const ssize_t n = pread(fd, tail, (size_t)room, MAX(size - room, 0));
    close(fd);
    tail[MAX(n, 0)] = 0;
    char *end = strrchr(tail, '\n'), *row = NULL;
    if (end) *end = 0, row = strrchr(tail, '\n');
    const long rows = row ? atol(row + 1) : 0;
    return begun || rows == all.steps ? rows : MAX(checkpoint_newest(dir, LONG_MAX), 0);
}
static long all_steps_done(int begun) { // of the first `begun` runs, in the order in which they are begun, and of the others
    long sum = 0;
    for (int i = 0; i < all.arm_count * all.seeds; i++)
        sum += steps_done(&all.arms[i % all.arm_count], all.seed[i / all.arm_count], i < begun);
    return sum;
}

// Waits for the end of one child that made a run, and says meanwhile how far all are; an error of its ends the program. Returns 1.
static int child_wait(double begin, long steps_before, int begun) {
    static double said;
    const int terminal = isatty(1);
    int status;
    pid_t child;
    while ((child = waitpid(-1, &status, WNOHANG)) == 0 || (child < 0 && errno == EINTR)) {
        usleep(100000);
        if (!all.steps || seconds_now() - MAX(said, begin) < (terminal ? 1 : 60)) continue;
        char left[64];
        const double total = (double)all.steps * all.arm_count * all.seeds, done = all_steps_done(begun);
        said = seconds_now();
        if (done <= steps_before) continue;
        printf("%s%.1f%% of all steps | %s left%s", terminal ? "\r" : "", 100 * done / total,
               duration_text((said - begin) / (done - steps_before) * (total - done), left), terminal ? "\033[K" : "\n");
        fflush(stdout);
    }
    EXPECT(child > 0, "lost a run: %s", strerror(errno));
    if (terminal) printf("\r\033[K");
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (code == EXIT_BAD_INPUT) exit(code); // it has said why
    if (code) fatal(code, "a run failed or was interrupted; the same command goes on");
    return 1;
}

int main(int argc, char **argv) {
    static char common[PATH_MAX - 64];
    const char *arms = "fp16,bf16,fp8", *reference = NULL, *pool = NULL;
    surroundings_init();
    setvbuf(stdout, NULL, _IOLBF, 0); // progress, also into a file
    int seeds[2] = {1, 5};
    all.bound = 0.002, all.common = common;
    int i = 1, jobs = 1;
    for (; i < argc && strcmp(argv[i], "--"); i += 2) {
        static const char *const names[] = {"--arms",      "--seeds", "--out",  "--bound",
                                            "--reference", "--jobs",  "--pool", "--statistics"};
        const int known = sizeof(names) / sizeof(names[0]);
        int which = 0;
        if (!strcmp(argv[i], "--help")) return help_print();
        while (which < known && strcmp(argv[i], names[which])) which++;
        EXPECT(which < known && i + 1 < argc, "option '%s': %s; --help says what there is", argv[i],
               which < known ? "needs a value" : "is unknown");
        const char *value = argv[i + 1];
        char *end;
        if (which == 0) arms = value;
        else if (which == 1) seeds_parse(value, seeds);
        else if (which == 2) all.out = value;
        else if (which == 3) all.bound = strtod(value, &end), all.bound = *end ? 0 : all.bound;
        else if (which == 4) reference = value;
        else if (which == 5) jobs = integer_parse(value);
        else if (which == 6) pool = value;
        else return statistics_print(value);
    }
    for (i++; i < argc; i++) {
        const char *plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./,:=+@%", *quote = "";
        if (!*argv[i] || argv[i][strspn(argv[i], plain)]) quote = strchr(argv[i], '\'') ? "\"" : "'";
        EXPECT(all.word_count < 240 && strlen(common) + strlen(argv[i]) + 4 < sizeof(common), "too many options after --");
        EXPECT(!argv[i][strcspn(argv[i], "\n\t")], "after --: tabs and new lines in an option are not supported: %s", argv[i]);
        all.words[all.word_count++] = argv[i];
        sprintf(common + strlen(common), "%s%s%s%s", common[0] ? " " : "", quote, argv[i], quote);
    }
    for (int seed = seeds[0]; seed <= seeds[1]; seed++) all.seed[all.seeds++] = seed;
    EXPECT(jobs >= 1 && jobs <= 64, "option --jobs: expected 1 to 64, found %d", jobs);
    EXPECT(all.bound > 0 && isfinite(all.bound), "option --bound: expected a number above 0");
    arms_parse(strdup(arms));
    EXPECT(all.arm_count >= 1, "option --arms: expected one at least");
    all.reference = arm_index(reference ? reference : "fp16"), all.bf16 = MAX(arm_index("bf16"), arm_index("bf16cu"));
    EXPECT(all.reference >= 0 || !reference, "option --reference: '%s' is no arm", reference);
    all.reference = MAX(all.reference, 0);
    if (!pool) arms_check();
    if (!all.out) all.out = pool ? "log/pooled" : "log/compare"; // rows of a comparison are not written over by those pooled
    path_print(output.path, "%s", all.out);
    directory_make(output.path), output.fd = directory_lock(output.path); // until the program ends
    EXPECT(output.fd >= 0, "%s: another comparison runs in this directory", all.out);
    if (pool) return pool_read(pool), summary_write();
    runs_allocate();
    const double begin = seconds_now();
    const int total = all.arm_count * all.seeds;
    const long steps_before = all_steps_done(0);
    char threads[16];
    snprintf(threads, sizeof(threads), "%d", MAX(1, thread_count() / jobs));
    setenv("OMP_NUM_THREADS", threads, 1);
    for (int k = 0, running = 0; k < total || running; k++) { // in children, seed by seed, so that a stopped comparison has pairs
        if (k >= total || running == jobs) running -= child_wait(begin, steps_before, MIN(k, total));
        if (k >= total) continue;
        fflush(stdout);
        const pid_t child = fork();
        EXPECT(child >= 0, "cannot start a run: %s", strerror(errno));
        const int index = k / all.arm_count;
        Arm *arm = &all.arms[k % all.arm_count];
        TrainedRun *r = &arm->runs[index];
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            run_make(arm, index);
            char loss[32];
            snprintf(loss, sizeof(loss), "loss %.5f", r->final_loss);
            printf("%s[%d/%d] %-*s seed %d: %s\n", isatty(1) ? "\r\033[K" : "", k + 1, total, all.width, arm->label,
                   all.seed[index], r->died[0] ? r->died : loss);
            r->log = NULL; // the child's own memory
            exit(0);
        }
        running++;
    }
    const TrainedRun *first = NULL;
    for (int s = 0; s < all.seeds; s++) // now they are only read
        for (int a = 0; a < all.arm_count; a++) {
            TrainedRun *r = &all.arms[a].runs[s];
            run_make(&all.arms[a], s);
            if (r->log && !first) first = r;
            if (r->log) run_compare(r, first, all.seed[s]);
        }
    if (first) {
        char hash[3][PATH_MAX];
        snprintf(all.data, sizeof(all.data), "%.40s %.40s %.40s", text_value(first->log, "data_hash", hash[0]),
                 text_value(first->log, "val_hash", hash[1]), text_value(first->log, "numerics", hash[2]));
    }
    const int worst = summary_write();
    report_write();
    picture_write();
    return worst;
}
