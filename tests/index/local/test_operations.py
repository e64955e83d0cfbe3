"""Verify finds every damage and repairs what can be; snapshots, restores, compaction and Parquet keep every item."""

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagekin.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from imagekin.index.ingest.parquet import ParquetItems, export_items, import_items
from imagekin.index.ingest.vector_file import VectorFile
from imagekin.index.local import maintenance, snapshots
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.storage.acknowledged import Watermark
from imagekin.index.storage.schema import State, read_state
from imagekin.index.types import IndexedItem, SearchOptions, VectorItem
from tests.index.reference import unit

DIM = 8
COUNT = 300


def items(count: int = COUNT, seed: int = 0) -> list[VectorItem]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    names = [None, "red", "blue é"]
    return [
        VectorItem(
            f"k{n:04d}", vectors[n], names[n % 3], {"n": n, "é": [n]} if n % 2 else None, bytes([n % 250 + 1]) * 32
        )
        for n in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=DIM)
        collection.upsert(items())
        collection.delete(["k0007", "k0008"])
    return tmp_path


def database(data: Path) -> Path:
    return data / "collections" / "shop" / "items.sqlite"


def contents(collection: LocalCollection) -> list[tuple[object, ...]]:
    return [
        (item.key, item.label, item.payload, item.content_hash, item.vector.tobytes(), item.sequence)
        for item in collection.items()
    ]


def flip(path: Path, what: bytes) -> None:
    data = bytearray(path.read_bytes())
    assert data.count(what) == 1
    data[data.index(what) + len(what) // 2] ^= 0x10
    path.write_bytes(data)


def flip_vector(data: Path, number: int) -> None:
    flip(database(data), unit(items()[number].vector)[0].tobytes())


def test_what_is_whole_is_said_to_be_and_left_alone(data: Path) -> None:
    before = database(data).read_bytes()
    steps: list[int] = []
    with Catalog(data, read_only=True) as catalog:
        report = catalog.verify("shop", on_progress=steps.append)
    assert report.intact
    assert (report.items, report.segments, report.repaired) == (298, "none", False)
    assert sum(steps) == 298
    assert database(data).read_bytes() == before
    with Catalog(data) as catalog:
        catalog.open("shop").seal()
        assert catalog.verify("shop").segments == "intact"
        with pytest.raises(NotFoundError):
            catalog.verify("none")


def test_damaged_items_are_named_and_taken_out_only_when_asked(data: Path) -> None:
    flip_vector(data, 20)
    flip(database(data), b'{"n":33,')
    with Catalog(data) as catalog:
        report = catalog.verify("shop")
        assert not report.intact
        assert report.damaged == ("k0020", "k0033")
        assert catalog.verify("shop") == report
        with pytest.raises(DataLossError, match="k0020"):
            catalog.open("shop")
        report = catalog.verify("shop", repair=True)
        assert (report.damaged, report.repaired) == (("k0020", "k0033"), True)
        assert catalog.verify("shop").intact
        collection = catalog.open("shop")
        assert collection.count() == 296
        assert collection.get(["k0020", "k0033", "k0034"])[:2] == [None, None]
        collection.upsert([items()[20]])
        assert collection.count() == 297


def test_a_reader_notices_a_repair(data: Path) -> None:
    with Catalog(data, read_only=True) as reader:
        reading = reader.open("shop")
        assert reading.count() == 298
        flip_vector(data, 20)
        with Catalog(data) as catalog:
            catalog.verify("shop", repair=True)
        assert reading.count() == 297


def test_a_vector_comes_back_from_a_segment(data: Path) -> None:
    with Catalog(data) as catalog:
        catalog.open("shop").seal()
        expected = contents(catalog.open("shop"))
    flip_vector(data, 20)
    with Catalog(data) as catalog:
        # The segment serves searches; whoever reads the row itself is told.
        assert catalog.open("shop").search(items()[20].vector[None], SearchOptions(k=1))[0][0].key == "k0020"
        with pytest.raises(DataLossError, match="k0020"):
            catalog.open("shop").get(["k0020"])
        report = catalog.verify("shop", repair=True)
        assert (report.restored, report.damaged, report.items) == (("k0020",), (), 298)
        assert contents(catalog.open("shop")) == expected
        assert catalog.verify("shop").intact


def change(statement: str) -> Callable[[Path], None]:
    def run(data: Path) -> None:
        with sqlite3.connect(database(data)) as connection:
            connection.execute(statement)
        connection.close()

    return run


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (change("DELETE FROM item WHERE sequence = 30"), 297),
        (change("DELETE FROM vector WHERE sequence = 30"), 297),
        (change("UPDATE state SET count = 5"), 298),
        (change("UPDATE state SET labelled = 5"), 298),
    ],
)
def test_rows_and_counters_that_do_not_agree(data: Path, damage: Callable[[Path], None], left: int) -> None:
    damage(data)
    with Catalog(data) as catalog:
        assert not catalog.verify("shop").intact
        with pytest.raises(DataLossError):
            catalog.open("shop")
        catalog.verify("shop", repair=True)
        assert catalog.verify("shop").intact
        assert catalog.open("shop").info().count == left
        assert len(contents(catalog.open("shop"))) == left


