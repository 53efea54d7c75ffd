"""AdamW over all weights of a model in one launch, by the table of `kernels.adamw_table`."""

from collections.abc import Sequence

from torch import Tensor

from kernels.adamw_table import adamw_table
from kernels.cuda import emulator
from kernels.cuda.launch import DTYPES, check, emulated, module

NAMES = dict(zip(DTYPES, ("float", "__nv_bfloat16", "__half"), strict=True))
THREADS = 128  # of a block, in adamw.cu


def adamw_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    m: Sequence[Tensor],
    v: Sequence[Tensor],
    steps: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decays: Sequence[float],
) -> None:
    """One step of AdamW (Loshchilov and Hutter, 2019) for all weights, in place; `steps` counts it too.

    m ← β₁ m + (1-β₁) g and v ← β₂ v + (1-β₂) g²; then w ← w - lr weight_decay w, and
    w ← w - lr m̂ / (√v̂ + ε), where m̂ and v̂ undo the bias of starting at 0. `weight_decays` has one number
    for each weight. Weights, gradients and means are float32, bfloat16 or float16, each kind of one dtype,
    dense and of the same shapes; everything is computed in float32.

    Errors, and what addresses not seen lately cost: `kernels.adamw_table`.
    """
    kinds = weights, gradients, m, v
    table = adamw_table(check, kinds, weight_decays)
    if table is None or not len(table.rows):
        return
    weight, gradient, mean = (NAMES[kind[0].dtype] for kind in kinds[:3])
    vector = 4 if table.aligned else 1
    kernel = module("adamw.cu", WEIGHT=weight, GRADIENT=gradient, MEAN=mean, VECTOR=vector).adamw
    launch = kernel[len(table.rows), THREADS]
    numbers = lr, *betas, eps, 1 - betas[0] ** steps, (1 - betas[1] ** steps) ** 0.5
    if emulated():  # whose checks know the addresses of arguments, and not those in a table
        with emulator.reachable([x for kind in kinds for x in kind]):
            launch(table.rows, table.weight_decays, *map(float, numbers))
    else:
        launch(table.rows, table.weight_decays, *numbers)
