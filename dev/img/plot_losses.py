#!/usr/bin/env python3
"""Draws the validation loss of several runs, and each run's gap to the first: dev/img/plot_losses.py OUT.png LOG_DIR LOG_DIR ...

Reads DIR/log.tsv only. The first directory is the baseline of the gap. Needs matplotlib.
"""
import pathlib
import sys

try:
    import matplotlib
except ImportError:
    sys.exit("dev/img/plot_losses.py needs matplotlib (pip install matplotlib)")

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read_run(directory):
    """Precision, steps and losses of training and validation of one run's log."""
    name, train, val = directory, [], []
    for line in (pathlib.Path(directory) / "log.tsv").read_text().splitlines():
        if line.startswith("# precision\t"):
            name = line.split("\t")[1]
        if not line[:1].isdigit():
            continue
        row = line.split("\t")
        train.append((int(row[0]), float(row[2])))
        if row[3] != "-":
            val.append((int(row[0]), float(row[3])))
    return name, train, val


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    runs = [read_run(d) for d in sys.argv[2:]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    colours = {"fp8": "#d62728", "fp16": "#1f77b4", "bf16": "#2ca02c", "fp32": "#7f7f7f"}
    widths = {"fp32": 5.0, "bf16": 3.4, "fp16": 2.2, "fp8": 1.1}  # so that equal curves can all be seen
    for name, train, val in sorted(runs, key=lambda r: -widths.get(r[0], 1)):
        left.plot(*zip(*val), color=colours.get(name), lw=widths.get(name, 1.5), label=name, marker="o", ms=2)
    base_name, _, base = runs[0]
    base = dict(base)
    for name, _, val in runs[1:]:
        gap = [(s, v - base[s]) for s, v in val if s in base]
        right.plot(*zip(*gap), color=colours.get(name), label=f"{name} - {base_name}", marker="o", ms=3)
    left.set(xlabel="step", ylabel="validation loss, nats a byte", title="one seed, one data order, four precisions")
    right.set(xlabel="step", ylabel="nats a byte", title=f"distance to {base_name}")
    right.axhline(0, color="black", lw=0.8)
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(sys.argv[1], dpi=110)


if __name__ == "__main__":
    main()
