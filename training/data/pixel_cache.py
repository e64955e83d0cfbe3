"""Cache decoded pixels in a memory-mapped file, so that sets larger than memory can be trained on.

    CACHE_DIR/SOURCE-CONTENT/         pixels.bin and set.json: a finished set
    CACHE_DIR/SOURCE-CONTENT.part/    pixels.bin and rows.jsonl: a set that is being built, or whose build was killed
    CACHE_DIR/SOURCE.lock             held (flock) by the process that builds it; others wait, then read

SOURCE is a hash of the path and of how its files become pixels, CONTENT one of the names, sizes and times of its files:
when these change, the set is built again and the old one removed. Everything is checksummed in blocks. A build that was
killed continues after the last whole block; the finished set is renamed into place only once it is on disk.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from imagekin import files
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import FailedPreconditionError
from imagekin.progress import progress
from imagekin.sources.suffixes import ARCHIVE_SUFFIXES, PARQUET_SUFFIXES

PIXELS_FILE, SET_FILE, ROWS_FILE = "pixels.bin", "set.json", "rows.jsonl"
_BLOCK_BYTES = 4 * 2**20
FORMAT = 2
"""Part of the key: caches of another format are not looked at."""

logger = logging.getLogger("imagekin.training")


@dataclass(frozen=True, slots=True)
class DecodedFile:
    """One file of a source with its pixels, or the reason why it has none.

    Attributes:
        name: unique in its source.
        pixels: uint8 [H, W, 3]; None when there are none.
        problem: the reason why there are none; empty when there are.
        label: name of its class if the source gives one.
        digest: hash of its bytes, see `digest_of`; empty when they could not be read.
    """

    name: str
    pixels: NDArray[np.uint8] | None
    problem: str = ""
    label: str | None = None
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Choice and order of the decoded files that make up the set.

    Attributes:
        order: int64 [N], positions among the files that were decoded.
        keys: N names.
        labels: N positions in `class_names`; −1 where there is none.
        class_names: sorted.
        digests: N hashes of the files' bytes.
        failed: (name, reason) of each file that is left out.
        ignored: (suffix, reason, count) of each kind of file that was passed over.
    """

    order: NDArray[np.int64]
    keys: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    digests: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Key of a cached set: the source, and its content."""

    source: str
    content: str

    @property
    def name(self) -> str:
        """Name of the set's folder."""
        return f"{self.source}-{self.content}"


def digest_of(data: bytes | memoryview) -> str:
    """Return the hash of an image's content, 128 bits in hexadecimal: equal for equal content, wherever it lies."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def cache_key(path: Path, preprocess: Preprocess, limit: int, choice: str = "") -> CacheKey:
    """Return the key of the content of `path`, by the names, sizes and times of its files; no file is read.

    Args:
        path: the source.
        preprocess: how its files become pixels.
        limit: at most so many images of each class.
        choice: which of its images are used, and how they are labelled.
    """
    source = _digest([FORMAT, str(path.resolve()), asdict(preprocess), limit, choice])
    return CacheKey(source, _digest(sorted(_files(path))))


def can_be_cached(path: Path) -> bool:
    """Return whether `cache_key` notices every change: not where images lie elsewhere, as a manifest's do."""
    return path.is_dir() or (path.is_file() and path.name.lower().endswith((*ARCHIVE_SUFFIXES, *PARQUET_SUFFIXES)))


def is_cached(root: Path, key: CacheKey) -> bool:
    """Return whether the set, or a part of it, is in the cache."""
    return (root / key.name).is_dir() or (root / f"{key.name}.part").is_dir()


