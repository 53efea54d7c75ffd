"""`python -m kernels.bench`: every operation of every engine, first checked, then timed against its peers.

Values and gradients are compared with float64 on a small shape. Then, on a GPU, the forward and the backward
pass are timed at real sizes, the same way for all: an engine through its autograd binding, `torch.compile`
of PyTorch's own operation, PyTorch's attention backends, Liger's kernels where they are installed. Each time
becomes a rate, of the bytes that must move or of the operations that must be done, and a part of the ceiling
that this same run measured: a copy, or a bfloat16 matrix product. All times are medians.
"""

import argparse
import gc
import importlib.util
import json
import os
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

from kernels.autograd import bind
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
    small: tuple[int, ...]  # for values, and for the time that a call takes before anything is computed
    large: tuple[tuple[int, ...], ...]


def _moves(forward: int, backward: int) -> Callable:
    """As many times the elements of an `(N, C)` array."""
    return lambda N, C: (forward * N * C, backward * N * C)


def _qkv(B, T, H, D):
    return (*[(B, T, H, D)] * 3, None, True, None, None)


ROWS = (33, 48)
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
        (2, 16, 2, 8), ((64, 1024, 12, 64), (16, 4096, 16, 128)),
    ),
    Job(
        "embedding", lambda N, V, C: (Ids((N,), V), (V, C)), "moves",
        lambda N, V, C: (2 * N * C, N * C + V * C),
        (33, 31, 48), ((131072, 50304, 768),),
    ),
    Job(
        "linear", lambda N, K, M: ((N, K), (M, K), None), "flops",
        lambda N, K, M: (2 * N * K * M, 4 * N * K * M),
        (33, 48, 24), ((16384, 768, 3072), (8192, 8192, 8192)),
    ),
    Job(
        "cross_entropy", lambda N, V: ((N, V), Ids((N,), V), -100), "moves",
        lambda N, V: (N * V, 2 * N * V),
        ROWS, ((8192, 50304),),
    ),
    Job(
        "linear_cross_entropy", lambda N, C, V: ((N, C), (V, C), Ids((N,), V), -100), "flops",
        lambda N, C, V: (2 * N * C * V, 4 * N * C * V),
        (33, 48, 31), ((16384, 768, 50304),),
    ),
    Job(
        "attention", _qkv, "flops",  # causal: half of 4 B H T² D, and 2.5 times that
        lambda B, T, H, D: (2 * B * H * T * T * D, 5 * B * H * T * T * D),
        (4, 32, 4, 32), HEADS,
    ),
)  # fmt: skip


# Who competes


def competitors(job: Job, engines: list[str]) -> Iterator[tuple[str, Callable]]:
    """Names and differentiable functions, all with the operation's own signature."""
    for engine in engines:
        if engine in OPERATIONS[job.operation].engines:
            yield engine, getattr(bind(engine), job.operation)
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
    """Normal numbers, the same ones at every call."""
    generator = torch.Generator(device).manual_seed(0)

    def make(spec):
        if isinstance(spec, Ids):
            return torch.randint(spec.high, spec.shape, device=device, generator=generator)
        if isinstance(spec, tuple):
            return torch.randn(spec, device=device, dtype=dtype, generator=generator)
        return spec

    names = OPERATIONS[job.operation].differentiable
    inputs = [make(spec) for spec in job.inputs(*sizes)]
    for name, x in zip(OPERATIONS[job.operation].inputs, inputs, strict=True):
        if name in names and x is not None:
            x.requires_grad_()
    return inputs


def outputs(y) -> tuple[Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


def gradients(y: tuple[Tensor, ...], dy: tuple[Tensor, ...], inputs: list) -> tuple[Tensor, ...]:
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return torch.autograd.grad(y, leaves, dy, retain_graph=True)


def error(job: Job, function: Callable, dtype: torch.dtype, device: str) -> float:
    """The largest ‖out - exact‖ / ‖exact‖ of outputs and gradients, on the small shape."""
    inputs = make_inputs(job, job.small, dtype, device)
    double = [
        x.detach().double().requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for x in inputs
    ]
    exact = outputs(getattr(bind("reference"), job.operation)(*double))
    generator = torch.Generator(device).manual_seed(1)
    dy = tuple(torch.randn(y.shape, device=device, dtype=dtype, generator=generator) for y in exact)
    exact += gradients(exact, tuple(d.double() for d in dy), double)
    got = outputs(function(*inputs))
    got += gradients(got, dy, inputs)
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(got, exact, strict=True))


