#!/usr/bin/env python3
"""Turn Hugging Face's GPT-2 checkpoints into the trainer's model files, and model files into checkpoints.

  hf download openai-community/gpt2 config.json model.safetensors vocab.json merges.txt --local-dir gpt2
  python3 data/hf.py import gpt2 --out gpt2.bin
  ./train_gpt_fp8 -e gpt2.bin -i 'PREFIX_train_*.bin' -j 'PREFIX_val_*.bin'
  python3 data/hf.py export log/fp8/model_00000500.bin --out DIR --tokenizer gpt2_tokenizer.bin

import also writes gpt2_tokenizer.bin beside the model file, if the checkpoint has GPT-2's tokenizer. export also writes
tokenizer files: for bytes always, for GPT-2's tokens with --tokenizer. Weights keep their type, so fp32 and bf16 come
back bit by bit; fp16 and mixed types become fp32. A checkpoint that this architecture cannot compute is refused.
Exported weights are the fp32 masters, and transformers computes without FP8. Needed: NumPy, safetensors, ml_dtypes.

lm_eval scores an export: pip install "lm_eval[hf]"; lm_eval --model hf --model_args pretrained=DIR --tasks hellaswag.
Bytes have no end-of-text token, which lm_eval wants: there write pretrained=DIR,prefix_token_id=10, a newline.

Left out on purpose: dropout (it is ignored), tokenizers other than GPT-2's and bytes, pickled checkpoints.
"""

import hashlib
import json
import math
import os
import re
import shutil

import prepare
from prepare import BYTES, CHARACTERS, DataError, np

try:
    import ml_dtypes  # gives NumPy, and so safetensors, the type bfloat16
    import safetensors.numpy
except ImportError as missing:
    print(f"hf.py: error: expected the Python packages safetensors and ml_dtypes ({missing}); pip install safetensors "
          f"ml_dtypes", file=prepare.sys.stderr)
    prepare.sys.exit(2)

# ---- 1. Shape and numbers

MAGIC = 20240326  # of llm.c's model files
# The numbers of a shape in the model file's order: name, transformers' default, the trainer's limit.
SHAPE = [("n_positions", 1024, 1 << 20), ("vocab_size", 50257, 65536), ("n_layer", 12, 1024), ("n_head", 12, 1024),
         ("n_embd", 768, 65536)]
# What else decides the results, and the values that fit. The first is transformers' default, but model_type must be
# there. reorder_and_upcast_attn changes rounding alone and is ignored.
FIXED = {"model_type": ["gpt2"], "activation_function": ["gelu_new", "gelu_pytorch_tanh"],
         "layer_norm_epsilon": [1e-5], "tie_word_embeddings": [True], "scale_attn_weights": [True],
         "scale_attn_by_inverse_layer_idx": [False], "add_cross_attention": [False], "pruned_heads": [{}, None],
         "quantization_config": [None]}
# transformers reads these names, too.
OTHER_NAMES = {"max_position_embeddings": "n_positions", "num_hidden_layers": "n_layer",
               "num_attention_heads": "n_head", "hidden_size": "n_embd"}
# safetensors' types: NumPy's, the model file's version, transformers' name.
TYPES = {"F32": (np.dtype("<f4"), 3, "float32"), "BF16": (np.dtype(ml_dtypes.bfloat16), 5, "bfloat16"),
         "F16": (np.dtype("<f2"), None, None)}


def shape_check(path, shape):
    for name, _, limit in SHAPE:
        if type(shape[name]) is not int or not 1 <= shape[name] <= limit:
            raise DataError(f"{path}: {name}: expected a number from 1 to {limit}, found {shape[name]!r:.40}")
    if shape["n_embd"] % shape["n_head"]:
        raise DataError(f"{path}: n_head: {shape['n_embd']} channels cannot be split over {shape['n_head']} heads")


def tensors(shape):
    """Hugging Face's names and shapes in the order of the model file, where each tensor holds all layers."""
    C = shape["n_embd"]
    block = {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "ln_2": (C,), "mlp.c_fc": (C, 4 * C),
             "mlp.c_proj": (4 * C, C)}
    return [("wte.weight", (shape["vocab_size"], C)), ("wpe.weight", (shape["n_positions"], C)),
            *[(f"h.{layer}.{name}.{kind}", size if kind == "weight" else size[-1:])
              for name, size in block.items() for kind in ["weight", "bias"] for layer in range(shape["n_layer"])],
            ("ln_f.weight", (C,)), ("ln_f.bias", (C,))]


def is_transposed(name):
    """A linear layer's weight is [in, out] at Hugging Face and [out, in] here."""
    return ".c_" in name and name.endswith(".weight")


def size_in_bytes(size, dtype):
    return math.prod(size) * TYPES[dtype][0].itemsize


