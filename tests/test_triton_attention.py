"""FlashAttention-2 in Triton: shapes, layouts and features against the float64 reference; what it skips."""

import math

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from operation_cases import draw_like

from course.device import DEVICE
from course.initial import rope_tables
from kernels import reference
from kernels.autograd import bind
from kernels.packed import joined, unpack

pytest.importorskip("triton", reason="Triton has no package for this platform")

from kernels.triton import attention, rotary
from kernels.triton.launch import Gpu

# ‖out - ref‖ / ‖ref‖. float32: sums of up to 100 roundings of 2⁻²⁴ each, and a difference, dp - delta, of
# numbers that are larger than it. Two bytes: p and ds are rounded once more (2⁻⁸, 2⁻¹¹) than the inputs.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])


def tile(monkeypatch, BLOCK_M: int, BLOCK_N: int) -> None:
    """Small tiles, so that small shapes have many of them."""
    monkeypatch.setattr(attention, "_tiles", lambda *_: (BLOCK_M, BLOCK_N, 4, 2, None))
    forget_plans()


@pytest.fixture(autouse=True)
def forget_plans_afterwards():
    yield
    forget_plans()


def forget_plans() -> None:
    attention._plan_forward.cache_clear()
    attention._plan_backward.cache_clear()


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(np.asarray(numbers)).to(dtype).to(DEVICE)


def qkv(B, T, S, H, H_kv, D, dtype=torch.float32, seed=0) -> tuple:
    shapes = (B, T, H, D), (B, S, H_kv, D), (B, S, H_kv, D)
    return tuple(drawn(*shape, seed=3 * seed + i, dtype=dtype) for i, shape in enumerate(shapes))


def both_passes(engine, *inputs, dy=None) -> tuple:
    y, saved = engine.attention_forward(*inputs)
    return y, *engine.attention_backward(draw_like(y, 0) if dy is None else dy, saved)


