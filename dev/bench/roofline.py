#!/usr/bin/env python3
"""The sheet of a GPT-2 training step: every kernel with its bytes, its operations, its floor and an estimate of its time.

    dev/bench/roofline.py                                  # an H100 SXM
    dev/bench/roofline.py --kernels                        # every kernel, not only the parts
    dev/bench/roofline.py --check                          # the rule for products beside published times
    dev/bench/roofline.py --measured DIR                   # beside what dev/gpu_check.sh left in DIR

The floor of a kernel is the larger of operations / peak and bytes / bandwidth by the data sheet (each input read once, each
output written once, rows that are read twice by one kernel come from L2 the second time); --bf16, --fp8, --bandwidth or measured
ceilings replace the sheet's. The estimate uses the constants below. Its rates were fixed before any kernel was changed to meet
them, and the same ones serve llm.c's step; counts follow the code. A measurement stands beside the rates, never in them.

A product takes its arithmetic at the rate of a large product, and then its bytes at the rate of a copy, as if the two did not
overlap; --check shows how that fits published FP8 times of K from 512 to 16384. cuDNN's attention takes its published rate. Any
other kernel takes the longest of four times: bytes at copy speed; instructions at the rate of issue; conversions, exponentials
and reciprocals at the rate of their unit; bytes at what its loads in flight allow. Latency that nothing hides is added, and so is
a launch. Instructions are counted in sm_90 machine code (dev/LOG.md has the counts).
"""
import argparse
import os
import re
import sys

MODELS = {"124M": (12, 768, 12), "1.5B": (48, 1600, 25)}  # layers, channels, heads of 64
BATCH = {"124M": 16, "1.5B": 8}  # what gpu_check.sh times
VOCABULARY, PADDED, SLAB = 50257, 50304, 8192
PARTS = ["linears", "head", "attention", "layernorm", "GELU", "quantize", "classifier", "embedding", "AdamW"]

# ---- fixed on 2026-11-29. Published, all for the H100 SXM:
RATE = {"bf16": 794.5e12, "fp8": 1402.6e12}  # cuBLAS's best product: Bekman, Machine Learning Engineering, MAMF table
COPY = 0.92 * 3.35e12  # share of the peak that large pointwise kernels reach: torchao, roofline_utils.py
LAUNCH = 2e-6  # a kernel of one element, from its trace: the same file
# cuDNN 9, heads of 64, 1024 positions: FlashAttention-3 (arXiv 2407.08608), figures 5 and 6. Backward it has no causal times:
# these are those without a mask, times what the mask costs forward.
ATTENTION = {"forward": 288e12, "backward": 348e12 * 288 / 373}
# ours, for lack of a published figure:
LATENCY = 600e-9  # of a load from memory, under load
MULTIPROCESSORS, CLOCK = 132, 1.755e9
ISSUE = 0.7 * 4 * MULTIPROCESSORS * CLOCK  # warp instructions a second in kernels that stream
ISSUE_MMA = 0.5 * 4 * MULTIPROCESSORS * CLOCK  # in attention's, whose warps wait for one another
SPECIAL = 16 * MULTIPROCESSORS * CLOCK  # exponentials, reciprocals, single conversions a second
# Added after our attention was changed; it only slows our estimate. FlashAttention-2 uses the same instructions (same figures;
# backward it has five products where we have seven). By its counts alone ours would beat cuDNN, which is not credible.
SAME_CLASS = {"forward": 229e12, "backward": 238e12 * 229 / 306 * 5 / 7}

