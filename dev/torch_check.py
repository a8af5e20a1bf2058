#!/usr/bin/env python3
"""The trainer against PyTorch: python3 dev/torch_check.py [--shared DIR]

dev/torch_check.c writes a small model as an llm.c model file, and what the trainer makes of it. Here is a GPT-2 of its
own, which reads that file; both see the same tokens. The reference computes in float64, so the differences are the
trainer's alone; the fp32 build is compared once more with PyTorch in fp32. Each kind of check is shown to fail once
with a planted fault.
"""

import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

import check_references

SOURCES = ["torch_check.c"]
NAMES = ["wte", "wpe", "ln1w", "ln1b", "qkvw", "qkvb", "attprojw", "attprojb", "ln2w", "ln2b", "fcw", "fcb", "fcprojw", "fcprojb", "lnfw", "lnfb"]
MATRICES = {"wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw"}
STEPS, MICROS, LR, BETAS, EPS, DECAY, CLIP = 10, 2, 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0

# L NH C T V B n: the plain case; more than one slab of the head, more than one block of attention's queries, odd sizes;
# a context that is not filled, many layers; products whose K takes more than one block.
CONFIGS = {
    "plain": (2, 2, 64, 32, 97, 2, 32),
    "long": (1, 2, 40, 300, 131, 2, 300),
    "odd": (5, 3, 21, 40, 50, 4, 19),
    "wide": (1, 3, 312, 16, 200, 2, 16),
}


# ---------------------------------------------------------------------------------------------------------------------
# the reference

def read_model(path, dtype):
    """An llm.c model file: (config, parameters as leaf tensors). Padded rows of wte are cut off, and must be 0."""
    raw = open(path, "rb").read()
    magic, version, T, V, L, NH, C, Vp = np.frombuffer(raw, "<i4", 8)
    assert (magic, version) == (20240326, 3) and Vp % 128 == 0 and V <= Vp, "not a version 3 model file"
    shapes = [(Vp, C), (T, C), (L, C), (L, C), (L, 3 * C, C), (L, 3 * C), (L, C, C), (L, C), (L, C), (L, C), (L, 4 * C, C), (L, 4 * C),
              (L, C, 4 * C), (L, C), (C,), (C,)]
    data, at, params = np.frombuffer(raw, "<f4", offset=1024), 0, {}
    for name, shape in zip(NAMES, shapes):
        count = math.prod(map(int, shape))
        params[name] = torch.tensor(data[at:at + count].reshape(shape).copy(), dtype=dtype)
        at += count
    assert at == len(data), "the model file has another length"
    assert not params["wte"][V:].any(), "a padded row of wte is not 0"
    params["wte"] = params["wte"][:V].clone()
    return (int(L), int(NH), int(C)), {k: v.requires_grad_() for k, v in params.items()}


class Exact:
    """The model's operations as PyTorch has them. Emulated, below, puts a build's roundings in."""
    loss_scale = 1.0

    def stored(self, x): return x
    def linear(self, x, w, b, key): return F.linear(x, w, b)
    def head(self, x, w, grad_scale): return x @ w.T
    def advance(self): pass

    def attention(self, q, k, v, scale, hidden):
        return (q @ k.transpose(2, 3) * scale).masked_fill(hidden, -math.inf).softmax(3) @ v


class Stored(torch.autograd.Function):
    """A stored tensor: rounded, and so is its gradient."""
    @staticmethod
    def forward(ctx, x, numerics):
        ctx.numerics = numerics
        return numerics.round(x)

    @staticmethod
    def backward(ctx, dy): return ctx.numerics.round(dy), None


class Linear(torch.autograd.Function):
    """x w^T + b of quantised x and w; dx and dw from quantised dy, db from dy."""
    @staticmethod
    def forward(ctx, x, w, b, numerics, key):
        x, w = numerics.quantise(x, (*key, "x")), numerics.quantise(numerics.round(w), (*key, "w"))
        ctx.save_for_backward(x, w)
        ctx.numerics, ctx.key = numerics, key
        return F.linear(x, w, b)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dy = ctx.numerics.round(dy)
        q = ctx.numerics.quantise(dy, (*ctx.key, "dy"))
        return q @ w, q.flatten(0, -2).T @ x.flatten(0, -2), dy.flatten(0, -2).sum(0), None, None


class Attention(torch.autograd.Function):
    """Forward rounds e^(s - max) before the product with v and divides after it; backward rounds p and ds."""
    @staticmethod
    def forward(ctx, q, k, v, scale, hidden, numerics):
        s = (q @ k.transpose(2, 3) * scale).masked_fill(hidden, -math.inf)
        e = (s - s.amax(3, keepdim=True)).exp()
        ctx.save_for_backward(q, k, v, e / e.sum(3, keepdim=True))
        ctx.scale, ctx.numerics = scale, numerics
        return numerics.round(e) @ v / e.sum(3, keepdim=True)

    @staticmethod
    def backward(ctx, do):
        q, k, v, p = ctx.saved_tensors
        dp = do @ v.transpose(2, 3)
        ds = ctx.numerics.round(p * (dp - (p * dp).sum(3, keepdim=True)))
        return ds @ k * ctx.scale, ds.transpose(2, 3) @ q * ctx.scale, ctx.numerics.round(p).transpose(2, 3) @ do, None, None, None


