"""Find the contents that writes take from a collection, and let their thumbnails go after the last item of each."""

import functools
from collections.abc import Sequence

import numpy as np

from imagekin.index.local.store import LocalStore
from imagekin.index.storage import reads
from imagekin.index.storage.columns import short_hash
from imagekin.index.storage.transactions import Transaction


class Replaced:
    """The contents of items that one write replaces or deletes.

    Args:
        store: the collection's items.
    """

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._wanted = bool(store.thumbnails.size)
        self._hashes: set[bytes] = set()

    def note(self, transaction: Transaction, keys: Sequence[str]) -> None:
        """Note the contents of the items of these keys, before they are replaced or deleted."""
        if self._wanted and keys:
            self._hashes.update(value for value in reads.read_hashes(transaction.connection, keys).values() if value)

    def forget(self) -> None:
        """Delete the thumbnails of those contents that no item has any more, after the write."""
        self._store.thumbnails.forget(self._hashes, functools.partial(live_hashes, self._store))


def live_hashes(store: LocalStore, hashes: Sequence[bytes]) -> list[bytes]:
    """Return those of some content hashes that an item has (compared by 64 bits)."""
    snapshot = store.snapshot()
    found = np.isin(np.array([short_hash(value) for value in hashes], np.uint64), snapshot.hashes[snapshot.alive()])
    return [value for value, is_live in zip(hashes, found.tolist(), strict=True) if is_live]
