"""A Parquet file's rows are images or vectors; what is damaged is an error, and the rest is read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.errors import InvalidArgumentError
from imagekin.sources.open import open_source, open_sources
from imagekin.sources.records import SourceError
from tests.sources.pictures import bad, good


def write(path: Path, columns: dict[str, Any], metadata: dict[bytes, bytes] | None = None, rows: int = 2) -> Path:
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=rows, write_page_checksum=True)
    return path


def test_image_bytes_with_key_label_payload_and_other_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.parquet",
        {
            "image": [b"one", b"two", None],
            "key": ["a", "b", "c"],
            "label": ["x", None, "x"],
            "payload": ['{"p": 1}', None, None],
            "price": [1.5, None, 2.0],
            "tags": [["t"], [], []],
        },
    )
    records = list(open_source(path))
    assert [(record.key, record.label, record.payload) for record in records[:2]] == [
        ("a", "x", {"p": 1, "price": 1.5}),
        ("b", None, None),
    ]
    assert good(records) == {"a": b"one", "b": b"two"}
    assert "no bytes" in bad(records)["c"]
    assert open_source(path).count() == 3


def test_the_form_of_the_hugging_face_hub(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    images = [{"bytes": b"1", "path": "1.png"}, {"bytes": b"2", "path": None}]
    columns = {"image": images, "label": [1, 0]}
    path = write(tmp_path / "x.parquet", columns, {b"huggingface": json.dumps(features).encode()})
    assert [(record.key, record.data, record.label) for record in open_source(path)] == [
        ("x.parquet/0", b"1", "dog"),
        ("x.parquet/1", b"2", "cat"),
    ]
    # Metadata that cannot be read describe nothing.
    path = write(tmp_path / "x.parquet", columns, {b"huggingface": b"[" * 100_000})
    assert [record.label for record in open_source(path)] == ["1", "0"]


@pytest.mark.parametrize("fixed", [True, False])
def test_vectors_with_their_space(tmp_path: Path, fixed: bool) -> None:
    kind = pa.list_(pa.float32(), 3) if fixed else pa.list_(pa.float64())
    digest = hashlib.sha256(b"image").digest()
    columns = {"embedding": pa.array([[1, 2, 3], [0, 0, 0], None, [1, float("nan"), 0]], kind)}
    columns |= {"key": pa.array(list("abcd")), "content_hash": pa.array([digest, None, None, None], pa.binary())}
    path = write(tmp_path / "v.parquet", columns, {b"imagekin.space": b"s1"})
    source = open_source(path)
    assert source.embedded == (3, "s1")
    records = list(source)
    np.testing.assert_array_equal(records[0].data, np.array([1, 2, 3], np.float32))
    assert records[0].content_hash == digest
    assert set(bad(records[1:])) == {"b", "c", "d"}


def test_images_and_vectors_are_not_read_as_one(tmp_path: Path) -> None:
    vectors = write(tmp_path / "v.parquet", {"vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))})
    images = write(tmp_path / "i.parquet", {"image": [b"x"]})
    with pytest.raises(InvalidArgumentError, match="either images or vectors"):
        open_sources([vectors, images])


@pytest.mark.parametrize(
    "columns",
    [{"image": ["text"]}, {"vector": [1.0]}, {"other": [b"x"]}, {"vector": [[1, 2]]}, {"image": [{"x": b""}]}],
)
def test_a_file_without_a_column_of_the_right_kind_is_one_error(tmp_path: Path, columns: dict[str, Any]) -> None:
    (record,) = open_source(write(tmp_path / "x.parquet", columns))
    assert record.key == "x.parquet"
    assert isinstance(record.data, SourceError)
    assert "column" in str(record.data)


def test_bad_rows_are_errors_in_their_places(tmp_path: Path) -> None:
    raw = pa.Array.from_buffers(pa.string(), 4, pa.array([b"caf\xe9", b"b", b"c", b"d"]).buffers())
    columns = {"image": [b"1", b"2" * 200, b"3", b"4"], "key": raw, "payload": [None, None, "[1]", None]}
    records = list(open_source(write(tmp_path / "x.parquet", columns), DecodeLimits(max_bytes=100)))
    assert good(records) == {"d": b"4"}
    assert "UTF-8" in bad(records)["caf\\udce9"]
    assert "200 bytes" in bad(records)["b"]
    assert "payload" in bad(records)["c"]


def test_a_damaged_row_group_is_one_error_and_the_others_are_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    images = [noise.bytes(5000) for _ in range(6)]
    path = write(tmp_path / "x.parquet", {"image": images, "key": [f"k{n}" for n in range(6)]})
    data = bytearray(path.read_bytes())
    place = data.index(images[2]) + 100
    data[place] ^= 0xFF
    path.write_bytes(data)
    records = list(open_source(path))
    assert set(good(records)) == {"k0", "k1", "k4", "k5"}
    assert list(bad(records)) == ["x.parquet#1"]
    assert isinstance(next(record.data for record in records if record.key == "x.parquet#1"), SourceError)


def test_cut_off_or_no_parquet_at_all_is_one_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.parquet", {"image": [b"x" * 1000] * 10}).read_bytes()
    for content in (b"", b"PAR1", b"no parquet at all", whole[:-10], whole[: len(whole) // 2], whole[100:]):
        (tmp_path / "x.parquet").write_bytes(content)
        records = list(open_source(tmp_path / "x.parquet"))
        assert records
        assert all(isinstance(record.data, SourceError) for record in records)


def hub_metadata(features: Mapping[str, object]) -> dict[bytes, bytes]:
    """Return the metadata that `datasets` writes into the files of a data set."""
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def test_columns_of_any_name_are_found_by_the_metadata_of_the_hugging_face_hub(tmp_path: Path) -> None:
    columns = {"fine": [1, -1], "scan": [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": None}], "n": [7, 8]}
    features = {"fine": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "scan": {"_type": "Image"}}
    path = write(tmp_path / "x.parquet", columns, hub_metadata(features))
    assert [(record.label, record.payload, record.data) for record in open_source(path)] == [
        ("dog", {"n": 7}, b"1"),
        (None, {"n": 8}, b"2"),
    ]


def test_a_row_without_bytes_names_a_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(b"1")
    whole = str(tmp_path / "photos" / "1.png")
    paths = [whole, "photos/1.png", "photos/none.png", None, "hf://photos/1.png", "a\0b"]
    images = [{"bytes": None, "path": path} for path in paths] + [{"bytes": b"own", "path": whole}]
    path = write(tmp_path / "x.parquet", {"image": images, "label": ["a"] * 7})
    records = list(open_source(path))
    assert good(records) == {"x.parquet/0": b"1", "x.parquet/1": b"1", "x.parquet/6": b"own"}
    assert records[0].label == "a"
    reasons = bad(records)
    assert "of photos/none.png: it cannot be read" in reasons["x.parquet/2"]
    assert reasons["x.parquet/3"] == "it holds no bytes"
    assert set(reasons) == {f"x.parquet/{number}" for number in (2, 3, 4, 5)}
    assert bad(open_source(path, DecodeLimits(max_bytes=1)))["x.parquet/6"].startswith("it has 3 bytes")


def write_arrow(path: Path, *, stream: bool = True) -> Path:
    """Write 5 images in batches of 2, as `datasets` (a stream) or polars (a file) save them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": str(number).encode(), "path": f"{number}.png"} for number in range(5)]
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"image": images, "label": [0, 1, 0, 1, 0]}).replace_schema_metadata(hub_metadata(features))
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files_are_read_as_parquet_files_are(tmp_path: Path, stream: bool) -> None:
    path = write_arrow(tmp_path / "data-00000-of-00001.arrow", stream=stream)
    source = open_source(path)
    assert source.plan.classes == {"cat": 3, "dog": 2}
    assert source.count() == 5
    assert [(record.key, record.data, record.label, record.payload) for record in source][3:] == [
        (f"{path.name}/3", b"3", "dog", {"path": "3.png"}),
        (f"{path.name}/4", b"4", "cat", {"path": "4.png"}),
    ]


