/*
Serves a page that shows runs, those under way too, to a browser on this machine.

    make build/watch
    build/watch log                  # then open http://127.0.0.1:8020
    build/watch log/compare --port 0 # any free port; the first line says which

DIR is the directory of a run, or holds such directories (DIR/NAME/log.tsv). The page shows each
run's step, its losses and gradient norm, and the scale atlas of one of them. It asks for new rows
every few seconds. Of more than 32 runs the newest are shown. Ctrl-C ends the program.

The program only reads, and only log.tsv and scales.tsv of these directories; it follows no links
below DIR. It listens on 127.0.0.1, and answers GET requests for `/` and `/data` alone, one at a
time. A request must name 127.0.0.1 or localhost as its host: a page of another origin cannot read
what is served.

Options:
    --port N   1 to 65535, or 0: any free port [8020]
    --help     these lines
*/
#define WATCH
#include "compare.c"
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#ifdef __APPLE__
#define strverscmp strcmp // fp8-10 stands before fp8-2 there
#endif

#define LOG_MAX ((size_t)1 << 30) // bytes of a table that are read
enum { REQUEST_MAX = 8192, SECONDS_TO_ASK = 4, SECONDS_TO_ANSWER = 20, QUIET_SECONDS = 60 };
static struct {
    const char *dir;
    int port;
    char *page, *page_end;    // dev/compare.html before and behind its data
    time_t changed[ARMS_MAX]; // when the logs of all.arms did
    int left_out;             // runs that are older than all of these
} watch;

// ==== 1. the runs of DIR =======================================================================

// A run is a directory with a log.tsv. Runs are sorted by name; names are labels of all.arms, so
// that arm_color() knows them.
static int name_order(const void *a, const void *b) {
    return strverscmp(((const Arm *)a)->label, ((const Arm *)b)->label);
}
// Opens a file of a run without following links; -1: it cannot be opened.
static int run_open_file(int dir, const char *run, const char *name) {
    const int flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    const int fd = openat(dir, run, flags | O_DIRECTORY);
    if (fd < 0) return -1;
    const int file = openat(fd, name, flags);
    close(fd);
    return file;
}
// Adds a run, if there is one of that name. Of more than ARMS_MAX the newest stay.
static void run_add(int dir, const char *name) {
    struct stat st;
    int place = all.arm_count;
    const int fd = run_open_file(dir, name, "log.tsv");
    const int is_file = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    if (fd >= 0) close(fd);
    if (!is_file || strlen(name) >= sizeof(all.arms[0].label)) return;
    if (place == ARMS_MAX) {
        watch.left_out++;
        place = 0;
        for (int i = 1; i < ARMS_MAX; i++) {
            if (watch.changed[i] < watch.changed[place]) place = i;
        }
        if (st.st_mtime <= watch.changed[place]) return;
    } else {
        all.arm_count++;
    }
    strcpy(all.arms[place].label, name);
    watch.changed[place] = st.st_mtime;
}
// Fills all.arms; returns a descriptor of DIR.
static int runs_find(void) {
    const int dir = open(watch.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    EXPECT(dir >= 0, "%s: cannot open this directory: %s", watch.dir, strerror(errno));
    all.arm_count = watch.left_out = 0;
    run_add(dir, ".");
    if (all.arm_count) return dir;
    DIR *list = opendir(watch.dir);
    EXPECT(list, "%s: cannot list this directory: %s", watch.dir, strerror(errno));
    for (const struct dirent *entry = readdir(list); entry; entry = readdir(list)) {
        if (entry->d_name[0] != '.') run_add(dir, entry->d_name);
    }
    closedir(list);
    qsort(all.arms, all.arm_count, sizeof(Arm), name_order);
    return dir;
}

// Reads a table of a run, whose file another program may write or cut meanwhile. Returns a text
// that ends after its last whole line, or NULL; age: seconds since the file changed.
static char *table_read(int dir, const char *run, const char *name, double *age) {
    struct stat st;
    const int fd = run_open_file(dir, run, name);
    if (fd < 0) return NULL;
    size_t n = 0;
    char *text = NULL;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (size_t)st.st_size < LOG_MAX) {
        text = (char *)memory_allocate((size_t)st.st_size + 1);
        for (ssize_t got = 1; got > 0 && n < (size_t)st.st_size; n += got) {
            got = pread(fd, text + n, (size_t)st.st_size - n, (off_t)n);
            if (got < 0) got = 0;
        }
        while (n > 0 && text[n - 1] != '\n') n--;
        text[n] = 0;
        *age = MAX(0, (double)(time(NULL) - st.st_mtime));
    }
    close(fd);
    return text;
}

