#!/usr/bin/env python3
"""The laboratory's figures of attention under FP8, against NumPy and ml_dtypes, on a random model:

    make build/lab/attention && python3 dev/check/check_attention.py

The model's blocks add nothing to the residual stream, so the input of every layer is known: the embeddings. Once on windows of a
text, once on stories of a text with a sidecar, whose padding must not count. Packages: pip install ml_dtypes. Exit status: 0 they
agree (or skipped, with a line), 1 they do not.
"""

import os
import subprocess
import sys
import tempfile

import numpy as np

try:
    import ml_dtypes
except ModuleNotFoundError as missing:
    sys.exit(print(f"skip: check_attention: no Python package {missing.name}"))

T, V, L, HEADS, C, ROWS = 48, 256, 2, 2, 32, 5
SIZE = C // HEADS
BF16, E4M3, E5M2, E2M1 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn
rng = np.random.default_rng(3)
normal = lambda spread, *shape: rng.normal(0, spread, shape).astype(np.float32)
zeros = lambda *shape: np.zeros(shape, np.float32)


def rounded(x, dtype, scale=1.0):
    return (x * np.float32(scale)).astype(dtype).astype(np.float32) / np.float32(scale)


def fp8(x, dtype):
    return rounded(x, dtype, float(ml_dtypes.finfo(dtype).max) / np.abs(x).max())


def second(x):
    """The second E4M3 number of a split operand: what rounding took away, in units of 1/16."""
    return rounded(x - fp8(x, E4M3), E4M3, 16 * float(np.float32(448) / np.abs(x).max()))


