"""What the data scripts share: token shards, vocabularies, downloads, options.

The trainer reads llm.c's token shards: a header of 256 little-endian int32 (magic, version, token count, vocabulary
size, zeros), then the tokens as uint16. A vocabulary is either the 256 bytes, which need no file, or GPT-2's 50,257
tokens, which need tiktoken. Needed: Python 3.8 and NumPy.

Left out on purpose: other vocabularies (uint16 and the trainer know these two), and resuming half-made shards (a
download resumes, tokenising starts again).

Not a program: the other scripts here import it.
Contents: 1 errors and options, 2 progress, 3 shards, 4 vocabularies, 5 download, 6 text to shards.
"""

import argparse
import base64
import binascii
import fcntl
import glob
import hashlib
import http.client
import json
import os
import re
import shlex
import sys
import time
import urllib.error
import urllib.request

try:
    import numpy as np
except ImportError:
    print(f"{os.path.basename(sys.argv[0])}: error: expected the Python package NumPy, found none; pip install numpy",
          file=sys.stderr)
    sys.exit(2)


# ---------------------------------------------------------------------------------------------------------------------
# 1. Errors and options

class DataError(Exception):
    """An error of the user's input: one line with the file, what was expected, what was found, and what to do."""


class Parser(argparse.ArgumentParser):
    def error(self, message):  # argparse would print the whole usage above it
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def run(main):
    """Run a script. Exit status 2: bad input, in one line; 130: interrupted. A traceback is always a bug of ours."""
    for stream in filter(None, [sys.stdout, sys.stderr]):
        stream.reconfigure(errors="backslashreplace")  # paths are bytes, whatever the terminal's encoding is
    try:
        return main()
    except DataError as e:
        status, message = 2, f"error: {e}"
    except OSError as e:
        status, message = 2, (f"error: {e.filename or 'output'}: {e.strerror or e}; check the path, its permissions "
                              f"and the free space")
    except MemoryError:
        status, message = 2, "error: out of memory; give less text, or a smaller --shard-tokens"
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    sys.exit(status)


def count(text):
    """argparse type: a positive number of tokens or files; 2^31 does not fit the shard's header."""
    try:
        value = int(text.replace("_", "").replace(",", ""))
    except ValueError:
        value = 0
    if not 0 < value < 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 2147483647, found '{text}'")
    return value


def fraction(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 up to but not including 1, found '{text}'")
    return value


def parser_new(doc, kind, out=None):
    """A parser with the options every script has; `kind` is its default vocabulary, `out` its default prefix."""
    p = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", metavar="PREFIX", default=out, required=out is None,
                   help="writes PREFIX_train_000000.bin ... and PREFIX_val_000000.bin ...; older shards of the same "
                        "prefix are removed" + (f" (default: {path_show(out)})" if out else ""))
    p.add_argument("--vocab-kind", choices=["byte", "gpt2"], default=kind, help=f"tokens (default: {kind})")
    p.add_argument("--vocab", metavar="FILE", help="GPT-2's vocabulary from a file: tiktoken's ranks (*.tiktoken), or "
                   "encoder.json or vocab.bpe with the other one beside it (default: tiktoken downloads its own)")
    p.add_argument("--shard-tokens", metavar="N", type=count, default=100_000_000,
                   help="tokens in a shard (default: 100000000)")
    p.add_argument("--errors", choices=["strict", "replace"], default="strict",
                   help="GPT-2 only: what is done with bytes that are not UTF-8 (default: strict, which stops)")
    return p


