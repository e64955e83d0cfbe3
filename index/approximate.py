"""Approximate indexes over a collection's sealed rows: they propose slots, whose similarities are computed exactly.

    hnsw   graph over vectors in bfloat16 (Malkov and Yashunin 2018)
    ivf    inverted lists, 8 bits a component
    pq     inverted lists, product quantisation to a quarter of a byte a component (Jégou et al. 2011)

All of them are smaller than the vectors, which stay where they are, mapped. An index is built in the background and its
effort (`efSearch`, `nprobe`, number of proposals) raised until its recall is what it should be. That is measured with
vectors that are not in the index yet and come in last: what is in a graph already is found much more easily. The file's
SHA-256 is checked before it is loaded; without an index, searches are exact.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.columns import Mask, Snapshot
from index.errors import StoppedError
from index.flat import THREADS, shared_out, top_k
from index.segments import sync_folder, write_whole
from index.types import Vector

AUTO_FROM = 200_000
BUILD_FROM = 5_000
_AUTO_KIND = "ivf"
_GOOD_RECALL = 0.97
_ASKED = 400
_K = 10
_ADDED_AT_ONCE = 20_000
_LINKS = 16
_TRAINED_ON = 40  # vectors a centroid
_EFFORTS = {
    "hnsw": (16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 512),
    "ivf": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    "pq": (2, 4, 8, 16, 32, 64, 128),
}
# Candidates that are scored exactly, a neighbour, and how many besides: the coarser the codes, the more.
_PROPOSALS = {"hnsw": (1.0,), "ivf": (1.0,), "pq": (8.0, 32.0)}
_SPARE = {"hnsw": 4, "ivf": 10, "pq": 10}
_QUERIES_A_THREAD = 2
# FAISS's own type hints lack much of what is used here.
_FAISS: Any = faiss


@dataclass(frozen=True, slots=True)
class Description:
    """What an index file is.

    Attributes:
        kind: `hnsw`, `ivf` or `pq`.
        generation: of the segments whose slots it holds.
        rows: it holds the slots below this one.
        effort: `efSearch` or `nprobe`.
        proposals: candidates a neighbour.
        recall: recall@10 for vectors of the collection that were not in the index then.
        sha256: of the file.
        last: those vectors' slots, ascending; in the index they come after all others.
    """

    kind: str
    generation: str
    rows: int
    effort: int
    proposals: float
    recall: float
    sha256: str
    last: tuple[int, ...] = ()


class Approximate:
    """An index in memory. Any number of threads may ask it.

    Args:
        index: FAISS's index.
        description: what it is.
    """

    def __init__(self, index: Any, description: Description) -> None:
        self._index = index
        self.description = description
        self._last = np.array(description.last, np.int64)
        self._lock = threading.Lock()
        self._live: tuple[int, NDArray[np.uint8]] | None = None

    @property
    def rows(self) -> int:
        """It holds the slots below this one."""
        return self.description.rows

    def propose(self, queries: Vector, k: int, snapshot: Snapshot, mask: Mask | None) -> NDArray[np.int64]:
        """Return slots that may be among the `k` nearest, int64 [N, m]; -1 where fewer were found.

        Args:
            queries: float32 [N, D] of unit length, C-contiguous.
            k: neighbours that are wanted.
            snapshot: the collection; of its slots those are proposed that it sees, as far as the index goes.
            mask: bool [n], live slots that match; None means every live slot.
        """
        spare = _SPARE[self.description.kind]
        count = min(self.rows, int(np.ceil(k * self.description.proposals)) + spare)
        selector, bits = None, self._bits(snapshot, mask)
        if bits is not None:
            selector = _FAISS.IDSelectorBitmap(bits)  # wraps the bits, and does not keep them alive
        if self.description.kind == "hnsw":
            options = _FAISS.SearchParametersHNSW(efSearch=max(self.description.effort, count), sel=selector)
        else:
            options = _FAISS.SearchParametersIVF(nprobe=self.description.effort, sel=selector)
        slots = np.empty((len(queries), count), np.int64)
        # Before the others begin: the call gives up the interpreter's lock, and may wait long to get it back from them.
        _FAISS.omp_set_num_threads(1)  # counts for this thread alone
        caller = threading.get_ident()

        def scan(begin: int, end: int) -> None:
            if threading.get_ident() != caller:
                _FAISS.omp_set_num_threads(1)
            slots[begin:end] = self._index.search(queries[begin:end], count, params=options)[1]

        shared_out(scan, len(queries), min(THREADS, len(queries) // _QUERIES_A_THREAD))
        slots = self._slots_at(slots)
        slots[slots >= len(snapshot)] = -1  # the snapshot is of before
        return slots

    def _slots_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which slots are at places of the index; -1 stays."""
        last, first = self._last, self.rows - len(self._last)
        slots = places + np.searchsorted(last - np.arange(len(last)), places, side="right")
        late = places >= first
        slots[late] = last[places[late] - first]
        return slots

    def _bits(self, snapshot: Snapshot, mask: Mask | None) -> NDArray[np.uint8] | None:
        """Return which slots may be proposed as FAISS's bitmap; None for all of them."""
        if mask is not None:
            return self._packed(mask)
        if snapshot.live == len(snapshot):
            return None
        with self._lock:
            known = self._live
        if known is None or known[0] != snapshot.sequence:
            known = (snapshot.sequence, self._packed(snapshot.alive()))
            with self._lock:
                self._live = known
        return known[1]

    def _packed(self, mask: Mask) -> NDArray[np.uint8]:
        known = np.zeros(self.rows, np.bool_)
        known[: len(mask)] = mask[: self.rows]
        return np.packbits(np.concatenate((np.delete(known, self._last), known[self._last])), bitorder="little")


