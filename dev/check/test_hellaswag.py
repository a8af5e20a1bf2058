#!/usr/bin/env python3
"""data/hellaswag.py and build/eval/hellaswag_* against independent references:

    make all build/eval/hellaswag_fp32 build/eval/hellaswag_bf16 build/eval/hellaswag_fp8
    python3 dev/check/test_hellaswag.py [--shared DIR]

Files are compared with an encoding from scratch (bytes; tiktoken), losses with transformers' GPT-2
in float64, for the tokens that llm.c takes. Tasks come from DIR (../shared/data) if it is there,
else they are made here; GPT-2's tokens are random ones then. Exit status: 0 all passed
(a check without its package says `skip`), 1 not. Packages: numpy torch transformers tiktoken
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile

import numpy as np

ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "..")
parser = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shared", default=os.path.join(ROOT, "..", "shared", "data"))
SHARED = parser.parse_args().shared
VOCABULARY = os.path.realpath(os.path.join(SHARED, "gpt2-r50k.tiktoken"))
TEXT = os.path.realpath(os.path.join(SHARED, "hellaswag_val_full.txt"))
T, TASKS, GPT2 = 256, 30, 50257
TOLERANCE = 3e-6  # relative, of a summed loss in fp32
passed = failed = 0


def check(name, ok, detail=""):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print(f"FAIL {name}: {detail}")


def call(*command):
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)


def prepared(*args):
    return call(sys.executable, os.path.join(ROOT, "data", "hellaswag.py"), *args)


def scored(precision, model, tasks, *args):
    return call(os.path.join(ROOT, "build", "eval", f"hellaswag_{precision}"), model, tasks, *args)


def trained(precision, out, *args):
    """A run of a few steps."""
    run = call(os.path.join(ROOT, f"train_gpt_{precision}"), *args, "-b", "2", "-v", "0", "-s", "0",
               "-t", str(T), "-e", "d1", "-o", out)
    check(f"train_gpt_{precision} makes {out}", run.returncode == 0, run.stderr)


def sharpened(path):
    """A model of one step finds all tokens alike; the same weights times four do not."""
    raw = open(path, "rb").read()
    weights = np.frombuffer(raw, "<f4", offset=1024) * np.float32(4)
    return write(path + ".sharp", raw[:1024] + weights.tobytes())


def refused(name, result, pattern):
    lines = result.stderr.splitlines()
    check(f"{name}: refused", result.returncode == 2 and len(lines) == 1 and not result.stdout
          and re.search(pattern, lines[0]), f"{result.returncode} {result.stderr!r}")


def write(path, data):
    with open(path, "wb") as f:
        f.write(data.encode() if isinstance(data, str) else data)
    return path


# ---- tasks: (context, label, endings), of text or of tokens

def made_tasks():
    rng = random.Random(1)
    words = "a man the dog café runs over “there” 12 and, then\u2028 😀 it's".split(" ")
    text = lambda low, high: " ".join(rng.choices(words, k=rng.randint(low, high)))
    return [(text(1, 60), rng.randrange(4), [text(1, 30) for _ in range(4)]) for _ in range(TASKS)]


def text_tasks():
    if not os.path.exists(TEXT):
        return made_tasks()
    with open(TEXT, encoding="utf-8", newline="\n") as f:
        lines = f.read().split("\n")
    tasks = [(lines[i], int(lines[i + 1]), lines[i + 2:i + 6]) for i in range(0, 60246, 6 * 97)]
    short = [t for t in tasks if max(len(e.encode()) + 1 for e in t[2]) <= T]
    return short[:TASKS]


def random_tasks(V):
    rng = np.random.default_rng(2)
    part = lambda low, high: rng.integers(0, V, rng.integers(low, high)).tolist()
    return [(part(1, 300), int(rng.integers(4)), [part(1, 40) for _ in range(4)])
            for _ in range(TASKS)]


def encoded(tasks, encode):
    return [(encode(c), label, [encode(" " + e) for e in endings]) for c, label, endings in tasks]


def file_of(tasks, vocabulary_field):
    """The file of tasks of tokens, by llm.c's description of its format."""
    body, longest = b"", 0
    for index, (context, label, endings) in enumerate(tasks):
        parts = [n for part in [context, *endings] for n in [len(part), *part]]
        words = np.array([65535, 2 * (5 + len(parts)), index, label, 4, *parts], "<u2")
        body, longest = body + words.tobytes(), max(longest, words.nbytes)
    header = np.zeros(256, "<i4")
    header[:5] = 20240522, 1, len(tasks), longest, vocabulary_field
    return header.tobytes() + body


