"""A model's first weights, from a seed: the same numbers on every machine and for every engine.

NumPy's generator draws them in float64, because PyTorch's own normal numbers differ in their last bits
from one processor to the next.
"""

import math

import numpy as np

from course.config import ModelConfig

STD = 0.02  # of every matrix (Radford et al., 2019)


def initial_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Every parameter of `config` by name, float64.

    Matrices are normal with standard deviation 0.02; the two that end a residual branch (`attention.o`,
    `mlp.down`) are divided by √(2 n_layer), so that the sum of all branches keeps its size. Norms start
    as the identity, biases and sinks at 0.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in config.parameter_shapes().items():
        if len(shape) == 2:
            last = name.endswith(("attention.o.weight", "mlp.down.weight"))
            std = STD / math.sqrt(2 * config.n_layer) if last else STD
            weights[name] = std * rng.standard_normal(shape)
        elif name.endswith("norm.weight"):
            weights[name] = np.ones(shape)
        else:
            weights[name] = np.zeros(shape)
    return weights


def rope_tables(context_length: int, d_head: int, theta: float = 10_000.0) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position t times frequency θ^(-2i/D): two arrays `(T, D/2)`, float64."""
    frequencies = theta ** (-np.arange(0, d_head, 2) / d_head)
    angles = np.outer(np.arange(context_length), frequencies)
    return np.cos(angles), np.sin(angles)
