"""An engine with a planted bug: it is wrong where the bug is, and the engine beside it stays right."""

import pytest
import torch

import kernels.cuda
from course import device
from course.exercises.planted import plant
from kernels import reference
from kernels.cuda.emulator import EmulatorError


def tensors(*shapes, where=device.DEVICE):
    return [device.normal(*shape, seed=i, dtype=torch.float32).to(where) for i, shape in enumerate(shapes)]


def test_only_the_planted_engine_is_wrong():
    x, weight, bias, dy = tensors((6, 40), (40,), (40,), (6, 40))
    wanted, *_ = reference.layernorm_backward(dy, reference.layernorm_forward(x, weight, bias, 1e-5)[1])
    before = kernels.engine("cuda")
    broken = plant("norms.cu", "- mean_g - ", "- ")
    assert kernels.engine("cuda") is before is kernels.cuda is not broken
    for engine, right in ((broken, False), (before, True)):
        _, saved = engine.layernorm_forward(x, weight, bias, 1e-5)
        dx, _, dbias = engine.layernorm_backward(dy, saved)
        assert torch.allclose(dx, wanted, atol=1e-4) == right
        assert torch.allclose(dbias, dy.sum(0), atol=1e-4)


def test_a_bug_in_a_header_is_in_all_that_include_it():
    x, weight, dy = tensors((6, 40), (40,), (6, 40))
    broken = plant("sums.cuh", "other < SUM_SLICES", "other < SUM_SLICES - 1")
    _, saved = broken.rmsnorm_forward(x, weight, 1e-5)
    wanted = reference.rmsnorm_backward(dy, reference.rmsnorm_forward(x, weight, 1e-5)[1])
    dx, _ = broken.rmsnorm_backward(dy, saved)
    assert torch.allclose(dx, wanted[0], atol=1e-4)


def test_a_planted_engine_can_be_emulated_wherever_it_is():
    x, weight, bias, dy = tensors((6, 40), (40,), (40,), (6, 40), where="cpu")
    racing = plant("norms.cu", "        __syncthreads();\n", "", emulate=True)
    _, saved = racing.layernorm_forward(x, weight, bias, 1e-5)
    with pytest.raises(EmulatorError, match=r"layernorm_backward.*norms\.cu"):
        racing.layernorm_backward(dy, saved)


@pytest.mark.parametrize("text", ["this is nowhere in it", "float"])
def test_a_bug_must_have_one_place(text):
    with pytest.raises(ValueError, match=r"should have .* once, and has it"):
        plant("norms.cu", text, "")
