"""Generation: how tokens are drawn, how text is streamed, and the two commands around it."""

import itertools
import math
import os
import pty
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from course import __main__ as command_line
from course import checkpoint, data, inference, optim, training
from course.cli.chat import Chat, Settings
from course.cli.generate import Lines
from course.config import preset
from course.inference import generate, next_token_distribution, stream
from course.initial import initial_weights
from course.manual import ManualTransformer
from course.model import as_tensors
from course.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

# Drawing a token

LOGITS = st.lists(st.floats(-20, 20), min_size=1, max_size=12).map(np.array)


@given(LOGITS, st.floats(0, 5), st.none() | st.integers(1, 15), st.none() | st.floats(0.01, 1))
def test_it_is_a_distribution_over_the_likeliest_tokens(logits, temperature, top_k, top_p):
    p = next_token_distribution(logits, temperature, top_k, top_p)
    assert p.sum() == pytest.approx(1) and (p >= 0).all() and p[logits.argmax()] == p.max() > 0
    kept = p > 0
    assert top_k is None or kept.sum() <= top_k
    if kept.any() and not kept.all():
        assert logits[kept].min() >= logits[~kept].max()


def test_plain_sampling_is_softmax():
    logits = np.array([0.5, -1.0, 3.0, 0.0])
    expected = torch.softmax(torch.from_numpy(logits) / 0.7, 0).numpy()
    for off in ({}, {"top_k": 4}, {"top_k": 99}, {"top_p": 1.0}):
        np.testing.assert_allclose(next_token_distribution(logits, 0.7, **off), expected, rtol=1e-13)


@given(LOGITS)
def test_one_token_is_the_likeliest_and_of_equals_the_first(logits):
    greedy = np.eye(len(logits))[logits.argmax()]
    for settings in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}):
        assert (next_token_distribution(logits, **settings) == greedy).all()


def test_temperatures_close_to_zero_and_endless_ones():
    assert next_token_distribution(np.array([0.0, 9.0]), 5e-324).tolist() == [0, 1]
    assert next_token_distribution(np.array([0.0, 9.0]), math.inf).tolist() == [0.5, 0.5]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.floats(0.001, 0.999))
def test_top_p_keeps_the_fewest_tokens_that_reach_it(weights, top_p):
    """Against the definition: of all sets of tokens, the smallest whose probability is at least `top_p`."""
    total = sum(weights)
    assume(all(abs(sum(some) / total - top_p) > 1e-9 for some in _subsets(weights)))  # no rounding decides
    fewest = min(len(some) for some in _subsets(weights) if sum(some) / total >= top_p)
    p = next_token_distribution(np.log(weights), top_p=top_p)
    kept = [w for w, probability in zip(weights, p, strict=True) if probability > 0]
    assert sorted(kept) == sorted(weights)[-fewest:]
    np.testing.assert_allclose(p[p > 0], np.array(kept) / sum(kept))


def _subsets(items):
    return itertools.chain.from_iterable(itertools.combinations(items, n) for n in range(len(items) + 1))


def test_top_p_looks_at_what_top_k_has_left():
    p = next_token_distribution(np.log([4, 3, 2, 1]), top_k=2, top_p=0.55)  # 4/7 is more than 0.55, 0.4 not
    assert p.tolist() == [1, 0, 0, 0]
    assert (next_token_distribution(np.log([4, 3, 2, 1]), top_p=0.55) > 0).tolist() == [1, 1, 0, 0]


def test_logits_that_are_no_numbers_are_said():
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        next_token_distribution(np.array([0.0, math.nan]))


# Text from a model

CONFIG = preset("modern", vocab_size=11, context_length=8, n_layer=2, n_head=2, n_kv_head=1, d_model=16)


@pytest.fixture(scope="module")
def trained():
    """A model that has learned the alphabet, and its tokenizer."""
    tokens = np.tile(np.arange(11), 40)
    model = ManualTransformer(CONFIG, as_tensors(initial_weights(CONFIG), dtype=torch.float64))
    batches = data.Batches(tokens, 4, CONFIG.context_length, to=torch.from_numpy)
    training.train(model, optim.AdamW(model.weights, 1e-2), batches, 80, max_norm=1.0)
    return model, CharTokenizer("abcdefghij")


