"""What the driver is told at a launch: by a driver that only takes notes, and on a GPU by its own."""

import ctypes
import struct
import threading

import pytest
import torch

from kernels.cuda import arguments, driver, gpu
from kernels.cuda.signature import signatures
from kernels.cuda.tensor_map import TensorMap


class NotingDriver:
    """The driver's functions that a launch calls. GPU 1 has less shared memory than GPU 0."""

    def __init__(self):
        self.here, self.mode, self.of = 0, 0, {}
        self.loads, self.launches, self.allowed = [], [], []
        self.answers = []  # of the next launches; 0 after them
        self.letters = ""

    def __getattr__(self, name):
        return lambda *arguments: getattr(self, f"_{name}")(*arguments) or 0

    def _cuThreadExchangeStreamCaptureMode(self, mode):
        self.mode, mode._obj.value = mode._obj.value, self.mode

    def _cuModuleLoadData(self, module, cubin):
        assert self.mode == 2, "loaded while a capture might forbid it"
        self.loads.append((self.here, cubin))
        module._obj.value = 100 + self.here

    def _cuModuleGetFunction(self, function, module, name):
        assert (module.value, name) == (100 + self.here, b"k")
        function._obj.value = 200 + self.here

    def _cuFuncGetAttribute(self, value, attribute, function):
        value._obj.value = {0: 512, 1: 4096}[attribute]

    def _cuDeviceGetAttribute(self, value, attribute, device):
        assert attribute == 97
        value._obj.value = (232448, 65536)[device.value]

    def _cuFuncSetAttribute(self, function, attribute, value):
        self.allowed.append((function.value, value.value))

    def _cuGetErrorString(self, code, text):
        text._obj.value = b"an error"

    def _cuLaunchKernelEx(self, config, function, addresses, extra):
        told = config.contents
        places = list(addresses)
        values = tuple(
            struct.unpack(letter, ctypes.string_at(place, struct.calcsize(letter)))[0]
            for letter, place in zip(self.letters.split(), places)
        )
        launch = (tuple(told.grid), tuple(told.block), told.shared_bytes, told.stream, function.value, values)
        self.launches.append(launch)
        return self.answers.pop(0) if self.answers else 0


@pytest.fixture
def noting(monkeypatch):
    """Tensors of the CPU pass for those of a GPU: of the one that `noting.of` names, else of GPU 0."""
    noting = NotingDriver()

    class On:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            self.before, noting.here = noting.here, self.device

        def __exit__(self, *_):
            noting.here = self.before

    monkeypatch.setattr(driver, "library", lambda: noting)
    where = lambda x: f"cuda:{x.get_device()}" if x.get_device() >= 0 else "cpu"
    monkeypatch.setattr(gpu, "place", where)
    monkeypatch.setattr(arguments, "place", where)
    monkeypatch.setattr(torch.Tensor, "get_device", lambda x: noting.of.get(x.data_ptr(), 0))
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: noting.here, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 1000 + device, raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(noting, "here", device))
    monkeypatch.setattr(torch.cuda, "device", On)
    return noting


def kernel(noting, parameters: str, letters: str) -> gpu.GpuKernel:
    noting.letters = letters
    code = gpu.Code("", "k.cu", None)
    code.compile = lambda device: b"code for %d" % device
    return gpu.GpuKernel(signatures(f'extern "C" __global__ void k({parameters}) {{}}')["k"], code)


def test_every_kind_of_argument_arrives(noting):
    k = kernel(
        noting,
        "const float *x, bool b, int8_t c, const __grid_constant__ CUtensorMap m, int n, const int64_t *p,"
        " float a, double d, unsigned u, int64_t l, __half h, __nv_bfloat16 f",
        "P ? b 128s i P f d I q e H",
    )
    x, its_map = torch.zeros(4), TensorMap(range(128))
    k[(4, 5), (8, 8), 1024](x, True, -3, its_map, -(2**31), None, 0.5, 0.1, 2**32 - 1, -(2**63), 1.5, 1.5)
    values = (x.data_ptr(), True, -3, its_map, -(2**31), 0, 0.5, 0.1, 2**32 - 1, -(2**63), 1.5, 0x3FC0)
    assert noting.launches == [((4, 5, 1), (8, 8, 1), 1024, 1000, 200, values)]


