"""Load a collection into columns: from its sealed segments and the rows since or, without segments, from every row.

The checksum of every row that is read from the database is verified. Rows in the segments are not read; only a few of
them are compared with the database, so that segments of another history of the collection are detected.
"""

import sqlite3
from collections.abc import Mapping

import numpy as np

from imagekin.errors import DataLossError
from imagekin.index.storage.columns import Columns
from imagekin.index.storage.schema import State, row_checksum
from imagekin.index.storage.segments import Manifest, Segments
from imagekin.index.storage.transactions import as_json

_ROWS_AT_ONCE = 20_000
_COMPARED = 16


def load_sealed(
    connection: sqlite3.Connection, segments: Segments, manifest: Manifest, state: State, collection: str
) -> Columns | None:
    """Load columns as of the connection's transaction from the segments; None if these cannot be used.

    Raises:
        DataLossError: a row written after the segments fails its checksum; the message names its key.
    """
    # All tombstones since the segments were written are needed.
    if not state.tombstones_after <= manifest.watermark <= state.sequence:
        return None
    columns = segments.open(manifest)
    if columns is None or not _agrees(connection, columns, manifest.watermark):
        return None
    load_since(connection, columns, manifest.watermark, columns.dim, collection)
    snapshot = columns.snapshot(state.sequence)
    if (snapshot.live, snapshot.labelled) != (state.count, state.labelled):
        return None
    columns.forget_before(state.sequence)
    return columns


def _agrees(connection: sqlite3.Connection, columns: Columns, watermark: int) -> bool:
    """Return whether a sample of the segments' rows agrees with the database."""
    snapshot = columns.snapshot(watermark)
    if not len(snapshot):
        return True
    slots = np.unique(np.linspace(0, len(snapshot) - 1, _COMPARED).astype(np.int64))
    if not 0 < snapshot.sequences[0] <= snapshot.sequences[-1] <= watermark:
        return False
    by_sequence = {int(snapshot.sequences[slot]): slot for slot in slots[snapshot.alive()[slots]]}
    rows = connection.execute(
        "SELECT sequence, CAST(key AS BLOB), CAST(label AS BLOB), content_hash, checksum FROM item"
        " WHERE sequence IN (SELECT value FROM json_each(?))",
        (as_json(list(by_sequence)),),
    ).fetchall()
    for sequence, key, label, content_hash, checksum in rows:
        slot = by_sequence[sequence]
        if row_checksum(key, label, content_hash, snapshot.vectors[slot].tobytes()) != checksum:
            return False
    # Rows that died since then are no longer in the database.
    return len(rows) == len(by_sequence) or len(rows) >= len(by_sequence) - _died_since(connection, by_sequence)


def _died_since(connection: sqlite3.Connection, sequences: Mapping[int, object]) -> int:
    (count,) = connection.execute(
        "SELECT count(*) FROM tombstone WHERE dead IN (SELECT value FROM json_each(?))", (as_json(list(sequences)),)
    ).fetchone()
    return int(count)


def load(connection: sqlite3.Connection, state: State, dim: int, collection: str) -> Columns:
    """Load the columns of all rows as of the connection's transaction.

    Raises:
        DataLossError: a row fails its checksum (the message names its key), or rows are missing.
    """
    columns = Columns(dim, state.count)
    _append_rows(connection, columns, 0, dim, collection)
    snapshot = columns.snapshot(state.sequence)
    last = int(snapshot.sequences[-1]) if len(snapshot) else 0
    if (len(snapshot), snapshot.labelled) != (state.count, state.labelled) or last > state.sequence:
        raise DataLossError(
            f"collection {collection!r} is damaged: it should hold {state.count} items, {len(snapshot)} can be read"
        )
    columns.forget_before(state.sequence)
    return columns


def load_since(connection: sqlite3.Connection, columns: Columns, since: int, dim: int, collection: str) -> None:
    """Append the rows written after the sequence number `since`, and mark the slots that died after it."""
    _append_rows(connection, columns, since, dim, collection)
    buried = connection.execute(
        "SELECT dead, sequence FROM tombstone WHERE sequence > ? ORDER BY sequence", (since,)
    ).fetchall()
    if buried:
        # Rows that were both written and deleted since then are not in the columns.
        dead, at = np.array(buried, np.int64).T
        known = columns.holds(dead)
        columns.kill(dead[known], at[known])


def _append_rows(connection: sqlite3.Connection, columns: Columns, after: int, dim: int, collection: str) -> None:
    # Text as bytes, because keys are kept so, and because damaged text must not raise a decoding error.
    text_factory, connection.text_factory = connection.text_factory, bytes
    try:
        items = connection.execute(
            "SELECT sequence, key, label, content_hash, checksum FROM item WHERE sequence > ? ORDER BY sequence",
            (after,),
        )
        vectors = connection.execute("SELECT sequence, data FROM vector WHERE sequence > ? ORDER BY sequence", (after,))
        while rows := items.fetchmany(_ROWS_AT_ONCE):
            _append(columns, rows, vectors.fetchmany(len(rows)), dim, collection)
    finally:
        connection.text_factory = text_factory


def _append(
    columns: Columns,
    rows: list[tuple[int, bytes, bytes | None, bytes | None, int]],
    vectors: list[tuple[int, bytes]],
    dim: int,
    collection: str,
) -> None:
    sequences, keys, labels, hashes, checksums = zip(*rows, strict=True)
    if [sequence for sequence, _ in vectors] != list(sequences):
        raise DataLossError(f"collection {collection!r} is damaged: rows of items and vectors do not match")
    data = [vector for _, vector in vectors]
    found = map(row_checksum, keys, labels, hashes, data)
    bad = [
        key
        for key, checksum, expected, vector in zip(keys, found, checksums, data, strict=True)
        if checksum != expected or len(vector) != 4 * dim
    ]
    if bad:
        others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise DataLossError(
            f"collection {collection!r} is damaged: item {bad[0].decode(errors='replace')!r}{others} fails its"
            " checksum; restore a snapshot or index it again"
        )
    columns.append(
        np.array(sequences, np.int64),
        list(keys),
        [None if label is None else label.decode() for label in labels],
        list(hashes),
        np.frombuffer(b"".join(data), np.float32).reshape(len(data), dim),
    )
