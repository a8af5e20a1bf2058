#!/usr/bin/env python3
"""Test of the data scripts: python3 dev/check/test_data.py [--shared DIR]

Needs Python 3, NumPy and no network: downloads come from a server on 127.0.0.1 that this file runs. Checks that need
tiktoken, pyarrow, scikit-learn, a C compiler, the GPT-2 vocabulary or the texts in --shared say `skip: reason` where those are missing. The scripts
are run as a user runs them, from a temporary directory; sections: 1 frame, 2 shards, 3 downloads, 4 scripts on made-up
text, 5 errors, 6 GPT-2 and the shared texts, 7 pictures.
"""

import argparse
import contextlib
import hashlib
import http.server
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", ".."))
DATA = os.path.join(ROOT, "data")
spec = importlib.util.spec_from_file_location("prepare", os.path.join(DATA, "prepare.py"))
spec.loader.exec_module(prepare := importlib.util.module_from_spec(spec))
np = prepare.np

# ---------------------------------------------------------------------------------------------------------------------
# 1. Frame

passed = failed = 0


def check(name, ok, detail=""):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print(f"FAIL: {name}" + (f": {detail}" if detail else ""))


def check_refused(name, pattern, function, *args, **kwargs):
    """The call must raise DataError with all of the pattern's words; another exception, or none, is a failure."""
    try:
        function(*args, **kwargs)
        check(name, False, "accepted")
    except prepare.DataError as e:
        check(name, re.search(pattern, str(e)), e)
    except Exception as e:
        check(name, False, repr(e))


def script(name, *args, env=None):
    return subprocess.run([sys.executable, os.path.join(DATA, name), *args], capture_output=True, text=True,
                          env={**os.environ, **(env or {})}, timeout=120)


def script_ok(name, *args):
    result = script(name, *args)
    check(f"{name} {' '.join(args)[:60]}: exit status 0", result.returncode == 0, result.stderr)
    return result.stdout


def script_refused(name, pattern, *args, env=None):
    result = script(name, *args, env=env)
    lines = result.stderr.strip().splitlines()
    check(f"{name}: refuses: {pattern}", result.returncode == 2 and len(lines) == 1 and re.search(pattern, lines[0]),
          f"exit status {result.returncode}, {result.stderr!r}")


def write(path, data):
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())
    return path


def tokens_of(prefix, split, shard=0):
    return prepare.shard_read(f"{prefix}_{split}_{shard:06d}.bin")[0]


def text_of(prefix, split):
    return tokens_of(prefix, split).astype(np.uint8).tobytes().decode()


# ---------------------------------------------------------------------------------------------------------------------
# 2. Shards

def test_shards():
    for vocab_size, tokens in [(256, np.arange(256)), (50257, np.array([50256, 0, 258, 50255])), (256, np.zeros(0))]:
        prepare.shard_write("round.bin", tokens, vocab_size)
        back, v = prepare.shard_read("round.bin")
        check(f"shard round trip, {len(tokens)} tokens", np.array_equal(back, tokens) and v == vocab_size)
        raw = open("round.bin", "rb").read()
        header = np.frombuffer(raw[:1024], "<i4")
        check("shard header", list(header[:4]) == [20240520, 1, len(tokens), vocab_size] and not header[4:].any())
        check("shard body is uint16, little-endian", raw[1024:] == np.asarray(tokens, "<u2").tobytes())
    check("no temporary file is left", not os.path.exists("round.bin.tmp"))

    prepare.shard_write("good.bin", np.arange(100), 256)
    good = open("good.bin", "rb").read()
    for field, value, pattern in [(0, 20240521, "magic"), (1, 2, "version"), (2, 99, "count.*100.*99"),
                                  (2, -1, "count"), (3, 255, "vocabulary"), (3, 65536, "vocabulary"), (4, 1, "zeros"),
                                  (255, 7, "zeros")]:
        header = np.frombuffer(good[:1024], "<i4").copy()
        header[field] = value
        write("bad.bin", header.tobytes() + good[1024:])
        check_refused(f"header[{field}] = {value}", rf"bad\.bin: .*{pattern}", prepare.shard_read, "bad.bin")
    for size in [0, 4, 1023, 1024, len(good) - 1, len(good) - 2]:
        write("bad.bin", good[:size])
        check_refused(f"shard of {size} bytes", r"bad\.bin: .*expected .*found", prepare.shard_read, "bad.bin")
    write("bad.bin", good + b"\0\0")
    check_refused("shard with a token too many", "count", prepare.shard_read, "bad.bin")
    write("bad.bin", good[:-2] + b"\0\1")
    check_refused("token beyond the vocabulary", "below 256, found 256", prepare.shard_read, "bad.bin")
    check_refused("shard that is not there", "no such file", prepare.shard_read, "absent.bin")
    header = np.frombuffer(good[:1024], "<i4").copy()
    header[3] = 0  # llm.c's own
    write("llmc.bin", header.tobytes() + good[1024:])
    check("vocabulary 0 means GPT-2's", prepare.shard_read("llmc.bin")[1] == 50257)

    header = np.array([20240328, 2, 50257, 50256] + [0] * 252, "<u4")
    write("tok.bin", header.tobytes() + prepare.tokenizer_body([b"a"]))
    check_refused("tokenizer file cut short", "expected 50257 whole tokens, found 2", prepare.tokenizer_read, "tok.bin")


