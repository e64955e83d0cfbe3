"""Classification is the weighted vote of Wu et al. (2018) or the nearest class mean, and can say "unknown"."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.types import ClassifyMethod, ClassifyOptions, VectorItem
from tests.index.reference import unit

DIM = 12
METHODS = list(ClassifyMethod)


def content_hash(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def items() -> list[VectorItem]:
    """Three noisy classes of 30, 20 and 10 items, and 15 items without a label."""
    random = np.random.default_rng(0)
    centres = unit(random.standard_normal((3, DIM)).astype(np.float32))
    members = [0] * 30 + [1] * 20 + [2] * 10
    noise = 0.25 * random.standard_normal((len(members) + 15, DIM)).astype(np.float32)
    made = [
        VectorItem(f"item-{number}", centres[member] + noise[number], "abc"[member], None, content_hash(number))
        for number, member in enumerate(members)
    ]
    return made + [VectorItem(f"unlabelled-{number}", centres[0] + noise[60 + number]) for number in range(15)]


@pytest.fixture
def collection(tmp_path: Path, items: list[VectorItem]) -> Iterator[LocalCollection]:
    with Catalog(tmp_path) as catalog:
        made = catalog.create("classes", space="ik1-a", dim=DIM)
        made.upsert(items)
        yield made


def test_votes_are_weighted_by_similarity(collection: LocalCollection, items: list[VectorItem]) -> None:
    random = np.random.default_rng(1)
    queries = random.standard_normal((9, DIM)).astype(np.float32)
    labelled = [item for item in items if item.label]
    vectors = unit(np.stack([item.vector for item in labelled])).astype(np.float64)
    for query, prediction in zip(
        queries, collection.classify(queries, ClassifyOptions(k=7, temperature=0.2)), strict=True
    ):
        similarity = vectors @ unit(query)[0].astype(np.float64)
        voting = np.argsort(-similarity)[:7]
        weights = np.exp(similarity[voting] / 0.2)
        shares = {
            name: weights[[labelled[place].label == name for place in voting]].sum() / weights.sum() for name in "abc"
        }
        best = max(shares, key=lambda name: shares[name])
        assert prediction.label == best
        assert prediction.confidence == pytest.approx(shares[best], abs=1e-5)
        assert prediction.nearest_similarity == pytest.approx(similarity.max(), abs=1e-6)
        assert dict(prediction.votes) == pytest.approx(
            {name: share for name, share in shares.items() if share}, abs=1e-5
        )
        assert [share for _, share in prediction.votes] == sorted(
            (share for _, share in prediction.votes), reverse=True
        )


def test_the_nearest_class_mean_wins(collection: LocalCollection, items: list[VectorItem]) -> None:
    queries = np.random.default_rng(2).standard_normal((9, DIM)).astype(np.float32)
    means = {
        name: unit(unit(np.stack([item.vector for item in items if item.label == name])).mean(axis=0))[0]
        for name in "abc"
    }
    options = ClassifyOptions(ClassifyMethod.PROTOTYPE, temperature=0.5)
    for query, prediction in zip(queries, collection.classify(queries, options), strict=True):
        similarity = {name: float(mean @ unit(query)[0]) for name, mean in means.items()}
        total = sum(math.exp(value / 0.5) for value in similarity.values())
        best = max(similarity, key=lambda name: similarity[name])
        assert prediction.label == best
        assert prediction.nearest_similarity == pytest.approx(similarity[best], abs=1e-5)
        assert prediction.confidence == pytest.approx(math.exp(similarity[best] / 0.5) / total, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by", ["hash", "key"])
def test_an_item_left_out_is_as_if_it_were_not_there(
    collection: LocalCollection, items: list[VectorItem], method: ClassifyMethod, by: str, tmp_path: Path
) -> None:
    numbers = [0, 31, 55]
    queries = np.stack([items[number].vector for number in numbers])
    if by == "hash":
        options = ClassifyOptions(method, k=5, exclude_hashes=[content_hash(number) for number in numbers])
    else:
        options = ClassifyOptions(method, k=5, exclude_keys=[frozenset([items[number].key]) for number in numbers])
    predictions = collection.classify(queries, options)
    for number, query, prediction in zip(numbers, queries, predictions, strict=True):
        collection.delete([items[number].key])
        (without,) = collection.classify(query[None], ClassifyOptions(method, k=5))
        collection.upsert([items[number]])
        assert prediction.label == without.label
        assert dict(prediction.votes) == pytest.approx(dict(without.votes), abs=1e-6)
        assert prediction.nearest_similarity == pytest.approx(without.nearest_similarity, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_it_knows_when_it_does_not_know(
    collection: LocalCollection, items: list[VectorItem], method: ClassifyMethod
) -> None:
    query = items[0].vector[None]
    (known,) = collection.classify(query, ClassifyOptions(method, k=60, temperature=1.0))
    assert known.label == "a"
    (far,) = collection.classify(-query, ClassifyOptions(method, min_similarity=0.9))
    assert far.label is None
    assert far.confidence > 0
    assert far.votes
    (unsure,) = collection.classify(query, ClassifyOptions(method, k=60, temperature=1.0, min_confidence=0.999))
    assert unsure.label is None
    assert unsure.confidence == known.confidence


@pytest.mark.parametrize("method", METHODS)
def test_without_labels_everything_is_unknown(tmp_path: Path, method: ClassifyMethod) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("bare", space="ik1-a", dim=2)
        for _ in range(2):
            (prediction,) = collection.classify(np.ones((1, 2), np.float32), ClassifyOptions(method))
            assert (prediction.label, prediction.confidence) == (None, 0.0)
            assert (prediction.nearest_similarity, prediction.votes) == (0.0, ())
            collection.upsert([VectorItem("a", np.ones(2, np.float32))])


@pytest.mark.parametrize("method", METHODS)
def test_writes_count_at_once(collection: LocalCollection, items: list[VectorItem], method: ClassifyMethod) -> None:
    query = items[0].vector[None]
    assert collection.classify(query, ClassifyOptions(method))[0].label == "a"
    collection.upsert([VectorItem(item.key, item.vector, "renamed") for item in items if item.label == "a"])
    assert collection.classify(query, ClassifyOptions(method))[0].label == "renamed"
    collection.delete([item.key for item in items if item.label == "a"])
    assert collection.classify(query, ClassifyOptions(method))[0].label in ("b", "c")


def test_at_most_ten_votes_ties_by_label(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("many", space="ik1-a", dim=2)
        collection.upsert([VectorItem(f"k{n}", np.ones(2, np.float32), f"label-{n:02d}") for n in range(20)][::-1])
        (prediction,) = collection.classify(np.ones((1, 2), np.float32), ClassifyOptions(k=20))
        assert [name for name, _ in prediction.votes] == [f"label-{n:02d}" for n in range(10)]
        assert prediction.label == "label-00"
        assert prediction.confidence == pytest.approx(1 / 20)
