import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton.tools.tensor_descriptor import TensorDescriptor

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
def _tile(
    X, batch, head, row, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, EDGE: tl.constexpr
):
    if isinstance(X, tl.tensor_descriptor):
        return X.load([batch, head, tl.cast(row, tl.int32), 0]).reshape(BLOCK, BLOCK_D)
    else:
        base, n_rows, stride_b, stride_t, stride_h, stride_d = X
        base += tl.cast(batch, tl.int64) * stride_b + tl.cast(row, tl.int64) * stride_t
        base += tl.cast(head, tl.int64) * stride_h
        rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
        pointers = base + (rows * stride_t + columns * stride_d)
        if EDGE:
            return tl.load(pointers, mask=(rows < n_rows - row) & (columns < D), other=0.0)
        elif D < BLOCK_D:
            return tl.load(pointers, mask=columns < D, other=0.0)
        else:
            return tl.load(pointers)


@triton.jit
def _numbers(X, batch, head, row, BLOCK: tl.constexpr, EDGE: tl.constexpr):
    if isinstance(X, tl.tensor_descriptor):
        return X.load([batch, head, tl.cast(row, tl.int32)]).reshape(BLOCK)
    else:
        base, n_rows, stride_b, stride_h, _ = X
        base += tl.cast(batch, tl.int64) * stride_b + tl.cast(head, tl.int64) * stride_h + row
        rows = tl.arange(0, BLOCK)
        if EDGE:
            return tl.load(base + rows, mask=rows < n_rows - row, other=0.0)
        else:
            return tl.load(base + rows)


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
def _queries_seeing(
    first, last, T, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr
):
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
    Q, K, V, SINK, Y, LSE,
    H, group, T, S, T_pad, window, qk_scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    batch, head = pid // n_blocks // H, pid // n_blocks % H
    kv_head = head // group
    block = n_blocks - 1 - pid % n_blocks
    start_m = block * BLOCK_M
    queries = S - T + start_m + tl.arange(0, BLOCK_M)

    q = _tile(Q, batch, head, start_m, D, BLOCK_M, BLOCK_D, True)

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
            k = _tile(K, batch, kv_head, n, D, BLOCK_N, BLOCK_D, part != 1)
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
            v = _tile(V, batch, kv_head, n, D, BLOCK_N, BLOCK_D, part != 1)
            acc = _dot(p.to(v.dtype), v, acc, PRECISION)
            m = m_new
    _store(Y, acc / l[:, None], batch, start_m, T, head, H, D)
    rows = start_m + tl.arange(0, BLOCK_M)
    tl.store(LSE + (batch.to(tl.int64) * H + head) * T_pad + rows, m + tl.log2(l), mask=rows < T)


@triton.jit
def _dq_kernel(
    Q, K, V, SINK, Y, LSE, DY, DQ, DELTA, DSINK,
    H, group, T, S, T_pad, window, qk_scale, softmax_scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    batch, head = pid // n_blocks // H, pid // n_blocks % H
    kv_head = head // group
    block = n_blocks - 1 - pid % n_blocks
    start_m = block * BLOCK_M
    queries = S - T + start_m + tl.arange(0, BLOCK_M)
    rows = start_m + tl.arange(0, BLOCK_M)

    q = _tile(Q, batch, head, start_m, D, BLOCK_M, BLOCK_D, True)
    dy = _tile(DY, batch, head, start_m, D, BLOCK_M, BLOCK_D, True)
    y = _tile(Y, batch, head, start_m, D, BLOCK_M, BLOCK_D, True)

    lse = _numbers(LSE, batch, head, start_m, BLOCK_M, True)
    delta = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)
    tl.store(DELTA + (batch.to(tl.int64) * H + head) * T_pad + rows, delta, mask=rows < T)
    if SINK is not None:
        p_sink = tl.exp2(tl.load(SINK + head).to(tl.float32) * 1.4426950408889634 - lse)
        tl.store(DSINK + (batch * n_blocks + block) * H + head, -tl.sum(p_sink * delta))

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first = S - T + start_m
    bounds = _keys_seen(first, tl.minimum(first + BLOCK_M, S) - 1, S, window, CAUSAL, WINDOW, BLOCK_N)
    for part in tl.static_range(0 if WINDOW else 1, 3):
        for n in tl.range(bounds[part], bounds[part + 1], BLOCK_N):
            k = _tile(K, batch, kv_head, n, D, BLOCK_N, BLOCK_D, part != 1)
            v = _tile(V, batch, kv_head, n, D, BLOCK_N, BLOCK_D, part != 1)
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
    Q, K, V, LSE, DY, DELTA, DK, DV,
    H, group, T, S, T_pad, window, qk_scale, softmax_scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(S, BLOCK_N)
    pid = tl.program_id(0)
    H_kv = H // group
    batch, kv_head = pid // n_blocks // H_kv, pid // n_blocks % H_kv
    start_n = pid % n_blocks * BLOCK_N
    keys = start_n + tl.arange(0, BLOCK_N)

    k = _tile(K, batch, kv_head, start_n, D, BLOCK_N, BLOCK_D, True)
    v = _tile(V, batch, kv_head, start_n, D, BLOCK_N, BLOCK_D, True)

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    last = tl.minimum(start_n + BLOCK_N, S) - 1
    bounds = _queries_seeing(start_n, last, T, S, window, CAUSAL, WINDOW, BLOCK_M)
    for head in tl.range(kv_head * group, kv_head * group + group):
        for part in tl.static_range(0 if CAUSAL else 1, 3):
            for m in tl.range(bounds[part], bounds[part + 1], BLOCK_M):
                rows = m + tl.arange(0, BLOCK_M)
                q = _tile(Q, batch, head, m, D, BLOCK_M, BLOCK_D, part != 1)
                dy = _tile(DY, batch, head, m, D, BLOCK_M, BLOCK_D, part != 1)
                lse = _numbers(LSE, batch, head, m, BLOCK_M, part != 1)
                delta = _numbers(DELTA, batch, head, m, BLOCK_M, part != 1)
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