class Says:
    """A model that writes given tokens, whatever it reads."""

    def __init__(self, tokenizer, tokens):
        self.config = SimpleNamespace(context_length=4, vocab_size=tokenizer.vocab_size)
        self.weights = {"embedding.weight": torch.zeros(1)}
        self.tokens = iter(tokens)

    def logits(self, ids):
        logits = torch.full((*ids.shape, self.config.vocab_size), -100.0)
        logits[0, -1, next(self.tokens)] = 100.0
        return logits


def test_generate_goes_on_where_the_prompt_ends(trained):
    model, tokenizer = trained
    assert generate(model, tokenizer, "abc", 4, temperature=0) == "abcdefg"
    assert generate(model, tokenizer, "abc", 0) == "abc"
    assert generate(model, tokenizer, "", 4, temperature=0) == "abcd"  # after the end of a text, a new one
    assert generate(model, tokenizer, "a", 99, temperature=0) == "abcdefghij"  # then the end of the text
    hot = [generate(model, tokenizer, "abc", 9, temperature=30.0, seed=s) for s in (0, 0, 1)]
    assert hot[0] == hot[1] != hot[2]
    assert generate(model, tokenizer, "a", 99, temperature=9.0, top_k=1) == "abcdefghij"
    assert generate(model, tokenizer, "a", 99, temperature=0, stop="gh") == "abcdef"


def test_generate_refuses_what_it_cannot_do(trained):
    model, tokenizer = trained
    for bad, said in (
        ({"prompt": "z"}, "'z' is not in this tokenizer's alphabet"),
        ({"n_tokens": -1}, "n_tokens = -1: expected 0 or more"),
        ({"seed": -1}, "seed = -1: expected 0 or more"),
        ({"temperature": -1}, "temperature = -1"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"top_k": 0}, "top_k = 0: expected 1"),
        ({"top_p": 0.0}, "top_p = 0.0: expected more than 0"),
        ({"top_p": 1.1}, r"top_p = 1.1: .* at most 1"),
        ({"stop": ["a", ""]}, "A stop string is empty"),
        ({"tokenizer": CharTokenizer("abcdefghijk")}, "The tokenizer has 12 tokens and the model 11"),
    ):
        with pytest.raises(ValueError, match=said):  # at once, not when the first piece is asked for
            stream(**{"model": model, "tokenizer": tokenizer, "prompt": "a", "n_tokens": 3} | bad)


@given(st.text(min_size=1), st.text())
def test_bytes_stream_as_whole_characters(prompt, text):
    tokenizer = BPETokenizer([bytes([i]) for i in range(256)])
    ids = [*tokenizer.encode(text, allowed_special=(), disallowed_special=()), tokenizer.end_of_text]
    pieces = list(stream(Says(tokenizer, ids), tokenizer, prompt + "x", 10_000))
    assert pieces == list(text)


def test_the_space_that_a_prompt_ends_with_belongs_to_the_next_word():
    tokenizer = BPETokenizer.train(["an old man and an old hat"], 262, special_tokens=[END_OF_TEXT])
    (a,), (old,) = tokenizer.encode("a"), tokenizer.encode(" old")
    model = Says(tokenizer, [])
    rows = torch.eye(tokenizer.vocab_size)
    model.logits = lambda ids: (rows[a] + 0.5 * rows[old])[None, None]
    assert generate(model, tokenizer, "an ", 1, temperature=0) == "an old"
    assert generate(model, tokenizer, "an", 1, temperature=0) == "ana"
    assert generate(model, tokenizer, " ", 1, temperature=0) == " a"  # no word before it: a space it is
    assert list(stream(model, tokenizer, "an ", 2, temperature=0)) == ["old", "a"]


