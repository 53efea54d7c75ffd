"""AdamW over all weights of a model in one launch, by the table of `kernels.adamw_table`."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kernels.adamw_table import BLOCK, adamw_table
from kernels.triton.launch import DTYPES, check, launch

TYPES = dict(zip(DTYPES, (tl.float32, tl.bfloat16, tl.float16), strict=True))


@triton.jit
def at(table_ptr, i, T: tl.constexpr, ALIGNED: tl.constexpr):
    """Where an array of T begins, by a table of addresses."""
    ptr = tl.load(table_ptr + i).to(tl.pointer_type(T), bitcast=True)
    if ALIGNED:  # what the compiler cannot see in a number that it loads: 16 bytes may move at once
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit
def _adamw_kernel(
    table_ptr, decay_ptr, factor_ptr, lr, beta1, beta2, eps, correction1, correction2,
    W: tl.constexpr, G: tl.constexpr, M: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = table_ptr + tl.program_id(0).to(tl.int64) * 5
    w_ptr, g_ptr = at(row, 0, W, ALIGNED), at(row, 1, G, ALIGNED)
    m_ptr, v_ptr = at(row, 2, M, ALIGNED), at(row, 3, M, ALIGNED)
    i = tl.arange(0, BLOCK)
    inside = i < tl.load(row + 4)
    g = tl.load(g_ptr + i, mask=inside, other=0.0).to(tl.float32)
    if factor_ptr is not None:
        g *= tl.load(factor_ptr).to(tl.float32)
    m = tl.load(m_ptr + i, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + i, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + i, mask=inside, other=0.0).to(tl.float32)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    w *= 1 - lr * tl.load(decay_ptr + tl.program_id(0))
    w -= lr / correction1 * m / (tl.sqrt_rn(v) / correction2 + eps)
    tl.store(m_ptr + i, m.to(M), mask=inside)
    tl.store(v_ptr + i, v.to(M), mask=inside)
    tl.store(w_ptr + i, w.to(W), mask=inside)


def adamw_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    m: Sequence[Tensor],
    v: Sequence[Tensor],
    steps: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decays: Sequence[float],
    factor: Tensor | None = None,
) -> None:
    """One step of AdamW (Loshchilov and Hutter, 2019) for all weights, in place; `steps` counts it too.

    m ← β₁ m + (1-β₁) g and v ← β₂ v + (1-β₂) g²; then w ← w - lr weight_decay w, and
    w ← w - lr m̂ / (√v̂ + ε), where m̂ and v̂ undo the bias of starting at 0. `weight_decays` has one number
    for each weight. Where there is a `factor`, a tensor of one number, it clips: g is that times a gradient.
    Weights, gradients and means are float32, bfloat16 or float16, each kind of one dtype, dense and of the
    same shapes; everything is computed in float32.

    Errors, and what addresses not seen lately cost: `kernels.adamw_table`.
    """
    kinds = weights, gradients, m, v
    table = adamw_table(check, kinds, weight_decays)
    if table is None:
        return
    W, G, M = (TYPES[kind[0].dtype] for kind in kinds[:3])
    launch(
        _adamw_kernel, (len(table.rows),), table.rows, table.weight_decays, factor, lr, *betas, eps,
        1 - betas[0] ** steps, (1 - betas[1] ** steps) ** 0.5,
        W=W, G=G, M=M, ALIGNED=table.aligned, BLOCK=BLOCK,
    )  # fmt: skip
