"""Mistakes that a careful person makes in notebook 07, and what the check must say to each."""

import torch

from course import device  # noqa: F401, before Triton: it decides whether kernels are interpreted

import triton  # isort: skip
import triton.language as tl  # isort: skip


@triton.jit
def _affine(x, scale, bias, y, x_row, x_column, N, WITH_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < N
    out = tl.load(scale + row) * tl.load(x + row * x_row + at * x_column, mask=inside)
    if WITH_BIAS:
        out += tl.load(bias + at, mask=inside)
    tl.store(y + row * N + at, out, mask=inside)


def _affine_with(strides, bias=True):
    def affine(x, scale, b):
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        row, column = strides(x)
        _affine[(x.shape[0],)](
            x, scale, b, y, row, column, x.shape[1], bias, triton.next_power_of_2(x.shape[1])
        )
        return y

    return affine


@triton.jit
def _logsumexp(x, out, x_row, N, OTHER: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    scores = tl.load(x + row * x_row + at, mask=at < N, other=OTHER)
    m = 0.0
    if SHIFT:
        m = tl.max(scores)
    tl.store(out + row, m + tl.log(tl.sum(tl.exp(scores - m))))


def _logsumexp_with(other, shift):
    def logsumexp(x):
        M, N = x.shape
        out = torch.empty(M, device=x.device)
        _logsumexp[(M,)](x, out, x.stride(0), N, other, shift, triton.next_power_of_2(N))
        return out

    return logsumexp


@triton.jit
def _wide(x, y, x_row, N, CORRECT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    m = -3e38
    total = 0.0
    for start in range(0, N, BLOCK):
        at = start + tl.arange(0, BLOCK)
        scores = tl.load(x + row * x_row + at, mask=at < N, other=-float("inf"))
        larger = tl.maximum(m, tl.max(scores))
        if CORRECT:
            total = total * tl.exp(m - larger)
        total += tl.sum(tl.exp(scores - larger))
        m = larger
    for start in range(0, N, BLOCK):
        at = start + tl.arange(0, BLOCK)
        scores = tl.load(x + row * x_row + at, mask=at < N, other=0.0)
        tl.store(y + row * N + at, tl.exp(scores - m) / total, mask=at < N)


def _wide_with(correct):
    def wide_softmax(x, BLOCK):
        y = torch.empty(x.shape, device=x.device)
        _wide[(x.shape[0],)](x, y, x.stride(0), x.shape[1], correct, BLOCK)
        return y

    return wide_softmax


def _one_block_only(x, BLOCK):
    y = torch.zeros(x.shape, device=x.device)
    _wide[(x.shape[0],)](x, y, x.stride(0), min(BLOCK, x.shape[1]), True, BLOCK)
    return y


def _limit(moving, computing):
    return "memory" if moving > computing else "arithmetic"


WRONG_ANSWERS = {
    "07.1": [
        (lambda n, r, b: (28 * n / b + 15 * n / r, _limit(28 / b, 15 / r)), "not the sum"),
        (lambda n, r, b: (max(16 * n / b, 15 * n / r), _limit(16 / b, 15 / r)), "What is written counts"),
        (lambda n, r, b: (max(28 * n / b, 15 * n / r), "memory"), "the limit is 'arithmetic'"),
        (lambda n, r, b: max(28 * n / b, 15 * n / r), "two things"),
    ],
    "07.2": [
        (_affine_with(lambda x: (x.shape[1], 1)), "both strides"),
        (_affine_with(lambda x: (x.stride(0), 1)), "both strides"),
        (_affine_with(lambda x: x.stride(), bias=False), "The bias is missing"),
        (lambda x, scale, bias: scale[:, None] * x + bias, "should happen in your kernel"),
    ],
    "07.3": [
        (_logsumexp_with(0.0, True), "masked elements were counted"),
        (_logsumexp_with(-float("inf"), False), "subtract the row's maximum"),
        (lambda x: torch.logsumexp(x, -1), "should happen in your kernel"),
    ],
    "07.4": [
        (_wide_with(False), "corrected when the maximum grows"),
        (_one_block_only, "the rows add up"),
        (lambda x, BLOCK: torch.softmax(x, -1), "should happen in your kernel"),
    ],
}
