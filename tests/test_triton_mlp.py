"""The triton engine's fused MLP: what the shared cases do not reach. Sizes of several tiles, layouts, what it
saves, and the way without gradients."""

import numpy as np
import pytest
import torch

from course.device import DEVICE
from kernels import reference
from kernels.autograd import bind

pytest.importorskip("triton", reason="Triton has no package for this platform")

from kernels.triton import mlp

DTYPES = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    numbers = scale * np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(numbers).to(DEVICE)


def inputs(N: int, C: int, F: int, C_out: int, biases: bool = True) -> list:
    up_bias, down_bias = (drawn(F, seed=2), drawn(C_out, seed=3)) if biases else (None, None)
    up, down = drawn(F, C, seed=1, scale=C**-0.5), drawn(C_out, F, seed=4, scale=F**-0.5)
    return [drawn(N, C), up, up_bias, down, down_bias]


def both_passes(engine, values: list, dy: torch.Tensor) -> tuple:
    y, saved = engine.gelu_mlp_forward(*values)
    return y, *engine.gelu_mlp_backward(dy.to(y.dtype), saved)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no-biases"])
@pytest.mark.parametrize(
    ("N", "C", "F", "C_out"),
    [(300, 40, 200, 40), (129, 33, 65, 17), (128, 64, 256, 96), (1, 1, 129, 1), (257, 20, 1, 9)],
)
def test_sizes_of_several_tiles_and_sizes_that_no_tile_divides(N, C, F, C_out, biases, dtype):
    rounded = [x if x is None else x.to(dtype) for x in inputs(N, C, F, C_out, biases)]
    dy = drawn(N, C_out, seed=5).to(dtype)
    exact = [x if x is None else x.double() for x in rounded]
    results = both_passes(mlp, rounded, dy), both_passes(reference, exact, dy.double())
    for ours, theirs in zip(*results, strict=True):
        if theirs is None:
            assert ours is None
            continue
        assert ours.shape == theirs.shape and ours.dtype == dtype
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error <= DTYPES[dtype], error


def test_any_layout_of_inputs():
    """Transposed weights, rows with gaps, and rows that begin at no multiple of 16 bytes."""
    x, up, up_bias, down, down_bias = (v.float() for v in inputs(10, 5, 12, 7))
    dense = both_passes(mlp, [x, up, up_bias, down, down_bias], drawn(10, 7, seed=5))
    up, down = up.t().contiguous().t(), down.t().contiguous().t()
    up_bias, down_bias = (torch.stack((b, b), -1)[:, 0] for b in (up_bias, down_bias))
    dy = torch.cat((drawn(10, 1), drawn(10, 7, seed=5)), 1).float()[:, 1:]
    x = torch.cat((x, x), 1)[:, 5:].view(2, 5, 5)
    y, dx, *rest = both_passes(mlp, [x, up, up_bias, down, down_bias], dy.view(2, 5, 7))
    for a, b in zip((y.view(10, 7), dx.view(10, 5), *rest), dense, strict=True):
        torch.testing.assert_close(a, b)


def test_it_saves_two_wide_arrays_and_nothing_else():
    values = [v.float() for v in inputs(64, 8, 32, 8)]
    _, saved = mlp.gelu_mlp_forward(*values)
    new = [x for x in saved if torch.is_tensor(x) and not any(x is v for v in values)]
    assert [tuple(x.shape) for x in new] == [(64, 32), (64, 32)]


@pytest.mark.parametrize("operation", ["gelu_mlp", "swiglu_mlp"])
def test_where_no_gradient_is_asked_for_nothing_is_fused(operation, monkeypatch):
    if operation == "gelu_mlp":
        values, more = [v.bfloat16() for v in inputs(6, 8, 32, 8)], ()
    else:
        values = [v if v is None else v.bfloat16() for v in swiglu_inputs(6, C=8, F=32, C_out=8)]
        more = (None,)  # added to nothing
    ops, launched = bind("triton"), []
    product = mlp._product
    monkeypatch.setattr(mlp, "_product", lambda *a, **k: launched.append(product(*a, **k)))
    with torch.no_grad():
        y = getattr(ops, operation)(*values, *more)
    assert not launched
    values[0].requires_grad_()
    again = getattr(ops, operation)(*values, *more)
    torch.testing.assert_close(again, y, atol=2e-2, rtol=2e-2)  # another order, in 16 bits
    assert len(launched) == (1 if mlp.fuses_products(values[0]) else 0)


