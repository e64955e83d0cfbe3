"""Measure how well a collection classifies its own items, each left out in turn, and calibrate its confidence.

Every labelled item (or a sample of them) is classified by the others; items of the same image file do not vote. The
results are the accuracy, the temperature with the least negative log likelihood, the expected calibration error, and
the similarity bound that rejects queries but keeps the stated share of known items.
"""

import json
import sqlite3
import zlib
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from imagekin.counting import counted
from imagekin.errors import FailedPreconditionError
from imagekin.index.classification.classify import class_sums, prototypes, voters
from imagekin.index.search.nearest import nearest
from imagekin.index.storage.columns import UNLABELLED, ColumnSnapshot, Slots
from imagekin.index.types import Calibration, ClassifyMethod, EvaluateOptions, Evaluation

_TEMPERATURES = np.geomspace(0.003, 2.0, 81)
_BINS = 15
# Probability spread over all classes, so that the loss of an item without a vote for its true class stays finite.
_FLOOR = 1e-3
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, eq=False)
class _Ballots:
    """The voters of n items: similarities, float64 [n, m] (-inf for none); codes, int64 [n, m]; truth [n]."""

    similarities: NDArray[np.float64]
    codes: NDArray[np.int64]
    truth: NDArray[np.int64]

    def part(self, rows: NDArray[np.int64]) -> "_Ballots":
        return _Ballots(self.similarities[rows], self.codes[rows], self.truth[rows])

    def weights(self, temperature: float) -> NDArray[np.float64]:
        """Return each voter's share, float64 [n, m]; zero for items without voters."""
        best = self.similarities.max(axis=1, keepdims=True)
        raw = np.exp((self.similarities - np.where(np.isfinite(best), best, 0.0)) / temperature)
        total = raw.sum(axis=1, keepdims=True)
        shares: NDArray[np.float64] = np.divide(raw, total, out=np.zeros_like(raw), where=total > 0)
        return shares


def evaluate(snapshot: ColumnSnapshot, options: EvaluateOptions) -> Evaluation:
    """Classify the labelled items of a snapshot, each by the others, and measure the result.

    Raises:
        FailedPreconditionError: fewer than two classes have labelled items.
    """
    labelled = np.flatnonzero((snapshot.labels != UNLABELLED) & snapshot.alive())
    classes = len(np.unique(snapshot.labels[labelled]))
    if classes < 2:
        raise FailedPreconditionError(
            f"the collection has labelled items of {counted(classes, 'class')}: an evaluation needs two classes or more"
        )
    chosen = labelled
    if len(labelled) > options.sample:
        chosen = np.sort(np.random.default_rng(0).choice(labelled, options.sample, replace=False))
    ballots = _collect_ballots(snapshot, chosen, labelled, options)
    # Cross-validation: each half is evaluated with the temperature that was fitted on the other half.
    order = np.random.default_rng(1).permutation(len(chosen))
    halves = [np.sort(order[::2]), np.sort(order[1::2])]
    predicted = np.empty(len(chosen), np.int64)
    confidence = np.empty(len(chosen))
    for fitted, judged in (halves, halves[::-1]):
        temperature = _fit(ballots.part(fitted), classes)
        predicted[judged], confidence[judged] = _predict(ballots.part(judged), temperature)
    nearest_similarity = ballots.similarities.max(axis=1)
    found = nearest_similarity[np.isfinite(nearest_similarity)]
    right = predicted == ballots.truth
    lost = 1 - options.true_positive_rate
    return Evaluation(
        items=len(chosen),
        classes=classes,
        accuracy=float(right.mean()),
        ece=calibration_error(confidence, right),
        temperature=_fit(ballots, classes),
        min_similarity=float(np.quantile(found, lost, method="lower")) if len(found) else -1.0,
        confusion=_confusion(snapshot, ballots.truth, predicted),
    )


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error in 15 bins of equal width (Guo et al., 2017), 0 to 1.

    Args:
        confidence: float64 [n], 0 to 1.
        right: bool [n], True for correct predictions.
    """
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.abs(np.bincount(bins, right, _BINS) - np.bincount(bins, confidence, _BINS))
    return float(gaps.sum() / len(confidence))


def save(connection: sqlite3.Connection, method: ClassifyMethod, calibration: Calibration) -> None:
    """Write a calibration, inside the connection's transaction."""
    text = json.dumps(asdict(calibration))
    row = (_name(method), json.dumps([zlib.crc32(text.encode()), text]))
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)


