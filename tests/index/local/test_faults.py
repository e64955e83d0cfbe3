"""Whatever fails, and whenever the process dies: a collection is the old one or the new one, whole."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from imagekin.errors import ImagekinError
from imagekin.index.local.catalog import Catalog
from imagekin.index.types import VectorItem
from tests import faults
from tests.disks import second_disk, small_disk

# What is done to a catalog; it is told the name of the snapshot.
Act = Callable[[Catalog, str], object]
WALKS = [faults.failures, faults.kills]


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """Return where a data folder is made again and again: in memory, where that can be had."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder) / "data"


def items(count: int, label: str) -> list[VectorItem]:
    vectors = np.random.default_rng(count).standard_normal((count, 8)).astype(np.float32)
    return [VectorItem(f"{label}-{n}", vector, label) for n, vector in enumerate(vectors)]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """Return a data folder with a collection of 5 new items, and a snapshot of it when it had 3 old ones."""
    with Catalog(tmp_path / "template") as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=8)
        collection.upsert(items(3, "old"))
        catalog.snapshot("shop")
        collection.delete([item.key for item in items(3, "old")])
        collection.upsert(items(5, "new"))
    return tmp_path / "template"


def contents(data: Path, name: str = "shop") -> set[str] | None:
    """Return the keys of a collection that is whole, None when there is none."""
    with Catalog(data) as catalog:
        if name not in catalog.names():
            return None
        assert catalog.verify(name).intact
        with catalog.open(name) as collection:
            return {item.key for item in collection.items()}


def keys(count: int, label: str) -> set[str]:
    return {item.key for item in items(count, label)}


OLD, NEW = keys(3, "old"), keys(5, "new")


def change(data: Path, act: Act, snapshot: str) -> None:
    with Catalog(data) as catalog:
        act(catalog, snapshot)


def snapshot_of(data: Path) -> str:
    with Catalog(data) as catalog:
        return catalog.snapshots()[0].name


def restore_over(catalog: Catalog, snapshot: str) -> object:
    return catalog.restore(snapshot, replace=True)


def restore_as(catalog: Catalog, snapshot: str) -> object:
    return catalog.restore(snapshot, "other")


def take(catalog: Catalog, snapshot: str) -> object:
    return catalog.snapshot("shop")


CHANGES: list[tuple[Act, str, tuple[set[str] | None, ...]]] = [
    (restore_over, "shop", (OLD, NEW)),
    (restore_as, "other", (None, OLD)),
    (lambda catalog, _: catalog.drop("shop"), "shop", (NEW, None)),
    (lambda catalog, _: catalog.compact("shop"), "shop", (NEW,)),
    (lambda catalog, _: catalog.create("other", space="ik1-a", dim=8), "other", (None, set())),
    (take, "shop", (NEW,)),
]


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize(
    ("act", "name", "right"), CHANGES, ids=["restore", "restore as", "drop", "compact", "create", "snapshot"]
)
def test_a_collection_is_old_or_new_after_a_fault_at_any_step(
    data: Path,
    template: Path,
    walk: Callable[..., object],
    act: Act,
    name: str,
    right: tuple[set[str] | None, ...],
) -> None:
    snapshot = snapshot_of(template)

    def prepare() -> None:
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(template, data)

    steps = 0
    for step in walk(lambda: change(data, act, snapshot), prepare):  # type: ignore[attr-defined]
        steps += 1
        assert contents(data, name) in right, f"at step {step}"
        assert name == "shop" or contents(data) == NEW
        with Catalog(data) as catalog:
            for info in catalog.snapshots():
                assert catalog.restore(info.name, f"copy{info.count}").count == info.count
                catalog.drop(f"copy{info.count}")
        assert not [path.name for path in (data / "collections").iterdir() if path.name.startswith(".new")]
    assert steps > 5


@pytest.mark.parametrize("elsewhere", ["snapshots", "collections"])
def test_snapshots_on_another_file_system_are_restored(tmp_path: Path, template: Path, elsewhere: str) -> None:
    with second_disk() as disk:
        shutil.move(template / elsewhere, disk / elsewhere)
        (template / elsewhere).symlink_to(disk / elsewhere)
        with Catalog(template) as catalog:
            snapshot = catalog.snapshots()[0].name
            assert restore_as(catalog, snapshot)
            assert restore_over(catalog, snapshot)
            assert catalog.snapshot("shop").count == 3
        assert contents(template) == OLD
        assert contents(template, "other") == OLD


@pytest.mark.parametrize("walk", WALKS)
def test_a_fault_while_restoring_across_file_systems_leaves_one_whole(
    tmp_path: Path, template: Path, walk: Callable[..., object]
) -> None:
    data = tmp_path / "data"
    with second_disk() as disk:
        shutil.move(template / "snapshots", disk / "snapshots")
        (template / "snapshots").symlink_to(disk / "snapshots")
        snapshot = snapshot_of(template)

        def prepare() -> None:
            shutil.rmtree(data, ignore_errors=True)
            shutil.copytree(template, data, symlinks=True)

        for step in walk(lambda: change(data, restore_over, snapshot), prepare):  # type: ignore[attr-defined]
            assert contents(data) in (OLD, NEW), f"at step {step}"


def test_a_full_disk_leaves_what_was_there_and_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 6) as disk:
        with Catalog(disk) as catalog:
            collection = catalog.create("shop", space="ik1-a", dim=8)
            collection.upsert(items(5, "new"))
            catalog.snapshot("shop")
        try:
            (disk / "filler").write_bytes(bytes(2**24))
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 (it fills the disk)
        with Catalog(disk) as catalog:
            snapshot = catalog.snapshots()[0].name
            for act in (restore_over, restore_as, take):
                with pytest.raises(ImagekinError, match="full"):
                    act(catalog, snapshot)
            assert len(catalog.snapshots()) == 1
        (disk / "filler").unlink()
        assert contents(disk) == NEW
        with Catalog(disk) as catalog:
            assert catalog.names() == ["shop"]
            assert restore_over(catalog, snapshot)
