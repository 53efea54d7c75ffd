"""What a launch costs the CPU, by several ways of launching, on one GPU in one process.

    python tools/benchmark_launches.py     -> assets/benchmarks/launches.json

The kernels do nothing that takes time, and the GPU is kept busy while launches are timed, so that only the
CPU's share is measured: a median of rounds, in microseconds.
"""

import datetime
import statistics
import time
from pathlib import Path

import numpy as np
import records
import torch
import triton

from course import device
from kernels.cuda.module import load

OUTPUT = Path(__file__).resolve().parent.parent / "assets" / "benchmarks" / "launches.json"
SOURCE = """
extern "C" __global__ void three(const float *x, float *y, int n) { if (n < 0) y[0] = x[0]; }
extern "C" __global__ void eight(const float *a, const float *b, const float *c, float *y, int rows,
                                 int columns, int stride, float eps) {
    if (rows < 0) y[columns] = a[0] + b[0] + c[stride] + eps;
}
"""


@triton.jit
def triton_three(x, y, n):
    if n < 0:
        triton.language.store(y, triton.language.load(x))


@triton.jit
def triton_eight(a, b, c, y, rows, columns, stride, eps):
    if rows < 0:
        triton.language.store(y + columns, triton.language.load(a + stride) + eps)


def microseconds(launch, number: int = 400, rounds: int = 15) -> float:
    """Of one call on the CPU: the median of some rounds."""
    times = []
    for _ in range(rounds + 2):
        torch.cuda.synchronize()
        torch.cuda._sleep(20_000_000)  # some 10 ms of the GPU's: launches wait in its queue
        start = time.perf_counter()
        for _ in range(number):
            launch()
        times.append((time.perf_counter() - start) / number)
        torch.cuda.synchronize()
    return 1e6 * statistics.median(times[2:])


def main() -> None:
    module = load(SOURCE)
    x, y, a, b = (torch.zeros(1024, device="cuda") for _ in range(4))
    few, many = (x, y, 1000), (x, a, b, y, 10, 20, 30, 1e-5)
    ways = {}
    for kernel, triton_kernel, given in (
        (module.three, triton_three, few),
        (module.eight, triton_eight, many),
    ):
        ways |= of_the_course(kernel, given) | of_cuda_core(kernel, given)
        ways["triton", len(given)] = lambda k=triton_kernel, a=given: k[(4,)](*a)
    ways["torch.add(x, y, out=a)", 3] = lambda: torch.add(x, y, out=a)
    ways["x.add_(y)", 2] = lambda: x.add_(y)
    ways["x + y", 2] = lambda: x + y
    rows = []
    for (way, count), launch in ways.items():
        rows.append({"way": way, "arguments": count, "us": round(microseconds(launch), 2)})
        print(f"{rows[-1]['us']:6.2f} us  {way}, {count} arguments", flush=True)
    today = datetime.date.today().isoformat()
    records.write(OUTPUT, {"machine": device.describe(), "date": today, "rows": rows}, indent=1)


def of_the_course(kernel, given: tuple) -> dict:
    """The launch path of `kernels.cuda`, its prepared launch, and the driver's share of them."""
    launch, tensors, count = kernel[4, 256], [a for a in given if isinstance(a, torch.Tensor)], len(given)
    launch(*given)
    *_, start, config, handle, addresses = launch.forms[torch.cuda.current_device()][0]
    prepared = launch.prepare(*given[len(tensors) :])
    return {
        ("driver", count): lambda: start(config, handle, addresses, None),
        ("course", count): lambda: kernel[4, 256](*given),
        ("course, prepared", count): lambda: prepared(*tensors),
    }


def of_cuda_core(kernel, given: tuple) -> dict:
    """The same kernel through cuda.core's own `launch`, its stream and configuration made once."""
    try:
        from cuda.core import Device, LaunchConfig, ObjectCode, Stream, launch
    except ImportError:
        from cuda.core.experimental import Device, LaunchConfig, ObjectCode, Stream, launch

    current = torch.cuda.current_device()
    Device(current).set_current()
    function = ObjectCode.from_cubin(kernel.code.compile(current)).get_kernel(kernel.signature.name)
    config = LaunchConfig(grid=4, block=256)
    stream = Stream.from_handle(torch.cuda.current_stream().cuda_stream)

    def plain(argument):
        if isinstance(argument, torch.Tensor):
            return argument.data_ptr()
        return np.int32(argument) if isinstance(argument, int) else np.float32(argument)

    ready, count = [plain(argument) for argument in given], len(given)
    return {
        ("cuda.core, arguments ready", count): lambda: launch(stream, config, function, *ready),
        ("cuda.core", count): lambda: launch(stream, config, function, *[plain(a) for a in given]),
    }


if __name__ == "__main__":
    main()
