"""Choose neighbours that depend on one another: at most some of each group, or diverse ones."""

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError
from imagekin.index.search.nearest import NearestSlots, nearest, similarities
from imagekin.index.storage.columns import ColumnSnapshot, Mask, Slots
from imagekin.types import Vector

# Diversity chooses among this many nearest neighbours: ten times as many as are wanted, and not too few.
_POOL = 10
_LEAST_POOL = 100
_ROUNDS = 3
_BLOCK = 32_768


def pool_size(k: int) -> int:
    """Return among how many nearest neighbours diversity chooses `k`."""
    return max(_LEAST_POOL, _POOL * k)


def grouped(
    snapshot: ColumnSnapshot, query: Vector, k: int, mask: Mask, groups: NDArray[np.int64], group_size: int
) -> NearestSlots:
    """Return the k nearest slots of which at most `group_size` are of one group.

    Args:
        snapshot: the collection.
        query: float32 [D] of unit length.
        k: how many.
        mask: bool [n], the slots that match.
        groups: int64 [n], the slots' groups; slots of a negative one are left out.
        group_size: how many of one group.

    Returns:
        What going through all matching slots from the nearest on, and passing over those of full groups, would find.
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
        # What is left is further away than what was found; of full groups nothing more is wanted.
        left[found.slots] = False
        left &= ~np.isin(groups, [group for group, free in room.items() if not free])
    else:
        # The nearest are all of a few groups: rank once the nearest ones of every group.
        take(_best_of_each(snapshot, query, np.flatnonzero(left), groups, group_size))
    return NearestSlots(np.array(slots, np.int64), np.array(values, np.float32))


def _best_of_each(
    snapshot: ColumnSnapshot, query: Vector, slots: Slots, groups: NDArray[np.int64], group_size: int
) -> NearestSlots:
    """Return, most similar first and ties by key, slots among which are the `group_size` nearest of every group."""
    exact = np.concatenate(
        [np.empty(0, np.float32)]
        + [
            similarities(query[None], snapshot.vectors[slots[begin : begin + _BLOCK]][None])[0]
            for begin in range(0, len(slots), _BLOCK)
        ]
    )
    order = np.lexsort((-exact, groups[slots]))
    of = groups[slots][order]
    firsts = np.searchsorted(of, of)
    # The last that has room in its group, and whatever is as similar: keys decide between those.
    lasts = np.minimum(firsts + group_size - 1, np.searchsorted(of, of, side="right") - 1)
    chosen = order[exact[order] >= exact[order][lasts]]
    ranked = sorted(chosen.tolist(), key=lambda place: (-exact[place], snapshot.key_utf8(int(slots[place]))))
    return NearestSlots(slots[ranked], exact[ranked])


def diverse(snapshot: ColumnSnapshot, found: NearestSlots, k: int, diversity: float) -> NearestSlots:
    """Choose k of the neighbours by maximal marginal relevance (Carbonell and Goldstein, 1998).

    The first is the nearest; each further one has the largest (1 - diversity) × similarity to the query - diversity ×
    largest similarity to those chosen, the nearer one of equals.

    Returns:
        The chosen ones, most similar to the query first.
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


def combine(positive: Vector, negative: Vector) -> Vector:
    """Return the query that examples stand for: mean(positive) - mean(negative), of unit length, float32 [D].

    Args:
        positive: float32 [P, D], what the answer should resemble; at least one.
        negative: float32 [N, D], what it should not resemble; may be empty.

    Raises:
        InvalidArgumentError: there is no positive one, or they cancel out.
    """
    if not len(positive):
        raise InvalidArgumentError("examples need at least one positive one", field="examples")
    mean = positive.mean(axis=0, dtype=np.float64)
    if len(negative):
        mean = mean - negative.mean(axis=0, dtype=np.float64)
    norm = float(np.linalg.norm(mean))
    # Rounding leaves something of means that cancel out; it points nowhere.
    if norm < 1e-6:
        raise InvalidArgumentError("the positive and the negative examples cancel out", field="examples")
    unit: Vector = (mean / norm).astype(np.float32)
    return unit
