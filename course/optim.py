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
    too. A step's `factor`, see `clip_factor`, scales the gradients: in place, or with "triton" as that kernel
    reads them.
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
        self.one_kernel, self.clips = None, one_kernel == "triton"
        if one_kernel:  # imported here: not everywhere is there a Triton
            self.one_kernel = importlib.import_module(f"kernels.{one_kernel}.adamw").adamw_

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], factor: Tensor | None = None) -> None:
        g = [gradients[name] for name in self.names]
        if factor is not None and not self.clips:
            torch._foreach_mul_(g, factor)
        beta1, beta2 = self.betas
        self.steps += 1
        if self.one_kernel:
            decays = [self.weight_decay if w.dim() >= 2 else 0.0 for w in self.weights]
            more = {"factor": factor} if self.clips else {}
            self.one_kernel(
                self.weights, g, self.m, self.v, self.steps, self.lr, self.betas, self.eps, decays, **more
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
    float16: a small model's time is the number of its launches. `factor` and `one_kernel` are `AdamW`'s; with
    "triton" the lines above, too, are that engine's, one launch before the norm, one for it and one after the
    iteration.
    Raises `ValueError` when there is no hidden matrix.
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
        self.kernels = importlib.import_module("kernels.triton.muon") if one_kernel == "triton" else None
        places = defaultdict(list)  # by shape: of its matrices in the lists above
        for i, w in enumerate(self.weights):
            places[tuple(w.shape)].append(i)
        first = self.weights[0]
        self.groups = [(members, first.new_zeros(len(members), *shape)) for shape, members in places.items()]
        views = {i: m for members, stack in self.groups for i, m in zip(members, stack.unbind(), strict=True)}
        self.m = [views[i] for i in range(len(self.weights))]

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], factor: Tensor | None = None) -> None:
        self.adamw.lr = self.lr * self.adam_ratio
        self.adamw.step(gradients, factor)
        decay = self.lr * self.weight_decay
        for members, m in self.groups:
            w, g = [self.weights[i] for i in members], [gradients[self.names[i]] for i in members]
            size = self.lr * math.sqrt(max(1.0, m.shape[-2] / m.shape[-1]))
            if self.kernels:
                x = self.kernels.look_ahead_(g, m, self.momentum, _iterated_in(m), factor)
                self.kernels.update_(w, newton_schulz(x), size, decay)
                continue
            if factor is not None:
                torch._foreach_mul_(g, factor)
            u = torch.empty_like(m)
            torch._foreach_copy_(list(u.unbind()), g)
            m.lerp_(u, 1 - self.momentum)
            batch = orthogonalize(torch.lerp(u, m, self.momentum, out=u))
            if decay:
                torch._foreach_mul_(w, 1 - decay)
            torch._foreach_add_(w, list(batch.unbind()), alpha=-size)

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

    The published coefficients do not converge to 1: after five steps of `newton_schulz`, values that were
    above about 0.002 of the norm lie between 0.67 and 1.21, which serves training as well and costs less.
    `dtype` is what it computes in: float16 on a GPU unless given.
    """
    # Divided by the Frobenius norm, no singular value is above 1.
    norm = matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    x = matrices.new_empty(matrices.shape, dtype=dtype or _iterated_in(matrices))
    return newton_schulz(torch.div(matrices, norm, out=x), steps, coefficients).to(matrices.dtype)


def _iterated_in(matrices: Tensor) -> torch.dtype:
    """On a GPU in float16, not bfloat16: divided by their norms, matrices need its digits, not a range."""
    return torch.float16 if matrices.is_cuda else matrices.dtype


def newton_schulz(
    x: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = NEWTON_SCHULZ
) -> Tensor:
    """Matrices `(…, M, N)`, no singular value of which is above 1, with these brought close to 1.

    With X = U S Vᵀ and A = X Xᵀ, the step X ← (a + b A + c A²) X leaves U and V alone and sends every
    singular value s to a s + b s³ + c s⁵. The square is completed, for c ≠ 0:
    a + b A + c A² = c (A + b/2c)² + a - b²/4c. So nothing but diagonals is added outside of the products: no
    pass over the matrices is spent on sums. For a tall X the smaller A = Xᵀ X stands on the right instead.
    """
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    batch = x.reshape(-1, *x.shape[-2:])
    for _ in range(steps):
        gram = batch.mT @ batch if tall else batch @ batch.mT
        gram.diagonal(dim1=-2, dim2=-1).add_(b / (2 * c))
        factor = torch.baddbmm(gram, gram, gram, beta=0, alpha=c)  # c gram²
        factor.diagonal(dim1=-2, dim2=-1).add_(a - b * b / (4 * c))
        batch = batch @ factor if tall else factor @ batch
    return batch.view(x.shape)


def _check_names(state: dict[str, Tensor], expected: list[str]) -> None:
    if sorted(state) != sorted(expected):
        strange = sorted(set(state) ^ set(expected))
        raise ValueError(
            f"This optimizer's state is of another optimizer or model: {strange[0]!r} is "
            f"{'unknown' if strange[0] in state else 'missing'}. Resume with the recipe it was saved with."
        )


def clip(gradients: dict[str, Tensor], max_norm: float) -> Tensor:
    """Scale all gradients, in place, so that their joint norm is at most `max_norm`; -> the norm before."""
    g = list(gradients.values())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(g)))
    torch._foreach_mul_(g, clip_factor(norm, max_norm))
    return norm


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What scales gradients of a joint norm to one of at most `max_norm`."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
