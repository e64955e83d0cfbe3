"""Keep a copy of a collection's sealed rows in a device's memory; the vectors stay mapped as well.

The copy consists of parts that never change: newer rows are added as new parts, small parts are occasionally merged,
and a reader keeps the parts of its snapshot. A device only proposes: dead slots and filters are handled afterwards, and
similarities are computed from the mapped vectors, as without a device. Rows that are not on the device are scanned by
the processor at the same time.
"""

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from imagekin.index.search.gpu.device_thread import DeviceThread, DeviceVectors
from imagekin.index.vectors.brute_force import Products, Rows, rounding, top_k
from imagekin.types import Vector

log = logging.getLogger("imagekin.index")

# From this many sealed rows on, the transfer to the device and back pays.
RESIDENT_FROM = 10_000
# Bounds the device memory that is needed temporarily while a part is copied.
PART_BYTES = 4 << 30
_PROBED = 64
_PROBED_K = 32


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class ResidentPart:
    """A run of slots on the device, from `begin` to `end`; `held` has one element, the vectors there."""

    begin: int
    end: int
    held: list[DeviceVectors]


class Resident:
    """The first slots of a collection on a device; any number of threads may use it.

    Args:
        thread: the device's thread.
        parts: consecutive runs of slots, from slot 0 on.
        collection: the collection's name, for messages.
    """

    def __init__(self, thread: DeviceThread, parts: Sequence[ResidentPart], collection: str) -> None:
        self._thread = thread
        self._collection = collection
        self.parts = tuple(parts)
        self.failed = False

    @property
    def rows(self) -> int:
        """Number of slots that it holds, from the first on."""
        return self.parts[-1].end if self.parts else 0

    @property
    def max_k(self) -> int:
        """The largest `k` that can be asked for."""
        return self._thread.max_k

    def top_k(self, queries: Vector, vectors: Vector, k: int) -> tuple[Products, Rows] | None:
        """Return the `k` largest inner products of each query, largest first, and their slots.

        Args:
            queries: float32 [N, D], C-contiguous.
            vectors: float32 [n, D], all slots; the first `rows` of them are on the device.
            k: 1 to `max_k` and to n.

        Returns:
            Inner products, float32 [N, k], and slots, int64 [N, k]; None when the device has failed.
        """
        try:
            # One call for all parts, so that no other search is served in between.
            pending = self._thread.submit(
                lambda: [part.held[0].top_k(queries, min(k, part.end - part.begin)) for part in self.parts]
            )
            newer = _newer(queries, vectors, self.rows, k)
            found = pending.result()
        except RuntimeError as error:
            self.failed = True
            log.warning("collection %s: the GPU fails (%s): searching on the processor", self._collection, _line(error))
            return None
        products = [one for one, _ in found] + [one for one, _ in newer]
        rows = [one + part.begin for (_, one), part in zip(found, self.parts, strict=True)] + [one for _, one in newer]
        if len(products) == 1:
            return products[0], rows[0]
        near, where = np.concatenate(products, axis=1), np.concatenate(rows, axis=1)
        order = np.argsort(-near, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(near, order, axis=1), np.take_along_axis(where, order, axis=1)


def _newer(queries: Vector, vectors: Vector, begin: int, k: int) -> list[tuple[Products, Rows]]:
    if begin >= len(vectors):
        return []
    products, rows = top_k(queries, vectors[begin:], min(k, len(vectors) - begin))
    return [(products, rows + begin)]


def extend(thread: DeviceThread, known: Resident | None, vectors: Vector, collection: str) -> Resident | None:
    """Copy slots to the device: only some of them when its memory does not suffice, None when it cannot be used.

    Args:
        thread: the device's thread.
        known: the first slots that are there already; None for none.
        vectors: float32 [n, D], the slots to have on the device.
        collection: the collection's name, for messages.
    """
    parts = list(known.parts) if known else []
    kept, runs = plan_parts([(part.begin, part.end) for part in parts], len(vectors), vectors[0].nbytes)
    del parts[kept:]
    for begin, end in runs:
        try:
            held = [thread.submit(partial(thread.device.hold, vectors[begin:end])).result()]
        except RuntimeError as error:
            log.warning(
                "collection %s: %s of %s vectors do not fit into the GPU and are searched on the processor (%s)",
                *(collection, f"{len(vectors) - begin:,}", f"{len(vectors):,}", _line(error)),
            )
            break
        part = ResidentPart(begin, end, held)
        weakref.finalize(part, thread.release, held).atexit = False
        parts.append(part)
    resident = Resident(thread, parts, collection)
    return resident if parts and _is_right(resident, vectors, collection) else None


def plan_parts(held: Sequence[tuple[int, int]], rows: int, row_bytes: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of runs to keep, and the runs to copy after them.

    A run that is no longer than what follows is copied again together with it. That keeps the number of runs small, and
    copies no vector often.

    Args:
        held: beginning and end of each consecutive run, from 0 on.
        rows: end of the last run to have.
        row_bytes: bytes of a row.
    """
    most = max(1, PART_BYTES // max(1, row_bytes))
    kept, begin = len(held), held[-1][1] if held else 0
    if begin >= rows:
        return kept, []
    while kept and held[kept - 1][1] - held[kept - 1][0] <= rows - begin and rows - held[kept - 1][0] <= most:
        kept -= 1
        begin = held[kept][0]
    return kept, [(first, min(first + most, rows)) for first in range(begin, rows, most)]


def _is_right(resident: Resident, vectors: Vector, collection: str) -> bool:
    """Compare some inner products of the device with float64."""
    vectors = vectors[: resident.rows]
    queries = vectors[np.linspace(0, len(vectors) - 1, min(_PROBED, len(vectors))).astype(np.int64)]
    found = resident.top_k(queries, vectors, min(_PROBED_K, len(vectors)))
    if found is None:
        return False
    exact = np.einsum("nmd,nd->nm", vectors[found[1]].astype(np.float64), queries.astype(np.float64))
    error, most = float(np.abs(found[0] - exact).max()), rounding(vectors.shape[1])
    if not error <= most:
        log.error("collection %s: the GPU is off by %.1e, more than %.1e, and is not used", collection, error, most)
    return error <= most


def _line(error: RuntimeError) -> str:
    """Return the last line of FAISS's message, which is long and names its source files."""
    return str(error).strip().rpartition("Error: ")[2].splitlines()[-1] if str(error).strip() else "no reason given"
