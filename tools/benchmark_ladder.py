"""Time every rung of the matmul ladder, and cuBLAS, on one GPU in one process.

    python tools/benchmark_ladder.py                -> assets/benchmarks/ladder.json
    python tools/benchmark_ladder.py --counters     also the bytes that each moved, counted by Nsight Compute

All take turns, cuBLAS too, so that a GPU that gets warmer gets slower for all; a time is the median of the
turns. The operands are random normal numbers: on zeros a GPU draws less power, and clocks higher.
float32 is float32: TF32 is off.
"""

import argparse
import csv
import datetime
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from course import device
from kernels.cuda.ladder import RUNGS, matmul, prepare

OUTPUT = Path(__file__).resolve().parent.parent / "assets" / "benchmarks" / "ladder.json"
SIZES = {torch.float32: (1024, 2048, 4096), torch.bfloat16: (2048, 4096, 8192)}
METRICS = {"dram_bytes": "dram__bytes.sum", "l2_bytes": "lts__t_bytes.sum"}


def runs(dtype: torch.dtype, size: int) -> dict:
    """What to time, by name: each writes a C of its own. A rung's first result is compared with cuBLAS's."""
    torch.manual_seed(0)
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    c = a @ b
    found = {"cublas": lambda: torch.mm(a, b, out=c)}
    expected, capability = c.clone(), torch.cuda.get_device_capability()
    for rung in RUNGS:
        if dtype in rung.dtypes and rung.runs_on(10 * capability[0] + capability[1], dtype):
            launch, its = prepare(rung, a, b)
            launch()
            error = float((its.double() - expected.double()).norm() / expected.double().norm())
            if not error < 5e-3:
                raise SystemExit(f"{rung.name} differs from cuBLAS by {error:.1e} at {size}.")
            found[rung.name] = launch
    return found


def times(found: dict, turns: int, burst: int) -> dict[str, float]:
    """-> milliseconds. In a turn each runs once unmeasured, then `burst` times."""
    measured: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(turns):
        for name, run in found.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            run()
            start.record()
            for _ in range(burst):
                run()
            end.record()
            end.synchronize()
            measured[name].append(start.elapsed_time(end) / burst)
    return {name: statistics.median(values) for name, values in measured.items()}


def table(dtype: torch.dtype, size: int, turns: int) -> list[dict]:
    found = runs(dtype, size)
    ms = times(found, turns, burst=2 if dtype == torch.float32 else 5)
    tiles, flops, rows = {rung.name: rung.tile for rung in RUNGS}, 2 * size**3, []
    for name in found:
        row = {
            "rung": name,
            "dtype": str(dtype).removeprefix("torch."),
            "size": size,
            "ms": round(ms[name], 5),
            "tflops": round(flops / ms[name] / 1e9, 2),
            "of_cublas": round(ms["cublas"] / ms[name], 4),
        }
        if name in tiles:  # what a block computes over what it asks of global memory
            tile_m, tile_n = tiles[name]
            row["tile_intensity"] = 2 * tile_m * tile_n / ((tile_m + tile_n) * dtype.itemsize)
        rows.append(row)
        print(
            f"{row['dtype']:9} {size:5} {name:13} {row['tflops']:7.2f} TFLOP/s {row['of_cublas']:7.1%} of cuBLAS"
        )
    return rows


def count(rows: list[dict]) -> None:
    """Add to the rows of the largest sizes how many bytes went through DRAM and L2. Needs `ncu`."""
    if shutil.which("ncu") is None:
        raise SystemExit("--counters needs Nsight Compute: its program ncu is not on the PATH.")
    for dtype, sizes in SIZES.items():
        mine = [
            r
            for r in rows
            if r["size"] == max(sizes) and r["dtype"] == str(dtype)[6:] and r["rung"] != "cublas"
        ]
        command = [
            "ncu",
            "--csv",
            "--clock-control",
            "none",
            "--metrics",
            ",".join(METRICS.values()),
            "-k",
            "matmul",
        ]
        once = [sys.executable, __file__, "--once", str(dtype)[6:]]
        done = subprocess.run([*command, *once], capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
        counted = list(csv.DictReader(lines))
        for field, metric in METRICS.items():
            values = [c for c in counted if c.get("Metric Name") == metric]
            if len(values) != len(mine):
                raise SystemExit(
                    f"ncu counted {len(values)} kernels, expected {len(mine)}:\n{done.stdout[-2000:]}"
                )
            for row, value in zip(mine, values, strict=True):
                row[field] = _bytes(value["Metric Value"], value["Metric Unit"])


def _bytes(value: str, unit: str) -> int:
    scale = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "Tbyte": 1e12}[unit]
    return int(float(value.replace(",", "")) * scale)


def once(dtype: torch.dtype) -> None:
    """Each rung one time, for the counters."""
    a, b = (torch.randn(max(SIZES[dtype]), max(SIZES[dtype]), device="cuda").to(dtype) for _ in range(2))
    major, minor = torch.cuda.get_device_capability()
    for rung in RUNGS:
        if dtype in rung.dtypes and rung.runs_on(10 * major + minor, dtype):
            matmul(rung, a, b)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--counters", action="store_true", help="count bytes with Nsight Compute")
    parser.add_argument("--once", choices=["float32", "bfloat16"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    if arguments.once:
        return once(getattr(torch, arguments.once))
    rows = [row for dtype, sizes in SIZES.items() for n in sizes for row in table(dtype, n, arguments.turns)]
    if arguments.counters:
        count(rows)
    result = {"machine": device.describe(), "date": datetime.date.today().isoformat(), "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