class Emulated(Exact):
    """The roundings of the FP8, BF16 and FP16 builds, with PyTorch's own conversions: stored tensors and their gradients
    in 16 bits; in the FP8 build every operand of a linear layer in 8, delayed scaling with a history of 16 steps."""

    def __init__(self, build, fault=""):
        self.dtype = torch.float16 if build == "fp16" else torch.bfloat16
        self.fp8, self.fp8_head = build.startswith("fp8"), build == "fp8 head"
        self.loss_scale = 65536.0 if build == "fp16" else 1.0
        self.fault, self.history, self.step, self.head_dy_scale = fault, {}, {}, 1.0

    def round(self, x): return x.to(self.dtype).to(x.dtype)
    def stored(self, x): return Stored.apply(x, self)
    def linear(self, x, w, b, key): return self.stored(Linear.apply(x, w, b, self, key))
    def attention(self, q, k, v, scale, hidden): return Attention.apply(q, k, v, scale, hidden, self)

    def head(self, x, w, grad_scale):
        self.head_dy_scale = 2.0 ** math.floor(math.log2(57344 / (2 * grad_scale)))
        slabs = [Linear.apply(slab, w, None, self, ("head",)) for slab in x.flatten(0, 1).split(512)]
        return torch.cat(slabs).view(*x.shape[:2], -1)

    def quantise(self, x, key):
        if not self.fp8 or (key[0] == "head" and not self.fp8_head): return x
        gradient = key[-1] == "dy" and self.fault != "dy in E4M3"
        dtype, largest = (torch.float8_e5m2, 57344.0) if gradient else (torch.float8_e4m3fn, 448.0)
        amax = x.abs().max().float()
        self.step[key] = max(self.step.get(key, amax), amax)
        if self.fault != "no delayed scaling" and key in self.history: amax = max(self.history[key])
        scale = torch.tensor(largest) / amax
        if key == ("head", "dy"): scale = torch.tensor(self.head_dy_scale)
        scaled = (x.float() * scale).clamp(-largest, largest)
        return (scaled.to(dtype).float() * (1 / scale)).to(x.dtype)

    def advance(self):
        for key, amax in self.step.items():
            self.history[key] = (self.history.get(key, []) + [amax])[-16:]
        self.step = {}