# ---- counted in the machine code of train_gpt_fp8.cu: instructions an element, special ones an element, bytes in flight a
# multiprocessor (None: more than a copy needs). FP8 and bf16 build.
COUNTS = {
    "tiles stored": {"fp8": (26, 0, None), "bf16": (14, 0, None)},
    "tiles GELU": {"fp8": (34, 2, None), "bf16": (21, 2, None)},
    "tiles GELU backward": {"fp8": (42, 2, None), "bf16": (31, 2, None)},
    "tiles master": {"fp8": (27, 0, None), "bf16": (12, 0, None)},
    "turn": {"fp8": (8, 0, None)},
    "layernorm forward": {"fp8": (50, 0.1, None), "bf16": (46, 0.1, None)},
    "layernorm backward": {"fp8": (39, 0.5, None), "bf16": (39, 0.5, None)},
    "classifier 1": {"fp8": (9, 1.1, None), "bf16": (9, 1.1, None)},
    "classifier 2": {"fp8": (9, 1, None), "bf16": (9, 1, None)},
    "classifier 2, bytes": {"fp8": (23, 1.1, None)},
    "norm": {"fp8": (10, 0, 2048 * 32), "bf16": (10, 0, 2048 * 32)},
    "AdamW": {"fp8": (75, 2, None), "bf16": (75, 2, None)},
}
CLASSIFIER_SERIAL = 3 * LATENCY  # a row's loads that wait for one another
# Of 64 x 64 scores of a head of 64: a warp's instructions, and cycles of shared memory (4 a ldmatrix.x4) of a block's four warps.
ATTENTION_TILE = {"forward": (391, 512), "dkdv": (526, 1024), "dq": (425, 768)}
SQNR = {"instructions": 20, "special": 0.5, "in flight": 12 * 32 * 48, "cycles a chunk": 45}  # of an element; of the finish

# Which part a kernel belongs to, by its name in a trace; the first that matches. A library's product can be a linear layer's
# or the head's: both stand under "linears + head". "quantize" is every pass of tiles_kernel but GELU's, in bf16 too.
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


