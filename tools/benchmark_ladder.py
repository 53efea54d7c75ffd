"""Time every rung of the matmul ladder beside cuBLAS, on one GPU in one process.

    python tools/benchmark_ladder.py                -> assets/benchmarks/ladder.json
    python tools/benchmark_ladder.py --counters     also the bytes that each moved, counted by Nsight Compute

Each rung takes turns with cuBLAS alone, now one first, now the other: a large product drives a GPU to its
power limit, where the clock depends on what ran just before, and so would a comparison. A time is the median
of the turns. The operands are random normal numbers: zeros need less power, and look faster. TF32 is off.
"""

import argparse
import csv
import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from course import device
from kernels.cuda.ladder import RUNGS, Rung, matmul, prepare

OUTPUT = Path(__file__).resolve().parent.parent / "assets" / "benchmarks" / "ladder.json"
SIZES = {torch.float32: (1024, 2048, 4096), torch.bfloat16: (2048, 4096, 8192)}
ALONE = {"naive", "coalesced"}  # their threads share nothing
METRICS = {"dram_bytes": "dram__bytes.sum", "l2_bytes": "lts__t_bytes.sum"}


def table(dtype: torch.dtype, size: int, budget_ms: float) -> list[dict]:
    """The rows of one size: of each rung that this GPU runs, and of cuBLAS."""
    torch.manual_seed(0)
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    c = a @ b
    expected, rows, all_of_cublas = c.double(), [], []
    for rung in here(dtype):
        launch, its = prepare(rung, a, b)
        launch()
        error = float((its.double() - expected).norm() / expected.norm())
        if not error < 5e-3:
            raise SystemExit(f"{rung.name} differs from cuBLAS by {error:.1e} at {size}.")
        ms, cublas_ms = in_turns(launch, lambda: torch.mm(a, b, out=c), budget_ms)
        all_of_cublas += cublas_ms
        row = measured(rung.name, dtype, size, statistics.median(ms))
        row["of_cublas"] = round(statistics.median(cublas_ms) / statistics.median(ms), 4)
        # FLOPs over bytes asked of global memory, by a block for its tile, or by a thread for its element
        tile_m, tile_n = rung.tile if rung.name not in ALONE else (1, 1)
        row["tile_intensity"] = round(2 * tile_m * tile_n / ((tile_m + tile_n) * dtype.itemsize), 2)
        rows.append(row)
        print(
            f"{row['dtype']:9} {size:5} {rung.name:13} {row['tflops']:7.2f} TFLOP/s {row['of_cublas']:7.1%}"
        )
    rows.append(measured("cublas", dtype, size, statistics.median(all_of_cublas)))
    return rows


def here(dtype: torch.dtype) -> list[Rung]:
    major, minor = torch.cuda.get_device_capability()
    return [rung for rung in RUNGS if dtype in rung.dtypes and rung.runs_on(10 * major + minor, dtype)]


def measured(name: str, dtype: torch.dtype, size: int, ms: float) -> dict:
    kind, tflops = str(dtype).removeprefix("torch."), round(2 * size**3 / ms / 1e9, 2)
    return {"rung": name, "dtype": kind, "size": size, "ms": round(ms, 5), "tflops": tflops}


def in_turns(ours: Callable, theirs: Callable, budget_ms: float) -> tuple[list[float], list[float]]:
    """-> the milliseconds of each, a number a turn; at least 4 turns."""
    rough = burst_ms(ours, 1), burst_ms(theirs, 1)
    bursts = [max(1, min(50, int(8 / ms))) for ms in rough]
    a_turn = sum((burst + 1) * ms for burst, ms in zip(bursts, rough, strict=True))
    times: tuple[list, list] = [], []
    for turn in range(max(4, min(60, int(budget_ms / a_turn)))):
        for side in (0, 1) if turn % 2 else (1, 0):
            times[side].append(burst_ms((ours, theirs)[side], bursts[side]))
    return times


def burst_ms(run: Callable, burst: int) -> float:
    """One run unmeasured, then `burst` runs -> milliseconds a run."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    start.record()
    for _ in range(burst):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / burst


def count(rows: list[dict], dtype: torch.dtype) -> None:
    """Add to the rows of the largest size how many bytes went through DRAM and L2. Needs `ncu`."""
    command = [
        "ncu",
        "--csv",
        "--print-units",
        "base",
        "--clock-control",
        "none",
        "-k",
        "matmul",
        "--metrics",
    ]
    command += [",".join(METRICS.values()), sys.executable, __file__, "--once", str(dtype)[6:]]
    done = subprocess.run(command, capture_output=True, text=True)
    counted = list(csv.DictReader(line for line in done.stdout.splitlines() if line.startswith('"')))
    mine = [row for row in rows if (row["dtype"], row["size"]) == (str(dtype)[6:], max(SIZES[dtype]))]
    mine = [row for row in mine if row["rung"] != "cublas"]
    for field, metric in METRICS.items():
        values = [line["Metric Value"] for line in counted if line["Metric Name"] == metric]
        if len(values) != len(mine):
            raise SystemExit(f"ncu counted {len(values)} of {len(mine)} kernels:\n{done.stdout}{done.stderr}")
        for row, value in zip(mine, values, strict=True):
            row[field] = int(float(value.replace(",", "")))


def once(dtype: torch.dtype) -> None:
    """Each rung one time, for the counters."""
    size = max(SIZES[dtype])
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    for rung in here(dtype):
        matmul(rung, a, b)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-ms", type=float, default=1000, help="for a rung's turns at one size")
    parser.add_argument("--counters", action="store_true", help="count bytes with Nsight Compute")
    parser.add_argument("--once", choices=["float32", "bfloat16"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    if arguments.once:
        return once(getattr(torch, arguments.once))
    rows = []
    result = {"machine": device.describe(), "date": datetime.date.today().isoformat(), "rows": rows}

    def save() -> None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")

    for dtype, sizes in SIZES.items():
        for size in sizes:
            rows += table(dtype, size, arguments.budget_ms)
            save()
    if arguments.counters:
        for dtype in SIZES:
            count(rows, dtype)
        save()


if __name__ == "__main__":
    main()
