"""The inputs that every operation is tested on: odd sizes, one row, broadcasting, strides, large values;
and the comparison of an engine with float64 on them."""

from dataclasses import dataclass

import numpy as np
import torch

import kernels
from kernels.operations import OPERATIONS

IGNORED = -100


@dataclass(frozen=True)
class Case:
    """Shapes (tuples), plain numbers, None, or `Ids` for each input of an operation, in order."""

    operation: str
    inputs: tuple
    what: str
    large: bool = False  # values of the size in `LARGE`
    strided: bool = False  # every float array is a view with gaps

    def __str__(self):
        return f"{self.operation}-{self.what}"


@dataclass(frozen=True)
class Ids:
    """Integers below `high`; `ignored` of them become the ignored index."""

    shape: tuple
    high: int
    ignored: int = 0


def both(operation: str, what: str, *inputs) -> list[Case]:
    """The case itself and the same with strided inputs."""
    return [Case(operation, inputs, what), Case(operation, inputs, f"{what}-strided", strided=True)]


CASES = [
    *both("embedding", "odd", Ids((3, 7), 11), (11, 5)),
    Case("embedding", (Ids((1, 1), 2), (2, 3)), "one"),
    Case("embedding", (Ids((0, 4), 2), (2, 3)), "empty"),
    *both("linear", "odd", (3, 5, 7), (9, 7), (9,)),
    Case("linear", ((1, 1, 4), (3, 4), None), "one-row-no-bias"),
    Case("linear", ((0, 4), (3, 4), (3,)), "empty"),
    *both("add", "same", (3, 5), (3, 5)),
    Case("add", ((2, 3, 5), (3, 5)), "over-batch"),
    Case("add", ((3, 1), (1, 5)), "outer"),
    *both("mul", "same", (3, 5), (3, 5)),
    Case("mul", ((2, 3, 5), (5,)), "row"),
    *both("rmsnorm", "odd", (3, 5, 33), (33,), 1e-5),
    Case("rmsnorm", ((1, 3), (3,), 1e-5), "one-row"),
    Case("rmsnorm", ((4, 17), (17,), 1e-5), "large", large=True),
    *both("add_rmsnorm", "odd", (3, 5, 33), (3, 5, 33), (33,), 1e-5),
    *both("layernorm", "odd", (3, 5, 33), (33,), (33,), 1e-5),
    Case("layernorm", ((1, 9), (9,), (9,), 1e-5), "one-row"),
    Case("layernorm", ((4, 17), (17,), (17,), 1e-5), "large", large=True),
    *both("add_layernorm", "odd", (3, 5, 33), (3, 5, 33), (33,), (33,), 1e-5),
    *both("rope", "odd", (2, 5, 3, 6), (5, 3), (5, 3)),
    Case("rope", ((1, 1, 1, 2), (1, 1), (1, 1)), "one"),
    *both("gelu", "odd", (3, 7)),
    Case("gelu", ((3, 7),), "large", large=True),
    *both("swiglu", "odd", (3, 7), (3, 7)),
    Case("swiglu", ((3, 7), (3, 7)), "large", large=True),
    *both("gelu_mlp", "odd", (3, 5, 7), (9, 7), (9,), (11, 9), (11,)),
    Case("gelu_mlp", ((1, 1, 4), (3, 4), None, (4, 3), None), "one-row-no-biases"),
    Case("gelu_mlp", ((2, 4), (3, 4), None, (4, 3), (4,)), "one-bias"),
    Case("gelu_mlp", ((0, 4), (3, 4), (3,), (4, 3), (4,)), "empty"),
    *both("softmax", "odd", (3, 17)),
    Case("softmax", ((2, 1),), "one"),
    Case("softmax", ((3, 17),), "large", large=True),
    *both("attention", "causal", (2, 7, 4, 8), (2, 7, 4, 8), (2, 7, 4, 8), None, True, None, None),
    *both("attention", "everything", (2, 5, 4, 6), (2, 9, 2, 6), (2, 9, 2, 6), (4,), True, 3, 0.3),
    Case("attention", ((1, 1, 1, 2), (1, 1, 1, 2), (1, 1, 1, 2), None, True, None, None), "one"),
    Case("attention", ((2, 5, 6, 8), (2, 5, 2, 8), (2, 5, 2, 8), (6,), True, None, None), "sink"),
    Case("attention", ((2, 3, 4, 8), (2, 11, 1, 8), (2, 11, 1, 8), (4,), False, None, None), "full"),
    Case(
        "attention", ((1, 5, 2, 8), (1, 5, 2, 8), (1, 5, 2, 8), None, True, None, None), "large", large=True
    ),
    *both("cross_entropy", "odd", (3, 5, 11), Ids((3, 5), 11), IGNORED),
    Case("cross_entropy", ((9, 11), Ids((9,), 11, ignored=4), IGNORED), "ignored"),
    Case("cross_entropy", ((9, 11), Ids((9,), 11), IGNORED), "large", large=True),
    *both("linear_cross_entropy", "odd", (3, 5, 7), (11, 7), Ids((3, 5), 11), IGNORED),
    Case("linear_cross_entropy", ((9, 7), (11, 7), Ids((9,), 11, ignored=4), IGNORED), "ignored"),
]

