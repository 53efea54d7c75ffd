"""`python -m course tokenize analyze|train|encode`: choose a vocabulary's size, learn it, use it."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from rich.console import Console
from rich.table import Table

from course.atomic import replacing
from course.tokenizer import BPETokenizer
from course.tokenizer.analysis import MAX_RARE_SHARE, RARE, analyse, recommend
from course.tokenizer.pretokens import PATTERNS

CHUNK = 1 << 20  # characters read at a time
PARALLEL_FROM = 10_000_000  # bytes of text; starting processes takes longer than counting less


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    analyze = actions.add_parser("analyze", help="compare sizes of vocabulary on a text, and recommend one")
    analyze.add_argument("text", type=Path, help="a text file, UTF-8")
    analyze.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096], metavar="N")
    analyze.add_argument("--d-model", type=int, default=256, help="the model's width (default: 256)")
    analyze.add_argument("--layers", type=int, default=6, help="the model's number of blocks (default: 6)")

    train = actions.add_parser("train", help="learn a tokenizer from texts")
    train.add_argument("texts", type=Path, nargs="+", help="text files, UTF-8")
    train.add_argument("--vocab-size", type=int, required=True, metavar="N")
    train.add_argument("--output", type=Path, required=True, help="the file to write, .json")
    train.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help=f"that count words (default: all cores, from {PARALLEL_FROM // 10**6} MB of text on)",
    )

    for action in (analyze, train):
        action.add_argument("--pattern", choices=PATTERNS, default="gpt4", help="default: gpt4")

    encode = actions.add_parser("encode", help="a text's tokens, counted and stored")
    encode.add_argument("tokenizer", type=Path, help="what `train` wrote")
    encode.add_argument("text", type=Path, help="a text file, UTF-8, of any length")
    encode.add_argument("--output", type=Path, help="store the ids here, .npy, as uint32")


def run(arguments: argparse.Namespace) -> int:
    return {"analyze": _analyze, "train": _train, "encode": _encode}[arguments.action](arguments)


def _chunks(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from iter(lambda: file.read(CHUNK), "")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}): convert it first.") from None


def _analyze(arguments: argparse.Namespace) -> int:
    text = "".join(_chunks(arguments.text))
    held_out = len(text) * 9 // 10
    rows = analyse(
        text[:held_out],
        text[held_out:],
        arguments.sizes,
        arguments.d_model,
        arguments.layers,
        arguments.pattern,
    )
    table = Table("tokens", "bytes a token", "rare", "embedding", "MFLOPs a byte")
    for row in rows:
        table.add_row(
            f"{row.vocab_size:,}",
            f"{row.bytes_per_token:.2f}",
            f"{row.rare_share:.0%}",
            f"{row.embedding_parameters:,}",
            f"{row.flops_per_byte / 1e6:.1f}",
        )
    Console().print(table)
    print(
        f"Compression was measured on the last tenth of the text; rare: seen fewer than {RARE} times in the "
        f"rest.\nRecommended: {recommend(rows).vocab_size:,} tokens, the least arithmetic a byte with at "
        f"most {MAX_RARE_SHARE:.0%} of them rare\n(or the fewest rare ones, where no size has so few)."
    )
    return 0


def _train(arguments: argparse.Namespace) -> int:
    texts = ("".join(_chunks(path)) for path in arguments.texts)
    processes = arguments.processes
    if processes is None:
        large = sum(path.stat().st_size for path in arguments.texts) >= PARALLEL_FROM
        processes = (os.cpu_count() or 1) if large else 1
    tokenizer = BPETokenizer.train(texts, arguments.vocab_size, arguments.pattern, processes=processes)
    tokenizer.save(arguments.output)
    print(f"{tokenizer.vocab_size:,} tokens in {arguments.output}")
    return 0


def _encode(arguments: argparse.Namespace) -> int:
    tokenizer = BPETokenizer.load(arguments.tokenizer)
    arrays = tokenizer.encode_stream(_chunks(arguments.text))
    count = sum(map(len, arrays)) if arguments.output is None else _store(arrays, arguments.output)
    size = arguments.text.stat().st_size
    print(f"{size:,} bytes, {count:,} tokens" + (f": {size / count:.2f} bytes a token" if count else ""))
    return 0


def _store(arrays: Iterator[np.ndarray], path: Path) -> int:
    """Write the ids as one NumPy array, as they come; its length is filled in at the end."""
    count = 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        _write_header(file, 0)
        for ids in arrays:
            file.write(ids.astype("<u4").tobytes())
            count += len(ids)
        file.seek(0)
        _write_header(file, count)  # of the same length: NumPy leaves room for the number to grow
    return count


def _write_header(file, count: int) -> None:
    npy.write_array_header_1_0(file, {"descr": "<u4", "fortran_order": False, "shape": (count,)})
