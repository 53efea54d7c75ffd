"""Mixed precision: products of matrices in 16 bits, weights and sums in 32, and a scaled loss where 16 bits
would lose its gradients."""

import torch

from course import device
from course.model import Transformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose(name: str, engine: str) -> torch.dtype:
    """What a recipe's `precision` means on this machine. Raises `ValueError` for what cannot be.

    The reference engine is there to be exact.
    """
    if name == "auto":
        return torch.float32 if engine == "reference" else device.DTYPE
    if name != "float32" and engine == "reference":
        raise ValueError(
            f"precision = {name}: the engine reference computes in float32; choose another engine for less."
        )
    return DTYPES[name]


class Copy:
    """A model whose weights are those of another one, rounded to `dtype`: it computes, the other one learns.

    Autocast rounds what PyTorch's own operations read, and knows of no others. So an engine with kernels of
    its own is given weights in 16 bits, and all that it computes and keeps has 16 bits, while the optimizer
    adds its small steps to the float32 weights (Micikevicius et al., 2018, "master weights").
    """

    def __init__(self, model: Transformer, engine: str, dtype: torch.dtype):
        where = model.embedding.weight.device
        self.model = Transformer(model.config, engine, weights=model.weights, device=where, dtype=dtype)
        self.model.lay_weights_beside()
        self.originals = [w.detach() for w in model.weights.values()]
        self.rounded = [w.detach() for w in self.model.weights.values()]

    def refresh(self) -> None:
        """Round the weights anew, after they have changed."""
        torch._foreach_copy_(self.rounded, self.originals)


class LossScaler:
    """Dynamic loss scaling (Micikevicius et al., 2018), for float16.

    float16's smallest positive number is 6e-8, and many gradients are smaller. The loss is multiplied by
    `scale` before the backward pass, and the gradients, which are float32 by then, are divided by it. A
    scale that is too large shows as a gradient that is not finite: that step is left out and the scale
    halved. After `interval` good steps it is doubled.
    """

    def __init__(self, scale: float = 2.0**16, interval: int = 2000):
        self.scale, self.interval, self.good = scale, interval, 0

    def update(self, finite: bool) -> None:
        """Learn from a step. Raises `FloatingPointError` when even a scale of 1 overflows."""
        if finite:
            self.good += 1
            if self.good == self.interval:
                self.scale, self.good = self.scale * 2, 0
            return
        self.scale, self.good = self.scale / 2, 0
        if self.scale < 1:
            raise FloatingPointError(
                "The gradients overflow float16 even without loss scaling: lower the learning rate, or "
                "train in bfloat16 or float32."
            )

    def state(self) -> dict[str, float]:
        return {"scale": self.scale, "good": self.good}

    def load_state(self, state: dict[str, float]) -> None:
        self.scale, self.good = state["scale"], state["good"]
