"""What people have and once lost images by: each is indexed whole, under one rule of keys and labels."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagekin.cli import main as cli
from imagekin.encoder.decoding.formats import MISSING_EXTRAS
from imagekin.index.local.catalog import Catalog
from tests.artifacts import tiny_artifact
from tests.sources.pictures import png, tar_bytes, write_files

Capture = pytest.CaptureFixture[str]


class Shop:
    """A collection that is indexed into by the command."""

    def __init__(self, folder: Path, capsys: Capture) -> None:
        self._model = tiny_artifact(folder / "model.onnx")
        self._data = folder / "data"
        self._capsys = capsys
        self.said = ""

    def index(self, *arguments: str | Path, status: int = 0) -> dict[str, Any]:
        """Run `imagekin index` and return its figures; none when it ends with another status than 0."""
        options = ["--model", str(self._model), "--data-dir", str(self._data), "--json"]
        assert cli.run(["index", "shop", *map(str, arguments), *options]) == status
        out, self.said = self._capsys.readouterr()
        found: dict[str, Any] = json.loads(out.splitlines()[-1]) if status == 0 else {}
        return found

    @property
    def labels(self) -> dict[str, str | None]:
        """Labels of the stored items by key."""
        with Catalog(self._data) as catalog, catalog.open("shop") as collection:
            return {item.key: item.label for item in collection.items()}


@pytest.fixture
def shop(tmp_path: Path, capsys: Capture) -> Shop:
    return Shop(tmp_path, capsys)


def hub(path: Path, seeds: range, column: str = "label", names: list[str] | None = None) -> Path:
    """Write images as the Hub stores them: the path of each is a name that repeats."""
    labels: list[Any] = [seed % 2 if names else f"class {seed % 2}" for seed in seeds]
    images = [{"bytes": png(seed), "path": f"{place % 3:04d}.png"} for place, seed in enumerate(seeds)]
    table = pa.table({"image": images, column: labels})
    if names:
        features = {column: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_rows_of_the_hub_whose_paths_repeat(tmp_path: Path, shop: Shop) -> None:
    path = hub(tmp_path / "train.parquet", range(12), "labels", ["cat", "dog"])
    assert shop.index(path)["written"] == 12
    assert Counter(shop.labels.values()) == {"cat": 6, "dog": 6}


def test_shards_one_after_the_other_and_then_together(tmp_path: Path, shop: Shop) -> None:
    shards = [hub(tmp_path / f"hub/train-{n:05d}-of-00002.parquet", range(6 * n, 6 * n + 6)) for n in range(2)]
    assert [shop.index(shard)["written"] for shard in shards] == [6, 6]
    assert len(shop.labels) == 12
    for again in (shards, [tmp_path / "hub"]):
        figures = shop.index(*again)
        assert (figures["written"], figures["skipped"]) == (0, 12)


def test_folders_as_a_shell_lists_them_are_their_parent(tmp_path: Path, shop: Shop) -> None:
    root = write_files(
        tmp_path / "folders", {f"{kind}/{n}.png": png(n + 9 * len(kind)) for kind in ("a", "bb") for n in range(3)}
    )
    assert shop.index(*sorted(root.iterdir()))["written"] == 6
    assert shop.labels == {f"{kind}/{n}.png": kind for kind in ("a", "bb") for n in range(3)}
    assert shop.index(root)["skipped"] == 6
    assert shop.index(*sorted(root.glob("*/*.png")))["skipped"] == 6


def test_joined_archives_are_read_to_their_end_and_nothing_is_deleted_before(tmp_path: Path, shop: Shop) -> None:
    parts = [tar_bytes({f"{kind}/{n}.png": png(n + 9 * len(kind)) for n in range(3)}) for kind in ("a", "bb")]
    path = tmp_path / "joined.tar"
    path.write_bytes(b"".join(parts))
    assert shop.index(path)["written"] == 6
    assert shop.index(path, "--sync")["deleted"] == 0
    path.write_bytes(parts[0] + b"rubbish" * 100 + parts[1])
    shop.index(path, "--sync", status=1)
    assert "nothing was deleted" in shop.said
    assert len(shop.labels) == 6


@pytest.mark.skipif(".heic" not in MISSING_EXTRAS, reason="the extra heic is installed")
def test_images_that_a_missing_extra_would_read_are_named_and_nothing_is_deleted(tmp_path: Path, shop: Shop) -> None:
    root = write_files(tmp_path / "nas", {"a/1.png": png(1), "b/2.png": png(2)})
    shop.index(root)
    (root / "b/2.png").unlink()
    write_files(root, {"b/2.HEIC": b"\0\0\0\x18ftypheic", "a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg": png(3)})
    shop.index(root, "--sync", status=1)
    assert "passed over 1 .heic file: reading them needs a package more" in shop.said
    assert "[heic]" in shop.said
    assert "passed over 1 .jpg file: in a folder of a system" in shop.said
    assert set(shop.labels) == {"a/1.png", "b/2.png"}


def test_of_two_labels_and_of_two_images_of_one_id_the_first_counts_and_the_others_are_said(
    tmp_path: Path, shop: Shop
) -> None:
    write_files(tmp_path / "t", {"1.png": png(1), "2.png": png(2)})
    for name, text in {"two": "path,label\n1.png,a\n1.png,b\n2.png,b\n", "ids": "id,path\n7,1.png\n7,2.png\n"}.items():
        (tmp_path / "t" / f"{name}.csv").write_text(text)
    figures = shop.index(tmp_path / "t" / "two.csv")
    assert (figures["written"], [one["key"] for one in figures["failed"]]) == (2, ["1.png"])
    assert "with another label" in shop.said
    assert shop.labels == {"1.png": "a", "2.png": "b"}
    figures = shop.index(tmp_path / "t" / "ids.csv")
    assert (figures["written"], [one["key"] for one in figures["failed"]]) == (1, ["7"])


def test_the_user_chooses_what_labels(tmp_path: Path, shop: Shop) -> None:
    root = write_files(tmp_path / "pets", {"images/cat_1.png": png(1), "images/dog_1.png": png(2)})
    assert shop.index(root)["classes"] == {}
    assert "no labels by folder" in shop.said
    assert shop.index(root, "--label-from", r"(\w+)_\d")["classes"] == {"cat": 1, "dog": 1}
    assert set(shop.labels.values()) == {"cat", "dog"}
    assert cli.run(["index", "shop", str(root), "--label-from", "("]) == 2