def assert_equals_reference(*inputs, tolerance=None) -> None:
    """y and every gradient, within the dtype's tolerance of what float64 gives on the same numbers."""
    dtype = inputs[0].dtype
    dy = draw_like(inputs[0], 0)
    exact = [x.double().cpu() if isinstance(x, torch.Tensor) else x for x in inputs]
    got = both_passes(attention, *inputs, dy=dy)
    for name, ours, theirs in zip(
        ("y", "dq", "dk", "dv", "dsink"),
        got,
        both_passes(reference, *exact, dy=dy.double().cpu()),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is None:
            continue
        assert ours.shape == theirs.shape and ours.dtype == dtype
        # a gradient that is zero but for rounding (one key: ds = 0) is compared with 1
        error = (ours.double().cpu() - theirs).norm() / max(theirs.norm().item(), 1.0)
        assert error <= (tolerance or TOLERANCE[dtype]), f"{name}: relative error {error:.1e}"


# Values


@given(
    B=st.integers(1, 2), T=st.integers(1, 40), more=st.integers(0, 30), H_kv=st.integers(1, 2),
    group=st.integers(1, 3), D=st.integers(1, 20), causal=st.booleans(), sink=st.booleans(),
    window=st.none() | st.integers(1, 40), scale=st.sampled_from((None, 0.3, -0.5, 0.0)),
    tiles=st.sampled_from(((16, 16), (16, 32), (32, 16))), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=30, deadline=None, phases=(Phase.generate,))  # to shrink a failure takes minutes here
def test_any_shape_equals_reference(
    B, T, more, H_kv, group, D, causal, sink, window, scale, tiles, seed
):  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        tile(monkeypatch, *tiles)
        q, k, v = qkv(B, T, T + more, H_kv * group, H_kv, D, seed=seed)
        sink = drawn(H_kv * group, seed=seed) if sink else None
        assert_equals_reference(q, k, v, sink, causal, window if causal else None, scale)


@DTYPES
@pytest.mark.parametrize(
    ("shape", "causal", "window", "sink"),
    [
        ((1, 50, 50, 2, 2, 16), True, None, False),
        ((1, 40, 40, 1, 1, 16), True, 24, False),
        ((1, 33, 70, 4, 2, 16), True, 20, True),
        ((1, 20, 45, 3, 1, 24), False, None, True),
        ((2, 17, 17, 1, 1, 80), True, None, False),
    ],
    ids=["causal", "window", "window-sink-grouped", "full-sink-multi-query", "odd-width"],
)
def test_features_in_every_dtype(monkeypatch, dtype, shape, causal, window, sink):
    tile(monkeypatch, 16, 16)
    sink = drawn(shape[3], seed=9, dtype=dtype) if sink else None
    assert_equals_reference(*qkv(*shape, dtype=dtype), sink, causal, window)


@pytest.mark.parametrize("D", [64, 128, 256])
def test_the_tiles_that_are_really_chosen(D):
    assert_equals_reference(*qkv(1, 40, 40, 2, 1, D))


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """The same numbers: a slice of a fused projection, heads first, gaps between features."""
    fused = torch.cat((x, x, x), dim=2)[:, :, x.shape[2] : 2 * x.shape[2]]
    heads_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    gaps = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
    return [fused, heads_first, gaps]


def test_the_layout_does_not_matter(monkeypatch):
    tile(monkeypatch, 16, 16)
    q, k, v = qkv(2, 20, 20, 2, 2, 16)
    sink, dy = drawn(2), drawn(2, 20, 2, 16, seed=5)
    expected = both_passes(attention, q, k, v, sink, dy=dy)
    gapped = torch.stack((sink, sink), dim=-1)[:, 0]
    for variant in zip(*(layouts(x) for x in (q, k, v, dy)), strict=True):
        assert not any(x.is_contiguous() for x in variant)
        for a, b in zip(both_passes(attention, *variant[:3], gapped, dy=variant[3]), expected, strict=True):
            assert torch.equal(a, b)


def test_gradients_lie_side_by_side_where_the_inputs_do():
    separate = qkv(2, 21, 21, 4, 2, 16)
    dy = draw_like(separate[0], 0)
    together = torch.cat(separate, dim=2).split((4, 2, 2), dim=2)
    _, *expected, _ = both_passes(attention, *separate, dy=dy)
    _, *got, _ = both_passes(attention, *together, dy=dy)
    assert torch.equal(joined(tuple(got)), torch.cat(expected, dim=2))
    assert joined(tuple(expected)) is None


def test_one_key_for_all_positions_and_heads(monkeypatch):
    """Strides of zero: every program reads the same row."""
    tile(monkeypatch, 16, 16)
    q, _, v = qkv(1, 20, 20, 2, 2, 16)
    k = drawn(1, 1, 1, 16).expand(1, 20, 2, 16)
    assert_equals_reference(q, k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_scores_of_ten_thousand(monkeypatch, dtype):
    """exp(1e4) is far beyond float32: only differences from the maximum may be exponentiated."""
    tile(monkeypatch, 16, 16)
    q, k, v = qkv(1, 40, 40, 2, 1, 16, dtype=dtype)
    inputs = (50 * q, 50 * k, v, None, True, None, 1.0)
    y, saved = attention.attention_forward(*inputs)
    exact = [x.double().cpu() if isinstance(x, torch.Tensor) else x for x in inputs]
    scores = exact[0].transpose(1, 2) @ exact[1].permute(0, 2, 3, 1)
    assert scores.abs().max() > 1e4
    # a score of 1e4 is off by 1e4 · 2⁻²⁴, and so is the exponent
    error = (y.double().cpu() - reference.attention_forward(*exact)[0]).norm() / y.double().norm().cpu()
    assert error < max(1e-3, TOLERANCE[dtype])
    assert all(torch.isfinite(d).all() for d in attention.attention_backward(y, saved)[:3])


def test_sinks_that_take_everything_and_nothing(monkeypatch):
    tile(monkeypatch, 16, 16)
    q, k, v = qkv(1, 20, 20, 2, 2, 16)
    sink = torch.tensor([-torch.inf, 1e4], device=DEVICE)
    y, *gradients = both_passes(attention, q, k, v, sink)
    without = attention.attention_forward(q, k, v)[0]
    torch.testing.assert_close(y[:, :, 0], without[:, :, 0])
    assert torch.equal(y[:, :, 1], torch.zeros_like(y[:, :, 1]))
    assert all(torch.isfinite(d).all() for d in gradients)


def test_lse_is_the_logarithm_of_the_sum_to_base_two():
    q, k, v = qkv(1, 6, 6, 1, 1, 16)
    lse = attention.attention_forward(q, k, v, None, False, None, 0.5)[1][5][0, 0]
    expected = torch.logsumexp(0.5 * q[0, :, 0] @ k[0, :, 0].T, dim=-1) / math.log(2)
    torch.testing.assert_close(lse, torch.cat((expected, expected.new_zeros(2))))


def test_empty_arrays():
    q, k, v = qkv(0, 3, 5, 2, 1, 16)
    assert [x.shape for x in both_passes(attention, q, k, v)[:4]] == [q.shape, q.shape, k.shape, v.shape]
    q, k, v = qkv(1, 0, 5, 2, 1, 16)
    y, dq, dk, dv, _ = both_passes(attention, q, k, v)
    assert y.shape == dq.shape == q.shape and not dk.any() and not dv.any()
    q, k, v = qkv(1, 3, 0, 2, 1, 16)
    y, dq, *_ = both_passes(attention, q, k, v, drawn(2), False)
    assert not y.any() and not dq.any()


# Memory


@pytest.mark.parametrize("window", [None, 9])
def test_everything_is_written_and_nothing_unwritten_is_read(monkeypatch, window):
    """New arrays are full of NaN: one that a kernel leaves, or reads past its last row, shows."""
    tile(monkeypatch, 16, 16)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **options: empty(*a, **options).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: torch.full_like(x, torch.nan, **options))
    q, k, v = qkv(1, 19, 37, 2, 1, 10)
    for x in both_passes(attention, q, k, v, drawn(2), True, window):
        assert torch.isfinite(x).all()


def test_blocks_that_nobody_sees_are_not_read(monkeypatch):
    """NaN there would reach the output even through p = 0."""
    tile(monkeypatch, 16, 16)
    q, k, v = qkv(1, 16, 128, 1, 1, 16)
    k[:, :96], v[:, :96] = torch.nan, torch.nan  # farther than the window from all 16 queries
    y, dq, dk, dv, _ = both_passes(attention, q, k, v, None, True, 16)
    assert torch.isfinite(y).all() and torch.isfinite(dq).all()
    assert not dk[:, :96].any() and torch.isfinite(dk[:, 96:]).all() and dv[:, 112:].all()

    q, k, v = qkv(1, 64, 64, 1, 1, 16)
    k[:, 32:], v[:, 32:] = torch.nan, torch.nan  # later than the first 32 queries
    y, saved = attention.attention_forward(q, k, v)
    assert torch.isfinite(y[:, :32]).all() and torch.isnan(y[:, 32:]).all()
    assert torch.isfinite(attention.attention_backward(torch.ones_like(y), saved)[0][:, :32]).all()

    q, k, v = qkv(1, 64, 64, 1, 1, 16)
    dy = drawn(1, 64, 1, 16)
    dy[:, :32] = torch.nan  # queries that stand before the keys from 32 on
    _, _, dk, dv, _ = both_passes(attention, q, k, v, dy=dy)
    assert torch.isfinite(dk[:, 32:]).all() and torch.isfinite(dv[:, 32:]).all()
    dy[:, 32:], dy[:, :32] = torch.nan, 1.0  # queries whose window ends before they reach the first 16 keys
    _, _, dk, dv, _ = both_passes(attention, q, k, v, None, True, 16, dy=dy)
    assert torch.isfinite(dk[:, :16]).all() and torch.isfinite(dv[:, :16]).all()


def test_what_is_saved_grows_with_the_length_only():
    q, k, v = qkv(1, 64, 64, 2, 2, 16)
    _, saved = attention.attention_forward(q, k, v)
    new = [x for x in saved if isinstance(x, torch.Tensor) and not any(x is i for i in (q, k, v))]
    assert sum(x.numel() for x in new) == q.numel() + 2 * 64


@DTYPES
def test_two_runs_give_the_same_bits(monkeypatch, dtype):
    tile(monkeypatch, 16, 16)
    inputs = (*qkv(2, 40, 40, 4, 2, 16, dtype=dtype), drawn(4, dtype=dtype), True, 30)
    first, second = both_passes(attention, *inputs), both_passes(attention, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def copied_by_hardware(monkeypatch) -> list:
    """Let this seem a Hopper GPU, and no case too small for it; returns the descriptors that are made."""
    monkeypatch.setattr(attention, "gpu", lambda x: Gpu(capability=90, processors=2, shared=227 * 1024))
    monkeypatch.setattr(attention, "LARGE", 0)
    made, plain = [], attention.Tiles
    monkeypatch.setattr(attention, "Tiles", lambda *a: made.append(plain(*a)) or made[-1])
    forget_plans()
    return made


@pytest.mark.parametrize("D", [16, 24])
def test_descriptors_fetch_the_same_tiles(monkeypatch, D):
    tile(monkeypatch, 16, 16)
    q, k, v = qkv(2, 21, 37, 4, 2, D, dtype=torch.float16)
    q = torch.cat((q, q), dim=2)[:, :, 4:]  # a slice: rows farther apart than they are long
    inputs = (q, k, v, drawn(4, dtype=torch.float16), True, 20)
    expected = both_passes(attention, *inputs)
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no copy engine")
    made = copied_by_hardware(monkeypatch)
    for a, b in zip(both_passes(attention, *inputs), expected, strict=True):
        assert torch.equal(a, b)
    assert len(made) == 3 + 5 + 5  # q, k, v; and y, dy; and those for lse and delta, which are alike


def test_layouts_that_descriptors_cannot_describe_are_fetched_by_pointers(monkeypatch):
    tile(monkeypatch, 16, 16)
    made = copied_by_hardware(monkeypatch)
    for q, k, v in (
        qkv(1, 20, 20, 2, 2, 9, dtype=torch.float16),  # rows of 18 bytes
        [x[..., 1:17] for x in qkv(1, 20, 20, 1, 1, 24, dtype=torch.float16)],  # a start at byte 2 of 16
        [x[..., ::2] for x in qkv(1, 20, 20, 2, 2, 32, dtype=torch.float16)],
        [x[:, :1].expand(1, 20, 2, 16) for x in qkv(1, 20, 20, 2, 2, 16, dtype=torch.float16)],
    ):
        assert_equals_reference(q, k, v)
    assert not made
    q, k, v = (x[..., :12] for x in qkv(1, 20, 20, 1, 1, 16, dtype=torch.float16))
    assert_equals_reference(q, k, v)
    assert len(made) == 3  # the inputs' rows begin at multiples of 32 bytes, those of y of 24


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("D", [32, 64, 96, 128, 256])
def test_sizes_of_real_models(dtype, D):
    """The tiles, warps and stages that training uses, descriptors included where the GPU has them."""
    assert_equals_reference(*qkv(1, 1000, 1100, 4, 2, D, dtype=dtype), None, True, None)
    sink = drawn(4, dtype=dtype)
    assert_equals_reference(*qkv(1, 700, 900, 4, 4, D, dtype=dtype), sink, True, 300)
    assert_equals_reference(*qkv(1, 600, 777, 4, 4, D, dtype=dtype), sink, False)
    inputs = qkv(2, 512, 512, 4, 2, D, dtype=dtype)
    first, second = both_passes(attention, *inputs), both_passes(attention, *inputs)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))


