"""Build, load and search approximate indexes over a collection's sealed rows.

    hnsw   graph over vectors in bfloat16 (Malkov and Yashunin 2018)
    ivf    inverted lists, 8 bits per component
    pq     inverted lists, product quantisation to 2 bits per component (Jégou et al. 2011)

An index proposes slots, whose similarities are then computed exactly. If a few principal components hold most of the
variance, lists hold these instead of the vectors (`index/vectors/ann_coordinates.py`). The vectors themselves stay
mapped. An index is built in the background, and its effort (`efSearch`, `nprobe`, number of proposals) is raised until
its recall is high enough. Recall is measured with vectors that are added last, because those already in a graph are
much easier to find, and that are not copies of one another, because copies are easier still; a neighbour counts as
found when one as similar is. Graphs fail where many vectors are identical: then lists take their place. The file's
SHA-256 is checked before loading; without an index, searches are exact.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from imagekin import files
from imagekin.index.search.recall import first_copies, products_with, recall_of
from imagekin.index.storage.columns import ColumnSnapshot, Mask
from imagekin.index.types import StoppedError
from imagekin.index.vectors.ann_coordinates import Coordinates, fit_coordinates
from imagekin.index.vectors.brute_force import THREADS, top_k
from imagekin.types import Vector

AUTO_FROM = 200_000
BUILD_FROM = 5_000
_AUTO_KIND = "ivf"
_GOOD_RECALL = 0.97
_QUERIES = 400
_K = 10
_ADDED_AT_ONCE = 20_000
_LINKS = 16
_TRAINED_ON = 40  # vectors per centroid
_EFFORTS = {
    "hnsw": (16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 512),
    "ivf": (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256),
    "pq": (2, 4, 8, 16, 32, 64, 128),
}
# Candidates that are scored exactly, per neighbour and in addition: the coarser the codes, the more.
_PROPOSALS = {"hnsw": (1.0,), "ivf": (1.0, 4.0, 16.0), "pq": (8.0, 32.0)}
_SPARE = {"hnsw": 4, "ivf": 10, "pq": 10}
# If raising the effort adds no more recall than this, only more candidates can help.
_MIN_GAIN = 0.0005
# From this share of copies on, or below this recall, lists take the place of a graph.
_MANY_COPIES = 0.1
_LEAST_RECALL_OF_GRAPHS = 0.95
# FAISS's own type hints are incomplete.
_FAISS: Any = faiss


@dataclass(frozen=True, slots=True)
class Description:
    """The description of an index file.

    Attributes:
        kind: `hnsw`, `ivf` or `pq`.
        generation: generation of the segments whose slots it holds.
        rows: number of slots that it holds, from the first on.
        effort: `efSearch` or `nprobe`.
        proposals: candidates per neighbour.
        recall: recall@10, measured with vectors of the collection before they were added.
        sha256: SHA-256 of the file.
        last: slots of these vectors, ascending; in the index they come after all others.
        wanted: kind that was asked for; empty for `kind` itself.
    """

    kind: str
    generation: str
    rows: int
    effort: int
    proposals: float
    recall: float
    sha256: str
    last: tuple[int, ...] = ()
    wanted: str = ""

    @property
    def asked(self) -> str:
        """Kind that was asked for."""
        return self.wanted or self.kind


class Approximate:
    """An index in memory; any number of threads may use it.

    Args:
        index: FAISS's index.
        description: its description.
    """

    def __init__(self, index: Any, description: Description) -> None:
        self._index = index
        self._searched, self._coordinates = _unwrap(index)
        self.description = description
        last = np.array(description.last, np.int64)
        # The slot of each position in the index; the last entry maps -1, no position, to -1.
        self._slots = np.concatenate((np.delete(np.arange(self.rows), last), last, [-1]))
        self._lock = threading.Lock()
        self._live: tuple[int, NDArray[np.uint8]] | None = None

    @property
    def rows(self) -> int:
        """Number of slots that it holds, from the first on."""
        return self.description.rows

    @property
    def kind(self) -> str:
        """Kind of index: `hnsw`, `ivf` or `pq`."""
        return self.description.kind

    @property
    def recall(self) -> float:
        """Measured recall@10, see `Description`."""
        return self.description.recall

    def proposals(self, k: int) -> int:
        """Return how many slots are proposed for `k` neighbours."""
        return min(self.rows, int(np.ceil(k * self.description.proposals)) + _SPARE[self.description.kind])

    def propose(self, queries: Vector, k: int, bits: NDArray[np.uint8] | None) -> NDArray[np.int64]:
        """Return slots that may be among the `k` nearest, int64 [N, proposals(k)]; -1 where fewer were found.

        The search runs in the calling thread alone.

        Args:
            queries: float32 [N, D] of unit length, C-contiguous.
            k: number of neighbours wanted.
            bits: the slots that may be proposed, see `bits`.
        """
        count = self.proposals(k)
        selector = None
        if bits is not None:
            selector = _FAISS.IDSelectorBitmap(bits)  # wraps the bits, and does not keep them alive
        if self.description.kind == "hnsw":
            options = _FAISS.SearchParametersHNSW(efSearch=max(self.description.effort, count), sel=selector)
        else:
            options = _FAISS.SearchParametersIVF(nprobe=self.description.effort, sel=selector)
        _FAISS.omp_set_num_threads(1)  # applies to this thread only
        asked = queries if self._coordinates is None else self._coordinates.of(queries)
        places: NDArray[np.int64] = self._searched.search(asked, count, params=options)[1]
        return np.take(self._slots, places)

    def bits(self, snapshot: ColumnSnapshot, mask: Mask | None) -> NDArray[np.uint8] | None:
        """Return the slots that may be proposed as a bitmap for FAISS; None for all of them."""
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
        return np.packbits(known[self._slots[:-1]], bitorder="little")


def kind_for(wanted: str, rows: int) -> str:
    """Return the kind of index for a collection of so many rows; `flat` for none."""
    if wanted == "auto":
        return _AUTO_KIND if rows >= AUTO_FROM else "flat"
    return wanted if rows >= BUILD_FROM else "flat"


def build(
    kind: str, generation: str, snapshot: ColumnSnapshot, rows: int, stop: Callable[[], bool] = lambda: False
) -> Approximate:
    """Build an index over the first `rows` slots and measure its recall; one of lists where a graph would not do.

    Raises:
        StoppedError: `stop` returned True.
    """
    _FAISS.omp_set_num_threads(max(1, THREADS // 2))  # applies to this thread only
    firsts = first_copies(snapshot.vectors, rows, stop)
    if kind != "hnsw" or len(firsts) >= (1 - _MANY_COPIES) * rows:
        found = _build(kind, generation, snapshot, rows, firsts, stop)
        if kind != "hnsw" or found.recall >= _LEAST_RECALL_OF_GRAPHS:
            return found
    other = _build("ivf", generation, snapshot, rows, firsts, stop)
    other.description = replace(other.description, wanted=kind)
    return other


def _build(
    kind: str,
    generation: str,
    snapshot: ColumnSnapshot,
    rows: int,
    firsts: NDArray[np.int64],
    stop: Callable[[], bool],
) -> Approximate:
    random = np.random.default_rng(0)
    lists = _lists(rows)
    count = min(rows, _TRAINED_ON * lists)
    sample = snapshot.vectors[np.sort(random.choice(rows, count, replace=False))]
    coordinates = fit_coordinates(sample) if kind == "ivf" else None
    if coordinates is None:
        index = searched = _new_index(kind, snapshot.vectors.shape[1], lists)
    else:
        searched = _new_integer_index(coordinates.width, lists)
        index = _FAISS.IndexPreTransform(coordinates.transform, searched)
    searched.train(sample if coordinates is None else coordinates.of(sample))

    def add(slots: NDArray[np.int64]) -> None:
        vectors = snapshot.vectors[slots]
        searched.add(vectors if coordinates is None else coordinates.of(vectors))

    live = firsts[snapshot.died[firsts] > snapshot.sequence]
    last = np.sort(random.choice(live, min(_QUERIES, len(live) // 2), replace=False))
    rest = np.delete(np.arange(rows), last)
    for begin in range(0, len(rest), _ADDED_AT_ONCE):
        if stop():
            raise StoppedError
        add(rest[begin : begin + _ADDED_AT_ONCE])
    found = _tune(index, Description(kind, generation, len(rest), 0, 0.0, 0.0, ""), snapshot, rest, last, stop)
    add(last)
    return Approximate(index, replace(found, rows=rows, last=tuple(last.tolist())))


def _unwrap(index: Any) -> tuple[Any, Coordinates | None]:
    """Return FAISS's inner index and the coordinates that it uses; both live as long as the index."""
    if not isinstance(index, _FAISS.IndexPreTransform):
        return index, None
    transform = _FAISS.downcast_VectorTransform(index.chain.at(0))
    return _FAISS.downcast_index(index.index), Coordinates(transform)