def test_dtypes_and_shapes_that_do_not_fit_are_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(mlp, "_product", lambda *a, **k: pytest.fail("computed"))
    x, up, up_bias, down, down_bias = (v.float() for v in inputs(6, 8, 32, 8))
    for forward in (mlp.gelu_mlp_forward, mlp.gelu_mlp_inference):
        with pytest.raises(TypeError, match=r"float32 and of torch\.bfloat16"):
            forward(x, up, up_bias, down, down_bias.bfloat16())
        with pytest.raises(ValueError, match=r"down \(8, 32\) needs a bias of shape \(8,\), got \(32,\)"):
            forward(x, up, up_bias, down, up_bias)
        with pytest.raises(ValueError, match=r"gelu_mlp: .*meta"):
            forward(x, up, up_bias.to("meta"), down, down_bias)


@pytest.mark.gpu
def test_values_at_the_size_of_a_training_step():
    """Hopper's tiles, of which each program computes many, one after the other."""
    values = [v.bfloat16() for v in inputs(16384 + 24, 768, 3072, 768)]
    dy = drawn(16384 + 24, 768, seed=5).bfloat16()
    results = both_passes(mlp, values, dy), both_passes(reference, [v.double() for v in values], dy.double())
    for ours, theirs in zip(*results, strict=True):
        assert (ours.double() - theirs).norm() <= DTYPES[torch.bfloat16] * theirs.norm()


# SwiGLU's


def swiglu_inputs(
    *leading: int, C: int, F: int, C_out: int, bias: bool = False, down_bias: bool = True
) -> list:
    """x, gate's and up's weights together, their bias, down and its bias."""
    weight, down = drawn(2 * F, C, seed=1, scale=C**-0.5), drawn(C_out, F, seed=4, scale=F**-0.5)
    biases = drawn(2 * F, seed=2) if bias else None, drawn(C_out, seed=3) if down_bias else None
    return [drawn(*leading, C), weight, biases[0], down, biases[1]]


def composed(values: list, dy: torch.Tensor) -> tuple:
    """The same by the reference's operations."""
    x, weight, bias, down, down_bias = values
    whole, first = reference.linear_forward(x, weight, bias)
    h, saved = reference.swiglu_forward(*whole.chunk(2, dim=-1))
    y, second = reference.linear_forward(h, down, down_bias)
    dh, *last = reference.linear_backward(dy, second)
    dwhole = torch.cat(reference.swiglu_backward(dh, saved), dim=-1)
    return y, *reference.linear_backward(dwhole, first), *last


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no-biases"])
@pytest.mark.parametrize(
    ("leading", "C", "F", "C_out"),
    [
        ((3, 100), 40, 200, 40),
        ((129,), 33, 72, 17),
        ((129,), 33, 65, 17),
        ((2, 3), 5, 8, 5),
        ((0,), 8, 8, 5),
        ((1, 1), 7, 264, 8),
    ],
)
def test_swiglu_between_its_products(leading, C, F, C_out, biases, dtype):
    exact = swiglu_inputs(*leading, C=C, F=F, C_out=C_out, bias=biases, down_bias=biases)
    rounded = [x if x is None else x.to(dtype) for x in exact]
    dy = drawn(*leading, C_out, seed=5).to(dtype)
    y, saved = mlp.swiglu_mlp_forward(*rounded)
    ours = y, *mlp.swiglu_mlp_backward(dy, saved)
    theirs = composed([x if x is None else x.double() for x in rounded], dy.double())
    assert_near(ours, (*theirs, None), dtype)  # it was added to nothing


def assert_near(ours: tuple, theirs: tuple, dtype: torch.dtype) -> None:
    for got, exact in zip(ours, theirs, strict=True):
        if exact is None:
            assert got is None
            continue
        assert got.shape == exact.shape and got.dtype == dtype
        error = (got.double() - exact).norm() / exact.norm().clamp(min=1e-9)
        assert error <= DTYPES[dtype], error


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("leading", [(3, 7), (1,), (0,)], ids=str)
def test_its_product_adds_to_what_is_there(leading, dtype):
    inputs = swiglu_inputs(*leading, C=24, F=40, C_out=5, down_bias=False)
    rounded = [x if x is None else x.to(dtype) for x in inputs]
    onto, dy = drawn(*leading, 5, seed=6).to(dtype), drawn(*leading, 5, seed=5).to(dtype)
    product, *gradients = composed([x if x is None else x.double() for x in rounded], dy.double())
    y = onto.double() + product
    again = mlp.swiglu_mlp_inference(*rounded, onto.clone())
    got, saved = mlp.swiglu_mlp_forward(*rounded, onto)
    assert got.data_ptr() == onto.data_ptr()
    assert_near((got, again), (y, y), dtype)
    onto.fill_(torch.nan)
    *ours, donto = mlp.swiglu_mlp_backward(dy, saved)
    assert donto is dy
    assert_near(tuple(ours), tuple(gradients), dtype)


