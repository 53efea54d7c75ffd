"""Triton kernels: every operation of the course for NVIDIA GPUs, and in Triton's interpreter without one.

One file a family; `launch` holds what they share. With `TRITON_INTERPRET=1` in the environment when Triton
is imported, the same kernels run on the CPU, one program after the other.
"""

from kernels.triton.attention import attention_backward, attention_forward  # noqa: F401
from kernels.triton.norms import (  # noqa: F401
    add_layernorm_backward,
    add_layernorm_forward,
    add_rmsnorm_backward,
    add_rmsnorm_forward,
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)
from kernels.triton.softmax import softmax_backward, softmax_forward  # noqa: F401
