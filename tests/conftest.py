import torch

import course.device  # noqa: F401, before anything imports Triton: without a GPU its kernels are interpreted

# The tests' tensors are tiny: more threads would only wait for each other.
torch.set_num_threads(1)
