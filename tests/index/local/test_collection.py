"""A collection refuses what it cannot keep, tells two embedding spaces apart, and reports what it holds."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.types import ClassifyOptions, SearchOptions, VectorItem
from imagekin.types import Outcome

DIM = 4
ONE = np.array([1, 0, 0, 0], np.float32)


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[LocalCollection]:
    with Catalog(tmp_path) as catalog:
        yield catalog.create("shop", space="ik1-a", dim=DIM)


def with_vector(*values: float) -> VectorItem:
    return VectorItem("key", np.array(values, np.float32))


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (VectorItem("", ONE), "key"),
        (VectorItem("a\nb", ONE), "key"),
        (VectorItem("a\x00b", ONE), "key"),
        (VectorItem("a\x7f", ONE), "key"),
        (VectorItem("\ud800", ONE), "key"),
        (VectorItem("é" * 513, ONE), "key"),
        (VectorItem("key", ONE, label="x" * 1025), "label"),
        (VectorItem("key", ONE, label="a\tb"), "label"),
        (VectorItem("key", ONE, label="\udfff"), "label"),
        (VectorItem("key", ONE, payload={"text": "x" * 65_536}), "payload"),
        (VectorItem("key", ONE, payload={"number": math.nan}), "payload"),
        (VectorItem("key", ONE, payload={"number": -math.inf}), "payload"),
        (VectorItem("key", ONE, payload={"number": 10**5000}), "payload"),
        (VectorItem("key", ONE, payload={"text": "\ud800"}), "payload"),
        (VectorItem("key", ONE, payload={"thing": object()}), "payload"),  # type: ignore[dict-item]
        (VectorItem("key", ONE, content_hash=b"short"), "content_hash"),
        (with_vector(1, 0, 0), "vector"),
        (with_vector(1, 0, 0, 0, 0), "vector"),
        (with_vector(0, 0, 0, 0), "vector"),
        (with_vector(1, math.nan, 0, 0), "vector"),
        (with_vector(1, math.inf, 0, 0), "vector"),
        (VectorItem("key", np.array([1e300, 0, 0, 0])), "vector"),
        (VectorItem("key", np.array(["a"] * 4)), "vector"),
        (VectorItem("key", np.ones((2, 4), np.float32)), "vector"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_is_written(
    collection: LocalCollection, item: VectorItem, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        collection.upsert([VectorItem("good", ONE), item])
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert collection.count() == 0
    assert collection.info().sequence == 0


def test_a_deep_payload_is_refused(collection: LocalCollection) -> None:
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(InvalidArgumentError, match="nested"):
        collection.upsert([VectorItem("key", ONE, payload={"deep": deep})])
    collection.upsert([VectorItem("wide", ONE, payload={"wide": [[number] for number in range(500)]})])


@pytest.mark.parametrize(
    "key",
    ["x" * 1024, "../../etc/passwd", "'; DROP TABLE item; --", "%", "_", '"', "\\", "🙂" * 256, " ", "\u2028", "null"],
)
def test_hostile_keys_are_only_keys(collection: LocalCollection, key: str) -> None:
    collection.upsert([VectorItem(key, ONE, label=key, payload={key: key}), VectorItem("other", -ONE)])
    (stored,) = collection.get([key])
    assert stored is not None
    assert (stored.key, stored.label, stored.payload) == (key, key, {key: key})
    assert collection.search(ONE[None], SearchOptions(k=1))[0][0].key == key
    assert collection.delete([key]).deleted == 1
    assert [item.key for item in collection.scroll(0, 10)] == ["other"]


def test_payload_numbers_keep_their_precision(collection: LocalCollection) -> None:
    payload = {"large": 2**200, "small": 1e-300, "sum": 0.1 + 0.2, "true": True, "none": None, "nested": {"a": [1, 2]}}
    collection.upsert([VectorItem("key", ONE, payload=payload)])
    (stored,) = collection.get(["key"])
    assert stored is not None
    assert stored.payload == payload


def test_any_length_is_brought_to_one(collection: LocalCollection) -> None:
    collection.upsert([with_vector(1, 1, 1, 1)])
    for scale in (3e38, 1e-38, 1e-45, 7.0):
        collection.upsert([with_vector(scale, scale, 0, 0)])
        (stored,) = collection.get(["key"])
        assert stored is not None
        np.testing.assert_allclose(stored.vector, [0.5**0.5, 0.5**0.5, 0, 0], rtol=1e-6)
    # What came out goes in again unchanged.
    (stored,) = collection.get(["key"])
    assert stored is not None
    before = stored.vector
    collection.upsert([VectorItem("key", before)])
    (again,) = collection.get(["key"])
    assert again is not None
    assert again.vector.tobytes() == before.tobytes()


def test_of_equal_keys_the_last_one_counts(collection: LocalCollection) -> None:
    result = collection.upsert(
        [VectorItem("a", ONE, label="first"), VectorItem("b", ONE), VectorItem("a", -ONE, label="second")]
    )
    assert result.outcomes == (Outcome.INSERTED, Outcome.INSERTED, Outcome.REPLACED)
    (stored,) = collection.get(["a"])
    assert stored is not None
    assert stored.label == "second"
    assert collection.count() == 2


def test_nothing_to_do_is_no_write(collection: LocalCollection) -> None:
    assert collection.upsert([]).sequence == 0
    assert collection.delete([]) == (0, 0)
    assert collection.delete(["missing"]) == (0, 0)
    assert collection.get([]) == []
    assert collection.content_hashes([]) == {}
    assert collection.search(np.empty((0, DIM), np.float32), SearchOptions()) == []
    assert collection.search(ONE[None], SearchOptions()) == [[]]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (SearchOptions(k=0), "k"),
        (SearchOptions(k=-1), "k"),
        (SearchOptions(k=10_001), "k"),
        (SearchOptions(min_similarity=1.5), "min_similarity"),
        (SearchOptions(min_similarity=math.nan), "min_similarity"),
        (SearchOptions(exclude=[frozenset("a"), frozenset("b")]), "exclude"),
    ],
)
def test_a_search_out_of_range_is_refused(collection: LocalCollection, options: SearchOptions, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        collection.search(ONE[None], options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "options",
    [
        ClassifyOptions(k=0),
        ClassifyOptions(temperature=0),
        ClassifyOptions(temperature=math.inf),
        ClassifyOptions(min_confidence=1.1),
        ClassifyOptions(min_similarity=-2),
        ClassifyOptions(exclude_hashes=[None] * 3),
    ],
)
def test_a_classification_out_of_range_is_refused(collection: LocalCollection, options: ClassifyOptions) -> None:
    with pytest.raises(InvalidArgumentError):
        collection.classify(ONE[None], options)


@pytest.mark.parametrize(
    "query",
    [np.ones((1, 3)), np.zeros((1, DIM)), np.full((1, DIM), np.nan), np.ones((1, DIM, 1)), np.array([["a"] * DIM])],
)
def test_a_query_out_of_range_is_refused(collection: LocalCollection, query: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="query"):
        collection.search(query, SearchOptions())


def test_two_spaces_never_mix(collection: LocalCollection) -> None:
    collection.check_space("ik1-a")
    with pytest.raises(FailedPreconditionError, match=r"ik1-a.*ik1-b"):
        collection.check_space("ik1-b")


def test_info_tells_what_is_there(collection: LocalCollection) -> None:
    collection.upsert([VectorItem("a", ONE, label="x"), VectorItem("b", ONE), VectorItem("c", ONE, label="")])
    info = collection.info()
    assert (info.name, info.space, info.dim, info.count, info.labelled) == ("shop", "ik1-a", DIM, 3, 1)
    assert info.index_kind == "flat"
    assert info.disk_bytes > 4096


def test_scroll_pages_cover_everything_once_in_the_order_of_the_last_write(collection: LocalCollection) -> None:
    collection.upsert([VectorItem(f"k{number:02d}", ONE) for number in range(25)])
    first = collection.scroll(0, 10)
    collection.upsert([VectorItem("k03", -ONE)])  # rewritten: it comes again, at the end
    collection.delete(["k15"])
    rest = collection.scroll(first[-1].sequence, 10)
    rest += collection.scroll(rest[-1].sequence, 10)
    keys = [item.key for item in rest]
    assert keys == [f"k{number:02d}" for number in range(10, 25) if number != 15] + ["k03"]
    assert collection.scroll(rest[-1].sequence, 10) == []


def test_after_closing_every_call_says_so(collection: LocalCollection) -> None:
    collection.close()
    collection.close()
    with pytest.raises(FailedPreconditionError, match="closed"):
        collection.upsert([VectorItem("a", ONE)])
    with pytest.raises(FailedPreconditionError, match="closed"):
        collection.search(ONE[None], SearchOptions())
    with pytest.raises(FailedPreconditionError, match="closed"):
        collection.get(["a"])
