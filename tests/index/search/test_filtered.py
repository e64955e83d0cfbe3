"""Filters are pushed into everything: search, classification, counting, scrolling, facets and deletion agree."""

import itertools
import sqlite3
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagekin.errors import DataLossError, InvalidArgumentError
from imagekin.index.filters import payload_columns
from imagekin.index.filters.conditions import (
    MISSING,
    Comparison,
    Condition,
    Operator,
    Scalar,
    matches,
    path_of,
    value_at,
)
from imagekin.index.filters.parser import parse
from imagekin.index.local import store
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.types import ClassifyMethod, ClassifyOptions, SearchOptions, VectorItem
from imagekin.types import ItemUpdate
from tests.index.conditions import FIELDS, LABELS, PAYLOADS, conditions
from tests.index.reference import assert_agree, nearest

DIM = 6


def vector(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[LocalCollection]:
    with Catalog(tmp_path) as catalog:
        yield catalog.create("shop", space="ik1-a", dim=DIM)


def meeting(items: dict[str, VectorItem], condition: Condition) -> dict[str, VectorItem]:
    return {key: item for key, item in items.items() if matches(condition, key, item.label, item.payload)}


def check_all(collection: LocalCollection, items: dict[str, VectorItem], condition: Condition) -> None:
    """Assert that every way to ask answers as the meaning of the condition, item by item."""
    wanted = meeting(items, condition)
    assert collection.count(condition) == len(wanted)
    scrolled, after = [], 0
    while page := collection.scroll(after, 2, condition):
        scrolled += [item.key for item in page]
        after = page[-1].sequence
    assert scrolled == [item.key for item in collection.scroll(0, 1000) if item.key in wanted]
    queries = np.stack([vector(1000), vector(1001)])
    for k in (1, 50):
        for query, found in zip(queries, collection.search(queries, SearchOptions(k, filter=condition)), strict=True):
            assert len(found) == min(k, len(wanted))
            if wanted:
                assert_agree(found, nearest(wanted, query, k))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(LABELS, PAYLOADS), min_size=1, max_size=10),
    st.lists(st.tuples(LABELS, PAYLOADS), max_size=5),
    st.lists(conditions(), min_size=1, max_size=3),
    st.sampled_from([1, 1024]),
)
def test_every_way_to_ask_answers_alike(
    first: list[tuple[str | None, Any]], then: list[tuple[str | None, Any]], wanted: list[Condition], compact_from: int
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Catalog(Path(folder)) as catalog,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(store, "COMPACT_FROM", compact_from)
        patch.setattr(payload_columns, "MAX_COLUMNS", 2)
        collection = catalog.create("shop", space="ik1-a", dim=DIM)
        items = {f"a{n}": VectorItem(f"a{n}", vector(n), *both) for n, both in enumerate(first)}
        collection.upsert(list(items.values()))
        for condition in wanted:
            check_all(collection, items, condition)
        # The columns that filters read so far have to follow what is written now.
        changed = {f"a{n}": VectorItem(f"a{n}", vector(n + 50), *both) for n, both in enumerate(then)}
        items |= changed
        collection.upsert(list(changed.values()))
        collection.delete(["a1", "a3"])
        items.pop("a1", None)
        items.pop("a3", None)
        for condition in wanted:
            check_all(collection, items, condition)
        collection.close()
        collection = catalog.open("shop")
        for condition in wanted:
            check_all(collection, items, condition)
            gone = meeting(items, condition)
            assert collection.delete_matching(condition).deleted == len(gone)
            items = {key: item for key, item in items.items() if key not in gone}
            assert sorted(item.key for item in collection.scroll(0, 100)) == sorted(items)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LABELS, PAYLOADS), min_size=1, max_size=12), FIELDS.filter(lambda field: field != "key"))
def test_a_facet_counts_typed_values(drawn: list[tuple[str | None, Any]], field: str) -> None:
    with tempfile.TemporaryDirectory() as folder, Catalog(Path(folder)) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=DIM)
        collection.upsert([VectorItem(f"k{n}", vector(n), *both) for n, both in enumerate(drawn)])
        found = collection.facet(field)
    expected: Counter[tuple[str, Scalar]] = Counter()
    for label, payload in drawn:
        value = value_at(payload, path_of(field)) if field != "label" else MISSING if label is None else label
        if isinstance(value, (str, bool)):
            expected[type(value).__name__, value] += 1
        elif isinstance(value, (int, float)):
            expected["number", value] += 1
    kinds = {"str": "str", "bool": "bool", "int": "number", "float": "number"}
    assert {(kinds[type(one.value).__name__], one.value): one.count for one in found} == expected
    assert [one.count for one in found] == sorted((one.count for one in found), reverse=True)


def test_a_facet_is_ordered_cut_and_filtered(collection: LocalCollection) -> None:
    payloads: list[Any] = [{"c": "red"}, {"c": "red"}, {"c": "blue"}, {"c": 1}, {"c": True}, {"c": [1]}, None]
    collection.upsert([VectorItem(f"k{n}", vector(n), None, payload) for n, payload in enumerate(payloads)])
    found = [(one.value, one.count) for one in collection.facet("payload.c")]
    assert found == [("red", 2), (True, 1), (1, 1), ("blue", 1)]
    assert [type(value) for value, _ in found] == [str, bool, int, str]
    assert len(collection.facet("payload.c", limit=2)) == 2
    (only,) = collection.facet("payload.c", parse('payload.c = "blue"'))
    assert (only.value, only.count) == ("blue", 1)
    for field in ("key", "price", "payload."):
        with pytest.raises(InvalidArgumentError) as caught:
            collection.facet(field)
        assert caught.value.field == "field"
    with pytest.raises(InvalidArgumentError, match="limit"):
        collection.facet("label", limit=0)