# ---------------------------------------------------------------------------------------------------------------------
# 3. Downloads

PAYLOAD = bytes(np.random.default_rng(1).integers(0, 256, 1_000_000, np.uint8))
PAYLOAD_SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """The first part of the path says how the server behaves; asked holds (path, Range) of every request."""
    asked, served, files = [], {}, {}

    def do_GET(self):
        mode, rng = self.path.split("/")[1], self.headers.get("Range")
        Server.asked.append((self.path, rng))
        nth = Server.served[self.path] = Server.served.get(self.path, 0) + 1
        if mode == "missing":
            return self.send_error(404)
        if mode == "busy" and nth < 3:
            return self.send_error(503)
        if mode == "stall" and nth == 1:
            return time.sleep(1.0)
        if mode.startswith("linked"):  # as Hugging Face: the redirect names the checksum
            self.send_response(302)
            self.send_header("Location", "/plain/file")
            self.send_header("X-Linked-ETag", f'"{PAYLOAD_SHA256 if mode == "linked" else "0" * 64}"')
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = Server.files.get(self.path, PAYLOAD)
        start = int(rng[6:-1]) if rng and mode != "norange" else 0
        if rng and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = mode in ("broken", "norange") and nth == 1 or mode == "dying"
        self.wfile.write(body[start:start + 300_000] if cut else body[start:])

    def log_message(self, *args):
        pass


def test_downloads(base):
    quick = {"tries": 3, "timeout": 0.5, "pause": 0.01}
    fetch = lambda mode, path, **known: prepare.download(f"{base}/{mode}/file", path, **known, **quick)
    ranges = lambda mode: [rng for path, rng in Server.asked if path == f"/{mode}/file"]
    whole = lambda path: open(path, "rb").read() == PAYLOAD and not os.path.exists(path + ".part")

    fetch("plain", "d/plain", sha256=PAYLOAD_SHA256, size=len(PAYLOAD))
    check("download", whole("d/plain"))
    fetch("plain", "d/plain", sha256=PAYLOAD_SHA256)
    check("a file that is there is not fetched again", len(ranges("plain")) == 1)
    fetch("broken", "d/broken", sha256=PAYLOAD_SHA256)
    check("broken transfer goes on where it broke", whole("d/broken") and ranges("broken") == [None, "bytes=300000-"],
          ranges("broken"))
    fetch("norange", "d/norange", sha256=PAYLOAD_SHA256)
    check("server without Range: starts again", whole("d/norange") and ranges("norange")[1] == "bytes=300000-")
    fetch("busy", "d/busy")
    check("503 is tried again", whole("d/busy") and len(ranges("busy")) == 3)
    fetch("stall", "d/stall")
    check("a server that stalls is tried again", whole("d/stall"))
    fetch("dying", "d/dying", sha256=PAYLOAD_SHA256)
    check("only tries without progress count", whole("d/dying") and len(ranges("dying")) == 4)

    write("d/resume.part", PAYLOAD[:123_456])  # left by a run that was killed
    fetch("resume", "d/resume", sha256=PAYLOAD_SHA256)
    check("a later run goes on from .part", whole("d/resume") and ranges("resume") == ["bytes=123456-"])
    write("d/full.part", PAYLOAD)  # killed between the last byte and the rename
    fetch("full", "d/full", sha256=PAYLOAD_SHA256)
    check("a whole .part is taken", whole("d/full"))
    write("d/long.part", PAYLOAD + b"xyz")
    fetch("long", "d/long", sha256=PAYLOAD_SHA256)
    check("a .part that is too long is fetched again", whole("d/long"))

    write("d/foreign.part", b"x" * 1000)  # the beginning of some other file
    check_refused("wrong checksum", "expected sha256 .*deleted", fetch, "foreign", "d/foreign", sha256=PAYLOAD_SHA256)
    check("... leaves nothing", not os.path.exists("d/foreign.part") and not os.path.exists("d/foreign"))
    check_refused("wrong size", "expected 999 bytes, found 1000000", fetch, "plain", "d/size", size=999)
    check_refused("404", "404", fetch, "missing", "d/missing")
    check("404 is not tried again", len(ranges("missing")) == 1)
    check("404 leaves nothing", "missing.part" not in os.listdir("d"))
    check_refused("damaged file in place", "damaged.*delete it", fetch, "plain", write("d/there", "x"), size=2)
    check("... which stays", os.path.exists("d/there"))
    fetch("linked", "d/linked")
    check("redirect with the right checksum", whole("d/linked"))
    check_refused("redirect with a wrong checksum", "expected sha256 0000", fetch, "linkedbad", "d/linkedbad")
    check_refused("no server", "download failed", prepare.download, "http://127.0.0.1:9/file", "d/none", **quick)
    check_refused("no address", "download failed", prepare.download, "nonsense", "d/nonsense")
    prepare.download("file://" + os.path.abspath("d/plain"), "d/copy", sha256=PAYLOAD_SHA256)
    check("file:// address", whole("d/copy"))


