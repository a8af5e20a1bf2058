#!/usr/bin/env python3
"""The laboratory's model of Hopper's accumulator against the package mmaemu, whose model was validated on an H100, bit for bit:

    make build/lab/accumulator && python3 dev/check/check_accumulator.py

Packages: pip install mmaemu torch. Exit status: 0 the same bits (or skipped, with a line), 1 they differ.
"""

import os
import subprocess
import sys
import tempfile

import numpy as np

try:
    import mmaemu
    import torch
except ModuleNotFoundError as missing:
    sys.exit(print(f"skip: check_accumulator: no Python package {missing.name}"))

ROWS, K = 512, 512


def main():
    rng = np.random.default_rng(1)
    scale = 2.0 ** rng.integers(-13, 6, (ROWS, 1))  # rows of many magnitudes, down to denormals and zeros
    a, b = rng.normal(size=(2, ROWS, K)).astype(np.float32) + (np.arange(ROWS) % 2)[:, None]  # every other around 1: sums grow
    a = torch.tensor(a * scale).to(torch.float8_e4m3fn)
    b = torch.tensor(b).to(torch.float8_e4m3fn)
    program = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../build/lab/accumulator")
    with tempfile.TemporaryDirectory() as work:
        paths = [os.path.join(work, name) for name in ("a", "b", "out")]
        for x, path in zip((a, b), paths): x.view(torch.uint8).numpy().tofile(path)
        subprocess.run([program, *paths], check=True)
        ours = np.fromfile(paths[2], np.float32).reshape(ROWS, 2)
    failed = 0
    exact = (a.double() * b.double()).sum(1).numpy()
    for column, (name, fast) in enumerate((("one accumulator", True), ("promoted every 128", False))):
        theirs = mmaemu.accumulate(a, b, use_fast_accum=fast, profile="hopper", splitk=1).diagonal().numpy()
        differ = np.count_nonzero(theirs.view(np.uint32) != ours[:, column].view(np.uint32))
        print(f"{'FAIL' if differ else 'ok  '} {name}: {differ} of {ROWS} sums of {K} differ from mmaemu's; "
              f"{np.count_nonzero(exact.astype(np.float32) != theirs)} differ from the exact sum")
        failed += differ
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
