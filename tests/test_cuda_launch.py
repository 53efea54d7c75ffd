"""What the driver is told at a launch: by a driver that only takes notes, and on a GPU by its own."""

import ctypes
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from kernels.cuda import arguments, driver, gpu
from kernels.cuda.module import load
from kernels.cuda.signature import signatures
from kernels.cuda.tensor_map import TensorMap, tensor_map


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
        assert not told.attributes and told.attribute_count == 0
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
    monkeypatch.setattr(torch.cuda, "current_device", lambda: noting.here)
    monkeypatch.setattr(gpu, "_several_gpus", lambda: True)
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


def test_a_prepared_launch_reads_addresses_only(noting):
    k = kernel(noting, "float *x, const scalar *y, int n, __nv_bfloat16 a, bool b", "P P i H ?")
    noting.of, (x, y) = {}, torch.zeros(2, 4)
    prepared = k[4, 64, 96].prepare(torch.tensor(7).numpy()[()], 1.5, True)
    prepared(x, None)
    prepared(x, y)
    k[1, 32](y, y, 1, 2.0, False)
    noting.of = {y.data_ptr(): 1}
    prepared(y, x)
    prepared(x, x)
    first, second = x.data_ptr(), y.data_ptr()
    assert [(shape, stream, values) for shape, *_, stream, _, values in noting.launches] == [
        ((4, 1, 1), 1000, (first, 0, 7, 0x3FC0, True)),
        ((4, 1, 1), 1000, (first, second, 7, 0x3FC0, True)),
        ((1, 1, 1), 1000, (second, second, 1, 0x4000, False)),
        ((4, 1, 1), 1001, (second, first, 7, 0x3FC0, True)),
        ((4, 1, 1), 1000, (first, first, 7, 0x3FC0, True)),
    ]
    for numbers, words in (((7, 1.5, 1), "b is True or False"), ((7.0, 1.5, True), "n is a whole number")):
        with pytest.raises(TypeError, match=words):
            k[1, 32].prepare(*numbers)
    with pytest.raises(TypeError, match="expected 5 arguments, got 4"):
        prepared(x)
    noting.of = {x.data_ptr(): -1}
    with pytest.raises(ValueError, match="x is a tensor on cpu"):
        prepared(x, y)


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


# On a GPU


def run_alone(program: str) -> subprocess.CompletedProcess:
    """In a process of its own: after some errors a process cannot use the GPU any more."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)


ADD = """
extern "C" __global__ void add(const scalar *x, scalar *y, int n, float a) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = scalar(float(x[i]) + a);
}
"""


@pytest.fixture
def add():
    """A kernel that was not loaded before, and two arrays."""
    return load(ADD).add, torch.arange(1000.0, device="cuda"), torch.zeros(1000, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_on_the_gpu(dtype):
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    x = torch.arange(1000.0, device="cuda").to(dtype)
    y = torch.zeros_like(x)
    launch = load(ADD, scalar=dtype).add[8, 128]
    launch(x, y, 990, 2)
    assert torch.equal(y[:990], x[:990] + 2) and not y[990:].any()
    launch.prepare(980, 4.0)(y, y)
    assert torch.equal(y[:980], x[:980] + 2 + 4) and torch.equal(y[980:990], x[980:990] + 2)


@pytest.mark.gpu
def test_cpu_tensors_need_the_emulator_there_too(add):
    kernel, x, y = add
    for given, words in (
        ((x.cpu(), y), "x is a tensor on cpu, and"),
        ((x, y.cpu()), "y is a tensor on cpu, and"),
    ):
        with pytest.raises(ValueError, match=words + " the kernel runs on cuda:0; move it with"):
            kernel[8, 128](*given, 1000, 1.0)
    with pytest.raises(TypeError, match=r"x is a tensor of torch.float32"):
        kernel[8, 128](x.double(), y, 1000, 1.0)
    load(ADD, emulate=True).add[8, 128](x.cpu(), y := torch.zeros(1000), 1000, 1.0)
    assert torch.equal(y, x.cpu() + 1)


@pytest.mark.gpu
def test_launches_are_on_the_current_stream(add):
    kernel, x, y = add
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.add_(1000)
        kernel[8, 128](x, y, 1000, 1.0)
    side.synchronize()
    assert y[0].item() == 1001


@pytest.mark.gpu
def test_a_graph_captures_even_a_first_launch(add):
    kernel, x, y = add
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel[8, 128](x, y, 1000, 1.0)
        kernel[8, 128, 65536 - 1024](y, y, 1000, 1.0)  # asks the driver for more, while it captures
    assert not y.any()
    for a in (0, 5):
        x.fill_(a)
        graph.replay()
        assert (y == a + 2).all()


@pytest.mark.gpu
def test_a_thread_that_never_called_pytorch(add):
    kernel, x, y = add
    kernel[8, 128](x, y, 1000, 1.0)
    other, errors = load(ADD + "// another").add, []

    def run():
        try:
            kernel[8, 128](x, y, 1000, 2.0)
            other[8, 128](y, y, 1000, 3.0)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors
    assert torch.equal(y, x + 5)


SHARED = """
extern "C" __global__ void __launch_bounds__(64) reverse(const float *x, float *y, int n) {
    extern __shared__ float kept[];
    __shared__ float own[64];
    own[threadIdx.x] = 1;
    for (int i = threadIdx.x; i < n; i += blockDim.x) kept[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = kept[n - 1 - i] + own[i % 64];
}
"""


@pytest.mark.gpu
def test_all_the_shared_memory_of_a_block_and_no_more():
    reverse = load(SHARED).reverse
    most = torch.cuda.get_device_properties(0).shared_memory_per_block_optin - 256
    x = torch.randn(most // 4, device="cuda")
    for n in (1000, most // 4, 20000 if most > 80000 else 13000):
        y = torch.zeros_like(x)
        reverse[1, 64, 4 * n](x, y, n)
        assert torch.equal(y[:n], x[:n].flip(0) + 1)
    with pytest.raises(ValueError, match=f"256 bytes .* and {most + 4} at its launch are more than the"):
        reverse[1, 64, most + 4](x, x, 1)
    with pytest.raises(ValueError, match=r"has 96 threads, .* at most 64"):
        reverse[1, 96](x, x, 1)


FETCH = """
extern "C" __global__ void fetch(const __grid_constant__ CUtensorMap map, float *y, int row, int column) {
    __shared__ alignas(128) float tile[8][32];
    __shared__ uint64_t arrived;
    unsigned barrier = __cvta_generic_to_shared(&arrived), to = __cvta_generic_to_shared(tile);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier));
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "n"(1024));
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier)
                     : "memory");
    }
    __syncthreads();
    int done = 0;
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;"
                     " selp.s32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(barrier) : "memory");
    for (int i = threadIdx.x; i < 8 * 32; i += blockDim.x) y[i] = tile[i / 32][i % 32];
}
"""


TILES = f"""
import torch
from torch.nn.functional import pad
from kernels.cuda.module import load
from kernels.cuda.tensor_map import tensor_map

