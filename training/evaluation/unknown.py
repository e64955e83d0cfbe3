"""Measure how well images of unknown classes are told from those of known ones.

Each way to classify has a score of how sure it is: for neighbours the similarity of the nearest, as in a collection's
`min_similarity`; for the probe and a head the share of the likeliest class, as in `min_confidence`. The area under the
ROC curve (AUROC) of that score needs no bound: 1 is a perfect order, 0.5 is chance. Bounds are chosen without test
images, so that about `REJECTED` of the answers to images of known classes lie below them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagekin.training.evaluation.calibration import expected_calibration_error, softmax
from imagekin.training.evaluation.evaluate import Features, Labels, nearest_similarities
from imagekin.training.evaluation.linear_probe import HELD_OUT, LinearProbe, stratified_split

REJECTED = 0.05
"""Share of the answers to images of known classes that a bound rejects."""


@dataclass(frozen=True, slots=True)
class UnknownScores:
    """Scores of telling unknown test images from known ones; shares are fractions, 0 to 1.

    Attributes:
        unknown_count: test images of classes that the training images lack.
        knn_unknown_auroc: of the similarity of the nearest training image.
        knn_min_similarity: similarity that all but `REJECTED` of the training images have to the nearest other one.
        knn_known_rejected: share of the known test images below it.
        knn_unknown_rejected: likewise of the unknown ones.
        linear_unknown_auroc: of the linear probe's confidence.
        linear_min_confidence: bound of confidence, found on a fifth of the training images, by the others.
        linear_known_rejected: share of the known test images below it.
        linear_unknown_rejected: likewise of the unknown ones.
    """

    unknown_count: int
    knn_unknown_auroc: float
    knn_min_similarity: float
    knn_known_rejected: float
    knn_unknown_rejected: float
    linear_unknown_auroc: float
    linear_min_confidence: float
    linear_known_rejected: float
    linear_unknown_rejected: float


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Scores of an artifact's own linear head on test images.

    Attributes:
        head_accuracy: share of the images of the head's classes that it classifies correctly.
        head_ece: expected calibration error on these images, in 15 bins.
        head_count: number of these images.
        head_unknown_count: images of other classes.
        head_min_confidence: bound that came with the head; None when it has none.
        head_known_rejected: share of the images of the head's classes below it; None likewise.
        head_unknown_rejected: likewise of the other images; None as well when there are none.
        head_unknown_auroc: of the head's confidence; None when there are no other images.
    """

    head_accuracy: float
    head_ece: float
    head_count: int
    head_unknown_count: int
    head_min_confidence: float | None = None
    head_known_rejected: float | None = None
    head_unknown_rejected: float | None = None
    head_unknown_auroc: float | None = None


def unknown_scores(
    train_x: Features, train_y: Labels, known_x: Features, unknown_x: Features, *, penalty: float, seed: int = 0
) -> UnknownScores:
    """Score embeddings of test images of known and of unknown classes.

    Args:
        train_x: [N, D] float, embeddings of training images.
        train_y: [N] int, their classes, at least two of them.
        known_x: [M, D] float, embeddings of test images of these classes.
        unknown_x: [U, D] float, embeddings of test images of other classes, U >= 1.
        penalty: C of the linear probe.
        seed: of the split that the probe's bound is chosen on.
    """
    train_y = np.asarray(train_y)
    similarities = [nearest_similarities(train_x, queries) for queries in (known_x, unknown_x)]
    closest = float(np.quantile(nearest_similarities(train_x, train_x, itself=False), REJECTED))
    fitted, held_out = stratified_split(train_y, HELD_OUT, seed)
    # The loss is a sum over images: with fewer of them the same C would shrink the logits more, so C is raised.
    trial = LinearProbe.fit(train_x[fitted], train_y[fitted], penalty * len(train_y) / len(fitted))
    surest = float(np.quantile(_confidence(trial.logits(train_x[held_out])), REJECTED)) if len(held_out) else 0.0
    probe = LinearProbe.fit(train_x, train_y, penalty)
    confidences = [_confidence(probe.logits(queries)) for queries in (known_x, unknown_x)]
    return UnknownScores(
        unknown_count=len(unknown_x),
        knn_unknown_auroc=auroc(*similarities),
        knn_min_similarity=closest,
        knn_known_rejected=float(np.mean(similarities[0] < closest)),
        knn_unknown_rejected=float(np.mean(similarities[1] < closest)),
        linear_unknown_auroc=auroc(*confidences),
        linear_min_confidence=surest,
        linear_known_rejected=float(np.mean(confidences[0] < surest)),
        linear_unknown_rejected=float(np.mean(confidences[1] < surest)),
    )


def head_scores(logits: NDArray[np.floating], labels: Labels, bound: float | None) -> HeadScores:
    """Score a head's logits [M, C] by the images' classes [M], −1 where the head does not know the class.

    `bound` is its `min_confidence`. At least one image is of a known class.
    """
    shares = softmax(np.asarray(logits, dtype=np.float64))
    labels = np.asarray(labels)
    known, confidence = labels >= 0, shares.max(1)
    unknown = not known.all()
    right = shares[known].argmax(1) == labels[known]
    return HeadScores(
        float(np.mean(right)),
        expected_calibration_error(shares[known], labels[known]),
        int(known.sum()),
        int((~known).sum()),
        bound,
        None if bound is None else float(np.mean(confidence[known] < bound)),
        float(np.mean(confidence[~known] < bound)) if bound is not None and unknown else None,
        auroc(confidence[known], confidence[~known]) if unknown else None,
    )


def auroc(known: NDArray[np.floating], unknown: NDArray[np.floating]) -> float:
    """Return the probability that a known image scores higher than an unknown one; equal scores count half."""
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([1, 0], [len(known), len(unknown)])
    return float(roc_auc_score(truth, np.concatenate([known, unknown])))


def _confidence(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(softmax(logits).max(1), dtype=np.float64)
