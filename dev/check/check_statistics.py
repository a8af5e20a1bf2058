#!/usr/bin/env python3
"""Compares the statistics and verdicts of dev/compare.c with SciPy's on fixed samples: build/compare first (make build/compare)."""

import subprocess
import sys
import tempfile

import numpy as np
from scipy import stats


def seeds_more(gaps, bound=0.002):
    """Seeds to be added until the interval of this mean and spread excludes 0 or lies inside the bound."""
    for n in range(len(gaps) + 1, 1000):
        half = stats.t.ppf(0.975, n - 1) * np.std(gaps, ddof=1) / np.sqrt(n)
        if abs(np.mean(gaps)) > half or abs(np.mean(gaps)) + half <= bound:
            return n - len(gaps)


def verdict_check(verdict, status, gaps):
    """Pools rows with these gaps between fp8 and fp16 (None: a run that died); their interval, noise band, verdict and exit status."""
    n, base = len(gaps), 2 + 0.01 * np.random.default_rng(7).normal(size=len(gaps))
    with tempfile.TemporaryDirectory() as out:
        with open(f"{out}/rows.tsv", "w") as f:
            print("# common\tx", "# data\ta b 1", "arm\tseed\tval_loss\tval_loss_bf16\tval_loss_half\ttok_s\tpeak_mib\tstate", sep="\n", file=f)
            for i, gap in enumerate(gaps):
                print("fp16", i + 1, f"{base[i]:.17g}", "nan", "nan", 1, 1, "whole", sep="\t", file=f)
                print("fp8", i + 1, "nan" if gap is None else f"{base[i] + gap:.17g}", "nan", "nan", 1, 1,
                      "diverged at step 3" if gap is None else "whole", sep="\t", file=f)
        run = subprocess.run(["build/compare", "--arms", "fp16,fp8", "--pool", f"{out}/rows.tsv", "--out", f"{out}/pooled"], stdout=subprocess.DEVNULL)
        lines = open(f"{out}/pooled/summary.tsv").read().splitlines()
    found = dict(zip(lines[-3].split("\t"), lines[-1].split("\t")))
    noise = float(next(line for line in lines if line.startswith("# noise")).split("\t")[1])
    good = found["verdict"] == verdict and run.returncode == status
    if n > 1 and None not in gaps:
        low, high = stats.t.interval(0.95, n - 1, np.mean(gaps), stats.sem(gaps)) if np.ptp(gaps) else (np.mean(gaps),) * 2
        band = stats.t.ppf(0.975, n - 1) * base.std(ddof=1) * np.sqrt(2 / n)
        good = good and np.allclose([float(found["gap_low"]), float(found["gap_high"]), noise], [low, high, band], atol=1e-6)
    print("ok  " if good else "FAIL", f"verdict '{verdict}'", "" if good else f"status {run.returncode}, {found}, noise {noise}")
    return good


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
    wide = [0.010, -0.020, 0.003]
    cases = [("match", 0, [3e-4, 5e-4, 1e-4, 4e-4]), ("worse by 0.0110", 1, [0.010, 0.012, 0.011]), ("better by 0.0110", 0, [-0.010, -0.012, -0.011]),
             (f"undecided: needs {seeds_more(wide)} more seeds", 3, wide), ("match", 0, [0.0, 0.0]), ("undecided: one seed has no error bar", 3, [1e-4]),
             ("diverged at step 3 (seed 2)", 1, [1e-4, None, 2e-4])]
    for verdict, status, gaps in cases:
        failed += not verdict_check(verdict, status, gaps)
    print(f"{12 + len(cases) - failed} passed, {failed} failed")
    return failed != 0


sys.exit(main())
