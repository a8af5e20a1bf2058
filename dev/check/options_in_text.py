#!/usr/bin/env python3
"""Checks that every option in the documents exists: python3 dev/check/options_in_text.py [FILE ...]

Reads README.md and dev/**/*.md. An option is known if a trainer's `--help` names it, or if another
program of the project takes it. dev/LOG.md is left out, because it is a dated log, and so is every
section whose heading has the word `old`, which is where old options are explained. Short options
are checked in commands that run a trainer or build/compare.

Needs train_gpt_fp8, and train_gpt_fp8cu or build/cuda/test_cpu_fp8 (dev/cuda/test.sh makes it).
Prints what is not known. Exit status: 0 all are known, 1 one is not, 2 a program is missing.
"""

import glob
import os
import re
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "..")
C_TRAINERS = [["./train_gpt_fp8"]]
CUDA_TRAINERS = [["./train_gpt_fp8cu"], ["build/cuda/test_cpu_fp8", "--as-cuda"]]
LONG = r"(?<![\w-])--[a-z][a-z0-9-]*"
SHORT = r"(?<=\s)-[A-Za-z](?=\s|$)"
# Where the other programs' options stand in their sources.
PARSED = r'add_argument\("(--[a-z-]+)"'
OTHERS = [("data/*.py", PARSED), ("dev/*/*.py", PARSED), ("data/[gt]*.c", r"^ +data/\w+ (--[a-z]+)"),
          ("dev/compare.c", r"^    (--[a-z]+)"), ("test_*.c", r'"(--exhaustive)"'),
          ("dev/gpu_check.sh", r"^#   dev/gpu_check\.sh (--[a-z]+)"),
          ("dev/check/*.sh", r"^#   dev/check/\w+\.sh (--[a-z]+)"),
          ("dev/paper/*.[ch]", r'^    \{"([a-z0-9-]+)", (?:WHOLE|REAL|WORDS)')]  # without the --
FOREIGN = r"\b(apt-get|git|pip|hf|lm_eval|nvcc|nsys|ncu|torchrun|clang-format)\s[^|;&`]*"  # no options of ours


def help_of(commands):
    """The help of the first of the commands that is there."""
    for command in commands:
        if os.path.exists(command[0]):
            command = command + ["--help"]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(f"no {' or '.join(c[0] for c in commands)}: build it first", file=sys.stderr)
    sys.exit(2)


def known_options():
    text = help_of(C_TRAINERS) + help_of(CUDA_TRAINERS)
    known = set(re.findall(LONG, text)) | set(re.findall(r"-[a-z](?= --)", text)) | {"--help", "-h"}
    for pattern, option in OTHERS:
        for path in glob.glob(pattern):
            with open(path, encoding="utf-8") as f:
                known.update("--" + name.lstrip("-") for name in re.findall(option, f.read(), re.M))
    return known


def options_of(path):
    """(line, option) for every option in a document."""
    is_old = False
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            if line.startswith("#"):
                is_old = bool(re.search(r"\bold\b", line, re.I))
            if is_old:
                continue
            line = re.sub(FOREIGN, "", line)
            for option in re.findall(LONG, line):
                yield number, option
            for command in re.findall(r"(?:train_gpt_\w+|build/compare)(?!\.)([^|;&`]*)", line):
                for option in re.findall(SHORT, command):
                    yield number, option


def main():
    os.chdir(ROOT)
    known, found, unknown = known_options(), 0, 0
    paths = sys.argv[1:] or ["README.md"] + sorted(glob.glob("dev/**/*.md", recursive=True))
    for path in paths:
        if path == "dev/LOG.md":
            continue
        for number, option in options_of(path):
            found += 1
            if option not in known:
                unknown += 1
                print(f"FAIL {path}:{number}: no program has the option {option}")
    if found == 0:
        print("FAIL no document names an option")
    print(f"{found - unknown} passed, {unknown + (found == 0)} failed")
    return int(unknown != 0 or found == 0)


if __name__ == "__main__":
    sys.exit(main())
