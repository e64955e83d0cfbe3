"""Check a whole collection, list damaged items, and repair what can be repaired.

Derived data (segments, counters) are rebuilt from the rows. A damaged vector is restored from an intact segment if the
row's checksum then matches. Items that cannot be restored are reported by key, and removed from the collection so that
the rest can be used.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from imagekin.index.local.store import DATABASE
from imagekin.index.local.thumbnails import verify_thumbnails
from imagekin.index.local.writer_lock import LOCK, WriterLock
from imagekin.index.maps.saved import is_damaged
from imagekin.index.storage.acknowledged import Watermark
from imagekin.index.storage.columns import Columns
from imagekin.index.storage.connection import connect
from imagekin.index.storage.schema import (
    Identity,
    State,
    payload_checksum,
    read_identity,
    read_state,
    row_checksum,
    storage_errors,
)
from imagekin.index.storage.segments import Manifest, Segments
from imagekin.index.storage.transactions import as_json
from imagekin.index.types import Progress, VerifyReport
from imagekin.types import Vector

_ROWS_AT_ONCE = 10_000
_PROBLEMS = 20


def verify(folder: Path, name: str, *, repair: bool = False, on_progress: Progress | None = None) -> VerifyReport:
    """Check a collection that this process does not have open for writing; without `repair` nothing is changed.

    Args:
        folder: the collection's folder.
        name: its name, for messages.
        repair: restore damaged items if possible, and remove the others; requires the writer's lock.
        on_progress: called with the number of rows checked since the last call.

    Raises:
        FailedPreconditionError: with `repair`, another process has it open for writing.
        DataLossError: the database is damaged beyond reading.
    """
    with contextlib.ExitStack() as stack:
        if repair:
            stack.enter_context(contextlib.closing(WriterLock(folder / LOCK, name, " first")))
        stack.enter_context(storage_errors(name))
        connection = stack.enter_context(contextlib.closing(connect(folder / DATABASE, read_only=not repair)))
        identity = read_identity(connection, name)
        segments = Segments(folder, identity)
        # Before the transaction, so that everything sealed and acknowledged by now is in it: writers may go on.
        manifest, whole = _scrub(segments)
        watermark = Watermark(folder, name, read_only=True)
        acknowledged = watermark.read()
        connection.execute("BEGIN")
        state = read_state(connection, name)
        check = _Check(connection, identity, state, on_progress)
        check.structure()
        columns = segments.open(manifest) if manifest is not None and whole else None
        check.rows(columns)
        report = check.report()
        sealed = "none" if not segments.folder.exists() else "intact" if whole and not check.differs else "damaged"
        missing = max(0, acknowledged - state.sequence)
        connection.execute("ROLLBACK")
        report = replace(report, segments=sealed, missing_writes=missing)
        if repair and (not report.intact or sealed == "damaged"):
            check.repair()
            segments.remove()
            watermark.forget()
            report = replace(report, repaired=True)
        if damaged := verify_thumbnails(folder, name, repair=repair):
            report = replace(report, damaged_thumbnails=damaged, repaired=repair)
        if is_damaged(folder, repair=repair):
            report = replace(report, damaged_map=True, repaired=repair)
        return report


def _scrub(segments: Segments) -> tuple[Manifest | None, bool]:
    """Verify the segments; return their manifest and whether they are intact."""
    manifest = segments.manifest()
    while manifest is not None:
        whole = segments.scrub(manifest)
        latest = segments.manifest()
        if whole or latest == manifest:
            return manifest, whole
        manifest = latest  # a writer has replaced them meanwhile
    return None, False


@dataclass(slots=True)
class _Check:
    """One pass over the rows, and its findings; `differs` is True when segments differ from intact rows."""

    connection: sqlite3.Connection
    identity: Identity
    state: State
    on_progress: Progress | None
    items: int = 0
    labelled: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    restored: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    differs: bool = False

    def structure(self) -> None:
        """Check the database's pages and its index of keys by SQLite."""
        for (line,) in self.connection.execute(f"PRAGMA integrity_check({_PROBLEMS})"):
            if line != "ok":
                self.problems.append(" ".join(str(line).split()))

    def rows(self, columns: Columns | None) -> None:
        """Check every row; `columns` are those of the segments, if they are intact."""
        snapshot = columns.snapshot(self.state.sequence) if columns is not None else None
        for batch in self._batches():
            sequences = np.array([row[0] for row in batch], np.int64)
            slots = (
                {}
                if snapshot is None
                else dict(
                    zip(
                        sequences[snapshot.holds(sequences)].tolist(),
                        snapshot.slots_of(sequences).tolist(),
                        strict=True,
                    )
                )
            )
            for sequence, key, label, content_hash, checksum, payload, check, data in batch:
                copy: Vector | None = None
                if snapshot is not None and sequence in slots:
                    copy = snapshot.vectors[slots[sequence]]
                self._row(sequence, (key, label, content_hash), checksum, (payload, check), data, copy)
            if self.on_progress is not None:
                self.on_progress(len(batch))
        (orphans,) = self.connection.execute(
            "SELECT count(*) FROM vector WHERE sequence NOT IN (SELECT sequence FROM item)"
        ).fetchone()
        if orphans:
            self.problems.append(f"{orphans} vectors belong to no item")
        found = (self.items + len(self.damaged), self.state.sequence)
        if not self.damaged and (self.items, self.labelled) != (self.state.count, self.state.labelled):
            self.problems.append(f"it should hold {self.state.count} items, it holds {found[0]}")

    def report(self) -> VerifyReport:
        """Return the problems found in the rows."""
        return VerifyReport(
            items=self.items,
            damaged=tuple(self.damaged.values()),
            restored=tuple(key for key, _ in self.restored.values()),
            problems=tuple(self.problems[:_PROBLEMS]),
        )

    def repair(self) -> None:
        """Write the restored vectors, delete the damaged items, and recount."""
        connection = self.connection
        if self.problems:
            connection.execute("REINDEX")
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT OR REPLACE INTO vector VALUES (?, ?)",
            [(number, data) for number, (_, data) in self.restored.items()],
        )
        dead = as_json(list(self.damaged))
        for table in ("item", "vector"):
            connection.execute(
                f"DELETE FROM {table} WHERE sequence IN (SELECT value FROM json_each(?))",  # noqa: S608 (two names)
                (dead,),
            )
        connection.execute("DELETE FROM vector WHERE sequence NOT IN (SELECT sequence FROM item)")
        connection.execute("DELETE FROM tombstone")
        # Makes every reader that has an earlier sequence number load all rows again.
        connection.execute(
            "UPDATE state SET sequence = sequence + 1, tombstones_after = sequence + 1,"
            " count = (SELECT count(*) FROM item), labelled = (SELECT count(label) FROM item) WHERE id = 1"
        )
        connection.execute("COMMIT")

    def _row(
        self,
        sequence: int,
        fields: tuple[bytes, bytes | None, bytes | None],
        checksum: int,
        payload: tuple[bytes | None, int | None],
        data: bytes | None,
        copy: Vector | None,
    ) -> None:
        key, label, content_hash = fields
        name = key.decode(errors="replace")
        width = 4 * self.identity.dim
        text, text_checksum = payload
        if text is not None and not _is_whole(text, text_checksum):
            self.damaged[sequence] = name
            return
        if data is None or len(data) != width or row_checksum(key, label, content_hash, data) != checksum:
            if copy is None or row_checksum(key, label, content_hash, copy.tobytes()) != checksum:
                self.damaged[sequence] = name
                return
            self.restored[sequence] = (name, copy.tobytes())
        elif copy is not None and copy.tobytes() != data:
            self.differs = True
        self.items += 1
        self.labelled += label is not None

    def _batches(self) -> Iterator[list[tuple[int, bytes, bytes | None, bytes | None, int, bytes | None, int, bytes]]]:
        self.connection.text_factory = bytes
        try:
            rows = self.connection.execute(
                "SELECT i.sequence, key, label, content_hash, checksum, payload, payload_checksum, data"
                " FROM item i LEFT JOIN vector v USING (sequence) ORDER BY i.sequence"
            )
            while batch := rows.fetchmany(_ROWS_AT_ONCE):
                yield batch
        finally:
            self.connection.text_factory = str


def _is_whole(text: bytes, checksum: int | None) -> bool:
    try:
        return payload_checksum(text) == checksum and isinstance(json.loads(text), dict)
    except ValueError:
        return False
