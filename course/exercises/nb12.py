"""The checkers of notebook 12: sources of CUDA kernels, run in the emulator, and on a GPU if there is one."""

import re

import numpy as np
import torch

from course import device
from course.exercises.checking import Wrong, exercise, expect_close
from kernels import reference
from kernels.cuda import emulator
from kernels.cuda.cache import CompileError
from kernels.cuda.module import load

SINGLE = 1e-5  # the tolerance of sums in float32
EPS = 1e-2  # large enough that a forgotten epsilon shows


def _module(source, name: str, emulate: bool):
    """The compiled source of a learner. Raises `NotImplementedError` for an untouched stub."""
    if not isinstance(source, str):
        raise Wrong(f"The answer should be a source, as a string, and is a {type(source).__name__}.")
    if re.search(r"^\s*\.\.\.\s*$", source, re.MULTILINE):
        raise NotImplementedError
    try:
        module = load(source, emulate=emulate)
    except CompileError as error:
        raise Wrong(f"The source does not compile. {error}") from None
    if not hasattr(module, name):
        raise Wrong(f"The source has no kernel `{name}`.")
    return module


def _run(module, name: str, grid, block, *arguments) -> None:
    try:
        getattr(module, name)[grid, block](*arguments)
    except emulator.EmulatorError as error:
        raise Wrong(f"The emulator reports:\n{error}") from None


def _on_gpu() -> bool:
    return device.DEVICE.type == "cuda"


def _everywhere(source, name: str, judge) -> None:
    """judge(run, where), with run(grid, block, *arguments): in the emulator, then on a GPU if one is here."""
    module = _module(source, name, emulate=True)
    judge(lambda grid, block, *arguments: _run(module, name, grid, block, *arguments), torch.device("cpu"))
    if _on_gpu():
        module = _module(source, name, emulate=False)
        try:
            judge(lambda grid, block, *a: _run(module, name, grid, block, *a), device.DEVICE)
        except Wrong as wrong:
            raise Wrong(f"The emulator has nothing to report, but on the GPU: {wrong}") from None


def _normal(*shape: int, seed: int, where: torch.device) -> torch.Tensor:
    return device.normal(*shape, seed=seed, dtype=torch.float32).to(where)


def _unwritten(*shape: int, where: torch.device) -> torch.Tensor:
    return torch.full(shape, torch.nan, device=where)


@exercise("12.1")
def mul(answer) -> None:
    def judge(run, where) -> None:
        for grid, block, n in ((1, 32, 100), (4, 256, 1000), (2, 64, 1001), (3, 100, 7), (1, 1, 3)):
            x, y = (_normal(n, seed=1200 + s, where=where) for s in (0, 1))
            z = _unwritten(n, where=where)
            run(grid, block, x, y, z, n)
            launch = f"With grid {grid}, block {block} and n = {n}"
            if z.isnan().any():
                first = int(z.isnan().nonzero()[0])
                some = f"{launch} element {first} is not written. "
                if first == grid * block:
                    some += f"There are {first} threads: each must take several elements."
                raise Wrong(some)
            expect_close(f"{launch}, z", z, x * y, 1e-7)

    _everywhere(answer, "mul", judge)


