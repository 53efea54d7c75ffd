"""A product added to the residual stream where the stream is, with no array for the branch in between.

The library's product computes C ← A B + C in one pass, which reads C just before it writes it: a branch's
last product does the branch's addition. Its sum is rounded once, where branch and sum were rounded each.

A stream that changes in place cannot be kept for a backward pass, and need not be: the gradient of a sum does
not depend on its terms, and that of `normalize` is found from what it returned.
"""

from torch import Tensor

from kernels.triton.launch import check, matrix


def add_product(operation: str, x: Tensor, weight: Tensor, onto: Tensor) -> Tensor:
    """onto += x weightᵀ -> onto. x `(..., C_in)`, weight `(C_out, C_in)`, onto `(..., C_out)`, contiguous."""
    check(operation, x, weight, onto)
    if (
        x.shape[-1] != weight.shape[1]
        or onto.shape != (*x.shape[:-1], len(weight))
        or not onto.is_contiguous()
    ):
        raise ValueError(
            f"{operation}: x {tuple(x.shape)} times weight {tuple(weight.shape)} does not fit onto "
            f"{tuple(onto.shape)}, which must be contiguous."
        )
    matrix(onto).addmm_(matrix(x), weight.t())
    return onto


def linear_onto_forward(x: Tensor, weight: Tensor, onto: Tensor):
    """y = onto + x weightᵀ, in the memory of `onto`, which is used up.

    x `(..., C_in)`, weight `(C_out, C_in)`, onto `(..., C_out)`, contiguous -> y like `onto`; float32,
    bfloat16 or float16, all of one dtype, summed in float32. Raises `ValueError` for shapes and devices,
    `TypeError` for dtypes.
    """
    return add_product("linear_onto", x, weight, onto), (x, weight)


def linear_onto_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, donto (dy itself)."""
    x, weight = saved
    check("linear_onto", dy, x, weight)
    if dy.shape != (*x.shape[:-1], len(weight)):
        raise ValueError(
            f"linear_onto: x {tuple(x.shape)} and weight {tuple(weight.shape)} have no gradient "
            f"{tuple(dy.shape)}."
        )
    flat = matrix(dy)
    return (flat @ weight).view(x.shape), flat.t() @ matrix(x), dy
