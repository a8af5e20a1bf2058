/*
Pictures of the lesson (dev/lesson), from small tables of text.

    make build/lesson/picture
    build/lesson/picture TABLE.tsv [FILE.svg]    draws in the terminal, and as an SVG

TABLE.tsv has header lines `# key<TAB>value`, then a line of column names, then rows:

    picture    lines, bars or heat
    title      stands above the picture
    x, y       what the axes show, with the unit
    scale      log: the y axis of `lines` is logarithmic
    panels     heat: the names of the panels, separated by " | "
    tokens     heat: what stands along both axes, one character each

lines: the first column is x, every other column is a curve. bars: the first column names a group,
every other column is a bar in it. heat: the first column is a panel's number, the others are a row
of its matrix; panel 0 holds shares of 0 to 1 (darkest: 0.5 and
more), the others hold changes of them. `-` stands for a
missing value. The same table makes the same SVG, byte for byte.
*/
#define TESTING
#define PROGRAM "picture"
#include "../../train_gpt_fp8.c"

enum { ROWS_MAX = 512, COLUMNS_MAX = 32, COLORS = 8 };
typedef struct {
    const char *path, *column[COLUMNS_MAX], *label[ROWS_MAX];
    char kind[PATH_MAX], title[PATH_MAX], x[PATH_MAX], y[PATH_MAX], scale[PATH_MAX];
    char panels[PATH_MAX], tokens[PATH_MAX];
    int rows, columns;
    double value[ROWS_MAX][COLUMNS_MAX]; // NAN: missing
} Table;
static Table table;

// ---- the table
// The next field of a line; ends it with a 0. *at moves behind it, and is NULL after the last one.
static char *field_next(char **at) {
    char *field = *at, *end = field + strcspn(field, "\t\n");
    *at = *end == '\t' ? end + 1 : NULL;
    *end = 0;
    return field;
}

static void row_read(Table *t, char *line, int number) {
    int found = 0;
    for (char *at = line; at; found++) {
        char *field = field_next(&at), *end;
        EXPECT(found < t->columns || !t->columns, "%s: row %d: expected %d columns, found more",
               t->path, number, t->columns);
        EXPECT(found < COLUMNS_MAX, "%s: expected at most %d columns, found more", t->path,
               COLUMNS_MAX);
        if (!t->columns) {
            t->column[found] = field;
            continue;
        }
        if (found == 0) t->label[t->rows] = field;
        if (found == 0 && !strcmp(t->kind, "bars")) continue;
        const int is_missing = !strcmp(field, "-");
        const double value = is_missing ? NAN : strtod(field, &end);
        EXPECT(is_missing || (end != field && !*end && isfinite(value)),
               "%s: row %d, column %d: expected a number or -, found '%s'", t->path, number,
               found + 1, field);
        t->value[t->rows][found] = value;
    }
    EXPECT(!t->columns || found == t->columns, "%s: row %d: expected %d columns, found %d", t->path,
           number, t->columns, found);
    t->rows += t->columns > 0;
    if (!t->columns) t->columns = found;
}

static void table_read(Table *t, const char *path) {
    char *text = text_read(path);
    EXPECT(text, "%s: expected a table, found no file", path);
    t->path = path;
    text_value(text, "picture", t->kind);
    text_value(text, "title", t->title);
    text_value(text, "x", t->x);
    text_value(text, "y", t->y);
    text_value(text, "scale", t->scale);
    text_value(text, "panels", t->panels);
    text_value(text, "tokens", t->tokens);
    EXPECT(!strcmp(t->kind, "lines") || !strcmp(t->kind, "bars") || !strcmp(t->kind, "heat"),
           "%s: expected a line '# picture' with lines, bars or heat, found '%s'", path, t->kind);
    int number = 0;
    for (char *line = text, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        next += *next == '\n';
        if (*line == '#') continue;
        EXPECT(t->rows < ROWS_MAX, "%s: expected at most %d rows, found more", path, ROWS_MAX);
        row_read(t, line, number++);
    }
    EXPECT(t->rows > 0 && t->columns > 1, "%s: expected rows of at least 2 columns, found none",
           path);
    const int is_heat = !strcmp(t->kind, "heat"), n = t->columns - 1;
    EXPECT(!is_heat || t->rows % n == 0, "%s: expected panels of %d rows, found %d rows", path, n,
           t->rows);
    for (int r = 0; strcmp(t->kind, "bars") && r < t->rows; r++) {
        const double first = t->value[r][0];
        EXPECT(is_heat ? first == r / n : isfinite(first) && (r == 0 || first > t->value[r - 1][0]),
               "%s: row %d: expected %s in the first column, found '%s'", path, r + 1,
               is_heat ? "its panel's number" : "a larger number", t->label[r]);
    }
}

