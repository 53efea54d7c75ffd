"""Every operation in plain tensor arithmetic: the derivations of notebooks 01 and 02, made code.

This engine is the ground truth of the course. It computes in whatever floating-point dtype it is
given: float64 input is exact enough to pass finite differences, and that is what every other engine
is tested against. Shapes: `B` batch, `T` queries, `S` keys, `C` width, `H` heads, `D` width of a head,
`V` vocabulary; `(..., C)` means any leading dimensions.
"""

import math

import torch
from torch import Tensor

from kernels.checks import check_attention, check_classes, check_linear, check_mlp, check_rope, check_width

CHUNK = 1024  # rows of logits that `linear_cross_entropy` holds at a time


def _rows(x: Tensor) -> Tensor:
    """`(..., C)` seen as `(rows, C)`."""
    return x.reshape(-1, x.shape[-1])


def _sum_to(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting: sum `gradient` over every dimension along which `shape` was repeated."""
    new = gradient.dim() - len(shape)
    stretched = [i for i, size in enumerate(shape, start=new) if size != gradient.shape[i]]
    dims = [*range(new), *stretched]
    return gradient.sum(dims, keepdim=True).reshape(shape) if dims else gradient


def _wide(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, where squares would leave their range."""
    return x.float() if x.dtype.itemsize == 2 else x


# Looking up, multiplying, adding


def embedding_forward(ids: Tensor, weight: Tensor):
    """Rows of a table. ids `(...)` integers, weight `(V, C)` -> y `(..., C)`."""
    return weight[ids], (ids, weight.shape[0])


def embedding_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dweight `(V, C)`: each row collects the gradients of all the places that looked it up."""
    ids, vocab_size = saved
    dweight = dy.new_zeros(vocab_size, dy.shape[-1])
    return dweight.index_add_(0, ids.reshape(-1), _rows(dy))


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None = None):
    """y = x Wᵀ + b. x `(..., C_in)`, weight `(C_out, C_in)`, bias `(C_out)` -> y `(..., C_out)`."""
    check_linear(x, weight, bias)
    y = x @ weight.T
    if bias is not None:
        y = y + bias
    return y, (x, weight, bias is not None)


def linear_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, dbias (None without a bias)."""
    x, weight, has_bias = saved
    dx = dy @ weight
    dweight = _rows(dy).T @ _rows(x)
    dbias = _rows(dy).sum(0) if has_bias else None
    return dx, dweight, dbias


def add_forward(a: Tensor, b: Tensor):
    """y = a + b, broadcasting as usual."""
    return a + b, (tuple(a.shape), tuple(b.shape))


def add_backward(dy: Tensor, saved: tuple):
    """-> da, db: both are dy, summed where the input was repeated."""
    shape_a, shape_b = saved
    return _sum_to(dy, shape_a), _sum_to(dy, shape_b)


def mul_forward(a: Tensor, b: Tensor):
    """y = a b, elementwise, broadcasting as usual."""
    return a * b, (a, b)


def mul_backward(dy: Tensor, saved: tuple):
    """-> da, db: each is dy times the other factor, summed where the input was repeated."""
    a, b = saved
    return _sum_to(dy * b, a.shape), _sum_to(dy * a, b.shape)


# Normalisation


def rmsnorm_forward(x: Tensor, weight: Tensor, eps: float):
    """y = w x / √(mean(x²) + ε). x `(..., C)`, weight `(C)` (Zhang and Sennrich, 2019)."""
    check_width("rmsnorm", x, weight.shape[0])
    rstd = torch.rsqrt((_wide(x) ** 2).mean(-1, keepdim=True) + eps).to(x.dtype)
    return x * rstd * weight, (x, weight, rstd)


def rmsnorm_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight."""
    x, weight, rstd = saved
    x_hat = x * rstd
    dx_hat = dy * weight
    dx = rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdim=True))
    dweight = _rows(dy * x_hat).sum(0)
    return dx, dweight


def layernorm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float):
    """y = w (x - μ) / √(σ² + ε) + b. x `(..., C)`, weight and bias `(C)` (Ba et al., 2016)."""
    check_width("layernorm", x, weight.shape[0])
    mean = x.mean(-1, keepdim=True)
    rstd = torch.rsqrt((_wide(x - mean) ** 2).mean(-1, keepdim=True) + eps).to(x.dtype)
    return (x - mean) * rstd * weight + bias, (x, weight, mean, rstd)


def layernorm_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, dbias."""
    x, weight, mean, rstd = saved
    x_hat = (x - mean) * rstd
    dx_hat = dy * weight
    dx = rstd * (dx_hat - dx_hat.mean(-1, keepdim=True) - x_hat * (dx_hat * x_hat).mean(-1, keepdim=True))
    return dx, _rows(dy * x_hat).sum(0), _rows(dy).sum(0)


def add_rmsnorm_forward(x: Tensor, residual: Tensor, weight: Tensor, eps: float):
    """h = x + residual and y = rmsnorm(h), in one operation -> (y, h)."""
    h = x + residual
    y, saved = rmsnorm_forward(h, weight, eps)
    return (y, h), saved


def add_rmsnorm_backward(dy: tuple[Tensor, Tensor], saved: tuple):
    """-> dx, dresidual (the same array), dweight."""
    dy, dh = dy
    dx, dweight = rmsnorm_backward(dy, saved)
    dx = dx + dh
    return dx, dx, dweight


def add_layernorm_forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float):
    """h = x + residual and y = layernorm(h), in one operation -> (y, h)."""
    h = x + residual
    y, saved = layernorm_forward(h, weight, bias, eps)
    return (y, h), saved


