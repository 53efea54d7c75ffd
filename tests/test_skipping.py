"""Notebooks where there is no C++ compiler: what needs one says so, and the rest runs."""

import os

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

SETUP = """
import os
from course import skipping
from kernels.cuda.module import load
SOURCE = 'extern "C" __global__ void k(int n) {}'
skipping.go_on_without_compiler()
"""
CELLS = {
    "what needs no compiler": "before = 2\nbefore + 1",
    "what does": "kernel = load(SOURCE, emulate=True).k\nimport math as m",
    "what comes after it": "kernel[1, 1](5)",
    "what it would have imported": "m.pi",
    "a mistake": "kernels",
}


@pytest.fixture(scope="module", params=["without", "with"])
def outputs(request, tmp_path_factory):
    """(whether there is a compiler, what each cell of a notebook shows)."""
    folder = tmp_path_factory.mktemp("skipping")
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "COURSE_DEVICE": "cpu"}
    if request.param == "without":
        environment |= {"PATH": str(folder), "COURSE_CACHE_DIR": str(folder)}
    notebook = new_notebook(cells=[new_code_cell(source) for source in (SETUP, *CELLS.values())])
    NotebookClient(notebook, timeout=120, allow_errors=True).execute(env=environment)
    shown = ("setup", *CELLS)
    return request.param == "with", {k: cell.outputs for k, cell in zip(shown, notebook.cells, strict=True)}


def text(cell: list) -> str:
    return "".join(output.get("text", "") for output in cell)


def test_cells_that_need_a_compiler_say_so_and_the_others_run(outputs):
    compiler, shown = outputs
    assert [o.output_type for o in shown["what needs no compiler"]] == ["execute_result"]
    assert shown["what needs no compiler"][0].data["text/plain"] == "3"
    if compiler:
        assert not shown["setup"] and not shown["what does"] and not shown["what comes after it"]
        return
    assert "sudo apt install g++" in text(shown["setup"]) or "xcode-select" in text(shown["setup"])
    assert text(shown["what does"]) == "Needs a C++ compiler.\n"
    assert text(shown["what comes after it"]) == "kernel comes from a cell that could not run here.\n"
    assert text(shown["what it would have imported"]) == "m comes from a cell that could not run here.\n"


def test_other_errors_stay_errors(outputs):
    _, shown = outputs
    assert [o.ename for o in shown["a mistake"] if o.output_type == "error"] == ["NameError"]
