"""`imagekin index --thumbnails` and `imagekin thumbnails`."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from imagekin.cli.main import run
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.thumbnails import FILE
from tests.artifacts import tiny_artifact


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_artifact(tmp_path_factory.mktemp("model") / "tiny.onnx"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (400, 200), (number * 40, 0, 9)).save(folder / f"{number}.jpg")
    return folder


def kept(data: Path) -> tuple[int, int]:
    """Return the size of the collection's thumbnails, and how many items have one."""
    with Catalog(data, read_only=True) as catalog:
        shop = catalog.open("shop")
        found = shop.thumbnails([item.key for item in shop.items()])
        return shop.info().thumbnail_size, sum(one is not None for one in found)


def test_index_makes_thumbnails_unless_told_not_to(model: str, photos: Path, tmp_path: Path) -> None:
    arguments = ["index", "shop", str(photos), "--model", model, "--data-dir"]
    for asked, expected in (([], (160, 3)), (["--thumbnails", "64"], (64, 3)), (["--thumbnails", "0"], (0, 0))):
        data = tmp_path / f"data{expected[0]}"
        assert run([*arguments, str(data), *asked]) == 0
        assert kept(data) == expected
    assert run([*arguments, str(tmp_path / "new"), "--thumbnails", "7"]) == 2


def test_thumbnails_are_made_afterwards(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert run(["index", "shop", str(photos), "--model", model, "--data-dir", str(data), "--thumbnails", "0"]) == 0
    (photos / "0.jpg").write_bytes(b"no image any more")
    Image.new("RGB", (20, 20)).save(photos / "new.png")
    capsys.readouterr()
    assert run(["thumbnails", "shop", str(photos), "--data-dir", str(data), "--size", "48", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer == {"collection": "shop", "made": 2, "failed": 0, "size": 48}
    assert kept(data) == (48, 2)
    assert run(["thumbnails", "shop", str(photos), "--data-dir", str(data)]) == 0
    assert capsys.readouterr().out.startswith("0 thumbnails of 48 pixels made")


def test_an_export_takes_the_thumbnails_along(model: str, photos: Path, tmp_path: Path) -> None:
    data, file = str(tmp_path / "data"), str(tmp_path / "shop.parquet")
    assert run(["index", "shop", str(photos), "--model", model, "--data-dir", data, "--thumbnails", "64"]) == 0
    assert run(["collection", "export", "shop", "--out", file, "--data-dir", data]) == 0
    assert run(["collection", "import", "copy", file, "--data-dir", data]) == 0
    with Catalog(Path(data), read_only=True) as catalog:
        first, second = catalog.open("shop"), catalog.open("copy")
        keys = [item.key for item in first.items()]
        assert second.info().thumbnail_size == 64
        assert first.thumbnails(keys) == second.thumbnails(keys)
        assert all(first.thumbnails(keys))


def test_an_import_keeps_nothing_but_small_pictures(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from imagekin.index.ingest.parquet import items_schema

    def jpeg(side: int, comment: bytes = b"", more: bytes = b"") -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (side, side), (side, 9, 9)).save(file, "JPEG", comment=comment)
        return file.getvalue() + more

    sent = [jpeg(32), jpeg(300), jpeg(33, b"a secret"), jpeg(34, more=b"a secret"), b"a secret", None]
    keys = [str(number) for number in range(len(sent))]
    rows = {
        "key": keys,
        "content_hash": [bytes([number]) * 32 for number in range(len(sent))],
        "vector": [[1.0, 2.0]] * len(sent),
        "thumbnail": sent,
    }
    whole = items_schema("s", 2, 64)
    schema = pa.schema([whole.field(name) for name in rows], whole.metadata)
    pq.write_table(pa.table(rows, schema=schema), tmp_path / "x.parquet")
    assert run(["collection", "import", "shop", str(tmp_path / "x.parquet"), "--data-dir", str(tmp_path / "data")]) == 0
    with Catalog(tmp_path / "data", read_only=True) as catalog:
        found = [None if one is None else one.jpeg for one in catalog.open("shop").thumbnails(keys)]
    assert found[0] == sent[0]
    assert [None if one is None else Image.open(io.BytesIO(one)).width for one in found] == [32, 64, 33, 34, None, None]
    assert not any(b"secret" in one for one in found if one)


def test_a_server_is_not_asked_to_make_thumbnails_afterwards(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["thumbnails", "shop", str(photos), "--address", "127.0.0.1:1"]) == 2
    assert "stop it and run this with its --data-dir" in capsys.readouterr().err


def test_verify_finds_damaged_thumbnails_and_repair_makes_room_for_new_ones(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert run(["index", "shop", str(photos), "--model", model, "--data-dir", str(data)]) == 0
    path = data / "collections" / "shop" / FILE
    path.write_bytes(path.read_bytes().replace(b"JFIF", b"JFIX", 1))
    assert run(["collection", "verify", "shop", "--data-dir", str(data)]) == 1
    assert "1 thumbnail damaged" in capsys.readouterr().err
    assert run(["collection", "verify", "shop", "--repair", "--data-dir", str(data)]) == 0
    assert run(["collection", "verify", "shop", "--data-dir", str(data)]) == 0
    assert kept(data) == (160, 2)
    assert run(["thumbnails", "shop", str(photos), "--data-dir", str(data)]) == 0
    assert kept(data) == (160, 3)


def test_search_opens_a_page_of_pictures(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def open_page(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", open_page)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (photos / "<script>alert(1)<").mkdir()
    (photos / "0.jpg").rename(photos / "<script>alert(1)<" / "0.jpg")
    data = ["--data-dir", str(tmp_path / "data")]
    assert run(["index", "shop", str(photos), "--model", model, *data]) == 0
    query = str(photos / "1.jpg")
    assert run(["search", query, "--collection", "shop", "--model", model, *data, "--open"]) == 0
    (url,) = opened
    page = Path(url.removeprefix("file://")).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http:" not in page
    assert url.removeprefix("file://") in capsys.readouterr().err
