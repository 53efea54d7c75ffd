"""Learning-rate schedules: the factor at a step, which the optimizer's own rate is multiplied with."""

import math

SHAPES = ("cosine", "linear", "constant")


def factor(
    shape: str, step: int, steps: int, *, warmup: int = 100, floor: float = 0.1, decay: float = 1.0
) -> float:
    """Up to 1 over `warmup` steps, then down to `floor` in a `shape`, reached after `steps`.

    The fall takes the last `decay` of the steps: 1 begins it right after the warm-up, 0.5 stays at 1 until
    half of the run is over (Hu et al., 2024, call that warm-up, stable, decay). "constant" never falls.
    Raises `ValueError` for an unknown shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"Unknown schedule {shape!r}: choose one of {', '.join(SHAPES)}.")
    if step < warmup:
        return (step + 1) / warmup
    start = max(warmup, steps - round(decay * steps))
    if shape == "constant" or step < start:
        return 1.0
    progress = (step - start) / max(1, steps - start)
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if shape == "cosine" else 1 - progress
    return floor + (1 - floor) * fall


def warmup_cosine(step: int, steps: int, warmup: int = 100, floor: float = 0.1) -> float:
    """The learning rate's factor at a step: up to 1 over `warmup` steps, then down a cosine to `floor`."""
    return factor("cosine", step, steps, warmup=warmup, floor=floor)
