"""The matmul ladder: every rung at sizes that no tile divides, in the emulator or on this GPU; what it says
to wrong input; and its sources compiled for every GPU that can run them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from course.device import DEVICE
from kernels.cuda import ladder, nvrtc
from kernels.cuda.ladder import RUNGS, Rung, matmul
from kernels.cuda.signature import SCALARS


def runs_here(rung: Rung, dtype: torch.dtype) -> bool:
    if DEVICE.type == "cpu":
        return rung.emulated
    major, minor = torch.cuda.get_device_capability()
    return rung.runs_on(10 * major + minor, dtype)


RUNS = [(rung, dtype) for rung in RUNGS for dtype in rung.dtypes if runs_here(rung, dtype)]
CASES = [pytest.param(rung, dtype, id=f"{rung.name}-{str(dtype)[6:]}") for rung, dtype in RUNS]
# An element's error relative to the sum of its products' sizes: C is rounded, in float32 every sum is.
ROUNDED = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SHARED = {75: 64, 80: 163, 89: 99, 90: 227, 100: 227}  # KiB that a block may use, by compute capability


def drawn(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(DEVICE, dtype)


def check(rung: Rung, dtype: torch.dtype, M: int, N: int, K: int) -> None:
    a, b = drawn(M, K, dtype=dtype, seed=0), drawn(K, N, dtype=dtype, seed=1)
    c, exact = matmul(rung, a, b), a.double() @ b.double()
    assert c.shape == (M, N) and c.dtype == dtype and c.is_contiguous()
    # By norms a wrong corner would drown in the rest: every element has the bound of its own sum.
    wrong = (c.double() - exact).abs() > ROUNDED[dtype] * (a.double().abs() @ b.double().abs())
    assert not wrong.any(), wrong.nonzero()[:4]


@pytest.mark.parametrize(("rung", "dtype"), CASES)
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [(1, 1, 1), (1, 300, 5), (33, 3, 66), (64, 64, 8), (129, 132, 12), (127, 258, 31), (200, 136, 100)],
)
def test_sizes_that_no_tile_divides(rung, dtype, M, N, K):
    check(rung, dtype, M, N, K)


@pytest.mark.gpu
@pytest.mark.parametrize(("rung", "dtype"), CASES)
@pytest.mark.parametrize(("M", "N", "K"), [(1024, 1024, 1024), (1111, 2222, 777), (4096, 3000, 5000)])
def test_large_sizes(rung, dtype, M, N, K):
    check(rung, dtype, M, N, K)


@pytest.mark.parametrize(("rung", "dtype"), CASES)
def test_inputs_in_any_layout(rung, dtype):
    """Transposed, with gaps between rows, and beginning at no multiple of 16 bytes."""
    a, b = drawn(40, 24, dtype=dtype, seed=0), drawn(24, 48, dtype=dtype, seed=1)
    expected = matmul(rung, a, b)
    for_a = [
        a.t().contiguous().t(),
        torch.cat((a, a), 1)[:, :24],
        torch.cat((a[0, :1], a.flatten()))[1:].view(40, 24),
    ]
    for_b = [
        b.t().contiguous().t(),
        torch.cat((b, b), 1)[:, :48],
        torch.cat((b[0, :1], b.flatten()))[1:].view(24, 48),
    ]
    for other_a, other_b in zip(for_a, for_b, strict=True):
        assert torch.equal(matmul(rung, other_a, b), expected)
        assert torch.equal(matmul(rung, a, other_b), expected)


def test_nothing_to_sum_is_zero():
    a, b = drawn(3, 0, dtype=torch.float32, seed=0), drawn(0, 5, dtype=torch.float32, seed=0)
    for rung in RUNGS[:7]:
        assert torch.equal(matmul(rung, a, b), torch.zeros(3, 5, device=DEVICE))
    assert matmul("naive", a.new_empty(0, 4), a.new_empty(4, 5)).shape == (0, 5)


def test_what_it_says_to_wrong_input():
    a, b = drawn(3, 4, dtype=torch.float32, seed=0), drawn(4, 5, dtype=torch.float32, seed=0)
    with pytest.raises(ValueError, match="choose one of naive, coalesced"):
        matmul("fastest", a, b)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(5, 4\)"):
        matmul("naive", a, b.t())
    with pytest.raises(TypeError, match="rung vectors takes a and b in float32"):
        matmul("vectors", a.double(), b.double())
    with pytest.raises(TypeError, match=r"bfloat16 or float16, got torch\.float32"):
        matmul("tensor_cores", a, b)
    if DEVICE.type == "cpu":
        with pytest.raises(RuntimeError, match="needs a Hopper GPU"):
            matmul("hopper", a.bfloat16(), b.bfloat16())


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_compiles_for_every_gpu_that_can_run_it(rung, capability):
    folder = Path(ladder.__file__).parent
    source = (folder / f"{rung.name}.cu").read_text()
    for dtype in rung.dtypes:
        if rung.runs_on(capability, dtype):
            text = f"typedef {SCALARS[dtype]} scalar;\n{source}"
            cubin = nvrtc.compile(text, rung.source, folder, capability)
            assert cubin[:4] == b"\x7fELF"
            assert rung.shared <= SHARED[capability] * 1024
