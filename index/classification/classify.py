"""Classify a query by the votes of its nearest labelled items, or by the nearest class mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagekin.index.search.nearest import NearestSlots, nearest
from imagekin.index.storage.columns import UNLABELLED, ColumnSnapshot, Mask, Slots, short_hash
from imagekin.index.types import ClassifyOptions
from imagekin.types import Prediction, Vector

_LEADING_VOTES = 10
_BLOCK = 32_768


@dataclass(frozen=True, slots=True, eq=False)
class ClassSums:
    """The sums and counts from which class means are computed.

    Attributes:
        sums: float64 [C, D], sum of each class's embeddings; C is the number of the snapshot's labels.
        counts: int64 [C], number of items of each class, 0 for a label that is no longer in use.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]


def voters(snapshot: ColumnSnapshot, matching: Mask | None) -> Mask | None:
    """Return the slots that may vote, bool [n]: live, labelled and matching ones; None for every live slot."""
    if matching is None and snapshot.labelled == snapshot.live:
        return None
    labelled: Mask = snapshot.labels != UNLABELLED
    return labelled & (snapshot.alive() if matching is None else matching)


def slots_of_hash(snapshot: ColumnSnapshot, content_hash: bytes | None) -> Slots:
    """Return the live slots with this content hash (compared by 64 bits)."""
    if not content_hash:
        return np.empty(0, np.int64)
    slots = np.flatnonzero(snapshot.hashes == np.uint64(short_hash(content_hash)))
    return slots[snapshot.died[slots] > snapshot.sequence]


def by_votes(
    snapshot: ColumnSnapshot,
    queries: Vector,
    options: ClassifyOptions,
    matching: Mask | None,
    excluded: Sequence[Slots],
) -> list[Prediction]:
    """Classify by the k nearest voters, each with the weight exp(similarity / temperature) (Wu et al. 2018).

    Args:
        snapshot: the collection.
        queries: float32 [N, D] of unit length.
        options: k, temperature and thresholds.
        matching: the live slots that may vote if they are labelled, None for all.
        excluded: for each query the slots that do not vote; empty when no query has any.
    """
    more = max((len(slots) for slots in excluded), default=0)
    found = nearest(snapshot, queries, options.k + more, voters(snapshot, matching))
    if more:
        found = [_without(one, slots, options.k) for one, slots in zip(found, excluded, strict=True)]
    names = snapshot.label_names
    return [
        vote([names[code] for code in snapshot.labels[one.slots].tolist()], one.similarities, options) for one in found
    ]


def vote(labels: Sequence[str], similarities: NDArray[np.float32], options: ClassifyOptions) -> Prediction:
    """Predict the class of a query from its nearest labelled items.

    Args:
        labels: the items' labels, the nearest first.
        similarities: float32 [k], the items' similarities to the query.
        options: temperature and thresholds.
    """
    shares: dict[str, float] = {}
    weights = _softmax(similarities.astype(np.float64), options.temperature)
    for name, weight in zip(labels, weights.tolist(), strict=True):
        shares[name] = shares.get(name, 0.0) + weight
    return _predict(shares, float(similarities[0]) if len(labels) else 0.0, options)


def class_sums(snapshot: ColumnSnapshot, matching: Mask | None) -> ClassSums:
    """Sum the embeddings of the voters of every class."""
    mask = voters(snapshot, matching)
    slots = np.flatnonzero(snapshot.alive() if mask is None else mask)
    classes = len(snapshot.label_names)
    sums = np.zeros((classes, snapshot.vectors.shape[1]))
    for begin in range(0, len(slots), _BLOCK):
        block = slots[begin : begin + _BLOCK]
        order = np.argsort(snapshot.labels[block], kind="stable")
        codes, starts = np.unique(snapshot.labels[block][order], return_index=True)
        sums[codes] += np.add.reduceat(snapshot.vectors[block[order]].astype(np.float64), starts, axis=0)
    return ClassSums(sums, np.bincount(snapshot.labels[slots], minlength=classes))


def by_prototypes(
    snapshot: ColumnSnapshot, queries: Vector, options: ClassifyOptions, classes: ClassSums, excluded: Sequence[Slots]
) -> list[Prediction]:
    """Classify by the nearest class mean, softmax over similarity / temperature.

    Args:
        snapshot: the collection.
        queries: float32 [N, D] of unit length.
        options: temperature and thresholds.
        classes: sums of the voters, see `class_sums`.
        excluded: for each query the slots that do not count; empty when no query has any.
    """
    predictions = []
    whole = _unit(classes.sums)
    for place, query in enumerate(queries):
        every = prototypes(snapshot, query, classes, excluded[place] if len(excluded) else None, whole)
        present = np.flatnonzero(np.isfinite(every))
        similarity = every[present]
        names = [snapshot.label_names[code] for code in present]
        weights = _softmax(similarity, options.temperature)
        nearest_similarity = float(similarity.max()) if len(present) else 0.0
        shares = dict(zip(names, weights.tolist(), strict=True))
        predictions.append(_predict(shares, nearest_similarity, options))
    return predictions


def prototypes(
    snapshot: ColumnSnapshot,
    query: Vector,
    classes: ClassSums,
    excluded: Slots | None,
    means: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return the similarity of a query to every class mean, float64 [C]; -inf for a class without a mean.

    Args:
        snapshot: the collection.
        query: float32 [D] of unit length.
        classes: sums of the voters, see `class_sums`.
        excluded: slots that do not count; None for none.
        means: the classes' means, float64 [C, D], if they have been computed before.
    """
    counts = classes.counts
    if means is None or (excluded is not None and len(excluded)):
        sums = classes.sums
        if excluded is not None and len(excluded):
            slots = excluded[snapshot.labels[excluded] != UNLABELLED]
            sums, counts = sums.copy(), counts.copy()
            np.subtract.at(sums, snapshot.labels[slots], snapshot.vectors[slots].astype(np.float64))
            np.subtract.at(counts, snapshot.labels[slots], 1)
        means = _unit(sums)
    similarity = np.clip(means @ query.astype(np.float64), -1.0, 1.0)
    return np.where((counts > 0) & means.any(axis=1), similarity, -np.inf)


def _without(found: NearestSlots, excluded: Slots, k: int) -> NearestSlots:
    stay = ~np.isin(found.slots, excluded)
    return NearestSlots(found.slots[stay][:k], found.similarities[stay][:k])


def _predict(shares: Mapping[str, float], nearest_similarity: float, options: ClassifyOptions) -> Prediction:
    votes = sorted(shares.items(), key=lambda vote: (-vote[1], vote[0]))
    if not votes:
        return Prediction(None, 0.0, nearest_similarity, ())
    label, confidence = votes[0][0], min(votes[0][1], 1.0)
    too_far = options.min_similarity is not None and nearest_similarity < options.min_similarity
    unknown = too_far or confidence < options.min_confidence
    return Prediction(None if unknown else label, confidence, nearest_similarity, tuple(votes[:_LEADING_VOTES]))


def _softmax(similarity: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    if not len(similarity):
        return similarity
    weights: NDArray[np.float64] = np.exp((similarity - similarity.max()) / temperature)
    shares: NDArray[np.float64] = weights / math.fsum(weights)
    return shares


def _unit(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    # A sum that cancels out leaves a rounding error, whose direction is meaningless.
    means: NDArray[np.float64] = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 1e-9)
    return means
