"""How much arithmetic a training step is, and which part of a GPU's peak that makes (MFU)."""

import re

from course.config import ModelConfig

# Dense peaks of 16-bit tensor-core arithmetic, TFLOP/s, as NVIDIA's data sheets give them. Where a sheet
# gives the figure "with sparsity", which counts zeros that are skipped, half of it stands here.
# The first pattern that occurs in the GPU's name decides.
PEAKS = (
    (r"\bB200\b", 2250.0),  # HGX B200 data sheet (2025): 4.5 PFLOP/s with sparsity
    (r"\bH200\b", 989.4),  # H200 data sheet (2024): 1,979 with sparsity
    (r"\bH100 PCIe\b", 756.5),  # H100 data sheet (2023): 1,513 with sparsity
    (r"\bH100 NVL\b", 835.5),  # H100 NVL, H100 data sheet (2024): 1,671 with sparsity
    (r"\bH100\b", 989.4),  # H100 SXM, H100 data sheet (2023): 1,979 with sparsity
    (r"\bA100\b", 312.0),  # A100 data sheet (2021): 312
    (r"\bA10G\b", 70.0),  # the A10 as Amazon rents it, at lower clocks: A10G data sheet (2021): 70
    (r"\bA10\b", 125.0),  # A10 data sheet (2021): 125
    (r"\bL40S\b", 362.05),  # L40S data sheet (2023): 733 with sparsity, 362.05 without
    (r"\bL4\b", 121.0),  # L4 data sheet (2023): 242 with sparsity
    (r"\bT4\b", 65.0),  # T4 data sheet (2019): 65, float16 only
)


def peak(gpu: str) -> float | None:
    """FLOP/s that a GPU of this name could do at most in bfloat16 or float16; None for an unknown one."""
    for pattern, tflops in PEAKS:
        if re.search(pattern, gpu):
            return tflops * 1e12
    return None


def n_multiplied(config: ModelConfig) -> int:
    """N: the parameters that every token is multiplied with.

    A look-up multiplies nothing: position tables do not count, and the embedding table counts only where
    it is the head as well.
    """
    n = config.n_parameters()
    if not config.tie_embeddings:
        n -= config.vocab_size * config.d_model
    if config.position == "learned":
        n -= config.context_length * config.d_model
    return n


def per_token(config: ModelConfig) -> int:
    """FLOPs of training on one token, forward and backward: 6 N + 12 L H D T.

    A product with a matrix is 2 FLOPs a parameter, and the backward pass makes two more of each: 6 N.
    Attention's q kᵀ and p v are 2 H D T each, forward, and twice that backward, in each of L layers (H
    heads of width D, T the context; a causal model's unseen half counts, as is usual, so that figures
    compare: Chowdhery et al., PaLM, 2022, appendix B).
    """
    attention = 12 * config.n_layer * config.n_head * config.d_head * config.context_length
    return 6 * n_multiplied(config) + attention


def utilization(config: ModelConfig, tokens_per_second: float, peak_flops: float | None) -> float | None:
    """MFU: the model's FLOPs done a second, over the peak; None where there is no known peak."""
    return None if peak_flops is None else per_token(config) * tokens_per_second / peak_flops
