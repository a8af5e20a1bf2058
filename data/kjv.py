#!/usr/bin/env python3
"""The King James Bible (4.1 MB, public domain) as token shards in data/kjv/.

  apt-get install bible-kjv && python3 data/kjv.py

The text comes from the Debian package's program `bible`, a verse a line with its label cut off, or from --text.
"""

import os
import shutil
import subprocess
import sys

import prepare

HERE = os.path.dirname(os.path.realpath(__file__))

VERSES, SIZE = 31102, 4137850
SHA256 = "b5c4940bcfeee072c0935b5200d0f9d88a00a0199cb0961d16133458fcdfae5d"


def bible_extract(path):
    if not shutil.which("bible"):
        raise prepare.DataError("bible: expected the program of the Debian package bible-kjv, found none; apt-get "
                                "install bible-kjv, or give the text with --text FILE")
    out = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout
    verses = [line.split(b" ", 1) for line in out.splitlines()]  # "Ge1:1 In the beginning ..."
    if len(verses) != VERSES or not all(len(v) == 2 and b":" in v[0] for v in verses):
        raise prepare.DataError(f"bible: expected {VERSES} labelled verses, found {len(verses)} lines; apt-get install "
                                f"bible-kjv, if this is another program, or give the text with --text FILE")
    prepare.file_write(path, (text + b"\n" for _, text in verses))


def main():
    p = prepare.parser_new(__doc__, "byte", os.path.join(HERE, "kjv", "kjv"))
    p.add_argument("--text", metavar="FILE", help="a local copy of the text, instead of the program's")
    p.add_argument("--val-fraction", type=prepare.fraction, default=0.1, metavar="F",
                   help="share of the text, from its end, for validation (default: 0.1)")
    args = p.parse_args()
    path = args.text or os.path.join(os.path.dirname(args.out), "kjv.txt")
    if not args.text and not os.path.exists(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        bible_extract(path)
    text = prepare.text_read(path, args)
    if fault := prepare.file_fault(path, SHA256, SIZE):  # another edition of the package is no error
        print(f"note: {path} is not the usual text: {fault}", file=sys.stderr)
    prepare.text_write(path, *prepare.text_split([text], args.val_fraction), args)


if __name__ == "__main__":
    prepare.run(main)
