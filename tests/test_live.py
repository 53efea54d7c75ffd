"""Pictures of a run: the curve that grows while it trains, and a text by its losses."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from course import plots
from course.live import LiveCurve


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def loss(step: int) -> float:
    return 11.0 if step == 1 else 5.0 - step / 20


def listen(live, first: int, last: int, every: int = 10) -> None:
    live({"event": "start", "step": first, "steps": 60})
    for step in range(first + 1, last + 1):
        live({"event": "step", "step": step, "loss": loss(step), "lr": 0.1, "grad_norm": 1.0})
        if step % every == 0:
            live({"event": "speed", "step": step})  # which a curve has no use for
            live({"event": "evaluation", "step": step, "loss": 5.1 - step / 20})
            live({"event": "sample", "step": step, "text": f"at {step}"})


def test_one_curve_follows_a_run_and_the_one_that_goes_on_with_it(capsys):
    live = LiveCurve(width=1)
    listen(live, 0, 35)
    listen(live, 30, 60)
    assert list(live.losses) == list(range(1, 61)) and live.losses[60] == 2.0
    assert list(live.validation) == [10, 20, 30, 40, 50, 60] and live.samples[60] == "at 60"
    training, validation, mark = live.ax.get_lines()
    np.testing.assert_allclose(training.get_ydata(), [loss(step) for step in range(1, 61)])
    np.testing.assert_array_equal(validation.get_xdata(), [10, 20, 30, 40, 50, 60])
    assert mark.get_xdata()[0] == 30
    low, high = live.ax.get_ylim()
    assert low < 2.0 and 4.6 < high < 6.0, "the first losses do not set the scale"


def test_every_character_stands_on_the_ground_of_its_token():
    ax = plots.surprise(["ab", " c\n", "dé"], [0.5, 9.0, 3.0], columns=3)
    assert [text.get_text() for text in ax.texts] == ["ab ", "c⏎", "dé"]
    grounds = ax.collections[0]
    places = [tuple(path.vertices[0]) for path in grounds.get_paths()]
    assert places == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    np.testing.assert_allclose(grounds.get_array(), [0.5, 0.5, 6, 6, 6, 3, 3])


def test_each_token_needs_a_loss():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        plots.surprise(["a", "b"], [1.0])
