"""Attention of the cuda engine, fused and composed of products, in the emulator or on this machine's GPU."""

import itertools
import math

import numpy as np
import pytest
import torch
from operation_cases import CASES, TOLERANCE, arguments, draw_like, relative_errors

from course.device import DEVICE
from kernels import reference
from kernels.cuda import attention
from kernels.cuda.attention import Tiles
from kernels.packed import joined

DTYPES = [dtype for dtype in TOLERANCE if dtype != torch.float64]
PAIRS = {
    "fused": (attention.attention_forward, attention.attention_backward),
    "composed": (attention.composed_attention_forward, attention.composed_attention_backward),
}
EXACT = reference.attention_forward, reference.attention_backward
both_ways = pytest.mark.parametrize("way", PAIRS)


def drawn(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(np.asarray(numbers)).to(dtype).to(DEVICE)


def inputs(B, T, S, H, H_kv, D, sink=False, dtype=torch.float32):
    shapes = ((B, T, H, D), (B, S, H_kv, D), (B, S, H_kv, D), (H,))
    q, k, v, scores = (drawn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))
    return q, k, v, scores if sink else None


def run(pair, arrays: tuple, choices: tuple = ()) -> tuple:
    """y and the gradients, for an output's gradient drawn from a seed."""
    forward, backward = pair
    y, saved = forward(*arrays, *choices)
    return (y, *backward(draw_like(y, 0), saved))


def assert_equals_reference(way: str, arrays: tuple, choices: tuple = (), large: bool = False) -> None:
    exact = tuple(None if x is None else x.double().cpu() for x in arrays)
    got, expected = run(PAIRS[way], arrays, choices), run(EXACT, exact, choices)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.shape == b.shape and a.dtype == arrays[0].dtype and torch.isfinite(a).all())
    # Who sees one key has the gradient 0, of which a difference of products leaves their rounding: gradients
    # are compared in units of the largest of them.
    errors = relative_errors(got[:1], expected[:1], False)
    if not (
        large and got[0].itemsize == 2
    ):  # rounding moves a saturated softmax more than its gradient is large
        errors += relative_errors(got[1:], expected[1:], True)
    assert max(errors) <= (10 if large else 1) * TOLERANCE[arrays[0].dtype], errors


@pytest.fixture(autouse=True)
def tiled(monkeypatch):
    """tiled(rows, columns): the tiles of every plan from now on. Small ones unless a test asks for others, so
    that small arrays have many."""

    def use(rows, columns):
        def tiles(dtype, D, *_):
            return Tiles(max(16, 1 << (D - 1).bit_length()), rows, columns, dtype != torch.float32)

        monkeypatch.setattr(attention, "_tiles", tiles)
        forget()

    def forget():
        attention._forward_plan.cache_clear()
        attention._backward_plan.cache_clear()

    use(16, 16)
    yield use
    monkeypatch.undo()
    forget()


# Values


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", [case for case in CASES if case.operation == "attention"], ids=str)
@both_ways
def test_the_contracts_cases(way, case, dtype):
    *arrays, causal, window, softmax_scale = arguments(case, dtype, DEVICE)
    assert_equals_reference(way, tuple(arrays), (causal, window, softmax_scale), case.large)


@pytest.mark.parametrize("causal, window", [(True, None), (True, 1), (True, 9), (True, 40), (False, None)])
@pytest.mark.parametrize(
    "T, S, sink",
    [(1, 1, True), (16, 16, False), (33, 33, True), (5, 50, False), (1, 65, False), (34, 50, True)],
)
@both_ways
def test_lengths_masks_and_shared_heads(way, T, S, sink, causal, window):
    assert_equals_reference(way, inputs(2, T, S, 6, 2, 12, sink), (causal, window, None))


