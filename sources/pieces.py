"""Read a source by pieces, which can be read independently, in other threads or processes.

Each format has a reader (`imagekin.sources.formats`). A reader is first asked for the names of its images, so that one
rule can name the classes of all readers of a source; it then yields its pieces. A piece is an iterable of records that
can be sent to another process or machine, where its paths must be valid. Pieces are in the source's order, and cheap to
create: their records are read when they are iterated.
"""

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from imagekin.errors import ImagekinError
from imagekin.sources.ignored import Ignored
from imagekin.sources.labels import LabelRule, Named
from imagekin.sources.places import Place
from imagekin.sources.records import Record, Source, VectorInfo, printable, record_of
from imagekin.sources.splits import Split
from imagekin.types import Payload

Piece: TypeAlias = Iterable[Record]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file that has not been read yet.

    Attributes:
        key: key of its record.
        place: the file.
        max_bytes: a larger file is not read.
        label: label of its record.
        payload: payload of its record.
        split: split of its record.
    """

    key: str
    place: Place
    max_bytes: int
    label: str | None = None
    payload: Payload | None = None
    split: Split | None = None

    def __iter__(self) -> Iterator[Record]:
        """Read the file."""
        data = self.place.read(self.max_bytes)
        yield record_of(self.key, data, self.label, self.payload, split=self.split)


class Counted(NamedTuple):
    """A number of images whose label is in the source itself, not in their paths.

    Attributes:
        named: label and split, as far as the source has them.
        images: how many.
        origin: where the labels are; empty for images without.
        folder: the images' folder, which may be that of a split.
    """

    named: Named
    images: int
    origin: str = ""
    folder: str = ""


class Placed(NamedTuple):
    """An image whose path names its class, and whose split is in the source itself.

    Attributes:
        path: the path.
        split: the split.
    """

    path: str
    split: Split


# A path that names a class, images with labels or splits of their own, or None where more is there than was seen.
Surveyed: TypeAlias = str | Placed | Counted | None


@dataclass(frozen=True, slots=True)
class Naming:
    """The way in which a reader's images are named.

    Attributes:
        rule: names the label and the split by the path.
        key: prefix of the keys, such as `shards/1.tar/`; empty for a source that is read alone.
        path: prefix of the paths for `rule`.
        split: the split of all images, if the source's name states it.
    """

    rule: LabelRule
    key: str = ""
    path: str = ""
    split: Split | None = None

    def named(self, path: str) -> Named:
        """Return the label and the split of the image with a path."""
        label, split = self.rule(joined(self.path, printable(path)))
        return Named(label, split or self.split)

    def told(self, path: str, label: str | None, split: Split | None = None) -> Named:
        """Return the label and the split of an image whose label stands in a table; the user may choose otherwise."""
        named = self.named(path)
        return Named(label if self.rule.asks_tables else named.label, split or named.split)

    def moved(self, record: Record) -> Record:
        """Return a record whose key is relative to the reader's root with the key that it has in the source."""
        return replace(record, key=printable(self.key) + record.key)

    def failure(self, name: str, error: ImagekinError) -> Record:
        """Return the record that says that a reader, with a name, cannot read further."""
        return record_of(self.key.rstrip("/") or name, error)


def joined(folder: str, path: str) -> str:
    """Return a path in a folder of the source, for the rule of labels."""
    whole = folder + path
    if "../" not in whole:
        return whole
    return posixpath.normpath(whole).removeprefix("../") + ("/" if path.endswith("/") else "")


class Reader(Protocol):
    """A reader of one format; the files of a source may have several readers."""

    @property
    def embedded(self) -> VectorInfo | None:
        """The description of its vectors; None when it holds images."""
        ...

    def survey(self, *, whole: bool = False) -> Iterator[Surveyed]:
        """Yield what is known of the images' classes without reading images; of long streams, of the first ones.

        Args:
            whole: look at all images of long streams, too.
        """
        ...

    def pieces(self, naming: Naming, ignored: Ignored) -> Iterator[Piece]:
        """Yield the pieces, and count ignored files; pieces that ignore files count them in their own `ignored`."""
        ...

    def count(self) -> int | None:
        """Estimate the number of records; None when that requires reading everything."""
        ...


class ArchiveReader(Protocol):
    """A reader that reads an archive from front to back."""

    def records(self, naming: Naming, ignored: Ignored) -> Iterator[Record]:
        """Read the records, and count the members that are ignored."""
        ...


class WholeArchive:
    """An archive as one piece.

    Attributes:
        ignored: the members that were ignored when it was read last.
    """

    def __init__(self, reader: ArchiveReader, naming: Naming) -> None:
        self._reader = reader
        self._naming = naming
        self.ignored = Ignored()

    def __iter__(self) -> Iterator[Record]:
        self.ignored = Ignored()
        return self._reader.records(self._naming, self.ignored)


@runtime_checkable
class Divisible(Protocol):
    """A source that can be split into pieces."""

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces; together they yield the source's records in its order."""
        ...


def pieces_of(source: Source) -> Iterator[Piece]:
    """Yield the pieces of a source; one that cannot be split is itself the only piece."""
    if isinstance(source, Divisible):
        yield from source.pieces()
    else:
        yield source


def ignored_in(piece: Piece) -> Ignored | None:
    """Return the files that a piece ignored when it was read last; None when it does not count them."""
    ignored = getattr(piece, "ignored", None)
    return ignored if isinstance(ignored, Ignored) else None
