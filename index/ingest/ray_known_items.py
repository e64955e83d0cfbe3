"""Represent the items that a collection holds, small enough to be sent to the workers that skip them."""

import hashlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from imagekin.index.ingest.intake import Conflict, Sink

# Sorted, 16 bytes per item; all have this length, so that NumPy's padding of texts with zeros does not matter.
Digests: TypeAlias = NDArray[np.bytes_]

_DIGEST_BYTES = 16
_PAGE = 1000


def known_items(sink: Sink, on_conflict: Conflict) -> Digests:
    """Return the items that need no embedding: by key and content or, where content is never replaced, by key."""
    found = bytearray()
    after = 0
    while page := sink.scroll(after, _PAGE):
        after = page[-1].sequence
        for item in page:
            if item.content_hash is not None or on_conflict != "replace":
                found += _digest(item.key, item.content_hash or b"", on_conflict)
    return np.sort(np.frombuffer(bytes(found), f"S{_DIGEST_BYTES}"))


def is_known(known: Digests, key: str, content: bytes, on_conflict: Conflict) -> bool:
    """Return whether an item needs no embedding; `on_conflict` as for `known_items`."""
    digest = np.array(_digest(key, content, on_conflict), known.dtype)
    place = int(np.searchsorted(known, digest))
    return place < len(known) and bool(known[place] == digest)


def _digest(key: str, content: bytes, on_conflict: Conflict) -> bytes:
    """Return a hash of 128 bits, enough that different items do not collide in practice."""
    named = hashlib.blake2b(key.encode(), digest_size=_DIGEST_BYTES)
    if on_conflict == "replace":
        named.update(b"\0" + content)  # keys contain no zero byte
    return named.digest()