@pytest.mark.parametrize("lost", [1, 3])
def test_writes_that_vanished_from_the_log_are_missed_until_a_repair(data: Path, lost: int) -> None:
    folder = database(data).parent
    with Catalog(data) as catalog:
        collection = catalog.open("shop")
        kept = collection.info().sequence
        for number in range(lost):
            collection.upsert([VectorItem(f"last {number}", np.ones(DIM, np.float32))])
        # What a killed process leaves, with a bit of the log's first frame flipped.
        shutil.copytree(folder, data / "left")
    log = data / "left" / "items.sqlite-wal"
    frames = bytearray(log.read_bytes())
    frames[100] ^= 1
    shutil.rmtree(folder)
    log.write_bytes(frames)
    (data / "left").rename(folder)
    with Catalog(data) as catalog:
        with pytest.raises(DataLossError, match=rf"writes {kept + 1} to {kept + lost} were acknowledged"):
            catalog.open("shop")
        assert catalog.verify("shop").missing_writes == lost
        catalog.verify("shop", repair=True)
        assert catalog.open("shop").count() == 298


def test_segments_that_are_whole_and_differ_from_whole_rows_are_reported_and_removed(data: Path) -> None:
    shutil.copytree(data, data / "copy")
    for folder, value in ((data, 1.0), (data / "copy", -1.0)):
        with Catalog(folder) as catalog:
            catalog.open("shop").upsert([VectorItem("last", np.full(DIM, value, np.float32))])
            catalog.open("shop").seal()
    shutil.copy(database(data / "copy"), database(data))
    with Catalog(data) as catalog:
        report = catalog.verify("shop")
        assert (report.segments, report.damaged, report.items) == ("damaged", (), COUNT - 1)
        assert catalog.verify("shop", repair=True).repaired
        assert catalog.verify("shop").segments != "damaged"


