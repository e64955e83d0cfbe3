"""What gets its name is on disk, and the name is on disk before it is told: no power failure leaves a half of it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from imagekin.index.ingest.parquet import export_items
from imagekin.index.ingest.vector_file import VectorFile
from imagekin.index.local.catalog import Catalog
from imagekin.index.storage.transactions import Transaction
from imagekin.index.types import VectorItem

DIM = 8


class Disk:
    """Watches which files and folders are put on disk, and which get a name.

    Attributes:
        named: every path that got its name.
        synced_before: paths that were put on disk before each of them did.
        unnamed: folders that hold a name which is not on disk yet.
        early: files that got their name before their bytes were on disk.
    """

    def __init__(self) -> None:
        self.named: list[Path] = []
        self.synced_before: dict[Path, list[Path]] = {}
        self.unnamed: set[Path] = set()
        self.early: list[Path] = []
        self._synced: list[Path] = []
        self._inodes: set[int] = set()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch this process inside a block; SQLite's own calls are not seen."""
        with contextlib.ExitStack() as stack:
            for name in ("rename", "replace"):
                stack.enter_context(mock.patch.object(os, name, self._naming(getattr(os, name))))
            stack.enter_context(mock.patch.object(os, "fsync", self._syncing(os.fsync)))
            yield

    def _syncing(self, fsync: Callable[[int], None]) -> Callable[[int], None]:
        def watched(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").resolve()
            self._synced.append(path)
            self.unnamed.discard(path)
            self._inodes.add(os.fstat(descriptor).st_ino)

        return watched

    def _naming(self, rename: Callable[..., None]) -> Callable[..., None]:
        def watched(source: Any, target: Any) -> None:
            path = Path(source)
            files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
            self.early += [file for file in files if file.stat().st_ino not in self._inodes]
            self.synced_before[Path(target)] = list(self._synced)
            rename(source, target)
            self.named.append(Path(target))
            self.unnamed.add(Path(target).resolve().parent)

        return watched


def items(count: int) -> list[VectorItem]:
    vectors = np.random.default_rng(count).standard_normal((count, DIM)).astype(np.float32)
    return [VectorItem(f"k{n}", vector, "a label") for n, vector in enumerate(vectors)]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog(tmp_path / "data") as made:
        made.create("shop", space="ik1-a", dim=DIM, index_kind="hnsw").upsert(items(50))
        made.snapshot("shop")
        yield made


def seal(catalog: Catalog) -> None:
    catalog.open("shop").seal()


def build_an_index(catalog: Catalog) -> None:
    catalog.open("shop").build_index()


def take_a_snapshot(catalog: Catalog) -> None:
    catalog.open("shop").delete(["k0"])
    catalog.snapshot("shop")


def restore(catalog: Catalog) -> None:
    catalog.restore(catalog.snapshots()[0].name, "other")


@pytest.mark.parametrize("act", [seal, build_an_index, take_a_snapshot, restore])
def test_what_gets_its_name_is_on_disk_and_so_is_the_name(catalog: Catalog, act: Callable[[Catalog], None]) -> None:
    disk = Disk()
    with disk.watched():
        act(catalog)
    # The lock holds nothing, and the number of the last acknowledged write may be lost.
    assert {path.name for path in disk.early} <= {"lock", "acknowledged"}
    assert disk.named
    assert disk.unnamed == set()


def test_a_collection_that_was_made_or_dropped_is_so_on_disk(catalog: Catalog) -> None:
    disk = Disk()
    with disk.watched():
        catalog.create("other", space="ik1-a", dim=DIM)
        assert disk.named[-1].name == "other"
        assert disk.unnamed == set()
        catalog.drop("other")
        assert {folder for folder in disk.unnamed if folder.exists()} == set()


def test_columns_and_dead_rows_are_on_disk_before_the_manifest_names_them(catalog: Catalog) -> None:
    disk = Disk()
    with disk.watched():
        seal(catalog)
    sealed = catalog.open("shop")._store.sealed
    assert sealed is not None
    dead, manifest = disk.named
    assert (dead.name, manifest.name) == (f"dead-{sealed.watermark}", "manifest")
    columns = {"vectors", "sequences", "labels", "hashes", "key-ends", "keys"}
    assert columns | {sealed.generation} <= {path.name for path in disk.synced_before[manifest]}


def test_a_file_of_vectors_is_on_disk_before_it_gets_its_name(catalog: Catalog, tmp_path: Path) -> None:
    disk = Disk()
    with disk.watched():
        export_items(catalog.open("shop").items(), tmp_path / "exported.parquet", space="ik1-a", dim=DIM)
        with VectorFile(tmp_path / "embedded.parquet", space="ik1-a", dim=DIM) as file:
            file.upsert(items(5))
    assert [path.name for path in disk.named] == ["exported.parquet", "embedded.parquet"]
    assert disk.early == []


def test_a_commit_is_on_disk_before_it_is_acknowledged(catalog: Catalog) -> None:
    def settings(transaction: Transaction) -> list[object]:
        names = ("journal_mode", "synchronous")
        return [transaction.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    full = 2
    assert catalog.open("shop")._store.write(settings) == ["wal", full]
