"""Triton kernels: every operation of the course for NVIDIA GPUs, and in Triton's interpreter without one.

One file a family; `launch` holds what they share. With `TRITON_INTERPRET=1` in the environment when Triton
is imported, the same kernels run on the CPU, one program after the other.

`linear` is PyTorch's: for tensors of PyTorch's the library's matrix product is there, and faster than the one
that is written here as a pair, for those who differentiate by hand or have no PyTorch.
"""

from kernels.torch import linear  # noqa: F401
from kernels.triton.activations import (  # noqa: F401
    gelu_backward,
    gelu_forward,
    swiglu_backward,
    swiglu_forward,
)
from kernels.triton.attention import (  # noqa: F401
    attention_backward,
    attention_forward,
)
from kernels.triton.elementwise import (  # noqa: F401
    add_backward,
    add_forward,
    mul_backward,
    mul_forward,
)
from kernels.triton.embedding import embedding_backward, embedding_forward  # noqa: F401
from kernels.triton.losses import (  # noqa: F401
    cross_entropy_backward,
    cross_entropy_forward,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
    linear_cross_entropy_inference,
)
from kernels.triton.matmul import linear_backward, linear_forward  # noqa: F401
from kernels.triton.mlp import (  # noqa: F401
    gelu_mlp_backward,
    gelu_mlp_forward,
    gelu_mlp_inference,
    swiglu_mlp_backward,
    swiglu_mlp_forward,
    swiglu_mlp_inference,
)
from kernels.triton.norms import (  # noqa: F401
    add_layernorm_backward,
    add_layernorm_forward,
    add_rmsnorm_backward,
    add_rmsnorm_forward,
    layernorm_backward,
    layernorm_forward,
    normalize_backward,
    normalize_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)
from kernels.triton.residual import linear_onto_backward, linear_onto_forward  # noqa: F401
from kernels.triton.rope import rope_backward, rope_forward  # noqa: F401
from kernels.triton.rotary import rotary_attention_backward, rotary_attention_forward  # noqa: F401
from kernels.triton.softmax import softmax_backward, softmax_forward  # noqa: F401
