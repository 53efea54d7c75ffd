"""The README and its like: every command in them runs, and every number in them is from a record.

A command is a line of a block or a span in backticks. Each must be found in `HOW`, which says how it is
tried, in a copy of this tree: as it stands where that is quick, else on less, or only as far as its parser,
or `make -n`. A command that is not in `HOW` is a failure.
"""

import io
import json
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from functools import cache
from pathlib import Path

import nbformat
import pytest
import tree

from tools import notebooks, results

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import record_tests  # noqa: E402, a script: it finds its neighbours by this path

PAGES = ("README.md", "CONTRIBUTING.md", "data/README.md")
FEW = (
    "--steps 3 --evaluation_tokens 500 --tokenizer_bytes 20000 --model.d_model 32 --model.n_layer 1 "
    "--batch_size 2 --sample.tokens 5"
)


def commands(text: str) -> list[str]:
    """Every command of a page: lines of its shell blocks, then spans of its prose that look like one."""
    found = []
    for block in re.findall(r"```(?:sh|bat)\n(.*?)```", text, re.S):
        found += [re.sub(r"\s+#.*", "", line) for line in block.splitlines() if line.strip()]
    programs = (
        r"(?:make|python|py|pip|git|source|jupytext|pre-commit)\s|\.venv/bin/|tools/\w+\.py(?!\.)\b|make$"
    )
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    spans = (re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose))
    return list(dict.fromkeys(found + [span for span in spans if re.match(programs, span)]))


def as_it_stands(command: str) -> list[str]:
    return [command]


def dry(command: str) -> list[str]:
    """What make would do."""
    return [f"make -n {command.removeprefix('make')}"]


def parsed(command: str) -> list[str]:
    """As far as the parser, which knows the command and its first arguments."""
    return [re.sub(r" ([A-Z]+|your_operation)$", "", command) + " --help"]


def on_less(command: str) -> list[str]:
    return [f"{command} --show", f"{command} {FEW}"]


def collected(command: str) -> list[str]:
    """pytest finds the tests that it would run."""
    return [command.replace("your_operation", "rmsnorm") + " --collect-only -q"]


def really_made(command: str) -> list[str]:
    """The lines that make would run, without those that set up .venv."""
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", *shlex.split(command)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    own = f'PATH="{ROOT}/.venv/bin:$PATH" '
    return [line.removeprefix(own) for line in done.stdout.splitlines() if line.startswith(own)]


HOW = [  # the pattern of a command, and how it is tried; the first that fits
    (r"make lab|make test|make lab TORCH_INDEX=\S+", dry),  # the server itself is started below
    (r"make (test-gpu|test-portable|test-colab|test-browser|clean|figures|notebooks( NB=02)?)", dry),
    (r"make colab( REPO=owner/name)?", dry),  # and in earnest below
    (r"make lint", really_made),
    (r"python -m course (doctor|chat|chat runs/tales|generate --prompt \"Once\"|data list)", as_it_stands),
    (r"python -m course train --preset tales", on_less),
    (r"python -m course train --preset tales --optimizer\.lr 0\.01", lambda c: [f"{c} --show"]),
    (r"python -m course train --resume runs/tales", as_it_stands),
    (r"python -m course (evaluate|tokenize|data|data fetch NAME|data prepare NAME)", parsed),
    (r"(\.venv/bin/)?python -m kernels\.bench( your_operation)?", parsed),
    (r"python tools/(benchmark_(training|ladder)|record_full_run)\.py", parsed),
    (r"tools/(figures|record_small_model)\.py", lambda c: [f"python {c} --help"]),
    (r"\.venv/bin/python tools/record_tests\.py cpu", parsed),
    (r"tools/results\.py|tools/notebooks\.py (check 02|new 19_your_lesson)", lambda c: [f"python {c}"]),
    (r"\.venv/bin/python tools/notebooks\.py stamp", as_it_stands),
    (r"\.venv/bin/python -m pytest .*", collected),
    (r"source \.venv/bin/activate|mkdir -p scratch|\$EDITOR scratch/02\.py", as_it_stands),
    (r"\.venv/bin/(pre-commit install|jupytext .*)", as_it_stands),
    (r"\.venv/bin/python", lambda c: [f"{c} -V"]),
    (r"pip install triton", lambda c: [f"python -m {c} --dry-run --no-index"]),
    (r"py -3\.12 -m venv \.venv", lambda c: ["python -m venv --help"]),
    (r"\.venv\\Scripts\\python -m pip install -r requirements\.txt -e \.", lambda c: [
        "test -f requirements.txt -a -f pyproject.toml"
    ]),
    (r"\.venv\\Scripts\\python -m jupyterlab notebooks\\00_start_here\.ipynb", lambda c: [
        f"test -f {c.split()[-1]}".replace("\\", "/")
    ]),
]  # fmt: skip
ALONE = ("python -m course doctor", "python -m course train --preset tales --steps", "python -m venv")


