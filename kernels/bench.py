"""`python -m kernels.bench`: every operation of every engine, first checked, then timed against its peers.

Values and gradients are compared with float64 on small shapes. Then, on a GPU, the forward and the backward
pass are timed at real sizes, the same way for all: an engine through its autograd binding, `torch.compile`
of PyTorch's own operation, PyTorch's attention backends, Liger's kernels where they are installed. Each time
becomes a rate, of the bytes that must move or of the operations that must be done, and a part of the ceiling
that this same run measured: a copy, or a bfloat16 matrix product. All times are medians.
"""

import argparse
import gc
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import kernels
from kernels.autograd import bind, differentiable
from kernels.operations import ENGINES, OPERATIONS

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}  # of ‖out - exact‖ / ‖exact‖


@dataclass(frozen=True)
class Ids:
    """Integers below `high`, where an operation takes integers."""

    shape: tuple[int, ...]
    high: int


@dataclass(frozen=True)
class Job:
    """An operation, its inputs as a function of sizes, and the work in its forward and backward pass.

    Inputs are shapes, `Ids` and plain values. Work is counted in elements that must be read or written
    ("moves"), or in floating-point operations ("flops"), and is what the mathematics asks for: an engine
    that reads twice or computes again is slower, and has no more work done.
    """

    operation: str
    inputs: Callable[..., tuple]
    unit: str
    work: Callable[..., tuple[float, float]]
    small: tuple[tuple[int, ...], ...]  # for values; the first also for the time that a call takes
    large: tuple[tuple[int, ...], ...]


def _moves(forward: int, backward: int) -> Callable:
    """As many times the elements of an `(N, C)` array."""
    return lambda N, C: (forward * N * C, backward * N * C)


def _qkv(B, T, H, D):
    return (*[(B, T, H, D)] * 3, None, True, None, None)


