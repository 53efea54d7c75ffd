"""AdamW over all parameters of a model in one launch.

A model has hundreds of parameters, most of them small: a launch for each would take longer than the work.
One launch for all needs a map from blocks to parameters. It is a table in the GPU's memory: for each block
the addresses of its weights, gradients and means, how many there are, and their weight decay. The table
depends on nothing but those, so it is built once for a set of addresses and kept as long as they recur.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.launch import DTYPES, check, launch

BLOCK = 512
FIELDS = 5  # of a row of the table: the four addresses and the number of elements
_TABLES: OrderedDict[tuple, tuple] = OrderedDict()  # the last few, by all that they depend on
_TYPE = dict(zip(DTYPES, (tl.float32, tl.bfloat16, tl.float16), strict=True))


@triton.jit
def _adamw_kernel(
    table_ptr, decay_ptr, lr, beta1, beta2, eps, correction1, correction2,
    W: tl.constexpr, G: tl.constexpr, M: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = table_ptr + tl.program_id(0).to(tl.int64) * 5
    w_ptr = tl.load(row).to(tl.pointer_type(W), bitcast=True)
    g_ptr = tl.load(row + 1).to(tl.pointer_type(G), bitcast=True)
    m_ptr = tl.load(row + 2).to(tl.pointer_type(M), bitcast=True)
    v_ptr = tl.load(row + 3).to(tl.pointer_type(M), bitcast=True)
    if ALIGNED:  # what the compiler cannot see in a number that it loads: 16 bytes may move at once
        w_ptr, g_ptr = tl.multiple_of(w_ptr, 16), tl.multiple_of(g_ptr, 16)
        m_ptr, v_ptr = tl.multiple_of(m_ptr, 16), tl.multiple_of(v_ptr, 16)
    i = tl.arange(0, BLOCK)
    inside = i < tl.load(row + 4)
    g = tl.load(g_ptr + i, mask=inside, other=0.0).to(tl.float32)
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
) -> None:
    """One step of AdamW (Loshchilov and Hutter, 2019) for all weights, in place; `steps` counts it too.

    m ← β₁ m + (1-β₁) g and v ← β₂ v + (1-β₂) g²; then w ← w - lr weight_decay w, and
    w ← w - lr m̂ / (√v̂ + ε), where m̂ and v̂ undo the bias of starting at 0. `weight_decays` has one number
    for each weight. Weights, gradients and means are float32, bfloat16 or float16, each kind of one dtype,
    dense and of the same shapes; everything is computed in float32.

    Addresses not seen lately cost a check of the tensors and a copy of the table to the GPU. Raises
    `ValueError` for shapes, layouts, devices or numbers of tensors that do not fit, `TypeError` for dtypes.
    """
    kinds = weights, gradients, m, v
    if any(len(kind) != len(weights) for kind in (*kinds, weight_decays)):
        lengths = ", ".join(str(len(kind)) for kind in (*kinds, weight_decays))
        raise ValueError(
            f"adamw: expected as many gradients, m, v and weight_decays as weights, got {lengths}."
        )
    if not weights:
        return
    dtypes = tuple(kind[0].dtype for kind in kinds)
    key = (dtypes, tuple(weight_decays), *(tuple(map(Tensor.data_ptr, kind)) for kind in kinds))
    if key not in _TABLES:
        _check(*kinds)
        _TABLES[key] = _table(kinds, weight_decays)
        if len(_TABLES) > 16:
            _TABLES.popitem(last=False)
    table, decay, aligned = _TABLES[key]
    W, G, M, _ = (_TYPE[dtype] for dtype in dtypes)
    launch(
        _adamw_kernel, (len(table),), table, decay, lr, *betas, eps,
        1 - betas[0] ** steps, (1 - betas[1] ** steps) ** 0.5,
        W=W, G=G, M=M, ALIGNED=aligned, BLOCK=BLOCK,
    )  # fmt: skip


def _check(*kinds: Sequence[Tensor]) -> None:
    for kind in kinds:
        check("adamw", *kind)
    if kinds[2][0].dtype != kinds[3][0].dtype:
        raise TypeError(f"adamw: m is {kinds[2][0].dtype} and v {kinds[3][0].dtype}; they must be alike.")
    for tensors in zip(*kinds, strict=True):
        w = tensors[0]
        if any(x.shape != w.shape or x.device != w.device or not x.is_contiguous() for x in tensors):
            shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
            raise ValueError(
                f"adamw: expected dense tensors of one shape on one device, got w, g, m, v {shapes}."
            )


def _table(kinds: tuple, weight_decays: Sequence[float]) -> tuple[Tensor, Tensor, bool]:
    """-> the table (blocks, FIELDS), the weight decay of each block, whether all addresses are aligned."""
    sizes = np.array([w.numel() for w in kinds[0]])
    blocks = -(-sizes // BLOCK)
    of = np.repeat(np.arange(len(sizes)), blocks)  # each block's parameter
    first = np.concatenate([np.arange(n) for n in blocks]) * BLOCK  # its first element there
    addresses = np.array([[x.data_ptr() for x in kind] for kind in kinds]).T
    itemsizes = np.array([kind[0].element_size() for kind in kinds])
    table = np.empty((len(of), FIELDS), np.int64)
    table[:, :4] = addresses[of] + first[:, None] * itemsizes
    table[:, 4] = np.minimum(sizes[of] - first, BLOCK)
    decay = np.array(weight_decays, np.float32)[of]
    device = kinds[0][0].device
    aligned = bool((addresses % 16 == 0).all())
    return torch.from_numpy(table).to(device), torch.from_numpy(decay).to(device), aligned
