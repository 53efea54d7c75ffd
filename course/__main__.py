"""The command line: `python -m course COMMAND`.

A command is a module with `configure(parser)`, which adds its arguments, and `run(arguments)`, which
returns the exit status. Only the module of the command asked for is imported.
"""

import argparse
import importlib
import os
import sys

COMMANDS = {
    "doctor": "course.doctor",
    "data": "course.cli.data",
    "tokenize": "course.cli.tokenize",
    "train": "course.cli.train",
    "evaluate": "course.cli.evaluate",
    "generate": "course.cli.generate",
    "chat": "course.cli.chat",
}
SUMMARIES = {
    "doctor": "what this machine can run, and what to do about the rest",
    "data": "list, fetch and prepare texts",
    "tokenize": "analyse a text, train a tokenizer, encode with it",
    "train": "train a model from a recipe, or go on with a run",
    "evaluate": "a model's loss, perplexity and bits per byte on a text it was not trained on",
    "generate": "let a trained model write",
    "chat": "type the beginning of a text, and a trained model goes on with it",
}


def main(argv: list[str] | None = None) -> int:
    try:
        _prepare_streams()
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        return arguments.run(arguments)
    except ModuleNotFoundError as missing:
        print(f"The package {missing.name!r} is not installed here: run `make lab`.", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would fail to flush
        return 1
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


def _prepare_streams() -> None:
    """What a terminal cannot show becomes a question mark, what is no text U+FFFD, and neither an error. A
    closed input is an empty one, and a closed output shows nothing."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, both stay open until the process ends
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    for file in (sys.stdin, sys.stdout):
        if hasattr(file, "reconfigure"):  # a notebook's and a test's have no encoding
            file.reconfigure(errors="replace")


def _parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of the command asked for, and the function that runs it."""
    parser = argparse.ArgumentParser(prog="python -m course", description="Tensors to Tensor Cores")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in SUMMARIES.items():
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        if name == next((word for word in argv if not word.startswith("-")), None):
            module = importlib.import_module(COMMANDS[name])
            module.configure(command)
            command.set_defaults(run=module.run)
    return parser.parse_args(argv)


def _in_words(error: Exception) -> str:
    """A file that cannot be opened, as `path: permission denied`; every other error says it itself."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename2 or error.filename}: {error.strerror.lower()}."
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
