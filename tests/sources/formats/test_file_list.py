"""Patterns and lists on standard input name images; what cannot be read is an error, never the end."""

import io
import os
from pathlib import Path

import pytest

from imagekin.errors import NotFoundError
from imagekin.sources.open import count_records, open_source
from imagekin.sources.records import Record, SourceError
from tests.sources.pictures import FILES, bad, good, tar_bytes, write_files


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*.jpg", ["a.jpg"]),
        ("*/*", ["cat/1.JPG", "cat/2.png", "dog/big/3.webp"]),
        ("*/?.JPG", ["cat/1.JPG"]),
        ("cat/[!1].*", ["2.png"]),
        ("**/*.webp", ["dog/big/3.webp"]),
        ("d*/**", ["dog/big/3.webp"]),
        ("*.p[ng]g", []),
        ("[.*", []),
    ],
)
def test_a_pattern_matches_within_names_and_keys_begin_at_its_first_wildcard(
    tmp_path: Path, pattern: str, keys: list[str]
) -> None:
    write_files(tmp_path, FILES)
    assert list(good(open_source(f"{tmp_path}/{pattern}"))) == keys


def test_a_pattern_of_shards_and_manifests_reads_what_is_in_them(tmp_path: Path) -> None:
    write_files(tmp_path, FILES | {"s/2.tar": tar_bytes({"y/b.jpg": b"b"}), "s/1.tar": tar_bytes({"x/a.jpg": b"a"})})
    write_files(tmp_path, {"s/3.csv": b"path,label\n../cat/2.png,z\n", "s/4.tar": b"broken", "s/notes.md": b""})
    source = open_source(f"{tmp_path}/s/*")
    records = list(source)
    assert [(record.key, record.label) for record in records] == [
        ("1.tar/x/a.jpg", "x"),
        ("2.tar/y/b.jpg", "y"),
        ("../cat/2.png", "z"),
        ("4.tar", None),
    ]
    assert source.ignored.total == 1
    assert source.count() is None
    assert isinstance(records[3].data, SourceError)


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    write_files(tmp_path / "[1]", FILES)
    assert good(open_source(tmp_path / "[1]")) == FILES


def test_a_pattern_follows_no_circle_and_reports_broken_links(tmp_path: Path) -> None:
    write_files(tmp_path, FILES)
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    records = list(open_source(f"{tmp_path}/**/*"))
    assert good(records) == FILES
    assert set(bad(records)) == {"loop.jpg"}
    assert count_records(f"{tmp_path}/**/*") == 5


def test_a_pattern_below_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_source(f"{tmp_path}/nowhere/*.jpg")


def listed(monkeypatch: pytest.MonkeyPatch, text: bytes) -> list[Record]:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    return list(open_source("-"))


def test_a_list_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, FILES)
    monkeypatch.chdir(tmp_path)
    records = listed(monkeypatch, b"./cat/1.JPG\n\nnowhere.png\ncat\ndog/big/3.webp\r\na.jpg")
    assert [(record.key, record.label) for record in records if isinstance(record.data, bytes)] == [
        ("cat/1.JPG", "cat"),
        ("dog/big/3.webp", "dog/big"),
        ("a.jpg", None),
    ]
    assert set(bad(records)) == {"nowhere.png", "cat"}


def test_hostile_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, FILES)
    monkeypatch.chdir(tmp_path)
    Path(os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    lines = [b"caf\xe9.jpg", b"a\0b.jpg", b"x" * 3_000_000, b"d/" * 5000 + b"x.jpg", b"file:///etc/passwd", b"a.jpg"]
    records = listed(monkeypatch, b"\n".join(lines))
    assert good(records) == {"a.jpg": b"at the root"}
    assert len(records) == len(lines)
    assert "UTF-8" in bad(records)["caf\\udce9.jpg"]
