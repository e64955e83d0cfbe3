"""Define the database file of a collection: its tables, its description and counters, and its errors.

One SQLite file is the truth. `item` holds keys, labels and payloads; `vector` the embeddings (separately, so that a
scan of the items does not read them); `tombstone` the deaths of rows (so that a reader, or segments, of an earlier
sequence number can catch up); `state` the counters that every write changes; `meta` the description fixed at creation.
A row never changes: writing an item again adds a new row with a new sequence number.
"""

import contextlib
import errno
import os
import secrets
import sqlite3
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from imagekin.errors import (
    DataLossError,
    FailedPreconditionError,
    ImagekinError,
    ResourceExhaustedError,
    UnavailableError,
)
from imagekin.index.storage.connection import connect

APPLICATION_ID = int.from_bytes(b"IMGK", "big")
# Application id of versions before 0.2, when the project had another name.
_BEFORE_0_2 = 0x4B4E4452
SCHEMA_VERSION = 1
METRIC = "cosine"

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    sequence INTEGER NOT NULL,
    count INTEGER NOT NULL,
    labelled INTEGER NOT NULL,
    tombstones_after INTEGER NOT NULL
) STRICT;
CREATE TABLE item (
    sequence INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    label TEXT,
    content_hash BLOB,
    checksum INTEGER NOT NULL,
    payload TEXT,
    payload_checksum INTEGER
) STRICT;
CREATE TABLE vector (sequence INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE tombstone (sequence INTEGER PRIMARY KEY, dead INTEGER NOT NULL) STRICT;
CREATE INDEX tombstone_dead ON tombstone (dead);
INSERT INTO state VALUES (1, 0, 0, 0, 0);
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """The description fixed at creation.

    Attributes:
        space: id of the embedding space.
        dim: number of components of a vector.
        index_kind: kind of index.
        created_at: time of creation, seconds since the epoch.
        id: random; what is made anew or restored under the same name has another one. Empty for a collection that was
            made before there were ids.
    """

    space: str
    dim: int
    index_kind: str
    created_at: float
    id: str = ""

    def checksum(self) -> int:
        """Return the CRC-32 of the description."""
        fields = (self.space, self.dim, METRIC, self.index_kind, self.created_at)
        return zlib.crc32(repr((*fields, self.id) if self.id else fields).encode())


@dataclass(frozen=True, slots=True)
class State:
    """The counters that every write changes.

    Attributes:
        sequence: sequence number of the last write, 0 for none.
        count: number of items.
        labelled: number of items with a label.
        tombstones_after: all tombstones of writes after this sequence number are kept.
    """

    sequence: int
    count: int
    labelled: int
    tombstones_after: int


def row_checksum(key: bytes, label: bytes | None, content_hash: bytes | None, vector: bytes | memoryview) -> int:
    """Return the CRC-32 of key, label, content hash and vector of a row."""
    text = b"%d %d %b%b%b" % (
        len(key),
        -1 if label is None else len(label),
        key,
        label or b"",
        content_hash or b"",
    )
    return zlib.crc32(vector, zlib.crc32(text))


def payload_checksum(payload: str | bytes) -> int:
    """Return the CRC-32 of a payload's JSON text."""
    return zlib.crc32(payload.encode() if isinstance(payload, str) else payload)


def create(path: Path, space: str, dim: int, index_kind: str) -> None:
    """Create an empty database at `path`; on return, it is on disk."""
    # The log holds whole pages: small ones suit short vectors, and large ones hold several long vectors.
    page_size = min(65_536, max(4_096, 1 << (16 * dim - 1).bit_length()))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.executescript(f"BEGIN;{_TABLES}")
        identity = Identity(space, dim, index_kind, time.time(), new_id())
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [
                ("space", identity.space),
                ("dim", identity.dim),
                ("metric", METRIC),
                ("index_kind", identity.index_kind),
                ("created_at", identity.created_at),
                ("id", identity.id),
                ("checksum", identity.checksum()),
            ],
        )
        connection.execute("COMMIT")


def new_id() -> str:
    """Return a random id for a collection."""
    return secrets.token_hex(8)


