"""Mixed precision: matrix products in 16 bits, weights and sums in 32, and the loss scaled where 16 bits
would lose its gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor

from course import device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose(name: str, engine: str, by_hand: bool) -> torch.dtype:
    """What a recipe's `precision` means here. Raises `ValueError` for what cannot be.

    Autocast knows PyTorch's own operations: the other engines, and the model by hand, keep the dtype of
    their weights, float32.
    """
    castable = engine == "torch" and not by_hand
    if name == "auto":
        return device.DTYPE if castable else torch.float32
    if name != "float32" and not castable:
        raise ValueError(
            f"precision = {name} is for the engine torch through autograd: the others compute in the "
            "dtype of their weights. Choose float32, or engine torch."
        )
    return DTYPES[name]


class LossScaler:
    """Dynamic loss scaling (Micikevicius et al., 2018), for float16.

    float16's smallest positive number is 6e-8, and many gradients are smaller. The loss is multiplied by
    `scale` before the backward pass and the gradients, in float32 by then, are divided by it. A scale that
    is too large shows as an infinite gradient: that step is left out and the scale halved. After
    `interval` good steps it doubles.
    """

    def __init__(self, scale: float = 2.0**16, interval: int = 2000):
        self.scale, self.interval, self.good = scale, interval, 0

    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """Divide by the scale, in place."""
        torch._foreach_mul_(list(gradients), 1 / self.scale)

    def update(self, finite: bool) -> None:
        """Learn from a step. Raises `FloatingPointError` when even a scale of 1 overflows."""
        if not finite:
            self.scale, self.good = self.scale / 2, 0
            if self.scale < 1:
                raise FloatingPointError(
                    "The gradients overflow float16 even without loss scaling: lower the learning rate, "
                    "or train in bfloat16 or float32."
                )
        else:
            self.good += 1
            if self.good == self.interval:
                self.scale, self.good = self.scale * 2, 0

    def state(self) -> dict:
        return {"scale": self.scale, "good": self.good}

    def load_state(self, state: dict) -> None:
        self.scale, self.good = state["scale"], state["good"]
