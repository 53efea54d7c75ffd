"""Arrays side by side in one: cut without a copy, and put together again without one."""

import pytest
import torch

from kernels.packed import empty_beside, joined, unpack

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
