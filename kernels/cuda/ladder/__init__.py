"""The matmul ladder of notebook 13: C = A B, from a naive kernel to Hopper's tensor cores, a file a rung.

`RUNGS` says of every rung what it adds, which source it is, and how that is launched; `matmul` runs one.
The sources are separate on purpose: each can be read alone, beside the one before it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.cuda.module import Module, load
from kernels.cuda.tensor_map import tensor_map

HALVES = (torch.bfloat16, torch.float16)


class Rung(NamedTuple):
    """One kernel `matmul` in `ladder/<name>.cu`.

    tile: rows and columns of C that a block computes; block: its threads; shared: bytes of dynamic shared
    memory; dtypes: of A, B and C; capability: the GPUs that can run it, from the first compute capability
    to the last (75 is 7.5), or to any later one; emulated: whether it runs without a GPU too.
    """

    name: str
    adds: str
    tile: tuple[int, int]
    block: tuple[int, ...]
    shared: int = 0
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    capability: tuple[int, int | None] = (75, None)
    emulated: bool = True

    @property
    def source(self) -> str:
        return f"ladder/{self.name}.cu"

    def runs_on(self, capability: int, dtype: torch.dtype) -> bool:
        """Whether a GPU of that compute capability, 75 for 7.5, runs it on that dtype."""
        first, last = self.capability
        fits = first <= capability and (last is None or capability <= last)
        return fits and (dtype != torch.bfloat16 or capability >= 80)


RUNGS = (
    Rung("naive", "one thread computes one element", (32, 32), (32, 32)),
    Rung("coalesced", "neighbouring threads read neighbouring addresses", (32, 32), (32, 32)),
    Rung("shared", "a block shares tiles of A and B", (32, 32), (32, 32)),
    Rung("registers_1d", "a thread computes 8 elements of a column", (64, 64), (512,)),
    Rung("registers_2d", "a thread computes 8 x 8 elements", (128, 128), (256,)),
    Rung("vectors", "16 bytes a load", (128, 128), (256,)),
    Rung("pipeline", "copies run ahead of the arithmetic; tiles of warps", (128, 256), (256,)),
    Rung(
        "tensor_cores", "mma.sync: a warp multiplies 16 x 8 x 16 in one instruction",
        (128, 128), (128,), 65536, HALVES,
    ),
    Rung(
        "hopper", "wgmma and TMA: four warps multiply 64 x 256 x 16, the copy engine feeds them",
        (128, 256), (384,), 229440, (torch.bfloat16,), (90, 90), False,
    ),
)  # fmt: skip
_BY_NAME = {rung.name: rung for rung in RUNGS}


def matmul(rung: str | Rung, a: Tensor, b: Tensor) -> Tensor:
    """C = A B by one rung of the ladder. a `(M, K)` and b `(K, N)` row-major -> `(M, N)`, of their dtype.

    Any sizes. The last two rungs read rows that begin at multiples of 16 bytes: operands with other rows are
    copied first, into rows with zeros at their ends. Without a GPU the emulator runs a rung, if it can.

    Raises `ValueError` for an unknown rung, for shapes that do not fit and for different devices, `TypeError`
    for dtypes that the rung does not have, `RuntimeError` for a GPU that it cannot run on.
    """
    if not isinstance(rung, Rung):
        if rung not in _BY_NAME:
            raise ValueError(f"Unknown rung {rung!r}: choose one of {', '.join(_BY_NAME)}.")
        rung = _BY_NAME[rung]
    _check(rung, a, b)
    (M, K), N = a.shape, b.shape[1]
    if 0 in (M, N, K):
        return a.new_zeros(M, N)
    launch, c = prepare(rung, a, b)
    launch()
    return c.contiguous()


def prepare(rung: Rung, a: Tensor, b: Tensor) -> tuple[Callable[[], None], Tensor]:
    """-> what launches the kernel, once and once more, and the C that it writes, its rows perhaps padded."""
    (M, K), N = a.shape, b.shape[1]
    width = 1 if a.dtype == torch.float32 else 8
    a, b = _rows(a, width), _rows(b, width)
    c = a.new_empty(M, b.shape[1])
    kernel = module(rung, a.dtype, not a.is_cuda).matmul
    if rung.name == "hopper":
        processors = torch.cuda.get_device_properties(a.device).multi_processor_count
        grid = processors // 2 * 2
        operands = tensor_map(a, (128, 64), 128), tensor_map(b, (64, 64), 128), tensor_map(c, (64, 64), 128)
    else:
        grid = -(-N // rung.tile[1]), -(-M // rung.tile[0])
        operands = a, b, c
    launch = kernel[grid, rung.block, rung.shared]
    return lambda: launch(*operands, M, N, K), c[:, :N]


@functools.cache
def module(rung: Rung, dtype: torch.dtype, emulate: bool) -> Module:
    """The compiled source of a rung."""
    return load(rung.source, scalar=dtype, emulate=emulate)


def _check(rung: Rung, a: Tensor, b: Tensor) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(
            f"matmul: expected a (M, K) and b (K, N), got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if a.dtype != b.dtype or a.dtype not in rung.dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in rung.dtypes)
        raise TypeError(f"matmul: rung {rung.name} takes a and b in {names}, got {a.dtype} and {b.dtype}.")
    if a.device != b.device:
        raise ValueError(f"matmul: a is on {a.device} and b on {b.device}; put both on one device.")
    if not a.is_cuda and not rung.emulated:
        raise RuntimeError(
            f"matmul: rung {rung.name} has no emulation; it needs a Hopper GPU, such as an H100."
        )
    if a.is_cuda:
        major, minor = torch.cuda.get_device_capability(a.device)
        if not rung.runs_on(10 * major + minor, a.dtype):
            raise RuntimeError(
                f"matmul: rung {rung.name} does not run in {a.dtype} on a GPU of compute capability "
                f"{major}.{minor}; take an earlier rung, or float16 in place of bfloat16."
            )


def _rows(x: Tensor, width: int) -> Tensor:
    """x row-major, its rows as long as a multiple of `width`, with zeros at their ends: mostly x itself."""
    x = x.contiguous()
    if x.shape[1] % width == 0 and x.data_ptr() % 16 == 0:
        return x
    return pad(x, (0, -x.shape[1] % width)).clone()
