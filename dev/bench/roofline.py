#!/usr/bin/env python3
"""The roofline of a GPT-2 training step: the least time that its arithmetic and its memory traffic can take, by part.

    dev/bench/roofline.py                                  # an H100 by its datasheet: 989 and 1979 TFLOP/s, 3.35 TB/s
    dev/bench/roofline.py --bf16 790 --fp8 1400 --bandwidth 3.0
    dev/bench/roofline.py --measured DIR                   # ceilings, steps and kernels that dev/gpu_check.sh left in DIR

Every kernel of a step, fused as train_gpt_fp8.cu has it, is one row of kernels() below: its floating-point operations a token, the
bytes a token that it must read and write (each input once, each output once), and the bytes a step that do not depend on the
tokens (weights, gradients). A kernel's floor is the larger of operations / rate and bytes / bandwidth; the step's is their sum.
Nothing is counted for launch gaps, for caches that spare a trip to memory, or for tiles that do not fill the chip.

Options: --batch N (sequences a step), --seq-len 1024, --markdown, --kernels (every row, not only the parts), --lean: as if logits
were bf16, the classifier wrote an FP8 head's dlogits as bytes, the first micro-batch wrote its gradients instead of adding them to
zeros, and the bf16 build's weights were rounded in AdamW's pass.
"""
import argparse
import os
import re
import sys

MODELS = {"124M": (12, 768, 12), "1.5B": (48, 1600, 25)}  # layers, channels, heads
BATCH = {"124M": 16, "1.5B": 8}  # what gpu_check.sh times
VOCABULARY, PADDED = 50257, 50304
PARTS = ["linears", "head", "attention", "layernorm", "GELU", "quantize", "classifier", "embedding", "AdamW"]
# Which part a kernel belongs to, by its name in a trace; the first that matches. A library's product can be a linear layer's
# or the head's: both stand under "linears + head".
PATTERNS = [
    ("gaps", r"^\[gaps"),
    ("attention", r"flash|attention|fmha|sdpa|attn"),
    ("linears + head", r"gemm|nvjet|cutlass|xmma|sm\d+_|cublas|splitK|matmul"),
    ("classifier", r"classif|softmax|cross_entropy|loss"),
    ("layernorm", r"layernorm|layer_norm|residual"),
    ("GELU", r"gelu"),
    ("AdamW", r"adam|norm_kernel|norm_finish|global_norm"),
    ("quantize", r"tiles_kernel|turn_kernel|column_sums|quantiz|transpose|amax|scale|decode|cast"),
    ("embedding", r"encoder|embed|wte|wpe"),
]


def parameters(L, C, T):
    """Weights of the linear layers, of the head (tied to the embedding), and all of them."""
    linear, head = 12 * L * C * C, PADDED * C
    return linear, head, linear + head + T * C + L * 13 * C + 2 * C