def how(command: str):
    """How a command is tried. Raises `AssertionError` for one that nobody tries."""
    for pattern, way in HOW:
        if re.fullmatch(pattern, command):
            return way
    raise AssertionError(f"no test runs `{command}`: say in HOW how it is to be tried")


def every_command() -> list[str]:
    texts = ((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    return list(dict.fromkeys(command for text in texts for command in commands(text)))


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the tree that is a git repository and has this environment for its own."""
    if not (Path(sys.prefix) / "bin/activate").exists():
        pytest.skip("these tests do not run in a virtual environment")
    folder = tmp_path_factory.mktemp("house")
    tree.copy_to(folder)
    tree.commit(folder)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@cache
def run(house: Path, line: str) -> tuple[int, str]:
    """A line in the shell of the copy, with its environment: the exit status, and what it said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "JPY_"))}
    done = subprocess.run(
        ["bash", "-c", f"source .venv/bin/activate && {line}"],
        cwd=house,
        env=kept | {"PYTHONPATH": str(house), "EDITOR": "true", "MAKEFLAGS": "", "COURSE_DEVICE": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        input="Once upon a time\n",
    )
    return done.returncode, done.stdout


def run_here(house: Path, line: str, monkeypatch, capfd) -> tuple[int | str, str]:
    """`python -m course ...` or `python tools/x.py ...` in this process, which has loaded PyTorch already."""
    words = shlex.split(line.removeprefix(".venv/bin/"))[1:]
    monkeypatch.chdir(house)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Once upon a time\n")))
    monkeypatch.setattr("sys.argv", words[1:] if words[0] == "-m" else words)
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            monkeypatch.setattr("sys.path", [str(house / "tools"), *sys.path])
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0, capfd.readouterr().out
    return 0, capfd.readouterr().out


@pytest.mark.parametrize("command", every_command())
def test_a_command_of_the_pages_runs(house, command, monkeypatch, capfd):
    # What an earlier line of the same block made; its own test may have run in another process.
    if "runs/tales" in command:
        run(house, on_less("python -m course train --preset tales")[1])
    if "scratch/02.py" in command:
        run(house, "mkdir -p scratch")
        run(house, next(line for line in every_command() if "-o scratch/02.py" in line))
    for line in how(command)(command):
        python = re.match(r"(\.venv/bin/)?python (-m (course|kernels)|tools)", line)
        if python and not line.startswith(ALONE):
            status, said = run_here(house, line, monkeypatch, capfd)
        else:
            status, said = run(house, line)
        assert status == 0, f"{line}\n{said[-3000:]}"


def test_after_make_colab_the_pages_have_badges(house):
    before = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = really_made("make colab REPO=ada/course")
    assert len(lines) == 2
    assert run(house, " && ".join(lines))[0] == 0
    text = (house / "README.md").read_text(encoding="utf-8")
    lessons = [path for path in notebooks.find([]) if not notebooks.is_solutions(path)]
    assert text.count("colab-badge.svg") == len(lessons) > before.count("colab-badge.svg")
    assert f"github/ada/course/blob/main/notebooks/{lessons[0].name}" in text


def test_make_lab_starts_a_server_on_the_first_notebook(house):
    """The line that `make lab` runs, with what the page says LAB_ARGS is for."""
    pytest.importorskip("jupyterlab")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [
            "make",
            "-n",
            "--no-print-directory",
            "lab",
            f"LAB_ARGS=--no-browser --port {port} --IdentityProvider.token=x",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    line = done.stdout[done.stdout.rindex(".venv/bin/python -m jupyterlab") :].replace(str(ROOT), str(house))
    assert "00_start_here.ipynb" in line
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    arguments = shlex.split(line.replace("\\\n", " "))
    server = subprocess.Popen(
        [*arguments, *root], cwd=house, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        address = f"http://localhost:{port}/api/contents/notebooks/00_start_here.ipynb?content=0&token=x"
        for _ in range(120):
            try:
                with urllib.request.urlopen(address, timeout=5) as answer:
                    assert json.load(answer)["name"] == "00_start_here.ipynb"
                    break
            except OSError:
                assert server.poll() is None, server.stderr.read()[-3000:]
                time.sleep(0.25)
        else:
            raise AssertionError("no answer from JupyterLab within half a minute")
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_options_that_the_pages_name_are_options(house, monkeypatch, capfd):
    lines = ("python -m course train --help", "python -m course data prepare --help")
    told = "".join(run_here(house, line, monkeypatch, capfd)[1] for line in lines)
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
        for option in re.findall(r"`(--[a-z-]+)", prose):
            assert option in told, (page, option)


def test_every_target_of_the_makefile_is_in_the_readme():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    table = re.findall(r"^\| `make ([a-z-]+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert targets == {*table, "help"}


def test_a_command_that_nobody_tries_is_a_failure():
    assert commands("Run `make money`, then\n```sh\npython -m course fly  # away\n```\nor not `money`.") == [
        "python -m course fly",
        "make money",
    ]
    for command in ("make money", "python -m course fly", "tools/notebooks.py"):
        with pytest.raises(AssertionError, match="no test runs"):
            how(command)


# --- what is written by tools/results.py ------------------------------------------------


def test_the_tables_of_the_readme_are_what_was_recorded():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert results.written(text) == text, "run python tools/results.py"


RECORD = {
    "machine": "A Processor", "cores": 8, "threads": 2, "torch": "2.13.0", "python": "3.12.1",
    "units": {"passed": 2000, "skipped": 3, "seconds": 200},
    "cells": {"passed": 900, "skipped": 0, "seconds": 100},
    "seconds": {"00": 14.6, "06": 95.0},
}  # fmt: skip


def test_times_and_badges_stand_in_the_table_of_lessons(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(notebooks, "address", lambda: "ada/course")
    (tmp_path / "tests_cpu.json").write_text(json.dumps(RECORD))
    (tmp_path / "tests_gpu.json").write_text(
        json.dumps(RECORD | {"machine": "NVIDIA H100", "seconds": {"00": 9}})
    )
    old = (
        "| | **Part I: by hand** | |\n| 00 | Start | a tour |\n| 06 | [Loop](x) | steps |\n| 99 | End | fun |"
    )
    head, rule, part, first, sixth, last, _, note = results.lessons(old).splitlines()
    assert head == "|  | notebook | what you build | CPU | GPU | Colab |" and rule.count("---") == 6
    assert part == "|  | **Part I: by hand** |  |  |  |  |"
    assert first.startswith(
        "| 00 | [Start](notebooks/00_start_here.ipynb) | a tour | 15 s | 9 s | [![Open in Colab]"
    )
    assert sixth.startswith("| 06 | [Loop](notebooks/06_training_loop.ipynb) | steps | 1.6 min |  | [![")
    assert last == "| 99 | End (planned) | fun |  |  |  |"
    assert "CPU, 2 threads of a CPU (A Processor); GPU, one NVIDIA H100." in note
    assert results.tests().splitlines()[0] == (
        "- `make test`, 2 threads of a CPU (A Processor), PyTorch 2.13.0: 2,000 tests and 900 cells passed "
        "in 5 minutes."
    )
    again = results.lessons("\n".join((head, rule, part, first, sixth, last)))
    assert again.splitlines()[:6] == [head, rule, part, first, sixth, last]


def test_the_full_run_stands_beside_its_peer(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RUNS", tmp_path)
    assert results.full_run() == ""
    ways = {
        "triton": {"tokens_per_second": 1000, "mfu": 0.5, "peak_mib": 900},
        "torch, compiled": {"tokens_per_second": 800, "mfu": 0.4, "peak_mib": 1200},
    }
    record = {
        "machine": "a GPU",
        "recipe": {"data": "tales"},
        "plan": {"parameters": 75e6, "tokens": 600e6, "seconds": 610},
        "real": {"training": 612.3},
        "evaluation": {"loss": 2.5, "bits_per_byte": 1.25},
        "compare": {"ways": ways},
    }
    (tmp_path / "full_run.json").write_text(json.dumps(record))
    said = results.full_run()
    assert "75M parameters, 600M tokens of `tales` in 10.2 min, predicted 10.2 min" in said
    assert "held-out loss 2.500, 1.250 bits a byte" in said
    assert said.splitlines()[-2:] == [
        "| triton | 1,000 | 1.25 | 50 % | 900 |",
        "| torch, compiled | 800 | 1.00 | 40 % | 1,200 |",
    ]


def report(path: Path, cases: list[tuple[str, str, float]], failures: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(f'<testcase classname="{c}" name="{n}" time="{t}"/>' for c, n, t in cases)
    counts = f'tests="{len(cases)}" failures="{failures}" errors="0" skipped="1" time="12.4"'
    path.write_text(f"<testsuites><testsuite {counts}>{body}</testsuite></testsuites>")


def test_a_run_of_the_tests_becomes_a_record(tmp_path):
    cells = [
        ("notebooks.00_start_here.ipynb", "Cell 0", 2.04),
        ("notebooks.00_start_here.ipynb", "Cell 1", 1),
    ]
    cells += [
        ("notebooks.solutions.00_start_here.ipynb", "Cell 0", 7),
        ("notebooks.01_tensors.ipynb", "Cell 0", 4),
    ]
    report(tmp_path / "cpu/units.xml", [("tests.test_x", "test_y", 1)] * 3)
    report(tmp_path / "cpu/notebooks.xml", cells)
    record = record_tests.record("cpu", tmp_path)
    assert record["seconds"] == {"00": 3.0, "01": 4.0}
    assert record["units"] == {"passed": 2, "skipped": 1, "seconds": 12} and record["cells"]["passed"] == 3
    report(tmp_path / "cpu/units.xml", [("tests.test_x", "test_y", 1)], failures=1)
    with pytest.raises(SystemExit, match="of 1 tests 1 failed"):
        record_tests.record("cpu", tmp_path)
    with pytest.raises(SystemExit, match="run make test"):
        record_tests.record("gpu", tmp_path)


# --- what the notebooks say of their time -----------------------------------------------

PROMISES = {  # in the first cell -> the seconds on a CPU that it may mean
    r"a few\s+seconds": (2, 15),
    r"about 15 seconds": (5, 25),
    r"half a\s+minute": (10, 45),
    r"under a\s+minute": (5, 60),
    r"about a\s+minute": (20, 90),
    r"about two\s+minutes": (60, 180),
}


@pytest.mark.parametrize(
    "path", [p for p in notebooks.find([]) if not notebooks.is_solutions(p)], ids=lambda p: p.stem
)
def test_a_lesson_takes_as_long_as_it_says(path):
    first = nbformat.read(path, as_version=4).cells[0].source
    said = {found.start(): span for words, span in PROMISES.items() if (found := re.search(words, first))}
    promise = said[min(said)]  # of a GPU it speaks later
    record = results.record_of_tests("cpu")
    if record is None or path.stem[:2] not in record["seconds"]:
        pytest.skip("not recorded yet: make test, then python tools/record_tests.py cpu")
    assert promise[0] <= record["seconds"][path.stem[:2]] <= promise[1]
