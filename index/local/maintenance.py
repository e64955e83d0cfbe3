"""Maintain a store on a background thread: seal segments, compact, keep indexes current, verify sealed files.

The thread starts when there is work. It never blocks readers, and blocks writers only while columns are exchanged.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from imagekin.errors import ImagekinError
from imagekin.index.search import coded_top_k
from imagekin.index.search.ann import Approximate, Description, build, describe, kind_for, load, save
from imagekin.index.search.gpu.device_thread import DeviceThread
from imagekin.index.search.gpu.resident import RESIDENT_FROM, Resident, extend
from imagekin.index.storage.columns import Columns, ColumnSnapshot
from imagekin.index.storage.schema import Identity
from imagekin.index.storage.search_priority import SearchPriority
from imagekin.index.storage.segments import Manifest, Segments
from imagekin.index.types import StoppedError
from imagekin.index.vectors.codes import Codes, encode_vectors, packed, with_settings_of, with_short_codes
from imagekin.index.vectors.int8_products import integer_products
from imagekin.machine import return_freed_memory

log = logging.getLogger("imagekin.index")

# Writes since the last seal after which segments are sealed, at once or when no more writes come.
SEAL_FROM = 8192
SEAL_WHEN_IDLE_FROM = 2048
# For sealing at once, the writes must also be this share of the sealed rows.
_SEAL_SHARE = 1 / 16
_IDLE_SECONDS = 2.0
_SCRUB_AFTER_SECONDS = 1.0
# After each block, the verification at opening pauses for this many times the block's duration.
_REST_FACTOR = 3.0
_LONGEST_REST = 0.5
# An index is rebuilt when the sealed rows exceed its own by this factor; until then, the others are scanned.
_OUTGROWN = 1.1
# Rows without codes from which on they are encoded, and the least share of all rows; until then, they are scanned.
_ENCODE_FROM = 4096
_ENCODE_SHARE = 1 / 32


class MaintainedStore(Protocol):
    """The part of a store that maintenance uses: its contents, and methods to replace its indexes and files."""

    name: str
    read_only: bool
    device: DeviceThread | None
    priority: SearchPriority
    identity: Identity
    segments: Segments
    sealed: Manifest | None

    def current(self) -> tuple[ColumnSnapshot, Manifest | None, int]:
        """Return the latest snapshot, the manifest of its sealed rows, and the lineage of its slots."""

    def wants_compaction(self) -> bool:
        """Return whether too many slots are dead."""

    def note_sealed(self, manifest: Manifest, lineage: int) -> None:
        """Record the manifest of newly sealed segments."""

    def use_index(self, approximate: Approximate, lineage: int) -> None:
        """Use an approximate index in searches from now on."""

    def use_resident(self, resident: Resident | None, lineage: int) -> None:
        """Use the vectors in a device's memory in searches from now on."""

    def use_codes(self, codes: Codes | None, lineage: int) -> None:
        """Use codes of the vectors in searches from now on."""

    def replace_columns(self, fresh: Columns, since: int, lineage: int) -> bool:
        """Replace the columns by fresh ones, as of `since`; False if the slots have been renumbered meanwhile."""

    def read_all(self) -> tuple[Columns, int]:
        """Load columns from the database alone; return them and their sequence number."""