def gpt2_encode():
    try:
        import tiktoken.load
        from tiktoken_ext.openai_public import r50k_pat_str
    except ImportError:
        return print("skip: GPT-2 tokens against tiktoken: no Python package tiktoken")
    if not os.path.exists(VOCABULARY):
        return print(f"skip: GPT-2 tokens against tiktoken: no {VOCABULARY}")
    ranks = tiktoken.load.load_tiktoken_bpe(VOCABULARY)
    return tiktoken.Encoding("g", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens={}).encode_ordinary


def test_files(tasks, encode):
    lines = "".join(f"{c}\n{label}\n" + "".join(e + "\n" for e in es) for c, label, es in tasks)
    write("tasks.txt", lines)
    write("crlf.txt", lines.replace("\n", "\r\n"))
    write("tasks.jsonl", "".join(json.dumps({"ctx": c, "label": label, "endings": es, "ind": 1})
                                 + "\n" for c, label, es in tasks))
    kinds = [("byte", encoded(tasks, lambda s: list(s.encode())), 256)]
    if encode:
        kinds.append(("gpt2", encoded(tasks, encode), 0))
    for kind, tokens, field in kinds:
        for source in ["tasks.txt", "crlf.txt", "tasks.jsonl"]:
            vocab = ["--vocab", VOCABULARY] if kind == "gpt2" else []
            result = prepared("--input", source, "--vocab-kind", kind, *vocab, "--out", "o.bin")
            same = result.returncode == 0 and open("o.bin", "rb").read() == file_of(tokens, field)
            check(f"{source} as {kind}: the bytes of an encoding from scratch", same, result.stderr)
    task = {"ctx": "a\ud800", "label": "2", "endings": list("bcde")}  # half a surrogate pair
    write("half.jsonl", json.dumps(task))
    prepared("--input", "half.jsonl", "--vocab-kind", "byte", "--out", "o.bin")
    want = file_of([(list(b"a?"), 2, [list(b" " + e) for e in (b"b", b"c", b"d", b"e")])], 256)
    check("half a surrogate pair becomes ?", open("o.bin", "rb").read() == want)
    return kinds[0][1], kinds[1][1] if encode else random_tasks(GPT2)


# ---- losses

def gpt2_model(path):
    """transformers' model of a model file; dev/check/test_hf.py holds the export to the bits."""
    from transformers import GPT2LMHeadModel
    out = path + ".hf"
    result = call(sys.executable, os.path.join(ROOT, "data", "hf.py"), "export", path, "--out", out)
    check(f"{path}: exported", result.returncode == 0, result.stderr)
    return GPT2LMHeadModel.from_pretrained(out).double().eval()


def reference_sums(model, task):
    """Summed losses of the endings' tokens; the mask is shifted to the positions before them."""
    import torch
    sums = []
    for ending in task[2]:
        tokens = (task[0] + ending)[-(T + 1):]
        mask = [0] * (len(tokens) - len(ending)) + [1] * len(ending)
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:-1]])).logits[0]
        targets = torch.tensor(tokens[1:])
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        sums.append(float((losses * torch.tensor(mask[1:])).sum()))
    return sums


def rows_of(result):
    """(label, sums, tokens) of every row that -r printed."""
    rows = [line.split("\t") for line in result.stdout.splitlines() if re.match(r"\d+\t", line)]
    return [(int(r[1]), [float(x) for x in r[2:6]], [int(x) for x in r[6:]]) for r in rows]


def test_losses(name, model, tasks, V):
    write(f"{name}.bin", file_of(tasks, V % GPT2))
    rows = rows_of(result := scored("fp32", model, f"{name}.bin", "-r"))
    check(f"{name}: a row a task", len(rows) == len(tasks), result.stderr)
    lengths = [[len(e) for e in t[2]] for t in tasks]
    check(f"{name}: labels and tokens", [(r[0], r[2]) for r in rows]
          == [(t[1], n) for t, n in zip(tasks, lengths)])
    cut = sum(len(t[0]) + max(n) > T + 1 for t, n in zip(tasks, lengths))
    line = f"tasks       {len(tasks)}, of which {cut} lost"
    check(f"{name}: some tasks are cut on the left, and counted",
          0 < cut < len(tasks) and line in result.stdout, (cut, result.stdout))
    try:
        reference = gpt2_model(model)
    except ImportError as missing:
        return print(f"skip: losses of {name} by transformers: no package {missing.name}")
    sums = np.array([reference_sums(reference, task) for task in tasks])
    error = np.abs(np.array([r[1] for r in rows]) / sums - 1).max()
    check(f"{name}: losses of transformers' GPT-2", error < TOLERANCE, error)
    spread = np.array([min(s) / max(s) for s in sums / np.array(lengths)]).mean()
    print(f"{name}: largest relative error {error:.2g}; least mean loss / largest {spread:.2f}")
    for what, values in [("mean", sums / np.array(lengths)), ("summed", sums)]:
        right = int((values.argmin(1) == [t[1] for t in tasks]).sum())
        p = right / len(tasks)
        score = f"{p:.4f} +- {math.sqrt(p * (1 - p) / (len(tasks) - 1)):.4f}"
        pattern = rf"by {what} loss.* {re.escape(score)}\n"
        check(f"{name}: accuracy by {what} loss", re.search(pattern, result.stdout),
              (score, result.stdout))


