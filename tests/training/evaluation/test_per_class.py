"""Scores of each class are those of scikit-learn, and the means over classes weigh all classes alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from imagekin.training.evaluation.evaluate import score
from imagekin.training.evaluation.per_class import score_classes

labels = st.integers(0, 4)


@settings(deadline=None)
@given(st.lists(st.tuples(labels, labels, labels), min_size=1, max_size=40))
def test_recall_and_precision_are_the_usual_ones(answers: list[tuple[int, int, int]]) -> None:
    true, knn, linear = np.array(answers).T
    found = score_classes(true, knn, linear, ("a", "b", "c", "d", "e"))
    present = np.unique(true)
    assert [each.name for each in found] == [("a", "b", "c", "d", "e")[label] for label in present]
    assert sum(each.images for each in found) == len(true)
    for predicted, recall, precision in (
        (knn, [each.knn_recall for each in found], [each.knn_precision for each in found]),
        (linear, [each.linear_recall for each in found], [each.linear_precision for each in found]),
    ):
        wanted = precision_recall_fscore_support(true, predicted, labels=present, zero_division=0.0)
        assert recall == pytest.approx(wanted[1])
        assert [each or 0.0 for each in precision] == pytest.approx(wanted[0])
        assert [each is None for each in precision] == [label not in predicted for label in present]


def test_a_small_class_counts_as_much_as_a_large_one_in_the_mean_over_classes() -> None:
    gallery, own = np.eye(3, 4), np.arange(3)
    test_x = np.repeat(gallery[[0, 0]], (9, 1), axis=0)
    scores = score(gallery, own, test_x, np.array([0] * 9 + [1]), k=1, names=("a", "b", "c"))
    assert scores.knn_accuracy == pytest.approx(0.9)
    assert scores.knn_macro_accuracy == pytest.approx(0.5)
    written = scores.to_json()["per_class"]
    assert isinstance(written, list)
    assert [(each["name"], each["images"], each["knn_recall"]) for each in written if isinstance(each, dict)] == [
        ("a", 9, 1.0),
        ("b", 1, 0.0),
    ]
