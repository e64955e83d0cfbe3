"""Keep fields of payloads as columns in memory, so that a filter takes a few array operations and parses no JSON.

A row of the database never changes, and so a value once read stays valid: a column is read when a filter first needs
it, and then only grows. A slot whose row had been deleted when the column was read is unknown; if a reader's snapshot
still has that slot, its row is read in the reader's own transaction.
"""

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from operator import ge, gt, le, lt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import DataLossError
from imagekin.index.filters.conditions import MISSING, Comparison, Operator, Scalar, is_number, value_at
from imagekin.index.storage.columns import ColumnSnapshot, Mask
from imagekin.index.storage.schema import payload_checksum
from imagekin.index.storage.transactions import as_json

# Codes of slots. Texts, and integers without an exact float64, have their index in `values` as code instead.
ABSENT, UNKNOWN, OTHER, FALSE, TRUE, NUMBER = -1, -2, -3, -4, -5, -6
MAX_COLUMNS = 32
_TESTS: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.LESS: lt,
    Operator.LESS_OR_EQUAL: le,
    Operator.GREATER: gt,
    Operator.GREATER_OR_EQUAL: ge,
    Operator.STARTS_WITH: str.startswith,
}
_ROWS_AT_ONCE = 20_000


class Column:
    """One payload field of the slots of a snapshot.

    Attributes:
        sequences: int64 [n], the slots' sequence numbers.
        codes: int32 [n], index into `values`, or one of the negative constants above.
        numbers: float64 [n], the slot's number, NaN for none.
        values: distinct texts, and integers that float64 cannot represent exactly.
    """

    def __init__(self, sequences: NDArray[np.int64]) -> None:
        self.sequences = sequences
        self.codes = np.full(len(sequences), UNKNOWN, np.int32)
        self.numbers = np.full(len(sequences), np.nan)
        self.values: list[str | int] = []
        self._places: dict[str | int, int] = {}

    def fill(self, slots: NDArray[np.int64], found: Iterable[Any]) -> None:
        """Set the values of slots."""
        codes, numbers = [], []
        for value in found:
            code, number = self._encode(value)
            codes.append(code)
            numbers.append(number)
        self.codes[slots] = codes
        self.numbers[slots] = numbers

    def over(self, sequences: NDArray[np.int64]) -> "Column":
        """Return a copy of this column for other slots."""
        moved = Column(sequences)
        shared = min(len(sequences), len(self.sequences))
        if not shared or sequences[shared - 1] == self.sequences[shared - 1]:
            # Slots were only appended: compaction, which removes some, would have moved the last one.
            moved.values, moved._places = self.values, self._places
            moved.codes[:shared] = self.codes[:shared]
            moved.numbers[:shared] = self.numbers[:shared]
            return moved
        places = np.minimum(np.searchsorted(self.sequences, sequences), len(self.sequences) - 1)
        known = self.sequences[places] == sequences
        codes = self.codes[places[known]]
        # Values that no slot has any more are left behind.
        used = np.unique(codes[codes >= 0])
        moved.values = [self.values[code] for code in used.tolist()]
        moved._places = {value: place for place, value in enumerate(moved.values)}
        moved.codes[known] = np.where(codes >= 0, np.searchsorted(used, codes), codes)
        moved.numbers[known] = self.numbers[places[known]]
        return moved

    def mask(self, comparison: Comparison) -> Mask:
        """Return which slots pass a test, bool [n]; the result is undefined for unknown slots."""
        operator, values = comparison.operator, comparison.values
        present: Mask
        if operator is Operator.NOT_EXISTS:
            present = self.codes == ABSENT
            return present
        if operator is Operator.EXISTS:
            present = self.codes != ABSENT
            return present
        if operator in (Operator.EQUAL, Operator.IN):
            return self._equal(values)
        if operator is Operator.NOT_EQUAL:
            present = self.codes != ABSENT
            return present & ~self._equal(values)
        other = values[0]
        test = _TESTS[operator]
        if isinstance(other, str):
            return self._among([isinstance(value, str) and test(value, other) for value in self.values])
        among = self._among([not isinstance(value, str) and test(value, other) for value in self.values])
        among |= self._ordered(operator, other)
        return among

    def counts(self, mask: Mask) -> list[tuple[Scalar, int]]:
        """Count each text, number and truth value where `mask` is true, in no order."""
        codes = self.codes[mask]
        found: list[tuple[Scalar, int]] = []
        for value, code in ((False, FALSE), (True, TRUE)):
            if count := int(np.count_nonzero(codes == code)):
                found.append((value, count))
        numbers, often = np.unique(self.numbers[mask & (self.codes == NUMBER)], return_counts=True)
        found += [(_plain(number), count) for number, count in zip(numbers.tolist(), often.tolist(), strict=True)]
        places, often = np.unique(codes[codes >= 0], return_counts=True)
        found += [(self.values[place], count) for place, count in zip(places.tolist(), often.tolist(), strict=True)]
        return found

    def value(self, slot: int) -> Scalar:
        """Return the text, number or truth value of a slot that has one."""
        code = int(self.codes[slot])
        if code >= 0:
            return self.values[code]
        return _plain(float(self.numbers[slot])) if code == NUMBER else code == TRUE

    def scalars(self) -> NDArray[np.int64]:
        """Return a number for each slot that is the same for equal values, int64 [n]; negative for no such value."""
        groups = np.where(self.codes >= 0, self.codes.astype(np.int64), -1)
        base = len(self.values)
        groups[self.codes == FALSE], groups[self.codes == TRUE] = base, base + 1
        at = np.flatnonzero(self.codes == NUMBER)
        groups[at] = base + 2 + np.unique(self.numbers[at], return_inverse=True)[1]
        return groups

    def _encode(self, value: Any) -> tuple[int, float]:
        if value is MISSING:
            return ABSENT, np.nan
        if isinstance(value, bool):
            return (TRUE if value else FALSE), np.nan
        if is_number(value) and (isinstance(value, float) or int(float(value)) == value):
            return NUMBER, float(value)
        if not isinstance(value, (str, int)):
            return OTHER, np.nan
        place = self._places.get(value)
        if place is None:
            place = self._places[value] = len(self.values)
            self.values.append(value)
        return place, np.nan

    def _among(self, chosen: list[bool]) -> Mask:
        # The constants are negative, and so index from the table's end.
        table = np.zeros(len(chosen) + 6, np.bool_)
        table[: len(chosen)] = chosen
        mask: Mask = table[self.codes]
        return mask

    def _equal(self, values: tuple[Scalar, ...]) -> Mask:
        places = [FALSE if value is False else TRUE for value in values if isinstance(value, bool)]
        numbers: list[float] = []
        for value in values:
            if isinstance(value, bool):
                continue
            if isinstance(value, float) or (isinstance(value, int) and int(float(value)) == value):
                numbers.append(float(value))
            elif value in self._places:
                places.append(self._places[value])
        found = np.zeros(len(self.codes), np.bool_)
        if len(places) == 1:
            found |= self.codes == places[0]
        elif places:
            found |= np.isin(self.codes, places)
        if len(numbers) == 1:
            found |= self.numbers == numbers[0]
        elif numbers:
            found |= np.isin(self.numbers, numbers)
        return found

    def _ordered(self, operator: Operator, other: Scalar) -> Mask:
        bound = float(other)
        if isinstance(other, int) and int(bound) != other:
            # No float64 lies between the integer and its nearest float64, so only "or equal" may have to change.
            below = int(bound) < other
            if operator in (Operator.LESS, Operator.LESS_OR_EQUAL):
                operator = Operator.LESS_OR_EQUAL if below else Operator.LESS
            else:
                operator = Operator.GREATER if below else Operator.GREATER_OR_EQUAL
        found: Mask
        # Comparisons with NaN, which stands for no number, are false.
        if operator is Operator.LESS:
            found = self.numbers < bound
        elif operator is Operator.LESS_OR_EQUAL:
            found = self.numbers <= bound
        elif operator is Operator.GREATER:
            found = self.numbers > bound
        else:
            found = self.numbers >= bound
        return found


