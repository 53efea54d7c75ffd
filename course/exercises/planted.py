"""The cuda engine with a bug in one of its sources: for lessons in finding it, for tests that must fail."""

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import kernels.cuda

SOURCES = Path(kernels.cuda.__file__).parent
# What compiles and launches is the same for every engine; all other modules of the package get a copy each.
_SHARED = ("arguments", "cache", "driver", "emulator", "gpu", "module", "nvrtc", "signature", "tensor_map")
_folders = []  # kept until the process ends: an engine reads a source when it is first needed


def plant(file: str, right: str, wrong: str, *, emulate: bool | None = None) -> ModuleType:
    """A second cuda engine, in whose source `file` stands `wrong` where the first has `right`.

    The engine's `folder` has its sources. With `emulate` it takes CPU tensors on a machine with a GPU, too.
    Raises `ValueError` unless `right` stands there exactly once.
    """
    text = (SOURCES / file).read_text(encoding="utf-8")
    if text.count(right) != 1:
        raise ValueError(f"{file} should have {right!r} once, and has it {text.count(right)} times.")
    folder = tempfile.TemporaryDirectory()
    _folders.append(folder)
    for path in (*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh")):
        Path(folder.name, path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    Path(folder.name, file).write_text(text.replace(right, wrong), encoding="utf-8")
    return _engine(Path(folder.name), emulate)


def _engine(folder: Path, emulate: bool | None) -> ModuleType:
    """The modules of `kernels.cuda` imported anew, their sources taken from another folder."""
    first = {name: module for name, module in sys.modules.items() if _is_copied(name)}
    for name in first:
        del sys.modules[name]
    try:
        launch = importlib.import_module("kernels.cuda.launch")
        load = launch.load
        launch.load = lambda file, **options: load(folder / file, emulate=emulate, **options)
        if emulate:
            launch.emulated = lambda: True
        engine = importlib.import_module("kernels.cuda")
        engine.folder = folder
        return engine
    finally:
        for name in [name for name in sys.modules if _is_copied(name)]:
            del sys.modules[name]
        sys.modules.update(first)
        kernels.cuda = first["kernels.cuda"]


def _is_copied(name: str) -> bool:
    return f"{name}.".startswith("kernels.cuda.") and name.removeprefix("kernels.cuda.") not in _SHARED
