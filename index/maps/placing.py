"""Place items on a map by where their neighbours lie."""

import numpy as np
from numpy.typing import NDArray

from imagekin.index.maps.saved import UNPLACED, KnownPlaces, Positions
from imagekin.index.search.nearest import nearest
from imagekin.index.storage.columns import ColumnSnapshot, Mask
from imagekin.types import Vector

NEIGHBOURS = 15
# How fast a neighbour's weight falls with its distance, in mean distances beyond the nearest one.
_DECAY = 3.0
# Distance below which two vectors are the same, but for rounding.
_SAME = 1e-6


def weighted_means(
    distances: NDArray[np.float32], positions: NDArray[np.float64], known: Mask
) -> tuple[NDArray[np.float64], Mask]:
    """Return the mean of each item's neighbours' positions, near ones counting most, equal ones all but alone.

    Args:
        distances: float32 [n, k] of each neighbour.
        positions: float64 [n, k, 2] of each neighbour.
        known: bool [n, k], which of them count.

    Returns:
        float64 [n, 2], and which items have such a neighbour, bool [n].
    """
    some: Mask = np.asarray(known.any(axis=1))
    far = np.where(known, np.maximum(distances, 0.0), 0.0) + _SAME
    least = np.where(known, far, np.inf).min(axis=1, initial=np.inf)[:, None]
    beyond = np.where(known, far - least, 0.0)
    mean = beyond.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    weights = np.where(known, np.exp(-_DECAY * beyond / (mean[:, None] + 1e-9)) * np.minimum(least, far) / far, 0.0)
    weights /= np.maximum(weights.sum(axis=1), 1e-300)[:, None]
    return (weights[:, :, None] * positions).sum(axis=1), some


def place(snapshot: ColumnSnapshot, vectors: Vector, places: KnownPlaces) -> Positions:
    """Return the position of each vector (float32 [n, D], of unit length) by its neighbours, uint16 [n, 2].

    One whose neighbours have no position has none, either: UNPLACED.
    """
    found = nearest(snapshot, np.ascontiguousarray(vectors, np.float32), NEIGHBOURS)
    width = max((len(one.slots) for one in found), default=0)
    result = np.full((len(vectors), 2), UNPLACED, np.uint16)
    if not width:
        return result
    slots = np.zeros((len(vectors), width), np.int64)
    distances = np.full((len(vectors), width), 2.0, np.float32)
    for row, one in enumerate(found):
        slots[row, : len(one.slots)] = one.slots
        distances[row, : len(one.slots)] = 1.0 - one.similarities
    positions, has = places.find(snapshot.sequences[slots.reshape(-1)])
    known = has.reshape(slots.shape) & (distances < 2.0)
    means, some = weighted_means(distances, positions.reshape(*slots.shape, 2).astype(np.float64), known)
    result[some] = np.rint(means[some]).astype(np.uint16)
    return result
