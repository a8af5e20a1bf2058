#!/usr/bin/env python3
"""What goes wrong around a run: files that cannot be read, two programs at once, kills, damage, a full disk, numbers that are not
finite. Runs the built programs as a user does, and checks that they say what is wrong and that nothing is lost.

    python3 dev/check/test_faults.py                         # one check or more for every fault that was once found, a minute
    python3 dev/check/test_faults.py kill 20 inject 40 fuzz 100     # campaigns, with how many cases of each; seeds count from 1
    python3 dev/check/test_faults.py kill 880 inject 1000 fuzz 100000 --seed 7     # hours
    --bin DIR          where the programs are [the project's directory]
    --trainer "CMD"    this FP8 trainer instead, as in "build/cuda/test_cpu_fp8 --as-cuda"; the comparison is left out then
    --only WORD        checks whose name has the word

Standard library only; checks that need strace, a C compiler, root (or not to be root) or a control group are skipped without.
Prints FAIL lines, skips, then `N passed, M failed`; exit status 0 if nothing failed.
"""

import argparse
import contextlib
import fcntl
import glob
import os
import random
import re
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", ".."))
DONE, BAD_INPUT, NONFINITE, INTERRUPTED = 0, 2, 3, 130
TINY = "-e d1 --channels 16 --heads 1 -t 16 -b 1 -s 0 "  # a model with which a step takes a fraction of a millisecond

# ---------------------------------------------------------------------------------------------------------------------
# 1. Frame

args = None
passed = failed = 0
checks = []


def check(ok, name, found=""):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print(f"FAIL {name}: {str(found).strip()[-400:]}", flush=True)
    return ok


def skip(name, why):
    print(f"skip {name}: {why}", flush=True)


def test(function):
    checks.append(function)
    return function


def trainer(precision="fp8"):
    if args.trainer and precision == "fp8":
        return shlex.split(args.trainer)
    return [os.path.join(args.bin, "train_gpt_" + precision)]


class Result:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err  # status: -N is signal N

    def __str__(self):
        return f"status {self.status}, it said: {self.err or self.out}"

    def refused(self, *words, status=BAD_INPUT):
        """One line on stderr with all of the words, and the status."""
        lines = self.err.strip().splitlines()
        return self.status == status and len(lines) == 1 and all(w in lines[0] for w in words)


ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")


def start(options, precision="fp8", before=(), **more):
    words = list(before) + trainer(precision) + (shlex.split(options) if isinstance(options, str) else list(options))
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.PIPE)
    return subprocess.Popen(words, env=dict(ENVIRONMENT, **more.pop("env", {})), text=True, errors="replace", **more)


def end(process, timeout=60):
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err = "it hangs; " + (err or "")
    return Result(process.returncode, out or "", err or "")


def run(options, precision="fp8", **more):
    return end(start(options, precision, **more))


def shell(*words, **more):
    return end(subprocess.Popen(list(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                                env=ENVIRONMENT, **more), 300)


def read(path, mode="rb"):
    with open(path, mode) as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())
    return path


def wait_for(path, process, seconds=20):
    begin = time.monotonic()
    while not os.path.exists(path) and process.poll() is None and time.monotonic() - begin < seconds:
        time.sleep(0.002)
    return os.path.exists(path)


def text(lines=200):
    return "".join(f"some words {i} of text for a run, {i * 7 % 13} of them new\n" for i in range(lines))


def rows(path):
    """The steps of a log, and its rows without times."""
    table = [line.split("\t") for line in read(path, "r").splitlines() if line[:1].isdigit()]
    return [int(r[0]) for r in table], [r[:7] for r in table]


def same_end(a, b, step):
    """What differs between two runs: the last checkpoint, every row but its times; None: nothing."""
    for name in (f"model_{step:08d}.bin", f"state_{step:08d}.bin"):
        if read(f"{a}/{name}") != read(f"{b}/{name}"):
            return name
    if rows(f"{a}/log.tsv")[1] != rows(f"{b}/log.tsv")[1]:
        return "log.tsv"
    return None if read(f"{a}/scales.tsv") == read(f"{b}/scales.tsv") else "scales.tsv"