def test_autograd_has_its_gradients():
    values = [x.float().requires_grad_() for x in swiglu_inputs(4, 5, C=12, F=24, C_out=6, bias=True)]
    ops, dy = bind("triton"), drawn(4, 5, 6, seed=5).float()
    gradients = torch.autograd.grad(ops.swiglu_mlp(*values, None), values, dy)
    for got, exact in zip(gradients, composed([x.detach() for x in values], dy)[1:], strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-5)
    assert bind("torch").swiglu_mlp is None


def test_it_saves_gate_and_up_together_and_what_they_become():
    values = [x if x is None else x.float() for x in swiglu_inputs(64, C=8, F=32, C_out=8)]
    _, saved = mlp.swiglu_mlp_forward(*values)
    new = [x for x in saved if torch.is_tensor(x) and not any(x is v for v in values)]
    assert [tuple(x.shape) for x in new] == [(64, 2, 32), (64, 32)]


def test_any_layout_of_its_inputs():
    """Transposed weights, rows with gaps, and rows that begin at no multiple of 16 bytes."""
    x, weight, _, down, down_bias = (
        v if v is None else v.float() for v in swiglu_inputs(10, C=5, F=12, C_out=7)
    )
    dy = drawn(10, 7, seed=5).float()
    y, saved = mlp.swiglu_mlp_forward(x, weight, None, down, down_bias)
    dense = y, *mlp.swiglu_mlp_backward(dy, saved)
    weight, down = weight.t().contiguous().t(), down.t().contiguous().t()
    x, dy = torch.cat((x, x), 1)[:, 5:].view(2, 5, 5), torch.cat((dy[:, :1], dy), 1)[:, 1:].view(2, 5, 7)
    y, saved = mlp.swiglu_mlp_forward(x, weight, None, down, down_bias)
    for a, b in zip((y, *mlp.swiglu_mlp_backward(dy, saved)), dense, strict=True):
        assert a is b is None or torch.testing.assert_close(a.view(b.shape), b) is None


def test_shapes_that_do_not_fit_it_are_refused():
    x, weight, bias, down, down_bias = (v.float() for v in swiglu_inputs(3, C=6, F=8, C_out=4, bias=True))
    for wrong, words in (
        ((x[:, :5], weight, bias, down, down_bias), r"last dimension is 5 and the weight's is 6"),
        ((x, weight[:15], None, down, down_bias), r"makes 15 features .* reads 8; the first must be 2 times"),
        ((x, weight, bias[:8], down, down_bias), r"needs a bias of shape \(16,\), got \(8,\)"),
        ((x, weight, bias, down, bias), r"down \(4, 8\) needs a bias of shape \(4,\)"),
    ):
        for forward in (mlp.swiglu_mlp_forward, mlp.swiglu_mlp_inference):
            with pytest.raises(ValueError, match=f"swiglu_mlp: .*{words}"):
                forward(*wrong)
    with pytest.raises(ValueError, match="a down_bias or what the product is added to, not both"):
        mlp.swiglu_mlp_forward(x, weight, bias, down, down_bias, torch.zeros_like(x[:, :4]))
    with pytest.raises(ValueError, match=r"swiglu_mlp: .* does not fit onto \(3, 5\)"):
        mlp.swiglu_mlp_forward(x, weight, bias, down, None, torch.zeros_like(x[:, :5]))
    _, saved = mlp.swiglu_mlp_forward(x, weight, bias, down, down_bias)
    with pytest.raises(ValueError, match=r"no gradient \(3, 5\)"):
        mlp.swiglu_mlp_backward(drawn(3, 5).float(), saved)


@pytest.mark.gpu
def test_its_values_at_the_size_of_a_training_step():
    rounded = [x if x is None else x.bfloat16() for x in swiglu_inputs(16384 + 24, C=640, F=1728, C_out=640)]
    dy = drawn(16384 + 24, 640, seed=5).bfloat16()
    y, saved = mlp.swiglu_mlp_forward(*rounded)
    *gradients, donto = mlp.swiglu_mlp_backward(dy, saved)
    assert donto is None
    exact = composed([x if x is None else x.double() for x in rounded], dy.double())
    for got, right in zip((y, *gradients), exact, strict=True):
        if right is not None:
            assert (got.double() - right).norm() <= DTYPES[torch.bfloat16] * right.norm()