// ---- colors: a precision has its own; the other columns take the rest in turn
typedef struct {
    const char *name, *hex;
    int ansi; // of a terminal with 256 colors
} Color;
static const Color colors[COLORS] = {{"fp16", "#1f77b4", 32},  {"bf16", "#2ca02c", 34},
                                     {"fp32", "#7f7f7f", 244}, {"fp8", "#d62728", 160},
                                     {"", "#9467bd", 98},      {"", "#ff7f0e", 208},
                                     {"", "#17becf", 44},      {"", "#8c564b", 95}};
// Whether a column is called `name`, perhaps with a remark: "fp8", "fp8 (the default)".
static int is_precision(const char *column, const char *name) {
    const size_t n = strlen(name);
    return !strncmp(column, name, n) && (!column[n] || !strncmp(column + n, " (", 2));
}
static const Color *column_color(const Table *t, int column) {
    int other = 4;
    for (int i = 1; i <= column; i++) {
        int named = 0;
        while (named < 4 && !is_precision(t->column[i], colors[named].name)) named++;
        if (i == column) return &colors[named < 4 ? named : other];
        other += named == 4 && other < COLORS - 1;
    }
    return colors;
}

// ---- axes
typedef struct {
    double low, high, step;
    int is_log; // low and high are powers of ten
} Axis;
static double axis_share(const Axis *a, double v) {
    return ((a->is_log ? log10(v) : v) - a->low) / (a->high - a->low);
}
static Axis axis_of(double low, double high, int is_log, int ticks) {
    Axis a = {low, high, 1, is_log};
    if (is_log) {
        a.low = floor(log10(low));
        a.high = ceil(log10(high));
        a.high += a.high == a.low;
        a.step = ceil((a.high - a.low) / ticks);
        return a;
    }
    const double rough = MAX((high - low) / ticks, 1e-12), power = pow(10, floor(log10(rough)));
    const double lead = rough / power;
    a.step = power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10);
    a.low = floor(low / a.step) * a.step;
    a.high = ceil(high / a.step) * a.step;
    a.high += a.high == a.low ? a.step : 0;
    return a;
}
static Axis axis_y(const Table *t, int from_zero, int ticks) {
    double low = INFINITY, high = -INFINITY;
    const int is_log = !strcmp(t->scale, "log");
    for (int r = 0; r < t->rows; r++)
        for (int c = 1; c < t->columns; c++) {
            const double v = t->value[r][c];
            EXPECT(!is_log || !(v <= 0), "%s: expected values above 0 on a logarithmic axis",
                   t->path);
            low = v < low ? v : low;
            high = v > high ? v : high;
        }
    EXPECT(isfinite(low), "%s: expected numbers, found none", t->path);
    if (from_zero) low = MIN(low, 0);
    return axis_of(low, high, is_log, ticks);
}
static const char *tick_text(const Axis *a, double tick) {
    static char text[32];
    if (fabs(tick) < a->step * 1e-6) tick = 0;
    snprintf(text, sizeof(text), "%.4g", a->is_log ? pow(10, tick) : tick);
    return text;
}

