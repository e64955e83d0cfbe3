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
from tests.waiting import wait_until


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


class Held:
    """A combiner whose first batch waits until it is let go, so that further calls queue up."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.combiner: Combiner[int, int] = Combiner(self.work)
        self.batches: list[list[int]] = []

    def work(self, questions: Sequence[int]) -> list[int]:
        self.batches.append(list(questions))
        self.begun.set()
        assert self.go.wait(30)
        if 13 in questions:
            raise ValueError("thirteen")
        return list(questions)

    def until_waiting(self, count: int) -> None:
        """Return once so many calls wait."""
        wait_until(lambda: len(self.combiner._waiting) == count)


def test_every_call_of_a_batch_that_fails_is_told() -> None:
    held = Held()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(held.combiner.call, 1)
        assert held.begun.wait(30)
        others = [pool.submit(held.combiner.call, number) for number in range(11, 16)]
        held.until_waiting(5)
        held.go.set()
        assert first.result() == 1
        for other in others:
            with pytest.raises(ValueError, match="thirteen"):
                other.result()
    assert held.combiner.call(5) == 5


class Interrupted(threading.Event):
    """An event that Ctrl-C comes before, or right after."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.interrupted = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, and be interrupted the first time."""
        if self.interrupted or not self.before:
            assert super().wait(30)
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("before", [True, False], ids=["while it waits", "when its turn has come"])
def test_a_thread_that_is_interrupted_leaves_nobody_waiting(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    call = combining._Call

    def interrupted(request: int) -> "combining._Call[int, int]":
        return call(request, Interrupted(before=before)) if request == 2 else call(request)

    monkeypatch.setattr(combining, "_Call", interrupted)
    held = Held()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(held.combiner.call, 1)
        assert held.begun.wait(30)
        second = pool.submit(held.combiner.call, 2)
        wait_until(lambda: second.done() if before else len(held.combiner._waiting) == 1)
        third = pool.submit(held.combiner.call, 3)
        held.until_waiting(1 if before else 2)
        held.go.set()
        assert isinstance(second.exception(30), KeyboardInterrupt)
        assert (first.result(30), third.result(30)) == (1, 3)
    assert held.batches == ([[1], [3]] if before else [[1], [2, 3]])
    assert held.combiner.call(4) == 4
