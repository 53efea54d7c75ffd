"""Train a GPT of PyTorch's own modules as `record_run.py` trains the course's, and record its curve.

    python tools/record_plain.py wizard_of_oz          -> assets/runs/wizard_of_oz_plain.json

The same sizes, recipe and batches; layers, loss, clipping, schedule and optimizer are PyTorch's, and the
first weights are other ones, drawn as GPT-2's were (Radford et al., 2019).
"""

import argparse
import datetime
import time
from pathlib import Path

import records
import torch
from record_run import ASSETS, RECIPE
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from course import data, device
from course.config import ModelConfig, preset
from course.tokenizer import CharTokenizer
from course.training import evaluate

EVERY = 250  # steps between two measurements of the held-out text


class Plain(nn.Module):
    """A GPT: embeddings, layers with their norms in front, a last norm, a head."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, C = config, config.d_model
        layer = nn.TransformerEncoderLayer(
            C, config.n_head, config.d_ff, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.embedding = nn.Embedding(config.vocab_size, C)
        self.position = nn.Embedding(config.context_length, C)
        self.layers = nn.TransformerEncoder(
            layer, config.n_layer, nn.LayerNorm(C), enable_nested_tensor=False
        )
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 / (2 * config.n_layer) ** (0.5 * ends_a_branch(name)))

    @property
    def weights(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """ids and targets (B, T) -> the mean loss."""
        T = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(T, device=ids.device)
        x = self.layers(self.embedding(ids) + self.position.weight[:T], mask, is_causal=True)
        return cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def ends_a_branch(name: str) -> bool:
    """Whether a matrix's result is added to the residual stream: with 2 L of them, each is drawn smaller."""
    return name.endswith(("out_proj.weight", "linear2.weight"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=list(data.DATASETS))
    parser.add_argument("--output", type=Path, default=ASSETS, help="instead of assets/")
    arguments = parser.parse_args()

    tokenizer = CharTokenizer.from_text(data.load_text(arguments.dataset))
    tokens, held_out = (tokenizer.encode(text) for text in data.split(arguments.dataset))
    config = preset("char", vocab_size=tokenizer.vocab_size)
    torch.manual_seed(0)
    model = Plain(config).to(device.DEVICE)
    steps, warmup = RECIPE["steps"], RECIPE["warmup"]
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in model.parameters() if w.dim() == 2]},
            {"params": [w for w in model.parameters() if w.dim() < 2], "weight_decay": 0.0},
        ],
        RECIPE["lr"],
        tuple(RECIPE["betas"]),
        weight_decay=RECIPE["weight_decay"],
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup, 0.1 * RECIPE["lr"]),
        ],
        [warmup],
    )
    batches = data.Batches(tokens, RECIPE["batch_size"], config.context_length, seed=1, to=device.put)
    validation, seconds, started = {}, 0.0, time.perf_counter()
    for step in range(1, steps + 1):
        model.loss(*batches.at(step - 1)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE["clip"])
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % EVERY == 0:
            device.synchronize()
            seconds += time.perf_counter() - started
            validation[str(step)] = round(evaluate(model, held_out), 4)
            print(f"step {step}: validation {validation[str(step)]}, {seconds:.1f} s", flush=True)
            started = time.perf_counter()
    record = {
        "machine": device.describe(),
        "date": datetime.date.today().isoformat(),
        "dataset": arguments.dataset,
        "n_parameters": sum(weight.numel() for weight in model.parameters()),
        "recipe": RECIPE,
        "validation": validation,
        "seconds": round(seconds, 2),
    }
    path = arguments.output / "runs" / f"{arguments.dataset}_plain.json"
    records.write(path, record, indent=1)
    print(f"{path}: best validation {min(validation.values())}")


if __name__ == "__main__":
    main()
