"""Mistakes that a careful person makes in notebook 00, and what the check must say to each."""

import torch


def _without_max(x):
    e = torch.exp(x)
    return e / e.sum(-1, keepdim=True)


def _with_one_max(x):
    e = torch.exp(x - x.max())
    return e / e.sum(-1, keepdim=True)


def _one_sum(x):
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum()


def _log_p(logits, targets):
    return torch.log_softmax(logits, -1).gather(1, targets[:, None])


WRONG_ANSWERS = {
    "00.1": [
        (_without_max, "overflows"),
        (_with_one_max, "of each row, not of the whole x"),
        (lambda x: torch.softmax(x, 0), "along the first dimension"),
        (lambda x: torch.exp(x), "divide each by the sum of its row"),
        (lambda x: torch.exp(x) / torch.exp(x).sum(), "each row needs its own"),
        (_one_sum, "each row needs its own"),
        (lambda x: torch.log_softmax(x, -1), "wrong values"),
        (lambda x: torch.softmax(x, -1).sum(-1), "has shape"),
    ],
    "00.2": [
        (lambda logits, temperature: torch.softmax(logits * temperature, -1), "do not multiply"),
        (lambda logits, temperature: torch.softmax(logits, -1) / temperature, "before the softmax"),
        (lambda logits, temperature: torch.softmax(logits, -1), "changes nothing"),
        (lambda logits, temperature: logits / temperature, "wrong values"),
    ],
    "00.3": [
        (lambda logits, targets: -_log_p(logits, targets).mean(), "exponential is still missing"),
        (lambda logits, targets: torch.exp(_log_p(logits, targets).mean()), "Is the sign missing"),
        (lambda logits, targets: torch.exp(-_log_p(logits, targets).sum()), "of the mean"),
        (lambda logits, targets: torch.exp(-_log_p(logits, targets)).mean(), "You averaged 1/p"),
        (lambda logits, targets: torch.exp(-_log_p(logits, targets)[:, 0]), "has shape"),
        (lambda logits, targets: 1 / torch.exp(_log_p(logits, targets)).mean(), "averaged the p"),
    ],
}
