"""The records of a source, one per image or vector, good or bad, and the rules for names.

A key identifies an image in a collection. It is the path relative to the source's root, with `/` between the parts,
unless the source has keys of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import ImageError, ImagekinError, InvalidArgumentError
from imagekin.sources import values
from imagekin.sources.ignored import Ignored
from imagekin.sources.splits import Split
from imagekin.types import Payload

Vector: TypeAlias = NDArray[np.float32]

OTHER_IMAGE = "another image that was read before has the same key; the first one counts"
"""The reason why an image is not used, in training and in indexing."""
OTHER_LABEL = "it was read before with another label; the first one counts"
"""The reason why an image's further label is not used, in training and in indexing."""


class SourceError(ImagekinError):
    """Part of a source could not be read, so its records are not completely known."""


class RowError(SourceError):
    """A row cannot be used, and stands for an image that is not known; all others are read."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image, or one vector, of a source.

    Attributes:
        key: unique in the source.
        data: the image file's bytes, a vector float32 [D], or an error. A SourceError means that further records may
            be missing.
        label: the class, if the source has one.
        payload: the payload, if the source has one.
        content_hash: SHA-256 of the image that a vector was made from (32 bytes), if the source states it.
        split: the split that the image belongs to, if the source has splits.
        thumbnail: a small JPEG file of the image that a vector was made from, if one was made with it.
    """

    key: str
    data: bytes | Vector | ImagekinError
    label: str | None = None
    payload: Payload | None = None
    content_hash: bytes | None = None
    split: Split | None = None
    thumbnail: bytes | None = None


class VectorInfo(NamedTuple):
    """The description of a source's vectors: number of components, and embedding space ("" when unknown)."""

    dim: int
    space: str


class Source(Protocol):
    """A sequence of records that may be iterated more than once, except for standard input and pipes."""

    @property
    def ignored(self) -> Ignored:
        """The files that the last iteration ignored, by kind and reason."""
        ...

    @property
    def embedded(self) -> VectorInfo | None:
        """The description of its vectors; None when it holds images."""
        ...

    def __iter__(self) -> Iterator[Record]:
        """Read the records, always in the same order; records that cannot be read have an error."""
        ...

    def count(self) -> int | None:
        """Estimate the number of records; None when that requires reading everything."""
        ...


def record_of(
    key: str,
    data: bytes | Vector | str | ImagekinError,
    label: str | None = None,
    payload: Payload | None = None,
    content_hash: bytes | None = None,
    split: Split | None = None,
) -> Record:
    """Make a record from a source's values; `data` as a text is the message of an error.

    A record that no collection can store (a key that is not UTF-8, a too large payload …) gets an error.
    """
    shown = printable(key)
    if isinstance(data, str):
        return Record(shown, ImageError(data))
    if isinstance(data, ImagekinError):
        return Record(shown, data)
    problem = _key_problem(key)
    if problem is None:
        try:
            values.payload_text(payload)
            return Record(key, data, values.label(label), payload or None, content_hash, split)
        except InvalidArgumentError as error:
            problem = str(error)
    return Record(shown, ImageError(problem))


def _key_problem(key: str) -> str | None:
    """Return the reason why a key is invalid; None when it is valid."""
    try:
        key.encode()
        values.key(key)
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    except InvalidArgumentError as error:
        return f"its path cannot be a key, rename it: {error}"
    return None


def printable(text: str) -> str:
    """Return a name for messages and storage, with invalid and unprintable characters escaped."""
    if text.isprintable():
        return text
    shown = text.encode("utf-8", "backslashreplace").decode()
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)


def size_problem(size: int, max_bytes: int) -> str | None:
    """Return the reason why a file of this size is not read; None when it is."""
    return f"it has {size:,} bytes and may have {max_bytes:,}" if size > max_bytes else None


def label_text(value: object) -> str | None:
    """Convert a label to text: texts and whole numbers are labels, None and the empty text are no label.

    Raises:
        InvalidArgumentError: another type.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidArgumentError(f"a label is a text or a whole number, this one is {type(value).__name__}")