def _lists(rows: int) -> int:
    return int(2 ** np.clip(np.floor(np.log2(min(4 * np.sqrt(rows), rows / _TRAINED_ON))), 0, 16))


def _new_integer_index(width: int, lists: int) -> Any:
    # When components are dropped, distances change less than products do.
    index = _FAISS.index_factory(width, f"IVF{lists},SQ8_direct_signed", _FAISS.METRIC_L2)
    index.by_residual = False
    _train_quickly(index)
    return index


def _new_index(kind: str, dim: int, lists: int) -> Any:
    if kind == "hnsw":
        # For unit vectors, distances and products give the same order; a graph built by distances has a higher recall.
        index = _FAISS.IndexHNSWSQ(dim, _FAISS.ScalarQuantizer.QT_bf16, _LINKS, _FAISS.METRIC_L2)
        index.hnsw.efConstruction = 80
        return index
    codes = "SQ8" if kind == "ivf" else f"PQ{_subquantisers(dim)}"
    index = _FAISS.index_factory(dim, f"IVF{lists},{codes}", _FAISS.METRIC_INNER_PRODUCT)
    _train_quickly(index)
    if kind == "pq":
        _train_quickly(index.pq)
        index.do_polysemous_training = False  # only for polysemous search, which is not used here, and takes minutes
    return index


