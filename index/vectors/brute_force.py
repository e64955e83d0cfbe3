"""Find the exact top-k by inner product on all cores, with a kernel chosen by the number of queries.

For one or two queries, FAISS scans the vectors (`knn_inner_product` with a selector that accepts every row), each
thread a part of them, at memory bandwidth. From three queries on, blocks of vectors are multiplied by all queries at
once, and the products are reduced by a tournament: of every 16 products only the largest is kept, and of every 16 of
those again only the largest. The `k` largest products lie in the `k` groups with the largest maxima, so only a few
hundred vectors per query have to be scored again. The result does not depend on the order of the vectors; with 64
queries, the selection takes a third of the time of the multiplication. Where `k` is not small compared with the number
of vectors, FAISS's own blocks are used.

Every call uses one OpenMP thread, and the vectors are divided among threads of a pool: OpenMP's threads wait for one
another after every block, which on a busy machine makes a search up to a hundred times slower.
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
# The tournament pays with at least this many groups per neighbour.
_GROUPS_PER_NEIGHBOUR = 4
_TOURNAMENT_FROM = 4096
_QUERIES_AT_ONCE = 128
# Products and vectors of a block; both fit into a core's second-level cache.
_BLOCK_PRODUCTS = 1 << 18
_BLOCK_ROWS = 4096
# Least components to read, or multiply-adds, per thread for which another thread pays.
_READ_PER_THREAD = 2e6
_WORK_PER_THREAD = 3e7
# If more than this share of the vectors are candidates, scoring all vectors is faster than scoring the candidates.
MAX_CANDIDATE_SHARE = 1 / 32
# FAISS's own type hints are incomplete.
_FAISS: Any = faiss
THREADS: int = _FAISS.omp_get_max_threads()

# FAISS switches to blocks at a process-wide threshold whose unit depends on the version (queries, or queries × D), with
# a default that suits neither. A threshold of 1 makes it always use blocks, and a selector that accepts every row makes
# a call scan instead.
_FAISS.cvar.distance_compute_blas_threshold = 1


def top_k(queries: Vector, vectors: Vector, k: int) -> tuple[Products, Rows]:
    """Return the `k` largest inner products of each query, largest first, and their rows.

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
    if k * _GROUP * _GROUPS_PER_NEIGHBOUR <= len(vectors) and len(vectors) >= _TOURNAMENT_FROM:
        for begin in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(begin, begin + _QUERIES_AT_ONCE)
            _tournament(queries[part], vectors, products[part], rows[part])
        return products, rows
    run_parallel(
        lambda begin, end: _scan(queries[begin:end], vectors, products[begin:end], rows[begin:end]),
        len(queries),
        threads_for(len(queries), vectors.size),
    )
    return products, rows


def rounding(dim: int) -> float:
    """Return a generous bound for the rounding error of a float32 inner product of unit vectors."""
    return 4.0 * float(np.sqrt(dim)) * 2.0**-24


def threads_for(queries: int, components: int) -> int:
    """Return the number of threads that pays for so many queries over so many components."""
    return int(max(1, min(THREADS, max(components / _READ_PER_THREAD, queries * components / _WORK_PER_THREAD))))


def take_columns(values: NDArray[Scalar], places: Rows) -> NDArray[Scalar]:
    """Return the values [N, m] at the columns `places`, int64 [N, k]: a faster `take_along_axis`."""
    return values[np.arange(len(values))[:, None], places]


