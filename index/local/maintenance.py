"""Maintain a store on a background thread: seal segments, compact, keep indexes current, verify sealed files.

The thread starts when there is something to do for it. Nothing that it does holds up a reader, and a writer only for
the moment in which new columns take the place of old ones.
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

# Sequence numbers since the last seal from which on sealing pays: at once, or when nothing else is written for a while.
SEAL_FROM = 8192
SEAL_WHEN_IDLE_FROM = 2048
# … and at once only when they are this share of what is sealed already.
_SEAL_SHARE = 1 / 16
_IDLE_SECONDS = 2.0
_SCRUB_AFTER_SECONDS = 1.0
# The check after opening reads one block and then rests for so many times the time that it took.
_RESTS = 3.0
_LONGEST_REST = 0.5
# An index is built anew when this many times its rows are sealed; what it lacks is looked at one by one.
_OUTGROWN = 1.1
# Rows without a code from which on coding them pays, and which share of all there are: they are looked at in full.
_CODE_FROM = 4096
_CODE_SHARE = 1 / 32


class MaintainedStore(Protocol):
    """The part of a store that maintenance needs: what it holds, and how its accelerators and files are replaced."""

    name: str
    read_only: bool
    device: DeviceThread | None
    priority: SearchPriority
    identity: Identity
    segments: Segments
    sealed: Manifest | None

    def current(self) -> tuple[ColumnSnapshot, Manifest | None, int]:
        """Return the latest snapshot, what of it is sealed, and the lineage of its slots."""

    def wants_compaction(self) -> bool:
        """Return whether too many slots are dead."""

    def note_sealed(self, manifest: Manifest, lineage: int) -> None:
        """Take note of what was sealed."""

    def use_index(self, approximate: Approximate, lineage: int) -> None:
        """Use an approximate index in searches from now on."""

    def use_resident(self, resident: Resident | None, lineage: int) -> None:
        """Use the vectors in a device's memory in searches from now on."""

    def use_codes(self, codes: Codes | None, lineage: int) -> None:
        """Use codes of the vectors in searches from now on."""

    def replace_columns(self, fresh: Columns, since: int, lineage: int) -> bool:
        """Go on with other columns; False when the slots have been laid out anew meanwhile."""

    def read_all(self) -> tuple[Columns, int]:
        """Return columns made from the database alone, and the sequence number that they are as of."""


