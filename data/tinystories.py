#!/usr/bin/env python3
"""TinyStories (2 GB of short synthetic stories) as token shards in data/tinystories/.

  python3 data/tinystories.py                                   # download, 2.2 GB; resumes if interrupted
  python3 data/tinystories.py --sample few_stories.txt --vocab-kind byte

Stories are separated by <|endoftext|>. For GPT-2 each is preceded by that token, for bytes each ends with a newline.
The text is streamed: memory holds one shard for each split.
"""

import os

import prepare

HERE = os.path.dirname(os.path.realpath(__file__))

BASE_URL = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main"
SEPARATOR = b"<|endoftext|>"
BLOCK, STORY_MAX = 1 << 20, 1 << 26


def stories_read(path, args):
    """The stories of a file, block by block."""
    if not os.path.isfile(path):
        raise prepare.DataError(f"{path}: expected a file of stories, found none; check the path")
    bar, rest, offset = prepare.Progress(os.path.basename(path), os.path.getsize(path), "B"), b"", 0
    with open(path, "rb") as f:
        while block := f.read(BLOCK):
            *stories, rest = (rest + block).split(SEPARATOR)  # the separator may lie across two blocks
            for story in stories:
                yield prepare.text_decode(story, path, args, offset).strip()
                offset += len(story) + len(SEPARATOR)
            if len(rest) > STORY_MAX:
                raise prepare.DataError(f"{path}: expected {SEPARATOR.decode()} between stories, found none in "
                                        f"{len(rest)} bytes; give TinyStories' plain text, or use tokens.py")
            bar.update(f.tell())
        bar.update(f.tell(), last=True)
    yield prepare.text_decode(rest, path, args, offset).strip()


def main():
    p = prepare.parser_new(__doc__, "gpt2", os.path.join(HERE, "tinystories", "tinystories"))
    p.add_argument("--text", metavar="FILE", help="local training stories, instead of the download; with --val-text")
    p.add_argument("--val-text", metavar="FILE", help="local validation stories, with --text")
    p.add_argument("--sample", metavar="FILE", help="a small local file of stories, the last tenth for validation")
    p.add_argument("--workers", type=prepare.count, default=1, metavar="N", help="threads for tokenising (default: 1)")
    p.add_argument("--base-url", default=BASE_URL, help="where to download them from (default: %(default)s)")
    args = p.parse_args()
    if bool(args.text) != bool(args.val_text) or (args.text and args.sample):
        p.error("give --text and --val-text together, or --sample alone, or none of them")
    encoder = prepare.encoder_new(args)
    shards = prepare.Shards(args.out, encoder, args.shard_tokens)
    if args.sample:
        source, stories = args.sample, [s for s in stories_read(args.sample, args) if s]
        cut = int(len(stories) * 0.9)
        splits = {"train": stories[:cut], "val": stories[cut:]}
    else:
        paths = [args.val_text, args.text]
        if not args.text:
            names = [f"TinyStoriesV2-GPT4-{split}.txt" for split in ["valid", "train"]]
            paths = [prepare.download(f"{args.base_url}/{name}", os.path.join(shards.folder, name)) for name in names]
        source, splits = " ".join(paths), {s: stories_read(path, args) for s, path in zip(["val", "train"], paths)}
    for split, stories in splits.items():
        for tokens in prepare.documents_encode(stories, encoder, args.workers):
            shards.add(split, tokens)
    shards.close(source, advice="give more stories")


if __name__ == "__main__":
    prepare.run(main)
