"""A catalog makes, opens, lists and drops collections by name, and a name never leads out of its folder."""

import fcntl
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagekin.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from imagekin.index.local import snapshots
from imagekin.index.local.catalog import Catalog
from imagekin.index.types import VectorItem

ONE = np.ones(2, np.float32)


def test_collections_come_and_go(tmp_path: Path) -> None:
    with Catalog(tmp_path / "data") as catalog:
        assert catalog.list() == []
        catalog.create("b", space="ik1-a", dim=2).upsert([VectorItem("k", ONE, "x")])
        catalog.create("a", space="ik1-b", dim=3, index_kind="flat")
        infos = catalog.list()
        assert [(info.name, info.space, info.dim, info.count, info.labelled) for info in infos] == [
            ("a", "ik1-b", 3, 0, 0),
            ("b", "ik1-a", 2, 1, 1),
        ]
        with pytest.raises(AlreadyExistsError, match="'a'"):
            catalog.create("a", space="ik1-a", dim=2)
        opened = catalog.open("b")
        assert catalog.drop("b") == 1
        assert opened.closed
        with pytest.raises(NotFoundError, match="'b'"):
            catalog.open("b")
        with pytest.raises(NotFoundError, match="'b'"):
            catalog.drop("b")
        assert catalog.create("b", space="ik1-c", dim=5).count() == 0
    assert sorted(path.name for path in (tmp_path / "data" / "collections").iterdir()) == [".lock", "a", "b"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "A", "é", "a b", "a\n", "a\x00", "-a", "_a", ".lock", "x" * 65],
)
def test_a_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").mkdir()
    with Catalog(tmp_path / "data") as catalog:
        for act in (catalog.open, catalog.drop, catalog.describe):
            with pytest.raises(InvalidArgumentError, match="cannot name a collection"):
                act(name)
        with pytest.raises(InvalidArgumentError, match="cannot name a collection"):
            catalog.create(name, space="ik1-a", dim=2)


@pytest.mark.parametrize(
    ("space", "dim", "kind"),
    [("", 2, "auto"), ("x" * 129, 2, "auto"), ("s", 0, "auto"), ("s", 65_537, "auto"), ("s", 2, "best")],
)
def test_a_collection_out_of_range_is_refused(tmp_path: Path, space: str, dim: int, kind: str) -> None:
    with Catalog(tmp_path) as catalog:
        with pytest.raises(InvalidArgumentError):
            catalog.create("name", space=space, dim=dim, index_kind=kind)
        assert catalog.list() == []


def test_reading_only_changes_nothing(tmp_path: Path) -> None:
    with Catalog(tmp_path / "none", read_only=True) as catalog:
        assert catalog.list() == []
        with pytest.raises(NotFoundError):
            catalog.open("shop")
    assert not (tmp_path / "none").exists()
    with Catalog(tmp_path) as catalog:
        catalog.create("shop", space="ik1-a", dim=2).upsert([VectorItem("a", ONE)])
    with Catalog(tmp_path, read_only=True) as catalog:
        collection = catalog.open("shop")
        assert collection.count() == 1
        for act in (
            lambda: collection.upsert([VectorItem("b", ONE)]),
            lambda: collection.delete(["a"]),
            lambda: catalog.drop("shop"),
            lambda: catalog.create("new", space="ik1-a", dim=2),
        ):
            with pytest.raises(FailedPreconditionError, match="reading only"):
                act()


def test_what_a_killed_process_left_half_made_is_removed(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        for name in (".new-abc", ".gone-abc"):
            (tmp_path / "collections" / name).mkdir()
            (tmp_path / "collections" / name / "items.sqlite").touch()
        assert catalog.list() == []
        catalog.create("shop", space="ik1-a", dim=2)
        assert sorted(path.name for path in (tmp_path / "collections").iterdir()) == [".lock", "shop"]


def test_a_data_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPreconditionError, match="choose another"):
        Catalog(tmp_path / "file" / "data")


@pytest.mark.parametrize("act", ["create", "drop"])
def test_collections_are_not_made_or_dropped_while_another_process_does_so(tmp_path: Path, act: str) -> None:
    with Catalog(tmp_path) as catalog, ThreadPoolExecutor(1) as pool:
        catalog.create("old", space="ik1-a", dim=4)
        with (tmp_path / "collections" / ".lock").open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            if act == "create":
                change: Future[object] = pool.submit(catalog.create, "new", space="ik1-a", dim=4)
            else:
                change = pool.submit(catalog.drop, "old")
            time.sleep(0.2)
            assert not change.done()
            assert catalog.names() == ["old"]
        change.result(30)
        assert catalog.names() == (["new", "old"] if act == "create" else [])


def test_a_collection_made_while_a_snapshot_was_restored_is_not_replaced_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Catalog(tmp_path) as catalog:
        catalog.create("shop", space="ik1-a", dim=4).upsert([VectorItem("a", np.ones(4, np.float32))])
        snapshot = catalog.snapshot("shop")
        put_back = snapshots.put_back

        def slowly(*arguments: Any) -> None:
            put_back(*arguments)
            catalog.create("other", space="ik1-b", dim=2)

        monkeypatch.setattr(snapshots, "put_back", slowly)
        with pytest.raises(AlreadyExistsError):
            catalog.restore(snapshot.name, "other")
        assert catalog.describe("other").dim == 2
