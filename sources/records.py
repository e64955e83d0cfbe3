"""What a source of images yields: one record per image file, good or bad, and the rules for names.

A key is what a collection knows an image by: its path below the source's root, with `/` between the parts. The label
is the folder that the file lies in, because that is how labelled images are kept nearly everywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from encoder.errors import ImageError, InvalidArgumentError, KindredError
from sources import values
from sources.values import Payload

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


@dataclass(frozen=True, slots=True)
class Record:
    """One image file of a source.

    Attributes:
        key: path below the source's root, unique in the source.
        data: the file's bytes, or why there are none.
        label: name of the folder that it lies in, None at the root.
        payload: the caller's own JSON object.
    """

    key: str
    data: bytes | KindredError
    label: str | None = None
    payload: Payload | None = None


class Source(Protocol):
    """A sequence of records that may be read more than once.

    Attributes:
        ignored: files that the last reading passed over, hidden ones and those whose names are not those
            of images.
    """

    @property
    def ignored(self) -> int:
        """See the class."""
        ...

    def __iter__(self) -> Iterator[Record]:
        """Read the records one by one, always in the same order. What cannot be read is a record with an error."""
        ...

    def count(self) -> int | None:
        """Return about how many records there are, None when that is not known without reading everything."""
        ...


def is_image_name(name: str) -> bool:
    """Return whether a file of that name is taken for an image, and is not hidden."""
    return not is_hidden(name) and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Return whether a relative path, or a folder on its way, is hidden."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def label_of(key: str) -> str | None:
    """Return the name of the folder that the file lies in, None at the root."""
    return key.rpartition("/")[0].rpartition("/")[2] or None


def record_of(key: str, data: bytes | str) -> Record:
    """Make a record out of a path below the root and the file's bytes, or the reason why there are none."""
    if isinstance(data, bytes):
        problem = key_problem(key)
        if problem is None:
            return Record(key, data, label_of(key))
    else:
        problem = data
    return Record(printable(key), ImageError(problem), label_of(printable(key)))


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
    shown = text.encode("utf-8", "backslashreplace").decode()
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)


def too_large(size: int, max_bytes: int) -> str | None:
    """Return why a file of that many bytes is not read, None when it is."""
    return f"it has {size:,} bytes and may have {max_bytes:,}" if size > max_bytes else None