@exercise("12.2")
def transpose(answer) -> None:
    def judge(run, where) -> None:
        for R, C in ((32, 32), (1, 1), (33, 70), (100, 5)):
            x, y = _normal(R, C, seed=1210, where=where), _unwritten(C, R, where=where)
            run(((C + 31) // 32, (R + 31) // 32), (32, 8), x, y, R, C)
            if y.isnan().any():
                i, j = (int(k) for k in y.isnan().nonzero()[0])
                raise Wrong(f"For x ({R}, {C}) y[{i}, {j}] is not written: a block has 32 × 32 elements.")
            expect_close(f"For x ({R}, {C}) y", y, x.T, 0.0)

    _everywhere(answer, "transpose", judge)
    _expect_coalesced(answer)


@exercise("12.3")
def rmsnorm(answer) -> None:
    def judge(run, where) -> None:
        for R, C in ((8, 32), (1, 1), (13, 5), (9, 100)):
            x, weight = 3 + _normal(R, C, seed=1220, where=where), _normal(C, seed=1221, where=where)
            y = _unwritten(R, C, where=where)
            run((R + 7) // 8, 256, x, weight, y, R, C, EPS)
            _expect_rmsnorm(y, x.double(), weight.double(), f"For x ({R}, {C})")

    if isinstance(answer, str) and "__shared__" in answer:
        raise Wrong("The source has shared memory: a warp can do without, by shuffles.")
    _everywhere(answer, "rmsnorm", judge)


def _expect_rmsnorm(y, x, weight, where: str) -> None:
    if y.isnan().all(1).any():
        row = int(y.isnan().all(1).nonzero()[0])
        raise Wrong(f"{where} row {row} is not written: a block of 256 threads has 8 rows.")
    want, _ = reference.rmsnorm_forward(x, weight, EPS)
    squares = x * x
    known = {
        "the mean of the squares is their sum: divide by C.": squares.sum(-1, keepdim=True) + EPS,
        "eps is missing.": squares.mean(-1, keepdim=True),
        "the mean was subtracted: that is LayerNorm.": x.var(-1, keepdim=True, correction=0) + EPS,
        "the sum is divided by 32, and the row has C columns.": squares.sum(-1, keepdim=True) / 32 + EPS,
    }
    if not torch.allclose(y.double(), want, rtol=SINGLE):
        for message, mean in known.items():
            shifted = x - x.mean(-1, keepdim=True) if "LayerNorm" in message else x
            if torch.allclose(y.double(), weight * shifted * torch.rsqrt(mean + 1e-30), rtol=SINGLE):
                raise Wrong(f"{where}: {message}")
        if torch.allclose(y.double(), want / weight, rtol=SINGLE):
            raise Wrong(f"{where}: weight is missing.")
        if torch.allclose(y[:, ::32].double(), want[:, ::32], rtol=SINGLE):
            raise Wrong(
                f"{where}: lane 0 has the right sum, and other lanes have not. Which shuffle gives it to all?"
            )
    expect_close(f"{where} y", y, want, SINGLE)


@exercise("12.4")
def count(answer) -> None:
    def judge(run, where) -> None:
        for n, V, grid in ((1000, 7, 3), (5000, 256, 4), (100, 3, 2), (1, 1, 1)):
            ids = torch.from_numpy(np.random.default_rng(n).integers(V, size=n)).to(where)
            counts = torch.zeros(V, dtype=torch.int32, device=where)
            run(grid, 256, ids, counts, n, V)
            want = torch.bincount(ids, minlength=V)
            launch = f"For n = {n}, V = {V} and {grid} blocks"
            if counts.sum() != n:
                raise Wrong(f"{launch} the counts add up to {int(counts.sum())}, not to {n}.")
            expect_close(f"{launch} counts", counts, want, 0.0)

    _everywhere(answer, "count", judge)


# What a warp touches. The kernel is compiled once more, with objects in the place of its pointers and of its
# tile, which note the index of every access. It runs on a matrix of whole tiles, where all lanes do the same.

ROWS, COLUMNS, MOST = 64, 96, 64  # of x; and accesses of a thread that are noted
_WATCH = """
struct Notes {  // of one thread: how many, then the indices
    int *own;
    __device__ void note(int64_t index) const {
        if (own && own[0] < MOST - 1) own[1 + own[0]++] = index;
    }
};
template <class T>
struct Watched {
    T *data;
    Notes notes;
    __device__ T &operator[](int64_t i) const { notes.note(i); return data[i]; }
};
template <int WIDTH>
struct WatchedTile {
    float *data;
    Notes notes;
    struct Row {
        const WatchedTile &tile;
        int64_t row;
        __device__ float &operator[](int64_t c) const {
            tile.notes.note(row * WIDTH + c);
            return tile.data[row * WIDTH + c];
        }
    };
    __device__ Row operator[](int64_t row) const { return {*this, row}; }
};
"""
_KERNEL = """
extern "C" __global__ void watch(const float *x, float *y, int *notes, int R, int C) {
    int *own = notes + (threadIdx.y * blockDim.x + threadIdx.x) * 3 * MOST;
    if (blockIdx.x + blockIdx.y == 0)
        learners({x, {own}}, {y, {own + MOST}}, {own + 2 * MOST}, R, C);
    else
        learners({x, {nullptr}}, {y, {nullptr}}, {nullptr}, R, C);
}
"""


def _expect_coalesced(source: str) -> None:
    """Raises `Wrong` unless a warp's accesses to x and y are 4 sectors each, and one turn to the tile."""
    head = r'extern\s+"C"\s+__global__\s+void\s+transpose\s*\([^)]*\)'
    watched = "__device__ void learners(Watched<const float> x, Watched<float> y, Notes its, int R, int C)"
    tile = r"__shared__\s+float\s+(\w+)\s*\[([^\]]+)\]\s*\[([^\]]+)\]\s*;"
    text = re.sub(head, watched, source)
    text = re.sub(tile, r"__shared__ float raw[(\2) * (\3)]; WatchedTile<(\3)> \1{raw, its};", text)
    notes = torch.zeros(256, 3, MOST, dtype=torch.int32)
    x = torch.zeros(ROWS, COLUMNS)
    try:
        watch = load(_WATCH + text + _KERNEL, emulate=True, MOST=MOST).watch
    except CompileError as error:
        raise Wrong(
            "It is right, but the check cannot watch it: write every access as x[...], y[...] or "
            f"tile[...][...]. {error}"
        ) from None
    watch[(COLUMNS // 32, ROWS // 32), (32, 8)](x, x.new_empty(COLUMNS, ROWS), notes, ROWS, COLUMNS)
    for array, (name, verb) in enumerate((("x", "reads"), ("y", "writes"), ("the tile", "touches"))):
        for warp in notes[:, array].view(8, 32, MOST):
            for indices in warp[:, 1 : 1 + int(warp[:, 0].min())].T:
                if name == "the tile":
                    turns = int(torch.bincount(indices.unique() % 32).max())
                    if turns > 1:
                        raise Wrong(
                            f"It is right, and memory is coalesced. But a warp {verb} {turns} words of one "
                            "bank of the tile at once: lay its rows out so that a column has 32 banks."
                        )
                elif (sectors := len((indices // 8).unique())) > 4:
                    raise Wrong(
                        f"It is right, but a warp {verb} {len(indices)} numbers of {name} in {sectors} "
                        f"sectors, where 4 would hold them: threadIdx.x should walk along a row of {name}."
                    )
    if not re.search(tile, source):
        raise Wrong("It is right, but the check finds no tile: declare `__shared__ float tile[...][...];`.")
