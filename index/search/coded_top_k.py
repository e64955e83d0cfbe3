"""Exact top-k by way of 8-bit codes: who may be among the k nearest is found by integers, and only they are scored.

With q̂ and x̂ for what the codes of a query and of a vector stand for, Cauchy and Schwarz bound what the codes are off:

    |⟨q, x⟩ − ⟨q̂, x̂⟩| ≤ ‖q − q̂‖ ‖x̂‖ + ‖q‖ ‖x − x̂‖ =: error

The k-th largest inner product of any rows less that is therefore a bar that every one of the k nearest reaches with its
product of codes. Those that reach it are scored as they are without codes, so that the answer is the same; where so
many do that nothing is gained (a query amid a crowd of nearly equal vectors), all are.

A bar takes products of codes that are not below the inner products by more than the error; how far they are above does
not matter. Those of projections (`imagekin.index.vectors.projection`) with their margins are of that kind, and found in
a fraction of the time. They come first: only queries unlike the vectors, for which they leave too many candidates, go
on to codes of the vectors.

A few queries are scanned by FAISS, one after the other. More of them ONNX Runtime multiplies
(`imagekin.index.vectors.matmul_scan`). Reading a quarter of the bytes is what helps the former, and multiplying four
times as fast the latter.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagekin.index.storage.columns import Mask
from imagekin.index.vectors import brute_force
from imagekin.index.vectors.brute_force import Products, Rows
from imagekin.index.vectors.codes import EVEN, MOST, SHARE, Codes, threads_for
from imagekin.index.vectors.faiss_scan import lent
from imagekin.index.vectors.int8_products import IntegerProducts
from imagekin.index.vectors.matmul_scan import scores_of
from imagekin.types import Vector

# Fewer rows, shorter vectors, or fewer rows a neighbour are not worth two stages.
CODED_FROM = 8192
SHORTEST = 32
_ROWS_A_PLACE = 64
# Short codes of fewer of the vectors that have codes have to wait until they are brought up to date.
_NEARLY_ALL = 15 / 16
# Nor are more candidates of one query than this share of the rows; of queries that are multiplied see
# `imagekin.index.vectors.matmul_scan`.
_MOST_SCANNED = 1 / 16
# From so many queries on they are multiplied: one pass over packed codes takes about as long as three scans.
_MULTIPLIED_FROM = 3
_QUERIES_AT_ONCE = 128
# What a scan keeps in the hope that it holds every candidate: some neighbours' worth, and some more.
_KEPT_A_PLACE, _KEPT = 4, 192
# For the rounding of the bound itself.
_GENEROUS = 1.0 + 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class _Questions:
    """Coded queries.

    Attributes:
        codes: int8 [N, width].
        scales: float64 [N], what a product of codes of one stands for.
        offsets: float64 [N], what inner products have more than that.
        errors: float64 [N], how far what it stands for may be below the inner product nevertheless.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float64]
    offsets: NDArray[np.float64]
    errors: NDArray[np.float64]

    def bars(self, products: Products, places: Rows) -> NDArray[np.int64]:
        """Return the products of codes, int64 [P], below which no inner product is as large as given, float32 [P].

        Args:
            products: the inner products.
            places: of which queries, int64 [P].
        """
        least = products - self.offsets[places] - self.errors[places]
        return np.floor(least / self.scales[places]).astype(np.int64)


def top_k(queries: Vector, vectors: Vector, codes: Codes | None, k: int) -> tuple[Products, Rows]:
    """Return the `k` largest inner products of each query and where they are, as `flat.top_k` does.

    Args:
        queries: float32 [N, D], C-contiguous.
        vectors: float32 [n, D], C-contiguous.
        codes: of the first vectors; None for none.
        k: 1 to n.
    """
    if codes is None:
        return brute_force.top_k(queries, vectors, k)
    short = codes.short
    ways = (codes,) if short is None or short.rows < _NEARLY_ALL * codes.rows else (short, codes)
    products = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    for begin in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(begin, begin + _QUERIES_AT_ONCE)
        products[part], rows[part] = _answered(queries[part], vectors, ways, k)
    return products, rows


def _answered(queries: Vector, vectors: Vector, ways: Sequence[Codes], k: int) -> tuple[Products, Rows]:
    """Answer queries by the first of some codes, those in a crowd by the next ones where that helps, else by none."""
    if not ways:
        return brute_force.top_k(queries, vectors, k)
    codes = ways[0]
    multiplied = len(queries) >= _MULTIPLIED_FROM
    even = EVEN if multiplied else 1
    n = min(codes.rows, len(vectors)) // even * even
    if n < max(CODED_FROM, k * _ROWS_A_PLACE):
        return brute_force.top_k(queries, vectors, k)
    if not multiplied:
        products, rows, crowded = _scanned(queries, vectors[:n], codes, k)
    elif codes.integers is not None:
        products, rows, crowded = _multiplied(queries, vectors[:n], codes, codes.integers, k)
    else:
        return brute_force.top_k(queries, vectors, k)
    for places, others in _after(queries, np.flatnonzero(crowded), ways):
        products[places], rows[places] = _answered(queries[places], vectors[:n], others, k)
    if n == len(vectors):
        return products, rows
    more, where = brute_force.top_k(queries, vectors[n:], min(k, len(vectors) - n))
    return brute_force.merged((products, more), (rows, where + n), k)


