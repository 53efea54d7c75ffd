"""The shape of every notebook, and whether the tool that checks it can be believed.

What the notebooks compute is tested by running them: `make test`, second half.
"""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import notebooks

# --- the course's own notebooks ---------------------------------------------------------


@pytest.mark.parametrize("path", notebooks.find([]), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shape(path):
    assert notebooks.problems(path, notebooks.address()) == []


def test_the_course_begins():
    assert (notebooks.ROOT / "notebooks/00_start_here.ipynb").exists()


def test_every_lesson_has_solutions_and_nothing_else_does():
    folder = notebooks.ROOT / "notebooks"
    lessons = {path.name for path in folder.glob("*.ipynb")}
    assert lessons == {path.name for path in folder.glob("solutions/*.ipynb")}


# --- a small course, to try the tool on -------------------------------------------------


def code(source, says=None, tags=()):
    outputs = [new_output("stream", name="stdout", text=says)] if says else []
    return new_code_cell(source, outputs=outputs, metadata={"tags": list(tags)} if tags else {})


def build(path: Path, cells) -> None:
    """Store cells as if they had been executed in order."""
    codes = [cell for cell in cells if cell.cell_type == "code"]
    for count, cell in enumerate(codes, 1):
        cell.execution_count = count
    notebook = new_notebook(cells=cells)
    notebooks.normalise(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    notebooks.write(notebook, path)


def exercise(k, answer, source="..."):
    return [
        new_markdown_cell(f"### Exercise {k}\n\nWrite it."),
        code(source, tags=["exercise"]),
        code(f'check("01.{k}", answer)', says=answer),
        new_markdown_cell("<details><summary>Hint</summary>Think.</details>"),
    ]


@pytest.fixture
def lesson(tmp_path):
    """A course of one lesson with which nothing is wrong."""
    shutil.copy(notebooks.ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "notebooks/01_small.ipynb"
    solutions = tmp_path / "notebooks/solutions/01_small.ipynb"
    notebooks.stamp("", tmp_path)

    def opening(path):
        title = f"# 01. Small\n\n{notebooks.badge(path, '')}\n\n*Outputs stored from: a CPU.*"
        return [new_markdown_cell(title), code(notebooks.setup_cell(""), tags=["setup"])]

    body = [code(f"print({i})", says=f"{i}\n") for i in range(18)]
    turn = [cell for k in (1, 2, 3) for cell in exercise(k, "not solved yet")]
    end = [new_markdown_cell("## What you built"), new_markdown_cell("## References")]
    build(path, [*opening(path), *body, new_markdown_cell("## Your turn"), *turn, *end])
    solved = [cell for k in (1, 2, 3) for cell in exercise(k, "right", "answer = 1")]
    build(solutions, [*opening(solutions), *solved])
    return path


def test_a_good_lesson_has_no_problems(lesson):
    assert notebooks.problems(lesson, "") == []
    assert notebooks.problems(lesson.parent / "solutions" / lesson.name, "") == []


# --- the checker reports what is wrong --------------------------------------------------


def last(cells, tag):
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])][-1]


def drop(cells, words):
    cells[:] = [cell for cell in cells if words not in cell.source]


def prints(cells):
    return [cell for cell in cells if cell.source.startswith("print")]


def error_output(cells):
    cells[3].outputs = [new_output("error", ename="ValueError", evalue="no", traceback=[])]


def ignore_most(cells):
    for cell in prints(cells)[:12]:
        cell.metadata["tags"] = ["nbval-ignore-output"]


