#!/usr/bin/env python3
"""Times a GPT-2 training step of what a user would take instead on one GPU, beside this trainer's binary.

    dev/bench/gpu_peers.py [--models 124M,1.5B] [--ours build/gpu/train_gpt_fp8cu] [--options "--fp8-head"] [--data SHARD]
                           [--llmc PATH] [--llmq PATH] [--arms ...] [--steps 20] [--limit 90] [--seconds 300] [--tsv FILE]

Arms, each skipped with one plain line where it is not installed: torch (PyTorch, bf16 autocast, torch.compile), tensorwise and
rowwise (the same with torchao's float8 linear layers), te (Transformer Engine's layers, delayed scaling, hybrid formats), llmc
(llm.c's train_gpt2cu), llmq-fp8 and llmq-bf16 (llmq's train, with e4m3 or bf16 operands). All keep fp32 master weights (llmq's
are bf16), AdamW, gradient clipping, a tied 16-bit head, T=1024; B is 16 at 124M and 8 at 1.5B. Order: ours, peer, peer, ours for
each peer (ABBA), each peer in a process of its own with a time limit. Medians of all steps but those that warm up; a row of FILE
is model, arm, order, milliseconds a step, tokens a second.
All read SHARD's tokens, each in its own order (PyTorch's arms from the first on); without it, PyTorch's arms and llmq's read the
same random ones. torchao's arms keep a bf16 head, as its authors do; torch.compile takes whole models at 124M, blocks at 1.5B.

llm.c's binary is taken as it was built elsewhere (for speed: with cuDNN's attention, without which it keeps whole T x T scores).
So is llmq's (as of May 2026). It trains no GPT-2: a Qwen2 with the same layers, channels, heads, padded vocabulary and tied head
has RMSNorm, RoPE and a SwiGLU of 8/3 C channels (to a multiple of 128), so that its MLP has about GPT-2's number of weights. It
prints whole milliseconds, rounded down: half of one is added.
"""
import argparse
import importlib.util
import json
import os
import random
import re
import shlex
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from array import array

MODELS = {"124M": (12, 768, 12, 16, "d12"), "1.5B": (48, 1600, 25, 8, "d48"), "tiny": (2, 128, 2, 2, "d2")}
VOCABULARY, PADDED = 50257, 50304
NEEDS = {"torch": ["torch"], "tensorwise": ["torch", "torchao"], "rowwise": ["torch", "torchao"],
         "te": ["torch", "transformer_engine"], "llmc": [], "llmq-fp8": [], "llmq-bf16": []}
say = lambda *words: print(*words, flush=True)


def read_tokens(path, least, most):
    """The shard's first tokens, from `least` to `most` of them; without a shard `most` random ones, the same for every peer."""
    if not path: return array("i", random.Random(1).choices(range(VOCABULARY), k=most))
    with open(path, "rb") as f:
        magic, version, count = struct.unpack_from("<3I", f.read(1024).ljust(1024, b"\0"))
        if (magic, version) != (20240520, 1):
            raise ValueError(f"{path}: expected a token shard (magic number 20240520, version 1), found {magic} and {version}")
        data = f.read(2 * min(count, most))
    expected, found = max(least, min(count, most)), len(data) // 2
    if found < expected: raise ValueError(f"{path}: expected at least {expected} tokens, found {found}")
    tokens = array("i", struct.unpack(f"<{found}H", data))
    if max(tokens) >= VOCABULARY: raise ValueError(f"{path}: expected tokens below {VOCABULARY}, found {max(tokens)}")
    return tokens


