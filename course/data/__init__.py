"""Texts by name, their training and validation parts, their tokens, and batches of those.

`tales` ships with the course and is the default everywhere. `python_source` is already on every machine
that runs Python. The others are fetched with `python -m course data fetch NAME`, or lie in a folder that
the variable `COURSE_DATA_DIR` names.
"""

from course.data.batches import Batches, check_tokens, in_order, left_pad
from course.data.copies import longest_copy
from course.data.download import fetch
from course.data.preparation import prepare, token_split
from course.data.registry import DATA_DIR, DATASETS, PARTS, Dataset
from course.data.texts import documents, find, fits_in_memory, load_text, sample, split, stories
from course.data.token_files import TokenFile, fingerprint, open_tokens, write_tokens

__all__ = [
    "DATASETS",
    "DATA_DIR",
    "PARTS",
    "Dataset",
    "find",
    "fetch",
    "fits_in_memory",
    "load_text",
    "stories",
    "split",
    "documents",
    "sample",
    "prepare",
    "token_split",
    "TokenFile",
    "open_tokens",
    "write_tokens",
    "fingerprint",
    "check_tokens",
    "Batches",
    "in_order",
    "left_pad",
    "longest_copy",
]
