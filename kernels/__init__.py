"""The operations of the course, each a forward and a backward function, in several engines.

`kernels.engine("reference")` is a module of pairs; `kernels.operations` says what a pair is and lists
them; `kernels.autograd.bind` makes any engine differentiable. This package knows nothing of `course`,
and importing it imports no array library: each engine brings its own.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType

from kernels.operations import ENGINES, OPERATIONS


def engine(name: str) -> ModuleType:
    """The engine called `name`: a module with `<operation>_forward` and `<operation>_backward`.

    Raises `ValueError` for a name that is not an engine, `RuntimeError` for an engine that needs a
    package this Python does not have.
    """
    if name not in ENGINES:
        raise ValueError(f"Unknown engine {name!r}: choose one of {', '.join(ENGINES)}.")
    try:
        return importlib.import_module(f"kernels.{name}")
    except ModuleNotFoundError as missing:
        remedy = f"run `pip install {missing.name}`, or choose another engine"
        if missing.name == "triton" and sys.platform != "linux":
            remedy = "Triton has packages for Linux only; use Linux or Colab, or choose another engine"
        raise RuntimeError(
            f"The engine {name!r} needs the package {missing.name!r}, which is not installed here: {remedy}."
        ) from missing


def pair(engine_name: str, operation: str) -> tuple[Callable, Callable]:
    """The forward and the backward function of `operation` in an engine.

    Raises `ValueError` for an operation that is not in the table or not in that engine.
    """
    module = engine(engine_name)
    if operation not in OPERATIONS:
        raise ValueError(f"Unknown operation {operation!r}: choose one of {', '.join(OPERATIONS)}.")
    if engine_name not in OPERATIONS[operation].engines:
        having = ", ".join(OPERATIONS[operation].engines)
        raise ValueError(f"The engine {engine_name!r} has no {operation!r}; these have it: {having}.")
    return getattr(module, f"{operation}_forward"), getattr(module, f"{operation}_backward")
