"""What every operation of this engine does before its kernel runs: check, look at the GPU, launch."""

import functools
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses import FakeTensor
from triton.tools.tensor_descriptor import TensorDescriptor

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
        its = x.dtype
        if its is dtype or not its.is_floating_point:
            continue
        if its not in DTYPES:
            raise TypeError(
                f"{operation}: the triton engine computes in float32, bfloat16 and float16, not in "
                f"{str(its).removeprefix('torch.')}."
            )
        if dtype is not None:
            raise TypeError(f"{operation}: tensors of {dtype} and of {its}; convert all to one dtype.")
        dtype = its
    if device.type == "cuda":
        return
    if device.type != "cpu":
        raise ValueError(f"{operation}: the triton engine has no kernels for tensors on {device}.")
    if not INTERPRETED:
        raise RuntimeError(
            f"{operation}: Triton's kernels run on a GPU, and these tensors are on the CPU. Move them with "
            '.to("cuda"), or set the environment variable TRITON_INTERPRET=1 before Python starts: '
            "Triton then interprets its kernels on the CPU, slowly."
        )


def check_integers(operation: str, name: str, ids: Tensor) -> None:
    """Ids and targets are integers. (A bool would be read as one bit.)"""
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"{operation}: {name} must be integers, not {ids.dtype}.")


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


def on_tensor_cores(x: Tensor) -> bool:
    """Whether products of x run there: those of float32 are exact instead, and Triton does not use a T4's."""
    return x.dtype != torch.float32 and gpu(x).capability >= 80


_compiled: dict[tuple, tuple] = {}
_KIND = ~0x7FFFFFF0  # of an integer: its four lowest bits, and those beyond 32-bit numbers


def launch(kernel, grid: tuple[int, ...], *arguments, **options) -> tuple | None:
    """`kernel[grid](*arguments, **options)` on the GPU of the first argument, a tensor.

    The kernel's constants, its `tl.constexpr`, come after all other arguments. A tensor of shapes only, under
    `torch.compile`'s tracing, launches nothing. Nor does an empty grid.

    Triton looks at every argument at every call, to find the machine code that was compiled for its like:
    longer than a small kernel runs. So that code is kept here, under a key that is quicker to make and tells
    apart all that Triton does: of a tensor its dtype, and whether its address is a multiple of 16; of an
    integer whether it is 1, whether it is a multiple of 16, and whether 32 bits hold it; of another number
    its type; of tuples, constants and options everything. And addresses are passed on as numbers: of every
    tensor Triton would ask the driver, at every call, whether the GPU can reach it.

    -> what was kept, or None where nothing is.
    """
    x = arguments[0]
    if isinstance(x, FakeTensor):
        return _without_data(kernel, grid, arguments, options)
    if INTERPRETED:
        with _watching(kernel, arguments):
            kernel[grid](*arguments, **options)
        return None
    device = x.get_device()
    if device != torch.accelerator.current_device_index():  # on which Triton would launch
        with torch.cuda.device(device):
            return launch(kernel, grid, *arguments, **options)
    first_constant = kernel.constexprs[0]
    key = [kernel.fn, device, *arguments[first_constant:], *options.values()]
    values = []
    for a in arguments[:first_constant]:
        kind = type(a)  # asked in the order of how quickly it is answered
        if kind is int:
            key.append(a & _KIND if a != 1 else kind)
        elif a is None or kind is float:
            key.append(kind)
        elif kind is Tensor or isinstance(a, Tensor):
            key.append(a.dtype)
            a = a.data_ptr()
            key.append(a % 16 == 0)
        elif kind is TensorDescriptor:
            key += kind, a.base.dtype, *a.block_shape
        else:
            key.append(a if kind is tuple else kind)
        values.append(a)
    key = tuple(key)
    found = _compiled.get(key)
    if found is None or _hooked():
        compiled = kernel[grid](*arguments, **options)
        if len(_compiled) >= 4096:  # strides that change at every call
            _compiled.clear()
        unread = (None,) * len(kernel.constexprs)  # constants have become part of the code
        found = _compiled[key] = compiled.run, compiled.function, compiled.packed_metadata, unread
    else:
        _start(found, grid, device, values)
    return found


def _hooked() -> bool:
    """Whether a profiler wants to hear of every launch."""
    runtime = triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)


def _start(found: tuple, grid: tuple[int, ...], device: int, values: list) -> None:
    run, function, metadata, unread = found
    stream = triton.runtime.driver.active.get_current_stream(device)
    run(*(*grid, 1, 1)[:3], stream, function, metadata, None, None, None, *values, *unread)


TENSOR = object()  # stands for an argument that comes with the call


class Tiles(NamedTuple):
    """Stands for a tensor that the copy engine fetches in tiles of shape `block`; see `tiles`."""

    shape: tuple
    strides: tuple
    block: tuple


