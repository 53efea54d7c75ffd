"""The house rules that a reader relies on: what imports what, and what the documents promise."""

import ast
import graphlib
import re
import tomllib
from pathlib import Path

import pytest

from tools import notebooks

ROOT = Path(__file__).resolve().parent.parent

# What `course` is made of, ground first. A module imports from its own floor and those below.
FLOORS = (
    ("config", "device", "atomic"),
    ("data", "tokenizer", "yardsticks", "optim", "initial", "manual", "model"),
    ("training", "inference", "runlog", "run_folder", "flops", "checkpoint", "distributed", "profiling"),
    ("plots", "live", "widgets", "assembly", "skipping", "interruption"),
    ("exercises", "doctor", "cli", "__main__"),
)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that a file of the repository may import, by its full name, wherever it does."""
    names = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def course_imports(path: Path) -> set[str]:
    """The modules of `course` that a file imports, by their short names."""
    parts = (name.split(".") for name in imported(path))
    modules = {part[1] for part in parts if part[0] == "course" and len(part) > 1}
    return {name for name in modules if (ROOT / "course" / name).is_dir() or _file(name).exists()}


def _file(name: str) -> Path:
    return ROOT / "course" / f"{name}.py"


def module(path: Path) -> str:
    """The short name of the module of `course` that a file is, or is a part of."""
    return path.relative_to(ROOT / "course").parts[0].removesuffix(".py")


def floor(name: str) -> int:
    if name == "__init__":
        return -1  # so that importing any one module imports no other
    for level, names in enumerate(FLOORS):
        if name in names:
            return level
    raise AssertionError(f"course/{name} is new: say in FLOORS on which floor it stands")


@pytest.mark.parametrize("path", sources("kernels"), ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_know_nothing_of_the_course_and_print_nothing(path):
    assert not [name for name in imported(path) if name.split(".")[0] == "course"]
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if getattr(call.func, "id", "") == "print"]


@pytest.mark.parametrize("path", sources("course"), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_course_imports_upward(path):
    here = module(path)
    upward = [name for name in course_imports(path) if floor(name) > floor(here)]
    assert not upward, f"{here} is below {upward}"


def test_nothing_in_the_course_imports_in_a_circle():
    graph = {}
    for path in sources("course"):
        graph.setdefault(module(path), set()).update(course_imports(path) - {module(path)})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_imports_are_found_however_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "course/exercises/nb01.py"
    path.parent.mkdir(parents=True)
    for name in ("config", "device", "plots", "model"):
        (tmp_path / f"course/{name}.py").touch()
    path.write_text(
        "import course.config\nfrom course import device, nothing\nfrom .. import plots\n"
        "def late():\n    from ..model import Transformer\n"
    )
    assert course_imports(path) == {"config", "device", "plots", "model"}


def test_no_file_is_called_utils():
    folders = ("course", "kernels", "tools", "tests")
    assert not [path for name in folders for path in (ROOT / name).rglob("util*.py")]


def test_requirements_are_pinned_and_cover_the_package_and_colab():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    of_torch = {"cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime"}  # torch for GPUs pins these
    for line in pins:
        name, version = re.match(r"([\w-]+)(==[\d.]+|>=13,<14)(?:;|$)", line).groups()
        assert (version == ">=13,<14") == (name in of_torch)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert needed <= {re.match(r"[\w-]+", line)[0] for line in pins}
    (on_colab,) = re.findall(r"pip install --quiet ((?:.*\\\n)*.*)", notebooks.setup_cell(""))
    of_colab = {"torch", "triton", "cuda-core"} | of_torch  # they fit its GPU
    of_colab |= {"filelock"}  # torch needs it, too
    assert set(on_colab.replace("\\", "").split()) == needed - of_colab
