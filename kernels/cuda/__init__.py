"""CUDA C++ kernels: every operation of the course in `.cu` files, compiled when they are first used.

One file of kernels a family, and beside it the Python that checks, allocates and launches. `module` compiles
and loads: for this GPU by NVRTC, or where there is none as plain C++ for the CPU, in `emulator`.
"""

from kernels.cuda.attention import attention_backward, attention_forward  # noqa: F401
from kernels.cuda.elementwise import (  # noqa: F401
    add_backward,
    add_forward,
    gelu_backward,
    gelu_forward,
    mul_backward,
    mul_forward,
    swiglu_backward,
    swiglu_forward,
)
from kernels.cuda.embedding import embedding_backward, embedding_forward  # noqa: F401
from kernels.cuda.linear import linear_backward, linear_forward  # noqa: F401
from kernels.cuda.losses import (  # noqa: F401
    cross_entropy_backward,
    cross_entropy_forward,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
    linear_cross_entropy_inference,
)
from kernels.cuda.mlp import gelu_mlp_backward, gelu_mlp_forward  # noqa: F401
from kernels.cuda.norms import (  # noqa: F401
    add_layernorm_backward,
    add_layernorm_forward,
    add_rmsnorm_backward,
    add_rmsnorm_forward,
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)
from kernels.cuda.rope import rope_backward, rope_forward  # noqa: F401
from kernels.cuda.softmax import softmax_backward, softmax_forward  # noqa: F401
