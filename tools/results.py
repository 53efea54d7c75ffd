"""Write what the README says of records: the lessons and their times, the speeds, the tests.

    python tools/results.py     -> README.md, between the comments that name this file

The texts of the table of lessons stay as they are; which lessons there are, their addresses and times are
written. In the tables of speeds a time is of forward and backward together, and a ratio says how many times
as fast the course's kernels are.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import notebooks  # noqa: E402, a script finds its folder only

README, BENCHMARKS, RUNS = ROOT / "README.md", ROOT / "assets" / "benchmarks", ROOT / "assets" / "runs"
BEGIN, END = "<!-- {}: written by tools/results.py -->\n", "<!-- until here -->\n"

LINES = {  # operation -> what the table calls it
    "rmsnorm": "RMSNorm, width {1}",
    "layernorm": "LayerNorm, width {1}",
    "add_rmsnorm": "residual sum and RMSNorm",
    "add_layernorm": "residual sum and LayerNorm",
    "softmax": "softmax, width {1}",
    "swiglu": "SwiGLU",
    "gelu": "GELU",
    "rope": "RoPE",
    "embedding": "embedding, {1} rows",
    "cross_entropy": "cross-entropy, {1} classes",
    "linear_cross_entropy": "linear + cross-entropy, {0} tokens, {2} classes",
    "gelu_mlp": "GELU MLP",
    "linear": "linear",
}
PEERS = ("torch.compile", "torch")
ATTENTION_PEERS = ("SDPA flash", "SDPA cuDNN")


def read(name: str) -> dict:
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def span(values: list, form: str) -> str:
    """The smallest and the largest of `values`; one of them if they read the same."""
    texts = [format(v, form) for v in (min(values), max(values))]
    return " to ".join(dict.fromkeys(texts))


def grouped(results: list[dict]) -> dict[str, list[dict]]:
    """operation -> for every size, name -> row."""
    sizes: dict[tuple, dict] = {}
    for row in results:
        sizes.setdefault((row["operation"], *row["sizes"]), {})[row["name"]] = row
    operations: dict[str, list[dict]] = {}
    for (operation, *_), rows in sizes.items():
        operations.setdefault(operation, []).append(rows)
    return operations


def line(name: str, sizes: list[dict], peers: tuple[str, str], engine: str = "triton") -> str:
    """One row of a table: the ratio to each peer and to the ceiling, over all sizes."""
    own = [rows[engine] for rows in sizes]
    widths = [span(column, ",") for column in zip(*(row["sizes"] for row in own))]
    against = []
    for peer in peers:
        ratios = [sum(rows[peer]["ms"]) / sum(rows[engine]["ms"]) for rows in sizes]
        saved = [rows[peer]["peak_mib"] / rows[engine]["peak_mib"] for rows in sizes]
        memory = f", {span(saved, '.1f')} × the memory" if min(saved) > 1.45 else ""
        against.append(span(ratios, ".2f") + memory)
    ceiling = span([100 * row["of_ceiling"][2] for row in own], ".0f")
    return f"| {name.format(*widths)} | {against[0]} | {against[1]} | {ceiling} % |\n"


def table_of(record: dict, engine: str) -> str:
    operations = grouped(record["results"])
    table = (
        f"{record['gpu']}, PyTorch {record['torch']}, {record['dtype']}. The ceilings of that run: a copy "
        f"moved {record['copy_tb_s']:.2f} TB/s, a large matrix product did {record['matmul_tflop_s']:.0f} "
        "TFLOP/s.\n\n"
        "| forward and backward | times as fast as `torch.compile` | as PyTorch's own | of the ceiling |\n"
        "|---|---|---|---|\n"
    )
    for operation, name in LINES.items():
        table += line(name, operations[operation], PEERS, engine)
    return table


def kernels() -> str:
    record = read("kernels")
    table, operations = table_of(record, "triton"), grouped(record["results"])
    table += (
        "\n| causal attention | times as fast as FlashAttention-2 | as cuDNN | of the ceiling |\n"
        "|---|---|---|---|\n"
    )
    for D in (64, 128):
        sizes = [rows for rows in operations["attention"] if rows["triton"]["sizes"][3] == D]
        table += line(f"D = {D}, T = {{1}}", sizes, ATTENTION_PEERS)
    return table


def cuda() -> str:
    """The CUDA C++ engine of notebooks 12 to 14."""
    record = read("cuda")
    table = "The CUDA C++ engine, " + table_of(record, "cuda")
    sizes = grouped(record["results"])["attention"]
    heads = {D: [rows for rows in sizes if rows["cuda"]["sizes"][3] == D] for D in (64, 128)}
    for D, its in heads.items():
        table += line(f"causal attention, D = {D}, T = {{1}}", its, PEERS, "cuda")
    return table


def step() -> str:
    record = read("training_step")
    table = (
        f"A whole training step of nanoGPT's {record['n_parameters'] / 1e6:.0f}M model, T = "
        f"{record['context_length']:,}:\n\n| | batch | tokens/s | MFU | peak MiB |\n|---|---|---|---|---|\n"
    )
    for row in record["rows"]:
        table += (
            f"| {row['way']} | {row['batch_size']} | {row['tokens_per_second']:,} "
            f"| {100 * row['mfu']:.0f} % | {row['peak_mib']:,} |\n"
        )
    return table


def ladder() -> str:
    """The matmul ladder of notebook 13, at the largest size of each dtype."""
    record = read("ladder")
    largest = {row["dtype"]: row["size"] for row in sorted(record["rows"], key=lambda row: row["size"])}
    table = (
        f"The matmul ladder in CUDA C++ (notebook 13), {record['machine']}:\n\n"
        "| rung | product | TFLOP/s | of cuBLAS, in turns with it |\n|---|---|---|---|\n"
    )
    for row in record["rows"]:
        if row["size"] == largest[row["dtype"]]:
            of_cublas = f"{100 * row['of_cublas']:.0f} %" if "of_cublas" in row else ""
            size = f"{row['size']:,}³, {row['dtype']}"
            table += f"| {row['rung']} | {size} | {row['tflops']:.1f} | {of_cublas} |\n"
    return table


def full_run() -> str:
    """The run of notebook 16, and its step beside PyTorch's alone; nothing before it is recorded."""
    path = RUNS / "full_run.json"
    if not path.exists():
        return ""
    record = json.loads(path.read_text())
    plan, found = record["plan"], record["evaluation"]
    took, predicted = clock(record["real"]["training"]), clock(plan["seconds"])
    table = (
        f"\nThe full run (notebook 16), {record['machine']}: {plan['parameters'] / 1e6:.0f}M parameters, "
        f"{plan['tokens'] / 1e6:,.0f}M tokens of `{record['recipe']['data']}` in {took}, "
        f"predicted {predicted}; held-out loss {found['loss']:.3f}, "
        f"{found['bits_per_byte']:.3f} bits a byte. Its step:\n\n"
        "| | tokens/s | of PyTorch's | MFU | peak MiB |\n|---|---|---|---|---|\n"
    )
    ways = record["compare"]["ways"]
    peer = ways["torch, compiled"]["tokens_per_second"]
    for way, row in ways.items():
        rate, mfu = row["tokens_per_second"], f"{100 * row['mfu']:.0f} %"
        table += f"| {way} | {rate:,} | {rate / peer:.2f} | {mfu} | {row['peak_mib']:,} |\n"
    return table