def kernels(L, C, T, precision, fp8_head, lean=False):
    """Rows (part, kernel, kind of operations, FLOPs a token, bytes a token, bytes a step). lean: what --lean says."""
    fp8 = precision == "fp8"
    q = 1 if fp8 else 2  # bytes of an operand; a stored tensor has 2
    unit = "fp8" if fp8 else "bf16"
    rows = []

    def add(part, name, bytes_token=0.0, flops=0.0, kind="none", bytes_step=0.0, times=1):
        rows.append((part, name, kind, times * flops, times * bytes_token, times * bytes_step))

    add("embedding", "embedding forward", 4 * C + 2 * C)
    for name, out, inner in (("qkv", 3 * C, C), ("attproj", C, C), ("fc", 4 * C, C), ("fcproj", C, 4 * C)):
        weight = out * inner
        add("linears", f"{name} fprop", q * inner + 2 * out, 2 * weight, unit, q * weight, L)
        add("linears", f"{name} dgrad", q * out + 2 * inner, 2 * weight, unit, q * weight, L)
        add("linears", f"{name} wgrad", q * out + q * inner, 2 * weight, unit, (4 if lean else 8) * weight, L)
    # Two per layer and the last one: the residual stream is read, a branch's output added and the sum written; x goes out as
    # the next product's operand.
    add("layernorm", "residual + layernorm forward", 2 * C * 3 + q * C, times=2 * L)
    add("layernorm", "last residual + layernorm forward", 2 * C * 3 + 2 * C)
    # backward: d of the output and the stored input are read; the stream's gradient is read and written
    add("layernorm", "layernorm backward", 2 * C * 4, times=2 * L + 1)
    # Causal: half of the T x T scores. Forward two products, backward five (scores again).
    add("attention", "attention forward", 2 * 3 * C + 2 * C, 2 * 2 * T * C / 2, "bf16", times=L)
    add("attention", "attention backward", 2 * 3 * C + 2 * 2 * C + 2 * 3 * C, 5 * 2 * T * C / 2, "bf16", times=L)
    add("GELU", "GELU forward", 2 * 4 * C + q * 4 * C, times=L)
    add("GELU", "GELU backward + bias gradient", 2 * 4 * C * 2 + q * 4 * C, times=L)
    if fp8:  # beyond what the same kernels write in bf16: bytes in the other direction, and passes of their own
        add("quantize", "attention's output also as bytes", C, times=L)
        add("quantize", "bytes of GELU and its gradient also turned", 2 * 4 * C, times=L)
        add("quantize", "x of qkv, attproj and fc turned for wgrad", 3 * 2 * C, times=L)
        add("quantize", "dy of attproj and fcproj to bytes, both ways, and bias gradients", 2 * (2 * C + 2 * C), times=L)
        add("quantize", "dy of qkv to bytes, both ways, and bias gradient", 2 * 3 * C + 2 * 3 * C, times=L)
    else:
        add("linears", "bias gradients of attproj, fcproj and qkv", 2 * C * 2 + 2 * 3 * C, times=L)
    weight, h = PADDED * C, 1 if fp8 and fp8_head else 2
    head_unit = "fp8" if h == 1 else "bf16"
    logit = 2 if lean else 4  # bytes
    add("head", "head fprop", h * C + logit * PADDED, 2 * weight, head_unit, h * weight)
    add("head", "head dgrad", h * PADDED + 2 * C, 2 * weight, head_unit, h * weight)
    add("head", "head wgrad", h * PADDED + h * C, 2 * weight, head_unit, (4 if lean else 8) * weight)
    add("classifier", "softmax, loss, dlogits", logit * PADDED + 2 * PADDED)  # out: bf16; lean, FP8: bytes both ways
    if h == 1: add("quantize", "lnf and dlogits to bytes, both ways", (2 + 2) * (C if lean else C + PADDED))
    add("embedding", "embedding backward", 2 * C + 8 * C)
    linear, head, all_of_them = parameters(L, C, T)
    add("AdamW", "gradient norm", bytes_step=4 * all_of_them)
    add("AdamW", "AdamW: gradient, two moments and master in, three out", bytes_step=28 * all_of_them)
    copies = 2 * linear + 2 * head  # bytes and their transpose, or bf16
    if fp8: add("quantize", "weights to bytes, both ways (from fp32)", bytes_step=4 * linear + copies + 4 * head)
    else: add("AdamW", "weights as bf16 (from fp32)", bytes_step=copies + (0 if lean else 4 * (linear + head)))
    if not lean: add("AdamW", "gradients set to zero", bytes_step=4 * all_of_them)
    return rows


def floor_us(row, tokens, peaks):
    """Microseconds of one kernel of a step, and whether arithmetic is the larger term."""
    _, _, kind, flops, bytes_token, bytes_step = row
    arithmetic = flops * tokens / (peaks[kind] * 1e6) if kind != "none" else 0.0
    memory = (bytes_token * tokens + bytes_step) / (peaks["bandwidth"] * 1e6)
    return max(arithmetic, memory), arithmetic >= memory


