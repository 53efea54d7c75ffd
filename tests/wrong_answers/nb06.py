"""Mistakes that a careful person could make in the exercises of notebook 06."""

import math

import torch


def _mean(gradients, betas):
    m = torch.zeros_like(gradients[0])
    for g, beta in zip(gradients, betas, strict=True):
        m = beta * m + (1 - beta) * g
    return m


def _last_beta(gradients, betas):
    return _mean(gradients, betas) / (1 - betas[-1] ** len(betas))


def _swapped_betas(gradients, betas):
    m, left = 0.0, 1.0
    for g, beta in zip(gradients, betas, strict=True):
        m, left = (1 - beta) * m + beta * g, left * (1 - beta)
    return m / (1 - left)


def _schedule(first, fall):
    def factor(step, steps, warmup, decay):
        if step < warmup:
            return first(step, warmup)
        start = steps - decay
        return fall((step - start) / decay) if decay and step >= start else 1.0

    return factor


def _warmed(step, warmup):
    return (step + 1) / warmup


def _combine(counts_matter=True, unscale_first=True, joint=True, look=True, in_place=False, clip=True):
    def answer(pieces, counts, scale, max_norm):
        weights = counts if counts_matter else [1] * len(counts)
        total = {}
        for piece, n in zip(pieces, weights, strict=True):
            for name, g in piece.items():
                if in_place:
                    g *= n / sum(weights) / scale
                    total[name] = total.get(name, 0) + g
                else:
                    total[name] = total.get(name, 0) + g * n / sum(weights)
        if unscale_first and not in_place:
            total = {name: g / scale for name, g in total.items()}
        if look and not all(torch.isfinite(g).all() for g in total.values()):
            return "skip"
        norm = math.sqrt(sum(g.square().sum().item() for g in total.values()))
        for name, g in total.items():
            own = norm if joint else g.norm().item()
            total[name] = g * min(1.0, max_norm / own) if clip else g
        if not unscale_first:
            total = {name: g / scale for name, g in total.items()}
        return total

    return answer


def _keeps_the_scale(pieces, counts, scale, max_norm):
    return _combine()(pieces, counts, 1.0, max_norm * scale)


def _newton_schulz(coefficients, steps, divide=True):
    def answer(matrix):
        a, b, c = coefficients
        x = matrix / matrix.norm() if divide else matrix
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x

    return answer


def _by_svd(matrix):
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vt


WRONG_ANSWERS = {
    "06.1": [
        (_mean, "do not add up to 1"),
        (_last_beta, "each β was used once"),
        (_swapped_betas, "wrong values"),
        (lambda gradients, betas: torch.stack(gradients).mean(0), "wrong values"),
    ],
    "06.2": [
        (_schedule(lambda step, warmup: step / warmup, lambda x: 1 - math.sqrt(x)), "a step for nothing"),
        (_schedule(_warmed, lambda x: 1 - x), "straight line"),
        (_schedule(_warmed, lambda x: math.sqrt(1 - x)), "not 1 - √x"),
        (_schedule(_warmed, lambda x: 1 - math.sqrt(min(1.0, x + 0.025))), "in the fall"),
    ],
    "06.3": [
        (_combine(counts_matter=False), "different numbers of tokens"),
        (_combine(unscale_first=False), "the scale was still in it"),
        (_combine(joint=False), "one factor for all"),
        (_combine(look=False), "expected the string 'skip'"),
        (_combine(in_place=True), "belong to the caller"),
        (_combine(clip=False), "should be at most"),
        (_keeps_the_scale, "still have the scale"),
    ],
    "06.4": [
        (_newton_schulz((3.4445, -4.7750, 2.0315), 5), "all should be 1"),
        (_newton_schulz((1.875, -1.25, 0.375), 8), "more steps"),
        (_newton_schulz((1.875, -1.25, 0.375), 30, divide=False), "not finite"),
        (lambda matrix: _newton_schulz((1.875, -1.25, 0.375), 30)(matrix).T, "transposed"),
        (_by_svd, "products of matrices are enough"),
    ],
}