// ---- SVG
enum { SVG_WIDTH = 760, PLOT_LEFT = 64, PLOT_HEIGHT = 250, TITLE = 30, LINE = 18 };
static double plot_top(const Table *t) { return TITLE + LINE * (t->columns - 1) + 8; }
static void svg_begin(FILE *f, double height) {
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %g\" width=\"%d\" "
            "height=\"%g\">\n<style>text{font:12px sans-serif;fill:#333}.t{font-weight:bold}"
            ".e{text-anchor:end}.m{text-anchor:middle}.g{stroke:#ddd;fill:none}"
            ".s{font-size:10px}</style>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            SVG_WIDTH, height, SVG_WIDTH, height);
}
// Text with &, < and > escaped.
static void svg_text(FILE *f, double x, double y, const char *class, const char *text) {
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" xml:space=\"preserve\">", x, y, class);
    for (; *text; text++) {
        if (*text == '&') fputs("&amp;", f);
        else if (*text == '<') fputs("&lt;", f);
        else if (*text == '>') fputs("&gt;", f);
        else fputc(*text, f);
    }
    fprintf(f, "</text>\n");
}
static void svg_frame(FILE *f, const Table *t, const Axis *y) {
    const double top = plot_top(t), bottom = top + PLOT_HEIGHT;
    svg_text(f, 12, 18, "t", t->title);
    for (int c = 1; c < t->columns; c++) {
        const double at = TITLE + LINE * (c - 1);
        fprintf(f, "<rect x=\"%d\" y=\"%.1f\" width=\"14\" height=\"6\" fill=\"%s\"/>\n", PLOT_LEFT,
                at + 1, column_color(t, c)->hex);
        svg_text(f, PLOT_LEFT + 20, at + 8, "", t->column[c]);
    }
    for (double tick = y->low; tick < y->high + y->step * 0.5; tick += y->step) {
        const double at = bottom - (tick - y->low) / (y->high - y->low) * PLOT_HEIGHT;
        fprintf(f, "<path class=\"g\" d=\"M%d %.1fH%d\"/>\n", PLOT_LEFT, at, SVG_WIDTH - 16);
        svg_text(f, PLOT_LEFT - 6, at + 4, "e", tick_text(y, tick));
    }
    fprintf(f, "<g transform=\"rotate(-90 14 %.1f)\">", top + PLOT_HEIGHT * 0.5);
    svg_text(f, 14, top + PLOT_HEIGHT * 0.5, "m", t->y);
    fprintf(f, "</g>\n");
    svg_text(f, (PLOT_LEFT + SVG_WIDTH - 16) * 0.5, bottom + 38, "m", t->x);
}

static void svg_lines(FILE *f, const Table *t) {
    const Axis y = axis_y(t, 0, 6), x = axis_of(t->value[0][0], t->value[t->rows - 1][0], 0, 8);
    const double top = plot_top(t), bottom = top + PLOT_HEIGHT;
    const double width = SVG_WIDTH - 16 - PLOT_LEFT;
    svg_begin(f, bottom + 52);
    svg_frame(f, t, &y);
    for (double tick = x.low; tick < x.high + x.step * 0.5; tick += x.step)
        svg_text(f, PLOT_LEFT + axis_share(&x, tick) * width, bottom + 18, "m",
                 tick_text(&x, tick));
    for (int c = 1; c < t->columns; c++) {
        const char *pen = "M";
        fprintf(f, "<path fill=\"none\" stroke-width=\"2\" stroke=\"%s\" d=\"",
                column_color(t, c)->hex);
        for (int r = 0; r < t->rows; r++) {
            if (isnan(t->value[r][c])) continue;
            fprintf(f, "%s%.1f %.1f", pen, PLOT_LEFT + axis_share(&x, t->value[r][0]) * width,
                    bottom - axis_share(&y, t->value[r][c]) * PLOT_HEIGHT);
            pen = "L";
        }
        fprintf(f, "\"/>\n");
    }
}

// The bars, or the numbers above them.
static void svg_bar(FILE *f, const Table *t, const Axis *y, int row, int column, int is_number) {
    const int bars = t->columns - 1;
    const double bottom = plot_top(t) + PLOT_HEIGHT, v = t->value[row][column];
    const double group = (double)(SVG_WIDTH - 16 - PLOT_LEFT) / t->rows;
    const double width = MIN(group * 0.8 / bars, 40);
    const double left = PLOT_LEFT + group * (row + 0.5) + width * (column - 1 - bars * 0.5);
    const double high = isnan(v) ? 0 : axis_share(y, v) * PLOT_HEIGHT;
    char text[32];
    if (is_number) {
        snprintf(text, sizeof(text), isnan(v) ? "-" : fabs(v) < 99.95 ? "%.1f" : "%.0f", v);
        svg_text(f, left + width * 0.5, bottom - high - 3, "m s", text);
        return;
    }
    fprintf(f, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", left,
            bottom - high, width - 1, high, column_color(t, column)->hex);
}
static void svg_bars(FILE *f, const Table *t) {
    const Axis y = axis_y(t, 1, 6);
    const double bottom = plot_top(t) + PLOT_HEIGHT;
    svg_begin(f, bottom + 52);
    svg_frame(f, t, &y);
    for (int r = 0; r < t->rows; r++)
        svg_text(f, PLOT_LEFT + (double)(SVG_WIDTH - 16 - PLOT_LEFT) / t->rows * (r + 0.5),
                 bottom + 18, "m", t->label[r]);
    for (int is_number = 0; is_number < 2; is_number++)
        for (int r = 0; r < t->rows; r++)
            for (int c = 1; c < t->columns; c++) svg_bar(f, t, &y, r, c, is_number);
}