def test_half_a_character_at_the_end_is_left_out_and_no_character_replaced():
    tokenizer = BPETokenizer([bytes([i]) for i in range(256)])
    for written, shown in (
        (b"a\xc3", "a"),
        ("aé".encode(), "aé"),
        (b"\xc3a", "\ufffda"),
        (b"\xffa", "\ufffda"),
    ):
        assert "".join(stream(Says(tokenizer, written), tokenizer, "x", len(written))) == shown


def test_a_prompt_of_bytes_is_plain_text():
    tokenizer = BPETokenizer([bytes([i]) for i in range(256)])
    seen = []

    class Watching(Says):
        def logits(self, ids):
            seen.append(ids[0].tolist())
            return super().logits(ids)

    model = Watching(tokenizer, [97])
    assert generate(model, tokenizer, END_OF_TEXT, 1) == END_OF_TEXT + "a"
    assert seen == [list(b"xt|>")]  # the last of its context
    generate(Watching(tokenizer, [97]), tokenizer, "", 1)
    assert seen[1:] == [[tokenizer.end_of_text]]


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(st.lists(st.text("abc", max_size=3)), STOPS)
def test_nothing_of_a_stop_string_is_ever_shown(pieces, stop):
    """However the text is cut into pieces: all before the stop string that is complete first."""
    text = "".join(pieces)
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    shown = list(inference._before(tuple(stop), pieces))
    assert "".join(shown) == (text[: min(ends)[1]] if ends else text)
    assert "" not in shown


def test_text_is_shown_as_soon_as_it_is_clear():
    given_out = []

    def pieces():
        for piece in ("one", " tw", "o st", "op", "never"):
            yield piece
            given_out.append(piece)

    shown = inference._before(("stop",), pieces())
    assert [(piece, len(given_out)) for piece in shown] == [("one", 0), (" tw", 1), ("o ", 2)]


WORDS = st.lists(st.text("ab ", min_size=1, max_size=9) | st.just("\n"), max_size=30)


@given(WORDS, st.integers(4, 20))
def test_lines_break_between_words_and_nothing_else_changes(pieces, width):
    lines, text = Lines(width), "".join(pieces)
    shown = "".join(lines.add(piece) for piece in pieces) + lines.rest()
    assert shown.split() == text.split()
    for line in shown.split("\n"):
        assert len(line) <= width or " " not in line.strip()
    if all(len(line) <= width for line in text.split("\n")):
        assert [line.rstrip() for line in shown.split("\n")] == [line.rstrip() for line in text.split("\n")]
    assert "".join(map(Lines(None).add, pieces)) == text


def test_a_word_is_shown_when_its_end_is_there():
    lines = Lines(10)
    shown = [lines.add(piece) for piece in ("An old", " wom", "an s", "at.\n", "  Yes")] + [lines.rest()]
    assert shown == ["An", " old", "\nwoman", " sat.\n", "", "  Yes"]


# The commands


@pytest.mark.parametrize("command, said", [
    (["generate", "--seed", "-1"], "error: seed = -1: expected 0 or more.\n"),
    (["chat", "--tokens", "0"], "error: tokens 0: expected a whole number from 1 on, such as tokens 200.\n"),
])  # fmt: skip
def test_mistakes_need_not_wait_for_pytorch(command, said):
    code = f"import sys, course.__main__ as c; status = c.main({command}); "
    code += "sys.exit(2 * ('torch' in sys.modules) + status)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, said)


@pytest.mark.parametrize("error, status, said", [
    (KeyboardInterrupt(), 130, "Stopped.\n"),
    (ModuleNotFoundError(name="torch"), 1, "The package 'torch' is not installed here: run `make lab`.\n"),
])  # fmt: skip
def test_a_command_that_cannot_start_says_so(error, status, said, monkeypatch, capsys):
    """Ctrl-C while it is still importing, or a package that is missing."""

    def refuse(name):
        raise error

    monkeypatch.setattr(command_line.importlib, "import_module", refuse)
    assert command_line.main(["chat"]) == status
    assert capsys.readouterr().err == said


