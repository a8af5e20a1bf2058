#!/usr/bin/env python3
"""Converts old command lines to --recipe, which replaced fifteen options (--scaling and others).

    python3 dev/check/recipe_words.py fp8 --scaling block    # prints: fp8 --recipe deepseek
    python3 dev/check/recipe_words.py --rows FILE.tsv ...    # arms (first cells of rows), in place
    python3 dev/check/recipe_words.py --test

The tables below are the one place where the old words are written down. Every conversion is
checked: both command lines are read, each by the rules of its own language, and must mean the same.
Exit status: 0 done, 1 a test failed, 2 bad input.
"""

import functools
import itertools
import re
import sys
from typing import NamedTuple

OPERANDS = ("x", "w", "dy")
BLOCKS = ("rowwise", "block", "mx")

# ---- the old language
# A word of --recipe: its new name; and the --scaling, --formats and --amax-history it stood for.
OLD_NAMES = {"paper": ("delayed", "delayed", "auto", "16"), "te": ("te", "delayed", "auto", "1024"),
             "torchao": ("current", "current", "auto", "16"),
             "deepseek": ("deepseek", "block", "e4m3", "16"), "mx": ("mx", "mx", "e4m3", "16"),
             "naive": ("none", "none", "e4m3", "16")}
# A word of --scaling, and of --scaling-x, -w, -dy. For static, static=S and delayed: rule_word().
OLD_RULES = {"current": "current", "none": "scale=1", "rowwise": "rowwise", "block": "deepseek",
             "mx": "mx"}
OLD_FORMATS = {"auto": [], "hybrid": ["e4m3", "dy:e5m2"], "e4m3": ["e4m3"], "e5m2": ["e5m2"]}
OLD_DEFAULTS = {"recipe": "paper", "scaling": "delayed", "static-scale": "1", "mx-round": "up",
                "pow2": "0", "amax-history": "16", "amax-algo": "max", "margin": "0",
                "formats": "auto"}
for _operand in OPERANDS:
    OLD_DEFAULTS["scaling-" + _operand] = OLD_DEFAULTS["format-" + _operand] = "same"

# ---- the new language
NEW_NAMES = {"delayed": "e4m3+delayed=16+dy:e5m2", "te": "delayed=1024",
             "deepseek": "e4m3+block=1x128+w:block=128x128", "mx": "e4m3+block=1x32",
             "rowwise": "e4m3+block=1xall", "none": "e4m3+scale=1"}


class Meaning(NamedTuple):
    """How an operand is quantized."""
    format: str
    rule: tuple  # ("delayed", N), ("current",), ("scale", S) or ("block", A, B)
    margin: int
    rounding: str


def effective(m):
    """Without what the rule does not read: a constant scale has neither margin nor rounding."""
    if m.rule[0] == "scale":
        return m._replace(margin=0, rounding="exact")
    if m.rule[0] == "block" and m.rounding == "exact":
        return m._replace(rounding="pow2")
    return m


def new_word(m, operand, word):
    """What a word without a prefix makes of one operand."""
    key, _, value = word.partition("=")
    if word in NEW_NAMES:
        for part in NEW_NAMES[word].split("+"):
            target, _, rest = part.rpartition(":")
            if target in ("", operand):
                m = new_word(m, operand, rest)
        return m
    if word in ("e4m3", "e5m2"):
        return m._replace(format=word)
    if word in ("exact", "pow2", "floor"):
        return m._replace(rounding=word)
    if word == "current":
        return m._replace(rule=("current",))
    if key == "delayed":
        return m._replace(rule=("delayed", int(value)))
    if key == "scale":
        return m._replace(rule=("scale", float(value)))
    if key == "block":
        across, along = value.split("x")
        return m._replace(rule=("block", int(across), along))
    if key == "margin":
        return m._replace(margin=int(value))
    raise ValueError(f"--recipe: unknown word '{word}'")


@functools.cache
def new_meaning(recipe):
    """The three operands under a --recipe."""
    result = []
    for operand in OPERANDS:
        m = Meaning("e4m3", ("delayed", 16), 0, "exact")
        for part in ["delayed"] + [p for p in re.split("[,+]", recipe) if p]:
            target, _, word = part.rpartition(":")
            if target not in ("",) + OPERANDS:
                raise ValueError(f"--recipe: unknown operand '{target}'")
            if target in ("", operand):
                m = new_word(m, operand, word)
        result.append(effective(m))
    return result


def old_split(words):
    """(other words, {old option: its value}, where the first old option stood or None).

    As getopt read them: --option value or --option=value; a later option wins, and --recipe sets
    three of them."""
    rest, options, at = [], {}, None
    words = list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word[2:].partition("=")
        if not word.startswith("--") or name not in OLD_DEFAULTS:
            rest.append(word)
            continue
        if not equals:
            if name == "pow2":
                value = words.pop(0) if words and words[0] in ("0", "1") else "1"
            elif not words:
                raise ValueError(f"{word} needs a value")
            else:
                value = words.pop(0)
        if name == "recipe":
            if value not in OLD_NAMES:
                raise ValueError(f"--recipe {value} is no word of the old language")
            for part in ("scaling", "formats", "amax-history"):
                options.pop(part, None)
        if name.startswith("scaling") and value.startswith("static="):
            options["static-scale"] = value[len("static="):]
            value = "static"
        options[name] = value
        at = len(rest) if at is None else at
    return rest, options, at


