"""Concurrent questions of one kind become one search, and each gets its own answer."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from imagekin.errors import DeadlineExceededError, FailedPreconditionError, ResourceExhaustedError
from imagekin.serving.searching.batcher import SearchBatcher, Vectors
from imagekin.serving.transport.callers import CALLER, Caller


class GatedIndex:
    """Answers a query with its first component and its exclusion; records the size of each search."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Event()
        self.sizes: list[int] = []
        self.asked: list[list[int]] = []

    def search(self, queries: Vectors, exclusions: Sequence[str]) -> list[tuple[int, str]]:
        self.started.set()
        self.sizes.append(len(queries))
        self.asked.append([int(query[0]) for query in queries])
        assert self.gate.wait(10)
        if any(exclusion == "bad" for exclusion in exclusions):
            raise FailedPreconditionError("no")
        return [(int(query[0]), exclusion) for query, exclusion in zip(queries, exclusions, strict=True)]

    async def in_thread(self, call: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, call, *args)

    def batcher(self, *, workers: int = 1, max_batch: int = 8, max_queued: int = 10) -> SearchBatcher:
        return SearchBatcher(self.in_thread, workers=workers, max_batch=max_batch, max_queued=max_queued)


def queries(*values: int) -> Vectors:
    return np.array([[value, 0] for value in values], np.float32)


async def begun(index: GatedIndex, batcher: SearchBatcher) -> "asyncio.Task[Any]":
    """Start a search that holds the only worker until the gate opens."""
    task = asyncio.create_task(batcher.ask("a", index.search, queries(0), ["first"]))
    assert await asyncio.to_thread(index.started.wait, 10)
    return task


def test_questions_that_come_during_a_search_share_the_next_one() -> None:
    index = GatedIndex()

    async def ask() -> list[Any]:
        batcher = index.batcher()
        first = await begun(index, batcher)
        rest = [asyncio.create_task(batcher.ask("a", index.search, queries(n), [str(n)])) for n in range(1, 6)]
        await asyncio.sleep(0)
        index.gate.set()
        return await asyncio.gather(first, *rest)

    assert asyncio.run(ask()) == [[(0, "first")], *([(n, str(n))] for n in range(1, 6))]
    assert index.sizes == [1, 5]


def test_questions_of_different_kinds_never_share_a_search() -> None:
    index = GatedIndex()

    async def ask() -> list[Any]:
        batcher = index.batcher()
        first = await begun(index, batcher)
        rest = [
            asyncio.create_task(batcher.ask(kind, index.search, queries(n), [kind])) for n, kind in enumerate("aabab")
        ]
        await asyncio.sleep(0)
        index.gate.set()
        return (await asyncio.gather(first, *rest))[1:]

    assert asyncio.run(ask()) == [[(n, kind)] for n, kind in enumerate("aabab")]
    assert index.sizes == [1, 3, 2]


def test_a_search_holds_no_more_than_its_bound_unless_one_call_does() -> None:
    index = GatedIndex()

    async def ask() -> None:
        batcher = index.batcher(max_queued=100)
        first = await begun(index, batcher)
        sizes = (5, 5, 20, 3)
        rest = [batcher.ask("a", index.search, queries(*range(size)), ["x"] * size) for size in sizes]
        tasks = [asyncio.create_task(call) for call in rest]
        await asyncio.sleep(0)
        index.gate.set()
        await asyncio.gather(first, *tasks)

    asyncio.run(ask())
    assert index.sizes == [1, 8, 5, 20]


def test_a_failed_search_fails_its_own_batch_only() -> None:
    index = GatedIndex()
    index.gate.set()

    async def ask() -> None:
        batcher = index.batcher()
        with pytest.raises(FailedPreconditionError):
            await batcher.ask("a", index.search, queries(1), ["bad"])
        assert await batcher.ask("a", index.search, queries(1), ["good"]) == [(1, "good")]

    asyncio.run(ask())


def test_cancelled_and_expired_questions_are_not_searched() -> None:
    index = GatedIndex()

    async def ask() -> None:
        batcher = index.batcher()
        first = await begun(index, batcher)
        gone = asyncio.create_task(batcher.ask("a", index.search, queries(1), ["gone"]))
        late = asyncio.create_task(batcher.ask("a", index.search, queries(2), ["late"], timeout=0.01))
        kept = asyncio.create_task(batcher.ask("a", index.search, queries(3), ["kept"]))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0)
        index.gate.set()
        assert await first == [(0, "first")]
        assert await kept == [(3, "kept")]
        with pytest.raises(DeadlineExceededError):
            await late

    asyncio.run(ask())
    assert index.sizes == [1, 1]


