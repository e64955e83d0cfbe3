"""The same pictures in every kind of source that people have, with the items that each must become."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from tests.sources.pictures import png, tar_bytes, write_files

PICTURES = {f"{('cat', 'dog')[n % 2]}/{n}.png": png(n) for n in range(12)}


@dataclass(frozen=True)
class Given:
    """A source and what it holds.

    Attributes:
        sources: what the command is given.
        items: label and bytes of each picture by its key.
        failed: keys that are reported.
    """

    sources: list[str]
    items: Mapping[str, tuple[str | None, bytes]]
    failed: list[str] = field(default_factory=list)


Pictures: TypeAlias = Mapping[str, bytes]
Maker: TypeAlias = Callable[[Path, Pictures], Given]


def below(prefix: str, pictures: Pictures) -> dict[str, tuple[str | None, bytes]]:
    """Return pictures with a prefix before their keys, labelled by their own folders."""
    return {f"{prefix}{name}": (name.partition("/")[0], data) for name, data in pictures.items()}


def parts(pictures: Pictures, count: int) -> list[dict[str, bytes]]:
    """Divide pictures into parts of equal size, in their order."""
    size = -(-len(pictures) // count)
    listed = list(pictures.items())
    return [dict(listed[first : first + size]) for first in range(0, len(listed), size)]


def zip_bytes(files: Pictures, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive of files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def zstd(data: bytes) -> bytes:
    """Return data compressed by Zstandard."""
    compressed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return compressed


def parquet_bytes(rows: Pictures) -> bytes:
    """Return a file as the Hub stores pictures: base names that repeat beside the bytes, and a column of classes."""
    file = io.BytesIO()
    images = [{"bytes": data, "path": "image.png"} for data in rows.values()]
    labels = [name.partition("/")[0] for name in rows]
    pq.write_table(pa.table({"image": images, "label": labels}), file, row_group_size=4)
    return file.getvalue()


def one_file(name: str, data: Callable[[Pictures], bytes]) -> Maker:
    """Return the maker of a source of one file, which holds all pictures."""

    def make(root: Path, pictures: Pictures) -> Given:
        (root / name).write_bytes(data(pictures))
        return Given([str(root / name)], below("", pictures))

    return make


def tarred(name: str, compress: Callable[[bytes], bytes] = bytes) -> Maker:
    """Return the maker of a tar archive."""
    return one_file(name, lambda pictures: compress(tar_bytes(pictures)))


def folder(root: Path, pictures: Pictures) -> Given:
    """Write a folder of class folders."""
    return Given([str(write_files(root / "photos", pictures))], below("", pictures))


def several_folders(root: Path, pictures: Pictures) -> Given:
    """Write a folder of class folders, and name each of these, as a shell makes of `photos/*`."""
    photos = write_files(root / "photos", pictures)
    return Given(sorted(map(str, photos.iterdir())), below("", pictures))


def joined_archives(name: str, compress: Callable[[bytes], bytes]) -> Maker:
    """Return the maker of two archives, one after the other in a file."""
    return one_file(name, lambda pictures: b"".join(compress(tar_bytes(part)) for part in parts(pictures, 2)))


def cut_into_parts(name: str, compress: Callable[[bytes], bytes]) -> Maker:
    """Return the maker of an archive that is compressed in three parts, as parallel compressors do it."""

    def data(pictures: Pictures) -> bytes:
        whole = tar_bytes(pictures)
        return compress(whole[:1000]) + compress(whole[1000:5000]) + compress(whole[5000:])

    return one_file(name, data)


def folder_of_archives(root: Path, pictures: Pictures) -> Given:
    """Write a folder of archives of several kinds."""
    first, second, third = parts(pictures, 3)
    packed = {"0.tar.gz": gzip.compress(tar_bytes(first)), "1.zip": zip_bytes(second), "2.tar": zstd(tar_bytes(third))}
    shards = write_files(root / "shards", packed)
    return Given([str(shards)], below("0.tar.gz/", first) | below("1.zip/", second) | below("2.tar/", third))


def rows(prefix: str, pictures: Pictures) -> dict[str, tuple[str | None, bytes]]:
    """Return pictures of a Parquet file, whose keys are the file's name and the row's number."""
    return {f"{prefix}/{row}": (name.partition("/")[0], data) for row, (name, data) in enumerate(pictures.items())}


def parquet(root: Path, pictures: Pictures) -> Given:
    """Write a Parquet file."""
    return Given(
        [str(write_files(root, {"t.parquet": parquet_bytes(pictures)}) / "t.parquet")], rows("t.parquet", pictures)
    )


def parquet_shards(root: Path, pictures: Pictures) -> Given:
    """Write a folder of the shards of two splits."""
    first, last = parts(pictures, 2)
    names = ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")
    shards = write_files(root / "hub", {names[0]: parquet_bytes(first), names[1]: parquet_bytes(last)})
    return Given([str(shards)], rows(names[0], first) | rows(names[1], last))


def table(name: str, separator: str, encoding: str) -> Maker:
    """Return the maker of a table beside a folder without classes; its classes are not ASCII."""

    def make(root: Path, pictures: Pictures) -> Given:
        items: dict[str, tuple[str | None, bytes]] = {}
        lines = [f"File Name{separator}Category"]
        for path, data in pictures.items():
            kind, _, file = path.partition("/")
            lines.append(f"images/{file}{separator} größe {kind} ")
            items[f"images/{file}"] = (f"größe {kind}", data)
        write_files(root, {key: data for key, (_, data) in items.items()})
        (root / name).write_bytes("\r\n".join(lines).encode(encoding))
        return Given([str(root / name)], items)

    return make


def damaged(root: Path, pictures: Pictures) -> Given:
    """Write a folder of archives of which one is cut off, one has a bad member, and one is no archive at all."""
    first, last = parts(pictures, 2)
    packed = zip_bytes(first, zipfile.ZIP_STORED)
    broken = list(first)[1]
    at = packed.index(first[broken]) + 60
    whole = tar_bytes(last)
    files = {
        "bad.zip": packed[:at] + b"??" + packed[at + 2 :],
        "cut.tar.gz": gzip.compress(whole[:3600])[:-8],
        "no.tar": b"no archive",
        "ok.tar.xz": lzma.compress(tar_bytes(last)),
    }
    shards = write_files(root / "damaged", files)
    read = {name: data for place, (name, data) in enumerate(last.items()) if (place + 1) * 1024 <= 3600}
    items = below("bad.zip/", first) | below("cut.tar.gz/", read) | below("ok.tar.xz/", last)
    del items[f"bad.zip/{broken}"]
    return Given([str(shards)], items, [f"bad.zip/{broken}", "cut.tar.gz", "no.tar"])


WHOLE: dict[str, Maker] = {
    "folder": folder,
    "several folders": several_folders,
    "zip": one_file("photos.zip", zip_bytes),
    "zip of bzip2": one_file("photos.zip", lambda pictures: zip_bytes(pictures, zipfile.ZIP_BZIP2)),
    "zip called tar": one_file("photos.tar", zip_bytes),
    "tar": tarred("photos.tar"),
    "tar.gz": tarred("photos.tar.gz", gzip.compress),
    "tar.bz2": tarred("photos.tar.bz2", bz2.compress),
    "tar.xz": tarred("photos.tar.xz", lzma.compress),
    "tar.zst": tarred("photos.tar.zst", zstd),
    "two archives in one": joined_archives("photos.tar", bytes),
    "two compressed archives in one": joined_archives("photos.tar.xz", lzma.compress),
    "gzip of several parts": cut_into_parts("photos.tar.gz", gzip.compress),
    "Zstandard of several parts": cut_into_parts("photos.tar.zst", zstd),
    "folder of archives": folder_of_archives,
    "Parquet": parquet,
    "folder of Parquet shards": parquet_shards,
    "table in UTF-16": table("list.tsv", "\t", "utf-16"),
    "table of Windows": table("list.csv", ";", "cp1252"),
    "table in UTF-8 with a mark": table("list.csv", ",", "utf-8-sig"),
}
KINDS = WHOLE | {"damaged archives": damaged}