# ---------------------------------------------------------------------------------------------------------------------
# 4. Scripts on made-up text, as bytes

def test_scripts(base):
    text = "".join(f"Line {i}: naïve café, “quotes”, 😀.\n" for i in range(500))
    write("text.txt", text)
    n = int(len(text) * 0.9)
    out = script_ok("tokens.py", "text.txt", "--out", "o/text")
    check("bytes: train and val", (text_of("o/text", "train"), text_of("o/text", "val")) == (text[:n], text[n:]))
    check("the training command is printed",
          "./train_gpt_fp8 -i 'o/text_train_*.bin' -j 'o/text_val_*.bin' -e d6 -t 256\n" in out, out)
    check("nothing else is written", sorted(os.listdir("o")) == ["text_train_000000.bin", "text_val_000000.bin"])

    script_ok("tokens.py", "text.txt", "--out", "o/cut", "--shard-tokens", "1000")
    count = len([f for f in os.listdir("o") if f.startswith("cut_train")])
    joined = np.concatenate([tokens_of("o/cut", "train", i) for i in range(count)])
    check("many shards make the same text", count > 10 and np.array_equal(joined, tokens_of("o/text", "train")))
    script_ok("tokens.py", "text.txt", "text.txt", "--out", "o/cut", "--val", "text.txt")
    check("older shards are removed", len([f for f in os.listdir("o") if f.startswith("cut_")]) == 2)
    check("--val", (text_of("o/cut", "train"), text_of("o/cut", "val")) == (text + text, text))
    out = script_ok("tokens.py", "text.txt", "--out", "o/all", "--val-fraction", "0")
    check("--val-fraction 0", text_of("o/all", "train") == text and " -j " not in out
          and not os.path.exists("o/all_val_000000.bin"))
    write("latin.txt", bytes(range(256)) * 20)
    script_ok("tokens.py", "latin.txt", "--out", "o/latin")
    both = np.concatenate([tokens_of("o/latin", "train"), tokens_of("o/latin", "val")])
    check("bytes that are not UTF-8 pass unchanged", both.astype(np.uint8).tobytes() == bytes(range(256)) * 20)

    # Python puts a script's own directory first on its search path. A file there with the name of a module that anything
    # imports would hide that module, and would show only when something fails: tracebacks import `tokenize`.
    for name in sorted(f[:-3] for f in os.listdir(DATA) if f.endswith(".py")):
        other = name in sys.stdlib_module_names or importlib.util.find_spec(name)
        check(f"data/{name}.py hides no other module", not other, other)
    inside = subprocess.run([sys.executable, "tokens.py", os.path.abspath("text.txt"), "--out",
                             os.path.abspath("o/inside")], cwd=DATA, capture_output=True, text=True)
    check("tokens.py runs in data/", inside.returncode == 0, inside.stderr)
    code = ("import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.modules.pop('tokenize', None)\n"
            "try: sys.argv[1:] = ['--help']; runpy.run_path(sys.path[0] + '/NAME', run_name='__main__')\n"
            "except SystemExit: import tokenize; tokenize.generate_tokens")
    for name in sorted(f for f in os.listdir(DATA) if f.endswith(".py") and f != "prepare.py"):
        result = script(name, "--help")
        check(f"{name} --help", result.returncode == 0 and "--out" in result.stdout, result.stderr)
        result = subprocess.run([sys.executable, "-c", code.replace("NAME", name), DATA], capture_output=True,
                                text=True)
        check(f"{name} leaves the standard library's tokenize in place", result.returncode == 0, result.stderr)

    stories = [f"Story {i}.\n\nOnce there was a fox." for i in range(50)]
    write("stories.txt", "\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n")
    script_ok("tinystories.py", "--sample", "stories.txt", "--vocab-kind", "byte", "--out", "o/ts")
    check("tinystories --sample", (text_of("o/ts", "train"), text_of("o/ts", "val"))
          == ("\n".join(stories[:45]) + "\n", "\n".join(stories[45:]) + "\n"))
    # files are read in blocks of 1 MiB: the second separator begins 5 bytes before the first block ends
    big = "x" * 600_000 + "<|endoftext|>" + "y" * ((1 << 20) - 600_000 - 13 - 5) + "<|endoftext|>" + "z" * 600_000
    write("big.txt", big)
    Server.files = {"/ts/TinyStoriesV2-GPT4-train.txt": big.encode(),
                    "/ts/TinyStoriesV2-GPT4-valid.txt": open("stories.txt", "rb").read()}
    for kind, files in [("local", ["--text", "big.txt", "--val-text", "stories.txt"]),
                        ("download", ["--base-url", base + "/ts"])]:
        script_ok("tinystories.py", *files, "--vocab-kind", "byte", "--out", f"o/{kind}/ts")
        check(f"tinystories, {kind}", text_of(f"o/{kind}/ts", "train") == big.replace("<|endoftext|>", "\n") + "\n"
              and text_of(f"o/{kind}/ts", "val") == "\n".join(stories) + "\n")

    documents = [f"Document {i}.\nText ☃." for i in range(100)]
    val = "".join(d + "\n" for d in documents[:10])
    args = ["--vocab-kind", "byte", "--val-tokens", str(len(val.encode()) + 5)]
    write("web.jsonl", "".join(json.dumps({"text": d, "id": 1}) + "\n" for d in documents))
    script_ok("fineweb_edu.py", "--jsonl", "web.jsonl", "--out", "o/fj", *args)
    expected = (val, "".join(d + "\n" for d in documents[10:]))
    check("fineweb_edu --jsonl: whole documents in val", (text_of("o/fj", "val"), text_of("o/fj", "train")) == expected)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        print("skip: fineweb_edu with Parquet files: pyarrow is not installed")
        return
    pyarrow.parquet.write_table(pyarrow.table({"id": list(range(100)), "text": documents}), "web.parquet", 30)
    script_ok("fineweb_edu.py", "--parquet", "web.parquet", "--out", "o/fp", *args)
    check("fineweb_edu --parquet", (text_of("o/fp", "val"), text_of("o/fp", "train")) == expected)
    Server.files = {"/fw/000_00000.parquet": open("web.parquet", "rb").read()}
    script_ok("fineweb_edu.py", "--base-url", base + "/fw", "--out", "o/fd/fd", *args)
    check("fineweb_edu, download", (text_of("o/fd/fd", "val"), text_of("o/fd/fd", "train")) == expected)
    pyarrow.parquet.write_table(pyarrow.table({"body": documents}), "body.parquet")
    for name, pattern in [("body.parquet", "a column 'text', found body"), ("text.txt", "a Parquet file, found")]:
        script_refused("fineweb_edu.py", f"{name}: expected {pattern}", "--parquet", name, "--out", "o/x", *args)