def test_a_folder_that_datasets_saved_has_its_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_arrow(tmp_path / split / "data-00000-of-00001.arrow")
        for name in ("dataset_info.json", "state.json"):
            (tmp_path / split / name).write_text(json.dumps({"_split": split, "_data_files": [{"filename": "data"}]}))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = open_source(tmp_path)
    assert source.plan.splits == {"train": 5, "test": 5}
    assert {(record.key.split("/")[0], record.split) for record in source} == {("train", "train"), ("test", "test")}
    assert sum(not isinstance(record.data, bytes) for record in source) == 0


def test_of_a_damaged_arrow_file_the_rows_before_the_damage_are_read(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "x.arrow")
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    records = list(open_source(path))
    assert [record.data for record in records[:-1]] == [b"0", b"1", b"2", b"3"][: len(records) - 1]
    assert len(records) > 1
    assert isinstance(records[-1].data, SourceError)
    for start in range(0, len(whole), 40):  # whatever is damaged ends in records
        path.write_bytes(whole[:start] + b"\xff" * 16 + whole[start + 16 :])
        list(open_source(path))


def test_a_column_that_the_user_names_has_the_labels(tmp_path: Path) -> None:
    table = pa.table({"image": [b"1", b"2"], "label": [0, 1], "species": ["owl", "crow"]})
    pq.write_table(table, tmp_path / "birds.parquet")
    records = list(open_source(tmp_path / "birds.parquet", label_from="column:species"))
    assert [(record.label, record.payload) for record in records] == [("owl", {"label": 0}), ("crow", {"label": 1})]
    with pytest.raises(InvalidArgumentError, match="has a column 'Species'"):
        _ = open_source(tmp_path / "birds.parquet", label_from="column:Species").plan
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    assert not open_source(tmp_path / "none.parquet", label_from="column:Species").plan.classes