def path_show(path):
    """A path as the reader would type it: relative when it lies below the current directory."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith("..") else relative


# ---------------------------------------------------------------------------------------------------------------------
# 2. Progress

class Progress:
    """One line on stderr, redrawn ten times a second: bar, share, rate, time left. Silent if stderr is no terminal."""

    def __init__(self, label, total, unit, start=0):
        self.label, self.total, self.unit, self.start = label, total, unit, start
        self.begin = self.drawn = time.monotonic()
        self.on = sys.stderr.isatty()

    def update(self, done, last=False):
        now = time.monotonic()
        if not self.on or (not last and now - self.drawn < 0.1):
            return
        self.drawn = now
        rate = (done - self.start) / max(now - self.begin, 1e-9)  # what an earlier run fetched is not this run's rate
        text = f"{self.label}: {done / 1e6:.1f} M{self.unit}"
        if self.total:
            share = min(done / self.total, 1.0)
            left = (self.total - done) / rate if rate > 0 else 0.0
            text = (f"{self.label} [{'#' * int(24 * share):.<24}] {100 * share:3.0f}% {done / 1e6:.1f}/"
                    f"{self.total / 1e6:.1f} M{self.unit}, {int(left) // 60}:{int(left) % 60:02d} left")
        print(f"\r{text}, {rate / 1e6:.2f} M{self.unit}/s\033[K", end="\n" if last else "", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# 3. Shards

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_BYTES = 20240520, 1, 1024
BYTE_VOCAB, GPT2_VOCAB, GPT2_EOT = 256, 50257, 50256


def file_write(path, parts):
    """Write under a temporary name, flush to disk, rename: a file of this name is whole or it is not there. What has
    the temporary name is removed, never followed: it may be a link. `parts`: bytes, which may be
    made one by one while they are written."""
    temporary = path + ".tmp"
    if os.path.lexists(temporary):
        os.remove(temporary)
    try:
        with open(temporary, "xb") as f:
            for part in parts:
                f.write(part)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def shard_write(path, tokens, vocab_size):
    tokens = np.asarray(tokens)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(f"{path}: token {tokens.max()} outside the vocabulary of {vocab_size}")
    header = np.zeros(256, "<i4")
    header[:4] = SHARD_MAGIC, SHARD_VERSION, len(tokens), vocab_size
    file_write(path, [header.tobytes(), np.ascontiguousarray(tokens, "<u2").data])


def shard_read(path):
    """Returns (tokens as uint16, vocabulary size); whatever is not exactly a shard is refused."""
    if not os.path.isfile(path):
        raise DataError(f"{path}: expected a token shard, found no such file; check the path")
    size = os.path.getsize(path)
    if size < SHARD_HEADER_BYTES:
        raise DataError(f"{path}: expected a header of {SHARD_HEADER_BYTES} bytes, found {size} in all; make it again")
    header = np.fromfile(path, "<i4", 256)
    for i, name, expected in [(0, "magic number", [SHARD_MAGIC]), (1, "version", [SHARD_VERSION]),
                              (2, "token count (from the size)", [(size - SHARD_HEADER_BYTES) / 2]),
                              (3, "vocabulary size", [BYTE_VOCAB, GPT2_VOCAB, 0])]:  # llm.c's own shards have 0
        if header[i] not in expected:
            raise DataError(f"{path}: {name}: expected {' or '.join(f'{e:.10g}' for e in expected)}, found {header[i]}"
                            f"; it is no token shard or it is damaged, make it again")
    if header[4:].any():
        raise DataError(f"{path}: expected zeros in the rest of the header, found others; make it again")
    vocab_size = int(header[3]) or GPT2_VOCAB
    tokens = np.fromfile(path, "<u2", offset=SHARD_HEADER_BYTES)
    if len(tokens) and tokens.max() >= vocab_size:
        raise DataError(f"{path}: expected tokens below {vocab_size}, found {tokens.max()}; make it again")
    return tokens, vocab_size


class Shards:
    """The output of one run: cuts the tokens of the train and val splits into files of `shard_tokens`, one at a time
    in memory, and at the end says what was written and how to train on it."""

    def __init__(self, prefix, encoder, shard_tokens):
        self.prefix, self.encoder, self.shard_tokens = prefix, encoder, shard_tokens
        self.buffer = {}                                # split -> uint16[shard_tokens]
        self.filled = {"train": 0, "val": 0}            # tokens in the buffer
        self.total = {"train": 0, "val": 0}             # tokens in all
        self.files = []                                 # written: (split, path, tokens)
        self.folder = os.path.dirname(prefix) or "."
        os.makedirs(self.folder, exist_ok=True)
        if not os.path.basename(prefix) or not os.access(self.folder, os.W_OK):  # found out now, not in an hour
            raise DataError(f"{prefix}: expected DIR/NAME in a writable directory, found none; choose another --out")
        self.lock = os.open(self.folder, os.O_RDONLY)  # as long as this runs: two that write one set would mix it
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def add(self, split, tokens):
        while len(tokens):
            if split not in self.buffer:  # np.empty reserves addresses; only what is filled takes memory
                self.buffer[split] = np.empty(self.shard_tokens, np.uint16)
            start = self.filled[split]
            n = min(len(tokens), self.shard_tokens - start)
            self.buffer[split][start:start + n] = tokens[:n]
            self.filled[split] += n
            self.total[split] += n
            tokens = tokens[n:]
            if self.filled[split] == self.shard_tokens:
                self.flush(split)

    def flush(self, split):
        if not self.files:
            # Both splits' old shards go before the first new one comes: the trainer reads PREFIX_train_*, and a mixture
            # of two runs, even of a run that was killed, could hold validation text in the training shards.
            for old in glob.glob(glob.escape(self.prefix) + "_*.bin"):
                if re.fullmatch(r"_(train|val)_\d{6}\.bin", old[len(self.prefix):]):
                    os.remove(old)
        path = f"{self.prefix}_{split}_{sum(s == split for s, _, _ in self.files):06d}.bin"
        shard_write(path, self.buffer[split][:self.filled[split]], self.encoder.vocab_size)
        self.files.append((split, path, self.filled[split]))
        self.filled[split] = 0

    def close(self, source, val_wanted=True, advice="give more text"):
        for split in ["train", "val"] if val_wanted else ["train"]:
            if self.total[split] < 2:  # a window needs a token and its successor
                raise DataError(f"{source}: expected 2 or more tokens for {split}, found {self.total[split]}; {advice}")
        for split in ["train", "val"]:
            if self.filled[split]:
                self.flush(split)
        for _, path, tokens in self.files:
            print(f"wrote {path_show(path)}: {tokens:,} tokens")
        print(f"tokens: {self.total['train']:,} train, {self.total['val']:,} val; "
              f"vocabulary {self.encoder.vocab_size:,}")
        show = path_show(self.prefix)
        command = f"./train_gpt_fp8 -i {shlex.quote(glob.escape(show) + '_train_*.bin')}"
        if self.total["val"]:
            command += f" -j {shlex.quote(glob.escape(show) + '_val_*.bin')}"
        command += " -e d6 -t 256"
        if self.encoder.vocab_size == GPT2_VOCAB:
            path = os.path.join(self.folder, "gpt2_tokenizer.bin")
            tokenizer_write(path, map(self.encoder.encoding.decode_single_token_bytes, range(GPT2_EOT)))
            print(f"wrote {path_show(path)}")
            command += f" --tokenizer {shlex.quote(path_show(path))}"
        print(f"train with:\n  {command}")


# ---------------------------------------------------------------------------------------------------------------------
# 4. Vocabularies

# GPT-2's split of text into words, inside which alone tokens are merged.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Over the 50,257 tokens in order, each a length byte and its bytes: the body of gpt2_tokenizer.bin.
GPT2_SHA256 = "a622700e3255b4a6186e052c4c715c1d05634cb6041c12ab6c95c9ee0a2c9772"
TOKENIZER_MAGIC, TOKENIZER_VERSION = 20240328, 2
# GPT-2's files write a byte as a printable character: itself, or one from 256 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
CHARACTERS = {b: chr(b) for b in PRINTABLE}
CHARACTERS.update({b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in PRINTABLE)})
BYTES = {character: b for b, character in CHARACTERS.items()}
PIECE = 1 << 20  # characters encoded at a time: tiktoken answers with a Python list, 36 bytes a token


def pieces(text):
    """Cut a long text where no GPT-2 token can reach across: before a space or newline that follows a non-space. A word
    of the pattern is either spaces, or at most one space and then non-spaces, so none goes from non-space to space."""
    boundary, start = re.compile(r"(?<=\S)[ \n]"), 0
    while start < len(text):
        cut = boundary.search(text, start + PIECE)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


class ByteEncoder:
    vocab_size = BYTE_VOCAB

    def encode(self, text):
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.uint16)

    def encode_documents(self, texts, workers):
        """Bytes have no end-of-text token: a newline ends a document."""
        return [self.encode(text + "\n") for text in texts]


class Gpt2Encoder:
    vocab_size = GPT2_VOCAB

    def __init__(self, vocab_file=None):
        try:
            import tiktoken
        except ImportError:
            raise DataError("GPT-2 tokens: expected the Python package tiktoken, found none; pip install tiktoken, and "
                            "without a network give --vocab FILE, or use --vocab-kind byte") from None
        if vocab_file:
            self.encoding = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks_read(vocab_file),
                                              special_tokens={"<|endoftext|>": GPT2_EOT}, explicit_n_vocab=GPT2_VOCAB)
        else:
            try:
                self.encoding = tiktoken.get_encoding("gpt2")
            except Exception as e:  # the network's, of whatever library tiktoken uses for it
                raise DataError(f"tiktoken's download of the GPT-2 vocabulary failed ({type(e).__name__}); check the "
                                f"network, or give --vocab FILE") from None

    def encode(self, text):
        # "ordinary": the characters <|endoftext|> in a text are text
        return np.array(self.encoding.encode_ordinary(text), np.uint16)

    def encode_documents(self, texts, workers):
        """The end-of-text token comes before each document, as in llm.c. tiktoken's threads run without the GIL."""
        return [np.array([GPT2_EOT] + ids, np.uint16)
                for ids in self.encoding.encode_ordinary_batch(texts, num_threads=workers)]