class Maintenance:
    """Background maintenance of one store.

    Args:
        store: the store; a read-only one is verified, and never written.
    """

    def __init__(self, store: MaintainedStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._unchecked: Manifest | None = store.sealed
        self._failed_at = -1
        self._rejected: Description | None = None
        # Lineage of the slots for which the device has failed or has too little memory.
        self._device_refused: int | None = None
        self._work_lock = threading.RLock()
        if self._unchecked is not None:
            self._start()

    @property
    def is_checking(self) -> bool:
        """True until the segments found at opening have been verified."""
        return self._unchecked is not None

    def consider(self, sequence: int) -> None:
        """Check after a commit whether there is work, and start it."""
        if self._store.read_only:
            return
        lacks_codes = self._lacks_codes(self._store.current()[0])
        if lacks_codes or self._is_stale(sequence, SEAL_WHEN_IDLE_FROM) or self._store.wants_compaction():
            self._start()
            if lacks_codes or self._is_due(sequence) or self._store.wants_compaction():
                self._wake.set()

    def close(self) -> None:
        """Stop, and seal if that pays, so that opening again is fast."""
        with self._lock:
            self._stop.set()
            self._wake.set()
            thread = self._thread
        if thread is not None:
            thread.join()
        snapshot, _, _ = self._store.current()
        if not self._store.read_only and self._is_stale(snapshot.sequence, SEAL_WHEN_IDLE_FROM):
            self._attempt(self._seal, self._yield_only)

    def seal(self) -> None:
        """Seal now, in the calling thread."""
        self._seal(self._yield_only)

    def check_segments(self) -> None:
        """Verify the segments found at opening now, unless that has been done."""
        self._scrub(self._yield_only)

    def compact(self) -> None:
        """Remove the dead slots now, and seal the rest."""
        with self._work_lock:
            self._compact()
            self._seal(self._yield_only)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name=f"maintenance-{self._store.name}", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        opened = time.monotonic()
        before = -1
        while not self._stop.is_set():
            woken = self._wake.wait(_SCRUB_AFTER_SECONDS if self._unchecked is not None else _IDLE_SECONDS)
            self._wake.clear()
            sequence = self._store.current()[0].sequence
            idle, before = not woken and sequence == before, sequence
            self._attempt(self._update_codes, self._is_stopped)
            if not self._store.read_only:
                if self._store.wants_compaction():
                    self._attempt(lambda _: self._compact(), self._is_stopped)
                worth_it = self._is_stale(sequence, SEAL_WHEN_IDLE_FROM) or self._has_unsealed_codes()
                if self._is_due(sequence) or (idle and worth_it):
                    self._attempt(self._seal, self._is_stopped)
            self._attempt(self._update_index, self._is_stopped)
            self._attempt(self._update_resident, self._is_stopped)
            if self._unchecked is not None and time.monotonic() - opened >= _SCRUB_AFTER_SECONDS:
                self._attempt(self._scrub, self._throttled())

    def _is_stale(self, sequence: int, numbers: int) -> bool:
        sealed = self._store.sealed
        return sequence - (sealed.watermark if sealed else 0) >= numbers and sequence != self._failed_at

    def _is_due(self, sequence: int) -> bool:
        sealed = self._store.sealed
        return self._is_stale(sequence, max(SEAL_FROM, int(_SEAL_SHARE * sealed.rows) if sealed else 0))

    def _attempt(self, work: Callable[[Callable[[], bool]], object], stop: Callable[[], bool]) -> None:
        try:
            work(stop)
        except StoppedError:
            pass
        except (OSError, MemoryError) as error:
            # Nothing is lost: it is tried again after the next write, or at the next opening.
            self._failed_at = self._store.current()[0].sequence
            log.warning("collection %s: its segments cannot be written (%s)", self._store.name, error)
        except ImagekinError as error:
            log.error("%s", error)

    def _wants_codes(self, snapshot: ColumnSnapshot) -> bool:
        """Return whether searches use codes: exhaustive searches in a collection that is not small."""
        kind = kind_for(self._store.identity.index_kind, len(snapshot))
        wanted = len(snapshot) >= coded_top_k.MIN_ROWS and self._store.identity.dim >= coded_top_k.MIN_DIM
        return wanted and kind == "flat"

    def _lacks_codes(self, snapshot: ColumnSnapshot) -> bool:
        """Return whether enough slots have no code to encode them now."""
        if not self._wants_codes(snapshot):
            return snapshot.codes is not None
        lacking = len(snapshot) - (snapshot.codes.rows if snapshot.codes is not None else 0)
        return lacking >= max(_ENCODE_FROM, _ENCODE_SHARE * len(snapshot))

    def _has_unsealed_codes(self) -> bool:
        """Return whether the segments lack the codes, because an earlier version sealed them."""
        snapshot, sealed, _ = self._store.current()
        unsealed = sealed is not None and snapshot.codes is not None and sealed.step != snapshot.codes.step
        return unsealed and snapshot.sequence != self._failed_at

    def _update_codes(self, stop: Callable[[], bool]) -> None:
        """Encode the vectors without codes, if they are many, and prepare the multiplier of codes."""
        with self._work_lock:
            snapshot, _, lineage = self._store.current()
            if self._lacks_codes(snapshot):
                snapshot = self._with_codes(snapshot, stop)
                self._store.use_codes(snapshot.codes, lineage)
            codes = snapshot.codes
            if codes is not None and codes.integers is None and (integers := integer_products()) is not None:
                codes = replace(codes, integers=integers)
                self._store.use_codes(codes, lineage)
            # This takes longer, and searches use the codes meanwhile.
            if codes is not None and (more := self._accelerate(codes, snapshot, stop)) is not codes:
                self._store.use_codes(more, lineage)

    def _accelerate(self, codes: Codes, snapshot: ColumnSnapshot, stop: Callable[[], bool]) -> Codes:
        """Add short codes and pack codes, if that makes searches faster."""
        more = packed(with_short_codes(codes, snapshot.vectors, stop), stop)
        if more is not codes:
            # Packing used as much temporary memory as the blocks take.
            return_freed_memory()
        return more

    def _with_codes(self, snapshot: ColumnSnapshot, stop: Callable[[], bool]) -> ColumnSnapshot:
        """Return a snapshot with codes of all slots, or with none if searches do not use codes."""
        wanted = self._wants_codes(snapshot)
        return replace(snapshot, codes=encode_vectors(snapshot.vectors, snapshot.codes, stop) if wanted else None)

    def _seal(self, stop: Callable[[], bool]) -> None:
        with self._work_lock:
            snapshot, sealed, lineage = self._store.current()
            snapshot = self._with_codes(snapshot, stop)
            self._store.use_codes(snapshot.codes, lineage)
            self._store.note_sealed(self._store.segments.seal(snapshot, sealed, stop), lineage)

    def _compact(self) -> None:
        with self._work_lock:
            # Rows that are damaged on disk must not be copied into new columns, which count as verified.
            self._scrub(self._is_stopped)
            snapshot, _, lineage = self._store.current()
            fresh = Columns.of_live(snapshot, self._store.priority)
            # With codes, so that searches in the new columns are as fast at once.
            bare = replace(fresh.snapshot(snapshot.sequence), codes=None)
            fresh.codes = self._with_codes(bare, self._yield_only).codes
            if fresh.codes is not None and snapshot.codes is not None:
                codes = with_settings_of(fresh.codes, snapshot.codes)
                fresh.codes = self._accelerate(codes, fresh.snapshot(snapshot.sequence), self._yield_only)
            self._store.replace_columns(fresh, snapshot.sequence, lineage)

    def index(self) -> None:
        """Build the index for the collection's kind and size now."""
        with self._work_lock:
            self._seal(self._yield_only)
            self._update_resident(self._yield_only)
            self._update_index(self._yield_only, 1.0)

    def _update_index(self, stop: Callable[[], bool], outgrown: float = _OUTGROWN) -> None:
        """Load the approximate index; build it if there is none, or if it has far fewer rows."""
        with self._work_lock:
            snapshot, sealed, lineage = self._store.current()
            kind = self._kind(sealed.rows if sealed else 0, lineage)
            if sealed is None or kind == "flat":
                return
            known = snapshot.approximate if isinstance(snapshot.approximate, Approximate) else None
            folder = self._store.segments.folder
            if known is None and (self._store.read_only and describe(folder) == self._rejected):
                return
            if known is None:
                known = load(folder, stop)
                self._rejected = describe(folder) if known is None else None
                fits = known is not None and (known.description.asked, known.description.generation) == (
                    kind,
                    sealed.generation,
                )
                known = known if fits else None
                if known is not None and known.rows <= len(snapshot):
                    self._store.use_index(known, lineage)
            if not self._store.read_only and (known is None or known.rows * outgrown < sealed.rows):
                fresh = save(folder, build(kind, sealed.generation, snapshot, sealed.rows, stop))
                if fresh.kind != kind:
                    log.info(
                        "collection %s: many of its vectors are copies of one another, for which %s finds too few"
                        " neighbours: its index is %s",
                        self._store.name,
                        kind,
                        fresh.kind,
                    )
                self._store.use_index(fresh, lineage)

    def _kind(self, rows: int, lineage: int) -> str:
        """Return the kind of index for so many rows; a device scans all of them, so that `auto` needs none."""
        wanted = self._store.identity.index_kind
        on_device = self._store.device is not None and self._device_refused != lineage
        return "flat" if wanted == "auto" and on_device else kind_for(wanted, rows)

    def _update_resident(self, stop: Callable[[], bool]) -> None:
        """Copy the sealed vectors to the device, when it is to scan them."""
        with self._work_lock:
            device = self._store.device
            snapshot, sealed, lineage = self._store.current()
            if device is None or sealed is None or sealed.rows < RESIDENT_FROM or self._device_refused == lineage:
                return
            known = snapshot.resident if isinstance(snapshot.resident, Resident) else None
            rows = sealed.rows
            if known is not None and known.failed:
                self._device_refused = lineage
                self._store.use_resident(None, lineage)
            elif self._kind(rows, lineage) == "flat" and (known is None or known.rows < rows) and not stop():
                fresh = extend(device, known, snapshot.vectors[:rows], self._store.name)
                if fresh is None or fresh.rows < rows:
                    self._device_refused = lineage
                # Where an index would be built instead, a part of the rows does not help.
                if fresh is not None and (fresh.rows == rows or self._store.identity.index_kind == "flat"):
                    self._store.use_resident(fresh, lineage)

    def _scrub(self, stop: Callable[[], bool]) -> None:
        """Verify the segments found at opening; if they are damaged, load the columns from the database."""
        with self._work_lock:
            manifest, self._unchecked = self._unchecked, None
            if manifest is None or self._store.segments.scrub(manifest, stop):
                return
            _, sealed, lineage = self._store.current()
            if sealed is None or sealed.generation != manifest.generation:
                return  # compacted or replaced meanwhile
            log.warning("collection %s: a segment is damaged and is made again from the database", self._store.name)
            fresh, since = self._store.read_all()
            if self._store.replace_columns(fresh, since, lineage) and not self._store.read_only:
                self._seal(self._is_stopped)

    def _is_stopped(self) -> bool:
        """Yield to searches, then return whether to stop; called between two pieces of work."""
        self._store.priority.yield_processor()
        return self._stop.is_set()

    def _yield_only(self) -> bool:
        """Yield to searches, and return False."""
        self._store.priority.yield_processor()
        return False

    def _throttled(self) -> Callable[[], bool]:
        last = time.monotonic()

        def stop() -> bool:
            nonlocal last
            stopped = self._stop.wait(min(_REST_FACTOR * (time.monotonic() - last), _LONGEST_REST))
            last = time.monotonic()
            return stopped

        return stop
