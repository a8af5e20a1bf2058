/*
Tests of a trainer as a program: its options, files, errors, kills and resumes. They start the
binary as a user does and know nothing of its source, so they run against every backend:

    gcc -O1 test_program.c -o test_program -lm
    ./test_program ./train_gpt_fp8                     # seconds; the binary's --version tells its
precision
    ./test_program ./train_gpt_fp8cu                   # on a GPU
    ./test_program build/cuda/test_cpu_fp8 --as-cuda   # words after the path belong to the command
    ./test_program --only run ./train_gpt_fp8          # groups whose name contains "run"
    ./test_program --explain build/lab/explain ./train_gpt_fp8    # checks that program's tables,
too

Prints a line a check and `N passed, N failed`; exit status 0 if nothing failed. A check that fails
prints what was expected, what was found, and where. Bits of two runs are compared; "planted fault"
lines feed a comparing function what it must refuse. dev/check/test_faults.py has the faults that
need Python, strace or root.
*/
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { EXIT_BAD_INPUT = 2, EXIT_NONFINITE = 3, EXIT_INTERRUPTED = 130, SIGNALLED = 1000 };
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define PRINTF(n)    __attribute__((format(printf, n, n + 1)))

// -------------------------------------------------------------------------------------------------
// Checks, memory, files. All names of files are relative to a directory of this program's own.

static int passed, failed;

PRINTF(4) static int check_at(int line, int ok, const char *name, const char *format, ...) {
    va_list args;
    ok ? passed++ : failed++;
    printf("%s %s", ok ? "ok  " : "FAIL", name);
    if (!ok) {
        printf(" (%s:%d): ", __FILE__, line);
        va_start(args, format);
        vprintf(format, args);
        va_end(args);
    }
    printf("\n");
    fflush(stdout);
    return ok;
}
#define check(ok, name, ...) check_at(__LINE__, ok, name, __VA_ARGS__)

// Memory of a group of checks, freed when the group ends.
static void *blocks[8192];
static int block_count;
static void *take(size_t bytes) {
    void *p = calloc(1, bytes);
    if (!p || block_count == COUNT(blocks)) abort();
    blocks[block_count++] = p;
    return p;
}
static void take_end(void) {
    while (block_count > 0) free(blocks[--block_count]);
}
static char *text_of(const char *format, va_list args) {
    char *text = NULL;
    if (vasprintf(&text, format, args) < 0) abort();
    char *kept = (char *)take(strlen(text) + 1);
    strcpy(kept, text);
    free(text);
    return kept;
}
PRINTF(1) static char *text(const char *format, ...) {
    va_list args;
    va_start(args, format);
    char *made = text_of(format, args);
    va_end(args);
    return made;
}

static void file_put(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) abort();
}
static unsigned char *file_get(const char *path, size_t *bytes) { // NULL if there is none
    struct stat st;
    *bytes = 0;
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    if (fstat(fileno(file), &st) != 0) abort();
    unsigned char *data = (unsigned char *)take(st.st_size + 1); // ends with a 0
    *bytes = fread(data, 1, st.st_size, file);
    fclose(file);
    return data;
}
static const char *file_text(const char *path) { // "" if there is none
    size_t n;
    const char *found = (const char *)file_get(path, &n);
    return found ? found : "";
}
static int exists(const char *path) { return access(path, F_OK) == 0; }
static int files_same(const char *a, const char *b) {
    size_t na, nb;
    const unsigned char *da = file_get(a, &na), *db = file_get(b, &nb);
    return da && db && na == nb && !memcmp(da, db, na);
}
static void copy(const char *from, const char *to) {
    if (system(text("rm -rf %s && cp -r %s %s", to, from, to)) != 0) abort();
}
// Takes a run's checkpoints of these steps away, as if it had been killed before they were written.
static void unfinish(const char *dir, int first, int last, int every) {
    for (int step = first; step <= last; step += every) {
        unlink(text("%s/DONE_%08d", dir, step));
        unlink(text("%s/model_%08d.bin", dir, step));
        unlink(text("%s/state_%08d.bin", dir, step));
    }
}

// -------------------------------------------------------------------------------------------------
// Children

static char *command[32]; // the trainer's path and the words after it
static int command_words;
static const char *explain; // the path of that program, or NULL

typedef struct {
    int status; // of exit, or SIGNALLED + the signal
    const char *output, *error;
} Child;

static void redirect(const char *path, int fd) {
    dup2(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666), fd);
}
static pid_t child_exec(char *const *before, int threads, char *arguments) {
    char *argv[128];
    int argc = 0;
    while (before[argc]) {
        argv[argc] = before[argc];
        argc++;
    }
    for (char *word = strtok(arguments, " "); word && argc < 127; word = strtok(NULL, " "))
        argv[argc++] = word;
    argv[argc] = NULL;
    setenv("OMP_NUM_THREADS", text("%d", threads), 1);
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        redirect("stderr.txt", 2);
        redirect("stdout.txt", 1);
        alarm(300); // survives exec: no child outlives the tests
        execv(argv[0], argv);
        _exit(127);
    }
    return pid;
}
static Child child_end(pid_t pid) {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : SIGNALLED + WTERMSIG(status);
    const Child child = {code, file_text("stdout.txt"), file_text("stderr.txt")};
    return child;
}
PRINTF(2) static pid_t start(int threads, const char *format, ...) {
    va_list args;
    va_start(args, format);
    char *arguments = text_of(format, args);
    va_end(args);
    return child_exec(command, threads, arguments);
}
#define run(...) child_end(start(2, __VA_ARGS__))

// A child must end with status 2 and one line that names `word`; otherwise `why` says what it did.
static char why[2048];
static int refused_by(Child child, const char *word, const char *arguments) {
    const char *newline = strchr(child.error, '\n');
    const int one_line = newline && newline[1] == 0;
    if (child.status == EXIT_BAD_INPUT && strstr(child.error, word) && one_line) return 1;
    snprintf(why, sizeof(why),
             "'%.120s': expected status 2 and one line with '%.80s', found status %d, '%.300s'",
             arguments, word, child.status, child.error);
    return 0;
}
PRINTF(2) static int refused(const char *word, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const char *arguments = text_of(format, args);
    va_end(args);
    return refused_by(run("%s", arguments), word, arguments);
}
#define check_refused(name, word, ...) check(refused(word, __VA_ARGS__), name, "%s", why)
static void check_done(int line, const char *name, Child child) {
    check_at(line, child.status == 0, name, "expected status 0, found %d, %s", child.status,
             child.error);
}
#define check_done(name, ...) check_done(__LINE__, name, run(__VA_ARGS__))

static int is_fp8, is_cuda; // by the binary's --version