# With rotary positions


def tables(T: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(table).to(DEVICE, dtype) for table in rope_tables(T, D, 100.0))


def projections(C, H, H_kv, D, bias=False, dtype=torch.float32, seed=3) -> tuple:
    """A weight and a bias that make queries, keys and values."""
    width = (H + 2 * H_kv) * D
    weight = drawn(width, C, seed=seed) * C**-0.5
    return weight.to(dtype), drawn(width, seed=seed + 1, dtype=dtype) if bias else None


def composed(x, weight, bias, n_head, cos, sin, sink, window, dy, kept=torch.float64) -> tuple:
    """y, dx, dweight, dbias and dsink of `rotary_attention` by the reference's three operations. Queries,
    keys and values are rounded to the dtype that they are `kept` in."""
    whole, product = reference.linear_forward(x, weight, bias)
    qkv = whole.unflatten(-1, (-1, 2 * cos.shape[1]))
    n_kv_head = (qkv.shape[2] - n_head) // 2
    qk, v = qkv.split((n_head + n_kv_head, n_kv_head), dim=2)
    turned, rope = reference.rope_forward(qk, cos, sin)
    turned, v = (z.to(kept).to(qk.dtype) for z in (turned, v))
    y, saved = reference.attention_forward(*turned.split((n_head, n_kv_head), dim=2), v, sink, True, window)
    dq, dk, dv, dsink = reference.attention_backward(dy, saved)
    dqkv = torch.cat((reference.rope_backward(torch.cat((dq, dk), dim=2), rope), dv), dim=2)
    return y, *reference.linear_backward(dqkv.flatten(-2), product), dsink


