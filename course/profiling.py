"""Where a training step goes, kernel by kernel.

`kernels_of` asks a GPU: which kernels ran, how often, for how long. On a CPU those times would mean nothing,
so `operations_of` counts: which operations a function asked for, and the bytes of the arrays that they were
given. Both sort what they find into a few kinds.
"""

import functools
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from course import device
from kernels import cuda
from kernels.cuda import emulator
from kernels.cuda.signature import signatures

KINDS = ("matrix products", "attention", "norms", "elementwise", "loss", "optimizer")

# Of other people's kernels, by what their names have in common; the first that fits decides. Attention comes
# before the products: its kernels are built from CUTLASS's too. A kernel that `torch.compile` fused is named
# after all that is in it. Names that fit nothing are elementwise.
_PATTERNS = (
    ("optimizer", r"adam|foreach|multi_tensor_apply"),
    ("attention", r"flash|sdpa|fmha|scaled_dot_product"),
    ("loss", r"softmax|nll_loss|cross_entropy"),
    ("norms", r"(rms|layer)_?norm|rsqrt|GammaBeta|cuComputeGradInput"),
    (
        "matrix products",
        r"gemm|gemv|cutlass|cublas|nvjet|xmma|splitk|^triton_(mm|bmm|tem)|^(add|b|baddb)?mm_?(\.|$)",
    ),
)
# Of the course's, by the file of `kernels.triton` or of `kernels.cuda` in which they stand.
_FILES = {
    "activations": "elementwise",
    "adamw": "optimizer",
    "attention": "attention",
    "elementwise": "elementwise",
    "embedding": "elementwise",
    "flash": "attention",
    "flash_backward": "attention",
    "flash_forward": "attention",
    "linear": "matrix products",
    "losses": "loss",
    "matmul": "matrix products",
    "mean_loss": "loss",
    "mlp": "matrix products",
    "muon": "optimizer",
    "norms": "norms",
    "rope": "elementwise",
    "rotary": "matrix products",
    "softmax": "elementwise",
}


class Kernel(NamedTuple):
    """A kernel that ran on a GPU: all its runs together."""

    name: str
    kind: str
    milliseconds: float
    calls: int


class Operation(NamedTuple):
    """An operation of PyTorch's or a launch of the course's: all its calls together."""

    name: str
    kind: str
    nbytes: int  # of the arrays that it was given and that it returned, each once
    calls: int


def kind(name: str) -> str:
    """Which of `KINDS` a kernel or operation of this name is."""
    if name in _own_kernels():
        return _own_kernels()[name]
    for found, pattern in _PATTERNS:
        if re.search(pattern, name, re.IGNORECASE):
            return found
    return "elementwise"


@functools.cache
def _own_kernels() -> dict[str, str]:
    found = {}
    for path in Path(cuda.__file__).parent.glob("*.cu"):
        names = signatures(path.read_text(encoding="utf-8"))
        found |= dict.fromkeys(names, _FILES[path.stem])
    if find_spec("triton") is None:
        return found
    from triton.runtime.jit import KernelInterface

    import kernels.triton

    for path in Path(kernels.triton.__file__).parent.glob("*.py"):
        if path.stem in _FILES:
            for value in vars(importlib.import_module(f"kernels.triton.{path.stem}")).values():
                if isinstance(value, KernelInterface):
                    found[value.__name__] = _FILES[path.stem]
    return found


def kernels_of(function: Callable[[], object], runs: int = 1) -> list[Kernel]:
    """The kernels that one call of `function` runs on the GPU, the longest first: the mean of `runs` calls.

    Call it once before, so that nothing is compiled in here. Raises `RuntimeError` without a GPU.
    """
    if device.DEVICE.type != "cuda":
        raise RuntimeError("kernels_of needs a GPU; on a CPU, operations_of counts operations.")
    activities = [torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        for _ in range(runs):
            function()
        torch.cuda.synchronize()
    time, calls = {}, {}
    for event in profile.events():
        if event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation:
            continue  # an annotation spans kernels that are counted themselves
        time[event.name] = time.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e3 / runs
        calls[event.name] = calls.get(event.name, 0) + 1
    rows = [Kernel(name, kind(name), ms, calls[name] // runs) for name, ms in time.items()]
    return sorted(rows, key=lambda row: -row.milliseconds)


def operations_of(function: Callable[[], object]) -> list[Operation]:
    """The operations that one call of `function` asks a CPU for, the most bytes first.

    Those of PyTorch that compute or copy, not those that only look at an array in another way; and the
    launches of the course's kernels, interpreted or emulated. What `torch.compile` made of a function is
    not seen. Raises `RuntimeError` on a GPU, where `kernels_of` sees more.
    """
    if device.DEVICE.type != "cpu":
        raise RuntimeError("operations_of counts on a CPU; on a GPU, kernels_of knows kernels and times.")
    counter = _Counter()
    with counter, _seeing_interpreted(counter), _seeing_emulated(counter):
        function()
    rows = [Operation(name, kind(name), *numbers) for name, numbers in counter.found.items()]
    return sorted(rows, key=lambda row: -row.nbytes)


def _seeing_interpreted(counter: "_Counter"):
    if find_spec("triton") is None:
        return nullcontext()
    from kernels.triton import launch

    return mock.patch.object(launch, "_watching", counter.launch)


def _seeing_emulated(counter: "_Counter"):
    launch = emulator.launch

    def counted(library, signature, grid, block, shared_bytes, arguments):
        counter.add(signature.name, _tensors(tuple(arguments)))
        launch(library, signature, grid, block, shared_bytes, arguments)

    return mock.patch.object(emulator, "launch", counted)


def by_kind(rows: list, field: str) -> dict[str, float]:
    """The sum of a field of the rows for each of `KINDS`: `by_kind(rows, "milliseconds")`."""
    return {name: sum(getattr(row, field) for row in rows if row.kind == name) for name in KINDS}


class _Counter(TorchDispatchMode):
    transparent = True  # for `kernels.autograd`: show what is inside of an operation

    def __init__(self):
        super().__init__()
        self.found: dict[str, tuple[int, int]] = {}  # name -> bytes, calls
        self.inside = False  # of the interpreter, which has PyTorch operations of its own

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given, returned = _tensors((args, kwargs)), _tensors(result)
        name = str(operation).removeprefix("aten.")
        memory = {x.untyped_storage()._cdata for x in given}
        looks = all(x.untyped_storage()._cdata in memory for x in returned)  # a view, if nothing is written
        if not self.inside and "empty" not in name and (operation._schema.is_mutable or not looks):
            self.add(name, [*given, *returned])
        return result

    @contextmanager
    def launch(self, kernel, arguments: tuple) -> Iterator[None]:
        self.add(kernel.__name__, _tensors(arguments))
        self.inside = True
        yield
        self.inside = False

    def add(self, name: str, tensors: list) -> None:
        nbytes, calls = self.found.get(name, (0, 0))
        # An expanded tensor has more numbers than memory.
        nbytes += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors)
        self.found[name] = nbytes, calls + 1


def _tensors(value) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return _tensors(base) if (base := getattr(value, "base", None)) is not None else []
    return [x for item in value for x in _tensors(item)]
