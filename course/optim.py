"""Optimizers over weights by name: each takes the gradients and changes the weights in place."""

import torch
from torch import Tensor


class SGD:
    """w ← w - lr g."""

    def __init__(self, weights: dict[str, Tensor], lr: float):
        self.weights, self.lr = weights, lr

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        for name, w in self.weights.items():
            w.sub_(gradients[name], alpha=self.lr)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    m ← β₁ m + (1-β₁) g and v ← β₂ v + (1-β₂) g²; then w ← w - lr weight_decay w, for matrices only, and
    w ← w - lr m̂ / (√v̂ + ε), where m̂ and v̂ undo the bias of starting at 0. Every line works on all
    tensors at once (`torch._foreach_…`), because a small model's time is the number of its launches.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        self.names = list(weights)
        self.weights = [w.detach() for w in weights.values()]  # the same memory
        self.matrices = [w for w in self.weights if w.dim() >= 2]
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.m = [torch.zeros_like(w) for w in self.weights]
        self.v = [torch.zeros_like(w) for w in self.weights]
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        g = [gradients[name] for name in self.names]
        beta1, beta2 = self.betas
        self.steps += 1
        torch._foreach_mul_(self.m, beta1)
        torch._foreach_add_(self.m, g, alpha=1 - beta1)
        torch._foreach_mul_(self.v, beta2)
        torch._foreach_addcmul_(self.v, g, g, 1 - beta2)
        if self.weight_decay:
            torch._foreach_mul_(self.matrices, 1 - self.lr * self.weight_decay)
        denominator = torch._foreach_sqrt(self.v)
        torch._foreach_div_(denominator, (1 - beta2**self.steps) ** 0.5)
        torch._foreach_add_(denominator, self.eps)
        torch._foreach_addcdiv_(self.weights, self.m, denominator, -self.lr / (1 - beta1**self.steps))


def clip(gradients: dict[str, Tensor], max_norm: float) -> Tensor:
    """Scale all gradients, in place, so that their joint norm is at most `max_norm`; -> the norm before."""
    g = list(gradients.values())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(g)))
    torch._foreach_mul_(g, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
