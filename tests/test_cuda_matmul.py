"""The cuda engine's products: batched matmul, linear layer and MLP, in the emulator or on this GPU."""

import numpy as np
import pytest
import torch
from operation_cases import CASES, TOLERANCE, arguments, draw_like, relative_errors, run_pair
from operation_cases import assert_equals_float64_reference as assert_equals_reference

from course.device import DEVICE
from kernels import reference
from kernels.cuda import linear, matmul, mlp
from kernels.cuda.matmul import FLOAT_TILES, TENSOR_TILES

LARGE, MEDIUM, SMALL = FLOAT_TILES
TILES = {f"{type(t).__name__}{t.BLOCK_M}x{t.BLOCK_N}": t for t in (*FLOAT_TILES, *TENSOR_TILES)}

DTYPES = [dtype for dtype in TOLERANCE if dtype != torch.float64]
named = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def drawn(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(np.asarray(numbers)).to(dtype).to(DEVICE)


def surrounded(x: torch.Tensor) -> torch.Tensor:
    """The same matrices inside larger ones of nan, at an odd offset: who reads beside them gets nan."""
    wide = torch.full(
        (*x.shape[:-2], x.shape[-2] + 2, x.shape[-1] + 3), torch.nan, dtype=x.dtype, device=DEVICE
    )
    wide[..., 1:-1, 1:-2] = x
    return wide[..., 1:-1, 1:-2]


def assert_near(got: torch.Tensor, exact: torch.Tensor) -> None:
    (error,) = relative_errors((got,), (exact,), together=False)
    assert got.shape == exact.shape and error <= TOLERANCE[got.dtype] / 2, error


@pytest.fixture
def tiled(monkeypatch):
    """tiled(tiles, parts): every plan uses these tiles, and sums K in that many parts."""

    def use(tiles, parts=1):
        for module in (matmul, linear):
            monkeypatch.setattr(module, "choose", lambda *_: (tiles, parts))
        forget()

    def forget():
        for plan in (matmul._plan, linear._forward_plan, linear._backward_plan):
            plan.cache_clear()

    yield use
    monkeypatch.undo()
    forget()


# matmul


@named
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (33, 65, 17), (64, 32, 64), (7, 130, 300), (2, 3, 0)])
def test_products_of_every_layout(sizes, transposed, dtype):
    M, N, K = sizes
    a, b = drawn(M, K, dtype=dtype), drawn(K, N, seed=1, dtype=dtype)
    exact = a.double() @ b.double()
    if "a" in transposed:
        a = a.mT.contiguous().mT
    if "b" in transposed:
        b = b.mT.contiguous().mT
    assert_near(matmul.matmul(a, b), exact)
    assert_near(matmul.matmul(surrounded(a), surrounded(b)), exact)
    assert_near(matmul.matmul(surrounded(a.mT).mT, surrounded(b.mT).mT), exact)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("tiles", TILES.values(), ids=TILES)
def test_every_size_of_tiles(tiled, tiles, parts):
    tiled(tiles, parts)
    dtype = torch.bfloat16 if tiles in TENSOR_TILES else torch.float32
    for M, N, K in ((1, 5, 200), (129, 65, 97), (128, 64, 64)):
        shapes = (2, M, K), (2, K, N), (N,)
        a, b, bias = (drawn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))
        exact = 0.5 * a.double() @ b.double() + bias.double()
        for left, right in ((a, b), (a.mT.contiguous().mT, b.mT.contiguous().mT)):
            assert_near(matmul.matmul(left, right, bias, alpha=0.5), exact)


@pytest.mark.parametrize("parts", [1, 2])
@named
def test_bias_scale_and_what_c_held_before(tiled, parts, dtype):
    tiled(SMALL, parts)
    a, b, bias = (
        drawn(*s, seed=i, dtype=dtype) for i, s in enumerate(((2, 3, 9, 70), (3, 70, 11), (2 * 11,)))
    )
    c = surrounded(drawn(2, 9, 3, 11, seed=3, dtype=dtype).transpose(1, 2))  # heads beside each other
    exact = -1.5 * a.double() @ b.double() + bias[::2].double() + c.double()
    assert matmul.matmul(a, b, bias[::2], out=c, alpha=-1.5, accumulate=True) is c
    assert_near(c, exact)
    around = c._base.isnan()
    assert around.sum() == c._base.numel() - c.numel()  # nothing was written beside it


