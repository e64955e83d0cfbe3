"""Any sequence of writes, deletions and reopenings answers like a dictionary and NumPy."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from imagekin.index.filters.conditions import matches
from imagekin.index.filters.parser import parse
from imagekin.index.local import store
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.types import IndexedItem, SearchOptions, VectorItem
from imagekin.types import ItemUpdate, Outcome
from tests.index.limited import install, seal_at_once
from tests.index.reference import assert_agree, nearest, unit

DIM = 3
KEYS = st.sampled_from([f"k{number}" for number in range(12)] + ["é", "日本", "a'b\"--", "%_", "🙂"])
# Few distinct directions, so that equal vectors, and therefore ties, are common.
VECTORS = st.tuples(*[st.integers(-2, 2)] * DIM).filter(any)
PAYLOADS: list[dict[str, object] | None] = [None, {}, {"n": 1}, {"n": 2, "s": "x"}, {"s": "y"}]
FILTERS = st.sampled_from(
    [
        'label = "red"',
        "payload.n < 2",
        'NOT payload.s = "x"',
        'key STARTS WITH "k1" OR payload.n = 2',
        "label NOT EXISTS",
    ]
)
ITEMS = st.lists(
    st.tuples(KEYS, VECTORS, st.sampled_from([None, "red", "blue"]), st.sampled_from(PAYLOADS)),
    max_size=8,
)


class _CollectionMachine(RuleBasedStateMachine):
    """Drives a collection and a dictionary side by side."""

    device = "cpu"

    @initialize()
    def make(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.catalog = Catalog(Path(self.folder.name), device=self.device)
        self.catalog.create("model", space="ik1-test", dim=DIM)
        self.items: dict[str, VectorItem] = {}
        self.sequence = 0

    @property
    def collection(self) -> LocalCollection:
        return self.catalog.open("model")

    @rule(drawn=ITEMS)
    def upsert(self, drawn: list[tuple[str, tuple[int, ...], str | None, dict[str, object] | None]]) -> None:
        items = [
            VectorItem(key, np.array(vector, np.float32), label, payload, key.encode().ljust(32, b"#"))  # type: ignore[arg-type]
            for key, vector, label, payload in drawn
        ]
        result = self.collection.upsert(items)
        for item, outcome in zip(items, result.outcomes, strict=True):
            assert outcome == (Outcome.REPLACED if item.key in self.items else Outcome.INSERTED)
            self.items[item.key] = item
        if items:
            assert result.sequence > self.sequence
            self.sequence = result.sequence

    @rule(keys=st.lists(KEYS, max_size=6))
    def delete(self, keys: list[str]) -> None:
        there = set(keys) & self.items.keys()
        result = self.collection.delete(keys)
        assert result.deleted == len(there)
        assert (result.sequence > self.sequence) == bool(there)
        self.sequence = max(self.sequence, result.sequence)
        for key in there:
            del self.items[key]

    @rule(keys=st.lists(KEYS, max_size=4), label=st.sampled_from([None, "", "red"]), payload=st.sampled_from(PAYLOADS))
    def update(self, keys: list[str], label: str | None, payload: dict[str, object] | None) -> None:
        there = set(keys) & self.items.keys()
        result = self.collection.update([ItemUpdate(key, label, payload) for key in keys])  # type: ignore[arg-type]
        assert (result.updated, set(result.missing)) == (len(there), set(keys) - there)
        self.sequence = max(self.sequence, result.sequence)
        for key in there:
            item = self.items[key]
            self.items[key] = replace(
                item,
                label=item.label if label is None else label or None,
                payload=item.payload if payload is None else payload or None,  # type: ignore[arg-type]
            )

    def matching(self, text: str) -> dict[str, VectorItem]:
        condition = parse(text)
        return {key: item for key, item in self.items.items() if matches(condition, key, item.label, item.payload)}

    @rule(text=FILTERS)
    def delete_matching(self, text: str) -> None:
        gone = self.matching(text)
        result = self.collection.delete_matching(parse(text))
        assert result.deleted == len(gone)
        self.sequence = max(self.sequence, result.sequence)
        self.items = {key: item for key, item in self.items.items() if key not in gone}

    @rule(text=FILTERS, query=VECTORS, k=st.integers(1, 20))
    def ask_for_matching(self, text: str, query: tuple[int, ...], k: int) -> None:
        wanted = self.matching(text)
        assert self.collection.count(parse(text)) == len(wanted)
        assert {item.key for item in self.collection.scroll(0, 100, parse(text))} == wanted.keys()
        vector = np.array(query, np.float32)
        (found,) = self.collection.search(vector[None], SearchOptions(k, filter=parse(text)))
        assert_agree(found, nearest(wanted, vector, k))
        assert all(one.key in wanted for one in found)
        counts = {one.value: one.count for one in self.collection.facet("payload.n", parse(text))}
        assert counts == Counter(item.payload["n"] for item in wanted.values() if item.payload and "n" in item.payload)

    @rule()
    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = Catalog(Path(self.folder.name), device=self.device)

    @rule(queries=st.lists(VECTORS, min_size=1, max_size=7), k=st.integers(1, 20), left_out=st.frozensets(KEYS))
    def search(self, queries: list[tuple[int, ...]], k: int, left_out: frozenset[str]) -> None:
        options = SearchOptions(k, with_payload=True, with_vector=True, exclude=[left_out] * len(queries))
        found = self.collection.search(np.array(queries, np.float32), options)
        remaining = {key: item for key, item in self.items.items() if key not in left_out}
        for query, answer in zip(queries, found, strict=True):
            assert_agree(answer, nearest(remaining, np.array(query, np.float32), k))
            assert all(one.key in remaining for one in answer)
            order = [(-one.similarity, one.key.encode()) for one in answer]
            assert order == sorted(order)
            for one in answer:
                item = self.items[one.key]
                assert (one.label, one.payload) == (item.label, item.payload or None)
                assert one.vector is not None
                np.testing.assert_allclose(one.vector, unit(item.vector)[0], atol=1e-6)

    @precondition(lambda self: self.items)
    @rule(keys=st.lists(KEYS, max_size=6))
    def get(self, keys: list[str]) -> None:
        for key, stored in zip(keys, self.collection.get(keys), strict=True):
            self.check(key, stored)
        hashes = self.collection.content_hashes(keys)
        assert hashes == {key: self.items[key].content_hash for key in keys if key in self.items}

    @invariant()
    def holds_the_same(self) -> None:
        if not hasattr(self, "items"):
            return
        stored = self.collection.scroll(0, 1000)
        assert [item.sequence for item in stored] == sorted({item.sequence for item in stored})
        assert sorted(item.key for item in stored) == sorted(self.items)
        for item in stored:
            self.check(item.key, item)
        info = self.collection.info()
        assert (info.count, info.sequence) == (self.collection.count(), self.sequence)
        assert info.count == len(self.items)
        assert info.labelled == sum(item.label is not None for item in self.items.values())

    def check(self, key: str, stored: IndexedItem | None) -> None:
        item = self.items.get(key)
        if item is None:
            assert stored is None
            return
        assert stored is not None
        assert (stored.key, stored.label, stored.payload) == (key, item.label, item.payload or None)
        assert stored.content_hash == item.content_hash
        np.testing.assert_allclose(stored.vector, unit(item.vector)[0], atol=1e-6)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.catalog.close()
            self.folder.cleanup()


class _DeviceMachine(_CollectionMachine):
    """The same, most rows on a device."""

    device = "cuda"


@pytest.mark.parametrize("compact_from", [1, 1024], ids=["compacting", "not compacting"])
def test_any_history_answers_like_a_dictionary(monkeypatch: pytest.MonkeyPatch, compact_from: int) -> None:
    monkeypatch.setattr(store, "COMPACT_FROM", compact_from)
    _run(_CollectionMachine)


def test_any_history_answers_like_a_dictionary_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "COMPACT_FROM", 8)
    opened = install(monkeypatch)
    seal_at_once(monkeypatch)
    _run(_DeviceMachine, examples=60)  # few histories seal enough rows for the device to be asked
    assert sum(len(device.asked) for device in opened) > 10
    assert not any(device.strangers for device in opened)


def _run(machine: type[_CollectionMachine], examples: int = 15) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(machine, settings=chosen)
