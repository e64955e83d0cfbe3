"""Find every item of at least some similarity, for searches with a bound and a large `k`."""

import threading

import numpy as np
from numpy.typing import NDArray

from imagekin.index.search.nearest import NearestSlots, rank, similarities_to
from imagekin.index.storage.columns import ColumnSnapshot, Mask, Slots
from imagekin.index.vectors.brute_force import each_block, rounding
from imagekin.types import Vector

_BLOCK_ROWS = 1024
_QUERIES_AT_ONCE = 64
# Bounds the memory for results when nearly every slot reaches the bound.
_PRODUCTS_AT_ONCE = 1 << 24


def search_radius(
    snapshot: ColumnSnapshot, queries: Vector, k: int, bound: float, mask: Mask | None = None
) -> list[NearestSlots]:
    """Return every live slot of at least some similarity; if they are more than `k`, the most similar ones.

    Args:
        snapshot: the collection.
        queries: float32 [N, D] of unit length, C-contiguous.
        k: most slots of an answer.
        bound: the least similarity, -1 to 1.
        mask: bool [n], the slots that match (live ones only); None means every live slot.

    Returns:
        One answer per query, most similar first, ties by key.
    """
    step = max(1, min(_QUERIES_AT_ONCE, _PRODUCTS_AT_ONCE // max(1, len(snapshot))))
    matching = snapshot.alive() if mask is None else mask
    answers: list[NearestSlots] = []
    for begin in range(0, len(queries), step):
        part = queries[begin : begin + step]
        rows, slots = _near(snapshot, part, bound - rounding(queries.shape[1]), matching)
        edges = np.searchsorted(rows, np.arange(len(part) + 1))
        for number, query in enumerate(part):
            answers.append(_select_top(snapshot, query, slots[edges[number] : edges[number + 1]], k, bound))
    return answers


def _near(
    snapshot: ColumnSnapshot, queries: Vector, bound: float, matching: Mask
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs of a query's number and a slot whose product reaches the bound, in ascending order."""
    rows, slots = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    lock = threading.Lock()

    def collect(first: int, products: NDArray[np.float32]) -> None:
        near, row = np.divmod(np.flatnonzero(products.reshape(-1) >= np.float32(bound)), len(queries))
        near += first
        stays = matching[near]
        with lock:
            rows.append(row[stays])
            slots.append(near[stays])

    if len(snapshot):
        each_block(queries, snapshot.vectors, _BLOCK_ROWS, collect)
    row, slot = np.concatenate(rows), np.concatenate(slots)
    order = np.lexsort((slot, row))
    return row[order], slot[order]


def _select_top(snapshot: ColumnSnapshot, query: Vector, slots: Slots, k: int, bound: float) -> NearestSlots:
    exact = similarities_to(snapshot, query, slots)
    # Compared in float32, as the similarities are: an item exactly at the bound stays.
    inside = exact >= np.float32(bound)
    slots, exact = slots[inside], exact[inside]
    order = np.argsort(-exact, kind="stable")
    if len(exact) > 1 and np.any(np.diff(exact[order]) == 0):
        return rank(snapshot, slots, exact, min(k, len(slots)))
    return NearestSlots(slots[order[:k]], exact[order[:k]])
