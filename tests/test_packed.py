"""Arrays side by side in one: cut without a copy, and put together again without one."""

import pytest
import torch

from kernels.packed import empty_beside, joined, lay_beside, pack, unpack

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


@pytest.mark.parametrize("beside", [True, False])
def test_packing_is_cat_and_copies_no_neighbours(beside):
    weights = [torch.nn.Parameter(piece.clone()) for piece in whole().detach()[0].split(SIZES, dim=-2)]
    if beside:
        lay_beside(*weights)
    packed, dy = pack(*weights), torch.randn_like(whole()[0])
    assert (packed.data_ptr() == weights[0].data_ptr()) == beside
    for result in (packed, torch.cat(weights, dim=-2)):
        assert torch.equal(result, whole()[0])
        for got, exact in zip(torch.autograd.grad(result, weights, dy), dy.split(SIZES, dim=-2), strict=True):
            assert torch.equal(got, exact)


def test_neighbours_can_change_one_by_one():
    weights = [torch.nn.Parameter(piece.clone()) for piece in whole().detach()[0].split(SIZES, dim=-2)]
    lay_beside(*weights)
    with torch.no_grad():
        torch._foreach_copy_(
            [w.detach() for w in weights], [torch.full_like(w, i) for i, w in enumerate(weights)]
        )
    expected = torch.cat([torch.full_like(w, i) for i, w in enumerate(weights)], dim=-2)
    assert torch.equal(pack(*weights), expected)
