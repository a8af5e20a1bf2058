#!/usr/bin/env python3
"""Recomputes the scales of a run with --recipe decay=D (dev/recipes/decay.patch):

    python3 dev/check/check_decay.py DIR D     # DIR: made with --scales-every 1, one micro-batch a step

The scale of step t is made of kept = max(amax, D * kept of the step before), from the steps before t.
Everything is computed in floats, so a scale must agree to the last digit that is logged.
"""
import struct
import sys


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def main():
    directory, decay = sys.argv[1], f32(float(sys.argv[2]))
    kept, compared, wrong, decayed = {}, 0, 0, 0
    with open(f"{directory}/scales.tsv", encoding="utf-8") as f:
        rows = [line.split("\t") for line in f if line[0].isdigit()]
    for _, layer, operand, amax, scale, *_ in rows:
        amax, largest = f32(float(amax)), 57344.0 if operand.endswith(".dy") else 448.0
        before = kept.get((layer, operand))
        compared += 1
        wrong += f"{f32(largest / (amax if before is None else before)):.9g}" != scale
        fading = 0 if before is None else f32(decay * before)
        decayed += fading > amax
        kept[layer, operand] = max(amax, fading)
    print(f"{compared} scales, {wrong} differ; {decayed} times the fading maximum was the larger")
    return not compared or wrong > 0 or not decayed


if __name__ == "__main__":
    sys.exit(main())