// ---- heat maps: shares are shades of blue; changes are red (more) or blue (less)
static double heat_range(const Table *t, int changes) {
    double range = 0;
    for (int r = 0; r < t->rows; r++)
        for (int c = 1; c < t->columns; c++)
            if ((t->value[r][0] > 0) == changes && fabs(t->value[r][c]) > range)
                range = fabs(t->value[r][c]);
    return changes ? (range > 0 ? range : 1) : MIN(range, 0.5);
}
// The name of panel i: the part of `panels` behind the i-th " | ".
static const char *panel_name(const Table *t, int panel) {
    static char name[PATH_MAX];
    const char *at = t->panels;
    for (int i = 0; i < panel && at; i++) {
        at = strstr(at, " | ");
        at = at ? at + 3 : NULL;
    }
    path_print(name, "%.*s", at ? (int)strcspn(at, "|") : 0, at ? at : "");
    return name;
}
static void svg_heat(FILE *f, const Table *t) {
    enum { CELL = 9, GAP = 24, TOP = 64 };
    const int n = t->columns - 1;
    const double share = heat_range(t, 0), change = heat_range(t, 1);
    svg_begin(f, TOP + n * CELL + 54);
    svg_text(f, 12, 18, "t", t->title);
    for (int r = 0; r < t->rows; r++) {
        const int panel = (int)t->value[r][0], i = r % n;
        const double left = 30 + panel * (n * CELL + GAP);
        char text[2] = {i < (int)strlen(t->tokens) ? t->tokens[i] : ' ', 0};
        if (i == 0) svg_text(f, left, 42, "", panel_name(t, panel));
        svg_text(f, left - 7, TOP + i * CELL + 8, "m s", text);
        svg_text(f, left + i * CELL + 4, TOP - 4, "m s", text);
        for (int c = 1; c <= n; c++) {
            const double v = t->value[r][c];
            if (isnan(v)) continue;
            const int pale = 245 - (int)(245 * MIN(fabs(v) / (panel ? change : share), 1));
            fprintf(f, "<path fill=\"#%02x%02x%02x\" d=\"M%.0f %dh%dv%dh-%dz\"/>\n",
                    v < 0 || !panel ? pale : 214 + pale / 8, pale,
                    v < 0 || !panel ? 180 + pale / 4 : pale, left + (c - 1) * CELL, TOP + i * CELL,
                    CELL, CELL, CELL);
        }
    }
    svg_text(f, 30, TOP + n * CELL + 20, "", t->x);
    svg_text(f, 30, TOP + n * CELL + 40, "", t->y);
}

static void svg_write(const Table *t, const char *path) {
    FILE *f = fopen(path, "w");
    EXPECT(f, "%s: cannot write: %s", path, strerror(errno));
    if (!strcmp(t->kind, "lines")) svg_lines(f, t);
    else if (!strcmp(t->kind, "bars")) svg_bars(f, t);
    else svg_heat(f, t);
    fprintf(f, "</svg>\n");
    const int failed = ferror(f);
    EXPECT(!fclose(f) && !failed, "%s: cannot write", path);
}

