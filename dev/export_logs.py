#!/usr/bin/env python3
"""Exports the logs of runs for TensorBoard, for Weights & Biases, or as CSV.

    python3 dev/export_logs.py RUN_DIR [RUN_DIR ..] --to tensorboard|wandb|csv --out DIR

DIR must be new. A run may still be under way: its whole rows are exported. Steps are the
run's steps, the configuration is the log's header. Scalars have names like train/loss, val/loss, lr
and fp8/qkv.x/layer0/amax. What was not measured is left out.

tensorboard: DIR/RUN/events.out.tfevents.*. Wall time adds up the milliseconds of the steps; the
             last step ends when log.tsv was last written. Needs the Python package tensorboard.
wandb:       DIR/wandb/offline-run-*, without network or login. Needs the Python package wandb.
csv:         DIR/scalars.csv (run, step, name, value; the log's own digits) and DIR/config.csv
             (run, key, value). Needs no package.
"""

import argparse
import csv
import os
import shlex
import shutil
import sys

NAMES = {"train_loss": "train/loss", "val_loss": "val/loss", "ms": "step_ms",
         "tok_s": "tokens_per_second"}  # the other columns keep their names
MAY_BE_MISSING = {"val_loss", "sqnr_db", "kurtosis"}  # where "nan", in older logs "-", means not measured
HASHES = {"commit", "data_hash", "val_hash"}  # stay texts, even if all digits are decimal


class InputError(Exception):
    """One line: the file or option, what was expected, what was found, what to do."""


def row_read(columns, fields):
    """A row as a dictionary of texts, without what was not measured. None: it is damaged."""
    row = {c: v for c, v in zip(columns, fields)
           if c not in MAY_BE_MISSING or v not in ("nan", "-")}
    try:
        int(row["step"])
        [float(v) for c, v in row.items() if c != "operand"]
    except (KeyError, ValueError):
        return None
    return row if len(fields) == len(columns) else None


def table_read(path, every_step):
    """The header of log.tsv or scales.tsv as a dictionary, and the rows. A last line that has no
    newline is still being written and does not count."""
    header, columns, rows, last = {}, [], [], 0
    with open(path, encoding="utf-8", errors="backslashreplace", newline="\n") as f:
        for number, line in enumerate(f, 1):
            fields = line[:-1].split("\t")
            if not line.endswith("\n"):
                break
            if line.startswith("# "):
                header[fields[0][2:]] = "\t".join(fields[1:])
            elif not columns:
                columns = fields
            else:
                row = row_read(columns, fields)
                step = int(row["step"]) if row else -1
                if step < last or (every_step and step != last + 1):
                    raise InputError(f"{path}: line {number}: expected the whole row that follows "
                                     f"step {last}, found '{line[:40].strip()}'; bring it back")
                rows.append(row)
                last = step
    return header, rows


def number_or_text(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def run_read(directory):
    """The configuration of a run, and its scalars: for each step a dictionary {name: text}."""
    log, scales = os.path.join(directory, "log.tsv"), os.path.join(directory, "scales.tsv")
    if not os.path.isfile(log):
        raise InputError(f"{directory}: expected the directory of a run, found no log.tsv in it; "
                         f"those of a comparison are DIR/*/")
    header, rows = table_read(log, True)
    if not header:
        raise InputError(f"{log}: expected the log of a run, found no header; name another run")
    steps = {int(row.pop("step")): {NAMES.get(c, c): v for c, v in row.items()} for row in rows}
    for row in table_read(scales, False)[1] if os.path.exists(scales) else []:
        prefix = f"fp8/{row.pop('operand')}/layer{row.pop('layer')}/"
        steps.setdefault(int(row.pop("step")), {}).update({prefix + c: v for c, v in row.items()})
    config = {k: v if k in HASHES else number_or_text(v) for k, v in header.items()}
    return config, dict(sorted(steps.items()))


def to_tensorboard(runs, out):
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    for name, directory in runs:
        config, steps = run_read(directory)
        seconds = [float(scalars.get("step_ms", 0)) / 1e3 for scalars in steps.values()]
        time = os.path.getmtime(os.path.join(directory, "log.tsv")) - sum(seconds)
        start = hparams_pb(config, trial_id=name, start_time_secs=time)
        writer = EventFileWriter(os.path.join(out, name))
        writer.add_event(event_pb2.Event(wall_time=time, summary=start))
        for (step, scalars), took in zip(steps.items(), seconds):
            time += took
            summary = summary_pb2.Summary()
            for tag, value in scalars.items():
                summary.value.add(tag=tag, simple_value=float(value))
            writer.add_event(event_pb2.Event(wall_time=time, step=step, summary=summary))
        writer.close()
    return "tensorboard --logdir {}"


def to_wandb(runs, out):
    # Nothing is asked, sent or printed, and nothing is recorded of the machine that exports.
    for setting in ("SILENT=true CONSOLE=off ERROR_REPORTING=false SYMLINK=false DISABLE_GIT=true "
                    "DISABLE_CODE=true _DISABLE_STATS=true _DISABLE_META=true "
                    "_SAVE_REQUIREMENTS=false").split():
        key, value = setting.split("=")
        os.environ["WANDB_" + key] = value
    os.environ.setdefault("WANDB_PROJECT", "train_gpt_fp8")
    import wandb
    for name, directory in runs:
        config, steps = run_read(directory)
        with wandb.init(mode="offline", dir=out, name=name, config=config) as run:
            for step, scalars in steps.items():
                run.log({k: float(v) for k, v in scalars.items()}, step=step)
    return "wandb sync {}/wandb/offline-run-*"


def to_csv(runs, out):
    with open(os.path.join(out, "scalars.csv"), "w", newline="", encoding="utf-8") as values, \
            open(os.path.join(out, "config.csv"), "w", newline="", encoding="utf-8") as options:
        values_csv, options_csv = csv.writer(values), csv.writer(options)
        values_csv.writerow(["run", "step", "name", "value"])
        options_csv.writerow(["run", "key", "value"])
        for name, directory in runs:
            config, steps = run_read(directory)
            options_csv.writerows((name, k, v) for k, v in config.items())
            for step, scalars in steps.items():
                values_csv.writerows((name, step, k, v) for k, v in scalars.items())
    return "{}/scalars.csv"


def run_names(directories):
    """(name, directory) of each run: the name is its path below what all paths have in common."""
    paths = [os.path.abspath(d) for d in directories]
    common = os.path.commonpath([os.path.dirname(p) for p in paths])
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise InputError(f"{directories[i]}: expected each run once, found it twice; "
                             f"leave one out")
    names = (os.path.relpath(p, common).encode("utf-8", "backslashreplace").decode() for p in paths)
    return list(zip(names, directories))


def main():
    formats = {"tensorboard": to_tensorboard, "wandb": to_wandb, "csv": to_csv}
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--to", choices=formats, required=True)
    parser.add_argument("--out", metavar="DIR", required=True)
    args = parser.parse_args()
    out = os.path.abspath(args.out)
    if os.path.lexists(out):
        raise InputError(f"--out {args.out}: expected a new directory, found one that is there; "
                         f"name another")
    temporary = f"{out}.{os.getpid()}.tmp"
    os.makedirs(temporary)
    try:
        look = formats[args.to](run_names(args.runs), temporary)
        os.rename(temporary, out)
    except ImportError as e:
        raise InputError(f"--to {args.to}: expected the Python package {args.to}, found: {e}; "
                         f"pip install {args.to}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"runs exported: {len(args.runs)}; {look.format(shlex.quote(args.out))}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
