"""`python -m course chat`: type the beginning of a text, and a trained model goes on with it."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from course import inference
from course.cli.generate import add_model, add_settings, show

HELP = """\
  temp 0.7     how daring: 0 is the likeliest token, 1 the model's own odds
  topk 40      draw from the 40 likeliest tokens; topk off: from all
  topp 0.9     from the fewest that make up 0.9 of the odds; topp off: from all
  tokens 300   how many to write at most
  seed 3       of the next answer; each one after it takes the next seed
  settings     what they are now
  help, quit   (also exit, Ctrl-D). Ctrl-C stops an answer.
Enter alone lets the model go on with the text so far, or begin one. A line is
a command if it is written as above, or with a slash before it (/temp 0.7). A
line that begins with a space is always text."""


@dataclass
class Settings:
    temp: float
    topk: int | None
    topp: float | None
    tokens: int
    seed: int

    def as_arguments(self) -> dict:
        """The same under the names that `inference.stream` has for them."""
        names = ("temperature", "top_k", "top_p", "n_tokens", "seed")
        return dict(zip(names, (self.temp, self.topk, self.topp, self.tokens, self.seed), strict=True))

    def __str__(self) -> str:
        values = ((name, "off" if value is None else value) for name, value in asdict(self).items())
        return ", ".join(f"{name} {value}" for name, value in values)


# How each setting is read, what is expected of it, and which numbers it can be.
SETTINGS = {
    "temp": (float, "a number from 0 on, such as temp 0.7", lambda x: 0 <= x < float("inf")),
    "topk": (int, "a whole number from 1 on, such as topk 40, or topk off", lambda n: n >= 1),
    "topp": (float, "a number above 0 and at most 1, such as topp 0.9, or topp off", lambda x: 0 < x <= 1),
    "tokens": (int, "a whole number from 1 on, such as tokens 200", lambda n: n >= 1),
    "seed": (int, "a whole number from 0 on, such as seed 3", lambda n: n >= 0),
}
MAY_BE_OFF = ("topk", "topp")


class Chat:
    """A model, the settings it writes with, and the text so far."""

    def __init__(self, model, tokenizer, settings: Settings):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.text = ""

    def line(self, line: str) -> bool:
        """Do what a line asks for. -> False if it asks to end the chat."""
        word, argument = self._command(line)
        if word in ("quit", "exit"):
            return False
        if word == "help":
            print(HELP)
        elif word == "settings":
            print(self.settings)
        elif word in SETTINGS:
            self._set(word, argument)
        elif word is not None:
            print(f"There is no command {word!r}: help lists them.")
        else:
            self._answer(line if line.strip() else self.text)
        return True

    @staticmethod
    def _command(line: str) -> tuple[str | None, str]:
        """-> a command and its argument, or None and nothing if the line is text."""
        if line.startswith(" "):
            return None, ""
        words = line.removeprefix("/").split()
        known = words and (
            (words[0] in SETTINGS and len(words) <= 2)
            or (words[0] in ("settings", "help", "quit", "exit") and len(words) == 1)
        )
        if known or line.startswith("/"):
            return (words[0], " ".join(words[1:])) if words else ("/", "")
        return None, ""

    def _set(self, name: str, argument: str) -> None:
        kind, expected, fits = SETTINGS[name]
        value = None
        if not (name in MAY_BE_OFF and argument == "off"):
            try:
                value = kind(argument)
            except ValueError:
                value = float("nan")  # fits nothing
            if not fits(value):
                print(f"{name} {argument}: expected {expected}. It stays as it was.")
                return
        setattr(self.settings, name, value)
        print(self.settings)

    def _answer(self, prompt: str) -> None:
        """Let the model go on with a text, and keep what it wrote."""
        now = self.settings
        try:
            pieces = inference.stream(self.model, self.tokenizer, prompt, **now.as_arguments())
        except ValueError as error:
            print(error)
            return
        now.seed += 1
        self.text = prompt
        show(self._kept(pieces))

    def _kept(self, pieces: Iterator[str]) -> Iterator[str]:
        """What the model writes. It stands on a line of its own, which need not begin with a space."""
        before = self.text
        for piece in pieces:
            first = self.text == before
            self.text += piece
            yield piece.lstrip(" ") if first else piece
        if self.text == before:
            yield "(The model ends the text here. Type how another one begins.)"


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    settings = Settings(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.tokens, arguments.seed
    )
    for name, value in asdict(settings).items():
        _, expected, fits = SETTINGS[name]
        if value is not None and not fits(value):
            raise ValueError(f"{name} {value}: expected {expected}.")
    model, tokenizer = inference.open_model(arguments.model, arguments.which)
    n = model.config.n_parameters()
    print(f"A model of {n:,} parameters: it goes on with your text, and knows no answers.")
    print("Type how a text begins. help lists the commands, quit ends the chat.")
    converse(Chat(model, tokenizer, settings))
    return 0


def converse(chat: Chat) -> None:
    """Line after line, until the input ends, `quit`, or Ctrl-C twice with nothing typed between."""
    at_a_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_a_terminal:
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  arrow keys and a history for `input`
    interrupted = False
    while True:
        try:
            line = input("> " if at_a_terminal else "")
        except EOFError:  # Ctrl-D, or the end of what was piped in
            if at_a_terminal:
                print()
            return
        except KeyboardInterrupt:
            print()
            if interrupted or not at_a_terminal:
                return
            interrupted = True
            print("(Ctrl-C again, or quit, ends the chat.)")
            continue
        interrupted = False
        try:
            if not chat.line(line):
                return
        except KeyboardInterrupt:  # ends the answer, and not the chat
            if not at_a_terminal:
                raise
