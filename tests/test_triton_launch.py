"""Compiled code found again: for the arguments that Triton would have chosen it for, and for no others."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

import kernels
from course.device import DEVICE

pytest.importorskip("triton", reason="Triton has no package for this platform")

import triton
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import native_specialize_impl

from kernels.triton import launch


class Kernel:
    """Two arguments and a constant. Notes what goes through Triton, and what to compiled code directly."""

    def __init__(self):
        self.fn, self.constexprs = object(), [2]
        self.through_triton, self.direct = [], []

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.through_triton.append((grid, arguments, options))
            code = len(self.through_triton)
            return SimpleNamespace(run=self.note, function=code, packed_metadata=None)

        return run

    def note(self, x, y, z, stream, code, metadata, launch_metadata, enter, leave, *arguments):
        assert launch_metadata is enter is leave is None
        self.direct.append(((x, y, z), stream, code, arguments))


@pytest.fixture
def gpus(monkeypatch):
    """Tensors of the CPU pass for those of a GPU: of the one that `gpus.of` names, else of GPU 0."""
    here = SimpleNamespace(of={}, current=0)

    class Switch:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            self.before, here.current = here.current, self.device

        def __exit__(self, *_):
            here.current = self.before

    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(torch.Tensor, "get_device", lambda x: here.of.get(x.data_ptr(), 0))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: here.current)
    monkeypatch.setattr(torch.cuda, "device", Switch)

    def stream(device):
        assert device == here.current, "Triton launches on the current GPU"
        return 1000 + device

    driver = SimpleNamespace(get_current_stream=stream)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    return here


def memory(dtype=torch.float32) -> torch.Tensor:
    return torch.zeros(64, dtype=dtype)


INTEGERS = (
    0,
    1,
    2,
    8,
    15,
    16,
    17,
    24,
    32,
    -1,
    -16,
    *[s * 2**31 + n for s in (-1, 1, 2) for n in (-1, 0, 1, 16)],
)
SAME = memory()  # at one address, with one dtype, whatever comes second


@pytest.mark.parametrize(
    "values",
    [
        INTEGERS,
        (None, True, 0, 1, 16, 0.0, 1.0, 0.5, (16, 1), (1, 16), (16, 16)),
        (
            *[memory(t) for t in launch.DTYPES],
            *[memory(t)[1:] for t in launch.DTYPES],
            memory()[2:],
            memory()[4:],
            None,
        ),
    ],
    ids=["integers", "kinds", "tensors"],
)
def test_code_is_used_again_only_where_triton_would(gpus, values):
    used_again = 0
    for first, second in product(values, repeat=2):
        kernel = Kernel()
        launch.launch(kernel, (3, 2), SAME, first, 7, num_warps=4)
        launch.launch(kernel, (3, 2), SAME, second, 7, num_warps=4)
        if kernel.direct:
            used_again += 1
            kinds = [native_specialize_impl(CUDABackend, x, False, True, True) for x in (first, second)]
            assert kinds[0] == kinds[1], (first, second)
            passed = second.data_ptr() if isinstance(second, torch.Tensor) else second
            assert kernel.direct == [((3, 2, 1), 1000, 1, (SAME.data_ptr(), passed, None))]
    assert used_again >= len(values)  # for each after itself, at least


def test_constants_options_kernels_and_grids(gpus):
    kernel, other = Kernel(), Kernel()
    for k, constant, warps in ((kernel, 7, 4), (kernel, 8, 4), (kernel, 7, 8), (other, 7, 4)):
        launch.launch(k, (1,), SAME, 2, constant, num_warps=warps)
    assert (len(kernel.through_triton), len(other.through_triton)) == (3, 1)
    launch.launch(kernel, (5,), SAME, 2, 7, num_warps=8)
    assert [(grid, code) for grid, _, code, _ in kernel.direct] == [((5, 1, 1), 3)]


@pytest.mark.parametrize("prepared", [False, True])
def test_every_gpu_has_code_of_its_own(gpus, prepared):
    kernel, elsewhere = Kernel(), memory()
    gpus.of[elsewhere.data_ptr()] = 1
    again = launch.Launch(kernel, (1,), launch.TENSOR, 2, 7)
    for x in (SAME, elsewhere, SAME, elsewhere):
        again(x) if prepared else launch.launch(kernel, (1,), x, 2, 7)
    with torch.cuda.device(1):
        again(elsewhere) if prepared else launch.launch(kernel, (1,), elsewhere, 2, 7)
    assert len(kernel.through_triton) == 2
    assert [(stream, code) for _, stream, code, _ in kernel.direct] == [(1000, 1), (1001, 2), (1001, 2)]
    assert gpus.current == 0


def test_a_prepared_launch_looks_at_every_address(gpus):
    kernel, aligned, shifted = Kernel(), memory(), memory()[1:]
    prepared = launch.Launch(kernel, (1,), launch.TENSOR, launch.TENSOR, 7)
    for x in (aligned, shifted, aligned, shifted):
        prepared(SAME, x)
    assert [arguments[1].data_ptr() % 16 for _, arguments, _ in kernel.through_triton] == [0, 4]
    assert [(code, arguments[1]) for _, _, code, arguments in kernel.direct] == [
        (1, aligned.data_ptr()),
        (2, shifted.data_ptr()),
    ]


def test_a_profiler_hears_of_every_launch(gpus, monkeypatch):
    kernel = Kernel()
    prepared = launch.Launch(kernel, (1,), launch.TENSOR, 2, 7)
    prepared(SAME)
    monkeypatch.setattr(triton.knobs.runtime.launch_enter_hook, "calls", [print])
    prepared(SAME)
    launch.launch(kernel, (1,), SAME, 2, 7)
    assert len(kernel.through_triton) == 3
    assert not kernel.direct


def test_descriptors_are_kept_by_address_and_keep_no_memory(gpus):
    x = torch.zeros(64, 64)
    kept = launch.tiles(x, (64, 64), (64, 1), (16, 16))
    assert launch.tiles(x.view(64, 64), (64, 64), (64, 1), (16, 16)) is kept
    assert kept.base is not x
    for other in (
        (x.view(torch.int32), (64, 64), (64, 1), (16, 16)),
        (x[16:], (64, 64), (64, 1), (16, 16)),
        (x, (32, 64), (64, 1), (16, 16)),
        (x, (64, 64), (64, 1), (32, 16)),
    ):
        assert launch.tiles(*other) is not kept
    kernel = Kernel()
    for block in (16, 16, 32):
        launch.launch(kernel, (1,), SAME, launch.tiles(x, (64, 64), (64, 1), (block, 16)), 7)
    assert len(kernel.through_triton) == 2


def test_alignment_and_dtype_may_change_from_call_to_call():
    forward, backward = kernels.pair("triton", "swiglu")
    expected, slopes = kernels.pair("reference", "swiglu")
    for dtype, start in product((torch.float32, torch.float16), (0, 1, 0, 4, 1)):
        gate, up, dy = (
            torch.randn(3 * 32 + 8, device=DEVICE).to(dtype)[start:][:96].view(3, 32) for _ in "abc"
        )
        y, saved = forward(gate, up)
        exact, exact_saved = expected(gate.double(), up.double())
        got, exact = (y, *backward(dy, saved)), (exact, *slopes(dy.double(), exact_saved))
        for a, b in zip(got, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=4e-3, atol=4e-3)
