"""Calibration errors and temperatures are what their definitions say, and a perfect forecaster has none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError
from imagekin.training.evaluation.calibration import (
    calibration,
    expected_calibration_error,
    fit_temperature,
    log_votes,
    softmax,
)
from imagekin.training.evaluation.evaluate import knn_predict, knn_votes


def forecasts(count: int, seed: int, classes: int = 4) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return logits and labels that were drawn with exactly the probabilities that the logits state."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(count, classes))
    cumulated = softmax(logits).cumsum(1)
    return logits, (random.random((count, 1)) > cumulated[:, :-1]).sum(1)


def slow_ece(probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int) -> float:
    """Guo et al., eq. 3, one bin at a time."""
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    total = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            gap = np.mean(predicted[inside] == labels[inside]) - confidence[inside].mean()
            total += inside.mean() * abs(gap)
    return float(total)


def test_ece_is_the_papers_definition() -> None:
    logits, labels = forecasts(500, 0)
    probabilities = softmax(3 * logits)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(slow_ece(probabilities, labels, 15))
    assert expected_calibration_error(probabilities, labels, bins=4) == pytest.approx(
        slow_ece(probabilities, labels, 4)
    )


def test_ece_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])
    # Two answers at 0.9 of which one is right, two at 0.6 of which both are: (0.4 + 0.4) / 2.
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.4)
    assert expected_calibration_error(probabilities, labels, adaptive=True, bins=2) == pytest.approx(0.4)
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(0.0)
    with pytest.raises(InvalidArgumentError):
        expected_calibration_error(probabilities[:0], labels[:0])


@pytest.mark.parametrize("adaptive", [False, True])
def test_who_states_the_true_probabilities_has_no_error(adaptive: bool) -> None:
    logits, labels = forecasts(50_000, 1)
    assert expected_calibration_error(softmax(logits), labels, adaptive=adaptive) < 0.01
    assert expected_calibration_error(softmax(4 * logits), labels, adaptive=adaptive) > 0.1


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(0.1, 20))
def test_the_temperature_undoes_a_scale_of_the_logits(scale: float) -> None:
    logits, labels = forecasts(20_000, 2)
    assert fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.05)


def test_the_temperature_is_the_likeliest() -> None:
    logits, labels = forecasts(300, 3)

    def surprise(temperature: float) -> float:
        return float(-np.log(softmax(logits / temperature)[np.arange(300), labels]).mean())

    fitted = fit_temperature(logits, labels)
    assert all(surprise(fitted) <= surprise(fitted * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_votes_are_shares_and_their_highest_is_the_answer() -> None:
    random = np.random.default_rng(0)
    train_x, train_y, test_x = random.normal(size=(80, 8)), random.integers(5, size=80), random.normal(size=(40, 8))
    shares = knn_votes(train_x, train_y, test_x, k=7)
    assert shares.sum(1) == pytest.approx(np.ones(40))
    assert shares.argmax(1).tolist() == knn_predict(train_x, train_y, test_x, k=7).tolist()
    softened = softmax(log_votes(shares, 7))
    assert softened.argmax(1).tolist() == shares.argmax(1).tolist()
    assert softened == pytest.approx((7 * shares + 1 / 5) / 8)


def test_classes_that_overlap_are_answered_with_fitting_confidence() -> None:
    random = np.random.default_rng(0)
    labels = np.array([3, 7, 9])[random.integers(3, size=4000)]
    points = np.eye(10)[labels] + 0.8 * random.normal(size=(4000, 10))
    sets = (points[:2000], labels[:2000], points[2000:], labels[2000:])
    found = calibration(*sets, k=20, temperature=0.02, penalty=1.0)
    # The train and test points are of one distribution, so what is fitted on the first holds for the second.
    assert found.linear_ece < 0.05
    assert found.linear_scale == pytest.approx(1, abs=0.2)
    assert found.knn_scale > 1.2
    assert found.knn_ece > 2 * found.knn_ece_scaled
    assert found == calibration(*sets, k=20, temperature=0.02, penalty=1.0)
    # A probe whose penalty is far too strong is far too unsure; the temperature mends that.
    unsure = calibration(*sets, k=20, penalty=1e-4)
    assert unsure.linear_ece > 4 * unsure.linear_ece_scaled
    assert unsure.linear_scale < 0.5


def test_two_classes_have_two_columns_and_one_class_is_refused() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(2, size=400)
    points = np.eye(4)[labels] + random.normal(size=(400, 4))
    found = calibration(points[:200], labels[:200], points[200:], labels[200:])
    assert 0 <= found.linear_ece < 0.2
    with pytest.raises(InvalidArgumentError, match="two classes"):
        calibration(points, np.zeros(400, dtype=int), points, np.zeros(400, dtype=int))