# ---------------------------------------------------------------------------------------------------------------------
# 5. Errors: exit status 2, one line, no traceback

def test_errors(base):
    write("empty.txt", "")
    write("one.txt", "a")
    write("blank.jsonl", '{"text": "one two three"}\n{"text": "four five six"}\n\n')
    script_ok("fineweb_edu.py", "--jsonl", "blank.jsonl", "--out", "o/blank", "--vocab-kind", "byte", "--val-tokens", "14")
    write("packed.txt.gz", b"\x1f\x8b not text")
    script_refused("tokens.py", "packed.txt.gz: expected text, found a compressed file", "packed.txt.gz", "--out", "o/packed")
    write("odd.txt", "a text\n" * 40)
    odd = script("tokens.py", "odd.txt", "--out", os.fsdecode(b"caf\xe9/x"), env={"PYTHONIOENCODING": "utf-8:strict"})
    check("tokens.py: a path that is no UTF-8 is printed with escapes", odd.returncode == 0 and r"caf\udce9/x_train" in odd.stdout,
          odd.stderr)
    write("precious.txt", "precious")
    os.makedirs("o", exist_ok=True)
    for name in ("o/link_train_000000.bin.tmp", "o/link_val_000000.bin.tmp"):
        os.symlink("../precious.txt", name)
    script_ok("tokens.py", "odd.txt", "--out", "o/link")
    check("tokens.py: a link under a temporary name is not written through", open("precious.txt").read() == "precious")
    write("many_a.txt", "a" * 600000), write("many_b.txt", "b" * 600000)
    two = [subprocess.Popen([sys.executable, os.path.join(DATA, "tokens.py"), f"many_{c}.txt", "--out", "o/two", "--shard-tokens", n],
                            stdout=subprocess.DEVNULL) for c, n in (("a", "5000"), ("b", "7000"))]
    ended = [p.wait() for p in two]
    found = {t for i in range(5) for t in set(tokens_of("o/two", "train", i))}
    check("two scripts with one --out take turns", ended == [0, 0] and len(found) == 1, f"{ended} {found}")
    write("bad.jsonl", '{"text": "fine"}\n{"txt": 1}\n')
    write("separators.txt", "<|endoftext|>" * 9)
    tokenize = lambda pattern, *args: script_refused("tokens.py", pattern, *args)
    tokenize("absent.txt: expected a file, found none", "absent.txt", "--out", "o/x")
    tokenize("o: expected a file, found a directory", "o", "--out", "o/x")
    tokenize("empty.txt: expected text, found an empty file", "empty.txt", "--out", "o/x")
    tokenize("one.txt: expected 2 or more tokens for train, found 0", "one.txt", "--out", "o/x")
    tokenize("required: --out", "text.txt")
    tokenize("text.txt.*check the path", "text.txt", "--out", "text.txt/x")
    tokenize("o/: expected DIR/NAME", "text.txt", "--out", "o/")
    tokenize("from 1 to 2147483647, found '0'", "text.txt", "--out", "o/x", "--shard-tokens", "0")
    tokenize("--val-fraction: expected a number", "text.txt", "--out", "o/x", "--val-fraction", "1")
    tokenize("bytes need no vocabulary", "text.txt", "--out", "o/x", "--vocab", "text.txt")
    tokenize("no end-of-text", "text.txt", "--out", "o/x", "--eot-between-files")
    tokenize("--colour", "text.txt", "--out", "o/x", "--colour")
    if os.geteuid():  # root may write anywhere
        os.makedirs("locked", mode=0o500)
        tokenize("locked/x: expected .*writable", "text.txt", "--out", "locked/x")
    check("refused input leaves no shards", not [f for f in os.listdir("o") if f.startswith("x")])
    byte = ["--out", "o/x", "--vocab-kind", "byte"]
    script_refused("tinyshakespeare.py", "404", "--url", base + "/missing/file", *byte)
    script_refused("tinyshakespeare.py", "expected 1115394 bytes, found 1000000", "--url", base + "/plain/file", *byte)
    script_refused("kjv.py", "apt-get install bible-kjv", "--out", "o/kjv/x", env={"PATH": "/nonexistent"})
    script_refused("kjv.py", "absent", "--text", "absent", *byte)
    script_refused("tinystories.py", "together", "--text", "text.txt", *byte)
    script_refused("tinystories.py", "absent.txt: expected", "--sample", "absent.txt", *byte)
    script_refused("tinystories.py", "separators.txt: expected 2 or more", "--sample", "separators.txt", *byte)
    script_refused("fineweb_edu.py", "bad.jsonl: line 2: expected", "--jsonl", "bad.jsonl", *byte)
    script_refused("fineweb_edu.py", "web.jsonl: expected 2 or more tokens for train", "--jsonl", "web.jsonl", *byte)
    script_refused("fineweb_edu.py", "at most 14, found 15", "--shards", "15", *byte)