def unfinish(directory, step):
    """Takes a checkpoint away, as if the run had been killed before it was written."""
    for name in (f"DONE_{step:08d}", f"state_{step:08d}.bin", f"model_{step:08d}.bin"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{directory}/{name}")


def finished(options, out, step, *older):
    """A run of `step` steps in which the checkpoints after `older` are taken away."""
    result = run(f"{options} -x {step} -n 1 --keep 0 -o {out}")
    for s in range(older[0] + 1 if older else step + 1, step + 1):
        unfinish(out, s)
    return result


def nobody():
    """What goes before a command so that file modes bind it; None: there is no such way."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if shutil.which("setpriv") else None


def checksum(data, h=0):
    """The trainer's, of a multiple of 8 bytes."""
    for (word,) in struct.iter_unpack("<Q", data):
        h = ((h ^ word) * 0x9fb21c651e98df25) & 0xffffffffffffffff
        h ^= h >> 32
    return h


def state_edit(path, section, offset, data):
    """Writes data into a section of a state and makes its checksum right again."""
    state, at = bytearray(read(path)), 64
    while True:
        name, size = state[at:at + 24].rstrip(b"\0").decode(), struct.unpack_from("<Q", state, at + 48)[0]
        if name == section:
            break
        at += 64 + size
    begin = at + 64
    state[begin + offset:begin + offset + len(data)] = data
    body = bytes(state[begin:begin + size])
    whole = len(body) // 8 * 8
    h = checksum(body[:whole], checksum(bytes(state[at:at + 56])))
    for byte in body[whole:]:
        h = ((h ^ byte) * 0x9fb21c651e98df25) & 0xffffffffffffffff
        h ^= h >> 32
    struct.pack_into("<Q", state, at + 56, h)
    write(path, bytes(state))


def model_edit(source, path, change):
    """A model file whose weights are changed: change(index, weight)."""
    data = read(source)
    weights = struct.unpack(f"<{(len(data) - 1024) // 4}f", data[1024:])
    write(path, data[:1024] + struct.pack(f"<{len(weights)}f", *[change(i, w) for i, w in enumerate(weights)]))


# ---------------------------------------------------------------------------------------------------------------------
# 2. A run's directory and files: rows 2 to 6

DATA = "-i t.txt -j t.txt "


@test
def unreadable_is_not_absent():
    as_nobody = nobody()
    if as_nobody is None:
        return skip("unreadable files", "no setpriv")
    os.chmod(".", 0o777)
    os.mkdir("open", 0o777)
    os.chmod("open", 0o777)
    options = DATA + TINY + "-v 2 -m 2 --scales-every 1 -n 1 --keep 0 "
    run(options + "-x 4 -o open/r", before=as_nobody)
    unfinish("open/r", 4)
    before = read("open/r/scales.tsv"), read("open/r/log.tsv")
    os.chmod("open/r/scales.tsv", 0)
    r = run("-y -o open/r", before=as_nobody)
    os.chmod("open/r/scales.tsv", 0o644)
    check(r.refused("scales.tsv", "Permission denied") and before == (read("open/r/scales.tsv"), read("open/r/log.tsv")),
          "row 2: a resume with an unreadable scales.tsv is refused and replaces nothing", r)
    write("open/v.txt", "a b.\nc d.\n" * 40)
    write("open/v.floor.tsv", "# stories\t1\n")
    os.chmod("open/v.floor.tsv", 0)
    r = run("-i t.txt -j open/v.txt " + TINY + "-x 1 -v 0 -o open/s", before=as_nobody)
    check(r.refused("v.floor.tsv", "Permission denied"), "row 2: an unreadable floor sidecar is refused", r)
    os.mkdir("shut", 0o000)
    r = run(DATA + TINY + "-x 1 -v 0 -n 0 -o shut/a/b", before=as_nobody)
    check(r.refused("shut/a: cannot make the directory: Permission denied"), "a parent that cannot be written is named", r)
    r = run("-i shut/t.txt " + TINY + "-x 1", before=as_nobody)
    check(r.refused("shut/t.txt", "Permission denied"), "row 2: data that cannot be read are not called absent", r)


@test
def what_makes_a_directory_taken():
    options = DATA + TINY + "-v 0 "
    run(options + "-x 4 -n 2 -o out")
    os.remove("out/log.tsv")
    os.remove("out/scales.tsv")
    model = read("out/model_00000004.bin")
    r = run("-y -o out")
    check(r.refused("log.tsv", "missing"), "row 3: a resume without a log says that it is missing", r)
    r = run(options + "-x 8 -n 4 --keep 1 --seed 2 -o out")
    check(r.refused("out holds a run") and read("out/model_00000004.bin") == model and len(glob.glob("out/*")) == 6,
          "row 3: checkpoints without a log are a run, which a new one does not touch", r)
    for name in ("log.tsv", "DONE_00000001", "state_00000001.bin", "model_00000001.bin"):
        os.mkdir("d_" + name)
        write(f"d_{name}/{name}", "")
        check(run(options + f"-x 1 -o d_{name}").refused("holds a run"), f"row 3: {name} alone makes a directory a run's")


@test
def two_at_once():
    options = DATA + TINY + "-v 0 -n 0 -x 300"
    both = [start(options, cwd=os.getcwd()) for _ in range(2)]
    results = [end(p) for p in both]
    found = sorted(os.listdir("log"))
    check([r.status for r in results] == [0, 0] and found == ["fp8", "fp8-2"],
          "row 3: of two that start at once without --out each has a directory of its own", f"{found}, {results[0]}, {results[1]}")
    p = start(DATA + TINY + "-v 0 -n 0 -x 99999999 -o held")
    wait_for("held/log.tsv", p)
    with contextlib.suppress(FileNotFoundError):
        os.remove("held/lock")
    run_again = run(DATA + TINY + "-x 1 -o held")
    looked = [run(options + " -y -o held") for options in ("--eval", "--prompt a")]
    resume = run("-y -o held")
    p.kill()
    end(p)
    check(run_again.refused("another program"), "row 3: a directory in use is refused", run_again)
    check(not any("remove it" in r.err for r in looked), "row 3: nobody is told to remove a directory in use", looked[0])
    check(resume.refused("another program"), "row 3: no file that can be removed holds the lock", resume)


@test
def newest_run():
    options = DATA + TINY + "-v 0 -n 2 -x 2"
    for _ in range(3):
        run(options)
    shutil.rmtree("log/fp8-2")
    r = run("-y")
    check("run              log/fp8-3" in r.out, "row 3: -y takes the newest run, beyond a hole in the numbers", r)
    run(options)
    check(os.path.exists("log/fp8-4") and not os.path.exists("log/fp8-2"), "row 3: and a new run comes after it", os.listdir("log"))
    shutil.rmtree("log")
    r = run("-y")
    check(r.refused("log/fp8"), "row 3: -y without any run is refused", r)


@test
def killed_before_its_first_checkpoint():
    options = DATA + TINY + "-v 0 -n 0 -o out "
    p = start(options + "-x 10000000", stdout=subprocess.DEVNULL)
    wait_for("out/log.tsv", p)
    time.sleep(0.1)
    p.kill()
    end(p)
    again, resume = run(options + "-x 10"), run("-y -o out")
    check(again.refused("remove it"), "row 3: killed before its first checkpoint: a new start says how to go on", again)
    check(resume.refused("remove it"), "row 3: and so does -y", resume)
    shutil.rmtree("out")
    check(run(options + "-x 10").status == DONE, "row 3: and that way works")


@test
def race_on_one_name():
    if not shutil.which("strace"):
        return skip("two starts with one --out", "no strace")
    options = DATA + TINY + "-v 0 -n 1 -o race "
    slow = start(options + "--seed 2 -x 2",
                 before=["strace", "-f", "-o", "race.tr", "-e", "trace=flock", "-e", "inject=flock:delay_enter=1500000"])
    time.sleep(0.5)
    quick = run(options + "--seed 1 -x 5 --keep 0")
    model = read("race/model_00000002.bin")
    late = end(slow)
    check(quick.status == DONE and late.status == BAD_INPUT and read("race/model_00000002.bin") == model,
          "row 3: who locks a directory late looks at what is in it then", f"{quick}; {late}")


@test
def validation_set_is_identity():
    story = "one cat.\ntwo big dogs.\nno.\n"
    fnv = 14695981039346656037
    for byte in story.encode():
        fnv = ((fnv ^ byte) * 1099511628211) & 0xffffffffffffffff
    write("v.txt", story)
    sidecar = f"# stories\t3\n# fnv1a64\t{fnv:016x}\noffset\tbytes\tnats\n0\t9\t4.5\n9\t14\t7\n23\t4\t2\n"
    write("v.floor.tsv", sidecar)
    options = "-i t.txt -j v.txt -e d1 --channels 16 --heads 1 -t 16 -b 1 -s 0 -v 1 -m 3 -n 1 --keep 0 -x 3 "
    r = run(options + "-o out")
    check(r.status == DONE and "floor 0.5000" in r.out, "a validation set of stories has a floor", r)
    unfinish("out", 3)
    before = read("out/log.tsv")
    os.remove("v.floor.tsv")
    r = run("-y -o out")
    check(r.refused("floor") and read("out/log.tsv") == before, "row 4: a resume with another validation set is refused", r)
    r = run(options + "-o other --baseline out")
    check(r.refused("--baseline", "floor"), "row 4: and so is a baseline with another one", r)
    write("v.floor.tsv", sidecar)
    check(run("-y -o out").status == DONE, "row 4: with the sidecar back it goes on")


@test
def damaged_logs():
    options = DATA + TINY + "-v 0 --scales-every 1 "
    finished(options, "good", 6, 3)
    log, scales = read("good/log.tsv", "r").splitlines(True), read("good/scales.tsv", "r").splitlines(True)
    first = [i for i, line in enumerate(log) if line.startswith("1\t")][0]
    torn = log[first + 1][:9]
    damages = {"a hole": ("log.tsv", log[:first + 1] + log[first + 2:]),
               "a duplicate": ("log.tsv", log[:first + 2] + log[first + 1:]),
               "a torn row with what follows": ("log.tsv", log[:first + 1] + [torn + "\n"] + log[first + 2:]),
               "a torn row at the end": ("log.tsv", log[:first + 1] + [torn]),
               "no rows": ("log.tsv", log[:first]),
               "nothing": ("log.tsv", []),
               "words between rows": ("log.tsv", log[:first + 1] + ["garbage row\n"] + log[first + 1:]),
               "zeros": ("log.tsv", log[:first + 1] + ["\0" * 40 + "\n"] + log[first + 2:]),
               "a torn row of scales.tsv": ("scales.tsv", scales[:4] + [scales[4][:12] + "\n"] + scales[5:]),
               "steps of scales.tsv out of order": ("scales.tsv", scales[:1] + scales[20:26] + scales[1:])}
    for name, (file, lines) in damages.items():
        shutil.rmtree("hurt", ignore_errors=True)
        shutil.copytree("good", "hurt")
        damaged = write(f"hurt/{file}", "".join(lines))
        before = read(damaged)
        r = run("-y -o hurt")
        check(r.refused(file) and read(damaged) == before, f"row 5: {name}: a resume is refused and changes nothing", r)
    shutil.copytree("good", "cut")
    with open("cut/log.tsv", "a") as f:
        f.write("7\t11")  # what a kill leaves beyond the checkpoint
    run(options + "-x 6 -n 1 --keep 0 -o whole")
    r = run("-y -o cut")
    check(r.status == DONE and same_end("cut", "whole", 6) is None, "row 5: rows beyond the checkpoint are cut, torn or not", r)
    if not shutil.which("strace"):
        return skip("logs are on disk before a checkpoint", "no strace")
    run(options + "-x 3 -n 1 -o traced", before=["strace", "-f", "-y", "-o", "order.tr", "-e", "trace=fsync,openat,renameat"])
    order = [m.group(1) for m in re.finditer(r"fsync\(\d+<[^>]*/([a-zA-Z_.0-9]+)>\)|renameat\([^\n]*\"(DONE_\d+)\"\)", read("order.tr", "r"))
             for m in [re.match(r".*?(log\.tsv|scales\.tsv|model_\d+\.bin\.tmp|state_\d+\.bin\.tmp|DONE_\d+)", m.group(0))] if m]
    steps = " ".join(order)
    check(re.fullmatch(r"(log\.tsv( scales\.tsv)? model_\S+ state_\S+( DONE_\d+)+ ?){3}", steps),
          "row 5: the logs are flushed to disk before the checkpoint that counts on them", steps)


@test
def closed_descriptors():
    options = DATA + TINY + "-x 3 -v 0 -n 1 "
    run(options + "-o a")
    command = " ".join(shlex.quote(w) for w in trainer()) + f" {options} -o b <&- >&-"
    r = shell("sh", "-c", command)
    lines = [len(read(f"{d}/log.tsv", "r").splitlines()) for d in "ab"]
    check(r.status == DONE and lines[0] == lines[1], "row 6: with closed descriptors nothing else gets into the log", f"{lines} {r}")
    r = shell("sh", "-c", command.replace("-o b <&- >&-", "-o c <&- >&- 2>&-"))
    check(r.status == DONE and len(read("c/log.tsv", "r").splitlines()) == lines[0], "row 6: nor with all three closed", r)


@test
def planted_links():
    options = DATA + TINY + "-v 0 --scales-every 1 "
    finished(options, "out", 4, 2)
    victims = {}
    for name in ("model_00000003.bin.tmp", "state_00000003.bin.tmp", "DONE_00000003.tmp", "model_00000004.bin"):
        victims[name] = write("victim_" + name, "precious")
        os.symlink("../victim_" + name, "out/" + name)
    r = run("-y -o out")
    check(r.status == DONE and all(read(v) == b"precious" for v in victims.values()) and not os.path.islink("out/model_00000004.bin"),
          "row 6: links under the names of files to come are not followed", r)
    unfinish("out", 4)
    os.rename("out/log.tsv", "kept.tsv")
    os.symlink("../kept.tsv", "out/log.tsv")
    before = read("kept.tsv")
    r = run("-y -o out")
    check(r.status == BAD_INPUT and read("kept.tsv") == before, "row 6: a log that is a link is not written through", r)


@test
def a_moved_directory():
    p = start(DATA + TINY + "-v 0 -n 0 -x 99999999 -o out", stdout=subprocess.DEVNULL)
    wait_for("out/log.tsv", p)
    os.rename("out", "moved")
    os.mkdir("out")
    time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    r = end(p)
    check(r.status == INTERRUPTED and glob.glob("moved/DONE_*") and not os.listdir("out"),
          "row 1: a trainer writes into the directory that it began in, whatever has its name now", r)


# ---------------------------------------------------------------------------------------------------------------------
# 3. Names and words: row 7 and the list of words

@test
def names_of_files():
    write("text[1].txt", "aaaaaaaaaaaaaaa\n" * 8)
    write("text1.txt", "bbbbbbbbbbbbbbb\n" * 4)
    r = run("-i 'text[1].txt' -j 'text[1].txt' -e d1 --channels 16 --heads 1 -t 8 -b 1 -x 1 -s 0 -n 0 -v 0 -o out")
    check("data             128 tokens" in r.out, "row 7: a file whose name is a pattern is that file", r)
    os.mkdir("x.d")
    shutil.copy("t.txt", "x.d/val")
    write("x.floor.tsv", "# stories\t1\n# fnv1a64\t0\noffset\tbytes\tnats\n0\t9\t4.5\n")
    r = run("-i x.d/val -j x.d/val " + TINY + "-x 1 -n 0 -v 0 -o dotted")
    check(r.status == DONE, "row 7: a sidecar's name comes from the file's dot, not the directory's", r)
    tab = "t.txt\n# seed\t5"
    for name in (tab, "t.txt\t# seed\t5"):
        shutil.copy("t.txt", "u.txt")
        r = run(["-i", name, "-x", "1", "-o", "tabbed"])
        check(r.refused("--train", "tab or new line"), "row 7: a name that a log cannot hold is refused", r)
    shutil.copy("t.txt", "t.txt.gz")
    r = run("-i t.txt.gz " + TINY + "-x 1")
    check(r.refused("t.txt.gz", "compressed"), "words: a compressed file is refused", r)
    for name in ("t.b", "t.z", "t.zs", "t.", "t"):
        shutil.copy("t.txt", name)
        r = run(f"-i {name} {TINY} -x 1 -v 0 -n 0 -o short_{name}")
        check(r.status == DONE, f"words: {name} is not compressed", r)
    r = run("-i t.txt text1.txt " + TINY + "-x 1")
    check(r.refused("text1.txt", "a glob needs quotes"), "words: an unquoted glob is explained", r)
    r = run(["-i", "t.txt", "-e", "", "-x", "1", "-o", "nameless"])
    check(r.refused("--model") and not os.path.exists("nameless"), "words: an empty --model is refused", r)
    os.mkdir("has_a_file")
    write("has_a_file/log", "")
    r = run("-i ../t.txt -j ../t.txt " + TINY + "-x 1 -v 0 -n 0 -o out", cwd="has_a_file")
    check(r.status == DONE, "words: a file called log is no baseline", r)
    r = run(["-i", "t.txt", "-éx"])
    check(r.refused("unknown option '-éx'"), "words: an option that is no letter is shown whole", r)


@test
def corpus_comes_back():
    if args.trainer or not os.path.exists(os.path.join(ROOT, ".git")):
        return
    shell("git", "clone", "-q", ROOT, "p")
    for name in ("Makefile", "data/tales.c"):
        shutil.copy(os.path.join(ROOT, name), "p/" + name)
    shell("make", "-s", "-C", "p", "data/tales.d/train.txt")
    good = {name: read("p/data/tales.d/" + name) for name in ("train.txt", "val.txt", "val.floor.tsv")}
    for name in good:
        os.remove("p/data/tales.d/" + name)
        r = shell("make", "-s", "-C", "p", "data/tales.d/train.txt")
        check(os.path.exists("p/data/tales.d/" + name) and read("p/data/tales.d/" + name) == good[name], f"words: make writes {name} again", r)
    r = shell("make", "-C", "p", "data/tales.d/train.txt")
    check("up to date" in r.out, "words: and nothing when all three are there", r)


@test
def moved_data():
    shutil.copy("t.txt", "before.txt")
    run("-i before.txt -j before.txt " + TINY + "-x 4 -v 0 -n 2 -o out")
    unfinish("out", 4)
    os.rename("before.txt", "after.txt")
    r = run("-y -o out")
    check(r.refused("before.txt"), "words: a resume names data that are gone", r)
    write("else.txt", text() + "more")
    r = run("-y -o out -i else.txt -j else.txt")
    check(r.refused("data_hash"), "words: other data are refused", r)
    r = run("-y -o out -i after.txt -j after.txt")
    check(r.status == DONE, "words: the same data under another name are taken", r)


@test
def words():
    options = DATA + TINY + "-v 0 -n 1 "
    run(options + "-x 2 -o out")
    if not args.trainer:
        r = run("-y -o out", "bf16")
        check(r.refused("build (0 fp8, 1 fp16, 2 bf16, 3 fp32) 2, found 0"), "words: another build's state is told in words", r)
        r = run(DATA + TINY + "-x 2 -v 0 -n 0 -u 1 -o n", "bf16")
        check("note: train and val" in r.out and "note: --warmup" not in r.out, "words: training data as validation data are noted", r)
    r = run(options + "-x 2 -u 50 -o warm")
    check("note: --warmup" in r.out, "words: a warm-up longer than the run is noted", r)
    p = start(DATA + TINY + "-v 0 -n 0 -x 99999999 -o 'a b'", stdout=subprocess.PIPE)
    wait_for("a b/log.tsv", p)
    time.sleep(0.05)
    p.send_signal(signal.SIGINT)
    r = end(p)
    check("-y -o 'a b'" in r.err, "words: Ctrl-C's hint is quoted", r)
    numbers = struct.pack("<256i", 20240520, 1, 400, 50257, *[0] * 252) + struct.pack("<400H", *[65, 50256] * 200)
    write("numbers.bin", numbers)
    learn = "-e d1 --channels 64 --heads 1 -t 8 -b 4 -x 150 -u 10 -l 0.005 --temperature 0 -s 150 -g 6 -n 0 -v 0 "
    if not args.trainer:
        r = run(f"-i numbers.bin -j numbers.bin {learn} -o num", "fp32")
        sample = r.out.split("a sample after step 150\n")[-1].split("\n---")[0]
        check(set(re.findall(r"<\d+>", sample)) == {"<65>", "<50256>"} and not re.sub(r"<\d+>", "", sample),
              "words: of a vocabulary without a file tokens are numbers", sample)
        tokens = [bytes([i]) for i in range(256)] + [b"\x1b[31m"] * 44
        write("tok.bin", struct.pack("<256I", 20240328, 2, 300, 0, *[0] * 252) + b"".join(bytes([len(t)]) + t for t in tokens))
        write("esc.bin", struct.pack("<256i", 20240520, 1, 400, 300, *[0] * 252) + struct.pack("<400H", *[9, 299] * 200))
        r = run(f"-i esc.bin -j esc.bin --tokenizer tok.bin {learn} -o esc", "fp32")
        sample = r.out.split("a sample after step 150\n")[-1].split("\n---")[0]
        check("?[31m" in sample and "\t" in sample and "\x1b" not in sample, "words: what a terminal obeys is shown as '?', a tab is not",
              repr(sample))


@test
def validation_rows():
    write("v.txt", ("0123456\n" * 20)[:73])
    base = "--eval -i v.txt -j v.txt -e d1 --channels 16 --heads 1 -t 8 "
    r = run(base + "-b 1 -m 100")
    check("validation: 9 rows of 72 tokens" in r.out, "words: validation leaves no window out", r)
    losses = {run(base + f"-b {b} --val-rows 6").out.strip().splitlines()[-1] for b in (1, 2, 4)}
    check(len(losses) == 1 and "loss" in losses.pop(), "words: --val-rows does not depend on -b", losses)
    check("validation: 4 rows" in run(base + "-b 2 -m 2").out, "words: -m counts batches")
    check(run(base + "-b 2 -m 2 --val-rows 5").refused("--val-rows", "--val-batches"), "words: -m and another --val-rows are refused")
    run("-i v.txt -j v.txt -e d1 --channels 16 --heads 1 -t 8 -b 2 -s 0 -m 2 -v 1 -n 1 -x 2 -o out")
    unfinish("out", 2)
    check(run("-y -m 3 -o out").refused("--val-rows is 4") and run("-y -m 2 -o out").status == DONE,
          "words: a resume keeps the validation set, whichever way its size is given")


@test
def builds():
    if args.trainer:
        return
    source = os.path.join(ROOT, "train_gpt_fp8.c")
    for compiler in ("gcc", "clang"):
        if not shutil.which(compiler):
            skip("flags that change arithmetic", f"no {compiler}")
            continue
        flags = "-O2 -march=x86-64-v3 -w -DPRECISION=3".split() if os.uname().machine == "x86_64" else "-O1 -w -DPRECISION=3".split()
        for more in ("-ffast-math", "-ffp-contract=off -funsafe-math-optimizations", "-ffp-contract=fast"):
            made = shell(compiler, *flags, *more.split(), source, "-o", "bad", "-lm")
            r = shell("./bad", *shlex.split(DATA + TINY + "-x 1 -v 0 -n 0 -o flags")) if made.status == 0 else made
            check(r.status not in (0, -signal.SIGSEGV) and not glob.glob("flags/*"), f"words: {compiler} {more} is refused", r)
    r = shell("gcc", "-m32", "-fsyntax-only", "-w", source)
    check(r.status != 0 and ("64-bit" in r.err or "fatal error" in r.err), "words: a 32-bit build is refused", r)
    write("nocc", "#!/bin/sh\ncase \"$*\" in *fopenmp*) exit 1;; esac\nexec cc \"$@\"\n")
    os.chmod("nocc", 0o755)
    r = shell("make", "-n", "-C", ROOT, f"CC={os.getcwd()}/nocc", "train_gpt_fp8", f"FLAGS_FILE={os.getcwd()}/flags.txt")
    check("no OpenMP" in r.out + r.err, "words: a compiler without OpenMP is told", r)


# ---------------------------------------------------------------------------------------------------------------------
# 4. Numbers and memory: rows 9 and 10

@test
def models_of_16_bits():
    run("-i t.txt -j t.txt -e d2 -t 16 -b 1 -s 0 -x 2 -v 0 -n 2 -o narrow")
    rounded = lambda i, w: struct.unpack("<f", struct.pack("<I", struct.unpack("<I", struct.pack("<f", w))[0] & 0xffff0000))[0]
    model_edit("narrow/model_00000002.bin", "rounded.bin", rounded)
    data = read("rounded.bin")
    numbers = data[1024:]
    write("bf16.bin", data[:4] + struct.pack("<i", 5) + data[8:1024] + b"".join(numbers[i + 2:i + 4] for i in range(0, len(numbers), 4)))
    losses = [run(f"-i t.txt -j t.txt -b 1 --eval -e {name}").out.strip().splitlines()[-1:] for name in ("rounded.bin", "bf16.bin")]
    check(losses[0] == losses[1] and "loss" in str(losses), "words: a model file of bf16 weights is the model of their values", losses)


@test
def not_finite():
    options = "-i t.txt -j t.txt -e d1 --channels 16 --heads 1 -t 16 -b 1 -s 0 "
    run(options + "-x 2 -v 0 -n 2 -o base")
    model_edit("base/model_00000002.bin", "huge.bin", lambda i, w: 6e4 if i < 4352 else w)
    model_edit("base/model_00000002.bin", "wide.bin", lambda i, w: 1e10 if i == 4099 else w)
    if not args.trainer:
        r = run("--eval -e huge.bin " + options.replace("-e d1 --channels 16 --heads 1 ", ""), "fp16")
        check(r.refused("validation loss", "not finite", status=NONFINITE), "row 9: --eval with a loss that is no number ends with 3", r)
        r = run("--prompt a -e huge.bin", "fp16")
        check(r.status == NONFINITE and "not finite" in r.err, "row 9: and so does --prompt", r)
        r = run("-i t.txt -j t.txt -e d1 -t 16 -b 1 -x 60 -u 40 -l 20 -q 1 --grad-clip 0 -s 0 -n 1 --keep 1 -v 1 -m 1 -o kept", "fp16")
        done = glob.glob("kept/DONE_*")
        validated = r.out.count("validation after")
        resumed = run("--eval -y -o kept", "fp16")
        check(r.refused("validation loss", f"{validated:08d}.bin", status=NONFINITE) and done == [f"kept/DONE_{validated:08d}"] and
              resumed.status == DONE, "row 9: a validation that is no number ends the run before its checkpoint replaces the last good one",
              f"{r}; {done}; {resumed}")
    for precision in ["fp8"] if args.trainer else ["fp8", "bf16", "fp32"]:
        out = f"inf_{precision}"
        r = run(f"-i t.txt -e wide.bin -t 16 -b 1 -v 0 -s 0 -x 3 -n 1 -u 0 -l 1e30 --grad-clip 0 -o {out}", precision)
        check(r.status == NONFINITE and not glob.glob(out + "/model_*"), f"row 9: {precision}: nothing that is not finite is saved", r)
    r = run("-i t.txt -e wide.bin -t 16 -b 1 -v 0 -s 0 -x 3 -n 1 -u 0 -l 1e30 -o update")
    check(r.refused("step 1", "weights", status=NONFINITE), "row 9: an update that makes a weight infinite ends its own step", r)
    finished(DATA + TINY + "-v 0 ", "wild", 3)
    state = read("wild/state_00000003.bin")
    nan, huge = struct.pack("<f", float("nan")), struct.pack("<i", 1 << 20)
    for name, section, offset, data in (("a moment that is no number", "adamw_m", 40, nan), ("an infinite moment", "adamw_v", 0, struct.pack("<f", float("inf"))),
                                        ("steps below 0", "scales", 60, struct.pack("<i", -1)),
                                        ("a scale of 0", "scales", 40, bytes(4)), ("a recipe", "scales", 8, huge), ("the loss scale", "loss_scale", 0, bytes(4))):
        write("wild/state_00000003.bin", state)
        state_edit("wild/state_00000003.bin", section, offset, data)
        r = run("--eval -y -o wild") if section in ("scales", "loss_scale") else run("-y -o wild")
        check(r.refused("state_00000003.bin", "no run makes"), f"row 9: a state with right checksums and {name} is refused", r)
    write("wild/state_00000003.bin", state)
    state_edit("wild/state_00000003.bin", "adamw_m", 40, state[64 * 4:64 * 4])
    check(run("-y -o wild").status == DONE, "row 9: and the undamaged state is taken")


def memory(result):
    found = re.search(r"peak memory ([\d.]+) MiB \(planned ([\d.]+)\)", result.out)
    return (float(found.group(1)), float(found.group(2))) if found else (0, 1)


@test
def the_plan():
    if args.trainer:
        return
    write("v.txt", "a line of text for validation\n" * 130000)
    options = "-e d1 --channels 16 --heads 1 -b 1 -x 1 -s 0 "
    peak, planned = memory(run(f"-i t.txt -j v.txt {options} -t 64 -n 0 -v 0 -m 1000000 -o out"))
    check(abs(peak / planned - 1) < 0.05, "row 10: the plan has the validation set", f"{peak} of {planned} MiB")
    run(f"-i t.txt -j t.txt {options} -t 16 -n 1 -v 0 -o long")
    header, *table = read("long/scales.tsv", "r").splitlines(True)
    write("long/scales.tsv", header + "".join(table) * 20000)  # of many steps, all of the first
    unfinish("long", 1)
    run(f"-i t.txt -j t.txt {options} -t 16 -n 1 -v 0 -o short".replace("-x 1", "-x 2"))
    shutil.copy("long/scales.tsv", "short/scales.tsv")
    unfinish("short", 2)
    size = os.path.getsize("short/scales.tsv") >> 20
    peak, planned = memory(run("-y -o short"))
    check(size >= 10 and abs(peak / planned - 1) < 0.05, "row 10: a resume does not hold scales.tsv", f"{peak} of {planned} MiB, {size} MiB")
    run(f"-i t.txt -j t.txt {options} -t 16 -n 20000 -v 0 --scales-every 0 -o rows --keep 0".replace("-x 1", "-x 40000"))
    unfinish("rows", 40000)
    peak, planned = memory(run("-y -o rows"))
    check(abs(peak / planned - 1) < 0.05, "row 10: nor its log", f"{peak} of {planned} MiB")
    run(f"-i t.txt -j t.txt {options} -t 16 -n 1 -v 0 -o big".replace("--channels 16 --heads 1", "").replace("-e d1", "-e d4"))
    peak, planned = memory(run(f"-i t.txt -j t.txt -e big/model_00000001.bin -t 16 -b 1 -x 1 -s 0 -n 0 -v 0 -o more"))
    check(abs(peak / planned - 1) < 0.05, "row 10: nor the model that it begins with", f"{peak} of {planned} MiB")


@test
def container():
    if args.trainer:
        return
    options = "-i t.txt -j t.txt -e d3 -t 256 -b 4 -x 2 -v 0 -s 0 -n 0 -o out"
    write("t.txt", text(3000))
    for base, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = f"{base}/trainer_test_{os.getpid()}"
        if not os.path.exists(f"{base}/cgroup.procs"):
            continue
        try:
            os.mkdir(group)
        except OSError as e:
            skip("a container's limit", e)
            continue
        try:
            write(f"{group}/{limit}", "40M")
            r = shell("sh", "-c", f"echo $$ > {group}/cgroup.procs && exec {shlex.join(trainer())} {options}")
            check(r.refused("40 are available") and not os.path.exists("out"), "row 10: a container's limit is looked at before the start", r)
        except OSError as e:
            skip("a container's limit", e)
        finally:
            time.sleep(0.2)
            with contextlib.suppress(OSError):
                os.rmdir(group)
        return
    skip("a container's limit", "no control group for memory")


# ---------------------------------------------------------------------------------------------------------------------
# 5. Resources: rows 11 and 12

@test
def data_that_change():
    options = "-j t.txt " + TINY + "-v 0 -n 0 -x 99999999 "
    write("d.txt", text())
    p = start(f"-i d.txt {options} -o short".replace("-x 99999999", "-x 500" if args.trainer else "-x 20000"), stdout=subprocess.DEVNULL)
    wait_for("short/log.tsv", p)
    write("e.txt", text().replace("some", "same"))
    shell("dd", "if=e.txt", "of=d.txt", "conv=notrunc")
    r = end(p)
    check(r.refused("d.txt"), "row 11: and at the end of a run that writes no checkpoint", r)

    def edit():  # in place: it is as long as before at every instant
        with open("d.txt", "r+b") as f:
            f.write(text().replace("some", "same").encode())

    write("d.txt", text())
    p = start(f"-i d.txt {options} -o touched", stdout=subprocess.DEVNULL)
    wait_for("touched/log.tsv", p)
    os.utime("d.txt", (1, 1))
    p.send_signal(signal.SIGINT)
    r = end(p)
    check(r.status == INTERRUPTED and glob.glob("touched/DONE_*"), "row 11: data written again as they were are the same", r)
    p = start(f"-i d.txt -j t.txt {TINY} -v 0 -n 1 --keep 0 -x 100 -o often", stdout=subprocess.DEVNULL,
              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    wait_for("often/log.tsv", p)
    os.utime("d.txt", (2, 2))
    r = end(p)
    check(r.status == DONE, "row 11: and are not opened again at every checkpoint", r)
    every = 100 if args.trainer else 2000
    for name, change in (("truncated", lambda: os.truncate("d.txt", 0)), ("edited", edit)):
        write("d.txt", text())
        p = start(f"-i d.txt {options} -n {every} -o {name}", stdout=subprocess.DEVNULL)
        wait_for(f"{name}/DONE_{every:08d}", p)
        change()
        r = end(p)
        check(r.refused("d.txt"), f"row 11: data that are {name} during a run end it with a line", r)


@test
def limits():
    def file_size(n):
        return lambda: (resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)), signal.signal(signal.SIGXFSZ, signal.SIG_DFL))
    r = run(DATA + TINY + "-v 0 -n 2 -x 4 -o out", preexec_fn=file_size(20000))
    check(r.refused("model_00000002.bin", "cannot write"), "row 11: a limit on the size of files is an error like any other", r)
    for name in ("v.floor.tsv", "base/log.tsv"):
        os.makedirs("base", exist_ok=True)
        os.mkfifo(name)
    write("v.txt", text())
    r = end(start("-i t.txt -j v.txt " + TINY + "-x 1 -v 0 -o f1"), 10)
    check(r.refused("v.floor.tsv", "pipe"), "row 11: a pipe as sidecar does not hang", r)
    r = end(start(DATA + TINY + "-x 1 -v 0 --baseline base -o f2"), 10)
    check(r.refused("base/log.tsv", "pipe"), "row 11: nor one as baseline", r)
    with open("/dev/full", "w") as full:
        r = run(DATA + TINY + "-v 0 -n 0 -x 100000 -o full", stdout=full)
    check(r.status == BAD_INPUT and "standard output" in r.err and "-y -o 'full'" in r.err and glob.glob("full/DONE_*"),
          "row 11: a full screen file: status 2, after a checkpoint", r)
    with open("/dev/full", "w") as full:
        check(run("--help", stdout=full).status == BAD_INPUT, "row 11: --help that cannot be written is an error")
    command = shlex.join(trainer()) + f" {DATA}{TINY} -v 0 -n 0 -x 1000000 -o piped"
    r = shell("bash", "-c", f"{command} | head -30 > /dev/null; exit ${{PIPESTATUS[0]}}")
    check(r.status == BAD_INPUT and glob.glob("piped/DONE_*"), "row 11: a pipe that is closed: status 2, after a checkpoint", r)
    if not args.trainer:
        r = run("-i t.txt -j t.txt -e d2 -t 64 -b 4 -x 4 -v 2 -n 2 --scales-every 1 -o stack", env={"OMP_STACKSIZE": "64k", "OMP_NUM_THREADS": "2"})
        check(r.status == DONE, "row 11: threads with small stacks", r)
    for name, ignored in (("hangup", False), ("nohup", True)):
        p = start(DATA + TINY + f"-v 0 -n 0 -x 99999999 -o {name}", stdout=subprocess.DEVNULL,
                  preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL))
        wait_for(name + "/log.tsv", p)
        time.sleep(0.05)
        p.send_signal(signal.SIGHUP)
        if ignored:
            time.sleep(0.2)
            check(p.poll() is None, "row 11: under nohup a run goes on")
            p.kill()
            end(p)
            continue
        with contextlib.suppress(ProcessLookupError):
            p.send_signal(signal.SIGHUP)  # a shell and the kernel may both say so
        r = end(p)
        check(r.status == INTERRUPTED and glob.glob("hangup/DONE_*"), "row 11: a closed terminal leaves a checkpoint", r)
    lost = 0
    for i in range(6):  # timeout(1) signals its child, then the whole group
        out = f"timeout{i}"
        p = start(f"-i t.txt -j t.txt -e d2 -t 64 -b 8 -x 100000 -v 0 -s 0 -n 0 -o {out}", stdout=subprocess.DEVNULL)
        wait_for(out + "/log.tsv", p)
        time.sleep(0.05)
        p.terminate()
        time.sleep(i * 0.0005)
        p.terminate()
        end(p)
        lost += not glob.glob(out + "/DONE_*")
    check(not lost, "row 11: a second SIGTERM does not lose the checkpoint of the first", f"{lost} of 6 lost")
    p = start(DATA + TINY + "-v 0 -n 0 -x 99999999 -o ill", stdout=subprocess.DEVNULL)
    wait_for("ill/log.tsv", p)
    p.send_signal(signal.SIGILL)
    r = end(p)
    check(r.refused("built for another CPU"), "row 11: an instruction that this CPU lacks is explained", r)


