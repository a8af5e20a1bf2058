#!/usr/bin/env python3
"""The 1,797 handwritten digits that come with scikit-learn, as labelled pictures in data/digits.d/.

  pip install scikit-learn && python3 data/digits.py

Writes train.bin (1,437 pictures) and test.bin (360) in the format that the head of data/glyphs.c
describes. A picture has 8 x 8 pixels. The grey levels 0 to 16 become 0 to 255. Every fifth picture,
beginning with the first, is for testing. The order is scikit-learn's. Nothing is downloaded.
"""

import argparse
import os
import struct

import prepare

HERE = os.path.dirname(os.path.realpath(__file__))
np = prepare.np

MAGIC, VERSION, CLASSES = 20261129, 1, 10
PICTURES, FNV1A64 = 1797, 0x1e2f4a827468f986  # of labels and pixels in scikit-learn's order


def fnv1a64(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return value


def pictures_write(path, labels, pixels):
    count, height, width = pixels.shape
    body = labels.astype(np.uint8).tobytes() + pixels.astype(np.uint8).tobytes()
    fields = MAGIC, VERSION, count, height, width, 1, CLASSES, 0
    header = struct.pack("<8iQ24x", *fields, fnv1a64(body))
    prepare.file_write(path, [header, body])
    print(f"{prepare.path_show(path)}: {count} pictures, checksum {fnv1a64(body):016x}")


def digits_load():
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise prepare.DataError("expected the Python package scikit-learn, found none; "
                                "pip install scikit-learn")
    digits = load_digits()
    pixels = (digits.images.astype(np.int64) * 255 + 8) // 16
    found = fnv1a64(digits.target.astype(np.uint8).tobytes() + pixels.astype(np.uint8).tobytes())
    if len(pixels) != PICTURES or found != FNV1A64:
        raise prepare.DataError(f"scikit-learn's digits: expected {PICTURES} with the hash "
                                f"{FNV1A64:016x}, found {len(pixels)} with {found:016x}; "
                                f"install another version")
    return digits.target, pixels


def main():
    p = prepare.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = os.path.join(HERE, "digits.d")
    shown = prepare.path_show(out)
    p.add_argument("--out", metavar="DIR", default=out,
                   help=f"directory to write into, made if missing (default: {shown})")
    args = p.parse_args()
    labels, pixels = digits_load()
    is_test = np.arange(len(labels)) % 5 == 0
    os.makedirs(args.out, exist_ok=True)
    pictures_write(os.path.join(args.out, "test.bin"), labels[is_test], pixels[is_test])
    pictures_write(os.path.join(args.out, "train.bin"), labels[~is_test], pixels[~is_test])


if __name__ == "__main__":
    prepare.run(main)
