"""Apply writes to the database inside a transaction that several of them may share.

Items are checked and encoded in the caller's thread (`prepare`), so that the only thread that writes has little to do.
Statements cover many rows: each step of SQLite releases the interpreter's lock, and getting it back from busy threads
would make a write of many small steps slow.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from imagekin.errors import InvalidArgumentError
from imagekin.index import validation
from imagekin.index.storage.schema import State, payload_checksum, row_checksum
from imagekin.index.storage.search_priority import SearchPriority
from imagekin.index.types import VectorItem
from imagekin.types import Outcome, Vector

# Rows of one INSERT, largest first: a few statements, which stay prepared, suffice for any number of rows.
_STEPS = (64, 32, 8, 1)
# Items that are encoded before yielding to searches.
_ENCODED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ItemRow:
    """An item without its vector, checked and encoded."""

    key: str
    key_utf8: bytes
    label: str | None
    content_hash: bytes | None
    checksum: int
    payload: str | None
    payload_checksum: int | None


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """Checked items with unique keys.

    Attributes:
        rows: the items.
        vectors: float32 [n, D] of unit length, in the order of `rows`.
        positions: for each item as given, the index of its key in `rows`.
    """

    rows: list[ItemRow]
    vectors: Vector
    positions: list[int]


def prepare(items: Sequence[VectorItem], dim: int, priority: SearchPriority) -> WriteBatch:
    """Check and encode items; of equal keys the last one counts.

    Raises:
        InvalidArgumentError: an item cannot be stored; the message names its key.
    """
    last: dict[str, int] = {}
    for position, item in enumerate(items):
        last[validation.key(item.key)] = position
    places = {key: place for place, key in enumerate(last)}
    vectors = _vectors([items[position] for position in last.values()], dim)
    data = memoryview(vectors.tobytes())
    width = 4 * dim
    rows = []
    for place, position in enumerate(last.values()):
        item = items[position]
        if place % _ENCODED_AT_ONCE == _ENCODED_AT_ONCE - 1:
            priority.yield_processor()
        try:
            rows.append(
                encode(item, item.key, validation.payload_text(item.payload), data[place * width : (place + 1) * width])
            )
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"item {item.key!r}: {error}", field=error.field) from None
    return WriteBatch(rows, vectors, [places[item.key] for item in items])


def encode(item: VectorItem, key: str, payload: str | None, vector: memoryview | bytes) -> ItemRow:
    """Return an item's row; `payload` and `vector` are in their stored form."""
    label = validation.label(item.label)
    content_hash = validation.content_hash(item.content_hash)
    utf8 = key.encode()
    return ItemRow(
        key,
        utf8,
        label,
        content_hash,
        row_checksum(utf8, None if label is None else label.encode(), content_hash, vector),
        payload,
        None if payload is None else payload_checksum(payload),
    )


def _vectors(items: list[VectorItem], dim: int) -> Vector:
    for item in items:
        shape = np.shape(item.vector)
        if shape != (dim,):
            raise InvalidArgumentError(
                f"item {item.key!r}: its vector must have {dim} components, it has shape {list(shape)}", field="vector"
            )
    if not items:
        return np.empty((0, dim), np.float32)
    try:
        return validation.unit_vectors([item.vector for item in items], dim)
    except InvalidArgumentError:
        for item in items:
            try:
                validation.unit_vectors(item.vector, dim)
            except InvalidArgumentError as error:
                reason = str(error).removeprefix("vector 0 ")
                raise InvalidArgumentError(f"item {item.key!r}: its vector {reason}", field="vector") from None
        raise