// ==== 2. what the page is given ================================================================

// Whether a run runs: whether its newest row is young, for the time that its steps take.
static void state_write(FILE *f, const LogCurves *c, double age) {
    char passed[64], text[96];
    const double patience = MAX(QUIET_SECONDS, 20e-3 * c->last[MS]);
    snprintf(text, sizeof(text), "running");
    if (age > patience) snprintf(text, sizeof(text), "no row for %s", duration_text(age, passed));
    if (c->steps && c->last[STEP] >= c->steps) snprintf(text, sizeof(text), "finished");
    else if (!c->last[STEP] && age <= patience) snprintf(text, sizeof(text), "no rows yet");
    text_row_write(f, "run_state", text);
}
// The lines of a log's header that may explain a difference between runs.
static void options_write(FILE *f, const char *log) {
    static const char *const left_out[] = {"commit", "machine", "memory",   "threads", "steps",
                                           "out",    "shape",   "baseline", "floor",   "data"};
    char key[64], value[512];
    for (const char *at = log; at[0] == '#'; at += *at == '\n') {
        const int width = (int)strcspn(at, "\n");
        const int name = (int)strcspn(at, "\t\n") - 2;
        if (name > 0 && name < 64 && name + 2 < width && width < (int)sizeof(value)) {
            snprintf(key, sizeof(key), "%.*s", name, at + 2);
            snprintf(value, sizeof(value), "%.*s", width - name - 3, at + name + 3);
            if (!word_in(key, left_out, COUNT(left_out))) {
                fprintf(f, "option\t");
                cell_write(f, key);
                fputc('\t', f);
                cell_write(f, value);
                fputc('\n', f);
            }
        }
        at += width;
    }
}
static void label_write(FILE *f, const char *name) {
    text_row_write(f, "label", strcmp(name, ".") ? name : watch.dir);
}
static void run_rows_write(FILE *f, int dir, const Arm *run) {
    static LogCurves c;
    double age = 0;
    char *log = table_read(dir, run->label, "log.tsv", &age);
    log_curves_read(&c, log ? log : "");
    const double at[] = {c.last[STEP], c.steps,    c.last[TRAIN_LOSS],
                         c.val_loss,   c.val_step, c.last[TOK_S]};
    fprintf(f, "arm\n");
    label_write(f, run->label);
    state_write(f, &c, age);
    row_write(f, "at", at, COUNT(at), "%.7g");
    if (log) options_write(f, log);
    thinned_write(f, "val", &c.val);
    thinned_write(f, "train", &c.train);
    thinned_write(f, "norm", &c.norm);
    const int scales = run_open_file(dir, run->label, "scales.tsv");
    if (scales >= 0) {
        fprintf(f, "has_atlas\t1\n");
        close(scales);
    }
    free(log);
}
static void runs_write(FILE *f) {
    double age;
    const int dir = runs_find();
    char *log = all.arm_count ? table_read(dir, all.arms[0].label, "log.tsv", &age) : NULL;
    text_row_write(f, "watch", watch.dir);
    text_row_write(f, "unit", loss_unit(log ? log : ""));
    fprintf(f, "left_out\t%d\n", watch.left_out);
    palette_write(f);
    free(log);
    for (int i = 0; i < all.arm_count; i++) run_rows_write(f, dir, &all.arms[i]);
    close(dir);
}
// The scale atlas of one run. A log with a recipe that cannot be read ends this request.
static void one_atlas_write(FILE *f, int index) {
    double age;
    const int dir = runs_find();
    if (index < 0 || index >= all.arm_count) return;
    const char *name = all.arms[index].label;
    char *log = table_read(dir, name, "log.tsv", &age);
    char *scales = table_read(dir, name, "scales.tsv", &age);
    fprintf(f, "arm\n");
    label_write(f, name);
    if (log && scales) atlas_write(f, scales, log, name);
}
static void page_write(FILE *f) {
    fputs(watch.page, f);
    runs_write(f);
    fputs(watch.page_end, f);
}