#define TEXT "tiny.txt"             // bytes that a small model can learn
static uint64_t mix64(uint64_t z) { // splitmix64's
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static void tiny_text(void) {
    static const char *const words[8] = {"the", "cat", "sat", "on", "a", "mat", "and", "slept"};
    char all[6000];
    size_t n = 0;
    for (uint64_t i = 0; n < sizeof(all) - 10; i++)
        n += sprintf(all + n, "%s ", words[mix64(mix64(mix64(4) ^ 4) ^ i) % 8]);
    file_put(TEXT, all, n);
}
#define SMALL "-e d1 --channels 32 --heads 2 -t 16 -b 2 -m 2 -s 0 "
#define TINY  "-l 1e-3 " SMALL "-u 2 -i " TEXT " "

// -------------------------------------------------------------------------------------------------
// Comparing two runs

// A log without what may differ: the machine's header lines, and the last four columns of a row
// (time and speed).
static char *log_without_time(const char *path) {
    const char *line = file_text(path);
    char *kept = (char *)take(strlen(line) + 2), *out = kept;
    while (*line) {
        const size_t whole = strcspn(line, "\n");
        size_t length = whole;
        const int machine = !strncmp(line, "# threads", 9) || !strncmp(line, "# m", 3);
        for (int tabs = 0; isdigit((unsigned char)line[0]) && tabs < 4 && length > 0; length--)
            tabs += line[length - 1] == '\t';
        if (!machine) out += sprintf(out, "%.*s\n", (int)length, line);
        line += whole + (line[whole] == '\n');
    }
    return kept;
}
static int rows_of(const char *log) {
    int rows = isdigit((unsigned char)log[0]) != 0;
    for (; *log; log++) rows += log[0] == '\n' && isdigit((unsigned char)log[1]);
    return rows;
}

// Whether two runs' directories agree in their last checkpoint and in their logs; `why` says what
// differs.
static int runs_same(const char *a, const char *b, int step) {
    const char *name[3] = {text("model_%08d.bin", step), text("state_%08d.bin", step),
                           "scales.tsv"};
    why[0] = 0;
    for (int i = 0; i < 2 + is_fp8; i++)
        if (!files_same(text("%s/%s", a, name[i]), text("%s/%s", b, name[i])))
            snprintf(why, sizeof(why), "%s of %s and of %s differ", name[i], a, b);
    const char *log[2] = {log_without_time(text("%s/log.tsv", a)),
                          log_without_time(text("%s/log.tsv", b))};
    if (strcmp(log[0], log[1]) || rows_of(log[0]) != step)
        snprintf(why, sizeof(why), "log.tsv of %s (%d rows of %d) and of %s (%d rows) differ", a,
                 rows_of(log[0]), step, b, rows_of(log[1]));
    return !*why;
}
static void check_same_at(int line, const char *name, Child child, const char *a, const char *b,
                          int step) {
    const int same = runs_same(a, b, step);
    check_at(line, child.status == 0 && same, name,
             "expected status 0 and the same files, found %d, %s %s", child.status, why,
             child.error);
}
#define check_same(name, child, a, b, step) check_same_at(__LINE__, name, child, a, b, step)

// Until the file is there, or the child has ended (as a zombie it keeps its number).
static void wait_for(const char *path, pid_t pid) {
    siginfo_t ended;
    memset(&ended, 0, sizeof(ended));
    for (int i = 0; i < 20000 && !exists(path) && ended.si_pid == 0; i++) {
        usleep(2000);
        waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT);
    }
}

// -------------------------------------------------------------------------------------------------
// Data

// A shard whose tokens count up.
static void shard_put(const char *path, uint32_t count, uint32_t vocabulary) {
    const uint32_t header[4] = {20240520, 1, count, vocabulary};
    char *shard = (char *)take(1024 + 2 * count);
    memcpy(shard, header, sizeof(header));
    for (uint32_t i = 0; i < count; i++) {
        const uint16_t token = (uint16_t)i;
        memcpy(shard + 1024 + 2 * i, &token, 2);
    }
    file_put(path, shard, 1024 + 2 * count);
}

#define ONE_STEP "-e d1 --channels 32 --heads 2 -t 16 -b 1 -m 1 -x 1 -n 0 -s 0 -v 0 "
static void damaged_shards(void) {
    static const struct {
        size_t at;
        uint32_t value;
    } fields[] = {{0, 1}, {0, 20240521},   {4, 0},  {4, 2},      {8, 1999}, {8, 2001},
                  {8, 0}, {8, 0xffffffff}, {12, 1}, {12, 65537}, {12, 1000}};
    shard_put("good.bin", 2000, 4096);
    size_t n;
    const unsigned char *good = file_get("good.bin", &n);
    const size_t lengths[] = {0, 3, 1023, 1024, 1025, n - 1, n + 1};
    unsigned char *bad = (unsigned char *)take(n + 2);
    int through = 0;
    for (int i = 0; i < COUNT(fields) + COUNT(lengths); i++) {
        memcpy(bad, good, n);
        if (i < COUNT(fields)) memcpy(bad + fields[i].at, &fields[i].value, 4);
        file_put("bad.bin", bad, i < COUNT(fields) ? n : lengths[i - COUNT(fields)]);
        through += !refused("bad.bin", ONE_STEP "-i bad.bin -o never");
    }
    check(!through,
          "data: a shard with a damaged header, a token beyond the vocabulary or a wrong length is "
          "refused by name",
          "%d of %d were not, e.g. %s", through, COUNT(fields) + COUNT(lengths), why);
}

// Token t of this vocabulary of 300 has a text of t % 5 + 1 bytes. 7 is the token between
// documents.
static void tokenizer_put(const char *path) {
    const uint32_t header[4] = {20240328, 2, 300, 7};
    char *file = (char *)take(1024 + 300 * 6);
    size_t n = 1024;
    memcpy(file, header, sizeof(header));
    for (int t = 0; t < 300; t++) {
        file[n] = (char)(t % 5 + 1);
        memset(file + n + 1, 'a', t % 5 + 1);
        n += t % 5 + 2;
    }
    file_put(path, file, n);
}
// A validation's targets are tokens 1 .. 16: 47 bytes, of which the separator's 3 do not count.
static void bits_a_byte(void) {
    static const struct {
        const char *options, *header;
        double bytes;
    } cases[] = {
        {"-i up.bin -j up.bin --tokenizer up.tok -o bits", "\n# bytes_per_token\t2.75\n", 2.75},
        {"-i " TEXT " -o bits-text", "\n# bytes_per_token\t1\n", 1},
        {"-i up.bin -j up.bin -o bits-unknown", NULL, 0}};
    shard_put("up.bin", 273, 300);
    tokenizer_put("up.tok");
    for (int i = 0; i < COUNT(cases); i++) {
        const Child child = run(ONE_STEP "-v 1 %s", cases[i].options);
        const char *line = strstr(child.output, "validation after step 1: loss ");
        const char *header = file_text(text("%s/log.tsv", strstr(cases[i].options, "bits")));
        double loss = NAN, bits = 0;
        const int found = line ? sscanf(line + 30, "%lf, %lf bits a byte", &loss, &bits) : 0;
        const int right = cases[i].header ? found == 2 && strstr(header, cases[i].header) &&
                                                fabs(bits - loss / log(2.0) / cases[i].bytes) < 1e-4
                                          : found == 1 && !strstr(header, "bytes_per_token");
        check(right, text("data: bits a byte: %s", cases[i].options), "loss %g, bits %g, %s", loss,
              bits, child.error);
    }
}