def open_cached(
    root: Path,
    key: CacheKey,
    shape: tuple[int, int, int],
    decode: Callable[[int], Iterator[DecodedFile]],
    arrange: Callable[[Sequence[DecodedFile]], Arrangement],
) -> tuple[NDArray[np.uint8], Arrangement]:
    """Open a set in the cache, and build it first if it is not there.

    Args:
        root: the cache's folder, created when there is none.
        key: of the set.
        shape: H, W, 3.
        decode: yields the files of the source in a fixed order, without the first so many.
        arrange: chooses and orders the files of the set, given all files (without their pixels).

    Returns:
        Memory-mapped pixels uint8 [N, H, W, 3] and their arrangement; `order` is 0 … N − 1.

    Raises:
        FailedPreconditionError: the cache cannot be written.
    """
    folder = root / key.name
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{key.source}.lock"):
            found = _read(folder, shape)
            if found is None:
                _build(folder, shape, decode, arrange)
                _remove_old(root, key)
                found = _read(folder, shape)
    except OSError as error:
        raise FailedPreconditionError(
            f"the cache in {root} cannot be written ({error.strerror or error}): "
            "free some space or name another --cache-dir",
            field="cache_dir",
        ) from error
    if found is None:
        raise FailedPreconditionError(f"the cache in {root} is not what was written to it", field="cache_dir")
    return found


def _build(
    folder: Path,
    shape: tuple[int, int, int],
    decode: Callable[[int], Iterator[DecodedFile]],
    arrange: Callable[[Sequence[DecodedFile]], Arrangement],
) -> None:
    """Build a set under a temporary name, and rename it once it is on disk."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(exist_ok=True)
    rows = _decode_into(part, shape, decode)
    arrangement = arrange(rows)
    image_bytes = int(np.prod(shape))
    # Positions among all files become positions among those that have pixels.
    place = np.cumsum([not row.problem for row in rows]) - 1
    order = place[arrangement.order]
    count = int(place[-1]) + 1 if len(place) else 0
    if not np.array_equal(order, np.arange(count)):
        _reorder(part, order, image_bytes)
    with (part / PIXELS_FILE).open("rb") as pixels:
        checksums = [zlib.crc32(block) for block in iter(lambda: pixels.read(_BLOCK_BYTES), b"")]
    content = asdict(arrangement) | {"order": len(order), "blocks": checksums}
    files.sync_file(part / PIXELS_FILE)
    files.write_text(part / SET_FILE, _signed(content))
    files.put_folder(part, folder)
    (folder / ROWS_FILE).unlink()


def _decode_into(
    part: Path, shape: tuple[int, int, int], decode: Callable[[int], Iterator[DecodedFile]]
) -> Sequence[DecodedFile]:
    """Decode the files that the part lacks, block by block; return all its files without their pixels."""
    each = max(1, _BLOCK_BYTES // int(np.prod(shape)))
    with (part / PIXELS_FILE).open("ab+") as pixels, (part / ROWS_FILE).open("ab+") as journal:
        rows = _recover(pixels, journal, int(np.prod(shape)))
        if rows:
            logger.warning("going on with a cache that was not finished: %d files are decoded already", len(rows))
        block: list[DecodedFile] = []
        for item in decode(len(rows)):
            block.append(item)
            if len(block) == each:
                rows += _append(pixels, journal, block)
                block = []
        if block:
            rows += _append(pixels, journal, block)
    return rows


def _append(pixels: IO[bytes], journal: IO[bytes], block: Sequence[DecodedFile]) -> list[DecodedFile]:
    """Write the pixels of a block, then the journal's line with their checksum."""
    data = b"".join(item.pixels.tobytes() for item in block if item.pixels is not None)
    pixels.write(data)
    pixels.flush()
    rows = [[item.name, item.problem, item.label, item.digest] for item in block]
    journal.write(_signed({"rows": rows, "bytes": len(data), "checksum": zlib.crc32(data)}).encode())
    journal.flush()
    return [replace(item, pixels=None) for item in block]


