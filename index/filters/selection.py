"""Select the slots of a snapshot that meet a condition, and count a field's values among them."""

import sqlite3
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError
from imagekin.index.filters.conditions import MISSING, AllOf, Comparison, Condition, Not, Scalar, passes, path_of
from imagekin.index.filters.payload_columns import PayloadColumns
from imagekin.index.filters.sql import to_sql
from imagekin.index.storage.columns import UNLABELLED, ColumnSnapshot, Mask, Slots
from imagekin.types import FacetCount


def select(
    connection: sqlite3.Connection, snapshot: ColumnSnapshot, fields: PayloadColumns, condition: Condition
) -> Mask:
    """Return which slots are alive and meet a condition, bool [n].

    Args:
        connection: a connection in a transaction that matches the snapshot.
        snapshot: the collection.
        fields: the collection's columns of payload fields.
        condition: the condition, already checked.
    """

    def test(comparison: Comparison) -> Mask:
        if comparison.field == "key":
            return _by_key(connection, snapshot, comparison)
        if comparison.field == "label":
            return _by_label(snapshot, comparison)
        return fields.column(path_of(comparison.field), connection, snapshot).mask(comparison)

    alive = snapshot.alive()
    return _evaluate(condition, test) & alive if len(alive) else alive


def count_values(
    connection: sqlite3.Connection, snapshot: ColumnSnapshot, fields: PayloadColumns, field: str, mask: Mask, limit: int
) -> list[FacetCount]:
    """Return the most frequent values of a field where `mask` is true, ties by value.

    Values of different types are in the order truth values, numbers, texts.

    Raises:
        InvalidArgumentError: values of this field cannot be counted.
    """
    if field == "key":
        raise InvalidArgumentError(
            "keys are unique: count the values of label or of payload. and a path", field="field"
        )
    found: list[tuple[Scalar, int]]
    if field == "label":
        codes = snapshot.labels[mask]
        often = np.bincount(codes[codes != UNLABELLED], minlength=1)
        found = [(snapshot.label_names[code], int(often[code])) for code in np.flatnonzero(often).tolist()]
    else:
        found = fields.column(payload_path(field), connection, snapshot).counts(mask)
    found.sort(key=facet_order)
    return [FacetCount(value, count) for value, count in found[:limit]]


def groups_of(
    connection: sqlite3.Connection, snapshot: ColumnSnapshot, fields: PayloadColumns, field: str, of: str = "group_by"
) -> NDArray[np.int64]:
    """Return a group number for each slot, the same for slots with the same value of a field; negative for no value.

    `of` is the field that errors name.

    Raises:
        InvalidArgumentError: items cannot be grouped by this field.
    """
    if field == "key":
        raise InvalidArgumentError("keys are unique: take label or by payload. and a path", field=of)
    if field == "label":
        return snapshot.labels.astype(np.int64)
    return fields.column(payload_path(field, of), connection, snapshot).scalars()


def value_codes(
    connection: sqlite3.Connection,
    snapshot: ColumnSnapshot,
    fields: PayloadColumns,
    field: str,
    slots: Slots,
    limit: int,
) -> tuple[NDArray[np.uint8], list[FacetCount]]:
    """Number the most frequent values of a field from 1 on, `limit` at most, and return which one each slot has.

    Returns:
        uint8 [n], 0 for a slot without a value and `limit` + 1 for a further value; and the values with their counts.

    Raises:
        InvalidArgumentError: values of this field cannot be counted.
    """
    groups = groups_of(connection, snapshot, fields, field, "field")[slots]
    present = groups >= 0
    values, first, places, often = np.unique(
        groups[present], return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(-often, kind="stable")[:limit]
    numbers = np.full(len(values), limit + 1, np.uint8)
    numbers[order] = np.arange(1, len(order) + 1)
    codes = np.zeros(len(slots), np.uint8)
    codes[present] = numbers[places]
    some = slots[present][first[order]]
    if field == "label":
        names: list[Scalar] = [snapshot.label_names[code] for code in snapshot.labels[some].tolist()]
    else:
        column = fields.column(payload_path(field), connection, snapshot)
        names = [column.value(slot) for slot in some.tolist()]
    return codes, [FacetCount(name, count) for name, count in zip(names, often[order].tolist(), strict=True)]


def payload_path(field: str, of: str = "field") -> tuple[str, ...]:
    """Return the path of a payload's field; `of` is the field that errors name."""
    try:
        return path_of(field)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(str(error).partition(": ")[2], field=of) from None


def facet_order(found: tuple[Scalar, int]) -> tuple[int, int, Scalar]:
    """Return a sort key of a value and its count: most frequent first, then truth values, numbers, texts."""
    value, count = found
    return -count, 2 if isinstance(value, str) else 0 if isinstance(value, bool) else 1, value


def _evaluate(condition: Condition, test: Callable[[Comparison], Mask]) -> Mask:
    if isinstance(condition, Comparison):
        return test(condition)
    if isinstance(condition, Not):
        return ~_evaluate(condition.part, test)
    mask = _evaluate(condition.parts[0], test)
    for part in condition.parts[1:]:
        if isinstance(condition, AllOf):
            mask &= _evaluate(part, test)
        else:
            mask |= _evaluate(part, test)
    return mask


def _by_label(snapshot: ColumnSnapshot, comparison: Comparison) -> Mask:
    # The last entry is for UNLABELLED, which is -1 and so indexes from the end.
    names = list(snapshot.label_names)
    table = np.array([*(passes(name, comparison) for name in names), passes(MISSING, comparison)])
    mask: Mask = table[snapshot.labels]
    return mask


def _by_key(connection: sqlite3.Connection, snapshot: ColumnSnapshot, comparison: Comparison) -> Mask:
    # By SQL, because the database has an index of the keys.
    text, values = to_sql(comparison)
    rows = connection.execute(f"SELECT sequence FROM item WHERE {text}", values)  # noqa: S608 (see to_sql)
    mask = np.zeros(len(snapshot), np.bool_)
    mask[snapshot.slots_of(np.array([sequence for (sequence,) in rows.fetchall()], np.int64))] = True
    return mask