// ==== 3. one request ===========================================================================

static void all_send(int client, const char *text, size_t n) {
    for (ssize_t sent = 0; n > 0; text += sent, n -= (size_t)sent) {
        sent = send(client, text, n, MSG_NOSIGNAL);
        if (sent <= 0) return; // the browser has gone
    }
}
static void answer(int client, const char *status, const char *type, const char *text, size_t n) {
    char head[1024];
    snprintf(head, sizeof(head),
             "HTTP/1.1 %s\r\nContent-Type: %s; charset=utf-8\r\nContent-Length: %zu\r\n"
             "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
             "Cross-Origin-Resource-Policy: same-origin\r\nReferrer-Policy: no-referrer\r\n"
             "Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; "
             "style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
             "base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n%s\r\n",
             status, type, n, strncmp(status, "405", 3) ? "" : "Allow: GET\r\n");
    all_send(client, head, strlen(head));
    all_send(client, text, n);
}
__attribute__((noreturn)) static void refuse(int client, const char *status) {
    char line[128];
    snprintf(line, sizeof(line), "%s\n", status);
    answer(client, status, "text/plain", line, strlen(line));
    shutdown(client, SHUT_WR);
    char rest[4096]; // what was not read would reset the connection before the answer is read
    for (int i = 0; i < 64 && recv(client, rest, sizeof(rest), 0) > 0;) i++;
    _exit(0);
}

// Reads a request's lines up to the empty one; refuses what is too long or too slow.
static void request_read(int client, char *text) {
    size_t n = 0;
    text[0] = 0;
    while (!strstr(text, "\r\n\r\n")) {
        if (n == REQUEST_MAX - 1) refuse(client, "431 Request Header Fields Too Large");
        const ssize_t got = recv(client, text + n, REQUEST_MAX - 1 - n, 0);
        if (got <= 0) refuse(client, "408 Request Timeout");
        n += (size_t)got;
        text[n] = 0;
        if (strlen(text) != n) refuse(client, "400 Bad Request");
    }
}
// Whether a request has exactly one Host, which is this program's address.
static int host_is_ours(const char *text) {
    char numbers[64], name[64];
    int hosts = 0, ours = 0;
    snprintf(numbers, sizeof(numbers), "127.0.0.1:%d", watch.port);
    snprintf(name, sizeof(name), "localhost:%d", watch.port);
    for (const char *at = strstr(text, "\r\n"); at && at[2]; at = strstr(at + 2, "\r\n")) {
        const char *line = at + 2;
        if (strncasecmp(line, "Host:", 5)) continue;
        line += 5 + strspn(line + 5, " \t");
        const size_t width = strcspn(line, " \t\r");
        hosts++;
        ours += width == strlen(numbers) && !strncmp(line, numbers, width);
        ours += width == strlen(name) && !strncasecmp(line, name, width);
    }
    return hosts == 1 && ours == 1;
}
// Answers one request and ends: what a child does. No path of a request is ever opened.
__attribute__((noreturn)) static void request_serve(int client) {
    char text[REQUEST_MAX], *body = NULL;
    size_t n = 0;
    int index = -1, end = 0;
    alarm(SECONDS_TO_ASK);
    request_read(client, text);
    alarm(SECONDS_TO_ANSWER);
    if (strncmp(text, "GET ", 4)) refuse(client, "405 Method Not Allowed");
    if (!host_is_ours(text)) refuse(client, "403 Forbidden");
    char *path = text + 4;
    path[strcspn(path, " \r")] = 0;
    const int is_page = !strcmp(path, "/"), is_data = !strcmp(path, "/data");
    const int is_atlas = sscanf(path, "/data?atlas=%3d%n", &index, &end) == 1 && !path[end];
    if (!is_page && !is_data && !is_atlas) refuse(client, "404 Not Found");
    FILE *f = open_memstream(&body, &n);
    EXPECT(f, "out of memory");
    if (is_page) page_write(f);
    if (is_data) runs_write(f);
    if (is_atlas) one_atlas_write(f, index);
    EXPECT(fclose(f) == 0, "out of memory");
    answer(client, "200 OK", is_page ? "text/html" : "text/tab-separated-values", body, n);
    shutdown(client, SHUT_WR);
    _exit(0);
}

