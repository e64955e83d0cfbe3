"""Open, read and write a collection's items, on disk and in memory.

The database is the truth. The columns in memory are mapped from sealed segments, completed from the database when the
store is opened, and updated after every commit. Readers use snapshots and never wait for a writer.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from imagekin.errors import DataLossError, FailedPreconditionError, NotFoundError, UnavailableError
from imagekin.index.local.maintenance import Maintenance
from imagekin.index.local.thumbnails import Thumbnails
from imagekin.index.local.writer_lock import LOCK, WriterLock
from imagekin.index.maps.saved import MapFile
from imagekin.index.search.ann import Approximate
from imagekin.index.search.gpu.device_thread import DeviceThread
from imagekin.index.search.gpu.resident import Resident
from imagekin.index.search.nearest import NearestSlots, nearest_batched
from imagekin.index.storage import schema
from imagekin.index.storage.acknowledged import Watermark
from imagekin.index.storage.columns import Columns, ColumnSnapshot
from imagekin.index.storage.combiner import Combiner
from imagekin.index.storage.committer import Committer
from imagekin.index.storage.connection import connect, connect_reading, file_id
from imagekin.index.storage.loading import load, load_sealed, load_since
from imagekin.index.storage.schema import State, read_identity, read_state, storage_errors
from imagekin.index.storage.search_priority import SearchPriority
from imagekin.index.storage.segments import Manifest, Segments
from imagekin.index.storage.transactions import Changes, Transaction
from imagekin.index.vectors.brute_force import THREADS
from imagekin.index.vectors.codes import Codes
from imagekin.machine import cores
from imagekin.types import Vector

T = TypeVar("T")
DATABASE = "items.sqlite"
_COMPACT_ABOVE = 0.2
COMPACT_FROM = 1024
# From this size on, compaction runs in the maintenance thread instead of the committing one.
COMPACT_APART_FROM = 16_384
KEPT_TOMBSTONES = 100_000
_KEPT_CONNECTIONS = 8
_PUBLISHED_WITHIN = 60.0


class ReplacedError(UnavailableError):
    """Another collection has taken the place of the one that this store has open."""


class LocalStore:
    """The items of one collection.

    Args:
        folder: the collection's folder.
        name: the collection's name, for messages.
        read_only: take no lock and write nothing; commits of another process become visible.
        device: the device that searches the sealed rows; None for the processor.

    Raises:
        NotFoundError: there is no such collection.
        FailedPreconditionError: another process has it open for writing, or a newer version wrote it.
        DataLossError: it is damaged; the message names the collection and, if it is known, the damaged item.
    """

    def __init__(self, folder: Path, name: str, *, read_only: bool, device: DeviceThread | None = None) -> None:
        self.name = name
        self.device = device
        self.priority = SearchPriority()
        self.read_only = read_only
        self._path = folder / DATABASE
        if not folder.is_dir():
            raise NotFoundError(f"there is no collection {name!r}: make it first, or check the data folder")
        if not self._path.is_file():
            raise DataLossError(f"collection {name!r} is damaged: its database is missing")
        self.thumbnails = Thumbnails(folder, name, read_only=read_only)
        self._published = threading.Condition()
        self._idle: list[sqlite3.Connection] = []
        self._idle_lock = threading.Lock()
        self._closed = False
        with contextlib.ExitStack() as undo:
            if not read_only:
                lock = undo.enter_context(contextlib.closing(WriterLock(folder / LOCK, name)))
            with storage_errors(name):
                if read_only:
                    connection, self._file = connect_reading(self._path)
                else:
                    connection, self._file = connect(self._path, read_only=False), file_id(self._path)
                undo.callback(connection.close)
                self.identity = read_identity(connection, name)
                self.map = MapFile(folder, self.identity.id)
                self.segments = Segments(folder, self.identity)
                # Before the transaction begins, so that all sealed writes are in it.
                manifest = self.segments.manifest()
                connection.execute("BEGIN" if read_only else "BEGIN IMMEDIATE")
                state = read_state(connection, name)
                self._watermark = Watermark(folder, name, read_only=read_only)
                undo.callback(self._watermark.close)
                self._watermark.check(state.sequence)
                if not read_only:
                    schema.index_tombstones(connection)
                    state = schema.prune_tombstones(connection, state, self._kept_tombstones(manifest, state))
                self._columns, self.sealed = self._load(connection, state, manifest)
                connection.execute("COMMIT")
            self._combiner: Combiner[tuple[ColumnSnapshot, Vector, int], NearestSlots] = Combiner(
                nearest_batched, max(1, cores() // THREADS)
            )
            self._columns.combiner = self._combiner
            self._snapshot = self._columns.snapshot(state.sequence)
            self._state = state
            self._lineage = 0
            self._lock: WriterLock | None = None if read_only else lock
            self._committer: Committer | None = None
            if read_only:
                self._idle.append(connection)
            else:
                self._committer = Committer(
                    connection,
                    state,
                    reserve=self._reserve,
                    publish=self._publish,
                    priority=self.priority,
                    collection=name,
                )
            undo.pop_all()
        self._maintenance = Maintenance(self)
        self._maintenance.consider(state.sequence)

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def was_replaced(self) -> bool:
        """Return whether another process has replaced or dropped the collection that this reader has open."""
        if not self.read_only:
            return False  # the lock keeps others from doing so
        try:
            return file_id(self._path) != self._file
        except OSError:
            return True

    @property
    def state(self) -> State:
        """Counters as of the last commit known to this store."""
        self.snapshot()
        return self._state

    @property
    def disk_bytes(self) -> int:
        """Size of the files on disk, in bytes."""
        return schema.disk_bytes(self._path.parent)

    def snapshot(self) -> ColumnSnapshot:
        """Return the latest snapshot; a read-only store first catches up with commits of other processes."""
        self._check_open()
        if self.read_only:
            with self.reading():
                pass
        snapshot = self._snapshot
        self._check_open()  # a closed store's snapshot is empty
        return snapshot

    def write(self, change: Callable[[Transaction], T]) -> T:
        """Run `change` in a transaction; on return, its writes are on disk and visible to readers."""
        return self._check_writable().run(change)

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[sqlite3.Connection, ColumnSnapshot]]:
        """Open a read transaction and the snapshot of the same sequence number.

        Yields:
            A connection in a read transaction, and the matching snapshot.
        """
        self._check_open()
        with storage_errors(self.name), self._connection() as connection:
            while True:
                connection.execute("BEGIN")
                try:
                    snapshot = self._matching_snapshot(connection)
                    if snapshot is not None:
                        yield connection, snapshot
                        return
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")

    def seal(self) -> None:
        """Write the columns to segments now."""
        self._check_writable()
        self._maintenance.seal()

    def compact(self) -> None:
        """Remove the dead slots now, and seal the rest."""
        self._check_writable()
        self._maintenance.compact()

    def check_segments(self) -> None:
        """Verify the segments found at opening now, unless that has been done."""
        self._check_open()
        self._maintenance.check_segments()

    def build_index(self) -> None:
        """Seal, and build the approximate index for the collection's kind and size now."""
        self._check_writable()
        self._maintenance.index()

    def close(self) -> None:
        """Finish the waiting writes, and close the files and the lock; closing twice is safe."""
        with self._idle_lock:
            if self._closed:
                return
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        if self._committer is not None:
            self._committer.close()
        self._maintenance.close()
        self._watermark.close()
        self.thumbnails.close()
        # From now on, only running searches keep the memory and the files, by their snapshots.
        self._columns = Columns(self.identity.dim)
        self._snapshot = self._columns.snapshot(self._state.sequence)
        if self._lock is not None:
            self._lock.close()

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError(f"collection {self.name!r} is closed: open it again")

    def _check_writable(self) -> Committer:
        self._check_open()
        if self._committer is None:
            raise FailedPreconditionError(f"collection {self.name!r} is open for reading only: open it for writing")
        return self._committer

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._idle_lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection, file = connect_reading(self._path)
            if file != self._file:
                connection.close()
                raise ReplacedError(f"collection {self.name!r} has just been replaced: try again")
        try:
            yield connection
        finally:
            with self._idle_lock:
                keep = not self._closed and len(self._idle) < _KEPT_CONNECTIONS
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _matching_snapshot(self, connection: sqlite3.Connection) -> ColumnSnapshot | None:
        """Return the snapshot of the transaction's sequence number; None if the columns no longer hold it."""
        state = read_state(connection, self.name)
        with self._published:
            if self.read_only and state.sequence > self._state.sequence:
                self._catch_up(connection, state)
            # A commit is on disk shortly before it is in memory.
            elif not self._published.wait_for(lambda: self._state.sequence >= state.sequence, _PUBLISHED_WITHIN):
                raise UnavailableError(f"collection {self.name!r} must be opened again")
            snapshot = self._snapshot
        self._check_open()
        return None if snapshot.floor > state.sequence else snapshot.at(state.sequence)

    def current(self) -> tuple[ColumnSnapshot, Manifest | None, int]:
        """Return the latest snapshot, the manifest of its sealed rows, and the lineage of its slots."""
        with self._published:
            return self._snapshot, self.sealed, self._lineage

    def note_sealed(self, manifest: Manifest, lineage: int) -> None:
        """Record the manifest of newly sealed segments, unless the slots were renumbered since."""
        with self._published:
            if lineage == self._lineage:
                self.sealed = manifest

    def use_index(self, approximate: Approximate, lineage: int) -> None:
        """Use an approximate index in searches from now on, unless the slots were renumbered since it was built."""
        with self._published:
            if lineage == self._lineage:
                self._columns.approximate = approximate
                self._renew_snapshot(self._state)

    def use_resident(self, resident: Resident | None, lineage: int) -> None:
        """Use a device's vectors in searches from now on, unless the slots were renumbered since they were copied."""
        with self._published:
            if lineage == self._lineage:
                self._columns.resident = resident
                self._renew_snapshot(self._state)

    def use_codes(self, codes: Codes | None, lineage: int) -> None:
        """Use codes of the vectors in searches from now on, unless the slots were renumbered since."""
        with self._published:
            if lineage == self._lineage:
                self._columns.codes = codes
                self._renew_snapshot(self._state)

    def replace_columns(self, fresh: Columns, since: int, lineage: int) -> bool:
        """Replace the columns by fresh ones, as of `since`; False if the slots have been renumbered meanwhile."""
        snapshot, _, now = self.current()
        if lineage != now:
            return False
        fresh.catch_up(snapshot, since, self.priority)
        with self._published:
            if lineage != self._lineage:
                return False
            # Only the latest writes: the others were copied above, without blocking writers.
            fresh.catch_up(self._columns.snapshot(self._state.sequence), snapshot.sequence, self.priority)
            self._install(fresh)
            self._renew_snapshot(self._state)
            return True

    def read_all(self) -> tuple[Columns, int]:
        """Load columns from the database alone; return them and their sequence number."""
        with storage_errors(self.name), contextlib.closing(connect(self._path, read_only=True)) as connection:
            connection.execute("BEGIN")
            state = read_state(connection, self.name)
            return load(connection, state, self.identity.dim, self.name), state.sequence

    def wants_compaction(self) -> bool:
        """Return whether too many slots are dead."""
        return self._columns.size >= COMPACT_FROM and self._columns.dead_share > _COMPACT_ABOVE

    def _load(
        self, connection: sqlite3.Connection, state: State, manifest: Manifest | None
    ) -> tuple[Columns, Manifest | None]:
        if manifest is not None:
            columns = load_sealed(connection, self.segments, manifest, state, self.name)
            if columns is not None:
                return columns, manifest
            if not self.read_only:
                self.segments.remove()
        return load(connection, state, self.identity.dim, self.name), None

    @staticmethod
    def _kept_tombstones(manifest: Manifest | None, state: State) -> int:
        """Return the number of sequence numbers whose tombstones are kept: at least those since the watermark."""
        return KEPT_TOMBSTONES if manifest is None else max(KEPT_TOMBSTONES, state.sequence - manifest.watermark)

    def _catch_up(self, connection: sqlite3.Connection, state: State) -> None:
        """Update the columns with commits of another process."""
        if state.tombstones_after > self._state.sequence:
            columns, self.sealed = self._load(connection, state, self.segments.manifest())
            self._install(columns, self.sealed)
        else:
            load_since(connection, self._columns, self._state.sequence, self.identity.dim, self.name)
            self._compact(state)
        self._renew_snapshot(state)

    def _reserve(self, changes: Changes) -> None:
        rows = [row for _, batch in changes.added for row in batch.rows]
        self._columns.reserve(len(rows), sum(len(row.key_utf8) for row in rows))

    def _publish(self, changes: Changes, state: State) -> None:
        self._watermark.write(state.sequence)
        with self._published:
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
            self._renew_snapshot(state)
            self._published.notify_all()
        self._maintenance.consider(state.sequence)

    def _compact(self, state: State) -> None:
        # Only after the segments have been verified, because new columns count as verified.
        if self._columns.size < COMPACT_APART_FROM and self.wants_compaction() and not self._maintenance.is_checking:
            self._install(Columns.of_live(self._columns.snapshot(state.sequence), self.priority))

    def _install(self, columns: Columns, sealed: Manifest | None = None) -> None:
        columns.combiner = self._combiner
        self._columns, self.sealed = columns, sealed
        self._lineage += 1

    def _renew_snapshot(self, state: State) -> None:
        self._snapshot = self._columns.snapshot(state.sequence)
        self._state = state
