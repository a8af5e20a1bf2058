/*
Prints the tables of "FP8 Formats for Deep Learning" (Micikevicius et al. 2022) with our figures
beside the paper's.

    make build/paper/tables && build/paper/tables DIR

DIR is what dev/paper/runs.sh made: rows.tsv (one row a run), gpt/runs.tsv (build/compare's rows)
and ptq.txt. The sets of runs of dev/findings stand beside table 4, too. Gaps are means of
differences paired by seed, with the 95% interval of Student's t. p is that of the gap in loss; Holm's
correction is over all arms and data sets of DIR.
*/
#define WATCH
#include "../compare.c"

#define ROWS_MAX  4096
#define MOST_ARMS 256
typedef struct {
    char data[32], arm[96];
    long seed;
    double loss, accuracy; // NAN: diverged
} Row;
typedef struct {
    const char *data, *arm;
    int runs, diverged;
    double loss, accuracy; // means over the runs that did not diverge
    Gap loss_gap, accuracy_gap;
    double holm;
} ArmOfSet;
static struct {
    const char *dir;
    Row rows[ROWS_MAX];
    ArmOfSet arms[MOST_ARMS]; // the arms of a data set are neighbours
    int row_count, arm_count;
} all_rows;

// What the paper found: its tables 2, 3 and 4. It leaves open how the scales of FP8 were found.
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
static void rows_of_file(const char *path) {
    char *text = text_read(path);
    EXPECT(text, "%s: cannot open; dev/paper/runs.sh makes it", path);
    int number = 0;
    for (char *save, *line = strtok_r(text, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save)) {
        char loss[32], accuracy[32];
        Row r = {0};
        number++;
        if (*line == '#' || !strncmp(line, "data\t", 5)) continue;
        const int columns = sscanf(line, "%31[^\t]\t%95[^\t]\t%ld\t%31[^\t]\t%31[^\t]\t", r.data,
                                   r.arm, &r.seed, loss, accuracy);
        EXPECT(columns == 5, "%s: line %d: expected six columns, found '%s'", path, number, line);
        EXPECT(all_rows.row_count < ROWS_MAX, "%s: more than %d rows", path, ROWS_MAX);
        r.loss = result_read(loss, path, number);
        r.accuracy = result_read(accuracy, path, number);
        all_rows.rows[all_rows.row_count++] = r;
    }
    free(text);
}
// The row of a run, or NULL.
static const Row *row_find(const char *data, const char *arm, long seed) {
    for (int i = 0; i < all_rows.row_count; i++) {
        const Row *r = &all_rows.rows[i];
        if (r->seed == seed && !strcmp(r->data, data) && !strcmp(r->arm, arm)) return r;
    }
    return NULL;
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
        all_rows.arms[all_rows.arm_count++] = (ArmOfSet){.data = r->data, .arm = r->arm};
    }
}
static void arms_measure(void) {
    double p[MOST_ARMS], adjusted[MOST_ARMS];
    int tested[MOST_ARMS], tests = 0;
    for (int i = 0; i < all_rows.row_count; i++) set_add(all_rows.rows[i].data);
    for (int k = 0; k < all_rows.arm_count; k++) {
        ArmOfSet *a = &all_rows.arms[k];
        arm_measure(a);
        if (!strcmp(a->arm, reference_of(a->data)) || a->loss_gap.n < 2) continue;
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
static void accuracy_print(const char *data, const char *what) {
    const ArmOfSet *fp8 = arm_find(data, "fp8"), *other = arm_find(data, reference_of(data));
    if (!fp8 || !other) return;
    printf("| ours: %s, %d seeds | %.2f (%s) | %.2f | ", what, fp8->accuracy_gap.n, other->accuracy,
           other->arm, fp8->accuracy);
    interval_print(&fp8->accuracy_gap, "%+.2f");
    printf(" |\n");
}
// All arms of a data set.
static void set_print(const char *data) {
    const char *reference = reference_of(data);
    printf(
        "\n**%s**, reference %s\n\n| arm | seeds | loss, nats | gap | p | p (Holm) | accuracy, %% "
        "| gap |\n|---|---|---|---|---|---|---|---|\n",
        data, reference);
    for (int k = 0; k < all_rows.arm_count; k++) {
        const ArmOfSet *a = &all_rows.arms[k];
        if (strcmp(a->data, data)) continue;
        printf("| %s | %d", a->arm, a->runs);
        if (a->diverged) printf(" (%d diverged)", a->diverged);
        printf(" | %.4f | ", a->loss);
        const int is_reference = !strcmp(a->arm, reference);
        if (!is_reference) interval_print(&a->loss_gap, "%+.4f");
        if (isnan(a->holm)) printf(" | | | %.2f | ", a->accuracy);
        else printf(" | %.2g | %.2g | %.2f | ", a->loss_gap.p, a->holm, a->accuracy);
        if (!is_reference) interval_print(&a->accuracy_gap, "%+.2f");
        printf(" |\n");
    }
}

// One line for the rows of a runs.tsv: the reference's loss, FP8's, and the gap.
static void gpt_print(const char *path, const char *what) {
    char *text = text_read(path);
    double loss[3][SEEDS_MAX], row[2]; // fp8, bf16, fp16
    static const char *const arms[] = {"fp8\t", "bf16\t", "fp16\t"};
    if (!text) return;
    for (int i = 0; i < 3; i++)
        for (int seed = 0; seed < SEEDS_MAX; seed++) loss[i][seed] = NAN;
    for (const char *at = text; *at; at += strcspn(at, "\n"), at += *at == '\n')
        for (int i = 0; i < 3; i++) {
            const char *numbers = at + strlen(arms[i]);
            if (strncmp(at, arms[i], strlen(arms[i])) || text_row(&numbers, row, 2) < 2) continue;
            if (row[0] >= 0 && row[0] < SEEDS_MAX) loss[i][(int)row[0]] = row[1];
        }
    free(text);
    for (int reference = 1; reference < 3; reference++) {
        double a[SEEDS_MAX], b[SEEDS_MAX], sum[2] = {0, 0};
        int n = 0;
        for (int seed = 0; seed < SEEDS_MAX; seed++) {
            if (isnan(loss[0][seed]) || isnan(loss[reference][seed])) continue;
            a[n] = loss[0][seed];
            b[n++] = loss[reference][seed];
            sum[0] += loss[0][seed];
            sum[1] += loss[reference][seed];
        }
        if (n < 2) continue;
        const Gap g = gap_of(a, b, n);
        printf("| ours: %s, %d seeds | %.4f (%.*s) | %.4f | ", what, n, sum[1] / n,
               (int)strlen(arms[reference]) - 1, arms[reference], sum[0] / n);
        interval_print(&g, "%+.4f");
        printf(" |\n");
    }
}
// dev/findings/NAME-runs.tsv; the name says where losses are those of GPT-2's tokens.
static void findings_print(void) {
    glob_t found;
    if (glob("dev/findings/*-runs.tsv", 0, NULL, &found)) return;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char what[128];
        const char *name = strrchr(found.gl_pathv[i], '/') + 1;
        snprintf(what, sizeof(what), "%.*s, nats a %s", (int)strcspn(name, ".") - 5, name,
                 strstr(name, "gpt2") ? "token" : "byte");
        gpt_print(found.gl_pathv[i], what);
    }
    globfree(&found);
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
    gpt_print(path_in(all_rows.dir, "gpt/runs.tsv"), "this run, tales, nats a byte");
    findings_print();
}

int main(int argc, char **argv) {
    static const char *const accuracy_head =
        "| network | 16 bits | FP8 | difference |\n|---|---|---|---|\n";
    snprintf(program_name, sizeof(program_name), "tables");
    EXPECT(argc == 2, "usage: tables DIR");
    all_rows.dir = argv[1];
    rows_of_file(path_in(argv[1], "rows.tsv"));
    arms_measure();
    printf("## Table 2: image classification, top-1 in percent\n\n%s", accuracy_head);
    published_print(image_networks, COUNT(image_networks));
    accuracy_print("glyphs", "residual network, glyphs");
    accuracy_print("digits", "residual network, 8 x 8 digits");
    printf("\n## Table 3: translation, BLEU; ours: answers that are right, in percent\n\n%s",
           accuracy_head);
    published_print(translators, COUNT(translators));
    accuracy_print("numbers", "LSTM with attention, numbers");
    accuracy_print("dates", "LSTM with attention, dates");
    language_print();
    printf("\n## Every arm\n");
    for (int k = 0; k < all_rows.arm_count; k++)
        if (!k || strcmp(all_rows.arms[k].data, all_rows.arms[k - 1].data))
            set_print(all_rows.arms[k].data);
    char *ptq = text_read(path_in(argv[1], "ptq.txt"));
    if (ptq) printf("\n## Table 5: quantization after training\n\n%s", ptq);
    EXPECT(!fflush(stdout), "cannot write the tables: %s", strerror(errno));
    return 0;
}
