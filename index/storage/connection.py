"""Open connections to a collection's database file, and set when its writes reach the disk.

A COMMIT returns once SQLite has synced the write-ahead log (fsync): `synchronous = FULL`. That is what an acknowledged
write stands on; see https://sqlite.org/pragma.html#pragma_synchronous.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from imagekin.errors import ImagekinError, UnavailableError

_T = TypeVar("_T")

_TRIES = 100
_SETTLED_SECONDS = 2.0
# Device and inode: as long as the file is open, no other file has the same.
FileId = tuple[int, int]


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open a connection that any thread may use, one at a time; transactions are explicit."""
    return connect_reading(path)[0] if read_only else _connect(path, read_only=False)


def connect_reading(path: Path) -> tuple[sqlite3.Connection, FileId]:
    """Open a connection that only reads, and return it with the file that it reads.

    SQLite opens the file and its log one after the other, by their paths. If the folder is replaced between the two,
    the file of one collection would be read with the log of the other; then both are opened again.

    Raises:
        UnavailableError: the folder is replaced again and again.
        FileNotFoundError: there is no such file.
    """
    for _ in range(_TRIES):
        before = file_id(path)
        connection = _connect(path, read_only=True)
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # opens the log, too
            if file_id(path) == before:
                return connection, before
        except BaseException:
            connection.close()
            raise
        connection.close()
    raise UnavailableError("the collection is being replaced: try again")


def read_settled(path: Path, read: Callable[[sqlite3.Connection], _T]) -> _T:
    """Read something small of a database whose writers may be other processes.

    One that has no log, and has not been written for seconds, is read as if it could not change, without its locks and
    the index of its log: a third of the time. That it has not changed meanwhile is checked afterwards; else, and where
    anything fails, it is read as any other.

    Args:
        path: the database.
        read: reads it; it may be called twice.

    Raises:
        UnavailableError: as `connect_reading` does.
    """
    before = _settled(path)
    if before is not None:
        with (
            contextlib.suppress(sqlite3.Error, ImagekinError),
            contextlib.closing(_connect(path, read_only=True, immutable=True)) as connection,
        ):
            found = read(connection)
            if _settled(path) == before:
                return found
    with contextlib.closing(connect(path, read_only=True)) as connection:
        return read(connection)


def _settled(path: Path) -> tuple[int, ...] | None:
    """Return a stamp of the contents of a database that is not being written; None for one that may be."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(f"{path}-wal").st_size:
            return None
    status = os.stat(path)
    # The clock of files has ticks of some milliseconds, in which a change may leave no trace.
    if not time.time() - status.st_mtime > _SETTLED_SECONDS:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_id(path: Path) -> FileId:
    """Return which file there is now at a path."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _connect(path: Path, *, read_only: bool, immutable: bool = False) -> sqlite3.Connection:
    mode = ("ro" if read_only else "rw") + ("&immutable=1" if immutable else "")
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=10.0,
        cached_statements=64,
    )
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
    except BaseException:
        connection.close()
        raise
    return connection


def close_writing(connection: sqlite3.Connection) -> None:
    """Close the writer's connection, and move its log into the database, so that what was deleted does not stay there.

    A reader that is at work keeps the log; it is moved at the next close.
    """
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def vacuum(path: Path) -> None:
    """Rewrite the database without the space of deleted rows; there must be no other writer."""
    with contextlib.closing(connect(path, read_only=False)) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
