"""Grouped, diverse and example searches answer as their definitions, transcribed to NumPy."""

from collections.abc import Iterator

import numpy as np
import pytest

from imagekin.errors import InvalidArgumentError
from imagekin.index.filters.parser import parse
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.search import grouping
from imagekin.index.search.grouping import combine_examples
from imagekin.index.types import SearchOptions, VectorItem
from imagekin.types import Vector
from tests.index.reference import nearest, unit

DIM = 8
COUNT = 300


@pytest.fixture(scope="module")
def items() -> dict[str, VectorItem]:
    random = np.random.default_rng(5)
    made = [
        # One group is large, so that it fills up early; some items are of none.
        VectorItem(
            f"k{n:03d}",
            random.standard_normal(DIM).astype(np.float32),
            None if n % 7 == 0 else "big" if n % 3 else f"class-{n % 20}",
            {"shelf": n % 5, "n": n} if n % 11 else {"n": n},
        )
        for n in range(COUNT)
    ]
    return {item.key: item for item in made}


@pytest.fixture(scope="module")
def collection(items: dict[str, VectorItem], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCollection]:
    with Catalog(tmp_path_factory.mktemp("rich")) as catalog:
        made = catalog.create("rich", space="ik1-a", dim=DIM)
        made.upsert(list(items.values()))
        yield made


QUERIES = np.random.default_rng(6).standard_normal((4, DIM)).astype(np.float32)


def group(item: VectorItem, field: str) -> object:
    return item.label if field == "label" else (item.payload or {}).get("shelf")


@pytest.mark.parametrize("field", ["label", "payload.shelf"])
@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_group_has_at_most_so_many(
    collection: LocalCollection,
    items: dict[str, VectorItem],
    field: str,
    k: int,
    size: int,
    rounds: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouping, "_ROUNDS", rounds)
    options = SearchOptions(k, group_by=field, group_size=size, filter=parse("payload.n > 20"))
    matching = {key: item for key, item in items.items() if item.payload and item.payload["n"] > 20}  # type: ignore[operator]
    for query, found in zip(QUERIES, collection.search(QUERIES, options), strict=True):
        taken: dict[object, int] = {}
        expected: list[tuple[str, float]] = []
        for key, similarity in nearest(matching, query, COUNT):
            value = group(items[key], field)
            if value is not None and taken.get(value, 0) < size and len(expected) < k:
                taken[value] = taken.get(value, 0) + 1
                expected.append((key, similarity))
        assert [one.key for one in found] == [key for key, _ in expected]
        np.testing.assert_allclose([one.similarity for one in found], [value for _, value in expected], atol=1e-6)


@pytest.mark.parametrize("diversity", [0.3, 1.0])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_diversity_is_maximal_marginal_relevance(
    collection: LocalCollection, items: dict[str, VectorItem], diversity: float, k: int
) -> None:
    for query, found in zip(QUERIES, collection.search(QUERIES, SearchOptions(k, diversity=diversity)), strict=True):
        pool = nearest(items, query, max(100, 10 * k))
        vectors = {key: unit(items[key].vector)[0].astype(np.float64) for key, _ in pool}
        chosen: list[str] = [pool[0][0]]
        while len(chosen) < k:
            scores = {
                key: (1 - diversity) * similarity
                - diversity * max(float(vectors[key] @ vectors[other]) for other in chosen)
                for key, similarity in pool
                if key not in chosen
            }
            chosen.append(max(scores, key=lambda key: scores[key]))
        assert {one.key for one in found} == set(chosen)
        similarities = [one.similarity for one in found]
        assert similarities == sorted(similarities, reverse=True)


def test_groups_diversity_bounds_and_exclusions_go_together(
    collection: LocalCollection, items: dict[str, VectorItem]
) -> None:
    options = SearchOptions(
        20,
        min_similarity=0.1,
        group_by="payload.shelf",
        group_size=2,
        diversity=0.5,
        with_payload=True,
        exclude=[frozenset(["k001", "k002"])] * 4,
    )
    for found in collection.search(QUERIES, options):
        assert 0 < len(found) <= 10
        assert all(one.similarity >= 0.1 and one.key not in ("k001", "k002") for one in found)
        shelves = [one.payload["shelf"] for one in found if one.payload]
        assert max(shelves.count(shelf) for shelf in shelves) <= 2


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (SearchOptions(group_by="key"), "group_by"),
        (SearchOptions(group_by="shelf"), "group_by"),
        (SearchOptions(group_by="label", group_size=0), "group_size"),
        (SearchOptions(diversity=1.5), "diversity"),
        (SearchOptions(201, diversity=0.1), "k"),
        (SearchOptions(diversity=float("nan")), "diversity"),
    ],
)
def test_what_cannot_be_asked_is_refused(collection: LocalCollection, options: SearchOptions, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        collection.search(QUERIES, options)
    assert caught.value.field == field


def test_examples_are_the_difference_of_their_means() -> None:
    positive: Vector = unit(QUERIES[:2])
    negative: Vector = unit(QUERIES[2:])
    expected = positive.mean(axis=0) - negative.mean(axis=0)
    np.testing.assert_allclose(combine_examples(positive, negative), expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(combine_examples(positive[:1], negative[:0]), positive[0], atol=1e-6)
    with pytest.raises(InvalidArgumentError, match="cancel out"):
        combine_examples(positive, positive)
    with pytest.raises(InvalidArgumentError, match="at least one"):
        combine_examples(positive[:0], negative)