def test_factors_that_a_batch_shares():
    a, b = drawn(2, 1, 5, 7), drawn(3, 7, 4, seed=1)
    assert_near(matmul.matmul(a, b), a.double() @ b.double())
    row = drawn(1, 7).expand(6, 7)  # the same row of numbers six times: stride 0
    assert_near(matmul.matmul(row, b), row.double() @ b.double())
    every_other = drawn(5, 14)[:, ::2]
    assert_near(matmul.matmul(every_other, b), every_other.double() @ b.double())


@pytest.mark.parametrize("shape", [((0, 3), (3, 4)), ((3, 4), (4, 0)), ((0, 2, 3), (0, 3, 2))])
def test_nothing_in_nothing_out(shape):
    a, b = (torch.empty(s, device=DEVICE) for s in shape)
    assert matmul.matmul(a, b).shape == (a @ b).shape


def test_large_values_and_infinities():
    a, b = 1e15 * drawn(40, 50), 1e15 * drawn(50, 40, seed=1)
    assert_near(matmul.matmul(a, b), a.double() @ b.double())
    a[3, 7] = torch.inf
    b[7] = b[7].abs() + 1
    c = matmul.matmul(a, b)
    assert (c[3] == torch.inf).all() and torch.isfinite(c[[0, 1, 2, *range(4, 40)]]).all()


@pytest.mark.parametrize("parts", [1, 4])
def test_two_runs_give_the_same_bits(tiled, parts):
    tiled(SMALL, parts)
    a, b = drawn(65, 500), drawn(500, 40, seed=1)
    assert torch.equal(matmul.matmul(a, b), matmul.matmul(a, b))


def test_k_is_split_where_the_result_is_small(monkeypatch):
    monkeypatch.setattr(matmul, "processors", lambda _: 132)

    def choice(M, N, K):
        return matmul.choose(torch.float32, None, matmul.Product(M, N, K, splits=True))

    assert choice(32, 32, 16384)[1] > 8 and choice(32, 32, 100)[1] == 1
    assert choice(4096, 4096, 4096) == (LARGE, 1) and choice(100, 100, 100)[0] == SMALL
    assert matmul.choose(torch.float32, None, matmul.Product(32, 32, 16384))[1] == 1


@pytest.mark.parametrize("K, parts", [(0, 1), (1, 1), (100, 3), (128, 2), (65, 8)])
def test_parts_cover_k_once(K, parts):
    k_part, n_parts = matmul.part_of(K, parts, SMALL)
    assert k_part % SMALL.BLOCK_K == 0 and (n_parts - 1) * k_part <= max(K - 1, 0) < n_parts * k_part
    assert n_parts <= parts


@pytest.mark.parametrize(
    "kind, words, call",
    [
        (ValueError, r"a \(\.\.\., M, K\) and b", lambda: (drawn(2, 3), drawn(4, 5))),
        (ValueError, r"a \(\.\.\., M, K\) and b", lambda: (drawn(3), drawn(3, 5))),
        (ValueError, "at most two leading", lambda: (drawn(1, 1, 1, 2, 3), drawn(3, 5))),
        (ValueError, "do not broadcast", lambda: (drawn(2, 2, 3), drawn(4, 3, 5))),
        (ValueError, r"bias of shape \(5,\)", lambda: (drawn(2, 3), drawn(3, 5), drawn(4))),
        (TypeError, "convert", lambda: (drawn(2, 3), drawn(3, 5, dtype=torch.float16))),
        (TypeError, "float64", lambda: (drawn(2, 3).double(), drawn(3, 5).double())),
        (ValueError, "one device", lambda: (drawn(2, 3), torch.empty(3, 5, device="meta"))),
    ],
)
def test_wrong_factors_are_errors(kind, words, call):
    with pytest.raises(kind, match=words):
        matmul.matmul(*call())


@pytest.mark.parametrize("out", [(2, 4), (3, 5), (1, 2, 5)])
def test_wrong_places_for_the_result_are_errors(out):
    with pytest.raises(ValueError, match=r"out of shape \(2, 5\)"):
        matmul.matmul(drawn(2, 3), drawn(3, 5), out=drawn(*out))
    with pytest.raises(ValueError, match="give it an out"):
        matmul.matmul(drawn(2, 3), drawn(3, 5), accumulate=True)
    with pytest.raises(ValueError, match="neighbours"):
        matmul.matmul(drawn(2, 3), drawn(3, 5), out=drawn(5, 2).T)


# linear and gelu_mlp


