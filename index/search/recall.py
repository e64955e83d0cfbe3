"""Measure how many of the true neighbours an approximate index finds, whatever copies of one another there are."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from imagekin.index.types import StoppedError
from imagekin.types import Vector

# Components that are copied at a time.
_COPIED_AT_ONCE = 1 << 20
# Products that differ by less are the same, computed in another order.
_SAME = 1e-5


def first_copies(vectors: Vector, rows: int, stop: Callable[[], bool]) -> NDArray[np.int64]:
    """Return the first row of each distinct vector among the first `rows` ones, ascending."""
    dim = vectors.shape[1]
    # Modulo 2^64, so that equal vectors have equal sums, in whatever order these are made.
    factors = np.random.default_rng(0).integers(1, 2**63, dim, np.uint64) | np.uint64(1)
    sums = np.empty(rows, np.uint64)
    step = max(1, _COPIED_AT_ONCE // dim)
    for begin in range(0, rows, step):
        if stop():
            raise StoppedError
        bits = vectors[begin : min(begin + step, rows)].view(np.uint32).astype(np.uint64)
        sums[begin : begin + len(bits)] = (bits * factors).sum(axis=1)
    return np.sort(np.unique(sums, return_index=True)[1])


def products_with(queries: Vector, vectors: Vector, slots: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the inner products of each query with its own slots, float32 [N, m], -inf for -1."""
    products = np.full(slots.shape, -np.inf, np.float32)
    for place, (query, own) in enumerate(zip(queries, slots, strict=True)):
        products[place, own >= 0] = vectors[own[own >= 0]] @ query
    return products


def recall_of(truth: Sequence[NDArray[np.float32]], found: NDArray[np.float32]) -> float:
    """Return the share of neighbours found: of each query, how many of the found ones are as similar as the true ones.

    Args:
        truth: the products of each query with its true neighbours, the largest first.
        found: its products with those that were found, float32 [N, m].
    """
    hits = [
        min(len(one), int(np.count_nonzero(other >= one[-1] - _SAME))) / len(one)
        for one, other in zip(truth, found, strict=True)
        if len(one)
    ]
    return float(np.mean(hits)) if hits else 1.0
