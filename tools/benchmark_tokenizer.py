"""Time the tokenizer beside Hugging Face `tokenizers` and `tiktoken`, on the same text in one run.

    python tools/benchmark_tokenizer.py TEXT    -> assets/benchmarks/tokenizer.json

TEXT is a text file; the other text is Python source, the standard library's and installed packages' files in
sorted order. Each training runs in its own process, which tells its own peak memory; the sides take turns,
and a time is the median of its turns. Hugging Face gets the text in pieces cut at borders of pre-tokens, so
that it can use its threads, and gives the same merges. Asked for more tokens than a text has, it stops
early; the number that it found is what the course's trainer is then asked for. With all cores, the course's
trainer counts words in as many processes, whose memory is not in its peak.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import tokenizers

from course.tokenizer import BPETokenizer
from course.tokenizer.pretokens import PATTERNS, blocks, slices, visible

OUTPUT = Path(__file__).resolve().parent.parent / "assets" / "benchmarks" / "tokenizer.json"
PATTERN = "gpt4"
PYTHON_BYTES = 20_000_000


def python_source() -> str:
    paths = sysconfig.get_paths()
    library = [p for p in sorted(Path(paths["stdlib"]).rglob("*.py")) if "site-packages" not in p.parts]
    content, size = [], 0
    for path in library + sorted(Path(paths["purelib"]).rglob("*.py")):
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            continue  # the standard library tests other encodings, too
        content.append(text)
        size += len(text.encode())
        if size >= PYTHON_BYTES:
            break
    return "".join(content).encode()[:PYTHON_BYTES].decode(errors="ignore")


def train_course(text: str, size: int, processes: int = 1) -> tuple[float, list]:
    start = time.perf_counter()
    tokenizer = BPETokenizer.train([text], size, PATTERN, special_tokens=(), processes=processes)
    seconds = time.perf_counter() - start
    return seconds, [[visible(left), visible(right)] for left, right in tokenizer.merges]


def train_hugging_face(text: str, size: int) -> tuple[float, list]:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERNS[PATTERN]), "isolated")
    by_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, by_bytes])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=by_bytes.alphabet(), show_progress=False
    )
    start = time.perf_counter()
    tokenizer.train_from_iterator(blocks(slices(text, 10_000)), trainer)
    seconds = time.perf_counter() - start
    return seconds, json.loads(tokenizer.to_str())["model"]["merges"]


SIDES = {
    "hugging_face": train_hugging_face,
    "course": train_course,
    "course_all_cores": partial(train_course, processes=os.cpu_count()),
}


def one(side: str, file: str, size: int) -> None:
    """In a process of its own: train, and print what it took."""
    text = Path(file).read_bytes().decode()
    seconds, merges = SIDES[side](text, size)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_memory() / 1e6, "merges": merges}))


def peak_memory() -> int:
    """Bytes of memory this process ever held (Linux). `getrusage` would count its parent's, before exec."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def in_a_process(side: str, file: Path, size: int) -> dict:
    command = [sys.executable, __file__, str(file), "--one", side, str(size)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(label: str, text: str, size: int, turns: int, folder: Path) -> dict:
    file = folder / "text"
    file.write_bytes(text.encode())
    megabytes = len(text.encode()) / 1e6
    results = {side: [] for side in SIDES}
    for _ in range(turns):
        for side in SIDES:
            results[side].append(in_a_process(side, file, size))
            size = 256 + len(results[side][0]["merges"])
    row = {"text": label, "megabytes": megabytes, "vocab_size": size}
    for side, runs in results.items():
        row[f"{side}_train_s"] = statistics.median(run["seconds"] for run in runs)
        row[f"{side}_peak_mb"] = max(run["peak_mb"] for run in runs)
    row["train_ratio"] = row["course_train_s"] / row["hugging_face_train_s"]
    row["same_merges"] = results["course"][0]["merges"] == results["hugging_face"][0]["merges"]

    trained = BPETokenizer.train([text], size, PATTERN, special_tokens=())
    peer = trained.to_tiktoken()
    encoders = {
        # anew each time: nothing in its cache
        "course": lambda: BPETokenizer(trained.tokens, PATTERN, ()).encode(text),
        "to_tiktoken": lambda: peer.encode_to_numpy(text, disallowed_special=()),
    }
    times = {side: [] for side in encoders}
    for _ in range(turns):
        for side, encode in encoders.items():
            start = time.perf_counter()
            ids = encode()
            times[side].append(time.perf_counter() - start)
    for side, seconds in times.items():
        row[f"{side}_encode_mb_s"] = megabytes / statistics.median(seconds)
    row["same_ids"] = bool((trained.encode(text) == ids).all())
    row["bytes_per_token"] = len(text.encode()) / len(ids)
    return row


def one_letter() -> float:
    """Seconds for a megabyte of one letter, with merges for it."""
    tokenizer = BPETokenizer.train(["a" * 10_000], 260, "gpt2")
    start = time.perf_counter()
    tokenizer.encode("a" * 1_000_000)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="a text file, UTF-8")
    parser.add_argument("--vocab-size", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], arguments.text, int(arguments.one[1]))
        return
    path = Path(arguments.text)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label, text in ((path.name, path.read_bytes().decode()), ("Python source", python_source())):
            rows.append(measure(label, text, arguments.vocab_size, arguments.turns, Path(folder)))
            print(json.dumps(rows[-1], indent=1))
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("tokenizers", "tiktoken", "regex")},
        "pattern": PATTERN,
        "asked_for": arguments.vocab_size,
        "one_letter_megabyte_s": one_letter(),
        "rows": rows,
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
