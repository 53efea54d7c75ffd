"""The notebooks as Colab runs them: in an empty folder, from a fresh clone, with the packages that Colab has.

A copy of this tree is given an address and put where git looks for `https://github.com/`. The kernel is an
environment of its own with the kinds of packages that are preinstalled on Colab and nothing else, a stand-in
for `google.colab`, and a pip that writes down what it is asked for and may neither reach the network nor
install. In `make test` a few notebooks run; `make test-colab` runs all of them.

COLAB_PYTHON=/path/to/python takes that interpreter's packages instead, for example Colab's own versions.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat
import pytest
import tree
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tools import notebooks

ADDRESS = "ada/course"  # as bad a name as there is: the package is called course, too
FEW = ("00", "08", "12")  # of each kind one: PyTorch, Triton, CUDA C++

# Of what the course needs, what Colab preinstalls (googlecolab/backend-info, pip-freeze.gpu.txt, June 2026,
# where torch is 2.11.0+cu128, triton 3.6.0, cuda-core 0.3.2, ipywidgets 7.7.1); what these need comes along.
PREINSTALLED = (
    "torch", "triton", "numpy", "matplotlib", "ipywidgets", "rich", "safetensors", "tqdm", "regex",
    "tiktoken", "tokenizers", "pydantic", "PyYAML", "huggingface_hub", "pooch", "pyarrow", "cuda-core",
    "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "setuptools", "ipykernel", "pip",
)  # fmt: skip

# Runs in the interpreter whose packages are taken: a link for each file and folder of these packages.
LINK = r"""
import os, re, sys
from importlib.metadata import PackageNotFoundError, distribution
target, todo, seen = sys.argv[1], sys.argv[2:], set()
while todo:
    name, extras = re.match(r"([\w.-]+)(?:\[([\w,.-]+)\])?", todo.pop()).groups()
    try:
        found = distribution(name)
    except PackageNotFoundError:  # another system's, or Colab has it and the course's environment does not
        continue
    if (found.name, extras) in seen:
        continue
    seen.add((found.name, extras))
    for line in found.requires or []:
        extra = re.search(r"extra == .([\w.-]+)", line)
        if extra is None or extra[1] in (extras or "").split(","):
            todo.append(line)
    for entry in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
        source = found.locate_file(entry)
        if os.path.exists(source) and not os.path.lexists(os.path.join(target, entry)):
            os.symlink(source, os.path.join(target, entry))
"""

# In the kernel's environment, whatever is started writes down what pip was asked for, and by whom.
RECORD_PIP = """
import json, os, sys
if sys.orig_argv[1:3] == ["-m", "pip"]:
    with open(os.environ["ASKED_OF_PIP"], "a") as file:
        file.write(json.dumps(sys.orig_argv[3:]) + "\\n")
