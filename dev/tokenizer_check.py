#!/usr/bin/env python3
"""The trainer's GPT-2 tokenizer against published ids: python3 dev/tokenizer_check.py [--shared DIR]

gpt2-tok-tests.jsonl holds edge cases with their ids; tinyshakespeare.gpt2.u16 the ids of tiny Shakespeare. The tokenizer
file is written here from the vocabulary, in llm.c's format (20240328, version 2).
"""

import base64
import json
import os
import sys

import numpy as np

import check_references

SOURCES = ["tokenizer_dump.c"]


def encode(ref, texts):
    """The C program's ids of each text."""
    with open(ref.path("texts"), "wb") as f:
        for text in texts: f.write(text.encode() + b"\0")
    ref.run("tokenizer_dump.c", "fp8", ref.path("tokenizer.bin"), ref.path("texts"), ref.path("ids"))
    ids, out = np.fromfile(ref.path("ids"), "<i4").tolist(), []
    while ids:
        n = ids.pop(0)
        out.append(ids[:n])
        ids = ids[n:]
    return out


def run(ref):
    names = ["gpt2-r50k.tiktoken", "gpt2-tok-tests.jsonl", "tinyshakespeare.txt", "tinyshakespeare.gpt2.u16"]
    vocabulary, cases, text, ids = (os.path.join(ref.shared, n) for n in names)
    if not all(map(os.path.exists, (vocabulary, cases, text, ids))):
        ref.skip("tokenizer_check: no vocabulary or texts there")
        return
    tokens = [base64.b64decode(line.split()[0]) for line in open(vocabulary, "rb")] + [b"<|endoftext|>"]
    with open(ref.path("tokenizer.bin"), "wb") as f:
        header = np.zeros(256, "<u4")
        header[:4] = 20240328, 2, len(tokens), len(tokens) - 1
        f.write(header.tobytes() + b"".join(bytes([len(t)]) + t for t in tokens))
    cases = [json.loads(line) for line in open(cases, encoding="utf-8")]
    wrong = [c["text"] for c, got in zip(cases, encode(ref, [c["text"] for c in cases])) if got != c["ids"]]
    ref.check(f"tokenizer: {len(cases)} edge cases have their published ids", not wrong, repr(wrong[0])[:80] if wrong else "")
    part = open(text, encoding="utf-8").read()[:200000]
    part = part[:part.rindex("\n\n")]  # where no token can reach across
    got = encode(ref, [part])[0]
    want = np.fromfile(ids, "<u2")[:len(got)].tolist()
    ref.check(f"tokenizer: the first {len(got)} tokens of tiny Shakespeare are the published ones", got == want)
    ref.check("planted fault: an edge case without its last token is seen", encode(ref, [cases[0]["text"]])[0][:-1] != cases[0]["ids"])


if __name__ == "__main__":
    sys.exit(check_references.main(["tokenizer_check"]))
