"""The emulator: what kernels compute in it, equal to NumPy; and every report, on a kernel with that bug and
on the same kernel without it."""

import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.cuda import emulator
from kernels.cuda.cache import CompileError
from kernels.cuda.emulator import EmulatorError, checks
from kernels.cuda.module import load

HERE = Path(__file__).parent
find_compiler = emulator.compiler  # before a fixture chooses one
COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]
pytestmark = pytest.mark.skipif(not COMPILERS, reason="there is no C++ compiler")


@pytest.fixture(scope="module", params=COMPILERS)
def compiler(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulator, "compiler", lambda: shutil.which(request.param))
        yield request.param


@pytest.fixture(autouse=True, params=[1, 3], ids=["one", "three"])
def workers(request):
    """Blocks one after the other, and at the same time."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bugs(compiler):
    return load(HERE / "emulator_bugs.cu", emulate=True)


@pytest.fixture(scope="module")
def intrinsics(compiler):
    return load(HERE / "emulator_intrinsics.cu", emulate=True)


def floats(*shape):
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


# Kernel, grid, block, arguments but `wrong`; and what is said when `wrong` is 1, with ... for what is left
# out and OTHER for the line of the other access.
# fmt: off
BUGS = [
    # out of bounds
    ("tail", 4, 32, (floats(100), zeros(100), 100),
     "block (3, 0, 0), thread (4, 0, 0), ...: reads x[100]; x has 100 elements."),
    ("beyond", 1, 32, (floats(32), zeros(32), 32), "writes y[32]; y has 32 elements."),
    ("beyond", 1, 32, (floats(32), zeros(32), 2**30), "writes y[1073741824]; y has 32"),
    ("beyond", 1, 32, (floats(32), zeros(32), -40), "writes y[4294967256]; y has 32"),  # it is unsigned
    ("beyond", 1, 32, (floats(32), zeros(1, 5, 20)[0, :, :7], 128), "writes y[128]; y spans 87 elements."),
    ("beyond", 1, 32, (floats(32), floats(70)[5:55], 50), "writes y[50]; y has 50 elements."),
    ("shared_bounds", 1, 32, (zeros(32), 0), "thread (31, 0, 0), ...reads first[32]; first has 32 elements."),
    ("shared_bounds", 1, 32, (zeros(32), 1),
     "thread (0, 0, 0), ...reads last[5][0]; last has 5 x 7 elements."),
    ("row_bounds", 1, 32, (zeros(32),),
     "thread (31, 0, 0), ...: index 33 is out of bounds of an array float[33]."),
    ("local_bounds", 1, 1, (floats(8), zeros(1)), "index 4 is out of bounds of an array float[4]."),
    ("reduction", 1, 64, (floats(60), zeros(1), 60), "thread (32, 0, 0), ...index 64 is out of bounds"),
    # pointers
    ("null", 1, 8, (floats(8), None, zeros(8)),
     "reads the address 0x0, through a null pointer: bias is None."),
    ("wild", 1, 1, (floats(1), zeros(1), 0x123456789ABC),
     "reads the address 0x123456789abc, which belongs to no"),
    ("constant", 1, 1, (floats(1), zeros(1)), "writes x[0], through a pointer to const."),
    ("misaligned", 1, 4, (floats(20), zeros(16)), "reads 16 bytes at x[1]: ... a multiple of 16 bytes."),
    ("misaligned_shared", 1, 32, (zeros(32),), "reads 8 bytes at s[1]: ... a multiple of 8 bytes."),
    # what nobody has written
    ("uninitialised", 1, 32, (zeros(32),),
     "thread (31, 0, 0), ...: reads s[32], to which no thread has written"),
    ("previous_block", 3, 32, (zeros(96),), "block (1, 0, 0), ...: reads s, to which no thread has written"),
    # races
    ("no_barrier", 1, 128, (floats(128), zeros(128)),
     "thread (64, 0, 0), ...: reads s[63], which thread (63, 0, 0) wrote in line OTHER. There is no "
     "__syncthreads between."),
    ("second_barrier", 1, 128, (floats(128), zeros(128)),
     "reads s[63], which thread (63, 0, 0) wrote in line OTHER."),
    ("warp_synchronous", 1, 32, (floats(32), zeros(32)),
     "reads s[0], which thread (0, 0, 0) wrote in ...no __syncwarp or"),
    ("half_warps", 1, 32, (zeros(32),), "reads s[0], which thread (0, 0, 0) wrote in ...no __syncwarp or"),
    ("other_warps", 1, 64, (zeros(64),),
     "reads s[0], which thread (0, 0, 0) wrote in ... There is no __syncthreads between"),
    ("both_write", 1, 64, (zeros(64),), "thread (1, 0, 0), ...: writes s, which thread (0, 0, 0) wrote in"),
    ("small_types", 1, 64, (zeros(64),), "reads halves[1], which thread (1, 0, 0) wrote in"),
    ("histogram", 4, 32, (ints(*[1, 0] * 50), ints(0, 0, 0), 100),
     "reads counts[1], which thread (0, 0, 0) wrote ...nor is it an atomic"),
    ("half_atomic", 1, 32, (ints(0),), "writes counts[0], which thread (0, 0, 0) wrote in line OTHER"),
    ("between_blocks", 8, 1, (zeros(16),),
     "block (4, 0, 0), ...: writes y[4], which block (3, 0, 0), thread (0, 0, 0) read in line OTHER. "
     "Blocks run in any order."),
    ("in_place", 1, 32, (zeros(33),), "thread (1, 0, 0), ...: writes x[1], which thread (0, 0, 0) read in"),
    # barriers and shuffles that not all reach
    ("branch", 1, 64, (zeros(64),),
     "thread (0, 0, 0) and 31 more wait at __syncthreads in ...; thread (32, 0, 0) and 31 more have "
     "returned"),
    ("early_return", 1, 64, (zeros(64), 63),
     "thread (0, 0, 0) and 62 more wait at __syncthreads in ...; thread (63, 0, 0) has returned"),
    ("trip_counts", 1, 128, (zeros(128),),
     "and 95 more wait at __syncthreads in ...; thread (96, 0, 0) and 31 more have returned"),
    ("two_barriers", 1, 64, (zeros(64),),
     "and 31 more wait at __syncthreads in ...; thread (32, 0, 0) and 31 more wait at __syncthreads "
     "in line OTHER"),
    ("exited_lane", 1, 64, (zeros(64), 60),
     "thread (32, 0, 0) and 27 more wait in a shuffle with mask 0xffffffff in ...; thread (60, 0, 0) "
     "and 3 more have returned"),
    ("exited_first", 1, 32, (zeros(32),),
     "thread (1, 0, 0), ...: waits in a shuffle with mask 0xffffffff for lane 0, thread (0, 0, 0), "
     "which has returned"),
    ("absent_lane", 1, 16, (zeros(16),),
     "takes the value of lane 16, which is not in this shuffle: the mask is 0xffffffff, and the warp "
     "has 16 threads"),
    ("own_lane", 1, 32, (zeros(32),),
     "thread (1, 0, 0), ...: calls a shuffle with mask 0x1, in which its own lane, 1, is not"),
    ("different_masks", 1, 32, (zeros(32),),
     "and 30 more wait in __any_sync with mask 0xffffffff in ...; thread (7, 0, 0) waits in "
     "__any_sync with mask 0xfffffffe"),
    ("barrier_in_warp", 1, 32, (zeros(32),),
     "and 30 more wait in __syncwarp with mask 0xffffffff in ...; thread (3, 0, 0) waits at "
     "__syncthreads"),
    # asynchronous copies
    ("no_wait", 1, 64, (floats(64), zeros(64)),
     "reads s[63] before the copy that line OTHER began has arrived: __pipeline_wait_prior must come "
     "first"),
    ("wait_for_one", 1, 32, (floats(128), zeros(32), 4),
     "reads s[0][31] before the copy that line OTHER began has arrived"),
    ("wait_no_barrier", 1, 64, (floats(64), zeros(64)),
     "reads s[0], which thread (0, 0, 0) wrote in line OTHER"),
    # the rest
    ("zero", 1, 1, (ints(1), ints(0)), "divides by zero."),
    ("too_much_shared", 1, 32, (zeros(32),),
     "b and the __shared__ arrays before it take 49156 bytes; a block has at most 49152"),
    ("recursion", 1, 1, (ints(0),), "needs more local memory than the emulator's stack for a thread has"),
    ("claims", 1, 32, (zeros(32), 20), "thread (20, 0, 0), ...assert(threadIdx.x < n || !wrong) fails."),
]
# fmt: on


def line_of(mark: str) -> int | None:
    lines = (HERE / "emulator_bugs.cu").read_text().splitlines()
    return next((i for i, line in enumerate(lines, 1) if line.endswith(f"// <- {mark}")), None)


@pytest.mark.parametrize(
    "kernel, grid, block, arguments, said", BUGS, ids=lambda x: x if type(x) is str else ""
)
def test_a_bug_is_reported_and_its_absence_is_not(bugs, kernel, grid, block, arguments, said):
    launch = getattr(bugs, kernel)[grid, block]
    launch(*copies(arguments), 0)
    given = copies(arguments)
    with pytest.raises(EmulatorError) as error:
        launch(*given, 1)
    message = str(error.value)
    expected = re.escape(said.replace("OTHER", str(line_of(f"other:{kernel}")))).replace(r"\.\.\.", ".*")
    assert re.search(expected, message), message
    assert message.startswith(f"{kernel}, block (")
    line = line_of(kernel)
    assert f"emulator_bugs.cu line {line}" in message, message
    source = (HERE / "emulator_bugs.cu").read_text().splitlines()[line - 1].strip()
    assert f"\n    {line} | {source}" in message, message
    for before, after in zip(arguments, given):
        assert before is after or torch.equal(before, after)  # nothing has changed


def copies(arguments):
    return [a.clone() if isinstance(a, torch.Tensor) and a.is_contiguous() else a for a in arguments]


def test_dynamic_shared_memory_has_bounds(bugs):
    y = zeros(32)
    bugs.dynamic_bounds[1, 32, 128](y, 32)
    assert torch.equal(y, floats(32))
    with pytest.raises(EmulatorError, match=r"writes buffer\[32\]; buffer has 32 elements\."):
        bugs.dynamic_bounds[1, 32, 128](y, 33)
    with pytest.raises(
        EmulatorError, match=r"writes buffer\[31\]; the launch asked for no dynamic shared memory"
    ):
        bugs.dynamic_bounds[1, 32](y, 32)
    with pytest.raises(ValueError, match=r"300000 bytes of shared memory; a block has at most 232448"):
        bugs.dynamic_bounds[1, 32, 300_000](y, 32)


def test_shared_memory_has_an_end(bugs):
    bugs.more_than_a_block_has[1, 32, 210 * 1024](zeros(32))
    with pytest.raises(EmulatorError, match=r"and the 220160 bytes of the launch are more than a block has"):
        bugs.more_than_a_block_has[1, 32, 215 * 1024](zeros(32))


def test_asynchronous_copies_of_what_is_allowed(bugs):
    x = floats(9)
    for skip, bytes, zero_bytes in [
        (4, 16, 0),
        (4, 16, 4),
        (4, 16, 12),
        (8, 16, 12),
        (6, 8, 0),
        (7, 4, 0),
        (0, 16, 16),
    ]:
        y, n, zero = zeros(4), bytes // 4, zero_bytes // 4
        bugs.copies[1, 1](x, y, skip, bytes, zero_bytes)
        assert y[:n].tolist() == x[skip : skip + n - zero].tolist() + [0] * zero
    for skip, bytes, zero_bytes, said in [
        (8, 16, 8, r"reads x\[8\] to x\[9\]; x has 9 elements"),
        (2, 16, 0, r"reads 16 bytes at x\[2\]: the address must be a multiple of 16 bytes"),
        (0, 12, 0, r"__pipeline_memcpy_async copies 4, 8 or 16 bytes, not 12"),
    ]:
        with pytest.raises(EmulatorError, match=said):
            bugs.copies[1, 1](x, zeros(4), skip, bytes, zero_bytes)
    with pytest.raises(EmulatorError, match="copies into shared memory only"):
        bugs.copies_to[1, 1](x, zeros(4))


def test_an_empty_tensor_has_no_elements(bugs):
    bugs.tail[1, 32](zeros(0), zeros(0), 0, 0)
    with pytest.raises(EmulatorError, match=r"reads x\[0\]; x has 0 elements"):
        bugs.tail[1, 32](zeros(0), zeros(0), 0, 1)


def test_tensors_behind_a_table_of_addresses(bugs):
    tensors = [zeros(8), zeros(2, 4), zeros(5)]
    addresses = torch.tensor([x.data_ptr() for x in tensors])
    with pytest.raises(EmulatorError, match=r"reads the address 0x.*, which belongs to no argument"):
        bugs.table[2, 8](addresses, 1)
    with emulator.reachable(tensors):
        bugs.table[2, 8](addresses, 1)
        assert tensors[0].tolist() == [1] * 8 and tensors[1].sum() == 8
        with pytest.raises(EmulatorError, match=r"reads the tensor of \(5,\)\[5\]; .* has 5 elements\."):
            bugs.table[3, 8](addresses, 1)


def test_a_fence_orders_blocks(bugs):
    x, y = floats(200), zeros(1)
    bugs.last_block[200, 1](x, zeros(200), ints(0), y)
    assert y.item() == x.sum()


def test_overlapping_arguments_are_one_memory(bugs):
    x = floats(40)
    bugs.tail[1, 32](x[:20], x[20:], 20, 0)
    assert torch.equal(x[20:], floats(20))
    rows = floats(2, 3, 4)  # y is every second row of x's memory
    bugs.beyond[1, 4](rows[:, 0], rows[:, 1], 4, 1)
    assert torch.equal(rows[1, 0], floats(4)) or rows[0, 2, 0] == 0


def test_reports_are_the_same_every_time(bugs):
    said = set()
    for _ in range(20):
        with pytest.raises(EmulatorError) as error:
            bugs.histogram[64, 32](torch.arange(2048, dtype=torch.int32) % 64 // 32, ints(0, 0), 2048, 1)
        said.add(str(error.value))
    assert len(said) == 1


def test_without_checks_bugs_pass_and_faults_are_errors(bugs):
    y = zeros(64)
    with checks(False):
        bugs.no_barrier[1, 64](floats(64), y, 1)
        with pytest.raises(
            EmulatorError, match=r"crash, .*line \d+: touches the address 0x10, where there is nothing"
        ):
            bugs.crash[1, 1](y, 16)
        with pytest.raises(EmulatorError, match=r"branch, .* wait at __syncthreads in"):
            bugs.branch[1, 64](y, 1)
    with pytest.raises(EmulatorError, match=r"crash, .*: writes the address 0x10, through a null pointer"):
        bugs.crash[1, 1](y, 16)


@pytest.mark.parametrize("grid", [1, 64])
def test_ctrl_c_stops_a_kernel(bugs, grid):
    for checked in (True, False):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin = time.perf_counter()
        with pytest.raises(KeyboardInterrupt), checks(checked):
            bugs.forever[grid, 1](zeros(1))
        assert time.perf_counter() - begin < 5
    bugs.tail[1, 32](floats(32), zeros(32), 32, 0)  # and the next one runs


def test_a_kernel_prints_what_it_can(bugs, capsys):
    bugs.says[3, 32](floats(3))
    said = ["0.00", "1.00", "2.00", "block 0", "block 1", "block 2"]
    assert sorted(capsys.readouterr().out.splitlines()) == said
    with pytest.raises(EmulatorError, match=r"block \(3, 0, 0\), .* reads x\[3\]"):
        bugs.says[50, 32](floats(3))
    assert sorted(capsys.readouterr().out.splitlines()) == [*said, "block 3"]


# What kernels compute


@pytest.fixture(params=[True, False], ids=["checked", "unchecked"])
def watched(request):
    with checks(request.param):
        yield


@pytest.mark.parametrize(
    "grid, block", [((3, 4, 2), (5, 2, 3)), (2, 1024), ((1, 1, 7), (1, 1, 64)), (1000, 1)]
)
def test_indices(intrinsics, watched, grid, block):
    gx, gy, gz = (*np.atleast_1d(grid), 1, 1)[:3]
    bx, by, bz = (*np.atleast_1d(block), 1, 1)[:3]
    y = zeros(gz * gy * gx, bz * by * bx, 6, dtype=torch.int32)
    intrinsics.indices[grid, block](y)
    blocks, threads = np.indices((gz, gy, gx)).reshape(3, -1), np.indices((bz, by, bx)).reshape(3, -1)
    for block, got in zip(blocks.T[:, ::-1], y.numpy()):
        assert np.array_equal(got[:, :3], np.broadcast_to(block, (bx * by * bz, 3)))
        assert np.array_equal(got[:, 3:], threads.T[:, ::-1])


@pytest.mark.parametrize("width", [32, 8, 1])
@pytest.mark.parametrize("by", [0, 1, 3, 5, 16])
def test_shuffles(intrinsics, watched, by, width):
    x = torch.randperm(64, dtype=torch.int32)
    y = zeros(64, 4, dtype=torch.int32)
    intrinsics.shuffles[1, 64](x, y, by, width)
    thread = np.arange(64)
    lane, group = thread % width, thread // width * width
    up = np.where(lane >= by, thread - by, thread)
    down = np.where(lane + by < width, thread + by, thread)
    xor = np.where((thread ^ by) // width <= thread // width, thread ^ by, thread)
    expected = x.numpy()[np.stack([group + by % width, up, down, xor], 1)]
    assert np.array_equal(y.numpy(), expected)


def test_shuffles_of_every_size(intrinsics, watched):
    y = zeros(32, dtype=torch.float64)
    intrinsics.shuffled_types[1, 32](y)
    other = np.arange(32) ^ 1
    assert np.allclose(y.numpy(), 0.1 * other + other + other * 2.0**40 + other, rtol=1e-15)


@pytest.mark.parametrize("what", ["some", "none", "all"])
def test_votes(intrinsics, watched, what):
    x = {"some": torch.arange(64) % 3 == 1, "none": torch.zeros(64), "all": torch.ones(64)}[what].int()
    y = zeros(64, 8, dtype=torch.uint32)
    intrinsics.votes[1, 64](x, y)
    got = y.numpy().reshape(2, 32, 8)
    for warp, p in enumerate(x.numpy().reshape(2, 32).astype(bool)):
        ballot = sum(1 << lane for lane in range(32) if p[lane])
        odd = np.where(np.arange(32) % 2, ballot & 0xAAAAAAAA, ballot & 0x55555555)
        expected = np.stack([np.broadcast_to(v, 32) for v in (ballot, p.any(), p.all(), 2**32 - 1, odd)], 1)
        assert np.array_equal(got[warp, :, :5], expected)
    assert (got[..., 5] == x.sum().item()).all()
    assert (got[..., 6] == x.all().item()).all() and (got[..., 7] == x.any().item()).all()


def test_atomics(intrinsics, watched):
    n = 5000
    x = torch.randint(0, 2**20, (n,), dtype=torch.int32)
    y, u, f, d = (
        zeros(11, dtype=torch.int32),
        zeros(2, dtype=torch.uint32),
        zeros(1),
        zeros(1, dtype=torch.float64),
    )
    y[3], y[6] = 2**30, -1
    intrinsics.atomics[(n + 127) // 128, 128](x, y, u, f, d, n)
    v = x.numpy()
    by_bits = [np.bitwise_or.reduce(v), np.bitwise_xor.reduce(v), np.bitwise_and.reduce(~v)]
    sum32 = v.sum(dtype=np.int32)
    assert y[:7].tolist() == [sum32, -sum32, v.max(), v.min(), *by_bits]
    assert y[7] == 1 and 1 <= y[8] <= n and y[9] == n and y[10] == n - 1
    assert u.tolist() == [n % 7, v.max()] and f.item() == n / 2 and d.item() == n / 4


def test_threads_that_wait_by_an_atomic(intrinsics, watched):
    count = ints(0)
    intrinsics.lock[8, 33](ints(0), count)
    assert count.item() == 8 * 33
    intrinsics.exchanged[8, 33](ints(0), count)
    assert count.item() == 2 * 8 * 33
    y = zeros(50, dtype=torch.int32)
    intrinsics.in_order[1, 50](ints(0), y)
    assert y.tolist() == list(range(49, -1, -1))


def test_arithmetic(intrinsics, watched):
    x = torch.linspace(-3, 3, 301)
    y = zeros(301, 24)
    intrinsics.arithmetic[3, 128](x, y, 301)
    v = x.numpy().astype(np.float64)
    a = np.abs(v) + 0.5
    erf = torch.erf(x.double()).numpy()
    low, high = np.minimum(v, 0.5), np.maximum(v, 1)
    expected = [np.exp(v), np.exp(v), 2**v, np.log(a), np.log(a), a**-0.5, a**-0.5, np.tanh(v), erf, a**0.5]
    expected += [v * v + 3, low, high, low, high, v / a, a**v, np.abs(np.trunc(v)), np.sin(v), np.cos(v)]
    expected += [np.rint(v), np.clip(v, 0, 1), np.log1p(a), np.floor(v)]
    assert np.allclose(y.numpy(), np.stack(expected, 1), rtol=1e-6, atol=3e-7)


def test_bits(intrinsics, watched):
    x = torch.tensor([0, 1, 2, 7, 0x80000000, 0xFFFFFFFF, 12345678, 0x3F800000], dtype=torch.uint32)
    y = zeros(8, 6, dtype=torch.int32)
    intrinsics.bits[1, 8](x, y)
    for v, got in zip(x.tolist(), y.tolist()):
        high = v * 0x9E3779B9 >> 32
        first = (v & -v).bit_length()
        both = max(1, v % 7) + min(3, v)
        assert got == [v.bit_count(), 32 - v.bit_length(), first, high - (high >> 31 << 32), 1, both]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_float_of_16_bits_and_rounding_to_it(compiler, watched, dtype):
    kernel = load(HERE / "emulator_intrinsics.cu", emulate=True, scalar=dtype).rounded
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    between = torch.cat(
        [every, every.nextafter(torch.tensor(torch.inf)), every.nextafter(torch.tensor(-torch.inf))]
    )
    middle = (every + every[1:].tolist()[0]) / 2
    random = torch.randint(-(2**31), 2**31, (200_000,)).int().view(torch.float32)
    ties = every.double() * (1 + 2.0**-11 if dtype == torch.float16 else 1 + 2.0**-8)
    x = torch.cat([between, middle, random, ties.float()])
    y, back = torch.empty(len(x), dtype=dtype), torch.empty(len(x))
    with checks(False):
        kernel[(len(x) + 255) // 256, 256](x, y, back, len(x))
    expected = x.to(dtype)
    same = (y.view(torch.int16) == expected.view(torch.int16)) | (y.isnan() & expected.isnan())
    assert same.all(), x[~same][:5]
    assert torch.equal(back.nan_to_num(1.5), expected.float().nan_to_num(1.5))


def test_arithmetic_of_16_bits(intrinsics, watched):
    x = torch.linspace(-5, 5, 100)
    y = zeros(100, 4)
    intrinsics.halves[1, 100](x, y, 100)
    h, b = x.half(), x.bfloat16()
    expected = torch.stack([(h + (h * 0.5)).float(), (b * b).float(), h.float(), torch.ones(100)], 1)
    assert torch.equal(y, expected)


def test_vectors(intrinsics, watched):
    x, k = torch.randn(32, 4), torch.randint(0, 100, (32, 4), dtype=torch.int32)
    y, m = zeros(32, 4), zeros(32, 4, dtype=torch.int32)
    intrinsics.vectors[1, 32](x, y, k, m)
    moved = torch.stack([x[:, 3], x[:, 0] + 1, 2 * x[:, 1], x[:, 2]], 1)
    assert torch.equal(y, moved.flip(0))
    assert torch.equal(m, k + torch.stack([0 * k[:, 0], k[:, 0], 0 * k[:, 0], 0 * k[:, 0]], 1))


def test_shared_memory_of_every_kind(intrinsics, watched):
    y = zeros(40)
    intrinsics.shared_kinds[1, 40](y)
    assert (y == 1 + 2 + 3 + 4 + 5 + 6 + 7 + 10 * 4 + 100 * 5 + 1000).all()
    intrinsics.carved[1, 40, 320](y, 40)
    assert torch.equal(y, 39 + 9 * floats(40))
    with pytest.raises(EmulatorError, match=r"writes buffer\[60\]; buffer has 60 elements"), checks(True):
        intrinsics.carved[1, 40, 240](y, 40)


def test_asynchronous_copies(intrinsics, watched):
    x, y = torch.randn(7, 32, 4), zeros(7, 32, 4)
    intrinsics.copied[1, 32](x, y, 7)
    x[:, 31, 2:] = 0  # asked for
    assert torch.equal(y, x.flip(1))


def test_constants_of_the_source(intrinsics, watched):
    y = zeros(4)
    intrinsics.tables[1, 4](y)
    assert y.tolist() == [1000, 10, 1, 100]


def test_many_threads_and_blocks(intrinsics, watched):
    x, y = torch.randn(40, 3000), zeros(40)
    intrinsics.block_sum[40, 1024](x, y, 3000)
    assert torch.allclose(y, x.sum(1), atol=1e-3)
    again = zeros(40)
    intrinsics.block_sum[40, 1024](x, again, 3000)
    assert torch.equal(y, again)
    many = torch.randn(500, 1)
    sums = zeros(500)
    intrinsics.block_sum[500, 1024](many, sums, 1)
    assert torch.equal(sums, many[:, 0])


def test_numbers_are_passed(intrinsics, watched):
    y = zeros(7)
    intrinsics.passed[1, 1](y, 0.5, 0.25, -7, 2**31, -(2**40), True, 200)
    assert y.tolist() == [0.5, 0.25, -7, 2.0**31, -(2.0**40), 1, 200]


# Compiling


def test_a_compile_error_names_the_line(compiler, tmp_path):
    source = '// first\nextern "C" __global__ void k(float *x) {\n    x[0] = y;\n}\n'
    with pytest.raises(
        CompileError, match=r"^source\.cu line 3: .*(not declared|undeclared).*\n    3 \| x\[0\] = y;"
    ):
        load(source, emulate=True)
    (tmp_path / "half.cuh").write_text("\n__device__ int f() { return 1 }\n")
    (tmp_path / "k.cu").write_text('#include "half.cuh"\n' + source.replace("= y", "= f()"))
    with pytest.raises(CompileError, match=r"^half\.cuh line 2: expected.*\n    2 \| __device__ int f"):
        load(tmp_path / "k.cu", emulate=True)
    with pytest.raises(CompileError, match=r"source.cu line \d: \d+ bytes of local memory are more than"):
        load(source.replace("x[0] = y", "float big[50000]; for (int i = 0; i < 50000; i++) big[i] = x[i];"
                            "x[0] = big[int(x[0])]"), emulate=True)  # fmt: skip


def test_a_line_of_a_header(compiler, tmp_path):
    (tmp_path / "near.cuh").write_text(
        "// one\n__device__ float at(const float *x, int i) {\n    return x[i];\n}\n"
    )
    text = '#include "near.cuh"\nextern "C" __global__ void k(const float *x, float *y) { y[0] = at(x, 9); }'
    (tmp_path / "k.cu").write_text(text)
    with pytest.raises(
        EmulatorError, match=r"near\.cuh line 3: reads x\[9\]; x has 5 elements\.\n    3 \| return x\[i\];"
    ):
        load(tmp_path / "k.cu", emulate=True).k[1, 1](floats(5), zeros(1))


def test_without_a_compiler_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for platform, install in [
        ("linux", "sudo apt install g"),
        ("darwin", "xcode-select --install"),
        ("win32", "wsl"),
    ]:
        monkeypatch.setattr(sys, "platform", platform)
        with pytest.raises(EmulatorError, match=f"takes a C.. compiler.*{install}"):
            find_compiler()


# A GPU computes the same


def every_half(dtype):
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float() * (
        1 + 2.0**-11
    )


ON_BOTH = [
    ("indices", (3, 2, 2), (4, 2, 3), 0, lambda: [zeros(12, 24, 6, dtype=torch.int32)]),
    *[
        (
            "shuffles",
            1,
            64,
            0,
            lambda by=by, width=width: [torch.arange(64).int(), zeros(256).int(), by, width],
        )
        for by in (1, 5, 16)
        for width in (8, 32)
    ],
    ("shuffled_types", 1, 32, 0, lambda: [zeros(32, dtype=torch.float64)]),
    ("votes", 1, 64, 0, lambda: [(torch.arange(64) % 3 == 1).int(), zeros(64, 8, dtype=torch.uint32)]),
    ("bits", 1, 64, 0, lambda: [torch.arange(64).mul(67_108_859).to(torch.uint32), zeros(64, 6).int()]),
    ("rounded", 256, 256, 0, lambda: [every_half(torch.float16), zeros(2**16), zeros(2**16), 2**16]),
    ("halves", 1, 100, 0, lambda: [torch.linspace(-5, 5, 100), zeros(100, 4), 100]),
    ("vectors", 1, 32, 0, lambda: [floats(32, 4), zeros(32, 4), torch.arange(128).int(), zeros(128).int()]),
    ("shared_kinds", 1, 40, 0, lambda: [zeros(40)]),
    ("carved", 1, 40, 320, lambda: [zeros(40), 40]),
    ("copied", 1, 32, 0, lambda: [floats(7, 32, 4), zeros(7, 32, 4), 7]),
    ("tables", 1, 4, 0, lambda: [zeros(4)]),
    ("block_sum", 7, 1024, 0, lambda: [floats(7, 3000) % 5, zeros(7), 3000]),
    ("passed", 1, 1, 0, lambda: [zeros(7), 0.5, 0.25, -7, 2**31, -(2**40), True, 200]),
    ("in_order", 1, 50, 0, lambda: [ints(0), zeros(50).int()]),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_computes_the_same(compiler, dtype):
    results = []
    for emulate in (True, False):
        module = load(HERE / "emulator_intrinsics.cu", scalar=dtype, emulate=emulate)
        for kernel, grid, block, shared, arguments in ON_BOTH:
            given = arguments()
            if kernel == "rounded":
                given[1] = given[1].to(dtype)
            given = [a if emulate or not isinstance(a, torch.Tensor) else a.cuda() for a in given]
            getattr(module, kernel)[grid, block, shared](*given)
            results.append([a.cpu() for a in given if isinstance(a, torch.Tensor)])
    for (kernel, *_), here, there in zip(ON_BOTH, results[: len(ON_BOTH)], results[len(ON_BOTH) :]):
        for x, y in zip(here, there):
            assert torch.equal(x.double().nan_to_num(0.1), y.double().nan_to_num(0.1)), kernel