def both_rotary_passes(*inputs, dy) -> tuple:
    y, saved = rotary.rotary_attention_forward(*inputs)
    return y, *rotary.rotary_attention_backward(dy, saved)


def assert_rotary_equals_reference(*inputs, dy) -> None:
    dtype = dy.dtype
    exact = [x.double().cpu() if isinstance(x, torch.Tensor) else x for x in inputs]
    expected = composed(*exact, dy=dy.double().cpu(), kept=dtype)
    # dsink: a few sums of dy · y, in which the terms cancel and the rounding of y does not
    for ours, theirs, times in zip(
        both_rotary_passes(*inputs, dy=dy), expected, (1, 1, 1, 1, 2), strict=True
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.shape == theirs.shape and ours.dtype == dtype and ours.is_contiguous()
            error = (ours.double().cpu() - theirs).norm() / max(theirs.norm().item(), 1.0)
            assert error <= times * TOLERANCE[dtype], error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "C", "bias", "window", "sink"),
    [
        ((2, 21, 2, 2, 16), 24, False, None, False),
        ((1, 37, 4, 2, 16), 40, True, 9, True),
        ((1, 33, 3, 1, 64), 33, True, None, True),
        ((1, 9, 1, 1, 128), 16, False, None, False),
        ((2, 19, 4, 2, 24), 20, True, 12, True),
        ((1, 17, 1, 1, 80), 24, False, None, False),
        ((1, 5, 2, 1, 6), 7, False, None, False),
        ((1, 1, 1, 1, 32), 1, True, None, True),
    ],
    ids=["plain", "everything", "multi-query", "width-128", "width-24", "width-80", "width-6", "one"],
)
def test_rotary_attention_equals_product_rope_and_attention(monkeypatch, dtype, shape, C, bias, window, sink):
    tile(monkeypatch, 16, 16)
    B, T, H, H_kv, D = shape
    weights = projections(C, H, H_kv, D, bias, dtype)
    sinks = drawn(H, seed=2, dtype=dtype) if sink else None
    x, dy = drawn(B, T, C, dtype=dtype), drawn(B, T, H, D, seed=1, dtype=dtype)
    assert_rotary_equals_reference(x, *weights, H, *tables(T, D, dtype), sinks, window, dy=dy)