def test_numbers_of_other_classes_and_parameters(noting):
    k = kernel(noting, "float *x, int n, float a", "P i f")
    weight = torch.nn.Parameter(torch.zeros(4))
    k[1, 32](weight, torch.tensor(7).numpy()[()], 2)
    k[1, 32](weight, True, 2.0)
    assert [launch[-1] for launch in noting.launches] == [
        (weight.data_ptr(), 7, 2.0),
        (weight.data_ptr(), 1, 2.0),
    ]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((0.5, 1.0), TypeError, r"n is a whole number"),
        ((2**31, 1.0), ValueError, r"n .*goes from"),
        ((1, 1e6), ValueError, r"__half a\): float too large"),
        ((1,), TypeError, r"expected 3 arguments, got 2"),
        ((torch.tensor(1), 1.0), TypeError, r"n is a whole number"),
        ((1, torch.tensor(1.0)), TypeError, r"a is a number"),
    ],
)
def test_nothing_is_launched_with_what_does_not_fit(noting, given, error, words):
    k = kernel(noting, "float *x, int n, __half a", "P i e")
    with pytest.raises(error, match=words):
        k[1, 32](torch.zeros(4), *given)
    with pytest.raises(TypeError, match=r"x is a tensor of torch.float32"):
        k[1, 32](torch.zeros(4).half(), 1, 1.0)
    assert not noting.launches


def test_the_gpu_of_the_tensors_is_launched_on(noting):
    k, here, there, cpu = kernel(noting, "float *x, float *y", "P P"), *torch.zeros(3, 4)
    noting.of = {there.data_ptr(): 1, cpu.data_ptr(): -1}
    for x in (here, there, there, here):
        k[1, 32](x, x)
    k[1, 32](None, there)
    k[1, 32](None, None)
    assert [launch[3:5] for launch in noting.launches] == [
        (1000, 200), (1001, 201), (1001, 201), (1000, 200), (1001, 201), (1000, 200),
    ]  # fmt: skip
    assert noting.loads == [(0, b"code for 0"), (1, b"code for 1")] and noting.here == 0
    for x, y, words in (
        (here, there, "y is a tensor on cuda:1, and the kernel runs on cuda:0; put all on one device"),
        (cpu, here, "x is a tensor on cpu, and the kernel runs on cuda:0; move it with"),
        (here, cpu, "y is a tensor on cpu, and the kernel runs on cuda:0; move it with"),
        (cpu, cpu, "x is a tensor on cpu, and the kernel runs on cuda; move it with"),
    ):
        with pytest.raises(ValueError, match=words):
            k[1, 32](x, y)
    assert len(noting.launches) == 6


def test_shared_memory_is_asked_for_once_and_never_taken_back(noting):
    k, x = kernel(noting, "float *x", "P"), torch.zeros(4)
    for dynamic in (0, 44 * 1024, 44 * 1024 + 4, 100_000, 50_000, 100_000, 232448 - 4096):
        k[1, 32, dynamic](x)
        assert noting.launches[-1][2] == dynamic
    assert noting.allowed == [(200, 44 * 1024 + 4), (200, 100_000), (200, 232448 - 4096)]
    noting.of = {x.data_ptr(): 1}
    with pytest.raises(ValueError, match=r"4096 bytes .* and 100000 at its launch are more than the 65536"):
        k[1, 32, 100_000](x)


def test_more_threads_than_the_kernel_can_have(noting):
    k = kernel(noting, "float *x", "P")
    k[1, 512](torch.zeros(4))
    with pytest.raises(ValueError, match=r"a block of \(513, 1, 1\) has 513 threads, .* at most 512"):
        k[1, 513](torch.zeros(4))
    assert len(noting.launches) == 1


def test_errors_of_the_driver(noting):
    k, x = kernel(noting, "float *x", "P"), torch.zeros(4)
    noting.answers = [driver.INVALID_CONTEXT]  # in a thread without a context: gets one, launches again
    k[1, 32](x)
    assert len(noting.launches) == 2
    noting.answers = [1]
    with pytest.raises(RuntimeError, match=r"k: an error \(error 1\)\.$"):
        k[1, 32](x)
    noting.answers = [700]
    with pytest.raises(RuntimeError, match="A kernel that was launched before did this"):
        k[1, 32](x)
    k[1, 32](x)  # the lock was given back
    assert noting.mode == 0  # and so was the thread's way of capturing


def test_threads_do_not_mix_their_arguments(noting):
    k = kernel(noting, "float *x, int n, int m", "P i i")
    launch, x = k[1, 32], torch.zeros(4)
    threads = [threading.Thread(target=lambda i=i: [launch(x, i, i) for _ in range(2000)]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [values[1:] for *_, values in noting.launches]
    assert len(found) == 8000 and all(n == m for n, m in found)


def test_grids_that_change_at_every_call_are_forgotten(noting):
    k, x = kernel(noting, "float *x", "P"), torch.zeros(4)
    for n in range(1, 3000):
        k[n, 32](x)
    assert len(k.launches) <= 1024 and [launch[0][0] for launch in noting.launches] == list(range(1, 3000))
    with pytest.raises(ValueError, match="grid is a whole number"):
        k[[1], 32]
