"""The residual stream in one place: RMSNorm without its weight, products that add to what is there, and
models made of them."""

import numpy as np
import pytest
import torch
from test_models import SMALL, batch, shaken_weights

from course.config import preset
from course.device import DEVICE
from course.model import Transformer
from kernels import reference
from kernels.autograd import bind

pytest.importorskip("triton", reason="Triton has no package for this platform")

from kernels.triton import norms, residual

DTYPES = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(numbers).to(DEVICE, dtype)


def assert_near(ours: tuple, exact: tuple, dtype: torch.dtype) -> None:
    for got, expected in zip(ours, exact, strict=True):
        assert got.shape == expected.shape and got.dtype == dtype
        error = (got.double() - expected).norm() / expected.norm().clamp(min=1e-9)
        assert error <= DTYPES[dtype], error


# RMSNorm without a weight


@pytest.fixture
def widest(request, monkeypatch):
    """The widest block of columns that a program holds."""
    shapes = norms._forward_shape, norms._backward_shape
    monkeypatch.setattr(norms, "WIDEST", request.param)
    for shape in shapes:
        shape.cache_clear()
    yield
    for shape in shapes:
        shape.cache_clear()


@ALL_DTYPES
@pytest.mark.parametrize("widest", [norms.WIDEST, 16], indirect=True, ids=["whole-rows", "in-blocks"])
@pytest.mark.parametrize("shape", [(3, 5, 33), (1, 3), (90, 17), (2, 16), (0, 8)], ids=str)
def test_normalize_and_its_gradient(widest, shape, dtype):
    """The gradient is that of x̂ and of x itself together, and x is gone by the time it is asked for."""
    x, dy, dh = (drawn(*shape, seed=seed, dtype=dtype) for seed in range(3))
    ones, exact = torch.ones(shape[-1], dtype=torch.float64, device=DEVICE), x.double()
    y, saved = reference.rmsnorm_forward(exact, ones, 1e-5)
    dx = reference.rmsnorm_backward(dy.double(), saved)[0] + dh.double()
    (x_hat, same), saved = norms.normalize_forward(x, 1e-5)
    assert same is x
    x.fill_(torch.nan)
    assert_near((x_hat, norms.normalize_backward((dy, dh), saved)), (y, dx), dtype)


def test_gradients_of_another_shape_are_refused():
    _, saved = norms.normalize_forward(drawn(3, 4), 1e-5)
    with pytest.raises(ValueError, match=r"shape \(3, 4\) has no gradient \(3, 5\)"):
        norms.normalize_backward((drawn(3, 4), drawn(3, 5)), saved)


# Products that add


@ALL_DTYPES
@pytest.mark.parametrize("leading", [(3, 7), (1,), (0,)], ids=str)
def test_a_product_adds_to_what_is_there(leading, dtype):
    """That of `swiglu_mlp`, too: see its tests."""
    h, weight, onto, dy = (
        drawn(*shape, seed=seed, dtype=dtype)
        for seed, shape in enumerate(((*leading, 24), (5, 24), (*leading, 5), (*leading, 5)))
    )
    product, saved = reference.linear_forward(h.double(), weight.double(), None)
    dh, dweight, _ = reference.linear_backward(dy.double(), saved)
    expected = onto.double() + product, dh, dweight
    y, saved = residual.linear_onto_forward(h, weight, onto)
    assert y.data_ptr() == onto.data_ptr()
    got = y.clone()
    y.fill_(torch.nan)
    *gradients, donto = residual.linear_onto_backward(dy, saved)
    assert donto is dy
    assert_near((got, *gradients), expected, dtype)


def test_what_cannot_be_added_to_is_refused_and_left_as_it_was():
    x, weight = drawn(3, 4), drawn(5, 4)
    for onto in (drawn(3, 4), drawn(5), drawn(5, 3).t()):
        before = onto.clone()
        with pytest.raises(ValueError, match=r"linear_onto: .* does not fit onto"):
            residual.linear_onto_forward(x, weight, onto)
        assert torch.equal(onto, before)
    with pytest.raises(TypeError, match=r"float32 and of torch\.bfloat16"):
        residual.linear_onto_forward(x, weight, drawn(3, 5, dtype=torch.bfloat16))
    _, saved = residual.linear_onto_forward(x, weight, drawn(3, 5))
    with pytest.raises(ValueError, match=r"no gradient \(3, 4\)"):
        residual.linear_onto_backward(drawn(3, 4), saved)


# Models


MODELS = {
    "grouped": preset("modern", **SMALL),
    "wide-window": preset(
        "modern", **SMALL | {"d_model": 48, "n_layer": 1}, d_ff=40, n_kv_head=1, sliding_window=5
    ),
    "learned-untied": preset("modern", **SMALL | {"n_layer": 1}, tie_embeddings=False, position="learned"),
}


def weights_with_zeros(config) -> dict:
    """Of every norm's weights a third are zero, and a third so small that 16 bits of y = w x̂ would be few."""
    weights = shaken_weights(config)
    for name in weights:
        if "norm" in name:
            weights[name][::3] = 0
            weights[name][1::3] *= 1e-6
    return weights


@pytest.mark.parametrize(
    ("name", "dtype", "most"),
    [*((name, torch.float32, 2e-5) for name in MODELS), ("grouped", torch.bfloat16, 6e-2)],
)
def test_the_model_has_the_reference_s_gradients(name, dtype, most):
    config = MODELS[name]
    weights, (ids, targets) = weights_with_zeros(config), batch(config, device=DEVICE)
    model = Transformer(config, "triton", weights=weights, device=DEVICE, dtype=dtype)
    exact = Transformer(config, "reference", weights=model.weights, device=DEVICE, dtype=torch.float64)
    loss, expected = exact.loss_and_gradients(ids, targets)
    for _ in range(2):  # the second computation finds nothing changed by the first
        got, gradients = model.loss_and_gradients(ids, targets)
        assert got.item() == pytest.approx(loss.item(), rel=1e-5 if dtype == torch.float32 else 2e-3)
        whole = [torch.cat([g[n].double().flatten() for n in expected]) for g in (gradients, expected)]
        assert (whole[0] - whole[1]).norm() <= most * whole[1].norm()
        for name, gradient in expected.items():
            error = (gradients[name].double() - gradient).norm() / gradient.norm()
            assert error <= 3 * most, f"{name}: {error:.1e}"
            if "norm" in name:
                assert (gradients[name][::3] != 0).any(), "a weight of zero must be able to leave it"
    logits = model.logits(ids).double()
    assert (logits - exact.logits(ids)).norm() <= most * logits.norm()


def test_a_block_neither_copies_nor_keeps_the_stream():
    config = MODELS["grouped"]
    block = Transformer(config, "triton", device=DEVICE).blocks[0]
    x = drawn(2, 7, config.d_model).requires_grad_() * 1
    kept, rope = [], (drawn(7, config.d_head // 2), drawn(7, config.d_head // 2, seed=1))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y, branch = block(x, None, rope)
    assert branch is None and y.data_ptr() == x.data_ptr()
    assert kept and x.data_ptr() not in kept


@pytest.mark.parametrize("changes", [{"norm": "layer"}, {"mlp": "gelu"}, {"bias": True}], ids=str)
def test_other_models_and_other_engines_add_as_ever(changes):
    config = preset("modern", **SMALL)
    assert Transformer(config, "triton").blocks[0].normalize is not None
    assert Transformer(preset("modern", **SMALL, **changes), "triton").blocks[0].normalize is None
    assert Transformer(config, "torch").blocks[0].normalize is None
    ops = bind("torch")
    assert ops.normalize is None and ops.linear_onto is None
