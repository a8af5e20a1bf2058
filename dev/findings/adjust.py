#!/usr/bin/env python3
"""Paired gaps of the committed rows, with p-values as they are and after Holm's correction.

    python3 dev/findings/adjust.py                       # every NAME-runs.tsv beside this file
    python3 dev/findings/adjust.py FILE ..               # these
    python3 dev/findings/adjust.py --against fp8 FILE    # gaps to another arm than bf16
    python3 dev/findings/adjust.py --mean "fp8,fp8 --bf16 dgrad" FILE    # the mean of arms as one
    python3 dev/findings/adjust.py --pairs "fp8;bf16, fp16;bf16" FILE    # these differences alone

Each seed gives one difference in the last validation loss. Shown are their mean, the 95% interval
and the p-value of Student's t, and Holm's p-value over the arms of that file. At the end comes the
gap of the arm `fp8` in every file, with Holm's p-value over the files. A file whose runs of `fp8`
all stand in another one counts there only. Needs NumPy and SciPy.
"""

import argparse
import pathlib

import numpy as np
from scipy import stats


def rows_read(path):
    """The last validation loss by arm and seed."""
    losses = {}
    for line in path.read_text().splitlines():
        if line.startswith(("#", "arm\t")):
            continue
        arm, seed, loss = line.split("\t")[:3]
        losses.setdefault(arm, {})[int(seed)] = float(loss)
    return losses


def paired(arm, reference):
    """Seeds, mean difference, ends of its 95% interval, p-value, and spread of the differences."""
    seeds = sorted(set(arm) & set(reference))
    gaps = np.array([arm[seed] - reference[seed] for seed in seeds])
    mean, spread = gaps.mean(), gaps.std(ddof=1)
    error = spread / len(gaps) ** 0.5
    half = stats.t.ppf(0.975, len(gaps) - 1) * error
    p = 2 * stats.t.sf(abs(mean / error), len(gaps) - 1)
    return len(gaps), mean, mean - half, mean + half, p, spread


def holm(ps):
    """Holm's p-values: the smallest times n, the next times n - 1, .., never falling."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(np.argsort(ps, kind="stable")):
        largest = max(largest, (len(ps) - rank) * ps[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def table_print(title, names, results):
    """One line a result, with Holm's p-value over all of them."""
    print(f"== {title}")
    print("name\tseeds\tgap\tlow\thigh\tp\tholm\tspread")
    for name, result, adjusted in zip(names, results, holm([r[4] for r in results])):
        n, mean, low, high, p, spread = result
        line = f"{name}\t{n}\t{mean:+.4f}\t{low:+.4f}\t{high:+.4f}\t{p:.3g}"
        print(f"{line}\t{adjusted:.3g}\t{spread:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--against", default="bf16")
    parser.add_argument("--mean", help="arms, separated by commas, whose mean is one arm")
    parser.add_argument("--pairs", help="pairs ARM;ARM, separated by commas: first minus second")
    options = parser.parse_args()
    files = options.files or sorted(pathlib.Path(__file__).parent.glob("*-runs.tsv"))
    pairs = [pair.strip().split(";") for pair in (options.pairs or "").split(",") if pair]
    if any(len(pair) != 2 for pair in pairs):
        parser.error(f"--pairs: expected ARM;ARM, .., found '{options.pairs}'")
    sets = {}
    for path in files:
        losses = rows_read(path)
        if not options.files and options.against not in losses:
            print(f"== {path.name}: left out, it has no arm {options.against}")
            continue
        for arm in sum(pairs, []) or [options.against]:
            if arm not in losses:
                parser.error(f"{path}: expected an arm '{arm}', found: {', '.join(losses)}")
        if pairs:
            results = [paired(losses[a], losses[b]) for a, b in pairs]
            table_print(path.name, [f"{a} - {b}" for a, b in pairs], results)
            continue
        reference = losses[options.against]
        if options.mean:
            arms = [losses[arm] for arm in options.mean.split(",")]
            seeds = set.intersection(*map(set, arms))
            losses = {"mean": {s: np.mean([arm[s] for arm in arms]) for s in seeds}}
        arms = [arm for arm in losses if arm != options.against]
        table_print(path.name, arms, [paired(losses[arm], reference) for arm in arms])
        if "fp8" in arms:
            sets[path.name] = (losses["fp8"], reference)

    def elsewhere(name):
        own = sets[name][0].items()
        return any(own <= fp8.items() and (own != fp8.items() or other < name)
                   for other, (fp8, _) in sets.items() if other != name)

    names = [name for name in sets if not elsewhere(name)]
    if len(names) > 1:
        results = [paired(*sets[name]) for name in names]
        table_print(f"fp8 - {options.against} in every file", names, results)


if __name__ == "__main__":
    main()
