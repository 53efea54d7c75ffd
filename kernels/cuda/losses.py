"""Cross-entropy, and the output layer fused with it: logits that never stand in memory all at once.

`linear_cross_entropy` takes a chunk of rows at a time: its logits, one matrix product; their loss, and in
their place their gradient, one kernel; what that gives for x and for the weight, two products. So the forward
pass has both gradients but for one factor, dy / (number of targets), by which the backward pass multiplies
them. To compute the logits again there would be a fourth product.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.checks import check_classes, check_width
from kernels.cuda.launch import cdiv, check, empty, integers, like, likes, module, nothing, without_data
from kernels.cuda.matmul import matmul
from kernels.cuda.rows import WIDEST, aligned, row_stride, rows, shape

CHUNK_BYTES = 200 * 2**20  # of logits in memory at a time


def cross_entropy_forward(logits: Tensor, targets: Tensor, ignore_index: int = -100):
    """Mean of -log softmax(logits)[target] over the targets that are not `ignore_index`.

    logits `(..., V)` float32, bfloat16 or float16, targets `(...)` integers -> a float32 scalar: 16 bits do
    not tell a loss of 4.00 from one of 4.01. Logits are read once. A target outside 0 … V-1 makes the loss
    nan. Raises `ValueError` for shapes or devices that differ, `TypeError` for other dtypes.
    """
    check_classes(logits, targets)
    labels = integers("cross_entropy", "targets", targets)
    loss, count, lse, losses = _numbers(logits, labels.shape, 2)
    if not without_data(logits):
        flat = rows(logits)
        plan = _plan("cross_entropy_forward", like(flat), like(labels), aligned(flat), ignore_index)
        plan(flat, labels, lse, losses)
        _mean(losses, labels, loss, count, ignore_index)
    return loss, (logits, labels, lse, count, ignore_index)


def cross_entropy_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dlogits = (softmax(logits) - one_hot(targets)) / number of targets."""
    logits, labels, lse, count, ignore_index = saved
    dlogits = empty(logits)
    if not without_data(logits):
        flat = rows(logits)
        plan = _plan("cross_entropy_backward", like(flat), like(labels), aligned(flat), ignore_index)
        plan(_one(dy), flat, labels, lse, count, dlogits)
    return dlogits


def linear_cross_entropy_forward(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100):
    """cross_entropy(x Wᵀ, targets), with `CHUNK_BYTES` of the logits in memory at a time.

    x `(..., C)` and weight `(V, C)` float32, bfloat16 or float16, targets `(...)` integers -> a float32
    scalar. A target outside 0 … V-1 makes the loss nan. `saved` has both gradients, still to be divided by
    the number of targets, and that number; not the inputs. Where no gradient will be asked for,
    `linear_cross_entropy_inference` costs a third. Raises `ValueError` for shapes or devices that differ,
    `TypeError` for other dtypes.
    """
    labels = _checked(x, weight, targets)
    loss, count, losses = _numbers(x, labels.shape, 1)
    n, chunk = labels.shape[0], _chunk_rows(weight)
    # A sum over many chunks, rounded to 16 bits each time, would lose what the last ones add.
    exact = n <= chunk or x.dtype == torch.float32
    dx = empty(x)
    dweight = empty(weight) if exact else torch.empty(weight.shape, dtype=torch.float32, device=x.device)
    if without_data(x):
        return loss, (dx, dweight, count)
    flat, dflat = _matrix(x), dx.view(n, x.shape[-1])
    for start in range(0, n, chunk):
        its_x, its_labels = _part(flat, start, chunk), _part(labels, start, chunk)
        logits = matmul(its_x, weight.mT)
        plan = _plan("cross_entropy_in_place", like(logits), like(its_labels), True, ignore_index)
        plan(logits, its_labels, _part(losses, start, chunk))
        matmul(logits, weight, out=_part(dflat, start, chunk))
        if exact:
            matmul(logits.mT, its_x, out=dweight, accumulate=start > 0)
        else:
            more = matmul(logits.mT, its_x)
            _of_numbers("accumulate", more.dtype, more.numel())(more, dweight, more.numel(), start == 0)
    if n == 0:
        dweight.zero_()
    _mean(losses, labels, loss, count, ignore_index)
    return loss, (dx, dweight, count)


