"""What an engine's AdamW needs beside its kernel: the map from blocks to weights.

A model has hundreds of weights, most of them small: a launch for each would take longer than the work. One
launch for all needs to know which block has which piece of which weight. That is a table in the GPU's memory.
It depends on nothing but addresses, sizes and weight decays, so it is built once for a set of them, and kept
as long as they recur.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 512  # numbers of a block
FIELDS = 5  # of a row: the addresses of its weights, gradients, m and v, and how many numbers they are


class Table(NamedTuple):
    rows: Tensor  # (blocks, FIELDS) int64
    weight_decays: Tensor  # (blocks) float32
    aligned: bool  # whether every weight, gradient, m and v begins at a multiple of 16 bytes


_TABLES: OrderedDict[tuple, Table] = OrderedDict()  # the last few, by all that they depend on


def adamw_table(
    check: Callable[..., None], kinds: tuple[Sequence[Tensor], ...], weight_decays: Sequence[float]
) -> Table | None:
    """The table for `kinds`, which are weights, gradients, m and v; None if there are no weights.

    `check("adamw", *tensors)` is the engine's own. Addresses not seen lately cost a check of the tensors and
    a copy of the table to the GPU. Raises `ValueError` for shapes, layouts, devices or numbers of tensors
    that do not fit, `TypeError` for dtypes.
    """
    weights = kinds[0]
    if any(len(kind) != len(weights) for kind in (*kinds, weight_decays)):
        lengths = ", ".join(str(len(kind)) for kind in (*kinds, weight_decays))
        raise ValueError(
            f"adamw: expected as many gradients, m, v and weight_decays as weights, got {lengths}."
        )
    if not weights:
        return None
    dtypes = tuple(kind[0].dtype for kind in kinds)
    key = (dtypes, tuple(weight_decays), *(tuple(map(Tensor.data_ptr, kind)) for kind in kinds))
    if key not in _TABLES:
        _check(check, *kinds)
        _TABLES[key] = _table(kinds, weight_decays)
        if len(_TABLES) > 16:
            _TABLES.popitem(last=False)
    return _TABLES[key]


def _check(check: Callable[..., None], *kinds: Sequence[Tensor]) -> None:
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


def _table(kinds: tuple, weight_decays: Sequence[float]) -> Table:
    sizes = np.array([w.numel() for w in kinds[0]])
    blocks = -(-sizes // BLOCK)
    of = np.repeat(np.arange(len(sizes)), blocks)  # each block's weight
    first = np.concatenate([np.arange(n) for n in blocks]) * BLOCK  # its first element there
    addresses = np.array([[x.data_ptr() for x in kind] for kind in kinds]).T
    itemsizes = np.array([kind[0].element_size() for kind in kinds])
    rows = np.empty((len(of), FIELDS), np.int64)
    rows[:, :4] = addresses[of] + first[:, None] * itemsizes
    rows[:, 4] = np.minimum(sizes[of] - first, BLOCK)
    decays = np.array(weight_decays, np.float32)[of]
    device = kinds[0][0].device
    aligned = bool((addresses % 16 == 0).all())
    return Table(torch.from_numpy(rows).to(device), torch.from_numpy(decays).to(device), aligned)
