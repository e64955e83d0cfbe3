"""Look at a map: where each item of a snapshot lies and which value of a field it has, and which item is which."""

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.index.filters.payload_columns import PayloadColumns
from imagekin.index.filters.selection import value_codes
from imagekin.index.maps.placing import place
from imagekin.index.maps.saved import SIDE, KnownPlaces, Positions
from imagekin.index.storage.columns import ColumnSnapshot, Slots
from imagekin.types import FacetCount

# Values that have a code of their own; 0 is no value, OTHER any further one.
MOST_VALUES, OTHER = 254, 255
# Items written since the map was made that one call looks at, and that it places by a search each.
_RECOGNISED, _PLACED = 20_000, 200
_VERSION = re.compile(r"([0-9A-Za-z.+-]{0,40}):([0-9]{1,18}):([0-9a-f]{12}):([0-9]{1,18})")


@dataclass(frozen=True, slots=True, eq=False)
class MapView:
    """A map as of one sequence number; an item's number is its place in the order of sequence numbers.

    Attributes:
        version: names this view.
        positions: uint16 [n, 2], UNPLACED for an item without a position.
        codes: uint8 [n], 0 for no value, 1 to 254 for `values`, OTHER for a further value.
        values: the most frequent values of the field, with their counts.
        unplaced: number of items without a position.
    """

    version: str
    positions: Positions
    codes: NDArray[np.uint8]
    values: list[FacetCount]
    unplaced: int


def view(
    connection: sqlite3.Connection,
    snapshot: ColumnSnapshot,
    fields: PayloadColumns,
    places: KnownPlaces,
    collection: str,
    field: str,
    known: str = "",
) -> MapView | None:
    """Return a map's view; None when it is the one that the version `known` names, and all items have their place.

    Raises:
        InvalidArgumentError: values of the field cannot be told apart.
    """
    if known == f"{collection}:{snapshot.sequence}:{places.stamp}:0":
        return None
    slots = np.flatnonzero(snapshot.alive())
    complete(snapshot, slots, places)
    positions, has = places.find(snapshot.sequences[slots])
    codes, values = value_codes(connection, snapshot, fields, field, slots, MOST_VALUES)
    unplaced = int(np.count_nonzero(~has))
    version = f"{collection}:{snapshot.sequence}:{places.stamp}:{unplaced}"
    return MapView(version, positions, codes, values, unplaced)


def complete(snapshot: ColumnSnapshot, slots: Slots, places: KnownPlaces) -> None:
    """Find positions for slots that were written since the map was made, for some of them if they are many."""
    _, has = places.find(snapshot.sequences[slots])
    fresh = places.recognise(snapshot, slots[~has][:_RECOGNISED])[:_PLACED]
    if len(fresh):
        found = place(snapshot, snapshot.vectors[fresh], places)
        sure = found[:, 0] <= SIDE
        places.add(snapshot.sequences[fresh[sure]], found[sure])


def keys_of(snapshot: ColumnSnapshot, collection: str, name: str, version: str, numbers: Sequence[int]) -> list[str]:
    """Return the keys of the items of those numbers on a map of that version.

    Raises:
        InvalidArgumentError: the version is none, or a number is out of range.
        FailedPreconditionError: the collection was replaced or compacted since.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise InvalidArgumentError("version is none that this server gave out", field="version")
    sequence = int(found[2])
    if found[1] != collection or not snapshot.floor <= sequence <= snapshot.sequence:
        raise FailedPreconditionError(f"collection {name!r} was replaced or compacted since: get its map again")
    slots = np.flatnonzero(snapshot.at(sequence).alive())
    wanted = np.array(numbers, np.int64)
    if len(wanted) and int(wanted.max()) >= len(slots):
        raise InvalidArgumentError(f"the map has {len(slots)} items, from number 0", field="numbers")
    return snapshot.keys(slots[wanted])
