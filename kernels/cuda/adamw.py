"""AdamW over all weights of a model in one launch.

The launch needs a map from blocks to weights: a table in the GPU's memory. It depends on nothing but
addresses, sizes and weight decays, so it is built once for a set of them, and kept as long as they recur.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.cuda import emulator
from kernels.cuda.launch import DTYPES, check, emulated, module, nothing

BLOCK = 512  # numbers of a block
FIELDS = 5  # of a row of the table: the four addresses and the number of elements
NAMES = dict(zip(DTYPES, ("float", "__nv_bfloat16", "__half"), strict=True))
_TABLES: OrderedDict[tuple, tuple] = OrderedDict()  # the last few, by all that they depend on


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
        _TABLES[key] = _launch(kinds, weight_decays)
        if len(_TABLES) > 16:
            _TABLES.popitem(last=False)
    launch, table, decays = _TABLES[key]
    numbers = lr, *betas, eps, 1 - betas[0] ** steps, (1 - betas[1] ** steps) ** 0.5
    if emulated():  # whose checks know the addresses of arguments, and not those in a table
        with emulator.reachable([x for kind in kinds for x in kind]):
            launch(table, decays, *map(float, numbers))
    else:
        launch(table, decays, *numbers)


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


def _launch(kinds: tuple, weight_decays: Sequence[float]) -> tuple:
    """-> the kernel with its grid, the table (blocks, FIELDS), the weight decay of each block."""
    sizes = np.array([w.numel() for w in kinds[0]])
    blocks = -(-sizes // BLOCK)
    of = np.repeat(np.arange(len(sizes)), blocks)  # each block's weight
    first = np.concatenate([np.arange(n) for n in blocks]) * BLOCK  # its first element there
    addresses = np.array([[x.data_ptr() for x in kind] for kind in kinds]).T
    itemsizes = np.array([kind[0].element_size() for kind in kinds])
    table = np.empty((len(of), FIELDS), np.int64)
    table[:, :4] = addresses[of] + first[:, None] * itemsizes
    table[:, 4] = np.minimum(sizes[of] - first, BLOCK)
    decays = np.array(weight_decays, np.float32)[of]

    device = kinds[0][0].device
    w, g, mean = (NAMES[kind[0].dtype] for kind in kinds[:3])
    vector = 4 if (addresses % 16 == 0).all() else 1
    kernel = module("adamw.cu", WEIGHT=w, GRADIENT=g, MEAN=mean, VECTOR=vector).adamw
    launch = kernel[len(of), 128] if len(of) else nothing
    return launch, torch.from_numpy(table).to(device), torch.from_numpy(decays).to(device)
