#!/usr/bin/env python3
"""Compares the statistics and verdicts of dev/compare.c with SciPy's on fixed samples.

    make build/compare && python3 dev/check/check_statistics.py

Holm's p-values are compared with NumPy's arithmetic on SciPy's p-values.
"""

import subprocess
import sys
import tempfile

import numpy as np
from scipy import stats

COLUMNS = ["arm", "seed", "val_loss", "val_loss_bf16", "val_loss_half", "tok_s", "peak_mib",
           "state"]


def seeds_more(gaps, bound=0.002):
    """Seeds to be added until this mean's and spread's interval excludes 0 or fits the bound."""
    for n in range(len(gaps) + 1, 1000):
        half = stats.t.ppf(0.975, n - 1) * np.std(gaps, ddof=1) / np.sqrt(n)
        if abs(np.mean(gaps)) > half or abs(np.mean(gaps)) + half <= bound:
            return n - len(gaps)
    return None


def pool(losses, *options):
    """Pools rows with these losses of arms (None: a run that died): status, header, {arm: row}."""
    with tempfile.TemporaryDirectory() as out:
        with open(f"{out}/rows.tsv", "w", encoding="utf-8") as f:
            print("# common\tx", "# data\ta b 1", "\t".join(COLUMNS), sep="\n", file=f)
            for arm, row in losses.items():
                for seed, loss in enumerate(row, 1):
                    text = "nan" if loss is None else f"{loss:.17g}"
                    state = "diverged at step 3" if loss is None else "whole"
                    print(arm, seed, text, "nan", "nan", 1, 1, state, sep="\t", file=f)
        command = ["build/compare", "--arms", ",".join(losses), "--pool", f"{out}/rows.tsv"]
        run = subprocess.run(command + ["--out", f"{out}/pooled", *options], check=False,
                             stdout=subprocess.DEVNULL)
        with open(f"{out}/pooled/summary.tsv", encoding="utf-8") as f:
            lines = f.read().splitlines()
    header = dict(line[2:].split("\t", 1) for line in lines if line.startswith("# "))
    rows = [line.split("\t") for line in lines if not line.startswith("# ")]
    return run.returncode, header, {row[0]: dict(zip(rows[0], row)) for row in rows[1:]}


def verdict_check(verdict, status, gaps):
    """Rows with these gaps between fp8 and fp16: interval, noise band, verdict, exit status."""
    n, base = len(gaps), 2 + 0.01 * np.random.default_rng(7).normal(size=len(gaps))
    fp8 = [None if gap is None else base[i] + gap for i, gap in enumerate(gaps)]
    found_status, header, rows = pool({"fp16": base, "fp8": fp8})
    found, noise = rows["fp8"], float(header["noise"])
    good = found["verdict"] == verdict and found_status == status
    if n > 1 and None not in gaps:
        low = high = np.mean(gaps)
        if np.ptp(gaps):
            low, high = stats.t.interval(0.95, n - 1, np.mean(gaps), stats.sem(gaps))
        band = stats.t.ppf(0.975, n - 1) * base.std(ddof=1) * np.sqrt(2 / n)
        got = [float(found["gap_low"]), float(found["gap_high"]), noise]
        good = good and np.allclose(got, [low, high, band], atol=1e-6)
    print("ok  " if good else "FAIL", f"verdict '{verdict}'",
          "" if good else f"status {found_status}, {found}, noise {noise}")
    return good


def holm(ps):
    """Holm's p-values: the running maximum of (n - rank) p, at most 1."""
    order = np.argsort(ps, kind="stable")
    adjusted = np.empty(len(ps))
    factors = np.arange(len(ps), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(ps)[order]))
    return adjusted


def holm_check(case):
    """Of random arms, one of them primary in odd cases, with a null arm in the last two."""
    rng = np.random.default_rng(100 + case)
    count, seeds = [1, 2, 5, 11][case // 2], 5
    base = 2 + 0.01 * rng.normal(size=seeds)
    names = ["fp16"] + [f"fp8 --bf16 {i}" for i in range(count)] + ["fp32"]
    losses = {name: base + 0.004 * rng.normal(size=seeds) + 0.004 * rng.normal() for name in names}
    losses["fp16"] = base
    options = ["--primary", names[1]] if case % 2 else []
    options += ["--null"] if case > 5 else []
    _, header, rows = pool(losses, *options)
    family = names[1 + case % 2:len(names) - (case > 5)]
    want = holm([stats.ttest_rel(losses[name], base).pvalue for name in family])
    good = np.allclose([float(rows[name]["p_holm"]) for name in family], want, rtol=6e-3)
    others = [rows[name]["p_holm"] for name in names if name not in family]
    good = good and set(others) == {"nan"} and (header.get("null") == "fp32") == (case > 5)
    good = good and header.get("primary") == (names[1] if case % 2 else None)
    print("ok  " if good else "FAIL", f"Holm's p of {len(family)} arms", "" if good else rows)
    return good


def pairs_check(case):
    rng = np.random.default_rng(case)
    n = [2, 3, 5, 7, 16, 64][case % 6]
    a = 1.5 + rng.normal(size=n) * [1e-3, 1][case // 6]
    b = a - rng.normal(size=n) * 5e-4 + [0, 4e-4, -0.02][case % 3]
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as f:
        np.savetxt(f, np.stack([a, b], 1), fmt="%.17g", delimiter="\t")
        f.flush()
        out = subprocess.check_output(["build/compare", "--statistics", f.name], text=True)
    found = [float(x) for x in out.split()]
    d = a - b
    low, high = stats.t.interval(0.95, n - 1, d.mean(), stats.sem(d))
    want = [n, d.mean(), stats.sem(d), low, high, stats.ttest_rel(a, b).pvalue]
    good = np.allclose(found, want, rtol=1e-7, atol=1e-13)
    print("ok  " if good else "FAIL", f"{n} pairs: mean, standard error, interval, p",
          "" if good else f"{found} {want}")
    return good


def main():
    wide, wider = [0.010, -0.020, 0.003], [0.010, -0.020, 0.003, 0.004]
    cases = [
        ("match", 0, [3e-4, 5e-4, 1e-4, 4e-4]),
        ("worse by 0.0110", 0, [0.010, 0.012, 0.011]),
        ("better by 0.0110", 0, [-0.010, -0.012, -0.011]),
        ("undecided: 3 seeds are too few to plan by", 0, wide),
        (f"undecided: needs {seeds_more(wider)} more seeds", 0, wider),
        ("match", 0, [0.0, 0.0]),
        ("undecided: one seed has no error bar", 0, [1e-4]),
        ("diverged at step 3 (seed 2)", 1, [1e-4, None, 2e-4]),
    ]
    good = [pairs_check(case) for case in range(12)]
    good += [verdict_check(*case) for case in cases]
    good += [holm_check(case) for case in range(8)]
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed")
    return not all(good)


sys.exit(main())
