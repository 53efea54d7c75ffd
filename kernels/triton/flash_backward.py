"""FlashAttention-2, backward (Dao, 2023): the probabilities are computed again, a tile at a time.

With p = 2^(qk_scale q kᵀ - lse) and dp = dy vᵀ, the chain rule through the softmax gives

    dv = pᵀ dy        ds = p (dp - delta)        dq = softmax_scale ds k        dk = softmax_scale dsᵀ q

where delta, the mean of dp under p, is Σ p dp = Σ p (dy · v) = dy · y: one number a query, known before
any tile is. A sum over keys (dq) and sums over queries (dk, dv) want different loops, and a float sum that
several programs add to would depend on who comes first. So there are two kernels, each with its sums to
itself; the second pays two of its four products for that. The first also leaves delta to the second.

Where q and k had been turned by rotary positions, dq and dk are gradients of what was turned. Turned back
before they are stored, they need no pass of their own, and are rounded once instead of twice.
"""

import triton
import triton.language as tl

from kernels.triton.arithmetic import LOG2_E, dot, halves
from kernels.triton.flash_forward import ANY_NUMBER, _keys_seen, _store_tile, _tile, _visible


@triton.jit
def _store_turned_back(X, tile, COS, SIN, batch, head, row, n_rows, stride, D: tl.constexpr):
    """`_store_tile` of a tile as wide as D, its pairs of features (i, i + D/2) turned back by the angles of
    its rows, whose cosines and sines are the rows of COS and SIN, dense `(n_rows, D/2)`."""
    HALF: tl.constexpr = D // 2
    left, right = halves(tile)
    X += (tl.cast(batch, tl.int64) * n_rows + row) * stride + head * D
    rows, columns = tl.arange(0, tile.shape[0])[:, None], tl.arange(0, HALF)[None, :]
    inside = rows < n_rows - row
    angles = (row + rows) * HALF + columns
    cos = tl.load(COS + angles, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(SIN + angles, mask=inside, other=0.0).to(tl.float32)
    pointers = X + rows * stride + columns
    tl.store(pointers, (left * cos + right * sin).to(X.dtype.element_ty), mask=inside)
    tl.store(pointers + HALF, (right * cos - left * sin).to(X.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=ANY_NUMBER)
def _dq_kernel(
    DQ, dq_stride, Q, q_strides, K, k_strides, V, v_strides, SINK, sink_stride, Y, LSE, DY, dy_strides,
    DELTA, DSINK, COS, SIN,
    H, group, T, S, T_padded, window, qk_scale, softmax_scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of dq and delta: the forward's walk along the keys, with the softmax known."""
    n_blocks = tl.cdiv(T, BLOCK_M)
    program = tl.program_id(0)
    batch, head = program // n_blocks // H, program // n_blocks % H
    block = n_blocks - 1 - program % n_blocks
    start_m = block * BLOCK_M
    rows = start_m + tl.arange(0, BLOCK_M)
    shift = S - T
    q = _tile(Q, q_strides, batch, head, start_m, T, D, BLOCK_M, True)
    dy = _tile(DY, dy_strides, batch, head, start_m, T, D, BLOCK_M, True)
    y = _tile(Y, (T * H * D, H * D, D, 1), batch, head, start_m, T, D, BLOCK_M, True)

    per_row = (tl.cast(batch, tl.int64) * H + head) * T_padded + rows
    lse = tl.load(LSE + per_row, mask=rows < T, other=0.0)
    delta = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)
    tl.store(DELTA + per_row, delta, mask=rows < T)
    if SINK is not None:  # its value is zero, so dp = 0 and ds = -p delta; one sum a program, added up later
        p_sink = tl.exp2(tl.load(SINK + head * sink_stride).to(tl.float32) * LOG2_E - lse)
        dsink = -tl.sum(tl.where(rows < T, p_sink * delta, 0.0))
        tl.store(DSINK + (batch * n_blocks + block) * H + head, dsink)

    dq = tl.zeros([BLOCK_M, q.shape[1]], tl.float32)
    last = tl.minimum(start_m + BLOCK_M, T) - 1
    bounds = _keys_seen(start_m + shift, last + shift, S, window, CAUSAL, WINDOW, BLOCK_N)
    for part in tl.static_range(0 if WINDOW else 1, 3):
        for start_n in range(bounds[part], bounds[part + 1], BLOCK_N):
            k = _tile(K, k_strides, batch, head // group, start_n, S, D, BLOCK_N, part != 1)
            v = _tile(V, v_strides, batch, head // group, start_n, S, D, BLOCK_N, part != 1)
            s = dot(q, k.T, None, PRECISION)
            if part != 1:
                keys = start_n + tl.arange(0, BLOCK_N)
                visible = _visible(rows[:, None] + shift, keys[None, :], S, window, CAUSAL, WINDOW)
                s = tl.where(visible, s, float("-inf"))
            p = tl.exp2(s * qk_scale - lse[:, None])
            dp = dot(dy, v.T, None, PRECISION)
            ds = p * (dp - delta[:, None])
            dq = dot(ds.to(k.dtype), k, dq, PRECISION)
    if COS is None:
        _store_tile(DQ, dq * softmax_scale, batch, head, start_m, T, dq_stride, D)
    else:
        _store_turned_back(DQ, dq * softmax_scale, COS, SIN, batch, head, start_m, T, dq_stride, D)


@triton.jit
def _numbers(X, index, row, n_rows, T_padded, BLOCK: tl.constexpr, EDGE: tl.constexpr):
    """Numbers `row` to `row + BLOCK` of one head of lse or delta; zeros stand for those past the end."""
    if isinstance(X, tl.tensor_descriptor):
        return X.load([index, tl.cast(row, tl.int32)]).reshape(BLOCK)
    else:
        rows = row + tl.arange(0, BLOCK)
        X += tl.cast(index, tl.int64) * T_padded
        return tl.load(X + rows, mask=rows < n_rows, other=0.0) if EDGE else tl.load(X + rows)


@triton.jit
def _queries_seeing(
    first, last, T, shift, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Which queries see keys `first` to `last`: four bounds as those of `_keys_seen`, the roles exchanged."""
    b0, b1, b2, b3 = 0, 0, T // BLOCK_M * BLOCK_M, T
    if CAUSAL:
        b0 = tl.maximum(0, first - shift) // BLOCK_M * BLOCK_M
        b1 = tl.minimum(T, tl.cdiv(tl.maximum(0, last - shift), BLOCK_M) * BLOCK_M)
    if WINDOW:
        b3 = tl.maximum(b0, tl.minimum(T, last + window - shift))
        b1 = tl.minimum(b1, b3)
        b2 = tl.minimum(b2, tl.maximum(0, first + window - shift) // BLOCK_M * BLOCK_M)
    return b0, b1, tl.maximum(b1, b2), b3


@triton.jit(do_not_specialize=ANY_NUMBER)
def _dkv_kernel(
    DK, DV, dkv_stride, Q, q_strides, K, k_strides, V, v_strides, LSE, DY, dy_strides, DELTA,
    COS, SIN,
    H, group, T, S, T_padded, window, qk_scale, softmax_scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_N rows of dk and dv of one key-value head, over the queries of all heads that share it.

    Tiles are (keys, queries) here, the transpose of the other kernels', so that p and ds are first factors
    of the products that sum over queries: there the tensor cores take them straight from registers. Rows
    past the last query need no mask: q, dy, lse and delta are zero there, so p = 1 meets dy = 0, and ds = 0.
    """
    H_kv = H // group
    n_blocks = tl.cdiv(S, BLOCK_N)
    program = tl.program_id(0)
    batch, kv_head = program // n_blocks // H_kv, program // n_blocks % H_kv
    start_n = program % n_blocks * BLOCK_N  # the first keys first: most queries see them
    keys = start_n + tl.arange(0, BLOCK_N)
    shift = S - T
    k = _tile(K, k_strides, batch, kv_head, start_n, S, D, BLOCK_N, True)
    v = _tile(V, v_strides, batch, kv_head, start_n, S, D, BLOCK_N, True)

    dk = tl.zeros([BLOCK_N, k.shape[1]], tl.float32)
    dv = tl.zeros([BLOCK_N, v.shape[1]], tl.float32)
    last = tl.minimum(start_n + BLOCK_N, S) - 1
    bounds = _queries_seeing(start_n, last, T, shift, window, CAUSAL, WINDOW, BLOCK_M)
    for head in range(kv_head * group, kv_head * group + group):
        for part in tl.static_range(0 if CAUSAL else 1, 3):
            for start_m in range(bounds[part], bounds[part + 1], BLOCK_M):
                q = _tile(Q, q_strides, batch, head, start_m, T, D, BLOCK_M, part != 1)
                dy = _tile(DY, dy_strides, batch, head, start_m, T, D, BLOCK_M, part != 1)
                lse = _numbers(LSE, batch * H + head, start_m, T, T_padded, BLOCK_M, part != 1)
                delta = _numbers(DELTA, batch * H + head, start_m, T, T_padded, BLOCK_M, part != 1)
                s = dot(k, q.T, None, PRECISION)
                if part != 1:
                    queries = start_m + shift + tl.arange(0, BLOCK_M)
                    visible = _visible(queries[None, :], keys[:, None], S, window, CAUSAL, WINDOW)
                    s = tl.where(visible, s, float("-inf"))
                p = tl.exp2(s * qk_scale - lse[None, :])
                dv = dot(p.to(dy.dtype), dy, dv, PRECISION)
                dp = dot(v, dy.T, None, PRECISION)
                ds = p * (dp - delta[None, :])
                dk = dot(ds.to(q.dtype), q, dk, PRECISION)
    _store_tile(DV, dv, batch, kv_head, start_n, S, dkv_stride, D)
    if COS is None:
        _store_tile(DK, dk * softmax_scale, batch, kv_head, start_n, S, dkv_stride, D)
    else:
        _store_turned_back(DK, dk * softmax_scale, COS, SIN, batch, kv_head, start_n, S, dkv_stride, D)
