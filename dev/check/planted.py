#!/usr/bin/env python3
"""Plants the faults that dev/check/test_faults.py is about back into the sources, one at a time: its checks must find each.

    python3 dev/check/planted.py            # all of them, some ten seconds each
    python3 dev/check/planted.py lock       # those whose names hold a word

Prints a line a fault; exit status 0 if all were found. A fault whose text is no longer in its file is reported as stale.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", ".."))
C, COMPARE = "train_gpt_fp8.c", "dev/compare.c"
# name, file, text, what it becomes, the checks that must find it (a function of test_faults.py)
FAULTS = [
    ("unreadable is absent", C, "f.fd < 0 && (errno == ENOENT || errno == ENOTDIR)) return f;", "f.fd < 0) return f;", "unreadable_is_not_absent"),
    ("a log is cut before the other is looked at", C, "\"log.tsv\", r->progress.step, 1);\n",
     "\"log.tsv\", r->progress.step, 1);\n    log_begin(r->log, &r->dir, header, LOG_COLUMNS);\n", "unreadable_is_not_absent"),
    ("a pipe is read", C, "S_ISREG(st.st_mode) && ", "", "limits"),
    ("changed data go unseen", C, "if (saves || last) dataset_check(&r->train, o->train);", "", "data_that_change"),
    ("touched data are opened at every checkpoint", C, "        f->time = st.st_mtim;\n    }\n    EXPECT(same && (!touched || dataset_hash(d)",
     "    }\n    EXPECT(same && (!touched || dataset_open(name).hash", "data_that_change"),
    ("links are followed", C, "unlinkat(d->fd, temporary, 0);\n    const int fd = openat(d->fd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);",
     "const int fd = openat(d->fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);", "planted_links"),
    ("a log that is a link is followed", C, "O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC", "O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC", "planted_links"),
    ("a hole in the log", C, "EXPECT(at == next && ", "EXPECT(", "damaged_logs"),
    ("a torn row in the log", C, " && tabs == 9,", ",", "damaged_logs"),
    ("a log that ends too early", C, "(!every || last == step) && ", "", "damaged_logs"),
    ("a log that is not on disk", C, "log_flush(r->log, &r->dir, 1);", "log_flush(r->log, &r->dir, 0);", "damaged_logs"),
    ("another validation set", C, "if (strcmp(text_value(log, \"floor\", theirs), mine)) return", "if (0) return", "validation_set_is_identity"),
    ("no lock", C, "if (!flock(fd, LOCK_EX | LOCK_NB)) return fd;", "return fd;", "two_at_once"),
    ("the lock is a file", C, "const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);",
     "char lock[PATH_MAX]; path_print(lock, \"%s/lock\", path); const int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0666);", "two_at_once"),
    ("looked at before it is locked", C, "d->fd = lock ? directory_lock(d->path) : AT_FDCWD;\n        const long newest = checkpoint_newest(d->path, LONG_MAX);",
     "const long newest = checkpoint_newest(d->path, LONG_MAX);\n        d->fd = lock ? directory_lock(d->path) : AT_FDCWD;", "race_on_one_name"),
    ("a model alone is no run", C, "[DONEstamodel]", "[DONEsta]", "what_makes_a_directory_taken"),
    ("the first hole ends the runs", C, "n < last + 100", "n < last + 2", "newest_run"),
    ("no way on after an early kill", C, "newest < 0 ? \"remove it: it has no checkpoint\" : \"resume it with -y\"", "\"resume it with -y\"", "killed_before"),
    ("files go by the directory's name", C, "    int fd;\n    char path[PATH_MAX];\n} Directory;\n",
     "    int fd;\n    char path[PATH_MAX];\n} Directory;\nstatic int by_name(const char *path) { return open(path, O_RDONLY | O_DIRECTORY); }\n#define openat(d_, n_, ...) openat(by_name(d->path), n_, __VA_ARGS__)\n"
     "#define renameat(a_, b_, c_, d_) renameat(by_name(d->path), b_, by_name(d->path), d_)\n", "a_moved_directory"),
    ("descriptors 0 to 2 are anybody's", C, "if (fcntl(fd, F_GETFD) < 0) open(\"/dev/null\", O_RDWR);", ";", "closed_descriptors"),
    ("a name is a pattern", C, "if (access(pattern, F_OK)) {", "if (1) {", "names_of_files"),
    ("the directory's dot", C, "return dot && !strchr(dot, '/') ?", "return dot ?", "names_of_files"),
    ("a tab in a name", C, "!strpbrk(text, \"\\n\\t\")", "!strchr(text, '\\n')", "names_of_files"),
    ("compressed data", C, "EXPECT(!packed || ", "EXPECT(1 || ", "names_of_files"),
    ("a path is identity", C, "X(TEXT, train, 'i', \"train\", \"GLOB\", FREE,", "X(TEXT, train, 'i', \"train\", \"GLOB\", FIXED,", "moved_data"),
    ("a terminal obeys a sample", C, "putchar((c < 32 && c != '\\n' && c != '\\t') || c == 127 ? '?' : c);", "putchar(c);", "words"),
    ("numbers as bytes", C, ": t->V == 256;", ": token < 256;", "words"),
    ("a window is left out", C, "if (want > (long)d->windows) dataset_windows", "if (0) dataset_windows", "validation_rows"),
    ("contraction", C, "EXPECT(v[0] == 0 && v[1] == 0,", "EXPECT(v[1] == 0,", "builds"),
    ("reordering", C, "EXPECT(v[0] == 0 && v[1] == 0,", "EXPECT(v[0] == 0,", "builds"),
    ("a validation that is no number", C, "if (!isfinite(loss)) run_nonfinite(r, step, \"the validation", "if (0) run_nonfinite(r, step, \"the validation", "not_finite"),
    ("logits that are no numbers", C, "if (floats_nonfinite(logits, V)) run_nonfinite", "if (0) run_nonfinite", "not_finite"),
    ("an infinite weight", C, "return largest < 0x7f800000;", "return 1;", "not_finite"),
    ("a wild state", C, "EXPECT(!wild && amax_usable(g->loss_scale),", "EXPECT(1,", "not_finite"),
    ("a history's length", C, " || q->amax_count < 0", "", "not_finite"),
    ("the plan lacks what was taken", C, "memory_taken + PROGRAM_BYTES", "PROGRAM_BYTES", "the_plan"),
    ("no container", C, "if (limit > 0) least = MIN", "if (limit < 0) least = MIN", "container"),
    ("a limit on files kills", C, "signal(SIGXFSZ, SIG_IGN);", "", "limits"),
    ("a closed pipe kills", C, "signal(SIGPIPE, SIG_IGN);", "", "limits"),
    ("a full screen file goes unseen", C, " || fflush(stdout) != 0 || ferror(stdout);", ";", "limits"),
    ("what was not printed goes unseen", C, "atexit(output_check);", "", "limits"),
    ("a hangup kills", C, "if (signal(SIGHUP, on_interrupt) == SIG_IGN) signal(SIGHUP, SIG_IGN);", "", "limits"),
    ("nohup is overruled", C, "if (signal(SIGHUP, on_interrupt) == SIG_IGN) signal(SIGHUP, SIG_IGN);", "signal(SIGHUP, on_interrupt);", "limits"),
    ("a second SIGTERM kills", C, "if (signal_number == SIGINT) signal(SIGINT, SIG_DFL);", "signal(signal_number, SIG_DFL);", "limits"),
    ("a directory in use is to be removed", C, "lock && newest > -2", "newest > -2", "two_at_once"),
    ("an illegal instruction without words", C, "signal(SIGILL, on_illegal);", "", "limits"),
    ("arrays on the stack", C, "    float floats[4096];\n    stored_t", "    float floats[1 << 22];\n    stored_t", "limits"),
    ("no locks is busy", C, "if (errno == EWOULDBLOCK) {", "if (1) {", "no_locks"),
    ("compare does not wait", COMPARE, "for (int waits = 0; !access(dir, F_OK);", "for (int waits = 0; 0;", "comparison_keeps_runs"),
    ("one seed has no picture", COMPARE, "all.seeds > 1 ? c->spread[p] : 0", "c->spread[p]", "comparison"),
    ("a typo is found late", COMPARE, "if (is_fp8) options_products(&o, g);", "", "comparison"),
    ("validations are counted late", COMPARE, "EXPECT(validations < POINTS_MAX,", "EXPECT(1,", "comparison"),
    ("an infinite bound", COMPARE, "EXPECT(all.bound > 0 && isfinite(all.bound),", "EXPECT(all.bound > 0,", "comparison"),
    ("the summary is written in place", COMPARE, "static int summary_write(void) {\n",
     "#define file_begin(d_, n_) fdopen(openat((d_)->fd, n_, O_WRONLY | O_CREAT | O_TRUNC, 0666), \"w\")\n#define file_commit(f_, d_, n_) fclose(f_)\n"
     "static int summary_write(void) {\n", "comparison"),
]


def run(command, cwd, **more):
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False, **more)


def pattern(text):
    """A text, whatever spaces and line ends the formatter puts into it."""
    return re.compile(r"\s*".join(re.escape(c) for c in "".join(text.split())))


def main():
    wanted, missed = sys.argv[1:], 0
    tree = tempfile.mkdtemp()
    subprocess.run(["git", "clone", "-q", ROOT, tree], check=True)
    for name in run(["git", "ls-files", "-m"], ROOT).stdout.split():  # what is not committed yet
        shutil.copy(os.path.join(ROOT, name), os.path.join(tree, name))
    for name, file, old, new, check in FAULTS:
        if wanted and not any(w in name for w in wanted):
            continue
        path = os.path.join(tree, file)
        with open(path, encoding="utf-8") as f:
            source = f.read()
        found = pattern(old).findall(source)
        if len(found) != 1:
            print(f"STALE  {name}: its text is {len(found)} times in {file}", flush=True)
            missed += 1
            continue
        with open(path, "w", encoding="utf-8") as f:
            f.write(source.replace(found[0], new))
        built = run(["make", "-j4", "CFLAGS=-O1 -w", "WARN=-w", "all", "build/compare"], tree)
        result = run([sys.executable, os.path.join(tree, "dev/check/test_faults.py"), "--only", check], tree)
        with open(path, "w", encoding="utf-8") as f:
            f.write(source)
        said = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
        found = built.returncode == 0 and bool(said)
        missed += not found
        print(f"{'found' if found else 'MISSED':6} {name}: {(said or [(built if built.returncode else result).stdout.strip()[-120:]])[0][:110]}", flush=True)
    shutil.rmtree(tree)
    print("all found" if missed == 0 else f"{missed} missed or stale")
    return missed != 0


if __name__ == "__main__":
    sys.exit(main())
