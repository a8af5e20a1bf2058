#!/usr/bin/env python3
"""Tests a run's logs as other programs read them: python3 dev/check/test_logs.py

pandas reads log.tsv and scales.tsv of a fresh run and of a prolonged one without any conversion:
the columns of dev/FORMATS.md, numbers everywhere, the file's values. dev/export_logs.py: what
TensorBoard's and W&B's own files and the CSV hold is compared with the tables, value by value; also
of a log that is still being written, and of one that has "-" for what was not measured. What it
refuses. The export for W&B opens no connection to a network (if strace is installed).

Needs ./train_gpt_fp8 and the packages pandas, tensorboard and wandb.
"""

import csv
import glob
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np
import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from wandb.proto import wandb_internal_pb2

RUN = "-e d1 -t 64 -b 2 -d 128 -x 60 -v 20 -m 2 -s 0 --scales-every 5 --sqnr-every 20".split()
EXPORT = [sys.executable, "dev/export_logs.py"]
failed = passed = 0


def check(good, name, found=""):
    global failed, passed
    passed, failed = passed + bool(good), failed + (not good)
    print(("ok   " if good else "FAIL ") + name, "" if good else found, flush=True)


def train(*words):
    subprocess.run(["./train_gpt_fp8", *RUN, *words], check=True, stdout=subprocess.DEVNULL)


