"""Image files in a folder and all folders below it, and single image files."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sources.records import Record, is_hidden, is_image_name, record_of, too_large


class FolderSource:
    """The image files below a folder, in the order of their names; links are followed, but never round in a circle.

    Args:
        path: the folder.
        max_bytes: larger files are not read.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._ignored = 0

    @property
    def ignored(self) -> int:
        """Files that the last reading passed over."""
        return self._ignored

    def __iter__(self) -> Iterator[Record]:
        """Read the records, see `Source`."""
        self._ignored = 0
        for found in _walk(str(self._path)):
            if found.problem:
                yield record_of(found.key or self._path.name, found.problem)
            elif is_image_name(found.key):
                yield record_of(found.key, _read(os.path.join(self._path, found.key), self._max_bytes))
            else:
                self._ignored += 1

    def count(self) -> int:
        """Return how many records there are."""
        return sum(bool(found.problem) or is_image_name(found.key) for found in _walk(str(self._path)))


class FileSource:
    """One image file, whose key is its name.

    Args:
        path: the file.
        max_bytes: a larger file is not read.
    """

    ignored = 0

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[Record]:
        """Read the record, see `Source`."""
        yield record_of(self._path.name, _read(str(self._path), self._max_bytes))

    def count(self) -> int:
        """Return 1."""
        return 1


class _Found(NamedTuple):
    """A file, or a folder that cannot be read."""

    key: str
    problem: str | None = None


class _Entered(NamedTuple):
    """A folder whose entries are being gone through."""

    prefix: str
    identity: tuple[int, int]
    entries: Iterator[tuple[str, bool]]


def _walk(root: str) -> Iterator[_Found]:
    """Yield all files below a folder. A stack, and no recursion: folders may be nested deeper than Python's calls."""
    entered: list[_Entered] = []
    pending: str | None = ""
    while True:
        if pending is not None:
            prefix, pending = pending, None
            try:
                folder = _enter(root, prefix)
            except OSError as error:
                yield _Found(prefix.rstrip("/"), f"the folder cannot be read ({error.strerror})")
            else:
                # A folder inside itself, by way of a link. The same folder beside itself is another matter.
                if all(folder.identity != above.identity for above in entered):
                    entered.append(folder)
        if not entered:
            return
        name, is_folder = next(entered[-1].entries, (None, False))
        if name is None:
            entered.pop()
        elif not is_folder:
            yield _Found(entered[-1].prefix + name)
        elif not is_hidden(name):
            pending = f"{entered[-1].prefix}{name}/"


def _enter(root: str, prefix: str) -> _Entered:
    path = os.path.join(root, prefix)
    status = os.stat(path)
    with os.scandir(path) as entries:
        listing = sorted((entry.name, _is_folder(entry)) for entry in entries)
    return _Entered(prefix, (status.st_dev, status.st_ino), iter(listing))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it will say so if its name is that of an image
        return False


def _read(path: str, max_bytes: int) -> bytes | str:
    """Return a file's bytes, or why there are none."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            return "it is no ordinary file"
        problem = too_large(status.st_size, max_bytes)
        if problem:
            return problem
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