@named
@pytest.mark.parametrize("case", [c for c in CASES if c.operation in ("linear", "gelu_mlp")], ids=str)
def test_linear_and_mlp_equal_float64_reference(case, dtype):
    assert_equals_reference("cuda", case, arguments(case, dtype, DEVICE), dtype)


def _linear(rows, C_out, C_in, dtype=torch.float32):
    x, weight, bias = (
        drawn(*s, seed=i, dtype=dtype) for i, s in enumerate(((rows, C_in), (C_out, C_in), (C_out,)))
    )
    return x, weight, bias, drawn(rows, C_out, seed=3, dtype=dtype)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("tiles", TILES.values(), ids=TILES)
@pytest.mark.parametrize("sizes", [(150, 70, 33), (128, 64, 128), (1, 130, 3)])
def test_linear_with_every_size_of_tiles(tiled, tiles, parts, sizes):
    tiled(tiles, parts)
    x, weight, bias, dy = _linear(*sizes, torch.float16 if tiles in TENSOR_TILES else torch.float32)
    exact = [t.double() for t in (x, weight, bias)]
    y, saved = linear.linear_forward(x, weight, bias)
    exact_y, exact_saved = reference.linear_forward(*exact)
    assert_near(y, exact_y)
    for got, expected in zip(
        linear.linear_backward(dy, saved), reference.linear_backward(dy.double(), exact_saved), strict=True
    ):
        assert_near(got, expected)


@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_in_any_layout_and_without_a_bias(tiled, parts):
    tiled(SMALL, parts)
    x, weight, bias, dy = _linear(40, 35, 37)
    (_, saved), (_, no_bias) = linear.linear_forward(x, weight, bias), linear.linear_forward(x, weight)
    dense = linear.linear_backward(dy, saved)
    for layout in (surrounded(dy), surrounded(dy.mT).mT):
        for got, expected in zip(linear.linear_backward(layout, saved), dense, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    *without, none = linear.linear_backward(dy, no_bias)
    assert none is None and all(torch.equal(a, b) for a, b in zip(without, dense, strict=False))
    ones = linear.linear_backward(torch.ones((), device=DEVICE).expand(dy.shape), saved)
    assert torch.equal(ones[2], torch.full_like(ones[2], 40))


def test_two_backward_passes_give_the_same_bits(tiled):
    tiled(SMALL, 4)
    x, weight, bias, dy = _linear(500, 35, 37)
    _, saved = linear.linear_forward(x, weight, bias)
    for a, b in zip(linear.linear_backward(dy, saved), linear.linear_backward(dy, saved), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tiles", [SMALL, LARGE], ids=["small", "large"])
def test_the_mlp_with_gelu_inside(tiled, tiles):
    tiled(tiles)
    inputs = [drawn(*s, seed=i) for i, s in enumerate(((50, 20), (70, 20), (70,), (30, 70), (30,)))]
    y, saved = mlp.gelu_mlp_forward(*inputs)
    exact_y, exact_saved = reference.gelu_mlp_forward(*(x.double() for x in inputs))
    dy = draw_like(y, 0)
    assert_near(y, exact_y)
    for got, expected in zip(
        mlp.gelu_mlp_backward(dy, saved), reference.gelu_mlp_backward(dy.double(), exact_saved), strict=True
    ):
        assert_near(got, expected)


def test_wrong_layers_are_errors():
    x, weight, bias, dy = _linear(4, 5, 6)
    with pytest.raises(ValueError, match="they must be equal"):
        linear.linear_forward(x[:, :5], weight, bias)
    with pytest.raises(ValueError, match=r"bias of shape \(5,\)"):
        linear.linear_forward(x, weight, bias[:1])
    with pytest.raises(TypeError, match="convert"):
        linear.linear_forward(x, weight.half(), bias)
    _, saved = linear.linear_forward(x, weight, bias)
    with pytest.raises(ValueError, match=r"no gradient \(3, 5\)"):
        linear.linear_backward(dy[:3], saved)
    _, saved = mlp.gelu_mlp_forward(x, weight, bias, weight.T, None)
    with pytest.raises(ValueError, match=r"no gradient \(4, 5\)"):
        mlp.gelu_mlp_backward(dy, saved)


@pytest.mark.parametrize("operation", ["linear", "gelu_mlp"])
def test_inputs_are_not_modified(operation):
    case = next(c for c in CASES if c.operation == operation)
    inputs = arguments(case, torch.float32, DEVICE)
    before = [x.clone() for x in inputs]
    run_pair("cuda", case, inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
