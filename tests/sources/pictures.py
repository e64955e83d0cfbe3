"""Small pictures and archives for the tests of sources and batch indexing."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from imagekin.sources.records import Record

FILES = {"a.jpg": b"at the root", "cat/1.JPG": b"one", "cat/2.png": b"two", "dog/big/3.webp": b"three"}


def png(seed: int, side: int = 8) -> bytes:
    """Return a PNG file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder and return the folder."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def tar_bytes(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    """Return a tar archive of files, compressed if the mode says so."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def good(records: Iterable[Record]) -> dict[str, bytes]:
    """Return the files that could be read, by key."""
    return {record.key: record.data for record in records if isinstance(record.data, bytes)}


def bad(records: Iterable[Record]) -> dict[str, str]:
    """Return why the others could not, by key."""
    return {record.key: str(record.data) for record in records if not isinstance(record.data, bytes)}