BROKEN = {
    "a title": lambda cells: cells.pop(0),
    "badge line": lambda cells: cells[0].update(source="# 01. Small"),
    "must be the setup cell": lambda cells: cells.pop(1),
    "setup cell is not": lambda cells: cells[1].update(source="import torch"),
    "not executed top to bottom": lambda cells: cells[3].update(execution_count=None),
    "the counts are": lambda cells: cells.pop(5),
    "stored an error": error_output,
    "'nbval-skip'": lambda cells: cells[3].metadata.update(tags=["nbval-skip"]),
    "'raises-exception'": lambda cells: cells[3].metadata.update(tags=["raises-exception"]),
    "'skip-execution'": lambda cells: cells[3].metadata.update(tags=["skip-execution"]),
    "NBVAL_IGNORE_OUTPUT": lambda cells: cells[3].update(source="# NBVAL_IGNORE_OUTPUT\n1"),
    "a path of the machine": lambda cells: cells[3].outputs[0].update(text="/home/ada/x.py\n"),
    "site-packages": lambda cells: cells[3].outputs[0].update(text="x/site-packages/y.py:3\n"),
    "it has 34 cells": lambda cells: cells.__delitem__(slice(2, 3)),
    "has 26 lines": lambda cells: cells[3].update(source="x = 1\n" * 26),
    "are compared": ignore_most,
    "no section 'Your turn'": lambda cells: drop(cells, "## Your turn"),
    "no section 'What you built'": lambda cells: drop(cells, "## What you built"),
    "no section 'References'": lambda cells: drop(cells, "## References"),
    "which machine": lambda cells: cells[0].update(source=cells[0].source.split("*Outputs")[0]),
    "it has 2 exercises": lambda cells: last(cells, "exercise").metadata.clear(),
    "exercise 01.2 has no cell": lambda cells: drop(cells, 'check("01.2"'),
    "exercise 01.3 has no hint": lambda cells: cells.pop(-3),
    "before the section": lambda cells: cells[2].metadata.update(tags=["exercise"]),
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_lesson_is_reported(lesson, words):
    notebook = nbformat.read(lesson, as_version=4)
    BROKEN[words](notebook.cells)
    notebooks.write(notebook, lesson)
    assert any(words in problem for problem in notebooks.problems(lesson, ""))


def test_missing_and_untouched_solutions_are_reported(lesson):
    path = lesson.parent / "solutions" / lesson.name
    solutions = nbformat.read(path, as_version=4)
    drop(solutions.cells, "01.3")
    for cell in solutions.cells:
        if 'check("01.2"' in cell.source:
            cell.outputs[0].text = "not solved yet"
    notebooks.write(solutions, path)
    found = "\n".join(notebooks.problems(lesson, ""))
    assert "exercise 01.3 is not solved" in found
    assert "exercise 01.2: the check says the same" in found
    assert "exercise 01.1" not in found


def test_a_failed_solution_is_reported(lesson):
    path = lesson.parent / "solutions" / lesson.name
    solutions = nbformat.read(path, as_version=4)
    error_output(solutions.cells)
    notebooks.write(solutions, path)
    assert any("stored an error" in problem for problem in notebooks.problems(path, ""))


# --- stamping ---------------------------------------------------------------------------


def test_stamping_is_repeatable_and_leaves_outputs_alone(lesson):
    root = lesson.parent.parent
    solutions = lesson.parent / "solutions" / lesson.name
    unstamped = lesson.read_bytes()
    outputs = [cell.get("outputs") for cell in nbformat.read(lesson, as_version=4).cells]

    assert notebooks.stamp("ada/course", root) == [lesson, solutions]
    assert notebooks.address(root) == "ada/course"
    assert notebooks.stamp("ada/course", root) == []
    assert notebooks.problems(lesson, "ada/course") == []
    assert notebooks.problems(lesson, "") != []
    notebook = nbformat.read(lesson, as_version=4)
    assert "github/ada/course/blob/main/notebooks/01_small.ipynb" in notebook.cells[0].source
    assert "ada/course" in notebook.cells[1].source
    assert [cell.get("outputs") for cell in notebook.cells] == outputs

    notebooks.stamp("ben/fork", root)
    assert "ada/course" not in lesson.read_text() + (root / "pyproject.toml").read_text()
    notebooks.stamp("", root)
    assert lesson.read_bytes() == unstamped


@pytest.mark.parametrize("repository", ["course", "https://github.com/ada/course", 'a/b"', "a/b/c"])
def test_stamping_refuses_what_is_no_address(lesson, repository):
    before = lesson.read_bytes()
    with pytest.raises(SystemExit, match="not of the form owner/name"):
        notebooks.stamp(repository, lesson.parent.parent)
    assert lesson.read_bytes() == before


# --- executing --------------------------------------------------------------------------


def test_executing_stores_outputs_and_says_from_where(tmp_path):
    path = tmp_path / "01_x.ipynb"
    line = new_markdown_cell("*Outputs stored from: .*")
    build(path, [line, code("import os; print(os.getcwd())"), code("1 + 1")])
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    notebooks.execute(path)
    stored = nbformat.read(path, as_version=4)
    assert stored.cells[0].source.startswith("*Outputs stored from: a CPU")
    assert stored.cells[1].outputs[0].text.strip() == str(tmp_path)
    assert stored.cells[2].outputs[0].data["text/plain"] == "2"
    assert [cell.id for cell in stored.cells] == ids
    assert all("execution" not in cell.metadata for cell in stored.cells)


def test_a_failing_cell_leaves_the_notebook_as_it_was(tmp_path):
    path = tmp_path / "01_x.ipynb"
    build(path, [code("print('new')", says="old\n"), code("raise ValueError('planted')")])
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="planted"):
        notebooks.execute(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- the setup cell, where it cannot go on (tests/test_colab.py runs it where it can) ----


def run_setup(tmp_path, monkeypatch, repository, before):
    """Run the setup cell in a kernel, from an empty folder; the error it ends with, in words."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    path = tmp_path / "01_x.ipynb"
    build(path, [code(before), code(notebooks.setup_cell(repository))])
    with pytest.raises(CellExecutionError) as failed:
        notebooks.execute(path)
    return failed.value.evalue


BLIND = "import importlib.util; importlib.util.find_spec = lambda name: None\n"
COLAB = "import sys, types; sys.modules['google.colab'] = types.ModuleType('colab')\n"


def test_on_colab_without_an_address_the_setup_cell_says_so(tmp_path, monkeypatch):
    assert "No address yet" in run_setup(tmp_path, monkeypatch, "", BLIND + COLAB)


def test_in_an_environment_without_the_course_the_setup_cell_names_make_lab(tmp_path, monkeypatch):
    assert "make lab" in run_setup(tmp_path, monkeypatch, "ada/course", BLIND)


# --- beginning a lesson -----------------------------------------------------------------


def test_a_new_lesson_has_its_frame_and_is_never_overwritten(lesson):
    root = lesson.parent.parent
    path, solutions = notebooks.new("02_next_step", root)
    found = "\n".join(notebooks.problems(path, ""))
    assert "title" not in found and "badge" not in found and "setup" not in found
    assert "no section" not in found and "which machine" not in found
    assert solutions.exists()
    with pytest.raises(SystemExit, match="exists already"):
        notebooks.new("02_next_step", root)