# ---------------------------------------------------------------------------------------------------------------------
# 6. GPT-2 and the shared texts

def test_texts(shared):
    path = os.path.join(shared, "kjv.txt")
    if not os.path.exists(path):
        print(f"skip: King James Bible: {path} is not there")
    else:
        script_ok("kjv.py", "--text", path, "--out", "o/kjv/kjv")
        check("kjv: all bytes", text_of("o/kjv/kjv", "train") + text_of("o/kjv/kjv", "val") == open(path).read())
    path = os.path.join(shared, "tinyshakespeare.txt")
    if not os.path.exists(path):
        print(f"skip: tiny Shakespeare: {path} is not there")
    else:
        script_ok("tinyshakespeare.py", "--url", "file://" + os.path.abspath(path), "--out", "o/tsb/ts")
        check("tinyshakespeare: bytes", len(tokens_of("o/tsb/ts", "train")) == 1003854
              and text_of("o/tsb/ts", "train") + text_of("o/tsb/ts", "val") == open(path).read())


def test_gpt2(shared):
    try:
        import tiktoken  # noqa: F401
    except ImportError:
        print("skip: GPT-2 tokens: tiktoken is not installed")
        script_refused("tokens.py", "pip install tiktoken", "text.txt", "--out", "o/x", "--vocab-kind", "gpt2")
        return
    vocab = os.path.join(shared, "gpt2-r50k.tiktoken")
    if not os.path.exists(vocab):
        print(f"skip: GPT-2 tokens: {vocab} is not there")
        return
    gpt2 = ["--vocab-kind", "gpt2", "--vocab", vocab]
    encoder = prepare.Gpt2Encoder(vocab)

    with open(os.path.join(shared, "gpt2-tok-tests.jsonl"), encoding="utf-8") as f:
        cases = [json.loads(line) for line in f]
    check("13 edge cases", len(cases) == 13)
    for case in cases:
        check(f"edge case {case['text']!r}", list(encoder.encode(case["text"])) == case["ids"])
    ranks = prepare.ranks_read(vocab)
    for name in ["gpt2-encoder.json", "gpt2-vocab.bpe"]:
        check(f"{name} holds the same vocabulary", prepare.ranks_read(os.path.join(shared, name)) == ranks)

    with open(os.path.join(shared, "tinyshakespeare.txt"), "rb") as f:
        text = f.read().decode()
    reference = np.fromfile(os.path.join(shared, "tinyshakespeare.gpt2.u16"), "<u2")
    check("338,025 reference ids", len(reference) == 338025 and np.array_equal(encoder.encode(text), reference))
    prepare.PIECE, piece = 50, prepare.PIECE  # thousands of cuts must not change a token
    odd = "".join(np.random.default_rng(2).choice(list("\n\n\n\n\n\n  \t\x1c\x1c\u00a0a1..!'sé"), 100_000))
    check("text in pieces gives the same ids", all(
        np.array_equal(np.concatenate([encoder.encode(p) for p in prepare.pieces(t)]), encoder.encode(t))
        and len(list(prepare.pieces(t))) > 1000 for t in [text, odd]))
    prepare.PIECE = piece

    path = os.path.join(shared, "tinyshakespeare.txt")
    out = script_ok("tinyshakespeare.py", "--text", path, "--out", "o/ts2/ts", *gpt2)
    train, val = tokens_of("o/ts2/ts", "train"), tokens_of("o/ts2/ts", "val")
    check("nanoGPT's counts", (len(train), len(val)) == (301966, 36059), (len(train), len(val)))
    check("--tokenizer is in the command", "--tokenizer o/ts2/gpt2_tokenizer.bin" in out, out)
    table = prepare.tokenizer_read("o/ts2/gpt2_tokenizer.bin")
    check("gpt2_tokenizer.bin decodes the shards", b"".join(table[t] for t in [*train, *val]).decode() == text)
    check("end-of-text in gpt2_tokenizer.bin", table[50256] == b"<|endoftext|>" and table[0] == b"!")

    ids = lambda *texts: [i for t in texts for i in [50256, *encoder.encode(t)]]
    write("a.txt", "One fish. " * 30)
    write("b.txt", "Two <|endoftext|> fish. " * 30)
    a, b = open("a.txt").read(), open("b.txt").read()
    script_ok("tokens.py", "a.txt", "b.txt", "--out", "o/eot", "--val-fraction", "0", "--eot-between-files", *gpt2)
    check("--eot-between-files, and its spelling in a text is text", list(tokens_of("o/eot", "train")) == ids(a, b)[1:])
    script_ok("tokens.py", "a.txt", "b.txt", "--out", "o/cat", "--val-fraction", "0", *gpt2)
    check("several files are one text", list(tokens_of("o/cat", "train")) == list(encoder.encode(a + b)))
    stories = [f"Story {i}." for i in range(20)]
    write("few.txt", "\n<|endoftext|>\n".join(stories))
    script_ok("tinystories.py", "--sample", "few.txt", "--out", "o/few", "--workers", "2", *gpt2)
    check("tinystories: end-of-text before each story", list(tokens_of("o/few", "train")) == ids(*stories[:18])
          and list(tokens_of("o/few", "val")) == ids(*stories[18:]))
    write("few.jsonl", "\n".join(json.dumps({"text": s}) for s in stories))
    val_tokens = str(len(ids(*stories[:3])))
    script_ok("fineweb_edu.py", "--jsonl", "few.jsonl", "--out", "o/fewj", "--val-tokens", val_tokens, *gpt2)
    check("fineweb_edu: end-of-text before each document", list(tokens_of("o/fewj", "val")) == ids(*stories[:3])
          and list(tokens_of("o/fewj", "train")) == ids(*stories[3:]))

    options = ["--out", "o/x", "--vocab-kind", "gpt2"]
    refuse = lambda pattern, *args: script_refused("tokens.py", pattern, *args, *options)
    write("latin1.txt", b"na\xefve " * 50)
    refuse("latin1.txt: expected UTF-8, found byte 0xef at offset 2", "latin1.txt", "--vocab", vocab)
    script_ok("tokens.py", "latin1.txt", "--out", "o/latin1", "--errors", "replace", *gpt2)
    refuse("absent.tiktoken: expected a file", "a.txt", "--vocab", "absent.tiktoken")
    refuse("a.txt: expected GPT-2's vocabulary", "a.txt", "--vocab", "a.txt")
    lines = open(vocab, "rb").read().splitlines(True)
    refuse("short.tiktoken: expected GPT-2's 50256 tokens, found 50255", "a.txt", "--vocab",
           write("short.tiktoken", b"".join(lines[:-1])))
    swapped = [lines[300].split()[0] + b" 301\n", lines[301].split()[0] + b" 300\n"]
    refuse("swapped.tiktoken: expected GPT-2's tokens", "a.txt", "--vocab",
           write("swapped.tiktoken", b"".join(lines[:300] + swapped + lines[302:])))
    write("encoder.json", open(os.path.join(shared, "gpt2-encoder.json"), "rb").read())
    refuse("vocab.bpe: expected a file, found none", "a.txt", "--vocab", "encoder.json")
    merges = open(os.path.join(shared, "gpt2-vocab.bpe"), "rb").read().splitlines(True)
    write("vocab.bpe", b"".join([merges[0], merges[2], merges[1], *merges[3:]]))
    refuse("vocab.bpe: line 2: expected the merge of token 256", "a.txt", "--vocab", "vocab.bpe")


