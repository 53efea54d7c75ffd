"""Launch every CUDA C++ kernel on this GPU, on small arrays: what compute-sanitizer watches.

`python tests/launch_every_kernel.py` runs every operation of the cuda engine and every rung of the matmul
ladder, and exits with 1 and a list if a kernel of a `.cu` file was not among what they launched. With
`bounds` or `race` it launches one wrong kernel instead, which the sanitizer has to find.
"""

import sys
from pathlib import Path

import torch
from operation_cases import CASES, Case, Ids, arguments, run_pair

from kernels.cuda import adamw, attention, gpu, ladder, losses, matmul
from kernels.cuda.module import HERE, load
from kernels.cuda.signature import signatures
from kernels.operations import OPERATIONS

WRONG = """
extern "C" __global__ void bounds(float *x, int n) {
    int i = threadIdx.x;
    if (i <= n) x[i] = 1;  // one too many
}
extern "C" __global__ void race(float *x, int n) {
    __shared__ float kept[64];
    kept[threadIdx.x] = x[threadIdx.x];  // no barrier
    x[threadIdx.x] = kept[63 - threadIdx.x];
}
"""
# Sizes beyond those of the tests on values: other tiles, sums in parts, rows that take a whole block, chunks.
LARGER = [
    Case("linear", ((260, 130), (140, 130), (140,)), "larger"),
    Case("linear", ((2000, 40), (24, 40), (24,)), "parts"),
    Case("add", ((2000, 5), (5,)), "parts"),
    Case("softmax", ((3, 5000),), "wide"),
    Case("layernorm", ((70, 1030), (1030,), (1030,), 1e-5), "wide"),
    Case("rmsnorm", ((3, 5000), (5000,), 1e-5), "wide"),
    Case("attention", (*[(1, 70, 2, 64)] * 3, None, True, None, None), "larger"),
    Case("attention", (*[(1, 70, 2, 33)] * 3, (2,), True, 20, None), "window"),
    Case("linear_cross_entropy", ((300, 40), (1000, 40), Ids((300,), 1000), -100), "chunks"),
]


def launch_all(launched: set) -> None:
    """Every operation in float32 and one type of 16 bits, every rung in what it computes in."""
    major, minor = torch.cuda.get_device_capability()
    capability = 10 * major + minor
    losses.CHUNK_BYTES = 1  # the fewest rows at a time
    for dtype in (torch.float32, torch.bfloat16 if major >= 8 else torch.float16):
        for case in [*CASES, *LARGER]:
            if "cuda" in OPERATIONS[case.operation].engines:
                run_pair("cuda", case, arguments(case, dtype, "cuda"))
        q, k, v, sink = (
            torch.ones(shape, dtype=dtype).cuda() for shape in [(2, 7, 4, 6), *[(2, 9, 2, 6)] * 2, 4]
        )
        y, saved = attention.composed_attention_forward(q, k, v, sink)
        attention.composed_attention_backward(y, saved)
        long = torch.ones(8, 9000, dtype=dtype).cuda()
        matmul.matmul(long, long.mT)  # in parts
        w, g, m, v = (
            [torch.ones(1003, dtype=t).cuda()] for t in (dtype, dtype, torch.float32, torch.float32)
        )
        adamw.adamw_(w, g, m, v, 1, 0.1, (0.9, 0.99), 1e-8, [0.1])
    for rung in ladder.RUNGS:
        for dtype in rung.dtypes:
            if not rung.runs_on(capability, dtype):
                launched.update(kernels_of(HERE / rung.source))  # not here
                continue
            for M, N, K in ((129, 132, 72), (33, 1, 65)):
                a = torch.ones(M, K, dtype=dtype).cuda()
                ladder.matmul(rung, a, torch.ones(K, N, dtype=dtype).cuda())


def kernels_of(path: Path) -> set[tuple[Path, str]]:
    return {(path, kernel) for kernel in signatures(path.read_text())}


def main() -> int:
    if sys.argv[1:]:
        getattr(load(WRONG), sys.argv[1])[1, 64](
            torch.zeros(40 if sys.argv[1] == "bounds" else 64).cuda(), 40
        )
        torch.cuda.synchronize()
        return 0
    launched, start = set(), gpu.GpuKernel.__getitem__

    def noted(kernel, shape):
        launched.add((kernel.code.folder / kernel.code.name, kernel.signature.name))
        return start(kernel, shape)

    gpu.GpuKernel.__getitem__ = noted
    launch_all(launched)
    torch.cuda.synchronize()
    missing = set().union(*map(kernels_of, HERE.rglob("*.cu"))) - launched
    for path, kernel in sorted(missing):
        print(f"not launched: {kernel} of {path.name}")
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