class Maintenance:
    """Background maintenance of one store.

    Args:
        store: the store; a read-only one is checked, and never written.
    """

    def __init__(self, store: MaintainedStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._unchecked: Manifest | None = store.sealed
        self._full_at = -1
        self._refused: Description | None = None
        # Lineage of the slots that a device did not take, or not all of them.
        self._too_large: int | None = None
        self._working = threading.RLock()
        if self._unchecked is not None:
            self._start()

    @property
    def is_checking(self) -> bool:
        """True until the segments found at opening have been verified."""
        return self._unchecked is not None

    def consider(self, sequence: int) -> None:
        """Look, after a commit, whether there is something to do."""
        if self._store.read_only:
            return
        uncoded = self._is_uncoded(self._store.current()[0])
        if uncoded or self._is_stale(sequence, SEAL_WHEN_IDLE_FROM) or self._store.wants_compaction():
            self._start()
            if uncoded or self._is_due(sequence) or self._store.wants_compaction():
                self._wake.set()

    def close(self) -> None:
        """Stop, and seal what is worth it so that opening again is quick."""
        with self._lock:
            self._stop.set()
            self._wake.set()
            thread = self._thread
        if thread is not None:
            thread.join()
        snapshot, _, _ = self._store.current()
        if not self._store.read_only and self._is_stale(snapshot.sequence, SEAL_WHEN_IDLE_FROM):
            self._attempt(self._seal, self._never)

    def seal(self) -> None:
        """Seal now, whatever there is."""
        self._seal(self._never)

    def compact(self) -> None:
        """Leave out the dead slots now, and seal the rest."""
        with self._working:
            self._compact()
            self._seal(self._never)

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
            self._attempt(self._keep_codes, self._is_stopped)
            if not self._store.read_only:
                if self._store.wants_compaction():
                    self._attempt(lambda _: self._compact(), self._is_stopped)
                worth_it = self._is_stale(sequence, SEAL_WHEN_IDLE_FROM) or self._has_unsealed_codes()
                if self._is_due(sequence) or (idle and worth_it):
                    self._attempt(self._seal, self._is_stopped)
            self._attempt(self._keep_index, self._is_stopped)
            self._attempt(self._keep_resident, self._is_stopped)
            if self._unchecked is not None and time.monotonic() - opened >= _SCRUB_AFTER_SECONDS:
                self._attempt(self._scrub, self._paced())

    def _is_stale(self, sequence: int, numbers: int) -> bool:
        sealed = self._store.sealed
        return sequence - (sealed.watermark if sealed else 0) >= numbers and sequence != self._full_at

    def _is_due(self, sequence: int) -> bool:
        sealed = self._store.sealed
        return self._is_stale(sequence, max(SEAL_FROM, int(_SEAL_SHARE * sealed.rows) if sealed else 0))

    def _attempt(self, work: Callable[[Callable[[], bool]], object], stop: Callable[[], bool]) -> None:
        try:
            work(stop)
        except StoppedError:
            pass
        except (OSError, MemoryError) as error:
            # Nothing is lost: the next write, or opening again, tries once more.
            self._full_at = self._store.current()[0].sequence
            log.warning("collection %s: its segments cannot be written (%s)", self._store.name, error)
        except ImagekinError as error:
            log.error("%s", error)

    def _wants_codes(self, snapshot: ColumnSnapshot) -> bool:
        """Return whether searches go by codes: those that look at every slot of a collection that is not small."""
        kind = kind_for(self._store.identity.index_kind, len(snapshot))
        wanted = len(snapshot) >= coded_top_k.MIN_ROWS and self._store.identity.dim >= coded_top_k.MIN_DIM
        return wanted and kind == "flat"

    def _is_uncoded(self, snapshot: ColumnSnapshot) -> bool:
        """Return whether so many slots have no code that it is time to code them."""
        if not self._wants_codes(snapshot):
            return snapshot.codes is not None
        lacking = len(snapshot) - (snapshot.codes.rows if snapshot.codes is not None else 0)
        return lacking >= max(_CODE_FROM, _CODE_SHARE * len(snapshot))

    def _has_unsealed_codes(self) -> bool:
        """Return whether segments lack the codes that would be theirs: an earlier version made them."""
        snapshot, sealed, _ = self._store.current()
        unsealed = sealed is not None and snapshot.codes is not None and sealed.step != snapshot.codes.step
        return unsealed and snapshot.sequence != self._full_at

    def _keep_codes(self, stop: Callable[[], bool]) -> None:
        """Code the vectors that have no code yet, when they are many, and have at hand what multiplies codes."""
        with self._working:
            snapshot, _, lineage = self._store.current()
            if self._is_uncoded(snapshot):
                snapshot = self._coded(snapshot, stop)
                self._store.use_codes(snapshot.codes, lineage)
            codes = snapshot.codes
            if codes is not None and codes.integers is None and (integers := integer_products()) is not None:
                codes = replace(codes, integers=integers)
                self._store.use_codes(codes, lineage)
            # Takes longer, and searches go by the codes meanwhile.
            if codes is not None and (more := self._quickened(codes, snapshot, stop)) is not codes:
                self._store.use_codes(more, lineage)

    def _quickened(self, codes: Codes, snapshot: ColumnSnapshot, stop: Callable[[], bool]) -> Codes:
        """Return codes with short ones and packed, where that makes searches quicker."""
        more = packed(with_short_codes(codes, snapshot.vectors, stop), stop)
        if more is not codes:
            # As much as the blocks take was used, between them, to make them.
            return_freed_memory()
        return more

    def _coded(self, snapshot: ColumnSnapshot, stop: Callable[[], bool]) -> ColumnSnapshot:
        """Return a snapshot with a code of every slot, or with none when searches do not go by them."""
        wanted = self._wants_codes(snapshot)
        return replace(snapshot, codes=encode_vectors(snapshot.vectors, snapshot.codes, stop) if wanted else None)

    def _seal(self, stop: Callable[[], bool]) -> None:
        with self._working:
            snapshot, sealed, lineage = self._store.current()
            snapshot = self._coded(snapshot, stop)
            self._store.use_codes(snapshot.codes, lineage)
            self._store.note_sealed(self._store.segments.seal(snapshot, sealed, stop), lineage)

    def _compact(self) -> None:
        with self._working:
            # Rows that were damaged on disk must not be copied into columns that pass for whole.
            self._scrub(self._is_stopped)
            snapshot, _, lineage = self._store.current()
            fresh = Columns.of_live(snapshot, self._store.priority)
            # Searches go on as quickly with the new ones.
            fresh.codes = self._coded(replace(fresh.snapshot(snapshot.sequence), codes=None), self._never).codes
            if fresh.codes is not None and snapshot.codes is not None:
                codes = with_settings_of(fresh.codes, snapshot.codes)
                fresh.codes = self._quickened(codes, fresh.snapshot(snapshot.sequence), self._never)
            self._store.replace_columns(fresh, snapshot.sequence, lineage)

    def index(self) -> None:
        """Build the index that the collection should have now."""
        with self._working:
            self._seal(self._never)
            self._keep_resident(self._never)
            self._keep_index(self._never, 1.0)

    def _keep_index(self, stop: Callable[[], bool], outgrown: float = _OUTGROWN) -> None:
        """Load the approximate index, or build it when there is none, or one of far fewer rows."""
        with self._working:
            snapshot, sealed, lineage = self._store.current()
            kind = self._kind(sealed.rows if sealed else 0, lineage)
            if sealed is None or kind == "flat":
                return
            known = snapshot.approximate if isinstance(snapshot.approximate, Approximate) else None
            folder = self._store.segments.folder
            if known is None and (self._store.read_only and describe(folder) == self._refused):
                return
            if known is None:
                known = load(folder, stop)
                self._refused = describe(folder) if known is None else None
                fits = known is not None and (known.description.kind, known.description.generation) == (
                    kind,
                    sealed.generation,
                )
                known = known if fits else None
                if known is not None and known.rows <= len(snapshot):
                    self._store.use_index(known, lineage)
            if not self._store.read_only and (known is None or known.rows * outgrown < sealed.rows):
                self._store.use_index(
                    save(folder, build(kind, sealed.generation, snapshot, sealed.rows, stop)), lineage
                )

    def _kind(self, rows: int, lineage: int) -> str:
        """Return the kind of index for so many rows: a device looks at all of them, so that none is needed."""
        wanted = self._store.identity.index_kind
        on_device = self._store.device is not None and self._too_large != lineage
        return "flat" if wanted == "auto" and on_device else kind_for(wanted, rows)

    def _keep_resident(self, stop: Callable[[], bool]) -> None:
        """Copy the sealed vectors to the device, when it is to scan them."""
        with self._working:
            device = self._store.device
            snapshot, sealed, lineage = self._store.current()
            if device is None or sealed is None or sealed.rows < RESIDENT_FROM or self._too_large == lineage:
                return
            known = snapshot.resident if isinstance(snapshot.resident, Resident) else None
            rows = sealed.rows
            if known is not None and known.failed:
                self._too_large = lineage
                self._store.use_resident(None, lineage)
            elif self._kind(rows, lineage) == "flat" and (known is None or known.rows < rows) and not stop():
                fresh = extend(device, known, snapshot.vectors[:rows], self._store.name)
                if fresh is None or fresh.rows < rows:
                    self._too_large = lineage
                # Of what an index would be built for, a part does not help.
                if fresh is not None and (fresh.rows == rows or self._store.identity.index_kind == "flat"):
                    self._store.use_resident(fresh, lineage)

    def _scrub(self, stop: Callable[[], bool]) -> None:
        """Check what was found sealed; when it is damaged, go on with what the database says."""
        with self._working:
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
        """Give way to searches, then say whether to stop: asked between two pieces of work."""
        self._store.priority.yield_processor()
        return self._stop.is_set()

    def _never(self) -> bool:
        """Give way to searches, and go on."""
        self._store.priority.yield_processor()
        return False

    def _paced(self) -> Callable[[], bool]:
        last = time.monotonic()

        def stop() -> bool:
            nonlocal last
            stopped = self._stop.wait(min(_RESTS * (time.monotonic() - last), _LONGEST_REST))
            last = time.monotonic()
            return stopped

        return stop
