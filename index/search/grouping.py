"""Choose neighbours that depend on one another: a limited number of each group, or diverse ones."""

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError
from imagekin.index.search.nearest import NearestSlots, nearest, similarities_to
from imagekin.index.storage.columns import ColumnSnapshot, Mask, Slots
from imagekin.types import Vector

# Diverse neighbours are chosen among ten times as many nearest ones, and at least a hundred.
_POOL = 10
_LEAST_POOL = 100
_ROUNDS = 3


def pool_size(k: int) -> int:
    """Return the number of nearest neighbours from which `k` diverse ones are chosen."""
    return max(_LEAST_POOL, _POOL * k)


def nearest_per_group(
    snapshot: ColumnSnapshot, query: Vector, k: int, mask: Mask, groups: NDArray[np.int64], group_size: int
) -> NearestSlots:
    """Return the k nearest slots with at most `group_size` of each group.

    The result is that of a pass over all matching slots, nearest first, that skips slots of full groups.

    Args:
        snapshot: the collection.
        query: float32 [D] of unit length.
        k: number of slots.
        mask: bool [n], the slots that match.
        groups: int64 [n], the slots' groups; slots with a negative number are left out.
        group_size: largest number of slots of a group.
    """
    left = mask & (groups >= 0)
    room: dict[int, int] = {}
    slots: list[int] = []
    values: list[float] = []

    def take(found: NearestSlots) -> None:
        for slot, value in zip(found.slots.tolist(), found.similarities.tolist(), strict=True):
            group = int(groups[slot])
            if len(slots) < k and room.setdefault(group, group_size):
                room[group] -= 1
                slots.append(slot)
                values.append(value)

    for _ in range(_ROUNDS):
        (found,) = nearest(snapshot, query[None], 2 * (k - len(slots)), left)
        take(found)
        if len(slots) == k or not len(found.slots):
            break
        # The remaining slots are less similar than those found; full groups are excluded.
        left[found.slots] = False
        left &= ~np.isin(groups, [group for group, free in room.items() if not free])
    else:
        # The nearest slots belong to a few groups: rank the nearest ones of every group at once.
        take(_best_of_each(snapshot, query, np.flatnonzero(left), groups, group_size))
    return NearestSlots(np.array(slots, np.int64), np.array(values, np.float32))


def _best_of_each(
    snapshot: ColumnSnapshot, query: Vector, slots: Slots, groups: NDArray[np.int64], group_size: int
) -> NearestSlots:
    """Return slots that include the `group_size` nearest of every group, most similar first, ties by key."""
    exact = similarities_to(snapshot, query, slots)
    order = np.lexsort((-exact, groups[slots]))
    of = groups[slots][order]
    firsts = np.searchsorted(of, of)
    # The last one that fits into its group, and those of equal similarity, among which keys decide.
    lasts = np.minimum(firsts + group_size - 1, np.searchsorted(of, of, side="right") - 1)
    chosen = order[exact[order] >= exact[order][lasts]]
    ranked = sorted(chosen.tolist(), key=lambda place: (-exact[place], snapshot.key_utf8(int(slots[place]))))
    return NearestSlots(slots[ranked], exact[ranked])


def select_diverse(snapshot: ColumnSnapshot, found: NearestSlots, k: int, diversity: float) -> NearestSlots:
    """Choose k of the neighbours by maximal marginal relevance (Carbonell and Goldstein, 1998).

    The first choice is the nearest. Each further choice maximises (1 - diversity) × similarity to the query - diversity
    × largest similarity to those chosen before; of equal ones, the nearer is chosen.

    Returns:
        The chosen neighbours, most similar to the query first.
    """
    vectors = snapshot.vectors[found.slots].astype(np.float64)
    relevance = (1 - diversity) * found.similarities.astype(np.float64)
    closest = np.full(len(vectors), -np.inf)
    chosen: list[int] = []
    free = np.ones(len(vectors), np.bool_)
    while len(chosen) < min(k, len(vectors)):
        scores = np.where(free, relevance - diversity * closest if chosen else relevance, -np.inf)
        place = int(np.argmax(scores)) if chosen else 0
        chosen.append(place)
        free[place] = False
        closest = np.maximum(closest, vectors @ vectors[place])
    order = sorted(chosen)
    return NearestSlots(found.slots[order], found.similarities[order])


def combine_examples(positive: Vector, negative: Vector) -> Vector:
    """Combine examples into one query: mean(positive) - mean(negative), scaled to unit length, float32 [D].

    Args:
        positive: float32 [P, D], examples that neighbours should resemble; at least one.
        negative: float32 [N, D], examples that they should not resemble; may be empty.

    Raises:
        InvalidArgumentError: there is no positive example, or the means cancel out.
    """
    if not len(positive):
        raise InvalidArgumentError("examples need at least one positive one", field="examples")
    mean = positive.mean(axis=0, dtype=np.float64)
    if len(negative):
        mean = mean - negative.mean(axis=0, dtype=np.float64)
    norm = float(np.linalg.norm(mean))
    # Means that cancel out leave a rounding error, whose direction is meaningless.
    if norm < 1e-6:
        raise InvalidArgumentError("the positive and the negative examples cancel out", field="examples")
    unit: Vector = (mean / norm).astype(np.float32)
    return unit