def old_state(options):
    """The values of all old options, with those that --recipe sets."""
    state = dict(OLD_DEFAULTS)
    name = OLD_NAMES[options.get("recipe", "paper")]
    state.update(zip(("scaling", "formats", "amax-history"), name[1:]))
    state.update(options)
    return state


def old_rule(state, operand):
    own = state["scaling-" + operand]
    rule = state["scaling"] if own == "same" else own
    if rule not in OLD_RULES and rule not in ("delayed", "static"):
        raise ValueError(f"--scaling: unknown word '{rule}'")
    return rule


def old_meaning(options):
    """The three operands under the old options."""
    state, result = old_state(options), []
    for operand in OPERANDS:
        rule, formats = old_rule(state, operand), state["formats"]
        wide = formats == "hybrid" or (formats == "auto" and rule not in BLOCKS)
        form = "e5m2" if formats == "e5m2" or (wide and operand == "dy") else "e4m3"
        if state["format-" + operand] != "same":
            form = state["format-" + operand]
        rounding = "pow2" if state["pow2"] == "1" or rule in BLOCKS else "exact"
        if rule == "mx" and state["mx-round"] == "floor":
            rounding = "floor"
        steps = 1 if state["amax-algo"] == "recent" else int(state["amax-history"])
        rule = {"delayed": ("delayed", steps), "current": ("current",), "none": ("scale", 1.0),
                "static": ("scale", float(state["static-scale"])), "rowwise": ("block", 1, "all"),
                "block": ("block", 128 if operand == "w" else 1, "128"),
                "mx": ("block", 1, "32")}[rule]
        result.append(effective(Meaning(form, rule, int(state["margin"]), rounding)))
    return result


def rule_word(state, rule):
    if rule == "delayed":
        steps = "1" if state["amax-algo"] == "recent" else state["amax-history"]
        return "delayed" if steps == "16" else "delayed=" + steps
    return "scale=" + state["static-scale"] if rule == "static" else OLD_RULES[rule]


def recipe_of(options):
    """The words of --recipe for old options."""
    state, words = old_state(options), []
    if "recipe" in options:
        words.append(OLD_NAMES[options["recipe"]][0])
    history = "amax-history" in options or state["amax-algo"] == "recent"
    if "scaling" in options or (history and state["scaling"] == "delayed"):
        words.append(rule_word(state, old_rule(state | {"scaling-x": "same"}, "x")))
    for operand in OPERANDS:
        if state["scaling-" + operand] != "same":
            words.append(operand + ":" + rule_word(state, old_rule(state, operand)))
    words += OLD_FORMATS[options.get("formats", "auto")]
    words += [f"{o}:{state['format-' + o]}" for o in OPERANDS if state["format-" + o] != "same"]
    words += ["margin=" + state["margin"]] * ("margin" in options)
    words += ["pow2"] * (state["pow2"] == "1") + ["floor"] * (state["mx-round"] == "floor")
    words = list(dict.fromkeys(words)) or ["delayed"]
    want = old_meaning(options)
    for i, operand in enumerate(OPERANDS):  # what the words above say for too many operands
        for part in ("format", "rounding"):
            if getattr(new_meaning("+".join(words))[i], part) != getattr(want[i], part):
                words.append(f"{operand}:{getattr(want[i], part)}")
    recipe = "+".join(words)
    if new_meaning(recipe) != want:
        raise ValueError(f"no recipe was found for {options}: '{recipe}' is another")
    return recipe


def convert(words):
    """A command line, as a list of words, in the new language. It is left alone if it is new."""
    if "--explain" in words:
        words = [word for word in words if word != "--explain"]
        words = ["build/lab/explain" if "train_gpt_" in word else word for word in words]
    rest, options, at = old_split(words)
    if at is None:
        return rest
    return rest[:at] + ["--recipe", recipe_of(options)] + rest[at:]


def rows_convert(path):
    """Converts the arms of a table of rows, in place: the cells before the first tab."""
    with open(path, encoding="utf-8") as f:
        lines = f.read().split("\n")
    changed = 0
    for i, line in enumerate(lines):
        arm, tab, cells = line.partition("\t")
        words = arm.split(" ")
        if arm.startswith("#") or not tab or is_new(words):
            continue
        lines[i] = " ".join(convert(words)) + tab + cells
        changed += lines[i] != line
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines))
    print(f"{path}: {changed} rows changed")


def is_new(words):
    """Whether a command line has a --recipe that the old language did not have."""
    recipes = [b for a, b in zip(words, words[1:]) if a == "--recipe"]
    return any(r not in OLD_NAMES for r in recipes)


