"""The small model that ships: its file, its card, and what both promise."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from course import __main__ as command_line
from course import checkpoint, data, inference
from course.checkpoint import SHIPPED
from course.training import Recipe, evaluate

CARD = json.loads(SHIPPED.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def shipped():
    return inference.open_model()


def test_the_card_is_of_this_file():
    content = SHIPPED.read_bytes()
    assert CARD["sha256"] == hashlib.sha256(content).hexdigest()
    assert CARD["bytes"] == len(content) < 10_000_000
    assert CARD["recipe"] == Recipe.preset("shipped").to_dict()
    assert sorted(path.name for path in SHIPPED.parent.iterdir()) == [
        CARD["file"][:-11] + "json",
        CARD["file"],
    ]


def test_it_is_stored_in_16_bits_and_computes_in_32(shipped):
    with safe_open(SHIPPED, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config, weights, _ = checkpoint.load(SHIPPED)
    assert config.n_parameters() == CARD["parameters"] == sum(w.numel() for w in stored.values())
    for name, weight in shipped[0].weights.items():
        assert stored[name].dtype == torch.bfloat16
        assert weights[name].dtype == np.float32 and weight.dtype == torch.float32
        np.testing.assert_array_equal(weights[name], stored[name].float().numpy())
        assert torch.equal(weight.cpu(), stored[name].float())


def test_it_writes_what_its_card_says(shipped):
    greedy = CARD["greedy"]
    assert greedy["margin"] > 0.01  # no rounding, on any machine, makes another token the likeliest
    assert inference.generate(*shipped, greedy["prompt"], greedy["tokens"], temperature=0) == greedy["text"]
    beginning = inference.generate(*shipped, "", 60, temperature=CARD["copies"]["temperature"], seed=0)
    assert len(beginning) > 100 and CARD["samples"][0].startswith(beginning)


def test_it_is_as_good_as_its_card_says(shipped):
    model, tokenizer = shipped
    _, held_out = data.token_split("tales", tokenizer, progress=False)
    assert evaluate(model, held_out.tokens) == pytest.approx(CARD["quality"]["validation"]["loss"], abs=2e-4)


def test_what_is_no_whole_model_is_said_in_a_sentence(tmp_path, capsys):
    whole, path = SHIPPED.read_bytes(), tmp_path / "model.safetensors"
    config = whole.index(b"n_layer")
    for broken, said in (
        (whole[: len(whole) // 2], "is not a whole safetensors file"),
        (whole[:4], "is not a whole safetensors file"),
        (b"", "is not a whole safetensors file"),
        (whole[:config] + b"m_layer" + whole[config + 7 :], "is of no model that this course knows"),
        (None, "There is no checkpoint at"),
    ):
        path.unlink(missing_ok=True)
        if broken is not None:
            path.write_bytes(broken)
        assert command_line.main(["generate", str(path)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and said in err and err.count("\n") == 1
