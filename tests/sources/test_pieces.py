"""A source whose pieces are sent elsewhere gives the records that it gives whole, broken members included."""

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagekin.errors import InvalidArgumentError
from imagekin.sources.ignored import Ignored
from imagekin.sources.open import open_source, open_sources
from imagekin.sources.pieces import Piece, ignored_in, pieces_of
from imagekin.sources.records import Record, Source, SourceError
from tests.sources.pictures import FILES, bad, good, tar_bytes, write_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of sources of all kinds, each with good and with broken members."""
    folder = tmp_path
    root = write_files(folder / "root", FILES | {"notes.txt": b""})
    (root / "cat" / "up").symlink_to(root)
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    cut = tar_bytes({f"d/{n}.jpg": b"%d" % n for n in range(9)} | {"d/x.txt": b""})[:5000]
    write_files(folder, {"shards/1.tar": cut, "shards/2.tar": tar_bytes({"e/1.png": b"e", "notes.md": b""})})
    rows = b"path,label\nroot/a.jpg,x\nnowhere.jpg,x\nroot/cat/2.png\ncaf\xe9.jpg,x\n"
    write_files(folder, {"list.csv": rows})
    table = pa.table({"image": [b"0" * 900, b"1" * 900, None, b"3"], "key": ["k0", "k1", "k2", "k3"]})
    pq.write_table(table, folder / "t.parquet", row_group_size=1, compression="none", write_page_checksum=True)
    data = bytearray((folder / "t.parquet").read_bytes())
    data[data.index(b"1" * 900) + 100] ^= 0xFF
    (folder / "t.parquet").write_bytes(data)
    return folder


def opened(folder: Path) -> dict[str, Source]:
    """Open the sources anew."""
    root = folder / "root"
    return {
        "folder": open_source(root),
        "pattern": open_source(f"{folder}/root/**/*"),
        "archive": open_source(folder / "shards" / "1.tar"),
        "archives": open_source(f"{folder}/shards/*.tar"),
        "table": open_source(folder / "t.parquet"),
        "manifest": open_source(folder / "list.csv"),
        "image": open_source(root / "a.jpg"),
        "joined": open_sources([root, folder / "shards" / "1.tar", folder / "list.csv"]),
    }


def sent(piece: Piece) -> Piece:
    """Return a piece as another process gets it."""
    copy: Piece = pickle.loads(pickle.dumps(piece))  # noqa: S301
    return copy


def comparable(records: list[Record]) -> list[tuple[object, ...]]:
    """Return records in a form that can be compared: errors have no equality."""
    return [
        (record.key, record.label, record.payload, record.content_hash, type(record.data), str(record.data))
        for record in records
    ]


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [
        ("folder", 6),
        ("pattern", 6),
        ("archive", 1),
        ("archives", 2),
        ("table", 4),
        ("manifest", 4),
        ("image", 1),
        ("joined", 11),
    ],
)
def test_pieces_give_the_records_of_the_whole(folder: Path, kind: str, pieces: int) -> None:
    source = opened(folder)[kind]
    whole = list(source)
    assert bad(whole) or kind == "image"
    assert good(whole)
    divided = opened(folder)[kind]
    parts = [sent(piece) for piece in pieces_of(divided)]
    assert len(parts) == pieces
    assert comparable([record for part in parts for record in part]) == comparable(whole)
    ignored = Ignored(divided.ignored)
    for part in parts:
        ignored.update(ignored_in(part) or Ignored())
    assert list(ignored) == list(source.ignored)


def test_broken_shards_and_names_of_a_pattern_are_reported_in_their_places(folder: Path) -> None:
    sources = opened(folder)
    *_, cut, last = sources["archives"]
    assert isinstance(cut.data, SourceError)
    assert last.key == "2.tar/e/1.png"
    assert "UTF-8" in bad(sources["pattern"])["caf\\udce9.jpg"]


def test_a_pipe_has_no_pieces(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(InvalidArgumentError, match="pipe"):
        sent(next(open_source(tmp_path / "x.tar").pieces()))
