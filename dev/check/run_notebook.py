#!/usr/bin/env python3
"""Runs the notebook of curves: python3 dev/check/run_notebook.py NOTEBOOK PICTURES

The notebook is valid and was committed without outputs. It runs without an error and makes five
pictures, which are written to the directory PICTURES. Its gaps are those of the
comparison's summary.tsv. RUNS and COMPARE_DIR in the environment say what it draws.

Needs nbclient, ipykernel and what the notebook needs.
"""

import base64
import csv
import os
import sys

import nbformat
from nbclient import NotebookClient

PICTURES = 5


def fail(text):
    print(f"FAIL {text}")
    sys.exit(1)


def summary_gaps(directory):
    """{arm: gap and its interval} of summary.tsv."""
    with open(os.path.join(directory, "summary.tsv"), encoding="utf-8") as f:
        lines = [line for line in f if not line.startswith("# ")]
        return {row["arm"]: [float(row[c]) for c in ("gap", "gap_low", "gap_high")]
                for row in csv.DictReader(lines, delimiter="\t") if row["verdict"] != "reference"}


def main(path, out):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(cell.outputs or cell.execution_count for cell in code):
        fail(f"{path}: expected no outputs; clear them")
    wide = [line for cell in notebook.cells for line in cell.source.splitlines() if len(line) > 100]
    if wide:
        fail(f"{path}: wider than 100 columns: {wide}")
    show = "for gap in gaps.itertuples(): print(*gap, sep='\\t')"
    notebook.cells.append(nbformat.v4.new_code_cell(show))
    where = {"metadata": {"path": os.path.dirname(path)}}
    NotebookClient(notebook, timeout=120, resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    for number, picture in enumerate(pictures):
        with open(os.path.join(out, f"{number}.png"), "wb") as f:
            f.write(base64.b64decode(picture))
    if len(pictures) != PICTURES or min(map(len, pictures)) < 10_000:
        fail(f"expected {PICTURES} pictures, found sizes {list(map(len, pictures))}")
    printed = "".join(o.text for o in outputs if o.get("name") == "stdout")
    found = {arm: [float(number) for number in numbers]
             for arm, *numbers in (line.split("\t") for line in printed.splitlines())}
    want = summary_gaps(os.environ["COMPARE_DIR"])
    if found.keys() != want.keys() or any(
            not abs(a - b) < 1e-6 for arm in want for a, b in zip(found[arm], want[arm])):
        fail(f"expected the gaps {want}, found {found}")
    print(f"{len(pictures)} pictures; gaps as in summary.tsv, arms: {len(want)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