def record_of_tests(where: str) -> dict | None:
    """What `tools/record_tests.py` recorded of the "cpu" or the "gpu"; None if nothing yet."""
    path = BENCHMARKS / f"tests_{where}.json"
    return json.loads(path.read_text()) if path.exists() else None


def machine(record: dict) -> str:
    """Of a record of tests: one H100, or so many threads of a processor."""
    if "NVIDIA" in record["machine"]:
        return f"one {record['machine']}"
    return f"{record['threads']} threads of a CPU ({record['machine']})"


def clock(seconds: float) -> str:
    """15 s; from a minute and a half on 2.1 min."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def lessons(old: str) -> str:
    """The table of lessons with the texts of the `old` one."""
    times = {where: record_of_tests(where) for where in ("cpu", "gpu")}
    times = {where: record for where, record in times.items() if record}
    address = notebooks.address()
    columns = [where.upper() for where in times] + ["Colab"] * bool(address)
    rows = [["", "notebook", "what you build", *columns], ["---"] * (3 + len(columns))]
    for line in old.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"\*\*Part .*\*\*", cells[1] if len(cells) > 1 else ""):
            rows.append(["", cells[1], "", *("" for _ in columns)])
        elif re.fullmatch(r"\d\d", cells[0]):
            rows.append([*lesson(*cells[:3], times, address)])
    took = "; ".join(f"{where.upper()}, {machine(record)}" for where, record in times.items())
    note = (
        f"What it takes to run all cells: {took}. To read and do: an evening or two each.\n" if times else ""
    )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + (f"\n{note}" if note else "")


def lesson(number: str, title: str, what: str, times: dict, address: str) -> list[str]:
    """One row: number, title and where it leads, text, times, badge."""
    title = re.sub(r"^\[(.*)\]\(.*\)$|^(.*?)(?: \(planned\))?$", r"\1\2", title)
    paths = list((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    if not paths:
        return [number, f"{title} (planned)", what, *("" for _ in times), *([""] if address else [])]
    (path,) = paths
    took = [record["seconds"].get(number) for record in times.values()]
    shown = ["" if seconds is None else clock(seconds) for seconds in took]
    badge = [notebooks.badge(path, address)] if address else []
    return [number, f"[{title}](notebooks/{path.name})", what, *shown, *badge]


def tests() -> str:
    """What the last recorded runs of all tests said."""
    lines = []
    for where, command in (("cpu", "make test"), ("gpu", "make test-gpu")):
        if record := record_of_tests(where):
            units, cells = record["units"], record["cells"]
            minutes = (units["seconds"] + cells["seconds"]) / 60
            lines.append(
                f"- `{command}`, {machine(record)}, PyTorch {record['torch']}: {units['passed']:,} tests and "
                f"{cells['passed']:,} cells passed in {minutes:.0f} minutes.\n"
            )
    return "".join(lines)


def speeds() -> str:
    return f"{kernels()}\n{step()}\n{ladder()}\n{cuda()}{full_run()}"


def written(text: str) -> str:
    """README's `text` with everything in it that is written by this tool."""
    blocks = {"lessons": lessons, "speeds": lambda _: speeds(), "tests": lambda _: tests()}
    for name, block in blocks.items():
        before, rest = text.split(BEGIN.format(name))
        old, after = rest.split(END, 1)
        text = f"{before}{BEGIN.format(name)}\n{block(old)}\n{END}{after}"
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
