"""`python -m course doctor`: what this machine can run, and what to do about what it cannot."""

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from course import data

OK, LACK, FATAL = "ok", "lack", "fatal"


@dataclass(frozen=True)
class Finding:
    """One line of the report. A `fatal` lack keeps the course from running; a `lack` only a part."""

    what: str
    found: str
    status: str = OK
    remedy: str = ""


def examine() -> list[Finding]:
    """Everything that the course needs or can use, in the order in which it matters."""
    findings = [_python(), _pytorch()]
    has_pytorch = findings[-1].status == OK
    if has_pytorch:
        findings += [_gpu(), _dtype()]
    return [
        *findings,
        _packages(),
        _jupyterlab(),
        _corpus(),
        _triton(),
        *([_cuda_compiler()] if has_pytorch else []),
        _cpp_compiler(),
        _processor(),
        _disk(),
    ]


def configure(parser) -> None:
    """The command takes no arguments."""


def run(arguments) -> int:
    """`python -m course doctor`."""
    return main()


def main() -> int:
    """Print the report; -> the exit status, 0 only if the course can run here."""
    table = Table(title="What this machine can run", title_justify="left")
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    marks = {OK: "[green]ok[/]", LACK: "[yellow]--[/]", FATAL: "[red]no[/]"}
    findings = examine()
    for finding in findings:
        table.add_row(marks[finding.status], finding.what, finding.found, finding.remedy)
    console = Console()
    console.width = min(console.width, 96)  # a notebook page is no wider
    console.print(table)
    fatal = [finding.what for finding in findings if finding.status == FATAL]
    if fatal:
        console.print(f"The course cannot run here yet: see {', '.join(fatal)}.")
        return 1
    console.print("The course can run here. 'ok' works; '--' is a part that this machine leaves out.")
    return 0


def _python() -> Finding:
    found = platform.python_version()
    if sys.version_info >= (3, 11):  # noqa: UP036 (this is where a reader of an older Python learns it)
        return Finding("Python", found)
    return Finding("Python", found, FATAL, "install Python 3.11 or later, then run `make lab` again")


def _pytorch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("PyTorch", "not installed", FATAL, "run `make lab`, or `pip install torch`")
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 11):
        return Finding("PyTorch", torch.__version__, FATAL, "the course needs PyTorch 2.11 or later")
    return Finding("PyTorch", torch.__version__)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        gigabytes = torch.cuda.get_device_properties(0).total_memory / 2**30
        found = f"{torch.cuda.get_device_name()}, {gigabytes:.0f} GiB, sm_{major}{minor}"
        if os.environ.get("COURSE_DEVICE") == "cpu":
            return Finding("GPU", found, LACK, "left alone, because COURSE_DEVICE=cpu is set")
        return Finding("GPU", found)
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        return Finding(
            "GPU",
            "there is one, but this PyTorch was built without CUDA",
            LACK,
            "install PyTorch's CUDA build: https://pytorch.org/get-started",
        )
    return Finding("GPU", "none", LACK, "nothing: every notebook also runs on the CPU, in small")


def _dtype() -> Finding:
    from course import device

    return Finding("computes with", f"{str(device.DTYPE).removeprefix('torch.')} on {device.DEVICE}")


def _packages() -> Finding:
    names = ("numpy", "matplotlib", "safetensors", "IPython", "ipywidgets")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("packages", f"missing: {', '.join(missing)}", FATAL, "run `make lab`")
    return Finding("packages", ", ".join(names))


def _jupyterlab() -> Finding:
    if importlib.util.find_spec("jupyterlab") is not None:
        return Finding("JupyterLab", "installed")
    if "google.colab" in sys.modules:
        return Finding("JupyterLab", "none: this is Colab")
    return Finding("JupyterLab", "not installed", LACK, "run `make lab`, unless you use another notebook")


def _corpus() -> Finding:
    path = data.find("tales")
    if path is None:
        return Finding("corpus", "tales.txt is missing", FATAL, "clone the course again: it ships in data/")
    return Finding("corpus", f"tales, {path.stat().st_size / 1000:.0f} kB")


def _triton() -> Finding:
    if importlib.util.find_spec("triton") is not None:
        return Finding("Triton", "installed (needed from notebook 07 on)")
    if sys.platform == "linux":
        return Finding("Triton", "not installed", LACK, "`pip install triton`; needed from notebook 07 on")
    return Finding(
        "Triton", f"has no package for {platform.system()}", LACK,
        "use Linux or Colab for notebooks 07 to 11; the others run here",
    )  # fmt: skip


def _cuda_compiler() -> Finding:
    from kernels.cuda import nvrtc

    try:
        major, minor = nvrtc.version()
        nvrtc.cuda_headers()
    except RuntimeError as missing:
        found = "no headers" if "headers" in str(missing) else "none"
        return Finding("CUDA C++", found, LACK, f"{nvrtc.remedy()}; needed from notebook 12 on")
    return Finding("CUDA C++", f"NVRTC {major}.{minor} (needed from notebook 12 on)")


def _cpp_compiler() -> Finding:
    found = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    if found:
        return Finding("C++ compiler", found)
    remedy = "run `xcode-select --install`" if sys.platform == "darwin" else "run `sudo apt install g++`"
    remedy += "; torch.compile (03) and CUDA kernels without a GPU (12 to 15) use it"
    return Finding("C++ compiler", "none", LACK, remedy)


def _processor() -> Finding:
    cores = os.cpu_count() or 1
    status, remedy = (OK, "") if cores >= 2 else (LACK, "notebooks take longer than they say")
    return Finding("CPU cores", str(cores), status, remedy)


def _disk() -> Finding:
    free = shutil.disk_usage(data.DATA_DIR if data.DATA_DIR.is_dir() else ".").free / 2**30
    if free < 1:
        return Finding("free disk", f"{free:.1f} GiB", LACK, "make room: full runs write a few GiB")
    return Finding("free disk", f"{free:.0f} GiB")
