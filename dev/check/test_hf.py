#!/usr/bin/env python3
"""Test of data/hf.py against transformers: python3 dev/check/test_hf.py [--shared DIR]

Random checkpoints survive import and export bit by bit. The logits of an imported model and the
loss of an exported one are those of transformers. Tokenizers give tiktoken's ids. Damaged input is
refused by name. Needs train_gpt_fp8, train_gpt_fp32, build/eval/logits_fp32 and data/tales.d, but
no network. GPT-2's vocabulary comes from --shared; without it a line says `skip: reason`.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="0")
try:
    import tiktoken  # data/prepare.py takes it
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file
    from safetensors.torch import load_file as load_torch, save_file as save_torch
except ImportError as e:
    print(f"test_hf: expected the Python package {e.name}, found none; pip install torch "
          f"transformers safetensors tiktoken", file=sys.stderr)
    sys.exit(2)

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", ".."))
DATA = os.path.join(ROOT, "data")
spec = importlib.util.spec_from_file_location("prepare", os.path.join(DATA, "prepare.py"))
spec.loader.exec_module(prepare := importlib.util.module_from_spec(spec))
np = prepare.np
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.manual_seed(1)
passed = failed = 0

# ---- Frame


def check(name, ok, detail=""):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print(f"FAIL {name}" + (f": {detail}" if detail else ""))


def run(*command):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                            timeout=120, check=False)
    check(" ".join(map(str, command))[-90:] + ": exit status 0", result.returncode == 0,
          result.stdout[-300:] + result.stderr)
    return result.stdout


def hf(*args):
    return run(sys.executable, os.path.join(DATA, "hf.py"), *args)


def refused(name, words, *args, out=None):
    """One line that has the words, exit status 2, and nothing written."""
    result = subprocess.run([sys.executable, os.path.join(DATA, "hf.py"), *args],
                            capture_output=True, text=True, timeout=120, check=False)
    said = result.stderr
    good = result.returncode == 2 and said.count("\n") == 1 and all(w in said for w in words)
    check(f"{name}: refused with {words}", good, f"status {result.returncode}: {said[-400:]}")
    left = [path for path in (out, f"{out}.tmp", f"{out}.hf.tmp") if out and os.path.exists(path)]
    check(f"{name}: nothing is left", not left, left)
    return said


def read(path):
    with open(path, "rb") as f:
        return f.read()


def json_of(path):
    return json.loads(read(path))


def write(path, data):
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def checkpoint(folder, vocabulary, dtype=torch.float32, channels=256, layers=3, **options):
    """A model with random weights, larger than at first, so that a misplaced tensor is seen."""
    ends = {"bos_token_id": None, "eos_token_id": None} if vocabulary < 50257 else {}
    config = transformers.GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=channels,
                                     n_layer=layers, n_head=4, **ends, **options)
    model = transformers.GPT2LMHeadModel(config)
    for name, p in model.named_parameters():
        is_gain = ".ln_" in name and name.endswith("weight")
        p.data = is_gain + torch.randn_like(p) * (0.3 if p.dim() == 1 else 0.08)
    model.to(dtype).save_pretrained(folder)
    return model.eval()


def same_tensors(a, b):
    """Two checkpoints have the same names, types, shapes and bits."""
    a, b = (load_torch(os.path.join(folder, "model.safetensors")) for folder in (a, b))
    bits = lambda t: t.view({2: torch.int16, 4: torch.int32}[t.itemsize])
    return a.keys() == b.keys() and all(
        x.dtype == b[name].dtype and torch.equal(bits(x), bits(b[name])) for name, x in a.items())


# ---- Checkpoints

MEANING = ["model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner",
           "activation_function", "layer_norm_epsilon", "tie_word_embeddings", "bos_token_id",
           "eos_token_id", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
           "add_cross_attention", "architectures", "dtype"]


def logits_of(model_file, tokens):
    write("tokens.i32", np.asarray(tokens, "<i4").tobytes())
    run(os.path.join(ROOT, "build/eval/logits_fp32"), model_file, "tokens.i32", "logits.f32")
    return np.fromfile("logits.f32", "<f4").reshape(len(tokens), -1)


def test_round_trip(vocabulary, dtype, version):
    """import, logits, export, and import again."""
    name = f"vocabulary {vocabulary}, {dtype}"
    model = checkpoint("a", vocabulary, dtype)
    hf("import", "a", "--out", "a.bin")
    header, padded = np.fromfile("a.bin", "<i4", 256), -(-vocabulary // 128) * 128
    check(f"{name}: header", header[:8].tolist() == [20240326, version, 64, vocabulary, 3, 4, 256,
                                                     padded] and not header[8:].any())
    width = 4 if version == 3 else 2
    padding = read("a.bin")[1024 + vocabulary * 256 * width:1024 + padded * 256 * width]
    check(f"{name}: padding is zero", len(padding) > 0 and not any(padding))

    # float64 is the truth. Both fp32 programs round in an order of their own, so their errors are
    # of one size; a wrong tensor makes an error a thousand times as large.
    tokens = torch.randint(vocabulary, (64,))
    with torch.no_grad():
        theirs = model.float()(tokens[None]).logits[0].double()
        truth = model.double()(tokens[None]).logits[0]
    ours = torch.from_numpy(logits_of("a.bin", tokens).astype(np.float64))
    errors = [float((x - truth).square().mean().sqrt()) for x in (ours, theirs)]
    print(f"{name}: error of logits {errors[0]:.2e}, transformers' fp32 {errors[1]:.2e}, "
          f"logits {float(truth.std()):.2f}")
    check(f"{name}: logits", errors[0] < 4 * errors[1], errors)

    hf("export", "a.bin", "--out", "b")
    check(f"{name}: the same tensors after import and export", same_tensors("a", "b"))
    a, b = (transformers.AutoConfig.from_pretrained(folder).to_dict() for folder in ("a", "b"))
    check(f"{name}: the same config", not [k for k in MEANING if a[k] != b[k]], (a, b))
    check(f"{name}: no dropout", not any(b[k + "_pdrop"] for k in ("attn", "embd", "resid")), b)
    hf("import", "b", "--out", "b.bin")
    check(f"{name}: the same model file after another import", read("a.bin") == read("b.bin"))
    return errors[0]


def test_planted(error):
    """Two tensors of one shape change places: the logits must be far off."""
    model = transformers.GPT2LMHeadModel.from_pretrained("a").float()
    tokens = torch.randint(model.config.vocab_size, (64,))
    with torch.no_grad():
        truth = model(tokens[None]).logits[0].numpy()
    for one, two in [("h.0.ln_1.bias", "h.0.ln_2.bias"), ("h.0.attn.c_attn.bias",
                     "h.1.attn.c_attn.bias"), ("h.2.attn.c_proj.bias", "h.2.mlp.c_proj.bias")]:
        t = load_torch("a/model.safetensors")
        one, two = "transformer." + one, "transformer." + two
        t[one], t[two] = t[two], t[one]
        shutil.copytree("a", "swap", dirs_exist_ok=True)
        save_torch(t, "swap/model.safetensors")
        hf("import", "swap", "--out", "swap.bin")
        off = float(np.sqrt(np.square(logits_of("swap.bin", tokens) - truth).mean()))
        check(f"planted fault: {one} and {two} changed places", off > 100 * error, (off, error))


def test_forms():
    """Other forms of one checkpoint make the same model file."""
    checkpoint("f", 1001, channels=64, layers=2)
    hf("import", "f", "--out", "f.bin")
    tensors, want = load_file("f/model.safetensors"), read("f.bin")
    bare = {name.replace("transformer.", ""): x for name, x in tensors.items()}
    masks = {f"h.{i}.attn.{kind}": np.ones(size, np.float32) for i in range(2)
             for kind, size in [("bias", (1, 1, 64, 64)), ("masked_bias", ())]}
    forms = {"names without a prefix": bare, "the masks of old checkpoints": {**bare, **masks},
             "a head that repeats wte": {**tensors, "lm_head.weight": bare["wte.weight"].copy()}}
    for name, form in forms.items():
        save_file(form, "f/model.safetensors", {"format": "pt"})
        hf("import", "f", "--out", "g.bin")
        check(f"{name}: the same file", read("g.bin") == want)
    config = json_of("f/config.json")
    write("f/config.json", {**config, "activation_function": "gelu_pytorch_tanh", "n_inner": 256,
                            "n_ctx": 64, "reorder_and_upcast_attn": True})
    hf("import", "f", "--out", "g.bin")
    check("the same config in other words: the same file", read("g.bin") == want)

    model = transformers.GPT2LMHeadModel.from_pretrained("f")
    model.save_pretrained("shards", max_shard_size="200KB")
    parts = [name for name in os.listdir("shards") if name.endswith(".safetensors")]
    check("several shards", len(parts) > 2 and "model.safetensors" not in parts, parts)
    hf("import", "shards", "--out", "g.bin")
    check("shards: the same file", read("g.bin") == want)
    half = {name: x.astype(np.float16) for name, x in bare.items()}
    for name, few in [("fp16", half), ("mixed types", {**half, "wte.weight": bare["wte.weight"]})]:
        save_file(few, "f/model.safetensors")
        hf("import", "f", "--out", "half.bin")
        save_file({key: x.astype(np.float32) for key, x in few.items()}, "f/model.safetensors")
        hf("import", "f", "--out", "g.bin")
        check(f"{name} becomes fp32 exactly", read("half.bin") == read("g.bin"))


def test_dtype():
    """--dtype bf16 rounds as PyTorch does, on numbers with every pattern of the bits cut off."""
    checkpoint("d", 1001, channels=64, layers=1)
    tensors = load_torch("d/model.safetensors")
    bits = torch.randint(-2**31, 2**31, (1001, 64), dtype=torch.int64).to(torch.int32)
    bits[:, :16] = bits[:, :16] & ~0xffff | 0x8000  # ties
    bits[:, 16:24] &= ~0x7f800000  # subnormals and zeros of both signs
    x = bits.view(torch.float32)
    x[~x.isfinite() | (x.abs() > 3.38e38)] = 1.5
    tensors["transformer.wte.weight"] = x
    save_torch(tensors, "d/model.safetensors", {"format": "pt"})
    hf("import", "d", "--out", "d.bin")
    hf("export", "d.bin", "--out", "d16", "--dtype", "bf16")
    rounded = load_torch("d16/model.safetensors")
    check("--dtype bf16: PyTorch's bits", all(
        torch.equal(rounded[name].view(torch.int16), t.bfloat16().view(torch.int16))
        for name, t in tensors.items()))
    hf("import", "d16", "--out", "d16.bin")
    check("bf16 makes version 5", np.fromfile("d16.bin", "<i4", 2)[1] == 5)
    hf("export", "d16.bin", "--out", "d32", "--dtype", "fp32")
    widened = load_torch("d32/model.safetensors")
    check("--dtype fp32 of a bf16 file is exact", all(
        torch.equal(widened[name].view(torch.int32), t.float().view(torch.int32))
        for name, t in rounded.items()))
    tensors["transformer.wte.weight"][5, 3] = 3.4e38
    save_torch(tensors, "d/model.safetensors", {"format": "pt"})
    hf("import", "d", "--out", "d.bin")
    refused("a weight beyond bf16", ["wte.weight: weight 323", "bfloat16"], "export", "d.bin",
            "--out", "d99", "--dtype", "bf16", out="d99")


# ---- Models of ours

TEXTS = ["", " ", "Once there was a fox.", "naïve Ünïcode 日本語 \U0001f600",
         "a\tb\r\n\n  c   ", "Ċ Ġ Ā", "It's 1,234.50, we'll say <|endoftext|> <|end",
         "".join(map(chr, range(1, 0x250)))]


def test_ours():
    """What the trainer wrote, in transformers: the loss of its text, and its bytes as tokens."""
    train, T = os.path.join(ROOT, "data/tales.d/train.txt"), 64
    text = read(os.path.join(ROOT, "data/tales.d/val.txt"))[:8 * T + 1]
    write("val.txt", text)
    run(os.path.join(ROOT, "train_gpt_fp8"), "-i", train, "-j", "val.txt", "-e", "d2", "-t", T,
        "-x", 2, "-n", 2, "-s", 0, "-o", "run")
    model_file = "run/model_00000002.bin"
    said = run(os.path.join(ROOT, "train_gpt_fp32"), "-e", model_file, "--eval", "-i", train, "-j",
               "val.txt", "-t", T, "--val-rows", 8)
    ours = float(re.search(r"loss ([0-9.]+)", said)[1])
    hf("export", model_file, "--out", "ours")
    model = transformers.AutoModelForCausalLM.from_pretrained("ours")
    ids = torch.tensor(list(text))
    with torch.no_grad():
        logits = model(ids[:-1].view(8, T)).logits
    theirs = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:]))
    print(f"an exported model: loss {theirs:.6f}, train_gpt_fp32 {ours:.6f}")
    check("loss of an exported model", abs(ours - theirs) < 2e-6 * ours, (ours, theirs))
    hf("import", "ours", "--out", "back.bin")
    check("the trainer's file comes back", read("back.bin") == read(model_file))

    tokenizer = transformers.AutoTokenizer.from_pretrained("ours")
    for x in TEXTS:
        ids = tokenizer.encode(x)
        check(f"bytes of {x[:20]!r}", ids == list(x.encode()), ids)
        check(f"bytes back to {x[:20]!r}", tokenizer.decode(ids) == x, tokenizer.decode(ids))
    check("bytes that are no text", tokenizer.encode("Ā")[:1] == [0xc4]
          and tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(list(range(256))))
          == list(range(256)) and len(tokenizer) == 256)
    check("import says that bytes need no tokenizer",
          "bytes" in hf("import", "ours", "--out", "back.bin"))


def test_gpt2(shared):
    """GPT-2's tokens: the same ids as tiktoken's, the published files, and a run that goes on."""
    vocabulary = os.path.join(shared, "gpt2-r50k.tiktoken")
    if not os.path.exists(vocabulary):
        print(f"skip: {vocabulary}: GPT-2's tokenizer is not tested")
        return
    text = os.path.join(shared, "tinyshakespeare.txt")
    tokens = ["--vocab-kind", "gpt2", "--vocab", vocabulary]
    run(sys.executable, os.path.join(DATA, "tokens.py"), text, "--out", "g/ts", *tokens)
    checkpoint("p", 50257, channels=64, layers=1)
    hf("import", "p", "--out", "p.bin")
    hf("export", "p.bin", "--out", "q", "--tokenizer", "g/gpt2_tokenizer.bin")
    check("vocab.json is the published one",
          json_of("q/vocab.json") == json_of(os.path.join(shared, "gpt2-encoder.json")))
    lines = [read(p).decode().split("\n") for p in ("q/merges.txt",
                                                    os.path.join(shared, "gpt2-vocab.bpe"))]
    check("merges.txt has the published merges", lines[0][1:] == lines[1][1:])
    encoder, end = prepare.Gpt2Encoder(vocabulary), "<|endoftext|>"
    for kind in (transformers.AutoTokenizer, transformers.GPT2TokenizerFast):
        tokenizer = kind.from_pretrained("q")
        for x in [*TEXTS, read(text).decode()[:200_000]]:
            x = x.replace(end, "")
            check(f"{kind.__name__}: tiktoken's ids of {x[:20]!r}",
                  tokenizer.encode(x) == encoder.encode(x).tolist())
        check("end of text", tokenizer.encode(end) == [50256] == [tokenizer.eos_token_id])
        check("length", len(tokenizer) == 50257 and tokenizer.model_max_length == 64)

    said = hf("import", "q", "--out", "i.bin")
    check("import writes the tokenizer", "wrote gpt2_tokenizer.bin" in said, said)
    check("which is the trainer's", read("gpt2_tokenizer.bin") == read("g/gpt2_tokenizer.bin"))
    os.remove("gpt2_tokenizer.bin")
    tokenizer.save_pretrained("fast")
    for name in ("vocab.json", "merges.txt"):
        os.remove(f"q/{name}")
    shutil.copy("fast/tokenizer.json", "q/tokenizer.json")
    hf("import", "q", "--out", "i.bin")
    check("tokenizer.json does it too", read("gpt2_tokenizer.bin") == read("g/gpt2_tokenizer.bin"))
    os.remove("gpt2_tokenizer.bin")
    vocab = json_of(os.path.join(shared, "gpt2-encoder.json"))
    vocab["The"], vocab["the"] = vocab["the"], vocab["The"]
    for damaged in (vocab, {"a": 0}, {"a": "b"}, [], {**vocab, "<|endoftext|>": 0}):
        write("q/vocab.json", {"vocab": damaged} if isinstance(damaged, list) else damaged)
        check("other tokens are named", "not GPT-2's tokens" in hf("import", "q", "--out", "i.bin"))
    check("other tokens make no tokenizer", not os.path.exists("gpt2_tokenizer.bin"))

    data = read("g/gpt2_tokenizer.bin")
    write("bad.bin", data[:1025] + b"~" + data[1026:])
    refused("a damaged tokenizer", ["bad.bin", "GPT-2's tokens"], "export", "p.bin", "--out", "z",
            "--tokenizer", "bad.bin", out="z")
    said = run(os.path.join(ROOT, "train_gpt_fp8"), "-i", "g/ts_train_*.bin", "-j",
               "g/ts_val_*.bin", "-e", "p.bin", "-t", 64, "-x", 2, "-v", 2, "-m", 2, "-s", 0,
               "-n", 0, "-o", "more")
    loss = re.search(r"validation after step 2: loss ([0-9.]+)", said)
    check("an imported model trains", loss and 0 < float(loss[1]) < 100, said[-600:])


# ---- Refusals

def st(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


CONFIGS = [("model_type", "llama"), ("model_type", None), ("activation_function", "gelu"),
           ("activation_function", "relu"), ("layer_norm_epsilon", 1e-6), ("n_inner", 128),
           ("tie_word_embeddings", False), ("scale_attn_weights", False),
           ("scale_attn_by_inverse_layer_idx", True), ("add_cross_attention", True),
           ("pruned_heads", {"0": [1]}), ("quantization_config", {"bits": 8}), ("n_head", 3),
           ("n_head", 2000), ("n_layer", 0), ("n_layer", 1025), ("n_layer", "two"),
           ("vocab_size", 65537), ("n_positions", 1 << 21), ("n_embd", 64.5), ("n_layer", True)]
SHAPES = [("vocab_size", 300, "wte.weight"), ("n_positions", 32, "wpe.weight"),
          ("n_embd", 128, "wte.weight"), ("n_layer", 3, "h.2.ln_1.weight"),
          ("n_layer", 1, "h.1.")]


def test_configs():
    checkpoint("c", 1001, channels=64, layers=2)
    good = json_of("c/config.json")
    for key, value in CONFIGS:
        write("c/config.json", {**good, key: value})
        refused(f"{key} = {value}", [f"config.json: {key}: "], "import", "c", "--out", "x", out="x")
    write("c/config.json", {**good, "num_attention_heads": 8})
    refused("two numbers of heads", ["num_attention_heads", "n_head"], "import", "c", "--out", "x",
            out="x")
    write("c/config.json", {**good, "n_head": 8})
    hf("import", "c", "--out", "8.bin")
    write("c/config.json", {**{k: v for k, v in good.items() if k != "n_head"},
                            "num_attention_heads": 8})
    hf("import", "c", "--out", "also8.bin")
    check("heads under their other name", read("8.bin") == read("also8.bin"))
    for key, value, tensor in SHAPES:
        write("c/config.json", {**good, key: value})
        refused(f"{key} = {value}", [tensor], "import", "c", "--out", "x", out="x")
    del good["model_type"]
    for name, text, word in [("no model_type", json.dumps(good).encode(), "model_type"),
                             ("no JSON", b"{", "JSON"), ("a list", b"[]", "JSON")]:
        write("c/config.json", text)
        refused(name, ["config.json", word], "import", "c", "--out", "x", out="x")
    os.remove("c/config.json")
    refused("no config.json", ["config.json"], "import", "c", "--out", "x", out="x")
    refused("no directory", ["openai/gpt2", "hf download"], "import", "openai/gpt2", "--out", "x")


def test_tensors():
    """Damaged tensors and files."""
    checkpoint("c", 1001, channels=64, layers=2)
    path, good = "c/model.safetensors", load_file("c/model.safetensors")
    raw = read(path)

    def bad(name, words, data):
        if isinstance(data, bytes):
            write(path, data)
        else:
            save_file(data, path)
        refused(name, words, "import", "c", "--out", "x", out="x")

    qkv = "transformer.h.1.attn.c_attn.weight"
    for name in (qkv, "transformer.wte.weight", "transformer.ln_f.bias"):
        short = name.replace("transformer.", "")
        bad(f"without {name}", [short, "found none"],
            {key: x for key, x in good.items() if key != name})
        for value in (np.nan, np.inf, -np.inf):
            x = good[name].copy()
            x.flat[7] = value
            bad(f"{value} in {name}", [f"{short}: weight 7 is not finite"], {**good, name: x})
        for dtype in (np.float64, np.int32):
            bad(f"{dtype.__name__} in {name}", [short, "F32"],
                {**good, name: good[name].astype(dtype)})
        bad(f"shape of {name}", [short, "shape"], {**good, name: good[name][1:].copy()})
    bad("a linear layer as nn.Linear has it", [qkv[12:], "shape"],
        {**good, qkv: np.ascontiguousarray(good[qkv].T)})
    bad("an unknown tensor", ["score.weight"], {**good, "score.weight": np.ones((2, 64), "<f4")})
    bad("a third layer", ["h.2.ln_1.bias"], {**good, "h.2.ln_1.bias": np.ones(64, "<f4")})
    bad("an untied head", ["lm_head.weight"],
        {**good, "lm_head.weight": good["transformer.wte.weight"] + 1})
    bad("both kinds of names", ["wte.weight", "twice"],
        {**good, "wte.weight": good["transformer.wte.weight"]})
    data_at = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:data_at])
    ends = [header["transformer.ln_f." + kind] for kind in ("weight", "bias")]
    ends[0]["data_offsets"] = ends[1]["data_offsets"]
    bad("two tensors in one place", ["model.safetensors", "damaged"], st(header, raw[data_at:]))
    for name, data in [("cut off", raw[:-1]), ("a byte too many", raw + b"\0"), ("empty", b""),
                       ("no header", raw[:50]), ("another file", b"PK\3\4" + bytes(99)),
                       ("a list", st([])), ("no offsets", st({"wte.weight": {"dtype": "F32"}})),
                       ("a hole", st({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
                                     bytes(8))),
                       ("a negative size", st({"a": {"dtype": "F32", "shape": [1],
                                                     "data_offsets": [0, -4]}})),
                       ("odd types", st({"a": {"dtype": [], "shape": [[]],
                                               "data_offsets": [0, 4]}}, bytes(4)))]:
        bad(name, ["model.safetensors: expected a safetensors file", "damaged"], data)
    os.remove(path)
    refused("no weights", ["model.safetensors"], "import", "c", "--out", "x", out="x")
    for name, index in [("an index of nothing", {}), ("of numbers", {"weight_map": {"a": 1}})]:
        write(path + ".index.json", index)
        refused(name, ["weight_map"], "import", "c", "--out", "x", out="x")
    write(path + ".index.json", {"weight_map": {"wte.weight": "../c/one.safetensors"}})
    refused("a shard elsewhere", ["weight_map"], "import", "c", "--out", "x", out="x")
    write(path + ".index.json", {"weight_map": {"wte.weight": "absent.safetensors"}})
    refused("a missing shard", ["absent.safetensors"], "import", "c", "--out", "x", out="x")
    save_file(good, "c/one.safetensors")
    save_file({"wte.weight": good["transformer.wte.weight"]}, "c/two.safetensors")
    write(path + ".index.json", {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    refused("a tensor in two shards", ["wte.weight", "twice"], "import", "c", "--out", "x", out="x")
    os.remove(path + ".index.json")

    torch.save({name: torch.from_numpy(x) for name, x in good.items()}, "c/pytorch_model.bin")
    said = refused("a pickle", ["pytorch_model.bin", "pickle"], "import", "c", "--out", "x",
                   out="x")
    run(sys.executable, "-c", re.search("python3 -c '(.*)'", said)[1])
    hf("import", "c", "--out", "x")
    write(path, raw)
    hf("import", "c", "--out", "y")
    check("a pickle that was converted as the message says", read("x") == read("y"))


def test_export_refusals():
    checkpoint("c", 1001, channels=64, layers=2)
    hf("import", "c", "--out", "good.bin")
    good = np.frombuffer(read("good.bin"), "<i4")
    for field, value, words in [(0, 20240520, ["magic", "20240520"]), (1, 4, ["version", "4"]),
                                (2, 0, ["n_positions"]), (2, 63, ["size"]),
                                (3, 70000, ["vocab_size"]), (4, 3, ["size"]),
                                (5, 3, ["n_head"]), (6, -64, ["n_embd"]), (7, 1001, ["128"]),
                                (7, 896, ["128"]), (1, 5, ["size"])]:
        h = good.copy()
        h[field] = value
        write("bad.bin", h.tobytes())
        refused(f"header[{field}] = {value}", ["bad.bin", *words], "export", "bad.bin", "--out",
                "z", out="z")
    for size in (0, 3, 1023, 1024, good.nbytes - 1):
        write("bad.bin", good.tobytes()[:size])
        refused(f"{size} bytes", ["bad.bin"], "export", "bad.bin", "--out", "z", out="z")
    x = good.copy()
    x[-1] = np.array(np.nan, "<f4").view("<i4")
    write("bad.bin", x.tobytes())
    refused("NaN", ["ln_f.bias: weight 63 is not finite"], "export", "bad.bin", "--out", "z",
            out="z")
    refused("no file", ["absent.bin"], "export", "absent.bin", "--out", "z", out="z")
    refused("--tokenizer of other tokens", ["--tokenizer", "1001"], "export", "good.bin", "--out",
            "z", "--tokenizer", "good.bin", out="z")
    refused("--dtype fp8", ["--dtype"], "export", "good.bin", "--out", "z", "--dtype", "fp8",
            out="z")
    refused("no command", ["command"])
    os.makedirs("full/x")
    for out in ("full", "full/x", ".", "good.bin"):
        refused(f"--out {out}", ["expected a new directory"], "export", "good.bin", "--out", out)
    for out in ("full", "full/", "full/gpt2_tokenizer.bin"):
        refused(f"--out {out}", ["name of a model file"], "import", "c", "--out", out)
    refused("--out is another file", ["model.safetensors: expected a model file or nothing"],
            "import", "c", "--out", "c/model.safetensors")
    refused("no place for a model file", ["absent/x"], "import", "c", "--out", "absent/x")
    limit = f"ulimit -f 100; exec '{sys.executable}' '{DATA}/hf.py' export good.bin --out z"
    said = subprocess.run(["bash", "-c", limit], capture_output=True, text=True, check=False)
    check("a full disk", said.returncode == 2 and said.stderr.count("\n") == 1
          and "model.safetensors" in said.stderr and not os.path.exists("z"), said)
    os.makedirs("z.hf.tmp/of_a_killed_export")
    hf("export", "good.bin", "--out", "z/")
    check("the files of an export", sorted(os.listdir("z")) == ["config.json", "model.safetensors"])
    modes = {os.stat(os.path.join("z", name)).st_mode for name in os.listdir("z")}
    check("who may read one file may read the other", len(modes) == 1, modes)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shared", default=os.path.join(ROOT, "..", "shared", "data"), metavar="DIR")
    shared = os.path.abspath(p.parse_args().shared)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for vocabulary in (50257, 1001):
            for dtype, version in ((torch.bfloat16, 5), (torch.float32, 3)):
                error = test_round_trip(vocabulary, dtype, version)
                shutil.rmtree("b")
                if (vocabulary, version) != (1001, 3):
                    shutil.rmtree("a")
        test_planted(error)
        test_forms()
        test_dtype()
        test_ours()
        test_gpt2(shared)
        test_configs()
        test_tensors()
        test_export_refusals()
        os.chdir(ROOT)
    print(f"{passed} passed, {failed} failed")
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