# ---- the test
CASES = """
--scaling none > --recipe scale=1
--recipe naive > --recipe none
--recipe paper > --recipe delayed
--recipe torchao > --recipe current
--scaling current > --recipe current
--scaling rowwise > --recipe rowwise
--scaling block > --recipe deepseek
--scaling mx > --recipe mx
--recipe te > --recipe te
--scaling static --static-scale 16 > --recipe scale=16
--scaling=static=0.5 > --recipe scale=0.5
--scaling-x none > --recipe x:scale=1
--format-dy e4m3 > --recipe dy:e4m3
--formats e4m3 > --recipe e4m3
--formats e5m2 > --recipe e5m2
--amax-history 1024 > --recipe delayed=1024
--scaling delayed > --recipe delayed
--amax-algo recent > --recipe delayed=1
--margin 3 > --recipe margin=3
--pow2 > --recipe pow2
--pow2 1 -x 5 > --recipe pow2 -x 5
--scaling mx --mx-round floor > --recipe mx+floor
--scaling mx --format-dy e5m2 --margin 1 > --recipe mx+dy:e5m2+margin=1
--scaling block --scaling-dy current > --recipe deepseek+dy:current+dy:e5m2
--recipe deepseek --scaling-dy current > --recipe deepseek+dy:current
--scaling block --scaling-w delayed --amax-history 4 > --recipe deepseek+w:delayed=4
--recipe te --formats e4m3 > --recipe te+e4m3
--scaling current --recipe mx > --recipe mx
-e d2 --scaling-x rowwise -s 0 --scaling-w block > -e d2 --recipe x:rowwise+w:deepseek -s 0
--bf16 first > --bf16 first
./train_gpt_fp8 --explain --scaling mx -e d2 > build/lab/explain --recipe mx -e d2
"""
# Both readers, on meanings that are written out: format, rule, margin and rounding of x, w, dy.
MEANINGS = [
    ("", "", [("e4m3", ("delayed", 16), 0, "exact")] * 2 + [("e5m2", ("delayed", 16), 0, "exact")]),
    ("--recipe deepseek --margin 2", "deepseek+margin=2",
     [("e4m3", ("block", 1, "128"), 2, "pow2"), ("e4m3", ("block", 128, "128"), 2, "pow2"),
      ("e4m3", ("block", 1, "128"), 2, "pow2")]),
    ("--scaling rowwise --formats hybrid", "rowwise,dy:e5m2",
     [("e4m3", ("block", 1, "all"), 0, "pow2")] * 2 + [("e5m2", ("block", 1, "all"), 0, "pow2")]),
    ("--scaling none --scaling-x current --pow2", "scale=1+x:current+pow2",
     [("e4m3", ("current",), 0, "pow2"), ("e4m3", ("scale", 1.0), 0, "exact"),
      ("e5m2", ("scale", 1.0), 0, "exact")]),
]


def all_options():
    """Combinations of the old words: some thousands of command lines."""
    own_rules = [("same", "same", "same"), ("delayed", "block", "mx"), ("mx", "same", "same"),
                 ("same", "delayed", "same"), ("same", "same", "rowwise")]
    for recipe, scaling, formats, own, form, extra in itertools.product(
            [None] + list(OLD_NAMES), [None, "delayed", "static=2"] + list(OLD_RULES),
            [None] + list(OLD_FORMATS), own_rules, ["same", "e4m3", "e5m2"],
            ["", "--pow2 --margin 2", "--mx-round floor"]):
        words = ["--recipe", recipe] * bool(recipe) + ["--scaling", scaling] * bool(scaling)
        words += ["--formats", formats] * bool(formats) + extra.split() + ["--format-dy", form]
        for operand, rule in zip(OPERANDS, own):
            words += ["--scaling-" + operand, rule]
        yield words


def test():
    failed = count = 0
    for case in CASES.strip().split("\n"):
        old, new = case.split(" > ")
        found = " ".join(convert(old.split()))
        count += 1
        if found != new:
            failed += 1
            print(f"FAIL {old}: expected {new}, found {found}")
    for old, new, want in MEANINGS:
        readings = (old_meaning(old_split(old.split())[1]), new_meaning(new))
        for reader, found in zip(("old", "new"), readings):
            count += 1
            if [tuple(m) for m in found] != want:
                failed += 1
                print(f"FAIL the {reader} reader: '{old}' or '{new}' is {found}")
    for words in all_options():
        count += 1
        try:
            convert(words)
        except ValueError as error:
            failed += 1
            print(f"FAIL {' '.join(words)}: {error}")
    for bad in ("--scaling best", "--recipe nonsense", "--margin"):
        count += 1
        try:
            convert(bad.split())
            failed += 1
            print(f"FAIL {bad} is accepted")
        except ValueError:
            pass
    print(f"{count - failed} passed, {failed} failed")
    return int(failed != 0)


def main():
    words = sys.argv[1:]
    if words == ["--test"]:
        return test()
    if not words or words[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if words else 2
    try:
        if words[0] == "--rows":
            for path in words[1:]:
                rows_convert(path)
        else:
            print(" ".join(words if is_new(words) else convert(words)))
    except (OSError, ValueError) as error:
        print(f"recipe_words.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
