"""Checkers of notebook 03."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from course.exercises.checking import Wrong, exercise, expect_close

SHAPES = ((7,), (3, 5), (2, 3, 4))


def _normal(rng, *shape: int, grad: bool = True) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape)).requires_grad_(grad)


def _expect_recorded(name: str, y: Tensor, shape: torch.Size) -> None:
    if not isinstance(y, Tensor):
        raise Wrong(f"{name} should return a tensor, and returns a {type(y).__name__}.")
    if y.shape != shape:
        raise Wrong(f"{name} returns shape {tuple(y.shape)}, expected {tuple(shape)}.")
    if y.grad_fn is None:
        raise Wrong(f"{name}'s result has no grad_fn: autograd cannot go back through it.")


def _kept(f) -> tuple[Tensor, list[Tensor]]:
    """The result of `f()`, and the tensors that autograd keeps for it."""
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.detach())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        return f(), kept


@exercise("03.1")
def swiglu(answer) -> None:
    rng = np.random.default_rng(31)
    for shape in SHAPES:
        gate, up, dy = _normal(rng, *shape), _normal(rng, *shape), _normal(rng, *shape, grad=False)
        y, kept = _kept(lambda: answer(gate, up))  # noqa: B023, called at once
        _expect_recorded("swiglu", y, gate.shape)
        expected = F.silu(gate) * up
        expect_close("y", y, expected)
        if not isinstance(y.grad_fn, torch.autograd.function.BackwardCFunction):
            raise Wrong(
                "The result's node is PyTorch's own, not that of a Function of yours: call the pair "
                "in SwiGLU.forward and SwiGLU.backward, and return SwiGLU.apply(gate, up)."
            )
        if not kept:
            raise Wrong(
                "Nothing went through ctx.save_for_backward: what hangs on ctx as an attribute is not "
                "guarded against changes in place."
            )
        want = torch.autograd.grad(expected, (gate, up), dy)
        got = torch.autograd.grad(y, (gate, up), dy, allow_unused=True)
        for name, g in zip(("dgate", "dup"), got, strict=True):
            if g is None:
                raise Wrong(f"{name} is None: the backward returns one gradient for each input.")
        if torch.allclose(got[0], want[1]) and torch.allclose(got[1], want[0]):
            raise Wrong("dgate and dup are swapped: gradients come in the order of the inputs.")
        expect_close("dgate", got[0], want[0])
        expect_close("dup", got[1], want[1])


@exercise("03.2")
def straight_clamp(answer) -> None:
    rng = np.random.default_rng(32)
    for shape, low, high in zip(SHAPES, (-0.5, 0.0, -2.0), (0.5, 0.3, -0.1), strict=True):
        x, dy = _normal(rng, *shape), _normal(rng, *shape, grad=False)
        before = x.detach().clone()
        y = answer(x, low, high)
        _expect_recorded("straight_clamp", y, x.shape)
        if not torch.equal(x.detach(), before):
            raise Wrong("The input x was modified: use x.clamp, not x.clamp_.")
        expect_close("y", y, before.clamp(low, high))
        (dx,) = torch.autograd.grad(y, x, dy, allow_unused=True)
        if dx is None:
            raise Wrong("dx is None: the first thing that the backward returns is the gradient of x.")
        inside = (before > low) & (before < high)
        if torch.equal(dx, dy * inside):
            raise Wrong(
                "This is clamp's own derivative, 0 outside the bounds: straight-through passes dy on "
                "there too."
            )
        if torch.equal(dx, torch.ones_like(dx)):
            raise Wrong("dx is 1 everywhere, whatever dy is: the backward gets dy and passes it on.")
        expect_close("dx", dx, dy)


@exercise("03.3")
def gated_softmax(answer) -> None:
    rng = np.random.default_rng(33)
    for shape in SHAPES:
        x, weight = _normal(rng, *shape), _normal(rng, shape[-1])
        dy = _normal(rng, *shape, grad=False)
        x0, weight0 = x.detach().clone(), weight.detach().clone()
        y, saved = answer(x0, weight0)
        for name, now, then in (("x", x0, x), ("weight", weight0, weight)):
            if not torch.equal(now, then.detach()):
                raise Wrong(f"The input {name} was modified, and it belongs to the caller.")
        expected = torch.softmax(x, dim=-1) * weight
        expect_close("y", y, expected)
        if not isinstance(saved, tuple) or len(saved) != 2:
            raise Wrong("saved should be the tuple (p, weight), which the backward takes apart.")
        if torch.equal(saved[0], y):
            raise Wrong(
                "saved[0] equals y: it is the softmax after it was multiplied by the weight. The "
                "backward needs p as it was before."
            )
        expect_close("saved[0], the softmax,", saved[0], torch.softmax(x, dim=-1))
        p, w = saved
        dp = dy * w
        want = torch.autograd.grad(expected, (x, weight), dy)
        expect_close("dx", p * (dp - (dp * p).sum(-1, keepdim=True)), want[0])
        expect_close("dweight", (dy * p).reshape(-1, p.shape[-1]).sum(0), want[1])


@exercise("03.4")
def checkpointed(answer) -> None:
    rng = np.random.default_rng(34)
    for rows, width in ((5, 3), (2, 7)):
        x, w, b = _normal(rng, rows, width), _normal(rng, 4, width), _normal(rng, 4)
        inputs, dy = (x, w, b), _normal(rng, rows, 4, grad=False)
        calls = []

        def function(x, w, b):
            calls.append(torch.is_grad_enabled())  # noqa: B023, called at once
            return torch.tanh(F.gelu(x @ w.T) + b) ** 2

        y, kept = _kept(lambda: answer(function, *inputs))  # noqa: B023
        _expect_recorded("checkpointed", y, (rows, 4))
        expected = function(*inputs)
        calls.pop()
        expect_close("y", y, expected)
        ours = {t.untyped_storage().data_ptr() for t in inputs}
        extra = [t for t in kept if t.untyped_storage().data_ptr() not in ours]
        if extra:
            raise Wrong(
                f"{len(extra)} tensors besides the inputs are kept for the backward pass, the first of "
                f"shape {tuple(extra[0].shape)}: nothing but the inputs may be."
            )
        if not kept:
            raise Wrong(
                "Nothing went through ctx.save_for_backward: keep the inputs there, so that they are "
                "guarded against changes in place."
            )
        if len(calls) != 1:
            raise Wrong(f"The forward should call the function once, and called it {len(calls)} times.")
        try:
            got = torch.autograd.grad(y, inputs, dy, allow_unused=True)
        except RuntimeError:
            if len(calls) == 2 and not calls[-1]:
                raise Wrong(
                    "The backward computes the function again without recording, so there is nothing to "
                    "differentiate: recording is off inside a Function until you turn it on."
                ) from None
            raise
        if len(calls) == 1:
            raise Wrong("The backward did not compute the function again: where did it get its values?")
        want = torch.autograd.grad(expected, inputs, dy)
        unscaled = torch.autograd.grad(function(*inputs).sum(), inputs)
        for i, (g, e, u) in enumerate(zip(got, want, unscaled, strict=True)):
            if g is None:
                raise Wrong(f"The gradient of input {i} is None: the backward returns one for each input.")
            if g.shape == u.shape and torch.allclose(g, u):
                raise Wrong("The gradients are those of the result's sum: dy was forgotten.")
            expect_close(f"the gradient of input {i}", g, e)
