"""Read items from a collection's database; every row that is returned has passed its checksum."""

import sqlite3
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import DataLossError
from imagekin.index.storage.schema import payload_checksum, row_checksum
from imagekin.index.storage.transactions import as_json
from imagekin.index.types import IndexedItem
from imagekin.sources.values import CheckedPayload
from imagekin.types import Payload

_CHECKED_AT_ONCE = 1000
_Joined = tuple[int, str, str | None, bytes | None, int, str | None, int, bytes]


def read_items(
    connection: sqlite3.Connection, keys: Sequence[str], dim: int, collection: str
) -> dict[str, IndexedItem]:
    """Read the items of those of `keys` that exist."""
    rows = connection.execute(
        "SELECT i.sequence, key, label, content_hash, checksum, payload, payload_checksum, data"
        " FROM item i JOIN vector v USING (sequence) WHERE key IN (SELECT value FROM json_each(?))",
        (as_json(keys),),
    )
    items = (_stored_item(row, dim, collection) for row in rows.fetchall())
    return {item.key: item for item in items}


def read_page(connection: sqlite3.Connection, after: int, limit: int, dim: int, collection: str) -> list[IndexedItem]:
    """Read the first `limit` items after the sequence number `after`, in the order of sequence numbers."""
    rows = connection.execute(
        "SELECT i.sequence, key, label, content_hash, checksum, payload, payload_checksum, data"
        " FROM item i JOIN vector v USING (sequence) WHERE i.sequence > ? ORDER BY i.sequence LIMIT ?",
        (after, limit),
    )
    return [_stored_item(row, dim, collection) for row in rows.fetchall()]


def read_rows(connection: sqlite3.Connection, sequences: Sequence[int], dim: int, collection: str) -> list[IndexedItem]:
    """Read the items of rows, in the order of sequence numbers."""
    rows = connection.execute(
        "SELECT i.sequence, key, label, content_hash, checksum, payload, payload_checksum, data"
        " FROM item i JOIN vector v USING (sequence) WHERE i.sequence IN (SELECT value FROM json_each(?))"
        " ORDER BY i.sequence",
        (as_json(sequences),),
    )
    return [_stored_item(row, dim, collection) for row in rows.fetchall()]


def check_rows(connection: sqlite3.Connection, sequences: Sequence[int], dim: int, collection: str) -> None:
    """Raise DataLossError, naming the item, unless every one of the rows passes its checksums."""
    for begin in range(0, len(sequences), _CHECKED_AT_ONCE):
        read_rows(connection, sequences[begin : begin + _CHECKED_AT_ONCE], dim, collection)


def keys_of(connection: sqlite3.Connection, sequences: Sequence[int]) -> list[str]:
    """Return the keys of those of the rows that exist."""
    rows = connection.execute(
        "SELECT key FROM item WHERE sequence IN (SELECT value FROM json_each(?))", (as_json(sequences),)
    )
    return [key for (key,) in rows.fetchall()]


def sequences_of(connection: sqlite3.Connection, keys: Sequence[str]) -> NDArray[np.int64]:
    """Return the sequence numbers of those of `keys` that exist, in no order."""
    rows = connection.execute(
        "SELECT sequence FROM item WHERE key IN (SELECT value FROM json_each(?))", (as_json(keys),)
    )
    return np.array([sequence for (sequence,) in rows.fetchall()], np.int64)


def read_hashes(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, bytes | None]:
    """Return the content hashes of those of `keys` that exist."""
    rows = connection.execute(
        "SELECT key, content_hash FROM item WHERE key IN (SELECT value FROM json_each(?))", (as_json(keys),)
    )
    return dict(rows.fetchall())


def read_payloads(connection: sqlite3.Connection, sequences: Sequence[int], collection: str) -> dict[int, Payload]:
    """Return the payloads of those of the rows that have one, by sequence number."""
    rows = connection.execute(
        "SELECT sequence, key, payload, payload_checksum FROM item"
        " WHERE payload IS NOT NULL AND sequence IN (SELECT value FROM json_each(?))",
        (as_json(sequences),),
    )
    return {
        sequence: decode_payload(payload, checksum, key, collection)
        for sequence, key, payload, checksum in rows.fetchall()
    }


def decode_payload(text: str, checksum: int, key: str, collection: str) -> CheckedPayload:
    """Return a stored payload; raises DataLossError, naming the item, if it fails its checksum."""
    if payload_checksum(text) != checksum:
        raise DataLossError(f"collection {collection!r} is damaged: the payload of item {key!r} fails its checksum")
    return CheckedPayload(text)


def _stored_item(row: _Joined, dim: int, collection: str) -> IndexedItem:
    """Return the item of a joined row; raises DataLossError, naming the item, if it fails its checksum."""
    sequence, key, label, content_hash, checksum, payload, check, data = row
    intact = row_checksum(key.encode(), None if label is None else label.encode(), content_hash, data) == checksum
    if not intact or len(data) != 4 * dim:
        raise DataLossError(f"collection {collection!r} is damaged: item {key!r} fails its checksum")
    return IndexedItem(
        key,
        np.frombuffer(data, np.float32).copy(),
        label,
        None if payload is None else decode_payload(payload, check, key, collection),
        content_hash,
        sequence,
    )
