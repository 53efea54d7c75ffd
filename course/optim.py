"""Optimizers over weights by name: each takes the gradients and changes the weights in place.

`state()` is what an optimizer remembers, tensors by name; `load_state` takes it back, so that a run that
starts again goes on as if nothing had happened.
"""

import importlib
import math
from collections import defaultdict

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

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        _check_names(state, [])


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    m ← β₁ m + (1-β₁) g and v ← β₂ v + (1-β₂) g²; then w ← w - lr weight_decay w, for matrices only, and
    w ← w - lr m̂ / (√v̂ + ε), where m̂ and v̂ undo the bias of starting at 0. Every line works on all
    tensors at once (`torch._foreach_…`), because a small model's time is the number of its launches; with
    `one_kernel`, "triton" or "cuda", all lines are one launch of that engine's, which takes 16-bit gradients
    too.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        one_kernel: str | None = None,
    ):
        self.names = list(weights)
        self.weights = [w.detach() for w in weights.values()]  # the same memory
        self.matrices = [w for w in self.weights if w.dim() >= 2]
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.m = [torch.zeros_like(w) for w in self.weights]
        self.v = [torch.zeros_like(w) for w in self.weights]
        self.steps = 0
        self.one_kernel = None
        if one_kernel:  # imported here: not everywhere is there a Triton
            self.one_kernel = importlib.import_module(f"kernels.{one_kernel}.adamw").adamw_

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        g = [gradients[name] for name in self.names]
        beta1, beta2 = self.betas
        self.steps += 1
        if self.one_kernel:
            decays = [self.weight_decay if w.dim() >= 2 else 0.0 for w in self.weights]
            self.one_kernel(
                self.weights, g, self.m, self.v, self.steps, self.lr, self.betas, self.eps, decays
            )
            return
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

    def state(self) -> dict[str, Tensor]:
        """The two means, `m.<name>` and `v.<name>`, and the number of steps."""
        state = {f"m.{name}": m for name, m in zip(self.names, self.m, strict=True)}
        state |= {f"v.{name}": v for name, v in zip(self.names, self.v, strict=True)}
        return {**state, "steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Raises `ValueError` for a state of other weights."""
        _check_names(state, list(self.state()))
        for name, m, v in zip(self.names, self.m, self.v, strict=True):
            m.copy_(state[f"m.{name}"])
            v.copy_(state[f"v.{name}"])
        self.steps = int(state["steps"])


class Muon:
    """Momentum, orthogonalized, for the hidden matrices (Jordan et al., 2024); AdamW for all others.

    For a matrix W `(out, in)` of a block: m ← μ m + (1-μ) g; u = μ m + (1-μ) g (Nesterov's look ahead);
    W ← W - lr weight_decay W - lr √max(1, out/in) orthogonalize(u). Embeddings, the head, gains, biases
    and sinks get `AdamW` with `adam_lr` and `adam_weight_decay`. Setting `lr`, as a schedule does, scales
    both alike.

    Matrices of one shape have their momenta side by side and are orthogonalized in one batch, on a GPU in
    bfloat16: a small model's time is the number of its launches. `one_kernel` is `AdamW`'s. Raises
    `ValueError` when there is no hidden matrix.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        lr: float = 0.02,
        adam_lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        adam_weight_decay: float = 0.0,
        momentum: float = 0.95,
        one_kernel: str | None = None,
    ):
        hidden = {name: w.detach() for name, w in weights.items() if is_hidden_matrix(name, w)}
        if not hidden:
            raise ValueError("None of these weights is a matrix of a block: use AdamW for them.")
        others = {name: w for name, w in weights.items() if name not in hidden}
        self.names, self.weights = list(hidden), list(hidden.values())
        self.adamw = AdamW(others, adam_lr, betas, eps, adam_weight_decay, one_kernel)
        self.lr, self.adam_ratio = lr, adam_lr / lr
        self.momentum, self.weight_decay = momentum, weight_decay
        places = defaultdict(list)  # by shape: of its matrices in the lists above
        for i, w in enumerate(self.weights):
            places[tuple(w.shape)].append(i)
        first = self.weights[0]
        self.groups = [(members, first.new_zeros(len(members), *shape)) for shape, members in places.items()]
        views = {i: m for members, stack in self.groups for i, m in zip(members, stack.unbind(), strict=True)}
        self.m = [views[i] for i in range(len(self.weights))]

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        self.adamw.lr = self.lr * self.adam_ratio
        self.adamw.step(gradients)
        if self.weight_decay:
            torch._foreach_mul_(self.weights, 1 - self.lr * self.weight_decay)
        for members, m in self.groups:
            g = torch.empty_like(m)
            torch._foreach_copy_(list(g.unbind()), [gradients[self.names[i]] for i in members])
            m.lerp_(g, 1 - self.momentum)
            batch = orthogonalize(torch.lerp(g, m, self.momentum, out=g))
            size = self.lr * math.sqrt(max(1.0, m.shape[-2] / m.shape[-1]))
            torch._foreach_add_([self.weights[i] for i in members], list(batch.unbind()), alpha=-size)

    def state(self) -> dict[str, Tensor]:
        """The momenta, `momentum.<name>`, and what AdamW remembers of the others, `adamw.…`."""
        state = {f"momentum.{name}": m for name, m in zip(self.names, self.m, strict=True)}
        return state | {f"adamw.{name}": value for name, value in self.adamw.state().items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Raises `ValueError` for a state of other weights."""
        _check_names(state, list(self.state()))
        for name, m in zip(self.names, self.m, strict=True):
            m.copy_(state[f"momentum.{name}"])
        prefix = "adamw."
        self.adamw.load_state({n.removeprefix(prefix): s for n, s in state.items() if n.startswith(prefix)})


def is_hidden_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon moves it: a matrix of a block, from features to features."""
    return name.startswith("blocks.") and weight.dim() == 2


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. (2024): steep at 0, close to 1 after five steps


def orthogonalize(
    matrices: Tensor,
    steps: int = 5,
    coefficients: tuple[float, float, float] = NEWTON_SCHULZ,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Matrices `(…, M, N)` with their singular values brought close to 1, without computing an SVD.

    With X = U S Vᵀ, the step X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X leaves U and V alone and sends every
    singular value s to a s + b s³ + c s⁵. The published coefficients do not converge to 1: after five
    steps, values that were above about 0.002 of the norm lie between 0.67 and 1.21, which serves
    training as well and costs less. `dtype` is what it computes in: bfloat16 on a GPU unless given.
    """
    if dtype is None:
        dtype = torch.bfloat16 if matrices.is_cuda else matrices.dtype
    a, b, c = coefficients
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # X Xᵀ is the smaller of the two Gram matrices
    # Divided by the Frobenius norm, no singular value is above 1.
    norm = x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    x = torch.div(x, norm, out=x.new_empty(x.shape, dtype=dtype)).reshape(-1, *x.shape[-2:])
    for _ in range(
        steps
    ):  # sums in the matrix products that they belong to: no pass of their own over memory
        gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, factor, x, beta=a)
    x = x.view(*matrices.shape[:-2], *x.shape[-2:])
    return (x.mT if tall else x).to(matrices.dtype)


def _check_names(state: dict[str, Tensor], expected: list[str]) -> None:
    if sorted(state) != sorted(expected):
        strange = sorted(set(state) ^ set(expected))
        raise ValueError(
            f"This optimizer's state is of another optimizer or model: {strange[0]!r} is "
            f"{'unknown' if strange[0] in state else 'missing'}. Resume with the recipe it was saved with."
        )


def clip(gradients: dict[str, Tensor], max_norm: float, norms: Tensor | None = None) -> Tensor:
    """Scale all gradients, in place, so that their joint norm is at most `max_norm`; -> the norm before.

    `norms` are those of each gradient, where somebody has computed them already.
    """
    g = list(gradients.values())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(g)) if norms is None else norms)
    torch._foreach_mul_(g, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
