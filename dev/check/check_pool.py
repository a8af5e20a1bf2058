#!/usr/bin/env python3
"""Checks that build/compare --pool makes every dev/findings/NAME-summary.tsv from NAME-runs.tsv.

    make build/compare && python3 dev/check/check_pool.py
    python3 dev/check/check_pool.py --write     # writes verdicts and what a summary lacks into it

Rows have no curves, so the columns that come from curves are left out: steps and seconds to the
reference. tok_s is left out, because the rows hold rounded ones. Older summaries say 0 where a
number is unknown; it counts as unknown. Standard library only.
"""

import glob
import os
import subprocess
import sys
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "..")
LEFT_OUT = ("steps_to_reference", "seconds_to_reference", "tok_s")
OLDER = ("evaluated_in_bf16", "excess")  # columns with 0 for unknown in older summaries


def summary_read(path):
    """({header: value}, [{column: cell} for each row])"""
    with open(path, encoding="utf-8") as f:
        lines = f.read().splitlines()
    header = dict(line[2:].split("\t", 1) for line in lines if line.startswith("# "))
    rows = [line.split("\t") for line in lines if not line.startswith("# ")]
    return header, [dict(zip(rows[0], row)) for row in rows[1:]]


def pool(path, pooled):
    """The summary that build/compare makes of a summary's rows, or its error."""
    header, rows = summary_read(path)
    arms = ",".join(row["arm"] for row in rows)
    command = ["build/compare", "--arms", arms, "--reference", header["reference"], "--bound",
               header["bound"], "--pool", path.replace("-summary", "-runs"), "--out", pooled]
    command += ["--null"] if "null" in header else []
    for name in ("primary", "placebo"):
        command += [f"--{name}", header[name]] if name in header else []
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):
        return None, run.stderr.strip()
    return summary_read(pooled + "/summary.tsv"), ""


def differences(path, pooled):
    header, rows = summary_read(path)
    made, error = pool(path, pooled)
    if error:
        return [error]
    found_header, found = made
    wrong = [f"# {k}: {v}, found {found_header.get(k)}" for k, v in header.items()
             if found_header.get(k) != v]
    if len(found) != len(rows):
        wrong.append(f"{len(rows)} rows, found {len(found)}")
    for want, got in zip(rows, found):
        for column, cell in want.items():
            unknown = column in OLDER and cell == "0.000000" and got[column] == "nan"
            if column not in LEFT_OUT and got.get(column) != cell and not unknown:
                wrong.append(f"{want['arm']}: {column} is {cell}, found {got.get(column)}")
    return wrong


def write(path, pooled):
    """Takes verdicts, header lines and the columns that a summary lacks from a new one."""
    header, rows = summary_read(path)
    made, error = pool(path, pooled)
    if error:
        sys.exit(f"{path}: {error}")
    found_header, found = made
    for row, new in zip(rows, found):
        row["verdict"] = new["verdict"]
        row.update({column: cell for column, cell in new.items() if column == "p_holm"})
    lines = [f"# {k}\t{v}" for k, v in {**found_header, **header}.items() if k in found_header]
    lines += ["\t".join(rows[0])] + ["\t".join(row.values()) for row in rows]
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


def main():
    os.chdir(ROOT)
    paths, failed = sorted(glob.glob("dev/findings/*-summary.tsv")), 0
    for path in paths:
        with tempfile.TemporaryDirectory() as pooled:
            if sys.argv[1:] == ["--write"]:
                write(path, pooled)
            wrong = differences(path, pooled)
        failed += bool(wrong)
        print("FAIL" if wrong else "ok  ", path, "; ".join(wrong[:3]))
    print(f"{len(paths) - failed} passed, {failed} failed")
    return int(failed != 0 or not paths)


if __name__ == "__main__":
    sys.exit(main())
