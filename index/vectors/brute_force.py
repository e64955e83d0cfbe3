"""Exact top-k by inner product: which kernel for how many queries, each on every core that there is.

One or two queries are scanned by FAISS (`knn_inner_product` with a selector that lets everything through), every thread
a part of the vectors, as fast as memory gives them. From three on, blocks of vectors are multiplied by all queries at
once and go through a tournament: of every 16 products only the largest is kept, of every 16 of those again only the
largest. The `k` largest products lie within the `k` groups with the largest ones, so that a few hundred vectors a query
are left to be scored once more. Nothing in it depends on the order of the vectors, and for 64 queries selecting adds a
third to what multiplying takes. FAISS's own blocks serve where `k` is not small beside the number of vectors.

Every call runs on one OpenMP thread, and the vectors are shared out among threads of our own: OpenMP's threads wait
for each other after every block, which on a machine with other work to do makes a search up to a hundred times slower.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from imagekin.types import Vector

Products = NDArray[np.float32]
Rows = NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)

_BLOCKS_FROM = 3
_GROUP = 16
# The tournament pays when at least this many groups compete for a place.
_GROUPS_A_PLACE = 4
_TOURNAMENT_FROM = 4096
_QUERIES_AT_ONCE = 128
# Products of a block, and vectors: both stay in a core's second-level cache.
_BLOCK_PRODUCTS = 1 << 18
_BLOCK_ROWS = 4096
# Fewer components to be read, or multiply-adds, than these a thread are not worth sharing out.
_READ_A_THREAD = 2e6
_WORK_A_THREAD = 3e7
# When so large a share of the vectors may be among the k nearest, scoring all is quicker than to score only those.
CROWD = 1 / 32
# FAISS's own type hints lack much of what is used here.
_FAISS: Any = faiss
THREADS: int = _FAISS.omp_get_max_threads()

# FAISS itself goes over to blocks at a process-wide threshold whose unit depends on the version (queries, or queries
# × D) and whose default suits neither; a selector that lets everything through makes a call scan instead.
_FAISS.cvar.distance_compute_blas_threshold = 1


def top_k(queries: Vector, vectors: Vector, k: int) -> tuple[Products, Rows]:
    """Return the `k` largest inner products of each query, largest first, and where they are.

    Args:
        queries: float32 [N, D], C-contiguous.
        vectors: float32 [n, D], C-contiguous.
        k: 1 to n.

    Returns:
        Inner products, float32 [N, k], and rows of `vectors`, int64 [N, k].
    """
    if len(queries) < _BLOCKS_FROM:
        return _scan_parts(queries, vectors, k)
    products = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    if k * _GROUP * _GROUPS_A_PLACE <= len(vectors) and len(vectors) >= _TOURNAMENT_FROM:
        for begin in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(begin, begin + _QUERIES_AT_ONCE)
            _tournament(queries[part], vectors, products[part], rows[part])
        return products, rows
    shared_out(
        lambda begin, end: _scan(queries[begin:end], vectors, products[begin:end], rows[begin:end]),
        len(queries),
        threads_for(len(queries), vectors.size),
    )
    return products, rows


def rounding(dim: int) -> float:
    """Return how far a float32 inner product of unit vectors may be off, generously."""
    return 4.0 * float(np.sqrt(dim)) * 2.0**-24


def threads_for(queries: int, components: int) -> int:
    """Return among how many threads so many queries over so many components are worth sharing out."""
    return int(max(1, min(THREADS, max(components / _READ_A_THREAD, queries * components / _WORK_A_THREAD))))


def taken(values: NDArray[Scalar], places: Rows) -> NDArray[Scalar]:
    """Return the values [N, m] at places of their rows, int64 [N, k], as NumPy's `take_along_axis` does but at once."""
    return values[np.arange(len(values))[:, None], places]


