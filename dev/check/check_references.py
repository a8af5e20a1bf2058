#!/usr/bin/env python3
"""Checks the trainer against references that are not ours: python3 dev/check/check_references.py [--shared DIR] [CHECK ...]

    torch_check          PyTorch: loss, logits, every gradient and ten AdamW steps, all four builds
    nano_check           a published trained model with every intermediate of one forward pass
    check_fp8_ml_dtypes  ml_dtypes and gfloat: every FP8 code, and millions of conversions to FP8
    check_below8         ml_dtypes, gfloat, other libraries' rules: E2M1, stochastic rounding, MXFP4, NVFP4
    tokenizer_check      the C file's GPT-2 encoding: published edge cases and ids

Needs NumPy; a check whose package or data is missing says `skip: reason`. The trainer is compiled (CC, default cc) in a
temporary directory with the flags of the Makefile. Exit status: 0 all passed, 1 something failed. Each file also runs by
itself. Packages: pip install numpy ml_dtypes gfloat torch
"""

import argparse
import concurrent.futures
import importlib
import os
import shlex
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
CHECKS = ["torch_check", "nano_check", "check_fp8_ml_dtypes", "check_below8", "tokenizer_check"]
PRECISIONS = ["fp8", "fp16", "bf16", "fp32"]  # in the order of PRECISION_*
FLAGS = "-O3 -fno-math-errno -fno-trapping-math -ffp-contract=off -fopenmp -Wall -Wextra"
BUILDS = [("torch_check.c", p) for p in PRECISIONS] + [("nano_check.c", "fp32"), ("dump_fp8.c", "fp8"), ("dump_below8.c", "fp8"), ("tokenizer_dump.c", "fp8")]


class References:
    """What the checks share: counted results, compiled helpers, a temporary directory."""

    def __init__(self, temporary, shared, march):
        self.temporary, self.shared, self.march = temporary, shared, march
        self.passed = self.failed = 0
        self.binaries = {}

    def check(self, name, ok, detail=""):
        self.passed, self.failed = self.passed + bool(ok), self.failed + (not ok)
        print(("ok   " if ok else "FAIL ") + name + (f": {detail}" if detail else ""), flush=True)
        return ok

    def skip(self, reason):
        print(f"skip: {reason}", flush=True)

    def path(self, name):
        return os.path.join(self.temporary, name)

    def compile(self, source, precision):
        out = self.path(f"{os.path.splitext(source)[0]}_{precision}")
        command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS.split(), f"-march={self.march}",
                   f"-DPRECISION={PRECISIONS.index(precision)}", os.path.join(HERE, source), "-o", out, "-lm"]
        return out, subprocess.run(command, capture_output=True, text=True, timeout=300)

    def compile_all(self, sources):
        wanted = [b for b in BUILDS if b[0] in sources]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for build, (out, result) in zip(wanted, pool.map(lambda b: self.compile(*b), wanted)):
                self.binaries[build] = out
                if result.returncode != 0 or result.stderr:
                    self.check(f"compile {build[0]} {build[1]}", False, " | ".join(result.stderr.split("\n"))[:500])

    def run(self, source, precision, *args):
        """Runs a compiled helper; anything on stderr, or a status other than 0, is an error."""
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ}  # tiny models: waiting threads would only be in the way
        result = subprocess.run([self.binaries[source, precision], *map(str, args)], capture_output=True, text=True, timeout=120,
                                env=environment)
        if result.returncode != 0 or result.stderr:
            raise RuntimeError(f"{source} {precision}: status {result.returncode}: {result.stderr.strip()}")


def read_arrays(path):
    """The helpers' results: float32 arrays, each a line "name count" and its bytes."""
    import numpy as np
    arrays = {}
    with open(path, "rb") as f:
        while line := f.readline():
            name, count = line.split()
            arrays[name.decode()] = np.frombuffer(f.read(4 * int(count)), "<f4")
            assert len(arrays[name.decode()]) == int(count), f"{path}: {name} is cut off"
    return arrays


def main(names=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default=os.path.join(HERE, "..", "..", "..", "shared", "data"), help="where the published model lies")
    parser.add_argument("--march", default="native", help="compile for this machine (x86-64 is the portable path)")
    if not names:
        parser.add_argument("checks", nargs="*", metavar="CHECK", choices=[[], *CHECKS], help=", ".join(CHECKS))
    options = parser.parse_args()
    names = names or options.checks or CHECKS
    with tempfile.TemporaryDirectory() as temporary:
        ref = References(temporary, options.shared, options.march)
        for name in names:
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as e:
                ref.skip(f"{name}: no Python package {e.name}")
                continue
            try:
                ref.compile_all(module.SOURCES)
                module.run(ref)
            except Exception as e:  # a check that breaks has failed; the others still run
                ref.check(name, False, f"{type(e).__name__}: {e}")
    print(f"{ref.passed} passed, {ref.failed} failed")
    return ref.failed != 0


if __name__ == "__main__":
    sys.exit(main())
