"""PyTorch's own fused operations: the baseline that the course's kernels are measured against.

Each operation stands here three times. `rmsnorm` is what a PyTorch user would write, for autograd to
differentiate and `torch.compile` to see through. `rmsnorm_forward` and `rmsnorm_backward` are the two
ATen functions that autograd would call for it, as a pair of the contract, for a model whose backward
pass is written by hand. Shapes and meanings are those of `kernels.reference`, where they are explained.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference
from kernels.checks import check_attention, check_classes, check_linear, check_mlp, check_rope, check_width
from kernels.reference import (  # noqa: F401, PyTorch has nothing better for these pairs
    add_backward,
    add_forward,
    linear_backward,
    mul_backward,
    mul_forward,
    rope_backward,
    rope_forward,
)

aten = torch.ops.aten

MEAN = 1  # ATen's code for a loss averaged over the targets

# Looking up, multiplying, adding


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(ids, weight)


def embedding_forward(ids: Tensor, weight: Tensor):
    return aten.embedding(weight, ids), (ids, weight.shape[0])


def embedding_backward(dy: Tensor, saved: tuple) -> Tensor:
    ids, vocab_size = saved
    return aten.embedding_dense_backward(dy, ids, vocab_size, -1, False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    check_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None = None):
    check_linear(x, weight, bias)
    return F.linear(x, weight, bias), (x, weight, bias is not None)


def add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def mul(a: Tensor, b: Tensor) -> Tensor:
    return a * b


# Normalisation


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    check_width("rmsnorm", x, weight.shape[0])
    return F.rms_norm(x, weight.shape, weight, eps)


def rmsnorm_forward(x: Tensor, weight: Tensor, eps: float):
    check_width("rmsnorm", x, weight.shape[0])
    if x.device.type == "cpu":  # PyTorch has fused this one for GPUs only
        return reference.rmsnorm_forward(x, weight, eps)
    y, rstd = aten._fused_rms_norm(x, weight.shape, weight, eps)
    return y, (x, weight, rstd)


def rmsnorm_backward(dy: Tensor, saved: tuple):
    x, weight, rstd = saved
    if x.device.type == "cpu":
        return reference.rmsnorm_backward(dy, saved)
    return aten._fused_rms_norm_backward(dy, x, weight.shape, rstd, weight, [True, True])


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    check_width("layernorm", x, weight.shape[0])
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def layernorm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float):
    check_width("layernorm", x, weight.shape[0])
    y, mean, rstd = aten.native_layer_norm(x, weight.shape, weight, bias, eps)
    return y, (x, weight, bias, mean, rstd)


def layernorm_backward(dy: Tensor, saved: tuple):
    x, weight, bias, mean, rstd = saved
    every = [True, True, True]
    return aten.native_layer_norm_backward(dy, x, weight.shape, mean, rstd, weight, bias, every)


def add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    h = x + residual
    return rmsnorm(h, weight, eps), h


def add_rmsnorm_forward(x: Tensor, residual: Tensor, weight: Tensor, eps: float):
    h = x + residual
    y, saved = rmsnorm_forward(h, weight, eps)
    return (y, h), saved


def add_rmsnorm_backward(dy: tuple[Tensor, Tensor], saved: tuple):
    dy, dh = dy
    dx, dweight = rmsnorm_backward(dy, saved)
    dx = dx + dh
    return dx, dx, dweight


def add_layernorm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    h = x + residual
    return layernorm(h, weight, bias, eps), h


def add_layernorm_forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float):
    h = x + residual
    y, saved = layernorm_forward(h, weight, bias, eps)
    return (y, h), saved


def add_layernorm_backward(dy: tuple[Tensor, Tensor], saved: tuple):
    dy, dh = dy
    dx, dweight, dbias = layernorm_backward(dy, saved)
    dx = dx + dh
    return dx, dx, dweight, dbias


# Positions. PyTorch has no fused rotation: this is the reference's arithmetic.


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    check_rope(x, cos, sin)
    return rope_forward(x, cos, sin)[0]


# Nonlinearities


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def gelu_forward(x: Tensor):
    return aten.gelu(x, approximate="tanh"), (x,)


def gelu_backward(dy: Tensor, saved: tuple) -> Tensor:
    (x,) = saved
    return aten.gelu_backward(dy, x, approximate="tanh")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def swiglu_forward(gate: Tensor, up: Tensor):
    silu = F.silu(gate)
    return silu * up, (gate, up, silu)


def swiglu_backward(dy: Tensor, saved: tuple):
    gate, up, silu = saved
    return aten.silu_backward(dy * up, gate), dy * silu


def gelu_mlp(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None) -> Tensor:
    check_mlp(x, up, up_bias, down, down_bias)
    return F.linear(gelu(F.linear(x, up, up_bias)), down, down_bias)


def gelu_mlp_forward(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None):
    check_mlp(x, up, up_bias, down, down_bias)
    pre, up_saved = linear_forward(x, up, up_bias)
    h, gelu_saved = gelu_forward(pre)
    y, down_saved = linear_forward(h, down, down_bias)
    return y, (*up_saved, *gelu_saved, *down_saved)


def gelu_mlp_backward(dy: Tensor, saved: tuple):
    up_saved, gelu_saved, down_saved = saved[:3], saved[3:4], saved[4:]
    dh, ddown, ddown_bias = linear_backward(dy, down_saved)
    dx, dup, dup_bias = linear_backward(gelu_backward(dh, gelu_saved), up_saved)
    return dx, dup, dup_bias, ddown, ddown_bias


def softmax(x: Tensor) -> Tensor:
    return F.softmax(x, dim=-1)


def softmax_forward(x: Tensor):
    y = F.softmax(x, dim=-1)
    return y, (y,)


def softmax_backward(dy: Tensor, saved: tuple) -> Tensor:
    (y,) = saved
    return aten._softmax_backward_data(dy, y, -1, y.dtype)


# Attention. PyTorch's fused kernels want (B, H, T, D), know no sink, and come one for each device.


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
) -> Tensor:
    check_attention(q, k, v, sink, causal, window)
    T, S = q.shape[1], k.shape[1]
    mask = None
    if window is not None or (causal and T != S):  # PyTorch's is_causal aligns the first query
        mask = reference._visible(T, S, causal, window, q.device)
    if sink is not None:  # one more key, of value 0, whose score is the sink
        if mask is None and causal:
            mask = reference._visible(T, S, causal, window, q.device)
        scores = q.new_zeros(1, 1, T, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        column = sink.to(q.dtype)[None, :, None, None].expand(1, -1, T, 1)
        mask = torch.cat((scores.expand(1, q.shape[2], T, S), column), dim=-1)
        k, v = F.pad(k, (0, 0, 0, 0, 0, 1)), F.pad(v, (0, 0, 0, 0, 0, 1))
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=softmax_scale,
        enable_gqa=k.shape[2] != q.shape[2],
    )
    return y.transpose(1, 2)


def _fused_kernel(q: Tensor, k: Tensor, causal: bool, window) -> str | None:
    """Which of ATen's attention kernels can do this case; None leaves it to the reference."""
    if window is not None or (causal and q.shape[1] != k.shape[1]) or k.shape[1] == 0:
        return None
    if q.device.type == "cpu":
        return "cpu"
    if q.dtype == torch.float64 or q.shape[-1] % 8 or q.shape[-1] > 256:
        return None
    return "efficient" if q.dtype == torch.float32 else "flash"


