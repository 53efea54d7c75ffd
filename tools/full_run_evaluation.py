"""What the full run's model has learned: its loss on held-out text, in parts too, and what it writes."""

import math
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from course import data, device, inference, yardsticks
from course.data import python_source
from course.training import Recipe, evaluate, token_losses
from course.training.corpus import bits_per_byte

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = (
    "import numpy as np\n\n\ndef ",
    'def is_prime(n):\n    """Whether n is a prime number."""\n',
    "class Stack:\n    def __init__(self):\n",
    "for i, line in enumerate(",
    "try:\n    import",
    "The ",
)
READ = ROOT / "course" / "training" / "schedule.py"  # no package that is installed has it
TOKENS_READ = 420
PACKAGE_BYTES = 2_000_000  # of the files of one package: some have many times more


def whole(run: Path) -> dict:
    """The best model of a run, evaluated in float32."""
    recipe = Recipe.load(run / "recipe.yaml")
    model, tokenizer = inference.open_model(run)
    tokens = data.token_split(recipe.data, tokenizer)[1]
    losses = token_losses(model, tokens.tokens).reshape(-1, model.config.context_length)
    loss = float(losses.mean(dtype=np.float64))
    record = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits_per_byte(loss, tokens)}
    record["by_position"] = by_position(losses)
    record["by_package"] = by_package(model, tokenizer)
    record["course"] = of_documents(model, tokenizer, course_files())
    record["read"] = read(model, tokenizer)
    record["generations"] = [generation(model, tokenizer, prompt) for prompt in PROMPTS]
    return record


def yards(recipe: Recipe, tokenizer) -> dict:
    """The same text's yardsticks, in bits a byte."""
    training, validation = data.token_split(recipe.data, tokenizer)
    size = tokenizer.vocab_size
    losses = {
        "uniform": yardsticks.uniform(size),
        "unigram": yardsticks.unigram(training.tokens, validation.tokens, size),
        "bigram": yardsticks.bigram(training.tokens, validation.tokens, size),
    }
    record = {name: round(bits_per_byte(loss, validation), 4) for name, loss in losses.items()}
    text = "".join(data.documents(recipe.data, "validation")).encode()
    return record | {"xz": round(yardsticks.xz(text), 4)}


def by_position(losses: np.ndarray) -> list[list[float]]:
    """[first position, mean loss] of the positions 1, 2, 3-4, 5-8, ... of a window, given (windows, T)."""
    edges = [0, 1, *(2**i for i in range(1, losses.shape[1].bit_length()))]
    pairs = [(a, b) for a, b in pairwise(edges) if a < b <= losses.shape[1]]
    return [[b, round(float(losses[:, a:b].mean()), 4)] for a, b in pairs]


def by_package(model, tokenizer, most: int = 10) -> list[list]:
    """[package, bytes, bits a byte] of the largest packages that are held out, or of their first files."""
    documents = python_source.with_packages("validation")
    packages = [(name, [text for _, text in group]) for name, group in groupby(documents, key=itemgetter(0))]
    packages.sort(key=lambda package: -sum(map(len, package[1])))
    return [[name, *of_documents(model, tokenizer, first(texts))] for name, texts in packages[:most]]


def first(texts: list[str]) -> list[str]:
    """As many of them as `PACKAGE_BYTES` has room for, and one at least."""
    ends = np.cumsum([len(text.encode()) for text in texts])
    return texts[: max(1, int((ends <= PACKAGE_BYTES).sum()))]


def of_documents(model, tokenizer, texts: list[str]) -> list:
    """[bytes, bits a byte] of some documents, read in windows as the validation text is."""
    encode = tokenizer.to_tiktoken().encode_ordinary_batch
    ids = np.concatenate([np.append(ids, tokenizer.end_of_text) for ids in encode(texts)])
    n_bytes = sum(len(text.encode()) for text in texts)
    return [n_bytes, round(evaluate(model, ids) * len(ids) / math.log(2) / n_bytes, 4)]


def course_files() -> list[str]:
    """This course's own Python files: public text that was written after anything that is installed."""
    folders = (ROOT / name for name in ("course", "kernels", "tests", "tools"))
    return [path.read_text() for folder in folders for path in sorted(folder.rglob("*.py"))]


def read(model, tokenizer) -> list[list]:
    """[token, nats] of the beginning of `READ`."""
    most = min(TOKENS_READ, model.config.context_length)
    ids = np.append(tokenizer.end_of_text, tokenizer.encode(READ.read_text()))[: most + 1]
    logits = model.logits(torch.from_numpy(ids[None, :-1]).to(device.DEVICE))[0].float()
    targets = torch.from_numpy(ids[1:]).to(device.DEVICE)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
    return [[tokenizer.decode([i]), round(loss, 3)] for i, loss in zip(ids[1:].tolist(), losses, strict=True)]


def generation(model, tokenizer, prompt: str) -> list[str]:
    """A prompt and what the model makes of it."""
    settings = {"temperature": 0.6, "top_p": 0.95, "seed": 1, "stop": ["\n\n\n"]}
    pieces = inference.stream(model, tokenizer, prompt, 160, **settings)
    return [prompt, "".join(pieces)]