@dataclass(slots=True)
class Changes:
    """The changes of a transaction, to be applied to the columns in memory after its commit."""

    added: list[tuple[int, WriteBatch]] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)
    dead_at: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a transaction to roll back to."""

    state: State
    added: int
    dead: int


class Transaction:
    """An open transaction, which assigns sequence numbers to writes and records their changes."""

    def __init__(self, connection: sqlite3.Connection, state: State, priority: SearchPriority) -> None:
        self.connection = connection
        self._priority = priority
        self.changes = Changes()
        self._before = state
        self.sequence = state.sequence
        self.count = state.count
        self.labelled = state.labelled

    def mark(self) -> Mark:
        """Return the current point, for `roll_back_to`."""
        return Mark(self.state(), len(self.changes.added), len(self.changes.dead))

    def roll_back_to(self, mark: Mark) -> None:
        """Drop the recorded changes after `mark`; the database itself is rolled back by a savepoint."""
        self.sequence, self.count, self.labelled = mark.state.sequence, mark.state.count, mark.state.labelled
        del self.changes.added[mark.added :], self.changes.dead[mark.dead :], self.changes.dead_at[mark.dead :]

    def state(self) -> State:
        """Return the current counters."""
        return State(self.sequence, self.count, self.labelled, self._before.tombstones_after)

    def store_state(self) -> None:
        """Write the counters if they have changed."""
        if self.sequence != self._before.sequence:
            self.connection.execute(
                "UPDATE state SET sequence = ?, count = ?, labelled = ? WHERE id = 1",
                (self.sequence, self.count, self.labelled),
            )

    def upsert(self, batch: WriteBatch) -> list[bool]:
        """Insert or replace the rows; return for each whether its key existed."""
        if not batch.rows:
            return []
        first = self.sequence + 1
        existing = self._take([row.key for row in batch.rows])
        replaced = [(existing[row.key], first + place) for place, row in enumerate(batch.rows) if row.key in existing]
        self._add_tombstones([old for (old, _), _ in replaced], [new for _, new in replaced])
        self._insert("item", 7, self._item_values(batch, first))
        width = 4 * batch.vectors.shape[1]
        data = batch.vectors.tobytes()
        vectors = [(first + n, data[n * width : (n + 1) * width]) for n in range(len(batch.rows))]
        self._insert("vector", 2, vectors)
        self.sequence += len(batch.rows)
        self.count += len(batch.rows) - len(replaced)
        self.labelled += sum(row.label is not None for row in batch.rows)
        self.labelled -= sum(labelled for (_, labelled), _ in replaced)
        self.changes.added.append((first, batch))
        return [row.key in existing for row in batch.rows]

    def delete(self, keys: Sequence[str]) -> int:
        """Delete the rows of unique `keys`; return the number of rows deleted."""
        existing = self._take(keys)
        if existing:
            self._add_tombstones(
                [old for old, _ in existing.values()],
                list(range(self.sequence + 1, self.sequence + 1 + len(existing))),
            )
            self.sequence += len(existing)
            self.count -= len(existing)
            self.labelled -= sum(labelled for _, labelled in existing.values())
        return len(existing)

    def _take(self, keys: Sequence[str]) -> dict[str, tuple[int, bool]]:
        """Delete the item rows of `keys`; return the sequence number of each, and whether it had a label."""
        rows = self.connection.execute(
            f"DELETE FROM item WHERE key {_among(keys)} RETURNING key, sequence, label IS NOT NULL",  # noqa: S608
            (_bound(keys),),
        )
        return {key: (sequence, bool(labelled)) for key, sequence, labelled in rows.fetchall()}

    def _add_tombstones(self, old: list[int], new: list[int]) -> None:
        """Delete the vectors of deleted items, and record the sequence numbers of their deaths as tombstones."""
        if not old:
            return
        self.connection.execute(f"DELETE FROM vector WHERE sequence {_among(old)}", (_bound(old),))  # noqa: S608
        self._insert("tombstone", 2, list(zip(new, old, strict=True)))
        self.changes.dead += old
        self.changes.dead_at += new

    def _insert(self, table: str, width: int, rows: Sequence[tuple[object, ...]]) -> None:
        begin = 0
        for step in _STEPS:
            values = ",".join([f"({_marks(width)})"] * step)
            while len(rows) - begin >= step:
                flat = [value for row in rows[begin : begin + step] for value in row]
                self.connection.execute(f"INSERT INTO {table} VALUES {values}", flat)  # noqa: S608 (question marks)
                begin += step
                self._priority.yield_processor()

    @staticmethod
    def _item_values(batch: WriteBatch, first: int) -> list[tuple[object, ...]]:
        return [
            (first + n, row.key, row.label, row.content_hash, row.checksum, row.payload, row.payload_checksum)
            for n, row in enumerate(batch.rows)
        ]


def outcomes(batch: WriteBatch, existed: list[bool]) -> tuple[Outcome, ...]:
    """Return the outcome of each item as given: of equal keys the second one replaces the first."""
    seen = {place for place, was_there in enumerate(existed) if was_there}
    results = []
    for place in batch.positions:
        results.append(Outcome.REPLACED if place in seen else Outcome.INSERTED)
        seen.add(place)
    return tuple(results)


def _among(values: Sequence[object]) -> str:
    """Return the SQL condition of being among values that `_bound` binds; simpler and faster for one value."""
    return "= ?" if len(values) == 1 else "IN (SELECT value FROM json_each(?))"


def _bound(values: Sequence[str] | Sequence[int]) -> str | int:
    return values[0] if len(values) == 1 else as_json(values)


def _marks(count: int) -> str:
    """Return `count` question marks as placeholders of parameters."""
    return ",".join("?" * count)


def as_json(values: Sequence[str] | Sequence[int]) -> str:
    """Return values as one JSON text for SQLite's json_each, so that any number of values is one parameter."""
    return json.dumps(values, ensure_ascii=False)
