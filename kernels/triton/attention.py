import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_attention

LOG2_E = math.log2(math.e)
LOWEST = tl.constexpr(-3.0e38)  # a running maximum to start from: finite, so that -inf - LOWEST is no NaN


INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _at(X, strides, batch, row, head):
    batch, row, head = tl.cast(batch, tl.int64), tl.cast(row, tl.int64), tl.cast(head, tl.int64)
    return X + batch * strides[0] + row * strides[1] + head * strides[2]


@triton.jit
def _offsets(strides, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    return tl.arange(0, BLOCK)[:, None] * strides[1] + tl.arange(0, BLOCK_D)[None, :] * strides[3]


@triton.jit
def _load(X, offsets, rows_left, D: tl.constexpr, EDGE: tl.constexpr):
    BLOCK_D: tl.constexpr = offsets.shape[1]
    columns = tl.arange(0, BLOCK_D)[None, :]
    if EDGE:
        rows = tl.arange(0, offsets.shape[0])[:, None]
        return tl.load(X + offsets, mask=(rows < rows_left) & (columns < D), other=0.0)
    elif D < BLOCK_D:
        return tl.load(X + offsets, mask=columns < D, other=0.0)
    else:
        return tl.load(X + offsets)


@triton.jit
def _store(X, tile, batch, start, n_rows, head, H, D: tl.constexpr):
    rows = start + tl.arange(0, tile.shape[0])[:, None]
    columns = tl.arange(0, tile.shape[1])[None, :]
    X += ((batch.to(tl.int64) * n_rows + start) * H + head) * D
    offsets = (rows - start) * (H * D) + columns
    tl.store(X + offsets, tile.to(X.dtype.element_ty), mask=(rows < n_rows) & (columns < D))


@triton.jit
def _visible(queries, keys, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    visible = keys < S
    if CAUSAL:
        visible = visible & (keys <= queries)
    if WINDOW:
        visible = visible & (keys > queries - window)
    return visible


@triton.jit
def _keys_seen(first, last, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    start, inner, edge, stop = 0, 0, S // BLOCK_N * BLOCK_N, S
    if CAUSAL:
        stop = tl.minimum(S, last + 1)
        edge = tl.minimum(S, first + 1) // BLOCK_N * BLOCK_N
    if WINDOW:
        start = tl.maximum(0, first - window + 1) // BLOCK_N * BLOCK_N
        inner = tl.minimum(stop, tl.cdiv(tl.maximum(0, last - window + 1), BLOCK_N) * BLOCK_N)
        edge = tl.maximum(inner, edge)
    return start, inner, edge, stop


@triton.jit
def _queries_seeing(first, last, T, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr):
    start, inner, edge, stop = 0, 0, T // BLOCK_M * BLOCK_M, T
    if CAUSAL:
        start = tl.maximum(0, first - (S - T)) // BLOCK_M * BLOCK_M
        inner = tl.minimum(T, tl.cdiv(tl.maximum(0, last - (S - T)), BLOCK_M) * BLOCK_M)
        edge = tl.maximum(inner, edge)
    if WINDOW:
        stop = tl.maximum(start, tl.minimum(T, last + window - (S - T)))
        inner = tl.minimum(inner, stop)
        edge = tl.minimum(edge, tl.maximum(0, first + window - (S - T)) // BLOCK_M * BLOCK_M)
        edge = tl.maximum(inner, edge)
    return start, inner, edge, stop


@triton.jit
def _forward_kernel(
    Q, q_strides, K, k_strides, V, v_strides, SINK, Y, LSE,
    H, group, T, S, window, qk_scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    batch, head = pid // n_blocks // H, pid // n_blocks % H
    block = n_blocks - 1 - pid % n_blocks
    start_m = block * BLOCK_M
    queries = S - T + start_m + tl.arange(0, BLOCK_M)

    Q = _at(Q, q_strides, batch, start_m, head)
    k_offsets, v_offsets = _offsets(k_strides, BLOCK_N, BLOCK_D), _offsets(v_strides, BLOCK_N, BLOCK_D)
    q = _load(Q, _offsets(q_strides, BLOCK_M, BLOCK_D), T - start_m, D, True)

    m = tl.full([BLOCK_M], LOWEST, tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    if SINK is not None:
        m = tl.maximum(m, tl.load(SINK + head).to(tl.float32) * 1.4426950408889634)
        l += 1.0
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first = S - T + start_m
    bounds = _keys_seen(first, tl.minimum(first + BLOCK_M, S) - 1, S, window, CAUSAL, WINDOW, BLOCK_N)
    for part in tl.static_range(0 if WINDOW else 1, 3):
        for n in tl.range(bounds[part], bounds[part + 1], BLOCK_N):
            k = _load(_at(K, k_strides, batch, n, head // group), k_offsets, S - n, D, part != 1)
            s = _dot(q, k.T, None, PRECISION)
            if part != 1:
                keys = n + tl.arange(0, BLOCK_N)
                visible = _visible(queries[:, None], keys[None, :], S, window, CAUSAL, WINDOW)
                s = tl.where(visible, s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1) * qk_scale)
            alpha = tl.exp2(m - m_new)
            p = tl.exp2(s * qk_scale - m_new[:, None])
            l = l * alpha + tl.sum(p, 1)
            acc = acc * alpha[:, None]
            v = _load(_at(V, v_strides, batch, n, head // group), v_offsets, S - n, D, part != 1)
            acc = _dot(p.to(v.dtype), v, acc, PRECISION)
            m = m_new
    _store(Y, acc / l[:, None], batch, start_m, T, head, H, D)
    rows = start_m + tl.arange(0, BLOCK_M)
    tl.store(LSE + (batch.to(tl.int64) * H + head) * T + rows, m + tl.log2(l), mask=rows < T)


@triton.jit
def _dq_kernel(
    Q, q_strides, K, k_strides, V, v_strides, SINK, Y, LSE, DY, dy_strides, DQ, DELTA, DSINK,
    H, group, T, S, window, qk_scale, softmax_scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    batch, head = pid // n_blocks // H, pid // n_blocks % H
    block = n_blocks - 1 - pid % n_blocks
    start_m = block * BLOCK_M
    queries = S - T + start_m + tl.arange(0, BLOCK_M)
    rows = start_m + tl.arange(0, BLOCK_M)

    Q = _at(Q, q_strides, batch, start_m, head)
    DY = _at(DY, dy_strides, batch, start_m, head)
    k_offsets, v_offsets = _offsets(k_strides, BLOCK_N, BLOCK_D), _offsets(v_strides, BLOCK_N, BLOCK_D)
    q = _load(Q, _offsets(q_strides, BLOCK_M, BLOCK_D), T - start_m, D, True)
    dy = _load(DY, _offsets(dy_strides, BLOCK_M, BLOCK_D), T - start_m, D, True)
    Y += ((batch.to(tl.int64) * T + start_m) * H + head) * D
    y = _load(Y, _offsets((0, H * D, 0, 1), BLOCK_M, BLOCK_D), T - start_m, D, True)

    statistics = (batch.to(tl.int64) * H + head) * T + rows
    lse = tl.load(LSE + statistics, mask=rows < T, other=float("inf"))
    delta = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)
    tl.store(DELTA + statistics, delta, mask=rows < T)
    if SINK is not None:
        p_sink = tl.exp2(tl.load(SINK + head).to(tl.float32) * 1.4426950408889634 - lse)
        tl.store(DSINK + (batch * n_blocks + block) * H + head, -tl.sum(p_sink * delta))

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first = S - T + start_m
    bounds = _keys_seen(first, tl.minimum(first + BLOCK_M, S) - 1, S, window, CAUSAL, WINDOW, BLOCK_N)
    for part in tl.static_range(0 if WINDOW else 1, 3):
        for n in tl.range(bounds[part], bounds[part + 1], BLOCK_N):
            k = _load(_at(K, k_strides, batch, n, head // group), k_offsets, S - n, D, part != 1)
            v = _load(_at(V, v_strides, batch, n, head // group), v_offsets, S - n, D, part != 1)
            s = _dot(q, k.T, None, PRECISION)
            dp = _dot(dy, v.T, None, PRECISION)
            p = tl.exp2(s * qk_scale - lse[:, None])
            if part != 1:
                keys = n + tl.arange(0, BLOCK_N)
                visible = _visible(queries[:, None], keys[None, :], S, window, CAUSAL, WINDOW)
                p = tl.where(visible, p, 0.0)
            ds = p * (dp - delta[:, None])
            dq = _dot(ds.to(k.dtype), k, dq, PRECISION)
    _store(DQ, dq * softmax_scale, batch, start_m, T, head, H, D)


@triton.jit
def _dkv_kernel(
    Q, q_strides, K, k_strides, V, v_strides, LSE, DY, dy_strides, DELTA, DK, DV,
    H, group, T, S, window, qk_scale, softmax_scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(S, BLOCK_N)
    pid = tl.program_id(0)
    H_kv = H // group
    batch, kv_head = pid // n_blocks // H_kv, pid // n_blocks % H_kv
    start_n = pid % n_blocks * BLOCK_N
    keys = start_n + tl.arange(0, BLOCK_N)

    K = _at(K, k_strides, batch, start_n, kv_head)
    V = _at(V, v_strides, batch, start_n, kv_head)
    k = _load(K, _offsets(k_strides, BLOCK_N, BLOCK_D), S - start_n, D, True)
    v = _load(V, _offsets(v_strides, BLOCK_N, BLOCK_D), S - start_n, D, True)
    q_offsets, dy_offsets = _offsets(q_strides, BLOCK_M, BLOCK_D), _offsets(dy_strides, BLOCK_M, BLOCK_D)

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    last = tl.minimum(start_n + BLOCK_N, S) - 1
    bounds = _queries_seeing(start_n, last, T, S, window, CAUSAL, WINDOW, BLOCK_M)
    for head in tl.range(kv_head * group, kv_head * group + group):
        statistics = (batch.to(tl.int64) * H + head) * T
        for part in tl.static_range(0 if CAUSAL else 1, 3):
            for m in tl.range(bounds[part], bounds[part + 1], BLOCK_M):
                rows = m + tl.arange(0, BLOCK_M)
                q = _load(_at(Q, q_strides, batch, m, head), q_offsets, T - m, D, part != 1)
                dy = _load(_at(DY, dy_strides, batch, m, head), dy_offsets, T - m, D, part != 1)
                if part != 1:
                    lse = tl.load(LSE + statistics + rows, mask=rows < T, other=float("inf"))
                    delta = tl.load(DELTA + statistics + rows, mask=rows < T, other=0.0)
                else:
                    lse = tl.load(LSE + statistics + rows)
                    delta = tl.load(DELTA + statistics + rows)
                s = _dot(k, q.T, None, PRECISION)
                p = tl.exp2(s * qk_scale - lse[None, :])
                if part != 1:
                    queries = S - T + rows
                    visible = _visible(queries[None, :], keys[:, None], S, window, CAUSAL, WINDOW)
                    p = tl.where(visible, p, 0.0)
                dv = _dot(p.to(dy.dtype), dy, dv, PRECISION)
                dp = _dot(v, dy.T, None, PRECISION)
                ds = p * (dp - delta[None, :])
                dk = _dot(ds.to(q.dtype), q, dk, PRECISION)
    _store(DK, dk * softmax_scale, batch, start_n, S, kv_head, H_kv, D)
    _store(DV, dv, batch, start_n, S, kv_head, H_kv, D)


CONFIG = {"forward": (16, 16, 4, 2), "dq": (16, 16, 4, 2), "dkv": (16, 16, 4, 2)}


def attention_forward(q, k, v, sink=None, causal=True, window=None, softmax_scale=None, config=None):
    check_attention(q, k, v, sink, causal, window)
    B, T, H, D = q.shape
    S, H_kv = k.shape[1], k.shape[2]
    softmax_scale = D**-0.5 if softmax_scale is None else softmax_scale
    sink = None if sink is None else sink.contiguous()
    y = q.new_empty(q.shape)
    lse = q.new_empty((B, H, T), dtype=torch.float32)
    BLOCK_M, BLOCK_N, warps, stages = config or CONFIG["forward"]
    _forward_kernel[(triton.cdiv(T, BLOCK_M) * B * H,)](
        q, q.stride(), k, k.stride(), v, v.stride(), sink, y, lse,
        H, H // H_kv, T, S, window or 0, softmax_scale * LOG2_E,
        D, causal, window is not None, "ieee",
        BLOCK_M, BLOCK_N, max(16, triton.next_power_of_2(D)), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y, (q, k, v, sink, y, lse, causal, window, softmax_scale)


def attention_backward(dy, saved, dq_config=None, dkv_config=None, which="both"):
    q, k, v, sink, y, lse, causal, window, softmax_scale = saved
    B, T, H, D = q.shape
    S, H_kv = k.shape[1], k.shape[2]
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    delta = torch.empty_like(lse)
    BLOCK_M, BLOCK_N, warps, stages = dq_config or CONFIG["dq"]
    dsink = None if sink is None else lse.new_empty((B * triton.cdiv(T, BLOCK_M), H))
    common = (H, H // H_kv, T, S, window or 0, softmax_scale * LOG2_E, softmax_scale,
        D, causal, window is not None, "ieee")
    BLOCK_D = max(16, triton.next_power_of_2(D))
    if which != "dkv":
        _dq_kernel[(triton.cdiv(T, BLOCK_M) * B * H,)](
            q, q.stride(), k, k.stride(), v, v.stride(), sink, y, lse, dy, dy.stride(), dq, delta, dsink,
            *common,
            BLOCK_M, BLOCK_N, BLOCK_D, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    BLOCK_M, BLOCK_N, warps, stages = dkv_config or CONFIG["dkv"]
    if which != "dq":
        _dkv_kernel[(triton.cdiv(S, BLOCK_N) * B * H_kv,)](
            q, q.stride(), k, k.stride(), v, v.stride(), lse, dy, dy.stride(), delta, dk, dv,
            *common,
            BLOCK_M, BLOCK_N, BLOCK_D, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    if sink is not None:
        dsink = dsink.sum(0).to(sink.dtype)
    return dq, dk, dv, dsink
