"""The checkers of notebook 14: a bound on rounding, a search for bugs, a bug to find, a kernel to mend."""

import functools
import math
from types import ModuleType

import numpy as np
import torch

from course.exercises.checking import Wrong, exercise
from course.exercises.planted import SOURCES, plant
from kernels.cuda.emulator import EmulatorError
from kernels.cuda.module import load

HIDDEN = "pack.cuh", "i < count ? place", "i < count - 1 ? place"


@functools.cache
def mystery() -> ModuleType:
    """A cuda engine with a bug in one line. `mystery().folder` has its sources."""
    return plant(*HIDDEN)


@exercise("14.1")
def tolerance(answer) -> None:
    for seed, (M, K, N) in enumerate(((3, 1, 2), (4, 7, 5), (8, 200, 6), (2, 3000, 3))):
        a, b = _factors(seed, M, K, N)
        got = answer(a, b)
        if not isinstance(got, torch.Tensor):
            raise Wrong(f"tolerance(a, b) should be a tensor (M, N), and is a {type(got).__name__}.")
        if tuple(got.shape) != (M, N):
            raise Wrong(
                f"tolerance(a, b) has shape {tuple(got.shape)}, expected {(M, N)}: one bound for each y."
            )
        if got.dtype != torch.float64:
            raise Wrong(f"The bound is {got.dtype}; compute it in float64, or it is rounded itself.")
        exact = a.double() @ b.double()
        for order, y in _float32_products(a, b).items():
            over = (y.double() - exact).abs() > got
            if over.any():
                m, n = (int(i) for i in over.nonzero()[0])
                off, size = (
                    abs(y[m, n].item() - exact[m, n].item()),
                    (a[m].abs() * b[:, n].abs()).sum().item(),
                )
                raise Wrong(
                    f"A correct product, summed {order}, fails: for K = {K} y[{m}, {n}] is off by {off:.1e}, "
                    f"where {exact[m, n].item():.1e} is left of terms that are {size:.1e} together, and you "
                    f"allow {got[m, n].item():.1e}."
                )
        worst = 2**-24 * K * (a.double().abs() @ b.double().abs())
        if (got > 4 * worst).any():
            ratio = (got / worst.clamp(min=1e-300)).max().item()
            raise Wrong(
                f"For K = {K} the bound is {ratio:.2g} times what K roundings of u = 2^-24 can do to the sum "
                "of the terms' sizes: a forgotten term could hide in it. Which factor is too large?"
            )


def _factors(seed: int, M: int, K: int, N: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Terms that are large and cancel: a row of a holds each number twice, almost with opposite signs."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((M, K)), rng.standard_normal((K, N))
    half = K // 2
    a[:, half : 2 * half] = -a[:, :half] * (1 + 1e-6)
    b[half : 2 * half] = b[:half]
    return torch.tensor(1e3 * a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)


def _float32_products(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    """The product in several orders, every product and every sum rounded to float32."""
    terms = (a[:, :, None] * b[None]).numpy()
    orders = {
        "from the first term to the last": terms,
        "from the last term to the first": terms[:, ::-1],
        "positive terms first": -np.sort(-terms, axis=1),
    }
    found = {name: torch.from_numpy(np.add.accumulate(t, axis=1)[:, -1].copy()) for name, t in orders.items()}
    return found | {"as PyTorch does it": a @ b}


@exercise("14.2")
def find_all(answer) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 7, 16, 33):
        suspects = [f"operation_{i}" for i in range(n)]
        for c in sorted({0, 1, min(2, n), min(3, n)}):
            culprits = sorted(rng.choice(n, size=c, replace=False).tolist())
            bad, asked = {suspects[i] for i in culprits}, []

            def is_wrong(some, bad=bad, asked=asked):
                asked.append(list(some))
                return any(s in bad for s in some)

            got = answer(list(suspects), is_wrong)
            want = [suspects[i] for i in culprits]
            case = f"Of {n} suspects the culprits were {culprits} (by number)"
            if not isinstance(got, list):
                raise Wrong(f"find_all should return a list, and returns a {type(got).__name__}.")
            if missing := [s for s in want if s not in got]:
                raise Wrong(f"{case}; {missing[0]} was not found.")
            if innocent := [s for s in got if s not in bad]:
                raise Wrong(f"{case}; {innocent[0]} is innocent.")
            if got != want:
                raise Wrong(f"{case}: all found, but not in the order of suspects, or one of them twice.")
            most = 2 * c * math.ceil(math.log2(n)) + 1
            if len(asked) > most:
                raise Wrong(
                    f"{case}, and you asked {len(asked)} times, where {most} is all that it takes. Ask about "
                    "lists, not about each suspect."
                )


@exercise("14.3")
def find_it(answer) -> None:
    if not isinstance(answer, tuple) or len(answer) != 3:
        raise Wrong('The answer is a tuple of three, such as ("softmax", "softmax.cu", 12).')
    operation, file, line = answer
    name, right, _ = HIDDEN
    text = (SOURCES / name).read_text(encoding="utf-8")
    where = text.count("\n", 0, text.index(right)) + 1
    if operation != "linear":
        raise Wrong(f"On its own inputs {operation!r} is as right as PyTorch's. What does `accused` say?")
    if file != name:
        raise Wrong(
            f"The operation is right, and {file!r} is as it should be. At which sizes is it wrong, and which "
            "file that its kernel includes treats those in another way?"
        )
    if line != where:
        raise Wrong(f"The operation and the file are right, and line {line!r} is as it should be.")


@exercise("14.4")
def length(answer) -> None:
    if not isinstance(answer, str):
        raise Wrong(f"`mended` should be the source, a string, and is a {type(answer).__name__}.")
    kernel = load(answer, emulate=True).length
    rng = np.random.default_rng(0)
    for threads in (32, 64, 256, 1024):
        for n in (1, threads - 1, threads, threads + 1, 3 * threads + 5):
            g = torch.tensor(rng.standard_normal(n), dtype=torch.float32)
            result = torch.full((1,), -1.0)
            case = f"With n = {n} and {threads} threads"
            try:
                kernel[1, threads](g, result, n)
            except EmulatorError as report:
                raise Wrong(f"{case} the emulator reports: {report}") from None
            want = g.double().norm().item()
            if abs(result.item() - want) > 1e-5 * want:
                got = f"the length is {result.item():.6g}, expected {want:.6g}"
                raise Wrong(f"{case} {got}. Which elements are counted?")
