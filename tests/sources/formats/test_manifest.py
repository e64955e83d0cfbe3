"""A manifest's rows are images with labels and payloads; a bad row is an error, and the others are read."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagekin.sources.formats.text_lines import MAX_LINE_BYTES
from imagekin.sources.open import count_records, open_source
from imagekin.sources.records import SourceError
from tests.sources.pictures import FILES, bad, good, write_files


def manifest(root: Path, name: str, content: str | bytes) -> Path:
    path = write_files(root, FILES) / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_columns_give_path_label_payload_and_key(tmp_path: Path) -> None:
    text = (
        "\ufeffpath,label,key,payload,price,sold,note\r\n"
        'cat/1.JPG,cat,k1,"{""a"": [1]}",3.5,true,"two\nlines"\r\n'
        "./dog/big/3.webp,,,,,,7up\r\n"
    )
    records = list(open_source(manifest(tmp_path, "m.csv", text)))
    assert [(record.key, record.data, record.label, record.payload) for record in records] == [
        ("k1", b"one", "cat", {"a": [1], "price": 3.5, "sold": True, "note": "two\nlines"}),
        ("dog/big/3.webp", b"three", None, {"note": "7up"}),
    ]


def test_a_name_that_reads_as_a_number_beyond_all_floats_is_text(tmp_path: Path) -> None:
    path = manifest(tmp_path, "m.csv", "path,label,camera\ncat/1.JPG,a,12e4567\na.jpg,b,-1e999\n")
    assert [record.payload for record in open_source(path)] == [{"camera": "12e4567"}, {"camera": "-1e999"}]


def test_jsonl_rows_give_the_same(tmp_path: Path) -> None:
    rows = [{"file_name": "cat/1.JPG", "label": 7, "price": "10"}, {"path": "a.jpg", "payload": {"x": None}}]
    path = manifest(tmp_path, "m.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert [(record.key, record.label, record.payload) for record in open_source(path)] == [
        ("cat/1.JPG", "7", {"price": "10"}),
        ("a.jpg", None, {"x": None}),
    ]
    assert count_records(path) == 3


def test_without_a_label_column_folders_name_the_classes(tmp_path: Path) -> None:
    path = manifest(tmp_path, "m.tsv", "path\tprice\ncat/1.JPG\t1\ndog/big/3.webp\t2\n")
    assert [record.label for record in open_source(path)] == ["cat", "dog/big"]


def test_broken_rows_are_errors_in_their_places(tmp_path: Path) -> None:
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    os.symlink(".", tmp_path / "circle")
    long_name = "n" * 300 + ".jpg"
    text = f"path,label\na.jpg,x\nnowhere.jpg,x\na.jpg\ncat,x\nloop.jpg,x\n{long_name},x\n,x\na\0.jpg,x\ncat/2.png,y\n"
    records = list(open_source(manifest(tmp_path, "m.csv", text)))
    assert good(records) == {"a.jpg": b"at the root", "cat/2.png": b"two"}
    reasons = bad(records)
    assert set(reasons) == {"nowhere.jpg", "m.csv:4", "cat", "loop.jpg", long_name, "m.csv:8", "a\\x00.jpg"}
    assert "1 cells" in reasons["m.csv:4"]
    assert "no path" in reasons["m.csv:8"]


def test_a_missing_file_is_gone_but_a_bad_line_may_have_been_anything(tmp_path: Path) -> None:
    records = list(open_source(manifest(tmp_path, "m.jsonl", '{"path": "nowhere.jpg"}\n{"path"\n')))
    assert [isinstance(record.data, SourceError) for record in records] == [False, True]


def test_broken_lines_of_jsonl_are_errors_in_their_places(tmp_path: Path) -> None:
    lines = [
        b'{"path": "a.jpg"}',
        b'{"path": ',
        b"[1]",
        b"[" * 100_000,
        b'{"path": 3}',
        b'{"path": "cat/1.JPG", "label": 1.5}',
        b'{"path": "cat/1.JPG", "payload": "x"}',
        b'{"path": "caf\xe9.jpg"}',
        b'{"path": "' + b"x" * MAX_LINE_BYTES + b'"}',
        b'{"path": "cat/2.png", "x": 1e999}',
        b'{"path": "dog/big/3.webp"}',
    ]
    records = list(open_source(manifest(tmp_path, "m.jsonl", b"\n".join(lines))))
    assert good(records) == {"a.jpg": b"at the root", "dog/big/3.webp": b"three"}
    assert len(records) == len(lines)


@pytest.mark.parametrize("header", ["label,price\n", "path,path\n", "a\0b\n"])
def test_a_table_without_a_path_column_is_one_error(tmp_path: Path, header: str) -> None:
    records = list(open_source(manifest(tmp_path, "m.csv", header + "a.jpg,1\n")))
    assert not good(records)
    assert len(records) == 1
    assert isinstance(records[0].data, SourceError)


def test_a_table_of_other_encodings_than_utf_8_is_one_of_windows(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"x")
    records = list(open_source(manifest(tmp_path, "m.csv", b"path,label\ncaf\xe9.jpg,x\na.jpg,\xff\ncat/2.png,y\n")))
    assert {record.key: record.label for record in records if isinstance(record.data, bytes)} == {
        "a.jpg": "ÿ",
        "cat/2.png": "y",
    }
    assert set(bad(records)) == {"café.jpg"}, "such a table is taken for one of Windows"


def test_an_unclosed_quote_does_not_swallow_the_rest_in_memory(tmp_path: Path) -> None:
    text = 'path,label\na.jpg,"x\n' + "cat/1.JPG,y\n" * 20_000
    records = list(open_source(manifest(tmp_path, "m.csv", text)))
    assert bad(records)
    assert len(records) > 5_000


@settings(max_examples=100, deadline=2000)
@given(content=st.binary(max_size=300), name=st.sampled_from(["m.csv", "m.tsv", "m.jsonl"]))
def test_whatever_a_manifest_holds_only_records_come_out(
    content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    assert len(list(open_source(path))) <= len(content) + 1
    count_records(path)


def test_a_manifest_may_name_urls_only_of_known_schemes(tmp_path: Path) -> None:
    records = list(open_source(manifest(tmp_path, "m.csv", "path\nfile:///etc/passwd\nmemory://x.jpg\n")))
    assert len(bad(records)) == 2, "they are taken for paths, and there is no such file"


def test_labels_and_splits_of_a_long_table_are_found(tmp_path: Path) -> None:
    """More rows than are looked at before reading; the last ones are of another split."""
    rows = [f"{number},x.png,{'ab'[number % 2]},train" for number in range(10_050)] + ["last,x.png,a,test"]
    (tmp_path / "x.png").write_bytes(b"x")
    (tmp_path / "t.csv").write_text("\n".join(["key,path,label,split", *rows]))
    source = open_source(tmp_path / "t.csv")
    assert (source.plan.is_whole, source.plan.classes) == (False, {"a": 5000, "b": 5000})
    assert source.settle_splits().splits == {"train": 10_050, "test": 1}
    assert source.plan.classes == {"a": 5026, "b": 5025}
