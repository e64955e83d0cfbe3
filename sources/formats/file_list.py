"""Read the images of a listing: of a folder, of a pattern, of a URL, or of names that are given."""

import os
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from itertools import chain, islice
from typing import TypeAlias

from imagekin.errors import ImagekinError
from imagekin.sources.formats.text_lines import read_lines
from imagekin.sources.ignored import Ignored, Kind, ignored_kind, is_image_name
from imagekin.sources.labels import LOOK_AHEAD
from imagekin.sources.pieces import ImageFile, Naming, Piece, Surveyed
from imagekin.sources.places import LocalPlace, Place, RemotePlace, is_url
from imagekin.sources.records import Record, SourceError, VectorInfo, record_of

# Yields paths relative to a root, sorted by name, and records with an error for folders that cannot be listed.
Listing: TypeAlias = Callable[[], Iterator[str | Record]]


class FilesReader:
    """The images of a listing; what is no image is counted.

    Args:
        listing: lists the files, each time it is called.
        place: returns the place of a listed path.
        max_bytes: larger images are not read.
        elsewhere: files that have readers of their own, or None and the kind as which they are ignored.
        listed: returns the images that tables list, which have readers of their own.
        explicit: whether the user named each file, so that none is ignored.
    """

    def __init__(
        self,
        listing: Listing,
        place: Callable[[str], Place],
        max_bytes: int,
        elsewhere: Mapping[str, Kind | None] | None = None,
        listed: Callable[[], Container[str]] | None = None,
        *,
        explicit: bool = False,
    ) -> None:
        self._listing = listing
        self._place = place
        self._max_bytes = max_bytes
        self._elsewhere = elsewhere or {}
        self._listed = listed
        self._explicit = explicit
        self._counted: int | None = None
        self.embedded: VectorInfo | None = None

    def survey(self, *, whole: bool = False) -> Iterator[Surveyed]:
        """Yield the paths of all images, see `Reader`."""
        listed = self._listed() if self._listed else ()
        counted = 0
        for found in self._listing():
            if isinstance(found, Record):
                counted += 1
            elif self._is_image(found) and found not in listed:
                counted += 1
                yield found
        self._counted = counted

    def pieces(self, naming: Naming, ignored: Ignored) -> Iterator[Piece]:
        """Yield the files, see `Reader`."""
        listed = self._listed() if self._listed else ()
        for found in self._listing():
            if isinstance(found, Record):
                yield (naming.moved(found),)
            elif self._is_image(found) and found in listed:
                continue
            elif self._is_image(found):
                label, split = naming.named(found)
                yield ImageFile(naming.key + found, self._place(found), self._max_bytes, label, split=split)
            elif found not in self._elsewhere:
                ignored.add(ignored_kind(found) or Kind("", ""))
            elif (kind := self._elsewhere[found]) is not None:
                ignored.add(kind)

    def count(self) -> int:
        """Return the number of records, those of the last survey if there was one."""
        if self._counted is not None:
            return self._counted
        listed = self._listed() if self._listed else ()
        return sum(
            not isinstance(found, str) or (self._is_image(found) and found not in listed) for found in self._listing()
        )

    def _is_image(self, found: str) -> bool:
        return self._explicit or is_image_name(found)


class ListReader:
    """The images whose paths or URLs are lines of standard input, which are also their keys; it can be read once.

    Args:
        max_bytes: larger images are not read.
    """

    embedded = None

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._paths: Iterator[str | None] | None = None

    def survey(self, *, whole: bool = False) -> Iterator[Surveyed]:
        """Yield the first 10,000 paths, and keep them until they are read."""
        rest = self._lines()
        first = list(islice(rest, LOOK_AHEAD))
        yield from (path for path in first if path is not None)
        if len(first) == LOOK_AHEAD:
            yield None
        self._paths = chain(first, rest)

    def pieces(self, naming: Naming, ignored: Ignored) -> Iterator[Piece]:
        """Read the list, see `Reader`."""
        paths, self._paths = self._paths or self._lines(), None
        for path in paths:
            if path is None:
                yield (naming.failure("standard input", SourceError("a line is longer than 1 MiB")),)
                continue
            try:
                place: Place = RemotePlace(path) if is_url(path) else LocalPlace(path)
            except ImagekinError as error:
                yield (record_of(path, error),)
            else:
                label, split = naming.named(path)
                yield ImageFile(path, place, self._max_bytes, label, split=split)

    def count(self) -> None:
        """Return None, because the list has not been read yet."""

    @staticmethod
    def _lines() -> Iterator[str | None]:
        listed = read_lines(sys.stdin.buffer)
        return (line if line is None else line.removeprefix("./") for _, line in listed if line != "")


def below(root: str, name: str) -> Place:
    """Return the place of a file below a folder."""
    return LocalPlace(os.path.join(root, name))
