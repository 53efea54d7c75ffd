"""`python -m course generate`: text from a trained model, shown as it is written."""

import argparse
import shutil
import sys
from collections.abc import Iterable
from itertools import chain

from course import inference
from course.checkpoint import SHIPPED


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="what the text begins with (default: it is all the "
        "model's); - reads standard input"
    )  # fmt: skip
    add_settings(parser)
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token: --temperature 0")
    parser.add_argument(
        "--stop", nargs="+", default=[], metavar="TEXT", help="end before the first of these texts"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which model writes."""
    parser.add_argument(
        "model",
        nargs="?",
        default=SHIPPED,
        metavar="MODEL",
        help="the folder of a run, or one file of weights (default: the small model that comes with the "
        "course)",
    )
    parser.add_argument(
        "--which", choices=("best", "latest"), default="best", help="of a run (default: best)"
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how it writes."""
    parser.add_argument(
        "--tokens", type=int, default=300, metavar="N", help="how many at most (default: 300)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.7, metavar="F", help="0: the likeliest token (default: 0.7)"
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens alone")
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.9,
        metavar="F",
        help="draw from the fewest tokens whose probability reaches F (default: 0.9; 1: from all)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another one, another text (default: 0)"
    )


def run(arguments: argparse.Namespace) -> int:
    settings = dict(
        n_tokens=arguments.tokens,
        temperature=0.0 if arguments.greedy else arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    inference.check_settings(**settings)
    prompt = arguments.prompt
    if prompt == "-":
        prompt = sys.stdin.read().removesuffix("\n")
    model, tokenizer = inference.open_model(arguments.model, arguments.which)
    pieces = inference.stream(model, tokenizer, prompt, **settings, stop=arguments.stop)
    show(chain([prompt], pieces))
    return 0


def show(pieces: Iterable[str]) -> None:
    """Print pieces of text as they come, and end the line, even when Ctrl-C ends the text."""
    lines = Lines(shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    try:
        for piece in pieces:
            print(lines.add(piece), end="", flush=True)
    finally:
        print(lines.rest(), flush=True)


class Lines:
    """Text that comes in pieces, its lines broken between words. `width` None is that of a file: any."""

    def __init__(self, width: int | None):
        self.width, self.column = width, 0
        self.gap = self.word = ""  # what may have to move to a new line

    def add(self, piece: str) -> str:
        """-> what can be shown now: a word cannot before its end is there."""
        if self.width is None:
            return piece
        return "".join(map(self._next, piece))

    def _next(self, character: str) -> str:
        if not character.isspace():
            self.word += character
            return ""
        shown = self.rest()
        if character == "\n":
            self.gap, self.column = "", 0
            return shown + character
        self.gap += character
        return shown

    def rest(self) -> str:
        """The word that has not been shown yet, on a new line if it does not fit."""
        if not self.word:
            return ""
        if self.column > 0 and self.column + len(self.gap) + len(self.word) > self.width:
            self.gap, self.column = "\n", -1
        shown = self.gap + self.word
        self.column += len(shown)
        self.gap = self.word = ""
        return shown
