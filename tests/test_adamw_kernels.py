"""AdamW as one launch over all parameters, Triton's and CUDA's, against the course's AdamW and PyTorch's."""

import importlib

import numpy as np
import pytest
import torch

from course.device import DEVICE
from course.optim import AdamW
from kernels.adamw_table import BLOCK

SHAPES = {"matrix": (3, 7), "gain": (5,), "long": (2 * BLOCK + 3,), "one": (1, 1), "empty": (0, 4)}


@pytest.fixture(params=["triton", "cuda"])
def adamw_(request):
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton has no package for this platform")
    module = importlib.import_module(f"kernels.{request.param}.adamw")
    return module.adamw_


def tensors(seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {n: torch.from_numpy(rng.standard_normal(s)).float().to(DEVICE) for n, s in SHAPES.items()}


def test_a_hundred_steps_equal_the_courses_adamw_and_pytorchs(adamw_):
    lr, betas, eps, decay = 1e-2, (0.9, 0.99), 1e-8, 0.1
    ours, course, theirs = (tensors(0) for _ in range(3))
    decays = [decay if w.dim() >= 2 else 0.0 for w in ours.values()]
    m, v = ([torch.zeros_like(w) for w in ours.values()] for _ in range(2))
    theirs = {name: w.requires_grad_() for name, w in theirs.items()}
    groups = [{"params": [w], "weight_decay": d} for w, d in zip(theirs.values(), decays, strict=True)]
    mine, official = AdamW(course, lr, betas, eps, decay), torch.optim.AdamW(groups, lr, betas, eps)
    for step in range(1, 101):
        gradients = tensors(step)
        adamw_(list(ours.values()), list(gradients.values()), m, v, step, lr, betas, eps, decays)
        mine.step(gradients)
        for name, w in theirs.items():
            w.grad = gradients[name]
        official.step()
    for name in SHAPES:
        torch.testing.assert_close(ours[name], course[name], rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(ours[name], theirs[name].detach(), rtol=2e-6, atol=2e-6)
    assert (ours["matrix"] - tensors(0)["matrix"]).abs().min() > 0.005


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_and_gradients_are_updated_in_float32(adamw_, dtype):
    w, g = torch.full((9,), 1.0, dtype=dtype, device=DEVICE), torch.full((9,), 0.5, device=DEVICE)
    m, v = torch.zeros(9, device=DEVICE), torch.zeros(9, device=DEVICE)
    adamw_([w], [g.to(dtype)], [m], [v], 1, 0.25, (0.9, 0.99), 1e-8, [0.5])
    # (1 - 0.25 * 0.5) - 0.25, for the first step's m̂ / √v̂ is the gradient's sign
    torch.testing.assert_close(w.float(), torch.full_like(m, 0.625), rtol=0, atol=1e-3)
    torch.testing.assert_close(m, 0.1 * g)
    torch.testing.assert_close(v, 0.01 * g * g)


def test_views_that_begin_anywhere_and_nothing_beside_them(adamw_):
    memory = torch.arange(40.0, device=DEVICE)
    w = memory[3:24].view(3, 7)  # begins at no multiple of 16 bytes
    g, m, v = (torch.ones(3, 7, device=DEVICE) for _ in range(3))
    adamw_([w], [g], [m], [v], 1, 0.1, (0.9, 0.99), 1e-8, [0.0])
    moved = memory != torch.arange(40.0, device=DEVICE)
    assert moved[3:24].all() and not moved[:3].any() and not moved[24:].any()


def test_tensors_that_do_not_fit_are_refused(adamw_):
    w = [torch.ones(2, 3, device=DEVICE)]
    rest = (1, 0.1, (0.9, 0.99), 1e-8)
    adamw_([], [], [], [], *rest, [])
    with pytest.raises(ValueError, match="as many gradients"):
        adamw_(w, [], w, w, *rest, [0.0])
    with pytest.raises(ValueError, match=r"one shape.*\(3, 2\)"):
        adamw_(w, [w[0].T], w, w, *rest, [0.0])
    with pytest.raises(TypeError, match="float64"):
        adamw_(w, [w[0].double()], w, w, *rest, [0.0])


@pytest.mark.parametrize("engine", ["triton", "cuda"])
def test_the_courses_adamw_takes_the_engines(engine):
    if engine == "triton":
        pytest.importorskip("triton", reason="Triton has no package for this platform")
    ours, plain = tensors(0), tensors(0)
    fused, course = AdamW(ours, 1e-2, one_kernel=engine), AdamW(plain, 1e-2)
    assert fused.one_kernel.__module__ == f"kernels.{engine}.adamw"
    for step, factor in enumerate((None, 0.5, 0.1)):
        factor = factor and torch.tensor(factor, device=DEVICE)
        fused.step(tensors(step + 1), factor)
        course.step({name: g if factor is None else factor * g for name, g in tensors(step + 1).items()})
    for name, w in ours.items():
        torch.testing.assert_close(w, plain[name], rtol=2e-6, atol=2e-6)