def write_table(path: Path, table: Any) -> Path:
    """Write a table as Parquet, or as the stream of batches that `datasets` saves."""
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_columns_may_have_any_types_and_names(tmp_path: Path, suffix: str) -> None:
    images = [{"bytes": b"1", "path": "cat/1.png"}, {"bytes": b"2", "path": "dog/2.png"}]
    # Names with dots, as robots' recordings have them; a member and a column of one name.
    features = hub_metadata({"observation.image": {"_type": "Image"}})
    for others in ({}, {"observation.image.path": ["x", "y"]}):
        table = pa.table({"observation.image": images, **others}).replace_schema_metadata(features)
        source = open_source(write_table(tmp_path / f"dots{suffix}", table))
        assert source.plan.classes == {"cat": 1, "dog": 1}
        assert [record.data for record in source] == [b"1", b"2"]
    # What polars writes, and categories of pandas.
    split = pa.array(["train", "test"])
    for texts in (split.cast(pa.large_string()), split.cast(pa.string_view()), split.dictionary_encode()):
        views = {"image": pa.array([b"1", b"2"], pa.binary_view()), "label": texts, "split": texts}
        source = open_source(write_table(tmp_path / f"views{suffix}", pa.table(views)))
        assert source.plan.splits == {"train": 1, "test": 1}
        assert [(record.data, record.label, record.split) for record in source] == [
            (b"1", "train", "train"),
            (b"2", "test", "test"),
        ]
    numbers = pa.table({"image": [b"1", b"2"], "price": [float("nan"), 1.5]})
    source = open_source(write_table(tmp_path / f"numbers{suffix}", numbers))
    assert [(record.data, record.payload) for record in source] == [(b"1", None), (b"2", {"price": 1.5})]
    # Boxes are no labels.
    for labels in ([{"box": 1}, None], [[{"box": 1}], []], [[["a"]], None]):
        source = open_source(
            write_table(tmp_path / f"boxes{suffix}", pa.table({"image": [b"1", b"2"], "label": labels}))
        )
        assert not source.plan.classes
        assert [(record.data, record.label) for record in source] == [(b"1", None), (b"2", None)]
    twice = pa.table([pa.array([b"1"]), pa.array(["a"]), pa.array(["b"])], names=["image", "label", "label"])
    (record,) = open_source(write_table(tmp_path / f"twice{suffix}", twice))
    assert "several of its columns are named 'label'" in str(record.data)
