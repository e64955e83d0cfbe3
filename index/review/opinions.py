"""Form opinions on labels: half by the votes of the neighbours, half by a linear classifier.

Neighbours know small groups, and a linear classifier knows what the members of a class have in common; together they
find more wrong labels than either. The classifier is ridge regression onto the classes: from two sums over the
collection it follows in closed form, and so does what it would say of each item had it not seen it (Allen 1974), so
that no item speaks for its own label.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagekin.index.types import ClassifyOptions
from imagekin.types import Neighbour

_TEMPERATURE = ClassifyOptions().temperature
# Of the regression's outputs, which are about 1 for the right class and 0 for the others.
_LINEAR_TEMPERATURE = 0.1
# In mean eigenvalues of the scatter matrix.
_RIDGE = 1.0
# Beyond this many, the classifier's weights would take more memory than is well spent.
_MOST_CLASSES = 5_000

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Opinion:
    """Opinion on an item's label.

    Attributes:
        proposed: the likeliest label, empty where nothing is known.
        share: its share, from 0 to 1.
        own: the share of the label that the item has.
        margin: by how much `share` exceeds the next share.
    """

    proposed: str
    share: float
    own: float
    margin: float


class Judge:
    """Form opinions: first `learn` all labelled items, then ask for the `opinions` on any.

    Args:
        linear: use the linear classifier, too.
    """

    def __init__(self, *, linear: bool = True) -> None:
        self._linear = linear
        self._classes: dict[str, int] = {}
        self._names: list[str] = []
        self._counts: list[int] = []
        self._sums: list[NDArray[np.float64]] = []
        self._scatter: NDArray[np.float64] | None = None
        self._head: _Head | None = None

    def learn(self, vectors: Vectors, labels: Sequence[str]) -> None:
        """Take items, [N, D] of unit length, with their labels; empty ones teach nothing."""
        known = [position for position, label in enumerate(labels) if label]
        if not self._linear or not known:
            return
        rows = vectors[known].astype(np.float64)
        self._scatter = rows.T @ rows + (0 if self._scatter is None else self._scatter)
        for row, position in zip(rows, known, strict=True):
            number = self._classes.setdefault(labels[position], len(self._classes))
            if number == len(self._sums):
                self._names.append(labels[position])
                self._sums.append(np.zeros(rows.shape[1]))
                self._counts.append(0)
            self._sums[number] += row
            self._counts[number] += 1
        if len(self._classes) > _MOST_CLASSES:
            self._linear, self._scatter, self._sums = False, None, []

    def opinions(
        self, vectors: Vectors, labels: Sequence[str], neighbours: Sequence[Sequence[Neighbour]]
    ) -> list[Opinion]:
        """Return the opinion on each item, by its vector, its label (empty for none) and its neighbours."""
        if self._linear and self._head is None and len(self._classes) > 1 and self._scatter is not None:
            self._head = _Head(self._scatter, np.stack(self._sums), np.array(self._counts))
        linear = None
        if self._head is not None:
            linear = self._head.shares(vectors, [self._classes.get(label, -1) for label in labels])
        return [
            self._opinion(label, votes(near), None if linear is None else linear[position])
            for position, (label, near) in enumerate(zip(labels, neighbours, strict=True))
        ]

    def _opinion(self, label: str, voted: dict[str, float], linear: NDArray[np.float64] | None) -> Opinion:
        if linear is None:
            shares = voted
        else:
            # Only the labels that may win: those that were voted for, the item's own, and the classifier's first two.
            likely = {self._names[number] for number in np.argpartition(-linear, 1)[:2]} | {*voted, label} - {""}
            weight = 0.5 if voted else 1.0
            shares = {
                name: weight * (float(linear[self._classes[name]]) if name in self._classes else 0.0)
                + (1 - weight) * voted.get(name, 0.0)
                for name in likely
            }
        ranked = sorted(shares.items(), key=lambda one: (-one[1], one[0]))
        if not ranked:
            return Opinion("", 0.0, 0.0, 0.0)
        second = ranked[1][1] if len(ranked) > 1 else 0.0
        return Opinion(ranked[0][0], ranked[0][1], shares.get(label, 0.0), ranked[0][1] - second)


class _Head:
    """Ridge regression from vectors onto classes.

    Args:
        scatter: sum of the outer products of the items' vectors, [D, D].
        sums: sum of the vectors of each class, [C, D].
        counts: items of each class, [C].
    """

    def __init__(self, scatter: NDArray[np.float64], sums: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        total = counts.sum()
        self._mean = sums.sum(axis=0) / total
        self._prior = counts / total
        centred = scatter - total * np.outer(self._mean, self._mean)
        ridge = _RIDGE * max(float(np.trace(centred)), 1e-9) / len(centred)
        self._inverse = np.linalg.inv(centred + ridge * np.eye(len(centred)))
        self._weights = self._inverse @ (sums - counts[:, None] * self._mean).T

    def shares(self, vectors: Vectors, classes: Sequence[int]) -> NDArray[np.float64]:
        """Return each class's share for each item, [N, C]; an item's own class, -1 for none, is left out of account."""
        rows = vectors.astype(np.float64) - self._mean
        outputs = rows @ self._weights
        known = np.array([position for position, number in enumerate(classes) if number >= 0], np.int64)
        if len(known):
            numbers = np.array(classes)[known]
            leverage = np.einsum("nd,nd->n", rows[known] @ self._inverse, rows[known])[:, None]
            targets = -np.broadcast_to(self._prior, outputs[known].shape).copy()
            targets[np.arange(len(known)), numbers] += 1
            outputs[known] = (outputs[known] - leverage * targets) / np.maximum(1 - leverage, 1e-6)
        scaled = outputs / _LINEAR_TEMPERATURE
        shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        found: NDArray[np.float64] = shares / shares.sum(axis=1, keepdims=True)
        return found


def votes(neighbours: Sequence[Neighbour]) -> dict[str, float]:
    """Return each label's share of the votes of the labelled neighbours, weighted by similarity."""
    weights: defaultdict[str, float] = defaultdict(float)
    for one in neighbours:
        if one.label:
            weights[one.label] += math.exp((one.similarity - 1) / _TEMPERATURE)
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}