def run_parallel(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Call `work(begin, end)` for parts of `range(count)`, each in its own thread; raises what it raises."""
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
    """Scan each thread's part of the vectors, and merge the results of the parts."""
    threads = min(threads_for(len(queries), vectors.size), len(vectors) // k)
    edges = [len(vectors) * part // threads for part in range(threads + 1)]
    products = np.empty((threads, len(queries), k), np.float32)
    rows = np.empty((threads, len(queries), k), np.int64)

    def scan(first: int, last: int) -> None:
        for part in range(first, last):
            _scan(queries, vectors[edges[part] : edges[part + 1]], products[part], rows[part])
            rows[part] += edges[part]

    run_parallel(scan, threads, threads)
    if threads == 1:
        return products[0], rows[0]
    return merge_top_k(list(products), list(rows), k)


def merge_top_k(products: Sequence[Products], rows: Sequence[Rows], k: int) -> tuple[Products, Rows]:
    """Return the `k` largest products of each query among several results, and their rows."""
    near, where = np.concatenate(products, axis=1), np.concatenate(rows, axis=1)
    order = np.argsort(-near, axis=1, kind="stable")[:, :k]
    return take_columns(near, order), take_columns(where, order)


def _scan(queries: Vector, vectors: Vector, products: Products, rows: Rows) -> None:
    _FAISS.omp_set_num_threads(1)  # applies to this thread only
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
    """Return the result of `top_k`, given candidate rows of each query that contain it.

    Args:
        queries: float32 [N, D], C-contiguous.
        vectors: float32 [n, D], C-contiguous.
        candidates: int64 [N, m], C-contiguous, rows of `vectors`, or -1 for none; at least `k` of each are rows.
        k: 1 to m.
    """
    scores = np.empty(candidates.shape, np.float32)

    def score(begin: int, end: int) -> None:
        _FAISS.omp_set_num_threads(1)
        _FAISS.fvec_inner_products_by_idx(  # -inf for -1
            _FAISS.swig_ptr(scores[begin:end]),
            _FAISS.swig_ptr(queries[begin:end]),
            _FAISS.swig_ptr(vectors),
            _FAISS.swig_ptr(candidates[begin:end]),
            vectors.shape[1],
            end - begin,
            candidates.shape[1],
        )

    run_parallel(score, len(queries), threads_for(1, scores.size * vectors.shape[1]))
    places = largest(scores, k)
    near = take_columns(scores, places)
    order = np.argsort(-near, axis=1, kind="stable")
    chosen = take_columns(places, order)
    return take_columns(near, order), take_columns(candidates, chosen)


def _group_maxima(queries: Vector, vectors: Vector, block: int) -> Products:
    """Return the largest product of each group of vectors, float32 [groups, N]; `_rows_of` defines the groups.

    The number of groups is a multiple of 16; groups without vectors, at the end, are -inf.
    """
    blocks, width, count = -(-len(vectors) // block), block // _GROUP, len(queries)
    groups = blocks * width
    winners = np.empty((-(-groups // _GROUP) * _GROUP, count), np.float32)
    winners[groups:] = -np.inf

    def reduce(first: int, scores: Products) -> None:
        begin = first // _GROUP
        if len(scores) < block:
            scores = np.concatenate((scores, np.full((block - len(scores), count), -np.inf, np.float32)))
        np.maximum.reduce(scores.reshape(_GROUP, width * count), axis=0, out=winners[begin : begin + width].reshape(-1))

    each_block(queries, vectors, block, reduce)
    return winners


def each_block(queries: Vector, vectors: Vector, block: int, use: Callable[[int, Products], None]) -> None:
    """Multiply queries by vectors block by block, and call `use` with the products of each block.

    Args:
        queries: float32 [N, D], C-contiguous.
        vectors: float32 [n, D], C-contiguous.
        block: vectors of a block; the last one has fewer.
        use: called with the first row of a block and its inner products, float32 [m, N], from several threads and in
            no order; the array is overwritten after the call.
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
            use(begin, products[: len(part)])

    run_parallel(work, -(-len(vectors) // block), threads_for(count, vectors.size))


def _best_groups(winners: Products, k: int) -> Rows:
    """Return the `k` groups with the largest maxima for each query, int64 [N, k], in no order."""
    groups, count = winners.shape
    supergroups = groups // _GROUP
    # Supergroup s holds the groups s, s + supergroups, s + 2 × supergroups …
    maxima = np.maximum.reduce(winners.reshape(_GROUP, supergroups * count), axis=0).reshape(supergroups, count)
    chosen = largest(np.ascontiguousarray(maxima.T), min(k, supergroups))
    candidates = (chosen[:, :, None] + supergroups * np.arange(_GROUP)).reshape(count, -1)
    best = largest(winners[candidates, np.arange(count)[:, None]], k)
    return take_columns(candidates, best)


def _rows_of(groups: Rows, block: int) -> Rows:
    """Return the rows of groups, int64 [N, k × 16]; group g of a block holds its rows g, g + width, g + 2 × width …."""
    width = block // _GROUP
    first = groups // width * block + groups % width
    return np.ascontiguousarray((first[:, :, None] + width * np.arange(_GROUP)).reshape(len(groups), -1))


def largest(values: Products, k: int) -> Rows:
    """Return the columns of the `k` largest values of each row, int64 [N, k], in no order."""
    size = values.shape[1]
    if k == size:
        return np.tile(np.arange(size), (len(values), 1))
    # Negated, because NumPy takes ten times as long to find the largest values when many are -inf.
    return np.argpartition(-values, k - 1, axis=1)[:, :k]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, THREADS - 1), thread_name_prefix="search")
