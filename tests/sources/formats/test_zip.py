"""Zip archives: what their directories say is not trusted, and what is wrong with one member costs that member."""

import io
import zipfile
from pathlib import Path

import pytest

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.errors import InvalidArgumentError
from imagekin.sources.ignored import MISSING_IMAGES, NESTED, Kind
from imagekin.sources.open import open_source
from imagekin.sources.records import SourceError
from tests.sources.pictures import FILES, bad, good


def zip_bytes(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_have_the_keys_and_labels_of_a_folder(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zip_bytes(FILES | {"notes.txt": b"", "cat/._1.JPG": b""}, compression))
    source = open_source(path)
    assert [(record.key, record.label) for record in source] == [
        ("a.jpg", None),
        ("cat/1.JPG", "cat"),
        ("cat/2.png", "cat"),
        ("dog/big/3.webp", "dog/big"),
    ]
    assert good(source) == FILES
    assert (source.ignored.total, source.count()) == (2, 4)


def test_paths_out_of_the_archive_bombs_and_damage_cost_their_members(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    files = {
        "../up.png": b"x",
        "/root.png": b"x",
        "bomb.png": bytes(10_000),
        "cat\\1.png": b"windows",
        "z.png": b"z" * 99,
    }
    data = bytearray(zip_bytes(files, zipfile.ZIP_STORED))
    data[data.index(b"z" * 99) + 5] ^= 0xFF
    path.write_bytes(data)
    records = list(open_source(path, DecodeLimits(max_bytes=1000)))
    assert good(records) == {"cat/1.png": b"windows"}
    reasons = bad(records)
    assert "leads out" in reasons["../up.png"]
    assert "leads out" in reasons["/root.png"]
    assert "10,000 bytes" in reasons["bomb.png"]
    assert "damaged" in reasons["z.png"]


def test_a_cut_archive_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zip_bytes(FILES)[:-30])
    (record,) = open_source(path)
    assert isinstance(record.data, SourceError)


@pytest.mark.parametrize(
    ("name", "head"), [("x.7z", b"7z\xbc\xaf\x27\x1c"), ("x.rar", b"Rar!\x1a\x07\x01"), ("x.xlsx", b"PK")]
)
def test_what_is_not_read_is_refused_with_what_to_do(tmp_path: Path, name: str, head: bytes) -> None:
    (tmp_path / name).write_bytes(head + bytes(100))
    with pytest.raises(InvalidArgumentError, match=r"unpack it|save it as \.csv"):
        open_source(tmp_path / name)


def test_an_archive_in_an_archive_is_passed_over_and_said(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("train.zip", b"PK")
    source = open_source(tmp_path / "x.zip")
    assert list(source) == []
    assert list(source.ignored) == [(Kind(".zip", NESTED), 1)]


def test_a_table_of_images_that_are_not_in_the_archive_is_passed_over_with_that_reason(tmp_path: Path) -> None:
    path = tmp_path / "part.zip"
    path.write_bytes(
        zip_bytes({"cat/1.jpg": b"1", "all.csv": b"path,label\ncat/1.jpg,tom\ncat/2.jpg,a\ncat/3.jpg,b\n"})
    )
    source = open_source(path)
    assert good(source) == {"cat/1.jpg": b"1"}
    assert list(source.ignored) == [(Kind(".csv", MISSING_IMAGES), 1)]
