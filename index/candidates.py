"""Exact top-k by way of 8-bit codes: who may be among the k nearest is found by integers, and only they are scored.

With q̂ and x̂ for what the codes of a query and of a vector stand for, Cauchy and Schwarz bound what the codes are off:

    |⟨q, x⟩ − ⟨q̂, x̂⟩| ≤ ‖q − q̂‖ ‖x̂‖ + ‖q‖ ‖x − x̂‖ =: error

The k-th largest product of codes less twice that is therefore a bar that every one of the k nearest reaches; the k-th
largest inner product of any rows less once that is another one. Those that reach both are scored as they are without
codes, so that the answer is the same; where so many do that nothing is gained (a query amid a crowd of nearly equal
vectors), all are.

A few queries are scanned by FAISS, one after the other. More of them ONNX Runtime multiplies (`index.scores`). Reading
a quarter of the bytes is what helps the former, and multiplying four times as fast the latter. How few are a few
depends on the processor, on the width of the codes and on whether they are packed, and is measured once.
"""

import contextlib
import functools
import itertools
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index import flat
from index.codes import EVEN, MOST, Codes, threads_for
from index.flat import Products, Rows
from index.integers import IntegerProducts
from index.scores import scores_of
from index.types import Vector

# Fewer rows, shorter vectors, or fewer rows a neighbour are not worth two stages.
CODED_FROM = 8192
SHORTEST = 32
_ROWS_A_PLACE = 64
# Nor are more candidates of one query than this share of the rows; of queries that are multiplied see `index.scores`.
_MOST_SCANNED = 1 / 16
# From so many queries on they are multiplied, whatever was measured; and fewer are never.
_ALWAYS_MULTIPLIED, _FEWEST_MULTIPLIED = 8, 3
# Queries that multiplying is measured with.
_SAMPLED = 4
# Codes to measure that with: more than a core's own caches hold.
_SAMPLE_BYTES = 8 << 20
_TRIALS = 3
# The rest is what a scan costs besides, which multiplying does once for all.
_SCANNED_SHARE = 0.8
_QUERIES_AT_ONCE = 128
# What a scan keeps in the hope that it holds every candidate: some neighbours' worth, and some more.
_KEPT_A_PLACE, _KEPT = 4, 192
# For the rounding of the bound itself.
_GENEROUS = 1.0 + 1e-5
_FAISS: Any = faiss