def _rows(x, BLOCK, tma):
    if tma:
        x = x.transpose(1, 2)
        return TensorDescriptor(
            x, x.shape, x.stride(), [1, 1, BLOCK, max(16, triton.next_power_of_2(x.shape[3]))]
        )
    return x, x.shape[1], *x.stride()


def _per_row(x, T, BLOCK, tma):
    if tma:
        return TensorDescriptor(x, [*x.shape[:2], T], x.stride(), [1, 1, BLOCK])
    return x, T, *x.stride()


CONFIG = {"forward": (16, 16, 4, 2), "dq": (16, 16, 4, 2), "dkv": (16, 16, 4, 2)}


def attention_forward(
    q, k, v, sink=None, causal=True, window=None, softmax_scale=None, config=None, tma=False
):
    check_attention(q, k, v, sink, causal, window)
    B, T, H, D = q.shape
    S, H_kv = k.shape[1], k.shape[2]
    softmax_scale = D**-0.5 if softmax_scale is None else softmax_scale
    sink = None if sink is None else sink.contiguous()
    y = q.new_empty(q.shape)
    lse = q.new_empty((B, H, triton.cdiv(T, 4) * 4), dtype=torch.float32)
    BLOCK_M, BLOCK_N, warps, stages, *maxnreg = config or CONFIG["forward"]
    _forward_kernel[(triton.cdiv(T, BLOCK_M) * B * H,)](
        _rows(q, BLOCK_M, tma), _rows(k, BLOCK_N, tma), _rows(v, BLOCK_N, tma), sink, y, lse,
        H, H // H_kv, T, S, lse.shape[2], window or 0, softmax_scale * LOG2_E,
        D, causal, window is not None, "ieee",
        BLOCK_M, BLOCK_N, max(16, triton.next_power_of_2(D)), num_warps=warps, num_stages=stages, **({'maxnreg': maxnreg[0]} if maxnreg else {}),
    )  # fmt: skip
    return y, (q, k, v, sink, y, lse, causal, window, softmax_scale)


def attention_backward(dy, saved, dq_config=None, dkv_config=None, which="both", tma=False):
    q, k, v, sink, y, lse, causal, window, softmax_scale = saved
    B, T, H, D = q.shape
    S, H_kv = k.shape[1], k.shape[2]
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    delta = torch.empty_like(lse)
    BLOCK_M, BLOCK_N, warps, stages, *maxnreg = dq_config or CONFIG["dq"]
    dsink = None if sink is None else lse.new_empty((B * triton.cdiv(T, BLOCK_M), H))
    common = (
        H,
        H // H_kv,
        T,
        S,
        lse.shape[2],
        window or 0,
        softmax_scale * LOG2_E,
        softmax_scale,
        D,
        causal,
        window is not None,
        "ieee",
    )
    BLOCK_D = max(16, triton.next_power_of_2(D))
    if which != "dkv":
        _dq_kernel[(triton.cdiv(T, BLOCK_M) * B * H,)](
            _rows(q, BLOCK_M, tma), _rows(k, BLOCK_N, tma), _rows(v, BLOCK_N, tma), sink, _rows(y, BLOCK_M, tma), _per_row(lse, T, BLOCK_M, tma), _rows(dy, BLOCK_M, tma), dq, delta, dsink,
            *common,
            BLOCK_M, BLOCK_N, BLOCK_D, num_warps=warps, num_stages=stages, **({'maxnreg': maxnreg[0]} if maxnreg else {}),
        )  # fmt: skip
    BLOCK_M, BLOCK_N, warps, stages, *maxnreg = dkv_config or CONFIG["dkv"]
    if which != "dq":
        _dkv_kernel[(triton.cdiv(S, BLOCK_N) * B * H_kv,)](
            _rows(q, BLOCK_M, tma), _rows(k, BLOCK_N, tma), _rows(v, BLOCK_N, tma), _per_row(lse, T, BLOCK_M, tma), _rows(dy, BLOCK_M, tma), _per_row(delta, T, BLOCK_M, tma), dk, dv,
            *common,
            BLOCK_M, BLOCK_N, BLOCK_D, num_warps=warps, num_stages=stages, **({'maxnreg': maxnreg[0]} if maxnreg else {}),
        )  # fmt: skip
    if sink is not None:
        dsink = dsink.sum(0).to(sink.dtype)
    return dq, dk, dv, dsink
