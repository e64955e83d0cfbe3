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

from imagekin import files
from imagekin.errors import InvalidArgumentError
from imagekin.index.storage.connection import close_writing, connect, read_settled
from imagekin.index.storage.schema import storage_errors

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
    with files.replacing(folder / FILE) as made:
        connection = connect(made, read_only=False)
        try:
            for statement in ("BEGIN", *_SCHEMA):
                connection.execute(statement)
            connection.execute("INSERT INTO setting VALUES (?)", (size,))
            connection.execute("COMMIT")
        finally:
            close_writing(connection)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    """Open a read transaction on the thumbnails of a collection that may be written meanwhile; None without any."""
    if not (folder / FILE).is_file():
        yield None
        return
    with contextlib.closing(connect(folder / FILE, read_only=True)) as source:
        source.execute("BEGIN")
        source.execute("SELECT size FROM setting").fetchone()  # the transaction begins with the first read
        yield source


def size_of(folder: Path, name: str) -> int:
    """Return the size of the thumbnails of the collection in a folder, 0 for none; raises as `Thumbnails` does."""
    if not (folder / FILE).is_file():
        return 0
    with storage_errors(name):
        return int(read_settled(folder / FILE, lambda one: one.execute("SELECT size FROM setting").fetchone()[0]))


def verify_thumbnails(folder: Path, name: str, *, repair: bool) -> int:
    """Return how many thumbnails of the collection in a folder are damaged; with `repair`, remove them."""
    thumbnails = Thumbnails(folder, name, read_only=not repair)
    try:
        damaged = [value for some in thumbnails.hashes() for value in thumbnails.missing(some)]
        if repair:
            thumbnails.forget(damaged, lambda _: ())
        return len(damaged)
    finally:
        thumbnails.close()


class Thumbnails:
    """The thumbnails of one collection. Thread-safe; every method raises as `storage_errors` does.

    Args:
        folder: the collection's folder.
        name: the collection's name, for messages.
        read_only: whether another process may write them.
    """

    def __init__(self, folder: Path, name: str, *, read_only: bool) -> None:
        self._path = folder / FILE
        self._name = name
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
            with self._opened() as connection:
                found = None if connection is None else connection.execute("SELECT size FROM setting")
                self._size = 0 if found is None else int(found.fetchone()[0])
        return self._size

    def make(self, size: int) -> None:
        """Keep thumbnails of that size from now on; does nothing where there are some already."""
        if not self.size:
            check_size(size)
            with self._lock, storage_errors(self._name):
                create(self._path.parent, size)

    def get(self, hashes: Sequence[bytes | None]) -> list[bytes | None]:
        """Return the thumbnail of each content, None where there is none."""
        with self._opened() as connection:
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
        with self._opened() as connection:
            # An item that was being written when this looked is among the pending, or among the live ones.
            idle = [value for value in wanted if value not in self._pending]
            kept = set(live(idle))
            gone = [(value,) for value in idle if value not in kept]
            if connection is not None and gone:
                _change(connection, "DELETE FROM thumbnail WHERE content_hash = ?", gone)

    def hashes(self) -> Iterator[list[bytes]]:
        """Yield the contents that have a thumbnail, some at a time."""
        after = b""
        while True:
            with self._opened() as connection:
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
        with self._opened() as connection:
            if connection is not None:
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
        with self._opened() as connection:
            if connection is not None:
                _change(connection, "INSERT OR REPLACE INTO thumbnail VALUES (?, ?, ?)", rows)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection | None]:
        """Hold the lock and the connection, opened if it was not; None where there is no file."""
        with self._lock, storage_errors(self._name):
            if self._connection is None and self._path.is_file():
                self._connection = connect(self._path, read_only=self._read_only)
                if not self._read_only:
                    # What is deleted is overwritten, and not only forgotten.
                    self._connection.execute("PRAGMA secure_delete = ON")
            yield self._connection


def _change(connection: sqlite3.Connection, statement: str, rows: Iterable[Sequence[object]]) -> None:
    """Execute a statement for every row in one transaction, or for none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(statement, rows)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