// ==== 4. the program ===========================================================================

static void on_stop(int signal_number) {
    (void)signal_number;
    _exit(EXIT_DONE);
}
// Listens on a port of 127.0.0.1, which is then watch.port. A connection counts when its request
// has come: browsers open some that they do not use.
static int port_listen(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(watch.port)};
    socklen_t size = sizeof(address);
    const int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT(fd >= 0, "cannot make a socket: %s", strerror(errno));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
#ifdef TCP_DEFER_ACCEPT
    setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &(int){2}, sizeof(int));
#endif
    EXPECT(bind(fd, (struct sockaddr *)&address, size) == 0,
           "option --port: cannot listen on 127.0.0.1:%d: %s; name another, or 0 for any free one",
           watch.port, strerror(errno));
    EXPECT(listen(fd, 16) == 0 && getsockname(fd, (struct sockaddr *)&address, &size) == 0,
           "cannot listen on 127.0.0.1: %s", strerror(errno));
    watch.port = ntohs(address.sin_port);
    return fd;
}
// Serves requests one at a time, each in a child, so that no request can end the program. A child
// that ends for bad input has said why here, and has not answered yet.
static void requests_serve(int fd) {
    const struct timeval wait = {2, 0};
    while (1) {
        const int client = accept(fd, NULL, NULL);
        if (client < 0) continue;
        setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
        setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
        const pid_t child = fork();
        if (child == 0) request_serve(client);
        int status = 0;
        while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {}
        if (status_code(status) == EXIT_BAD_INPUT) {
            answer(client, "500 Internal Server Error", "text/plain", NULL, 0);
        }
        close(client);
    }
}

static int watch_help(void) { // what the first lines of this file say
    char *text = text_read("dev/watch.c");
    EXPECT(text, "the help is in the first lines of dev/watch.c; run this from the project's "
                 "directory");
    printf("%.*s", (int)(strstr(text, "*/") - text) - 3, text + 3);
    return EXIT_DONE;
}
static void port_parse(const char *text) {
    char *end = NULL;
    const long port = text ? strtol(text, &end, 10) : -1;
    EXPECT(text && isdigit((unsigned char)*text) && !*end && port <= 65535,
           "option --port: expected 0 to 65535, found '%s'", text ? text : "nothing");
    watch.port = (int)port;
}
int main(int argc, char **argv) {
    static const char mark[] = "<!--DATA-->";
    surroundings_init();
    strcpy(program_name, "watch");
    watch.port = 8020;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help")) return watch_help();
        if (!strcmp(argv[i], "--port")) {
            i++;
            port_parse(i < argc ? argv[i] : NULL);
            continue;
        }
        EXPECT(argv[i][0] != '-', "option '%s' is unknown; --help says what there is", argv[i]);
        EXPECT(!watch.dir, "expected one directory, found '%s' and '%s'", watch.dir, argv[i]);
        watch.dir = argv[i];
    }
    EXPECT(watch.dir, "expected a directory: build/watch log; --help says more");
    close(runs_find());
    EXPECT(all.arm_count, "%s: expected runs in it (log.tsv, or NAME/log.tsv), found none",
           watch.dir);
    watch.page = text_read("dev/compare.html");
    char *data = watch.page ? strstr(watch.page, mark) : NULL;
    EXPECT(data, "dev/compare.html: cannot read the page's template; run this from the project's "
                 "directory");
    *data = 0;
    watch.page_end = data + strlen(mark);
    const int fd = port_listen();
    signal(SIGINT, on_stop);
    signal(SIGTERM, on_stop);
    printf("%s: http://127.0.0.1:%d (Ctrl-C ends)\n", watch.dir, watch.port);
    fflush(stdout);
    requests_serve(fd);
}
