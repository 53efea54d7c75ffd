"""What looks on while a run trains: a progress bar, and Weights & Biases."""

from tqdm.auto import tqdm


class Progress:
    """A bar that moves when steps are done, not when they were asked for, and prints samples above it."""

    def __call__(self, event: dict) -> None:
        getattr(self, f"on_{event['event']}", lambda event: None)(event)

    def on_start(self, event: dict) -> None:
        parameters, tokens = event["parameters"], event["training_tokens"]
        print(
            f"{parameters:,} parameters, {tokens:,} training tokens, {event['precision']}, {event['machine']}"
        )
        self.bar = tqdm(
            total=event["steps"], initial=event["step"], unit="step", smoothing=0.05, dynamic_ncols=True
        )
        self.latest: dict[str, str] = {}

    def on_compiled(self, event: dict) -> None:
        self.bar.write(f"compiled in {event['seconds']:.0f} s")
        self.bar.unpause()  # the time before does not count into its estimate

    def on_step(self, event: dict) -> None:
        norm = event["grad_norm"]
        self.latest |= {
            "loss": f"{event['loss']:.3f}",
            "lr": f"{event['lr']:.1e}",
            "|g|": "overflow" if norm is None else f"{norm:.2f}",
        }

    def on_speed(self, event: dict) -> None:
        self.latest |= {"ms": f"{event['ms_per_step']:.1f}", "tok/s": f"{event['tokens_per_second']:,}"}
        if event["mfu"]:
            self.latest["MFU"] = f"{event['mfu']:.0%}"
        self.bar.set_postfix(self.latest, refresh=False)
        self.bar.update(event["step"] - self.bar.n)

    def on_evaluation(self, event: dict) -> None:
        self.bar.write(
            f"step {event['step']:,}: validation loss {event['loss']:.4f}, perplexity "
            f"{event['perplexity']:.2f}, {event['bits_per_byte']:.3f} bits a byte"
        )

    def on_sample(self, event: dict) -> None:
        self.bar.write(f"\n{event['text']}\n")

    def on_note(self, event: dict) -> None:
        self.bar.write(event["text"])

    def close(self) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class WeightsAndBiases:
    """Sends every number of the log to a project of Weights & Biases; `name` is the folder's.

    Raises `RuntimeError` if `wandb` is not installed.
    """

    def __init__(self, project: str, name: str, recipe: dict):
        try:
            import wandb
        except ModuleNotFoundError:
            raise RuntimeError(
                "wandb is not installed: `pip install wandb`, or train without --wandb; log.jsonl has "
                "everything too."
            ) from None
        # A run that goes on is another one of the same group: steps that it repeats are not lost.
        self.run = wandb.init(project=project, group=name, config=recipe)

    def __call__(self, event: dict) -> None:
        kind, step = event["event"], event["step"]
        numbers = {
            f"{kind}/{name}": v for name, v in event.items() if type(v) in (int, float) and name != "step"
        }
        if numbers:
            self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()