def linear_cross_entropy_inference(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100):
    """The loss of `linear_cross_entropy_forward` alone, without the two products that gradients need."""
    labels = _checked(x, weight, targets)
    loss, count, losses, lse = _numbers(x, labels.shape, 2)
    if not without_data(x):
        flat, chunk = _matrix(x), _chunk_rows(weight)
        for start in range(0, labels.shape[0], chunk):
            logits, its_labels = matmul(_part(flat, start, chunk), weight.mT), _part(labels, start, chunk)
            plan = _plan("cross_entropy_forward", like(logits), like(its_labels), True, ignore_index)
            plan(logits, its_labels, _part(lse, start, chunk), _part(losses, start, chunk))
        _mean(losses, labels, loss, count, ignore_index)
    return loss


def linear_cross_entropy_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight: what the forward pass summed, times dy / number of targets."""
    dx, dweight, count = saved
    gradients = empty(dx), torch.empty(dweight.shape, dtype=dx.dtype, device=dx.device)
    if not without_data(dx):
        dy = _one(dy)
        for x, y in zip((dx, dweight), gradients, strict=True):
            kernel = "scale_scalars" if x.dtype == y.dtype else "scale_floats"
            _of_numbers(kernel, y.dtype, x.numel())(x, y, dy, count, x.numel())
    return gradients


def _checked(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-> the targets, one a row of x."""
    check_width("linear_cross_entropy", x, weight.shape[1])
    if x.shape[:-1] != targets.shape:
        raise ValueError(
            f"linear_cross_entropy: x {tuple(x.shape)} needs targets of shape {tuple(x.shape[:-1])}, "
            f"got {tuple(targets.shape)}."
        )
    check("linear_cross_entropy", x, weight, targets)
    return integers("linear_cross_entropy", "targets", targets).view(-1)


def _numbers(x: Tensor, shape: tuple, n: int) -> list[Tensor]:
    """float32: two scalars, the loss and the number of targets, and n numbers for every target."""
    shapes = (), (), *(shape,) * n
    return [torch.empty(s, dtype=torch.float32, device=x.device) for s in shapes]


def _one(dy: Tensor) -> Tensor:
    """The gradient of the loss, a number, as kernels read it."""
    if dy.numel() != 1:
        raise ValueError(f"cross_entropy: the loss is one number and has no gradient {tuple(dy.shape)}.")
    return dy if dy.dtype == torch.float32 else dy.float()


def _part(x: Tensor, start: int, length: int) -> Tensor:
    """`length` rows of x, or those that are left: x itself where that is all, without a view's time."""
    return x if start == 0 and length >= x.shape[0] else x[start : start + length]


def _chunk_rows(weight: Tensor) -> int:
    """How many rows of logits there are at a time: a multiple of the rows of a product's tile."""
    most = CHUNK_BYTES // max(weight.shape[0] * weight.element_size(), 1)
    return max(most // 128 * 128, 128)


@functools.lru_cache(maxsize=1024)
def _plan(kernel: str, logits: tuple, labels: tuple, aligned: bool, ignore_index: int) -> Callable:
    """-> what launches a kernel that works on rows of logits, on its tensors."""
    logits, labels = likes(logits, labels)
    check("cross_entropy", logits, labels)
    (*batch, V), how = logits.shape, shape(logits, aligned, widest=WIDEST)
    n = math.prod(batch)
    if n * V == 0:
        return nothing
    launch = getattr(how.kernels("losses.cu", logits.dtype), kernel)[how.blocks(n), how.threads]
    return launch.prepare(row_stride(logits), n, V, ignore_index)


@functools.lru_cache(maxsize=1024)
def _of_numbers(kernel: str, dtype: torch.dtype, n: int) -> Callable:
    """A kernel of `mean_loss.cu` for n numbers without gaps."""
    return getattr(module("mean_loss.cu", dtype, VECTOR=4), kernel)[max(cdiv(n, 1024), 1), 256]


def _mean(losses: Tensor, labels: Tensor, loss: Tensor, count: Tensor, ignore_index: int) -> None:
    """loss ← the mean of the losses that count, and count ← how many these are."""
    kernel = module("mean_loss.cu").mean_loss
    kernel[1, 1024](losses, labels, loss, count, losses.numel(), ignore_index)


def _matrix(x: Tensor) -> Tensor:
    """x `(..., C)` as `(rows, C)`."""
    x = rows(x)
    return x if x.dim() == 2 else x.view(-1, x.shape[-1])
