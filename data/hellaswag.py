#!/usr/bin/env python3
"""HellaSwag's validation tasks, tokenized, as llm.c's file data/hellaswag/hellaswag_val.bin.

  python3 data/hellaswag.py                                       # download 12 MB, GPT-2 tokens
  python3 data/hellaswag.py --input tasks.txt --vocab-kind byte --out tasks.bin

A task is a context, four endings, and the number of the right one. build/eval/hellaswag_fp8 asks a model which ending
it finds likeliest. --input takes the original JSON Lines (*.jsonl with "ctx", "label", "endings"; the context is "ctx"
as it stands, as in llm.c), or llama.cpp's text of six lines a task: context, label, four endings. Such texts put the
activity before the context; their scores differ from llm.c's. Context and " " + ending are tokenized separately. The
format is llm.c's, by its description; with bytes header[4] is 256, where llm.c has 0.
"""

import argparse
import os
import shlex

import prepare

HERE = os.path.dirname(os.path.realpath(__file__))

BASE_URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data"
NAME, SHA256 = "hellaswag_val.jsonl", "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
MAGIC, VERSION, ENDINGS, LIMIT = 20240522, 1, 4, 65535  # LIMIT: of tasks, and of a task's bytes; both are uint16


def jsonl_read(path):
    wanted = "an object with ctx, label and endings"
    for line, task in prepare.jsonl_read(path, lambda t: (t["ctx"], str(t["label"]), t["endings"]), wanted):
        yield line, *task


def text_read(path):
    try:
        lines = prepare.file_read(path).decode("utf-8").replace("\r\n", "\n").rstrip("\n").split("\n")
    except UnicodeDecodeError as e:
        raise prepare.DataError(f"{path}: expected UTF-8, found byte 0x{e.object[e.start]:02x} at offset {e.start}; "
                                f"convert it") from None
    if len(lines) % (2 + ENDINGS):
        raise prepare.DataError(f"{path}: expected six lines a task (context, label, four endings), found {len(lines)} "
                                f"lines in all; give whole tasks, or name JSON Lines *.jsonl")
    for i in range(0, len(lines), 2 + ENDINGS):
        yield i + 1, lines[i], lines[i + 1].strip(), lines[i + 2:i + 2 + ENDINGS]


def task_check(where, context, label, endings):
    if label not in ["0", "1", "2", "3"]:
        raise prepare.DataError(f"{where}: expected a label of 0 to 3, found {label[:40]!r}; give tasks with answers")
    if not isinstance(endings, list) or len(endings) != ENDINGS or not all(
            isinstance(text, str) and text.strip() for text in [context, *endings]):
        raise prepare.DataError(f"{where}: expected a context and {ENDINGS} endings that are not empty, found others; "
                                f"give HellaSwag's tasks")


def task_encode(encoder, index, context, label, endings):
    """A task as uint16: delimiter, its bytes, index, label, number of endings; then each part with its length."""
    words = [LIMIT, 0, index, int(label), ENDINGS]
    for text in [context, *(" " + ending for ending in endings)]:
        tokens = encoder.encode(text.encode("utf-8", "replace").decode("utf-8"))  # JSON can hold half a surrogate pair
        words += [len(tokens), *tokens.tolist()]
    words[1] = 2 * len(words)
    return words


def main():
    p = prepare.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = os.path.join(HERE, "hellaswag", "hellaswag_val.bin")
    p.add_argument("--out", metavar="FILE", default=out, help=f"(default: {prepare.path_show(out)})")
    p.add_argument("--input", metavar="FILE", help="local tasks, *.jsonl or text (default: download the original)")
    p.add_argument("--vocab-kind", choices=["byte", "gpt2"], default="gpt2", help="tokens (default: gpt2)")
    p.add_argument("--vocab", metavar="FILE", help="GPT-2's vocabulary from a file, as for tokens.py")
    p.add_argument("--base-url", default=BASE_URL, help="where to download it from (default: %(default)s)")
    args = p.parse_args()
    encoder = prepare.encoder_new(args)
    folder = os.path.dirname(args.out) or "."
    os.makedirs(folder, exist_ok=True)
    path = args.input or prepare.download(f"{args.base_url}/{NAME}", os.path.join(folder, NAME), sha256=SHA256)
    stream, count, longest = [], 0, 0
    for line, *task in jsonl_read(path) if path.endswith(".jsonl") else text_read(path):
        where = f"{path}: line {line}"
        task_check(where, *task)
        words = task_encode(encoder, count, *task)
        count, longest = count + 1, max(longest, words[1])
        if max(count, longest) > LIMIT:
            raise prepare.DataError(f"{where}: expected at most {LIMIT} tasks of {LIMIT} bytes, found more; give fewer")
        stream.append(prepare.np.array(words, "<u2").tobytes())
    if not count:
        raise prepare.DataError(f"{path}: expected tasks, found none; give another file")
    header = prepare.np.zeros(256, "<i4")
    header[:5] = MAGIC, VERSION, count, longest, encoder.vocab_size % prepare.GPT2_VOCAB
    prepare.file_write(args.out, [header.tobytes(), *stream])
    show = prepare.path_show(args.out)
    print(f"wrote {show}: {count:,} tasks, vocabulary {encoder.vocab_size:,}\nscore a run with:\n"
          f"  make build/eval/hellaswag_fp8 && build/eval/hellaswag_fp8 RUN {shlex.quote(show)}")


if __name__ == "__main__":
    prepare.run(main)