@pytest.mark.parametrize(
    ("D", "fused", "passes"),
    [(16, True, []), (64, True, []), (24, False, [False, True]), (8, False, [False, True])],
)
def test_only_widths_that_no_tile_has_are_turned_by_a_kernel_of_their_own(monkeypatch, D, fused, passes):
    inverse, products, rope_, product = [], [], rotary.rope_, rotary._turned_product
    monkeypatch.setattr(
        rotary, "rope_", lambda *a, **how: inverse.append(how.get("inverse", False)) or rope_(*a, **how)
    )
    monkeypatch.setattr(rotary, "_turned_product", lambda *a: products.append(product(*a)))
    weights = projections(8, 2, 1, D)
    both_rotary_passes(drawn(1, 5, 8), *weights, 2, *tables(5, D), None, None, dy=drawn(1, 5, 2, D))
    if not rotary._fuses(drawn(1), 16):  # a GPU on which the product is the library's
        fused, passes = False, [False, *passes[1:]]
    assert inverse == passes and len(products) == fused


def test_a_kept_plan_takes_the_tables_of_its_call(monkeypatch):
    tile(monkeypatch, 16, 16)
    x, dy, (cos, sin), weights = (
        drawn(1, 20, 8),
        drawn(1, 20, 2, 16, seed=1),
        tables(20, 16),
        projections(8, 2, 1, 16),
    )
    gaps = [torch.stack((z, torch.full_like(z, torch.nan)), dim=-1)[..., 0] for z in (cos, sin)]
    first = both_rotary_passes(x, *weights, 2, cos, sin, None, None, dy=dy)
    again = both_rotary_passes(x, *weights, 2, *gaps, None, None, dy=dy)
    other = both_rotary_passes(x, *weights, 2, cos, -sin, None, None, dy=dy)
    assert attention._plan_backward.cache_info().misses == 1
    assert torch.equal(again[1], first[1]) and not torch.equal(other[1], first[1])
    expected = composed(x, *weights, 2, cos, -sin, None, None, dy)[1]
    torch.testing.assert_close(other[1], expected, rtol=1e-4, atol=1e-5)
    _, saved = attention.attention_forward(*drawn(1, 20, 4, 16).split((2, 1, 1), dim=2))  # nothing turned
    attention.attention_backward(dy, saved)
    assert attention._plan_backward.cache_info().misses == 2


