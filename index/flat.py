"""Exact top-k by inner product: FAISS's kernels, and which of them for how many queries.

Measured (faiss-cpu 1.15, AVX-512, 20,000 × 128 to 100,000 × 512): for one and two queries the kernel that scans once a
query is fastest, 2.6 times for one; from three on the one that multiplies blocks of matrices. FAISS itself switches
at a process-wide threshold whose unit depends on the version (queries, or queries × D) and whose default suits neither.
It is set once, here, to "always blocks"; a selector that lets everything through makes a call scan instead.
Every call runs on one OpenMP thread, and a large batch is shared out among threads of our own: OpenMP's threads wait
for each other after every block, which on a machine with other work to do makes a search up to a hundred times slower.
"""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
from numpy.typing import NDArray

from index.types import Vector

_BLOCKS_FROM = 3
# Fewer queries, or fewer multiply-adds, than this a thread are not worth sharing out.
_QUERIES_A_THREAD = 16
_WORK_A_THREAD = 5e7
_THREADS = faiss.omp_get_max_threads()

faiss.cvar.distance_compute_blas_threshold = 1


def top_k(queries: Vector, vectors: Vector, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the `k` largest inner products of each query, largest first, and where they are.

    Args:
        queries: float32 [N, D], C-contiguous.
        vectors: float32 [n, D], C-contiguous.
        k: 1 to n.

    Returns:
        Inner products, float32 [N, k], and rows of `vectors`, int64 [N, k].
    """
    products = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    work = len(queries) * float(vectors.size)
    parts = int(max(1, min(_THREADS, len(queries) // _QUERIES_A_THREAD, work // _WORK_A_THREAD)))
    edges = [len(queries) * part // parts for part in range(parts + 1)]

    def scan(begin: int, end: int) -> None:
        _scan(queries[begin:end], vectors, products[begin:end], rows[begin:end])

    others = [_pool().submit(scan, *edge) for edge in itertools.pairwise(edges[1:])]
    scan(0, edges[1])
    for other in others:
        other.result()
    return products, rows


def _scan(queries: Vector, vectors: Vector, products: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
    faiss.omp_set_num_threads(1)  # counts for this thread alone
    scanning = [faiss.IDSelectorAll()] if len(queries) < _BLOCKS_FROM else []
    faiss.knn_inner_product(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        vectors.shape[1],
        len(queries),
        len(vectors),
        products.shape[1],
        faiss.swig_ptr(products),
        faiss.swig_ptr(rows),
        *scanning,
    )


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, _THREADS - 1), thread_name_prefix="search")
