"""Text from a trained model, one token at a time."""

import numpy as np

from course import device


def generate(model, tokenizer, prompt: str, n_tokens: int, *, temperature: float = 1.0, seed: int = 0) -> str:
    """`prompt` and up to `n_tokens` more tokens; stops early at the end of the text.

    `temperature` 0 always takes the likeliest token; higher ones draw from softmax(logits / temperature).
    Only the last `context_length` tokens are looked at. Raises `ValueError` for an empty prompt or a
    negative temperature.
    """
    ids = list(tokenizer.encode(prompt))
    if not ids:
        raise ValueError("The prompt is empty: give the model at least one character to go on.")
    if temperature < 0:
        raise ValueError(f"temperature = {temperature}: expected 0 (likeliest token) or more.")
    rng = np.random.default_rng(seed)
    for _ in range(n_tokens):
        window = np.array([ids[-model.config.context_length :]])
        window = device.put(window, beside=model.weights["embedding.weight"])
        logits = model.logits(window)[0, -1].double().cpu().numpy()
        if temperature == 0:
            new = int(logits.argmax())
        else:
            p = np.exp((logits - logits.max()) / temperature)
            new = int(rng.choice(len(p), p=p / p.sum()))
        if new == tokenizer.end_of_text:
            break
        ids.append(new)
    return tokenizer.decode(ids)
