"""Times matrix products of what a user would pick instead: reads the rows of products.c from stdin, prints such rows.

    build/products 9 fma | python3 dev/bench/peers.py LIBRARY REPEATS
    python3 dev/bench/peers.py LIBRARY kernel

LIBRARY: sgemm, NumPy's fp32 product (its OpenBLAS), or bf16, PyTorch's (its oneDNN), bf16 in and out. Which kernels they
take is set from outside: OPENBLAS_CORETYPE, ONEDNN_MAX_CPU_ISA; `kernel` prints which one that is. Operands are plain,
not packed beforehand.
"""
import ctypes
import os
import subprocess
import sys
import time


def kernel(library):
    """The name that the library itself gives to the kernel it runs; "unknown" if it gives none."""
    if library == "bf16":
        code = "import torch; a = torch.rand(512, 512).bfloat16(); torch.mm(a, a)"
        lines = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, ONEDNN_VERBOSE="1"), capture_output=True,
                               text=True, check=False).stdout.splitlines()
        names = [line.split(",matmul,")[1].split(",")[0] for line in lines if ",exec,cpu,matmul," in line]
        return names[0] if names else "unknown"
    import numpy
    numpy.dot(numpy.ones((64, 64), "f4"), numpy.ones((64, 64), "f4"))
    with open("/proc/self/maps", encoding="utf8") as maps:
        for path in sorted({line.split()[-1] for line in maps if "openblas" in line}):
            for name in "scipy_openblas_get_corename64_", "openblas_get_corename64_", "openblas_get_corename":
                function = getattr(ctypes.CDLL(path), name, None)
                if function:
                    function.restype = ctypes.c_char_p
                    return function().decode()
    return "none: this NumPy has no OpenBLAS"


def main():
    if sys.argv[2] == "kernel":
        print(kernel(sys.argv[1]))
        return
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
