"""Convert items to rows of Milvus, and read the rows that meet an expression in the order of sequence numbers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imagekin.errors import InvalidArgumentError
from imagekin.index.milvus.connection import MilvusConnection
from imagekin.index.milvus.expressions import among, both, flatten
from imagekin.index.storage.transactions import WriteBatch
from imagekin.index.types import IndexedItem
from imagekin.types import Payload

# Most rows that Milvus returns for one call.
MAX_ROWS = 16_384
# A row has up to 130 KB beside its vector, and a message at most 64 MiB.
ROWS_PER_CALL = 400
_MOST_PAYLOAD_BYTES = 65_535
ALL_COLUMNS = ("key", "vector", "label", "payload", "content_hash", "sequence")


def payload_columns(key: str, text: str | None) -> dict[str, Any]:
    """Return the columns of a payload, given as text.

    Raises:
        InvalidArgumentError: Milvus cannot store it.
    """
    text = text or ""
    if len(text.encode()) > _MOST_PAYLOAD_BYTES:
        raise InvalidArgumentError(
            f"item {key!r}: Milvus keeps at most {_MOST_PAYLOAD_BYTES} bytes of payload", field="payload"
        )
    try:
        facts, tags = flatten(json.loads(text) if text else None)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"item {key!r}: {error}", field=error.field) from None
    return {"payload": text, "facts": facts, "tags": tags}


def rows_of(batch: WriteBatch, sequences: Sequence[int]) -> list[dict[str, Any]]:
    """Return checked items as rows."""
    return [
        {
            "key": row.key,
            "vector": vector,
            "label": row.label or "",
            "content_hash": row.content_hash.hex() if row.content_hash else "",
            "sequence": sequence,
            **payload_columns(row.key, row.payload),
        }
        for row, vector, sequence in zip(batch.rows, batch.vectors, sequences, strict=True)
    ]


def payload_of(row: Mapping[str, Any]) -> Payload | None:
    """Return a row's payload."""
    text = row["payload"]
    payload: Payload | None = json.loads(text) if text else None
    return payload


def stored_item(row: Mapping[str, Any]) -> IndexedItem:
    """Return a whole row's item."""
    digest = row["content_hash"]
    return IndexedItem(
        row["key"],
        np.asarray(row["vector"], np.float32),
        row["label"] or None,
        payload_of(row),
        bytes.fromhex(digest) if digest else None,
        int(row["sequence"]),
    )


class MilvusRows:
    """The rows of one collection.

    Args:
        connection: connection to Milvus.
        table: the collection's name in Milvus.
    """

    def __init__(self, connection: MilvusConnection, table: str) -> None:
        self._connection = connection
        self._table = table

    def count(self, expression: str) -> int:
        """Return the number of rows that meet an expression; of all rows for an empty one."""
        (row,) = self._query(expression, ["count(*)"])
        return int(row["count(*)"])

    def by_key(self, keys: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return those of the rows that exist, by key."""
        found: dict[str, dict[str, Any]] = {}
        for begin in range(0, len(keys), ROWS_PER_CALL):
            rows = self._query(among("key", keys[begin : begin + ROWS_PER_CALL]), columns)
            found.update((row["key"], row) for row in rows)
        return found

    def page(self, after: int, limit: int, expression: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the first `limit` rows after a sequence number, in the order of sequence numbers."""
        found: list[dict[str, Any]] = []
        while len(found) < limit:
            wanted = min(limit - len(found), MAX_ROWS // 2)
            sequences = self._first(after, wanted, expression)
            for begin in range(0, len(sequences), ROWS_PER_CALL):
                part = sequences[begin : begin + ROWS_PER_CALL]
                rows = self._query(
                    f"sequence in [{', '.join(map(str, part))}]", list(dict.fromkeys([*columns, "sequence"]))
                )
                found += sorted(rows, key=lambda row: int(row["sequence"]))
            if len(sequences) < wanted:
                break
            after = sequences[-1]
        return found

    def scan(self, expression: str, columns: Sequence[str], until: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield all rows that meet an expression, in the order of their sequence numbers."""
        bound = "" if until is None else f"sequence <= {until}"
        after = 0
        while rows := self.page(after, MAX_ROWS // 8, both(expression, bound), columns):
            yield from rows
            after = int(rows[-1]["sequence"])

    def last_sequence(self, known: int) -> int:
        """Return the largest sequence number of a row, or `known` if none is greater."""
        low, high = known, 2**63 - 1
        while True:
            rows = self._query(f"sequence > {low}", ["sequence"], limit=MAX_ROWS)
            low = max((int(row["sequence"]) for row in rows), default=low)
            if len(rows) < MAX_ROWS:
                return low
            # Milvus returns arbitrary rows: halving the range bounds the number of calls in any case.
            middle = low + (high - low) // 2
            above = self._query(f"sequence > {middle}", ["sequence"], limit=1)
            if above:
                low = int(above[0]["sequence"])
            else:
                high = middle

    def _first(self, after: int, limit: int, expression: str) -> list[int]:
        """Return the first `limit` sequence numbers after a sequence number.

        Milvus returns any 16,384 of the rows, in no order, so the range is narrowed until it has fewer rows.
        """
        end = 2**63 - 1
        while True:
            window = both(expression, f"sequence > {after}", "" if end == 2**63 - 1 else f"sequence <= {end}")
            rows = self._query(window, ["sequence"], limit=MAX_ROWS)
            found = sorted(int(row["sequence"]) for row in rows)
            if len(found) < MAX_ROWS:
                return found[:limit]
            end = found[limit]

    def _query(self, expression: str, columns: Sequence[str], limit: int | None = None) -> list[dict[str, Any]]:
        options = {} if limit is None else {"limit": limit}
        found: list[dict[str, Any]] = self._connection.call(
            "query", self._table, filter=expression, output_fields=list(columns), **options
        )
        return found