@pytest.mark.parametrize("method", list(ClassifyMethod))
def test_only_items_that_match_vote(collection: LocalCollection, method: ClassifyMethod) -> None:
    items = [VectorItem(f"k{n}", vector(n), "ab"[n % 2], {"n": n}, n.to_bytes(32, "big")) for n in range(20)]
    collection.upsert(items)
    queries = np.stack([item.vector for item in items[:4]])
    condition = parse("payload.n >= 2 AND payload.n < 12")
    hashes = [items[n].content_hash for n in range(4)]
    filtered = collection.classify(queries, ClassifyOptions(method, 5, exclude_hashes=hashes, filter=condition))
    collection.delete([item.key for n, item in enumerate(items) if not 2 <= n < 12])
    alone = collection.classify(queries, ClassifyOptions(method, 5, exclude_hashes=hashes))
    for with_filter, without in zip(filtered, alone, strict=True):
        assert with_filter.label == without.label
        assert dict(with_filter.votes) == pytest.approx(dict(without.votes), abs=1e-6)


def test_an_update_changes_what_it_names_and_nothing_else(collection: LocalCollection) -> None:
    items = [VectorItem(f"k{n}", vector(n), "old", {"n": n}, n.to_bytes(32, "big")) for n in range(4)]
    collection.upsert(items)
    before = collection.get(["k0", "k1", "k2", "k3"])
    result = collection.update(
        [
            ItemUpdate("k0", label="new"),
            ItemUpdate("k1", payload={"m": 1}),
            ItemUpdate("k2", label="", payload={}),
            ItemUpdate("k0", payload={"n": 7}),
            ItemUpdate("missing", label="x"),
        ]
    )
    assert (result.updated, result.missing) == (3, ("missing",))
    after = collection.get(["k0", "k1", "k2", "k3"])
    assert [(item.label, item.payload) for item in after if item] == [
        ("new", {"n": 7}),
        ("old", {"m": 1}),
        (None, None),
        ("old", {"n": 3}),
    ]
    for old, new in zip(before, after, strict=True):
        assert old is not None
        assert new is not None
        assert old.vector.tobytes() == new.vector.tobytes()
        assert old.content_hash == new.content_hash
        assert (new.sequence > old.sequence) == (new.key != "k3")
    assert collection.info().labelled == 3
    assert collection.count(parse("payload.n EXISTS")) == 2
    assert collection.update([]).sequence == 0
    with pytest.raises(InvalidArgumentError, match="k0"):
        collection.update([ItemUpdate("k0", label="a\nb")])


def test_a_filter_sees_one_state_while_others_write(collection: LocalCollection) -> None:
    """Each round rewrites all items with a new number: an answer holds exactly one round's items."""
    collection.upsert([VectorItem(f"k{n}", vector(n), None, {"round": 0}) for n in range(40)])
    stop = threading.Event()

    def write() -> None:
        for number in itertools.count(1):
            if stop.is_set():
                return
            collection.update([ItemUpdate(f"k{n}", payload={"round": number}) for n in range(40)])

    writer = threading.Thread(target=write)
    writer.start()
    failures: list[object] = []

    def read() -> None:
        for _ in range(60):
            (found,) = collection.search(
                vector(1)[None], SearchOptions(100, with_payload=True, filter=parse("payload.round >= 0"))
            )
            rounds = {str(one.payload) for one in found}
            if len(found) != 40 or len(rounds) != 1:
                failures.append((len(found), rounds))
            if sum(one.count for one in collection.facet("payload.round")) != 40:
                failures.append("facet")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    stop.set()
    writer.join()
    assert failures == []


def test_a_deletion_reaches_what_is_written_before_it_and_nothing_after(collection: LocalCollection) -> None:
    """Writers and deletions race: no round's items survive the deletion that came after their write."""

    def upsert(worker: int) -> None:
        for number in range(25):
            key = f"{worker}-{number}"
            collection.upsert(
                [VectorItem(key, vector(number), None, {"doomed": True}), VectorItem("keep", vector(1), None, {})]
            )
            assert collection.delete_matching(parse("payload.doomed = true")).deleted <= 4
            assert collection.get([key]) == [None]

    workers = [threading.Thread(target=upsert, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [item.key for item in collection.scroll(0, 10)] == ["keep"]


def test_a_filter_that_cannot_be_used_is_refused_everywhere(collection: LocalCollection) -> None:
    collection.upsert([VectorItem("k", vector(0), "a")])
    bad = Comparison("price", Operator.EQUAL, (1,))
    for call in (
        lambda: collection.count(bad),
        lambda: collection.scroll(0, 1, bad),
        lambda: collection.facet("label", bad),
        lambda: collection.delete_matching(bad),
        lambda: collection.search(vector(0)[None], SearchOptions(filter=bad)),
        lambda: collection.classify(vector(0)[None], ClassifyOptions(filter=bad)),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert caught.value.field == "filter"
    assert collection.count() == 1


def test_a_damaged_payload_is_reported_by_name(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        catalog.create("shop", space="ik1-a", dim=DIM).upsert([VectorItem("k7", vector(0), None, {"n": 1})])
    (path,) = tmp_path.rglob("items.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute("""UPDATE item SET payload = '{"n":2}'""")
    connection.close()
    with Catalog(tmp_path) as catalog, pytest.raises(DataLossError, match="k7"):
        catalog.open("shop").count(parse("payload.n = 2"))
