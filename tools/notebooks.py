"""The notebooks' housekeeping.

python tools/notebooks.py execute [NAME ...]      run them anew and store their outputs
python tools/notebooks.py check [NAME ...]        say what is wrong with their shape
python tools/notebooks.py stamp [--repository R]  renew badge and setup cell, with a new address
python tools/notebooks.py new NN_name             begin a lesson, and its solutions

A NAME is a notebook's name or how it begins: `02` is notebook 02 and its solutions.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
SETUP_CELL = Path(__file__).with_name("setup_cell.py.txt")

LAST_OF_PART_ONE = 6  # notebooks 00 to 06 promise to run on a CPU, and are stored from one
CELLS = range(35, 71)
CODE_LINES = 25
EXERCISES = range(3, 6)

NO_BADGE = "*Open in Colab: this copy has no address yet; `make colab REPO=owner/name` adds the badge.*"
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path})"
)
BADGE_LINE = re.compile(r"^(?:\*Open in Colab:|\[!\[Open in Colab\]).*$", re.MULTILINE)
STORED_FROM = re.compile(r"^\*Outputs stored from: .*$", re.MULTILINE)
CHECK_CALL = re.compile(r"""^\s*check\(\s*["'](\d\d\.\d+)["']""", re.MULTILINE)
NBVAL_COMMENT = re.compile(r"^\s*#+\s*(NBVAL_\w+|PYTEST_VALIDATE_\w+)\s*$", re.MULTILINE)
LOCAL_PATH = re.compile(r"(?:/home/|/root/|/Users/|/tmp/|/private/|[A-Z]:\\Users\\)\S*|\S*/site-packages/\S*")


# --- where things are -----------------------------------------------------------------


def find(names: list[str], root: Path = ROOT) -> list[Path]:
    """The notebooks so named, each lesson followed by its solutions; without names all of them."""
    folder = root / "notebooks"
    every = sorted([*folder.glob("*.ipynb"), *folder.glob("solutions/*.ipynb")], key=_order)
    for name in names:
        if not any(path.stem.startswith(name) for path in every):
            raise SystemExit(f"error: no notebook is called {name!r}; there are: {_list(every)}")
    return [path for path in every if not names or path.stem.startswith(tuple(names))]


def address(root: Path = ROOT) -> str:
    """Where the course lives on GitHub, as owner/name; empty until it was stamped."""
    return tomllib.loads((root / "pyproject.toml").read_text())["tool"]["course"]["repository"]


def number(path: Path) -> int:
    """A notebook's number: 2 for `02_backprop_through_a_transformer.ipynb`."""
    return int(path.stem[:2])


def is_solutions(path: Path) -> bool:
    return path.parent.name == "solutions"


def badge(path: Path, repository: str) -> str:
    """The second line of a notebook: the way to open it in Colab."""
    inside = f"solutions/{path.name}" if is_solutions(path) else path.name
    return BADGE.format(repository=repository, path=inside) if repository else NO_BADGE


def setup_cell(repository: str) -> str:
    """The first code of a notebook, the same in all of them."""
    return SETUP_CELL.read_text().strip().replace("{{repository}}", repository)


def _order(path: Path) -> tuple[str, bool]:
    return path.name, is_solutions(path)


def _list(paths: list[Path]) -> str:
    return ", ".join(dict.fromkeys(path.stem for path in paths)) or "none"


def _tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def write(notebook, path: Path) -> None:
    """Store a notebook so that a reader sees the old file or the new one, never half of one."""
    text = nbformat.writes(notebook)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --- execute --------------------------------------------------------------------------


def execute(path: Path, timeout: int = 600) -> None:
    """Run a notebook from its own folder and store its outputs; on an error the file stays as is.

    Notebooks of part I do not see a GPU: they are stored from a CPU, whatever the machine.
    """
    notebook = nbformat.read(path, as_version=4)
    on_cpu = number(path) <= LAST_OF_PART_ONE
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {})
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=environment, stderr=subprocess.DEVNULL)  # cells' own stderr is an output
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            line = f"*Outputs stored from: {machine(on_cpu)}.*"
            cell.source = STORED_FROM.sub(lambda _: line, cell.source)  # noqa: B023, used at once
    normalise(notebook)
    write(notebook, path)


def machine(on_cpu: bool) -> str:
    """What the outputs were stored from, for a reader who wonders about a number."""
    import torch

    if on_cpu or not torch.cuda.is_available():
        hardware = f"a CPU ({platform.machine()}, {platform.system()})"
    else:
        hardware = f"one {torch.cuda.get_device_name()}"
    python = ".".join(platform.python_version_tuple()[:2])
    return f"{hardware}, torch {torch.__version__.split('+')[0]}, Python {python}"


def normalise(notebook) -> None:
    """Keep of the metadata only what a reader needs, so that a diff shows changes of the text."""
    widgets = {key: value for key, value in notebook.metadata.items() if key == "widgets"}
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
            **widgets,
        }
    )
    for cell in notebook.cells:
        kept = {key: value for key, value in cell.metadata.items() if key in ("tags", "jupyter")}
        cell.metadata = nbformat.from_dict(kept)


