"""Write the README's tables of speeds from the records in `assets/benchmarks/`.

    python tools/results.py     -> README.md, between the two comments that name this file

A time is of forward and backward together; a ratio says how many times as fast the course's kernels are.
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README, BENCHMARKS = ROOT / "README.md", ROOT / "assets" / "benchmarks"
BEGIN, END = "<!-- written by tools/results.py -->\n", "<!-- until here -->\n"

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
        "| rung | product | TFLOP/s | of cuBLAS |\n|---|---|---|---|\n"
    )
    for row in record["rows"]:
        if row["size"] == largest[row["dtype"]]:
            of_cublas = f"{100 * row['of_cublas']:.0f} %" if "of_cublas" in row else ""
            size = f"{row['size']:,}³, {row['dtype']}"
            table += f"| {row['rung']} | {size} | {row['tflops']:.1f} | {of_cublas} |\n"
    return table


def written(text: str) -> str:
    """README's `text` with the tables in it."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{kernels()}\n{step()}\n{ladder()}\n{cuda()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