def add_layernorm_backward(dy: tuple[Tensor, Tensor], saved: tuple):
    """-> dx, dresidual (the same array), dweight, dbias."""
    dy, dh = dy
    dx, dweight, dbias = layernorm_backward(dy, saved)
    dx = dx + dh
    return dx, dx, dweight, dbias


# Positions


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, D/2): the same for every head
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


def rope_forward(x: Tensor, cos: Tensor, sin: Tensor):
    """Rotate feature pairs (i, i + D/2) by the position's angles (Su et al., 2021).

    x `(B, T, H, D)`, cos and sin `(T, D/2)`: the tables' rows of these T positions.
    """
    check_rope(x, cos, sin)
    return _rotate(x, cos, sin), (cos, sin)


def rope_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dx: a rotation's transpose is the rotation back."""
    cos, sin = saved
    return _rotate(dy, cos, -sin)


# Nonlinearities


def _gelu_tanh(x: Tensor) -> Tensor:
    return torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def gelu_forward(x: Tensor):
    """y = x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), as in GPT-2 (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1 + _gelu_tanh(x)), (x,)


def gelu_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dx."""
    (x,) = saved
    t = _gelu_tanh(x)
    dt = (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return dy * 0.5 * (1 + t + x * dt)


def swiglu_forward(gate: Tensor, up: Tensor):
    """y = gate σ(gate) up, elementwise (Shazeer, 2020)."""
    return gate * torch.sigmoid(gate) * up, (gate, up)


def swiglu_backward(dy: Tensor, saved: tuple):
    """-> dgate, dup."""
    gate, up = saved
    sigma = torch.sigmoid(gate)
    silu = gate * sigma
    return dy * up * (sigma + silu * (1 - sigma)), dy * silu


def gelu_mlp_forward(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None):
    """y = gelu(x upᵀ + up_bias) downᵀ + down_bias, the two layers of an MLP and what stands between them.

    x `(..., C)`, up `(F, C)`, down `(C_out, F)`, biases `(F)` and `(C_out)` or None -> y `(..., C_out)`.
    """
    check_mlp(x, up, up_bias, down, down_bias)
    pre, up_saved = linear_forward(x, up, up_bias)
    h, gelu_saved = gelu_forward(pre)
    y, down_saved = linear_forward(h, down, down_bias)
    return y, (*up_saved, *gelu_saved, *down_saved)


def gelu_mlp_backward(dy: Tensor, saved: tuple):
    """-> dx, dup, dup_bias, ddown, ddown_bias (a bias that is None has the gradient None)."""
    up_saved, gelu_saved, down_saved = saved[:3], saved[3:4], saved[4:]
    dh, ddown, ddown_bias = linear_backward(dy, down_saved)
    dx, dup, dup_bias = linear_backward(gelu_backward(dh, gelu_saved), up_saved)
    return dx, dup, dup_bias, ddown, ddown_bias


def softmax_forward(x: Tensor):
    """y = exp(x - max x) / Σ exp(x - max x) over the last dimension."""
    e = torch.exp(x - x.amax(-1, keepdim=True))
    y = e / e.sum(-1, keepdim=True)
    return y, (y,)


def softmax_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dx."""
    (y,) = saved
    return y * (dy - (dy * y).sum(-1, keepdim=True))


# Attention


def _visible(T: int, S: int, causal: bool, window: int | None, device) -> Tensor | None:
    """`(T, S)`, True where query t may look at key s; the last query stands at the last key."""
    if not causal:
        return None
    distance = torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _heads_first(x: Tensor, repeats: int = 1) -> Tensor:
    """`(B, T, H, D)` -> `(B, H repeats, T, D)`, each head repeated for the queries that share it."""
    x = x.transpose(1, 2)
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def _heads_last(x: Tensor, repeats: int = 1) -> Tensor:
    """The transpose of `_heads_first`: shared heads sum the gradients of those who share them."""
    if repeats > 1:
        x = x.unflatten(1, (-1, repeats)).sum(2)
    return x.transpose(1, 2).contiguous()


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
):
    """softmax(softmax_scale q kᵀ, masked) v for every head (Vaswani et al., 2017).

    q `(B, T, H, D)`, k and v `(B, S, H_kv, D)` -> y `(B, T, H, D)`. H is a multiple of H_kv: each
    key-value head serves H / H_kv neighbouring query heads (Ainslie et al., 2023). With `causal`, the
    queries are the last T of the S positions and see no later key; with `window`, only the nearest
    `window` keys. `sink` `(H)` is one learned score a head that takes part in the softmax and has no
    value, so that a query may attend to nothing. `softmax_scale` is 1/√D unless given.
    """
    check_attention(q, k, v, sink, causal, window)
    repeats = q.shape[2] // k.shape[2]
    softmax_scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    scores = _heads_first(q) @ _heads_first(k, repeats).mT * softmax_scale  # (B, H, T, S)
    visible = _visible(q.shape[1], k.shape[1], causal, window, q.device)
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    p_sink = None
    if sink is None:
        p, _ = softmax_forward(scores)
    else:
        column = sink[:, None, None].expand(*scores.shape[:-1], 1)
        p, _ = softmax_forward(torch.cat((scores, column), dim=-1))
        p, p_sink = p[..., :-1].contiguous(), p[..., -1:].contiguous()
    y = _heads_last(p @ _heads_first(v, repeats))
    return y, (q, k, v, p, p_sink, softmax_scale)


def attention_backward(dy: Tensor, saved: tuple):
    """-> dq, dk, dv, dsink (None without a sink). Masked scores have p = 0, so need no mask here."""
    q, k, v, p, p_sink, softmax_scale = saved
    repeats = q.shape[2] // k.shape[2]
    dy = _heads_first(dy)
    dp = dy @ _heads_first(v, repeats).mT
    mean_dp = (dp * p).sum(-1, keepdim=True)
    ds = p * (dp - mean_dp) * softmax_scale
    dq = _heads_last(ds @ _heads_first(k, repeats))
    dk = _heads_last(ds.mT @ _heads_first(q), repeats)
    dv = _heads_last(p.mT @ dy, repeats)
    dsink = None if p_sink is None else -(p_sink * mean_dp).sum((0, 2, 3))
    return dq, dk, dv, dsink


# Losses


def _at_targets(x: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The entries of x `(rows, V)` at their targets, and which rows count."""
    counted = targets != ignore_index
    return x.gather(1, targets.clamp(min=0)[:, None])[:, 0], counted


def cross_entropy_forward(logits: Tensor, targets: Tensor, ignore_index: int = -100):
    """Mean of -log softmax(logits)[target] over the targets that are not `ignore_index`.

    logits `(..., V)`, targets `(...)` integers -> a scalar.
    """
    check_classes(logits, targets)
    lse = torch.logsumexp(_rows(logits), dim=-1)
    picked, counted = _at_targets(_rows(logits), targets.reshape(-1), ignore_index)
    loss = ((lse - picked) * counted).sum() / counted.sum()
    return loss, (logits, targets, lse, ignore_index)


def _dlogits(logits: Tensor, targets: Tensor, lse: Tensor, ignore_index: int) -> Tensor:
    """softmax(logits) - one_hot(targets), a new array, with zero rows where a target is ignored."""
    counted = (targets != ignore_index)[:, None].to(logits.dtype)
    dlogits = torch.exp(logits - lse[:, None]) * counted
    return dlogits.scatter_add_(1, targets.clamp(min=0)[:, None], -counted)


def cross_entropy_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dlogits = (softmax(logits) - one_hot(targets)) / number of targets."""
    logits, targets, lse, ignore_index = saved
    dlogits = _dlogits(_rows(logits), targets.reshape(-1), lse, ignore_index)
    scale = dy / (targets != ignore_index).sum()
    return (dlogits * scale).reshape(logits.shape)


def linear_cross_entropy_forward(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100):
    """cross_entropy(x Wᵀ, targets), holding only `CHUNK` rows of logits at a time.

    x `(..., C)`, weight `(V, C)`, targets `(...)` integers -> a scalar.
    """
    check_width("linear_cross_entropy", x, weight.shape[1])
    rows, labels = _rows(x), targets.reshape(-1)
    lse, picked = [], []
    for chunk, label in zip(rows.split(CHUNK), labels.split(CHUNK), strict=True):
        logits = chunk @ weight.T
        lse.append(torch.logsumexp(logits, dim=-1))
        picked.append(_at_targets(logits, label, ignore_index)[0])
    lse, counted = torch.cat(lse), labels != ignore_index
    loss = ((lse - torch.cat(picked)) * counted).sum() / counted.sum()
    return loss, (x, weight, targets, lse, ignore_index)


def linear_cross_entropy_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight. The logits are computed again, a chunk at a time: that is the trade."""
    x, weight, targets, lse, ignore_index = saved
    labels = targets.reshape(-1)
    scale = dy / (labels != ignore_index).sum()
    dx, dweight = [], torch.zeros_like(weight)
    chunks = (_rows(x).split(CHUNK), labels.split(CHUNK), lse.split(CHUNK))
    for chunk, label, chunk_lse in zip(*chunks, strict=True):
        dlogits = _dlogits(chunk @ weight.T, label, chunk_lse, ignore_index) * scale
        dx.append(dlogits @ weight)
        dweight += dlogits.T @ chunk
    return torch.cat(dx).reshape(x.shape), dweight
