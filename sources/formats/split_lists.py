"""Read text lists of the images of a split: `train.txt` and `test.txt`, as Food-101 and many public sets have them.

A line names an image, with its suffix or without, and perhaps numbers after it, which mean something else in every set
and are not read; one word after the name of a file is its class. Caltech's birds have `train_test_split.txt` instead:
lines of a number and 0 or 1, with the paths by number in `images.txt` beside it.

A text file is such a list when its name states a split and its lines name images beside it.
"""

import posixpath
import re
from collections.abc import Collection, Iterator
from itertools import takewhile
from typing import IO

from imagekin.encoder.decoding.formats import IMAGE_SUFFIXES
from imagekin.sources.formats.table_rows import Row, path_column
from imagekin.sources.formats.text_lines import read_lines
from imagekin.sources.splits import NamedSplit, split_of
from imagekin.sources.suffixes import LIST_SUFFIX

NUMBERED_SPLITS, NUMBERED_PATHS = "train_test_split.txt", "images.txt"
"""The files of Caltech's birds: 0 (test) or 1 (train) by number, and paths by number."""

_FILE = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))}))(?:[\s,;]+(.*))?", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_CLASS = re.compile(r"(?!-?[\d.]+$)\S+")
# Splits of a name that says `train` and `val`: a list of both, beside which lists of each may lie.
_BOTH = re.compile(r"train.?val", re.IGNORECASE)


def is_split_list(path: str) -> bool:
    """Return whether a path may be that of a list by its name."""
    name = posixpath.basename(path).lower()
    return name.endswith(LIST_SUFFIX) and (name == NUMBERED_SPLITS or _stated(path) is not None)


def likely_lists(paths: Collection[str]) -> list[str]:
    """Return those of the lists of a folder, by their names, that are of all its images.

    Left out are lists of single classes (`cat_train.txt` beside `train.txt`), and those of training and validation
    images together where each has a list of its own.
    """
    named = {path: stated for path in paths if (stated := _stated(path)) is not None}
    if any(not stated.rest for stated in named.values()):
        named = {path: stated for path, stated in named.items() if not stated.rest}
    apart = {stated.split for path, stated in named.items() if not _BOTH.search(posixpath.basename(path))}
    if {"train", "validation"} <= apart:
        named = {path: one for path, one in named.items() if not _BOTH.search(posixpath.basename(path))}
    return [path for path in paths if path in named or posixpath.basename(path).lower() == NUMBERED_SPLITS]


def list_rows(file: IO[bytes]) -> Iterator[Row]:
    """Yield the rows of a list: `path`, and `label` where a line has a class; a header names the columns otherwise."""
    header: list[str] = []
    for number, line in read_lines(file):
        text = (line or "").strip()
        if line is None:
            yield Row(number, "the line is longer than 1 MiB")
        elif not text or text.startswith("#"):
            continue
        elif number == 1 and len(cells := text.split()) > 1 and path_column(cells) in cells and not _FILE.match(text):
            header = cells
        elif header:
            cells = text.split(maxsplit=len(header) - 1)
            problem = f"the line has {len(cells)} cells, the header {len(header)}"
            yield Row(number, dict(zip(header, cells, strict=True)) if len(cells) == len(header) else problem)
        elif (found := _FILE.fullmatch(text)) is not None and found[2] and _CLASS.fullmatch(found[2]):
            yield Row(number, {"path": found[1], "label": found[2]})
        else:
            yield Row(number, {"path": found[1] if found is not None else _without_numbers(text)})


def numbered_rows(splits: IO[bytes], paths: IO[bytes]) -> Iterator[Row]:
    """Yield the rows of Caltech's lists: `path` and `split`.

    Args:
        splits: lines of a number and 1 for a training image, 0 for a test image.
        paths: lines of a number and a path.
    """
    path_of = dict(_pairs(paths))
    for place, (number, is_train) in enumerate(_pairs(splits), start=1):
        if number not in path_of or is_train not in ("0", "1"):
            yield Row(place, f"{number[:40]!r} has no path in {NUMBERED_PATHS}, or the second cell is not 0 or 1")
        else:
            yield Row(place, {"path": path_of[number], "split": "train" if is_train == "1" else "test"})


def _pairs(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    for _, line in read_lines(file):
        number, _, rest = (line or "").strip().partition(" ")
        if number:
            yield number, rest.strip()


def _without_numbers(text: str) -> str:
    """Leave out the numbers at the end of a line, in time linear in its length: a hostile one is all numbers."""
    cells = text.split()[1:]
    numbers = sum(1 for _ in takewhile(_NUMBER.fullmatch, reversed(cells)))
    return text.rsplit(None, numbers)[0]


def _stated(path: str) -> NamedSplit | None:
    return split_of(posixpath.basename(path)[: -len(LIST_SUFFIX)])