static void test_data(void) {
    char tales[] = "one cat.\ntwo big dogs.\nno.\n";
    uint64_t fnv = 14695981039346656037u;
    for (const char *p = tales; *p; p++) fnv = (fnv ^ (unsigned char)*p) * 1099511628211u;
    const char *sidecar =
        text("# stories\t3\n# fnv1a64\t%016llx\noffset\tbytes\tnats\n0\t9\t4.5\n9\t14\t7\n"
             "23\t4\t2\n",
             (unsigned long long)fnv);
    file_put("tales.floor.tsv", sidecar, strlen(sidecar));
    file_put("tales.txt", tales, strlen(tales));
    const Child own = run(ONE_STEP "-i tales.txt -j tales.txt -o told");
    tales[5]++;
    file_put("tales.txt", tales, strlen(tales));
    check(own.status == 0 &&
              refused("tales.floor.tsv", ONE_STEP "-i tales.txt -j tales.txt -o never"),
          "data: a sidecar of another text is refused by name",
          "with its own text status %d, %s; %s", own.status, own.error, why);
    damaged_shards();
    bits_a_byte();
    mkdir("shards", 0777);
    shard_put("shards/a.bin", 400, 65536);
    shard_put("shards/b.bin", 400, 4096);
    check(refused("vocabulary", ONE_STEP "-o never -i shards/*.bin") &&
              refused("shards", ONE_STEP "-o never -i shards") &&
              refused("smaller -t", "-e d1 -t 512 -x 1 -n 0 -o never -i shards/a.bin"),
          "data: mixed vocabularies, a directory, and too little text are refused", "%s", why);
    check_done("data: and the undamaged shard trains", ONE_STEP "-i good.bin -o fine");
}

// -------------------------------------------------------------------------------------------------
// Damaged checkpoints

// Offsets that a damage must not pass at: every field of the header; of a state a byte of every
// section's name and data, and every field of one section's header (all are read alike).
static int state_offsets(const unsigned char *file, size_t n, size_t *offsets) {
    enum { HEADER = 64, FIELDS_AT = 24, BYTES_AT = 48 };
    int count = 0;
    for (size_t i = 0; i < HEADER; i += 8) offsets[count++] = i;
    for (size_t at = HEADER; at + HEADER <= n;) {
        uint64_t bytes;
        memcpy(&bytes, file + at + BYTES_AT, 8);
        if (!strcmp((const char *)file + at, "adamw_m"))
            for (size_t i = FIELDS_AT; i < HEADER; i += 8) offsets[count++] = at + i;
        offsets[count++] = at;
        at += HEADER + bytes;
        if (!bytes) continue;
        offsets[count++] = at - bytes + bytes / 2;
        offsets[count++] = at - 1;
    }
    return count;
}
static int model_offsets(size_t n, size_t *offsets) {
    const size_t data[3] = {1024 + 5, n - 1, n / 2};
    for (int i = 0; i < 8; i++) offsets[i] = 4 * i;
    memcpy(offsets + 8, data, sizeof(data));
    return 8 + 3;
}

static void damaged_file(const char *path, int is_model, const char *name) {
    size_t n, offsets[64];
    unsigned char *good = file_get(path, &n), *bad = (unsigned char *)take(n + 8);
    const int count = is_model ? model_offsets(n, offsets) : state_offsets(good, n, offsets);
    const size_t lengths[] = {0, 1, 63, 64, 100, n / 2, n - 1, n + 1};
    const char *word = strchr(path, '/') + 1;
    int through = 0;
    for (int i = 0; i < count + COUNT(lengths); i++) {
        memset(bad, 0, n + 8);
        memcpy(bad, good, n);
        if (i < count) bad[offsets[i]] ^= 0x41;
        file_put(path, bad, i < count ? n : lengths[i - count]);
        through += !refused(word, "-y -o hurt");
    }
    unlink(path);
    through += !refused(word, "-y -o hurt");
    file_put(path, good, n);
    check(!through && count >= (is_model ? 11 : 28), name, "%d of %d were not, e.g. %s", through,
          count + COUNT(lengths) + 1, why);
}

static void test_damage(void) {
    const Child made = run(TINY "-x 4 -v 0 -n 2 -o hurt");
    if (!check(made.status == 0, "checkpoint: a small run writes its checkpoints",
               "expected status 0, found %d, %s", made.status, made.error))
        return;
    static const char model_path[] = "hurt/model_00000004.bin";
    damaged_file(
        "hurt/state_00000004.bin", 0,
        "checkpoint: a damaged state file is refused by name: every header field, a byte of every "
        "section, any length");
    damaged_file(model_path, 1, "checkpoint: a damaged model file is refused by name");

    // Whole files that are not this run's: an older model under the new name, a model with a NaN.
    size_t n;
    unsigned char *model = file_get(model_path, &n),
                  *older = file_get("hurt/model_00000002.bin", &n);
    file_put(model_path, older, n);
    check_refused("checkpoint: a whole model file that the state was not written with is refused",
                  "model_00000004.bin", "-y -o hurt");
    file_put(model_path, model, n);
    const uint32_t nan = 0x7fc00000;
    memcpy(older + 1024 + 4 * 77, &nan, 4);
    file_put("nan.bin", older, n);
    check_refused("checkpoint: a model with a NaN is refused, and the weight named",
                  "nan.bin: weight 77", "--eval -t 16 -b 2 -i " TEXT " -e nan.bin");

    // A directory in use, a directory without a run, and one that holds a run already.
    const int lock = open("hurt", O_RDONLY);
    const int taken = flock(lock, LOCK_EX | LOCK_NB);
    check(taken == 0 && refused("another program", "-y -o hurt"),
          "run: a directory in use is locked", "flock %d, %s", taken, why);
    close(lock);
    check(refused("nowhere", "-y -o nowhere") && refused("hurt", TINY "-x 1 -o hurt"),
          "run: nothing to resume, or a directory that holds a run already, is refused", "%s", why);
    check_done("checkpoint: and the undamaged run resumes", "-y -o hurt");
}

// -------------------------------------------------------------------------------------------------
// Options