def milliseconds(function: Callable) -> float:
    from triton.testing import do_bench

    return do_bench(function, warmup=20, rep=80, return_mode="median")


def host_microseconds(function: Callable, calls: int = 500) -> float:
    """The time that a call takes on the CPU, its kernels still running behind it."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return sorted(times)[2]


def timing(job: Job, sizes: tuple, function: Callable, dtype: torch.dtype) -> dict:
    """Times of both passes in ms, and the memory in MiB that both together take beside the inputs."""
    gc.collect()
    torch.cuda.empty_cache()
    inputs = make_inputs(job, sizes, dtype, "cuda")
    y = outputs(function(*inputs))
    dy = tuple(torch.randn_like(out) for out in y)
    forward = milliseconds(lambda: function(*inputs))
    backward = milliseconds(lambda: gradients(y, dy, inputs))
    y = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = outputs(function(*inputs))
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    torch.autograd.grad(y, leaves, dy)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {"forward_ms": forward, "backward_ms": backward, "peak_mib": peak}


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
    for name, function in competitors(job, engines):
        result = {"operation": job.operation, "name": name}
        try:
            result["error"] = error(job, function, dtype, device)
            result["right"] = result["error"] <= TOLERANCE[dtype]
            if top is None or not result["right"]:
                yield result
                continue
            inputs = make_inputs(job, job.small, dtype, device)
            y = outputs(function(*inputs))
            dy = tuple(torch.randn_like(out) for out in y)
            result["host_us"] = [
                host_microseconds(lambda: function(*inputs)),  # noqa: B023, called at once
                host_microseconds(lambda: gradients(y, dy, inputs)),  # noqa: B023
            ]
            for sizes in job.large:
                times = timing(job, sizes, function, dtype)
                work = [w * (dtype.itemsize if job.unit == "moves" else 1) for w in job.work(*sizes)]
                rates = [
                    w / t * 1e3
                    for w, t in zip(work, (times["forward_ms"], times["backward_ms"]), strict=True)
                ]
                rates.append(sum(work) / (times["forward_ms"] + times["backward_ms"]) * 1e3)
                yield (
                    result
                    | times
                    | {
                        "sizes": sizes,
                        "rates": [rate / 1e12 for rate in rates],
                        "of_ceiling": [rate / top[job.unit] for rate in rates],
                    }
                )
        except Exception as failure:  # a peer that cannot do this case is a line in the table, not the end
            if name in ENGINES:
                raise
            yield result | {"failed": f"{type(failure).__name__}: {failure}".splitlines()[0][:200]}


def values_table(results: list[dict]) -> Table:
    """One row an operation, one column an engine: ‖out - exact‖ / ‖exact‖."""
    names = list(dict.fromkeys(r["name"] for r in results))
    made = Table(
        "", *names, title="the largest relative error of outputs and gradients", title_justify="left"
    )
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
            f"{r['forward_ms']:.3f} {r['backward_ms']:.3f}",
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("operations", nargs="*", help="which operations (all)")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES[1:]), choices=ENGINES)
    parser.add_argument("--dtype", default=None, choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--output", type=Path, help="a file for the numbers, as JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.operations) - set(OPERATIONS)
    if unknown:
        parser.error(f"unknown operations {', '.join(sorted(unknown))}: choose from {', '.join(OPERATIONS)}")
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before the engine imports Triton
    else:  # one forward pass, many backward passes: the compiled backward may not reuse its inputs' memory
        from torch._functorch import config

        config.donated_buffer = False
    dtype = arguments.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    jobs = [job for job in JOBS if not arguments.operations or job.operation in arguments.operations]
    report = run(jobs, arguments.engines, getattr(torch, dtype))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    wrong = [r for r in report["results"] if not r.get("right", True) and r["name"] in ENGINES]
    for r in wrong:
        print(f"wrong: {r['name']} {r['operation']}, error {r['error']:.1e}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