def _after(queries: Vector, crowded: Rows, ways: Sequence[Codes]) -> Iterator[tuple[Rows, Sequence[Codes]]]:
    """Yield places of queries that are in a crowd by the first of some codes, and what to try instead.

    Among what is left out of a projection, only queries that it does not suit find less of a crowd.
    """
    projection = ways[0].projection
    if projection is not None and len(crowded):
        foreign = projection.are_foreign(queries[crowded])
        if foreign.any():
            yield crowded[foreign], ways[1:]
        crowded = crowded[~foreign]
    if len(crowded):
        yield crowded, ()


def _multiplied(
    queries: Vector, vectors: Vector, codes: Codes, integers: IntegerProducts, k: int
) -> tuple[Products, Rows, Mask]:
    """Answer queries by multiplying codes, and say of which there is no answer: those in a crowd."""
    asked = _questions(queries, codes, integers.most)

    def bars_of(places: Rows, candidates: Rows) -> NDArray[np.int64]:
        return asked.bars(brute_force.best_of(queries[places], vectors, candidates, k)[0][:, -1], places)

    scores = scores_of(asked.codes, codes, integers, len(vectors), k, bars_of)
    candidates = scores.candidates()
    near = ~scores.crowded
    products, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    if near.any():
        products[near], rows[near] = brute_force.best_of(queries[near], vectors, candidates[near], k)
    return products, rows, scores.crowded


def _questions(queries: Vector, codes: Codes, most: int) -> _Questions:
    """Code queries by multiples of their own step, between minus `most` and `most`."""
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
        margins = np.maximum(off / SHARE, lengths) * _GENEROUS * codes.margin / scales
        coded[:, dim] = np.minimum(np.ceil(margins), most)
        errors = codes.projection.error * (1.0 + lengths * codes.longest)
        errors += np.maximum(margins - most, 0.0) * MOST * scales
    else:
        errors = off * (1.0 + codes.error) + lengths * codes.error
    # FAISS rounds products of codes, and inner products, to float32.
    rounding = scales * (coded.shape[1] * MOST * MOST * 2.0**-22 + 2) + 2 * brute_force.rounding(queries.shape[1])
    return _Questions(coded, scales, offsets, _GENEROUS * errors + rounding)


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return lengths


def _scanned(queries: Vector, vectors: Vector, codes: Codes, k: int) -> tuple[Products, Rows, Mask]:
    """Answer queries by scanning codes, and say of which there is no answer: those in a crowd."""
    asked = _questions(queries, codes, MOST)
    products, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    crowded = np.zeros(len(queries), np.bool_)
    for place in range(len(queries)):
        found = _scanned_one(queries[place : place + 1], asked, place, vectors, codes, k)
        if found is None:
            crowded[place] = True
        else:
            products[place], rows[place] = found[0][0], found[1][0]
    return products, rows, crowded


def _scanned_one(
    query: Vector, asked: _Questions, place: int, vectors: Vector, codes: Codes, k: int
) -> tuple[Products, Rows] | None:
    """Answer one query, [1, D], by scanning codes; None when it is in a crowd."""
    n = len(vectors)
    threads = threads_for(1, n * codes.room.shape[1])
    ends = [n * part // threads for part in range(threads + 1)]
    longest = max(last - first for first, last in itertools.pairwise(ends))
    kept = min(longest, _KEPT_A_PLACE * k + _KEPT)
    near = np.full((threads, kept), -np.inf, np.float32)
    rows = np.empty((threads, kept), np.int64)
    code = asked.codes[place].astype(np.float32)

    def scan(first: int, last: int) -> None:
        with lent(len(code)) as scanner:
            for part in range(first, last):
                scanner.best(code, codes.room[ends[part] : ends[part + 1]], near[part], rows[part])
                rows[part] += ends[part]

    brute_force.shared_out(scan, threads, threads)
    rows[np.isneginf(near)] = -1
    best, where = brute_force.best_of(query, vectors, rows.reshape(1, -1), k)
    bar = float(asked.bars(best[:, -1], np.array([place]))[0])
    if kept == longest or near.min(axis=1).max() < bar:
        return best, where
    found: list[Rows] = [np.empty(0, np.int64)] * threads

    def scan_again(first: int, last: int) -> None:
        with lent(len(code)) as scanner:
            for part in range(first, last):
                found[part] = scanner.above(code, codes.room[ends[part] : ends[part + 1]], bar - 1) + ends[part]

    brute_force.shared_out(scan_again, threads, threads)
    candidates = np.concatenate(found)
    if len(candidates) > n * _MOST_SCANNED:
        return None
    return brute_force.best_of(query, vectors, candidates[None], k)
