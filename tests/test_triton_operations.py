"""The triton engine's embedding, products, sums and rotations: what the shared cases do not reach."""

import numpy as np
import pytest
import torch

import kernels
from course.device import DEVICE
from kernels import reference

pytest.importorskip("triton", reason="Triton has no package for this platform")

from kernels.packed import joined
from kernels.triton import activations, elementwise, embedding, matmul, rope


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(numbers).float().to(DEVICE)


# Embedding


@pytest.mark.parametrize("product", [True, False], ids=["one-hot", "sorting"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "ids",
    [
        [3] * 21,  # one row for all
        [0] * 4 + [4] * 4 + [1] * 9,  # segments that end where a piece does
        [2, 0, 4, 2, 2, 1, 0, 2, 2, 4, 2, 2, 2],
        list(range(5)),
        [],
    ],
    ids=str,
)
def test_rows_that_many_tokens_share_sum_their_gradients(monkeypatch, ids, dtype, product):
    monkeypatch.setattr(embedding, "PIECE", 4)
    monkeypatch.setattr(embedding, "ONE_HOT", dict.fromkeys((2, 4), 10**9 if product else -1))
    ids = torch.tensor(ids, dtype=torch.long, device=DEVICE)
    dy = drawn(len(ids), 6).to(dtype)
    got = embedding.embedding_backward(dy, (ids, 5))
    expected = reference.embedding_backward(dy.double(), (ids, 5))
    torch.testing.assert_close(got.double(), expected, rtol=1e-2 if dtype.itemsize == 2 else 1e-6, atol=1e-6)
    assert torch.equal(got, embedding.embedding_backward(dy, (ids, 5)))


def test_many_tokens_and_few_rows_are_summed_in_layers():
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 3, 700)).to(DEVICE)
    dy = drawn(700, 5)
    got = embedding.embedding_backward(dy, (ids, 3))
    torch.testing.assert_close(got, reference.embedding_backward(dy, (ids, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("product", [True, False], ids=["one-hot", "sorting"])
def test_an_id_that_is_not_in_the_table(monkeypatch, product):
    monkeypatch.setattr(embedding, "ONE_HOT", dict.fromkeys((2, 4), 10**9 if product else -1))
    ids = torch.tensor([1, -1, 5, 10**10, 4], device=DEVICE)
    weight, dy = drawn(5, 3), drawn(5, 3, seed=1)
    y, saved = embedding.embedding_forward(ids, weight)
    assert torch.equal(y[[0, 4]], weight[[1, 4]]) and y[1:4].isnan().all()
    dweight = embedding.embedding_backward(dy, saved)
    assert torch.equal(dweight[[1, 4]], dy[[0, 4]]) and not dweight[[0, 2, 3]].any()


def test_ids_must_be_integers():
    with pytest.raises(TypeError, match="ids must be integers"):
        embedding.embedding_forward(drawn(3), drawn(5, 2))


# Sums and products


@pytest.mark.parametrize("R", [1, 7, 8, 9, 70])
def test_long_sums_in_pieces(monkeypatch, R):
    monkeypatch.setattr(elementwise, "PIECE", 8)
    x = drawn(2, R, 5)
    torch.testing.assert_close(elementwise.sum_middle(x, x.dtype), x.sum(1), rtol=1e-5, atol=1e-5)


def test_strides_of_any_kind():
    a, b = drawn(5, 4, 6).permute(2, 0, 1), drawn(12, 5, 8, seed=1)[::2, :, ::2]
    torch.testing.assert_close(elementwise.add_forward(a, b)[0], a + b)
    torch.testing.assert_close(elementwise.mul_forward(a[0].T, b[0].T)[0], a[0].T * b[0].T)


@pytest.mark.parametrize(
    "B, T, C", [(3, 100, 7), (40, 1, 30), (2, 600, 1), (1, 5, 300), (2, 3, 1030), (0, 4, 5)]
)
def test_narrow_rows_share_a_program(B, T, C):
    """Rows end within a program's, sequences begin there, and the last program has rows left over."""
    a, b = drawn(B, T, C), drawn(T, C, seed=1)
    assert torch.equal(elementwise.mul_forward(a, b)[0], a * b)
    assert torch.equal(elementwise.add_forward(b, a)[0], a + b)
    assert torch.equal(elementwise.add_forward(a, b[0])[0], a + b[0])


# The matrix product


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_operands_are_read_through_their_strides(transpose_a, transpose_b):
    a = drawn(70, 33).T if transpose_a else drawn(33, 70)
    b = drawn(130, 70, seed=1).T if transpose_b else drawn(70, 130, seed=1)
    exact = a.double() @ b.double()
    assert (matmul._matmul(a, b) - exact).norm() / exact.norm() < 1e-6


def test_few_tiles_share_the_sum_over_k():
    a, b = drawn(3, 2049), drawn(2049, 2, seed=1)
    assert matmul._config(a, 3, 2, 2049)[1] > 1
    exact = a.double() @ b.double()
    assert (matmul._matmul(a, b) - exact).norm() / exact.norm() < 1e-6
    assert torch.equal(matmul._matmul(a, b), matmul._matmul(a, b))


def test_products_of_float32_are_exact():
    """tf32 would drop the last 13 bits of 1 + 2⁻²³."""
    x, weight = torch.full((1, 4), 1 + 2**-23, device=DEVICE), torch.eye(4, device=DEVICE)
    assert torch.equal(matmul.linear_forward(x, weight)[0], x)


# Rotations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rotating_in_place_and_back(dtype):
    fused = drawn(2, 5, 3, 24).to(dtype)
    x = fused[..., 4:16]  # the features of one of several projections computed together
    angles = torch.arange(30.0, device=DEVICE).view(5, 6)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    before = fused.clone()
    y, _ = rope.rope_forward(x, cos, sin)
    assert torch.equal(fused, before)
    assert rope.rope_(x, cos, sin).data_ptr() == x.data_ptr()
    assert torch.equal(x, y) and not torch.equal(x, before[..., 4:16])
    rope.rope_(x, cos, sin, inverse=True)
    torch.testing.assert_close(fused, before, rtol=2e-2, atol=2e-2)
    assert torch.equal(fused[..., :4], before[..., :4]) and torch.equal(fused[..., 16:], before[..., 16:])


def test_rotating_in_place_needs_dense_features():
    x, table = drawn(1, 2, 1, 8)[..., ::2], drawn(2, 2)
    with pytest.raises(ValueError, match="neighbours"):
        rope.rope_(x, table, table)


# SwiGLU


@pytest.mark.parametrize("shape", [(2, 3, 1, 700), (5, 700), (4, 2, 3), (1, 1, 1, 5)])
def test_the_halves_of_one_product_have_gradients_that_lie_side_by_side(shape):
    whole, dy = drawn(*shape[:-1], 2 * shape[-1]), drawn(*shape, seed=1)
    gate, up = whole.chunk(2, dim=-1)
    if shape[-2] == 1:  # as a model cuts them
        gate, up = whole.view(*shape[:-2], 2, shape[-1]).split(1, dim=-2)
    found = activations.swiglu_backward(dy, (gate, up))
    for d, exact in zip(
        found, reference.swiglu_backward(dy.double(), (gate.double(), up.double())), strict=True
    ):
        torch.testing.assert_close(d.double(), exact, rtol=1e-4, atol=1e-5)
    pieces = [d.view(-1, 1, shape[-1]) for d in found]
    assert joined(tuple(pieces)) is not None
    apart = activations.swiglu_backward(dy, (gate.contiguous(), up.contiguous()))
    assert all(d.is_contiguous() and torch.equal(d, f) for d, f in zip(apart, found, strict=True))


# Gradients of a wrong shape


def test_gradients_of_another_shape_are_refused():
    """A kernel would read past their end."""
    x, ids = drawn(3, 8), torch.zeros(3, dtype=torch.long, device=DEVICE)
    tables = drawn(3, 4), drawn(3, 4)
    for operation, inputs, dy in (
        ("gelu", (x,), drawn(2, 8)),
        ("swiglu", (x, x), drawn(3, 7)),
        ("add", (x, x[0]), drawn(8)),
        ("mul", (x, x[0]), drawn(1, 3, 8)),
        ("linear", (x, x), drawn(3, 8)),
        ("gelu_mlp", (x, x, None, x.T, None), drawn(3, 3)),
        ("embedding", (ids, x), drawn(2, 8)),
        ("rope", (drawn(1, 3, 2, 8), *tables), drawn(1, 4, 2, 8)),
    ):
        forward, backward = kernels.pair("triton", operation)
        with pytest.raises(ValueError, match=operation):
            backward(dy, forward(*inputs)[1])
