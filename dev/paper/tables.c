/*
Prints the tables of "FP8 Formats for Deep Learning" (Micikevicius et al. 2022) with our figures
beside the paper's.

    make build/paper/tables && build/paper/tables DIR

DIR is what dev/paper/runs.sh made: rows.tsv (one row a run), gpt/runs.tsv (build/compare's rows)
and what build/lab/ptq printed. The committed runs of dev/findings are added to table 4.

A gap is the mean difference of pairs of runs with the same seed, with the 95% interval of Student's
t. p is that of the gap in loss. Holm's p is corrected for all arms and data sets of DIR, null arms
and positive controls included. An arm with a run that diverged has no gap.
*/
#define WATCH
#include "../compare.c"

#define ROWS_MAX  4096
#define MOST_ARMS 256
typedef struct {
    char data[40], arm[96];
    int of_dir; // a row of DIR, not of dev/findings
    long seed;
    double loss, accuracy; // NAN: diverged; there is none
} Row;
typedef struct {
    const char *data, *arm;
    int of_dir, runs, diverged;
    double loss, accuracy;      // means over the runs that did not diverge
    Gap loss_gap, accuracy_gap; // to the reference
    double holm;
} ArmOfSet;
static struct {
    const char *dir;
    Row rows[ROWS_MAX];
    ArmOfSet arms[MOST_ARMS]; // the arms of a data set are neighbours
    int row_count, arm_count;
} all_rows;

// A selection of the paper's tables 2, 3 and 4. It leaves open how the scales of FP8 were found.
typedef struct {
    const char *name;
    double baseline, fp8;
} Published;
static const Published image_networks[] = {{"ResNet-18", 70.58, 70.12},
                                           {"ResNet-50", 76.71, 76.76},
                                           {"VGG-16", 71.27, 71.11},
                                           {"MobileNet v2", 71.65, 71.04}};
static const Published translators[] = {{"GNMT (LSTM)", 24.83, 24.65},
                                        {"Transformer Base", 26.87, 26.83}};
static const Published language_models[] = {{"GPT 126M", 19.14, 19.24},
                                            {"GPT 1.3B", 10.62, 10.66},
                                            {"GPT 5B", 8.94, 8.98},
                                            {"GPT 22B", 7.21, 7.24},
                                            {"GPT 175B", 6.65, 6.68}};

// ---- rows
static const char *path_in(const char *dir, const char *name) {
    static char path[PATH_MAX];
    path_print(path, "%s/%s", dir, name);
    return path;
}
// A number, or NAN for the word `diverged`.
static double result_read(const char *text, const char *path, int line) {
    char *end;
    const double x = strtod(text, &end);
    if (!strcmp(text, "diverged")) return NAN;
    EXPECT(*text && !*end && isfinite(x), "%s: line %d: expected a number or diverged, found '%s'",
           path, line, text);
    return x;
}
// The row of a run, or NULL.
static const Row *row_find(const char *data, const char *arm, long seed) {
    for (int i = 0; i < all_rows.row_count; i++) {
        const Row *r = &all_rows.rows[i];
        if (r->seed == seed && !strcmp(r->data, data) && !strcmp(r->arm, arm)) return r;
    }
    return NULL;
}
static void row_add(const Row *r, const char *path) {
    EXPECT(!row_find(r->data, r->arm, r->seed),
           "%s: two rows of data '%s', arm '%s', seed %ld; remove one", path, r->data, r->arm,
           r->seed);
    EXPECT(all_rows.row_count < ROWS_MAX, "%s: more than %d rows", path, ROWS_MAX);
    all_rows.rows[all_rows.row_count++] = *r;
}
// Calls row(line, path, number, data) for every row of a table.
typedef void RowReader(char *line, const char *path, int number, const char *data);
static void table_read(const char *path, const char *data, RowReader *row) {
    char *text = text_read(path), *save = text;
    int number = 0;
    EXPECT(text, "%s: cannot open; dev/paper/runs.sh makes it", path);
    for (char *line = strsep(&save, "\n"); line; line = strsep(&save, "\n")) {
        number++;
        const int is_head =
            *line == '#' || !strncmp(line, "data\t", 5) || !strncmp(line, "arm\t", 4);
        if (*line && !is_head) row(line, path, number, data);
    }
    free(text);
}
static void network_row(char *line, const char *path, int number, const char *data) {
    char loss[32], accuracy[32];
    Row r = {.of_dir = 1};
    (void)data;
    const int columns = sscanf(line, "%39[^\t]\t%95[^\t]\t%ld\t%31[^\t]\t%31[^\t]\t", r.data, r.arm,
                               &r.seed, loss, accuracy);
    EXPECT(columns == 5, "%s: line %d: expected six columns, found '%s'", path, number, line);
    r.loss = result_read(loss, path, number);
    r.accuracy = result_read(accuracy, path, number);
    row_add(&r, path);
}
// A row of build/compare.
static void compare_row(char *line, const char *path, int number, const char *data) {
    Row r = {.of_dir = !strcmp(data, "gpt"), .accuracy = NAN};
    snprintf(r.data, sizeof(r.data), "%s", data);
    const int columns = sscanf(line, "%95[^\t]\t%ld\t%lf\t", r.arm, &r.seed, &r.loss);
    EXPECT(columns == 3, "%s: line %d: expected arm, seed and loss, found '%s'", path, number,
           line);
    const char *state = strrchr(line, '\t') + 1;
    const int diverged = !strncmp(state, "diverged", 8);
    EXPECT(diverged || (!strcmp(state, "whole") && isfinite(r.loss)),
           "%s: line %d: expected a run that is whole or diverged, found '%s'; run it again", path,
           number, state);
    if (diverged) r.loss = NAN;
    row_add(&r, path);
}

