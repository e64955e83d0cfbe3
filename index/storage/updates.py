"""Change labels and payloads without changing vectors."""

from collections.abc import Sequence

import numpy as np

from imagekin.errors import InvalidArgumentError
from imagekin.index import validation
from imagekin.index.storage.reads import read_items
from imagekin.index.storage.transactions import Transaction, WriteBatch, encode
from imagekin.index.types import VectorItem
from imagekin.types import ItemUpdate, Payload, UpdateResult


def prepare(updates: Sequence[ItemUpdate]) -> dict[str, ItemUpdate]:
    """Check updates, and merge those of the same key; of conflicting ones, the later one counts.

    Raises:
        InvalidArgumentError: an update cannot be stored; the message names its key.
    """
    joined: dict[str, ItemUpdate] = {}
    for update in updates:
        key = validation.key(update.key)
        try:
            validation.label(update.label)
            validation.payload_text(update.payload)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"item {key!r}: {error}", field=error.field) from None
        before = joined.get(key, update)
        label = before.label if update.label is None else update.label
        joined[key] = ItemUpdate(key, label, before.payload if update.payload is None else update.payload)
    return joined


def apply(transaction: Transaction, updates: dict[str, ItemUpdate], dim: int, collection: str) -> UpdateResult:
    """Write the updated items as new rows, with unchanged vectors."""
    items = read_items(transaction.connection, list(updates), dim, collection)
    rows, vectors = [], np.empty((len(items), dim), np.float32)
    for place, (key, item) in enumerate(items.items()):
        label = item.label if updates[key].label is None else updates[key].label
        payload: Payload | None = item.payload if updates[key].payload is None else updates[key].payload
        vectors[place] = item.vector
        changed = VectorItem(key, item.vector, label, payload, item.content_hash)
        rows.append(encode(changed, key, validation.payload_text(payload), item.vector.tobytes()))
    transaction.upsert(WriteBatch(rows, vectors, list(range(len(rows)))))
    missing = tuple(key for key in updates if key not in items)
    return UpdateResult(len(items), missing, transaction.sequence if items else 0)
