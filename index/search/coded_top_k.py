"""Exact top-k by way of 8-bit codes: products of codes select candidates, and only candidates are scored.

Let q̂ and x̂ be the decoded codes of a query q and a vector x. By the Cauchy–Schwarz inequality,

    |⟨q, x⟩ − ⟨q̂, x̂⟩| ≤ ‖q − q̂‖ ‖x̂‖ + ‖q‖ ‖x − x̂‖ =: error

Take the k-th largest inner product of any rows, and subtract the error: each of the k nearest has a product of codes of
at least this threshold. The rows that reach it are the candidates. They are scored in float32, so the result is the
same as without codes. If there are so many candidates that codes save nothing (a query amid nearly equal vectors), all
rows are scored instead.

The threshold only needs products of codes that are not below the inner products by more than the error; they may be
above by any amount. This is true of codes of projections with their margins (`imagekin.index.vectors.projection`),
which are scanned in a fraction of the time. They are tried first. Queries unlike the vectors, for which projections
leave too many candidates, are then tried with the codes of the vectors.

FAISS scans the codes for one or two queries, one after the other; for more queries, ONNX Runtime multiplies codes and
queries (`imagekin.index.vectors.matmul_scan`). Scanning gains from reading a quarter of the bytes, multiplying from
integer arithmetic four times as fast as float32.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagekin.index.storage.columns import Mask
from imagekin.index.vectors import brute_force
from imagekin.index.vectors.brute_force import Products, Rows
from imagekin.index.vectors.codes import BLOCK_MULTIPLE, ERROR_SHARE, MAX_CODE, Codes, threads_for
from imagekin.index.vectors.faiss_scan import borrow_scanner
from imagekin.index.vectors.int8_products import IntegerProducts
from imagekin.index.vectors.matmul_scan import scores_of
from imagekin.types import Vector

# With fewer rows, shorter vectors, or fewer rows per neighbour, two stages do not pay.
MIN_ROWS = 8192
MIN_DIM = 32
_ROWS_PER_NEIGHBOUR = 64
# Short codes are used once they cover this share of the rows that have codes.
_NEARLY_ALL = 15 / 16
# If more than this share of the rows are candidates of a scan, all rows are scored instead; for products see
# `imagekin.index.vectors.matmul_scan`.
_MAX_SCANNED_SHARE = 1 / 16
# From this many queries on they are multiplied: one pass over packed codes takes about as long as three scans.
_MULTIPLIED_FROM = 3
_QUERIES_AT_ONCE = 128
# Number of rows that a scan keeps, per neighbour and in addition, so that it usually keeps every candidate.
_KEPT_PER_NEIGHBOUR, _KEPT = 4, 192
# Covers the rounding of the bound itself.
_ROUNDING_FACTOR = 1.0 + 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class _CodedQueries:
    """Coded queries.

    Attributes:
        codes: int8 [N, width].
        scales: float64 [N], the inner product that a product of codes of 1 stands for.
        offsets: float64 [N], constant to add to that inner product.
        errors: float64 [N], largest amount by which the sum may be below the true inner product.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float64]
    offsets: NDArray[np.float64]
    errors: NDArray[np.float64]

    def thresholds(self, products: Products, places: Rows) -> NDArray[np.int64]:
        """Return the least products of codes, int64 [P], of rows whose inner products are as large as the given ones.

        Args:
            products: inner products, float32 [P].
            places: the query of each, int64 [P].
        """
        least = products - self.offsets[places] - self.errors[places]
        return np.floor(least / self.scales[places]).astype(np.int64)


def top_k(queries: Vector, vectors: Vector, codes: Codes | None, k: int) -> tuple[Products, Rows]:
    """Return the `k` largest inner products of each query and their rows, as `brute_force.top_k` does.

    Args:
        queries: float32 [N, D], C-contiguous.
        vectors: float32 [n, D], C-contiguous.
        codes: codes of the first vectors; None for none.
        k: 1 to n.
    """
    if codes is None:
        return brute_force.top_k(queries, vectors, k)
    short = codes.short
    levels = (codes,) if short is None or short.rows < _NEARLY_ALL * codes.rows else (short, codes)
    products = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    for begin in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(begin, begin + _QUERIES_AT_ONCE)
        products[part], rows[part] = _search(queries[part], vectors, levels, k)
    return products, rows


def _search(queries: Vector, vectors: Vector, levels: Sequence[Codes], k: int) -> tuple[Products, Rows]:
    """Search with the first of some codes; repeat unresolved queries with the next ones, or else without codes."""
    if not levels:
        return brute_force.top_k(queries, vectors, k)
    codes = levels[0]
    multiplied = len(queries) >= _MULTIPLIED_FROM
    even = BLOCK_MULTIPLE if multiplied else 1
    n = min(codes.rows, len(vectors)) // even * even
    if n < max(MIN_ROWS, k * _ROWS_PER_NEIGHBOUR):
        return brute_force.top_k(queries, vectors, k)
    if not multiplied:
        products, rows, unresolved = _search_by_scans(queries, vectors[:n], codes, k)
    elif codes.integers is not None:
        products, rows, unresolved = _search_by_products(queries, vectors[:n], codes, codes.integers, k)
    else:
        return brute_force.top_k(queries, vectors, k)
    for places, others in _fallbacks(queries, np.flatnonzero(unresolved), levels):
        products[places], rows[places] = _search(queries[places], vectors[:n], others, k)
    if n == len(vectors):
        return products, rows
    more, where = brute_force.top_k(queries, vectors[n:], min(k, len(vectors) - n))
    return brute_force.merge_top_k((products, more), (rows, where + n), k)