def give_new_id(path: Path, collection: str) -> None:
    """Give the database of a copied collection an id of its own; on return, it is on disk."""
    with contextlib.closing(connect(path, read_only=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        identity = replace(read_identity(connection, collection), id=new_id())
        connection.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", [("id", identity.id), ("checksum", identity.checksum())]
        )
        connection.execute("COMMIT")


def disk_bytes(folder: Path) -> int:
    """Return the size of a collection's files in bytes."""
    total, folders = 0, [os.fspath(folder)]
    while folders:
        # The log and old segments may be removed at any time.
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_size
    return total


def read_identity(connection: sqlite3.Connection, collection: str) -> Identity:
    """Read the description that the collection was created with.

    Raises:
        DataLossError: the file is not that of a collection, or its description is damaged.
        FailedPreconditionError: it was written by a newer version, or by one before 0.2.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application == _BEFORE_0_2:
        raise FailedPreconditionError(
            f"collection {collection!r} was made by a version before 0.2, which this one does not read:"
            " index its images again into a new data folder"
        )
    if application != APPLICATION_ID:
        raise DataLossError(f"collection {collection!r} is damaged: its database is not one of a collection")
    if version > SCHEMA_VERSION:
        raise FailedPreconditionError(
            f"collection {collection!r} was written by a newer version (format {version}, this one reads up to"
            f" {SCHEMA_VERSION}): upgrade imagekin"
        )
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    try:
        identity = Identity(meta["space"], meta["dim"], meta["index_kind"], meta["created_at"], str(meta.get("id", "")))
        intact = meta["checksum"] == identity.checksum() and meta["metric"] == METRIC
    except KeyError:
        intact = False
    if not intact:
        raise DataLossError(f"collection {collection!r} is damaged: its description fails its checksum")
    return identity


def read_state(connection: sqlite3.Connection, collection: str) -> State:
    """Read the counters as of the connection's transaction."""
    row = connection.execute("SELECT sequence, count, labelled, tombstones_after FROM state WHERE id = 1").fetchone()
    if row is None:
        raise DataLossError(f"collection {collection!r} is damaged: its counters are missing")
    return State(*row)


def index_tombstones(connection: sqlite3.Connection) -> None:
    """Index the tombstones of a collection that was made before they were indexed."""
    connection.execute("CREATE INDEX IF NOT EXISTS tombstone_dead ON tombstone (dead)")


def prune_tombstones(connection: sqlite3.Connection, state: State, keep: int) -> State:
    """Delete the tombstones of all but the last `keep` sequence numbers; readers further behind load all rows again."""
    after = state.sequence - keep
    if after <= state.tombstones_after:
        return state
    connection.execute("DELETE FROM tombstone WHERE sequence <= ?", (after,))
    connection.execute("UPDATE state SET tombstones_after = ? WHERE id = 1", (after,))
    return State(state.sequence, state.count, state.labelled, after)


@contextlib.contextmanager
def storage_errors(collection: str) -> Iterator[None]:
    """Turn what SQLite and the system raise inside the block into the project's errors, without a path or a trace."""
    try:
        yield
    except sqlite3.Error as error:
        raise storage_error(error, collection) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(collection) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            raise _closed(collection) from error
        raise UnavailableError(f"the disk of collection {collection!r} fails ({error.strerror}): check it") from error


def storage_error(error: sqlite3.Error, collection: str) -> ImagekinError:
    """Return the project's error for what SQLite raised."""
    # The low byte is the primary code; undecodable text has none, and means that bytes of it were changed.
    whole_code = getattr(error, "sqlite_errorcode", 0)
    code = whole_code & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "decode to UTF-8" in str(error):
        return DataLossError(f"collection {collection!r} is damaged: {error}; restore a snapshot or index it again")
    # The index of the log, which every reader makes that comes first, finds no room.
    if code == sqlite3.SQLITE_FULL or whole_code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return _full(collection)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return UnavailableError(f"collection {collection!r} is busy in another process: try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return _closed(collection)
    if code == sqlite3.SQLITE_IOERR:
        return UnavailableError(f"the disk of collection {collection!r} fails ({error}): check it and open it again")
    return DataLossError(f"collection {collection!r} cannot be read: {error}")


def _full(collection: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(f"the disk of collection {collection!r} is full: free some space and try again")


def _closed(collection: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"collection {collection!r} cannot be opened: check that its files exist and that you may write them"
    )
