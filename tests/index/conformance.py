"""What every collection promises, wherever it is kept: one suite for the local store and for Milvus.

`tests/index/test_conformance.py` runs it over both.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from imagekin.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from imagekin.index.filters.conditions import (
    MISSING,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Not,
    Operator,
    matches,
    path_of,
    value_at,
)
from imagekin.index.filters.parser import parse
from imagekin.index.interface import Collections, KeptCollection
from imagekin.index.types import ClassifyMethod, ClassifyOptions, EvaluateOptions, SearchOptions, VectorItem
from imagekin.types import ItemUpdate, Neighbour, Outcome, Payload, Prediction, Vector
from tests.index.conditions import PAYLOADS, conditions
from tests.index.reference import assert_agree, nearest, unit

DIM = 8
SPACE = "ik1-conformance"
Made = Callable[[], KeptCollection]


class Place:
    """Where collections are kept: opened by a function, and opened anew on request."""

    def __init__(self, opened: Callable[[bool], Collections]) -> None:
        self._opened = opened
        self._number = itertools.count()
        self.collections = opened(False)

    def new(self, dim: int = DIM) -> KeptCollection:
        """Make an empty collection of a name of its own."""
        return self.collections.create(f"test-{next(self._number)}", space=SPACE, dim=dim)

    def reopen(self, read_only: bool = False) -> None:
        """Close everything and open it again."""
        self.collections.close()
        self.collections = self._opened(read_only)


def vectors(count: int, seed: int = 0, dim: int = DIM) -> Vector:
    found: Vector = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return found


def shop(count: int = 60) -> list[VectorItem]:
    """Return items with labels, prices, tags and, two by two, content hashes."""
    return [
        VectorItem(
            f"item-{number:03}",
            vector,
            [None, "shoe", "hat", "ärmel"][number % 4],
            {"price": number / 2, "stock": {"now": number % 3}, "new": number % 2 == 0} if number % 5 else None,
            bytes([number // 2]) * 32,
        )
        for number, vector in enumerate(vectors(count))
    ]


def by_key(items: list[VectorItem]) -> dict[str, VectorItem]:
    return {item.key: item for item in items}


def keys(found: list[Neighbour]) -> list[str]:
    return [one.key for one in found]


def matching(items: list[VectorItem], condition: Condition) -> dict[str, VectorItem]:
    return {item.key: item for item in items if matches(condition, item.key, item.label, item.payload)}


def assert_alike(found: Prediction, expected: Prediction) -> None:
    assert found.label == expected.label
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-5)
    assert found.nearest_similarity == pytest.approx(expected.nearest_similarity, abs=2e-6)
    assert [label for label, _ in found.votes] == [label for label, _ in expected.votes]


def voted(items: list[VectorItem], query: Vector, k: int, temperature: float) -> Prediction:
    """Return the class by the votes of the k nearest, said in NumPy."""
    labelled = {item.key: item for item in items if item.label}
    near = nearest(labelled, query, k)
    weights = np.exp((np.array([value for _, value in near]) - near[0][1]) / temperature)
    shares: dict[str, float] = {}
    for (key, _), weight in zip(near, weights / weights.sum(), strict=True):
        label = labelled[key].label or ""
        shares[label] = shares.get(label, 0.0) + float(weight)
    votes = sorted(shares.items(), key=lambda vote: (-vote[1], vote[0]))
    return Prediction(votes[0][0], votes[0][1], near[0][1], tuple(votes))


class Promises:
    """The promises; a subclass has a fixture `place`."""

    def test_what_was_written_is_read_back(self, place: Place) -> None:
        collection, items = place.new(), shop()
        written = collection.upsert(items)
        assert written.outcomes == (Outcome.INSERTED,) * len(items)
        found = collection.get([*(item.key for item in items), "missing"])
        assert found.pop() is None
        for item, stored in zip(items, found, strict=True):
            assert stored is not None
            assert (stored.key, stored.label, stored.content_hash) == (item.key, item.label, item.content_hash)
            assert stored.payload == item.payload
            np.testing.assert_array_equal(stored.vector, unit(item.vector)[0])
        again = [VectorItem(one.key, one.vector) for one in found if one is not None]
        collection.upsert(again)
        for before, after in zip(again, collection.get([one.key for one in again]), strict=True):
            assert after is not None
            assert before.vector.tobytes() == after.vector.tobytes()

    def test_texts_and_payloads_survive_unchanged(self, place: Place) -> None:
        payload: Payload = {
            "ä b": "x\0\"\\'\n",
            "n": {"": [1, None, {"a.b": 2**53 + 1}]},
            "big": 10**30,
            "f": 0.1,
            "i": 1.0,
        }
        key = "ключ \"'\\ 🦆"
        collection = place.new()
        collection.upsert([VectorItem(key, vectors(1)[0], "löb\"el'\\", payload)])
        (stored,) = collection.get([key])
        assert stored is not None
        assert (stored.label, stored.payload) == ("löb\"el'\\", payload)
        assert [type(value) for value in (stored.payload or {}).values()] == [str, dict, int, float, float]
        assert collection.delete([key]).deleted == 1

    def test_a_key_is_there_once_and_the_last_write_counts(self, place: Place) -> None:
        collection, (one, two, three) = place.new(), vectors(3)
        first = collection.upsert([VectorItem("a", one, "old"), VectorItem("b", one), VectorItem("a", two, "new")])
        assert first.outcomes == (Outcome.INSERTED, Outcome.INSERTED, Outcome.REPLACED)
        second = collection.upsert([VectorItem("a", three, content_hash=b"x" * 32)])
        assert second.outcomes == (Outcome.REPLACED,)
        assert second.sequence > first.sequence
        assert collection.count() == 2
        (stored,) = collection.get(["a"])
        assert stored is not None
        assert (stored.label, stored.payload, stored.content_hash) == (None, None, b"x" * 32)
        assert keys(collection.search(three[None], SearchOptions(1))[0]) == ["a"]

    def test_a_sequence_number_is_an_items_own_and_grows(self, place: Place) -> None:
        collection = place.new()
        last = 0
        for begin in range(0, 40, 10):
            sequence = collection.upsert(shop()[begin : begin + 10]).sequence
            stored = [one for one in collection.get([item.key for item in shop()[begin : begin + 10]]) if one]
            numbers = [one.sequence for one in stored]
            assert numbers == sorted(set(numbers))
            assert last < numbers[0]
            assert numbers[-1] == sequence == collection.info().sequence
            last = sequence
        assert collection.delete(["item-000"]).sequence > last

    def test_scrolling_goes_through_every_item_once_in_order(self, place: Place) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        collection.upsert(items[10:20])
        order = [item.key for item in (*items[:10], *items[20:], *items[10:20])]
        for limit in (7, 60, 1000):
            seen: list[str] = []
            after = 0
            while page := collection.scroll(after, limit):
                assert len(page) == min(limit, len(order) - len(seen))
                seen += [item.key for item in page]
                after = page[-1].sequence
                if len(seen) == 7:
                    collection.update([ItemUpdate("missing", label="x")])  # no write, so nothing moves
            assert seen == order
        condition = parse('label = "hat"')
        assert [one.key for one in collection.scroll(0, 5, condition)] == [
            key for key in order if key in matching(items, condition)
        ][:5]
        assert [one.key for one in collection.items()] == order

    def test_an_item_written_while_scrolling_is_seen_at_its_new_place(self, place: Place) -> None:
        collection, items = place.new(), shop(10)
        collection.upsert(items)
        page = collection.scroll(0, 4)
        collection.upsert([items[0], items[7]])
        rest = collection.scroll(page[-1].sequence, 100)
        assert [one.key for one in rest] == [items[n].key for n in (4, 5, 6, 8, 9, 0, 7)]

    def test_deleting_by_key_and_by_condition(self, place: Place) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        assert collection.delete(["item-001", "missing", "item-002", "item-001"]).deleted == 2
        assert collection.delete(["item-001"]) == (0, 0)
        condition = parse('label = "shoe" AND payload.price < 20')
        gone = matching(items, condition).keys() - {"item-001"}
        result = collection.delete_matching(condition)
        assert result.deleted == len(gone) > 0
        assert result.sequence > 0
        assert collection.delete_matching(condition) == (0, 0)
        left = by_key(items).keys() - gone - {"item-001", "item-002"}
        assert {one.key for one in collection.items()} == left
        (found,) = collection.search(items[1].vector[None], SearchOptions(100))
        assert set(keys(found)) == left

    def test_updates_change_what_they_name_and_nothing_else(self, place: Place) -> None:
        collection, items = place.new(), shop(12)
        before = collection.upsert(items).sequence
        done = collection.update(
            [
                ItemUpdate("item-001", label="boot"),
                ItemUpdate("missing", label="x"),
                ItemUpdate("item-002", payload={"price": 99}),
                ItemUpdate("item-003", label="", payload={}),
                ItemUpdate("item-001", payload={"size": 42}),
            ]
        )
        assert (done.updated, done.missing) == (3, ("missing",))
        assert done.sequence > before
        one, two, three, four = collection.get([f"item-00{n}" for n in (1, 2, 3, 4)])
        assert one is not None
        assert two is not None
        assert three is not None
        assert four is not None
        assert (one.label, one.payload, one.content_hash) == ("boot", {"size": 42}, items[1].content_hash)
        assert (two.label, two.payload) == ("hat", {"price": 99})
        assert (three.label, three.payload) == (None, None)
        assert (four.label, four.payload, four.sequence) == (items[4].label, items[4].payload, four.sequence)
        assert one.vector.tobytes() == unit(items[1].vector)[0].tobytes()
        assert collection.count(parse("payload.size = 42")) == collection.count(parse("payload.price = 99")) == 1
        assert collection.update([]) == collection.update([]) == type(done)(0, (), 0)

    def test_content_hashes(self, place: Place) -> None:
        collection, items = place.new(), shop(4)
        collection.upsert([*items, VectorItem("none", items[0].vector)])
        assert collection.content_hashes(["item-001", "none", "missing"]) == {
            "item-001": items[1].content_hash,
            "none": None,
        }

    def test_info_counts(self, place: Place) -> None:
        collection, items = place.new(), shop()
        empty = collection.info()
        assert (empty.count, empty.labelled, empty.sequence) == (0, 0, 0)
        collection.upsert(items)
        info = collection.info()
        assert (info.name, info.space, info.dim) == (collection.name, SPACE, DIM)
        assert (info.count, info.labelled, info.index_kind) == (60, 45, "flat")
        assert info.created_at == empty.created_at
        assert collection.name in place.collections.names()
        assert place.collections.describe(collection.name).count == 60
        assert place.collections.id_of(collection.name) == collection.id == info.id != ""

    @pytest.mark.parametrize("k", [1, 7, 200])
    def test_a_search_finds_what_numpy_finds(self, place: Place, k: int) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        queries = vectors(5, seed=1)
        for query, found in zip(queries, collection.search(queries, SearchOptions(k)), strict=True):
            assert_agree(found, nearest(by_key(items), query, k))
        assert collection.search(queries[:0], SearchOptions(k)) == []

    def test_equally_similar_items_are_ordered_by_key(self, place: Place) -> None:
        collection, (one, other) = place.new(), vectors(2)
        collection.upsert([VectorItem(f"k{n:03}", one) for n in reversed(range(120))])
        collection.upsert([VectorItem("far", other)])
        (found,) = collection.search(one[None], SearchOptions(9))
        assert keys(found) == [f"k{n:03}" for n in range(9)]

    @pytest.mark.parametrize(
        "text",
        [
            'label = "shoe"',
            'label != "shoe"',
            "NOT label EXISTS",
            "payload.price < 10",
            "NOT payload.price < 10",
            "payload.stock.now IN (1, 2) AND payload.new = true",
            'key STARTS WITH "item-01" OR payload.price >= 25.5',
            'label IN ("hat", "ärmel") AND NOT payload.price EXISTS',
            'payload.price = "10"',
        ],
    )
    def test_a_filtered_search_finds_what_numpy_finds_among_the_matching(self, place: Place, text: str) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        condition = parse(text)
        chosen, query = matching(items, condition), vectors(1, seed=2)
        (found,) = collection.search(query, SearchOptions(10, filter=condition))
        assert_agree(found, nearest(chosen, query, 10))
        assert collection.count(condition) == len(chosen)

    def test_a_condition_means_the_same_everywhere(self, place: Place) -> None:
        collection = place.new()
        control = "".join(map(chr, range(32)))

        def tests(condition: Condition) -> list[Comparison]:
            if isinstance(condition, (AllOf, AnyOf)):
                return [test for part in condition.parts for test in tests(part)]
            return tests(condition.part) if isinstance(condition, Not) else [condition]

        def told_exactly(condition: Condition) -> bool:
            """Return whether Milvus can: see index/milvus/expressions.py."""
            values = [value for test in tests(condition) for value in test.values]
            exact = all(isinstance(value, str) or abs(value) < 2**53 for value in values)
            plain = not any(isinstance(value, str) and set(value) & set(control) for value in values)
            last = any(
                test.operator is Operator.STARTS_WITH and test.values == ("\U0010ffff",) for test in tests(condition)
            )
            return exact and plain and not last

        @hypothesis.settings(
            max_examples=12, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True
        )
        @hypothesis.given(
            payloads=st.lists(PAYLOADS, min_size=20, max_size=20),
            asked=st.lists(conditions().filter(told_exactly), min_size=6, max_size=6),
        )
        def check(payloads: list[Any], asked: list[Condition]) -> None:
            labels = [None, "a", "ab", "é", "10", "'"]
            items = [VectorItem(f"a{n}", vectors(1)[0], labels[n % 6], payload) for n, payload in enumerate(payloads)]
            collection.upsert(items)
            for condition in asked:
                assert collection.count(condition) == len(matching(items, condition)), condition

        check()

    def test_a_bound_an_exclusion_payloads_and_vectors(self, place: Place) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        queries = vectors(2, seed=3)
        expected = nearest(by_key(items), queries[0], 60)
        bound = expected[4][1]
        (found, _) = collection.search(queries, SearchOptions(60, min_similarity=bound - 1e-4))
        assert_agree(found, expected[: len(found)])
        assert 5 <= len(found) < 60
        out = frozenset(key for key, _ in expected[:3])
        options = SearchOptions(5, with_payload=True, with_vector=True, exclude=[out, frozenset()])
        (found, other) = collection.search(queries, options)
        assert_agree(found, expected[3:8])
        assert_agree(other, nearest(by_key(items), queries[1], 5))
        for one in found:
            assert (one.label, one.payload) == (by_key(items)[one.key].label, by_key(items)[one.key].payload)
            assert one.vector is not None
            np.testing.assert_array_equal(one.vector, unit(by_key(items)[one.key].vector)[0])
        (plain, _) = collection.search(queries, SearchOptions(5))
        assert {(one.payload, one.vector) for one in plain} == {(None, None)}

    def test_at_most_so_many_of_a_group(self, place: Place) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        (query,) = vectors(1, seed=4)
        ranking = nearest(by_key(items), query, 60)

        def value(item: VectorItem, field: str) -> object:
            return item.label if field == "label" else value_at(item.payload, path_of(field))

        for field in ("label", "payload.stock.now"):
            room: dict[Any, int] = {}
            expected = []
            for key, similarity in ranking:
                group = value(by_key(items)[key], field)
                if group not in (None, MISSING) and room.setdefault(group, 2):
                    room[group] -= 1
                    expected.append((key, similarity))
            (found,) = collection.search(query[None], SearchOptions(10, group_by=field, group_size=2))
            assert_agree(found, expected)

    def test_diverse_neighbours_are_chosen_by_marginal_relevance(self, place: Place) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        (query,) = vectors(1, seed=5)
        chosen: list[str] = []
        units = {item.key: unit(item.vector)[0].astype(np.float64) for item in items}
        near = dict(nearest(by_key(items), query, 60))
        while len(chosen) < 6:
            scores = {
                key: 0.5 * value - 0.5 * max((units[key] @ units[other] for other in chosen), default=0.0)
                for key, value in near.items()
                if key not in chosen
            }
            chosen.append(max(scores, key=lambda key: scores[key]))
        (found,) = collection.search(query[None], SearchOptions(6, diversity=0.5))
        assert keys(found) == sorted(chosen, key=lambda key: -near[key])

    def test_values_are_counted(self, place: Place) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        assert [(one.value, one.count) for one in collection.facet("label")] == [
            ("hat", 15),
            ("shoe", 15),
            ("ärmel", 15),
        ]
        found = collection.facet("payload.new", parse('label = "hat"'))
        assert [(one.value, one.count) for one in found] == [(True, 12)]
        stock = collection.facet("payload.stock.now", limit=2)
        assert len(stock) == 2
        assert all(type(one.value) is int for one in stock)
        for field in ("key", "nonsense", "payload."):
            with pytest.raises(InvalidArgumentError):
                collection.facet(field)

    def test_votes_name_the_class(self, place: Place) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        queries = vectors(4, seed=6)
        found = collection.classify(queries, ClassifyOptions(k=9, temperature=0.1))
        for query, one in zip(queries, found, strict=True):
            assert_alike(one, voted(items, query, 9, 0.1))
        condition = parse("payload.price > 10")
        (one,) = collection.classify(queries[:1], ClassifyOptions(k=9, temperature=0.1, filter=condition))
        assert_alike(one, voted(list(matching(items, condition).values()), queries[0], 9, 0.1))
        (far,) = collection.classify(queries[:1], ClassifyOptions(min_similarity=0.999))
        assert far.label is None
        assert far.confidence > 0

    def test_an_item_and_its_copies_can_be_left_out(self, place: Place) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        item = items[6]
        others = [one for one in items if one.key != item.key]
        strangers = [one for one in items if one.content_hash != item.content_hash]
        for options, left in (
            (ClassifyOptions(k=5, exclude_keys=[frozenset({item.key})]), others),
            (ClassifyOptions(k=5, exclude_hashes=[item.content_hash]), strangers),
        ):
            (one,) = collection.classify(item.vector[None], options)
            assert_alike(one, voted(left, item.vector, 5, options.temperature))

    def test_the_nearest_class_mean_names_the_class(self, place: Place) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        queries = vectors(3, seed=7)
        prototype = ClassifyOptions(ClassifyMethod.PROTOTYPE)
        for left_out in (frozenset[str](), frozenset({"item-001", "item-002", "item-004"})):
            options = ClassifyOptions(ClassifyMethod.PROTOTYPE, exclude_keys=[left_out] * 3)
            means = {
                label: sum(
                    unit(item.vector)[0].astype(np.float64)
                    for item in items
                    if item.label == label and item.key not in left_out
                )
                for label in ("shoe", "hat", "ärmel")
            }
            for query, one in zip(unit(queries), collection.classify(queries, options), strict=True):
                near = {label: float(mean @ query / np.linalg.norm(mean)) for label, mean in means.items()}
                assert one.label == max(near, key=lambda label: near[label])
                assert one.nearest_similarity == pytest.approx(max(near.values()), abs=1e-6)
        before = collection.classify(queries, prototype)
        collection.delete_matching(parse('label = "hat"'))
        after = collection.classify(queries, prototype)
        assert before != after
        assert all("hat" not in dict(one.votes) for one in after)

    def test_nothing_labelled_means_unknown(self, place: Place) -> None:
        collection = place.new()
        query = vectors(1)
        for method in ClassifyMethod:
            (one,) = collection.classify(query, ClassifyOptions(method))
            assert one == Prediction(None, 0.0, 0.0, ())
        assert collection.search(query, SearchOptions(5)) == [[]]

    def test_two_spaces_are_told_apart(self, place: Place) -> None:
        collection = place.new()
        collection.check_space(SPACE)
        with pytest.raises(FailedPreconditionError, match=f"'{SPACE}', not of 'other'"):
            collection.check_space("other")

    @pytest.mark.parametrize(
        "item",
        [
            VectorItem("", np.ones(DIM, np.float32)),
            VectorItem("a\nb", np.ones(DIM, np.float32)),
            VectorItem("é" * 513, np.ones(DIM, np.float32)),
            VectorItem("key", np.ones(DIM, np.float32), label="x" * 1025),
            VectorItem("key", np.ones(DIM, np.float32), payload={"text": "x" * 65_536}),
            VectorItem("key", np.ones(DIM, np.float32), payload={"number": math.nan}),
            VectorItem("key", np.ones(DIM, np.float32), content_hash=b"short"),
            VectorItem("key", np.ones(DIM + 1, np.float32)),
            VectorItem("key", np.zeros(DIM, np.float32)),
            VectorItem("key", np.full(DIM, math.inf, np.float32)),
        ],
        ids=range(10),
    )
    def test_what_cannot_be_kept_is_refused_and_nothing_is_written(self, place: Place, item: VectorItem) -> None:
        collection = place.new()
        with pytest.raises(InvalidArgumentError) as raised:
            collection.upsert([VectorItem("good", np.ones(DIM, np.float32)), item])
        assert "\n" not in str(raised.value)
        assert collection.count() == 0

    def test_questions_that_cannot_be_are_refused(self, place: Place) -> None:
        collection = place.new()
        query = vectors(1)
        for options in (
            SearchOptions(0),
            SearchOptions(10_001),
            SearchOptions(min_similarity=2),
            SearchOptions(exclude=[frozenset(), frozenset()]),
            SearchOptions(group_by="key"),
            SearchOptions(group_by="nonsense"),
            SearchOptions(filter=AllOf(())),
        ):
            with pytest.raises(InvalidArgumentError):
                collection.search(query, options)
        for wrong in (ClassifyOptions(k=0), ClassifyOptions(temperature=0), ClassifyOptions(min_confidence=2)):
            with pytest.raises(InvalidArgumentError):
                collection.classify(query, wrong)
        for bad in (query[:, :3], np.zeros((1, DIM), np.float32), np.full((1, DIM), np.nan, np.float32)):
            with pytest.raises(InvalidArgumentError):
                collection.search(bad, SearchOptions())
        with pytest.raises(InvalidArgumentError):
            collection.scroll(0, 0)
        with pytest.raises(InvalidArgumentError):
            collection.get(["a\nb"])

    def test_a_collection_is_made_once_and_gone_when_dropped(self, place: Place) -> None:
        collection = place.new()
        collection.upsert(shop(5))
        with pytest.raises(AlreadyExistsError):
            place.collections.create(collection.name, space=SPACE, dim=DIM)
        assert place.collections.drop(collection.name) == 5
        assert collection.name not in place.collections.names()
        for ask in (place.collections.open, place.collections.describe, place.collections.drop):
            with pytest.raises(NotFoundError):
                ask(collection.name)
        for name in ("", "Shop", "../x", "a" * 65):
            with pytest.raises(InvalidArgumentError):
                place.collections.create(name, space=SPACE, dim=DIM)

    def test_opening_again_finds_everything(self, place: Place) -> None:
        collection, items = place.new(), shop()
        collection.upsert(items)
        collection.delete(["item-007"])
        before, everything = collection.info(), [(one.key, one.sequence, one.payload) for one in collection.items()]
        place.reopen(read_only=True)
        try:
            collection = place.collections.open(before.name)
            after = collection.info()
            assert (after.count, after.space, after.dim) == (59, SPACE, DIM)
            assert (after.labelled, after.created_at) == (before.labelled, before.created_at)
            assert [(one.key, one.sequence, one.payload) for one in collection.items()] == everything
            left = {key: item for key, item in by_key(items).items() if key != "item-007"}
            (found,) = collection.search(items[7].vector[None], SearchOptions(5))
            assert_agree(found, nearest(left, items[7].vector, 5))
            with pytest.raises(FailedPreconditionError):
                collection.upsert(items)
            with pytest.raises(FailedPreconditionError):
                collection.delete(["item-001"])
            with pytest.raises(FailedPreconditionError):
                place.collections.drop(before.name)
            with pytest.raises(FailedPreconditionError):
                place.collections.create("another", space=SPACE, dim=DIM)
        finally:
            place.reopen()

    def test_what_a_place_cannot_do_it_refuses(self, place: Place) -> None:
        collection = place.new()
        # Nothing is labelled, or it is not done there.
        with pytest.raises(FailedPreconditionError):
            collection.evaluate(EvaluateOptions())
        with pytest.raises(FailedPreconditionError):
            collection.calibrate(EvaluateOptions())
        assert collection.calibration(ClassifyMethod.KNN) is None