fetch = load({FETCH!r}).fetch
x, y = torch.randn(20, 44, device="cuda"), torch.zeros(8, 32, device="cuda")
its_map, padded = tensor_map(x[:, :40], (8, 32)), pad(x[:, :40], (0, 32, 0, 8))
assert tensor_map(x[:, :40], (8, 32)) is its_map
for row, column in ((0, 0), (3, 4), (16, 20)):
    fetch[1, 64](its_map, y, row, column)
    assert torch.equal(y, padded[row : row + 8, column : column + 32])
try:
    fetch[1, 64](x, y, 0, 0)
except TypeError as error:
    print(error)
fetch[1, 64](its_map, y, 3, 5)
torch.cuda.synchronize()
"""


@pytest.mark.gpu
def test_the_copy_engine_takes_a_tensor_map():
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("the copy engine came with compute capability 9.0")
    run = run_alone(TILES)
    assert "map is made by tensor_map" in run.stdout, run.stderr
    assert "illegal instruction" in run.stderr  # column 5 does not begin at a multiple of 16 bytes


def test_what_the_copy_engine_cannot_fetch():
    x = torch.zeros(20, 44)
    for tensor, tile, words in (
        (x.T, (8, 32), "the last must be 1"),
        (torch.zeros(20, 43), (8, 32), "multiples of 16"),
        (x, (8,), "one number a dimension"),
        (x, (8, 257), "up to 256 elements"),
        (x, (8, 3), "its rows have a multiple of 16 bytes"),
        (x[:, 1:], (8, 32), "must begin at a multiple of 16 bytes"),
    ):
        with pytest.raises(ValueError, match=words):
            tensor_map(tensor, tile)
    with pytest.raises(ValueError, match="not more than the swizzle"):
        tensor_map(x, (8, 32), swizzle=64)
    with pytest.raises(TypeError, match=r"knows no torch.int16"):
        tensor_map(x.short(), (8, 32))


@pytest.mark.gpu
def test_several_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    kernel = load(ADD).add
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        x = torch.arange(1000.0, device=device)
        kernel[8, 128](x, y := torch.zeros_like(x), 1000, 1.0)
        assert torch.equal(y, x + 1) and torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match="y is a tensor on cuda:0, and the kernel runs on cuda:1"):
        kernel[8, 128](x, y.to("cuda:0"), 1000, 1.0)


@pytest.mark.gpu
def test_what_an_earlier_kernel_did_wrong_is_said_to_be_its_fault():
    program = """
import torch
from kernels.cuda.module import load
k = load('extern "C" __global__ void k(float *x) { x[1] = 1; }').k
k[1, 1](None)
try:
    torch.cuda.synchronize()
except Exception:
    pass
k[1, 1](None)
"""
    run = run_alone(program)
    assert "RuntimeError: k: an illegal memory access" in run.stderr
    assert "A kernel that was launched before did this" in run.stderr
