#!/usr/bin/env python3
"""The losses of build/lab/ptq, against NumPy and ml_dtypes, on a random model:

    make build/lab/ptq && python3 dev/check/check_ptq.py

All lines are computed again, with the scales, the ways to calibrate and the choice among these; once for the model as it is, once
with outliers. Packages: pip install ml_dtypes. Exit status: 0 they agree (or skipped, with a line), 1 they do not.
"""

import os, subprocess, sys, tempfile

import numpy as np

try:
    import ml_dtypes
except ModuleNotFoundError as missing:
    sys.exit(print(f"skip: check_ptq: no Python package {missing.name}"))

T, V, L, HEADS, C, ROWS = 32, 256, 2, 2, 64, 24
TOLERANCE = 0.002  # of a loss: a bf16 number that is rounded otherwise moves all that follow
FORMATS = {"INT8": (127, None), "E4M3": (448, ml_dtypes.float8_e4m3fn), "E5M2": (57344, ml_dtypes.float8_e5m2)}
WAYS = ["max", "99.99%", "99.999%", "least error"]
PARTS = ["nothing", "weights", "+ activations", "+ attention", "+ residual stream"]
rng = np.random.default_rng(9)
bf16 = lambda x: np.float32(x).astype(ml_dtypes.bfloat16).astype(np.float32)


def quantized(x, name, scale):
    largest, dtype = FORMATS[name]
    y = np.clip(x * np.float32(scale), -largest, largest)
    return (y.astype(dtype).astype(np.float32) if dtype else np.rint(y)) * (1 / np.float32(scale))


def scales(x, name):
    """Of everything that calibration saw at one place, by way."""
    largest, a = FORMATS[name][0], np.sort(np.abs(x).ravel())[::-1]
    tried = largest / np.multiply.accumulate(np.float32([a[0]] + [0.93] * 76))
    errors = [((quantized(a, name, scale) - a).astype(np.float64)**2).sum() for scale in tried]
    ranges = [a[int((1 - share) * a.size)] for share in (1, 0.9999, 0.99999)]
    return dict(zip(WAYS, [largest / r for r in ranges] + [tried[np.argmin(errors)]]))


def loss(model, rows, part=0, name=None, scale=None, seen=None):
    """Mean over rows [n, T + 1]. scale: of a place; None: nothing is quantized. seen: a list of what was there, by place."""
    tokens, targets = rows[:, :-1], rows[:, 1:]

    def at(place, x, needs):
        if seen is not None: seen.setdefault(place, []).append(x)
        return quantized(x, name, scale(place)) if part >= needs and part > 1 else x

    def linear(l, key, x):
        w = bf16(model[key + "w"][l])
        if part >= 1: w = quantized(w, name, scale(None) or np.float32(FORMATS[name][0]) / np.abs(w).max(1, keepdims=True))
        return bf16(at((l, key), x, 2) @ w.T + model[key + "b"][l])

    mean = lambda x: x.mean(-1, keepdims=True)
    norm = lambda x, w, b: bf16((x - mean(x)) / np.sqrt(mean((x - mean(x))**2) + 1e-5) * w + b)
    heads = lambda y: y.reshape(len(rows), T, HEADS, C // HEADS).transpose(0, 2, 1, 3)
    x = bf16(model["wte"][tokens] + model["wpe"])
    for l in range(L):
        x = bf16(at((l, "residual"), x, 4))
        qkv = linear(l, "qkv", norm(x, model["ln1w"][l], model["ln1b"][l]))
        q, k, v = (heads(at((l, i), qkv[..., i * C:(i + 1) * C], 3)) for i in range(3))
        s = np.where(np.tril(np.ones((T, T), bool)), q @ k.transpose(0, 1, 3, 2) / np.sqrt(C / HEADS), -np.inf)
        p = np.exp(s - s.max(-1, keepdims=True))
        sums = p.sum(-1, keepdims=True)
        if part >= 3 or seen is not None: o = at((l, "p"), bf16(p / sums), 3) @ v
        else: o = bf16(p) @ v / sums
        x = bf16(x + linear(l, "attproj", bf16(o.transpose(0, 2, 1, 3).reshape(len(rows), T, C))))
        x = bf16(at((l, "residual 2"), x, 4))
        h = linear(l, "fc", norm(x, model["ln2w"][l], model["ln2b"][l]))
        gelu = bf16(0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))))
        x = bf16(x + linear(l, "fcproj", gelu))
    logits = norm(x, model["lnfw"], model["lnfb"]) @ bf16(model["wte"]).T
    return float((np.logaddexp.reduce(logits, -1) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]).mean())


