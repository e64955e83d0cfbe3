"""Sealed segments only ever save time: whatever becomes of them, a collection answers as its database says."""

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagekin.index.local import maintenance, store
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.storage.columns import Columns
from imagekin.index.storage.mapped_arrays import map_rows
from imagekin.index.types import ClassifyOptions, SearchOptions, VectorItem

Answers = list[tuple[str, float, str | None]]
Sealed = tuple[Path, Answers]
DIM = 8
COUNT = 3000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "SEAL_FROM", 500)
    monkeypatch.setattr(maintenance, "SEAL_WHEN_IDLE_FROM", 1)
    monkeypatch.setattr(maintenance, "_SCRUB_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(maintenance, "_REST_FACTOR", 0.0)


def items(first: int, last: int, seed: int = 0) -> list[VectorItem]:
    vectors = np.random.default_rng(seed).standard_normal((last, DIM)).astype(np.float32)
    names = [None, "red", "blue"]
    return [
        VectorItem(f"k{n}", vectors[n], names[n % 3], {"n": n}, bytes([n % 251 + 1]) * 32 if n % 2 else None)
        for n in range(first, last)
    ]


def answers(collection: LocalCollection) -> Answers:
    queries = np.random.default_rng(9).standard_normal((20, DIM)).astype(np.float32)
    found = collection.search(queries, SearchOptions(k=7))
    return [(one.key, one.similarity, one.label) for answer in found for one in answer]


@pytest.fixture
def sealed(tmp_path: Path) -> Sealed:
    """Make a collection with dead rows that was sealed in several runs, and what it answers."""
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=DIM)
        collection.upsert(items(0, 1000))
        collection._store._maintenance.seal()
        collection.upsert(items(1000, COUNT))
        collection.delete([f"k{n}" for n in range(0, 300)])
        collection._store._maintenance.seal()
        collection.upsert(items(300, 400, seed=1))
    folder = tmp_path / "collections" / "shop"
    expected = answers_without_segments(folder, tmp_path / "plain")
    return folder, expected


def answers_without_segments(folder: Path, aside: Path) -> Answers:
    copy = aside / "collections" / folder.name
    copy.mkdir(parents=True)
    shutil.copy(folder / "items.sqlite", copy)
    with Catalog(aside, read_only=True) as catalog:
        return answers(catalog.open(folder.name))


def open_again(folder: Path, read_only: bool = False) -> "Catalog":
    return Catalog(folder.parent.parent, read_only=read_only)


def wait_for_scrub(keeper: maintenance.Maintenance) -> None:
    end = time.monotonic() + 30
    while keeper._unchecked is not None:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_sealed_collection_answers_like_its_database(
    sealed: Sealed, read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = sealed
    monkeypatch.setattr(store, "load", None)  # not every row is read
    with open_again(folder, read_only) as catalog:
        collection = catalog.open("shop")
        assert collection._store.sealed is not None
        assert len(collection._store.sealed.segments) == 3
        assert answers(collection) == expected
        assert collection.count() == COUNT - 300 == collection.info().count
        assert collection.classify(np.ones((1, DIM), np.float32), ClassifyOptions())[0].label in ("red", "blue")


def test_reopening_goes_on_where_the_segments_end(sealed: Sealed) -> None:
    folder, _ = sealed
    for round_number in range(4):
        with open_again(folder) as catalog:
            collection = catalog.open("shop")
            collection.upsert(items(COUNT + 10 * round_number, COUNT + 10 * round_number + 10))
            collection.delete([f"k{1000 + round_number}"])
            assert collection.count() == COUNT - 300 + 9 * (round_number + 1)
    expected = answers_without_segments(folder, folder.parent / "again")
    with open_again(folder, read_only=True) as catalog:
        assert answers(catalog.open("shop")) == expected


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in (folder / "segments").rglob("*") if path.is_file())


def test_every_file_flipped_cut_or_removed_is_healed(sealed: Sealed, tmp_path: Path) -> None:
    folder, expected = sealed
    random = np.random.default_rng(0)
    saved = tmp_path / "saved"
    shutil.copytree(folder / "segments", saved)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        for place in random.integers(0, len(data), 3):
            data[place] ^= 1 << int(random.integers(8))
        path.write_bytes(data)

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    names = files(folder)
    assert len(names) == 8
    for name in names:
        for damage in (flip, cut, Path.unlink):
            shutil.rmtree(folder / "segments")
            shutil.copytree(saved, folder / "segments")
            damage(folder / name)
            with open_again(folder) as catalog:
                collection = catalog.open("shop")
                upkeep_of = collection._store._maintenance
                wait_for_scrub(upkeep_of)
                with upkeep_of._work_lock:
                    assert answers(collection) == expected, (name, damage)
                collection._store._maintenance.seal()
            manifest = collection._store.sealed
            assert manifest is not None
            assert collection._store.segments.scrub(manifest), (name, damage)