@test
def no_locks():
    if not shutil.which("cc"):
        return skip("a file system without locks", "no C compiler")
    write("s.c", "#include <errno.h>\nint flock(int a, int b) { (void)a, (void)b; errno = ENOSYS; return -1; }\n")
    shell("cc", "-shared", "-fPIC", "s.c", "-o", "s.so")
    r = run(DATA + TINY + "-x 1 -v 0 -n 0 -o out", env={"LD_PRELOAD": os.path.abspath("s.so")})
    check(r.status == DONE and "cannot lock" in r.err and "Function not implemented" in r.err,
          "row 12: a file system without locks is told, and trains", r)


# ---------------------------------------------------------------------------------------------------------------------
# 6. The comparison: rows 1 and 8

class Compare:
    """build/compare, in the project's directory, with directories of its own."""

    def __init__(self):
        self.here = os.getcwd()
        self.data = f"-i {self.here}/t.txt -j {self.here}/t.txt -e d1 -t 16 -b 1 -m 2"

    def start(self, arms, out, options, *more, before=()):
        words = list(before) + ["build/compare", "--arms", arms, "--out", f"{self.here}/{out}", *more]
        return subprocess.Popen(words + (["--"] + shlex.split(f"{self.data} {options}") if options is not None else []), cwd=args.bin,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)

    def run(self, *words, **more):
        return end(self.start(*words, **more), 120)


