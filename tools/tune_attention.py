"""Find the fastest tiles of the attention kernels on this GPU.

    python tools/tune_attention.py --widths 64 128      -> rows for TILES in kernels/triton/attention.py

One kernel after the other, while the other two keep what the table gives them. A candidate that does not
fit the GPU is left out, and one whose results differ from the table's is named and left out: compilers have
faults. The others are timed, causal, at several lengths; the best has the smallest geometric mean. There are
72 candidates for a kernel and a width, and each takes seconds to compile.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from triton.runtime.errors import OutOfResources, PTXASError

from course import device
from kernels.bench import milliseconds
from kernels.triton import attention
from kernels.triton.launch import gpu

LENGTHS = (4096, 16384)
TOKENS, FEATURES = 16384, 2048  # B T and H D of every input
BLOCKS, WARPS, STAGES, REGISTERS = (32, 64, 128), (4, 8), (2, 3, 4), (None, 96, 168)
KERNELS = (attention.FORWARD, attention.DQ, attention.DKV)


def candidates() -> Iterator[tuple]:
    """(BLOCK_M, BLOCK_N, num_warps, num_stages, maxnreg): eight warps for large tiles only."""
    for M, N, warps, stages, registers in itertools.product(BLOCKS, BLOCKS, WARPS, STAGES, REGISTERS):
        if (warps == 4 or M * N >= 64 * 64) and (warps == 4 or registers is None):
            yield M, N, warps, stages, registers


@contextmanager
def tiles(table: str, kernel: str, D: int, candidate: tuple | None):
    """The engine with a candidate in its table, or with its own for None."""
    row = attention.TILES[table][kernel]
    width = next(w for w in row if w >= D)
    with mock.patch.dict(row, {} if candidate is None else {width: candidate}):
        _forget_plans()
        yield
    _forget_plans()


def _forget_plans() -> None:
    """The engine looks into its table once for each kind of input."""
    attention._plan_forward.cache_clear()
    attention._plan_backward.cache_clear()


def both_passes(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    y, saved = attention.attention_forward(*inputs[:3])
    return [y, *attention.attention_backward(inputs[3], saved)[:3]]


def seconds_of(kernel: str, inputs: list[torch.Tensor]) -> float:
    """Of the pass that the kernel is in."""
    if kernel == attention.FORWARD:
        return milliseconds(lambda: attention.attention_forward(*inputs[:3])) / 1e3
    _, saved = attention.attention_forward(*inputs[:3])
    return milliseconds(lambda: attention.attention_backward(inputs[3], saved)) / 1e3


def tune(kernel: str, D: int, dtype: torch.dtype, lengths=LENGTHS, choices=None) -> list[tuple[float, tuple]]:
    """-> (time in times of the table's own tiles, candidate), the fastest first."""
    table = attention._table(gpu(torch.empty(0, device=device.DEVICE)), dtype)
    shapes = [(max(TOKENS // T, 1), T, max(FEATURES // D, 1), D) for T in lengths]
    inputs = [[device.normal(*shape, seed=i, dtype=dtype) for i in range(4)] for shape in shapes]
    with tiles(table, kernel, D, None):
        expected = [both_passes(x) for x in inputs]
        own = [seconds_of(kernel, x) for x in inputs]
    found = []
    for candidate in candidates() if choices is None else choices:
        try:
            with tiles(table, kernel, D, candidate):
                pairs = zip(
                    itertools.chain(*map(both_passes, inputs)), itertools.chain(*expected), strict=True
                )
                wrong = max((got - want).norm() / want.norm() for got, want in pairs)
                if not wrong < 1e-2:  # tiles add up in another order, and a product is rounded to 16 bits
                    print(f"  {candidate}: wrong by {wrong:.1e}", flush=True)
                    continue
                ratios = [seconds_of(kernel, x) / t for x, t in zip(inputs, own, strict=True)]
        except (OutOfResources, PTXASError):
            continue
        found.append((math.prod(ratios) ** (1 / len(ratios)), candidate))
    return sorted(found, key=lambda pair: pair[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128], help="of a head")
    parser.add_argument("--kernels", nargs="+", default=KERNELS, choices=KERNELS)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    arguments = parser.parse_args()
    if device.DEVICE.type != "cuda":
        parser.error("tiles are chosen by their times on a GPU, and PyTorch sees none here")
    for kernel, D in itertools.product(arguments.kernels, arguments.widths):
        print(f"{kernel}, width {D}: times of the table's own", flush=True)
        for ratio, candidate in tune(kernel, D, getattr(torch, arguments.dtype))[:5]:
            print(f"  {ratio:.3f}  {candidate}", flush=True)


if __name__ == "__main__":
    main()