def _plain(number: float) -> int | float:
    """Return a number as an integer, if it is one of 64 bits."""
    return int(number) if number.is_integer() and -(2.0**63) <= number < 2.0**63 else number


class PayloadColumns:
    """A cache of the columns of payload fields that filters used most recently; any thread may call its methods.

    Args:
        collection: the collection's name, for messages.
    """

    def __init__(self, collection: str) -> None:
        self._collection = collection
        self._lock = threading.Lock()
        self._columns: OrderedDict[tuple[str, ...], Column] = OrderedDict()

    def column(self, path: tuple[str, ...], connection: sqlite3.Connection, snapshot: ColumnSnapshot) -> Column:
        """Return the column of a field for a snapshot's slots; the connection's transaction matches the snapshot."""
        with self._lock:
            known = self._columns.get(path)
            end = 0 if known is None or not len(known.sequences) else int(known.sequences[-1])
            last = int(snapshot.sequences[-1]) if len(snapshot) else 0
            column = Column(snapshot.sequences) if known is None else known
            if known is not None and not _same(known.sequences, snapshot.sequences):
                column = known.over(snapshot.sequences)
            if last > end:
                self._read(column, path, connection, "sequence > ?", end)
            if last >= end:
                self._columns[path] = column
                self._columns.move_to_end(path)
                while len(self._columns) > MAX_COLUMNS:
                    self._columns.popitem(last=False)
            unread = np.flatnonzero((column.codes == UNKNOWN) & snapshot.alive())
            if len(unread):
                column = column.over(snapshot.sequences)
                wanted = as_json(snapshot.sequences[unread].tolist())
                self._read(column, path, connection, "sequence IN (SELECT value FROM json_each(?))", wanted)
        return column

    def _read(
        self, column: Column, path: tuple[str, ...], connection: sqlite3.Connection, which: str, value: object
    ) -> None:
        rows = connection.execute(
            "SELECT sequence, CAST(payload AS BLOB), payload_checksum"  # noqa: S608
            f" FROM item WHERE {which} ORDER BY sequence",
            (value,),
        )
        while page := rows.fetchmany(_ROWS_AT_ONCE):
            sequences, payloads, checksums = zip(*page, strict=True)
            present = [payload for payload in payloads if payload is not None]
            if list(map(payload_checksum, present)) != [checksum for checksum in checksums if checksum is not None]:
                raise self._damage(connection, page)
            # Parsed as one text: for small payloads, most of the time is the overhead of a call.
            parsed = iter(json.loads(b"[%b]" % b",".join(present)))
            found = (MISSING if payload is None else value_at(next(parsed), path) for payload in payloads)
            column.fill(np.searchsorted(column.sequences, sequences), found)

    def _damage(
        self, connection: sqlite3.Connection, page: list[tuple[int, bytes | None, int | None]]
    ) -> DataLossError:
        """Return the error for the first row whose payload fails its checksum."""
        bad = next(
            sequence
            for sequence, payload, checksum in page
            if (None if payload is None else payload_checksum(payload)) != checksum
        )
        (key,) = connection.execute("SELECT key FROM item WHERE sequence = ?", (bad,)).fetchone()
        return DataLossError(
            f"collection {self._collection!r} is damaged: the payload of item {key!r} fails its checksum"
        )


def _same(known: NDArray[np.int64], wanted: NDArray[np.int64]) -> bool:
    return len(known) == len(wanted) and (not len(known) or bool(known[-1] == wanted[-1]))
