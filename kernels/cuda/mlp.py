"""An MLP whose GELU happens inside its matrix products, while their results are still in registers.

GELU on its own reads and writes as many numbers as the widest array of the model has. Here

    pre = x Wuᵀ + bu        is stored as pre and as h = gelu(pre)       in the forward pass,
    dh  = dy Wd             is stored as dpre = dh gelu'(pre)           in the backward pass,

by the products' own kernels, in `linear.cu`: the forward pass never reads pre, and dh never stands in memory.
"""

from torch import Tensor

from kernels.checks import check_mlp
from kernels.cuda.launch import check
from kernels.cuda.linear import check_gradient, gradient_of_input, gradients_of_weights, times_weight


def gelu_mlp_forward(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None):
    """y = gelu(x upᵀ + up_bias) downᵀ + down_bias, with the tanh approximation of GELU, as `gelu_forward`.

    x `(..., C)`, up `(F, C)`, down `(C_out, F)`, biases `(F)` and `(C_out)` or None -> y `(..., C_out)`.
    float32, bfloat16 or float16, all of one dtype, of any strides; summed in float32. Raises `ValueError` for
    shapes and devices that do not fit, `TypeError` for dtypes.
    """
    check_mlp(x, up, up_bias, down, down_bias)
    check("gelu_mlp", x, up, up_bias, down, down_bias)
    pre, h = times_weight("linear_forward_gelu", x, up, up_bias, n_outputs=2)
    (y,) = times_weight("linear_forward", h, down, down_bias, n_outputs=1)
    return y, (x, up, pre, h, down, up_bias is not None, down_bias is not None)


def gelu_mlp_backward(dy: Tensor, saved: tuple):
    """-> dx, dup, dup_bias, ddown, ddown_bias (a bias that is None has the gradient None)."""
    x, up, pre, h, down, has_up_bias, has_down_bias = saved
    check_gradient("gelu_mlp", dy, h, down)
    dpre = gradient_of_input(dy, down, pre)
    ddown, ddown_bias = gradients_of_weights(dy, h, has_down_bias)
    dup, dup_bias = gradients_of_weights(dpre, x, has_up_bias)
    return gradient_of_input(dpre, up), dup, dup_bias, ddown, ddown_bias
