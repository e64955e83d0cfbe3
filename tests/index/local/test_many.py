"""Thousands of collections cost names: open files, threads and memory follow those in use."""

import os
import resource
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from imagekin.errors import DataLossError
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.residence import Residents
from imagekin.index.types import SearchOptions, VectorItem

ONE = np.ones(4, np.float32)
COUNT = 60


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data folder with many collections of one item."""
    with Catalog(tmp_path) as catalog:
        catalog.create("c0", space="ik1-a", dim=4).close()
    for number in range(1, COUNT):
        shutil.copytree(tmp_path / "collections" / "c0", tmp_path / "collections" / f"c{number}")
    return tmp_path


@pytest.mark.parametrize("read_only", [False, True])
def test_open_files_follow_use(data: Path, read_only: bool) -> None:
    before = open_files()
    with Catalog(data) as catalog:
        catalog.open("c1").upsert([VectorItem("k", ONE)])
    with Catalog(data, read_only=read_only, most_open=5) as catalog:
        assert len(catalog.list()) == COUNT
        assert open_files() <= before + 1
        every = [catalog.open(f"c{number}") for number in range(COUNT)]
        assert open_files() <= before + 5 * 8
        for collection in (*every, *reversed(every)):
            assert collection.count() == (collection.name == "c1")
            assert len(collection.search(ONE[None], SearchOptions(k=1))[0]) == collection.count()
            if not read_only and collection.name != "c1":
                collection.upsert([VectorItem("k", ONE)])
                collection.delete(["k"])
        assert sum(collection.is_open for collection in every) <= 5
        assert not any(collection.closed for collection in every)
        assert open_files() <= before + 5 * 8
    assert open_files() <= before


def test_a_collection_in_use_is_not_closed(data: Path) -> None:
    with Catalog(data, most_open=2) as catalog:
        first = catalog.open("c0")
        first.upsert([VectorItem(f"k{n}", ONE) for n in range(3)])
        items = first.items()
        assert next(items).key == "k0"
        for number in range(1, 10):
            catalog.open(f"c{number}")
        assert [item.key for item in items] == ["k1", "k2"]


def test_threads_share_few_open_collections(data: Path) -> None:
    with Catalog(data, most_open=3) as catalog:

        def work(own: int) -> None:
            for turn in range(30):
                name = f"c{(own * 7 + turn) % 12}"
                catalog.open(name).upsert([VectorItem(f"{own}-{turn}", ONE)])

        threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(catalog.open(f"c{number}").count() for number in range(12)) == 120


def test_a_broken_collection_is_named_and_the_others_are_served(data: Path) -> None:
    collections = data / "collections"
    (collections / "c3" / "items.sqlite").write_bytes(b"nothing of the kind" * 500)
    (collections / "c4" / "items.sqlite").unlink()
    (collections / "no collection").mkdir()
    (collections / "file").touch()
    with Catalog(data) as catalog:
        infos = catalog.list()
        assert [info.name for info in infos] == sorted(f"c{number}" for number in range(COUNT))
        broken = {info.name: info.error for info in infos if info.error}
        assert broken.keys() == {"c3", "c4"}
        assert all("damaged" in error for error in broken.values())
        for name in broken:
            with pytest.raises(DataLossError, match=name):
                catalog.open(name)
        assert catalog.open("c5").count() == 0


def test_the_limit_on_open_files_bounds_open_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((1024, 21), (64, 4), (1 << 20, 512), (resource.RLIM_INFINITY, 512)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert Residents().most == most
