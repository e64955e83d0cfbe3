"""Calls that wait together run as one batch; each returns its own result, or raises its error."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from imagekin.index.local.catalog import Catalog
from imagekin.index.search import nearest as nearest_search
from imagekin.index.storage import combiner as combining
from imagekin.index.storage.combiner import Combiner
from imagekin.index.types import SearchOptions, VectorItem
from tests.index.reference import assert_agree, nearest


def test_calls_that_wait_run_as_one_batch() -> None:
    batches: list[int] = []
    held, go = threading.Event(), threading.Event()

    def work(questions: Sequence[int]) -> list[int]:
        batches.append(len(questions))
        if len(batches) == 1:
            held.set()
            go.wait(30)
        return [-question for question in questions]

    combiner: Combiner[int, int] = Combiner(work, concurrency=1)
    with ThreadPoolExecutor(21) as pool:
        first = pool.submit(combiner.call, 1000)
        assert held.wait(30)
        others = [pool.submit(combiner.call, number) for number in range(20)]
        while len(combiner._waiting) < 20:
            time.sleep(0.001)
        go.set()
        assert first.result() == -1000
        assert [other.result() for other in others] == [-number for number in range(20)]
    assert batches == [1, 20]
    assert combiner.call(5) == -5


def test_those_answered_together_are_waited_for_and_one_alone_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combining, "_LINGER", 50.0)
    batches: list[int] = []
    ready = threading.Barrier(4)

    def work(questions: Sequence[int]) -> list[int]:
        batches.append(len(questions))
        time.sleep(0.02)
        return list(questions)

    combiner: Combiner[int, int] = Combiner(work)
    start = time.perf_counter()
    for number in range(10):
        assert combiner.call(number) == number
    assert time.perf_counter() - start < 5  # it would be a second more each

    def ask(number: int) -> None:
        ready.wait(30)
        for _ in range(5):
            assert combiner.call(number) == number

    batches.clear()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4), timeout=60))
    assert batches.count(4) >= 3


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_call_is_lost(concurrency: int) -> None:
    def work(questions: Sequence[int]) -> list[int]:
        if any(question % 50 == 7 for question in questions):
            raise ValueError("seven")
        return list(questions)

    combiner: Combiner[int, int] = Combiner(work, concurrency)

    def ask(number: int) -> bool:
        try:
            assert combiner.call(number) == number
        except ValueError:
            return True
        return False

    with ThreadPoolExecutor(16) as pool:
        failed = list(pool.map(ask, range(3000)))
    assert all(failed[number] for number in range(7, 3000, 50))
    assert combiner._free == concurrency
    assert not combiner._waiting


def test_many_clients_get_exact_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_search, "_COMBINED_FROM", 1)
    random = np.random.default_rng(0)
    items = [VectorItem(f"k{n:04d}", random.standard_normal(16).astype(np.float32)) for n in range(1500)]
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=16)
        collection.upsert(items)
        held = {item.key: item for item in items}

        def ask(number: int) -> None:
            query = np.random.default_rng(number).standard_normal((1, 16)).astype(np.float32)
            k = 1 + number % 13
            assert_agree(collection.search(query, SearchOptions(k=k))[0], nearest(held, query[0], k))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(200)))
