"""`imagekin collection verify|compact|snapshot|restore|export|import`, as they are typed."""

import json
from pathlib import Path

import numpy as np
import pytest

from imagekin.cli.main import run
from imagekin.index.local.catalog import Catalog
from imagekin.index.types import VectorItem


@pytest.fixture
def data(tmp_path: Path) -> str:
    vectors = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    with Catalog(tmp_path / "data") as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=4)
        collection.upsert([VectorItem(f"k{n}", vector, "red", {"n": n}) for n, vector in enumerate(vectors)])
    return str(tmp_path / "data")


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, object]:
    assert run(["collection", *arguments, "--json"]) == status
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_snapshot_comes_back(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(answer(capsys, "snapshot", "shop", "--data-dir", data)["snapshot"])
    listed = answer(capsys, "snapshots", "--data-dir", data)["snapshots"]
    assert [one["name"] for one in listed] == [name]  # type: ignore[attr-defined]
    assert run(["collection", "restore", name, "--data-dir", data]) == 1
    assert "there is a collection 'shop'" in capsys.readouterr().err
    assert answer(capsys, "restore", name, "--as", "copy", "--data-dir", data)["count"] == 50
    assert answer(capsys, "verify", "copy", "--data-dir", data)["intact"] is True


def test_parquet_goes_out_and_in(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "shop.parquet")
    assert answer(capsys, "export", "shop", "--out", file, "--data-dir", data)["count"] == 50
    assert answer(capsys, "import", "copy", file, "--data-dir", data)["count"] == 50
    with Catalog(Path(data), read_only=True) as catalog:
        shop, copy = catalog.open("shop"), catalog.open("copy")
        assert [(one.key, one.label, one.payload, one.vector.tobytes()) for one in shop.items()] == [
            (one.key, one.label, one.payload, one.vector.tobytes()) for one in copy.items()
        ]
    assert run(["collection", "import", "copy", file, "--space", "ik1-b", "--data-dir", data]) == 1
    assert "ik1-b" in capsys.readouterr().err


def test_verify_fails_on_damage_and_repairs_it(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(data) / "collections" / "shop" / "items.sqlite"
    path.write_bytes(path.read_bytes().replace(b'{"n":33}', b'{"n":34}'))
    assert run(["collection", "verify", "shop", "--data-dir", data]) == 1
    said = capsys.readouterr()
    assert "k33: damaged" in said.err
    assert "--repair" in said.err
    assert "49 items intact, 1 damaged" in said.out
    assert answer(capsys, "verify", "shop", "--repair", "--data-dir", data)["damaged"] == ["k33"]
    assert answer(capsys, "verify", "shop", "--data-dir", data)["intact"] is True


def test_compact_says_what_it_freed(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "compact", "shop", "--data-dir", data)
    assert found["compacted"] == "shop"
    assert isinstance(found["bytes_after"], int)


def test_a_broken_collection_is_named_in_the_list(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Catalog(Path(data)) as catalog:
        catalog.create("other", space="ik1-a", dim=4)
    (Path(data) / "collections" / "shop" / "items.sqlite").write_bytes(b"nothing of the kind" * 500)
    assert run(["collection", "list", "--data-dir", data]) == 0
    said = capsys.readouterr()
    assert "other" in said.out
    assert "shop" not in said.out
    assert "shop: collection 'shop' is damaged" in said.err
    listed = answer(capsys, "list", "--data-dir", data)["collections"]
    assert [(one["name"], bool(one["error"])) for one in listed] == [("other", False), ("shop", True)]  # type: ignore[attr-defined]
