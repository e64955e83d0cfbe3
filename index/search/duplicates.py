"""Group near-duplicates by single linkage: compare every pair of items, in bounded memory.

Blocks of items are multiplied by the blocks that follow them. A pair of at least the given similarity merges its two
groups at once and is not stored, so that a thousand copies of an image take no more memory than two. Products too close
to the bound for float32 are computed again in float64.
"""

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from imagekin.index.search.nearest import similarities
from imagekin.index.storage.columns import ColumnSnapshot, Slots
from imagekin.index.types import Duplicate, Group
from imagekin.index.vectors.brute_force import each_block, rounding

_ROWS_AT_ONCE = 256
_BLOCK_ROWS = 1024
_CHECKED_AT_ONCE = 16_384


def groups(
    snapshot: ColumnSnapshot, min_similarity: float, on_progress: Callable[[int], object] | None = None
) -> list[Group]:
    """Return the groups of two and more near-duplicates, the largest first.

    Args:
        snapshot: the collection.
        min_similarity: least similarity of two items that links them; above 0.
        on_progress: called with the number of slots compared since the last call.

    Returns:
        Groups, each with its items in the order of their writes; groups of equal size in the order of their first item.
    """
    parents = np.arange(len(snapshot))
    for begin in range(0, len(snapshot), _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, len(snapshot) - begin)
        _compare(snapshot, begin, rows, min_similarity, parents)
        if on_progress is not None:
            on_progress(rows)
    roots = _roots(parents, np.arange(len(snapshot)))
    order = np.argsort(roots, kind="stable")
    edges = np.flatnonzero(np.diff(roots[order])) + 1
    found = [slots for slots in np.split(order, edges) if len(slots) > 1]
    return [_group(snapshot, slots) for slots in sorted(found, key=len, reverse=True)]


def _compare(snapshot: ColumnSnapshot, begin: int, rows: int, bound: float, parents: NDArray[np.int64]) -> None:
    """Compare the `rows` slots from `begin` on with one another and all later slots, and join near pairs."""
    queries, vectors = snapshot.vectors[begin : begin + rows], snapshot.vectors[begin:]
    alive, slack, lock = snapshot.alive(), rounding(vectors.shape[1]), threading.Lock()

    def join(first: int, products: NDArray[np.float32]) -> None:
        near = np.flatnonzero(products.reshape(-1) >= np.float32(bound - slack))
        other, one = np.divmod(near, rows)
        one, other = one + begin, other + begin + first
        stays = (one < other) & alive[one] & alive[other]
        one, other, near = one[stays], other[stays], near[stays]
        if not len(near):
            return
        unsure = np.flatnonzero(products.reshape(-1)[near] < np.float32(bound + slack))
        stays = np.ones(len(near), np.bool_)
        for part in np.array_split(unsure, 1 + len(unsure) // _CHECKED_AT_ONCE):
            exact = similarities(snapshot.vectors[one[part]], snapshot.vectors[other[part]][:, None])[:, 0]
            stays[part] = exact >= np.float32(bound)
        with lock:
            _join(parents, one[stays], other[stays])

    each_block(queries, vectors, _BLOCK_ROWS, join)


def _roots(parents: NDArray[np.int64], slots: Slots) -> Slots:
    """Return the representative slot of each slot's group."""
    while True:
        slots, before = parents[slots], slots
        if np.array_equal(slots, before):
            return slots


def _join(parents: NDArray[np.int64], one: Slots, other: Slots) -> None:
    """Merge the groups of each pair; the smallest slot of a group is its representative."""
    while True:
        first, second = _roots(parents, one), _roots(parents, other)
        parents[one], parents[other] = first, second  # path compression
        apart = first != second
        if not apart.any():
            return
        one, other = first[apart], second[apart]
        np.minimum.at(parents, np.maximum(one, other), np.minimum(one, other))


def _group(snapshot: ColumnSnapshot, slots: Slots) -> Group:
    near = np.concatenate(
        [
            similarities(snapshot.vectors[slots[:1]], snapshot.vectors[part][None])[0]
            for part in np.array_split(slots, 1 + len(slots) // _CHECKED_AT_ONCE)
        ]
    )
    seen: set[int] = {0}  # 0 is no content hash
    members = []
    for key, slot, similarity in zip(snapshot.keys(slots), slots.tolist(), near.tolist(), strict=True):
        known = int(snapshot.hashes[slot])
        members.append(Duplicate(key, snapshot.label(slot), similarity, known != 0 and known in seen))
        seen.add(known)
    return tuple(members)
