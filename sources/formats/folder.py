"""Read the image files of a folder and all folders below it, and single image files."""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from imagekin.errors import ImagekinError
from imagekin.sources.labels import FolderLabels
from imagekin.sources.pieces import ImageFile, Piece
from imagekin.sources.places import LocalPlace, Place
from imagekin.sources.records import Record, SourceError, is_hidden, is_image_name, record_of


class FolderSource:
    """The image files below a folder, in the order of their names; links are followed, except circular ones.

    Args:
        path: the folder.
        max_bytes: larger files are not read.
    """

    embedded = None

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._ignored = 0

    @property
    def ignored(self) -> int:
        """Number of files that the last iteration ignored."""
        return self._ignored

    def __iter__(self) -> Iterator[Record]:
        """Read the records, see `Source`."""
        for piece in self.pieces():
            yield from piece

    def pieces(self) -> Iterator[Piece]:
        """List the files, see `imagekin.sources.pieces`."""
        self._ignored = 0
        files = (found.key for found in walk(self._path) if not found.problem)
        label = FolderLabels.of(filter(is_image_name, files))
        for found in walk(self._path):
            if found.problem:
                yield (record_of(found.key or os.path.basename(self._path), found.problem),)
            elif is_image_name(found.key):
                place = LocalPlace(os.path.join(self._path, found.key))
                yield ImageFile(found.key, place, self._max_bytes, label(found.key))
            else:
                self._ignored += 1

    def count(self) -> int:
        """Return the number of records."""
        return sum(bool(found.problem) or is_image_name(found.key) for found in walk(self._path))


class FileSource:
    """One image file, whose key is its name.

    Args:
        place: the file.
        max_bytes: a larger file is not read.
    """

    ignored = 0
    embedded = None

    def __init__(self, place: Place, max_bytes: int) -> None:
        self._place = place
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[Record]:
        """Read the record, see `Source`."""
        yield record_of(self._place.name, self._place.read(self._max_bytes))

    def count(self) -> int:
        """Return 1."""
        return 1


class FoundFile(NamedTuple):
    """A file, or a folder that cannot be read."""

    key: str
    problem: ImagekinError | None = None


class _Entered(NamedTuple):
    """A folder whose entries are being iterated."""

    prefix: str
    identity: tuple[int, int]
    entries: Iterator[tuple[str, bool]]


def walk(root: str, enters: Callable[[str], bool] | None = None) -> Iterator[FoundFile]:
    """Yield all files below a folder, without the folders for which `enters` returns False.

    It is not recursive, because folders may be nested deeper than Python's recursion limit.
    """
    entered: list[_Entered] = []
    pending: str | None = ""
    while True:
        if pending is not None:
            prefix, pending = pending, None
            try:
                folder = _enter(root, prefix)
            except OSError as error:
                yield FoundFile(prefix.rstrip("/"), SourceError(f"the folder cannot be read ({error.strerror})"))
            else:
                # Skips a folder inside itself, through a link; links to a folder elsewhere in the tree are followed.
                if all(folder.identity != above.identity for above in entered):
                    entered.append(folder)
        if not entered:
            return
        name, is_folder = next(entered[-1].entries, (None, False))
        if name is None:
            entered.pop()
        elif not is_folder:
            yield FoundFile(entered[-1].prefix + name)
        elif not is_hidden(name) and (enters is None or enters(entered[-1].prefix + name)):
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
    except OSError:  # a link to itself; an error is reported when it is read as an image
        return False