# ==== in the process of one peer =====================================================================================
def torch_model(arm, model, device):
    import torch
    from torch import nn
    from torch.nn import functional as F
    L, C, NH, B, _ = MODELS[model]
    T = 1024 if device == "cuda" else 32

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.qkv, self.attproj = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x):
            B, T, C = x.shape
            q, k, v = self.qkv(self.ln1(x)).view(B, T, 3, NH, C // NH).permute(2, 0, 3, 1, 4)
            att = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attproj(att.transpose(1, 2).reshape(B, T, C))
            return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(PADDED, C), nn.Embedding(T, C)
            if arm == "te":
                import transformer_engine.pytorch as te
                block = lambda: te.TransformerLayer(C, 4 * C, NH, hidden_dropout=0.0, attention_dropout=0.0, fuse_qkv_params=True,
                                                    self_attn_mask_type="causal", attn_input_format="bshd", activation="gelu")
            else: block = Block
            self.blocks = nn.ModuleList(block() for _ in range(L))
            self.lnf, self.head = nn.LayerNorm(C), nn.Linear(C, PADDED, bias=False)
            self.head.weight = self.wte.weight

        def forward(self, tokens, targets):
            x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
            if arm == "te": x = x.to(torch.bfloat16) if torch.is_autocast_enabled() else x
            for block in self.blocks: x = block(x)
            logits = self.head(self.lnf(x))
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    torch.manual_seed(1)
    with torch.device(device): net = Gpt()
    for p in net.parameters():
        if p.dim() == 2: nn.init.normal_(p, std=0.02)
    if arm in ("tensorwise", "rowwise"):
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
        convert_to_float8_training(net, config=Float8LinearConfig.from_recipe_name(arm),
                                   module_filter_fn=lambda module, name: name != "head")
    if device == "cuda" and arm != "te":
        if L <= 12: net.compile()
        else:
            for block in net.blocks: block.compile()
    return net, B, T


def peer(arm, model, steps, device, data):
    """Builds, warms up, times twice `steps` steps; prints `ms` lines for this script's parent."""
    import contextlib
    import torch
    if device == "cuda" and not torch.cuda.is_available(): return say("skip no GPU that PyTorch can use")
    torch.set_float32_matmul_precision("high")
    net, B, T = torch_model(arm, model, device)
    recipe = None
    if arm == "te":
        import transformer_engine.pytorch as te
        from transformer_engine.common.recipe import DelayedScaling, Format
        recipe = DelayedScaling(fp8_format=Format.HYBRID, amax_history_len=16, amax_compute_algo="max")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    try: tokens = torch.frombuffer(read_tokens(data, B * T + 1, max(5, steps) * B * T + 1), dtype=torch.int32).to(device).long()
    except (OSError, ValueError) as error: return say(f"skip {error}")
    inputs, targets = (x[:len(x) // (B * T) * B * T].clone().view(-1, B, T) for x in (tokens[:-1], tokens[1:]))

    def step(i):
        with torch.autocast(device, torch.bfloat16), (te.fp8_autocast(enabled=True, fp8_recipe=recipe)
                                                      if recipe else contextlib.nullcontext()):
            loss = net(inputs[i % len(inputs)], targets[i % len(inputs)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    begin = time.perf_counter()
    for i in range(5): loss = float(step(i))
    say(f"note warm after {time.perf_counter() - begin:.0f} s, torch {torch.__version__}")
    for order in (1, 2):
        if device == "cuda":  # from event to event, so that the host may run ahead
            events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
            events[0].record()
            for i in range(steps):
                loss = step(i)
                events[i + 1].record()
            torch.cuda.synchronize()
            times = [a.elapsed_time(b) for a, b in zip(events, events[1:])]
        else:
            marks = [time.perf_counter()]
            for i in range(steps):
                loss = step(i)
                marks.append(time.perf_counter())
            times = [1e3 * (b - a) for a, b in zip(marks, marks[1:])]
        loss = float(loss)
        if loss != loss: return say("skip its loss is not a number")
        say(f"ms {order} {statistics.median(times):.4f} {B * T}")
    if device == "cuda": say(f"note peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


# ==== the parent =====================================================================================================
def run(command, limit, env=None, cwd=None):
    """Runs a command; returns its status (None: it ran past the limit) and what it printed. Ends all its processes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               start_new_session=True, env=env, cwd=cwd)

    def stop(*_):  # a process group of its own, so that workers of a compiler end too
        os.killpg(process.pid, signal.SIGKILL)
        sys.exit(124)

    signal.signal(signal.SIGTERM, stop)
    try:
        out = process.communicate(timeout=limit)[0]
        return process.returncode, out
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def peer_environment():
    """Without the library path that gpu_check.sh set for our binaries: PyTorch brings its own libraries."""
    env = dict(os.environ)
    if "LIBRARY_PATH_BEFORE" in env: env["LD_LIBRARY_PATH"] = env["LIBRARY_PATH_BEFORE"]
    return env


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it printed nothing"


def ours(args, model, limit):
    """Milliseconds of every step but the first, from log.tsv; or a reason."""
    B, depth = MODELS[model][3:]
    with tempfile.TemporaryDirectory() as directory:
        out = os.path.join(directory, "run")
        command = [args.ours, "-i", args.data, "-j", args.data, "-e", depth, "-t", "1024", "-b", str(B),
                   "-x", str(args.steps + 1), "-m", "1", "-v", "0", "-s", "0", "-n", "0", "-o", out] + shlex.split(args.options)
        status, text = run(command, limit)
        if status != 0: return None, "ran past its limit" if status is None else f"status {status}: {last_line(text)}"
        with open(os.path.join(out, "log.tsv")) as f:
            rows = [line.split("\t") for line in f if line[:1].isdigit()]
    return (statistics.median([float(r[7]) for r in rows[1:]]), B * 1024), None


def median_step(times, B, args, status, text):
    """The same of a peer's `times`. Reasons: it failed before its last step, or ran past its limit within two."""
    if len(times) > (args.steps if status is not None else 1): return (statistics.median(times[1:]), B * 1024), None
    return None, f"{'ran past its limit' if status is None else f'status {status}'} after {len(times)} steps: {last_line(text)}"


def llmc(args, model, arm, limit):
    """The same of llm.c. Without cuDNN it keeps T x T scores: half the batch at 1.5B, to fit 80 GB without managed memory."""
    B, depth = MODELS[model][3:]
    linked = subprocess.run(["ldd", args.llmc], capture_output=True, text=True).stdout if os.path.exists("/usr/bin/ldd") else ""
    if model == "1.5B" and "cudnn" not in linked: B //= 2
    status, text = run([args.llmc, "-i", args.data, "-j", args.data, "-e", depth, "-t", "1024", "-b", str(B),
                        "-x", str(args.steps + 1), "-v", "0", "-s", "0", "-h", "0", "-n", "0", "-r", "0"], limit)
    times = [float(x) for x in re.findall(r"\| *([0-9.]+) ms \|", text)]
    return median_step(times, B, args, status, text)


def llmq(args, model, arm, limit):
    """The same of llmq, in a folder of its config and tokens, where it leaves its model. It needs a window more than it reads."""
    L, C, NH, B, _ = MODELS[model]
    hidden = (8 * C // 3 + 64) // 128 * 128
    tokens = read_tokens(args.data, (B + 1) * 1024 + 1, (B * (args.steps + 1) + 1) * 1024 + 1)
    with tempfile.TemporaryDirectory() as directory:
        with open(os.path.join(directory, "config.json"), "w") as f:
            json.dump({"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": L, "hidden_size": C, "num_attention_heads": NH,
                       "num_key_value_heads": NH, "intermediate_size": hidden, "vocab_size": PADDED, "tie_word_embeddings": True,
                       "max_position_embeddings": 1024, "rope_theta": 1e4, "bos_token_id": 0, "eos_token_id": 0}, f)
        for name, part in (("train.bin", tokens), ("eval.bin", tokens[:(B + 1) * 1024 + 1])):
            with open(os.path.join(directory, name), "wb") as f:  # version 2, 4 bytes a token, no mask
                f.write(struct.pack("<8s5i996x", b"BIN.TOK\n", 2, 4, len(part), VOCABULARY, 0))
                part.tofile(f)
        command = [os.path.abspath(args.llmq), "--model=.", "--from-scratch", "--train-file=train.bin", "--eval-file=eval.bin",
                   "--eval-every-n-steps=99999", f"--batch-size={B}", "--grad-accumulation=1", f"--steps={args.steps + 1}",
                   f"--matmul-dtype={'e4m3' if arm == 'llmq-fp8' else 'bf16'}", "--opt-m-dtype=fp32", "--opt-v-dtype=fp32",
                   "--model-dtype=bf16", "--use-cuda-graphs", "--save-training-state=false", "--ckpt-interval=99999",
                   "--seq-len=1024", "--gpus=1"]
        status, text = run(command, limit, cwd=directory)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # colours
    times = [float(x) + 0.5 for x in re.findall(r"^\[T\] step .*?\| time: *(\d+) ms", text, re.M)]
    found, why = median_step(times, B, args, status, text)
    return found and (*found, f"  (RMSNorm, RoPE, a SwiGLU of {hidden}: about GPT-2's number of weights)"), why


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="124M,1.5B")
    parser.add_argument("--arms", default=",".join(NEEDS))
    parser.add_argument("--ours", help="this trainer's binary")
    parser.add_argument("--options", default="", help="for it")
    parser.add_argument("--data", help="a token shard, for all")
    parser.add_argument("--llmc", help="llm.c's train_gpt2cu")
    parser.add_argument("--llmq", help="llmq's train")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=float, default=90, help="seconds for one run")
    parser.add_argument("--seconds", type=float, default=1e9, help="for all")
    parser.add_argument("--tsv")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer: return peer(args.peer, args.models, args.steps, args.device, args.data)
    if set(args.arms.split(",")) - set(NEEDS): parser.error(f"--arms: expected some of {','.join(NEEDS)}, found {args.arms}")
    end = time.monotonic() + args.seconds
    tsv = open(args.tsv, "a") if args.tsv else None
    if (args.ours or args.llmc) and not args.data: parser.error("--ours and --llmc need --data SHARD")

    def record(model, arm, order, ms, tokens, remark=""):
        say(f"{model:5} {arm:12} {order}  {ms:10.3f} ms a step  {tokens / ms * 1e3:12.0f} tokens/s{remark}")
        if tsv:
            tsv.write(f"{model}\t{arm}\t{order}\t{ms:.4f}\t{tokens / ms * 1e3:.1f}\n")
            tsv.flush()

    def run_ours(model, order):
        if not args.ours: return None
        found, why = ours(args, model, min(args.limit, max(1, end - time.monotonic())))
        if not found: return say(f"{model} ours: skipped: {why}")
        record(model, "ours", order, *found)
        return found[1] / found[0]

    table = []
    for model in args.models.split(","):
        for arm in args.arms.split(","):
            left = end - time.monotonic()
            if left < 10:
                say(f"{model} {arm}: skipped: no time is left")
                continue
            missing = [name for name in NEEDS[arm] if importlib.util.find_spec(name) is None]
            name = arm.split("-")[0]
            binary = {"llmc": llmc, "llmq": llmq}.get(name)
            if missing or (binary and not getattr(args, name)):
                say(f"{model} {arm}: skipped: " + (f"{missing[0]} is not installed" if missing else f"no --{name} was given"))
                continue
            rates, own = [], [run_ours(model, 1)]
            if binary:
                for order in (1, 2):
                    try: found, why = binary(args, model, arm, min(args.limit, max(1, end - time.monotonic())))
                    except (OSError, ValueError) as error: found, why = None, error
                    if not found:
                        say(f"{model} {arm}: skipped: {why}")
                        break
                    record(model, arm, order, *found)
                    rates.append(found[1] / found[0])
            else:
                command = [sys.executable, "-u", os.path.abspath(__file__), "--peer", arm, "--models", model,
                           "--steps", str(args.steps), "--device", args.device] + (["--data", args.data] if args.data else [])
                status, text = run(command, min(args.limit, max(1, end - time.monotonic())), peer_environment())
                for line in text.splitlines():
                    if line.startswith("ms "):
                        _, order, ms, tokens = line.split()
                        record(model, arm, int(order), float(ms), int(tokens))
                        rates.append(int(tokens) / float(ms))
                    elif line.startswith("note "): say(f"{model} {arm}: {line[5:]}")
                    elif line.startswith("skip "): say(f"{model} {arm}: skipped: {line[5:]}")
                if status is None: say(f"{model} {arm}: ran past its limit")
                elif status != 0: say(f"{model} {arm}: failed, status {status}: {last_line(text)}")
            own.append(run_ours(model, 2))
            own = [x for x in own if x]
            if rates:
                mine = statistics.mean(own) if own else None
                table.append((model, arm, statistics.mean(rates), mine))
    if table:
        say(f"\n{'model':5} {'peer':12} {'tokens/s':>10} {'ours':>10}  ours / peer")
        for model, arm, rate, mine in table:
            say(f"{model:5} {arm:12} {1e3 * rate:10.0f} " + (f"{1e3 * mine:10.0f}  {mine / rate:.2f}" if mine else f"{'-':>10}"))


if __name__ == "__main__":
    sys.exit(main())