@pytest.mark.parametrize("column", ["labels", "vectors"])
@pytest.mark.parametrize("apart_from", [1, 10**6], ids=["in the background", "by the writer"])
def test_a_damaged_row_is_not_compacted_into_one_that_passes_for_whole(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch, column: str, apart_from: int
) -> None:
    folder, _ = sealed
    monkeypatch.setattr(store, "COMPACT_FROM", 1)
    monkeypatch.setattr(store, "COMPACT_APART_FROM", apart_from)
    monkeypatch.setattr(maintenance, "_SCRUB_AFTER_SECONDS", 60.0)
    (path,) = (folder / "segments").rglob(column)
    data = bytearray(path.read_bytes())
    data[len(data) // (COUNT + 100) * 2500 + 2] ^= 0x40
    path.write_bytes(data)
    with open_again(folder) as catalog:
        collection = catalog.open("shop")
        collection.delete([f"k{number}" for number in range(COUNT // 2)])
        if apart_from == 1:
            collection._store._maintenance._compact()
        collection.compact()
        snapshot = collection._store.snapshot()
        stored = {item.key: item for item in collection.items()}
        assert len(stored) == snapshot.live == len(snapshot)
        for slot in range(len(snapshot)):
            item = stored[snapshot.key(slot)]
            assert snapshot.label(slot) == item.label
            np.testing.assert_array_equal(snapshot.vectors[slot], item.vector)


def test_segments_of_another_history_are_not_believed(sealed: Sealed, tmp_path: Path) -> None:
    folder, expected = sealed
    (tmp_path / "kept").mkdir()
    shutil.copy(folder / "items.sqlite", tmp_path / "kept")
    with open_again(folder) as catalog:
        # The same keys in the same order with other vectors: equal counts, equal sequence numbers.
        catalog.open("shop").upsert(items(400, COUNT, seed=5))
        catalog.open("shop")._store._maintenance.compact()
    shutil.copy(tmp_path / "kept" / "items.sqlite", folder)
    (folder / "acknowledged").unlink()
    with open_again(folder) as catalog:
        assert answers(catalog.open("shop")) == expected


def test_segments_of_another_history_of_the_same_length_are_not_believed(tmp_path: Path) -> None:
    """A collection was copied, both went on, and one database came to the other's segments: only the rows differ."""
    with Catalog(tmp_path / "0") as catalog:
        catalog.create("shop", space="ik1-a", dim=DIM).upsert(items(0, 10))
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    folders = [tmp_path / str(seed) / "collections" / "shop" for seed in range(2)]
    for seed, folder in enumerate(folders):
        with open_again(folder) as catalog:
            catalog.open("shop").upsert(items(10, COUNT, seed=seed))
            catalog.open("shop").seal()
    expected = answers_without_segments(folders[1], tmp_path / "plain")
    shutil.copy(folders[1] / "items.sqlite", folders[0])
    with open_again(folders[0]) as catalog:
        assert answers(catalog.open("shop")) == expected


def test_segments_of_another_collection_of_the_same_length_are_not_believed(tmp_path: Path) -> None:
    """All rows but one are the same, so that only the description of the collection tells them apart."""
    folders = []
    for number in range(2):
        with Catalog(tmp_path / str(number)) as catalog:
            collection = catalog.create("shop", space=f"ik1-{number}", dim=DIM)
            collection.upsert([*items(0, 5), *items(5, 6, seed=number), *items(6, COUNT)])
            collection.seal()
        folders.append(tmp_path / str(number) / "collections" / "shop")
    expected = answers_without_segments(folders[1], tmp_path / "plain")
    near = items(5, 6, seed=1)[0].vector
    shutil.copy(folders[1] / "items.sqlite", folders[0])
    with open_again(folders[0]) as catalog:
        collection = catalog.open("shop")
        assert answers(collection) == expected
        (best,) = collection.search(near[None], SearchOptions(k=1))[0]
        assert best.key == "k5"
        assert best.similarity == pytest.approx(1.0, abs=1e-5)


def test_a_manifest_that_was_changed_is_not_believed_though_it_can_be_read(sealed: Sealed) -> None:
    folder, expected = sealed
    (manifest,) = folder.rglob("manifest*")
    text = manifest.read_bytes()
    assert text.count(b'"red"') == 1
    manifest.write_bytes(text.replace(b'"red"', b'"rod"'))
    with open_again(folder) as catalog:
        assert answers(catalog.open("shop")) == expected


def test_tombstones_since_the_segments_were_sealed_are_kept(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, the segments would be of no use, and every row would be read again."""
    folder, _ = sealed
    monkeypatch.setattr(store, "KEPT_TOMBSTONES", 2)
    monkeypatch.setattr(maintenance, "SEAL_WHEN_IDLE_FROM", 10**9)
    with open_again(folder) as catalog:
        catalog.open("shop").seal()
    for n in range(300, 312):
        with open_again(folder) as catalog:
            monkeypatch.setattr(catalog.open("shop")._store._maintenance, "seal", lambda: None)
            catalog.open("shop").delete([f"k{n}"])
    with open_again(folder) as catalog:
        assert catalog.open("shop")._store.sealed is not None
        assert catalog.open("shop").count() == COUNT - 300 - 12


def test_what_is_written_while_columns_are_copied_is_in_the_new_ones(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = sealed
    with open_again(folder) as catalog:
        collection = catalog.open("shop")
        count, catch_up, late = collection.count(), Columns.catch_up, iter(items(COUNT, COUNT + 1))

        def then_write(self: Columns, *arguments: Any) -> None:
            catch_up(self, *arguments)
            for item in late:
                collection.upsert([item])

        monkeypatch.setattr(Columns, "catch_up", then_write)
        collection._store._maintenance.compact()
        new = items(COUNT, COUNT + 1)[0]
        assert collection.search(new.vector[None], SearchOptions(k=1))[0][0].key == new.key
        assert collection._store.snapshot().live == collection.count() == count + 1


def test_a_reader_goes_on_when_the_writer_lays_everything_out_anew(
    sealed: Sealed,
) -> None:
    folder, expected = sealed
    with open_again(folder, read_only=True) as reader, open_again(folder) as catalog:
        reading = reader.open("shop")
        assert answers(reading) == expected
        writing = catalog.open("shop")
        for _ in range(3):
            writing.upsert(items(300, 1500))
            writing._store._maintenance.compact()
            assert answers(reading) == answers(writing)


def test_sealing_and_compacting_go_on_while_all_is_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "COMPACT_FROM", 64)
    monkeypatch.setattr(store, "COMPACT_APART_FROM", 64)
    failures: list[BaseException] = []
    stop = threading.Event()
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=DIM)
        collection.upsert(items(0, 1000))

        def read() -> None:
            try:
                while not stop.is_set():
                    found = answers(collection)
                    assert len(found) == 140
                    assert collection.count() == 1000
                    assert len({key for key, _, _ in found[:7]}) == 7
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for seed in range(40):
            collection.upsert(items(0, 1000, seed=seed)[seed * 20 : seed * 20 + 150])
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert collection._store._lineage > 0
        expected = answers(collection)
    with Catalog(tmp_path) as catalog:
        assert answers(catalog.open("shop")) == expected


def test_a_full_disk_leaves_what_was_sealed(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = sealed

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with open_again(folder) as catalog:
        collection = catalog.open("shop")
        before = collection._store.sealed
        monkeypatch.setattr(os, "write", full)
        collection.upsert(items(0, 700))
        expected = answers(collection)
    monkeypatch.undo()
    with open_again(folder) as catalog:
        assert catalog.open("shop")._store.sealed == before
        assert answers(catalog.open("shop")) == expected


def test_an_array_goes_on_in_memory_and_never_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    rows = np.arange(3001, dtype=np.int64)
    rows.tofile(path)
    array = map_rows(path, np.int64, 3000, 10_000)
    assert array[:3000].tolist() == rows[:3000].tolist()
    array[2990:9000] = 7
    path.unlink()
    assert array[2990:9000].tolist() == [7] * 6010
    assert array[:2990].tolist() == rows[:2990].tolist()
    with pytest.raises(FileNotFoundError):
        map_rows(path, np.int64, 3000, 10_000)
    rows.tofile(path)
    with pytest.raises(ValueError, match="short"):
        map_rows(path, np.int64, 3002, 10_000)
    map_rows(path, np.int64, 3001, 10_000)[:] = -1
    assert np.fromfile(path, np.int64).tolist() == rows.tolist()
