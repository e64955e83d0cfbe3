"""Measure calibration: of the answers given with 80 % confidence, four out of five should be right.

The expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599) of the two ways to classify by
embeddings: the votes of nearest neighbours, and the linear probe; each unscaled, and with its confidences scaled by one
temperature (Guo et al., section 4.2) fitted on a fifth of the training images. An encoder that was trained on the same
images knows their labels, so the fitted temperature may be too low; the errors on test images show that.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError
from imagekin.training.evaluation.evaluate import Features, Labels, knn_votes
from imagekin.training.evaluation.linear_probe import HELD_OUT, LinearProbe, choose_penalty, stratified_split

_BINS = 15
_BISECTIONS = 50
COLDEST, HOTTEST = 0.02, 50.0
"""Temperatures between which the best is looked for."""


@dataclass(frozen=True, slots=True)
class CalibrationErrors:
    """Expected calibration errors on the test images, 0 to 1, over 15 bins of equal width.

    Attributes:
        knn_ece: of the votes' shares.
        knn_ece_scaled: of the votes' shares with the fitted temperature.
        knn_scale: that temperature; above 1 the votes were overconfident.
        linear_ece: of the linear probe's probabilities.
        linear_ece_scaled: of these with the fitted temperature.
        linear_scale: that temperature.
    """

    knn_ece: float
    knn_ece_scaled: float
    knn_scale: float
    linear_ece: float
    linear_ece_scaled: float
    linear_scale: float


def calibration(
    train_x: Features,
    train_y: Labels,
    test_x: Features,
    test_y: Labels,
    *,
    k: int = 20,
    temperature: float = 0.07,
    penalty: float | None = None,
    seed: int = 0,
) -> CalibrationErrors:
    """Measure how calibrated both classifiers of embeddings are.

    Both temperatures are fitted on a stratified fifth of the training embeddings, classified by the other four fifths.
    The errors are those of the test embeddings, classified by all training embeddings.

    Args:
        train_x: [N, D] float embeddings.
        train_y: [N] int >= 0, their classes, at least two of them.
        test_x: [M, D] float embeddings.
        test_y: [M] int >= 0, classes that are also in `train_y`.
        k: neighbours that vote.
        temperature: of their votes.
        penalty: C of the linear probe; None chooses it as `linear_probe` does.
        seed: of the split.

    Raises:
        InvalidArgumentError: the training embeddings are all of one class, or no class has two of them.
    """
    train_y, test_y = np.asarray(train_y), np.asarray(test_y)
    fitted, held_out = stratified_split(train_y, HELD_OUT, seed)
    if len(np.unique(train_y)) < 2 or not len(held_out):
        raise InvalidArgumentError(
            "calibration needs training images of at least two classes, two of one class or more"
        )
    if penalty is None:
        penalty = choose_penalty(train_x, train_y, seed=seed)
    classes, truth = np.unique(train_y, return_inverse=True)

    # The split leaves at least one image of every class in the gallery, so the columns are those of `classes`.
    def votes(gallery: NDArray[np.int64], queries: Features) -> NDArray[np.float64]:
        shares = knn_votes(train_x[gallery], truth[gallery], queries, k=k, temperature=temperature)
        return log_votes(shares, min(k, len(gallery)))

    def probed(rows: NDArray[np.int64], queries: Features) -> NDArray[np.float64]:
        # The loss is a sum over images: with fewer of them the same C would shrink the logits more, so C is raised.
        strength = penalty * len(train_y) / len(rows)
        return LinearProbe.fit(train_x[rows], truth[rows], strength).logits(queries)

    everything = np.arange(len(train_y))
    answers = np.searchsorted(classes, test_y)
    figures = []
    for classify in (votes, probed):
        scale = fit_temperature(classify(fitted, train_x[held_out]), truth[held_out])
        logits = classify(everything, test_x)
        plain, scaled = (expected_calibration_error(softmax(logits / by), answers) for by in (1.0, scale))
        figures += [plain, scaled, scale]
    return CalibrationErrors(*figures)


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: Labels, *, bins: int = _BINS, adaptive: bool = False
) -> float:
    """Return Σ_b |B_b|/M · |accuracy(B_b) − mean confidence(B_b)|, the confidence being the highest probability.

    Args:
        probabilities: [M, C], rows that sum to 1.
        labels: [M] int, the right columns.
        bins: number of bins of confidence.
        adaptive: bins of equal number instead of equal width in (0, 1] (Nguyen and O'Connor 2015).

    Raises:
        InvalidArgumentError: there are no answers, or no bins.
    """
    if not len(probabilities) or bins < 1:
        raise InvalidArgumentError("a calibration error needs at least one answer and one bin")
    confidence = np.asarray(probabilities, dtype=np.float64).max(1)
    right = np.argmax(probabilities, axis=1) == np.asarray(labels)
    if adaptive:
        place = np.empty(len(confidence), dtype=np.int64)
        place[np.argsort(confidence, kind="stable")] = np.arange(len(confidence)) * bins // len(confidence)
    else:
        place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def fit_temperature(logits: NDArray[np.floating], labels: Labels) -> float:
    """Return the T that maximises the likelihood of the labels under softmax(logits / T), within 0.02 and 50.

    The negative log-likelihood is convex in 1/T, so its slope is bisected.

    Args:
        logits: [M, C] float, finite.
        labels: [M] int, the right columns.
    """
    values = np.asarray(logits, dtype=np.float64)
    wanted = values[np.arange(len(values)), np.asarray(labels)].mean()
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(_BISECTIONS):
        middle = float(np.sqrt(low * high))
        expected = (softmax(values * middle) * values).sum(1).mean()
        low, high = (low, middle) if expected > wanted else (middle, high)
    return float(1 / np.sqrt(low * high))


def log_votes(shares: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return logits of votes' shares [M, C], as if one more neighbour voted for all classes equally.

    Otherwise a class without a neighbour would have probability 0, and a single test image of such a class would
    determine the temperature.
    """
    return np.asarray(np.log((k * shares + 1 / shares.shape[1]) / (k + 1)), dtype=np.float64)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities [M, C] of logits [M, C]."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True), dtype=np.float64)
