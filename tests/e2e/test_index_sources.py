"""`imagekin index` and `imagekin embed --out vectors.parquet` on every promise, into a folder and a real server."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from imagekin.index.local.catalog import Catalog
from imagekin.index.types import IndexedItem
from tests.artifacts import tiny_artifact
from tests.e2e.processes import run, running_server
from tests.sources.pictures import png, tar_bytes, write_files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "model.onnx")


@contextlib.contextmanager
def destination(kind: str, model: Path, data: Path) -> Iterator[list[str]]:
    """Yield the options of a local folder, or of a server that keeps its collections in that folder."""
    if kind == "local":
        yield ["--data-dir", str(data)]
        return
    with running_server(model, data) as server:
        yield ["--address", server.address]
        assert server.stop() == 0


def answer(*arguments: str, status: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def items(data: Path, name: str) -> dict[str, IndexedItem]:
    with Catalog(data) as catalog, catalog.open(name) as collection:
        return {item.key: item for item in collection.items()}


@pytest.mark.parametrize("kind", ["local", "server"])
def test_synced_after_changes_the_collection_equals_a_fresh_one(tmp_path: Path, model: Path, kind: str) -> None:
    data, photos = tmp_path / "data", tmp_path / "photos"
    rows = [{"path": f"{n}.png", "label": "x", "price": n} for n in range(40)]
    write_files(photos, {f"{n}.png": png(n) for n in range(40)})
    manifest = photos / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    with destination(kind, model, data) as where:
        command = ["index", "shop", str(manifest), "--model", str(model), *where, "--sync"]
        assert answer(*command)["written"] == 40
        write_files(photos, {"3.png": png(100), "new.png": png(101), "5.png": b"no image now", "copy.png": png(7)})
        (photos / "9.png").unlink()
        rows = [*rows[:20], {"path": "new.png", "label": "y"}, {"path": "copy.png"}]
        rows[1] = {"path": "1.png", "label": "z", "price": 1}
        rows[2] = {"path": "2.png"}
        manifest.write_text("\n".join(map(json.dumps, rows)))
        report = tmp_path / "report.parquet"
        synced = answer(*command, "--report", str(report))
        counted = ("written", "replaced", "updated", "skipped", "deleted", "duplicates", "failed_count")
        assert [synced[name] for name in counted] == [3, 1, 2, 15, 22, 1, 2]
        answer("index", "fresh", *command[2:-1])
    assert items(data, "shop").keys() == items(data, "fresh").keys()
    for key, item in items(data, "fresh").items():
        other = items(data, "shop")[key]
        assert (other.label, other.payload, other.content_hash) == (item.label, item.payload, item.content_hash)
        np.testing.assert_allclose(other.vector, item.vector, atol=1e-6)
    table = pq.read_table(report).to_pylist()
    assert {(row["key"], row["status"]) for row in table if row["status"] != "deleted"} == {
        ("5.png", "failed"),
        ("9.png", "failed"),
        ("copy.png", "duplicate"),
    }
    assert sum(row["status"] == "deleted" for row in table) == 22
    assert all(row["reason"] for row in table)


def test_an_incomplete_reading_deletes_nothing_and_conflicts_can_be_errors(tmp_path: Path, model: Path) -> None:
    files = {f"{n}.png": png(n) for n in range(9)}
    write_files(tmp_path, {"x.tar": tar_bytes(files)})
    options = ["--model", str(model), "--data-dir", str(tmp_path / "data")]
    answer("index", "shop", str(tmp_path / "x.tar"), *options)
    write_files(tmp_path, {"x.tar": tar_bytes(files)[:5000]})
    done = run("index", "shop", str(tmp_path / "x.tar"), *options, "--sync")
    assert done.returncode == 1
    assert "nothing was deleted" in done.stderr
    write_files(tmp_path, {"x.tar": tar_bytes(files | {"0.png": png(50)})})
    done = run("index", "shop", str(tmp_path / "x.tar"), *options, "--on-conflict", "error")
    assert done.returncode == 1
    assert "1 key had other content before" in done.stderr
    assert answer("index", "shop", str(tmp_path / "x.tar"), *options, "--on-conflict", "skip")["skipped"] == 9
    assert len(items(tmp_path / "data", "shop")) == 9


def test_vectors_embedded_to_a_file_are_those_of_a_collection_and_can_be_indexed(tmp_path: Path, model: Path) -> None:
    photos = write_files(tmp_path / "photos", {f"{n % 3}/{n}.png": png(n) for n in range(20)} | {"bad.png": b"bad"})
    data, out = tmp_path / "data", tmp_path / "v.parquet"
    figures = answer("embed", str(photos), "--model", str(model), "--out", str(out))
    assert (figures["images"], figures["failed_count"]) == (20, 1)
    table = pq.read_table(out)
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[16]"
    answer("index", "direct", str(photos), "--model", str(model), "--data-dir", str(data))
    answer("index", "copied", str(out), "--data-dir", str(data))
    direct, copied = items(data, "direct"), items(data, "copied")
    assert direct.keys() == copied.keys() == set(table["key"].to_pylist())
    for key, item in direct.items():
        np.testing.assert_allclose(copied[key].vector, item.vector, atol=1e-6)
        assert (copied[key].label, copied[key].content_hash) == (item.label, item.content_hash)
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "bare.parquet")
    refused = run("index", "bare", str(tmp_path / "bare.parquet"), "--data-dir", str(data))
    assert (refused.returncode, "--space" in refused.stderr) == (2, True)
    named = answer("index", "bare", str(tmp_path / "bare.parquet"), "--space", "mine", "--data-dir", str(data))
    assert named["written"] == 20


@pytest.mark.parametrize("content", [{}, {"a.png": b"bad"}])
def test_nothing_half_written_is_left_when_nothing_could_be_embedded(
    tmp_path: Path, model: Path, content: dict[str, bytes]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    write_files(photos, content)
    done = run("embed", str(photos), "--model", str(model), "--out", str(tmp_path / "v.parquet"))
    assert done.returncode == 1
    shutil.rmtree(photos)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_two_folders_with_the_same_names_do_not_replace_one_anothers_images_unless_asked(
    tmp_path: Path, model: Path
) -> None:
    write_files(tmp_path, {"a/1.png": png(1), "b/1.png": png(2)})
    options = ["--model", str(model), "--data-dir", str(tmp_path / "data")]
    answer("index", "shop", str(tmp_path / "a"), *options)
    done = run("index", "shop", str(tmp_path / "b"), *options)
    assert done.returncode == 1
    assert "1 key had other content before: use --on-conflict skip or replace" in done.stderr
    assert answer("index", "shop", str(tmp_path / "a"), *options)["skipped"] == 1
    assert "or index sources of equal names by one command" in done.stderr
    assert answer("index", "both", str(tmp_path / "a"), str(tmp_path / "b"), *options)["written"] == 2
    assert items(tmp_path / "data", "both").keys() == {"a/1.png", "b/1.png"}
    assert answer("index", "shop", str(tmp_path / "b"), *options, "--on-conflict", "replace")["replaced"] == 1


def test_labels_splits_and_what_is_passed_over_are_said(tmp_path: Path, model: Path) -> None:
    files = {f"{split}/{kind}/{n}.png": png(n) for n, (split, kind) in enumerate([("Train", "a"), ("test", "b")])}
    write_files(tmp_path / "set", files | {"Train/a/@eaDir/1.png": b"", "notes.md": b""})
    options = ["--model", str(model), "--data-dir", str(tmp_path / "data")]
    done = run("index", "shop", str(tmp_path / "set"), *options)
    lines = done.stderr.splitlines()
    assert "imagekin: labels by folder: 2 classes (a 1, b 1)" in lines
    assert "imagekin: splits: train 1, test 1" in lines
    figures = answer("index", "shop", str(tmp_path / "set"), *options)
    assert (figures["classes"], figures["splits"]) == ({"a": 1, "b": 1}, {"train": 1, "test": 1})
    assert {one["suffix"]: one["count"] for one in figures["ignored"]} == {".png": 1, ".md": 1}