def _heads(q: Tensor, *shared: Tensor) -> list[Tensor]:
    """`(B, T, H, D)` -> `(B, H, T, D)` with neighbouring features, which ATen's kernels take for granted;
    shared key-value heads are repeated, because not every kernel knows of sharing."""
    heads = [reference._heads_first(x, q.shape[2] // x.shape[2]) for x in (q, *shared)]
    return [x if x.stride(-1) == 1 else x.contiguous() for x in heads]


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
):
    check_attention(q, k, v, sink, causal, window)
    kernel = _fused_kernel(q, k, causal, window)
    if kernel is None:
        y, saved = reference.attention_forward(q, k, v, sink, causal, window, softmax_scale)
        return y, (None, *saved)
    heads, scale = _heads(q, k, v), softmax_scale
    if kernel == "cpu":
        y, lse = aten._scaled_dot_product_flash_attention_for_cpu(*heads, 0.0, causal, scale=scale)
        rest = ()
    elif kernel == "efficient":
        y, lse, *rest = aten._scaled_dot_product_efficient_attention(
            *heads, None, True, 0.0, causal, scale=scale
        )
    else:
        y, lse, *rest, _ = aten._scaled_dot_product_flash_attention(*heads, 0.0, causal, scale=scale)
    if sink is not None:
        # One more term in the softmax's denominator: the others shrink by exp(lse - lse_with_sink).
        # Given the new y and lse, ATen's backward computes the gradients of the new softmax.
        lse_with_sink = torch.logaddexp(lse, sink.to(lse.dtype)[:, None])
        shrink = torch.exp(lse - lse_with_sink)[:, :, : q.shape[1], None]
        y, lse = y * shrink.to(y.dtype), lse_with_sink
    return y.transpose(1, 2), (kernel, q, k, v, sink, y, lse, *rest, causal, scale)


def attention_backward(dy: Tensor, saved: tuple):
    kernel, *saved = saved
    if kernel is None:
        return reference.attention_backward(dy, tuple(saved))
    q, k, v, sink, y, lse, *rest, causal, scale = saved
    heads = _heads(q, k, v)
    (dy,) = _heads(dy)
    if kernel == "cpu":
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dy, *heads, y, lse, 0.0, causal, scale=scale
        )
    elif kernel == "efficient":
        seed, offset = rest
        *gradients, _ = aten._scaled_dot_product_efficient_attention_backward(
            dy, *heads, None, y, lse, seed, offset, 0.0, [True, True, True, False], causal, scale=scale
        )
    else:
        cum_q, cum_k, max_q, max_k, seed, offset = rest
        gradients = aten._scaled_dot_product_flash_attention_backward(
            dy, *heads, y, lse, cum_q, cum_k, max_q, max_k, 0.0, causal, seed, offset, scale=scale
        )
    dq, dk, dv = gradients
    repeats = q.shape[2] // k.shape[2]
    dsink = None
    if sink is not None:
        p_sink = torch.exp(sink.to(lse.dtype)[:, None] - lse[:, :, : q.shape[1]])
        dsink = -(p_sink * (dy * y).sum(-1)).sum((0, 2)).to(sink.dtype)
    return (
        dq.transpose(1, 2),
        reference._heads_last(dk, repeats),
        reference._heads_last(dv, repeats),
        dsink,
    )