def test_a_snapshot_is_of_the_sequence_number_that_its_name_says(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Catalog(data) as catalog:
        collection = catalog.open("shop")

        def then_write(*arguments: Any) -> State:
            state: State = read_state(*arguments)
            collection.upsert([VectorItem("later", np.ones(DIM, np.float32))])
            return state

        monkeypatch.setattr(snapshots, "read_state", then_write)
        taken = catalog.snapshot("shop")
        restored = catalog.restore(taken.name, "then")
        assert (restored.count, catalog.open("then").get(["later"])) == (COUNT - 2, [None])
        assert (taken.count, taken.sequence) == (restored.count, restored.sequence)


def test_a_file_of_vectors_that_could_not_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    path.write_bytes(b"old")
    with contextlib.suppress(KeyboardInterrupt), VectorFile(path, space="ik1-a", dim=DIM) as file:
        file.upsert(items(10))
        raise KeyboardInterrupt
    assert (path.read_bytes(), [one.name for one in tmp_path.iterdir()]) == (b"old", [path.name])


@pytest.mark.parametrize("number", [b"", b"half", b"\xff" * 12], ids=["empty", "cut", "torn"])
def test_a_number_of_acknowledged_writes_that_is_not_whole_is_not_believed(data: Path, number: bytes) -> None:
    (database(data).parent / "acknowledged").write_bytes(number)
    with Catalog(data) as catalog:
        assert catalog.verify("shop").missing_writes == 0
        assert catalog.open("shop").count() == COUNT - 2


def test_a_reader_need_not_know_the_latest_acknowledged_write(data: Path) -> None:
    # As when it began to read right before the write was committed.
    folder = database(data).parent
    with Catalog(data, read_only=True) as reader:
        collection = reader.open("shop")
        with contextlib.closing(Watermark(folder, "shop", read_only=False)) as watermark:
            watermark.write(collection.info().sequence + 1)
        collection.close()
        assert reader.open("shop").count() == COUNT - 2


def test_repair_needs_the_lock_and_checking_does_not(data: Path) -> None:
    with Catalog(data) as catalog, Catalog(data) as other:
        catalog.open("shop")
        assert other.verify("shop").intact
        for act in (lambda: other.verify("shop", repair=True), lambda: other.compact("shop")):
            with pytest.raises(FailedPreconditionError, match="open for writing"):
                act()


def test_compacting_gives_space_back_and_keeps_every_item(data: Path) -> None:
    with Catalog(data) as catalog:
        collection = catalog.open("shop")
        collection.upsert([VectorItem(f"x{n}", np.ones(DIM, np.float32), None, {"x": "y" * 2000}) for n in range(500)])
        collection.delete([f"x{n}" for n in range(500)])
        expected = contents(collection)
        before, after = catalog.compact("shop")
        assert after < before / 2
        assert contents(catalog.open("shop")) == expected
        assert catalog.open("shop")._store.snapshot().live == len(catalog.open("shop")._store.snapshot())


def test_a_snapshot_is_of_one_moment_while_all_is_written(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "SEAL_FROM", 50)
    stop = threading.Event()
    with Catalog(data) as catalog:
        collection = catalog.open("shop")

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                # Both or neither.
                collection.upsert(
                    [VectorItem(side, np.ones(DIM, np.float32), str(number)) for side in ("left", "right")]
                )

        writer = threading.Thread(target=write)
        writer.start()
        taken = [catalog.snapshot("shop") for _ in range(5)]
        stop.set()
        writer.join()
        assert {one.name for one in catalog.snapshots()} == {one.name for one in taken}
        for number, one in enumerate(taken):
            info = catalog.restore(one.name, f"copy-{number}")
            assert (info.count, info.sequence, info.space) == (one.count, one.sequence, "ik1-a")
            copy = catalog.open(f"copy-{number}")
            assert catalog.verify(f"copy-{number}").intact
            sides = copy.get(["left", "right"])
            assert (sides[0] and sides[0].label) == (sides[1] and sides[1].label)
            assert contents(copy)[:290] == contents(collection)[:290]


def test_restoring_replaces_only_when_asked_and_only_by_what_is_whole(data: Path) -> None:
    with Catalog(data) as catalog:
        taken = catalog.snapshot("shop")
        expected = contents(catalog.open("shop"))
        catalog.open("shop").delete(["k0001"])
        with pytest.raises(AlreadyExistsError, match="replace"):
            catalog.restore(taken.name)
        assert catalog.restore(taken.name, replace=True).count == 298
        assert contents(catalog.open("shop")) == expected
        copy = data / "snapshots" / taken.name / "items.sqlite"
        whole = bytearray(copy.read_bytes())
        whole[5000] ^= 1
        copy.write_bytes(whole)
        with pytest.raises(DataLossError, match="SHA-256"):
            catalog.restore(taken.name, replace=True)
        assert contents(catalog.open("shop")) == expected
        for name in ("shop/../shop", "../x", "/etc", "shop/.new-1", "shop/"):
            with pytest.raises(InvalidArgumentError):
                catalog.restore(name)
        with pytest.raises(NotFoundError):
            catalog.restore("shop/20000101T000000Z-1")
    assert sorted(path.name for path in (data / "collections").iterdir()) == [".lock", "shop"]


def test_a_collections_name_stands_for_its_latest_snapshot(data: Path) -> None:
    with Catalog(data) as catalog:
        catalog.snapshot("shop")
        catalog.open("shop").delete(["k0001"])
        latest = catalog.snapshot("shop")
        catalog.open("shop").delete(["k0002"])
        assert catalog.restore("shop", "then").count == latest.count
        assert catalog.restore("shop", replace=True).count == latest.count
        with pytest.raises(NotFoundError, match="no snapshot of 'shoq'"):
            catalog.restore("shoq", "then")
        (data / "snapshots" / "shop").rename(data / "snapshots" / "shoq")
        assert {one.name.partition("/")[0] for one in catalog.snapshots()} == {"shoq"}
        assert catalog.restore("shoq", "aside").count == latest.count


def test_what_a_killed_snapshot_left_is_removed(data: Path) -> None:
    (data / "snapshots" / "shop" / ".new-0123456789abcdef").mkdir(parents=True)
    with Catalog(data) as catalog:
        taken = catalog.snapshot("shop")
    assert [path.name for path in (data / "snapshots" / "shop").iterdir()] == [taken.name.removeprefix("shop/")]


def test_parquet_there_and_back(data: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "shop.parquet"
    with Catalog(data) as catalog:
        collection = catalog.open("shop")
        assert export_items(collection.items(), path, space=collection.space, dim=DIM) == 298
        table = pq.read_table(path)
        assert str(table.schema.field("vector").type) == f"fixed_size_list<element: float>[{DIM}]"
        source = ParquetItems(path)
        assert (source.count, source.dim, source.space) == (298, DIM, "ik1-a")
        copy = catalog.create("copy", space=source.space, dim=source.dim)
        steps: list[int] = []
        assert import_items(source, copy.upsert, steps.append) == 298 == sum(steps)
        source.close()
        assert [row[:5] for row in contents(copy)] == [row[:5] for row in contents(collection)]


def test_a_failed_export_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> "list[IndexedItem]":
        raise OSError("no")

    def some() -> object:
        yield IndexedItem("a", np.ones(DIM, np.float32))
        yield broken()

    with pytest.raises(OSError, match="no"):
        export_items(some(), tmp_path / "x.parquet", space="s", dim=DIM)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_parquet_of_items_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    with pytest.raises(NotFoundError):
        ParquetItems(path)
    path.write_bytes(b"PAR1 nothing of the kind PAR1")
    with pytest.raises(InvalidArgumentError, match="no Parquet"):
        ParquetItems(path)
    pq.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(InvalidArgumentError, match="'vector'"):
        ParquetItems(path)
    pq.write_table(pa.table({"key": ["a"], "vector": [[1.0, 2.0]]}), path)
    with pytest.raises(InvalidArgumentError, match="fixed_size_list"):
        ParquetItems(path)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0]), 2)
    for payload in ("[1]", "[" * 100_000):
        pq.write_table(pa.table({"key": ["a"], "vector": vectors, "payload": [payload]}), path)
        with pytest.raises(InvalidArgumentError, match="JSON object"):
            list(ParquetItems(path))
