"""Find the exact nearest neighbours in a snapshot: no dead items, never fewer than k, ties by key.

A kernel proposes more candidates than are wanted. Their similarities are then computed again in float64, so that a
result depends neither on the kernel nor on the number of queries. If the candidates are not proven to contain the true
k nearest (many of them are dead or do not match, or a tie extends beyond them), every slot is scored.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagekin.index.search import coded_top_k
from imagekin.index.storage.columns import ColumnSnapshot, DeviceRows, Mask, Proposer, Slots
from imagekin.index.types import SearchOptions
from imagekin.index.vectors.brute_force import THREADS, rounding, run_parallel, take_columns, threads_for, top_k
from imagekin.types import Vector

_MARGIN = 8
# Below this share of matching slots, gathering them is cheaper than proposing enough candidates.
_GATHER_BELOW = 0.5
# The same share where a device proposes, which is faster than the processor at gathering.
_GATHER_BELOW_ON_DEVICE = 0.02
# Components that are copied at a time where every slot is scored, and queries that are scored together there.
_COPIED_AT_ONCE = 1 << 20
_SCORED_TOGETHER = 16
# An approximate index is used from this many matching slots on, and for at most this many neighbours.
_APPROXIMATE_FROM = 20_000
_APPROXIMATE_TO = 1_000
# In collections with fewer slots, batching concurrent searches costs more than it saves.
_COMBINED_FROM = 2_000
# Least number of queries per thread that searches an index.
_QUERIES_PER_THREAD = 2
_RESCORED_AT_ONCE = 1 << 21  # components


@dataclass(slots=True, eq=False)  # frozen would make construction three times slower
class NearestSlots:
    """The neighbours of one query: slots, int64 [m], and similarities, float32 [m]; most similar first, ties by key."""

    slots: Slots
    similarities: NDArray[np.float32]

    def first(self, count: int) -> "NearestSlots":
        """Return the `count` most similar of them."""
        return NearestSlots(self.slots[:count], self.similarities[:count])


def neighbours(
    snapshot: ColumnSnapshot, queries: Vector, options: SearchOptions, mask: Mask | None = None
) -> list[NearestSlots]:
    """Return the neighbours of a search: `nearest`, less the excluded keys, cut at `k` and at `min_similarity`."""
    more = max((len(keys) for keys in options.exclude), default=0)
    if mask is None and len(queries) == 1 and snapshot.combiner is not None and len(snapshot) >= _COMBINED_FROM:
        answers = [snapshot.combiner.call((snapshot, queries, options.k + more))]
    else:
        answers = nearest(snapshot, queries, options.k + more, mask)
    return [cut(found, options.min_similarity) for found in excluding(snapshot, answers, options)]


def excluding(snapshot: ColumnSnapshot, answers: list[NearestSlots], options: SearchOptions) -> list[NearestSlots]:
    """Remove each query's excluded keys from the answers, and cut them at `k`."""
    if not any(options.exclude):
        return answers
    return [
        _without(snapshot, found, keys).first(options.k) for found, keys in zip(answers, options.exclude, strict=True)
    ]


def cut(found: NearestSlots, min_similarity: float | None) -> NearestSlots:
    """Return the neighbours with at least this similarity."""
    if min_similarity is None:
        return found
    # Compared in float32, as the similarities are: an item exactly at the bound stays.
    return found.first(int(np.count_nonzero(found.similarities >= np.float32(min_similarity))))


def nearest_batched(asked: Sequence[tuple[ColumnSnapshot, Vector, int]]) -> list[NearestSlots]:
    """Search for single queries, each with its own snapshot and k; queries of one snapshot run as one search."""
    answers: dict[int, NearestSlots] = {}
    places: dict[int, list[int]] = {}
    for place, (snapshot, _, _) in enumerate(asked):
        places.setdefault(id(snapshot), []).append(place)
    for together in places.values():
        snapshot, most = asked[together[0]][0], max(asked[place][2] for place in together)
        found = nearest(snapshot, np.concatenate([asked[place][1] for place in together]), most)
        answers |= {place: one.first(asked[place][2]) for place, one in zip(together, found, strict=True)}
    return [answers[place] for place in range(len(asked))]