typedef struct {
    const char *arguments, *word; // what the message must name
} BadOption;
static const BadOption bad_options[] = {
    {"--no-such", "--no-such"},
    {"-Z", "-Z"},
    {"stray", "stray"},
    {"--batch 0", "--batch"},
    {"-b 1.5", "--batch"},
    {"-b x", "--batch"},
    {"-b 70000", "--batch"},
    {"-l nan", "--lr"},
    {"--lr -1", "--lr"},
    {"--lr inf", "--lr"},
    {"--lr 1e-3x", "--lr"},
    {"--steps", "--steps"},
    {"-x", "-x"},
    {"-x 99999999999999999999", "--steps"},
    {"--beta1 1", "--beta1"},
    {"--schedule sine", "cosine"},
    {"--heads 5", "--heads"},
    {"-e d0", "d0"},
    {"-e d900", "--model"},
    {"-e /no/model.bin", "/no/model.bin"},
    {"-i /no/text", "/no/text"},
    {"-j /no/text", "/no/text"},
    {"-d 33", "--total-batch"},
    {"-t 100000", "smaller -t"},
    {"--prompt hello", "--prompt"},
    {"--tokenizer /no/t.bin", "/no/t.bin"},
    {"--baseline /no/run", "/no/run"},
    {"-y 2", "2"},
    {"--eval=1", "--eval"},
    {"--loss-scale 3", "power of two"},
    {"--loss-scale on", "--loss-scale"},
    {"--loss-scale=", "--loss-scale"},
    {"--loss-scale 0x1p30", "--loss-scale"},
    {"--steps=", "--steps"},
};
static const BadOption bad_recipes[] = {
    {"--recipe delayed=0", "delayed"},
    {"--recipe delayed=1025", "delayed"},
    {"--recipe delayed=mean", "delayed"},
    {"--recipe block128", "block128"},
    {"--recipe block=0x32", "block"},
    {"--recipe block=1x", "block"},
    {"--recipe scale=0", "scale"},
    {"--recipe scale=x", "scale"},
    {"--recipe x:fp6", "fp6"},
    {"--recipe x", "'x'"},
    {"--recipe e3m4", "e3m4"},
    {"--recipe x:best", "best"},
    {"--recipe q:e4m3", "q"},
    {"--recipe margin=-1", "margin"},
    {"--recipe margin=65", "margin"},
    {"--recipe scale=1+margin=1", "margin"},
    {"--recipe scale=2+pow2", "pow2"},
    {"--recipe scale=2+floor", "floor"},
    {"--recipe mx+exact", "exact"},
    {"--recipe mx+", "''"},
    {"--recipe margin", "margin"},
    {"--recipe scale", "scale"},
    {"--recipe block", "block"},
    {"--recipe +", "--recipe"},
    {"--recipe block=1x32all", "block"},
    {"--recipe deepseek,delayed=", "delayed"},
    {"--recipe=", "--recipe"},
    {"--recipe mx --fp8-head", "--fp8-head"},
    {"--recipe w:mx --fp8-head", "--fp8-head"},
    {"--bf16 head", "'head'"},
    {"--bf16 fc,", "''"},
    {"--bf16 fc.4", "'4'"},
};

static void check_bad_options(const BadOption *table, int count, const char *always,
                              const char *name) {
    int through = 0;
    for (int i = 0; i < count; i++)
        through +=
            !refused(always ? always : table[i].word,
                     "-i " TEXT " -t 16 -b 2 -e d1 -n 0 -x 1 -o never %s", table[i].arguments);
    check(!through, name, "%d of %d were not, e.g. %s", through, count, why);
}

static void test_options(void) {
    check_bad_options(bad_options, COUNT(bad_options), NULL,
                      "options: bad ones are refused by name, with status 2");
    check_bad_options(bad_recipes, COUNT(bad_recipes), is_fp8 ? NULL : "only the FP8 build",
                      "options: bad FP8 options, or any in another build, are refused by name");
    check(!exists("never/log.tsv"), "options: a refused call begins no run", "there is a log");
    const Child help = run("--help"), version = run("--version");
    check(help.status == 0 && version.status == 0 && strstr(help.output, "--recompute") &&
              *version.output,
          "options: --help and --version end with status 0, and print",
          "status %d and %d, %zu and %zu bytes", help.status, version.status, strlen(help.output),
          strlen(version.output));
    size_t widest = 0;
    const char *pages[] = {strdup(help.output), strdup(run("--help recipe").output)};
    for (int i = 0; i < 2; i++)
        for (const char *at = pages[i]; *at; at += *at == '\n') {
            const size_t line = strcspn(at, "\n");
            if (line > widest) widest = line;
            at += line;
        }
    check(widest > 40 && widest <= 80, "options: both pages of --help fit 80 columns",
          "%zu columns", widest);
    check_refused("run: an unknown --sum-order is refused", "pairs|tiles; found 'rows'",
                  TINY "--sum-order rows");
}

// -------------------------------------------------------------------------------------------------
// Whole runs

// Resumed after step 2 and after step 6, as after a kill: later checkpoints are not there, the log
// may be further.
static void resume_after_each(void) {
    for (int stop = 2; stop <= 6; stop += 4) {
        copy("straight", "resumed");
        unfinish("resumed", stop + 2, 8, 2);
        FILE *log = fopen("resumed/log.tsv", "a"); // a row that the kill cut short
        if (!log || fputs("9\t12", log) < 0 || fclose(log) != 0) abort();
        check_same(
            text("run: stopped after step %d and resumed: the same checkpoint, log and scales",
                 stop),
            run("-y -o resumed"), "straight", "resumed", 8);
    }
}

// A kill at an instant nobody chose, and an interrupt.
static void stopped_at_any_instant(void) {
    static const struct {
        const char *dir, *name;
        int signal, status;
    } ways[] = {{"killed", "run: killed at any instant, resumed: the same end", SIGKILL,
                 SIGNALLED + SIGKILL},
                {"interrupted", "run: interrupted (status 130), resumed: the same end", SIGINT,
                 EXIT_INTERRUPTED}};
    run(TINY "-v 5 -n 3 -x 60 -o long");
    for (int i = 0; i < COUNT(ways); i++) {
        const pid_t pid = start(1, TINY "-v 5 -n 3 -x 60 -o %s", ways[i].dir);
        wait_for(text("%s/DONE_00000003", ways[i].dir), pid);
        usleep(20000);
        kill(pid, ways[i].signal);
        const Child first = child_end(pid), second = run("-y -o %s", ways[i].dir);
        const int same = runs_same("long", ways[i].dir, 60);
        check((first.status == ways[i].status || first.status == 0) && second.status == 0 && same,
              ways[i].name, "expected status %d then 0 and the same files, found %d then %d, %s %s",
              ways[i].status, first.status, second.status, why, second.error);
    }
}

