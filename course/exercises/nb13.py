"""The checkers of notebook 13: bytes of tiles, A transposed, the choice of tiles, a swizzle, split K."""

import itertools
import math
import re
from collections.abc import Iterator

import torch

from course import device
from course.exercises.checking import Wrong, exercise, expect_close
from kernels.cuda import emulator
from kernels.cuda.module import Module, load
from kernels.cuda.signature import without_comments

SINGLE = 1e-5  # the tolerance of short sums in float32


@exercise("13.1")
def bytes_asked(answer) -> None:
    for M, N, K, BM, BN, itemsize in (
        (4096, 4096, 4096, 128, 128, 4),
        (256, 512, 64, 64, 128, 2),
        (100, 300, 7, 64, 128, 4),
        (5, 3, 9, 8, 8, 2),
    ):
        of_a, of_b, of_c = M * K * math.ceil(N / BN), K * N * math.ceil(M / BM), M * N
        rows, columns = math.ceil(M / BM) * BM, math.ceil(N / BN) * BN
        want, got = (of_a + of_b + of_c) * itemsize, answer(M, N, K, BM, BN, itemsize)
        known = {
            of_a + of_b: "C, written once, is missing.",
            M * K * math.ceil(M / BM) + K * N * math.ceil(N / BN) + of_c: "a row of A is read by the blocks "
            "beside each other, of which there are N / BN, and a column of B by M / BM.",
            M * K * N / BN
            + K * N * M / BM
            + of_c: "a tile that is partly outside the matrix is a block, too: round the number of tiles up.",
            M * K * (N // BN) + K * N * (M // BM) + of_c: "a tile that is partly outside the matrix is a "
            "block, too: round the number of tiles up.",
            rows * K * columns // BN
            + K * columns * rows // BM
            + of_c: "rows and columns outside the matrices are counted; nobody asks for them.",
            (of_a + of_b + of_c) / itemsize: "those are numbers; each has itemsize bytes.",
        }
        if got != want:
            near = next((text for value, text in known.items() if got in (value, value * itemsize)), None)
            guess = f" By the number, {near}" if near else ""
            sizes = f"M={M}, N={N}, K={K}, BM={BM}, BN={BN}, itemsize={itemsize}"
            raise Wrong(f"For {sizes} it is {got}, expected {want}.{guess}")


def _compiled(source: str) -> Iterator[tuple[Module, torch.device]]:
    """The source for the emulator, which sees what a GPU lets pass, and then for the GPU; with a device."""
    if not isinstance(source, str):
        raise Wrong(f"The answer should be a string of CUDA C++, and is a {type(source).__name__}.")
    try:
        emulator.compiler()
        emulated = True
    except emulator.EmulatorError:
        if device.DEVICE.type == "cpu":
            raise
        emulated = False
    if emulated:
        yield load(source, emulate=True), torch.device("cpu")
    if device.DEVICE.type == "cuda":
        yield load(source, emulate=False), device.DEVICE


def _kernel(module: Module, name: str):
    if not hasattr(module, name):
        raise Wrong(f"The source has no kernel {name}; it has {module!r}.")
    return getattr(module, name)


@exercise("13.2")
def transposed_a(answer) -> None:
    for module, where in _compiled(answer):
        if "__shared__" not in without_comments(answer):
            raise Wrong(
                "There is no __shared__ array in it: the tiles of A and B should be shared by a block."
            )
        kernel = _kernel(module, "matmul")
        for i, (M, N, K) in enumerate(((64, 32, 96), (32, 32, 32), (33, 70, 5), (1, 1, 40), (40, 20, 33))):
            at, b = (
                device.normal(*shape, seed=1320 + i, dtype=torch.float32).to(where)
                for shape in ((K, M), (K, N))
            )
            c = torch.full((M, N), math.nan, device=where)
            kernel[(-(-N // 32), -(-M // 32)), (32, 32)](at, b, c, M, N, K)
            sizes, want = f"for M={M}, N={N}, K={K},", at.double().T @ b.double()
            known = {
                "A is read as if it lay as (M, K): A[m, k] is At[k * M + m]": at.view(M, K).double()
                @ b.double(),
                "the tile of A is read untransposed, As[y][k] where As[k][y] was stored": _tiles_untransposed(
                    at, b
                ),
            }
            for message, mistaken in known.items():
                differ = (mistaken - want).abs().max() > SINGLE * want.abs().max()
                if (
                    differ
                    and torch.isfinite(c).all()
                    and (c - mistaken).abs().max() <= SINGLE * mistaken.abs().max()
                ):
                    raise Wrong(f"C, {sizes} is what comes out when {message}.")
            if torch.isnan(c).any():
                raise Wrong(f"C, {sizes} has elements that nobody wrote.")
            expect_close(f"C, {sizes}", c, want, SINGLE)


def _tiles_untransposed(at: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """C of a kernel that stores tiles of 32 x 32 as they lie in At, and reads them as tiles of A."""
    (K, M), rows = at.shape, b.double()
    pad = torch.nn.functional.pad(at.double(), (0, -M % 32, 0, -K % 32))
    tiles = pad.unflatten(0, (-1, 32)).unflatten(2, (-1, 32))  # (K / 32, 32, M / 32, 32)
    mistaken = tiles.permute(2, 1, 0, 3).reshape(pad.shape[1], pad.shape[0])  # each tile's rows as rows of A
    return (mistaken[:, :K] @ rows)[:M]


SIDES, DEPTHS, PARTS = (32, 64, 128, 256), (8, 16, 32), (4, 8, 16)


def _problem(BM: int, BN: int, BK: int, TM: int, TN: int, shared: int, stages: int) -> str | None:
    """Why this choice does not fit, in words."""
    if not (BM in SIDES and BN in SIDES and BK in DEPTHS and TM in PARTS and TN in PARTS):
        return "is not among the sizes to choose from"
    threads, registers = BM * BN // (TM * TN), TM * TN + TM + TN + 40
    if not 128 <= threads <= 1024:
        return f"has {threads} threads a block, and 128 to 1024 are allowed"
    if registers > 255:
        return f"needs {registers} registers a thread, and there are 255"
    if registers * threads > 65536:
        return f"needs {registers * threads} registers for its {threads} threads, and an SM has 65536"
    if (took := stages * (BM + BN) * BK * 4) > shared:
        return f"needs {took} bytes of shared memory for {stages} stages, and there are {shared}"
    return None


@exercise("13.3")
def choose(answer) -> None:
    for shared, stages in ((48 << 10, 2), (64 << 10, 2), (16 << 10, 3), (227 << 10, 4), (8 << 10, 1)):
        got, limits = answer(shared, stages), f"For {shared} bytes and {stages} stages"
        if not (isinstance(got, tuple | list) and len(got) == 5):
            raise Wrong(f"{limits} the answer should be (BM, BN, BK, TM, TN), and is {got!r}.")
        if problem := _problem(*got, shared, stages):
            raise Wrong(f"{limits} {tuple(got)} {problem}.")
        every = itertools.product(SIDES, SIDES, DEPTHS, PARTS, PARTS)
        best = max((c for c in every if _problem(*c, shared, stages) is None), key=_value)
        for name, mine, possible in zip(("of memory", "of shared memory", ""), _value(got), _value(best)):
            if mine < possible and name:
                raise Wrong(
                    f"{limits} {tuple(got)}: {mine:.2f} FLOPs a byte {name}; {possible:.2f} is possible."
                )
            if mine < possible:
                raise Wrong(f"{limits} {tuple(got)} is as good as it gets but for BK: {possible} fits, too.")


def _value(choice) -> tuple[float, float, int]:
    """FLOPs a byte of memory, of shared memory, and the depth."""
    BM, BN, BK, TM, TN = choice
    return BM * BN / (BM + BN) / 2, TM * TN / (TM + TN) / 2, BK


@exercise("13.4")
def swizzle(answer) -> None:
    for width in (8, 4, 2):
        places = [[answer(row, chunk, width) for chunk in range(width)] for row in range(32)]
        for row, its in enumerate(places):
            if sorted(its) != list(range(width)):
                raise Wrong(
                    f"With {width} chunks a row, row {row} has its chunks at {its}: not a permutation of "
                    f"0 to {width - 1}, so something is overwritten or lies outside the row."
                )
        for first, chunk in itertools.product(range(0, 32, 8), range(width)):
            groups = [(row * width + places[row][chunk]) % 8 for row in range(first, first + 8)]
            if len(set(groups)) < 8:
                clocks = max(groups.count(g) for g in groups)
                raise Wrong(
                    f"With {width} chunks a row, chunk {chunk} of rows {first} to {first + 7} lies in the "
                    f"groups of banks {groups}: {clocks} in one, so the read takes {clocks} clocks."
                )


@exercise("13.5")
def split_k(answer) -> None:
    for module, where in _compiled(answer):
        if re.search(r"\batomic\w+", without_comments(answer)):
            raise Wrong("There is an atomic in it: the order of the sum, and so its last bits, would change.")
        partial_products, add_up = _kernel(module, "partial_products"), _kernel(module, "add_up")
        for i, (M, N, K, parts, depth) in enumerate(
            (
                (16, 16, 32, 2, 16),
                (5, 7, 40, 4, 10),
                (17, 33, 50, 3, 20),
                (16, 16, 10, 4, 4),
                (1, 300, 64, 2, 32),
            )
        ):
            sizes = f"for M={M}, N={N}, K={K}, {parts} parts of {depth},"
            a, b = (device.normal(*s, seed=1350 + i, dtype=torch.float32).to(where) for s in ((M, K), (K, N)))
            p = torch.full((parts, M, N), math.nan, device=where)
            c = torch.full((M, N), math.nan, device=where)
            partial_products[(-(-N // 16), -(-M // 16), parts), (16, 16)](a, b, p, M, N, K, depth)
            spans = [slice(min(z * depth, K), min((z + 1) * depth, K)) for z in range(parts)]
            want = torch.stack([a[:, s].double() @ b[s].double() for s in spans])
            if torch.isnan(p).any():
                z = int(torch.isnan(p).flatten(1).any(1).nonzero()[0])
                raise Wrong(
                    f"P, {sizes} has elements in part {z} that nobody wrote: a part without any k is 0."
                )
            expect_close(f"P, {sizes}", p, want, SINGLE)
            add_up[-(-M * N // 256), 256](p, c, parts, M * N)
            if torch.isnan(c).any():
                raise Wrong(f"C, {sizes} has elements that nobody wrote.")
            expect_close(f"C, {sizes}", c, want.sum(0), SINGLE)
            in_order = p[0]
            for part in p[1:]:
                in_order = in_order + part
            if not torch.equal(c, in_order):
                raise Wrong(
                    f"C, {sizes} adds the parts in another order than 0, 1, 2, …: its last bits differ."
                )
