"""What a review finds in the neighbours of items."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagekin.index.review.duplicates import Pairs, connected
from imagekin.index.review.findings import Gatherer
from imagekin.index.review.opinions import Judge, votes
from imagekin.types import Neighbour


def near(*described: tuple[str, float, str | None]) -> list[Neighbour]:
    return [Neighbour(key, similarity, label, None, None) for key, similarity, label in described]


def add(gatherer: Gatherer, key: str, label: str, neighbours: list[Neighbour]) -> None:
    """Take an item with the opinion that its neighbours' votes alone make."""
    (opinion,) = Judge(linear=False).opinions(np.zeros((1, 2), np.float32), [label], [neighbours])
    gatherer.add(key, label, neighbours, opinion)


def test_a_label_that_no_neighbour_has_is_suspected_the_surest_first() -> None:
    gatherer = Gatherer()
    add(gatherer, "right", "cat", near(("a", 0.9, "cat"), ("b", 0.8, "dog")))
    add(gatherer, "unsure", "dog", near(("a", 0.9, "cat"), ("b", 0.88, "dog")))
    add(gatherer, "wrong", "dog", near(("a", 0.9, "cat"), ("b", 0.9, "cat")))
    add(gatherer, "unlabelled", "", near(("a", 0.9, "cat")))
    add(gatherer, "alone", "dog", near(("a", 0.9, None)))
    found = gatherer.labels()
    assert [(one.key, one.proposed) for one in found] == [("wrong", "cat"), ("unsure", "cat")]
    assert found[0].score == pytest.approx(1)
    assert 0.5 < found[1].score < 1


def test_votes_weigh_by_similarity() -> None:
    shares = votes(near(("a", 0.9, "cat"), ("b", 0.5, "dog"), ("c", 0.5, "dog"), ("d", 0.9, None)))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["cat"] > 0.9


def test_near_duplicates_are_grouped_across_labels() -> None:
    pairs = Pairs(0.95)
    pairs.add("a", "cat", near(("b", 0.99, "dog"), ("x", 0.94, "cat")))
    pairs.add("b", "dog", near(("a", 0.99, "cat"), ("c", 0.96, "dog")))
    pairs.add("c", "dog", near(("b", 0.96, "dog")))
    pairs.add("x", "cat", near(("y", 0.999, None)))
    pairs.add("y", "", near(("x", 0.999, "cat")))
    found = [(one.group, one.key, one.nearest) for one in pairs.findings({})]
    assert found == [(1, "x", "y"), (1, "y", "x"), (2, "a", "b"), (2, "b", "a"), (2, "c", "b")]


def test_what_is_like_nothing_is_an_outlier() -> None:
    gatherer = Gatherer()
    for number in range(50):
        add(gatherer, f"k{number}", "", near(("n", 0.8 + number / 1_000, None)))
    add(gatherer, "odd", "", near(("n", 0.2, None)))
    assert [one.key for one in gatherer.outliers()] == ["odd"]


def test_nothing_is_found_in_nothing() -> None:
    gatherer, pairs = Gatherer(), Pairs(0.9)
    add(gatherer, "only", "cat", [])
    pairs.add("only", "cat", [])
    assert gatherer.labels() == gatherer.outliers() == pairs.findings({}) == []


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh"))))
def test_groups_are_the_components_of_the_graph(pairs: list[tuple[str, str]]) -> None:
    names = sorted({name for pair in pairs for name in pair})
    reach = np.eye(len(names), dtype=bool)
    for one, other in pairs:
        reach[names.index(one), names.index(other)] = reach[names.index(other), names.index(one)] = True
    for middle in range(len(names)):
        reach |= np.outer(reach[:, middle], reach[middle])
    expected = {tuple(name for name, there in zip(names, row, strict=True) if there) for row in reach}
    assert {tuple(group) for group in connected(iter(pairs))} == expected
