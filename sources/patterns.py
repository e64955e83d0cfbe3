"""Match patterns of paths: `*` and `?` match within a name, `[…]` one of several characters, `**` any folders."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial

from imagekin.sources.formats.file_list import Listing
from imagekin.sources.formats.folder import walk
from imagekin.sources.records import Record, record_of

_WILD = re.compile(r"[*?\[]")


def has_wildcard(path: str) -> bool:
    """Return whether a path is a pattern."""
    return bool(_WILD.search(path))


def fixed_part(pattern: str) -> tuple[str, tuple[str, ...]]:
    """Return the folder before the first wildcard, and the parts of the pattern from there."""
    parts = pattern.split("/")
    first = next(place for place, part in enumerate(parts) if has_wildcard(part))
    root = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")
    if parts[-1] == "**":
        parts.append("*")
    return root, tuple(parts[first:])


def local_listing(root: str, parts: Sequence[str]) -> Listing:
    """Return a function that lists the files below a folder that a pattern matches.

    Folders that cannot contain a match are not read.
    """
    return partial(_listed, root, tuple(parts))


def _listed(root: str, parts: tuple[str, ...]) -> Iterator[str | Record]:
    matches = re.compile(_expression(parts)).match
    each = [re.compile(_name(part) + r"\Z") for part in parts]

    def enters(folder: str) -> bool:
        return "**" in parts or all(one.match(name) for one, name in zip(each, folder.split("/"), strict=False))

    for found in walk(root, enters):
        if found.problem:
            yield record_of(found.key or os.path.basename(root), found.problem)
        elif matches(found.key):
            yield found.key


def _expression(parts: Sequence[str]) -> str:
    """Return a regular expression for the paths that the parts match, and for everything below them."""
    middle = ["(?:[^/]+/)*" if part == "**" else _name(part) + "/" for part in parts[:-1]]
    return "".join(middle) + _name(parts[-1]) + r"(?:/.*)?\Z"


def _name(part: str) -> str:
    """Return a regular expression for one name."""
    text = ""
    place = 0
    while place < len(part):
        character = part[place]
        place += 1
        end = part.find("]", place + 1)
        if character == "*":
            text += "[^/]*"
        elif character == "?":
            text += "[^/]"
        elif character == "[" and end > 0:
            inside = part[place:end]
            negated = inside.startswith("!")
            inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[negated:])
            text += f"[{'^/' if negated else ''}{inside}]"
            place = end + 1
        else:
            text += re.escape(character)
    return text
