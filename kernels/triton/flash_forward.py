"""FlashAttention-2, forward (Dao, 2023): softmax(q kᵀ) v a tile at a time, the scores never in memory.

One program computes `BLOCK_M` rows of y for one head. It holds their q, and walks along the keys with the
online softmax (Milakov and Gimelshein, 2018): a running maximum, a running sum, and a running weighted mean
of values that shrinks whenever the maximum grows. Scores are kept in base 2, because the hardware's
exponential is 2ˣ: log₂e is part of `qk_scale`, and `lse`, the log-sum-exp that the backward pass needs, is
a logarithm to base 2 too.

What both passes share stands first: how a tile is fetched, who sees whom, and which tiles need no mask.
"""

import triton
import triton.language as tl

from kernels.triton.arithmetic import LOG2_E, dot

LOWEST = tl.constexpr(-3.0e38)  # a maximum to start from; finite, so that -inf minus it is not NaN

# These change from call to call, and no instruction gets better by knowing what divides them.
ANY_NUMBER = ["B", "H", "group", "T", "S", "window", "sink_stride"]


@triton.jit
def _tile(X, strides, batch, head, row, n_rows, D: tl.constexpr, BLOCK: tl.constexpr, EDGE: tl.constexpr):
    """Rows `row` to `row + BLOCK` of one head as `(BLOCK, BLOCK_D)`, D rounded up to a power of two.

    Zeros stand for what lies outside. A tensor descriptor leaves the fetching, and the zeros, to the copy
    engine of Hopper and later (TMA); it costs the program no registers for addresses. From a pointer, rows
    are compared with `n_rows` only at an EDGE: inside, all are there.
    """
    BLOCK_D: tl.constexpr = max(16, triton.next_power_of_2(D))
    if isinstance(X, tl.tensor_descriptor):
        return X.load([batch, head, tl.cast(row, tl.int32), 0]).reshape(BLOCK, BLOCK_D)
    else:
        # 64 bits to find the tile, which may lie beyond 2³¹ elements; 32 within it
        X += tl.cast(batch, tl.int64) * strides[0] + tl.cast(head, tl.int64) * strides[2]
        X += tl.cast(row, tl.int64) * strides[1]
        rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
        pointers = X + (rows * strides[1] + columns * strides[3])
        if EDGE:
            return tl.load(pointers, mask=(rows < n_rows - row) & (columns < D), other=0.0)
        elif D < BLOCK_D:
            return tl.load(pointers, mask=columns < D, other=0.0)
        else:
            return tl.load(pointers)


@triton.jit
def _store_tile(X, tile, batch, head, row, n_rows, stride, D: tl.constexpr):
    """Write a tile into a `(B, n_rows, H, D)` of neighbouring heads; `stride` is from a row to the next."""
    X += (tl.cast(batch, tl.int64) * n_rows + row) * stride + head * D
    rows, columns = tl.arange(0, tile.shape[0])[:, None], tl.arange(0, tile.shape[1])[None, :]
    inside = (rows < n_rows - row) & (columns < D)
    tl.store(X + rows * stride + columns, tile.to(X.dtype.element_ty), mask=inside)


@triton.jit
def _visible(queries, keys, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Which of these positions see which; broadcasts. A query's position counts among the keys."""
    visible = keys < S
    if CAUSAL:
        visible = visible & (keys <= queries)
    if WINDOW:
        visible = visible & (keys > queries - window)
    return visible


@triton.jit
def _keys_seen(first, last, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """What queries at positions `first` to `last` see: four bounds (b0, b1, b2, b3), multiples of BLOCK_N
    but for the end. From b1 to b2 every one sees every key; the blocks before and after need a mask; the
    keys outside b0 to b3 are nobody's, and are never read."""
    b0, b1, b2, b3 = 0, 0, S // BLOCK_N * BLOCK_N, S
    if CAUSAL:
        b3 = tl.minimum(S, last + 1)
        b2 = tl.minimum(S, first + 1) // BLOCK_N * BLOCK_N
    if WINDOW:
        b0 = tl.maximum(0, first - window + 1) // BLOCK_N * BLOCK_N
        b1 = tl.minimum(b3, tl.cdiv(tl.maximum(0, last - window + 1), BLOCK_N) * BLOCK_N)
        b2 = tl.maximum(b1, b2)
    return b0, b1, b2, b3


@triton.jit(do_not_specialize=ANY_NUMBER)
def _forward_kernel(
    Y, Q, q_strides, K, k_strides, V, v_strides, SINK, sink_stride, LSE,
    H, group, T, S, T_padded, window, qk_scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(T, BLOCK_M)
    program = tl.program_id(0)
    batch, head = program // n_blocks // H, program // n_blocks % H
    start_m = (n_blocks - 1 - program % n_blocks) * BLOCK_M  # the last queries first: they see most keys
    rows = start_m + tl.arange(0, BLOCK_M)
    shift = S - T  # the last query stands at the last key
    q = _tile(Q, q_strides, batch, head, start_m, T, D, BLOCK_M, True)

    maximum = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINK is not None:  # the softmax has met one score before the first key
        maximum = tl.maximum(maximum, tl.load(SINK + head * sink_stride).to(tl.float32) * LOG2_E)
        total += 1.0
    acc = tl.zeros([BLOCK_M, q.shape[1]], tl.float32)

    last = tl.minimum(start_m + BLOCK_M, T) - 1
    bounds = _keys_seen(start_m + shift, last + shift, S, window, CAUSAL, WINDOW, BLOCK_N)
    for part in tl.static_range(0 if WINDOW else 1, 3):  # unrolled: one loop without a mask, others with
        for start_n in range(bounds[part], bounds[part + 1], BLOCK_N):
            k = _tile(K, k_strides, batch, head // group, start_n, S, D, BLOCK_N, part != 1)
            s = dot(q, k.T, None, PRECISION)
            if part != 1:
                keys = start_n + tl.arange(0, BLOCK_N)
                visible = _visible(rows[:, None] + shift, keys[None, :], S, window, CAUSAL, WINDOW)
                s = tl.where(visible, s, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(s, 1) * qk_scale)
            shrink = tl.exp2(maximum - new_maximum)
            p = tl.exp2(s * qk_scale - new_maximum[:, None])
            total = total * shrink + tl.sum(p, 1)
            v = _tile(V, v_strides, batch, head // group, start_n, S, D, BLOCK_N, part != 1)
            acc = dot(p.to(v.dtype), v, acc * shrink[:, None], PRECISION)
            maximum = new_maximum

    _store_tile(Y, acc / total[:, None], batch, head, start_m, T, H * D, D)
    LSE += (tl.cast(batch, tl.int64) * H + head) * T_padded
    lse = tl.where(rows < T, maximum + tl.log2(total), 0.0)
    tl.store(LSE + rows, lse, mask=rows < T_padded)
