"""Muon's passes over memory as launches of Triton's, against the course's plain Muon and its formulas."""

import importlib

import numpy as np
import pytest
import torch

from course import optim, profiling
from course.device import DEVICE

pytest.importorskip("triton", reason="Triton has no package for this platform")

muon = importlib.import_module("kernels.triton.muon")

SHAPES = {  # wide, tall, square, of one element and of several programs; alone or with others of its shape
    "blocks.0.q": (16, 16),
    "blocks.1.q": (16, 16),
    "blocks.0.up": (37, 11),
    "blocks.0.down": (11, 37),
    "blocks.1.down": (11, 37),
    "blocks.2.down": (11, 37),
    "blocks.0.long": (3, 1501),
    "blocks.0.one": (1, 1),
    "blocks.0.gain": (5,),
    "embedding": (7, 4),
}
ON_GPU = DEVICE.type == "cuda"  # where the iteration is in float16


def tensors(seed: int, dtype=torch.float32, device=DEVICE) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {n: torch.from_numpy(rng.standard_normal(s)).to(device, dtype) for n, s in SHAPES.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_five_steps_equal_the_courses_muon(dtype, weight_decay):
    ours, plain = tensors(0), tensors(0)
    how = dict(lr=0.02, weight_decay=weight_decay)
    fused, course = optim.Muon(ours, **how, one_kernel="triton"), optim.Muon(plain, **how)
    assert fused.kernels is muon and course.kernels is None
    for step in range(5):
        fused.lr = course.lr = 0.02 / (step + 1)
        gradients = tensors(step + 1, dtype)
        factor = torch.tensor(0.25, dtype=dtype, device=DEVICE) if step % 2 else None
        fused.step(gradients, factor)
        course.step(tensors_of(gradients, torch.float32), factor)
    tolerance = 2e-3 if ON_GPU else 2e-6
    for name, w in ours.items():
        torch.testing.assert_close(w, plain[name], rtol=tolerance, atol=tolerance)
    assert (ours["blocks.0.up"] - tensors(0)["blocks.0.up"]).abs().max() > 0.01
    for name, x in fused.state().items():
        torch.testing.assert_close(x, course.state()[name], rtol=2e-6, atol=2e-6)


def tensors_of(x: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.to(dtype) for name, value in x.items()}


def test_a_step_equals_muon_in_float64():
    ours, exact = tensors(0), tensors(0, torch.float64, "cpu")
    how = dict(lr=0.1, weight_decay=0.5)
    optim.Muon(ours, **how, one_kernel="triton").step(tensors(1))
    optim.Muon(exact, **how).step(tensors(1, torch.float64, "cpu"))
    tolerance = 2e-3 if ON_GPU else 5e-6
    for name, w in ours.items():
        torch.testing.assert_close(w.double().cpu(), exact[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_look_ahead_is_divided_by_its_norm_however_small(dtype, monkeypatch):
    """And however large: float16 holds neither end of these."""
    monkeypatch.setattr(muon, "SUMS", 4)  # of five: what matrices of more than half a million numbers need
    rng = np.random.default_rng(0)
    g, before = (torch.from_numpy(rng.standard_normal((4, 65, 127))).float().to(DEVICE) for _ in range(2))
    scale = torch.tensor([1e-9, 1.0, 1e6, 0.0], device=DEVICE).view(-1, 1, 1)
    g, m = g * scale, before * scale
    x = muon.look_ahead_(list(g), m, 0.9, dtype)
    assert x.dtype == dtype
    means = (m / scale)[:3], (0.9 * before + 0.1 * g / scale)[:3]
    torch.testing.assert_close(*means, rtol=1e-6, atol=1e-6)
    u = 0.9 * m + 0.1 * g
    expected = u / u.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    # bfloat16's 8 digits, twice; Triton's interpreter cuts the rest off, where a GPU rounds.
    digits = 1e-6 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(x.float(), expected, rtol=digits, atol=1e-7)
    assert not x[3].any()


def test_the_norms_are_the_same_to_the_last_bit():
    g = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 90, 130))).float().to(DEVICE)
    first, second = (muon.look_ahead_(list(g), torch.zeros_like(g), 0.9, torch.float32) for _ in range(2))
    assert torch.equal(first, second)


def test_views_that_begin_anywhere_and_nothing_beside_them():
    memory = torch.arange(60.0, device=DEVICE)
    w = [memory[3:24].view(3, 7), memory[27:48].view(3, 7)]  # they begin at no multiple of 16 bytes
    o = torch.ones(2, 3, 7, dtype=torch.float16, device=DEVICE)
    muon.update_(w, o, 0.5, 0.25)
    expected = torch.arange(60.0, device=DEVICE)
    for part in (slice(3, 24), slice(27, 48)):
        expected[part] = 0.75 * expected[part] - 0.5
    torch.testing.assert_close(memory, expected)
    g = [memory[1:22].view(3, 7).clone(), memory[5:26].view(3, 7)]
    x = muon.look_ahead_(g, torch.zeros_like(o, dtype=torch.float32), 0.9, torch.float32)
    torch.testing.assert_close(x[1], g[1] / g[1].norm())


@pytest.mark.skipif(ON_GPU, reason="operations_of counts on a CPU")
def test_launches_do_not_grow_with_the_number_of_matrices():
    def calls(n: int) -> dict[str, int]:
        make = lambda: {f"blocks.{i}.w": torch.ones(9, 5) for i in range(n)} | {"gain": torch.ones(3)}
        optimizer, gradients = optim.Muon(make(), one_kernel="triton"), make()
        optimizer.step(gradients)  # the tables are made
        return {row.name: row.calls for row in profiling.operations_of(lambda: optimizer.step(gradients))}

    one = calls(1)
    assert one == calls(7)
    ours = {"_adamw_kernel", "_look_ahead_kernel", "_normalize_kernel", "_update_kernel"}
    assert {name: one[name] for name in ours} == dict.fromkeys(ours, 1)
    assert not [name for name in one if "copy" in name or "foreach" in name]


def test_tensors_that_do_not_fit_are_refused():
    m, w = torch.ones(2, 3, 4, device=DEVICE), [torch.ones(3, 4, device=DEVICE) for _ in range(2)]
    with pytest.raises(ValueError, match="one for each matrix"):
        muon.look_ahead_(w[:1], m, 0.9, torch.float32)
    with pytest.raises(ValueError, match=r"dense.*\(3, 4\)"):
        muon.update_([w[0], torch.ones(4, 3, device=DEVICE).T], m, 0.1, 0.0)
    with pytest.raises(TypeError, match="float64"):
        muon.look_ahead_([x.double() for x in w], m, 0.9, torch.float32)
    assert torch.equal(m, torch.ones_like(m))
