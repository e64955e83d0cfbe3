"""Opinions on labels: the linear classifier's are those of one that has never seen the item."""

import numpy as np
import pytest

from imagekin.index.review.opinions import Judge, Vectors
from imagekin.types import Neighbour


def classes(count: int = 40) -> tuple[Vectors, list[str]]:
    """Return vectors of two classes, which one component tells apart amid others that do not, and their labels."""
    random = np.random.default_rng(0)
    vectors = random.normal(0, 0.2, (count, 12)).astype(np.float32)
    labels = ["ab"[number % 2] for number in range(count)]
    vectors[:, 0] = [0.5 if label == "a" else -0.5 for label in labels]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


def test_what_it_says_of_an_item_is_what_one_says_that_has_not_seen_it() -> None:
    vectors, labels = classes()
    judge = Judge()
    judge.learn(vectors[:30], labels[:30])
    judge.learn(vectors[30:], labels[30:])
    for item in (0, 1, 17):
        (opinion,) = judge.opinions(vectors[item : item + 1], [labels[item]], [[]])
        others = [number for number in range(len(labels)) if number != item]
        without = Judge()
        without.learn(vectors[others], [labels[number] for number in others])
        (expected,) = without.opinions(vectors[item : item + 1], [""], [[]])
        # Each has a mean and a ridge of its own, that of one item more or less.
        assert opinion.proposed == expected.proposed == labels[item]
        assert opinion.share == pytest.approx(expected.share, abs=0.02)


def test_a_wrong_label_is_seen_through_where_no_neighbour_votes() -> None:
    vectors, labels = classes()
    labels[3] = "a"
    judge = Judge()
    judge.learn(vectors, labels)
    opinions = judge.opinions(vectors, labels, [[] for _ in labels])
    assert [number for number, one in enumerate(opinions) if one.proposed != labels[number]] == [3]
    assert opinions[3].own < 0.3


def test_neighbours_and_classifier_count_half_each() -> None:
    vectors, labels = classes()
    judge = Judge()
    judge.learn(vectors, labels)
    (alone,) = judge.opinions(vectors[:1], [""], [[]])
    (both,) = judge.opinions(vectors[:1], [""], [[Neighbour("x", 0.9, "new")]])
    assert alone.proposed == "a"
    assert both.share == pytest.approx(0.5)
    assert both.own == 0


def test_without_labels_there_is_no_opinion() -> None:
    judge = Judge()
    judge.learn(np.eye(3, dtype=np.float32), ["", "", ""])
    (opinion,) = judge.opinions(np.eye(3, dtype=np.float32)[:1], [""], [[]])
    assert (opinion.proposed, opinion.margin) == ("", 0)
    # One class alone is no choice: its neighbours' votes remain.
    judge.learn(np.eye(3, dtype=np.float32), ["a", "a", ""])
    (opinion,) = judge.opinions(np.eye(3, dtype=np.float32)[:1], [""], [[Neighbour("x", 0.5, "a")]])
    assert (opinion.proposed, opinion.share) == ("a", 1)