def _recover(pixels: IO[bytes], journal: IO[bytes], image_bytes: int) -> list[DecodedFile]:
    """Return the files of all whole blocks, and cut off the rest."""
    rows: list[DecodedFile] = []
    pixels.seek(0)
    journal.seek(0)
    pixels_end = journal_end = 0
    for line in journal:
        content = _verified(line)
        data = pixels.read(content["bytes"]) if content else b""
        if not content or len(data) != content["bytes"] or zlib.crc32(data) != content["checksum"]:
            break
        some = [DecodedFile(name, None, *rest) for name, *rest in content["rows"]]
        if len(data) != image_bytes * sum(not row.problem for row in some):
            break
        rows += some
        pixels_end, journal_end = pixels_end + len(data), journal_end + len(line)
    pixels.truncate(pixels_end)
    journal.truncate(journal_end)
    return rows


def _reorder(part: Path, order: NDArray[np.int64], image_bytes: int) -> None:
    """Rewrite the pixels: only those of `order`, in that order."""
    unsorted = np.memmap(part / PIXELS_FILE, np.uint8, "r").reshape(-1, image_bytes)
    each = max(1, _BLOCK_BYTES // image_bytes)
    with files.replacing(part / PIXELS_FILE) as temporary:
        with temporary.open("wb") as file, progress("sorting", len(order)) as advance:
            for start in range(0, len(order), each):
                some = order[start : start + each]
                file.write(unsorted[some].tobytes())
                advance(len(some))
        # From here on the journal does not match the pixels, so it is emptied: a build killed now starts all over.
        (part / ROWS_FILE).write_bytes(b"")


def _read(folder: Path, shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], Arrangement] | None:
    """Map a finished set; None when there is none, or when it was damaged and is now removed."""
    try:
        content = _verified((folder / SET_FILE).read_bytes())
    except FileNotFoundError:
        if folder.exists():
            shutil.rmtree(folder)
        return None
    pixels = _map(folder / PIXELS_FILE, shape, content) if content else None
    if content is None or pixels is None:
        logger.warning("the cache %s is damaged and made anew", folder)
        shutil.rmtree(folder)
        return None
    failed = tuple((name, reason) for name, reason in content["failed"])
    names = tuple(content["class_names"])
    order = np.arange(content["order"])
    keys, labels, digests = (tuple(content[name]) for name in ("keys", "labels", "digests"))
    ignored = tuple((suffix, reason, count) for suffix, reason, count in content.get("ignored", ()))
    return pixels, Arrangement(order, keys, labels, names, digests, failed, ignored)


def _map(path: Path, shape: tuple[int, int, int], content: dict[str, Any]) -> NDArray[np.uint8] | None:
    """Map the pixels if every block of them matches its checksum."""
    size = content["order"] * int(np.prod(shape))
    starts = range(0, size, _BLOCK_BYTES)
    if not size or not path.is_file() or path.stat().st_size != size or len(content["blocks"]) != len(starts):
        return None
    # Copy-on-write: nothing is written, but torch warns of a read-only array.
    flat = np.memmap(path, np.uint8, "c")
    with ThreadPoolExecutor(2) as pool, progress("checking the cache", len(starts)) as advance:
        found = pool.map(lambda start: zlib.crc32(flat[start : start + _BLOCK_BYTES].data), starts)
        for checksum, expected in zip(found, content["blocks"], strict=True):
            if checksum != expected:
                return None
            advance(1)
    return flat.reshape(-1, *shape)


def _remove_old(root: Path, key: CacheKey) -> None:
    """Remove sets of an earlier content of the source."""
    for folder in root.glob(f"{key.source}-*"):
        if folder.name != key.name:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("another process is at work on this cache; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _files(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of each file below `path`, or of `path` itself; links are followed."""
    if not path.is_dir():
        status = path.stat()
        yield "", status.st_size, status.st_mtime_ns
        return
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            full = os.path.join(folder, name)
            try:
                status = os.stat(full)
            except OSError:
                continue
            yield os.path.relpath(full, path), status.st_size, status.st_mtime_ns


def _digest(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, default=str).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:16]


def _signed(content: dict[str, Any]) -> str:
    text = json.dumps(content, default=lambda array: array.tolist())
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _verified(line: bytes) -> dict[str, Any] | None:
    """Parse a line that `_signed` wrote; None when it is damaged or cut off."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    content: dict[str, Any] = json.loads(text)
    return content
