#!/usr/bin/env python3
"""Compares the statistics of dev/compare.c with SciPy's on fixed samples: build/compare first (make build/compare)."""

import subprocess
import sys
import tempfile

import numpy as np
from scipy import stats


def main():
    failed = 0
    for case in range(12):
        rng = np.random.default_rng(case)
        n = [2, 3, 5, 7, 16, 64][case % 6]
        a = 1.5 + rng.normal(size=n) * [1e-3, 1][case // 6]
        b = a - rng.normal(size=n) * 5e-4 + [0, 4e-4, -0.02][case % 3]
        with tempfile.NamedTemporaryFile("w", suffix=".tsv") as f:
            np.savetxt(f, np.stack([a, b], 1), fmt="%.17g", delimiter="\t")
            f.flush()
            found = [float(x) for x in subprocess.check_output(["build/compare", "--statistics", f.name], text=True).split()]
        d = a - b
        error = stats.sem(d)
        low, high = stats.t.interval(0.95, n - 1, d.mean(), error)
        want = [n, d.mean(), error, low, high, stats.ttest_rel(a, b).pvalue]
        good = np.allclose(found, want, rtol=1e-7, atol=1e-13)
        failed += not good
        print("ok  " if good else "FAIL", f"{n} pairs: mean, standard error, interval, p", "" if good else f"{found} {want}")
    print(f"{12 - failed} passed, {failed} failed")
    return failed != 0


sys.exit(main())
