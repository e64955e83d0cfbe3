"""Multiply codes by queries, and select the candidates for the k largest products of each query.

ONNX Runtime multiplies the codes block by block, packed or not; the result does not depend on which are packed. Of
every group of 16 products the largest is compared first: if it is below the threshold, the group has no candidate. The
threshold rises with every run of blocks, by the inner products of the best candidates so far
(`imagekin.index.search.coded_top_k`).
"""

import functools
import itertools
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from imagekin.index.vectors import brute_force
from imagekin.index.vectors.brute_force import Rows
from imagekin.index.vectors.codes import BLOCK_MULTIPLE, Codes, edges, threads_for
from imagekin.index.vectors.int8_products import IntegerProducts, Integers, PackedCodes

Part = TypeVar("Part")
Done = TypeVar("Done")
# Queries, rows and products, each int64 or int32 [m].
_Picked: TypeAlias = tuple[Rows, Rows, Integers]
_ThresholdsOf: TypeAlias = Callable[[Rows, Rows], NDArray[np.int64]]

# `BLOCK_MULTIPLE` is a multiple of its square, so that blocks consist of whole groups of groups.
_GROUP = 16
_BLOCK_BYTES = 2 << 20
_FEW = 32
# 32 MB. With half as much, a hundred thousand vectors take two passes, one of them short, and a seventh longer.
_PRODUCTS_AT_ONCE = 1 << 23
_LEAST, _MOST = np.iinfo(np.int32).min, np.iinfo(np.int32).max
# Groups of groups per neighbour, enough that the nearest are seldom in the same one.
_SUPERGROUPS_PER_NEIGHBOUR = 8
# Largest share of groups with a candidate; with more of them, codes do not help.
_MAX_GROUP_SHARE = 1 / 2


