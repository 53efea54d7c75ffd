"""Every exercise: its checker rejects the untouched stub and plausible mistakes, and accepts the solution.

Stub and solution are taken from the notebooks themselves: the setup cell, then the cells tagged `exercise`.
"""

import ast
import importlib
import linecache
import re
from pathlib import Path

import nbformat
import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager

from course.exercises import Wrong, check, exercise, expect_close, judge

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
NUMBERS = sorted(
    number
    for path in NOTEBOOKS.glob("*.ipynb")
    for number in set(re.findall(r'check\(\\"(\d\d\.\d+)\\"', path.read_text(encoding="utf-8")))
)


def answer_in(folder: Path, number: str):
    """What the notebook of an exercise passes to `check`, after running setup and exercise cells."""
    (path,) = folder.glob(f"{number[:2]}_*.ipynb")
    namespace: dict = {}
    for cell in nbformat.read(path, as_version=4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and {"setup", "exercise"} & set(tags):
            _run(TransformerManager().transform_cell(cell.source), path, namespace)
        elif call := re.search(rf'^check\("{re.escape(number)}", *(.+)\)', cell.source, re.M | re.S):
            expression = ast.parse(f"f({call.group(1)})".split("\n")[0], mode="eval").body.args[0]
            return eval(compile(ast.Expression(expression), str(path), "eval"), namespace)
    raise AssertionError(f"{path.name} has no check of exercise {number}")


def _run(code: str, path: Path, namespace: dict) -> None:
    """Run a cell so that `inspect` finds its source, as in a notebook: Triton compiles from that."""
    name = f"<{path.stem}: {hash(code)}>"
    linecache.cache[name] = len(code), None, code.splitlines(keepends=True), name
    exec(compile(code, name, "exec"), namespace)


def test_there_are_exercises_in_every_notebook():
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert any(number.startswith(path.name[:2]) for number in NUMBERS), path.name


@pytest.mark.parametrize("number", NUMBERS)
def test_the_untouched_stub_is_not_solved(number):
    verdict = judge(number, answer_in(NOTEBOOKS, number))
    assert not verdict.solved and verdict.text == f"Exercise {number}: not solved yet."


@pytest.mark.parametrize("number", NUMBERS)
def test_the_solution_is_accepted(number):
    verdict = judge(number, answer_in(NOTEBOOKS / "solutions", number))
    assert verdict.solved, verdict.text


@pytest.mark.parametrize("number", NUMBERS)
def test_plausible_mistakes_are_rejected_in_words(number):
    module = importlib.import_module(f"wrong_answers.nb{number[:2]}")
    assert module.WRONG_ANSWERS[number]
    for answer, words in module.WRONG_ANSWERS[number]:
        verdict = judge(number, answer)
        assert not verdict.solved and words in verdict.text, verdict.text
        assert "not solved yet" not in verdict.text


# The checking itself

double = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("got", "words"),
    [
        ([1, 2], "should be a tensor, and is a list"),
        (double[:1], r"shape \(1, 2\), expected \(2, 2\)"),
        (double[None], "Is a sum missing"),
        (double.reshape(4), "only the shape differs"),
        (-double, "wrong sign"),
        (2 * double, "2 times what it should be"),
        (double.T, "is transposed"),
        (double / 0, "not finite"),
        (double + torch.eye(2), r"at \[0, 0\] it is 2, expected 1"),
    ],
)
def test_expect_close_says_what_is_wrong(got, words):
    with pytest.raises(Wrong, match=words):
        expect_close("dx", got, double)


def test_expect_close_accepts_what_is_close_enough():
    expect_close("dx", double * (1 + 1e-12), double)
    expect_close("dx", torch.zeros(3), torch.zeros(3))
    with pytest.raises(Wrong, match="Is it transposed"):
        expect_close("dx", double[:, :1].T, double[:, :1])


@exercise("00.90")
def _answer_is_six(answer):
    if answer() != 6:
        raise Wrong("Six was wanted.")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda: 6, "solved."),
        (lambda: 7, "not right yet. Six was wanted."),
        (lambda: ..., "not solved yet."),
        (lambda: None, "not solved yet."),
        (lambda: (1, ...), "not solved yet."),
        (lambda: 1 / 0, "not right yet. It raised ZeroDivisionError: division by zero"),
        (..., "not solved yet."),
    ],
)
def test_verdicts_are_words_whatever_the_answer_does(answer, text, capsys):
    check("00.90", answer)
    assert capsys.readouterr().out == f"Exercise 00.90: {text}\n"


def test_an_exercise_that_does_not_exist():
    for number in ("00.99", "77.1", "nonsense"):
        with pytest.raises(ValueError, match="There is no exercise"):
            judge(number, None)
