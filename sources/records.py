"""The records of a source, one per image or vector, good or bad, and the rules for names.

A key is what a collection knows an image by: its path below the source's root, with `/` between the parts, unless the
source says otherwise.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import ImageError, ImagekinError, InvalidArgumentError
from imagekin.sources import values
from imagekin.types import Payload

Vector: TypeAlias = NDArray[np.float32]

# Names that the decoder's formats go by. Everything else in a folder or an archive is passed over.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif",),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)


class SourceError(ImagekinError):
    """Part of a source could not be read, so that nobody knows what else it holds."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image, or one vector, of a source.

    Attributes:
        key: unique in the source.
        data: the image file's bytes, a vector float32 [D], or why there is neither. A SourceError says that further
            records may be missing.
        label: the class that the source names.
        payload: the source's own JSON object.
        content_hash: SHA-256 of the image (32 bytes) that a vector was made from, when the source tells.
    """

    key: str
    data: bytes | Vector | ImagekinError
    label: str | None = None
    payload: Payload | None = None
    content_hash: bytes | None = None


class VectorInfo(NamedTuple):
    """The description of a source's vectors: number of components, and embedding space ("" when unknown)."""

    dim: int
    space: str


class Source(Protocol):
    """A sequence of records that may be read more than once, save for standard input and pipes.

    Attributes:
        ignored: files that the last reading passed over, hidden ones and those whose names are not those
            of images.
        embedded: what its vectors are like; None when it holds images.
    """

    @property
    def ignored(self) -> int:
        """Number of files that the last reading passed over."""
        ...

    @property
    def embedded(self) -> VectorInfo | None:
        """The description of its vectors; None when it holds images."""
        ...

    def __iter__(self) -> Iterator[Record]:
        """Read the records one by one, always in the same order. What cannot be read is a record with an error."""
        ...

    def count(self) -> int | None:
        """Return about how many records there are, None when that is not known without reading everything."""
        ...


def is_image_name(name: str) -> bool:
    """Return whether a file of that name is taken for an image, and is not hidden."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Return whether a relative path, or a folder on its way, is hidden."""
    if "/." not in name and not name.startswith("."):
        return False
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def record_of(
    key: str,
    data: bytes | Vector | str | ImagekinError,
    label: str | None = None,
    payload: Payload | None = None,
    content_hash: bytes | None = None,
) -> Record:
    """Make a record of what a source holds, or of the reason why it holds nothing.

    What no collection could take (a key that is not UTF-8, a payload that is too large …) is a record with an error.
    """
    shown = printable(key)
    if isinstance(data, str):
        return Record(shown, ImageError(data))
    if isinstance(data, ImagekinError):
        return Record(shown, data)
    problem = key_problem(key)
    if problem is None:
        try:
            values.payload_text(payload)
            return Record(key, data, values.label(label), payload or None, content_hash)
        except InvalidArgumentError as error:
            problem = str(error)
    return Record(shown, ImageError(problem))


def key_problem(key: str) -> str | None:
    """Return why a collection cannot know an image by this key, None when it can."""
    try:
        key.encode()
        values.key(key)
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    except InvalidArgumentError as error:
        return f"its path cannot be a key, rename it: {error}"
    return None


def printable(text: str) -> str:
    """Return a name as it can be shown and stored: what is not UTF-8 or not printable is escaped."""
    if text.isprintable():
        return text
    shown = text.encode("utf-8", "backslashreplace").decode()
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)


def too_large(size: int, max_bytes: int) -> str | None:
    """Return why a file of that many bytes is not read, None when it is."""
    return f"it has {size:,} bytes and may have {max_bytes:,}" if size > max_bytes else None


def label_text(value: object) -> str | None:
    """Return a label as text: texts and whole numbers are labels, None and the empty text are none.

    Raises:
        InvalidArgumentError: it is something else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidArgumentError(f"a label is a text or a whole number, this one is {type(value).__name__}")