// ---- the terminal
static const char *const marks[] = {"●", "○", "▲", "△", "■", "□", "◆", "◇"};
static void color_on(const Color *c) {
    if (isatty(STDOUT_FILENO)) printf("\x1b[38;5;%dm", c->ansi);
}
static void color_off(void) {
    if (isatty(STDOUT_FILENO)) printf("\x1b[0m");
}
// A curve at x, on the straight line between its neighbors; NAN beyond its ends.
static double curve_at(const Table *t, int column, double x) {
    int before = -1;
    for (int r = 0; r < t->rows; r++) {
        const double v = t->value[r][column], here = t->value[r][0];
        if (isnan(v)) continue;
        if (here >= x) {
            if (before < 0) return here > x ? NAN : v;
            const double share = (x - t->value[before][0]) / (here - t->value[before][0]);
            return t->value[before][column] + share * (v - t->value[before][column]);
        }
        before = r;
    }
    return NAN;
}
static void term_lines(const Table *t) {
    enum { WIDE = 66, HIGH = 14 };
    const Axis y = axis_y(t, 0, 6);
    const double first = t->value[0][0], last = t->value[t->rows - 1][0];
    int cell[HIGH][WIDE] = {{0}};
    const int curves = t->columns - 1;
    for (int i = 0; i < WIDE; i++)
        for (int k = 1; k <= curves; k++) { // where curves meet, their marks take turns
            const int c = (i + k) % curves + 1;
            const double v = curve_at(t, c, first + (last - first) * i / (WIDE - 1));
            if (!isnan(v)) cell[HIGH - 1 - (int)(axis_share(&y, v) * (HIGH - 1) + 0.5)][i] = c;
        }
    char label[HIGH][32] = {{0}};
    for (double tick = y.low; tick < y.high + y.step * 0.5; tick += y.step) {
        const double share = (tick - y.low) / (y.high - y.low);
        const int row = HIGH - 1 - (int)(share * (HIGH - 1) + 0.5);
        snprintf(label[MAX(row, 0)], sizeof(label[0]), "%s", tick_text(&y, tick));
    }
    for (int row = 0; row < HIGH; row++) {
        printf("%9s %s", label[row], *label[row] ? "┤" : "│");
        for (int i = 0; i < WIDE; i++) {
            const int c = cell[row][i];
            if (c) color_on(column_color(t, c));
            printf("%s", c ? marks[(c - 1) % 8] : " ");
            if (c) color_off();
        }
        printf("\n");
    }
    printf("%10s└", "");
    for (int i = 0; i < WIDE; i++) printf("─");
    printf("\n%11s%-10g%*g\n", "", first, WIDE - 10, last);
    printf("%11s%s. %s.\n", "", t->x, t->y);
    for (int c = 1; c < t->columns; c++) {
        color_on(column_color(t, c));
        printf("%11s%s %s\n", "", marks[(c - 1) % 8], t->column[c]);
        color_off();
    }
}
static void term_bars(const Table *t) {
    static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    const Axis y = axis_y(t, 1, 6);
    int name = 0; // the longest one's characters
    for (int c = 1; c < t->columns; c++) name = MAX(name, (int)strlen(t->column[c]));
    const int wide = MAX(56 - name, 16);
    printf("  %s. %s.\n", t->y, t->x);
    for (int r = 0; r < t->rows; r++)
        for (int c = 1; c < t->columns; c++) {
            const double v = t->value[r][c];
            const int parts = isnan(v) ? 0 : (int)(MAX(axis_share(&y, v), 0) * wide * 8 + 0.5);
            printf("  %-12s %-*s ", c == 1 ? t->label[r] : "", name, t->column[c]);
            color_on(column_color(t, c));
            for (int i = 0; i < parts / 8; i++) printf("█");
            printf("%s", eighths[parts % 8]);
            color_off();
            if (isnan(v)) printf("-\n");
            else printf(" %.4g\n", v);
        }
}
static void term_heat(const Table *t) {
    static const char *const shades[] = {"·", "░", "▒", "▓", "█"};
    const int n = t->columns - 1, panels = t->rows / n;
    printf("  ");
    for (int p = 0; p < panels; p++) printf("%-*.*s  ", n, n, panel_name(t, p));
    printf("\n");
    for (int i = 0; i < n; i++) {
        printf("%c ", i < (int)strlen(t->tokens) ? t->tokens[i] : ' ');
        for (int p = 0; p < panels; p++) {
            const double range = heat_range(t, p > 0);
            for (int c = 1; c <= n; c++) {
                const double v = t->value[p * n + i][c];
                const int shade = isnan(v) ? 0 : (int)(fabs(v) / range * 4.99);
                if (v < 0) color_on(&colors[0]);
                printf("%s", isnan(v) ? " " : shades[MIN(shade, 4)]);
                if (v < 0) color_off();
            }
            printf("  ");
        }
        printf("\n");
    }
    printf("  %s\n  %s\n", t->x, t->y);
}

int main(int argc, char **argv) {
    EXPECT(argc == 2 || argc == 3, "usage: picture TABLE.tsv [FILE.svg]; the first lines of "
                                   "dev/lesson/picture.c explain them");
    table_read(&table, argv[1]);
    printf("  %s\n", table.title);
    if (!strcmp(table.kind, "lines")) term_lines(&table);
    else if (!strcmp(table.kind, "bars")) term_bars(&table);
    else term_heat(&table);
    if (argc == 3) svg_write(&table, argv[2]);
    EXPECT(!fflush(stdout), "cannot write the picture: %s", strerror(errno));
    return 0;
}