def table(head, rows, markdown):
    if markdown:
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for row in rows: print("| " + " | ".join(row) + " |")
    else:
        widths = [max(len(r[i]) for r in [head] + rows) for i in range(len(head))]
        for row in [head] + rows:
            print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip())
    print()


def floor_ms(model, precision, fp8_head, batch, T, peaks, lean):
    L, C, _ = MODELS[model]
    return sum(floor_us(row, batch * T, peaks)[0] for row in kernels(L, C, T, precision, fp8_head, lean)) / 1e3


def sheet(model, precision, fp8_head, batch, T, peaks, args):
    L, C, _ = MODELS[model]
    tokens = batch * T
    rows = kernels(L, C, T, precision, fp8_head, args.lean)
    parts = {p: [0.0, 0.0, 0.0, 0.0] for p in PARTS}  # FLOPs a token, bytes a token, us, us bound by arithmetic
    for row in rows:
        us, arithmetic = floor_us(row, tokens, peaks)
        part = parts[row[0]]
        part[0] += row[3]
        part[1] += row[4] + row[5] / tokens
        part[2] += us
        part[3] += us if arithmetic else 0
    flops, volume, total = (sum(p[i] for p in parts.values()) for i in range(3))
    label = precision + (" with an FP8 head" if precision == "fp8" and fp8_head else "")
    print(f"{'### ' if args.markdown else ''}GPT-2 {model}, {label}, B={batch}, T={T}: "
          f"floor {total / 1e3:.2f} ms a step, {total / tokens:.3f} us a token, {tokens / total:.3f}M tokens/s\n")
    if args.kernels:
        table(["kernel", "part", "MFLOP/token", "kB/token", "us a step", "bound"],
              [[r[1], r[0], f"{r[3] / 1e6:.2f}", f"{(r[4] + r[5] / tokens) / 1e3:.1f}", f"{floor_us(r, tokens, peaks)[0]:.0f}",
                "arithmetic" if floor_us(r, tokens, peaks)[1] else "memory"] for r in rows], args.markdown)
    table(["part", "MFLOP/token", "of FLOPs", "kB/token", "ms a step", "of time", "bound by arithmetic"],
          [[p, f"{v[0] / 1e6:.2f}", f"{v[0] / flops:.0%}", f"{v[1] / 1e3:.1f}", f"{v[2] / 1e3:.3f}", f"{v[2] / total:.0%}",
            f"{v[3] / v[2]:.0%}" if v[2] else "-"] for p, v in parts.items()] +
          [["all", f"{flops / 1e6:.2f}", "100%", f"{volume / 1e3:.1f}", f"{total / 1e3:.3f}", "100%",
            f"{sum(v[3] for v in parts.values()) / total:.0%}"]], args.markdown)
    return total / 1e3, {p: v[2] / 1e3 for p, v in parts.items()}, total / tokens


def rows_of(directory, name):
    """Tab-separated rows of a file that gpu_check.sh left, or none."""
    try:
        with open(os.path.join(directory, name)) as f:
            return [line.rstrip("\n").split("\t") for line in f]
    except OSError:
        return []


def peaks_measured(directory, peaks):
    """Ceilings of ceilings.tsv instead of given ones; says what was taken."""
    found = []
    for r in rows_of(directory, "ceilings.tsv"):
        if r[0] == "bandwidth" and r[2] == "copy" and r[1].isdigit() and int(r[1]) >= 1 << 28:
            value = float(r[3]) / 1e3
            if "copy" not in found or value > peaks["bandwidth"]: peaks["bandwidth"] = value
            found.append("copy")
        if r[0] == "product" and r[4] == "peak" and r[9] == "SUCCESS" and r[8] in ("bf16", "fp8 fast"):
            peaks["bf16" if r[8] == "bf16" else "fp8"] = float(r[12])
            found.append(r[8])
    print("ceilings measured: " + (", ".join(dict.fromkeys(found)) or "none; those given are used") + "\n")


def part_of(kernel):
    for part, pattern in PATTERNS:
        if re.search(pattern, kernel, re.IGNORECASE): return part
    return "other"


