#!/usr/bin/env python3
"""The trainer's encoding of prompts: python3 dev/check/tokenizer_check.py [--shared DIR]

ASCII has tiktoken's ids. All other characters count as letters; for that tiktoken gets a pattern
that says so. Every machine checks a small vocabulary that is made here. GPT-2's own,
gpt2-r50k.tiktoken, is checked where --shared has it, with published ids: edge cases
(gpt2-tok-tests.jsonl) and tiny Shakespeare (tinyshakespeare.gpt2.u16).
"""

import base64
import collections
import json
import os
import random
import sys

import numpy as np

import check_references

SOURCES = ["tokenizer_dump.c"]
OTHERS_ARE_LETTERS = (r"'(?:[sdmt]|ll|ve|re)| ?(?:[A-Za-z]|[^\x00-\x7f])+| ?[0-9]+"
                      r"| ?[\x00-\x7f--[\sA-Za-z0-9]]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+")


class Vocabulary:
    """Tokens in the order of their merges, the 256 bytes first: the trainer's file and tiktoken."""

    def __init__(self, ref, name, tokens):
        self.ref, self.path, self.tokens = ref, ref.path(name), tokens + [b"<|endoftext|>"]
        self.ranks = {t: i for i, t in enumerate(tokens)}
        header = np.zeros(256, "<u4")
        header[:4] = 20240328, 2, len(self.tokens), len(tokens)  # llm.c's format
        with open(self.path, "wb") as f:
            f.write(header.tobytes() + b"".join(bytes([len(t)]) + t for t in self.tokens))

    def ours(self, texts):
        """The C program's ids of each text."""
        texts_path, ids_path = self.ref.path("texts"), self.ref.path("ids")
        with open(texts_path, "wb") as f:
            f.write(b"".join(t.encode() + b"\0" for t in texts))
        count = str(len(self.tokens))
        self.ref.run("tokenizer_dump.c", "fp8", self.path, count, texts_path, ids_path)
        ids, out = np.fromfile(ids_path, "<i4").tolist(), []
        while ids:
            n = ids.pop(0)
            out.append(ids[:n])
            ids = ids[n:]
        return out

    def check(self, name, texts, pattern=None):
        """Whether texts have tiktoken's ids, with GPT-2's pattern or another one."""
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str as gpt2_pattern
        pattern = pattern or gpt2_pattern
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=self.ranks,
                                     special_tokens={})
        pairs = zip(texts, self.ours(texts))
        wrong = [t for t, got in pairs if got != encoding.encode_ordinary(t)]
        self.ref.check(f"tokenizer: {name}: {len(texts)} strings have tiktoken's ids", not wrong,
                       repr(wrong[:1])[:80])

    def check_all(self, name, texts):
        self.check(f"{name}, ASCII", [t for t in texts if t.isascii()])
        self.check(f"{name}, all others are letters", texts, OTHERS_ARE_LETTERS)


def vocabulary_made(draw, texts):
    """The 256 bytes in another order, then 400 merges: each time of the most frequent pair. They
    reach across words, so that a text cut at another place has other tokens."""
    tokens = [bytes([b]) for b in draw.sample(range(256), 256)]
    texts = [[bytes([b]) for b in t.encode()] for t in texts]
    for _ in range(400):
        pairs = collections.Counter(
            p for t in texts for p in zip(t, t[1:]) if p[0] + p[1] not in tokens)
        a, b = max(pairs, key=pairs.get)
        tokens.append(a + b)
        for t in texts:
            for i in range(len(t) - 1, 0, -1):
                if t[i - 1:i + 1] == [a, b]:
                    t[i - 1:i + 1] = [a + b]
    return tokens


def texts_made(draw):
    """Strings of what the split tells apart: spaces, contractions, digits, controls, others."""
    words = ["'ll", "'s", "'S", "'", "don't", "we've", "they're", "A", "tone", "EFG", "0", "1134",
             "3.14", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\v", "\f", "\x1c", "\x1f", "\x7f",
             "\x01", "--", "...", "====", "_", "<|endoftext|>", "x_y", "\\", "`"]
    others = words + ["caf\u00e9", "\u2014", "\u201c", "\u00a0", "\u3000", "\u00b2", "\U0001f600"]
    characters = [chr(c) for c in range(1, 128)]
    made = ["".join(draw.choices(kind, k=draw.randint(1, 12)))
            for kind, count in ((words, 600), (others, 300), (characters, 400))
            for _ in range(count)]
    return made + ["", " " * 100, "a" * 100, "=" * 300, " 'll", "'ll x"]


def run(ref):
    draw = random.Random(1)
    texts = texts_made(draw)
    made = Vocabulary(ref, "made", vocabulary_made(draw, texts[::6]))
    made.check_all("a vocabulary of 656", texts)
    names = ["gpt2-r50k.tiktoken", "gpt2-tok-tests.jsonl", "tinyshakespeare.txt",
             "tinyshakespeare.gpt2.u16"]
    vocabulary, cases, text, ids = (os.path.join(ref.shared, n) for n in names)
    if not all(map(os.path.exists, (vocabulary, cases, text, ids))):
        ref.skip("tokenizer_check: no vocabulary of GPT-2 or texts there")
        return
    tokens = [base64.b64decode(line.split()[0]) for line in open(vocabulary, "rb")]
    gpt2 = Vocabulary(ref, "gpt2", tokens)
    cases = [json.loads(line) for line in open(cases, encoding="utf-8")]
    gpt2.check_all("GPT-2", texts + [c["text"] for c in cases])
    plain = [c for c in cases if c["text"].isascii()]
    ours = gpt2.ours([c["text"] for c in plain])
    wrong = [c["text"] for c, got in zip(plain, ours) if got != c["ids"]]
    ref.check(f"tokenizer: {len(plain)} published edge cases in ASCII have their ids",
              len(plain) > 5 and not wrong, repr(wrong[:1])[:80])
    part = open(text, encoding="utf-8").read()[:30000]
    part = part[:part.rindex("\n\n")]  # where no token can reach across
    got = gpt2.ours([part])[0]
    ref.check(f"tokenizer: tiny Shakespeare's first {len(got)} ids are the published ones",
              len(got) > 5000 and got == np.fromfile(ids, "<u2")[:len(got)].tolist())


if __name__ == "__main__":
    sys.exit(check_references.main(["tokenizer_check"]))