// Stopped for a moment four times, as if another process had its cores.
static void slow_steps_are_noted(void) {
    const char *note = "OMP_WAIT_POLICY=passive helps";
    unsetenv("OMP_WAIT_POLICY");
    const pid_t pid = start(2, TINY "-v 0 -n 0 -x 2000 -o slow");
    setenv("OMP_WAIT_POLICY", "passive", 1);
    wait_for("slow/log.tsv", pid);
    for (int i = 0; i < 4; i++) {
        usleep(50000);
        kill(pid, SIGSTOP);
        usleep(100000);
        kill(pid, SIGCONT);
    }
    const char *first = strstr(child_end(pid).output, note);
    check(first && !strstr(first + 1, note),
          "run: that steps vary by more than 2 times is said once", "it was %s",
          first ? "said again" : "not said");
}

static void test_run(void) {
    const char *options = text(TINY "-d 64 -v 2 -n 2 --keep 0 -x 8 --grad-clip 0.5 %s",
                               is_fp8 ? "--scales-every 1 --fp8-head --recipe delayed=3" : "");
    const Child straight = run("%s -o straight", options);
    if (!check(straight.status == 0, "run: eight steps with validation, checkpoints and a log",
               "expected status 0, found %d, %s", straight.status, straight.error))
        return;
    for (int threads = 1; threads <= 3; threads += 2) {
        const char *name = text("run: %d thread%s the same checkpoint and log", threads,
                                threads == 1 ? " gives" : "s give");
        check_same(name, child_end(start(threads, "%s -o threads%d", options, threads)), "straight",
                   text("threads%d", threads), 8);
    }
    check(!strstr(straight.output, "OMP_WAIT_POLICY"),
          "run: with OMP_WAIT_POLICY=passive nothing is said of it", "it was");
    resume_after_each();
    run("%s --data-seed 2 -o other", options);
    check(!runs_same("straight", "other", 8),
          "planted fault: a run on other data is not taken for the same", "it was");
    check_refused("run: a resume may not change the learning rate", "--lr", "-y -o other --lr 5");
    check_done("run: it may change --val-every, and repeat what it was",
               "-y -o other --val-every 1 -t 16");
    stopped_at_any_instant();
    if (!is_cuda && strstr(file_text("straight/log.tsv"), "# threads\t2\n")) slow_steps_are_noted();
    const Child diverges = run(TINY "-u 0 -l 1e30 -v 0 -x 20 -n 0 -o diverges");
    check(diverges.status == EXIT_NONFINITE && strstr(diverges.error, "not finite"),
          "run: a loss that is not finite stops it with status 3",
          "expected status 3 and 'not finite', found %d, %s", diverges.status, diverges.error);
    const Child prompt = run("--prompt the --generate 40 -e straight/model_00000008.bin");
    const Child eval = run("--eval -b 2 -m 2 -t 16 -i " TEXT " -e straight/model_00000008.bin");
    check(prompt.status == 0 && eval.status == 0 && strlen(prompt.output) >= 40 &&
              strstr(eval.output, "loss"),
          "run: a model file can be prompted and evaluated",
          "expected status 0, 40 characters and a loss, found %d and %d, %s%s %s%s", prompt.status,
          eval.status, prompt.error, eval.error, prompt.output, eval.output);
    check_done("run: a context of one token trains and samples",
               "-e d1 --channels 32 --heads 2 -t 1 -b 2 -m 2 -s 1 -g 5 -v 1 -n 0 -x 2 -i " TEXT
               " -o short");
}

// -------------------------------------------------------------------------------------------------
// Recipes

static const struct {
    const char *dir, *options;
} recipe_runs[] = {
    {"delayed", "--recipe delayed"},
    {"current", "--recipe current"},
    {"ones", "--recipe scale=1"},
    {"constant", "--recipe scale=32+w:e5m2+dy:e4m3"},
    {"rowwise", "--recipe rowwise"},
    {"blocks", "--recipe deepseek --recompute"},
    {"named", "--recipe hybrid-qkv+dy:exact"},
    {"mx", "--recipe mx+floor"},
    {"head", "--recipe delayed=10+dy:e4m3+dy:block=1x32 --fp8-head"},
    {"mixed", "--recipe current,x:block=1x32,dy:block=1x128,dy:e4m3 --recompute --bf16 fc.wgrad"},
};

// The first and last loss of a log, and the last step.
static void log_losses(const char *dir, double *first, double *last, double *step) {
    double tokens;
    *first = *last = *step = 0;
    for (const char *line = file_text(text("%s/log.tsv", dir)); *line; line += *line == '\n') {
        double loss;
        if (isdigit((unsigned char)*line) &&
            sscanf(line, "%lf %lf %lf", step, &tokens, &loss) == 3) {
            if (*first <= 0) *first = loss;
            *last = loss;
        }
        line += strcspn(line, "\n");
    }
}

// Rows of scales.tsv are of every second step; those of steps 4, 8 and the last, 10, have an SQNR
// and a kurtosis.
static void sqnr_rows(void) {
    int wrong = 0, rows = 0, with = 0;
    run(TINY "-x 10 -v 0 -n 0 --scales-every 2 --sqnr-every 4 -o sqnr");
    const char *line = strchr(file_text("sqnr/scales.tsv"), '\n');
    while (line && line[1]) {
        const char *end = strchr(line + 1, '\n');
        if (!end) break;
        const int step = atoi(line + 1), has = strncmp(end - 8, "\tnan\tnan", 8) != 0;
        const char *last = end;
        while (last[-1] != '\t') last--;
        const double kurtosis = atof(last);
        wrong += step % 2 || has != (step == 4 || step == 8 || step == 10);
        // The mean of x^4 is at least the square of the mean of x^2.
        wrong += has && !(kurtosis >= 1 && kurtosis < 1e6);
        rows++;
        with += has;
        line = end;
    }
    check(
        !wrong && rows == 5 * with / 3 && with > 0,
        "run: --sqnr-every 4 measures it and kurtosis in steps 4, 8 and the last, 10; rows are of "
        "2, 4, .. 10",
        "%d rows, %d with an SQNR, %d wrong", rows, with, wrong);
}