def test_descriptors_and_rotary_positions(monkeypatch):
    tile(monkeypatch, 16, 16)
    x, dy = drawn(2, 37, 16, dtype=torch.float16), drawn(2, 37, 4, 16, seed=1, dtype=torch.float16)
    weights = projections(16, 4, 2, 16, dtype=torch.float16)
    inputs = (x, *weights, 4, *tables(37, 16, torch.float16), drawn(4, dtype=torch.float16), 20)
    expected = both_rotary_passes(*inputs, dy=dy)
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no copy engine")
    made = copied_by_hardware(monkeypatch)
    for a, b in zip(both_rotary_passes(*inputs, dy=dy), expected, strict=True):
        assert a is b is None or torch.equal(a, b)
    assert made


def test_any_layout_of_what_queries_keys_and_values_are_made_of():
    """A transposed weight, and rows with gaps that begin at no multiple of 16 bytes."""
    x, (weight, bias), dy = drawn(2, 9, 5), projections(5, 2, 1, 16, bias=True), drawn(2, 9, 2, 16, seed=1)
    rest = 2, *tables(9, 16), None, None
    dense = both_rotary_passes(x, weight, bias, *rest, dy=dy)
    x, weight = torch.cat((x, x), 2)[..., 5:], weight.t().contiguous().t()
    bias = torch.stack((bias, bias), -1)[:, 0]
    for a, b in zip(both_rotary_passes(x, weight, bias, *rest, dy=dy), dense, strict=True):
        torch.testing.assert_close(a, b)


