"""A collection's items, on disk and in memory: opening, reading and writing them.

The database is the truth; the columns in memory are read from it when the store is opened and follow every commit.
Readers take a snapshot and never wait for a writer.
"""

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from encoder.errors import DataLossError, FailedPreconditionError, NotFoundError, UnavailableError
from index import schema
from index.columns import Snapshot
from index.commits import Committer
from index.loading import load, load_since
from index.schema import State, read_identity, read_state, translated
from index.writes import Changes, Transaction

T = TypeVar("T")
DATABASE = "items.sqlite"
LOCK = "lock"
_COMPACT_ABOVE = 0.2
COMPACT_FROM = 1024
KEPT_TOMBSTONES = 100_000
_KEPT_CONNECTIONS = 8
_PUBLISHED_WITHIN = 60.0


class Store:
    """The items of one collection.

    Args:
        folder: the collection's folder.
        name: the collection's name, for messages.
        read_only: take no lock and write nothing; what another process commits becomes visible.

    Raises:
        NotFoundError: there is no such collection.
        FailedPreconditionError: another process has it open for writing, or a newer version wrote it.
        DataLossError: it is damaged; the message names the collection, and the item where it is one.
    """

    def __init__(self, folder: Path, name: str, *, read_only: bool) -> None:
        self.name = name
        self.read_only = read_only
        self._path = folder / DATABASE
        if not folder.is_dir():
            raise NotFoundError(f"there is no collection {name!r}: make it first, or check the data folder")
        if not self._path.is_file():
            raise DataLossError(f"collection {name!r} is damaged: its database is missing")
        self._published = threading.Condition()
        self._idle: list[sqlite3.Connection] = []
        self._idle_lock = threading.Lock()
        self._closed = False
        with contextlib.ExitStack() as undo:
            if not read_only:
                lock = undo.enter_context(contextlib.closing(WriterLock(folder / LOCK, name)))
            with translated(name):
                connection = schema.connect(self._path, read_only=read_only)
                undo.callback(connection.close)
                self.identity = read_identity(connection, name)
                connection.execute("BEGIN" if read_only else "BEGIN IMMEDIATE")
                state = read_state(connection, name)
                if not read_only:
                    state = schema.prune_tombstones(connection, state, KEPT_TOMBSTONES)
                self._columns = load(connection, state, self.identity.dim, name)
                connection.execute("COMMIT")
            self._snapshot = self._columns.snapshot(state.sequence)
            self._state = state
            self._lock: WriterLock | None = None if read_only else lock
            self._committer: Committer | None = None
            if read_only:
                self._idle.append(connection)
            else:
                self._committer = Committer(
                    connection, state, reserve=self._reserve, publish=self._publish, collection=name
                )
            undo.pop_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def state(self) -> State:
        """The counters as of the last commit that this store knows."""
        self.snapshot()
        return self._state

    @property
    def disk_bytes(self) -> int:
        """Bytes of the files on disk."""
        return schema.disk_bytes(self._path.parent)

    def snapshot(self) -> Snapshot:
        """Return the items as of now; a reader's view of another process's collection is brought up to date first."""
        self._check_open()
        if self.read_only:
            with self.reading():
                pass
        return self._snapshot

    def write(self, change: Callable[[Transaction], T]) -> T:
        """Run `change` in a transaction; on return it is on disk and visible to readers."""
        self._check_open()
        if self._committer is None:
            raise FailedPreconditionError(f"collection {self.name!r} is open for reading only: open it for writing")
        return self._committer.run(change)

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[sqlite3.Connection, Snapshot]]:
        """Open the database and the columns as of one and the same sequence number.

        Yields:
            A connection inside a read transaction, and the snapshot that agrees with it.
        """
        self._check_open()
        with translated(self.name), self._connection() as connection:
            while True:
                connection.execute("BEGIN")
                try:
                    snapshot = self._agreeing(connection)
                    if snapshot is not None:
                        yield connection, snapshot
                        return
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")

    def close(self) -> None:
        """Finish the writes that wait, let go of the files and the lock. May be called twice."""
        with self._idle_lock:
            if self._closed:
                return
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        if self._committer is not None:
            self._committer.close()
        if self._lock is not None:
            self._lock.close()

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError(f"collection {self.name!r} is closed: open it again")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._idle_lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = schema.connect(self._path, read_only=True)
        try:
            yield connection
        finally:
            with self._idle_lock:
                keep = not self._closed and len(self._idle) < _KEPT_CONNECTIONS
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _agreeing(self, connection: sqlite3.Connection) -> Snapshot | None:
        """Return the snapshot that agrees with the transaction; None when the columns cannot look back so far."""
        state = read_state(connection, self.name)
        with self._published:
            if self.read_only and state.sequence > self._state.sequence:
                self._follow(connection, state)
            # A commit is on disk a moment before it is in memory.
            elif not self._published.wait_for(lambda: self._state.sequence >= state.sequence, _PUBLISHED_WITHIN):
                raise UnavailableError(f"collection {self.name!r} must be opened again")
            snapshot = self._snapshot
        return None if snapshot.floor > state.sequence else snapshot.at(state.sequence)

    def _follow(self, connection: sqlite3.Connection, state: State) -> None:
        """Bring the columns up to what another process committed."""
        if state.tombstones_after > self._state.sequence:
            self._columns = load(connection, state, self.identity.dim, self.name)
        else:
            load_since(connection, self._columns, self._state.sequence, self.identity.dim, self.name)
            self._compact(state)
        self._show(state)

    def _reserve(self, changes: Changes) -> None:
        rows = [row for _, batch in changes.added for row in batch.rows]
        self._columns.reserve(len(rows), sum(len(row.key_utf8) for row in rows))

    def _publish(self, changes: Changes, state: State) -> None:
        for first, batch in changes.added:
            self._columns.append(
                np.arange(first, first + len(batch.rows), dtype=np.int64),
                [row.key_utf8 for row in batch.rows],
                [row.label for row in batch.rows],
                [row.content_hash for row in batch.rows],
                batch.vectors,
            )
        if changes.dead:
            self._columns.kill(np.array(changes.dead, np.int64), np.array(changes.dead_at, np.int64))
        self._compact(state)
        with self._published:
            self._show(state)
            self._published.notify_all()

    def _compact(self, state: State) -> None:
        if self._columns.size >= COMPACT_FROM and self._columns.dead_share > _COMPACT_ABOVE:
            self._columns = self._columns.compacted(state.sequence)

    def _show(self, state: State) -> None:
        self._snapshot = self._columns.snapshot(state.sequence)
        self._state = state


class WriterLock:
    """The lock of the one process that may write."""

    def __init__(self, path: Path, collection: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise FailedPreconditionError(
                f"collection {collection!r} is open for writing elsewhere: stop that process, or, when it is a server,"
                " go through it with --address"
            ) from None

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)