class Launch:
    """A launch of which all is decided but the tensors: made once for one kind of them, called many times.

    `TENSOR` and `Tiles` among the arguments stand for the tensors of a call. At every call these have the
    same dtypes, and the same ones are None.
    """

    def __init__(self, kernel, grid: tuple[int, ...], *arguments, **options):
        self.kernel, self.grid, self.arguments, self.options = kernel, grid, arguments, options
        self.places = [i for i, a in enumerate(arguments) if a is TENSOR or isinstance(a, Tiles)]
        self.found = {}  # by device, for tensors that begin at multiples of 16 bytes

    def __call__(self, *tensors: Tensor | None) -> None:
        x = tensors[0]
        device = None if isinstance(x, FakeTensor) else x.get_device()
        found = self.found.get(device)
        values, together = list(self.arguments), 0
        if found is None or device != torch.accelerator.current_device_index() or _hooked():
            return self._first(tensors, values, device)
        for place, x in zip(self.places, tensors, strict=True):
            if x is not None:
                address = x.data_ptr()
                together |= address
                x = address if values[place] is TENSOR else tiles(x, *values[place])
            values[place] = x
        if together % 16:
            return self._first(tensors, values, device)
        _start(found, self.grid, device, values[: self.kernel.constexprs[0]])

    def _first(self, tensors: tuple, values: list, device: int | None) -> None:
        for place, x in zip(self.places, tensors, strict=True):
            by_tiles = isinstance(self.arguments[place], Tiles)
            values[place] = tiles(x, *self.arguments[place]) if by_tiles else x
        found = launch(self.kernel, self.grid, *values, **self.options)
        if found and not any(x.data_ptr() % 16 for x in tensors if x is not None):
            self.found[device] = found


def _without_data(kernel, grid, arguments, options) -> None:
    """Nothing to compute. `kernels.triton.ahead` puts its compiler here."""


def _watching(kernel, arguments):
    """Around what the interpreter does. `course.profiling` puts here who counts launches."""
    return nullcontext()


def tiles(x: Tensor, shape: tuple, strides: tuple, block: tuple) -> TensorDescriptor:
    """From where the copy engine fetches tiles of shape `block` of an array at x's address.

    One that was made before is returned again: Triton's checks take longer than all of a launch.
    """
    if INTERPRETED or isinstance(x, FakeTensor):
        return TensorDescriptor(x, list(shape), list(strides), list(block))
    return _tiles(_Address(x.data_ptr(), x.dtype), shape, strides, block)


class _Address(NamedTuple):
    """What Triton asks of a descriptor's tensor. With the tensor itself, its memory would be kept too."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


@functools.lru_cache(maxsize=1024)
def _tiles(base: _Address, shape: tuple, strides: tuple, block: tuple) -> TensorDescriptor:
    return TensorDescriptor(base, list(shape), list(strides), list(block))


def fuses_products(x: Tensor) -> bool:
    """Whether to multiply x in kernels that do more with a tile than to store it: they are made for Hopper's
    copy engine and 16-bit tensor cores. Everywhere else a product is the library's, and the rest a kernel of
    its own. The interpreter runs them in every dtype, so that they are tested.
    """
    return INTERPRETED or (gpu(x).capability == 90 and x.dtype != torch.float32)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; `triton.cdiv`, which kernels can call too, takes thirty times as long."""
    return -(-a // b)


def power_of_2(n: int, most: int) -> int:
    """The smallest power of 2 that is not below n, but at most `most`, itself one."""
    return most if n >= most else 1 << (max(int(n), 1) - 1).bit_length()


def empty(x: Tensor) -> Tensor:
    """A contiguous tensor like x, with nothing in it yet."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def rows(x: Tensor) -> tuple[Tensor, int, int]:
    """x `(..., C)` as rows at one distance: a tensor that begins with the first, their number, the distance.

    Layouts that a model makes are taken as they are. One with gaps between features is copied: a kernel that
    read it in place would fetch the gaps too, once for every pass.
    """
    if x.is_contiguous():
        return x, x.numel() // x.shape[-1], x.shape[-1]
    x = matrix(x)
    return x, x.shape[0], x.stride(0)


def matrix(x: Tensor) -> Tensor:
    """`(..., C)` as `(rows, C)`, a view wherever `rows` would not copy."""
    if x.dim() != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def part(x: Tensor, start: int, length: int, dim: int = 0) -> Tensor:
    """`length` rows of x: x itself where that is all, and no time is lost with views."""
    return x if length == x.shape[dim] else x.narrow(dim, start, length)


def padded(like: Tensor, n_rows: int, columns: int) -> Tensor:
    """`(n_rows, columns)` whose rows begin at multiples of 16 bytes, with nothing in it yet."""
    step = 16 // like.element_size()
    # Zeros between the rows: on CPUs PyTorch's bfloat16 product reads on, and 0 times any nan is nan.
    make = like.new_zeros if columns % step else like.new_empty
    return part(make(n_rows, cdiv(columns, step) * step), 0, columns, 1)


def for_tma(x: Tensor) -> Tensor:
    """`(rows, C)` as the GPU's unit for copying tiles can read it; almost always x itself, else a copy."""
    aligned = x.stride(0) > 0 and x.stride(0) * x.element_size() % 16 == 0
    if aligned and (isinstance(x, FakeTensor) or x.data_ptr() % 16 == 0):
        return x
    return padded(x, *x.shape).copy_(x)