class Step:
    """Kernels of a step, each a row: part, name, FLOPs, their type, bytes, estimated seconds, launches."""

    def __init__(self, build):
        self.rows, self.build = [], build

    def put(self, part, name, flops, kind, volume, seconds, times=1, launches=1):
        row = (part, name, times * flops, kind, times * volume, times * (seconds + launches * LAUNCH), times * launches)
        if times: self.rows.append(row)

    def product(self, part, name, M, N, K, kind, out_bytes, times=1):
        size, flops = 1 if kind == "fp8" else 2, 2.0 * M * N * K
        volume = size * (M * K + N * K) + out_bytes * M * N
        self.put(part, name, flops, kind, volume, flops / RATE[kind] + volume / COPY, times)

    def stream(self, part, name, elements, bytes_each, counts=None, times=1, launches=1, serial=0.0):
        """A kernel of ours, or (without counts) one that is taken to run at copy speed."""
        instructions, special, flight = COUNTS[counts][self.build] if counts else (0, 0, None)
        speed = min(COPY, flight * MULTIPROCESSORS / LATENCY) if flight else COPY
        volume = elements * bytes_each
        seconds = max(volume / speed, elements * instructions / 32 / ISSUE, elements * special / SPECIAL) + serial
        self.put(part, name, 0.0, "none", volume, seconds, times, launches)

    def attention(self, B, T, C, heads, own, L, fp8):
        """Own: an online softmax of 64 x 64 tiles, seven products backward. cuDNN: bytes for fprop are a pass of their own."""
        flops, R, tiles = 2 * 2.0 * B * T * T * C / 2, B * T, B * heads * (T // 64) * (T // 64 + 1) / 2
        write = 2 * C + (C if fp8 and own else 0)
        for name, factor, volume, kernels in (("forward", 1, R * (6 * C + write), ("forward",)),
                                              ("backward", 2.5, R * (6 * C + 4 * C + 6 * C), ("dkdv", "dq"))):
            seconds = factor * flops / ATTENTION[name]
            if own:
                counted = sum(tiles * max(4 * ATTENTION_TILE[k][0] / ISSUE_MMA, ATTENTION_TILE[k][1] / MULTIPROCESSORS / CLOCK)
                              for k in kernels)
                seconds = max(counted, factor * flops / SAME_CLASS[name])
            self.put("attention", f"attention {name}", factor * flops, "bf16", volume, seconds, L, len(kernels))
        self.stream("attention", "sums of dout out" if own else "cuDNN's own sums of dout out", R * C, 4, times=L)
        if fp8 and not own: self.stream("quantize", "attention's output to bytes", R * C, 3, "tiles stored", L)


def ours(L, C, heads, B, T, build, fp8_head=False, own_attention=False, logit=4):
    """The step of train_gpt_fp8.cu, default recipe, CUDA graphs, one micro-batch. logit: bytes of one (2: --logits16)."""
    s, R, fp8, kind = Step(build), B * T, build == "fp8", build
    s.stream("embedding", "embedding forward", R * C, 6)
    for name, out, inner in (("qkv", 3 * C, C), ("attproj", C, C), ("fc", 4 * C, C), ("fcproj", C, 4 * C)):
        s.product("linears", f"{name} fprop", R, out, inner, kind, 2, L)
        s.product("linears", f"{name} dgrad", R, inner, out, kind, 2, L)
        s.product("linears", f"{name} wgrad", out, inner, R, kind, 4, L)
    # The stream is read, a block's output added, the sum written; x goes out as the next product's operand.
    s.stream("layernorm", "residual + layernorm forward", R * C, 7 if fp8 else 8, "layernorm forward", 2 * L)
    s.stream("layernorm", "last residual + layernorm forward", R * C, 8, "layernorm forward")
    s.stream("layernorm", "layernorm backward", R * C, 8, "layernorm backward", 2 * L + 1, launches=2)
    s.attention(B, T, C, heads, own_attention, L, fp8)
    s.stream("GELU", "GELU forward", R * 4 * C, 4, "tiles GELU", L)
    s.stream("GELU", "GELU backward, bias gradient", R * 4 * C, 6, "tiles GELU backward", L, launches=2)
    if fp8:
        s.stream("quantize", "dy of attproj and fcproj to bytes, bias gradient", R * C, 4, "tiles stored", 2 * L, launches=2)
        s.stream("quantize", "dy of qkv to bytes, bias gradient", R * 3 * C, 4, "tiles stored", L, launches=2)
        s.stream("quantize", "x of qkv and fc turned", R * C, 2, "turn", 2 * L)
        s.stream("quantize", "x of attproj to turned bytes", R * C, 3, "tiles stored", L)
    else:
        s.stream("quantize", "bias gradients of attproj and fcproj", R * C, 2, "tiles stored", 2 * L, launches=2)
        s.stream("quantize", "bias gradient of qkv", R * 3 * C, 2, "tiles stored", L, launches=2)
    head8 = fp8 and fp8_head
    h = "fp8" if head8 else "bf16"
    for row in range(0, R, SLAB):
        rows = min(R - row, SLAB)
        s.product("head", "head fprop", rows, PADDED, C, h, logit)
        s.product("head", "head dgrad", rows, C, PADDED, h, 2)
        s.product("head", "head wgrad", PADDED, C, rows, h, 8 if row else 4)
        s.stream("classifier", "classifier: maximum and sum", rows * PADDED, logit, "classifier 1",
                 serial=CLASSIFIER_SERIAL * rows / MULTIPROCESSORS)
        s.stream("classifier", "classifier: dlogits", rows * PADDED, 1 if head8 else 2,
                 "classifier 2, bytes" if head8 else "classifier 2", launches=0)
        if head8:
            s.stream("quantize", "lnf to bytes, both ways", rows * C, 4, "tiles stored")
            s.stream("quantize", "bytes of dlogits turned", rows * PADDED, 2, "turn")
    s.stream("embedding", "embedding backward", R * C, 10, launches=2)
    linear, head, everything = parameters(L, C, T)
    s.stream("AdamW", "gradient norm", everything, 4, "norm", launches=2)
    s.stream("AdamW", "AdamW", everything, 28, "AdamW", launches=2)
    s.stream("quantize", "linear weights to " + ("bytes, both ways" if fp8 else "bf16"), linear, 6,
             "tiles master", launches=4 * L)
    s.stream("quantize", "head weights to " + ("bytes, both ways" if head8 else "bf16"), head, 6,
             "tiles master", launches=5)
    s.stream("AdamW", "gradients of vectors and positions set to zero", everything - linear - head, 4, launches=11)
    return s.rows


def llmc(L, C, heads, B, T):
    """The step of llm.c's train_gpt2cu: bf16, cuDNN, GELU in cuBLASLt's epilogues, nothing recomputed, bf16 logits and gradients,
    fp32 master weights. Its own kernels are taken to run at copy speed."""
    s, R = Step("bf16"), B * T
    s.stream("embedding", "embedding forward", R * C, 6)
    for name, out, inner in (("qkv", 3 * C, C), ("attproj", C, C), ("fc", 4 * C, C), ("fcproj", C, 4 * C)):
        gelu = 2 if name in ("fc", "fcproj") else 0  # fc also writes, and fcproj's dgrad reads, the tensor before GELU
        s.product("linears", f"{name} fprop", R, out, inner, "bf16", 2 + (gelu if name == "fc" else 0), L)
        s.product("linears", f"{name} dgrad", R, inner, out, "bf16", 2 + (gelu if name == "fcproj" else 0), L)
        s.product("linears", f"{name} wgrad", out, inner, R, "bf16", 4, L)
        s.stream("linears", f"{name} bias gradient", R * out, 2, times=L, launches=2)
    s.stream("layernorm", "residual + layernorm forward", R * C, 8, times=2 * L + 1)
    s.stream("layernorm", "layernorm backward", R * C, 8, times=2 * L + 1)
    s.attention(B, T, C, heads, False, L, False)
    s.product("head", "head fprop", R, PADDED, C, "bf16", 2)
    s.product("head", "head dgrad", R, C, PADDED, "bf16", 2)
    s.product("head", "head wgrad", PADDED, C, R, "bf16", 4)
    s.stream("classifier", "classifier", R * PADDED, 4)
    s.stream("embedding", "embedding backward", R * C, 6, launches=2)
    everything = parameters(L, C, T)[2]
    s.stream("AdamW", "gradient norm", everything, 2, launches=2)
    s.stream("AdamW", "AdamW", everything, 28, launches=16)
    s.stream("AdamW", "gradients set to zero", everything, 2)
    return s.rows


def sqnr_seconds(L, C, B, T):
    """What a step that records SQNR takes beyond others: unfused passes, no graph, squares of every operand, and their finish."""
    R = B * T
    elements = L * 16 * R * C + L * 12 * C * C
    flight = min(COPY, SQNR["in flight"] * MULTIPROCESSORS / LATENCY)
    squares = max(3 * elements / flight, elements * SQNR["instructions"] / 32 / ISSUE, elements * SQNR["special"] / SPECIAL)
    finish = elements / 8192 * SQNR["cycles a chunk"] / CLOCK
    unfused = L * R * (2 + 7 + 8) * C * 2 / COPY  # x as a tensor: written and read again; dy of fc likewise
    return {"squares": squares, "finish": finish, "unfused": unfused, "launches": L * 24 * 2 * LAUNCH}


def floor_seconds(row, peaks):
    _, _, flops, kind, volume, _, _ = row
    return max(flops / (peaks[kind] * 1e12) if kind != "none" else 0.0, volume / (peaks["bandwidth"] * 1e12))


def table(head, rows, markdown):
    if markdown:
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for row in rows: print("| " + " | ".join(row) + " |")
    else:
        widths = [max(len(r[i]) for r in [head] + rows) for i in range(len(head))]
        for row in [head] + rows:
            print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip())
    print()


