#!/usr/bin/env python3
"""The trainer against PyTorch: python3 dev/check/torch_check.py [--shared DIR]

dev/check/torch_check.c writes a small model as an llm.c model file, and what the trainer makes of it. Here is a GPT-2 of its
own, which reads that file; both see the same tokens. Two references, both in float64, so that differences are ours:
  exact      no rounding at all. The fp32 build must agree to a few units of fp32, the others within their format's error
  emulated   the 16- and 8-bit roundings of a build, by PyTorch's own conversions; what is left are fp32 sums, which now
             and then tip a rounding over. Tight enough to see a wrong format, a missing rounding or a wrong scale
The fp32 build is compared with PyTorch in fp32 as well. Each kind of check is shown to fail with planted faults.
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
    """x w^T + b of quantized x and w; dx and dw from quantized dy, db from dy."""
    @staticmethod
    def forward(ctx, x, w, b, numerics, key):
        x, w = numerics.quantize(x, (*key, "x")), numerics.quantize(numerics.round(w), (*key, "w"))
        ctx.save_for_backward(x, w)
        ctx.numerics, ctx.key = numerics, key
        return F.linear(x, w, b)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dy = ctx.numerics.round(dy)
        q = ctx.numerics.quantize(dy, (*ctx.key, "dy"))
        db = dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return q @ w, q.flatten(0, -2).T @ x.flatten(0, -2), db, None, None


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
        self.scales = []  # after each step, by operand: {(layer, linear, role): scale}

    def round(self, x): return x.to(self.dtype).to(x.dtype)
    def stored(self, x): return Stored.apply(x, self)
    def linear(self, x, w, b, key): return self.stored(Linear.apply(x, w, b, self, key))
    def attention(self, q, k, v, scale, hidden): return Attention.apply(q, k, v, scale, hidden, self)

    def head(self, x, w, grad_scale):
        self.head_dy_scale = 2.0 ** math.floor(math.log2(57344 / (2 * grad_scale)))
        slabs = [Linear.apply(slab, w, None, self, ("head",)) for slab in x.flatten(0, 1).split(512)]
        return torch.cat(slabs).view(*x.shape[:2], -1)

    def quantize(self, x, key):
        if not self.fp8 or (key[0] == "head" and not self.fp8_head): return x
        gradient = key[-1] == "dy" and self.fault != "dy in E4M3"
        dtype, largest = (torch.float8_e5m2, 57344.0) if gradient else (torch.float8_e4m3fn, 448.0)
        amax = x.abs().max().float()
        self.step[key] = max(self.step.get(key, amax), amax)
        if key in self.history: amax = max(self.history[key])
        scale = torch.tensor(largest) / amax  # a number over a tensor would be rounded twice
        if key == ("head", "dy"): scale = torch.tensor(self.head_dy_scale)
        scaled = (x.float() * scale).clamp(-largest, largest)
        return (scaled.to(dtype).float() * (1 / scale)).to(x.dtype)

    def advance(self):
        for key, amax in self.step.items():
            kept = self.history.get(key, []) + [amax]
            self.history[key] = kept[-1:] if self.fault == "history of one step" else kept[-16:]
        self.scales.append({key: (57344 if key[2] == "dy" else 448) / float(max(h)) for key, h in self.history.items() if key[0] != "head"})
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
    if fault == "loss counts ignored targets": counted = targets.numel()
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
    optimizer = torch.optim.AdamW([{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
                                  lr=LR, betas=BETAS, eps=EPS)
    step_losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        micro_losses = []
        for micro_tokens, micro_targets in zip(tokens.chunk(MICROS), targets.chunk(MICROS)):
            loss = forward(config, p, micro_tokens, micro_targets, counted, numerics, fault)[0]
            (loss * numerics.loss_scale).backward()
            micro_losses.append(loss)
        unscale()
        norms.append(torch.nn.utils.clip_grad_norm_(list(p.values()), 1e9 if fault == "no clipping" else CLIP))
        optimizer.step()
        numerics.advance()
        step_losses.append(sum(micro_losses))
    out.update({"step_losses": torch.stack(step_losses), "norms": torch.stack(norms)})
    out.update({"final." + name: t for name, t in p.items()})
    if isinstance(numerics, Emulated) and numerics.fp8:
        order = [(l, linear, role) for l in range(config[0]) for linear in ("qkv", "attproj", "fc", "fcproj") for role in ("x", "w", "dy")]
        for step in (1, STEPS): out[f"scales.{step}"] = torch.tensor([numerics.scales[step - 1][key] for key in order])
    return {name: t.detach().double().numpy() for name, t in out.items()}


# ---------------------------------------------------------------------------------------------------------------------
# the comparison

# The largest differences allowed, |a - b| / |b| over a tensor in the Euclidean norm; a few times what was measured, which
# is a small multiple of the format's unit roundoff: fp32 6e-8, fp16 5e-4, bf16 4e-3, E4M3 6e-2, E5M2 0.12. `losses`: of
# each token; `grad`, `cosine` (1 - cosine), `update` (what ten steps changed, final - start): the worst tensor; `steps`,
# `norms`: loss and gradient norm of ten steps; `scale`: FP8 scales in use after the first step and after the last.
KINDS = ("loss", "losses", "lnf", "logits", "steps", "norms", "grad", "cosine", "update", "scales.1", "scales.10")
LIMITS = {
    ("fp32", "exact"):    (1e-6, 1e-6, 4e-6, 4e-6, 2e-6, 2e-5, 6e-6, 1e-11, 1e-3),
    ("fp16", "exact"):    (5e-5, 6e-4, 3e-3, 3e-3, 2e-4, 5e-3, 5e-3, 5e-6, 4e-2),
    ("bf16", "exact"):    (1e-3, 6e-3, 2e-2, 2e-2, 2e-3, 3e-2, 4e-2, 3e-4, 2e-1),
    ("fp8", "exact"):     (4e-3, 4e-2, 2e-1, 2e-1, 3e-2, 1e-1, 3e-1, 3e-2, 5e-1),
    ("fp16", "emulated"): (5e-5, 3e-4, 1e-3, 1e-3, 2e-4, 2e-3, 3e-3, 3e-6, 3e-2),
    ("bf16", "emulated"): (1e-5, 5e-5, 1e-3, 1e-3, 4e-4, 6e-3, 5e-3, 1e-5, 4e-2),
    ("fp8", "emulated"):  (1e-4, 1e-3, 5e-3, 5e-3, 4e-3, 4e-2, 2e-2, 1e-4, 2e-1, 1e-3, 1e-1),
}


def distance(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare(ours, ref, limits):
    """[(kind, difference, limit, in which tensor)]; a difference that is not a number counts as infinite."""
    pairs = {}
    for name, b in ref.items():
        if name.startswith("start."): continue
        a = ours[name].astype(np.float64)
        if name == "logits": a = a.reshape(-1, a.size // math.prod(b.shape[:-1]))[:, :b.shape[-1]]
        pairs[name] = a.ravel()[:b.size], b.ravel()  # rows of the padded vocabulary come last in wte
    found = {}

    def difference(kind, value, name=""):
        value = value if math.isfinite(value) else math.inf
        found[kind] = max(found.get(kind, (0.0, "")), (value, name))

    for kind, name in zip(KINDS, ("loss", "losses", "lnf", "logits", "step_losses", "norms")):
        difference(kind, distance(*pairs[name]))
    for kind in KINDS[-2:]:
        if kind in pairs: difference(kind, distance(*pairs[kind]))
    for name in NAMES:
        a, b = pairs["grad." + name]
        difference("grad", distance(a, b), name)
        difference("cosine", 1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), name)
        a, b, start = *pairs["final." + name], ref["start." + name].ravel()
        if name == "qkvb":  # softmax ignores the key's bias: its gradient is rounding noise, which Adam makes into steps
            C = ref["start.lnfb"].size
            a, b, start = (np.delete(t.reshape(-1, 3, C), 1, 1).ravel() for t in (a, b, start))
        difference("update", distance(a - start, b - start), name)
    return [(kind, found[kind][0], limit, found[kind][1]) for kind, limit in zip(KINDS, limits) if kind in found]


def beyond(rows): return [row for row in rows if row[1] > row[2]]


def describe(rows):
    return ", ".join(f"{kind} {value:.1e}{' ' + where if where else ''}" + (f" > {limit:.0e}" if value > limit else "") for kind, value, limit, where in rows)


FAULTS = {
    "exact": ["one gradient doubled", "one gradient's sign", "scores not scaled", "sees one token ahead"],
    ("fp32", "exact"): ["erf GELU", "layernorm eps", "decay on vectors", "no clipping"],
    ("bf16", "emulated"): ["decay on vectors", "scores not scaled"],
    ("fp8", "emulated"): ["dy in E4M3", "history of one step", "loss counts ignored targets"],
}


def run(ref):
    torch.set_num_threads(1)
    for config_name, config in CONFIGS.items():
        V, C, B, n = config[4], config[2], config[5], config[6]
        models, exact = set(), {}
        for build in ("fp32", "bf16", "fp16", "fp8", "fp8 head"):
            precision, name = build.split()[0], f"torch {config_name} {build}"
            model, result = ref.path("model.bin"), ref.path("result.bin")
            ref.run("torch_check.c", precision, model, result, *config, int(build == "fp8 head"))
            models.add(open(model, "rb").read())
            ours = check_references.read_arrays(result)
            tokens, targets = (torch.tensor(ours[k].astype(np.int64)).view(B, n) for k in ("tokens", "targets"))

            def differences(kind, fault="", dtype=torch.float64):
                compute = lambda numerics: reference(model, tokens, targets, dtype, numerics, fault)
                if kind == "emulated": expected = compute(Emulated(build, fault))
                elif (fault, dtype) in exact: expected = exact[fault, dtype]  # the builds share model and batch
                else: expected = exact[fault, dtype] = compute(Exact())
                return compare(ours, expected, LIMITS[precision, kind])

            for kind in ("exact", "emulated") if build != "fp32" else ("exact",):
                rows = differences(kind)
                ref.check(f"{name}, {kind}", not beyond(rows), describe(rows))
            if build == "fp32":
                rows = differences("exact", dtype=torch.float32)
                ref.check(f"{name}, PyTorch in fp32", not beyond(rows), describe(rows))
            padding = [ours["logits"].reshape(B * n, -1)[:, V:], ours["grad.wte"][V * C:], ours["final.wte"][V * C:]]
            ref.check(f"{name}, the padded vocabulary stays exactly 0", not any(t.any() for t in padding))
            if config_name != "plain" or build == "fp8 head": continue
            for kind in ("exact", "emulated"):
                for fault in (FAULTS["exact"] if kind == "exact" else []) + FAULTS.get((precision, kind), []):
                    rows = beyond(differences(kind, fault))
                    ref.check(f"{name}, {kind}: a planted fault is seen, {fault}", rows, describe(rows))
        ref.check(f"torch {config_name}: the builds start from the same weights", len(models) == 1)


if __name__ == "__main__":
    sys.exit(check_references.main(["torch_check"]))
