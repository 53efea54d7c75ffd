"""The matmul ladder of notebook 13: C = A B, from a naive kernel to Hopper's tensor cores, a file a rung.

`RUNGS` says of every rung what it adds, which source it is, and how that is launched; `matmul` runs one.
The sources are separate on purpose: each can be read alone, beside the one before it.
"""

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


RUNGS = (
    Rung("naive", "one thread computes one element", (32, 32), (32, 32)),
    Rung("coalesced", "neighbouring threads read neighbouring addresses", (32, 32), (32, 32)),
    Rung("shared", "a block shares tiles of A and B", (32, 32), (32, 32)),
    Rung("registers_1d", "a thread computes 8 elements of a column", (64, 64), (512,)),
    Rung("registers_2d", "a thread computes 8 x 8 elements", (128, 128), (256,)),
    Rung("vectors", "16 bytes a load", (128, 128), (256,)),
    Rung("pipeline", "copies run ahead of the arithmetic; 8 x 16 elements a thread", (128, 128), (128,), 55296),
    Rung(
        "tensor_cores", "mma.sync: a warp multiplies 16 x 8 x 16 in one instruction",
        (128, 128), (128,), 65536, HALVES,
    ),
    Rung(
        "hopper", "wgmma and TMA: four warps multiply 64 x 256 x 16, the copy engine feeds them",
        (128, 256), (384,), 229504, (torch.bfloat16,), (90, 90), False,
    ),
)  # fmt: skip
_BY_NAME = {rung.name: rung for rung in RUNGS}


def matmul(rung: str | Rung, a: Tensor, b: Tensor) -> Tensor:
    """C = A B by one rung of the ladder. a `(M, K)` and b `(K, N)` row-major -> `(M, N)`, of their dtype.

    Any sizes. The last two rungs read rows that begin at multiples of 16 bytes: operands with other rows are
    copied first, into rows with zeros at their ends. Without a GPU the emulator runs it, where it can.

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
    if a.dtype == torch.float32:
        a, b = a.contiguous(), b.contiguous()
        c = a.new_empty(M, N)
    else:
        a, b = _rows_of_16_bytes(a), _rows_of_16_bytes(b)
        c = a.new_empty(M, b.shape[1])
    kernel = _module(rung, a.dtype, a.is_cuda).matmul
    tile_m, tile_n = rung.tile
    if rung.name == "hopper":
        processors = torch.cuda.get_device_properties(a.device).multi_processor_count
        maps = tensor_map(a, (128, 64), 128), tensor_map(b, (64, 64), 128), tensor_map(c, (64, 64), 128)
        kernel[processors // 2 * 2, rung.block, rung.shared](*maps, M, N, K)
    else:
        grid = -(-N // tile_n), -(-M // tile_m)
        kernel[grid, rung.block, rung.shared](a, b, c, M, c.shape[1], a.shape[1])
    return c[:, :N].contiguous()


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
    first, last = rung.capability
    if a.is_cuda:
        major, minor = torch.cuda.get_device_capability(a.device)
        if not first <= 10 * major + minor <= (last or 1000):
            only = f"compute capability {first / 10}" + ("" if last else " or later")
            raise RuntimeError(f"matmul: rung {rung.name} needs a GPU of {only}, this is {major}.{minor}.")
        if a.dtype == torch.bfloat16 and major < 8:
            raise TypeError("matmul: this GPU has no bfloat16; use float16.")
    elif not rung.emulated:
        raise RuntimeError(f"matmul: rung {rung.name} runs on a GPU only: it is made of Hopper's own instructions.")


def _rows_of_16_bytes(x: Tensor) -> Tensor:
    """x with its rows at multiples of 16 bytes, zeros at their ends: almost always x itself."""
    step = 16 // x.element_size()
    if x.is_contiguous() and x.shape[1] % step == 0 and x.data_ptr() % 16 == 0:
        return x
    return pad(x, (0, -x.shape[1] % step)).contiguous()
