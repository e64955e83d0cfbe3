"""Archives are read whatever compressed them and whatever they are called, to the end of their last part."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from imagekin.sources.open import open_source
from imagekin.sources.records import SourceError
from tests.sources.pictures import FILES, bad, good, tar_bytes


def zstd(data: bytes) -> bytes:
    """Return data compressed by Zstandard."""
    compressed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return compressed


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


@pytest.mark.parametrize("name", ["x.{}", "x.tar.{}", "photos", "x.tar", "x.zip", "x.parquet.tar"])
@pytest.mark.parametrize("kind", COMPRESSORS)
def test_the_first_bytes_say_how_an_archive_is_compressed(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name.format(kind)
    path.write_bytes(COMPRESSORS[kind](tar_bytes(FILES)))
    assert good(open_source(path)) == FILES


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_file_of_several_parts_is_read_to_its_end(tmp_path: Path, kind: str) -> None:
    whole = tar_bytes(FILES)
    path = tmp_path / "x.tar"
    # An archive that is cut into parts, and two archives, one after the other.
    parts = [whole[:700], whole[700:], tar_bytes({"more/1.png": b"more"})]
    path.write_bytes(b"".join(map(COMPRESSORS[kind], parts)))
    assert good(open_source(path)) == FILES | {"more/1.png": b"more"}


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_what_is_cut_off_is_an_error_after_what_could_be_read(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).bytes
    files = {f"{n}.png": noise(200_000) for n in range(6)}
    path = tmp_path / "x.tar"
    data = COMPRESSORS[kind](tar_bytes(files))
    path.write_bytes(data[: len(data) * 3 // 4])
    records = list(open_source(path))
    assert isinstance(records[-1].data, SourceError)
    assert "cut off" in bad(records)["x.tar"]
    read = good(records)
    assert read.items() <= files.items()
    assert len(read) >= (1 if kind in ("bz2", "zst") else 3), "bzip2 and Zstandard have large blocks"


def test_a_table_in_utf_16_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "t.csv").write_bytes("Path;Label\r\na.png; Größe\r\n".encode("utf-16"))
    assert [(record.key, record.label) for record in open_source(tmp_path / "t.csv")] == [("a.png", "Größe")]