# Losses


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    check_classes(logits, targets)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index)


def cross_entropy_forward(logits: Tensor, targets: Tensor, ignore_index: int = -100):
    check_classes(logits, targets)
    log_p = aten._log_softmax(logits.flatten(0, -2), -1, False)
    loss, total_weight = aten.nll_loss_forward(log_p, targets.flatten(), None, MEAN, ignore_index)
    return loss, (log_p, targets, total_weight, ignore_index)


def cross_entropy_backward(dy: Tensor, saved: tuple) -> Tensor:
    log_p, targets, total_weight, ignore_index = saved
    dlog_p = aten.nll_loss_backward(dy, log_p, targets.flatten(), None, MEAN, ignore_index, total_weight)
    dlogits = aten._log_softmax_backward_data(dlog_p, log_p, -1, log_p.dtype)
    return dlogits.reshape(*targets.shape, -1)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    return cross_entropy(linear(x, weight), targets, ignore_index)


def linear_cross_entropy_forward(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100):
    logits, linear_saved = linear_forward(x, weight)
    loss, loss_saved = cross_entropy_forward(logits, targets, ignore_index)
    return loss, (*linear_saved, *loss_saved)


def linear_cross_entropy_backward(dy: Tensor, saved: tuple):
    linear_saved, loss_saved = saved[:3], saved[3:]
    dx, dweight, _ = linear_backward(cross_entropy_backward(dy, loss_saved), linear_saved)
    return dx, dweight