@dataclass(frozen=True, slots=True, eq=False)
class _Questions:
    """Coded queries.

    Attributes:
        codes: int8 [N, width].
        scales: float64 [N], what a product of codes of one stands for.
        errors: float64 [N], how far what it stands for may be from the inner product.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float64]
    errors: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def slack(self) -> NDArray[np.int64]:
        """Twice the error in products of codes, int64 [N]: so far below the k-th largest may the k nearest be."""
        return np.ceil(2.0 * self.errors / self.scales).astype(np.int64)

    def bars(self, products: Products) -> NDArray[np.int64]:
        """Return the products of codes, int64 [N], below which no inner product is as large as one, float32 [N]."""
        return np.floor((products - self.errors) / self.scales).astype(np.int64)


def top_k(queries: Vector, vectors: Vector, codes: Codes | None, k: int) -> tuple[Products, Rows]:
    """Return the `k` largest inner products of each query and where they are, as `flat.top_k` does.

    Args:
        queries: float32 [N, D], C-contiguous.
        vectors: float32 [n, D], C-contiguous.
        codes: of the first vectors; None for none.
        k: 1 to n.
    """
    few = codes is None or not _are_multiplied(len(queries), codes)
    even = 1 if few else EVEN
    rows = 0 if codes is None else min(codes.rows, len(vectors)) // even * even
    if codes is None or rows < max(CODED_FROM, k * _ROWS_A_PLACE) or (codes.integers is None and not few):
        return flat.top_k(queries, vectors, k)
    products = np.empty((len(queries), k), np.float32)
    places = np.empty((len(queries), k), np.int64)
    for begin in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(begin, begin + _QUERIES_AT_ONCE)
        products[part], places[part] = _by_codes(queries[part], vectors[:rows], codes, k)
    if rows == len(vectors):
        return products, places
    more, where = flat.top_k(queries, vectors[rows:], min(k, len(vectors) - rows))
    return flat.merged((products, more), (places, where + rows), k)


def prepare(codes: Codes) -> None:
    """Measure what the first search for a few queries would have to wait for."""
    if codes.integers is not None:
        _multiplied_from(codes.integers, codes.room.shape[1], bool(codes.packed))


def _are_multiplied(queries: int, codes: Codes) -> bool:
    """Return whether so many queries are multiplied, else scanned one after the other."""
    if queries < _FEWEST_MULTIPLIED:
        return False
    if queries >= _ALWAYS_MULTIPLIED or codes.integers is None:
        return True
    return queries >= _multiplied_from(codes.integers, codes.room.shape[1], bool(codes.packed))


@functools.cache
def _multiplied_from(integers: IntegerProducts, width: int, packed: bool) -> float:
    """Return how many queries take as long to scan for as to multiply, which takes as long for few as for some more."""
    codes = np.resize(np.arange(256, dtype=np.uint8), (_SAMPLE_BYTES // width, width))
    near, rows = np.full(_KEPT, -np.inf, np.float32), np.empty(_KEPT, np.int64)
    query = np.zeros(width, np.float32)
    with _scanner(width) as scanner:
        scanning = _seconds(lambda: scanner.best(query, codes, near, rows))
    return _SCANNED_SHARE * _seconds(_sampled(integers, codes, packed)) / scanning


def _sampled(integers: IntegerProducts, codes: NDArray[np.uint8], packed: bool) -> Callable[[], None]:
    """Return what multiplies codes by a few weights."""
    weights = np.zeros((codes.shape[1], _SAMPLED), np.int8)
    products = np.empty((len(codes), _SAMPLED), np.int32)
    block = integers.pack(codes) if packed else None
    if block is None:
        return functools.partial(integers.multiply, codes, weights, products)
    return functools.partial(
        block.multiply, integers.lifted(weights).reshape(_SAMPLED, -1), products.reshape(_SAMPLED, -1)
    )


def _seconds(call: Callable[[], None]) -> float:
    """Return the least processor time that a call took."""
    times = []
    for _ in range(_TRIALS):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return max(min(times), 1e-9)


def _by_codes(queries: Vector, vectors: Vector, codes: Codes, k: int) -> tuple[Products, Rows]:
    if codes.integers is None or not _are_multiplied(len(queries), codes):
        asked = _questions(queries, codes, MOST)
        found = [_scanned(queries[place : place + 1], asked, place, vectors, codes, k) for place in range(len(queries))]
        return np.concatenate([products for products, _ in found]), np.concatenate([rows for _, rows in found])
    asked = _questions(queries, codes, codes.integers.most)
    scores = scores_of(asked.codes, asked.slack, codes, codes.integers, len(vectors), k)
    # The inner products of the most promising make a bar that is closer by half of the slack.
    near = np.flatnonzero(~scores.crowded)
    if len(near):
        best, _ = flat.best_of(queries[near], vectors, scores.candidates(near, scores.largest), k)
        scores.raise_bars(near, asked.bars(_with(best[:, -1], near, len(queries))))
        near = np.flatnonzero(~scores.crowded)
    products, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    if len(near):
        products[near], rows[near] = flat.best_of(queries[near], vectors, scores.candidates(near, scores.bars), k)
    if len(near) < len(queries):
        crowded = np.flatnonzero(scores.crowded)
        products[crowded], rows[crowded] = flat.top_k(queries[crowded], vectors, k)
    return products, rows


def _with(values: Products, places: Rows, count: int) -> Products:
    """Return `count` values, those that are given at their places and 0 elsewhere."""
    every = np.zeros(count, np.float32)
    every[places] = values
    return every


def _questions(queries: Vector, codes: Codes, most: int) -> _Questions:
    """Code queries by multiples of their own step, between minus `most` and `most`."""
    exact = queries.astype(np.float64)
    steps = np.abs(exact).max(axis=1) / most
    steps[steps == 0] = 1.0
    rounded = np.rint(exact / steps[:, None])
    coded = np.zeros((len(queries), codes.room.shape[1]), np.int8)
    coded[:, : queries.shape[1]] = rounded
    errors = _lengths(exact - rounded * steps[:, None]) * (1.0 + codes.error) + _lengths(exact) * codes.error
    # FAISS rounds products of codes, and inner products, to float32.
    scales = steps * codes.step
    rounding = scales * (coded.shape[1] * MOST * MOST * 2.0**-22 + 2) + 2 * flat.rounding(queries.shape[1])
    return _Questions(coded, scales, _GENEROUS * errors + rounding)


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return lengths


def _scanned(
    query: Vector, asked: _Questions, place: int, vectors: Vector, codes: Codes, k: int
) -> tuple[Products, Rows]:
    """Answer one query, [1, D], by scanning codes."""
    n = len(vectors)
    threads = threads_for(1, n * codes.room.shape[1])
    ends = [n * part // threads for part in range(threads + 1)]
    longest = max(last - first for first, last in itertools.pairwise(ends))
    kept = min(longest, _KEPT_A_PLACE * k + _KEPT)
    near = np.full((threads, kept), -np.inf, np.float32)
    rows = np.empty((threads, kept), np.int64)
    code = asked.codes[place].astype(np.float32)

    def scan(first: int, last: int) -> None:
        with _scanner(len(code)) as scanner:
            for part in range(first, last):
                scanner.best(code, codes.room[ends[part] : ends[part + 1]], near[part], rows[part])
                rows[part] += ends[part]

    flat.shared_out(scan, threads, threads)
    rows[np.isneginf(near)] = -1
    best, where = flat.best_of(query, vectors, rows.reshape(1, -1), k)
    bar = float(asked.bars(np.repeat(best[:, -1], len(asked)))[place])
    if kept == longest or near.min(axis=1).max() < bar:
        return best, where
    found: list[Rows] = [np.empty(0, np.int64)] * threads

    def scan_again(first: int, last: int) -> None:
        with _scanner(len(code)) as scanner:
            for part in range(first, last):
                found[part] = scanner.above(code, codes.room[ends[part] : ends[part + 1]], bar - 1) + ends[part]

    flat.shared_out(scan_again, threads, threads)
    candidates = np.concatenate(found)
    if len(candidates) > n * _MOST_SCANNED:
        return flat.top_k(query, vectors, k)
    return flat.best_of(query, vectors, candidates[None], k)


class _Scanner:
    """FAISS's scanner of signed codes; where their width is a multiple of 16 bytes, the query is integers as well."""

    def __init__(self, width: int) -> None:
        self._codec = _FAISS.ScalarQuantizer(width, _FAISS.ScalarQuantizer.QT_8bit_direct_signed)
        self._scanner = self._codec.select_InvertedListScanner(_FAISS.METRIC_INNER_PRODUCT, None, True, None, False)
        self._scanner.set_list(0, 0.0)

    def best(self, query: Products, codes: NDArray[np.uint8], products: Products, rows: Rows) -> None:
        """Store the largest products and their rows, as many as there is room for, in no order."""
        self._scanner.set_query(_FAISS.swig_ptr(query))
        self._scanner.scan_codes(
            len(codes), _FAISS.swig_ptr(codes), None, _FAISS.swig_ptr(products), _FAISS.swig_ptr(rows), len(rows)
        )

    def above(self, query: Products, codes: NDArray[np.uint8], bar: float) -> Rows:
        """Return the rows whose products are above a bar."""
        self._scanner.set_query(_FAISS.swig_ptr(query))
        result = _FAISS.RangeSearchResult(1)
        partial = _FAISS.RangeSearchPartialResult(result)
        self._scanner.scan_codes_range(len(codes), _FAISS.swig_ptr(codes), None, bar, partial.new_result(0))
        partial.finalize()
        count = int(_FAISS.rev_swig_ptr(result.lims, 2)[1])
        rows: Rows = _FAISS.rev_swig_ptr(result.labels, count).copy() if count else np.empty(0, np.int64)
        return rows


@contextlib.contextmanager
def _scanner(width: int) -> Iterator[_Scanner]:
    """Lend a scanner: every call of FAISS gives up the interpreter's lock, and making one takes several."""
    idle = _idle_scanners(width)
    try:
        scanner = idle.get_nowait()
    except queue.Empty:
        scanner = _Scanner(width)
    try:
        yield scanner
    finally:
        idle.put(scanner)


@functools.cache
def _idle_scanners(width: int) -> "queue.SimpleQueue[_Scanner]":
    return queue.SimpleQueue()
