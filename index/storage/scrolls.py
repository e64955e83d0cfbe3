"""Read a collection page by page as it was at one sequence number, while it is written.

An item that is written again gets a new row, and so would come a second time, or never end to come. Here each item
keeps the place that it had when the scroll began: the tombstone of its row leads to the row that replaced it. The page
that its place is in shows it as it is now, or leaves it out when it has been deleted.
"""

import heapq
import sqlite3

import numpy as np

from imagekin.errors import FailedPreconditionError
from imagekin.index.storage import reads
from imagekin.index.storage.columns import ColumnSnapshot, Mask
from imagekin.index.storage.schema import State
from imagekin.index.types import IndexedItem

_FOLLOWED_AT_ONCE = 1000


def read_places(
    connection: sqlite3.Connection, snapshot: ColumnSnapshot, mask: Mask | None, after: int, until: int, limit: int
) -> list[tuple[int, int]]:
    """Return place and present row of the first `limit` items after a place, in the order of their places.

    Args:
        connection: a connection in a transaction that matches the snapshot.
        snapshot: the collection.
        mask: the live slots that are wanted, bool [n]; None for all.
        after: the place to begin after; places are sequence numbers.
        until: sequence number at which the scroll began.
        limit: most items to return.
    """
    stayed = _rows_that_stayed(connection, snapshot, mask, after, until, limit)
    end = stayed[-1][0] if len(stayed) == limit else until
    moved: list[tuple[int, int]] = []
    while after < end and len(moved) < limit:
        page = connection.execute(
            "SELECT dead FROM tombstone WHERE dead > ? AND dead <= ? AND sequence > ? ORDER BY dead LIMIT ?",
            (after, end, until, _FOLLOWED_AT_ONCE),
        ).fetchall()
        if not page:
            break
        moved += _rows_that_replaced(connection, snapshot, mask, after, page[-1][0], until)
        after = page[-1][0]
    return list(heapq.merge(stayed, moved))[:limit]


def read_scrolled(
    connection: sqlite3.Connection, places: list[tuple[int, int]], dim: int, collection: str
) -> list[IndexedItem]:
    """Read the items of `read_places`, in its order."""
    rows = reads.read_rows(connection, [sequence for _, sequence in places], dim, collection)
    items = {item.sequence: item for item in rows}
    return [items[sequence] for _, sequence in places]


def check_kept(state: State, until: int, collection: str) -> None:
    """Raise FailedPreconditionError when so much was written since `until` that items cannot be followed any more."""
    if state.tombstones_after > until:
        raise FailedPreconditionError(
            f"collection {collection!r} has changed too much since this scroll began: begin again"
        )


def _rows_that_stayed(
    connection: sqlite3.Connection, snapshot: ColumnSnapshot, mask: Mask | None, after: int, until: int, limit: int
) -> list[tuple[int, int]]:
    if mask is None:
        rows = connection.execute(
            "SELECT sequence FROM item WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?",
            (after, until, limit),
        )
        return [(sequence, sequence) for (sequence,) in rows.fetchall()]
    begin, end = np.searchsorted(snapshot.sequences, (after, until), side="right").tolist()
    sequences = snapshot.sequences[begin:end][mask[begin:end]][:limit].tolist()
    return list(zip(sequences, sequences, strict=True))


def _rows_that_replaced(
    connection: sqlite3.Connection, snapshot: ColumnSnapshot, mask: Mask | None, after: int, end: int, until: int
) -> list[tuple[int, int]]:
    rows = connection.execute(
        "WITH RECURSIVE step(place, row) AS ("
        " SELECT dead, sequence FROM tombstone WHERE dead > ? AND dead <= ? AND sequence > ?"
        " UNION ALL SELECT place, t.sequence FROM step JOIN tombstone t ON t.dead = step.row)"
        " SELECT place, row FROM step JOIN item ON item.sequence = step.row ORDER BY place",
        (after, end, until),
    ).fetchall()
    if mask is None or not rows:
        return rows
    sequences = np.array([row for _, row in rows], np.int64)
    wanted = snapshot.holds(sequences)
    wanted[wanted] = mask[snapshot.slots_of(sequences)]
    return [pair for pair, is_wanted in zip(rows, wanted.tolist(), strict=True) if is_wanted]