// ---- statistics
// The arm that the others of a data set are compared with: bf16, or fp16 where there is none.
static const char *reference_of(const char *data) {
    for (int i = 0; i < all_rows.row_count; i++)
        if (!strcmp(all_rows.rows[i].data, data) && !strcmp(all_rows.rows[i].arm, "bf16"))
            return "bf16";
    return "fp16";
}
static void arm_measure(ArmOfSet *a) {
    double loss[2][SEEDS_MAX], accuracy[2][SEEDS_MAX];
    int pairs = 0;
    for (int i = 0; i < all_rows.row_count; i++) {
        const Row *r = &all_rows.rows[i];
        if (strcmp(r->data, a->data) || strcmp(r->arm, a->arm)) continue;
        a->runs++;
        a->diverged += isnan(r->loss);
        if (isnan(r->loss)) continue;
        a->loss += r->loss;
        a->accuracy += r->accuracy;
        const Row *other = row_find(a->data, reference_of(a->data), r->seed);
        if (!other || isnan(other->loss) || pairs == SEEDS_MAX) continue;
        loss[0][pairs] = r->loss;
        loss[1][pairs] = other->loss;
        accuracy[0][pairs] = r->accuracy;
        accuracy[1][pairs++] = other->accuracy;
    }
    if (a->diverged) pairs = 0;
    a->loss /= a->runs - a->diverged;
    a->accuracy /= a->runs - a->diverged;
    a->loss_gap = gap_of(loss[0], loss[1], pairs);
    a->accuracy_gap = gap_of(accuracy[0], accuracy[1], pairs);
    a->holm = NAN;
}
static const ArmOfSet *arm_find(const char *data, const char *arm) {
    for (int k = 0; k < all_rows.arm_count; k++) {
        const ArmOfSet *a = &all_rows.arms[k];
        if (!strcmp(a->data, data) && !strcmp(a->arm, arm)) return a;
    }
    return NULL;
}
// Adds the arms of a data set in the order of their first rows, unless they are there.
static void set_add(const char *data) {
    for (int k = 0; k < all_rows.arm_count; k++)
        if (!strcmp(all_rows.arms[k].data, data)) return;
    for (int i = 0; i < all_rows.row_count; i++) {
        const Row *r = &all_rows.rows[i];
        if (strcmp(r->data, data) || arm_find(data, r->arm)) continue;
        EXPECT(all_rows.arm_count < MOST_ARMS, "more than %d arms", MOST_ARMS);
        all_rows.arms[all_rows.arm_count++] =
            (ArmOfSet){.data = r->data, .arm = r->arm, .of_dir = r->of_dir};
    }
}
static void arms_measure(void) {
    double p[MOST_ARMS], adjusted[MOST_ARMS];
    int tested[MOST_ARMS], tests = 0;
    for (int i = 0; i < all_rows.row_count; i++) set_add(all_rows.rows[i].data);
    for (int k = 0; k < all_rows.arm_count; k++) {
        ArmOfSet *a = &all_rows.arms[k];
        arm_measure(a);
        if (!a->of_dir || !strcmp(a->arm, reference_of(a->data)) || a->loss_gap.n < 2) continue;
        tested[tests] = k;
        p[tests++] = a->loss_gap.p;
    }
    holm(p, tests, adjusted);
    for (int i = 0; i < tests; i++) all_rows.arms[tested[i]].holm = adjusted[i];
}