// Whole runs under each rule of scaling: they learn as the default does, and a resume keeps their
// bits.
static void test_run_recipes(void) {
    double first, last, step, last_of_delayed = 0;
    int without_sqnr = 0;
    if (!is_fp8) return;
    for (int i = 0; i < COUNT(recipe_runs); i++) {
        const char *dir = recipe_runs[i].dir, *again = text("%s-again", dir);
        const Child made =
            run(TINY "-x 60 -v 15 -n 30 --keep 0 --scales-every 1 --sqnr-every 1 %s -o %s",
                recipe_runs[i].options, dir);
        log_losses(dir, &first, &last, &step);
        if (i == 0) last_of_delayed = last;
        check(made.status == 0 && step == 60 && last < first - 1 &&
                  fabs(last - last_of_delayed) < 0.02,
              text("run: %s learns, within 0.02 nats of delayed scaling", recipe_runs[i].options),
              "status %d, step %g of 60, loss %g then %g, delayed %g, %s", made.status, step, first,
              last, last_of_delayed, made.error);
        copy(dir, again);
        unfinish(again, 60, 60, 1);
        check_same(text("run: %s resumed from step 30: the same bits", recipe_runs[i].options),
                   run("-y -o %s", again), dir, again, 60);
        const char *scales = file_text(text("%s/scales.tsv", dir));
        without_sqnr += !*scales || strstr(scales, "\tnan");
    }
    check_done("run: a resume may write the same recipe in other words",
               "-y -o mx --recipe current,e4m3,block=1x32,floor");
    check_refused("run: and not change it", "cannot change", "-y -o mx --recipe mx");
    check(strstr(file_text("named/log.tsv"), "\n# bf16\t0.qkv.fprop\n") != NULL,
          "run: a name that leaves a product in bf16 sets --bf16", "the log does not say so");
    check_refused("run: --bf16 on the command line counts instead", "change it to 'fprop'",
                  "-y -o named --recipe hybrid-qkv --bf16 fprop");
    check(!without_sqnr,
          "run: every row of scales.tsv has an SQNR and a kurtosis, of weights and blocks too",
          "%d runs have one without", without_sqnr);
    sqnr_rows();
    const int ones = strstr(file_text("ones/log.tsv"), "\t65536\t") != NULL;
    const int delayed = strstr(file_text("delayed/log.tsv"), "\t65536\t") != NULL;
    check(ones && !delayed, "run: --recipe scale=1 scales the loss as FP16 does, delayed does not",
          "a loss scale of 65536: expected 1 and 0, found %d and %d", ones, delayed);
}

// A step in two shards, in one process: nearly the losses of one shard; a resume keeps the bits.
static void test_run_shards(void) {
    static const char *const types[] = {"fp32", "bf16", "fp8"};
    double first, last[4], step;
    run(TINY "-d 64 -x 20 -v 10 -n 10 --keep 0 -o shard");
    log_losses("shard", &first, &last[3], &step);
    for (int i = 0; i < COUNT(types); i++) {
        const char *dir = text("shards-%s", types[i]), *again = text("%s-again", dir);
        run(TINY "-d 64 -x 20 -v 10 -n 10 --keep 0 --shards 2 --grad-comm %s -o %s", types[i], dir);
        log_losses(dir, &first, &last[i], &step);
        check(step == 20 && fabs(last[i] - last[3]) < 0.02,
              text("run: two shards, gradients in %s: within 0.02 nats of one shard", types[i]),
              "step %g of 20, loss %g and %g", step, last[i], last[3]);
        copy(dir, again);
        unfinish(again, 20, 20, 1);
        check_same(text("run: two shards, gradients in %s, resumed: the same bits", types[i]),
                   child_end(start(3, "-y -o %s", again)), dir, again, 20);
    }
    check(last[0] != last[1] && last[1] != last[2],
          "run: gradients in fp32, bf16 and fp8 end differently", "losses %.9g, %.9g, %.9g",
          last[0], last[1], last[2]);
    check_refused("run: a resume may not change --shards", "cannot change",
                  "-y -o shards-fp32 --shards 1");
    check_refused("run: shards that do not divide the micro-batches",
                  "expected a multiple of batch x seq-len x shards", TINY "-d 64 --shards 4 -o no");
}

// Tables of build/lab/explain, any two of which read differently, and lines that they have.
static const char *const explain_changes[] = {"--recipe deepseek",
                                              "--recipe delayed",
                                              "--recipe te",
                                              "--recipe current",
                                              "--recipe mx",
                                              "--recipe none",
                                              "--recipe delayed=1",
                                              "--recipe margin=1",
                                              "--recipe pow2",
                                              "--recipe scale=8",
                                              "--recipe mx+floor",
                                              "--recipe rowwise",
                                              "--recipe w:mx",
                                              "--recipe dy:current",
                                              "--recipe x:e5m2",
                                              "--bf16 first",
                                              "--bf16 wgrad",
                                              "--fp8-head",
                                              "--sum-order tiles",
                                              "--recipe e4m3",
                                              "--recompute",
                                              "--recipe mx+dy:e5m2",
                                              "--recipe nvfp4",
                                              "--recipe mxfp4",
                                              "--recipe nvfp4+dy:stochastic",
                                              "--recipe nvfp4+hadamard",
                                              "--recipe split",
                                              "--recipe x:split --split qkv.fprop",
                                              "--recipe x:split --split 0.qkv.fprop",
                                              "--recipe hybrid-qkv"};
enum { DEEPSEEK, NVFP4 = 22, STOCHASTIC = 24, TURNED, SPLIT, SPLIT_QKV };
static const struct {
    int change;
    const char *text;
} explain_parts[] = {
    {DEEPSEEK, "own amax of 1 x 128"},
    {DEEPSEEK, "own amax of 128 x 128"},
    {DEEPSEEK, "scores"},
    {DEEPSEEK, "softmax"},
    {DEEPSEEK, "fp32"},
    // 32 x 128 elements of half a byte
    {NVFP4, "x       E2M1    own amax of 1 x 16, E4M3        2048  linear_forward()\n"},
    {STOCHASTIC, "linear_backward(), stochastic\n"},
    {TURNED, "linear_backward(), Hadamard transform\n"},
    {SPLIT, "dy      E5M2 x2"},
    {SPLIT_QKV, "x       E4M3 x2 delayed=16                      8192"},
    {SPLIT_QKV, "x       E4M3    delayed=16                      4096"}};
static void test_explain(void) {
    const char *tables[COUNT(explain_changes)], *first = "";
    int alike = 0, missing = 0;
    if (!is_fp8) return;
    if (!explain) {
        printf("skip explain: no --explain PROGRAM\n");
        return;
    }
    char *const program[] = {(char *)(uintptr_t)explain, NULL};
    for (int i = 0; i < COUNT(explain_changes); i++) {
        char *arguments = text("-e d2 -t 16 -b 2 -i " TEXT " %s", explain_changes[i]);
        const Child child = child_end(child_exec(program, 2, arguments));
        tables[i] = child.output;
        for (int j = 0; j <= i; j++) {
            if (child.status == 0 && (j == i || strcmp(tables[j], tables[i]))) continue;
            alike++;
            first = text("%s and %s, status %d %s", explain_changes[j], explain_changes[i],
                         child.status, child.error);
        }
    }
    check(!alike, "explain: any two of 30 recipes read differently",
          "%d pairs do not, or failed, e.g. %s", alike, first);
    first = "";
    for (int i = 0; i < COUNT(explain_parts); i++) {
        if (strstr(tables[explain_parts[i].change], explain_parts[i].text)) continue;
        missing++;
        first = explain_parts[i].text;
    }
    check(!missing, "explain: blocks, numbers of an element, bytes, products, accumulators",
          "%d of %d are not there, e.g. %s", missing, COUNT(explain_parts), first);
}

// -------------------------------------------------------------------------------------------------
// Memory and disk

