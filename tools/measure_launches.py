"""What a launch costs the CPU, in microseconds: `python tools/measure_launches.py`, on a GPU.

The kernels do nothing that takes time, and the GPU is kept busy while launches are timed, so that only the
CPU's share is measured. One JSON line a way.
"""

import json
import statistics
import time

import numpy as np
import torch
import triton

from kernels.cuda.module import load

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
    for name, kernel, arguments in (("3", module.three, few), ("8", module.eight, many)):
        launch = kernel[4, 256]
        launch(*arguments)
        *_, start, config, handle, addresses = launch.forms[0][0]
        ways[f"the driver alone, {name}"] = lambda s=start, c=config, h=handle, a=addresses: s(c, h, a, None)
        ways[f"kernel[4, 256](..), {name}"] = lambda k=kernel, a=arguments: k[4, 256](*a)
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        prepared = launch.prepare(*arguments[len(tensors) :])
        ways[f"prepared(..), {name}"] = lambda p=prepared, t=tensors: p(*t)
        ways[f"kernel[(4, 1), (16, 16)](..), {name}"] = lambda k=kernel, a=arguments: k[(4, 1), (16, 16)](*a)
    ways |= cuda_core(module, few, many)
    ways["Triton's kernel[grid](..), 3"] = lambda: triton_three[(4,)](*few)
    ways["Triton's kernel[grid](..), 8"] = lambda: triton_eight[(4,)](*many)
    ways["torch.add(x, y, out=a)"] = lambda: torch.add(x, y, out=a)
    ways["x.add_(y)"] = lambda: x.add_(y)
    ways["x + y"] = lambda: x + y
    for way, launch in ways.items():
        print(json.dumps({"way": way, "us": round(microseconds(launch), 2)}), flush=True)


def cuda_core(module, few: tuple, many: tuple) -> dict:
    """The same kernels through cuda.core's own `launch`, its stream and configuration made once."""
    try:
        from cuda.core import Device, LaunchConfig, ObjectCode, Stream, launch
    except ImportError:
        from cuda.core.experimental import Device, LaunchConfig, ObjectCode, Stream, launch

    Device(0).set_current()
    code = ObjectCode.from_cubin(module.three.code.compile(0))
    config = LaunchConfig(grid=4, block=256)
    stream = Stream.from_handle(torch.cuda.current_stream().cuda_stream)

    def plain(argument):
        if isinstance(argument, torch.Tensor):
            return argument.data_ptr()
        return np.int32(argument) if isinstance(argument, int) else np.float32(argument)

    ways = {}
    for name, arguments in (("three", few), ("eight", many)):
        kernel, count = code.get_kernel(name), len(arguments)
        ready = [plain(argument) for argument in arguments]
        ways[f"cuda.core.launch, arguments ready, {count}"] = lambda k=kernel, r=ready: launch(
            stream, config, k, *r
        )
        ways[f"cuda.core.launch, {count}"] = lambda k=kernel, a=arguments: launch(
            stream, config, k, *[plain(argument) for argument in a]
        )
    return ways


if __name__ == "__main__":
    main()