def test_choices(model):
    """Equal losses: the first ending is chosen. -n takes the first tasks."""
    same = [([1, 2], label, [[3, 4]] * 4) for label in [0, 0, 0, 1, 2, 3, 0]]
    for count, score in [(3, "1.0000"), (6, "0.5000"), (9, "0.5714")]:
        result = scored("fp32", model, write("same.bin", file_of(same, 256)), "-n", str(count))
        check(f"the first of equal losses, {count} tasks", result.stdout.count(f" {score} ") == 2
              and f"tasks       {min(count, 7)}," in result.stdout, result.stdout + result.stderr)


def test_independence(model, tasks, V):
    """A loss keeps its last digit when other endings change places or become longer."""
    turned = [(c, label, es[::-1]) for c, label, es in tasks]
    longer = [(c, label, [(es[0] * T)[:T], *es[1:]]) for c, label, es in tasks]
    for name, those in [("as", tasks), ("turned", turned), ("longer", longer)]:
        write(f"{name}.bin", file_of(those, V % GPT2))
    for precision in ["fp32", "bf16", "fp8"]:
        sums = {name: [r[1] for r in rows_of(scored(precision, model, f"{name}.bin", "-r"))]
                for name in ["as", "turned", "longer"]}
        check(f"{precision}: losses of turned endings", len(sums["as"]) == len(tasks)
              and [s[::-1] for s in sums["turned"]] == sums["as"])
        check(f"{precision}: losses beside a longer ending",
              [s[1:] for s in sums["longer"]] == [s[1:] for s in sums["as"]])


def test_run(tasks):
    """FP8: a run's directory has tracked scales, its model file has not; both are near FP32."""
    trained("fp8", "run", "-i", "data.txt", "-x", "4", "-n", "4")
    write("run.bin", file_of(tasks, 256))
    model = "run/model_00000004.bin"
    tracked, own, exact = (np.array([r[1] for r in rows_of(scored(p, m, "run.bin", "-r"))])
                           for p, m in [("fp8", "run"), ("fp8", model), ("fp32", model)])
    for name, sums in [("tracked", tracked), ("own", own)]:
        error = np.abs(sums / exact - 1).max() if sums.shape == exact.shape else 1
        check(f"FP8 with {name} scales is near FP32, and not the same", 0 < error < 0.02, error)
    check("FP8: tracked scales and own amax give other losses", not np.array_equal(tracked, own))
    # A text of one row: the loss that the trainer validates it with, to the last digit.
    row = list(open("data.txt", "rb").read()[:T + 1])
    write("row.txt", bytes(row))
    write("row.bin", file_of([(row[:1], 0, [row[1:]] * 4)], 256))
    ways = [("run", "run", ["-y", "-o", "run"]), ("file", model, ["-e", model])]
    for name, source, theirs in ways:
        result = call(os.path.join(ROOT, "train_gpt_fp8"), "--eval", *theirs, "-i", "data.txt",
                      "-j", "row.txt", "-t", str(T))
        ours = [f"loss {r[1][0] / T:.6f}" for r in rows_of(scored("fp8", source, "row.bin", "-r"))]
        check(f"FP8, a {name}: the loss of --eval", ours and ours[0] in result.stdout,
              (ours, result.stdout[-200:], result.stderr))
    short = write("short.bin", file_of([([1], 0, [[2], [3], [4], [5, 6]])], 256))
    result = scored("fp8", "run", short)
    check("a run's directory, tasks shorter than its context", not result.returncode, result.stderr)
    refused("a run of another precision", scored("bf16", "run", "run.bin"), r"build .* 2, found 0")


# ---- refusals