// "peak memory 12.3 MiB (planned 12.1)", or the device's. Returns their ratio; planned: MiB.
static double memory_of(Child child, double *planned) {
    double peak = NAN;
    *planned = NAN;
    for (const char *at = strstr(child.output, "memory "); at; at = strstr(at + 1, "memory "))
        if (sscanf(at, "memory %lf MiB (planned %lf)", &peak, planned) == 2) break;
    return peak / *planned;
}

// The plan for a device has its libraries' share, which a harness on a CPU does not take.
static int as_planned(double ratio) { return ratio < 1.05 && ratio > (is_cuda ? 0.3 : 0.95); }

// Options that trade speed and memory: the bits stay; the plan is what is used.
static void test_run_memory(void) {
    static const char options[] =
        "-l 1e-3 -e d4 -b 4 -t 128 -m 1 -x 2 -v 0 -s 0 -n 2 -u 0 -i " TEXT;
    double planned[3];
    const Child kept = run("%s --recompute 0 -o kept", options);
    const Child again = run("%s --recompute 1 -o again", options);
    const Child resumed = run("-y -o kept");
    const double ratio[3] = {memory_of(kept, &planned[0]), memory_of(again, &planned[1]),
                             memory_of(resumed, &planned[2])};
    check(kept.status == 0 && again.status == 0 && resumed.status == 0 &&
              files_same("kept/model_00000002.bin", "again/model_00000002.bin"),
          "run: --recompute changes no bit", "status %d %d %d, the models' files %s", kept.status,
          again.status, resumed.status,
          files_same("kept/model_00000002.bin", "again/model_00000002.bin") ? "are the same"
                                                                            : "differ");
    check(as_planned(ratio[0]) && as_planned(ratio[1]),
          "run: peak memory is within 5% of the plan, with and without --recompute",
          "%.3f of %g MiB, %.3f of %g MiB", ratio[0], planned[0], ratio[1], planned[1]);
    check(planned[1] < planned[0] - 1, "run: --recompute keeps less", "%g and %g MiB", planned[0],
          planned[1]);
    check(as_planned(ratio[2]), "run: peak memory of a resume is within 5% of the plan",
          "%.3f of %g MiB", ratio[2], planned[2]);
    run(TINY "-x 4 -v 0 -n 2 --sum-order tiles --keep 0 -o tiles");
    copy("tiles", "tiles-again");
    unfinish("tiles-again", 4, 4, 1);
    check_same("run: --sum-order tiles resumed at step 2: the same bits", run("-y -o tiles-again"),
               "tiles", "tiles-again", 4);
    check_refused("run: a resume cannot change --sum-order", "'tiles'",
                  "-y --sum-order pairs -o tiles-again");
}

// A run that goes on longer. The schedule ends where it did, or is moved.
static void test_run_longer(void) {
    const char *options = TINY "-v 4 -n 4 --keep 0";
    run("%s -x 16 --schedule-steps 8 -o long16", options);
    run("%s -x 16 -o moved16", options);
    run("%s -x 8 -o held", options);
    copy("held", "moved");
    check_refused("run: a shorter --steps is refused, and names -e", "(-e)", "-y -o held -x 6");
    check_refused("run: --schedule-steps alone is refused", "--schedule-steps",
                  "-y -o held --schedule-steps 16");
    check_done("run: -y -x 16 goes on after 8 steps", "-y -o held -x 16");
    check(files_same("held/model_00000016.bin", "long16/model_00000016.bin"),
          "run: its learning rate stays at the schedule's end, as with --schedule-steps 8",
          "the models differ");
    const char *log = file_text("held/log.tsv");
    check(strstr(log, "\n# steps\t16\n# schedule-steps\t8\n9\t") != NULL,
          "run: its log says so before row 9", "it does not");
    check_done("run: such a run resumes", "-y -o held");
    copy("held", "cut");
    run("-y -o cut -x 24");
    unfinish("cut", 16, 24, 4);
    run("-y -o cut -x 24");
    const char *row = strstr(file_text("cut/log.tsv"), "\n12\t");
    check(row && strstr(row, "\n# steps\t24\n"), "run: and so after a resume that cut that line",
          "it does not");
    check_done("run: -y -x 16 --schedule-steps 16", "-y -o moved -x 16 --schedule-steps 16");
    unfinish("moved", 12, 16, 4);
    check_done("run: such a run goes on after a kill", "-y -o moved");
    double first, last, step, as_moved, as_held;
    log_losses("moved", &first, &as_moved, &step);
    log_losses("held", &first, &as_held, &step);
    log_losses("long16", &first, &last, &step);
    check(step == 16 && as_held == last && as_moved != last,
          "run: a moved schedule makes another run", "step %g, losses %g %g %g", step, as_held,
          as_moved, last);
}

// Without --out: names of directories; baselines. The log of another precision is this one's with
// another word.
static void test_run_defaults(void) {
    char own[8];
    sscanf(run("--version").output, "train_gpt_%7[a-z0-9]", own);
    const char *other = strcmp(own, "fp16") ? "fp16" : "bf16", *dir = text("log/%s", own);
    const char *options = TINY "-x 4 -v 2 -n 4";
    check_done("run: without --out, to log/PRECISION", "%s", options);
    check(exists(text("%s/log.tsv", dir)), "run: its log is there", "%s/log.tsv is not", dir);
    char *log = (char *)(uintptr_t)file_text(text("%s/log.tsv", dir));
    const char *rest = strstr(log, text("# precision\t%s\n", own));
    if (!check(rest != NULL, "run: its log names the precision", "it does not")) return;
    log = text("%.*s# precision\t%s%s", (int)(rest - log), log, other, rest + 12 + strlen(own));
    mkdir("log/elsewhere", 0777);
    file_put("log/elsewhere/log.tsv", log, strlen(log));
    Child child = run("%s", options);
    check(strstr(child.output, text(" | gap to %s ", other)) &&
              strstr(child.output, "0.000000\n") && exists(text("%s-2/log.tsv", dir)),
          "run: the gap to the newest finished run of another precision is printed", "%s %s",
          child.output, child.error);
    child = run("%s -l 2e-3", options);
    check(strstr(child.output, "note: no gap to log/elsewhere: see its lr") != NULL,
          "run: a baseline that is not taken says why", "%s", child.output);
    log[strlen(log) - 8] = 0;
    *strrchr(log, '\n') = 0;
    file_put("log/elsewhere/log.tsv", log, strlen(log));
    child = run("%s", options);
    check(strstr(child.output, "see its last validation") && !strstr(child.output, "gap to fp16 +"),
          "run: nor is one that is not finished", "%s", child.output);
    if (is_fp8) {
        run("%s --recipe mx", options);
        check(exists("log/fp8-mx/log.tsv"), "run: of another recipe, to log/fp8-RECIPE",
              "it is not");
    }
    child = run("-y");
    check(strstr(child.output, text("%s-", dir)) != NULL, "run: a bare -y takes the newest run",
          "%s", child.output);
}