def convert(x, name, wanted, place):
    """A tensor in the other one's layout and as the type `wanted`: bf16 is rounded to nearest even."""
    with np.errstate(over="ignore"):
        x = x.astype(TYPES[wanted][0], copy=False)
    finite = np.isfinite(x)
    if not finite.all():
        raise DataError(f"{place}: {name}: weight {np.argmin(finite)} is not finite in {TYPES[wanted][2]}; this model "
                        f"diverged")
    return np.ascontiguousarray(x.T if is_transposed(name) else x)


def describe(path, shape, dtype):
    count = sum(math.prod(size) for _, size in tensors(shape))
    return (f"wrote {prepare.path_show(path)}: {count:,} parameters in {TYPES[dtype][2]}, "
            + ", ".join(f"{name} {number}" for name, number in shape.items()))


# ---- 2. Files

def json_read(path):
    try:
        value = json.loads(prepare.file_read(path))
        if isinstance(value, dict):
            return value
    except (ValueError, RecursionError):
        pass
    raise DataError(f"{path}: expected a JSON object, found something else; download it again")


def json_write(path, value):
    prepare.file_write(path, [(json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()])


def safetensors_open(path):
    if not os.path.isfile(path):
        raise DataError(f"{path}: expected a file, found none; download it")
    try:
        return safetensors.safe_open(path, "np")
    except safetensors.SafetensorError as e:
        raise DataError(f"{path}: expected a safetensors file, found a damaged one ({e}); download it again") from None


def model_open(path):
    """The shape, type and padded vocabulary of a model file (dev/FORMATS.md)."""
    if not os.path.isfile(path):
        raise DataError(f"{path}: expected a model file, found none; give model_*.bin")
    h = np.fromfile(path, "<i4", 256).tolist() + [0] * 8
    dtypes = [dtype for dtype in ["F32", "BF16"] if h[:2] == [MAGIC, TYPES[dtype][1]]]
    if not dtypes:
        raise DataError(f"{path}: expected an llm.c model with magic number {MAGIC} and version 3 (fp32) or 5 (bf16), "
                        f"found {h[0]} and {h[1]}; give model_*.bin")
    shape, rows = dict(zip([name for name, _, _ in SHAPE], h[2:])), h[7]
    shape_check(path, shape)
    if rows % 128 or not shape["vocab_size"] <= rows <= 65536:
        raise DataError(f"{path}: expected a multiple of 128 that holds {shape['vocab_size']} tokens, found {rows}")
    want = 1024 + sum(size_in_bytes(size, dtypes[0]) for _, size in tensors({**shape, "vocab_size": rows}))
    if os.path.getsize(path) != want:
        raise DataError(f"{path}: size in bytes, by its header, expected {want}, found {os.path.getsize(path)}; "
                        f"it is damaged, copy it again")
    return shape, dtypes[0], rows


# ---- 3. Tokenizer

END = "<|endoftext|>"


def is_gpt2(tokens):
    return hashlib.sha256(prepare.tokenizer_body(tokens)).hexdigest() == prepare.GPT2_SHA256


def tokenizer_import(folder, shape):
    """GPT-2's tokens if the checkpoint has them, and what the user should know. GPT-2's merges follow from its ids, so
    the vocabulary alone decides."""
    path = os.path.join(folder, "vocab.json")
    if not os.path.isfile(path):
        path = os.path.join(folder, "tokenizer.json")
    if not os.path.isfile(path):
        return None, f"{folder}: no tokenizer there (vocab.json or tokenizer.json), so no gpt2_tokenizer.bin"
    vocab = json_read(path)
    try:
        vocab = vocab if path.endswith("vocab.json") else vocab["model"]["vocab"]
        if vocab == BYTES and shape["vocab_size"] == 256:
            return None, "the tokens are bytes, which need no tokenizer file"
        tokens = [bytes(BYTES[c] for c in token) for token in sorted(vocab, key=vocab.get) if token != END]
        if shape["vocab_size"] == prepare.GPT2_VOCAB and vocab[END] == prepare.GPT2_EOT and is_gpt2(tokens):
            return tokens, "wrote gpt2_tokenizer.bin beside it"
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    return None, f"{path}: not GPT-2's tokens: no gpt2_tokenizer.bin, and GPT-2's token shards do not fit this model"


def merge_of(token, ranks):
    """The two parts of a token that merge last: at each step the pair of the lowest id merges."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], math.inf))
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return " ".join("".join(CHARACTERS[b] for b in part) for part in parts)


def tokenizer_export(folder, tokens, shape):
    """Hugging Face's files for the 256 bytes, or for GPT-2's tokens without the last one, which is END."""
    ranks = {token: i for i, token in enumerate(tokens)}
    vocab = {"".join(CHARACTERS[b] for b in token): i for token, i in ranks.items()}
    if len(vocab) < shape["vocab_size"]:
        vocab[END] = len(vocab)
    end = END if END in vocab else None
    merges = [merge_of(token, ranks) for token in tokens if len(token) > 1]
    json_write(os.path.join(folder, "vocab.json"), vocab)
    prepare.file_write(os.path.join(folder, "merges.txt"), ["\n".join(["#version: 0.2", *merges, ""]).encode()])
    json_write(os.path.join(folder, "tokenizer_config.json"), {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": shape["n_positions"],
        "bos_token": end, "eos_token": end, "unk_token": end})


# ---- 4. Import

def config_read(folder):
    """The shape of a checkpoint. What the trainer does not compute is refused by the key's name."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: expected a directory with config.json and model.safetensors, found none; fetch it "
                        f"with: hf download NAME --local-dir DIR")
    path = os.path.join(folder, "config.json")
    config = {"model_type": None, **json_read(path)}
    for other, name in OTHER_NAMES.items():
        if config.setdefault(name, config.get(other)) != config.get(other, config[name]):
            raise DataError(f"{path}: expected {other} and {name} to be the same, found {config[other]!r:.40} and "
                            f"{config[name]!r:.40}; take one out")
        if config[name] is None:
            del config[name]

    def check(key, good):
        if config.get(key, good[0]) not in good:
            raise DataError(f"{path}: {key}: expected {' or '.join(map(str, good))}, found {config[key]!r:.80}; the "
                            f"trainer has no such model")
    for key, good in FIXED.items():
        check(key, good)
    shape = {name: config.get(name, default) for name, default, _ in SHAPE}
    shape_check(path, shape)
    check("n_inner", [None, 4 * shape["n_embd"]])
    return shape


