"""Split a source into pieces that can be read independently, in other threads or processes.

A piece is an iterable of records that can be sent to another process or machine, where its paths must be valid. Pieces
are in the source's order, and cheap to create: their records are read when they are iterated.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from imagekin.sources.places import Place
from imagekin.sources.records import Record, Source, record_of
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
    """

    key: str
    place: Place
    max_bytes: int
    label: str | None = None
    payload: Payload | None = None

    def __iter__(self) -> Iterator[Record]:
        """Read the file."""
        yield record_of(self.key, self.place.read(self.max_bytes), self.label, self.payload)


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
