#!/usr/bin/env python3
"""Predicts the step of many GPUs that train as train_gpt_fp8.cu has it (section 9), or processes.

    dev/bench/scale.py [OPTIONS]       # 1 to 4,096 GPUs, and from where on the design does not pay
    dev/bench/scale.py --measure FILE  # links and short runs of 1 to 4 processes here, by mpirun
    dev/bench/scale.py --check FILE    # predictions beside them
    dev/bench/scale.py --selftest

An exchange takes alpha a message and bytes / bandwidth. A step of N processes, a shard each:

compute  6 FLOPs a weight and token, and attention's, at a rate that small batches do not lower.
reduce   As train_gpt_fp8.cu has it: each process gets its N-th of every matrix from all others,
         and adds it; the other tensors follow in five such spans; with FP8 a maximum goes before
         each. Then all sums go to the owners, in fp32: each gets its slice. Adding takes memory's
         time, but none of the products' beside it.
         --no-overlap: as train_gpt_fp8.c has it, each process sends each other one its slice, after
         the backward pass. A linear layer's matrix has one owner; so the largest slice stays a
         matrix or more however large N is, its owner gets ever more bytes, and others own nothing
         (idle). --even: every tensor in N equal parts, which their owners add.
hidden   A matrix's gradients leave when the last micro-batch's backward pass has left its layer,
         those of wte, wpe and vectors after it.
update   The owner of the largest slice updates it (--no-overlap: and adds N gradients); bound by
         memory.
gather   Broadcasts of each matrix as products read it and of its scale, of all other masters, of
         sums for the norm and statistics from each process. The first takes a tree's depth of
         alphas, each other one more. --hide-gather: bytes move under the first forward pass.
efficiency  Of one GPU that has the same tokens (weak) or its share of all (strong). AdamW, which
         the processes divide, can lift it above 100%.
GiB      Weights, gradients, moments and buffers of that owner, without activations.

This is a model. Only processes of train_gpt_fp8.c on one machine were measured, no GPUs.
"""
import argparse
import bisect
import collections
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile

from roofline import PADDED, table

# Layers, channels, TFLOP/s of a GPU: roofline.py's estimate for an H100 (539k and 60k tokens/s in
# FP8; no measurement), for 7B that of 1.6B.
MODELS = {"124M": (12, 768, 431), "1.6B": (48, 1600, 585), "7B": (32, 4096, 585)}
WIDTH = {"fp32": 4, "bf16": 2, "fp8": 1}  # bytes of a gradient that is sent
COPY = {"fp32": 0, "fp16": 2, "bf16": 2, "fp8": 1}  # bytes of a weight that products read
# Of train_gpt_fp8.c. The CUDA file's pieces are 2^24 / N.
PIECE, MOMENT_BLOCK, CHUNK, SHARD_SCALE = 1 << 17, 128, 8192, 72
Links = collections.namedtuple("Links", "node near_alpha near far_alpha far flight")  # s, bytes/s
Model = collections.namedtuple("Model", "L C T V copy")
# What --measure runs, with 4 shards: 1024 and 64 tokens a shard, so that links matter.
RUNS = [("-e d6 -t 256 -b 4 -d 4096", "d6/256", 4096), ("-e d6 -t 64 -b 1 -d 256", "d6/64", 256)]


def tensors(m):
    """(offset, end, elements of a layer's, whether it is a linear layer's) of each parameter."""
    L, C, at = m.L, m.C, 0
    for layers, size, linear in ((1, m.V * C, 0), (1, m.T * C, 0), (L, C, 0), (L, C, 0),
                                 (L, 3 * C * C, 1), (L, 3 * C, 0), (L, C * C, 1), (L, C, 0),
                                 (L, C, 0), (L, C, 0), (L, 4 * C * C, 1), (L, 4 * C, 0),
                                 (L, 4 * C * C, 1), (L, C, 0), (1, C, 0), (1, C, 0)):
        yield at, at + layers * size, size, linear
        at += layers * size


