"""Open connections to a collection's database file, and set when its writes reach the disk.

A COMMIT returns once SQLite has synced the write-ahead log (fsync): `synchronous = FULL`. That is what an acknowledged
write stands on; see https://sqlite.org/pragma.html#pragma_synchronous.
"""

import contextlib
import sqlite3
from pathlib import Path


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open a connection that any thread may use, one at a time; transactions are explicit."""
    mode = "ro" if read_only else "rw"
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


def vacuum(path: Path) -> None:
    """Rewrite the database without the space of deleted rows; there must be no other writer."""
    with contextlib.closing(connect(path, read_only=False)) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