def main():
    shapes = dict(wte=(V, C), wpe=(T, C), ln1w=(L, C), ln1b=(L, C), qkvw=(L, 3 * C, C), qkvb=(L, 3 * C), attprojw=(L, C, C),
                  attprojb=(L, C), ln2w=(L, C), ln2b=(L, C), fcw=(L, 4 * C, C), fcb=(L, 4 * C), fcprojw=(L, C, 4 * C),
                  fcprojb=(L, C), lnfw=(C,), lnfb=(C,))
    model = {key: np.float32(rng.normal(key in ("ln1w", "ln2w", "lnfw"), 0.1 if key[-1] == "b" else 0.2, shape))
             for key, shape in shapes.items()}
    header = np.zeros(256, np.int32)
    header[:8] = 20240326, 3, T, V, L, HEADS, C, V
    texts = [rng.integers(0, 256, ROWS * T + 1, dtype=np.uint8) for _ in range(2)]  # exactly ROWS windows
    calibration, validation = (np.array([text[i * T:(i + 1) * T + 1].astype(int) for i in range(ROWS)]) for text in texts)
    ranging, choosing = np.split(calibration, 2)
    program, bad, worst = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../build/lab/ptq"), 0, 0
    with tempfile.TemporaryDirectory() as work:
        paths = [os.path.join(work, name) for name in ("model.bin", "calibration.txt", "validation.txt")]
        with open(paths[0], "wb") as f: f.write(header.tobytes() + b"".join(p.tobytes() for p in model.values()))
        for text, path in zip(texts, paths[1:]): text.tofile(path)
        for factor in 1, 64:
            command = [program, paths[0], "-i", paths[1], "-j", paths[2], "-f", str(factor), "-c", "2"]
            lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
            outliers = {key: value.copy() for key, value in model.items()}
            for key in "ln1w", "ln1b", "ln2w", "ln2b": outliers[key][:, ::C // 2] *= factor
            for key in "qkvw", "fcw": outliers[key][:, :, ::C // 2] /= factor
            loss(outliers, ranging, seen=(seen := {}))
            ranges = {name: {place: scales(np.array(x), name) for place, x in seen.items()} for name in FORMATS}
            for line in lines[lines.index("") + 2:]:
                what, name, found, _, _, way = line.split("\t")
                name, fixed = name[:4], 2.0**(int(name.split()[-1]) - 7) if "bias" in name else None
                part, own = PARTS.index(what), lambda place, way: place and ranges[name][place][way]
                of = lambda rows, way: loss(outliers, rows, part, name, lambda place: fixed or own(place, way))
                expected = of(validation, way)
                chooses = {w: of(choosing, w) for w in WAYS} if way != "-" else {"-": 0}
                chosen = chooses[way] < min(chooses.values()) + TOLERANCE
                worst = max(worst, abs(float(found) - expected))
                if chosen and abs(float(found) - expected) < TOLERANCE: continue
                bad += 1
                print(f"FAIL factor {factor}: {line}; NumPy has {expected:.6f}{'' if chosen else ', and another way'}")
    print(f"{'FAIL' if bad else 'ok  '} {bad} lines differ from NumPy's; the largest difference of a loss is {worst:.6f}")
    return int(bad != 0)


if __name__ == "__main__":
    sys.exit(main())
