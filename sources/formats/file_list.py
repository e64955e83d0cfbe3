"""Read images listed on standard input, and the files of a pattern or a listing."""

import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice

from imagekin.errors import ImagekinError, InvalidArgumentError
from imagekin.sources.formats.text_lines import read_lines
from imagekin.sources.labels import LOOK_AHEAD, FolderLabels
from imagekin.sources.pieces import ImageFile, Piece, pieces_of
from imagekin.sources.places import LocalPlace, Place, RemotePlace, is_url
from imagekin.sources.records import Record, Source, SourceError, is_hidden, is_image_name, printable, record_of

# Yields paths relative to a root, sorted by name, and records with an error for folders that cannot be listed.
Listing = Callable[[], Iterator[str | Record]]


class ListSource:
    """The images whose paths or URLs are lines of standard input, which are also their keys; it can be read once.

    Args:
        max_bytes: larger images are not read.
    """

    embedded = None
    ignored = 0

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[Record]:
        """Read the records, see `Source`."""
        for piece in self.pieces():
            yield from piece

    def pieces(self) -> Iterator[Piece]:
        """Read the list, see `imagekin.sources.pieces`."""
        listed = read_lines(sys.stdin.buffer)
        paths = (line if line is None else line.removeprefix("./") for _, line in listed if line != "")
        first: list[str | None] = []

        def ahead() -> Iterator[str]:
            for path in islice(paths, LOOK_AHEAD):
                first.append(path)
                if path is not None:
                    yield path

        label = FolderLabels.of(ahead())
        for path in chain(first, paths):
            if path is None:
                yield (record_of("standard input", SourceError("a line is longer than 1 MiB")),)
            else:
                yield self._piece(path, label(printable(path)))

    def count(self) -> None:
        """Return None, because the list has not been read yet."""

    def _piece(self, path: str, label: str | None) -> Piece:
        try:
            place: Place = RemotePlace(path) if is_url(path) else LocalPlace(path)
        except ImagekinError as error:
            return (record_of(path, error),)
        return ImageFile(path, place, self._max_bytes, label)


class FilesSource:
    """The images of a listing.

    Args:
        listing: lists the files, each time it is called.
        place: returns the place of a listed path.
        max_bytes: larger images are not read.
        open_file: opens a file that is no image as a source, or raises InvalidArgumentError; None to ignore such files.
    """

    embedded = None

    def __init__(
        self,
        listing: Listing,
        place: Callable[[str], Place],
        max_bytes: int,
        open_file: Callable[[Place], Source] | None = None,
    ) -> None:
        self._listing = listing
        self._place = place
        self._max_bytes = max_bytes
        self._open_file = open_file
        self._ignored = 0

    @property
    def ignored(self) -> int:
        """Number of files that the last iteration ignored."""
        return self._ignored

    def __iter__(self) -> Iterator[Record]:
        """Read the records, see `Source`."""
        for piece in self.pieces():
            yield from piece
            self._ignored += getattr(piece, "ignored", 0)

    def pieces(self) -> Iterator[Piece]:
        """List the files, see `imagekin.sources.pieces`."""
        self._ignored = 0
        label = FolderLabels.of(path for path in self._listing() if isinstance(path, str) and is_image_name(path))
        for found in self._listing():
            if isinstance(found, Record):
                yield (found,)
            elif is_image_name(found):
                yield ImageFile(found, self._place(found), self._max_bytes, label(printable(found)))
            else:
                yield from self._inside(found)

    def count(self) -> int | None:
        """Return the number of records; None when there are archives or tables among the files."""
        total = 0
        for found in self._listing():
            if isinstance(found, str) and not is_image_name(found):
                if self._open_file is not None and self._source(found) is not None:
                    return None
                continue
            total += 1
        return total

    def _inside(self, found: str) -> Iterator[Piece]:
        source = self._source(found)
        if source is None:
            self._ignored += 1
        elif source.embedded is not None:
            yield (record_of(found, "it holds vectors; index them by a command of their own"),)
        else:
            yield from pieces_of(source)

    def _source(self, found: str) -> Source | None:
        if self._open_file is None or is_hidden(found):
            return None
        try:
            return self._open_file(self._place(found))
        except InvalidArgumentError:
            return None
