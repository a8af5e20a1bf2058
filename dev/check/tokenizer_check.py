#!/usr/bin/env python3
"""The trainer's GPT-2 tokenizer (longest match) beside published ids: python3 dev/check/tokenizer_check.py [--shared DIR]

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
    spell = lambda ids: b"".join(tokens[i] for i in ids).decode("utf-8", "replace")
    ours = encode(ref, [c["text"] for c in cases])
    wrong = [c["text"] for c, got in zip(cases, ours) if spell(got) != c["text"] or len(got) > len(c["ids"])]
    ref.check(f"tokenizer: {len(cases)} edge cases are spelt out again, in no more tokens than published", not wrong, repr(wrong[:1])[:80])
    part = open(text, encoding="utf-8").read()[:200000]
    part = part[:part.rindex("\n\n")]  # where no token can reach across
    got = encode(ref, [part])[0]
    want = np.fromfile(ids, "<u2")
    edges = lambda ids: set(np.cumsum([len(tokens[i]) for i in ids]).tolist())
    same = len(edges(got) & edges(want[:len(got) + 1000].tolist())) / len(got)
    ref.check(f"tokenizer: tiny Shakespeare is spelt out, and {100 * same:.1f}% (90 asked) of its tokens end where GPT-2's do", spell(got) == part and same > 0.9)
    ref.check("planted fault: an edge case without its last token is seen", spell(ours[0][:-1]) != cases[0]["text"])


if __name__ == "__main__":
    sys.exit(check_references.main(["tokenizer_check"]))
