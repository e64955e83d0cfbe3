"""A source is what its path says it is, or refused before anything is read."""

from pathlib import Path

import pytest
from PIL import Image

from imagekin.encoder.decoding.decode import FORMATS
from imagekin.encoder.decoding.formats import IMAGE_SUFFIXES
from imagekin.errors import InvalidArgumentError, NotFoundError
from imagekin.sources.open import count_records, open_source, open_sources
from imagekin.sources.records import Record
from tests.sources.pictures import FILES, tar_bytes, write_files


def test_the_suffixes_are_those_of_the_formats_that_the_decoder_takes() -> None:
    Image.init()
    formats = {suffix: Image.registered_extensions().get(suffix) for suffix in IMAGE_SUFFIXES}
    assert set(formats.values()) == FORMATS, formats


def test_a_single_image(tmp_path: Path) -> None:
    path = write_files(tmp_path, FILES) / "cat" / "1.JPG"
    assert list(open_source(path)) == [Record("1.JPG", b"one", None)]
    assert count_records(path) == 1


def test_several_sources_are_read_one_after_the_other(tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", FILES | {"x.txt": b""})
    packed = write_files(tmp_path, {"more.tgz": tar_bytes({"b.jpg": b"b", "y.txt": b""}, "w:gz")}) / "more.tgz"
    both = open_sources([root, packed])
    assert [record.key for record in both] == [*(f"root/{key}" for key in FILES), "more.tgz/b.jpg"]
    assert both.ignored.total == 2
    assert both.count() == 5, "what was looked at is counted, compressed or not"
    assert open_sources([root, root / "a.jpg"]).count() == 5


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        open_source(tmp_path / "nowhere")


def test_what_is_no_source_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = write_files(tmp_path, {"x.doc": b"PK"}) / "x.doc"
    with pytest.raises(InvalidArgumentError, match="no tar or zip archive"):
        open_sources([tmp_path, path])


def test_archives_that_are_named_together_may_be_splits(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{name}.tar": tar_bytes({"cat/1.jpg": name.encode()}) for name in ("train", "test")})
    source = open_sources([tmp_path / "train.tar", tmp_path / "test.tar"])
    assert [(record.key, record.label, record.split) for record in source] == [
        ("train.tar/cat/1.jpg", "cat", "train"),
        ("test.tar/cat/1.jpg", "cat", "test"),
    ]
    assert source.plan.splits == {"train": 1, "test": 1}


def test_named_together_folders_files_and_patterns_have_their_places_in_the_keys(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/1.jpg": b"1", "b/1.jpg": b"2", "c/t.csv": b"path,label\n1.jpg,x\n", "c/1.jpg": b"3"})
    expected = ["a/1.jpg", "b/1.jpg", "c/1.jpg"]
    assert [record.key for record in open_sources([tmp_path / "a", tmp_path / "b", tmp_path / "c/t.csv"])] == expected
    assert [record.key for record in open_sources([f"{tmp_path}/{name}/*.jpg" for name in "abc"])] == expected
    assert [record.key for record in open_sources([tmp_path / key for key in expected])] == expected