def read(connection: sqlite3.Connection, method: ClassifyMethod) -> Calibration | None:
    """Read the saved calibration; None when there is none or it is damaged."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (_name(method),)).fetchone()
    if row is None:
        return None
    try:
        checksum, text = json.loads(row[0])
        return Calibration(**json.loads(text)) if zlib.crc32(text.encode()) == checksum else None
    except (ValueError, TypeError, AttributeError):
        return None  # no error: it can be measured again, and does not affect which neighbours are found


def _name(method: ClassifyMethod) -> str:
    return f"calibration_{method.value}"


def _collect_ballots(snapshot: ColumnSnapshot, chosen: Slots, labelled: Slots, options: EvaluateOptions) -> _Ballots:
    same = _SameFile(snapshot, labelled)
    truth = snapshot.labels[chosen].astype(np.int64)
    if options.method is ClassifyMethod.PROTOTYPE:
        sums = class_sums(snapshot, None)
        similarities = np.array([prototypes(snapshot, snapshot.vectors[s], sums, same.of(s)) for s in chosen.tolist()])
        codes = np.broadcast_to(np.arange(similarities.shape[1]), similarities.shape)
        return _Ballots(similarities, codes, truth)
    similarities = np.full((len(chosen), options.k), -np.inf)
    codes = np.full((len(chosen), options.k), UNLABELLED, np.int64)
    mask = voters(snapshot, None)
    for begin in range(0, len(chosen), _ROWS_AT_ONCE):
        slots = chosen[begin : begin + _ROWS_AT_ONCE]
        excluded = [same.of(slot) for slot in slots.tolist()]
        more = max(len(one) for one in excluded)
        answers = nearest(snapshot, np.ascontiguousarray(snapshot.vectors[slots]), options.k + more, mask)
        for row, (found, left_out) in enumerate(zip(answers, excluded, strict=True), begin):
            stay = np.flatnonzero(~np.isin(found.slots, left_out))[: options.k]
            similarities[row, : len(stay)] = found.similarities[stay]
            codes[row, : len(stay)] = snapshot.labels[found.slots[stay]]
    return _Ballots(similarities, codes, truth)


class _SameFile:
    """The labelled slots grouped by image file."""

    def __init__(self, snapshot: ColumnSnapshot, labelled: Slots) -> None:
        self._hashes = snapshot.hashes
        self._slots = labelled[np.argsort(snapshot.hashes[labelled], kind="stable")]
        self._sorted = snapshot.hashes[self._slots]

    def of(self, slot: int) -> Slots:
        """Return a slot and those of the same file; without a content hash only the slot."""
        value = self._hashes[slot]
        if not value:
            return np.array([slot])
        begin, end = np.searchsorted(self._sorted, value), np.searchsorted(self._sorted, value, side="right")
        return self._slots[begin:end]


def _fit(ballots: _Ballots, classes: int) -> float:
    """Fit the temperature by the least negative log likelihood."""
    supports = ballots.codes == ballots.truth[:, None]
    losses = []
    for temperature in _TEMPERATURES.tolist():
        share = (ballots.weights(temperature) * supports).sum(axis=1)
        losses.append(-np.log((1 - _FLOOR) * share + _FLOOR / classes).mean())
    return float(_TEMPERATURES[int(np.argmin(losses))])


def _predict(ballots: _Ballots, temperature: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the predicted class of each item, int64 [n], and its share of the votes, float64 [n]."""
    weights = ballots.weights(temperature)
    predicted, confidence = np.empty(len(weights), np.int64), np.empty(len(weights))
    for row, (codes, shares) in enumerate(zip(ballots.codes, weights, strict=True)):
        votes = np.bincount(codes[codes >= 0], shares[codes >= 0], minlength=1)
        best = int(np.argmax(votes))
        predicted[row], confidence[row] = (best, min(votes[best], 1.0)) if votes[best] > 0 else (UNLABELLED, 0.0)
    return predicted, confidence


def _confusion(
    snapshot: ColumnSnapshot, truth: NDArray[np.int64], predicted: NDArray[np.int64]
) -> tuple[tuple[str, str | None, int], ...]:
    pairs = Counter(zip(truth.tolist(), predicted.tolist(), strict=True))
    names = snapshot.label_names
    named = [(names[a], None if b == UNLABELLED else names[b], count) for (a, b), count in pairs.items()]
    return tuple(sorted(named, key=lambda pair: (pair[0], -pair[2], pair[1] or "")))
