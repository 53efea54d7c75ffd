"""`python -m course generate`: text from a trained model, shown as it is written."""

import argparse
import sys
from pathlib import Path

from course import inference

SHIPPED = Path(__file__).resolve().parents[2] / "assets/models/char_tales.safetensors"


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--prompt", default="\n", metavar="TEXT", help="what the text begins with (default: a new line); "
        "- reads standard input"
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
        "--tokens", type=int, default=200, metavar="N", help="how many at most (default: 200)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="F", help="0: the likeliest token (default: 0.8)"
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens alone")
    parser.add_argument(
        "--top-p", type=float, metavar="F", help="draw from the fewest tokens whose probability reaches F"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another one, another text (default: 0)"
    )


def run(arguments: argparse.Namespace) -> int:
    any_character(sys.stdout)
    prompt = arguments.prompt
    if prompt == "-":
        any_character(sys.stdin)
        prompt = sys.stdin.read().removesuffix("\n")
    model, tokenizer = inference.open_model(arguments.model, arguments.which)
    pieces = inference.stream(
        model,
        tokenizer,
        prompt,
        arguments.tokens,
        temperature=0.0 if arguments.greedy else arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stop=arguments.stop,
    )
    print(prompt, end="", flush=True)
    show(pieces)
    return 0


def any_character(*files) -> None:
    """What a terminal cannot show becomes a question mark, what is no text U+FFFD, and neither an error."""
    for file in files:
        file.reconfigure(errors="replace")


def show(pieces) -> None:
    """Print pieces of text as they come, and end the line, even when Ctrl-C ends the text."""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)