def checkpoint_files(folder):
    """The safetensors files of a checkpoint: one, or those that its index names."""
    path = os.path.join(folder, "model.safetensors")
    if os.path.isfile(path):
        return [path]
    if os.path.isfile(index := path + ".index.json"):
        names = json_read(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) and "/" not in name for name in names.values()):
            raise DataError(f"{index}: weight_map: expected file names, found others; download it again")
        return [os.path.join(folder, name) for name in sorted(set(names.values()))]
    if os.path.isfile(os.path.join(folder, "pytorch_model.bin")):
        raise DataError(f"{path}: expected this file, found only pytorch_model.bin, a pickle, which can run code; "
                        f"if you trust it: pip install torch transformers, then python3 -c 'from transformers import "
                        f"GPT2LMHeadModel as M; M.from_pretrained(\"{folder}\").save_pretrained(\"{folder}\")'")
    return [path]


def checkpoint_open(folder, shape):
    """{name: (file, its name there)} of the tensors, in the model file's order. All are as the shape wants them."""
    found = {}
    for path in checkpoint_files(folder):
        file = safetensors_open(path)
        for key in file.keys():
            name = re.sub(r"^transformer\.", "", key)
            if name in found:
                raise DataError(f"{path}: {name}: expected this tensor once, found it twice; download it again")
            found[name] = file, key
    wanted = dict(tensors(shape))
    if "lm_head.weight" in found:
        wanted["lm_head.weight"] = wanted["wte.weight"]
    for name in sorted(found.keys() - wanted.keys()):
        if not re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):  # the causal mask
            raise DataError(f"{folder}: {name!r:.80}: expected GPT-2's tensors, found one more; the trainer has no "
                            f"such model")
    for name, size in wanted.items():
        dtype, has = tensor_about(found[name]) if name in found else ("none", ())
        if dtype not in TYPES or has != size:
            raise DataError(f"{folder}: {name}: expected {', '.join(TYPES)} and shape {size}, found {dtype} and {has}; "
                            f"the tensors do not fit config.json, or not the trainer")
    head = found.get("lm_head.weight")
    if head and not np.array_equal(tensor_read(head), tensor_read(found["wte.weight"])):
        raise DataError(f"{folder}: lm_head.weight: expected wte.weight, found others; the trainer ties them")
    return {name: found[name] for name, _ in tensors(shape)}


def tensor_about(place):
    file, key = place
    return str(file.get_slice(key).get_dtype()), tuple(file.get_slice(key).get_shape())


def tensor_read(place):
    file, key = place
    return file.get_tensor(key)


def model_parts(folder, shape, wanted, found):
    header = np.zeros(256, "<i4")
    padding = -shape["vocab_size"] % 128
    header[:8] = MAGIC, TYPES[wanted][1], *(shape[name] for name, _, _ in SHAPE), shape["vocab_size"] + padding
    yield header.tobytes()
    for name in found:
        yield convert(tensor_read(found[name]), name, wanted, folder).tobytes()
        if name == "wte.weight":
            yield bytes(size_in_bytes((padding, shape["n_embd"]), wanted))