# --- check ----------------------------------------------------------------------------


def problems(path: Path, repository: str) -> list[str]:
    """What is wrong with a notebook, in words; empty if nothing is."""
    notebook = nbformat.read(path, as_version=4)
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [f"it is not a valid notebook: {error.message}"]
    found = [*_frame(notebook, path, repository), *_execution(notebook), *_outputs(notebook)]
    if not is_solutions(path):
        found += [*_size(notebook), *_compared(notebook, path), *_sections(notebook)]
        found += _exercises(notebook, path)
    return found


def _code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _name(cell) -> str:
    """How to find a cell: its count and its first line."""
    return f"[{cell.execution_count}] {cell.source.strip().split(chr(10))[0][:50]!r}"


def _text(output) -> str:
    """What an output says in words; a figure or a widget says nothing."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    if any(kind.startswith("image/") or "widget-view" in kind for kind in data):
        return ""
    return "\n".join(str(value) for kind, value in data.items() if kind.startswith("text/"))


def _frame(notebook, path: Path, repository: str) -> Iterator[str]:
    """Title, badge, setup cell."""
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is not markdown that begins with a title (`# ...`)"
    elif badge(path, repository) not in first.source.splitlines():
        yield "the first cell lacks the badge line; `tools/notebooks.py stamp` writes it"
    setup = [cell for cell in notebook.cells if "setup" in _tags(cell)]
    if len(setup) != 1 or setup[0] is not _code(notebook)[0]:
        yield "the first code cell, and only it, must be the setup cell, tagged `setup`"
    elif setup[0].source != setup_cell(repository):
        yield "the setup cell is not tools/setup_cell.py.txt; `tools/notebooks.py stamp` renews it"


def _execution(notebook) -> Iterator[str]:
    """Executed top to bottom, every cell, with no error and nothing hidden from the tests."""
    counts = [cell.execution_count for cell in _code(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"it was not executed top to bottom: the counts are {counts}"
    for cell in _code(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {_name(cell)} stored an error: {output.ename}: {output.evalue}"
        for tag in _tags(cell):
            if tag.startswith(("nbval-", "pytest-validate-", "skip-", "raises-")) and (
                tag != "nbval-ignore-output"
            ):
                yield f"cell {_name(cell)} is tagged {tag!r}: every cell runs, and none may fail"
        for comment in NBVAL_COMMENT.findall(cell.source):
            yield f"cell {_name(cell)} has the comment {comment}: use tags, which are seen"


def _outputs(notebook) -> Iterator[str]:
    """Nothing in the outputs belongs to the machine they were stored from."""
    for cell in _code(notebook):
        for output in cell.outputs:
            for where in dict.fromkeys(LOCAL_PATH.findall(_text(output))):
                yield f"cell {_name(cell)} printed a path of the machine it ran on: {where}"


def _size(notebook) -> Iterator[str]:
    if len(notebook.cells) not in CELLS:
        yield f"it has {len(notebook.cells)} cells; a lesson has {CELLS[0]} to {CELLS[-1]}"
    for cell in _code(notebook):
        if len(cell.source.splitlines()) > CODE_LINES:
            lines = len(cell.source.splitlines())
            yield f"cell {_name(cell)} has {lines} lines; code cells have at most {CODE_LINES}"


def _compared(notebook, path: Path) -> Iterator[str]:
    """Most cells that print are compared with what they printed when they were stored."""
    prints = [cell for cell in _code(notebook) if any(map(_text, cell.outputs))]
    compared = [cell for cell in prints if "nbval-ignore-output" not in _tags(cell)]
    share = 0.6 if number(path) <= LAST_OF_PART_ONE else 0.4
    if len(compared) < share * len(prints):
        yield (
            f"of {len(prints)} cells that print only {len(compared)} are compared by the tests; "
            f"at least {share:.0%} must be (fewer tags `nbval-ignore-output`)"
        )


def _sections(notebook) -> Iterator[str]:
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for title in ("Your turn", "What you built", "References"):
        if not re.search(rf"^#+ {title}\b", prose, re.MULTILINE):
            yield f"it has no section {title!r}"
    if not STORED_FROM.search(prose):
        yield (
            "no line says which machine the outputs are from: `*Outputs stored from: .*`, "
            "on a line of its own, is filled in by `tools/notebooks.py execute`"
        )


def _exercises(notebook, path: Path) -> Iterator[str]:
    """Each exercise: a stub, the cell that checks it, a hint, and a solution of the same number.

    The hint stands in the cell before the stub, or after it and before the next exercise.
    """
    cells = notebook.cells
    starts = [index for index, cell in enumerate(cells) if "exercise" in _tags(cell)]
    fewest = 1 if number(path) == 0 else EXERCISES[0]
    if not fewest <= len(starts) <= EXERCISES[-1]:
        yield f"it has {len(starts)} exercises; a lesson has {fewest} to {EXERCISES[-1]}"
    turn = [i for i, cell in enumerate(cells) if re.search(r"^#+ Your turn\b", cell.source, re.M)]
    if turn and starts and starts[0] < turn[0]:
        yield "an exercise stands before the section 'Your turn'"

    solved = _solutions(path.parent / "solutions" / path.name)
    for k, (start, end) in enumerate(pairwise([*starts, len(cells)]), 1):
        name = f"{path.stem[:2]}.{k}"
        checks = [cell for cell in cells[start + 1 : end] if name in CHECK_CALL.findall(cell.source)]
        hinted = any(
            cell.cell_type == "markdown" and "<details>" in cell.source
            for cell in cells[start - 1 : end - (end < len(cells))]
        )
        if not checks:
            yield f'exercise {name} has no cell after its stub that calls check("{name}", ...)'
        if not hinted:
            yield f"exercise {name} has no hint in <details>"
        if name not in solved:
            yield f'exercise {name} is not solved in solutions/{path.name}: no check("{name}", ...)'
        elif checks and solved[name] == "".join(map(_text, checks[0].outputs)):
            yield f"exercise {name}: the check says the same of the solution as of the stub"


def _solutions(path: Path) -> dict[str, str]:
    """What each check says in a notebook of solutions, by the number of the exercise."""
    if not path.exists():
        return {}
    return {
        name: "".join(map(_text, cell.outputs))
        for cell in _code(nbformat.read(path, as_version=4))
        for name in CHECK_CALL.findall(cell.source)
    }


# --- stamp and new --------------------------------------------------------------------


def stamp(repository: str, root: Path = ROOT) -> list[Path]:
    """Write the address into pyproject.toml, and badge and setup cell into every notebook.

    Outputs stay as they are. Returns the notebooks that changed. An empty address takes it back.
    """
    if repository and not re.fullmatch(r"[\w-]+/[\w.-]+", repository):
        raise SystemExit(f"error: {repository!r} is not of the form owner/name")
    changed = []
    for path in find([], root):
        old = nbformat.read(path, as_version=4)
        new = nbformat.read(path, as_version=4)
        if not new.cells or not BADGE_LINE.search(new.cells[0].source):
            raise SystemExit(f"error: {path.name} has no badge line in its first cell; add {NO_BADGE}")
        line = badge(path, repository)
        new.cells[0].source = BADGE_LINE.sub(lambda _: line, new.cells[0].source)  # noqa: B023
        for cell in new.cells:
            if "setup" in _tags(cell):
                cell.source = setup_cell(repository)
        if new != old:
            changed.append((path, new))
    project = root / "pyproject.toml"
    text = project.read_text()
    stamped = re.sub(r'(?m)^repository = ".*"$', f'repository = "{repository}"', text, count=1)
    if stamped != text:
        project.write_text(stamped)
    for path, new in changed:
        write(new, path)
    return [path for path, _ in changed]


def new(name: str, root: Path = ROOT) -> list[Path]:
    """Begin a lesson and its solutions: title, badge, setup cell, the sections each lesson has."""
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
        raise SystemExit(f"error: {name!r} is not of the form NN_name_in_lower_case")
    title = f"# {name[:2]}. {name[3:].replace('_', ' ').capitalize()}"
    repository = address(root)
    written = []
    for path in (
        root / "notebooks" / f"{name}.ipynb",
        root / "notebooks/solutions" / f"{name}.ipynb",
    ):
        if path.exists():
            raise SystemExit(f"error: {path.relative_to(root)} exists already")
        heading = f"{title}: solutions" if is_solutions(path) else title
        cells = [
            new_markdown_cell(f"{heading}\n\n{badge(path, repository)}"),
            new_code_cell(setup_cell(repository), metadata={"tags": ["setup"]}),
        ]
        if not is_solutions(path):
            cells[0].source += "\n\n*Outputs stored from: .*"
            cells += map(new_markdown_cell, ("## Your turn", "## What you built", "## References"))
        notebook = new_notebook(cells=cells)
        normalise(notebook)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(notebook, path)
        written.append(path)
    return written


# --- the command line -----------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("execute").add_argument("names", nargs="*")
    commands.add_parser("check").add_argument("names", nargs="*")
    commands.add_parser("stamp").add_argument("--repository", default=address())
    commands.add_parser("new").add_argument("name")
    options = parser.parse_args(arguments)

    failed = 0
    if options.command == "execute":
        for path in find(options.names):
            print(f"{path.relative_to(ROOT)} ...", flush=True)
            try:
                execute(path)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                failed += 1
                print(f"error: nothing was stored, for this cell fails:\n{error}", file=sys.stderr)
    elif options.command == "check":
        for path in find(options.names):
            for problem in problems(path, address()):
                failed += 1
                print(f"{path.relative_to(ROOT)}: {problem}")
    elif options.command == "stamp":
        changed = stamp(options.repository)
        where = options.repository or "no address yet"
        print(f"Every notebook says {where}; {len(changed)} were rewritten.")
    else:
        for path in new(options.name):
            print(path.relative_to(ROOT))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