def test_too_many_waiting_questions_are_refused_and_room_comes_back() -> None:
    index = GatedIndex()

    async def ask() -> None:
        batcher = index.batcher()
        first = await begun(index, batcher)
        waiting = asyncio.create_task(batcher.ask("a", index.search, queries(*range(10)), ["x"] * 10))
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError) as refused:
            await batcher.ask("a", index.search, queries(1), ["x"])
        assert (refused.value.retry_after or 0.0) > 0
        index.gate.set()
        await asyncio.gather(first, waiting)
        assert await batcher.ask("a", index.search, queries(1), ["x"]) == [(1, "x")]

    asyncio.run(ask())


def test_questions_that_come_together_are_asked_together_although_workers_are_free() -> None:
    index = GatedIndex()
    index.gate.set()

    async def ask() -> list[Any]:
        batcher = index.batcher(workers=3)
        return await asyncio.gather(*(batcher.ask("a", index.search, queries(n), [str(n)]) for n in range(3)))

    assert asyncio.run(ask()) == [[(n, str(n))] for n in range(3)]
    assert index.sizes == [3]


def test_free_workers_start_at_once() -> None:
    index = GatedIndex()

    async def ask() -> None:
        with ThreadPoolExecutor(3) as pool:
            loop = asyncio.get_running_loop()
            batcher = SearchBatcher(
                lambda call, *args: loop.run_in_executor(pool, call, *args), workers=3, max_batch=8, max_queued=10
            )
            tasks = []
            for n in range(3):
                tasks.append(asyncio.create_task(batcher.ask("a", index.search, queries(n), ["x"])))
                while len(index.sizes) <= n:
                    await asyncio.sleep(0.005)
            index.gate.set()
            await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(ask(), 10))
    assert index.sizes == [1, 1, 1]


def ask_as(name: str, batcher: SearchBatcher, index: GatedIndex, kind: str, *values: int) -> "asyncio.Task[Any]":
    """Ask in the name of a caller."""

    async def ask() -> Any:
        CALLER.set(Caller(name))
        return await batcher.ask(kind, index.search, queries(*values), [name] * len(values))

    return asyncio.create_task(ask())


@pytest.mark.parametrize("kind", ["a", "b"], ids=["of the same kind", "of another kind"])
def test_whoever_has_thousands_of_searches_waiting_is_overtaken(kind: str) -> None:
    index = GatedIndex()

    async def ask() -> None:
        batcher = index.batcher(max_queued=8000)
        first = await begun(index, batcher)
        many = [ask_as("greedy", batcher, index, "a", n) for n in range(1, 3001)]
        await asyncio.sleep(0)
        few = [ask_as(f"small {n}", batcher, index, kind, -n) for n in range(1, 5)]
        await asyncio.sleep(0)
        index.gate.set()
        await asyncio.gather(first, *few)
        # Answered with the next search or the one after it, and not behind all that waited before.
        assert sum(not task.done() for task in many) >= 3000 - 3 * 8
        await asyncio.gather(*many)

    asyncio.run(ask())
    assert {-1, -2, -3, -4} <= {value for batch in index.asked[1:3] for value in batch}


def test_one_large_call_after_the_other_gets_no_more_than_others() -> None:
    index = GatedIndex()

    async def ask() -> None:
        batcher = index.batcher(max_batch=4, max_queued=1000)
        first = await begun(index, batcher)
        large = [ask_as("large", batcher, index, "a", *range(100, 120)) for _ in range(3)]
        small = [ask_as("small", batcher, index, "b", n) for n in range(1, 17)]
        await asyncio.sleep(0)
        index.gate.set()
        await asyncio.gather(first, *large, *small)

    asyncio.run(ask())
    # After the first large one, as many small ones as it had queries.
    assert index.sizes == [1, 20, 4, 4, 4, 4, 20, 20]


def test_one_caller_leaves_room_for_the_searches_of_others() -> None:
    index = GatedIndex()

    async def ask() -> None:
        batcher = index.batcher(max_queued=16)
        first = await begun(index, batcher)
        many = [ask_as("greedy", batcher, index, "a", n) for n in range(12)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError):
            await ask_as("greedy", batcher, index, "a", 12)
        small = ask_as("small", batcher, index, "a", 13)
        await asyncio.sleep(0)
        index.gate.set()
        await asyncio.gather(first, *many, small)
        assert batcher.queued == 0

    asyncio.run(ask())