# ---------------------------------------------------------------------------------------------------------------------
# 7. Pictures

def fnv1a64(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return value


def pictures_of(path, count, size):
    """Labels and pixels of a file in the format of data/glyphs.c; whatever its header says wrongly is a failure."""
    raw = open(path, "rb").read()
    fields = list(np.frombuffer(raw[:32], "<i4"))
    check(f"{path}: header", fields == [20261129, 1, count, size, size, 1, 10, 0] and not any(raw[40:64]), fields)
    check(f"{path}: size", len(raw) == 64 + count * (1 + size * size), len(raw))
    check(f"{path}: checksum", int.from_bytes(raw[32:40], "little") == fnv1a64(raw[64:]))
    body = np.frombuffer(raw, np.uint8, offset=64)
    check(f"{path}: labels", set(body[:count]) == set(range(10)))
    return body[:count], body[count:].reshape(count, size, size)


def test_glyphs():
    compiler = os.environ.get("CC") or shutil.which("cc")
    if not compiler:
        print("skip: glyphs: no C compiler")
        return
    flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*compiler.split(), *flags, os.path.join(DATA, "glyphs.c"), "-o", "glyphs"], check=True)
    glyphs = lambda *args: subprocess.run(["./glyphs", *args], capture_output=True, text=True, timeout=120)
    result = glyphs("--selftest")
    check("glyphs: self-test", result.returncode == 0, result.stdout)
    check("glyphs: files", glyphs("--out", "g", "--train", "300", "--test", "200").returncode == 0)
    check("glyphs: more files", glyphs("--out", "g2", "--train", "200", "--test", "300").returncode == 0)
    train, test = pictures_of("g/train.bin", 300, 16), pictures_of("g/test.bin", 200, 16)
    for name, (labels, pixels), (few, first) in [("train", train, pictures_of("g2/train.bin", 200, 16)),
                                                 ("test", pictures_of("g2/test.bin", 300, 16), test)]:
        check(f"glyphs: {name}: the count changes no picture", np.array_equal(pixels[:200], first)
              and np.array_equal(labels[:200], few))
    check("glyphs: no picture is in both sets", not {x.tobytes() for x in train[1]} & {x.tobytes() for x in test[1]})
    check("glyphs: preview", glyphs("--preview", "g/sheet.pgm").returncode == 0)
    check("glyphs: preview is a PGM file", len(sheet := open("g/sheet.pgm", "rb").read()) == 15 + 160 * 320
          and sheet.startswith(b"P5\n320 160\n255\n"), len(sheet))
    write("g/file", "")
    os.makedirs("g/full")
    os.symlink("/dev/full", "g/full/train.bin")
    for args, pattern in [(["--cow", "1"], "unknown option --cow"), (["--train"], "--train .*lacks a value"),
                          (["--train", "0"], "--train takes a number from 1"), (["--noise", "x"], "--noise takes"),
                          (["5"], 'unexpected argument "5"'), (["--out", ""], "--out is empty"),
                          (["--out", "absent/g"], "cannot make absent/g: No such"),
                          (["--out", "g/file"], "g/file/test.bin.*Not a directory"),
                          (["--preview", "/dev/full"], "/dev/full: No space"),
                          (["--out", "g/full", "--train", "200", "--test", "200"], "train.bin: No space")]:
        result = glyphs(*args)
        check(f"glyphs: refuses {args}", result.returncode == 2 and result.stderr.count("\n") == 1
              and re.search(pattern, result.stderr), f"exit status {result.returncode}, {result.stderr!r}")
    before = open("g/train.bin", "rb").read()
    limited = ["bash", "-c", "ulimit -f 100; exec ./glyphs --out g"]  # 102,400 bytes a file
    result = subprocess.run(limited, capture_output=True, text=True, timeout=120)
    check("glyphs: no room: exit status 2", result.returncode == 2 and "File too large" in result.stderr, result.stderr)
    check("glyphs: no room: nothing is half-written", open("g/train.bin", "rb").read() == before
          and not [name for name in os.listdir("g") if name.endswith(".tmp")])