def test_refusals(model, tasks):
    good = file_of(tasks, 256)

    def field(at, value):
        return good[:4 * at] + np.int32(value).tobytes() + good[4 * at + 4:]

    def words(at, value):
        return good[:1024 + 2 * at] + np.uint16(value).tobytes() + good[1026 + 2 * at:]

    long = [([1], 0, [[1] * (T + 1), [1], [1], [1]])]
    cases = [
        (field(0, 20240520), "magic"), (field(1, 2), "version"), (field(2, 0), "tasks"),
        (field(2, 65536), "tasks"), (field(2, len(tasks) + 1), "task 30: .*end of the file"),
        (field(2, len(tasks) - 1), "end of the file after"), (field(4, 1000), "vocabulary"),
        (field(4, 0), "vocabulary of 256.*found 50257"), (words(0, 0), "delimiter"),
        (words(1, 20), "20 bytes, found"), (words(2, 1), "index of 0 to 0, found 1"),
        (words(3, 4), "label of 0 to 3, found 4"), (words(4, 5), "endings"),
        (words(5, 0), "number of tokens"), (words(5, 60000), "number of tokens"),
        (words(6, 256), "token of 0 to 255, found 256"), (good[:-2], "task 29: .*the end"),
        (good[:-1], "whole tokens"), (good[:1024], "whole tokens"), (good[:3], "magic"),
        (good + b"\0\0", "2 more bytes"), (b"", "empty"),
        (file_of(long, 256), "task 0: an ending has 257 tokens.*context 256")]
    for i, (data, pattern) in enumerate(cases):
        refused(f"tasks, case {i}", scored("fp32", model, write("bad.bin", data)), pattern)
    write("good.bin", good)
    os.makedirs("empty", exist_ok=True)
    for (who, *args), pattern in [
            (["good.bin", "good.bin"], "llm.c model"), (["none", "good.bin"], "none"),
            (["empty", "good.bin"], "no finished checkpoint"), ([model, "none.bin"], "none.bin"),
            ([model, "good.bin", "-n", "0"], "-n"), ([model, "good.bin", "-n"], "unexpected"),
            ([model, "good.bin", "x"], "argument 'x'"), ([model, "-r"], "usage")]:
        refused(f"{who} {args}", scored("fp32", who, *args), pattern)
    to_bad = ["--vocab-kind", "byte", "--out", "bad/o.bin"]
    line = json.dumps({"ctx": "a", "label": 0, "endings": ["b", "c", "d", "e"]})
    for name, data, pattern in [
            ("a.txt", "a\n0\nb\nc\nd\n", "six lines"), ("a.txt", "a\n4\nb\nc\nd\ne\n", "label"),
            ("a.txt", "a\n0\nb\n\nd\ne\n", "not empty"), ("a.txt", b"a\xff\n0\n", "UTF-8"),
            ("a.txt", "a\n0\nb\nc\nd\n" + "e" * 33000 + "\n", "at most"),
            ("a.jsonl", "{}\n", "line 1: expected an object"), ("a.jsonl", "\n", "found none"),
            ("a.jsonl", line.replace("0", '""'), "label"), ("a.jsonl", "[" * 9999, "line 1"),
            ("a.jsonl", line.replace('"e"', "5"), "not empty"),
            ("a.jsonl", '{"ctx": "a", "label": 0, "endings": "bcde"}', "not empty"),
            ("a.jsonl", "\n" + line[1:], "line 2")]:
        result = prepared("--input", write(name, data), *to_bad)
        refused(f"{name} {data[:20]!r}", result, pattern)
    write("web/hellaswag_val.jsonl", line)
    for args, pattern in [(["--input", "none.txt"], "none.txt"),
                          (["--base-url", "file://" + os.path.abspath("web")], "expected sha256"),
                          (["--input", "a.txt", "--vocab", "a.txt"], "bytes need no vocabulary")]:
        refused(" ".join(args), prepared(*args, *to_bad), pattern)
    check("nothing is left where it was refused", os.listdir("bad") == [], os.listdir("bad"))


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.makedirs("web")
        tasks = text_tasks()
        by_byte, by_gpt2 = test_files(tasks, gpt2_encode())
        write("data.txt", "".join(f"{c} {e}\n" for c, _, es in made_tasks() for e in es))
        header = np.zeros(256, "<i4")
        header[:4] = 20240520, 1, 5000, GPT2
        shard = np.random.default_rng(3).integers(0, GPT2, 5000).astype("<u2")
        write("data.bin", header.tobytes() + shard.tobytes())
        trained("fp32", "byte", "-i", "data.txt", "-x", "1", "-n", "1")
        trained("fp32", "gpt2", "-i", "data.bin", "-x", "1", "-n", "1")
        model = sharpened("byte/model_00000001.bin")
        test_losses("byte", model, by_byte, 256)
        # Contexts of real tasks are short in GPT-2's tokens: what comes before lengthens some.
        longer = [((by_gpt2[i - 1][0] * 9)[:40 * (i % 9)] + t[0], *t[1:])
                  for i, t in enumerate(by_gpt2)]
        test_losses("gpt2", sharpened("gpt2/model_00000001.bin"), longer, GPT2)
        test_choices(model)
        test_independence(model, by_byte, 256)
        test_run(by_byte)
        test_refusals(model, by_byte)
        os.chdir(ROOT)
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
