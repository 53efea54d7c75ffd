"""Mistakes that a careful person makes in notebook 10, and what the check must say to each."""

import torch

from course import device  # noqa: F401, before Triton: it decides whether kernels are interpreted

import triton  # isort: skip
import triton.language as tl  # isort: skip


@triton.jit
def _geglu(dy, gate, up, dgate, dup, n, BLOCK: tl.constexpr, MISTAKE: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.load(dy + i, mask=i < n, other=0.0).to(tl.float32)
    g = tl.load(gate + i, mask=i < n, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=i < n, other=0.0).to(tl.float32)
    a = 1.702
    if MISTAKE == "swiglu":
        a = 1.0
    sigma = tl.sigmoid(a * g)
    slope = a * sigma * (1 - sigma)
    if MISTAKE == "no factor":
        slope = sigma * (1 - sigma)
    dg = d * u * (sigma + g * slope)
    if MISTAKE == "no g":
        dg = d * u * (sigma + slope)
    if MISTAKE == "one term":
        dg = d * u * sigma
    if MISTAKE == "no up":
        dg = d * (sigma + g * slope)
    du = d * g * sigma
    if MISTAKE == "dup":
        du = d * sigma
    tl.store(dgate + i, dg.to(dgate.dtype.element_ty), mask=i < n)
    tl.store(dup + i, du.to(dup.dtype.element_ty), mask=i < n)


def _geglu_backward(mistake):
    def geglu_backward(dy, saved):
        gate, up = saved
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        if mistake == "in place":
            dgate = gate
        n = gate.numel()
        _geglu[(triton.cdiv(n, 1024),)](dy, gate, up, dgate, dup, n, 1024, mistake)
        return (dup, dgate) if mistake == "exchanged" else (dgate, dup)

    return geglu_backward


def _geglu_in_pytorch(dy, saved):
    gate, up = saved
    return dy * up, dy * gate


@triton.jit
def _rotate(x, cos, sin, n, T, H, D, apart, SIGN: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, d = pair // HALF, pair % HALF
    inside = pair < n
    angle = head // H % T * HALF + d
    c = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    s = SIGN * tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    first = x + head * D + d
    x1 = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(first + apart, mask=inside, other=0.0).to(tl.float32)
    tl.store(first, (x1 * c - x2 * s).to(x.dtype.element_ty), mask=inside)
    tl.store(first + apart, (x2 * c + x1 * s).to(x.dtype.element_ty), mask=inside)


def _rotate_part(mistake):
    def rotate_part_(x, cos, sin, inverse):
        B, T, H, D = x.shape
        half, y = cos.shape[1], x.clone() if mistake == "copy" else x
        sign = -1 if inverse and mistake != "forward" else 1
        sign = -sign if mistake == "sign" else sign
        apart = D // 2 if mistake == "half of D" else half
        n = B * T * H * half
        _rotate[(triton.cdiv(n, 256),)](y, cos, sin, n, T, H, D, apart, sign, half, 256)
        return y

    return rotate_part_


@triton.jit
def _z_loss(logits, targets, losses, c, scale, V, BLOCK: tl.constexpr, MISTAKE: tl.constexpr):
    row, columns = tl.program_id(0), tl.arange(0, BLOCK)
    place = logits + row * V + columns
    l = tl.load(place, mask=columns < V, other=float("-inf")).to(tl.float32)
    hit = columns == tl.load(targets + row)
    picked = tl.sum(tl.where(hit, l, 0.0))
    m = tl.max(l)
    z = m + tl.log(tl.sum(tl.exp(l - m)))
    term = c * z * z
    if MISTAKE == "of the loss":
        term = c * (z - picked) * (z - picked)
    if MISTAKE == "no square":
        term = c * z
    if MISTAKE == "no term":
        term = 0.0
    tl.store(losses + row, z - picked + term)
    p, one_hot = tl.exp(l - z), tl.where(hit, 1.0, 0.0)
    dl = (1 + 2 * c * z) * p - one_hot
    if MISTAKE == "no two":
        dl = (1 + c * z) * p - one_hot
    if MISTAKE == "forgotten":
        dl = p - one_hot
    if MISTAKE == "all":
        dl = (1 + 2 * c * z) * (p - one_hot)
    if MISTAKE == "added":
        dl = p - one_hot + 2 * c * z
    if MISTAKE != "untouched":
        tl.store(place, (dl * scale).to(logits.dtype.element_ty), mask=columns < V)


def _z_loss_rows(mistake):
    def z_loss_rows(logits, targets, c):
        R, V = logits.shape
        dtype = logits.dtype if mistake == "dtype" else torch.float32
        losses = torch.empty(R, dtype=dtype, device=logits.device)
        scale = 1 / R if mistake == "mean" else 1.0
        _z_loss[(R,)](logits, targets, losses, c, scale, V, triton.next_power_of_2(V), mistake)
        return losses

    return z_loss_rows


@triton.jit
def _adamw(
    w, g, m, v, norm, max_norm, n, lr, beta1, beta2, eps, decay, correction1, correction2,
    BLOCK: tl.constexpr, MISTAKE: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    factor = max_norm / tl.load(norm)
    if MISTAKE != "larger":
        factor = tl.minimum(factor, 1.0)
    if MISTAKE == "plain":
        factor = 1.0
    g_i = factor * tl.load(g + i, mask=inside, other=0.0).to(tl.float32)
    g_2 = g_i * g_i
    if MISTAKE == "root":
        g_2 = g_2 / factor
    m_i = beta1 * tl.load(m + i, mask=inside, other=0.0) + (1 - beta1) * g_i
    v_i = beta2 * tl.load(v + i, mask=inside, other=0.0) + (1 - beta2) * g_2
    rate = lr * decay
    if MISTAKE == "decay":
        rate = lr * decay * factor
    w_i = (1 - rate) * tl.load(w + i, mask=inside, other=0.0)
    w_i -= lr * (m_i / correction1) / (tl.sqrt(v_i / correction2) + eps)
    tl.store(m + i, m_i, mask=inside)
    tl.store(v + i, v_i, mask=inside)
    tl.store(w + i, w_i, mask=inside)
    if MISTAKE == "modified":
        tl.store(g + i, g_i.to(g.dtype.element_ty), mask=inside)


def _clipped(mistake):
    def clipped_adamw_(w, g, m, v, norm, max_norm, step, lr, betas, eps, decay):
        n, corrections = w.numel(), [1 - beta**step for beta in betas]
        if mistake == "fetched" and norm.item() < max_norm:
            max_norm = 1e30
        out = w.clone() if mistake == "copy" else w
        decay = 0.0 if mistake == "no decay" else decay
        corrections = [1.0, 1.0] if mistake == "no correction" else corrections
        _adamw[(triton.cdiv(n, 1024),)](
            out, g, m, v, norm, max_norm, n, lr, *betas, eps, decay, *corrections, 1024, mistake
        )
        return out

    return clipped_adamw_


WRONG_ANSWERS = {
    "10.1": [
        (_geglu_backward("no factor"), "a factor 1.702 of its own"),
        (_geglu_backward("no g"), "the factor g is missing in the second term"),
        (_geglu_backward("one term"), "there are two terms"),
        (_geglu_backward("swiglu"), "this is SwiGLU's"),
        (_geglu_backward("no up"), "the factor up is missing"),
        (_geglu_backward("exchanged"), "the two are exchanged"),
        (_geglu_backward("dup"), "the factor g is missing: y ="),
        (_geglu_backward("in place"), "gate was modified"),
        (_geglu_in_pytorch, "PyTorch computed `mul`"),
    ],
    "10.2": [
        (_rotate_part("half of D"), "It is i + D_r/2 here"),
        (_rotate_part("sign"), "the other direction's"),
        (_rotate_part("forward"), "still turns forward"),
        (_rotate_part("copy"), "return x itself"),
        (lambda x, cos, sin, inverse: x, "nothing was rotated"),
    ],
    "10.3": [
        (_z_loss_rows("no term"), "the term c z² is missing"),
        (_z_loss_rows("no square"), "without the square"),
        (_z_loss_rows("of the loss"), "should be of z = lse"),
        (_z_loss_rows("no two"), "the 2 is missing"),
        (_z_loss_rows("forgotten"), "left no trace"),
        (_z_loss_rows("all"), "belongs to that alone"),
        (_z_loss_rows("added"), "added to every logit"),
        (_z_loss_rows("mean"), "not their mean"),
        (_z_loss_rows("untouched"), "left as they are"),
        (_z_loss_rows("dtype"), "should be float32"),
    ],
    "10.4": [
        (_clipped("plain"), "is not scaled"),
        (_clipped("larger"), "made larger"),
        (_clipped("root"), "the square of the factor"),
        (_clipped("decay"), "the decay was scaled too"),
        (_clipped("no decay"), "the weight decay is missing"),
        (_clipped("no correction"), "w (norm"),
        (_clipped("modified"), "g was modified"),
        (_clipped("copy"), "return w itself"),
        (_clipped("fetched"), "the CPU waits"),
    ],
}