def test_digits():
    if not importlib.util.find_spec("sklearn"):
        print("skip: digits: scikit-learn is not installed")
        script_refused("digits.py", "pip install scikit-learn", "--out", "d")
        return
    from sklearn.datasets import load_digits
    script_ok("digits.py", "--out", "d")
    digits = load_digits()
    train, test = pictures_of("d/train.bin", 1437, 8), pictures_of("d/test.bin", 360, 8)
    check("digits: every fifth picture is for testing", np.array_equal(test[0], digits.target[::5]))
    check("digits: pixels", np.array_equal(test[1], np.floor(digits.images[::5] * 255 / 16 + 0.5)))
    check("digits: the others are for training",
          np.array_equal(train[0], np.delete(digits.target, np.arange(0, 1797, 5))))
    write("d/file", "")
    script_refused("digits.py", "d/file", "--out", "d/file")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shared", default=os.path.join(ROOT, "..", "shared", "data"), metavar="DIR",
                   help="reference texts and vocabulary (default: ../shared/data beside the repository)")
    shared = os.path.abspath(p.parse_args().shared)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *args: None  # clients that hang up are part of the test
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    os.environ["no_proxy"] = "127.0.0.1"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for test, argument in [(test_shards, []), (test_downloads, [base]), (test_scripts, [base]),
                               (test_errors, [base]), (test_texts, [shared]), (test_gpt2, [shared]),
                               (test_glyphs, []), (test_digits, [])]:
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # the downloads' "trying again"
                    test(*argument)
            except Exception:
                check(test.__name__ + " runs to its end", False, traceback.format_exc())
        os.chdir(ROOT)
    server.shutdown()
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