def _train_quickly(trained: Any) -> None:
    trained.cp.niter = 8
    trained.cp.min_points_per_centroid = 1  # or FAISS warns on standard error


def _subquantisers(dim: int) -> int:
    return next(parts for parts in range(max(1, dim // 4), 0, -1) if dim % parts == 0)


def _tune(
    index: Any,
    description: Description,
    snapshot: ColumnSnapshot,
    rest: NDArray[np.int64],
    asked: NDArray[np.int64],
    stop: Callable[[], bool],
) -> Description:
    """Raise the effort until the recall is high enough, and return the description with both.

    Args:
        index: FAISS's index.
        description: its description, without effort and recall.
        snapshot: the collection.
        rest: the slots in the index, in its order.
        asked: slots that are not in it, to measure the recall with.
        stop: asked between two measurements whether to stop.
    """
    queries = snapshot.vectors[asked]
    near, slots = top_k(queries, snapshot.vectors[: len(rest) + len(asked)], min(len(rest), _K + len(asked)))
    truth = [products[~np.isin(row, asked)][:_K] for products, row in zip(near, slots, strict=True)]
    best = description
    for proposals in _PROPOSALS[description.kind]:
        before = -1.0
        for effort in _EFFORTS[description.kind]:
            if stop():
                raise StoppedError
            found = replace(description, effort=effort, proposals=proposals)
            places = Approximate(index, found).propose(queries, _K, None)
            proposed = np.where(places >= 0, rest[places], -1)
            found = replace(found, recall=recall_of(truth, products_with(queries, snapshot.vectors, proposed)))
            if found.recall >= _GOOD_RECALL:
                return found
            best = max(best, found, key=lambda one: one.recall)
            if found.recall - before <= _MIN_GAIN:
                break
            before = found.recall
    return best


def save(folder: Path, approximate: Approximate) -> Approximate:
    """Put an index on disk; return it with its SHA-256.

    Raises:
        OSError: the disk is full or fails.
    """
    folder.mkdir(exist_ok=True)
    digest = hashlib.sha256()
    failures: list[OSError] = []
    with files.replacing(folder / "index-data") as temporary, temporary.open("wb") as file:

        def write(block: bytes) -> int:
            try:
                file.write(block)
            except OSError as error:
                failures.append(error)
            digest.update(block)
            return len(block)

        _FAISS.write_index(approximate._index, _FAISS.PyCallbackIOWriter(write))
        if failures:
            raise failures[0]
    description = replace(approximate.description, sha256=digest.hexdigest())
    files.write_text(folder / "index-description", json.dumps(asdict(description)))
    approximate.description = description
    return approximate


def describe(folder: Path) -> Description | None:
    """Read the description of the index on disk; None when there is none."""
    try:
        return Description(**json.loads((folder / "index-description").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def load(folder: Path, stop: Callable[[], bool] = lambda: False) -> Approximate | None:
    """Load the index from disk; None when there is none, or it is damaged.

    Raises:
        StoppedError: `stop` returned True.
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
