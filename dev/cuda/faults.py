#!/usr/bin/env python3
"""Plants faults in train_gpt_fp8.cu, one at a time, and runs dev/cuda/test_cuda.cu on each: every one must be found.

    python3 dev/cuda/faults.py            # all of them, 20 to 40 seconds each
    python3 dev/cuda/faults.py barrier    # those whose names hold a word

Prints a line a fault; exit status 0 if all were found. A fault whose text is no longer in the file is reported as stale.
"""
import os
import re
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
# name, text, what it becomes, tests that must fail, after settings of on_cpu.h (NAME=VALUE)
FAULTS = [
    ("no barrier before a turned tile is stored", "    __syncthreads();\n    if (t.q_t) tile_turned_store(t.q_t, turned, t.columns, t.pitch);",
     "    if (t.q_t) tile_turned_store(t.q_t, turned, t.columns, t.pitch);", "fused bits"),
    ("no barrier behind attention's tile", "        att_add(o, s, k + 1, 0);\n        __syncthreads();", "        att_add(o, s, k + 1, 0);", "attention bits"),
    ("attention's older sums are not rescaled", "*= alpha[e / 2 % 2];", "*= 1;", "attention"),
    ("attention waits for one group of copies too few", "        cp_async_wait<1>();\n", "        cp_async_wait<2>();\n", "attention"),
    ("attention sees one key too many", "- first) * sign > 0", "- first) * sign > 1", "attention"),
    ("dk without the scale", "att_round(tile, dk, at.scale, at.scale)", "att_round(tile, dk, 1, 1)", "attention"),
    ("rows of padding are not zeroed", "        bytes[r] = make_uint2(0, 0);\n        if (column", "        bytes[r] = make_uint2(1, 1);\n        if (column", "quantize"),
    ("two rows of turned bytes exchanged", "cd0, 0x5410);\n        turned[first + half * 4 + 1]", "cd0, 0x1054);\n        turned[first + half * 4 + 1]", "quantize"),
    ("a count is lost", "    if (c.nonfinite) atomicAdd(", "    if (c.nonfinite > 1) atomicAdd(", "quantize"),
    ("the margin is forgotten", "for (int i = 0; i < r->margin; i++) scale *= 0.5f;", "for (int i = 1; i < r->margin; i++) scale *= 0.5f;", "scales quantize"),
    ("the oldest amax stays", "history[count % length] = amax;", "if (count % length) history[count % length] = amax;", "scales"),
    ("OCP's rounding of MX as the other", "if (r->rounding == ROUNDING_FLOOR) amax =", "if (r->rounding > ROUNDING_FLOOR) amax =", "quantize"),
    ("a saturated value is not cut", "fp8_round_bits(a, f), f->max_code)", "fp8_round_bits(a, f), f->max_code + 1u)", "numbers quantize"),
    ("layernorm's backward without a term", "- (in[k] - m) * r * mean_dnn) * r", ") * r", "layernorm"),
    ("GELU's backward with a wrong factor", "6 * GELU_CUBIC, 2 * GELU_LINEAR)", "5 * GELU_CUBIC, 2 * GELU_LINEAR)", "gelu"),
    ("the classifier divides by too much", "const float inverse = 1.0f / sum,", "const float inverse = 0.99f / sum,", "classifier"),
    ("dlogits overwrite logits that are not read yet", "if (sizeof(T) > sizeof(stored_t) && !d.q) __syncthreads();", "", "classifier bits"),
    ("the last chunks of an SQNR are lost", "c < chunks; c += 32", "c + 32 < chunks; c += 32", "fused"),
    ("an SQNR's fourth powers have the unit of squares", "which == 2 ? inv2 * inv2 : inv2", "inv2", "quantize"),
    ("gradients of the step before stay", "NULL, !f->first, 0}", "NULL, 1, 0}", "steps bits"),
    ("an FP8 head's dlogits are not turned", "bytes_turn(f.operand[OPERAND_DY].bytes[OVER_ROWS], d.q, slab, f.out);", "", "model steps"),
    ("AdamW without its second correction", "sqrtf(vs[k] * in->correct2)", "sqrtf(vs[k])", "optimizer"),
    ("a code in the other half of its byte", "<< (k - k0) * 4;", "<< ((k - k0) ^ 1) * 4;", "quantize"),
    ("two-level scales of one level", "const float tensor = scale_of_tensor(bits_float(use->amax_bits), &r);", "const float tensor = 1;", "quantize"),
    ("a Hadamard transform without its signs", "!whole ? 1 : signs >> i & 1 ? -0.25f : 0.25f", "!whole ? 1 : 0.25f", "model"),
    ("the third product of split operands is both seconds", "part_b = i > 0 && !part_a;", "part_b = i > part_a;", "model"),
    ("scales of MX in another order", "i % 128 / 32 * 4 + k % 4]", "i % 128 / 32 * 4 + 3 - k % 4]", "CUDA_ON_CPU_ARCH=10.0 model"),
    ("a v that is not 0 becomes 0", "least = k && x[e] > 0;", "least = 0;", "moments"),
    ("a block of moments with half its amax", "d = 8; d > 0; d /= 2) amax", "d = 4; d > 0; d /= 2) amax", "moments"),
    ("a clipped gradient is not clipped", "in->grad_clip > 0 && norm > in->grad_clip ?", "in->grad_clip > 0 && norm > 2 * in->grad_clip ?", "optimizer"),
    ("the initial weights from another draw", "random_u64(seed, id, i + 1)", "random_u64(seed, id, i + 2)", "model"),
    ("a denormal weight is not flushed before it is rounded", "v[i] = denormal_flush(bits_float(raw[i]));", "v[i] = bits_float(raw[i]);", "fused"),
    ("a NaN's byte is another without FP8 units", "return a > 0x7f800000 ? f->nan :", "return a > 0x7f800000 ? f->nan - 1 :", "CUDA_ON_CPU_ARCH=8.0 numbers"),
    ("steps never fuse", "!o->own_amax && record != RECORD_SQNR;", "!o->own_amax && record == RECORD_NONE;", "steps"),
    ("steps are never graphs", "h->warm && g->record == RECORD_STATS", "h->warm && g->record == RECORD_NONE", "steps"),
    ("every logged step records SQNR", "step / every > (step - rows) / every)", "step > 0)", "steps"),
    ("a bias is lost where it is not fused", "if (out.bias && !o.bias)", "if (out.bias && o.bias && 0)", "CUDA_ON_CPU_LT_REFUSES=bias products"),
    ("what cuDNN refuses ends the program", "        why = e.what();\n", "        fatal(EXIT_BAD_INPUT, \"%s\", e.what());\n", "errors"),
    ("cuDNN's workspace is not in the plan", "plan.part[REUSED] += cudnn_bytes();", "plan.part[REUSED] += 0 * cudnn_bytes();", "attention_by"),
    ("a resume takes another attention in silence", "done || !strcmp(before, g->attention),", "done || 1,", "attention_by"),
    ("cuDNN runs on another stream", "fe::detail::set_stream(cudnn.handle, STREAM) == CUDNN_STATUS_SUCCESS", "CUDNN_STATUS_SUCCESS == 0", "cudnn"),
    ("cuDNN's log-sums go elsewhere", "{CUDNN_LSE, lse}});", "{CUDNN_LSE, cudnn.workspace}});", "cudnn"),
    ("the call's refusal of a product ends the program", "if (status == CUBLAS_STATUS_NOT_SUPPORTED) product_missing(p, status);", "if (0) product_missing(p, status);", "CUDA_ON_CPU_LT_REFUSES=call products"),
    ("code for another architecture is not noticed", "EXPECT(code == cudaSuccess,", "EXPECT(code == cudaSuccess || 1,", "errors"),
    ("a shard's gradient replaces those before it", "!p.sum && q == 0 ? y[k]", "q == 0 ? y[k]", "shards"),
    ("a shard's Inf is sent as a number", "top < 0x7f800000 ? 1 / wire_scale(top) : NAN", "1 / wire_scale(top)", "shards"),
    ("a host that does not wait", "    CUDA(cudaMemcpyAsync(to, from, bytes, kind, machine.stream));\n    device_wait();", "    CUDA(cudaMemcpyAsync(to, from, bytes, kind, machine.stream));", "numbers"),
]