def forward(config, p, tokens, targets, counted, numerics, fault=""):
    """Sum of losses / counted, loss of each token, logits, output of the last layernorm."""
    L, NH, C = config
    B, T = tokens.shape
    stored, linear = numerics.stored, numerics.linear
    layernorm = lambda x, w, b: stored(F.layer_norm(x, (C,), w, b, eps=1e-6 if fault == "layernorm eps" else 1e-5))
    heads = lambda x: x.view(B, T, NH, C // NH).transpose(1, 2)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(2 if fault == "sees one token ahead" else 1)
    scale = 1 if fault == "scores not scaled" else 1 / math.sqrt(C // NH)
    x = stored(p["wte"][tokens] + p["wpe"][:T])
    for l in range(L):
        qkv = linear(layernorm(x, p["ln1w"][l], p["ln1b"][l]), p["qkvw"][l], p["qkvb"][l], (l, "qkv"))
        y = numerics.attention(*map(heads, qkv.split(C, dim=2)), scale, hidden)
        y = stored(y.transpose(1, 2).reshape(B, T, C))
        x = stored(x + linear(y, p["attprojw"][l], p["attprojb"][l], (l, "attproj")))
        h = linear(layernorm(x, p["ln2w"][l], p["ln2b"][l]), p["fcw"][l], p["fcb"][l], (l, "fc"))
        h = stored(F.gelu(h, approximate="none" if fault == "erf GELU" else "tanh"))
        x = stored(x + linear(h, p["fcprojw"][l], p["fcprojb"][l], (l, "fcproj")))
    lnf = layernorm(x, p["lnfw"], p["lnfb"])
    logits = numerics.head(lnf, p["wte"], numerics.loss_scale / counted)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    return losses.sum() / counted, losses, logits, lnf


def reference(path, tokens, targets, dtype, numerics, fault=""):
    """The same quantities under the same names as the trainer's results."""
    config, p = read_model(path, dtype)
    counted = int((targets >= 0).sum())

    def unscale():
        for t in p.values(): t.grad /= numerics.loss_scale

    loss, losses, logits, lnf = forward(config, p, tokens, targets, counted, numerics, fault)
    (loss * numerics.loss_scale).backward()
    unscale()
    out = {"loss": loss, "losses": losses, "logits": logits, "lnf": lnf}
    out.update({"grad." + name: t.grad.clone() for name, t in p.items()})
    out.update({"start." + name: t.clone() for name, t in p.items()})
    if fault == "one gradient doubled": out["grad.fcw"] *= 2
    if fault == "one gradient's sign": out["grad.ln1b"] *= -1

    decaying = [t for name, t in p.items() if name in MATRICES or fault == "decay on vectors"]
    others = [t for name, t in p.items() if not (name in MATRICES or fault == "decay on vectors")]
    optimiser = torch.optim.AdamW([{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
                                  lr=LR, betas=BETAS, eps=EPS)
    step_losses, norms = [], []
    for _ in range(STEPS):
        optimiser.zero_grad()
        micro_losses = []
        for micro_tokens, micro_targets in zip(tokens.chunk(MICROS), targets.chunk(MICROS)):
            loss = forward(config, p, micro_tokens, micro_targets, counted, numerics, fault)[0]
            (loss * numerics.loss_scale).backward()
            micro_losses.append(loss)
        unscale()
        norms.append(torch.nn.utils.clip_grad_norm_(list(p.values()), 1e9 if fault == "no clipping" else CLIP))
        optimiser.step()
        numerics.advance()
        step_losses.append(sum(micro_losses))
    out.update({"step_losses": torch.stack(step_losses), "norms": torch.stack(norms)})
    out.update({"final." + name: t for name, t in p.items()})
    return {name: t.detach().double().numpy() for name, t in out.items()}


# ---------------------------------------------------------------------------------------------------------------------
# the comparison

# Largest relative differences allowed, |a - b| / |b| in the Euclidean norm over a tensor. `update`: of what ten steps
# changed, final - start.
LIMITS = {
    "fp32": {"loss": 1e-5, "losses": 1e-5, "lnf": 1e-5, "logits": 1e-5, "grad": 1e-5, "cosine": 1 - 1e-9, "steps": 1e-4, "norms": 1e-4, "update": 1e-3},
}
LIMITS["fp16"] = LIMITS["bf16"] = LIMITS["fp8"] = LIMITS["fp8 head"] = LIMITS["fp32"]


def distance(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare(ours, ref, limits):
    """[(kind, worst value, its limit, within?, where)] for the kinds of LIMITS."""
    rows = []
    tensors = {}
    for name, b in ref.items():
        a = ours["final." + name[6:]] if name.startswith("start.") else ours[name]
        a = a.astype(np.float64)
        if name == "logits": a = a.reshape(len(b.reshape(-1, b.shape[-1])), -1)[:, :b.shape[-1]]
        tensors[name] = (a.ravel()[:b.size], b.ravel())  # rows of the padded vocabulary come last in wte
    for kind in ("loss", "losses", "lnf", "logits", "steps", "norms"):
        value = distance(*tensors["step_losses" if kind == "steps" else kind])
        rows.append((kind, value, limits[kind], value <= limits[kind], ""))
    grads = {name: tensors["grad." + name] for name in NAMES}
    value, name = max((distance(a, b), name) for name, (a, b) in grads.items())
    rows.append(("grad", value, limits["grad"], value <= limits["grad"], name))
    value, name = min((float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), name) for name, (a, b) in grads.items())
    rows.append(("cosine", value, limits["cosine"], value >= limits["cosine"], name))
    updates = []
    for name in NAMES:
        a, b, start = tensors["final." + name][0], tensors["final." + name][1], ref["start." + name].ravel()
        if name == "qkvb":  # softmax ignores the key's bias: its gradient is rounding noise, which Adam makes into steps
            a, b, start = (np.delete(t.reshape(-1, 3, t.size // (3 * len(ref["start.ln1w"]))), 1, 1).ravel() for t in (a, b, start))
        updates.append((distance(a - start, b - start), name))
    value, name = max(updates)
    rows.append(("update", value, limits["update"], value <= limits["update"], name))
    return rows


def describe(rows):
    shown = lambda kind, value: f"1-{1 - value:.1e}" if kind == "cosine" else f"{value:.1e}"
    return ", ".join(f"{kind} {shown(kind, value)}{' at ' + where if where else ''}{'' if ok else f' (limit {shown(kind, limit)})'}"
                     for kind, value, limit, ok, where in rows)


def run(ref):
    torch.set_num_threads(2)
    for config_name, config in CONFIGS.items():
        V, C = config[4], config[2]
        for build in ("fp32", "bf16", "fp16", "fp8", "fp8 head"):
            name, precision = f"torch {build} {config_name}", build.split()[0]
            model, result = ref.path("model.bin"), ref.path("result.bin")
            ref.run("torch_check.c", precision, model, result, *config, int(build == "fp8 head"))
            ours = check_references.read_arrays(result)
            tokens, targets = (torch.tensor(ours[k].astype(np.int64)).view(config[5], config[6]) for k in ("tokens", "targets"))
            if build == "fp32": expected = reference(model, tokens, targets, torch.float64, Exact())
            rows = compare(ours, expected, LIMITS[build])
            ref.check(name, all(row[3] for row in rows), describe(rows))
            emulated = (lambda fault="": reference(model, tokens, targets, torch.float64, Emulated(build, fault), fault))
            if build != "fp32":
                rows = compare(ours, emulated(), LIMITS[build])
                ref.check(f"{name} EMU", all(row[3] for row in rows), describe(rows))


if __name__ == "__main__":
    sys.exit(check_references.main(["torch_check"]))
