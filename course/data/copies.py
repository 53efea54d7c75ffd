"""How much of a text stands in another one, word for word: what a model has learned by heart."""

from course.tokenizer import END_OF_TEXT


def longest_copy(text: str, source: str) -> str:
    """The longest run of words in `text` that stands in `source` in the same order, one space apart.

    Words are what stands between white space, with their punctuation; line breaks and marks between documents
    count as spaces. Of equally long runs it is the first one, and "" if not one word is in both.
    """
    words, longest = text.split(), []
    source = f" {' '.join(source.replace(END_OF_TEXT, ' ').split())} "
    for i in range(len(words)):
        while (n := len(longest) + 1) <= len(words) - i and f" {' '.join(words[i : i + n])} " in source:
            longest = words[i : i + n]
    return " ".join(longest)
