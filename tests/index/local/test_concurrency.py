"""Readers see one consistent snapshot and never wait; writers share commits and none loses its own."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from imagekin.errors import InvalidArgumentError
from imagekin.index.local import store
from imagekin.index.local.catalog import Catalog
from imagekin.index.storage import committer, search_priority
from imagekin.index.storage.schema import State, read_state
from imagekin.index.storage.transactions import Transaction
from imagekin.index.types import SearchOptions, VectorItem
from imagekin.types import Outcome

DIM = 4


def vector(number: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    angle = 1e-3 * number
    return np.array([np.cos(angle), np.sin(angle), 0, 0], np.float32)


@pytest.mark.parametrize("with_payload", [False, True])
def test_readers_see_whole_writes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_payload: bool) -> None:
    # Every write replaces both items of a pair by a new generation: an answer that mixes generations is torn.
    monkeypatch.setattr(store, "COMPACT_FROM", 1)
    stop = threading.Event()
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("pairs", space="ik1-a", dim=DIM)

        def write() -> int:
            generation = 0
            while not stop.is_set() or generation <= 3:
                generation += 1
                collection.upsert(
                    [
                        VectorItem(side, vector(generation % 7), str(generation), {"generation": generation})
                        for side in ("left", "right")
                    ]
                )
            return generation

        def read() -> int:
            answers, last = 0, 0
            while not stop.is_set() or answers <= 3:
                (found,) = collection.search(vector(0)[None], SearchOptions(k=5, with_payload=with_payload))
                if not found:
                    continue
                assert [one.key for one in found] == ["left", "right"]
                assert found[0].label == found[1].label
                assert found[0].similarity == found[1].similarity
                assert found[0].label is not None
                generation = int(found[0].label)
                assert generation >= last
                if with_payload:
                    assert [one.payload for one in found] == [{"generation": generation}] * 2
                answers, last = answers + 1, generation
            return answers

        with ThreadPoolExecutor(4) as pool:
            writer = pool.submit(write)
            readers = [pool.submit(read) for _ in range(3)]
            time.sleep(1.0)
            stop.set()
            assert writer.result() > 3
            assert all(reader.result() > 3 for reader in readers)


def test_writers_share_a_commit_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("many", space="ik1-a", dim=DIM)
        held, go = threading.Event(), threading.Event()

        def hold(transaction: Transaction) -> None:
            held.set()
            go.wait(30)

        begun: list[object] = []
        collection._store._committer._connection.set_trace_callback(  # type: ignore[union-attr]
            lambda statement: begun.append(statement) if statement.startswith("COMMIT") else None
        )
        with ThreadPoolExecutor(40) as pool:
            first = pool.submit(collection._store.write, hold)
            assert held.wait(30)
            waiting = [pool.submit(collection.upsert, [VectorItem(f"k{n % 16}", vector(n))]) for n in range(32)]
            while len(collection._store._committer._combiner._waiting) < 32:  # type: ignore[union-attr]
                time.sleep(0.001)
            go.set()
            first.result()
            results = [future.result() for future in waiting]
        # One commit for the one that held them up, one for all the others.
        assert len(begun) == 2
        assert len({result.sequence for result in results}) == 32
        assert sum(result.inserted for result in results) == 16
        assert sum(result.replaced for result in results) == 16
        assert collection.count() == 16


def test_a_lone_write_is_committed_by_its_own_thread_and_undone_whole_when_it_fails(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("many", space="ik1-a", dim=DIM)
        collection.upsert([VectorItem("stays", vector(1), label="a")])
        assert collection._store.write(lambda _: threading.current_thread()) is threading.current_thread()

        def fail(transaction: Transaction) -> None:
            transaction.delete(["stays"])
            raise InvalidArgumentError("no")

        with pytest.raises(InvalidArgumentError, match="no"):
            collection._store.write(fail)
        assert collection.count() == 1
        assert collection.upsert([VectorItem("new", vector(2))]).sequence == 2
    with Catalog(tmp_path) as catalog:
        assert [item.key for item in catalog.open("many").items()] == ["stays", "new"]


def test_closing_waits_for_the_writes_that_are_under_way(tmp_path: Path) -> None:
    held, go = threading.Event(), threading.Event()

    def hold(transaction: Transaction) -> None:
        held.set()
        go.wait(30)

    with Catalog(tmp_path) as catalog, ThreadPoolExecutor(3) as pool:
        collection = catalog.create("many", space="ik1-a", dim=DIM)
        first = pool.submit(collection._store.write, hold)
        assert held.wait(30)
        second = pool.submit(collection.upsert, [VectorItem("new", vector(2))])
        while not collection._store._committer._combiner._waiting:  # type: ignore[union-attr]
            time.sleep(0.001)
        closing = pool.submit(collection.close)
        time.sleep(0.05)
        assert not closing.done()
        go.set()
        closing.result()
        first.result()
        assert second.result().outcomes == (Outcome.INSERTED,)
        assert catalog.open("many").count() == 1


def test_a_write_that_fails_does_not_take_others_with_it(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("many", space="ik1-a", dim=DIM)
        held, go = threading.Event(), threading.Event()

        def hold(transaction: Transaction) -> None:
            held.set()
            go.wait(30)

        def fail(transaction: Transaction) -> None:
            transaction.delete(["stays"])
            raise InvalidArgumentError("no")

        collection.upsert([VectorItem("stays", vector(1), label="a")])
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(collection._store.write, hold)
            assert held.wait(30)
            second = pool.submit(collection._store.write, fail)
            third = pool.submit(collection.upsert, [VectorItem("new", vector(2))])
            go.set()
            first.result()
            with pytest.raises(InvalidArgumentError, match="no"):
                second.result()
            assert third.result().outcomes == (Outcome.INSERTED,)
        info = collection.info()
        assert (info.count, info.labelled) == (2, 1)
        assert [one.key for one in collection.search(vector(1)[None], SearchOptions())[0]] == ["stays", "new"]
    with Catalog(tmp_path) as catalog:
        assert catalog.open("many").info().count == 2


def test_more_writers_than_share_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "_MAX_SHARED", 3)
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("many", space="ik1-a", dim=DIM)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: collection.upsert([VectorItem(f"k{n}", vector(n))]), range(200)))
        assert collection.count() == 200


def forget(transaction: Transaction) -> None:
    transaction.connection.execute("DELETE FROM tombstone")
    transaction.connection.execute("UPDATE state SET tombstones_after = ?", (transaction.sequence,))


@pytest.mark.parametrize("forgetful", [False, True], ids=["follows the tombstones", "reads all again"])
def test_a_reader_in_another_process_follows(tmp_path: Path, forgetful: bool) -> None:
    # A second catalog of the same process stands for another process: they share nothing but the files.
    with Catalog(tmp_path) as catalog, Catalog(tmp_path, read_only=True) as reader:
        writing = catalog.create("shop", space="ik1-a", dim=DIM)
        writing.upsert([VectorItem("a", vector(1), "old"), VectorItem("b", vector(2))])
        reading = reader.open("shop")
        assert reading.count() == 2
        writing.upsert([VectorItem("a", vector(3), "new"), VectorItem("c", vector(4))])
        writing.delete(["b"])
        writing.upsert([VectorItem("d", vector(5))])
        writing.delete(["d"])  # came and went between two looks
        if forgetful:
            writing._store.write(forget)
        found = reading.search(vector(3)[None], SearchOptions(with_payload=True))[0]
        assert [(one.key, one.label) for one in found] == [("a", "new"), ("c", None)]
        assert reading.info().count == 2
        assert reading.info().sequence == writing.info().sequence


def test_a_reader_follows_across_the_writer_opening_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEPT_TOMBSTONES", 2)
    with Catalog(tmp_path) as catalog:
        catalog.create("shop", space="ik1-a", dim=DIM).upsert([VectorItem(f"k{n}", vector(n)) for n in range(10)])
    with Catalog(tmp_path, read_only=True) as reader:
        reading = reader.open("shop")
        for _ in range(3):
            with Catalog(tmp_path) as catalog:
                writing = catalog.open("shop")
                kept = writing._store.write(
                    lambda transaction: transaction.connection.execute("SELECT count(*) FROM tombstone").fetchone()[0]
                )
                assert kept <= 2
                writing.delete([item.key for item in writing.scroll(0, 3)])
        assert [item.key for item in reading.scroll(0, 10)] == ["k9"]
        assert [one.key for one in reading.search(vector(0)[None], SearchOptions())[0]] == ["k9"]


@pytest.mark.skipif(not hasattr(os, "sched_yield"), reason="this system has no call to offer the processor")
def test_what_is_done_in_bulk_yields_to_searches_and_to_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers: list[str] = []
    monkeypatch.setattr(os, "sched_yield", lambda: offers.append(threading.current_thread().name))
    items = [VectorItem(str(number), vector(number)) for number in range(2_000)]
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("bulk", space="ik1-a", dim=DIM)

        def offered(work: Callable[[], object], *, searched: bool) -> int:
            collection.upsert(items)  # something to seal, and to leave out
            if searched:
                collection.search(vector(0)[None], SearchOptions(k=1))
            else:
                time.sleep(search_priority.ACTIVE_SECONDS)
            offers.clear()
            work()
            return len(offers)

        for work in (lambda: collection.upsert(items), collection.seal, collection.compact):
            assert offered(work, searched=False) == 0
            assert offered(work, searched=True) > 0


def test_bulk_writes_beside_searches_lose_nothing(tmp_path: Path) -> None:
    stop = threading.Event()
    with Catalog(tmp_path) as catalog, ThreadPoolExecutor(3) as threads:
        collection = catalog.create("bulk", space="ik1-a", dim=DIM)

        def search() -> int:
            most = 0
            while not stop.is_set():
                (found,) = collection.search(vector(0)[None], SearchOptions(k=1_000))
                # Whole writes only.
                assert len(found) % search_priority.BULK_FROM == 0
                most = max(most, len(found))
            return most

        def write(writer: int) -> None:
            for batch in range(10):
                names = [f"{writer}/{batch}/{number}" for number in range(search_priority.BULK_FROM)]
                collection.upsert([VectorItem(name, vector(writer + batch)) for name in names])

        searches = threads.submit(search)
        for done in [threads.submit(write, writer) for writer in range(2)]:
            done.result()
        assert collection.count() == 20 * search_priority.BULK_FROM
        stop.set()
        assert 0 < searches.result() <= 20 * search_priority.BULK_FROM


def test_a_reader_that_began_before_a_compaction_does_not_read_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = False

    def slowly(connection: sqlite3.Connection, name: str) -> State:
        nonlocal begun
        state = read_state(connection, name)
        if not begun:
            begun = True
            collection.delete([f"k{n}" for n in range(50)])
            collection.compact()
        return state

    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=2)
        collection.upsert([VectorItem(f"k{n}", np.array([1, n], np.float32)) for n in range(100)])
        monkeypatch.setattr("imagekin.index.local.store.read_state", slowly)
        with collection._store.reading() as (connection, snapshot):
            assert begun
            rows = connection.execute("SELECT count(*) FROM item").fetchone()[0]
            assert rows == int(snapshot.alive().sum())