// ---- printing
static void interval_print(const Gap *g, const char *format) {
    char text[3][32];
    const double part[3] = {g->mean, g->low, g->high};
    for (int i = 0; i < 3; i++) snprintf(text[i], sizeof(text[i]), format, part[i]);
    if (g->n > 1) printf("%s [%s, %s]", text[0], text[1], text[2]);
}
// A line of a table of accuracies: the 16-bit reference, FP8, and the difference.
static void published_print(const Published *list, int count) {
    for (int i = 0; i < count; i++)
        printf("| paper: %s | %.2f | %.2f | %+.2f |\n", list[i].name, list[i].baseline, list[i].fp8,
               list[i].fp8 - list[i].baseline);
}
// A line of ours: the reference of a data set, FP8, and the gap. is_loss: of the loss in nats;
// otherwise of the accuracy in percent.
static void ours_print(const char *data, const char *what, int is_loss) {
    const ArmOfSet *fp8 = arm_find(data, "fp8"), *other = arm_find(data, reference_of(data));
    if (!fp8 || !other) return;
    printf("| ours: %s, %d seeds | ", what, fp8->runs);
    const Gap *gap = is_loss ? &fp8->loss_gap : &fp8->accuracy_gap;
    if (gap->n < 2 || gap->n != fp8->runs || gap->n != other->runs) {
        printf("%d of %d diverged (%s) | %d of %d diverged | %d pairs |\n", other->diverged,
               other->runs, other->arm, fp8->diverged, fp8->runs, gap->n);
        return;
    }
    const int digits = is_loss ? 4 : 2;
    printf("%.*f (%s) | %.*f | ", digits, is_loss ? other->loss : other->accuracy, other->arm,
           digits, is_loss ? fp8->loss : fp8->accuracy);
    interval_print(gap, is_loss ? "%+.4f" : "%+.2f");
    printf(" |\n");
}
// As build/compare says it, for the gap in loss.
static void verdict_print(const Gap *g) {
    char text[64];
    if (g->n > 1 && g->low >= -all.bound && g->high <= all.bound)
        snprintf(text, sizeof(text), "match");
    else if (g->low > 0) snprintf(text, sizeof(text), "worse");
    else if (g->high < 0) snprintf(text, sizeof(text), "better");
    else undecided_print(g, text, sizeof(text));
    printf("%s", text);
}
// All arms of a data set.
static void set_print(const char *data) {
    const char *reference = reference_of(data);
    printf("\n**%s**, reference %s\n\n| arm | seeds | loss, nats | gap | p | p (Holm) | verdict "
           "| accuracy, %% | gap |\n|---|---|---|---|---|---|---|---|---|\n",
           data, reference);
    for (int k = 0; k < all_rows.arm_count; k++) {
        const ArmOfSet *a = &all_rows.arms[k];
        if (strcmp(a->data, data)) continue;
        printf("| %s | %d", a->arm, a->runs);
        if (a->diverged) printf(" (%d diverged)", a->diverged);
        printf(" | ");
        if (a->diverged < a->runs) printf("%.4f", a->loss);
        printf(" | ");
        const int is_reference = !strcmp(a->arm, reference);
        if (!is_reference) interval_print(&a->loss_gap, "%+.4f");
        if (isnan(a->holm)) printf(" | | | ");
        else printf(" | %.2g | %.2g | ", a->loss_gap.p, a->holm);
        if (!is_reference) verdict_print(&a->loss_gap);
        printf(" | ");
        if (isfinite(a->accuracy)) printf("%.2f", a->accuracy);
        printf(" | ");
        if (!is_reference && isfinite(a->accuracy)) interval_print(&a->accuracy_gap, "%+.2f");
        printf(" |\n");
    }
}

static void language_print(void) {
    printf("\n## Table 4: language models, loss in nats\n\nThe paper's are nats a token, the "
           "logarithms of its perplexities.\n\n| model | 16 bits | FP8 | difference |\n"
           "|---|---|---|---|\n");
    for (int i = 0; i < COUNT(language_models); i++) {
        const Published *m = &language_models[i];
        printf("| paper: %s, perplexity %.2f and %.2f | %.4f | %.4f | %+.4f |\n", m->name,
               m->baseline, m->fp8, log(m->baseline), log(m->fp8), log(m->fp8 / m->baseline));
    }
    ours_print("gpt", "GPT, tales, nats a byte", 1);
    ours_print("tales", "LSTM, tales, nats a byte", 1);
    ours_print("shakespeare", "LSTM, tiny Shakespeare, nats a byte", 1);
    for (int k = 0; k < all_rows.arm_count; k++) { // of dev/findings
        char what[128];
        const ArmOfSet *a = &all_rows.arms[k];
        const char *unit = strstr(a->data, "gpt2") ? "token" : "byte";
        snprintf(what, sizeof(what), "GPT, %s, nats a %s", a->data, unit);
        if (!a->of_dir && !strcmp(a->arm, "fp8")) ours_print(a->data, what, 1);
    }
    printf("\nAll five of the paper's models end above their 16-bit baseline in FP8. Our sets "
           "differ in "
           "length and learning rate (dev/findings/README.md); several stop while the loss still "
           "falls.\n");
}