"""


@dataclass
class Colab:
    """A machine like one of Colab's, in a temporary folder."""

    root: Path

    @property
    def content(self) -> Path:
        """The working directory of a new notebook, /content on Colab."""
        return self.root / "content"

    @property
    def clone(self) -> Path:
        return self.content / "tensors-to-tensor-cores"

    @property
    def packages(self) -> Path:
        version = self._ask("import sys; print('python%d.%d' % sys.version_info[:2])")
        return self.root / "python/lib" / version / "site-packages"

    @cached_property
    def base(self) -> str:
        """The interpreter whose packages this machine has."""
        return os.environ.get("COLAB_PYTHON", sys.executable)

    def _ask(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self.base, "-c", program, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    @cached_property
    def environment(self) -> dict[str, str]:
        """Of the kernel: nothing of the course's own, git and pip as described above."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "COURSE_", "TRITON_", "PIP_", "JUPYTER", "IPYTHON", "GIT_"))
        }
        return kept | {
            "PATH": f"{self.root / 'python/bin'}{os.pathsep}{os.environ['PATH']}",
            "IPYTHONDIR": str(self.root / "ipython"),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{self.root}/github/.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://github.com/",
            "GIT_TRACE": str(self.root / "git.log"),
            "ASKED_OF_PIP": str(self.root / "asked.jsonl"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.root / "wheels"),
            "PIP_DRY_RUN": "1",
            "PIP_REPORT": str(self.root / "report.json"),
        }

    def build(self) -> "Colab":
        for folder in ("content", "wheels", "kernels/colab", "ipython/profile_default/startup"):
            (self.root / folder).mkdir(parents=True)
        self._ask("import venv, sys; venv.create(sys.argv[1], symlinks=True)", str(self.root / "python"))
        self._ask(LINK, str(self.packages), *PREINSTALLED)
        (self.packages / "record_pip.py").write_text(RECORD_PIP)
        # Not as sitecustomize.py: Debian's Python has one of its own.
        (self.packages / "record_pip.pth").write_text("import record_pip\n")
        (self.packages / "google/colab").mkdir(parents=True)
        (self.packages / "google/colab/__init__.py").touch()
        startup = self.root / "ipython/profile_default/startup/colab.py"
        startup.write_text("import google.colab\n")  # on Colab the kernel has imported it
        kernel = {
            "argv": [
                str(self.root / "python/bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"
            ],
            "display_name": "Colab",
            "language": "python",
        }  # fmt: skip
        (self.root / "kernels/colab/kernel.json").write_text(json.dumps(kernel))
        self._publish()
        return self

    def _publish(self) -> None:
        """This tree, as it is now, with an address, where the address leads."""
        copy = self.root / "github" / ADDRESS
        tree.copy_to(copy)
        notebooks.stamp(ADDRESS, copy)
        tree.commit(copy)

    def run(self, cells: list) -> list:
        """Run cells in a new kernel that stands in /content; the cells with their outputs."""
        notebook = nbformat.v4.new_notebook(cells=cells)
        specs = KernelSpecManager(kernel_dirs=[str(self.root / "kernels")])
        client = NotebookClient(
            notebook,
            timeout=600,
            km=KernelManager(kernel_name="colab", kernel_spec_manager=specs),
            resources={"metadata": {"path": str(self.content)}},
            coalesce_streams=True,
        )
        client.execute(env=self.environment, stderr=subprocess.DEVNULL)
        return notebook.cells

    def cells(self, name: str) -> list:
        """Of a notebook as it opens from the address."""
        path = self.root / "github" / ADDRESS / name
        return nbformat.read(path, as_version=4).cells

    def asked_of_pip(self) -> list[list[str]]:
        log = self.root / "asked.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def would_install(self) -> set[str]:
        """What the last call of pip would have installed, had it been let."""
        report = json.loads((self.root / "report.json").read_text())
        return {package["metadata"]["name"] for package in report["install"]}

    def clones(self) -> int:
        return (self.root / "git.log").read_text().count("built-in: git clone")

    def forget(self) -> None:
        """A new session: an empty /content, and nothing written down yet."""
        for folder in ("content", "wheels"):
            shutil.rmtree(self.root / folder)
            (self.root / folder).mkdir()
        for name in ("asked.jsonl", "report.json", "git.log"):
            (self.root / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return Colab(tmp_path_factory.mktemp("colab")).build()


@pytest.fixture
def colab(machine):
    machine.forget()
    return machine


# --- the machine is what it says --------------------------------------------------------


def code(source: str):
    return nbformat.v4.new_code_cell(source)


def text(cell) -> str:
    """What a cell says in words; IPython 7, Colab's, has the kinds of an output in another order."""
    for output in cell.outputs:
        if "data" in output:
            output.data = dict(sorted(output.data.items()))
    return "".join(map(notebooks._text, cell.outputs))


def test_the_machine_is_like_colab(colab):
    """What a notebook finds before its first cell: no course, no tool of the tests, Colab's own module."""
    cells = [
        'import sys, os; from importlib.util import find_spec; "google.colab" in sys.modules, os.listdir()',
        '[find_spec(name) is not None for name in ("torch", "triton", "cuda.core", "pyarrow")]',
        '[find_spec(name) is not None for name in ("course", "kernels", "nbval", "ruff")]',
    ]
    said = [text(cell) for cell in colab.run(list(map(code, cells)))]
    assert said == ["(True, [])", "[True, True, True, True]", "[False, False, False, False]"]


# --- the setup cell ---------------------------------------------------------------------

STATE = 'import os, sys; print((os.getcwd(), sys.path, os.environ["PYTHONPATH"]))'
VERSIONS = 'from importlib.metadata import version; print([version(n) for n in ("torch", "triton", "numpy")])'


def setup():
    return code(notebooks.setup_cell(ADDRESS))


def is_setup(cell) -> bool:
    return "setup" in cell.metadata.get("tags", [])


def wheel(folder: Path, name: str) -> None:
    """An empty package, newer than any that is installed."""
    info = f"{name}-99.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-99.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_the_setup_cell_fetches_the_course_once_and_installs_nothing_that_is_there(colab):
    cells = [code(VERSIONS), setup(), code(STATE), setup(), code(STATE), code(VERSIONS)]
    before, first, state, second, again, after = colab.run(cells)
    assert (text(first), text(second)) == ("", "")
    assert text(state) == text(again) and text(before) == text(after)
    assert f"('{colab.clone / 'notebooks'}', ['{colab.clone}'" in text(state)
    assert colab.clones() == 1
    asked = colab.asked_of_pip()
    assert asked and all(arguments[:2] == ["install", "--quiet"] for arguments in asked)
    assert colab.would_install() == set()

    edited = colab.clone / "course/device.py"
    edited.write_text(edited.read_text() + "MINE = 1\n")  # the session restarts, the files are still there
    *_, mine = colab.run([setup(), code("print(device.MINE)")])
    assert text(mine) == "1\n" and colab.clones() == 1


def test_only_what_colab_lacks_is_installed_and_never_pytorch_or_triton(colab):
    """Newer ones are to be had, of each; one package is missing."""
    for name in ("torch", "triton", "numpy", "cuda_core", "ipywidgets", "tiktoken"):
        wheel(colab.root / "wheels", name)
    gone = [path for path in colab.packages.iterdir() if path.name.startswith("tiktoken")]
    links = {path: path.readlink() for path in gone}
    assert links
    for path in gone:
        path.unlink()
    try:
        colab.run([setup()])
    finally:
        for path, source in links.items():
            path.symlink_to(source)
    asked = colab.asked_of_pip()
    named = {word for arguments in asked for word in arguments[1:] if not word.startswith("-")}
    assert "tiktoken" in named
    assert not [word for word in named if word.startswith(("torch", "triton", "cuda", "nvidia"))]
    assert colab.would_install() == {"tiktoken"}


def test_a_cell_that_would_replace_pytorch_is_seen(colab):
    wheel(colab.root / "wheels", "torch")
    colab.run([code("import sys\n!{sys.executable} -m pip install --quiet --upgrade --no-deps torch")])
    assert colab.would_install() == {"torch"}


# --- whole notebooks --------------------------------------------------------------------


def names() -> list:
    every = (path.relative_to(notebooks.ROOT) for path in notebooks.find([]))
    return [
        pytest.param(str(path), id=str(path.with_suffix("")), marks=() if few(path) else pytest.mark.colab)
        for path in every
    ]


def few(path: Path) -> bool:
    return path.stem.startswith(FEW) and not notebooks.is_solutions(path)


@pytest.mark.parametrize("name", names())
def test_a_notebook_runs_from_its_setup_cell_to_its_last(colab, name):
    """And says what it says on the page; and the folder is as a clone is, with nothing left behind."""
    stored = colab.cells(name)
    ran = colab.run(colab.cells(name))
    assert is_setup(next(cell for cell in ran if cell.cell_type == "code"))
    for cell, before in zip(ran, stored):
        if cell.cell_type == "code" and "nbval-ignore-output" not in cell.metadata.get("tags", []):
            assert text(cell) == text(before), cell.source
    assert colab.would_install() == set()
    assert [path.name for path in colab.content.iterdir()] == [colab.clone.name]
    status = subprocess.run(["git", "status", "--short"], cwd=colab.clone, capture_output=True, text=True)
    assert status.stdout == ""


def test_an_error_in_a_cell_is_a_failure(colab):
    with pytest.raises(CellExecutionError, match="No module named 'nbval'"):
        colab.run([setup(), code("import nbval")])