def sheet(model, label, rows, tokens, peaks, args):
    """Prints one step. Returns its floor and its estimate in ms, each by part, and tokens."""
    floors, estimates = {p: 0.0 for p in PARTS}, {p: 0.0 for p in PARTS}
    for row in rows:
        floors[row[0]] += 1e3 * floor_seconds(row, peaks)
        estimates[row[0]] += 1e3 * row[5]
    floor, estimate = sum(floors.values()), sum(estimates.values())
    print(f"{'### ' if args.markdown else ''}GPT-2 {model}, {label}, {tokens} tokens: floor {floor:.2f} ms a step, estimate "
          f"{estimate:.2f} ms, {tokens / estimate:.0f}k tokens/s, {sum(r[6] for r in rows):.0f} launches\n")
    if args.kernels:
        table(["kernel", "part", "GFLOP", "MB", "launches", "floor, us", "estimate, us", "floor / estimate"],
              [[r[1], r[0], f"{r[2] / 1e9:.0f}", f"{r[4] / 1e6:.0f}", f"{r[6]:.0f}", f"{1e6 * floor_seconds(r, peaks):.0f}",
                f"{1e6 * r[5]:.0f}", f"{floor_seconds(r, peaks) / r[5]:.0%}"] for r in rows], args.markdown)
    table(["part", "floor, ms", "estimate, ms", "of the step"],
          [[p, f"{floors[p]:.3f}", f"{estimates[p]:.3f}", f"{estimates[p] / estimate:.0%}"] for p in PARTS], args.markdown)
    return {"floors": floors, "estimates": estimates, "floor": floor, "estimate": estimate, "tokens": tokens}