def children(pid):
    found = shell("pgrep", "-P", str(pid)).out.split()
    return [int(p) for p in found]


@test
def comparison():
    if args.trainer:
        return
    if not os.path.exists(os.path.join(args.bin, "build/compare")):
        return skip("the comparison", "no build/compare")
    c = Compare()
    r = c.run("fp16,fp8", "one", "-x 4 -v 2 -n 4", "--seeds", "1")
    check(os.path.exists("one/curves.svg"), "row 8: one seed has a picture, too", r)
    r = c.run("fp16,fp8 --bf16 frist", "typo", "-x 4 -v 2 -n 4", "--seeds", "1")
    check(r.refused("arm 'fp8 --bf16 frist'", "frist") and not glob.glob("typo/*"), "row 8: a later arm's typo is found before training", r)
    r = c.run("fp8", "many", "-x 10000 -v 1", "--seeds", "1")
    check(r.refused("validations") and not glob.glob("many/*"), "row 8: more validations than it takes are refused before training", r)
    r = c.run("bf16,fp8", "shape", "--layers 2 -x 4 -v 2", "--seeds", "2")
    evaluated = [f for f in glob.glob("shape/*.bf16") if ": loss" in read(f, "r")]
    check(len(evaluated) == 2, "row 8: --layers for all arms keeps the BF16 validation", r)
    for seeds in ("2147483647-2147483647", "0-3", "5-", "1-x", "3-1", "1-1000"):
        r = c.run("fp8", "seeds", "-x 1", "--seeds", seeds)
        check(r.refused("--seeds"), f"row 8: --seeds {seeds} is refused", r)
    check(c.run("fp8", "bound", "-x 1", "--bound", "inf").refused("--bound"), "row 8: an infinite bound is refused")
    write("pairs.tsv", "".join(f"{i}\t{i + 1}\n" for i in range(70000)))
    r = shell(os.path.join(args.bin, "build/compare"), "--statistics", "pairs.tsv")
    check(r.out.startswith("70000\t"), "row 8: --statistics takes every row", r)
    r = end(subprocess.Popen(["build/compare", "--arms", "fp16,fp8", "--pool", f"{c.here}/one/runs.tsv", "--out", f"{c.here}/full"],
                             cwd=args.bin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))))
    check(r.status == BAD_INPUT and "cannot write" in r.err and not os.path.exists("full/summary.tsv"), "row 8: on a full disk it ends with 2", r)
    write("nan.tsv", re.sub(r"(?m)^(\d+)\t", r"inf\t", read("one/fp8-1/log.tsv", "r")))
    shutil.copy("nan.tsv", "one/fp8-1/log.tsv")
    r = c.run("fp16,fp8", "one", "-x 4 -v 2 -n 4", "--seeds", "1")
    check(r.status == DONE and rows("one/fp8-1/log.tsv")[0] == [1, 2, 3, 4], "row 8: a run whose log has infinite steps is made again", r)
    check("fp8-1.old-1" in r.out and read("one/fp8-1.old-1/log.tsv") == read("nan.tsv"), "row 1: and what was there is kept", r)
    shutil.rmtree("one/fp8-1")
    os.mkdir("one/fp8-1")
    write("one/fp8-1/notes.txt", "precious")
    r = c.run("fp16,fp8", "one", "-x 4 -v 2 -n 4", "--seeds", "1")
    check(read("one/fp8-1.old-2/notes.txt") == b"precious", "row 1: so is a directory that is no run", r)
    shutil.rmtree("one/fp8-1")
    run(f"{c.data} -s 0 -x 4 -v 2 -n 2 --seed 77 --data-seed 77 -o one/fp8-1")
    unfinish("one/fp8-1", 4)
    before = sorted(os.listdir("one/fp8-1"))
    r = c.run("fp16,fp8", "one", "-x 4 -v 2 -n 4", "--seeds", "1")
    check(r.refused("expected seed", "use another --out") and sorted(os.listdir("one/fp8-1")) == before, "row 1: a run of another seed is left alone", r)
    shutil.rmtree("one/fp8-1")
    write("shape/fp8-1.bf16.part", "")
    write("shape/fp8-2.bf16.part", "half of it")
    for f in glob.glob("shape/fp8*.bf16"):
        os.remove(f)
    c.run("bf16,fp8", "shape", "--layers 2 -x 4 -v 2", "--seeds", "2")
    check(all(": loss" in read(f"shape/fp8-{s}.bf16", "r") for s in (1, 2)), "row 8: an evaluation that was stopped is made again")
    r = end(subprocess.Popen(["build/compare", "--arms", "bf16", "--pool", f"{c.here}/shape/runs.tsv", "--out", f"{c.here}/shape"],
                             cwd=args.bin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    check(r.refused("written over") and read("shape/runs.tsv", "r").count("\tfp8") + read("shape/runs.tsv", "r").count("\nfp8") == 2,
          "row 8: rows that are pooled are not written over", r)
    write("victim", "precious")
    os.remove("one/summary.tsv")
    os.symlink("../victim", "one/summary.tsv")
    c.run("fp16,fp8", "one", "-x 4 -v 2 -n 4", "--seeds", "1")
    check(read("victim") == b"precious", "row 6: a link under a table's name is not written through")


@test
def comparison_keeps_runs():
    if args.trainer or not os.path.exists(os.path.join(args.bin, "build/compare")):
        return
    c = Compare()
    command = ("fp8", "live", "-x 20000 -v 5000 -n 0")
    first = c.start(*command, "--seeds", "1")
    wait_for("live/fp8-1/log.tsv", first)
    time.sleep(0.2)
    waiting = children(first.pid)
    training = [p for w in waiting for p in children(w)]
    for p in training:
        os.kill(p, signal.SIGSTOP)  # stands for a long step
    first.kill()
    for w in waiting:
        os.kill(w, signal.SIGKILL)
    end(first)
    inode = os.stat("live/fp8-1").st_ino
    second = c.start(*command, "--seeds", "1")
    time.sleep(0.7)
    alive = os.path.exists("live/fp8-1/log.tsv") and os.stat("live/fp8-1").st_ino == inode
    for p in training:
        with contextlib.suppress(ProcessLookupError):
            os.kill(p, signal.SIGCONT)
    r = end(second, 180)
    steps = rows("live/fp8-1/log.tsv")[0]
    check(training and alive and r.status == 0 and steps == list(range(1, 20001)),
          "row 1: a run whose old trainer is still at work is waited for, not removed", f"{alive} {len(steps)} {r}")
    if not shutil.which("strace"):
        return skip("a log that cannot be read", "no strace")
    command = ("fp8", "held", "-x 40000 -v 5000 -n 100")
    first = c.start(*command, "--seeds", "1")
    wait_for("held/fp8-1/DONE_00000200", first)
    for w in children(first.pid):
        for p in children(w):
            os.kill(p, signal.SIGINT)
    end(first)
    before = sorted(os.listdir("held/fp8-1"))
    log = f"{c.here}/held/fp8-1/log.tsv"
    r = c.run(*command, "--seeds", "1", before=["strace", "-f", "-o", f"{c.here}/emfile.tr", "-e", "trace=openat", "-P", log, "-e",
                                                 "inject=openat:error=EMFILE"])
    check(r.status == BAD_INPUT and sorted(os.listdir("held/fp8-1")) == before,
          "row 1: a run whose log cannot be read is left alone, with a message", r)


# ---------------------------------------------------------------------------------------------------------------------
# 7. Campaigns

RUN = DATA + TINY + "-v 4 -m 2 -n 3 --keep 2 --scales-every 2 "


def straight(steps):
    if not os.path.exists("straight"):
        run(RUN + f"-x {steps} -o straight")
    return "straight"


def campaign_kill(count, seed):
    """Kills runs at instants that nobody chose, also while they resume; each is resumed to its end, which must be the same."""
    steps, draws, kills = 60, random.Random(seed), 0
    straight(steps)
    while kills < count:
        shutil.rmtree("out", ignore_errors=True)
        command = RUN + f"-x {steps} -o out"
        for _ in range(8):
            p = start(command, stdout=subprocess.DEVNULL)
            time.sleep(draws.random() * 0.08)
            p.kill()
            r = end(p)
            kills += r.status == -signal.SIGKILL
            if r.status not in (-signal.SIGKILL, DONE):
                break
            command = "-y -o out" if glob.glob("out/DONE_????????") else RUN + f"-x {steps} -o out"
            if command[0] != "-" or not command.startswith("-y"):
                shutil.rmtree("out", ignore_errors=True)  # as the message says: it has no checkpoint
        r = run(command)
        differs = same_end("out", "straight", steps) if r.status == DONE else r
        check(r.status == DONE and differs is None, f"kill, seed {seed}: after kills a resume ends as if nothing had been", differs)
    print(f"     {kills} kills")


CALLS = {"openat": "EMFILE EACCES EIO EINTR", "read": "EIO EINTR", "pread64": "EIO EINTR", "write": "ENOSPC EIO", "fsync": "EIO ENOSPC",
         "renameat": "EIO EACCES", "unlinkat": "EACCES", "ftruncate": "EIO", "newfstatat": "EIO", "fstat": "EIO", "getdents64": "EIO",
         "flock": "ENOLCK", "mkdir": "EACCES ENOSPC", "lseek": "EIO", "close": "EIO"}


def campaign_inject(count, seed):
    """Makes one system call of a resume fail: it ends with 0, or with 2 and words; a resume after it ends as if nothing had been."""
    if not shutil.which("strace"):
        return skip("injected errors", "no strace")
    steps, draws, hits = 12, random.Random(seed), 0
    finished(RUN, "begun", steps, 6)
    run(RUN + f"-x {steps} -n 1 --keep 0 -o whole")
    cases = [(call, error) for call, errors in CALLS.items() for error in errors.split()]
    shutil.copytree("begun", "out")
    run("-y -o out", before=["strace", "-f", "-o", "calls.tr", "-e", "trace=" + ",".join(CALLS)])
    made = re.findall(r"^\d+ +(\w+)\(", read("calls.tr", "r"), re.M)  # how often a resume makes each
    for i in range(count):
        call, error = cases[i % len(cases)]
        when = draws.randrange(1, made.count(call) + 2)
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree("begun", "out")
        r = run("-y -o out", before=["strace", "-f", "-o", "inject.tr", "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"])
        hit = "INJECTED" in read("inject.tr", "r")
        hits += hit
        name = f"inject, seed {seed}: {call} number {when} fails with {error}"
        check(r.status in (DONE, BAD_INPUT, 1, 127) and (r.status != BAD_INPUT or len(r.err.strip().splitlines()) >= 1), name, r)
        if r.status != DONE:
            r = run("-y -o out")
        differs = same_end("out", "whole", steps) if r.status == DONE else r
        check(differs is None, name + "; then a resume", differs)
    print(f"     {hits} of {count} errors were met")


def campaign_fuzz(count, seed):
    """Damages files that a trainer reads. None may crash it; what checksums or rules guard must be refused, in one line."""
    draws, refused = random.Random(seed), 0
    options = DATA + TINY + "-v 2 -m 2 --scales-every 1 "
    finished(options, "good", 4, 2)
    write("shard.bin", struct.pack("<256i", 20240520, 1, 2000, 256, *[0] * 252) + bytes(b for i in range(2000) for b in (i % 200, 0)))
    write("tok.bin", struct.pack("<256I", 20240328, 2, 256, 0, *[0] * 252) + b"".join(bytes([1, i]) for i in range(256)))
    shutil.copy("good/model_00000002.bin", "model.bin")
    eval_model = "--eval -e model.bin -i t.txt -t 16 -b 1 -m 2"
    targets = {"hurt/state_00000002.bin": ("-y -o hurt", True), "hurt/model_00000002.bin": ("-y -o hurt", True),
               "hurt/log.tsv": ("-y -o hurt", False), "hurt/scales.tsv": ("-y -o hurt", False), "model.bin": (eval_model, False),
               "shard.bin": ("-i shard.bin " + TINY + "-x 1 -v 0 -n 0 -o shard", False),
               "tok.bin": ("--prompt ab --generate 4 --tokenizer tok.bin -e good/model_00000002.bin", False)}
    names = list(targets)
    for i in range(count):
        path = names[i % len(names)]
        command, guarded = targets[path]
        for directory in ("hurt", "shard"):
            shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree("good", "hurt")
        good = read(path)
        data, kind = bytearray(good), draws.randrange(4)
        if kind == 0:
            for _ in range(draws.randrange(1, 4)):
                data[draws.randrange(min(len(data), 4096) if draws.random() < 0.5 else len(data))] ^= 1 << draws.randrange(8)
        elif kind == 1:
            data = data[:draws.randrange(len(data))]
        elif kind == 2:
            at = draws.randrange(len(data))
            data[at:at + draws.randrange(1, 64)] = bytes(draws.randrange(256) for _ in range(draws.randrange(64)))
        else:
            at, to = sorted(draws.randrange(len(data) + 1) for _ in range(2))
            data[at:at] = data[at:to][:512] or b"\0"
        write(path, bytes(data))
        r = end(start(command), 20)
        write(path, good)
        name = f"fuzz, seed {seed}, case {i}: {path}"
        fine = r.status in (DONE, BAD_INPUT, NONFINITE) and (r.status == DONE or len(r.err.strip().splitlines()) == 1)
        check(fine and not (guarded and r.status == DONE and bytes(data) != good), name, r)
        refused += r.status == BAD_INPUT
    print(f"     {refused} of {count} damaged files were refused")


# ---------------------------------------------------------------------------------------------------------------------

def in_new_directory(function, *arguments):
    here, folder = os.getcwd(), tempfile.mkdtemp()
    os.chdir(folder)
    write("t.txt", text())
    os.chmod(folder, 0o755)
    os.chmod("t.txt", 0o644)
    try:
        function(*arguments)
    except Exception as e:  # a check that cannot be made is one that failed
        check(False, function.__name__, f"{type(e).__name__}: {e}")
    os.chdir(here)
    shutil.rmtree(folder, ignore_errors=True)


def main():
    global args
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("campaigns", nargs="*")
    p.add_argument("--bin", default=ROOT)
    p.add_argument("--trainer")
    p.add_argument("--only", default="")
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    args.bin = os.path.abspath(args.bin)
    if args.trainer:
        first, *rest = shlex.split(args.trainer)
        args.trainer = shlex.join([os.path.abspath(first)] + rest)
    kinds = {"kill": campaign_kill, "inject": campaign_inject, "fuzz": campaign_fuzz}
    words = args.campaigns
    if len(words) % 2 or any(w not in kinds for w in words[::2]) or not all(w.isdigit() for w in words[1::2]):
        p.error("expected pairs of kill, inject or fuzz and a number")
    for kind, count in zip(words[::2], words[1::2]):
        in_new_directory(kinds[kind], int(count), args.seed)
    for function in checks if not words else []:
        if args.only in function.__name__:
            in_new_directory(function)
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
