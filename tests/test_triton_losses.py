"""The triton engine's losses: what the shared cases do not reach. Ignored and impossible targets, chunks,
the second try, and how much memory the fused one takes."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from course.device import DEVICE
from kernels import reference
from kernels.autograd import bind

pytest.importorskip("triton", reason="Triton has no package for this platform")

from kernels.triton import losses

IGNORED = -100
DTYPES = {torch.float32: 5e-6, torch.float16: 1e-2, torch.bfloat16: 2e-2}


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    numbers = scale * np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(numbers).to(DEVICE)


def targets(*shape: int, high: int, seed: int = 9) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, high, shape)).to(DEVICE)


def compare(operation: str, inputs: tuple, dtype=torch.float32, tolerance: float | None = None) -> None:
    """Loss and gradients of the pair, of inputs rounded to `dtype`, against the reference in float64."""
    rounded = [x.to(dtype) if x.is_floating_point() else x for x in inputs[:-1]] + [inputs[-1]]
    exact = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in rounded]
    results = []
    for engine, values in ((losses, rounded), (reference, exact)):
        loss, saved = getattr(engine, f"{operation}_forward")(*values)
        dy = torch.full_like(loss, 0.75)
        gradients = getattr(engine, f"{operation}_backward")(dy, saved)
        results.append((loss, *(gradients if isinstance(gradients, tuple) else (gradients,))))
    for ours, theirs in zip(*results, strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error <= (tolerance or DTYPES[dtype]), error


def in_chunks_of(monkeypatch, rows: int, V: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", rows * V * dtype.itemsize)


@pytest.mark.parametrize("ignore_index", [IGNORED, 0, 4])
@pytest.mark.parametrize("where", [[0], [39], [3, 17, 18, 20], list(range(16, 32)), list(range(39))])
def test_ignored_targets_anywhere(monkeypatch, where, ignore_index):
    V = 7
    in_chunks_of(monkeypatch, 16, V, torch.float32)
    labels = targets(40, high=V)
    labels[labels == ignore_index] = 1
    labels[where] = ignore_index
    compare("cross_entropy", (drawn(40, V), labels, ignore_index))
    compare("linear_cross_entropy", (drawn(40, 5), drawn(V, 5, seed=1), labels, ignore_index))


def test_with_every_target_ignored_the_mean_is_of_nothing():
    labels = torch.full((5,), IGNORED, device=DEVICE)
    x, weight = drawn(5, 3).float().requires_grad_(), drawn(7, 3, seed=1).float().requires_grad_()
    for engine in ("reference", "triton"):
        ops = bind(engine)
        for loss in (ops.cross_entropy(x @ weight.T, labels), ops.linear_cross_entropy(x, weight, labels)):
            dx, dweight = torch.autograd.grad(loss, (x, weight))
            assert loss.isnan() and dx.isnan().all() and dweight.isnan().all(), engine


@pytest.mark.parametrize("wrong", [7, 10**9, -1])
def test_a_target_that_is_no_class_makes_the_loss_nan(wrong):
    labels = targets(5, high=7)
    labels[2] = wrong
    x, weight = drawn(5, 3).float(), drawn(7, 3, seed=1).float()
    loss, saved = losses.linear_cross_entropy_forward(x, weight, labels)
    losses.linear_cross_entropy_backward(loss, saved)
    assert loss.isnan()
    loss, saved = losses.cross_entropy_forward(x @ weight.T, labels)
    losses.cross_entropy_backward(loss, saved)
    assert loss.isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("V", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("rows", [1, 33])
def test_sizes_that_no_block_divides(monkeypatch, dtype, V, rows):
    in_chunks_of(monkeypatch, 16, V, dtype)
    labels = targets(rows, high=V).int()
    x, weight = drawn(rows, 19), drawn(V, 19, seed=1, scale=0.3)
    if V == 1:  # nothing to be wrong about: loss and gradients are 0
        loss, saved = losses.linear_cross_entropy_forward(x.to(dtype), weight.to(dtype), labels)
        assert abs(loss.item()) < 1e-5
        assert all(g.abs().max() < 1e-2 for g in losses.linear_cross_entropy_backward(loss + 1, saved))
        return
    compare("linear_cross_entropy", (x, weight, labels, IGNORED), dtype)
    compare("cross_entropy", (drawn(rows, V), labels, IGNORED), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_logits_of_more_than_one_block(dtype):
    compare("cross_entropy", (drawn(2, 8195), targets(2, high=8195), IGNORED), dtype)


def test_any_layout_of_inputs():
    labels = targets(2, 20, high=11)[:, ::2]
    x, weight = drawn(10, 2, 5).transpose(0, 1), drawn(5, 11, seed=1).T
    compare("linear_cross_entropy", (x, weight, labels, IGNORED))
    compare("cross_entropy", (drawn(10, 2, 22).transpose(0, 1)[..., ::2], labels, IGNORED))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_tokens_that_the_model_was_sure_are_others(monkeypatch, dtype):
    """Their e = exp(l - l_y) overflows, so that their chunk is done a second time; other chunks are not."""
    V = 13
    in_chunks_of(monkeypatch, 16, V, dtype)
    x, weight, labels = drawn(48, 16), drawn(V, 16, seed=1), targets(48, high=V)
    x[20:24] *= 100
    with torch.no_grad():
        rows_losses = torch.nn.functional.cross_entropy(x @ weight.T, labels, reduction="none")
    assert rows_losses[20:24].max() > 150 and rows_losses[:16].max() < 60
    # a logit of several hundred is rounded by 2⁻²⁴ of itself, and its exp by as much more as it is large
    compare("linear_cross_entropy", (x, weight, labels, IGNORED), dtype, max(DTYPES[dtype], 2e-5))
    for ignore_index in (IGNORED, (x @ weight.T)[20:24].argmin(-1)[0].item()):  # nobody asks about them
        labels[20:24] = ignore_index
        compare("linear_cross_entropy", (x, weight, labels, ignore_index), dtype)


def test_a_sure_and_right_model_has_small_gradients():
    """p - 1 of the target loses digits when p is near 1, in this engine as in any."""
    eye = torch.eye(8, dtype=torch.float64, device=DEVICE)
    labels = torch.arange(8, device=DEVICE)
    compare("linear_cross_entropy", (8 * eye, eye, labels, IGNORED), tolerance=2e-4)


class Allocations(TorchDispatchMode):
    """The numbers of elements of everything that PyTorch makes."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.sizes.append(result.untyped_storage().nbytes())
        return result