def nearest(snapshot: ColumnSnapshot, queries: Vector, k: int, mask: Mask | None = None) -> list[NearestSlots]:
    """Return the `k` nearest live slots of each query.

    Args:
        snapshot: the collection.
        queries: float32 [N, D] of unit length, C-contiguous.
        k: neighbours per query; fewer are returned only when fewer match.
        mask: bool [n], the slots that match (live ones only); None means every live slot.

    Returns:
        One answer per query.
    """
    matching = snapshot.live if mask is None else int(np.count_nonzero(mask))
    k = min(k, matching)
    if k == 0 or not len(queries):
        return [NearestSlots(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    if snapshot.approximate is not None and k <= _APPROXIMATE_TO and matching >= _APPROXIMATE_FROM:
        return _search_index(snapshot, snapshot.approximate, queries, k, mask)
    if snapshot.resident is not None and snapshot.resident.rows <= len(snapshot) and not snapshot.resident.failed:
        answers = _search_device(snapshot, snapshot.resident, queries, k, mask, matching)
        if answers is not None:
            return _complete(snapshot, queries, k, mask, answers)
    if matching < _GATHER_BELOW * len(snapshot):
        return _score_all(snapshot, queries, k, np.flatnonzero(snapshot.alive() if mask is None else mask))
    proposed = _proposal_count(snapshot, k, matching)
    step = max(1, _RESCORED_AT_ONCE // (proposed * queries.shape[1]))
    products, slots = coded_top_k.top_k(queries, snapshot.vectors, snapshot.codes, proposed)
    answers = []
    for begin in range(0, len(queries), step):
        part = slice(begin, begin + step)
        answers += _rank_candidates(snapshot, queries[part], k, mask, products[part], slots[part])
    return _complete(snapshot, queries, k, mask, answers)


def _proposal_count(snapshot: ColumnSnapshot, k: int, matching: int) -> int:
    """Return the number of slots to propose so that k of them most likely match, with a margin."""
    spare = _MARGIN if matching < len(snapshot) else 0
    return min(len(snapshot), int(np.ceil((k + _MARGIN) * len(snapshot) / matching)) + spare)


def _search_device(
    snapshot: ColumnSnapshot, resident: DeviceRows, queries: Vector, k: int, mask: Mask | None, matching: int
) -> list[NearestSlots | None] | None:
    """Rank the proposals of a device, which ignores filters and dead slots; repeat with more of them as needed.

    Returns:
        One answer per query, None for those that are not proven; None instead when the device cannot be used.
    """
    proposed = _proposal_count(snapshot, k, matching)
    most = min(resident.max_k, len(snapshot))
    if proposed > most or matching < _GATHER_BELOW_ON_DEVICE * len(snapshot):
        return None
    answers: list[NearestSlots | None] = [None] * len(queries)
    missing, considered = np.arange(len(queries)), k + _MARGIN
    while len(missing):
        found = resident.top_k(queries[missing], snapshot.vectors, proposed)
        if found is None:
            return None
        ranks = _rank_proposals(snapshot, queries[missing], k, mask, *found, considered)
        for place, answer in zip(missing.tolist(), ranks, strict=True):
            answers[place] = answer
        missing = np.array([place for place in missing if answers[place] is None], np.int64)
        if proposed == most:
            break
        proposed, considered = min(4 * proposed, most), 4 * considered
    return answers


def _rank_proposals(
    snapshot: ColumnSnapshot,
    queries: Vector,
    k: int,
    mask: Mask | None,
    products: NDArray[np.float32],
    slots: Slots,
    considered: int,
) -> list[NearestSlots | None]:
    """Rank the first matching proposals of each query; None where they are not proven to contain the k nearest."""
    matches = snapshot.died[slots] > snapshot.sequence if mask is None else mask[slots]
    # Slots not proposed, or not considered, are at most as similar as the last one considered, except for rounding.
    bounds = np.full(len(queries), -np.inf) if slots.shape[1] == len(snapshot) else products[:, -1]
    if considered < slots.shape[1]:
        first = np.argsort(~matches, axis=1, kind="stable")[:, :considered]
        more = np.count_nonzero(matches, axis=1) > considered
        bounds = np.where(more, np.take_along_axis(products, first[:, -1:], axis=1)[:, 0], bounds)
        slots, matches = np.take_along_axis(slots, first, axis=1), np.take_along_axis(matches, first, axis=1)
    exact = np.empty(slots.shape, np.float32)
    step = max(1, _RESCORED_AT_ONCE // (slots.shape[1] * queries.shape[1]))

    def score(begin: int, end: int) -> None:
        for start in range(begin, end, step):
            part = slice(start, min(start + step, end))
            exact[part] = _score(snapshot, queries[part], slots[part])

    run_parallel(score, len(queries), threads_for(1, slots.size * queries.shape[1]))
    exact[~matches] = -np.inf
    bounds = bounds + rounding(queries.shape[1])
    return _select_top(snapshot, slots, exact, k, np.count_nonzero(exact > bounds[:, None], axis=1) >= k)


def _complete(
    snapshot: ColumnSnapshot, queries: Vector, k: int, mask: Mask | None, answers: list[NearestSlots | None]
) -> list[NearestSlots]:
    """Return the answers; missing ones are computed by scoring every slot that matches."""
    missing = [place for place, answer in enumerate(answers) if answer is None]
    matching = np.flatnonzero(snapshot.alive() if mask is None else mask) if missing else np.empty(0, np.int64)
    for begin in range(0, len(missing), _SCORED_TOGETHER):
        part = missing[begin : begin + _SCORED_TOGETHER]
        for place, answer in zip(part, _score_all(snapshot, queries[part], k, matching), strict=True):
            answers[place] = answer
    return [answer for answer in answers if answer is not None]


def _search_index(
    snapshot: ColumnSnapshot, approximate: Proposer, queries: Vector, k: int, mask: Mask | None
) -> list[NearestSlots]:
    """Rank an index's proposals and the slots that are not in it yet; score every slot where these are too few."""
    slots, exact = _propose(snapshot, approximate, queries, k, mask)
    begin = min(approximate.rows, len(snapshot))
    newer = int(np.count_nonzero(snapshot.died[begin:] > snapshot.sequence if mask is None else mask[begin:]))
    tail, proposed = None, slots.shape[1]
    if newer >= _GATHER_BELOW * (len(snapshot) - begin) > 0:
        size = len(snapshot) - begin
        wanted = min(size, int(np.ceil((k + _MARGIN) * size / newer)))
        later = top_k(queries, snapshot.vectors[begin:], wanted)[1] + begin
        slots = np.concatenate((slots, later), axis=1)
        exact = np.concatenate((exact, _matching(snapshot, queries, later, mask)), axis=1)
    elif newer:
        places = np.flatnonzero(snapshot.died[begin:] > snapshot.sequence if mask is None else mask[begin:]) + begin
        tail = _score_all(snapshot, queries, min(k, newer), places)
    if tail is not None:
        slots = np.concatenate((slots, np.stack([found.slots for found in tail])), axis=1)
        exact = np.concatenate((exact, np.stack([found.similarities for found in tail])), axis=1)
    # Similarities are -inf where nothing was proposed, or nothing that matches.
    found = np.count_nonzero(exact >= -1.0, axis=1) >= k
    # Dead slots among the newer ones may have displaced matching ones.
    found &= np.count_nonzero(exact[:, proposed:] >= -1.0, axis=1) >= min(k, newer)
    answers = _select_top(snapshot, slots, exact, k, found)
    return _complete(snapshot, queries, k, mask, answers)


def _propose(
    snapshot: ColumnSnapshot, approximate: Proposer, queries: Vector, k: int, mask: Mask | None
) -> tuple[Slots, NDArray[np.float32]]:
    """Return the slots that an index proposes, int64 [N, m], and similarities, float32 [N, m], -inf for none."""
    bits = approximate.bits(snapshot, mask)
    slots = np.empty((len(queries), approximate.proposals(k)), np.int64)
    exact = np.empty(slots.shape, np.float32)

    def propose(begin: int, end: int) -> None:
        found = approximate.propose(queries[begin:end], k, bits)
        found[found >= len(snapshot)] = -1  # the index may be newer than the snapshot
        slots[begin:end], exact[begin:end] = found, _matching(snapshot, queries[begin:end], found, mask)

    run_parallel(propose, len(queries), min(THREADS, len(queries) // _QUERIES_PER_THREAD))
    return slots, exact


def _matching(snapshot: ColumnSnapshot, queries: Vector, slots: Slots, mask: Mask | None) -> NDArray[np.float32]:
    """Return the similarity of each query to each of its slots, -inf where a slot does not match or is -1."""
    matches = snapshot.died[slots] > snapshot.sequence if mask is None else mask[slots]
    matches &= slots >= 0
    exact = _score(snapshot, queries, slots)
    exact[~matches] = -np.inf
    return exact


def _score(snapshot: ColumnSnapshot, queries: Vector, slots: Slots) -> NDArray[np.float32]:
    """Return the similarity of each query to each of its own slots, float32 [N, m]."""
    # Faster than indexing, especially when the vectors are not in the caches.
    return similarities(queries, np.take(snapshot.vectors, slots, axis=0))


def similarities(queries: Vector, vectors: Vector) -> NDArray[np.float32]:
    """Return the cosine similarity of each query to each of its own vectors.

    Args:
        queries: float32 [N, D] of unit length.
        vectors: float32 [N, m, D] of unit length.

    Returns:
        float32 [N, m], -1 to 1.
    """
    exact: NDArray[np.float64] = np.einsum("nmd,nd->nm", vectors.astype(np.float64), queries.astype(np.float64))
    return np.clip(exact, -1.0, 1.0).astype(np.float32)


def _without(snapshot: ColumnSnapshot, found: NearestSlots, keys: frozenset[str]) -> NearestSlots:
    stay = [place for place, slot in enumerate(found.slots.tolist()) if not keys or snapshot.key(slot) not in keys]
    return NearestSlots(found.slots[stay], found.similarities[stay])


def _rank_candidates(
    snapshot: ColumnSnapshot, queries: Vector, k: int, mask: Mask | None, products: NDArray[np.float32], slots: Slots
) -> list[NearestSlots | None]:
    """Rank each query's candidates; None where they are not proven to contain the k nearest."""
    exact = _matching(snapshot, queries, slots, mask)
    # Slots not proposed are at most as similar as the last one proposed, except for the kernel's rounding.
    bounds = products[:, -1] + rounding(queries.shape[1])
    if slots.shape[1] == len(snapshot):
        bounds = np.full(len(queries), -np.inf, np.float32)
    return _select_top(snapshot, slots, exact, k, np.count_nonzero(exact > bounds[:, None], axis=1) >= k)


def _select_top(
    snapshot: ColumnSnapshot, slots: Slots, exact: NDArray[np.float32], k: int, proven: Mask
) -> list[NearestSlots | None]:
    """Return the k most similar of each row's slots, ties by key; None for rows that are not proven."""
    order = np.argsort(-exact, axis=1, kind="stable")
    slots = take_columns(slots, order)
    exact = take_columns(exact, order)
    tied = np.any(exact[:, 1 : k + 1] == exact[:, :k][:, : exact.shape[1] - 1], axis=1)
    best, near = slots[:, :k], exact[:, :k]
    answers: list[NearestSlots | None] = [NearestSlots(*pair) for pair in zip(best, near, strict=True)]
    for row in np.flatnonzero(tied & proven).tolist():
        answers[row] = rank(snapshot, slots[row], exact[row], k)
    for row in np.flatnonzero(~proven).tolist():
        answers[row] = None
    return answers


def _score_all(snapshot: ColumnSnapshot, queries: Vector, k: int, matching: Slots) -> list[NearestSlots]:
    """Score every matching slot, block by block, and keep those that may be among the k nearest."""
    kept: list[tuple[Slots, NDArray[np.float32]]] = [
        (np.empty(0, np.int64), np.empty(0, np.float32)) for _ in range(len(queries))
    ]
    bounds = np.full(len(queries), -np.inf, np.float32)
    slack = 2 * rounding(queries.shape[1])
    step = _rows_at_once(snapshot)
    for begin in range(0, len(matching), step):
        slots = matching[begin : begin + step]
        scores = queries @ snapshot.vectors[slots].T
        for row in range(len(queries)):
            near = np.flatnonzero(scores[row] >= bounds[row])
            candidates = np.concatenate((kept[row][0], slots[near]))
            values = np.concatenate((kept[row][1], scores[row, near]))
            if len(values) > k:
                bounds[row] = np.partition(values, len(values) - k)[len(values) - k] - slack
                stay = values >= bounds[row]
                candidates, values = candidates[stay], values[stay]
            kept[row] = (candidates, values)
    return [
        rank(snapshot, slots, similarities_to(snapshot, query, slots), k)
        for query, (slots, _) in zip(queries, kept, strict=True)
    ]


def similarities_to(snapshot: ColumnSnapshot, query: Vector, slots: Slots) -> NDArray[np.float32]:
    """Return the similarity of a query, float32 [D], to each slot, float32 [m]; copies few vectors at a time."""
    exact = np.empty(len(slots), np.float32)
    step = _rows_at_once(snapshot)
    for begin in range(0, len(slots), step):
        part = slice(begin, begin + step)
        exact[part] = similarities(query[None], snapshot.vectors[slots[part]][None])[0]
    return exact


def _rows_at_once(snapshot: ColumnSnapshot) -> int:
    return max(1, _COPIED_AT_ONCE // int(snapshot.vectors.shape[1]))


def rank(snapshot: ColumnSnapshot, slots: Slots, exact: NDArray[np.float32], k: int) -> NearestSlots:
    """Return the k most similar of the slots, ties by key."""
    bound = np.partition(exact, len(exact) - k)[len(exact) - k]
    near = np.flatnonzero(exact >= bound)
    # Not sorted whole: amid equal vectors, as many slots as the collection has may be tied.
    ranked = heapq.nsmallest(k, near, key=lambda place: (-exact[place], snapshot.key_utf8(int(slots[place]))))
    return NearestSlots(slots[ranked], exact[ranked])
