"""Reads a collection's rows into columns, checking every row's checksum on the way."""

import sqlite3

import numpy as np

from encoder.errors import DataLossError
from index.columns import Columns
from index.schema import State, row_checksum

_ROWS_AT_ONCE = 20_000


def load(connection: sqlite3.Connection, state: State, dim: int, collection: str) -> Columns:
    """Return the columns of all rows as of the connection's transaction.

    Raises:
        DataLossError: a row fails its checksum (its key is named), or rows are missing.
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
    """Append the rows that were written after the sequence number `since`, and mark those that died after it."""
    _append_rows(connection, columns, since, dim, collection)
    buried = connection.execute(
        "SELECT dead, sequence FROM tombstone WHERE sequence > ? ORDER BY sequence", (since,)
    ).fetchall()
    if buried:
        # Rows that came and went since then were never in the columns.
        dead, at = np.array(buried, np.int64).T
        known = columns.holds(dead)
        columns.kill(dead[known], at[known])


def _append_rows(connection: sqlite3.Connection, columns: Columns, after: int, dim: int, collection: str) -> None:
    # Text as bytes: that is how keys are kept, and damaged text must not end the reading with a decoding error.
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