def encoder_new(args):
    if args.vocab_kind == "gpt2":
        return Gpt2Encoder(args.vocab)
    if args.vocab:
        raise DataError(f"--vocab {args.vocab}: bytes need no vocabulary; add --vocab-kind gpt2 or leave --vocab out")
    return ByteEncoder()


def ranks_read(path):
    """GPT-2's 50,256 tokens {bytes: id} from either of its two published forms; anything else is refused."""
    try:
        if path.endswith((".json", ".bpe")):
            ranks = ranks_read_pair(path)
        else:
            ranks = {}
            for line in file_read(path).splitlines():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, KeyError, binascii.Error) as e:
        raise DataError(f"{path}: expected GPT-2's vocabulary, found something else ({e}); give *.tiktoken ranks, "
                        f"encoder.json or vocab.bpe") from None
    if len(ranks) != GPT2_EOT or sorted(ranks.values()) != list(range(GPT2_EOT)):
        raise DataError(f"{path}: expected GPT-2's {GPT2_EOT} tokens, found {len(ranks)}; it is another vocabulary or "
                        f"it is damaged")
    found = hashlib.sha256(tokenizer_body(sorted(ranks, key=ranks.get))).hexdigest()
    if found != GPT2_SHA256:
        raise DataError(f"{path}: expected GPT-2's tokens (sha256 {GPT2_SHA256[:16]}...), found others "
                        f"({found[:16]}...); it is another vocabulary or it is damaged")
    return ranks


