"""Score each class on its own, so that a large class does not hide a small one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Scores of one class, fractions from 0 to 1.

    Attributes:
        name: of the class.
        images: test images of it.
        knn_recall: share of these that kNN classifies correctly.
        knn_precision: share of the test images that kNN assigns to it which are of it; None when it assigns none.
        linear_recall: as `knn_recall`, by the linear probe.
        linear_precision: as `knn_precision`, by the linear probe.
    """

    name: str
    images: int
    knn_recall: float
    knn_precision: float | None
    linear_recall: float
    linear_precision: float | None


def score_classes(true: Labels, knn: Labels, linear: Labels, names: Sequence[str] = ()) -> tuple[ClassScore, ...]:
    """Score every class that has test images, in the order of the classes.

    Args:
        true: [M] classes of the test images.
        knn: [M] what kNN takes them for.
        linear: [M] what the linear probe takes them for.
        names: of the classes by number; the numbers themselves when there are none.
    """
    found = []
    for label in np.unique(true):
        own = true == label
        figures = [figure for predicted in (knn, linear) for figure in _recall_precision(own, predicted == label)]
        name = names[label] if len(names) else str(label)
        recall, linear_recall = figures[0] or 0.0, figures[2] or 0.0
        found.append(ClassScore(name, int(own.sum()), recall, figures[1], linear_recall, figures[3]))
    return tuple(found)


def _recall_precision(own: NDArray[np.bool_], taken: NDArray[np.bool_]) -> tuple[float | None, float | None]:
    both = int((own & taken).sum())
    return both / int(own.sum()), both / int(taken.sum()) if taken.any() else None
