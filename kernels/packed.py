"""Arrays that lie side by side in one: queries, keys and values that one matrix product computed.

Cutting such an array in pieces costs nothing, but putting the gradients of the pieces together is a copy of
all of them; unless they already lie side by side. `empty_beside` makes room for them in that way, and
`unpack` notices. So it is with the weights of that product: `lay_beside` once, and `pack` copies nothing.
"""

import torch
from torch import Tensor


def unpack(whole: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """`whole.split(sizes, dim=-2)`: `(..., H, D)` -> a view `(..., sizes[i], D)` for each size."""
    if torch.compiler.is_compiling():
        return whole.split(sizes, dim=-2)
    return _Unpack.apply(whole, sizes)


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, whole, sizes):
        return whole.split(sizes, dim=-2)

    @staticmethod
    def backward(ctx, *pieces):
        whole = joined(pieces)
        return torch.cat(pieces, dim=-2) if whole is None else whole, None


def lay_beside(*pieces: Tensor) -> None:
    """Move the numbers of these `(..., H, D)`, neighbours from now on, into one array."""
    whole = torch.cat([x.detach() for x in pieces], dim=-2)
    for x, place in zip(pieces, whole.split([x.shape[-2] for x in pieces], dim=-2), strict=True):
        x.data = place


def pack(*pieces: Tensor) -> Tensor:
    """`torch.cat(pieces, dim=-2)`: of neighbours a view."""
    if torch.compiler.is_compiling():
        return torch.cat(pieces, dim=-2)
    return _Pack.apply(*pieces)


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *pieces):
        ctx.sizes = [x.shape[-2] for x in pieces]
        whole = joined(pieces)
        return torch.cat(pieces, dim=-2) if whole is None else whole

    @staticmethod
    def backward(ctx, dwhole):
        return dwhole.split(ctx.sizes, dim=-2)


def joined(pieces: tuple[Tensor, ...]) -> Tensor | None:
    """The array `(..., H, D)` that these are neighbouring pieces of, or None if they are not."""
    first = pieces[0]
    memory, strides, place = first.untyped_storage()._cdata, first.stride(), first.storage_offset()
    for x in pieces:
        if (x.untyped_storage()._cdata, x.stride(), x.storage_offset()) != (memory, strides, place):
            return None
        place += x.shape[-2] * strides[-2]
    heads = sum(x.shape[-2] for x in pieces)
    return first.as_strided((*first.shape[:-2], heads, first.shape[-1]), strides)


def empty_beside(*pieces: Tensor) -> tuple[Tensor, ...]:
    """Tensors like these with nothing in them: contiguous, or neighbours in one that is, as these are."""
    if joined(pieces) is None:
        return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in pieces)
    heads = [x.shape[-2] for x in pieces]
    whole = pieces[0].new_empty((*pieces[0].shape[:-2], sum(heads), pieces[0].shape[-1]))
    return whole.split(heads, dim=-2)
