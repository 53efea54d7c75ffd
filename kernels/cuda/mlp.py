"""An MLP whose GELU happens inside its matrix products, while their results are still in registers.

GELU on its own reads and writes as many numbers as the widest array of the model has. Here

    pre = x Wuᵀ + bu        is stored as pre and as h = gelu(pre)       in the forward pass,
    dh  = dy Wd             is stored as dpre = dh gelu'(pre)           in the backward pass,

by the products' own kernels, in `linear.cu`: the forward pass never reads pre, and dh never stands in memory.
"""

from torch import Tensor

from kernels.checks import check_mlp
from kernels.cuda.launch import check
from kernels.cuda.linear import gradients, product, product_and_gelu


def gelu_mlp_forward(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None):
    """y = gelu(x upᵀ + up_bias) downᵀ + down_bias, with the tanh approximation of GELU, as `gelu_forward`.

    x `(..., C)`, up `(F, C)`, down `(C_out, F)`, biases `(F)` and `(C_out)` or None -> y `(..., C_out)`.
    float32, bfloat16 or float16, all of one dtype, of any strides; summed in float32. Raises `ValueError` for
    shapes and devices that do not fit, `TypeError` for dtypes.
    """
    check_mlp(x, up, up_bias, down, down_bias)
    check("gelu_mlp", x, up, up_bias, down, down_bias)
    pre, h = product_and_gelu(x, up, up_bias)
    y = product(h, down, down_bias)
    return y, (x, up, pre, h, down, up_bias is not None, down_bias is not None)


def gelu_mlp_backward(dy: Tensor, saved: tuple):
    """-> dx, dup, dup_bias, ddown, ddown_bias (a bias that is None has the gradient None)."""
    x, up, pre, h, down, has_up_bias, has_down_bias = saved
    dpre, ddown, ddown_bias = gradients(dy, h, down, has_down_bias, pre)
    dx, dup, dup_bias = gradients(dpre, x, up, has_up_bias)
    return dx, dup, dup_bias, ddown, ddown_bias