def scores_of(
    queries: NDArray[np.int8], codes: Codes, integers: IntegerProducts, n: int, k: int, thresholds_of: _ThresholdsOf
) -> "CodeScores":
    """Multiply the first `n` codes by queries, and return the scores that hold the candidates for the k largest.

    Args:
        queries: codes of the queries, int8 [N, width].
        codes: the codes.
        integers: their multiplier.
        n: a multiple of 256.
        k: 1 to n.
        thresholds_of: called with places of queries and rows for each, int64 [P, m], padded with -1; returns the least
            products, int64 [P], of rows that can be among the k nearest, given these rows.
    """
    count, packed = len(queries), _within(codes.packed, n)
    at_once = max(BLOCK_MULTIPLE, _PRODUCTS_AT_ONCE // count // BLOCK_MULTIPLE * BLOCK_MULTIPLE, *map(len, packed))
    scratch = _take_scratch(min(n, at_once) * count)
    scores = CodeScores(count, codes.room.shape[1], n, k, thresholds_of)
    try:
        for blocks in _packed_blocks(queries, integers, packed, at_once, scratch):
            scores.look(blocks)
        for blocks in _other_blocks(queries, integers, codes, range(sum(map(len, packed)), n, at_once), scratch):
            scores.look(blocks)
    finally:
        _scratch().put(scratch)
    return scores


def _within(packed: Sequence[PackedCodes], n: int) -> Sequence[PackedCodes]:
    """Return the packed blocks that lie in the first `n` rows."""
    ends = np.cumsum([len(block) for block in packed])
    return packed[: int(np.count_nonzero(ends <= n))]


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A run of rows, a multiple of 256 of them.

    Row r of the block belongs to group r mod groups, so that products to be compared are adjacent in memory.

    Attributes:
        begin: the first row.
        multiply: computes the products.
        products: int32 [16, groups, N], products of the groups' members and the queries, in any memory layout.
    """

    begin: int
    multiply: Callable[[], None]
    products: Integers

    def __len__(self) -> int:
        return _GROUP * len(self.products[0])

    def maxima(self) -> Integers:
        """Multiply, and return the largest product of each group, int32 [groups, N], in the products' layout."""
        self.multiply()
        maxima: Integers = np.maximum.reduce(self.products, axis=0)
        return maxima


def _packed_blocks(
    queries: NDArray[np.int8],
    integers: IntegerProducts,
    packed: Sequence[PackedCodes],
    at_once: int,
    scratch: Integers,
) -> Iterator[list[_Block]]:
    """Yield lists of packed blocks, from row 0 on, of at most `at_once` rows in all."""
    count, weights = len(queries), integers.lifted(queries)
    blocks: list[_Block] = []
    begin = first = 0
    for block in packed:
        if begin + len(block) - first > at_once:
            yield blocks
            blocks, first = [], begin
        products = scratch[(begin - first) * count :][: len(block) * count].reshape(count, len(block))
        multiply = functools.partial(block.multiply, weights, products)
        blocks.append(_Block(begin, multiply, products.reshape(count, _GROUP, -1).transpose(1, 2, 0)))
        begin += len(block)
    if blocks:
        yield blocks


def _other_blocks(
    queries: NDArray[np.int8], integers: IntegerProducts, codes: Codes, rows: range, scratch: Integers
) -> Iterator[list[_Block]]:
    """Yield lists of blocks of rows that are not packed, of at most `rows.step` rows in all."""
    count, width, weights = len(queries), codes.room.shape[1], np.ascontiguousarray(queries.T)
    for begin in rows:
        size = min(rows.step, rows.stop - begin)
        threads, most = threads_for(count, size * width), _BLOCK_BYTES // width * max(1, _FEW // count)
        blocks: list[_Block] = []
        for top, bottom in itertools.pairwise(edges(size, threads, most)):
            products = scratch[top * count : bottom * count].reshape(bottom - top, count)
            part = codes.room[begin + top : begin + bottom]
            multiply = functools.partial(integers.multiply, part, weights, products)
            blocks.append(_Block(begin + top, multiply, products.reshape(_GROUP, -1, count)))
        yield blocks


class CodeScores:
    """The candidates among products of codes, collected from one list of blocks after another.

    Args:
        count: number of queries.
        width: bytes of a code.
        n: number of codes.
        k: 1 to n.
        thresholds_of: as for `scores_of`.

    Attributes:
        thresholds: int64 [N], least products of candidates.
        unresolved: bool [N], queries with so many candidates that codes do not help.
    """

    def __init__(self, count: int, width: int, n: int, k: int, thresholds_of: _ThresholdsOf) -> None:
        self.thresholds = np.full(count, _LEAST, np.int64)
        self.unresolved = np.zeros(count, np.bool_)
        self._width, self._n, self._k, self._bars_of = width, n, k, thresholds_of
        self._best = np.full((k, count), _LEAST, np.int32)
        self._group_counts = np.zeros(count, np.int64)
        self._found: list[_Picked] = []

    def look(self, blocks: Sequence[_Block]) -> None:
        """Multiply blocks, and add the candidates among their rows."""
        threads = threads_for(len(self.thresholds), sum(map(len, blocks)) * self._width)
        maxima = _map_in_threads(_Block.maxima, blocks, threads)
        parts = list(zip(blocks, maxima, strict=True))
        promising = np.maximum(self.thresholds, self._lower_bounds(maxima))
        self._raise_thresholds(promising, _map_in_threads(functools.partial(self._picked, promising), parts, threads))
        self._found += _map_in_threads(functools.partial(self._picked, self.thresholds), parts, threads)

    def candidates(self) -> Rows:
        """Return each query's candidates, int64 [N, m], padded with -1; none for unresolved queries."""
        queries, rows, products = _concatenate(self._found)
        near = products >= self.thresholds[queries]
        self.unresolved |= (
            np.bincount(queries[near], minlength=len(self.thresholds)) > self._n * brute_force.MAX_CANDIDATE_SHARE
        )
        near &= ~self.unresolved[queries]
        return self._by_query(queries[near], rows[near])

    def _lower_bounds(self, maxima: Sequence[Integers]) -> NDArray[np.int64]:
        """Return a lower bound of the k-th largest product so far, int64 [N], given the maxima of further groups."""
        count = len(self.thresholds)
        if sum(map(len, maxima)) // _GROUP >= _SUPERGROUPS_PER_NEIGHBOUR * self._k:
            # The k-th largest of fewer and larger groups is found faster, and is hardly ever smaller.
            maxima = [np.maximum.reduce(one.reshape(_GROUP, -1, count), axis=0) for one in maxima]
        every = np.concatenate([self._best.T, *(one.T for one in maxima)], axis=1)
        best = np.partition(every, every.shape[1] - self._k, axis=1)[:, -self._k :]
        self._best = best.T
        largest: NDArray[np.int64] = best[:, 0].astype(np.int64)
        return largest

    def _raise_thresholds(self, promising: NDArray[np.int64], picked: Sequence[_Picked]) -> None:
        """Raise the thresholds by the inner products of the best rows so far, newly picked ones included."""
        queries, rows, products = _concatenate([*self._found, *picked])
        near = (products >= promising[queries]) & ~self.unresolved[queries]
        matrix = self._by_query(queries[near], rows[near])
        places = np.flatnonzero(np.count_nonzero(matrix >= 0, axis=1) >= self._k)
        if len(places):
            self.thresholds[places] = np.maximum(self.thresholds[places], self._bars_of(places, matrix[places]))

    def _by_query(self, queries: Rows, rows: Rows) -> Rows:
        """Return the rows of each query, int64 [N, m], padded with -1."""
        order = np.argsort(queries, kind="stable")
        queries, counts = queries[order], np.bincount(queries, minlength=len(self.thresholds))
        matrix = np.full((len(counts), int(counts.max())), -1, np.int64)
        matrix[queries, np.arange(len(queries)) - (np.cumsum(counts) - counts)[queries]] = rows[order]
        return matrix

    def _picked(self, thresholds: NDArray[np.int64], among: tuple[_Block, Integers]) -> _Picked:
        """Return queries, rows and products that reach the thresholds, given a block and its groups' maxima."""
        block, maxima = among
        groups, count = maxima.shape
        # The same type as the products, for a faster comparison.
        least = np.clip(np.where(self.unresolved, _MOST, thresholds), _LEAST, _MOST).astype(np.int32)
        chosen, queries = _where(maxima >= least)
        self._group_counts += np.bincount(queries, minlength=count)
        if self._group_counts.max() > self._n // _GROUP * _MAX_GROUP_SHARE:
            self.unresolved |= self._group_counts > self._n // _GROUP * _MAX_GROUP_SHARE
            stay = ~self.unresolved[queries]  # read once, because other threads change it as well
            chosen, queries = chosen[stay], queries[stay]
        products = block.products[:, chosen, queries]
        member, place = _where(products >= least[queries])
        return queries[place], block.begin + member * groups + chosen[place], products[member, place]


def _concatenate(picked: Sequence[_Picked]) -> _Picked:
    queries, rows, products = zip(*picked, strict=True)
    return np.concatenate(queries), np.concatenate(rows), np.concatenate(products)


def _map_in_threads(work: Callable[[Part], Done], parts: Sequence[Part], threads: int) -> list[Done]:
    """Apply a function to each of some parts, spread over threads, and return its results in order.

    Each thread takes the next part when it is done with one, as parts and threads differ in speed.
    """
    done: dict[int, Done] = {}
    left = iter(enumerate(parts))

    def take(_: int, __: int) -> None:
        for place, part in left:
            done[place] = work(part)

    brute_force.run_parallel(take, len(parts), threads)
    return [done[place] for place in range(len(parts))]


def _where(matrix: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Return the rows and columns where a matrix is true, in memory order, ten times as fast as `np.nonzero`."""
    if matrix.flags.c_contiguous:
        rows, columns = np.divmod(np.flatnonzero(matrix), matrix.shape[1])
    else:
        columns, rows = np.divmod(np.flatnonzero(matrix.T), matrix.shape[0])
    return rows, columns


def _take_scratch(size: int) -> Integers:
    """Return memory for products, reused if possible: touching new pages takes longer than multiplying."""
    try:
        scratch = _scratch().get_nowait()
    except queue.Empty:
        return np.empty(size, np.int32)
    return scratch if len(scratch) >= size else np.empty(size, np.int32)


@functools.cache
def _scratch() -> "queue.SimpleQueue[Integers]":
    return queue.SimpleQueue()