// The paper's table 5, then what build/lab/ptq printed.
static void quantized_print(void) {
    static const struct {
        const char *name;
        double baseline, int8, e4m3;
    } published[] = {{"GPT 126M", 19.01, 28.37, 19.43},
                     {"GPT 1.3B", 10.19, 12.74, 10.29},
                     {"GPT 6.7B", 8.51, 10.29, 8.41}};
    printf("\n## Table 5: quantization after training, loss over 16 bits in nats\n\n"
           "| model | INT8 | E4M3 |\n|---|---|---|\n");
    for (int i = 0; i < COUNT(published); i++)
        printf("| paper: %s, perplexity %.2f, %.2f and %.2f | %+.4f | %+.4f |\n", published[i].name,
               published[i].baseline, published[i].int8, published[i].e4m3,
               log(published[i].int8 / published[i].baseline),
               log(published[i].e4m3 / published[i].baseline));
    printf(
        "\nThe paper quantizes attention's products, too: its columns are our lines `+ attention`. "
        "Ours is one model of one seed, so it has no interval.\n");
    const char *const names[] = {"ptq.txt", "outliers.txt", "trained.txt"};
    const char *const titles[] = {"Ours", "Ours, with outliers made in the layernorms' outputs",
                                  "Ours, trained at a high rate without weight decay"};
    for (int i = 0; i < COUNT(names); i++) {
        char *text = text_read(path_in(all_rows.dir, names[i]));
        if (!text) continue;
        printf("\n%s (build/lab/ptq):\n\n```\n%s```\n", titles[i], text);
        free(text);
    }
}

// The rows of dev/findings/NAME-runs.tsv, as data set NAME. A set whose BF16 and FP8 runs stand in
// another one is left out (dev/findings/adjust.py finds these in the rows).
static void findings_read(void) {
    static const char *const repeated[] = {"shakespeare-history-d2", "closing-screen",
                                           "closing-operands", "closing-epoch"};
    glob_t found;
    if (glob("dev/findings/*-runs.tsv", 0, NULL, &found)) return;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char name[40];
        const char *base = strrchr(found.gl_pathv[i], '/') + 1;
        snprintf(name, sizeof(name), "%.*s", (int)strlen(base) - 9, base);
        int is_repeated = 0;
        for (int k = 0; k < COUNT(repeated); k++) is_repeated |= !strcmp(name, repeated[k]);
        if (!is_repeated) table_read(found.gl_pathv[i], name, compare_row);
    }
    globfree(&found);
}

int main(int argc, char **argv) {
    static const char *const accuracy_head =
        "| network | 16 bits | FP8 | difference |\n|---|---|---|---|\n";
    snprintf(program_name, sizeof(program_name), "tables");
    EXPECT(argc == 2, "usage: tables DIR");
    all.bound = 0.002; // build/compare's default
    all_rows.dir = argv[1];
    table_read(path_in(argv[1], "rows.tsv"), "", network_row);
    table_read(path_in(argv[1], "gpt/runs.tsv"), "gpt", compare_row);
    findings_read();
    arms_measure();
    printf("The FP8 build stores bf16. Where the reference is fp16, a gap also holds what that "
           "costs.\n\n");
    printf("## Table 2: image classification, top-1 in percent\n\n%s", accuracy_head);
    published_print(image_networks, COUNT(image_networks));
    ours_print("glyphs", "residual network, glyphs", 0);
    ours_print("digits", "residual network, 8 x 8 digits", 0);
    printf("\n## Table 3: translation, BLEU; ours: answers that are right, in percent\n\n%s",
           accuracy_head);
    published_print(translators, COUNT(translators));
    ours_print("numbers", "LSTM with attention, numbers", 0);
    ours_print("dates", "LSTM with attention, dates", 0);
    language_print();
    printf("\n## Every arm\n");
    for (int k = 0; k < all_rows.arm_count; k++)
        if (all_rows.arms[k].of_dir &&
            (!k || strcmp(all_rows.arms[k].data, all_rows.arms[k - 1].data)))
            set_print(all_rows.arms[k].data);
    quantized_print();
    EXPECT(!fflush(stdout), "cannot write the tables: %s", strerror(errno));
    return 0;
}