def parameters(m):
    return max(end for _, end, _, _ in tensors(m))


def slice_begins(m, N, even=False):
    """Where the slices begin, and the end: slice_begin() of train_gpt_fp8.c."""
    count, begins = parameters(m), []
    for q in range(N):
        at = count * q // N
        offset, end, size, linear = next(x for x in tensors(m) if at < x[1])
        unit = size if linear and not even else MOMENT_BLOCK
        begin = offset + -(-(at - offset) // unit) * unit
        while begin < end and (begin - offset) % MOMENT_BLOCK: begin += unit
        begins.append(min(begin, end))
    return begins + [count]


def largest(m, N, even=False):
    """Elements of the largest slice, of linear layers in it, and how many processes own nothing."""
    begins = slice_begins(m, N, even)
    sizes = [to - at for at, to in zip(begins, begins[1:])]
    q = sizes.index(max(sizes))
    linear = sum(max(0, min(begins[q + 1], end) - max(begins[q], offset))
                 for offset, end, _, is_linear in tensors(m) if is_linear)
    return sizes[q], linear, sizes.count(0)


def exchange(links, N, each, width, piece=PIECE):
    """Seconds in which a process gets `each` elements from each other: transfer, latency."""
    near = min(N, links.node) - 1
    far = N - 1 - near
    alpha = (near * links.near_alpha + far * links.far_alpha) / links.flight
    transfer = max(near * each * width / links.near, far * each * width / links.far)
    return transfer, math.ceil(each / piece) * alpha


def broadcasts(links, N, count, volume):
    """Seconds of pipelined broadcasts: transfer, latency. Into a node they use all its links."""
    nodes = math.ceil(N / links.node)
    alpha = links.near_alpha if nodes == 1 else links.far_alpha
    depth = (math.ceil(math.log2(min(N, links.node))) * links.near_alpha +
             math.ceil(math.log2(nodes)) * links.far_alpha)
    bandwidth = links.near if nodes == 1 else min(links.near, links.node * links.far)
    return volume / bandwidth, depth + (count - 1) * alpha


def gather(m, links, N, grad, rounds=1, even=False, overlap=False):
    """Seconds of all that is broadcast in a step, and of flags: transfer, latency."""
    begins, count, volume = slice_begins(m, N, even), 2 * N, 4 * parameters(m) / CHUNK
    for offset, end, size, linear in tensors(m):
        if linear and m.copy:
            count += 2 * (end - offset) // size
            volume += m.copy * (end - offset)
        else:
            count += bisect.bisect_left(begins, end, 0, N) - bisect.bisect(begins, offset, 0, N) + 1
            volume += 4 * (end - offset)
    volume += N * rounds * ((3 * (4 * m.L + 1) if m.copy == 1 else 0) + 1) * SHARD_SCALE
    if grad == "fp8" and not overlap:
        count, volume = count + rounds * N, volume + rounds * N * 64 * m.L
    transfer, latency = broadcasts(links, N, count, volume)
    return transfer, latency + 2 * (rounds + 1) * broadcasts(links, N, 1, 0)[1]


def spans(m):
    """(elements, layer or -1) of what is exchanged at once, in order."""
    for l in reversed(range(m.L)):
        yield from ((size, l) for _, _, size, linear in tensors(m) if linear)
    for linear, group in itertools.groupby(tensors(m), lambda t: t[3]):
        group = list(group)
        if not linear: yield group[-1][1] - group[0][0], -1


def overlapped(m, links, N, width, backward, memory, even=False):
    """Seconds of the exchange of gradients (transfer, latency) and of what of it comes after the
    last backward pass. Every process takes part in every span, one after the other."""
    head = m.V / (m.V + 12 * m.L * m.C)  # its share of the backward pass, which comes first
    transfer, latency, free, piece = 0.0, 0.0, 0.0, (1 << 24) // N
    for n, l in spans(m):
        encode = {4: 0, 2: 4 + 2, 1: 4 + 4 + 1}[width]  # FP8 reads it twice, for the amax
        adds = n * (width + 4 / N + encode) / memory
        moves, waits = exchange(links, N, n / N, width, piece)
        moves += adds
        if width == 1: waits += 2 * broadcasts(links, N, 1, 0)[1]
        ready = backward * (head + (1 - head) * (m.L - l) / m.L) if l >= 0 else backward
        free = max(free, ready) + moves + waits
        transfer, latency = transfer + moves, latency + waits
    if not even:  # an owner gets each matrix in N - 1 messages
        size, matrices, _ = largest(m, N)
        moves, waits = exchange(links, N, size / N, 4, 1 << 40)
        waits *= math.ceil(matrices / (3 * m.C * m.C)) + 1  # mean matrix; all else as one
        transfer, latency, free = transfer + moves, latency + waits, free + moves + waits
    return transfer, latency, free - backward


def step(m, links, N, tokens, rate, grad, o):
    """(milliseconds by the columns of the table, seconds of a step, what it waits for)"""
    count, memory, last = parameters(m), 1e12 * o.memory, min(o.micro, tokens)
    compute = tokens * 6 * (m.L * (12 * m.C * m.C + m.C * m.T) + m.V * m.C) / rate
    transfer = latency = hidden = moved = late = under = 0.0
    update = 28 * count / memory
    if N > 1:
        width, size = WIDTH[grad], largest(m, N, o.even)[0]
        if o.overlap:
            backward = 2 / 3 * compute * last / tokens
            transfer, latency, after = overlapped(m, links, N, width, backward, memory, o.even)
            hidden, update = transfer + latency - after, 28 * size / memory
        else:
            transfer, latency = exchange(links, N, size, width)
            update = (size * (N * (width + 8) + 28) + (width < 4) * count * (4 + width)) / memory
        moved, late = gather(m, links, N, grad, even=o.even, overlap=o.overlap)
        under = o.hide_gather * min(moved, compute / 3 * last / tokens)
    scatter = transfer + latency
    total = compute + scatter - hidden + update + moved + late - under
    shown = 1 - hidden / scatter if scatter else 0
    waits = {"bytes of gradients": transfer * shown, "messages of gradients": latency * shown,
             "number of broadcasts": late, "bytes of broadcasts": moved - under,
             "update of the largest slice": update}
    columns = [compute, scatter, hidden, update, moved + late, total]
    return [f"{1e3 * x:.1f}" for x in columns], total, waits


def memory_bytes(m, N, grad, even=False, overlap=True):
    (size, linear, _), count, matrices = largest(m, N, even), parameters(m), 12 * m.L * m.C * m.C
    masters, copies = (count - matrices + linear, m.copy * matrices + 2 * m.V * m.C)
    if not m.copy: masters, copies = count, 0
    wire = (grad != "fp32") * WIDTH[grad] * count
    buffers = (N > 1) * (4 << 24 if overlap else 4 * size + N * 4 * PIECE) + wire
    return 4 * masters + copies + 4 * count + 8 * size + buffers


def predict(o):
    """Both tables, and the first N of each at which efficiency is below what is wanted."""
    links = Links(o.node, o.near_alpha * 1e-6, o.near * 1e9, o.far_alpha * 1e-6, o.far * 1e9,
                  o.flight)
    head = ["model", "grad", "GPUs", "tokens", "compute", "reduce", "hidden", "update", "gather",
            "step", "efficiency", "GiB", "idle"]
    print(f"Nodes of {o.node} GPUs: {o.near:g} GB/s and {o.near_alpha:g} us inside, {o.far:g} GB/s "
          f"a GPU and {o.far_alpha:g} us between them;\nmemory {o.memory:g} TB/s; micro-batches of "
          f"{o.micro} tokens; times in ms\n")
    ends = []
    for name, total, each in (("weak", 0, o.tokens), ("strong", o.total, 0)):
        print(f"{name} scaling, {each or total} tokens a step of {'each' if each else 'all'}\n")
        rows = []
        for model, grad in ((model, grad) for model in MODELS for grad in o.grad_comm.split(",")):
            L, C, rate = MODELS[model]
            m, one, below, N = Model(L, C, o.context, PADDED, 1), 0.0, None, 1
            while N <= o.gpus and (each or total // N) >= o.context:
                tokens = each or total // N
                ms, seconds, waits = step(m, links, N, tokens, 1e12 * (o.tflops or rate), grad, o)
                one = one or seconds / tokens
                efficiency = f"{one * tokens / seconds:.1%}"
                if one * tokens / seconds < o.pays and not below:
                    most = max(waits, key=waits.get)
                    below = [str(N), efficiency, f"{most} {waits[most] / seconds:.0%}"]
                if N in (1, 8, 64, 512, 4096):
                    size = f"{memory_bytes(m, N, grad, o.even, o.overlap) / 2**30:.2f}"
                    rows.append([model, grad, str(N), str(tokens), *ms, efficiency, size,
                                 str(largest(m, N, o.even)[2])])
                N *= 2
            ends.append([name, model, grad, *(below or ["none", "", ""])])
        table(head, rows, False)
    print(f"The first power of 2 of GPUs at which efficiency is below {o.pays:.0%}, and what takes "
          "most of the step there, beside compute\n")
    table(["scaling", "model", "grad", "GPUs", "efficiency", "of the step"], ends, False)


def measure(path, steps, turns):
    """Writes rows of links and runs: medians of steps. Runs take turns, and the fastest counts, so
    that what else the machine does falls on none."""
    bench = os.path.dirname(os.path.abspath(__file__))
    os.chdir(os.path.join(bench, "..", ".."))

    def shell(command):
        command = ("export OMPI_CC=gcc OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; "
                   "export OMP_NUM_THREADS=1; " + command)
        return subprocess.check_output(["bash", "-ec", command], text=True)

    with tempfile.TemporaryDirectory() as d, open(path, "w") as out:
        run = "timeout 200 mpirun --oversubscribe -np"
        shell(f"make -s data/tales.d/train.txt; mpicc -O2 {bench}/links.c -o {d}/links; mpicc "
              "-DUSE_MPI $(make -s flags) -march=native -fopenmp train_gpt_fp8.c "
              f"-o {d}/train -lm")
        print(f"cores\t{os.cpu_count()}", file=out)
        for N in (2, 3, 4): out.write(shell(f"{run} {N} {d}/links"))
        for options, model, tokens in RUNS:
            for grad in WIDTH:
                best = {}
                for turn, N in ((turn, N) for turn in range(turns) for N in (1, 2, 3, 4)):
                    log = f"{d}/{model[3:]}.{grad}.{N}.{turn}"
                    shell(f"{run} {N} {d}/train {options} --shards 4 --grad-comm {grad} "
                          f"-x {steps} -v 0 -s 0 -n 0 -o {log}")
                    with open(f"{log}/log.tsv") as f:
                        rows = [x.split("\t") for x in f if x[0].isdigit()][2:]
                    middle = [statistics.median(float(r[i]) for r in rows) for i in (7, 10)]
                    best[N] = min(best.get(N, middle), middle)
                for N, (ms, wait) in best.items():
                    print("run", N, model, "fp8", tokens, f"{ms:.3f}", f"{wait:.3f}", 4, grad,
                          sep="\t", file=out, flush=True)


def links_of(rows):
    """Links of N processes of one machine: for trades, and for broadcasts."""
    us, links = {(int(r[1]), r[2], int(r[3])): float(r[4]) for r in rows if r[0] == "link"}, {}
    for N in sorted({key[0] for key in us}):
        pair = []
        for kind, others in (("trade", N - 1), ("broadcast", 1)):
            most = max(key[2] for key in us if key[:2] == (N, kind))
            alpha, large = us[N, kind, 8], us[N, kind, most]
            speed = others * most / (large - alpha) * 1e6
            pair.append(Links(N, alpha / others * 1e-6, speed, 0, 1, 1))
        print(f"{N} processes: " + "; ".join(
            f"{name} {1e6 * x.near_alpha:.1f} us, {x.near / 1e9:.2f} GB/s"
            for name, x in zip(("a message", "a broadcast"), pair)))
        links[N] = pair
    return links


def check(path):
    """FILE has rows `cores`, number; `link`, processes, kind, bytes, us; `run`, processes, model,
    precision, tokens a step, ms, ms waited, shards, gradients sent as. The run of one process gives
    the time of a shard. N processes on fewer cores share them, and a round waits for its last."""
    with open(path) as f: rows = [x.split() for x in f if x.strip() and x[0] != "#"]
    cores, links = next(int(r[1]) for r in rows if r[0] == "cores"), links_of(rows)
    print(f"{cores} cores; times in ms\n")
    one, lines, runs = {}, [], [r for r in rows if r[0] == "run"]
    for _, N, model, precision, tokens, ms, wait, shards, grad in runs:
        N, ms, shards, key = int(N), float(ms), int(shards), (model, precision, tokens, grad)
        depth, context = (int(x) for x in model[1:].split("/"))
        m = Model(depth, 64 * depth, context, 256, COPY[precision])
        if N == 1: one[key] = ms
        rounds, reduce, shared = math.ceil(shards / N), 0.0, 0.0
        compute = one[key] / shards * sum(max(1, min(N, shards - N * r) / cores)
                                          for r in range(rounds))
        if N > 1:
            trade, tree = links[N]
            reduce = 1e3 * rounds * sum(exchange(trade, N, largest(m, N)[0], WIDTH[grad]))
            shared = 1e3 * sum(gather(m, tree, N, grad, rounds))
        total, ideal = compute + reduce + shared, one[key] / min(N, cores)
        lines.append([model, tokens, grad, str(N), *(f"{x:.1f}" for x in (
            compute, reduce, shared, total, ms, float(wait))), f"{ms / total - 1:+.1%}",
            f"{ideal / total:.3f}", f"{ideal / ms:.3f}"])
    table(["model", "tokens", "grad", "N", "compute", "reduce", "gather", "step", "measured",
           "waited", "off by", "efficiency", "measured"], lines, False)


def selftest():
    near = lambda a, b: math.isclose(a, b, rel_tol=1e-12)
    gpt2 = Model(12, 768, 1024, PADDED, 1)
    assert parameters(gpt2) == 124475904
    # attproj's matrices begin at 60699648; the middle, 62237952, is in the third of them.
    assert slice_begins(gpt2, 2) == [0, 60699648 + 3 * 768 * 768, 124475904]
    assert largest(gpt2, 1) == (124475904, 12 * 12 * 768 * 768, 0)
    assert largest(gpt2, 4096)[2] > 0 and largest(gpt2, 4096, True)[0] <= 30389 + 2 * MOMENT_BLOCK
    for N in (2, 3, 64, 512):  # no matrix is cut
        begins = slice_begins(gpt2, N)
        assert begins == sorted(begins) and len(begins) == N + 1
        for offset, end, size, linear in tensors(gpt2):
            unit = size if linear else MOMENT_BLOCK
            assert all((b - offset) % unit == 0 for b in begins if offset <= b < end)
    links = Links(8, 2e-6, 400e9, 10e-6, 50e9, 1)
    assert all(map(near, exchange(links, 8, PIECE, 4), (7 * 2**19 / 400e9, 14e-6)))
    assert all(map(near, exchange(links, 16, PIECE + 1, 1), (8 * (PIECE + 1) / 50e9, 188e-6)))
    assert all(map(near, broadcasts(links, 16, 5, 8e9), (0.02, 56e-6)))  # 3 x 2 + 10, 4 x 10
    o = argparse.Namespace(even=False, overlap=False, hide_gather=False, memory=3, micro=8192)
    times = lambda N: [float(x) for x in step(gpt2, links, N, 8192, 4e14, "fp32", o)[0]]
    one, eight = times(1), times(8)
    # 8192 x 6 x (12 x (12 x 768^2 + 768 x 1024) + 50304 x 768) / 4e14 s; 28 x 124475904 / 3e12 s
    assert one == [16.3, 0, 0, 1.2, 0, 17.5] and eight[2] == 0 and eight[5] > one[5], one
    o.overlap = True
    assert 0 < times(8)[2] < times(8)[1] and times(1) == one
    each = list(spans(gpt2))
    assert len(each) == 4 * 12 + 5 and sum(n for n, _ in each) == parameters(gpt2)
    assert sum(n for n, l in each if l == 3) == 12 * 768**2 and each[-1][0] == 12 * 768 + 2 * 768
    links = Links(8, 0, 400e9, 0, 50e9, 1)
    moved, waits, after = overlapped(gpt2, links, 8, 4, 0, math.inf, True)  # all of it after
    assert near(moved, 7 / 8 * 4 * parameters(gpt2) / 400e9) and waits == 0 and near(moved, after)
    assert memory_bytes(gpt2, 1, "fp32") == 16 * 124475904 + 12 * 12 * 768**2 + 2 * 50304 * 768
    print("selftest: passed")


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--measure", metavar="FILE")
    add("--check", metavar="FILE")
    add("--selftest", action="store_true")
    add("--steps", type=int, default=10, help="of a measured run; the first two do not count")
    add("--turns", type=int, default=2, help="of measured runs; the fastest counts")
    # H100 and H200: 450 and 50 GB/s a GPU and direction. DeepEP's README has 43 to 47 GB/s between
    # nodes; 80% inside one are taken.
    add("--node", type=int, default=8, help="GPUs of a node")
    add("--near", type=float, default=360, help="GB/s a GPU and direction inside a node")
    add("--far", type=float, default=45, help="GB/s a GPU and direction between nodes")
    # NCCL: hwLat (Ring, Simple) in src/graph/tuning.cc; NCCL_MAX_DEV_WORK_P2P_PER_BATCH.
    add("--near-alpha", type=float, default=3.4, help="us a message inside a node")
    add("--far-alpha", type=float, default=14, help="us a message between nodes")
    add("--flight", type=int, default=8, help="messages of an exchange that share a latency")
    add("--memory", type=float, default=3.08, help="TB/s; roofline.py's copy")
    add("--tflops", type=float, help="of a GPU; without it each model's")
    add("--gpus", type=int, default=4096, help="at most")
    add("--tokens", type=int, default=32768, help="a step of each GPU, for weak scaling")
    add("--total", type=int, default=1 << 22, help="tokens a step of all, for strong scaling")
    add("--micro", type=int, default=8192, help="tokens of a micro-batch, at most")
    add("--context", type=int, default=1024)
    add("--grad-comm", default="fp32,bf16,fp8")
    add("--pays", type=float, default=0.8, help="the efficiency that is wanted")
    add("--even", action="store_true", help="every tensor has N owners")
    add("--no-overlap", dest="overlap", action="store_false")
    add("--hide-gather", action="store_true")
    o = p.parse_args()
    if o.selftest: selftest()
    elif o.measure: measure(os.path.abspath(o.measure), o.steps, o.turns)
    elif o.check: check(o.check)
    else: predict(o)


if __name__ == "__main__":
    sys.exit(main())
