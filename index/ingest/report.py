"""Count the outcomes of a run's records."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from imagekin.counting import counted
from imagekin.types import UpsertResult

# Called with the number of records processed, their total number (None when unknown) and the number of failed ones.
Progress: TypeAlias = Callable[[int, int | None, int], None]

# Failed records that a report lists; further ones are only counted, to bound the memory of a run.
_MAX_LISTED = 10_000


class FailedRecord(NamedTuple):
    """A record that could not be indexed, and the reason."""

    key: str
    reason: str


class Finding(NamedTuple):
    """The reason why a report table lists a record.

    Attributes:
        key: key of the record.
        status: `failed` (not stored), `conflict` (not stored: the key exists with other content), `duplicate` (stored,
            but another key of the run has the same content) or `deleted` (was stored, and is no longer in the source).
        reason: the reason; for a duplicate, the other key.
    """

    key: str
    status: Literal["failed", "conflict", "duplicate", "deleted"]
    reason: str


@dataclass(frozen=True, slots=True)
class IndexReport:
    """The result of an indexing run: how many records were written, skipped, failed and deleted.

    Attributes:
        seen: records processed: the sum of `written`, `updated`, `skipped` and `failed_count`.
        written: records embedded and stored.
        replaced: records of `written` whose key existed with other content.
        updated: records stored already with this content, whose label or payload was changed.
        skipped: records stored already.
        failed_count: records that could not be indexed, conflicts included.
        conflicts: records of `failed_count` whose key exists with other content.
        duplicates: records with the same content as another key of the run; they are stored nevertheless.
        deleted: items deleted because they are no longer in the source.
        incomplete: number of parts of the source that could not be read; if there are any, nothing is deleted.
        failed: the failed records and reasons, in no particular order; the first 10,000.
        seconds: wall time.
    """

    seen: int = 0
    written: int = 0
    replaced: int = 0
    updated: int = 0
    skipped: int = 0
    failed_count: int = 0
    conflicts: int = 0
    duplicates: int = 0
    deleted: int = 0
    incomplete: int = 0
    failed: tuple[FailedRecord, ...] = ()
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Records processed per second of wall time."""
        return self.seen / self.seconds if self.seconds else 0.0


class IndexInterruptedError(KeyboardInterrupt):
    """Ctrl-C ended a run: the records that `report` counts as written are on disk, and another run does the rest."""

    def __init__(self, report: IndexReport) -> None:
        super().__init__(f"stopped after {counted(report.seen, 'image')}; run the same again to go on")
        self.report = report


@dataclass(slots=True)
class _Counts:
    written: int = 0
    replaced: int = 0
    updated: int = 0
    skipped: int = 0
    failed_count: int = 0
    conflicts: int = 0
    duplicates: int = 0
    deleted: int = 0
    incomplete: int = 0
    failed: list[FailedRecord] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return self.written + self.updated + self.skipped + self.failed_count


class IngestTally:
    """The counts of a run, updated from several threads; each update is reported as progress.

    Args:
        total: number of records; None when unknown.
        on_progress: called after each update by the thread that counts, one call at a time.
        on_finding: called with each finding for a report table, likewise.
    """

    def __init__(
        self, total: int | None, on_progress: Progress | None, on_finding: Callable[[Finding], None] | None = None
    ) -> None:
        self._total = total
        self._on_progress = on_progress
        self._on_finding = on_finding
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._counts = _Counts()

    def wrote(self, result: UpsertResult) -> None:
        """Count items that are on disk."""
        with self._lock:
            self._counts.written += len(result.outcomes)
            self._counts.replaced += result.replaced
            self._tell()

    def updated(self, count: int) -> None:
        """Count items whose changed label or payload is on disk."""
        with self._lock:
            self._counts.updated += count
            self._tell()

    def skipped(self, count: int) -> None:
        """Count records that are stored already."""
        with self._lock:
            self._counts.skipped += count
            self._tell()

    def failed(self, key: str, reason: str, *, conflict: bool = False, incomplete: bool = False) -> None:
        """Count a record that could not be indexed."""
        with self._lock:
            self._counts.failed_count += 1
            self._counts.conflicts += conflict
            self._counts.incomplete += incomplete
            if len(self._counts.failed) < _MAX_LISTED:
                self._counts.failed.append(FailedRecord(key, reason))
            self._find(Finding(key, "conflict" if conflict else "failed", reason))
            self._tell()

    def duplicate(self, key: str, other: str) -> None:
        """Count a record with the same content as another one."""
        with self._lock:
            self._counts.duplicates += 1
            self._find(Finding(key, "duplicate", other))

    def deleted(self, keys: list[str]) -> None:
        """Count deleted items that are no longer in the source."""
        with self._lock:
            self._counts.deleted += len(keys)
            for key in keys:
                self._find(Finding(key, "deleted", "it is no longer in the source"))

    def left_out(self, count: int) -> None:
        """Count images that are there and cannot be read here, so that nothing may be deleted."""
        with self._lock:
            self._counts.incomplete += count

    @property
    def incomplete(self) -> bool:
        """True when part of the source could not be read."""
        with self._lock:
            return self._counts.incomplete > 0

    def report(self) -> IndexReport:
        """Return the counts so far."""
        with self._lock:
            counts = self._counts
            return IndexReport(
                seen=counts.seen,
                written=counts.written,
                replaced=counts.replaced,
                updated=counts.updated,
                skipped=counts.skipped,
                failed_count=counts.failed_count,
                conflicts=counts.conflicts,
                duplicates=counts.duplicates,
                deleted=counts.deleted,
                incomplete=counts.incomplete,
                failed=tuple(counts.failed),
                seconds=time.monotonic() - self._started,
            )

    def _find(self, finding: Finding) -> None:
        if self._on_finding is not None:
            self._on_finding(finding)

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._counts.seen, self._total, self._counts.failed_count)
