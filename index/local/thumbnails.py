"""Keep the thumbnails of a collection: JPEG files by the SHA-256 of the image, in `thumbs.sqlite` of its folder.

The file makes thumbnails a property of the collection: without it there are none. A thumbnail is on disk before the
first item with its content is, and leaves with the last one. Only the process that writes the collection writes it.
"""

import contextlib
import sqlite3
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from imagekin.errors import InvalidArgumentError
from imagekin.index.storage.connection import close_writing, connect

FILE = "thumbs.sqlite"
MOST_PIXELS, LEAST_PIXELS = 1_024, 16
_AT_ONCE = 500
_SCHEMA = (
    "CREATE TABLE setting (size INTEGER NOT NULL) STRICT",
    "CREATE TABLE thumbnail (content_hash BLOB PRIMARY KEY, jpeg BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT",
)

# Returns those of some content hashes that an item has.
Live = Callable[[Sequence[bytes]], Collection[bytes]]


def check_size(size: int) -> int:
    """Return a size of thumbnails, 0 for none.

    Raises:
        InvalidArgumentError: it is out of its range.
    """
    if size and not LEAST_PIXELS <= size <= MOST_PIXELS:
        raise InvalidArgumentError(
            f"thumbnails have {LEAST_PIXELS} to {MOST_PIXELS} pixels, or 0 for none, not {size}", field="thumbnail_size"
        )
    return size


def create(folder: Path, size: int) -> None:
    """Make thumbnails of that size a property of the collection in a folder; of size 0, do nothing."""
    if not size:
        return
    (folder / FILE).touch()
    connection = connect(folder / FILE, read_only=False)
    try:
        for statement in ("BEGIN", *_SCHEMA):
            connection.execute(statement)
        connection.execute("INSERT INTO setting VALUES (?)", (size,))
        connection.execute("COMMIT")
    finally:
        close_writing(connection)


def copy(folder: Path, target: Path) -> bool:
    """Copy the thumbnails of a collection that may be written meanwhile; return whether it has any."""
    if not (folder / FILE).is_file():
        return False
    with (
        contextlib.closing(connect(folder / FILE, read_only=True)) as source,
        contextlib.closing(sqlite3.connect(target / FILE)) as made,
    ):
        source.backup(made, pages=2_000, sleep=0.001)
    for log in target.glob(f"{FILE}-*"):
        log.unlink()
    return True


def size_of(folder: Path) -> int:
    """Return the size of the thumbnails of the collection in a folder, 0 for none."""
    thumbnails = Thumbnails(folder, read_only=True)
    try:
        return thumbnails.size
    finally:
        thumbnails.close()


def verify_thumbnails(folder: Path, *, repair: bool) -> int:
    """Return how many thumbnails of the collection in a folder are damaged; with `repair`, remove them."""
    thumbnails = Thumbnails(folder, read_only=not repair)
    try:
        damaged = [value for some in thumbnails.hashes() for value in thumbnails.missing(some)]
        if repair:
            thumbnails.forget(damaged, lambda _: ())
        return len(damaged)
    finally:
        thumbnails.close()


class Thumbnails:
    """The thumbnails of one collection. Thread-safe.

    Args:
        folder: the collection's folder.
        read_only: whether another process may write them.
    """

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        self._path = folder / FILE
        self._read_only = read_only
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._size: int | None = None
        # Contents whose items are being written, and how many writers write each.
        self._pending: dict[bytes, int] = {}

    @property
    def size(self) -> int:
        """Length of their longer side in pixels; 0 when the collection has none."""
        if not self._size:
            with self._lock:
                found = None if (opened := self._open()) is None else opened.execute("SELECT size FROM setting")
                self._size = 0 if found is None else int(found.fetchone()[0])
        return self._size

    def make(self, size: int) -> None:
        """Keep thumbnails of that size from now on; does nothing where there are some already."""
        if not self.size:
            with self._lock:
                create(self._path.parent, check_size(size))

    def get(self, hashes: Sequence[bytes | None]) -> list[bytes | None]:
        """Return the thumbnail of each content, None where there is none."""
        with self._lock:
            connection = self._open()
            if connection is None:
                return [None] * len(hashes)
            found = [
                None
                if value is None
                else connection.execute(
                    "SELECT jpeg, checksum FROM thumbnail WHERE content_hash = ?", (value,)
                ).fetchone()
                for value in hashes
            ]
        return [row[0] if row is not None and zlib.crc32(row[0]) == row[1] else None for row in found]

    def missing(self, hashes: Sequence[bytes]) -> list[bytes]:
        """Return those contents that have no thumbnail."""
        return [value for value, found in zip(hashes, self.get(hashes), strict=True) if found is None]

    @contextlib.contextmanager
    def kept(self, thumbnails: Mapping[bytes, bytes]) -> Iterator[None]:
        """Put thumbnails on disk, and keep them there for the block, which writes their items."""
        if not thumbnails or not self.size:
            yield
            return
        with self._lock:
            for value in thumbnails:
                self._pending[value] = self._pending.get(value, 0) + 1
        try:
            self._put(thumbnails)
            yield
        finally:
            with self._lock:
                for value in thumbnails:
                    self._pending[value] -= 1
                    if not self._pending[value]:
                        del self._pending[value]

    def forget(self, hashes: Iterable[bytes | None], live: Live) -> None:
        """Delete the thumbnails of contents that no item has any more."""
        wanted = list({value for value in hashes if value})
        if not wanted or not self.size:
            return
        with self._lock:
            connection = self._open()
            # An item that was being written when this looked is among the pending, or among the live ones.
            idle = [value for value in wanted if value not in self._pending]
            kept = set(live(idle))
            gone = [(value,) for value in idle if value not in kept]
            if connection is not None and gone:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("DELETE FROM thumbnail WHERE content_hash = ?", gone)
                connection.execute("COMMIT")

    def hashes(self) -> Iterator[list[bytes]]:
        """Yield the contents that have a thumbnail, some at a time."""
        after = b""
        while True:
            with self._lock:
                connection = self._open()
                rows = (
                    []
                    if connection is None
                    else connection.execute(
                        "SELECT content_hash FROM thumbnail WHERE content_hash > ? ORDER BY content_hash LIMIT ?",
                        (after, _AT_ONCE),
                    ).fetchall()
                )
            if not rows:
                return
            yield [value for (value,) in rows]
            after = rows[-1][0]

    def sweep(self, live: Live) -> None:
        """Delete the thumbnails that no item has, and give their room back to the disk."""
        for some in self.hashes():
            self.forget(some, live)
        with self._lock:
            if (connection := self._open()) is not None:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file; it is opened again when it is used."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is None:
                return
            if self._read_only:
                connection.close()
            else:
                close_writing(connection)

    def _put(self, thumbnails: Mapping[bytes, bytes]) -> None:
        rows = [(value, jpeg, zlib.crc32(jpeg)) for value, jpeg in thumbnails.items()]
        with self._lock:
            connection = self._open()
            if connection is None:
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany("INSERT OR REPLACE INTO thumbnail VALUES (?, ?, ?)", rows)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _open(self) -> sqlite3.Connection | None:
        """Return the connection, opened if it was not; None where there is no file. Call it with the lock held."""
        if self._connection is None and self._path.is_file():
            self._connection = connect(self._path, read_only=self._read_only)
            if not self._read_only:
                # What is deleted is overwritten, and not only forgotten.
                self._connection.execute("PRAGMA secure_delete = ON")
        return self._connection
