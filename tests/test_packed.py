"""Arrays side by side in one: cut without a copy, and put together again without one."""

from types import SimpleNamespace

import pytest
import torch

from course.initial import rope_tables
from kernels import reference
from kernels.packed import empty_beside, joined, unpack, unpack_rotated

SIZES = 4, 2, 2


def whole() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, sum(SIZES), 3, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("weights", [(1, 2, 3), (1, 0, 3)])
def test_the_gradient_is_that_of_split(weights):
    gradients = []
    for cut in (lambda x: unpack(x, SIZES), lambda x: x.split(SIZES, dim=-2)):
        x = whole()
        loss = sum(w * piece.square().sum() for w, piece in zip(weights, cut(x), strict=True) if w)
        gradients += torch.autograd.grad(loss, x)
    assert torch.equal(*gradients)


def test_neighbouring_gradients_are_not_copied():
    class Given(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *pieces):
            return pieces[0].sum()

        @staticmethod
        def backward(ctx, dy):
            return given

    x = whole()
    pieces = unpack(x, SIZES)
    given = tuple(piece.normal_() for piece in empty_beside(*pieces))
    (gradient,) = torch.autograd.grad(Given.apply(*pieces), x)
    assert torch.equal(gradient, torch.cat(given, dim=-2))
    assert gradient.data_ptr() == given[0].data_ptr() and gradient.is_contiguous()


def test_only_neighbours_in_order_are_joined():
    pieces = whole().detach().split(SIZES, dim=-2)
    assert joined(pieces).shape == (2, 5, 8, 3)
    assert joined(pieces[::-1]) is None
    assert joined((pieces[0], pieces[2])) is None
    assert joined(tuple(piece.clone() for piece in pieces)) is None
    apart = empty_beside(*(piece.clone() for piece in pieces))
    assert joined(apart) is None and all(piece.is_contiguous() for piece in apart)


SIZES_OF_HEADS = 2, 1, 1


def rotating_ops(in_place: bool):
    """Just `rope`, as a model has it from an engine, by the reference's arithmetic."""

    def rope_(x, cos, sin, inverse=False):
        x.copy_(reference.rope_forward(x, cos, -sin if inverse else sin)[0])

    def rope(x, cos, sin):
        return reference.rope_forward(x, cos, sin)[0]

    return SimpleNamespace(rope=rope, rope_=rope_ if in_place else None)


@pytest.mark.parametrize("beside", [True, False])
def test_turned_where_they_are_or_elsewhere_they_have_the_same_gradient(beside):
    cos, sin = (torch.from_numpy(table) for table in rope_tables(5, 4, 10_000.0))
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    class Square(torch.autograd.Function):
        """The sum of squares, whose gradients may lie side by side."""

        @staticmethod
        def forward(ctx, *pieces):
            ctx.save_for_backward(*pieces)
            return sum(piece.square().sum() * (i + 1) for i, piece in enumerate(pieces))

        @staticmethod
        def backward(ctx, dy):
            pieces = ctx.saved_tensors
            made = empty_beside(*pieces) if beside else [torch.empty_like(piece) for piece in pieces]
            return tuple(d.copy_(2 * (i + 1) * dy * p) for i, (d, p) in enumerate(zip(made, pieces)))

    found = []
    for in_place in (True, False):
        weight = x.clone().requires_grad_()
        shift = torch.linspace(0, 1, 4, dtype=torch.float64)
        pieces = unpack_rotated(weight * shift, SIZES_OF_HEADS, cos, sin, rotating_ops(in_place))
        mixed = (
            [piece * torch.arange(1.0, 5, dtype=torch.float64) for piece in pieces] if not beside else pieces
        )
        loss = Square.apply(*mixed)
        found.append((loss, *torch.autograd.grad(loss, weight), *(p.detach().clone() for p in pieces)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
