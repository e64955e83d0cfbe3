"""A server and the command keep collections in Milvus as they keep them in a folder; here on the embedded engine."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagekin.cli import main as cli
from imagekin.client.sync_client import Client
from imagekin.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imagekin.index.open import open_collections
from imagekin.serving.settings import Settings
from imagekin.types import Item, ItemUpdate
from tests.artifacts import tiny_artifact
from tests.index.reference import assert_agree, nearest
from tests.serving.process import serving

pytest.importorskip("milvus_lite", reason="milvus-lite is one of the dev extras")

DIM = 16


def test_a_server_upserts_searches_and_classifies_in_milvus(tmp_path: Path) -> None:
    store = f"milvus-lite://{tmp_path}/shop.db"
    vectors = np.random.default_rng(0).standard_normal((40, DIM)).astype(np.float32)
    vectors[:20, 0] += 6  # two kinds
    items = [
        Item(f"item-{n:02}", label="shoe" if n < 20 else "hat", vector=vector, payload={"n": n})
        for n, vector in enumerate(vectors)
    ]
    with serving(f"store={store!r}") as process:
        with Client(f"127.0.0.1:{process.port}") as client:
            made = client.create_collection("shop", space="ik1-test", dim=DIM)
            assert (made.count, made.index_kind) == (0, "flat")
            assert client.upsert("shop", items).inserted == 40
            assert client.count("shop", filter="payload.n < 5") == 5
            by_key = {item.key: item for item in items}
            (found,) = client.search(vectors=vectors[3:4], collection="shop", k=7)
            assert_agree(found, nearest(by_key, vectors[3], 7))  # type: ignore[arg-type]
            (found,) = client.search(
                keys=["item-03"], collection="shop", k=3, filter='label = "hat"', with_payload=True
            )
            assert [one.label for one in found] == ["hat"] * 3
            assert found[0].payload == {"n": int(found[0].key[-2:])}
            answers = client.classify(keys=[item.key for item in items], collection="shop", leave_one_out=True, k=5)
            assert sum(one.label == item.label for one, item in zip(answers, items, strict=True)) >= 30
            assert [item.key for item in client.scroll("shop", page_size=7)] == [item.key for item in items]
            assert client.update("shop", [ItemUpdate("item-00", label="boot")]).updated == 1
            assert client.delete("shop", filter='label = "hat"') == 20
            info = client.collection("shop")
            assert (info.count, info.labelled) == (20, 20)
            with pytest.raises(FailedPreconditionError, match="milvus-backup"):
                client.snapshot("shop")
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(60) == 0
    with open_collections(store) as collections, collections.open("shop") as collection:
        (boot,) = collection.get(["item-00"])
        assert boot is not None
        assert (collection.count(), boot.label) == (20, "boot")


def test_servers_of_one_milvus_answer_alike(tmp_path: Path) -> None:
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    engine, database, port = start_server_in_thread(str(tmp_path / "shared.db"))
    store = f"store='milvus://127.0.0.1:{port}'"
    vectors = np.random.default_rng(0).standard_normal((20, DIM)).astype(np.float32)
    items = [Item(f"item-{n:02}", label="ab"[n % 2], vector=vector) for n, vector in enumerate(vectors)]
    try:
        with (
            serving(store) as first,
            serving(store) as second,
            Client(f"127.0.0.1:{first.port}") as one,
            Client(f"127.0.0.1:{second.port}") as other,
        ):
            one.create_collection("shop", space="ik1-test", dim=DIM)
            one.upsert("shop", items)
            answers = []
            for client in (one, other):
                assert client.collection("shop").count == 20
                found = client.search(vectors=vectors[:4], collection="shop", k=5)
                answers.append([[(near.key, near.similarity, near.label) for near in each] for each in found])
            assert answers[0] == answers[1]
            before = one.get("shop", ["item-03"])[0]
            other.update("shop", [ItemUpdate("item-03", label="c")])
            (after,) = one.get("shop", ["item-03"])
            assert before is not None
            assert after is not None
            assert (after.label, after.sequence > before.sequence) == ("c", True)
            assert one.collection("shop").sequence == other.collection("shop").sequence == after.sequence
            other.drop_collection("shop")
            with pytest.raises(NotFoundError):
                one.count("shop")
            # Made anew with another dimension, it is the new one that both serve, at the latest after a second or two.
            other.create_collection("shop", space="ik1-test", dim=DIM // 2)
            deadline = time.monotonic() + 30
            while one.collection("shop").dim != DIM // 2:
                assert time.monotonic() < deadline
                time.sleep(0.2)
    finally:
        engine.stop(0)
        database.close()


def test_the_command_indexes_into_milvus_and_looks_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(1)
    for name in ("shoe/a.png", "shoe/b.png", "hat/c.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "photos" / name)
    model = tiny_artifact(tmp_path / "model.onnx")
    place = ["--store", f"milvus-lite://{tmp_path}/shop.db"]

    def said(*arguments: str) -> dict[str, object]:
        assert cli.run([*arguments, *place, "--json"]) == 0
        answer: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return answer

    index = ["index", "shop", "photos", "--model", str(model)]
    assert said(*index)["written"] == 3
    (tmp_path / "photos" / "shoe" / "a.png").unlink()
    again = said(*index, "--sync")
    assert (again["written"], again["skipped"]) == (0, 2)
    assert said("collection", "info", "shop")["count"] == 2
    assert said("collection", "count", "shop", "--filter", 'label = "hat"')["count"] == 1
    assert said("collection", "export", "shop", "--out", "shop.parquet")["count"] == 2
    assert said("collection", "import", "copy", "shop.parquet")["count"] == 2
    for refused in (["verify", "shop"], ["compact", "shop"], ["snapshot", "shop"], ["evaluate", "shop"]):
        assert cli.run(["collection", *refused, *place]) == 1
        assert "Milvus" in capsys.readouterr().err
    assert said("collection", "drop", "copy", "--yes")["count"] == 2
    assert cli.run(["collection", "list", "--store", "milvus://nowhere"]) == 2
    assert cli.run(["collection", "list", "--data-dir", str(tmp_path), *place]) == 2
    assert "not both" in capsys.readouterr().err


def test_a_store_and_a_folder_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="not both"):
        Settings(store="milvus://localhost:19530", data_dir=tmp_path)
    with pytest.raises(InvalidArgumentError, match="names no store"):
        Settings(store="nonsense")