// What a pipe shows; units of gradients; a model without its state.
static void test_run_screen(void) {
    static const int every[] = {0, 1, 4}, lines[] = {3, 8, 4}; // and steps 1, 4, 8
    for (int i = 0; i < 3; i++) {
        const Child child = run(TINY "-x 8 -v 4 -n 8 --print-every %d -o every%d", every[i], i);
        int found = 0;
        for (const char *at = child.output; (at = strstr(at, " left | ")) != NULL; at++) found++;
        check(found == lines[i] - (every[i] == 4), text("run: --print-every %d", every[i]),
              "%d lines of %d", found, lines[i]);
    }
    const Child small = run("%s", TINY "-x 1 -n 0 -o small"),
                all = run("%s", TINY "-x 1 -n 0 --verbose -o all");
    check(!strstr(small.output, "beta1") && strstr(all.output, "beta1"),
          "run: the header has all options with --verbose only", "%s %s", small.output, all.output);
    if (!is_fp8) return;
    double amax[2];
    for (int i = 0; i < 2; i++) {
        run(TINY "-x 1 -v 0 -n 0 --scales-every 1 --recipe %s -o unit%d", i ? "scale=1" : "delayed",
            i);
        const char *row = strstr(file_text(text("unit%d/scales.tsv", i)), "fcproj.dy\t");
        amax[i] = row ? atof(row + 10) : 0;
    }
    check(amax[0] > 0 && amax[1] > amax[0] / 1.1 && amax[1] < amax[0] * 1.1,
          "run: amax of a gradient is without the loss scale", "%g and %g", amax[0], amax[1]);
    run(TINY "-x 4 -v 0 -n 0 --recipe scale=1 --loss-scale off -o unscaled");
    run(TINY "-x 4 -v 0 -n 0 --recipe scale=1 --loss-scale 8 -o eight");
    check(strstr(file_text("unscaled/log.tsv"), "\t1\t") &&
              strstr(file_text("eight/log.tsv"), "\t8\t"),
          "run: --loss-scale off and 8 are in the log's rows", "they are not");
    const char *model = "every1/model_00000008.bin", *at[2];
    for (int i = 0; i < 2; i++) {
        at[i] = strstr(
            run("--eval -e %s -i " TEXT " -t 16 --val-rows 8 -b %d", model, 1 + 3 * i).output,
            "loss ");
        at[i] = at[i] ? text("%.13s", at[i]) : "";
    }
    check(*at[0] && !strcmp(at[0], at[1]), "run: a bare model's loss does not depend on --batch",
          "%s and %s", at[0], at[1]);
}

// A disk that is full at a checkpoint: a limit on the size of files, which every child inherits,
// stands for it.
static void test_run_disk_full(void) {
    struct rlimit unlimited, small;
    run(TINY "-x 8 -v 2 -n 2 --keep 0 -o whole");
    copy("whole", "full");
    unfinish("full", 4, 8, 2);
    getrlimit(RLIMIT_FSIZE, &unlimited);
    small = unlimited;
    small.rlim_cur = 60000; // less than a checkpoint, more than the log
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    const Child full = run("-y -o full");
    setrlimit(RLIMIT_FSIZE, &unlimited);
    signal(SIGXFSZ, SIG_DFL);
    const int older = exists("full/DONE_00000002"), newer = exists("full/DONE_00000004");
    check(full.status == EXIT_BAD_INPUT && strstr(full.error, "model_00000004.bin: cannot write") &&
              older && !newer,
          "run: a full disk ends it with status 2 and leaves the last checkpoint",
          "expected checkpoint 2 (%d) and not 4 (%d), status 2, found %d, %s", older, newer,
          full.status, full.error);
    check_same("run: with room again, a resume ends as if nothing had been", run("-y -o full"),
               "whole", "full", 8);
}

// -------------------------------------------------------------------------------------------------

static const struct {
    const char *name;
    void (*test)(void);
} groups[] = {
    {"data", test_data},
    {"damage", test_damage},
    {"options", test_options},
    {"run", test_run},
    {"run_recipes", test_run_recipes},
    {"run_shards", test_run_shards},
    {"run_memory", test_run_memory},
    {"run_longer", test_run_longer},
    {"run_defaults", test_run_defaults},
    {"run_screen", test_run_screen},
    {"run_disk_full", test_run_disk_full},
    {"explain", test_explain},
};

static int usage(const char *program) {
    printf("usage: %s [--only NAME] [--explain PROGRAM] TRAINER [WORD ..]; groups:", program);
    for (int i = 0; i < COUNT(groups); i++) printf(" %s", groups[i].name);
    printf("\n");
    return EXIT_BAD_INPUT;
}
static char *absolute(const char *path) {
    char *found = realpath(path, NULL);
    if (!found) printf("%s: %s\n", path, strerror(errno));
    return found;
}

// The precision is the word after train_gpt_ in `train_gpt_fp8 COMMIT, MACHINE`.
static int version_read(void) {
    char precision[8] = "";
    const Child version = run("--version");
    const int known = sscanf(version.output, "train_gpt_%7[a-z0-9]", precision) == 1;
    is_fp8 = !strcmp(precision, "fp8");
    is_cuda = strstr(version.output, ", CUDA") != NULL;
    if (known && version.status == 0) return 1;
    printf("%s --version: expected train_gpt_.., found status %d, '%s' %s\n", command[0],
           version.status, version.output, version.error);
    return 0;
}

int main(int argc, char **argv) {
    const char *only = "", *temporary = getenv("TMPDIR");
    char dir[128];
    int i = 1;
    for (; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2) {
        if (!strcmp(argv[i], "--only")) only = argv[i + 1];
        else if (!strcmp(argv[i], "--explain")) explain = absolute(argv[i + 1]);
        else return usage(argv[0]);
    }
    if (i >= argc || argv[i][0] == '-') return usage(argv[0]);
    for (; i < argc && command_words < COUNT(command) - 1; i++) command[command_words++] = argv[i];
    command[0] = absolute(command[0]);
    snprintf(dir, sizeof(dir), "%.80s/test_program_XXXXXX",
             temporary && *temporary ? temporary : "/tmp");
    if (!command[0] || !mkdtemp(dir) || chdir(dir) != 0) {
        printf("cannot run %s in a directory %s\n", argv[1], dir);
        return EXIT_BAD_INPUT;
    }
    setenv("OMP_WAIT_POLICY", "passive", 0); // more threads than cores must not spin
    tiny_text();
    const int no_trainer = !version_read();
    failed += no_trainer;
    for (i = 0; i < COUNT(groups) && !no_trainer; i++) {
        if (!strstr(groups[i].name, only)) continue;
        groups[i].test();
        take_end();
    }
    if (system(text("rm -rf %s", dir)) != 0) printf("note: %s stays\n", dir);
    take_end();
    free(command[0]);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