def shared_out(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Call `work(begin, end)` for parts of `range(count)`, each on a thread; raises what it raised."""
    parts = max(1, min(threads, count))
    edges = [count * part // parts for part in range(parts + 1)]
    others = [_pool().submit(work, *edge) for edge in itertools.pairwise(edges[1:])]
    try:
        work(0, edges[1])
    finally:
        for other in others:
            other.exception()
    for other in others:
        other.result()


def _scan_parts(queries: Vector, vectors: Vector, k: int) -> tuple[Products, Rows]:
    """Scan each thread's part of the vectors, and choose among what was the best of each."""
    threads = min(threads_for(len(queries), vectors.size), len(vectors) // k)
    edges = [len(vectors) * part // threads for part in range(threads + 1)]
    products = np.empty((threads, len(queries), k), np.float32)
    rows = np.empty((threads, len(queries), k), np.int64)

    def scan(first: int, last: int) -> None:
        for part in range(first, last):
            _scan(queries, vectors[edges[part] : edges[part + 1]], products[part], rows[part])
            rows[part] += edges[part]

    shared_out(scan, threads, threads)
    if threads == 1:
        return products[0], rows[0]
    return merged(list(products), list(rows), k)


def merged(products: Sequence[Products], rows: Sequence[Rows], k: int) -> tuple[Products, Rows]:
    """Return the `k` largest products of each query among several answers, and their rows."""
    near, where = np.concatenate(products, axis=1), np.concatenate(rows, axis=1)
    order = np.argsort(-near, axis=1, kind="stable")[:, :k]
    return taken(near, order), taken(where, order)


def _scan(queries: Vector, vectors: Vector, products: Products, rows: Rows) -> None:
    _FAISS.omp_set_num_threads(1)  # counts for this thread alone
    scanning = [_FAISS.IDSelectorAll()] if len(queries) < _BLOCKS_FROM else []
    _FAISS.knn_inner_product(
        _FAISS.swig_ptr(queries),
        _FAISS.swig_ptr(vectors),
        vectors.shape[1],
        len(queries),
        len(vectors),
        products.shape[1],
        _FAISS.swig_ptr(products),
        _FAISS.swig_ptr(rows),
        *scanning,
    )


def _tournament(queries: Vector, vectors: Vector, products: Products, rows: Rows) -> None:
    count, n, k = len(queries), len(vectors), products.shape[1]
    block = max(_GROUP * _GROUP, min(_BLOCK_ROWS, _BLOCK_PRODUCTS // count // _GROUP * _GROUP))
    winners = _group_maxima(queries, vectors, block)
    candidates = _rows_of(_best_groups(winners, k), block)
    candidates[candidates >= n] = -1
    products[:], rows[:] = best_of(queries, vectors, candidates, k)


def best_of(queries: Vector, vectors: Vector, candidates: Rows, k: int) -> tuple[Products, Rows]:
    """Return the result of `top_k` when it is known to be among some rows of each query.

    Args:
        queries: float32 [N, D], C-contiguous.
        vectors: float32 [n, D], C-contiguous.
        candidates: int64 [N, m], C-contiguous, rows of `vectors`, or -1 for none; at least `k` are rows.
        k: 1 to m.
    """
    scores = np.empty(candidates.shape, np.float32)

    def score(begin: int, end: int) -> None:
        _FAISS.omp_set_num_threads(1)
        _FAISS.fvec_inner_products_by_idx(  # -inf where there is none
            _FAISS.swig_ptr(scores[begin:end]),
            _FAISS.swig_ptr(queries[begin:end]),
            _FAISS.swig_ptr(vectors),
            _FAISS.swig_ptr(candidates[begin:end]),
            vectors.shape[1],
            end - begin,
            candidates.shape[1],
        )

    shared_out(score, len(queries), threads_for(1, scores.size * vectors.shape[1]))
    places = largest(scores, k)
    near = taken(scores, places)
    order = np.argsort(-near, axis=1, kind="stable")
    chosen = taken(places, order)
    return taken(near, order), taken(candidates, chosen)


def _group_maxima(queries: Vector, vectors: Vector, block: int) -> Products:
    """Return the largest product of each group of vectors, float32 [groups, N]; see `_rows_of` for what is in which.

    There are a multiple of 16 groups; those at the end that have no vectors are -inf.
    """
    blocks, width, count = -(-len(vectors) // block), block // _GROUP, len(queries)
    groups = blocks * width
    winners = np.empty((-(-groups // _GROUP) * _GROUP, count), np.float32)
    winners[groups:] = -np.inf

    def play(first: int, scores: Products) -> None:
        begin = first // _GROUP
        if len(scores) < block:
            scores = np.concatenate((scores, np.full((block - len(scores), count), -np.inf, np.float32)))
        np.maximum.reduce(scores.reshape(_GROUP, width * count), axis=0, out=winners[begin : begin + width].reshape(-1))

    each_block(queries, vectors, block, play)
    return winners


def each_block(queries: Vector, vectors: Vector, block: int, look: Callable[[int, Products], None]) -> None:
    """Multiply queries by vectors, a block of them after the other, and let `look` see the products of each.

    Args:
        queries: float32 [N, D], C-contiguous.
        vectors: float32 [n, D], C-contiguous.
        block: vectors of a block; the last one has fewer.
        look: called with the first row of a block and its inner products, float32 [m, N], from several threads and in
            no order; the array is used again afterwards.
    """
    count = len(queries)
    multiply = _FAISS.LinearTransform(vectors.shape[1], count, False)
    _FAISS.copy_array_to_vector(queries.reshape(-1), multiply.A)
    multiply.is_trained = True

    def work(first: int, last: int) -> None:
        _FAISS.omp_set_num_threads(1)
        products = np.empty((block, count), np.float32)
        for begin in range(first * block, min(last * block, len(vectors)), block):
            part = vectors[begin : begin + block]
            multiply.apply_noalloc(len(part), _FAISS.swig_ptr(part), _FAISS.swig_ptr(products))
            look(begin, products[: len(part)])

    shared_out(work, -(-len(vectors) // block), threads_for(count, vectors.size))


def _best_groups(winners: Products, k: int) -> Rows:
    """Return the `k` groups with the largest maxima for each query, int64 [N, k], in no order."""
    groups, count = winners.shape
    heats = groups // _GROUP
    # Heat h holds the groups h, h + heats, h + 2 × heats …
    finals = np.maximum.reduce(winners.reshape(_GROUP, heats * count), axis=0).reshape(heats, count)
    chosen = largest(np.ascontiguousarray(finals.T), min(k, heats))
    candidates = (chosen[:, :, None] + heats * np.arange(_GROUP)).reshape(count, -1)
    best = largest(winners[candidates, np.arange(count)[:, None]], k)
    return taken(candidates, best)


def _rows_of(groups: Rows, block: int) -> Rows:
    """Return the rows of groups, int64 [N, k × 16]; group g of a block holds its rows g, g + width, g + 2 × width …."""
    width = block // _GROUP
    first = groups // width * block + groups % width
    return np.ascontiguousarray((first[:, :, None] + width * np.arange(_GROUP)).reshape(len(groups), -1))


def largest(values: Products, k: int) -> Rows:
    """Return where the `k` largest values of each row are, int64 [N, k], in no order."""
    size = values.shape[1]
    if k == size:
        return np.tile(np.arange(size), (len(values), 1))
    # By the smallest of the negative ones: towards the other end NumPy takes ten times as long when many are -inf.
    return np.argpartition(-values, k - 1, axis=1)[:, :k]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, THREADS - 1), thread_name_prefix="search")