def compare(directory, floors, markdown):
    """Steps and kernels against their floors. steps.tsv: model, arm, order, ms a step, tokens a second; kernels.tsv: model, arm,
    kernel, calls a step, us a step. A step is compared by its microseconds a token, as a peer may run a smaller batch."""
    times = {}
    for r in rows_of(directory, "steps.tsv"):
        if len(r) >= 5 and r[0] in MODELS: times.setdefault((r[0], r[1]), []).append(1e6 / float(r[4]))
    lines = []
    for (model, arm), us in sorted(times.items()):
        key = (model, "fp8" if "fp8" in arm else "bf16", "head" in arm)
        if key not in floors: continue
        middle, floor = sum(us) / len(us), floors[key][2]
        lines.append([model, arm, f"{middle:.3f}", f"{floor:.3f}", f"{floor / middle:.0%}"])
    if lines: table(["model", "arm", "us a token", "floor", "floor / measured"], lines, markdown)
    else: print("no measured steps\n")
    traced = {}
    for r in rows_of(directory, "kernels.tsv"):
        if len(r) < 5 or r[0] not in MODELS: continue
        parts = traced.setdefault((r[0], r[1]), {})
        part = part_of(r[2])
        parts[part] = parts.get(part, 0.0) + float(r[4]) / 1e3
    for (model, arm), parts in sorted(traced.items()):
        key = (model, "fp8" if "fp8" in arm else "bf16", "head" in arm)
        if key not in floors: continue
        floor = dict(floors[key][1])
        floor["linears + head"] = floor.pop("linears") + floor.pop("head")
        total = sum(parts.values())
        print(f"{'### ' if markdown else ''}{model}, {arm}: kernels of a traced step, {total:.2f} ms\n")
        table(["part", "ms a step", "of the step", "floor", "floor / measured"],
              [[p, f"{ms:.3f}", f"{ms / total:.0%}", f"{floor.get(p, 0):.3f}", f"{floor.get(p, 0) / ms:.0%}" if ms else "-"]
               for p, ms in sorted(parts.items(), key=lambda x: -x[1])], markdown)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bf16", type=float, default=989.4, help="TFLOP/s")
    parser.add_argument("--fp8", type=float, default=1978.9, help="TFLOP/s")
    parser.add_argument("--bandwidth", type=float, default=3.35, help="TB/s")
    parser.add_argument("--batch", type=int, help="sequences a step")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--measured", metavar="DIR")
    parser.add_argument("--lean", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    args = parser.parse_args()
    peaks = {"bf16": args.bf16, "fp8": args.fp8, "bandwidth": args.bandwidth}
    if args.measured: peaks_measured(args.measured, peaks)
    print(f"Peaks: bf16 {peaks['bf16']:.0f} TFLOP/s, FP8 {peaks['fp8']:.0f} TFLOP/s, memory {peaks['bandwidth']:.2f} TB/s\n")
    floors, floors_of = {}, (("bf16", False), ("fp8", False), ("fp8", True))
    for model in MODELS:
        batch = args.batch or BATCH[model]
        for precision, fp8_head in floors_of:
            floors[model, precision, fp8_head] = sheet(model, precision, fp8_head, batch, args.seq_len, peaks, args)
        bf16 = floors[model, "bf16", False][0]
        print(f"{model}: floors bf16 / FP8 {bf16 / floors[model, 'fp8', False][0]:.2f}, "
              f"with an FP8 head {bf16 / floors[model, 'fp8', True][0]:.2f}")
        lean = [floor_ms(model, precision, head, batch, args.seq_len, peaks, True) for precision, head in floors_of]
        print(f"{model}, lean: bf16 {lean[0]:.2f} ms, FP8 {lean[1]:.2f}, with an FP8 head {lean[2]:.2f}; "
              f"bf16 / FP8 {lean[0] / lean[1]:.2f}, with an FP8 head {lean[0] / lean[2]:.2f}\n")
    if args.measured: compare(args.measured, floors, args.markdown)


if __name__ == "__main__":
    sys.exit(main())
