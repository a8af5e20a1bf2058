"""Times matrix products of what a user would pick instead: reads the rows of products.c from stdin, prints such rows.

    build/products 9 fma | python3 dev/bench/peers.py LIBRARY REPEATS

LIBRARY: sgemm, NumPy's fp32 product (its OpenBLAS), or bf16, PyTorch's (its oneDNN), bf16 in and out. Which kernels they
take is set from outside: OPENBLAS_CORETYPE, ONEDNN_MAX_CPU_ISA. Operands are plain, not packed beforehand.
"""
import os
import sys
import time


def main():
    library, repeats, threads = sys.argv[1], int(sys.argv[2]), int(os.environ.get("OMP_NUM_THREADS", "2"))
    os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
    if library == "bf16":
        import torch
        torch.set_num_threads(threads)
        make = lambda *shape: (torch.rand(*shape) * 4 - 2).to(torch.bfloat16)
        multiply = lambda a, b, out: torch.mm(a, b, out=out)
    else:
        import numpy
        make = lambda *shape: numpy.random.default_rng(1).random(shape, dtype=numpy.float32) * 4 - 2
        multiply = lambda a, b, out: numpy.matmul(a, b, out=out)
    for line in sys.stdin:
        field = line.rstrip("\n").split("\t")
        if not field[3:] or not field[3].isdigit():
            continue
        kind, (m, n, k) = field[2], map(int, field[3:6])
        # fprop: both operands along K; dgrad: b across; wgrad: both across
        a = make(k, m).T if kind == "wgrad" else make(m, k)
        b = make(n, k).T if kind == "fprop" else make(k, n)
        out = make(m, n)
        times = []
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            multiply(a, b, out)
            times.append(time.perf_counter() - begin)
        gflops = 2e-9 * m * n * k / sorted(times[1:])[repeats // 2]
        print("\t".join([library] + field[1:6] + [f"{gflops:.0f}", "-", "-"]), flush=True)


main()
