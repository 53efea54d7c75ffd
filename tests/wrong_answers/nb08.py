"""Mistakes that a careful person could make in the exercises of notebook 08."""

import torch
import triton
import triton.language as tl


def _bytes(partial_itemsize=4, statistics=8, forward_extra=0, backward_extra=0, passes=2):
    def layernorm_bytes(N, C, P, itemsize):
        forward = 2 * N * C * itemsize + 2 * C * itemsize + statistics * N + forward_extra * C * itemsize
        backward = 3 * N * C * itemsize + 3 * C * itemsize + statistics * N
        backward += 2 * passes * P * C * (partial_itemsize or itemsize) + backward_extra * C * itemsize
        return forward, backward

    return layernorm_bytes


@triton.jit
def _layernorm_kernel(
    x, weight, bias, y, mean, rstd, eps, C: tl.constexpr, BLOCK: tl.constexpr, MISTAKE: tl.constexpr
):
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    mask = columns < C
    x_row = tl.load(x + row * C + columns, mask=mask, other=0.0).to(tl.float32)
    width = C
    if MISTAKE == "block":
        width = BLOCK
    mu = tl.sum(x_row) / width
    centered = x_row - mu
    if MISTAKE != "mask":
        centered = tl.where(mask, centered, 0.0)
    variance = tl.sum(centered * centered) / width
    if MISTAKE == "short cut":
        variance = tl.sum(x_row * x_row) / C - mu * mu
    r = tl.rsqrt(variance + eps)
    if MISTAKE == "no eps":
        r = tl.rsqrt(variance + 1e-20)
    out = (x_row - mu) * r * tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    if MISTAKE != "bias":
        out += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * C + columns, out.to(y.dtype.element_ty), mask=mask)
    tl.store(mean + row, mu)
    tl.store(rstd + row, r)


def _layernorm(mistake):
    def layernorm_forward(x, weight, bias, eps):
        N, C = x.shape
        y = torch.empty_like(x)
        mean, rstd = torch.empty(2, N, dtype=torch.float32, device=x.device)
        BLOCK = triton.next_power_of_2(C)
        _layernorm_kernel[(N,)](x, weight, bias, y, mean, rstd, eps, C, BLOCK, mistake)
        return y, (x, weight, mean, rstd)

    return layernorm_forward


def _l2norm(formula):
    def l2norm_backward(dy, saved):
        y, n = saved
        d, y, n = dy.float(), y.float(), n[:, None]
        return formula(d, y, n, (d * y).sum(-1, keepdim=True)).to(dy.dtype)

    return l2norm_backward


def _modifies_dy(dy, saved):
    y, n = saved
    dy -= y * (dy * y).sum(-1, keepdim=True)
    return dy * n[:, None]


def _neighbours(x, P):
    per = -(-len(x) // P)
    parts = [x[p * per : (p + 1) * per].float().sum(0) for p in range(P)]
    return sum(parts), torch.stack(parts)


def _column_sum(dtype=torch.float32, unmasked=False, finish=lambda partial: partial.sum(0)):
    def column_sum(x, P):
        partial = torch.full((P, x.shape[1]), float("nan") if unmasked else 0.0, device=x.device)
        for p in range(min(P, len(x))):
            partial[p] = x[p::P].to(dtype).cumsum(0)[-1]
        return finish(partial), partial

    return column_sum


WRONG_ANSWERS = {
    "08.1": [
        (_bytes(statistics=0), "mean and rstd, written once each, are missing"),
        (_bytes(statistics=4), "one of mean and rstd is missing"),
        (_bytes(backward_extra=1), "the backward does not need bias"),
        (_bytes(passes=1), "written and then read"),
        (_bytes(partial_itemsize=None), "written and then read"),
        (lambda N, C, P, itemsize: (2 * N * C * itemsize, 0), "everything but x and y"),
    ],
    "08.2": [
        (_layernorm("mask"), "counts masked places"),
        (_layernorm("block"), "mean, for rows of"),
        (_layernorm("short cut"), "Subtract the mean first"),
        (_layernorm("no eps"), "no eps"),
        (_layernorm("bias"), "y, for rows of"),
    ],
    "08.3": [
        (_l2norm(lambda d, y, n, along: n * (d - y * along / d.shape[1])), "n has no 1/C"),
        (_l2norm(lambda d, y, n, along: n * d), "only the direct path"),
        (_l2norm(lambda d, y, n, along: n * d - y * along), "in front of both terms"),
        (_l2norm(lambda d, y, n, along: n * (d + y * along)), "wrong sign"),
        (_modifies_dy, "dy was modified"),
    ],
    "08.4": [
        (_neighbours, "neighbouring rows"),
        (_column_sum(unmasked=True), "store its zeros"),
        (_column_sum(dtype=torch.bfloat16), "partial, for"),
        (_column_sum(finish=lambda partial: partial[0]), "total, for"),
        (_column_sum(finish=lambda partial: partial.sum(0).bfloat16()), "should be float32"),
    ],
}