def pattern(text):
    """A text, whatever spaces and line ends the formatter puts into it."""
    return re.compile(r"\s*".join(re.escape(c) for c in "".join(text.split())))


def run(command, **more):
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)


def main():
    wanted = sys.argv[1:]
    with open(os.path.join(ROOT, "train_gpt_fp8.cu"), encoding="utf-8") as f:
        source = f.read()
    path = os.path.join(ROOT, "build", "cuda", "fault.cu")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    missed = 0
    for name, old, new, tests in FAULTS:
        if wanted and not any(w in name for w in wanted):
            continue
        if not pattern(old).search(source):
            print(f"STALE  {name}: its text is not in the file", flush=True)
            missed += 1
            continue
        with open(path, "w", encoding="utf-8") as f:
            f.write(pattern(old).sub(lambda _: new, source))
        environment = dict(os.environ, TRAINER=f'-DTRAINER="{path}" -Wno-unused', OPTIMISE="-O1", PROGRAM="fault")
        environment.update(word.split("=") for word in tests.split() if "=" in word)
        result = run(["dev/cuda/test.sh", "fp8"] + [word for word in tests.split() if "=" not in word], env=environment)
        lines = [l for l in result.stdout.splitlines() if l.startswith(("failed", "on_cpu:")) or "error:" in l]
        found = result.returncode != 0 and "error:" not in result.stdout
        missed += not found
        print(f"{'found' if found else 'MISSED':6} {name}: {(lines or ['nothing was said'])[0][:140]}", flush=True)
    print("all found" if missed == 0 else f"{missed} missed or stale")
    return missed != 0


if __name__ == "__main__":
    sys.exit(main())