def _fallbacks(queries: Vector, unresolved: Rows, levels: Sequence[Codes]) -> Iterator[tuple[Rows, Sequence[Codes]]]:
    """Yield the places of unresolved queries and the codes to try next.

    After a projection, codes of the vectors help only queries that have a large part outside of the projection.
    """
    projection = levels[0].projection
    if projection is not None and len(unresolved):
        foreign = projection.are_foreign(queries[unresolved])
        if foreign.any():
            yield unresolved[foreign], levels[1:]
        unresolved = unresolved[~foreign]
    if len(unresolved):
        yield unresolved, ()


def _search_by_products(
    queries: Vector, vectors: Vector, codes: Codes, integers: IntegerProducts, k: int
) -> tuple[Products, Rows, Mask]:
    """Search by products of codes; also return which queries are unresolved, bool [N]: those with many candidates."""
    coded = _encode_queries(queries, codes, integers.max_weight)

    def thresholds_of(places: Rows, candidates: Rows) -> NDArray[np.int64]:
        return coded.thresholds(brute_force.best_of(queries[places], vectors, candidates, k)[0][:, -1], places)

    scores = scores_of(coded.codes, codes, integers, len(vectors), k, thresholds_of)
    candidates = scores.candidates()
    near = ~scores.unresolved
    products, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    if near.any():
        products[near], rows[near] = brute_force.best_of(queries[near], vectors, candidates[near], k)
    return products, rows, scores.unresolved


def _encode_queries(queries: Vector, codes: Codes, most: int) -> _CodedQueries:
    """Encode queries as multiples of a step of each query's own, between minus `most` and `most`."""
    exact, offsets = queries.astype(np.float64), np.zeros(len(queries))
    if codes.projection is not None:
        projected, offsets = codes.projection.of_queries(queries)
        exact = projected.astype(np.float64)
    dim = exact.shape[1]
    steps = np.abs(exact).max(axis=1) / most
    steps[steps == 0] = 1.0
    rounded = np.rint(exact / steps[:, None])
    coded = np.zeros((len(queries), codes.room.shape[1]), np.int8)
    coded[:, :dim] = rounded
    lengths, off, scales = _lengths(exact), _lengths(exact - rounded * steps[:, None]), steps * codes.step
    if codes.projection is not None:
        margins = np.maximum(off / ERROR_SHARE, lengths) * _ROUNDING_FACTOR * codes.margin / scales
        coded[:, dim] = np.minimum(np.ceil(margins), most)
        errors = codes.projection.error * (1.0 + lengths * codes.longest)
        errors += np.maximum(margins - most, 0.0) * MAX_CODE * scales
    else:
        errors = off * (1.0 + codes.error) + lengths * codes.error
    # FAISS rounds products of codes, and inner products, to float32.
    rounding = scales * (coded.shape[1] * MAX_CODE**2 * 2.0**-22 + 2) + 2 * brute_force.rounding(queries.shape[1])
    return _CodedQueries(coded, scales, offsets, _ROUNDING_FACTOR * errors + rounding)


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return lengths


def _search_by_scans(queries: Vector, vectors: Vector, codes: Codes, k: int) -> tuple[Products, Rows, Mask]:
    """Search by scanning codes; also return which queries are unresolved, bool [N]: those with many candidates."""
    coded = _encode_queries(queries, codes, MAX_CODE)
    products, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    unresolved = np.zeros(len(queries), np.bool_)
    for place in range(len(queries)):
        found = _scan(queries[place : place + 1], coded, place, vectors, codes, k)
        if found is None:
            unresolved[place] = True
        else:
            products[place], rows[place] = found[0][0], found[1][0]
    return products, rows, unresolved


def _scan(
    query: Vector, coded: _CodedQueries, place: int, vectors: Vector, codes: Codes, k: int
) -> tuple[Products, Rows] | None:
    """Search for one query, [1, D], by scanning codes; None when it has too many candidates."""
    n = len(vectors)
    threads = threads_for(1, n * codes.room.shape[1])
    ends = [n * part // threads for part in range(threads + 1)]
    longest = max(last - first for first, last in itertools.pairwise(ends))
    kept = min(longest, _KEPT_PER_NEIGHBOUR * k + _KEPT)
    near = np.full((threads, kept), -np.inf, np.float32)
    rows = np.empty((threads, kept), np.int64)
    code = coded.codes[place].astype(np.float32)

    def scan(first: int, last: int) -> None:
        with borrow_scanner(len(code)) as scanner:
            for part in range(first, last):
                scanner.best(code, codes.room[ends[part] : ends[part + 1]], near[part], rows[part])
                rows[part] += ends[part]

    brute_force.run_parallel(scan, threads, threads)
    rows[np.isneginf(near)] = -1
    best, where = brute_force.best_of(query, vectors, rows.reshape(1, -1), k)
    threshold = float(coded.thresholds(best[:, -1], np.array([place]))[0])
    if kept == longest or near.min(axis=1).max() < threshold:
        return best, where
    found: list[Rows] = [np.empty(0, np.int64)] * threads

    def scan_again(first: int, last: int) -> None:
        with borrow_scanner(len(code)) as scanner:
            for part in range(first, last):
                found[part] = scanner.above(code, codes.room[ends[part] : ends[part + 1]], threshold - 1) + ends[part]

    brute_force.run_parallel(scan_again, threads, threads)
    candidates = np.concatenate(found)
    if len(candidates) > n * _MAX_SCANNED_SHARE:
        return None
    return brute_force.best_of(query, vectors, candidates[None], k)