def check():
    """Published FP8 products (DeepGEMM's README of 2025, H800: the H100's arithmetic and memory; bf16 out) beside the rule."""
    rows = []
    for M, N, K, tflops in ((4096, 2112, 7168, 1058), (4096, 24576, 1536, 990), (4096, 32768, 512, 590),
                            (4096, 7168, 16384, 1358), (4096, 4096, 7168, 1304), (4096, 7168, 2048, 1025)):
        s = Step("fp8")
        s.product("linears", "", M, N, K, "fp8", 2)
        published, rule = 2.0 * M * N * K / tflops / 1e6, 1e6 * (s.rows[0][5] - LAUNCH)
        rows.append([f"{M} x {N} x {K}", f"{published:.0f}", f"{rule:.0f}", f"{rule / published:.2f}"])
    table(["FP8 product", "published, us", "rule, us", "rule / published"], rows, False)


def rows_of(directory, name):
    """Tab-separated rows of a file that gpu_check.sh left, or none."""
    try:
        with open(os.path.join(directory, name)) as f:
            return [line.rstrip("\n").split("\t") for line in f]
    except OSError:
        return []


def peaks_measured(directory, peaks):
    """Ceilings of ceilings.tsv instead of given ones, for floors only; says what was taken."""
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


def step_of(steps, model, arm):
    """The sheet's step that an arm of gpu_check.sh is compared with."""
    name = "llm.c" if "llm" in arm else "FP8" if "fp8" in arm else "bf16"
    for word, part in (("head", ", FP8 head"), ("logits16", ", --logits16"), ("own", ", own attention")):
        if word in arm: name += part
    return steps.get((model, name))


