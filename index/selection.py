"""Which slots of a snapshot meet a condition: columns in memory answer, the database where they do not know."""

import json
import sqlite3

import numpy as np

from index.columns import UNLABELLED, Mask, Slots, Snapshot
from index.fields import UNKNOWN, Fields
from index.filter_sql import to_sql
from index.filters import MISSING, AllOf, Comparison, Condition, Not, matches, meets, path_of
from index.writes import as_json


def select(connection: sqlite3.Connection, snapshot: Snapshot, fields: Fields, condition: Condition) -> Mask:
    """Return which slots are alive and meet a condition (checked already), bool [n].

    Args:
        connection: inside a transaction that agrees with the snapshot.
        snapshot: the collection.
        fields: the collection's columns of payload fields.
        condition: what the items must meet.
    """
    alive = snapshot.alive()
    if not len(alive):
        return alive
    selection = _Selection(connection, snapshot, fields)
    mask = selection.mask(condition) & alive
    unknown = np.flatnonzero(selection.unknown & alive)
    if len(unknown):
        mask[unknown] = False
        mask[selection.read(unknown, condition)] = True
    return mask


class _Selection:
    def __init__(self, connection: sqlite3.Connection, snapshot: Snapshot, fields: Fields) -> None:
        self._connection = connection
        self._snapshot = snapshot
        self._fields = fields
        self.unknown = np.zeros(len(snapshot), np.bool_)

    def mask(self, condition: Condition) -> Mask:
        if isinstance(condition, Comparison):
            return self._comparison(condition)
        if isinstance(condition, Not):
            return ~self.mask(condition.part)
        mask = self.mask(condition.parts[0])
        for part in condition.parts[1:]:
            if isinstance(condition, AllOf):
                mask &= self.mask(part)
            else:
                mask |= self.mask(part)
        return mask

    def read(self, slots: Slots, condition: Condition) -> Slots:
        """Return those of the slots whose rows meet the condition."""
        rows = self._connection.execute(
            "SELECT sequence, key, label, payload FROM item WHERE sequence IN (SELECT value FROM json_each(?))",
            (as_json(self._snapshot.sequences[slots].tolist()),),
        )
        found = [
            sequence
            for sequence, key, label, payload in rows.fetchall()
            if matches(condition, key, label, None if payload is None else json.loads(payload))
        ]
        return self._snapshot.slots_of(np.array(found, np.int64))

    def _comparison(self, comparison: Comparison) -> Mask:
        if comparison.field == "key":
            return self._by_key(comparison)
        if comparison.field == "label":
            return self._by_label(comparison)
        column = self._fields.column(path_of(comparison.field), self._connection, self._snapshot)
        self.unknown |= column.codes == UNKNOWN
        return column.mask(comparison)

    def _by_label(self, comparison: Comparison) -> Mask:
        names = self._snapshot.label_names
        # The last entry is that of UNLABELLED, which counts from the end.
        table = np.array([meets(name, comparison) for name in [*names]] + [meets(MISSING, comparison)])
        codes = self._snapshot.labels
        mask: Mask = table[np.where(codes == UNLABELLED, len(table) - 1, codes)]
        return mask

    def _by_key(self, comparison: Comparison) -> Mask:
        text, values = to_sql(comparison)
        rows = self._connection.execute(f"SELECT sequence FROM item WHERE {text}", values)  # noqa: S608 (see to_sql)
        mask = np.zeros(len(self._snapshot), np.bool_)
        mask[self._snapshot.slots_of(np.array([sequence for (sequence,) in rows.fetchall()], np.int64))] = True
        return mask
