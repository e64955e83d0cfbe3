"""Write and map sealed segments: a collection's columns as files, so that opening it does not read all rows.

    segments/manifest          the current generation, its rows and its sequence number; replaced atomically
    segments/dead-NUMBER       the slots that were dead at that sequence number
    segments/GENERATION/…      one file per column, each row at its slot

A segment is a run of rows that was appended to a generation's files at once. From when the manifest names it, with its
SHA-256, its bytes never change; rows of a killed process after the last segment are overwritten by the next one.
Segments are derived from the database, and rebuilt from it when they are missing, stale or damaged.

Opening verifies the manifest's own SHA-256 and the files' sizes, but reads no rows; `scrub` verifies everything.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagekin import files
from imagekin.index.storage.columns import Columns, ColumnSnapshot
from imagekin.index.storage.mapped_arrays import map_rows
from imagekin.index.storage.schema import Identity
from imagekin.index.types import StoppedError
from imagekin.index.vectors.codes import Codes, width_of

FOLDER = "segments"
_MANIFEST = "manifest"
_FORMAT = 1
_COLUMNS: dict[str, type[np.generic]] = {
    "vectors": np.float32,
    "sequences": np.int64,
    "labels": np.int32,
    "hashes": np.uint64,
    "key-ends": np.int64,
    "keys": np.uint8,
}
_CODES = "codes"
_WRITTEN_AT_ONCE = 2**19
_ROOM = 65_536


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of rows: its end, in rows and bytes of keys from the generation's beginning, and its SHA-256."""

    rows: int
    key_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of the sealed files.

    Attributes:
        identity: checksum of the collection's description.
        generation: name of the folder with the columns.
        watermark: sequence number of the last write in the files.
        labelled: number of live rows with a label.
        labels: the labels by code.
        dead: number of dead slots.
        dead_sha256: SHA-256 of the file of dead slots.
        segments: the runs of rows, in order.
        step: step of the vectors' 8-bit codes, see `imagekin.index.vectors.codes`; 0 when there are none.
        error: error of the codes, likewise.
    """

    identity: int
    generation: str
    watermark: int
    labelled: int
    labels: tuple[str, ...]
    dead: int
    dead_sha256: str
    segments: tuple[Segment, ...]
    step: float = 0.0
    error: float = 0.0

    @property
    def rows(self) -> int:
        """Number of slots."""
        return self.segments[-1].rows if self.segments else 0

    @property
    def key_bytes(self) -> int:
        """Total number of bytes of the keys."""
        return self.segments[-1].key_bytes if self.segments else 0


class Segments:
    """The sealed segments of one collection.

    Args:
        folder: the collection's folder.
        identity: the collection's description.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder = folder / FOLDER
        self._identity = identity.checksum()
        self._dim = identity.dim

    def manifest(self) -> Manifest | None:
        """Read the manifest; None when there is none, or it is invalid."""
        try:
            text, _, digest = (self.folder / _MANIFEST).read_bytes().rpartition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() != digest:
                return None
            fields: dict[str, Any] = json.loads(text)
            if fields.pop("format") != _FORMAT or fields["identity"] != self._identity:
                return None
            fields["segments"] = tuple(Segment(**one) for one in fields["segments"])
            fields["labels"] = tuple(fields["labels"])
            return Manifest(**fields)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def open(self, manifest: Manifest) -> Columns | None:
        """Map the columns as of the manifest's watermark; None when files are missing, damaged or too short."""
        rows, room = manifest.rows, manifest.rows + max(manifest.rows // 2, _ROOM)
        keys = manifest.key_bytes
        folder = self.folder / manifest.generation
        try:
            dead = np.frombuffer(self._dead_file(manifest.watermark).read_bytes(), np.int64)
            if len(dead) != manifest.dead or _digest(dead) != manifest.dead_sha256:
                return None
            return Columns.sealed(
                manifest.watermark,
                rows,
                keys,
                vectors=map_rows(folder / "vectors", np.float32, rows, room, (self._dim,)),
                sequences=map_rows(folder / "sequences", np.int64, rows, room),
                labels=map_rows(folder / "labels", np.int32, rows, room),
                hashes=map_rows(folder / "hashes", np.uint64, rows, room),
                key_ends=map_rows(folder / "key-ends", np.int64, rows, room),
                key_bytes=map_rows(folder / "keys", np.uint8, keys, keys + 16 * (room - rows)),
                label_names=list(manifest.labels),
                dead=dead,
                labelled=manifest.labelled,
                codes=self._codes(manifest, room),
            )
        except (OSError, ValueError):
            return None

    def seal(
        self, snapshot: ColumnSnapshot, since: Manifest | None, stop: Callable[[], bool] = lambda: False
    ) -> Manifest:
        """Write the rows of a snapshot to disk, and then a manifest that names them.

        Args:
            snapshot: the collection; its first rows are those of `since`. Its codes are sealed if they cover all rows.
            since: the present manifest, whose segments are kept. None begins a new generation, and so do codes with
                another step.
            stop: asked between two blocks whether to stop.

        Raises:
            StoppedError: `stop` returned True.
            OSError: the disk is full or fails; the previous manifest stays valid.
        """
        self.folder.mkdir(exist_ok=True)
        codes = snapshot.codes if snapshot.codes is not None and snapshot.codes.rows >= len(snapshot) else None
        step, error = (codes.step, codes.error) if codes is not None else (0.0, 0.0)
        if since is not None and since.step != step:
            since = None
        rows, keys = len(snapshot), int(snapshot.key_ends[-1]) if len(snapshot) else 0
        generation = since.generation if since is not None else self._new_generation(snapshot.sequence)
        folder = self.folder / generation
        parts = _parts(snapshot, codes, since.rows if since else 0, rows, since.key_bytes if since else 0, keys)
        digest = hashlib.sha256()
        for name, (offset, part) in parts.items():
            _append(folder / name, offset, part, digest.update, stop)
        files.sync_folder(folder)
        dead = np.flatnonzero(~snapshot.alive())
        files.write_bytes(self._dead_file(snapshot.sequence), dead.tobytes())
        segments = since.segments if since is not None else ()
        if rows > (since.rows if since is not None else -1):
            segments = (*segments, Segment(rows, keys, digest.hexdigest()))
        manifest = Manifest(
            identity=self._identity,
            generation=generation,
            watermark=snapshot.sequence,
            labelled=snapshot.labelled,
            # A snapshot's list of labels may grow at any time; additional ones do no harm.
            labels=tuple(snapshot.label_names),
            dead=len(dead),
            dead_sha256=_digest(dead),
            segments=segments,
            step=step,
            error=error,
        )
        text = json.dumps({"format": _FORMAT} | _fields(manifest), ensure_ascii=False).encode()
        files.write_bytes(self.folder / _MANIFEST, text + b"\n" + hashlib.sha256(text).hexdigest().encode())
        self._remove_all_but(manifest)
        return manifest

    def scrub(self, manifest: Manifest, stop: Callable[[], bool] = lambda: False) -> bool:
        """Return whether all files that the manifest names are intact, by their SHA-256.

        Raises:
            StoppedError: `stop` returned True.
        """
        folder = self.folder / manifest.generation
        try:
            if hashlib.sha256(self._dead_file(manifest.watermark).read_bytes()).hexdigest() != manifest.dead_sha256:
                return False
            before = Segment(0, 0, "")
            for segment in manifest.segments:
                digest = hashlib.sha256()
                for name, width in self._widths(manifest).items():
                    begin, end = (
                        (before.key_bytes, segment.key_bytes) if name == "keys" else (before.rows, segment.rows)
                    )
                    for block in _blocks(folder / name, begin * width, end * width):
                        digest.update(block)
                        if stop():
                            raise StoppedError
                if digest.hexdigest() != segment.sha256:
                    return False
                before = segment
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Remove all segments, the manifest first."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / _MANIFEST).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _codes(self, manifest: Manifest, room: int) -> Codes | None:
        if not manifest.step:
            return None
        path = self.folder / manifest.generation / _CODES
        codes = map_rows(path, np.uint8, manifest.rows, room, (width_of(self._dim),))
        return Codes(codes, manifest.rows, manifest.step, manifest.error)

    def _widths(self, manifest: Manifest) -> dict[str, int]:
        """Return the number of bytes of a row in each column's file, in the order in which they are hashed."""
        widths = {name: np.dtype(kind).itemsize for name, kind in _COLUMNS.items()}
        widths["vectors"] *= self._dim
        return widths | ({_CODES: width_of(self._dim)} if manifest.step else {})

    def _dead_file(self, watermark: int) -> Path:
        return self.folder / f"dead-{watermark}"

    def _new_generation(self, sequence: int) -> str:
        # Random, so that no reader takes the files of another generation for those that it read about.
        name = f"rows-{sequence}-{secrets.token_hex(8)}"
        (self.folder / name).mkdir()
        return name

    def _remove_all_but(self, manifest: Manifest) -> None:
        # Processes that have old files mapped can still use them.
        current = {_MANIFEST, manifest.generation, self._dead_file(manifest.watermark).name}
        for path in self.folder.iterdir():
            if path.name not in current and not path.name.startswith("index-"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _fields(manifest: Manifest) -> dict[str, Any]:
    fields = {name: getattr(manifest, name) for name in Manifest.__slots__}
    fields["segments"] = [{name: getattr(one, name) for name in Segment.__slots__} for one in manifest.segments]
    return fields


def _parts(
    snapshot: ColumnSnapshot, codes: Codes | None, begin: int, end: int, keys: int, keys_end: int
) -> dict[str, tuple[int, NDArray[Any]]]:
    """Return for each column's file the offset of the new rows, in bytes, and the rows."""
    rows = slice(begin, end)
    columns: dict[str, NDArray[Any]] = {
        "vectors": snapshot.vectors,
        "sequences": snapshot.sequences,
        "labels": snapshot.labels,
        "hashes": snapshot.hashes,
        "key-ends": snapshot.key_ends,
    }
    parts = {name: (begin * column.strides[0], column[rows]) for name, column in columns.items()}
    parts |= {"keys": (keys, snapshot.key_bytes[keys:keys_end])}
    return parts | ({} if codes is None else {_CODES: (begin * codes.room.strides[0], codes.room[rows])})


def _append(
    path: Path, offset: int, part: NDArray[Any], digest: Callable[[memoryview], None], stop: Callable[[], bool]
) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = part.reshape(-1).data.cast("B") if part.size else memoryview(b"")
        while data:
            if stop():
                raise StoppedError
            written = os.write(descriptor, data[:_WRITTEN_AT_ONCE])
            digest(data[:written])
            data = data[written:]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _blocks(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        left = end - begin
        while left:
            block = file.read(min(left, _WRITTEN_AT_ONCE))
            if not block:
                return
            yield block
            left -= len(block)


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()
