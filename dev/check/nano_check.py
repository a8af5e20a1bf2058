#!/usr/bin/env python3
"""The trainer against a published trained model: python3 dev/check/nano_check.py [--shared DIR]

gpt-nano-sort-model.json holds a GPT-2 of 3 layers, 3 heads and 48 channels that sorts digits 0 to 2, with an untied head;
gpt-nano-sort-t0-partials.json every intermediate of one forward pass, those inside a block from the first block. Tensors
are base64 float32; linear weights lie [out, in] as in ours. The model becomes an llm.c model file, dev/check/nano_check.c runs
it, and the untied head is applied here.
"""

import base64
import json
import math
import os
import sys

import numpy as np

import check_references

SOURCES = ["nano_check.c"]
# Difference allowed, |a - b| / |b| over a tensor. Both sides round to fp32 after every operation, some 30 of them in a row
# here, and a sum over 192 channels is a chain on our side: 16 units of 2^-24.
LIMIT = 16 * 2.0**-24
BLOCK = [("ln1w", "ln_1.weight"), ("ln1b", "ln_1.bias"), ("qkvw", "attn.c_attn.weight"), ("qkvb", "attn.c_attn.bias"),
         ("attprojw", "attn.c_proj.weight"), ("attprojb", "attn.c_proj.bias"), ("ln2w", "ln_2.weight"), ("ln2b", "ln_2.bias"),
         ("fcw", "mlp.c_fc.weight"), ("fcb", "mlp.c_fc.bias"), ("fcprojw", "mlp.c_proj.weight"), ("fcprojb", "mlp.c_proj.bias")]


def tensors(node, path=""):
    """{dotted path: array} of every {shape, dtype, data} below a JSON node."""
    if isinstance(node, dict) and "data" in node:
        return {path: np.frombuffer(base64.b64decode(node["data"]), "<f4").reshape(node["shape"])}
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return {k: v for key, child in children for k, v in tensors(child, f"{path}.{key}" if path else str(key)).items()}


def write_model(path, model, config, layers, fault=""):
    C, V, T = config["n_embd"], config["vocab_size"], config["block_size"]
    Vp = (V + 127) // 128 * 128
    header = np.zeros(256, "<i4")
    header[:8] = 20240326, 3, T, V, layers, config["n_head"], C, Vp
    parts = [header, model["transformer.wte.weight"], np.zeros((Vp - V, C), "<f4"), model["transformer.wpe.weight"]]
    for ours, theirs in BLOCK:
        for l in range(layers):
            t = model[f"transformer.h.{l}.{theirs}"]
            parts.append(t.T if fault == ours and l == 0 else t)
    parts += [model["transformer.ln_f.weight"], model["transformer.ln_f.bias"]]
    with open(path, "wb") as f:
        for part in parts: f.write(np.ascontiguousarray(part).tobytes())


def run_model(ref, model, config, layers, idx, fault=""):
    """The C program's intermediates of a model of the first `layers` blocks, each [B, n, channels] of float64."""
    write_model(ref.path("nano.bin"), model, config, layers, fault)
    with open(ref.path("nano.tokens"), "wb") as f: f.write(np.array([*idx.shape, *idx.ravel()], "<i4").tobytes())
    ref.run("nano_check.c", "fp32", ref.path("nano.bin"), ref.path("nano.tokens"), ref.path("nano.result"))
    arrays = check_references.read_arrays(ref.path("nano.result"))
    return {k: v.reshape(*idx.shape, -1).astype(np.float64) for k, v in arrays.items()}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def compare(ours, one_block, model, want, config):
    """{name: relative difference} for every intermediate of the published pass."""
    C, NH = config["n_embd"], config["n_head"]
    B, n = want["idx"].shape
    got = {name: ours[name + ".0"] for name in ("x", "ln1", "qkv", "y", "attnResid", "ln2", "fc", "gelu")}
    got.update({f"block{l}": ours[f"block.{l}"] for l in range(config["n_layer"])})
    got["mlpResid"], got["ln_f"] = ours["block.0"], ours["ln_f.0"]
    got["mlp"] = one_block["mlp.0"]                  # in a model of one block the last MLP's output is the first's
    got["yProj"] = got["attnResid"] - got["x"]       # both are small here, so the rounding of the sum is too
    for i, name in enumerate("qkv"):                 # heads are consecutive channels
        got[name] = got["qkv"][..., i * C:(i + 1) * C].reshape(B, n, NH, C // NH).swapaxes(1, 2)
    scores = got["q"] @ got["k"].swapaxes(2, 3) / math.sqrt(C // NH)
    got["att"] = np.where(np.tri(n, dtype=bool), scores, -np.inf)
    got["attSm"] = softmax(got["att"])
    got["lm_head"] = got["ln_f"] @ model["lm_head.weight"].T.astype(np.float64)
    got["probs"] = softmax(got["lm_head"])
    differences = {}
    for name, a in got.items():
        b = want[name].astype(np.float64)
        same = np.array_equal(np.isfinite(a), np.isfinite(b)) and a.shape == b.shape
        a, b = (a[np.isfinite(a)], b[np.isfinite(b)]) if same else (np.inf, b)
        differences[name] = float(np.linalg.norm(a - b) / np.linalg.norm(b)) if same else math.inf
    return differences


def run(ref):
    paths = [os.path.join(ref.shared, f"gpt-nano-sort-{part}.json") for part in ("model", "t0-partials")]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        ref.skip(f"nano_check: no {os.path.basename(missing[0])} in the shared data")
        return
    model_json, partials_json = (json.load(open(path)) for path in paths)
    config, model, want = model_json["config"], tensors(model_json), tensors(partials_json)
    idx = want["idx"].astype(np.int32)
    one_block = run_model(ref, model, config, 1, idx)
    ours = run_model(ref, model, config, config["n_layer"], idx)
    differences = compare(ours, one_block, model, want, config)
    for name, d in differences.items():
        ref.check(f"nano-sort {name} {list(want[name].shape)}", d <= LIMIT, f"{d:.1e} (limit {LIMIT:.1e})")
    unused = sorted(set(want) - set(differences) - {"idx", "tok_emb", "pos_emb"})  # the embeddings' sum is x
    ref.check("nano-sort: every published tensor is compared", not unused, " ".join(unused))
    choice = (ours["ln_f.0"] @ model["lm_head.weight"].T).argmax(-1)
    ref.check("nano-sort: the same most likely digit everywhere", np.array_equal(choice, want["lm_head"].argmax(-1)))
    wrong = compare(run_model(ref, model, config, config["n_layer"], idx, "attprojw"), one_block, model, want, config)
    seen = [name for name, d in wrong.items() if d > LIMIT]
    ref.check("nano-sort: a planted fault is seen, one weight transposed", "lm_head" in seen and "y" not in seen, f"{len(seen)} tensors differ")


if __name__ == "__main__":
    sys.exit(check_references.main(["nano_check"]))