def ranks_read_pair(path):
    """encoder.json has the ids, vocab.bpe the merges. The merge on line i makes token 256 + i."""
    folder, name = os.path.split(path)
    encoder, merges = (os.path.join(folder, re.sub(r"encoder\.json$|vocab\.bpe$", other, name))
                       for other in ["encoder.json", "vocab.bpe"])
    ranks = {bytes(BYTES[c] for c in token): rank for token, rank in json.loads(file_read(encoder)).items()
             if token != "<|endoftext|>"}
    for i, line in enumerate(file_read(merges).decode("utf-8").strip("\n").split("\n")[1:]):
        token = bytes(BYTES[c] for c in line.replace(" ", ""))
        if ranks.get(token) != 256 + i:
            raise DataError(f"{merges}: line {i + 2}: expected the merge of token {256 + i} of {encoder}, found "
                            f"'{line}'; the two files do not belong together")
    return ranks


def tokenizer_body(tokens):
    return b"".join(bytes([len(t)]) + t for t in [*tokens, b"<|endoftext|>"])


def tokenizer_write(path, tokens):
    """llm.c's tokenizer file of GPT-2's tokens without the last one. The trainer prints samples and reads prompts by
    it."""
    header = np.zeros(256, "<u4")
    header[:4] = TOKENIZER_MAGIC, TOKENIZER_VERSION, GPT2_VOCAB, GPT2_EOT
    file_write(path, [header.tobytes(), tokenizer_body(tokens)])