def kind_for(wanted: str, rows: int) -> str:
    """Return the kind of index that a collection of so many rows should have."""
    if wanted == "auto":
        return _AUTO_KIND if rows >= AUTO_FROM else "flat"
    return wanted if rows >= BUILD_FROM else "flat"


def build(
    kind: str, generation: str, snapshot: Snapshot, rows: int, stop: Callable[[], bool] = lambda: False
) -> Approximate:
    """Build an index over the first `rows` slots and measure it.

    Raises:
        StoppedError: `stop` said so.
    """
    _FAISS.omp_set_num_threads(max(1, THREADS // 2))  # counts for this thread alone
    index = _empty(kind, snapshot.vectors.shape[1], rows)
    count = min(rows, max(50_000 if kind == "hnsw" else 0, _TRAINED_ON * getattr(index, "nlist", 0)))
    random = np.random.default_rng(0)
    index.train(snapshot.vectors[np.sort(random.choice(rows, count, replace=False))])
    live = np.flatnonzero(snapshot.died[:rows] > snapshot.sequence)
    last = np.sort(random.choice(live, min(_ASKED, len(live) // 2), replace=False))
    rest = np.delete(np.arange(rows), last)
    for begin in range(0, len(rest), _ADDED_AT_ONCE):
        if stop():
            raise StoppedError
        index.add(snapshot.vectors[rest[begin : begin + _ADDED_AT_ONCE]])
    found = _tuned(index, Description(kind, generation, len(rest), 0, 0.0, 0.0, ""), snapshot, rest, last, stop)
    index.add(snapshot.vectors[last])
    return Approximate(index, replace(found, rows=rows, last=tuple(last.tolist())))


def _empty(kind: str, dim: int, rows: int) -> Any:
    if kind == "hnsw":
        # Distances order unit vectors as products do, and a graph made by them finds more for the same effort.
        index = _FAISS.IndexHNSWSQ(dim, _FAISS.ScalarQuantizer.QT_bf16, _LINKS, _FAISS.METRIC_L2)
        index.hnsw.efConstruction = 80
        return index
    lists = int(2 ** np.clip(np.floor(np.log2(min(4 * np.sqrt(rows), rows / _TRAINED_ON))), 0, 16))
    codes = "SQ8" if kind == "ivf" else f"PQ{_subquantisers(dim)}"
    index = _FAISS.index_factory(dim, f"IVF{lists},{codes}", _FAISS.METRIC_INNER_PRODUCT)
    index.cp.niter = 8
    index.cp.min_points_per_centroid = 1  # else it warns on standard error
    if kind == "pq":
        index.pq.cp.niter = 8
        index.pq.cp.min_points_per_centroid = 1
        index.do_polysemous_training = False  # orders the codes for a search that is not ours, and takes minutes
    return index


def _subquantisers(dim: int) -> int:
    return next(parts for parts in range(max(1, dim // 4), 0, -1) if dim % parts == 0)


def _tuned(
    index: Any,
    description: Description,
    snapshot: Snapshot,
    rest: NDArray[np.int64],
    asked: NDArray[np.int64],
    stop: Callable[[], bool],
) -> Description:
    """Raise the effort until the recall is good, and say what it is.

    Args:
        index: FAISS's index.
        description: what it is.
        snapshot: the collection.
        rest: the slots in the index, in its order.
        asked: slots that are not in it.
        stop: asked now and then whether to give up.
    """
    queries = snapshot.vectors[asked]
    near = top_k(queries, snapshot.vectors[: len(rest) + len(asked)], min(len(rest), _K + len(asked)))[1]
    truth = [np.searchsorted(rest, row[~np.isin(row, asked)][:_K]) for row in near]
    best = description
    for proposals in _PROPOSALS[description.kind]:
        for effort in _EFFORTS[description.kind]:
            if stop():
                raise StoppedError
            best = replace(best, effort=effort, proposals=proposals)
            places = Approximate(index, best).propose(queries, _K, snapshot, np.ones(len(rest), np.bool_))
            best = replace(best, recall=_recall(truth, list(places)))
            if best.recall >= _GOOD_RECALL:
                return best
    return best


def _recall(truth: Sequence[NDArray[np.int64]], found: Sequence[NDArray[np.int64]]) -> float:
    hits = [len(np.intersect1d(one, other)) / max(1, len(one)) for one, other in zip(truth, found, strict=True)]
    return float(np.mean(hits)) if hits else 1.0


def save(folder: Path, approximate: Approximate) -> Approximate:
    """Put an index on disk; return it with its SHA-256.

    Raises:
        OSError: the disk is full or fails.
    """
    folder.mkdir(exist_ok=True)
    path, temporary = folder / "index-data", folder / ".index-data.new"
    digest = hashlib.sha256()
    failures: list[OSError] = []
    with temporary.open("wb") as file:

        def write(block: bytes) -> int:
            try:
                file.write(block)
            except OSError as error:
                failures.append(error)
            digest.update(block)
            return len(block)

        _FAISS.write_index(approximate._index, _FAISS.PyCallbackIOWriter(write))
        if failures:
            temporary.unlink()
            raise failures[0]
        file.flush()
        os.fsync(file.fileno())
    description = replace(approximate.description, sha256=digest.hexdigest())
    temporary.replace(path)
    sync_folder(folder)
    write_whole(folder / "index-description", json.dumps(asdict(description)).encode())
    approximate.description = description
    return approximate


def describe(folder: Path) -> Description | None:
    """Return what the index on disk is; None when there is none."""
    try:
        return Description(**json.loads((folder / "index-description").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def load(folder: Path, stop: Callable[[], bool] = lambda: False) -> Approximate | None:
    """Load the index from disk; None when there is none that is whole.

    Raises:
        StoppedError: `stop` said so.
    """
    description = describe(folder)
    if description is None:
        return None
    path = folder / "index-data"
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 23):
                digest.update(block)
                if stop():
                    raise StoppedError
        if digest.hexdigest() != description.sha256:
            return None
        return Approximate(_FAISS.read_index(str(path)), description)
    except (OSError, RuntimeError):
        return None