LARGE = {
    "softmax": 1e4,
    "cross_entropy": 100.0,
    "rmsnorm": 1e2,
    "layernorm": 1e2,
    "attention": 10.0,
}  # 30 for the rest


def arguments(case: Case, dtype: torch.dtype, device: str) -> tuple:
    """The inputs of a case, the same numbers for every engine, in a dtype on a device."""
    rng = np.random.default_rng(sum(map(ord, str(case))))
    scale = LARGE.get(case.operation, 30.0) if case.large else 1.0
    return tuple(
        _argument(spec, name, rng, scale, case.strided, dtype, device)
        for name, spec in zip(OPERATIONS[case.operation].inputs, case.inputs, strict=True)
    )


def _argument(spec, name, rng, scale, strided, dtype, device):
    if isinstance(spec, Ids):
        ids = rng.integers(0, spec.high, spec.shape)
        ids.reshape(-1)[: spec.ignored] = IGNORED
        return torch.from_numpy(ids).to(device)
    if not isinstance(spec, tuple):
        return spec
    if name in ("cos", "sin"):
        angles = np.arange(np.prod(spec)).reshape(spec)
        x = torch.from_numpy(np.cos(angles) if name == "cos" else np.sin(angles))
    else:
        x = torch.from_numpy(np.asarray(scale * rng.standard_normal(spec)))
    x = x.to(dtype).to(device)
    if strided:  # a wider array's every second column
        wide = torch.zeros(*spec[:-1], 2 * spec[-1], dtype=dtype, device=device)
        wide[..., ::2] = x
        x = wide[..., ::2]
    return x


def outputs(y) -> tuple:
    """One or several arrays as a tuple."""
    return y if isinstance(y, tuple) else (y,)


# How far from float64 an engine may be, as ‖out - ref‖ / ‖ref‖: a few units in the last place of each
# dtype (2⁻⁵³, 2⁻²⁴, 2⁻¹¹, 2⁻⁸), for the roundings of a chain of about ten operations.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def relative_errors(got: tuple, expected: tuple, together: bool) -> list[float]:
    """‖got - expected‖ / ‖expected‖ of each array. `together`: over the largest norm of them all, because
    a saturated softmax or tanh has some gradients that are nothing but the rounding of others."""
    pairs = [
        (a.double().cpu(), b.double().cpu()) for a, b in zip(got, expected, strict=True) if b is not None
    ]
    norms = [max(b.norm().item(), 1e-6) for _, b in pairs]
    norms = [max(norms)] * len(norms) if together else norms
    return [(a - b).norm().item() / norm for (a, b), norm in zip(pairs, norms, strict=True)]


def run_pair(engine: str, case: Case, inputs: tuple) -> tuple[tuple, tuple]:
    """Outputs and gradients of one forward and backward, the output's gradient drawn from a seed."""
    forward, backward = kernels.pair(engine, case.operation)
    y, saved = forward(*inputs)
    y = outputs(y)
    dy = tuple(draw_like(out, seed) for seed, out in enumerate(y))
    gradients = outputs(backward(dy if len(y) > 1 else dy[0], saved))
    return y, gradients


def draw_like(x: torch.Tensor, seed: int) -> torch.Tensor:
    numbers = np.random.default_rng(100 + seed).standard_normal(tuple(x.shape))
    return torch.from_numpy(np.asarray(numbers)).to(x.dtype).to(x.device)


def assert_equals_float64_reference(engine: str, case: Case, inputs: tuple, dtype: torch.dtype) -> None:
    """One forward and backward on `inputs`, of `dtype`, against the reference on the same in float64."""
    exact = tuple(
        x.double().cpu() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in (x.cpu() if isinstance(x, torch.Tensor) else x for x in inputs)
    )
    got, expected = run_pair(engine, case, inputs), run_pair("reference", case, exact)
    for kind, ours, theirs in zip(("output", "gradient"), got, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None), f"{kind}: {a} where the reference has {b}"
            if a is None:
                continue
            assert a.shape == b.shape, f"{kind}: of shape {tuple(a.shape)}, not {tuple(b.shape)}"
            # a loss may be more precise than what it is the loss of
            precise = a.dim() == 0 and a.dtype == torch.float32
            assert a.dtype == dtype or precise, f"{kind}: of {a.dtype}, not {dtype}"
            assert torch.isfinite(a).all(), f"{kind}: not everything is finite"
        if kind == "gradient" and case.large and dtype.itemsize == 2:
            continue  # rounding to two bytes moves a saturated softmax more than its gradient is large
        errors = relative_errors(ours, theirs, together=case.large)
        # exp makes a score's rounding a relative error, as many times larger as the score is
        tolerance = TOLERANCE[dtype] * (10 if case.large else 1)
        assert max(errors) <= tolerance, f"{kind}: relative errors {errors}"
