#!/usr/bin/env python3
"""Checks the budgets of the sources: python3 dev/check/budgets.py [--functions] [DIRECTORY]

Prints a table of what is found and what is allowed, then every function that is too long. Exit
status: 0 if no check fails. Two files are over their budget of bytes ("over"); dev/LOG.md says why.
They may not grow beyond what they are today (TODAY). --functions: prints the bytes of code of every
section and function instead.

Bytes of code are counted without comments, indentation, blank lines and line ends. So neither
comments nor narrow lines cost anything. A function is what begins with a line in column 0 and ends
with a closing brace in column 0; its head may have several lines.
"""

import os
import re
import sys

ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "..")
CODE_BYTES = {"train_gpt_fp8.c": 115_000, "train_gpt_fp8.cu": 155_000, "test_gpt.c": 95_000}
TODAY = {"train_gpt_fp8.c": 191_240, "train_gpt_fp8.cu": 253_575}
# test_program.c has no budget of bytes; its lines and functions have the same limits.
OPTIONAL = "test_program.c"
COLUMNS = 100
FUNCTION_LINES = 60
README_WORDS = 1_920
HEART, HEART_FILE, HEART_LINE = "static void linear_forward(", "train_gpt_fp8.c", 700


def without_comments(text):
    """The text without its comments. What looks like one inside quotes stays."""
    kept, at = [], 0
    while at < len(text):
        two = text[at:at + 2]
        if two == "//":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif two == "/*":
            end = text.find("*/", at + 2)
            at = len(text) if end < 0 else end + 2
        elif text[at] in "\"'":
            end = at + 1
            while end < len(text) and text[end] not in (text[at], "\n"):
                end += 2 if text[end] == "\\" else 1
            kept.append(text[at:end + 1])
            at = end + 1
        else:
            kept.append(text[at])
            at += 1
    return "".join(kept)


def code_bytes(text):
    return sum(len(line.strip().encode()) for line in without_comments(text).splitlines())


def functions(text):
    """(lines, first line, head) of every function."""
    found, head, first, inside, in_macro = [], "", 0, False, False
    for number, line in enumerate(text.splitlines(), 1):
        was_in_macro, in_macro = in_macro, line.endswith("\\")
        if inside:
            if line.startswith("}"):
                found.append((number - first + 1, first, head))
                inside, head = False, ""
            continue
        if was_in_macro or line.startswith("#"):
            continue
        code = re.sub(r"\s*//.*", "", line).rstrip()
        if re.match(r"[A-Za-z_]", code):
            head, first = code, number
        elif head:
            head += " " + code.strip()
        begins = head.endswith("{") and head[:-1].rstrip().endswith(")")
        if begins and not head.startswith("typedef"):
            inside = True
        elif code.endswith((";", "}", "{")) or not code:
            head = ""
    return found


def print_functions(name, text):
    """The bytes of each section, then of its functions."""
    lines = text.splitlines()
    begins = [n for n, line in enumerate(lines) if line.startswith("// ==== ")] + [len(lines)]
    found = sorted(functions(text), key=lambda f: f[1])
    for begin, end in zip(begins, begins[1:]):
        print(f"{name} {code_bytes(chr(10).join(lines[begin:end])):7} {lines[begin].strip('/= ')}")
        for count, first, head in found:
            if begin < first <= end:
                size = code_bytes("\n".join(lines[first - 1:first - 1 + count]))
                print(f"{name} {size:7}     {re.sub(r'__attribute__.*?[)]{2,}', '', head)[:70]}")


def main():
    arguments = [a for a in sys.argv[1:] if a != "--functions"]
    root = arguments[0] if arguments else ROOT
    rows, long_functions = [], []

    def read(name):
        with open(os.path.join(root, name), encoding="utf-8") as f:
            return f.read()

    if "--functions" in sys.argv:
        for name in TODAY:
            print_functions(name, read(name))
        return 0
    files = list(CODE_BYTES)
    if os.path.exists(os.path.join(root, OPTIONAL)):
        files.append(OPTIONAL)
    for name in files:
        text = read(name)
        if name in CODE_BYTES:
            rows.append((f"{name}: bytes of code", code_bytes(text), CODE_BYTES[name], TODAY.get(name)))
        rows.append((f"{name}: widest line, columns", max(map(len, text.splitlines())), COLUMNS, None))
        found = functions(text)
        rows.append((f"{name}: longest function, lines", max(found)[0], FUNCTION_LINES, None))
        long_functions += [(name, *f) for f in found if f[0] > FUNCTION_LINES]
    heart = [first for _, first, head in functions(read(HEART_FILE)) if head.startswith(HEART)]
    rows.append((f"{HEART_FILE}: line of {HEART})", heart[0] if heart else None, HEART_LINE - 1, None))
    rows.append(("README.md: words", len(read("README.md").split()), README_WORDS, None))

    missed = 0
    print(f"{'':4} {'what':46} {'found':>8} {'budget':>8}")
    for what, found, budget, today in rows:
        met = found is not None and found <= budget
        ok = met or (today is not None and found <= today)
        missed += not ok
        print(f"{'ok' if met else 'over' if ok else 'FAIL':4} {what:46} {found or 'none':>8} {budget:8}")
    for name, count, first, head in long_functions:
        print(f"     {name}:{first}: {count} lines: {head[:60]}")
    print(f"{len(rows) - missed} passed, {missed} failed")
    return int(missed != 0)


if __name__ == "__main__":
    sys.exit(main())
