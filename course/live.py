"""A training run as a picture that grows while it trains: a listener for the trainer, in a notebook."""

import matplotlib.pyplot as plt
from IPython.display import display

from course import plots


class LiveCurve:
    """Draws the losses anew at each evaluation, in the output of the cell that made it.

    One curve may listen to a run and to the one that goes on with it: a dotted line marks where that began,
    and steps that are done again take the place of what they were. `losses` and `validation` are by the
    number of steps done, `samples` too.
    """

    def __init__(self, width: int = 10, unit: str = "nats a token"):
        self.width, self.unit = width, unit
        self.losses: dict[int, float] = {}
        self.validation: dict[int, float] = {}
        self.samples: dict[int, str] = {}
        self.starts: list[int] = []
        self.figure, self.ax = plt.subplots(figsize=(7.5, 3.2))
        plt.close(self.figure)  # or the cell would show it once more when it ends
        self.handle = display(self.figure, display_id=True)

    def __call__(self, event: dict) -> None:
        getattr(self, f"on_{event['event']}", lambda event: None)(event)

    def on_start(self, event: dict) -> None:
        self.steps = event["steps"]
        if event["step"]:
            self.starts.append(event["step"])

    def on_step(self, event: dict) -> None:
        self.losses[event["step"]] = event["loss"]

    def on_sample(self, event: dict) -> None:
        self.samples[event["step"]] = event["text"]

    def on_evaluation(self, event: dict) -> None:
        self.validation[event["step"]] = event["loss"]
        self.draw()
        if self.handle is not None:  # None outside of a notebook
            self.handle.update(self.figure)

    def draw(self) -> None:
        """The training losses as the mean of the last `width`, and the validation losses as points."""
        self.ax.clear()
        losses = plots.smooth(list(self.losses.values()), self.width)
        self.ax.plot(list(self.losses), losses, lw=1.2, label="training")
        self.ax.plot(list(self.validation), list(self.validation.values()), "o-", ms=4, label="held-out text")
        for start in self.starts:
            self.ax.axvline(start, color=plots.INK, lw=1, ls=":")
        # The first losses are those of a model that knows nothing, and would flatten all that follows.
        shown = sorted([*losses[len(losses) // 20 :], *self.validation.values()])
        margin = 0.08 * (shown[-1] - shown[0]) + 0.01
        self.ax.set(xlabel="step", ylabel=f"loss ({self.unit})", xlim=(0, self.steps))
        self.ax.set(ylim=(shown[0] - margin, shown[-1] + margin))
        self.ax.legend()