def run_import(args):
    if os.path.isdir(args.out) or os.path.basename(args.out) in ["", "gpt2_tokenizer.bin"]:
        raise DataError(f"--out {args.out}: expected the name of a model file, found another; write --out gpt2.bin")
    if os.path.isfile(args.out) and np.fromfile(args.out, "<i4", 1).tolist() != [MAGIC]:
        raise DataError(f"--out {args.out}: expected a model file or nothing there, found another file; name another")
    shape = config_read(args.source)
    found = checkpoint_open(args.source, shape)
    dtype = "BF16" if {tensor_about(place)[0] for place in found.values()} == {"BF16"} else "F32"
    tokens, said = tokenizer_import(args.source, shape)
    prepare.file_write(args.out, model_parts(args.source, shape, dtype, found))
    if tokens:
        prepare.tokenizer_write(os.path.join(os.path.dirname(args.out), "gpt2_tokenizer.bin"), tokens)
    print(describe(args.out, shape, dtype) + "\n" + said)


# ---- 5. Export

def model_tensors(path, shape, dtype, wanted, rows):
    """{name: tensor} of a model file, without the padded vocabulary."""
    found, at = {}, 1024
    for name, size in tensors(shape):
        x = np.fromfile(path, TYPES[dtype][0], math.prod(size), offset=at)
        at += size_in_bytes((rows, size[1]) if name == "wte.weight" else size, dtype)
        x = x.reshape(size[::-1] if is_transposed(name) else size)
        found["transformer." + name] = convert(x, name, wanted, path)
    return found


def run_export(args):
    shape, dtype, rows = model_open(args.source)
    wanted = {"fp32": "F32", "bf16": "BF16", None: dtype}[args.dtype]
    tokens = [bytes([b]) for b in range(256)] if shape["vocab_size"] == 256 else None
    if args.tokenizer:
        if shape["vocab_size"] != prepare.GPT2_VOCAB:
            raise DataError(f"--tokenizer: expected a model of GPT-2's tokens, found {shape['vocab_size']} in "
                            f"{args.source}; leave it out")
        tokens = prepare.tokenizer_read(args.tokenizer)[:-1]
        if not is_gpt2(tokens):
            raise DataError(f"{args.tokenizer}: expected GPT-2's tokens, found others; make it again")
    out = os.path.realpath(args.out)
    if os.path.lexists(out):
        raise DataError(f"--out {args.out}: expected a new directory, found one that is there; name another")
    folder = out + ".hf.tmp"
    shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
    os.makedirs(folder)
    try:
        path = os.path.join(folder, "model.safetensors")
        safetensors.numpy.save_file(model_tensors(args.source, shape, dtype, wanted, rows), path, {"format": "pt"})
        if tokens:
            tokenizer_export(folder, tokens, shape)
        end = prepare.GPT2_EOT if shape["vocab_size"] == prepare.GPT2_VOCAB else None  # others have no such token
        json_write(os.path.join(folder, "config.json"), {
            "architectures": ["GPT2LMHeadModel"], **shape, "n_inner": None,
            **{key: good[0] for key, good in FIXED.items() if good[0] not in [{}, None]},
            "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": end, "eos_token_id": end,
            "torch_dtype": TYPES[wanted][2]})
        shutil.copymode(os.path.join(folder, "config.json"), path)  # safetensors lets only the owner read it
        os.rename(folder, out)
    except safetensors.SafetensorError as e:
        raise DataError(f"{args.out}: cannot write model.safetensors: {e}; make room") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(describe(out, shape, wanted))
    if len(tokens or []) == 256:
        print(f"score it with:\n  lm_eval --model hf --model_args pretrained={args.out},prefix_token_id=10 --tasks ...")
    if not tokens:
        print("no tokenizer files; for GPT-2's tokens --tokenizer gpt2_tokenizer.bin writes them")


def main():
    p = prepare.Parser(description=__doc__, formatter_class=prepare.argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    c = commands.add_parser("import", help="a checkpoint to a model file")
    c.add_argument("source", metavar="DIR", help="a checkpoint: config.json and model.safetensors")
    c.add_argument("--out", metavar="FILE", required=True, help="the model file to write")
    c = commands.add_parser("export", help="a model file to a checkpoint")
    c.add_argument("source", metavar="MODEL", help="a model file, as model_00000500.bin")
    c.add_argument("--out", metavar="DIR", required=True, help="the directory to write, a new one")
    c.add_argument("--dtype", choices=["fp32", "bf16"], help="type of the weights (default: the file's)")
    c.add_argument("--tokenizer", metavar="FILE", help="gpt2_tokenizer.bin, for models of GPT-2's tokens")
    args = p.parse_args()
    (run_import if args.command == "import" else run_export)(args)


if __name__ == "__main__":
    prepare.run(main)