@pytest.fixture(scope="module")
def alphabet(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "alphabet.safetensors"
    checkpoint.save(path, CONFIG, trained[0].weights, trained[1])
    return str(path)


def test_generate_works_at_once(capsys):
    assert command_line.main(["generate", "--prompt", "The ", "--tokens", "20", "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("The ") and len(text) > 24
    model, tokenizer = inference.open_model()
    assert text == generate(model, tokenizer, "The ", 20, temperature=0.7, top_p=0.9, seed=3) + "\n"


def test_generate_as_asked(alphabet, capsys):
    assert command_line.main(["generate", alphabet, "--prompt", "ab", "--greedy"]) == 0
    assert (
        command_line.main(["generate", alphabet, "--prompt", "ab", "--top-k", "1", "--stop", "z", "ef"]) == 0
    )
    assert capsys.readouterr().out == "abcdefghij\nabcd\n"


def test_generate_says_what_is_wrong(alphabet, tmp_path, capsys):
    for bad, said in (
        ([alphabet, "--prompt", "é"], "'é' is not in this tokenizer's alphabet"),
        ([alphabet, "--prompt", "a", "--top-p", "7"], "top_p = 7.0: expected"),
        ([str(tmp_path / "none")], "none"),
    ):
        assert command_line.main(["generate", *bad]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and said in err and err.count("\n") == 1


def run_course(*arguments, typed=b""):
    return subprocess.run([sys.executable, "-m", "course", *arguments], input=typed, capture_output=True)


def test_a_prompt_from_a_pipe(alphabet):
    run = run_course("generate", alphabet, "--prompt", "-", "--greedy", typed=b"abc\n")
    assert (run.returncode, run.stdout, run.stderr) == (0, b"abcdefghij\n", b"")


def test_closed_input_is_empty_and_closed_output_shows_nothing(alphabet):
    command = f"exec '{sys.executable}' -m course"
    for closed, printed in (
        (f"generate '{alphabet}' --prompt - --tokens 1 <&-", None),
        (f"generate '{alphabet}' --prompt ab --greedy >&-", b""),
        (f"chat '{alphabet}' <&-", None),
    ):
        run = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True)
        assert (run.returncode, run.stderr) == (0, b"") and printed in (None, run.stdout)


def test_a_terminal_without_the_letters_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    text, tokenizer = tmp_path / "text.txt", tmp_path / "übung.json"
    text.write_text("abcdefghij")
    run = run_course("tokenize", "train", str(text), "--vocab-size", "260", "--output", str(tokenizer))
    assert run.returncode == 0 and b"?bung.json" in run.stdout and tokenizer.is_file(), run.stderr


def test_a_reader_that_has_had_enough_is_no_error():
    command = [sys.executable, "-m", "course", "generate", "--tokens", "10000"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.read(1)
    run.stdout.close()
    assert run.wait(timeout=60) == 1 and run.stderr.read() == b""
    run.stderr.close()


DIALOGUE = [
    ("temp 0", "temp 0.0, topk off, topp 0.9, tokens 300, seed 0"),
    ("topp off", "temp 0.0, topk off, topp off, tokens 300, seed 0"),
    ("", "abcdefghij"),  # Enter alone at first: a text of its own
    ("", "(The model ends the text here. Type how another one begins.)"),
    ("tokens 2", "temp 0.0, topk off, topp off, tokens 2, seed 2"),
    ("abc", "de"),
    ("  ", "fg"),  # Enter alone, or with spaces: on with the text so far
    ("/topk 1", "temp 0.0, topk 1, topp off, tokens 2, seed 4"),
    ("topk off", "temp 0.0, topk off, topp off, tokens 2, seed 4"),
    ("topp 0.5", "temp 0.0, topk off, topp 0.5, tokens 2, seed 4"),
    ("seed 7", "temp 0.0, topk off, topp 0.5, tokens 2, seed 7"),
    ("temp hot", "temp hot: expected a number from 0 on"),
    ("temp nan", "temp nan: expected"),
    ("temp -1", "temp -1: expected"),
    ("/temp 1 2", "temp 1 2: expected"),
    ("topk 0", "topk 0: expected a whole number from 1 on"),
    ("topp 2", "topp 2: expected a number above 0 and at most 1"),
    ("tokens", "tokens : expected"),
    ("tokens off", "tokens off: expected"),
    ("seed 1.5", "seed 1.5: expected"),
    ("é", "The character 'é' is not in this tokenizer's alphabet"),
    ("\udcff", "The character '\ufffd' is not in"),  # a byte that is no text
    ("help me", "The character 'l' is not in"),  # text, like all that is no command as it is written
    (" temp 1", "The character ' ' is not in"),
    ("seed of a plan", "The character 's' is not in"),
    ("/nothing", "There is no command 'nothing': help lists them."),
    ("/", "There is no command '/'"),
    ("settings", "temp 0.0, topk off, topp 0.5, tokens 2, seed 7"),  # nothing wrong has changed a thing
    ("abcde", "fg"),
]


def test_chat_through_pipes(alphabet):
    typed = "\n".join(line for line, _ in DIALOGUE).encode(errors="surrogateescape")
    run = run_course("chat", alphabet, typed=typed)
    assert run.returncode == 0 and run.stderr == b""
    about, hint, *said = run.stdout.decode().splitlines()
    assert "goes on with your text" in about and "help lists the commands" in hint
    for (line, expected), answer in zip(DIALOGUE, said, strict=True):
        assert answer.startswith(expected), line


def test_chat_helps_and_ends_when_asked(trained, capsys):
    chat = Chat(*trained, Settings(temp=0.0, topk=None, topp=None, tokens=5, seed=0))
    for word in ("help", "/help"):
        assert chat.line(word)
        text = capsys.readouterr().out
        assert "topk 40" in text and max(map(len, text.splitlines())) < 80
    for word in ("quit", "/quit", "exit", "/exit"):
        assert not chat.line(word)


@pytest.fixture
def ctrl_c_is_heard():
    """A program started in the background (CI does that) ignores Ctrl-C, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *command):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [sys.executable, *command])
        self.shown = ""

    def type(self, keys: str, until: str | None = None) -> None:
        """Type, and wait until the program has shown a text (None: has ended).

        A key that comes between two looks at the keyboard may go unnoticed (Ctrl-C does): it is pressed
        again, as a person would, but not while the program may be busy with ending.
        """
        for _ in range(60):
            os.write(self.file, keys.encode())
            if self.shows(until, seconds=1 if until else 20):
                return
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"no {until!r} after {keys!r}, but {self.shown!r}")

    def shows(self, text: str | None, seconds: float = 60) -> bool:
        deadline = time.monotonic() + seconds
        while text is None or text not in self.shown:
            if not select.select([self.file], [], [], max(0, deadline - time.monotonic()))[0]:
                return False
            try:
                self.shown += os.read(self.file, 4096).decode(errors="replace")
            except OSError:  # it has ended
                return text is None
        self.shown = self.shown.split(text, 1)[1]
        return True

    def status(self) -> int:
        os.close(self.file)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_chat_at_a_terminal(ctrl_c_is_heard):
    """Ctrl-C stops an answer and not the chat; typed twice where a line would be, or Ctrl-D, ends it."""
    chat = Terminal("-m", "course", "chat", "--tokens", "100000")
    assert chat.shows("> ")
    chat.type("The old man\n", until="The old man\r\n")
    assert chat.shows("e")  # it is writing
    chat.type("\x03", until="\n> ")
    chat.type("tokens 3\n", until="tokens 3, seed 1")
    assert chat.shows("> ")
    chat.type("\x03", until="(Ctrl-C again, or quit, ends the chat.)")
    assert chat.shows("> ")
    chat.type("\x03")
    assert chat.status() == 0

    chat = Terminal("-m", "course", "chat")
    assert chat.shows("> ")
    chat.type("\x04")
    assert chat.status() == 0


def test_ctrl_c_ends_generate_with_one_line(ctrl_c_is_heard):
    run = subprocess.Popen(
        [sys.executable, "-m", "course", "generate", "--tokens", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    run.stdout.read(5)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130 and err == b"Stopped.\n" and out.endswith(b"\n")