def test_linear_cross_entropy_never_holds_all_logits(monkeypatch):
    N, V, C = 128, 40, 4
    x, weight, labels = drawn(N, C).float(), drawn(V, C, seed=1).float(), targets(N, high=V)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 32 * V * 4)
    with Allocations() as seen:
        loss, saved = losses.linear_cross_entropy_forward(x, weight, labels)
        losses.linear_cross_entropy_backward(loss, saved)
    assert max(seen.sizes) <= max(32 * V * 4, x.nbytes, weight.nbytes)
    assert sum(s.nbytes for s in saved if torch.is_tensor(s)) <= x.nbytes + weight.nbytes + 4 * N + 4
    with Allocations() as seen:
        alone = losses.linear_cross_entropy_inference(x, weight, labels)
    assert max(seen.sizes) < 32 * V * 4, "without gradients there is no buffer of logits at all"
    assert torch.equal(alone, loss)


def test_where_no_gradient_is_asked_for_none_is_computed(monkeypatch):
    x, weight, labels = drawn(4, 3).float(), drawn(7, 3, seed=1).float().requires_grad_(), targets(4, high=7)
    ops, products = bind("triton"), []
    multiply_add = losses._multiply_add
    monkeypatch.setattr(losses, "_multiply_add", lambda *a, **k: products.append(multiply_add(*a, **k)))
    expected = ops.linear_cross_entropy(x, weight, labels)
    assert len(products) == 2
    with torch.no_grad():
        assert torch.equal(ops.linear_cross_entropy(x, weight, labels), expected)
    assert torch.equal(ops.linear_cross_entropy(x, weight.detach(), labels), expected)
    assert len(products) == 2


def test_under_torch_compile():
    ops = bind("triton")
    x, weight, labels = (drawn(4, 3).float(), drawn(7, 3, seed=1).float(), targets(4, high=7))
    compiled = torch.compile(
        lambda x, w: ops.linear_cross_entropy(2 * x, w, labels), fullgraph=True, backend="aot_eager"
    )
    with torch.no_grad():
        expected = ops.linear_cross_entropy(2 * x, weight, labels)
        torch.testing.assert_close(compiled(x, weight), expected)
    x.requires_grad_(), weight.requires_grad_()
    loss = compiled(x, weight)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, (x, weight))
    eager = torch.autograd.grad(ops.linear_cross_entropy(2 * x, weight, labels), (x, weight))
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"x \(4, 3\) needs targets of shape \(4,\), got \(5,\)"):
        losses.linear_cross_entropy_forward(drawn(4, 3).float(), drawn(7, 3).float(), targets(5, high=7))
    with pytest.raises(ValueError, match="last dimension is 3 and the weight's is 2"):
        losses.linear_cross_entropy_forward(drawn(4, 3).float(), drawn(7, 2).float(), targets(4, high=7))


@pytest.mark.gpu
def test_peak_memory_and_repeatability_at_the_size_of_a_training_step():
    N, C, V = 16384, 768, 50304
    x, weight = drawn(N, C).bfloat16(), drawn(V, C, seed=1, scale=0.04).bfloat16()
    labels = targets(N, high=V)

    def step():
        loss, saved = losses.linear_cross_entropy_forward(x, weight, labels)
        return loss, *losses.linear_cross_entropy_backward(torch.ones_like(loss), saved)

    first = step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    second = step()
    assert torch.cuda.max_memory_allocated() - before < 400 * 2**20
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert math.log(V) < first[0].item() < math.log(V) + 2