def documented_columns(name):
    """The columns of log.tsv or scales.tsv as dev/FORMATS.md lists them."""
    with open("dev/FORMATS.md", encoding="utf-8") as f:
        section = f.read().split(f"\n### {name}\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.M)
    return re.findall(r"`(\w+)`", " ".join(rows))


def table(path):
    """Header and rows, read without any of the readers that are tested."""
    with open(path, encoding="utf-8") as f:
        lines = [line[:-1].split("\t") for line in f if line.endswith("\n")]
    header = {line[0][2:]: line[1] for line in lines if line[0].startswith("#")}
    columns, *rows = [line for line in lines if not line[0].startswith("#")]
    return header, columns, rows


def test_pandas(path, steps, every):
    """Exactly this call must do."""
    df = pd.read_csv(path, sep='\t', comment='#')
    name, (_, columns, rows) = os.path.basename(path), table(path)
    check(list(df.columns) == documented_columns(name), f"{path}: columns", list(df.columns))
    texts = [c for c in df.columns if not pd.api.types.is_numeric_dtype(df[c])]
    check(texts == [c for c in ["operand"] if c in df.columns], f"{path}: numbers", texts)
    if failed:
        return
    check(sorted(set(df["step"])) == list(range(every, steps + 1, every)), f"{path}: steps")
    want = pd.DataFrame(rows, columns=columns)
    wrong = [c for c in df.columns if not (
        list(df[c]) == list(want[c]) if c == "operand" else
        len(df) == len(want) and np.allclose(df[c], want[c].astype(float), 1e-12, 0, True))]
    check(not wrong and len(df) > 0, f"{path}: values", wrong)
    if name == "log.tsv":
        measured = list(df[df["val_loss"].notna()]["step"])
        check(measured == list(range(20, steps + 1, 20)), f"{path}: measured", measured)


def scalars_of(run):
    """{(step, name): number} as the export must have them, by other code than the export's."""
    names = {"train_loss": "train/loss", "val_loss": "val/loss", "ms": "step_ms",
             "tok_s": "tokens_per_second"}
    found = {}
    for name in ("log.tsv", "scales.tsv"):
        _, columns, rows = table(os.path.join(run, name))
        for row in rows:
            prefix = f"fp8/{row[2]}/layer{row[1]}/" if name == "scales.tsv" else ""
            for column, value in list(zip(columns, row))[3 if prefix else 1:]:
                if value not in ("nan", "-"):
                    found[int(row[0]), prefix + names.get(column, column)] = float(value)
    return found


def read_tensorboard(out, name):
    events = EventAccumulator(os.path.join(out, name), {"scalars": 0}).Reload()
    found = {(e.step, tag): e.value for tag in events.Tags()["scalars"]
             for e in events.Scalars(tag)}
    times = [e.wall_time for e in events.Scalars("train/loss")]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    config = {k: v.string_value if v.HasField("string_value") else v.number_value
              for k, v in hparams.items()}
    return found, config, times


def wandb_records(path):
    """The records of a .wandb file. Its format is LevelDB's log: after a header of 7 bytes, blocks
    of 32 KiB that hold pieces of records, each after checksum, length and kind of the piece."""
    with open(path, "rb") as f:
        data = f.read()
    at, record, whole, last = 7, b"", 1, (1, 4)
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record = (b"" if kind in (whole, 2) else record) + data[at + 7:at + 7 + length]
        if kind in last:
            yield wandb_internal_pb2.Record.FromString(record)
        at += 7 + length


def read_wandb(out):
    """For each run its scalars, its configuration, and its project."""
    runs = {}
    for path in glob.glob(os.path.join(out, "wandb/offline-run-*/run-*.wandb")):
        found, config, run = {}, {}, None
        for record in wandb_records(path):
            if record.HasField("run"):
                run = record.run
            update = (run.config if record.HasField("run") else record.config).update
            config.update({u.key: json.loads(u.value_json) for u in update if u.key != "_wandb"})
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                if not key.startswith("_"):
                    found[record.history.step.num, key] = float(json.loads(item.value_json))
        runs[run.display_name] = found, config, run.project
    return runs


def read_csv(out):
    runs = {}
    with open(os.path.join(out, "scalars.csv"), encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            key = int(row["step"]), row["name"]
            runs.setdefault(row["run"], ({}, {}))[0][key] = float(row["value"])
    with open(os.path.join(out, "config.csv"), encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            runs[row["run"]][1][row["key"]] = row["value"]
    return runs


def same(found, want, narrow=False):
    if narrow:  # TensorBoard's simple values are fp32
        want = {k: float(np.float32(v)) for k, v in want.items()}
    return found.keys() == want.keys() and all(
        found[k] == v or (math.isnan(found[k]) and math.isnan(v)) for k, v in want.items())


def same_config(found, run):
    header = table(os.path.join(run, "log.tsv"))[0]
    return found.keys() == header.keys() and all(
        str(found[k]) == v or float(found[k]) == float(v) for k, v in header.items())


def test_exports(runs, work):
    strace = ["strace", "-f", "-e", "trace=connect", "-o", f"{work}/strace"]
    strace_works = shutil.which("strace") and not subprocess.run([*strace, "true"]).returncode
    home = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"HOME": work}
    for to in ("tensorboard", "wandb", "csv"):
        traced = strace if to == "wandb" and strace_works else []
        done = subprocess.run([*traced, *EXPORT, *runs, "--to", to, "--out", f"{work}/{to}"],
                              env=home, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        check(done.returncode == 0 and not done.stderr and done.stdout.count("\n") == 1,
              f"--to {to}: one line", done)
        if traced:
            with open(f"{work}/strace", encoding="utf-8") as f:
                calls = f.read()
            check("connect(" in calls and "AF_INET" not in calls, "--to wandb: no network", calls)
    from_wandb, from_csv = read_wandb(f"{work}/wandb"), read_csv(f"{work}/csv")
    check(len(from_wandb) == len(from_csv) == len(runs), "every run")
    for run in runs:
        name, want = os.path.basename(run), scalars_of(run)
        check({"train/loss", "val/loss", "lr", "fp8/qkv.x/layer0/amax", "fp8/fc.dy/layer0/sqnr_db"}
              <= {key[1] for key in want}, f"{name}: names")
        found, config, times = read_tensorboard(f"{work}/tensorboard", name)
        check(same(found, want, True), f"{name}: TensorBoard: {len(want)} values", found)
        check(same_config(config, run), f"{name}: TensorBoard: configuration", config)
        took = sum(v for (step, k), v in want.items() if k == "step_ms" and step > 1) / 1e3
        check(abs(times[-1] - os.path.getmtime(f"{run}/log.tsv")) < 1e-3
              and abs(times[-1] - times[0] - took) < 1e-3, f"{name}: TensorBoard: times", times)
        found, config, project = from_wandb[name]
        check(same(found, want), f"{name}: W&B: {len(want)} values", found)
        check(same_config(config, run) and project == "train_gpt_fp8",
              f"{name}: W&B: configuration", config)
        found, config = from_csv[name]
        check(same(found, want), f"{name}: CSV: {len(want)} values", found)
        check(same_config(config, run), f"{name}: CSV: configuration", config)


def edited(run, name, file, edit):
    """A copy of a run in which edit() has changed the text of a file."""
    copy = os.path.join(os.path.dirname(run), name)
    shutil.copytree(run, copy)
    with open(os.path.join(copy, file), "r+", encoding="utf-8") as f:
        text = f.read()
        f.seek(0)
        f.truncate()
        f.write(edit(text))
    return copy


def refused(says, words, env=None):
    done = subprocess.run([*EXPORT, *words], env={**os.environ, **(env or {})},
                          capture_output=True, text=True)
    check(done.returncode == 2 and re.search(says, done.stderr) and done.stderr.count("\n") == 1,
          f"refused: {says}", done)


def test_refusals(run, work):
    out = ["--to", "csv", "--out", f"{work}/none"]
    refused(f"{work}: expected the directory of a run, found no log.tsv", [work, *out])
    refused("expected each run once", [run, run + "/", *out])
    for to in ("tensorboard", "wandb", "csv"):
        refused("expected a new directory", [run, "--to", to, "--out", f"{work}/{to}"])
    for to in ("tensorboard", "wandb"):
        with open(os.path.join(work, to + ".py"), "w", encoding="utf-8") as f:
            f.write(f"raise ImportError('no {to} here')\n")
        refused(f"expected the Python package {to}, .* pip install {to}",
                [run, "--to", to, *out[2:]], {"PYTHONPATH": work})
    refused("expected a new directory", [run, *out[:3], work])
    refused("expected a new directory", [run, *out[:3], run + "/log.tsv"])
    refused("invalid choice: 'html'", [run, "--to", "html", *out[2:]])
    refused("arguments are required: --out", [run, *out[:2]])
    for name, file, old, new, says in [
            ("gap", "log.tsv", r"^7\t.*\n", "", r"log.tsv: line \d+: .* follows step 6, found '8"),
            ("word", "log.tsv", r"^7\t\d+", "7\tmany", "follows step 6, found '7\tmany"),
            ("cut", "log.tsv", r"^(7\t.*)\t.*", r"\1", "follows step 6, found '7"),
            ("back", "scales.tsv", r"^20\t", "10\t", "scales.tsv: line .* follows step 15"),
            ("dash", "scales.tsv", r"\A((?:.*\n)+?30\t.*\t)0\t", r"\1-\t", "scales.tsv: line")]:
        damaged = edited(run, name, file, lambda text: re.sub(old, new, text, flags=re.M))
        refused(says, [damaged, *out])
    left = [f for f in os.listdir(work) if f.startswith("none")]
    check(not left, "nothing is left of what was refused", left)
    plain = subprocess.run([sys.executable, "-S", "-I", *EXPORT[1:], run, *out],
                           capture_output=True)
    check(plain.returncode == 0, "--to csv needs no package", plain)


def main():
    with tempfile.TemporaryDirectory() as work:
        fresh, longer = f"{work}/fresh", f"{work}/longer"
        train("-n", "0", "-o", fresh)
        train("-x", "40", "-n", "40", "-o", longer)
        train("-y", "-n", "40", "-o", longer)
        with open(f"{longer}/log.tsv", encoding="utf-8") as f:
            check(re.search(r"^40\t.*\n# steps\t60\n", f.read(), re.M), "# lines behind rows")
        for run in (fresh, longer):
            test_pandas(f"{run}/log.tsv", 60, 1)
            test_pandas(f"{run}/scales.tsv", 60, 5)
        torn = edited(fresh, "torn", "log.tsv", lambda text: text[:-20])
        torn = edited(torn, "torn-both", "scales.tsv", lambda text: text[:-5])
        old = edited(fresh, "old-log", "log.tsv", lambda text: text.replace("\tnan\t", "\t-\t"))
        old = edited(old, "old", "scales.tsv", lambda text: text.replace("\tnan\n", "\t-\n"))
        with open(f"{old}/log.tsv", encoding="utf-8") as f:
            check("\t-\t" in f.read(), "an old log")
        check(scalars_of(old) == scalars_of(fresh), "an old log has the values of a new one")
        check(len(table(f"{torn}/log.tsv")[2]) == 59, "a torn log has a row less")
        test_exports([fresh, longer, torn, old], work)
        test_refusals(fresh, work)
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
