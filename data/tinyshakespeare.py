#!/usr/bin/env python3
"""Tiny Shakespeare (1.1 MB of the plays, public domain) as token shards in data/tinyshakespeare/.

  python3 data/tinyshakespeare.py                       # bytes
  python3 data/tinyshakespeare.py --vocab-kind gpt2     # 301,966 train and 36,059 val tokens, as in nanoGPT

The text is downloaded once, and checked, unless --text names a local copy.
"""

import os
import sys

import prepare

HERE = os.path.dirname(os.path.realpath(__file__))

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SIZE = 1115394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def main():
    p = prepare.parser_new(__doc__, "byte", os.path.join(HERE, "tinyshakespeare", "tinyshakespeare"))
    p.add_argument("--text", metavar="FILE", help="a local copy of the text, instead of the download")
    p.add_argument("--val-fraction", type=prepare.fraction, default=0.1, metavar="F",
                   help="share of the text, from its end, for validation (default: 0.1)")
    p.add_argument("--url", default=URL, help="where to download it from (default: %(default)s)")
    args = p.parse_args()
    path = args.text or prepare.download(args.url, os.path.join(os.path.dirname(args.out), "input.txt"), SHA256, SIZE)
    text = prepare.text_read(path, args)
    if args.text and (fault := prepare.file_fault(path, SHA256, SIZE)):
        print(f"note: {path} is not the usual text: {fault}", file=sys.stderr)
    prepare.text_write(path, *prepare.text_split([text], args.val_fraction), args)


if __name__ == "__main__":
    prepare.run(main)