def tokenizer_read(path):
    """Returns the bytes of each token."""
    data = file_read(path)
    header = np.frombuffer(data[:1024].ljust(1024, b"\0"), "<u4")
    if list(header[:4]) != [TOKENIZER_MAGIC, TOKENIZER_VERSION, GPT2_VOCAB, GPT2_EOT]:
        raise DataError(f"{path}: expected the header {TOKENIZER_MAGIC}, {TOKENIZER_VERSION}, {GPT2_VOCAB}, {GPT2_EOT}"
                        f", found {', '.join(map(str, header[:4]))}; make it again")
    tokens, at = [], 1024
    while at < len(data):
        tokens.append(data[at + 1:at + 1 + data[at]])
        at += 1 + data[at]
    if at != len(data) or len(tokens) != GPT2_VOCAB:
        raise DataError(f"{path}: expected {GPT2_VOCAB} whole tokens, found {len(tokens)}; make it again")
    return tokens


# ---------------------------------------------------------------------------------------------------------------------
# 5. Download

class Redirects(urllib.request.HTTPRedirectHandler):
    """Hugging Face answers with a redirect whose X-Linked-ETag is the sha256 of the file: a checksum for nothing."""
    sha256 = None

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        tag = headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", tag):
            self.sha256 = tag
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def file_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def file_fault(path, sha256, size):
    """What is wrong with a file, or None; None as sha256 or size means not known."""
    if size is not None and os.path.getsize(path) != size:
        return f"expected {size} bytes, found {os.path.getsize(path)}"
    if sha256 is not None and file_sha256(path) != sha256:
        return f"expected sha256 {sha256}, found {file_sha256(path)}"
    return None


