#!/usr/bin/env python3
"""Turn text files into token shards for the trainer.

  python3 data/tokens.py book.txt --out data/book/book
  python3 data/tokens.py a.txt b.txt --out data/ab/ab --vocab-kind gpt2 --eot-between-files

The files are read as one text, whose last tenth is for validation unless --val or --val-fraction says otherwise. For
GPT-2 tokens, gpt2_tokenizer.bin is written beside the shards. Everything is held in memory: for texts far beyond a
gigabyte see how tinystories.py streams.
"""

import prepare


def main():
    p = prepare.parser_new(__doc__, "byte")
    p.add_argument("input", nargs="+", metavar="INPUT.txt")
    p.add_argument("--val-fraction", type=prepare.fraction, default=0.1, metavar="F",
                   help="share of the text, from its end, for validation; 0 is none (default: 0.1)")
    p.add_argument("--val", metavar="FILE.txt", help="validate on this file, train on the whole input")
    p.add_argument("--eot-between-files", action="store_true",
                   help="GPT-2 only: put the end-of-text token between the files")
    args = p.parse_args()
    if args.eot_between_files and args.vocab_kind == "byte":
        p.error("--eot-between-files: bytes have no end-of-text token; add --vocab-kind gpt2")
    train = [prepare.text_read(path, args) for path in args.input]
    if not args.eot_between_files:
        train = ["".join(train)]  # so that a token may reach across, as in one file
    if args.val:
        val = [prepare.text_read(args.val, args)]
    else:
        train, val = prepare.text_split(train, args.val_fraction)
    prepare.text_write(" ".join(args.input), train, val, args, args.eot_between_files)


if __name__ == "__main__":
    prepare.run(main)
