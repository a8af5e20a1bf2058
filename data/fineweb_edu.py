#!/usr/bin/env python3
"""FineWeb-Edu's sample of 10 billion tokens of web text as token shards in data/fineweb_edu/.

  python3 data/fineweb_edu.py --shards 2                # the first two of 14 files, 2 GB each; resumes if interrupted
  python3 data/fineweb_edu.py --jsonl sample.jsonl --val-tokens 10000

The first --val-tokens tokens, as far as they are whole documents, are for validation, the rest for training. For GPT-2
each document is preceded by the end-of-text token, for bytes each ends with a newline. The Parquet files need pyarrow.
"""

import os

import prepare

HERE = os.path.dirname(os.path.realpath(__file__))

BASE_URL = "https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu/resolve/main/sample/10BT"
FILES = 14


def pyarrow_import():
    try:
        import pyarrow.parquet
        return pyarrow
    except ImportError:
        raise prepare.DataError("Parquet files: expected the Python package pyarrow, found none; pip install pyarrow, "
                                "or give --jsonl FILE") from None


def parquet_read(path):
    pyarrow = pyarrow_import()
    if not os.path.isfile(path):
        raise prepare.DataError(f"{path}: expected a Parquet file, found none; check the path")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise prepare.DataError(f"{path}: expected a column 'text', found {', '.join(file.schema_arrow.names)}")
            bar, done = prepare.Progress(os.path.basename(path), file.metadata.num_rows, "doc"), 0
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                done += len(batch)
                bar.update(done, last=done == file.metadata.num_rows)
                yield from batch.column(0).to_pylist()
    except pyarrow.ArrowException as e:
        raise prepare.DataError(f"{path}: expected a Parquet file, found another ({str(e).splitlines()[0]}); delete it "
                                f"and download it again") from None


def jsonl_read(path):
    def text_of(value):
        return value["text"].encode("utf-8", "replace").decode("utf-8")  # JSON can hold half a surrogate pair
    return (text for _, text in prepare.jsonl_read(path, text_of, "an object with a string \"text\""))


def main():
    p = prepare.parser_new(__doc__, "gpt2", os.path.join(HERE, "fineweb_edu", "fineweb_edu"))
    inputs = p.add_mutually_exclusive_group()
    inputs.add_argument("--shards", type=prepare.count, default=1, metavar="N",
                        help=f"download the first N of the {FILES} files (default: 1)")
    inputs.add_argument("--parquet", nargs="+", metavar="FILE", help="local Parquet files with a column 'text'")
    inputs.add_argument("--jsonl", metavar="FILE", help="a small local sample, an object with \"text\" a line")
    p.add_argument("--val-tokens", type=prepare.count, metavar="N", help="tokens for validation (default: one shard)")
    p.add_argument("--workers", type=prepare.count, default=1, metavar="N", help="threads for tokenising (default: 1)")
    p.add_argument("--base-url", default=BASE_URL, help="where to download them from (default: %(default)s)")
    args = p.parse_args()
    if args.shards > FILES:
        p.error(f"--shards: expected at most {FILES}, found {args.shards}")
    encoder = prepare.encoder_new(args)
    shards = prepare.Shards(args.out, encoder, args.shard_tokens)
    if args.jsonl:
        source, documents = args.jsonl, jsonl_read(args.jsonl)
    else:
        pyarrow_import()  # before a download of gigabytes, not after it
        names = [f"{i:03d}_00000.parquet" for i in range(args.shards)]
        paths = args.parquet or [prepare.download(f"{args.base_url}/{name}", os.path.join(shards.folder, name))
                                 for name in names]
        source, documents = " ".join(paths), (text for path in paths for text in parquet_read(path))
    split, val_tokens = "val", args.val_tokens or args.shard_tokens
    for tokens in prepare.documents_encode(documents, encoder, args.workers):
        if shards.total["val"] + len(tokens) > val_tokens:
            split = "train"  # for good: a later short document must not go back to val
        shards.add(split, tokens)
    shards.close(source, advice=f"give more text, or another --val-tokens than {val_tokens}")


if __name__ == "__main__":
    prepare.run(main)
