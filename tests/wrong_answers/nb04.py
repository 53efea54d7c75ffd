"""Mistakes that a careful person makes in notebook 04, and what the check must say to each."""

from itertools import pairwise

from course.tokenizer import END_OF_TEXT


def _shortest_first(word, tokens):
    ids, start = [], 0
    while start < len(word):
        end = next(end for end in range(start + 1, len(word) + 1) if word[start:end] in tokens)
        ids.append(tokens[word[start:end]])
        start = end
    return ids


def _oldest_first(word, tokens):
    parts = [word[i : i + 1] for i in range(len(word))]
    while True:
        pairs = [(tokens[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in tokens]
        if not pairs:
            return [tokens[part] for part in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def _forgets_the_last(word, tokens):
    return _shortest_first(word[:-1], tokens)


def _greedy_count(word, tokens):
    count, start = 0, 0
    while start < len(word):
        start = next(end for end in range(len(word), start, -1) if word[start:end] in tokens)
        count += 1
    return count


def _all_cuts(word, tokens):
    if not word:
        return 0
    return 1 + min(_all_cuts(word[end:], tokens) for end in range(1, len(word) + 1) if word[:end] in tokens)


def _each_by_itself(tokens):
    for token in tokens:
        yield token.decode(errors="replace")


def _drops_the_broken(tokens):
    pending = b""
    for token in tokens:
        pending += token
        try:
            yield pending.decode()
            pending = b""
        except UnicodeDecodeError:
            yield ""
    yield pending.decode(errors="ignore")


def _all_at_the_end(tokens):
    content = b""
    for token in tokens:
        content += token
        yield ""
    yield content.decode(errors="replace")


def _ids(tokenizer, text, **how):
    return [tokenizer.end_of_text, *tokenizer.encode(text, **how)]


WRONG_ANSWERS = {
    "04.1": [
        (_shortest_first, "the longest token that fits"),
        (_oldest_first, "the longest token that fits"),
        (_forgets_the_last, "joined they are not the word"),
        (lambda word, tokens: "".join(map(chr, word)), "a list of ids"),
    ],
    "04.2": [
        (_greedy_count, "Taking the longest token at each place is not the best"),
        (_all_cuts, "tries all its cuts"),
        (lambda word, tokens: -(-len(word) // max(map(len, tokens))), "cannot be cut into"),
    ],
    "04.3": [
        (_each_by_itself, "half a character has to wait"),
        (_drops_the_broken, "there should be"),
        (_all_at_the_end, "there should be"),
    ],
    "04.4": [
        (lambda tokenizer, text: tokenizer.encode(END_OF_TEXT + text), "a stranger has put"),
        (lambda tokenizer, text: _ids(tokenizer, text, allowed_special=()), "is refused"),
        (lambda tokenizer, text: _ids(tokenizer, text.replace(END_OF_TEXT, "")), "the model reads"),
        (
            lambda tokenizer, text: _ids(
                tokenizer, text.replace("<|", "< |"), allowed_special=(), disallowed_special=()
            ),
            "the model reads",
        ),
    ],
}
