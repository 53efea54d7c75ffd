"""What every operation of this engine does before its kernel runs: check, look at the GPU, launch."""

import functools
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses import FakeTensor

INTERPRETED = triton.knobs.runtime.interpret  # Triton decides it when a kernel is defined, so do we
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Gpu(NamedTuple):
    """What a configuration may depend on."""

    capability: int  # 90 for compute capability 9.0
    processors: int  # SMs
    shared: int  # bytes of shared memory that one program may use


def check(operation: str, *tensors: Tensor | None) -> None:
    """All tensors on one device that can run kernels, all floating-point ones of one dtype of `DTYPES`.

    Raises `TypeError` for dtypes, `ValueError` for devices, `RuntimeError` for tensors on the CPU when
    kernels are compiled for a GPU. An input that is None is left out.
    """
    device, dtype = tensors[0].device, None
    for x in tensors:
        if x is None:
            continue
        if x.device != device:
            raise ValueError(f"{operation}: tensors on {device} and on {x.device}; put all on one device.")
        if not x.dtype.is_floating_point:
            continue
        if x.dtype not in DTYPES:
            raise TypeError(
                f"{operation}: the triton engine computes in float32, bfloat16 and float16, not in "
                f"{str(x.dtype).removeprefix('torch.')}."
            )
        if dtype is not None and x.dtype != dtype:
            raise TypeError(f"{operation}: tensors of {dtype} and of {x.dtype}; convert all to one dtype.")
        dtype = x.dtype
    if device.type == "cpu" and not INTERPRETED:
        raise RuntimeError(
            f"{operation}: Triton's kernels run on a GPU, and these tensors are on the CPU. Move them with "
            '.to("cuda"), or set the environment variable TRITON_INTERPRET=1 before Python starts: '
            "Triton then interprets its kernels on the CPU, slowly."
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{operation}: the triton engine has no kernels for tensors on {device}.")


def check_gradient(operation: str, dy: Tensor, y: Tensor) -> None:
    """A gradient has the shape of what it is the gradient of: a kernel would read past its end."""
    if dy.shape != y.shape:
        raise ValueError(
            f"{operation}: a result of shape {tuple(y.shape)} has no gradient {tuple(dy.shape)}."
        )


def gpu(x: Tensor) -> Gpu:
    """The GPU that x lies on; the interpreter plays an A100 of two SMs."""
    return _gpu(x.device)


@functools.cache
def _gpu(device: torch.device) -> Gpu:
    if device.type == "cpu":
        return Gpu(capability=80, processors=2, shared=163 * 1024)
    properties = torch.cuda.get_device_properties(device)
    capability = 10 * properties.major + properties.minor
    return Gpu(capability, properties.multi_processor_count, properties.shared_memory_per_block_optin)


_HERE = nullcontext()
_compiled: dict[tuple, tuple] = {}


def launch(kernel, grid: tuple[int, ...], *arguments, **options) -> None:
    """`kernel[grid](*arguments, **options)` on the GPU of the first argument, a tensor.

    A tensor of shapes only, under `torch.compile`'s tracing, launches nothing. Nor does an empty grid.

    Triton looks at every argument at every call, to find the machine code that was compiled for its like:
    longer than a small kernel runs. So that code is kept here, under a key that is quicker to make. The key
    has numbers by value, where Triton only asks whether they are 1 or multiples of 16, and of a tensor what
    Triton asks too: its dtype, and whether its address is a multiple of 16.
    """
    x = arguments[0]
    if isinstance(x, FakeTensor):
        return _without_data(kernel, grid, arguments, options)
    if INTERPRETED:
        with _watching(kernel, arguments):
            kernel[grid](*arguments, **options)
        return
    index = x.device.index  # Triton launches on the current GPU, which may be another than x's
    with _HERE if index == torch.cuda.current_device() else torch.cuda.device(index):
        key = (
            kernel,
            index,
            *[(a.dtype, a.data_ptr() % 16 == 0) if isinstance(a, Tensor) else a for a in arguments],
            *options.values(),
        )
        try:
            found = _compiled.get(key)
        except TypeError:  # an argument without a hash, such as a tensor descriptor
            kernel[grid](*arguments, **options)
            return
        if found:
            compiled, constants = found
            compiled[(*grid, 1, 1)](*arguments, *constants)
            return
        if len(_compiled) >= 4096:  # lengths that change at every call
            _compiled.clear()
        named = {name: value for name, value in options.items() if name in kernel.arg_names}
        call = kernel.signature.bind(*arguments, **named)
        call.apply_defaults()
        _compiled[key] = kernel[grid](*arguments, **options), call.args[len(arguments) :]


def _without_data(kernel, grid, arguments, options) -> None:
    """Nothing to compute. `kernels.triton.ahead` puts its compiler here."""


def _watching(kernel, arguments):
    """Around what the interpreter does. `course.profiling` puts here who counts launches."""
    return _HERE


def empty(x: Tensor) -> Tensor:
    """A contiguous tensor like x, with nothing in it yet."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def rows(x: Tensor) -> Tensor:
    """`(..., C)` as `(rows, C)` with neighbouring features and any distance between rows.

    A view of all layouts that a model makes. One with gaps between features is copied: a kernel that read
    it in place would fetch the gaps too, once for every pass.
    """
    if x.dim() != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()