def compare(directory, steps, markdown):
    """Measured steps and kernels beside floors and estimates. steps.tsv: model, arm, order, ms a step, tokens a second;
    kernels.tsv: model, arm, kernel, calls a step, us a step. A step is compared by its microseconds a token, as a peer may run a
    smaller batch."""
    times, lines = {}, []
    for r in rows_of(directory, "steps.tsv"):
        if len(r) >= 5 and r[0] in MODELS: times.setdefault((r[0], r[1]), []).append(1e6 / float(r[4]))
    for (model, arm), us in sorted(times.items()):
        step = step_of(steps, model, arm)
        if not step: continue
        middle, floor, estimate = sum(us) / len(us), 1e3 * step["floor"] / step["tokens"], 1e3 * step["estimate"] / step["tokens"]
        lines.append([model, arm, f"{middle:.3f}", f"{floor:.3f}", f"{estimate:.3f}", f"{middle / estimate:.2f}"])
    if lines: table(["model", "arm", "us a token", "floor", "estimate", "measured / estimate"], lines, markdown)
    else: print("no measured steps\n")
    traced = {}
    for r in rows_of(directory, "kernels.tsv"):
        if len(r) < 5 or r[0] not in MODELS: continue
        parts = traced.setdefault((r[0], r[1]), {})
        parts[part_of(r[2])] = parts.get(part_of(r[2]), 0.0) + float(r[4]) / 1e3
    for (model, arm), parts in sorted(traced.items()):
        step = step_of(steps, model, arm)
        if not step: continue
        floors, estimates = dict(step["floors"]), dict(step["estimates"])
        for d in (floors, estimates): d["linears + head"] = d.pop("linears") + d.pop("head")
        total = sum(parts.values())
        print(f"{'### ' if markdown else ''}{model}, {arm}: kernels of a traced step, {total:.2f} ms\n")
        over = lambda p, ms: "yes" if p in estimates and ms > 1.3 * estimates[p] else ""
        table(["part", "ms a step", "of the step", "floor", "estimate", "over its estimate by more than 30%"],
              [[p, f"{ms:.3f}", f"{ms / total:.0%}", f"{floors.get(p, 0):.3f}", f"{estimates.get(p, 0):.3f}", over(p, ms)]
               for p, ms in sorted(parts.items(), key=lambda x: -x[1])], markdown)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bf16", type=float, default=989.4, help="TFLOP/s, for floors")
    parser.add_argument("--fp8", type=float, default=1978.9, help="TFLOP/s, for floors")
    parser.add_argument("--bandwidth", type=float, default=3.35, help="TB/s, for floors")
    parser.add_argument("--batch", type=int, help="sequences a step")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--measured", metavar="DIR")
    args = parser.parse_args()
    if args.check: return check()
    T, peaks, steps = args.seq_len, {"bf16": args.bf16, "fp8": args.fp8, "bandwidth": args.bandwidth}, {}
    if args.measured: peaks_measured(args.measured, peaks)
    print(f"Peaks of the floors: bf16 {peaks['bf16']:.0f} TFLOP/s, FP8 {peaks['fp8']:.0f} TFLOP/s, "
          f"memory {peaks['bandwidth']:.2f} TB/s\n")
    arms = {"bf16": ("bf16",), "FP8": ("fp8",), "FP8, FP8 head": ("fp8", True), "bf16, --logits16": ("bf16", False, False, 2),
            "FP8, --logits16": ("fp8", False, False, 2), "FP8, FP8 head, --logits16": ("fp8", True, False, 2),
            "bf16, own attention": ("bf16", False, True), "FP8, own attention": ("fp8", False, True),
            "FP8, FP8 head, own attention": ("fp8", True, True)}
    lines = []
    for model, (L, C, heads) in MODELS.items():
        B = args.batch or BATCH[model]
        for name, arm in arms.items(): steps[model, name] = sheet(model, name, ours(L, C, heads, B, T, *arm), B * T, peaks, args)
        steps[model, "llm.c"] = sheet(model, "llm.c", llmc(L, C, heads, B, T), B * T, peaks, args)
        for name in [*arms, "llm.c"]:
            last = ", " + name.split(", ")[-1]  # our bf16 with the same option
            s, bf16 = steps[model, name], steps.get((model, "bf16" + last), steps[model, "bf16"])
            lines.append([model, name, f"{s['floor']:.2f}", f"{s['estimate']:.2f}", f"{bf16['estimate'] / s['estimate']:.3f}",
                          f"{steps[model, 'llm.c']['estimate'] / s['estimate']:.3f}"])
    table(["model", "step", "floor, ms", "estimate, ms", "our bf16 / it", "llm.c / it"], lines, args.markdown)
    for model, (L, C, _) in MODELS.items():
        parts, step = sqnr_seconds(L, C, args.batch or BATCH[model], T), steps[model, "FP8"]["estimate"]
        print(f"{model}: a step that records SQNR takes {1e3 * sum(parts.values()):.1f} ms more (" +
              ", ".join(f"{name} {1e3 * s:.1f}" for name, s in parts.items()) +
              f"); with --sqnr-every 100 {1e3 * sum(parts.values()) / step:.2f}% of the steps' time")
    print()
    if args.measured: compare(args.measured, steps, args.markdown)


if __name__ == "__main__":
    sys.exit(main())