def blocks(x, dtype, across, along, two_levels=False):
    """In blocks of across rows and along columns: scales are powers of two, or E4M3 numbers beside one of the tensor."""
    top = float(ml_dtypes.finfo(dtype).max)
    tiles = x.reshape(x.size // C // across, across, C // along, along)
    amax = np.abs(tiles).max((1, 3), keepdims=True)
    tensor = np.float32(top) / amax.max() * 448
    inv = np.maximum((amax / np.float32(top) * tensor).astype(E4M3).astype(np.float32), 2.0**-9)
    scale = tensor / inv if two_levels else 2.0**np.floor(np.log2(top / amax))
    return (np.clip(tiles * scale, -top, top).astype(dtype).astype(np.float32) / scale).reshape(x.shape)


def attention(q, k):
    """Of queries and keys [rows, T, C]: logits less their row's mean, and ln of probabilities, [HEADS, rows, T, T]; causal."""
    q, k = (x.reshape(-1, T, HEADS, SIZE).transpose(2, 0, 1, 3).astype(np.float64) for x in (q, k))
    seen = np.tril(np.ones((T, T), bool))
    s = q @ k.transpose(0, 1, 3, 2) / np.sqrt(SIZE)
    s = np.where(seen, s - np.where(seen, s, 0).sum(-1, keepdims=True) / seen.sum(-1)[:, None], -np.inf)
    top = s.max(-1, keepdims=True)
    return np.where(seen, s, 0), np.where(seen, s - top - np.log(np.exp(s - top).sum(-1, keepdims=True)), 0)


def expected(tokens, lengths, model, layer):
    """The program's columns [HEADS, 17] of a layer."""
    weight, w, bias = model["ln1w"][layer], rounded(model["qkvw"][layer], BF16), model["qkvb"][layer]
    x = rounded(model["wte"][tokens] + model["wpe"], BF16)
    std = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normed = lambda x: rounded((x - x.mean(-1, keepdims=True)) / std * weight, BF16)
    qkv = lambda x, w: rounded(x @ w.T + bias, BF16)
    parts = [qkv(normed(part), w) for part in (model["wte"][tokens], np.broadcast_to(model["wpe"], x.shape))]
    x = normed(x)
    exact, both = qkv(x, w), qkv(fp8(x, E4M3), fp8(w, E4M3))
    x_alone, w_alone, x_e5m2 = qkv(fp8(x, E4M3), w), qkv(x, fp8(w, E4M3)), qkv(fp8(x, E5M2), w)
    x8, w8, x_rest, w_rest = fp8(x, E4M3), fp8(w, E4M3), second(x), second(w)
    both_split = rounded(x8 @ w8.T + x8 @ w_rest.T + x_rest @ w8.T + bias, BF16)
    others = [qkv(x8 + x_rest, w8), qkv(x8, w8 + w_rest), both_split, qkv(blocks(x, E4M3, 1, 32), blocks(w, E4M3, 1, 32)),
              qkv(blocks(x, E2M1, 1, 16, True), blocks(w, E2M1, 16, 16, True)),
              qkv(blocks(x, E2M1, 1, 32), blocks(w, E2M1, 1, 32))]
    counts = (np.arange(T) < np.array(lengths)[:, None]) & (np.arange(T) > 0) # queries that see two keys or more
    mean = lambda a: (a * counts).sum((1, 2)) / counts.sum()
    spread = lambda s: np.sqrt(mean((s**2).sum(-1) / np.arange(1, T + 1)))
    of = lambda q, k: attention(q[..., :C], k[..., C:2 * C])
    (s, ln_p), seen = of(exact, exact), np.tril(np.ones((T, T)))
    p = np.exp(ln_p) * seen
    moved = lambda q, k: mean((p * (ln_p - of(q, k)[1])).sum(-1))
    columns = [mean(p.max(-1)), spread(s), spread(of(both, both)[0] - s), moved(both, both), moved(x_alone, x_alone),
               moved(w_alone, w_alone), moved(both, exact), moved(exact, both), moved(x_e5m2, x_e5m2)]
    columns += [moved(other, other) for other in others]
    return np.array(columns + [spread(of(exact, part)[0]) for part in parts]).T


def main():
    model = dict(wte=normal(0.1, V, C), wpe=normal(0.05, T, C), ln1w=1 + normal(0.3, L, C), ln1b=zeros(L, C),
                 qkvw=normal(0.4, L, 3 * C, C), qkvb=normal(0.1, L, 3 * C), attprojw=zeros(L, C, C), attprojb=zeros(L, C),
                 ln2w=zeros(L, C), ln2b=zeros(L, C), fcw=zeros(L, 4 * C, C), fcb=zeros(L, 4 * C), fcprojw=zeros(L, C, 4 * C),
                 fcprojb=zeros(L, C), lnfw=zeros(C), lnfb=zeros(C))
    header = np.zeros(256, np.int32)
    header[:8] = 20240326, 3, T, V, L, HEADS, C, V
    text = rng.integers(0, 256, ROWS * T + 1, dtype=np.uint8)  # exactly ROWS windows, or ROWS stories:
    lengths, hash = [48, 7, 30, 2, 41], 0xcbf29ce484222325
    starts = np.cumsum([0] + lengths)
    for byte in text: hash = (hash ^ int(byte)) * 0x100000001b3 % 2**64
    newline = np.full((ROWS, T), ord("\n"), np.uint8) # before a story, and after it
    stories = newline.copy()
    for row, length in enumerate(lengths): stories[row, 1:length] = text[starts[row]:starts[row] + length - 1]
    failed, program = 0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../build/lab/attention")
    with tempfile.TemporaryDirectory() as work:
        path = lambda name: os.path.join(work, name)
        with open(path("model.bin"), "wb") as f: f.write(header.tobytes() + b"".join(p.tobytes() for p in model.values()))
        text.tofile(path("windows.txt")), text.tofile(path("stories.txt"))
        with open(path("stories.floor.tsv"), "w") as f:
            f.write(f"# fnv1a64\t{hash:016x}\n# stories\t{ROWS}\n")
            f.writelines(f"{starts[row]}\t{length}\t1\n" for row, length in enumerate(lengths))
        for name, tokens, n in ("windows", text[:-1].reshape(ROWS, T), [T] * ROWS), ("stories", stories, lengths):
            command = [program, path("model.bin"), "-j", path(name + ".txt"), "-t", str(T), "-m", str(ROWS)]
            lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
            counted = np.arange(T) < np.array(n)[:, None]
            rms = lambda table: np.sqrt((np.broadcast_to(table, (ROWS, T, C))[counted]**2).mean())
            ours = [float(word.strip(",")) for word in lines[0].split() if word[0] == "0"]
            theirs = [rms(model["wte"][tokens]), rms(model["wpe"])]
            for layer in range(L):
                for head, row in enumerate(expected(tokens, n, model, layer)):
                    found = lines[2 + layer * HEADS + head].split("\t")[2:]
                    ours += [float(word) for word in found if word != "-"]
                    theirs += list(row if layer == 0 else row[:-2])
            # printed with 3 or 4 digits
            bad = [(a, b) for a, b in zip(ours, theirs) if not abs(a - b) <= 0.005 * abs(b) + 1e-7]
            failed += len(bad) + (len(ours) != len(theirs))
            print(f"{'FAIL' if bad else 'ok  '} {name}: {len(ours)} figures, {len(bad)} differ from NumPy's {bad or ''}")
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
