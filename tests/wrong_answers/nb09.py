"""Mistakes that a careful person makes in notebook 09, and what the check must say to each."""

import math

import torch

from course import device  # noqa: F401, before Triton: it decides whether kernels are interpreted

import triton  # isort: skip
import triton.language as tl  # isort: skip

LOG2_E = math.log2(math.e)


def _merge(correct=True, guarded=True, divide=False):
    def merge(a, b):
        (m_a, l_a, acc_a), (m_b, l_b, acc_b) = a, b
        m = torch.maximum(m_a, m_b)
        base = torch.where(m == -math.inf, 0.0, m) if guarded else m
        alpha, beta = (torch.exp(x - base) if correct else torch.ones_like(x) for x in (m_a, m_b))
        l = alpha * l_a + beta * l_b
        acc = alpha[:, None] * acc_a + beta[:, None] * acc_b
        return m, l, acc / l[:, None] if divide else acc

    return merge


def _count(near, far, need_far=True):
    """Tiles by the distances of their corners; near and far say when one is visited."""

    def count_tiles(T, M, N, window=None):
        window, visited, masked = window or T, 0, 0
        for t in range(0, T, M):
            for j in range(0, T, N):
                nearest, farthest = t - (j + N - 1), t + M - 1 - j
                if near(nearest, farthest) and far(nearest, farthest, window):
                    visited += 1
                    masked += nearest < 0 or (need_far and farthest >= window)
        return visited, masked

    return count_tiles


def _touches(nearest, farthest):
    return farthest >= 0


def _in_window(nearest, farthest, window):
    return nearest < window


@triton.jit
def _alibi(q, k, v, o, T, slope, scale, MASK: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    queries = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, D)[None, :]
    q_tile = tl.load(q + queries[:, None] * D + columns, mask=queries[:, None] < T, other=0.0)
    m, l = tl.full([BLOCK], -3e38, tl.float32), tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, D], tl.float32)
    for start in range(0, T, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        at, inside = keys[:, None] * D + columns, keys[:, None] < T
        distance = queries[:, None] - keys[None, :]
        k_tile = tl.load(k + at, mask=inside, other=0.0)
        s = tl.dot(q_tile, k_tile.T, input_precision="ieee") * scale - slope * distance
        hidden = keys[None, :] >= T
        if MASK:
            hidden = hidden | (distance < 0)
        s = tl.where(hidden, -float("inf"), s)
        m_new = tl.maximum(m, tl.max(s, 1))
        alpha, p = tl.exp2(m - m_new), tl.exp2(s - m_new[:, None])
        l = l * alpha + tl.sum(p, 1)
        v_tile = tl.load(v + at, mask=inside, other=0.0)
        acc = tl.dot(p, v_tile, acc * alpha[:, None], input_precision="ieee")
        m = m_new
    tl.store(o + queries[:, None] * D + columns, acc / l[:, None], mask=queries[:, None] < T)


def _alibi_with(factor, mask=True):
    """factor(D) times the slope; the right one is log2(e)."""

    def alibi(q, k, v, slope):
        (T, D), o = q.shape, torch.empty_like(q)
        _alibi[(triton.cdiv(T, 16),)](q, k, v, o, T, factor(D) * slope, D**-0.5 * LOG2_E, mask, D, 16)
        return o

    return alibi


def _alibi_in_torch(q, k, v, slope):
    distance = torch.arange(len(q), device=q.device)[:, None] - torch.arange(len(q), device=q.device)
    scores = q @ k.T / math.sqrt(q.shape[1]) - slope * distance
    return torch.softmax(scores.masked_fill(distance < 0, -math.inf), -1) @ v


def _sink(sign=-1.0, exp=torch.exp, over=(0, 2), transposed=True):
    def sink_gradient(o, do, lse, sink):
        delta = (o * do).sum(-1).transpose(1, 2)
        dsink = sign * (exp(sink[:, None] - lse) * delta).sum(over)
        return delta if transposed else delta.transpose(1, 2), dsink

    return sink_gradient


WRONG_ANSWERS = {
    "09.1": [
        (_merge(correct=False), "relative to two different maxima"),
        (_merge(guarded=False), "not a number"),
        (_merge(divide=True), "already divided by l"),
        (lambda a, b: _merge()(a, b)[1:], "three tensors"),
    ],
    "09.2": [
        (_count(lambda nearest, _: nearest >= 0, _in_window), "only a corner"),
        (_count(_touches, lambda *_: True), "Some are all hidden"),
        (_count(_touches, _in_window, need_far=False), "the window's far edge"),
        (lambda *arguments: _count(_touches, _in_window)(*arguments)[0], "two numbers"),
    ],
    "09.3": [
        (_alibi_with(lambda D: -LOG2_E), "farther keys should count less"),
        (_alibi_with(lambda D: 1.0), "in its own unit"),
        (_alibi_with(lambda D: 0.0), "make no difference"),
        (_alibi_with(lambda D: LOG2_E / math.sqrt(D)), "belongs to the product alone"),
        (_alibi_with(lambda D: LOG2_E, mask=False), "Later keys are not masked"),
        (_alibi_in_torch, "should happen in your kernel"),
    ],
    "09.4": [
        (_sink(sign=1.0), "dsink has the wrong sign"),
        (_sink(exp=torch.exp2), "natural logarithm"),
        (_sink(over=2), "sum over B too"),
        (_sink(transposed=False), "delta has shape"),
    ],
}