ROWS = ((33, 1000), (7, 48))
WIDTHS = tuple((2**28 // C, C) for C in (768, 1024, 4096, 8192))
HEADS = tuple((2**14 // T, T, 2048 // D, D) for D in (64, 128) for T in (1024, 4096, 16384))

JOBS = (
    Job("rmsnorm", lambda N, C: ((N, C), (C,), 1e-5), "moves", _moves(2, 3), ROWS, WIDTHS),
    Job("layernorm", lambda N, C: ((N, C), (C,), (C,), 1e-5), "moves", _moves(2, 3), ROWS, WIDTHS),
    Job("add_rmsnorm", lambda N, C: (*[(N, C)] * 2, (C,), 1e-5), "moves", _moves(4, 4), ROWS, WIDTHS),
    Job("add_layernorm", lambda N, C: (*[(N, C)] * 2, (C,), (C,), 1e-5), "moves", _moves(4, 4), ROWS, WIDTHS),
    Job("softmax", lambda N, C: ((N, C),), "moves", _moves(2, 3), ROWS, (*WIDTHS, (8192, 32768))),
    Job("gelu", lambda N, C: ((N, C),), "moves", _moves(2, 3), ROWS, ((65536, 3072),)),
    Job("swiglu", lambda N, C: ((N, C), (N, C)), "moves", _moves(3, 5), ROWS, ((65536, 2048),)),
    Job("add", lambda N, C: ((N, C), (N, C)), "moves", _moves(3, 0), ROWS, ((131072, 768),)),
    Job("mul", lambda N, C: ((N, C), (N, C)), "moves", _moves(3, 5), ROWS, ((131072, 768),)),
    Job(
        "rope", lambda B, T, H, D: ((B, T, H, D), (T, D // 2), (T, D // 2)), "moves",
        lambda B, T, H, D: (2 * B * T * H * D, 2 * B * T * H * D),
        ((2, 33, 3, 16),), ((64, 1024, 12, 64), (16, 4096, 16, 128)),
    ),
    Job(
        "embedding", lambda N, V, C: (Ids((N,), V), (V, C)), "moves",
        lambda N, V, C: (2 * N * C, N * C + V * C),
        ((33, 31, 48),), ((131072, 50304, 768),),
    ),
    Job(
        "linear", lambda N, K, M: ((N, K), (M, K), None), "flops",
        lambda N, K, M: (2 * N * K * M, 4 * N * K * M),
        ((33, 100, 70),), ((16384, 768, 3072), (8192, 8192, 8192)),
    ),
    Job(
        "gelu_mlp", lambda N, C, F: ((N, C), (F, C), None, (C, F), None), "flops",
        lambda N, C, F: (4 * N * C * F, 8 * N * C * F),
        ((33, 48, 100),), ((32768, 768, 3072),),
    ),
    Job(
        "cross_entropy", lambda N, V: ((N, V), Ids((N,), V), -100), "moves",
        lambda N, V: (N * V, 2 * N * V),
        ROWS, ((8192, 50304),),
    ),
    Job(
        "linear_cross_entropy", lambda N, C, V: ((N, C), (V, C), Ids((N,), V), -100), "flops",
        lambda N, C, V: (2 * N * C * V, 4 * N * C * V),
        ((33, 48, 100),), ((16384, 768, 50304),),
    ),
    Job(
        "attention", _qkv, "flops",  # causal: half of 4 B H T² D, and 2.5 times that
        lambda B, T, H, D: (2 * B * H * T * T * D, 5 * B * H * T * T * D),
        ((4, 32, 4, 32), (1, 150, 2, 64)), HEADS,
    ),
)  # fmt: skip


# Who competes


def competitors(job: Job, engines: list[str]) -> Iterator[tuple[str, Callable]]:
    """Names and differentiable functions, all with the operation's own signature."""
    for engine in engines:
        if engine in OPERATIONS[job.operation].engines:
            # the pair, also where the engine's bound function is the library's
            function = getattr(bind(engine), job.operation)
            yield engine, function if engine == "torch" else differentiable(engine, job.operation)
    if torch.cuda.is_available():
        torch._dynamo.reset()
        yield "torch.compile", torch.compile(getattr(bind("torch"), job.operation), dynamic=False)
        if job.operation == "attention":
            yield "SDPA flash", _sdpa(SDPBackend.FLASH_ATTENTION)
            yield "SDPA cuDNN", _sdpa(SDPBackend.CUDNN_ATTENTION)
        if importlib.util.find_spec("liger_kernel") and job.operation in LIGER:
            yield "Liger", LIGER[job.operation]


def _sdpa(backend: SDPBackend) -> Callable:
    def attention(q, k, v, sink, causal, window, softmax_scale):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)

    return attention


def _liger(name: str, *places: int) -> Callable:
    def function(*inputs):
        from liger_kernel.transformers import functional

        return getattr(functional, f"liger_{name}")(*(inputs[place] for place in places))

    return function


LIGER = {
    "rmsnorm": _liger("rms_norm", 0, 1, 2),
    "layernorm": _liger("layer_norm", 0, 1, 2, 3),
    "softmax": _liger("softmax", 0),
    "swiglu": _liger("swiglu", 0, 1),
    "cross_entropy": _liger("cross_entropy", 0, 1),
    "linear_cross_entropy": _liger("fused_linear_cross_entropy", 0, 1, 2),
}


# What is measured


def make_inputs(job: Job, sizes: tuple, dtype: torch.dtype, device: str) -> list:
    """Normal numbers, the same ones at every call; a matrix such that what it makes of them is as large."""
    generator = torch.Generator(device).manual_seed(0)

    def make(name, spec):
        if isinstance(spec, Ids):
            return torch.randint(spec.high, spec.shape, device=device, generator=generator)
        if not isinstance(spec, tuple):
            return spec
        x = torch.randn(spec, device=device, dtype=dtype, generator=generator)
        if name == "weight" and len(spec) == 2:  # else the logits would be those of a model gone wrong
            x *= spec[1] ** -0.5
        return x.requires_grad_(name in OPERATIONS[job.operation].differentiable)

    return [make(*named) for named in zip(OPERATIONS[job.operation].inputs, job.inputs(*sizes), strict=True)]


def forward(function: Callable, inputs: list) -> tuple[Tensor, ...]:
    y = function(*inputs)
    return y if isinstance(y, tuple) else (y,)


def backward(y: tuple[Tensor, ...], dy: list[Tensor], inputs: list) -> tuple[Tensor, ...]:
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return torch.autograd.grad(y, leaves, dy, retain_graph=True)


def largest_error(job: Job, function: Callable, dtype: torch.dtype, device: str) -> float:
    """The largest ‖out - exact‖ / ‖exact‖ of outputs and gradients on the small shapes."""
    errors = []
    for sizes in job.small:
        inputs = make_inputs(job, sizes, dtype, device)
        double = [
            x.detach().double().requires_grad_(x.requires_grad)
            if isinstance(x, Tensor) and x.is_floating_point()
            else x
            for x in inputs
        ]
        exact = forward(getattr(bind("reference"), job.operation), double)
        dy = [torch.randn_like(out).to(dtype) for out in exact]
        exact += backward(exact, [d.double() for d in dy], double)
        got = forward(function, inputs)
        got += backward(got, dy, inputs)
        errors += [((a - b).norm() / b.norm()).item() for a, b in zip(got, exact, strict=True)]
    return max(errors, key=lambda error: (math.isnan(error), error))


def milliseconds(function: Callable) -> float:
    from triton.testing import do_bench  # the caches are emptied before each of many runs

    return do_bench(function, warmup=20, rep=50, return_mode="median")


def host_microseconds(function: Callable, calls: int = 500) -> float:
    """The time that a call takes on the CPU, its kernels still running behind it."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(times)


def both_passes(
    job: Job, sizes: tuple, function: Callable, dtype: torch.dtype, clock: Callable
) -> list[float]:
    """What `clock` says of the forward and of the backward pass."""
    inputs = make_inputs(job, sizes, dtype, "cuda")
    y = forward(function, inputs)
    dy = [torch.randn_like(out) for out in y]
    return [clock(lambda: function(*inputs)), clock(lambda: backward(y, dy, inputs))]


def memory(job: Job, sizes: tuple, function: Callable, dtype: torch.dtype) -> float:
    """MiB that a forward and a backward pass take beside the inputs, at their peak."""
    gc.collect()
    torch.cuda.empty_cache()
    inputs = make_inputs(job, sizes, dtype, "cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.backward(y := forward(function, inputs), [torch.ones_like(out) for out in y])
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def ceilings() -> dict[str, float]:
    """Bytes a second of a copy, and operations a second of a bfloat16 matrix product, as measured here."""
    x = torch.empty(2**29, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    copy = 2 * x.numel() / milliseconds(lambda: y.copy_(x)) * 1e3
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return {"moves": copy, "flops": 2 * 8192**3 / milliseconds(lambda: a @ a) * 1e3}


# The run


def run(jobs: list[Job], engines: list[str], dtype: torch.dtype) -> dict:
    """Check every operation, time it if there is a GPU; -> what `--output` writes."""
    console = Console()
    console.width = max(console.width, 120)  # where the output is a file, too
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = {"torch": torch.__version__, "dtype": str(dtype).removeprefix("torch."), "results": []}
    top = None
    if device == "cuda":
        top = ceilings()
        report |= {
            "gpu": torch.cuda.get_device_name(),
            "copy_tb_s": top["moves"] / 1e12,
            "matmul_tflop_s": top["flops"] / 1e12,
        }
        console.print(
            f"{report['gpu']}, PyTorch {torch.__version__}, {report['dtype']}. Ceilings: a copy moves "
            f"{report['copy_tb_s']:.2f} TB/s, a matrix product does {report['matmul_tflop_s']:.0f} TFLOP/s."
        )
    else:
        console.print(
            "No GPU here: values and gradients are checked, times and bandwidths cannot be measured."
        )
    for job in jobs:
        results = list(measure(job, engines, dtype, device, top))
        report["results"] += results
        if top is not None:
            console.print(times_table(job, results))
    if top is None:
        console.print(values_table(report["results"]))
    return report


def measure(job: Job, engines: list[str], dtype, device: str, top: dict | None) -> Iterator[dict]:
    """One result a competitor and size; a competitor that is wrong is not timed."""
    for name, function in competitors(job, engines):
        result = {"operation": job.operation, "name": name}
        try:
            result["error"] = largest_error(job, function, dtype, device)
            result["right"] = result["error"] <= TOLERANCE[dtype]
            if top is None or not result["right"]:
                yield result
                continue
            result["host_us"] = both_passes(job, job.small[0], function, dtype, host_microseconds)
            for sizes in job.large:
                ms = both_passes(job, sizes, function, dtype, milliseconds)
                work = [w * (dtype.itemsize if job.unit == "moves" else 1) for w in job.work(*sizes)]
                rates = [1e3 * w / t for w, t in zip((*work, sum(work)), (*ms, sum(ms)), strict=True)]
                yield result | {
                    "sizes": sizes,
                    "ms": ms,
                    "rates": [rate / 1e12 for rate in rates],  # forward, backward, both
                    "of_ceiling": [rate / top[job.unit] for rate in rates],
                    "peak_mib": memory(job, sizes, function, dtype),
                }
        except Exception as failure:  # a peer that cannot do this is a line in the table, not the end
            if name in ENGINES:
                raise
            yield result | {"failed": f"{type(failure).__name__}: {failure}".splitlines()[0][:200]}


def values_table(results: list[dict]) -> Table:
    """One row an operation, one column an engine: ‖out - exact‖ / ‖exact‖."""
    names = list(dict.fromkeys(r["name"] for r in results))
    made = Table("largest relative error", *names)
    for operation in dict.fromkeys(r["operation"] for r in results):
        errors = {r["name"]: r for r in results if r["operation"] == operation}
        made.add_row(operation, *(_error(errors[name]) if name in errors else "-" for name in names))
    return made


def times_table(job: Job, results: list[dict]) -> Table:
    """One row a competitor and size; two numbers in a field are the forward and the backward pass."""
    unit, digits = ("TB/s", 2) if job.unit == "moves" else ("TFLOP/s", 0)
    made = Table(title=job.operation, title_justify="left")
    for heading in ("sizes", "", "error", "ms", unit, "of the ceiling", "both", "MiB", "host µs"):
        made.add_column(heading, justify="left" if heading in ("sizes", "") else "right")
    for r in sorted(results, key=lambda r: r.get("sizes", ())):
        if "sizes" not in r:
            made.add_row("", r["name"], _error(r), *[""] * 6)
            continue
        forward, backward, both = r["rates"]
        made.add_row(
            "×".join(map(str, r["sizes"])),
            r["name"],
            _error(r),
            f"{r['ms'][0]:.3f} {r['ms'][1]:.3f}",
            f"{forward:.{digits}f} {backward:.{digits}f}",
            f"{r['of_ceiling'][0]:.0%} {r['of_ceiling'][1]:.0%}",
            f"{both:.{digits}f}",
            f"{r['peak_mib']:.0f}",
            f"{r['host_us'][0]:.0f} {r['host_us'][1]:.0f}",
        )
    return made


def _error(result: dict) -> str:
    if "failed" in result:
        return f"[yellow]{result['failed'][:60]}[/]"
    return f"{result['error']:.0e}" if result["right"] else f"[red]{result['error']:.0e} wrong[/]"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("operations", nargs="*", help="which operations (all)")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES[1:]), choices=ENGINES)
    parser.add_argument("--dtype", default=None, choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--output", type=Path, help="a file for the numbers, as JSON")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.operations) - set(OPERATIONS)
    if unknown:
        parser.error(f"unknown operations {', '.join(sorted(unknown))}: choose from {', '.join(OPERATIONS)}")
    if arguments.output and not arguments.output.parent.is_dir():
        parser.error(f"there is no folder {arguments.output.parent} to write into")
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before the engine imports Triton
    else:  # one forward pass, many backward passes: the compiled backward may not reuse its inputs' memory
        from torch._functorch import config

        config.donated_buffer = False
    engines, errors = [], Console(stderr=True)
    for name in arguments.engines:
        try:
            kernels.engine(name)
        except RuntimeError as missing:
            errors.print(missing)
        else:
            engines.append(name)
    dtype = arguments.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    jobs = [job for job in JOBS if not arguments.operations or job.operation in arguments.operations]
    report = run(jobs, engines, getattr(torch, dtype))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    wrong = [r for r in report["results"] if not r.get("right", True) and r["name"] in ENGINES]
    for r in wrong:
        errors.print(f"wrong: {r['name']} {r['operation']}, error {r['error']:.1e}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
