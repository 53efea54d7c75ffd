"""Compiling for GPUs that are not here: what each operation would launch on a T4, an A100, … as machine code.

Triton's compiler needs no GPU. Inside `compiling(gpu)`, PyTorch's tensors have shapes but no data, whatever
device they name; an operation called on them runs as ever up to its launches, and each launch is compiled
for `gpu` instead. So this compiles exactly the configurations that the operation would choose there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import triton
from torch import Tensor
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget

from kernels.triton import launch
from kernels.triton.launch import Gpu

GPUS = {
    "T4": Gpu(75, 40, 64 * 1024),
    "A100": Gpu(80, 108, 163 * 1024),
    "L4": Gpu(89, 58, 99 * 1024),
    "H100": Gpu(90, 132, 227 * 1024),
    "B200": Gpu(100, 148, 227 * 1024),
}


class Compiled(NamedTuple):
    """One launch: the kernel's name, and what Triton made of it (`.asm["ptx"]`, `.metadata.shared`)."""

    name: str
    kernel: object
    grid: tuple


@contextmanager
def compiling(gpu: Gpu) -> Iterator[list[Compiled]]:
    """Yields a list that grows by one `Compiled` at each launch inside.

    Raises `RuntimeError` in the interpreter, which defines kernels that no compiler can read.
    """
    if launch.INTERPRETED:
        raise RuntimeError("Kernels were defined for the interpreter: unset TRITON_INTERPRET and begin anew.")
    compiled: list[Compiled] = []

    def compile_only(kernel, grid, arguments, options) -> None:
        # Triton's warmup takes a tensor's dtype for an aligned tensor of that dtype.
        arguments = [x.dtype if isinstance(x, Tensor) else x for x in arguments]
        compiled.append(Compiled(kernel.fn.__name__, kernel.warmup(*arguments, grid=grid, **options), grid))

    driver = triton.runtime.driver
    before = driver._active, launch._gpu, launch._without_data
    driver.set_active(_driver(gpu))
    launch._gpu, launch._without_data = lambda device: gpu, compile_only
    try:
        with FakeTensorMode():
            yield compiled
    finally:
        driver._active, launch._gpu, launch._without_data = before


def _driver(gpu: Gpu) -> SimpleNamespace:
    """As much of a driver as Triton asks while it compiles. Its device is a name, not one of this machine."""
    target = GPUTarget("cuda", gpu.capability, 32)
    return SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: f"sm_{gpu.capability}",
        get_current_stream=lambda device: 0,
    )