def test_autograd_has_its_gradients():
    ops, (cos, sin), sink = bind("triton"), tables(9, 16), drawn(4).requires_grad_()
    x, dy = drawn(2, 9, 8).requires_grad_(), drawn(2, 9, 4, 16, seed=1)
    weight, bias = (z.requires_grad_() for z in projections(8, 4, 2, 16, bias=True))
    qk, v = unpack(ops.linear(x, weight, bias).unflatten(-1, (-1, 16)), (6, 2))
    q, k = unpack(ops.rope(qk, cos, sin), (4, 2))
    inputs = x, weight, bias, sink
    expected = torch.autograd.grad(ops.attention(q, k, v, sink, True, 5), inputs, dy)
    got = torch.autograd.grad(ops.rotary_attention(x, weight, bias, 4, cos, sin, sink, 5), inputs, dy)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert bind("torch").rotary_attention is None


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("D", [32, 64, 96, 128, 256])
def test_rotary_attention_of_real_sizes(dtype, D):
    x, dy = drawn(2, 1001, 320, dtype=dtype), drawn(2, 1001, 4, D, seed=1, dtype=dtype)
    weights = projections(320, 4, 2, D, bias=True, dtype=dtype)
    sink = drawn(4, dtype=dtype)
    assert_rotary_equals_reference(x, *weights, 4, *tables(1001, D, dtype), sink, 300, dy=dy)


# Bad input


@pytest.mark.parametrize("heads", [2, 3, 5, 4.5])
def test_heads_that_are_no_queries_keys_and_values_are_refused(heads):
    weight = drawn(int(heads * 16), 8)
    with pytest.raises(ValueError, match=r"for 2 heads of queries, of width 16 .* got x \(1, 4, 8\)"):
        rotary.rotary_attention_forward(drawn(1, 4, 8), weight, None, 2, *tables(4, 16), None, None)


def test_other_shapes_that_do_not_fit_rotary_attention_are_refused():
    x, (weight, bias), rest = (
        drawn(1, 4, 8),
        projections(8, 2, 1, 16, bias=True),
        (2, *tables(4, 16), None, None),
    )
    with pytest.raises(ValueError, match="last dimension is 7 and the weight's is 8"):
        rotary.rotary_attention_forward(x[..., :7], weight, bias, *rest)
    with pytest.raises(ValueError, match=r"bias \(63,\)"):
        rotary.rotary_attention_forward(x, weight, bias[:63], *rest)
    with pytest.raises(ValueError, match=r"the tables must have shape \(3, 8\)"):
        rotary.rotary_attention_forward(x[:, :3], weight, bias, *rest)
    with pytest.raises(TypeError, match=r"float32 and of torch\.bfloat16"):
        rotary.rotary_attention_forward(x, weight.bfloat16(), bias, *rest)


def test_heads_too_wide_are_refused():
    with pytest.raises(ValueError, match="heads of width 257; the triton engine has kernels up to 256"):
        attention.attention_forward(*qkv(1, 2, 2, 1, 1, 257))


def test_a_softmax_over_nothing_is_refused():
    with pytest.raises(ValueError, match="a softmax over no keys"):
        attention.attention_forward(*qkv(1, 2, 0, 1, 1, 16), None, False)


def test_dtypes_that_differ_are_refused():
    q, k, v = qkv(1, 2, 2, 1, 1, 16)
    with pytest.raises(TypeError, match=r"float32 and of torch\.float16"):
        attention.attention_forward(q, k.half(), v)
    y, saved = attention.attention_forward(q, k, v)
    with pytest.raises(TypeError, match=r"float32 and of torch\.bfloat16"):
        attention.attention_backward(y.bfloat16(), saved)


def test_shapes_that_do_not_agree_are_refused():
    q, k, v = qkv(1, 4, 4, 2, 2, 16)
    with pytest.raises(ValueError, match="do not agree"):
        attention.attention_forward(q, k[..., :8], v)
    _, saved = attention.attention_forward(q, k, v)
    with pytest.raises(ValueError, match=r"dy \(1, 3, 2, 16\) must have the shape of the output"):
        attention.attention_backward(q[:, :3], saved)