def download_rest(url, f, timeout):
    """One attempt: append to f what it lacks. Returns the sha256 that the server names, or None."""
    redirects, offset = Redirects(), f.tell()
    request = urllib.request.Request(url, headers={"User-Agent": "data-prepare"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        answer = urllib.request.build_opener(redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as e:
        if e.code == 416:  # nothing lies beyond what we have: it is whole, or longer than the file is
            if e.headers.get("Content-Range") == f"bytes */{offset}":
                return redirects.sha256
            f.truncate(0)
        raise
    with answer:
        length, rng = answer.headers.get("Content-Length"), answer.headers.get("Content-Range", "")
        if offset and not (getattr(answer, "status", None) == 206 and rng.startswith(f"bytes {offset}-")):
            f.truncate(offset := f.seek(0))  # a server without Range (or a file:// URL) sends everything again
        total = offset + int(length) if length else None
        bar = Progress(os.path.basename(f.name)[:-5], total, "B", offset)
        for block in iter(lambda: answer.read(1 << 18), b""):
            f.write(block)
            f.flush()
            bar.update(f.tell())
        bar.update(f.tell(), last=True)
    if total is not None and f.tell() != total:
        raise ConnectionError(f"connection closed at {f.tell()} of {total} bytes")
    return redirects.sha256


def download(url, path, sha256=None, size=None, tries=5, timeout=30, pause=1.0):
    """Fetch url into path unless it is there. An interrupted transfer stays in path.part for the next to go on."""
    if os.path.exists(path):
        if fault := file_fault(path, sha256, size):
            raise DataError(f"{path}: {fault}; it is damaged or another file, delete it and run again")
        return path
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part, failures, most = path + ".part", 0, -1
    with open(part, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)) as f:
        while True:
            try:
                linked = download_rest(url, f, timeout)
                break
            except urllib.error.HTTPError as e:
                error = e
                if e.code < 500 and e.code not in (408, 416, 429):
                    failures = tries  # 404 will not go away
            except ValueError as e:  # not an address
                error, failures = e, tries
            except (OSError, http.client.HTTPException) as e:
                error = e
                if getattr(e, "errno", None) in (27, 28, 122):  # file too large, disk full, over quota
                    raise DataError(f"{part}: {e.strerror}; free some space and run again to go on") from None
                if url.startswith("file:"):
                    failures = tries
            got = f.seek(0, os.SEEK_END)
            failures = failures + 1 if got <= most or failures >= tries else 1  # only tries without progress count
            most = max(most, got)
            if failures >= tries:
                break
            print(f"{url}: {error}; trying again", file=sys.stderr)
            time.sleep(pause * 2 ** (failures - 1))
        os.fsync(f.fileno())
    if failures >= tries:
        if not got:
            os.remove(part)
        raise DataError(f"{url}: download failed ({error}); check the address and the network"
                        + (f", and run again to go on from the {got} bytes in {part}" if got else ""))
    if fault := file_fault(part, sha256 or linked, size):
        os.remove(part)
        raise DataError(f"{url}: {fault}; the damaged download was deleted, run again, and if it comes back the same, "
                        f"the file has changed at its source")
    os.replace(part, path)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# 6. Text to shards

def file_read(path):
    if not os.path.isfile(path):
        found = "a directory" if os.path.isdir(path) else "none"
        raise DataError(f"{path}: expected a file, found {found}; check the path")
    if path.endswith((".gz", ".bz2", ".xz", ".zst", ".zip")):
        raise DataError(f"{path}: expected text, found a compressed file; unpack it first")
    with open(path, "rb") as f:
        return f.read()


def jsonl_read(path, take, wanted):
    """(line, take(value)) of each line of JSON Lines. A value that take() cannot take is refused."""
    for number, line in enumerate(file_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            taken = take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(f"{path}: line {number}: expected {wanted}, found "
                            f"{line[:40].decode('utf-8', 'replace')!r}; give JSON Lines") from None
        yield number, taken


def text_decode(data, path, args, offset=0):
    """Text is held as characters for either vocabulary, so that both are split at the same place. For bytes, what is
    not UTF-8 is carried through unchanged."""
    try:
        return data.decode("utf-8", "surrogateescape" if args.vocab_kind == "byte" else args.errors)
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: expected UTF-8, found byte 0x{data[e.start]:02x} at offset {offset + e.start}; "
                        f"convert it, or use --errors replace or --vocab-kind byte") from None


def text_read(path, args):
    data = file_read(path)
    if not data:
        raise DataError(f"{path}: expected text, found an empty file; give another")
    return text_decode(data, path, args)


def text_split(texts, val_fraction):
    """The last val_fraction of all characters is for validation: nanoGPT's split."""
    cut = int(sum(map(len, texts)) * (1 - val_fraction))
    train, val = [], []
    for text in texts:
        if cut > 0:
            train.append(text[:cut])
        if len(text) > cut:
            val.append(text[cut:])
        cut = max(cut - len(text), 0)
    return train, val


def text_write(source, train, val, args, eot_between=False):
    """Write whole texts, which are in memory; `source` names them in errors."""
    encoder = encoder_new(args)
    shards = Shards(args.out, encoder, args.shard_tokens)
    bar, done = Progress("tokenising", sum(map(len, train + val)), "char"), 0
    for split, texts in [("train", train), ("val", val)]:
        for i, text in enumerate(texts):
            if i and eot_between:
                shards.add(split, [GPT2_EOT])
            for piece in pieces(text):
                shards.add(split, encoder.encode(piece))
                done += len(piece)
                bar.update(done)
    bar.update(done, last=True)
    shards.close(source, bool(val) or args.val_fraction > 0, "give more text, or another --val-fraction")


def documents_encode(documents, encoder, workers=1):
    """Each document's tokens with its separator, encoded in batches of about PIECE characters, empty ones left out."""
    batch, size = [], 0
    for text in documents:
        if text:
            batch.append(text)
            size += len(text)
        if size >= PIECE:
            yield from encoder.encode_documents(batch, workers)
            batch, size = [], 0
    yield from encoder.encode_documents(batch, workers)