@pytest.mark.parametrize("T, S", [(50, 20), (20, 50)])
@both_ways
def test_every_query_sees_every_key_without_a_mask(way, T, S):
    assert_equals_reference(way, inputs(1, T, S, 2, 1, 12), (False, None, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("D", [1, 7, 16, 20, 64, 100, 128, 256])
def test_widths_of_heads(D, dtype):
    assert_equals_reference("fused", inputs(1, 19, 21, 2, 1, D, sink=True, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("tiles", [*attention.SIZES, (16, 64)])
def test_every_shape_of_tiles(tiled, tiles, dtype):
    if tiles[0] < 16 and dtype != torch.float32:
        pytest.skip("a warp of tensor cores has 16 rows")
    tiled(*tiles)
    assert_equals_reference("fused", inputs(1, 70, 75, 2, 1, 30, sink=True, dtype=dtype), (True, 23, None))
    assert_equals_reference("fused", inputs(1, 64, 64, 1, 1, 64, dtype=dtype))


@pytest.mark.parametrize("softmax_scale", [0.7, -0.7, 0.0])
@both_ways
def test_any_scale(way, softmax_scale):
    arrays = inputs(1, 20, 20, 2, 1, 8)
    if softmax_scale:
        assert_equals_reference(way, arrays, (True, None, softmax_scale))
        return
    y, dq, dk, *_ = run(PAIRS[way], arrays, (True, None, 0.0))
    torch.testing.assert_close(y[:, :1], arrays[2][:, :1].expand_as(y[:, :1]))  # sees one key
    torch.testing.assert_close(y[:, -1], arrays[2].mean(1).expand_as(y[:, -1]))
    assert not (dq.any() or dk.any())


@both_ways
def test_large_scores_do_not_overflow(way):
    q, k, v, _ = inputs(1, 20, 20, 1, 1, 8)
    y, *gradients = run(PAIRS[way], (200 * q, 200 * k, v, None))
    assert all(torch.isfinite(x).all() for x in (y, *gradients[:3]))
    scores = torch.einsum("bthd,bshd->bts", q, k)
    best = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
    picked = v[0, best[0].argmax(-1), 0]
    torch.testing.assert_close(y[0, :, 0], picked, rtol=1e-3, atol=1e-3)


@both_ways
def test_a_sink_may_take_everything(way):
    q, k, v, _ = inputs(1, 5, 5, 2, 2, 8)
    sink = torch.tensor([1e4, -1e4], device=DEVICE)
    y, dq, *_, dsink = run(PAIRS[way], (q, k, v, sink))
    without, *_ = run(PAIRS[way], (q, k, v, None))
    assert not y[:, :, 0].any() and not dq[:, :, 0].any() and not dsink.any()
    torch.testing.assert_close(y[:, :, 1], without[:, :, 1])


@both_ways
def test_nothing_in_nothing_out(way):
    for B, T, S in ((0, 3, 3), (2, 0, 5)):
        arrays = inputs(B, T, S, 4, 2, 8, sink=True)
        y, _, dk, dv, dsink = run(PAIRS[way], arrays)
        assert (y.shape, dk.shape, dv.shape) == (arrays[0].shape, arrays[1].shape, arrays[2].shape)
        assert not (dk.any() or dv.any() or dsink.any())
    y, *_, dsink = run(PAIRS[way], inputs(2, 3, 0, 4, 2, 8, sink=True), (False,))
    assert not y.any() and not dsink.any()


# Layouts and memory


@both_ways
def test_heads_that_lie_beside_each_other(way):
    """q, k and v cut out of one array with nan around them: right values, and gradients beside each other."""
    whole = torch.full((2, 21, 9, 14), torch.nan, device=DEVICE)
    pieces = whole[:, :, :8, 1:13].split((4, 2, 2), dim=2)
    for piece, x in zip(pieces, inputs(2, 21, 21, 4, 2, 12), strict=False):
        piece.copy_(x)
    assert_equals_reference(way, (*pieces, None))
    dense = drawn(2, 21, 8, 12).split((4, 2, 2), dim=2)
    gradients = run(PAIRS["fused"], (*dense, None))[1:4]
    assert joined(gradients) is not None
    for got, expected in zip(
        gradients, run(PAIRS["fused"], (*(x.contiguous() for x in dense), None))[1:], strict=False
    ):
        assert torch.equal(got, expected)


@both_ways
def test_an_output_gradient_of_any_layout(way):
    forward, backward = PAIRS[way]
    y, saved = forward(*inputs(2, 20, 20, 4, 2, 8))
    dy = draw_like(y, 0)
    for layout in (dy.transpose(1, 2).contiguous().transpose(1, 2), torch.stack((dy, dy), -1)[..., 0]):
        for a, b in zip(backward(layout, saved)[:3], backward(dy, saved)[:3], strict=True):
            assert torch.equal(a, b)
    one = torch.ones((), device=DEVICE).expand(y.shape)
    for a, b in zip(backward(one, saved)[:3], backward(one.contiguous(), saved)[:3], strict=True):
        assert torch.equal(a, b)


def test_the_fused_way_saves_no_scores():
    _, saved = attention.attention_forward(*inputs(1, 40, 40, 2, 2, 8))
    assert max(x.numel() for x in saved if isinstance(x, torch.Tensor)) == 40 * 2 * 8
    lse = saved[5]
    q, k = (x.double().transpose(1, 2) for x in saved[:2])
    scores = (q @ k.mT * 8**-0.5).masked_fill(torch.ones(40, 40, device=DEVICE).triu(1).bool(), -math.inf)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1) / math.log(2), rtol=1e-5, atol=1e-5)


@both_ways
def test_two_runs_give_the_same_bits_and_modify_nothing(way):
    arrays = inputs(2, 40, 50, 4, 2, 12, sink=True)
    before = [x.clone() for x in arrays]
    for a, b in zip(run(PAIRS[way], arrays), run(PAIRS[way], arrays), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(before, arrays, strict=True))


def test_a_query_does_not_see_what_comes_after_it():
    q, k, v, _ = inputs(1, 40, 40, 1, 1, 8)
    y, _ = attention.attention_forward(q, k, v)
    k[:, 25:], v[:, 25:] = torch.nan, torch.nan
    later, _ = attention.attention_forward(q, k, v)
    assert torch.equal(y[:, :16], later[:, :16])  # the block of keys that begins at 16 holds them


# Errors


@both_ways
def test_wrong_inputs_are_errors(way):
    forward, backward = PAIRS[way]
    q, k, v, sink = inputs(2, 5, 5, 4, 2, 8, sink=True)
    for words, arrays in (
        ("do not agree", (q, k[:, :4], v)),
        ("cannot share", (q[:, :, :3], k, v)),
        ("at least as many keys", (q, k[:, :4], v[:, :4])),
        ("one sink a head", (q, k, v, sink[:2])),
        ("no keys", (q, k[:, :0], v[:, :0], None, False)),
        ("sliding window", (q, k, v, None, False, 3)),
    ):
        with pytest.raises(ValueError, match=words):
            forward(*arrays)
    with pytest.raises(TypeError, match="convert"):
        forward(q, k.half(), v)
    with pytest.raises(TypeError, match="float64"):
        forward(q.double(), k.double(), v.double())
    _, saved = forward(q, k, v)
    with pytest.raises(ValueError, match="shape"):
        backward(q[:, :4], saved)


def test_heads_wider_than_the_kernels_are_an_error():
    with pytest.raises(ValueError, match="up to 256"):
        attention.attention_forward(*inputs(1, 2, 2, 1, 1, 257))


def test_tiles_fit_into_the_shared_memory_of_every_gpu(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(attention, "processors", lambda _: 40)
    monkeypatch.setattr(attention, "has_tensor_cores", lambda dtype, _: dtype != torch.float32)
    numbers = (64, 99, 163, 227), DTYPES, (8, 32, 64, 128, 256), (1, 2), (16, 2048)
    for kibibytes, dtype, D, kept, T in itertools.product(*numbers):
        monkeypatch.setattr(attention, "shared_memory", lambda _, size=kibibytes: size * 1024)
        tiles = attention._tiles(dtype, D, 8, T, kept, None)
        assert tiles.shared_bytes(kept) <= kibibytes * 1024 and tiles.HEAD >= D
        assert tiles.threads % 32 == 0 and (dtype == torch.float32 or tiles.BLOCK_ROWS >= 16)
