"""Counts what becomes of the records of a run."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from index.types import Outcome, UpsertResult

# Called with how many records are dealt with, how many there are (None when unknown) and how many of them failed.
Progress: TypeAlias = Callable[[int, int | None, int], None]

# Bad files that a report names; further ones are counted, so that a run needs the same memory whatever it meets.
MAX_LISTED = 10_000


class Failure(NamedTuple):
    """A record that could not be indexed, and why."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What became of the records of a run.

    Attributes:
        seen: records dealt with: `written`, `skipped` and `failed_count` together.
        written: embedded and stored.
        replaced: those of `written` whose key existed with other content.
        skipped: known already, with the same content.
        failed_count: could not be indexed.
        failed: these and why, in no particular order; the first 10,000.
        seconds: wall time.
    """

    seen: int
    written: int
    replaced: int
    skipped: int
    failed_count: int
    failed: tuple[Failure, ...]
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Records dealt with per second of wall time."""
        return self.seen / self.seconds if self.seconds else 0.0


class IndexInterruptedError(KeyboardInterrupt):
    """Ctrl-C ended a run. What `report` counts as written is on disk; the same run again does the rest."""

    def __init__(self, report: IndexReport) -> None:
        super().__init__(f"stopped after {report.seen} images; run the same again to go on")
        self.report = report


class Tally:
    """Counts from several threads, and tells the progress each time.

    Args:
        total: how many records there are, None when unknown.
        on_progress: called by the thread that counts, one call at a time.
    """

    def __init__(self, total: int | None, on_progress: Progress | None) -> None:
        self._total = total
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._written = self._replaced = self._skipped = self._failed_count = 0
        self._failed: list[Failure] = []

    def wrote(self, result: UpsertResult) -> None:
        """Count items that are on disk."""
        with self._lock:
            self._written += len(result.outcomes)
            self._replaced += sum(outcome is Outcome.REPLACED for outcome in result.outcomes)
            self._tell()

    def skipped(self, count: int) -> None:
        """Count records that are known already."""
        with self._lock:
            self._skipped += count
            self._tell()

    def failed(self, key: str, reason: str) -> None:
        """Count a record that could not be indexed."""
        with self._lock:
            self._failed_count += 1
            if len(self._failed) < MAX_LISTED:
                self._failed.append(Failure(key, reason))
            self._tell()

    def report(self) -> IndexReport:
        """Return what has been counted so far."""
        with self._lock:
            seconds = time.monotonic() - self._started
            failed = tuple(self._failed)
            counts = (self._seen(), self._written, self._replaced, self._skipped, self._failed_count)
            return IndexReport(*counts, failed, seconds)

    def _seen(self) -> int:
        return self._written + self._skipped + self._failed_count

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._seen(), self._total, self._failed_count)
