"""Products of codes and queries, and which of them may be among the k largest of a query.

ONNX Runtime multiplies the codes a block after the other, packed ones and others, and no answer depends on which are
packed. Of every 16 products the largest is looked at first: a group whose largest does not reach the bar holds nobody.
The bar rises with every run of blocks, by the inner products of the most promising so far
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
from imagekin.index.vectors.codes import EVEN, Codes, edges, threads_for
from imagekin.index.vectors.int8_products import IntegerProducts, Integers, PackedCodes

Part = TypeVar("Part")
Done = TypeVar("Done")
# Queries, rows and products, each int64 or int32 [m].
_Picked: TypeAlias = tuple[Rows, Rows, Integers]
BarsOf: TypeAlias = Callable[[Rows, Rows], NDArray[np.int64]]

# Blocks are of whole groups of groups: `EVEN` is a multiple of its square.
_GROUP = 16
_BLOCK_BYTES = 2 << 20
_FEW = 32
# 32 MB. Half as much makes two passes of a hundred thousand vectors, one of them short, and takes a seventh longer.
_PRODUCTS_AT_ONCE = 1 << 23
_LEAST, _MOST = np.iinfo(np.int32).min, np.iinfo(np.int32).max
# Enough heats that the best of them are seldom in the same one.
_HEATS_A_PLACE = 8
# Groups with a candidate before the bar is raised by inner products.
_MOST_HOT = 1 / 2


def scores_of(
    queries: NDArray[np.int8], codes: Codes, integers: IntegerProducts, n: int, k: int, bars_of: BarsOf
) -> "CodeScores":
    """Multiply the first `n` codes by queries and return what of them may be among the k largest.

    Args:
        queries: codes of the queries, int8 [N, width].
        codes: the codes.
        integers: what multiplies them.
        n: a multiple of 256.
        k: 1 to n.
        bars_of: called with places of queries and, for each, rows, int64 [P, m] with -1 behind the last one; returns
            the products, int64 [P], that a row must have to be one of the k nearest, as far as these rows tell.
    """
    count, packed = len(queries), _within(codes.packed, n)
    at_once = max(EVEN, _PRODUCTS_AT_ONCE // count // EVEN * EVEN, *map(len, packed))
    scratch = _take_scratch(min(n, at_once) * count)
    scores = CodeScores(count, codes.room.shape[1], n, k, bars_of)
    try:
        for blocks in _packed_blocks(queries, integers, packed, at_once, scratch):
            scores.look(blocks)
        for blocks in _other_blocks(queries, integers, codes, range(sum(map(len, packed)), n, at_once), scratch):
            scores.look(blocks)
    finally:
        _scratch().put(scratch)
    return scores


def _within(packed: Sequence[PackedCodes], n: int) -> Sequence[PackedCodes]:
    """Return the packed blocks that are of the first `n` rows only."""
    ends = np.cumsum([len(block) for block in packed])
    return packed[: int(np.count_nonzero(ends <= n))]


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A run of rows, a multiple of 256 of them.

    Row r of the block is in its group r mod groups, so that what is compared lies side by side in memory.

    Attributes:
        begin: the first row.
        multiply: makes the products.
        products: int32 [16, groups, N], of the queries with the members of groups, however they lie in memory.
    """

    begin: int
    multiply: Callable[[], None]
    products: Integers

    def __len__(self) -> int:
        return _GROUP * len(self.products[0])

    def maxima(self) -> Integers:
        """Multiply, and return the largest product of each group, int32 [groups, N], in memory as the products are."""
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
    """Yield packed blocks, the first of which begins at row 0, of at most so many rows at once."""
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
    """Yield blocks of rows that are not packed, at most as many at once as the range makes steps."""
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
    """Products of codes, some blocks after the other, and what of them may be among the k largest.

    Args:
        count: number of queries.
        width: bytes of a code.
        n: number of codes.
        k: 1 to n.
        bars_of: as `scores_of` is given it.

    Attributes:
        bars: int64 [N], what a row must reach to be a candidate.
        crowded: bool [N], which queries have so many candidates that codes do not help.
    """

    def __init__(self, count: int, width: int, n: int, k: int, bars_of: BarsOf) -> None:
        self.bars = np.full(count, _LEAST, np.int64)
        self.crowded = np.zeros(count, np.bool_)
        self._width, self._n, self._k, self._bars_of = width, n, k, bars_of
        self._best = np.full((k, count), _LEAST, np.int32)
        self._hot = np.zeros(count, np.int64)
        self._found: list[_Picked] = []

    def look(self, blocks: Sequence[_Block]) -> None:
        """Multiply some blocks, and keep the candidates among their rows."""
        threads = threads_for(len(self.bars), sum(map(len, blocks)) * self._width)
        maxima = _each(_Block.maxima, blocks, threads)
        parts = list(zip(blocks, maxima, strict=True))
        promising = np.maximum(self.bars, self._followed(maxima))
        self._raise_bars(promising, _each(functools.partial(self._picked, promising), parts, threads))
        self._found += _each(functools.partial(self._picked, self.bars), parts, threads)

    def candidates(self) -> Rows:
        """Return the rows that reach the bars, int64 [N, m], -1 behind the last one of each; none of the crowded."""
        queries, rows, products = _together(self._found)
        near = products >= self.bars[queries]
        self.crowded |= np.bincount(queries[near], minlength=len(self.bars)) > self._n * brute_force.CROWD
        near &= ~self.crowded[queries]
        return self._by_query(queries[near], rows[near])

    def _followed(self, maxima: Sequence[Integers]) -> NDArray[np.int64]:
        """Return a product that the k largest so far are not below, int64 [N], given those of further groups."""
        count = len(self.bars)
        if sum(map(len, maxima)) // _GROUP >= _HEATS_A_PLACE * self._k:
            # The k-th largest of fewer and larger groups is found more quickly, and hardly ever smaller.
            maxima = [np.maximum.reduce(one.reshape(_GROUP, -1, count), axis=0) for one in maxima]
        every = np.concatenate([self._best.T, *(one.T for one in maxima)], axis=1)
        best = np.partition(every, every.shape[1] - self._k, axis=1)[:, -self._k :]
        self._best = best.T
        largest: NDArray[np.int64] = best[:, 0].astype(np.int64)
        return largest

    def _raise_bars(self, promising: NDArray[np.int64], picked: Sequence[_Picked]) -> None:
        """Raise the bars by the rows whose products are the largest so far, some of which were picked just now."""
        queries, rows, products = _together([*self._found, *picked])
        near = (products >= promising[queries]) & ~self.crowded[queries]
        matrix = self._by_query(queries[near], rows[near])
        places = np.flatnonzero(np.count_nonzero(matrix >= 0, axis=1) >= self._k)
        if len(places):
            self.bars[places] = np.maximum(self.bars[places], self._bars_of(places, matrix[places]))

    def _by_query(self, queries: Rows, rows: Rows) -> Rows:
        """Return rows by the queries that they belong to, int64 [N, m], -1 behind the last one of each."""
        order = np.argsort(queries, kind="stable")
        queries, counts = queries[order], np.bincount(queries, minlength=len(self.bars))
        matrix = np.full((len(counts), int(counts.max())), -1, np.int64)
        matrix[queries, np.arange(len(queries)) - (np.cumsum(counts) - counts)[queries]] = rows[order]
        return matrix

    def _picked(self, bars: NDArray[np.int64], among: tuple[_Block, Integers]) -> _Picked:
        """Return queries, rows and products that reach bars, of a block with its groups' maxima."""
        block, maxima = among
        groups, count = maxima.shape
        # As wide as the products, with which they are compared the more quickly.
        least = np.clip(np.where(self.crowded, _MOST, bars), _LEAST, _MOST).astype(np.int32)
        hot, queries = _where(maxima >= least)
        self._hot += np.bincount(queries, minlength=count)
        if self._hot.max() > self._n // _GROUP * _MOST_HOT:
            self.crowded |= self._hot > self._n // _GROUP * _MOST_HOT
            stay = ~self.crowded[queries]  # once: other threads find crowds as well
            hot, queries = hot[stay], queries[stay]
        products = block.products[:, hot, queries]
        member, place = _where(products >= least[queries])
        return queries[place], block.begin + member * groups + hot[place], products[member, place]


def _together(picked: Sequence[_Picked]) -> _Picked:
    queries, rows, products = zip(*picked, strict=True)
    return np.concatenate(queries), np.concatenate(rows), np.concatenate(products)


def _each(work: Callable[[Part], Done], parts: Sequence[Part], threads: int) -> list[Done]:
    """Apply a function to each of some parts, spread over threads, and return its results in order.

    Some blocks are longer than others, and some threads wait longer for a processor.
    """
    done: dict[int, Done] = {}
    left = iter(enumerate(parts))

    def take(_: int, __: int) -> None:
        for place, part in left:
            done[place] = work(part)

    brute_force.shared_out(take, len(parts), threads)
    return [done[place] for place in range(len(parts))]


def _where(matrix: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Return the rows and columns where a matrix is true, in the order in which it lies in memory.

    NumPy's own `nonzero` takes ten times as long for a matrix.
    """
    if matrix.flags.c_contiguous:
        rows, columns = np.divmod(np.flatnonzero(matrix), matrix.shape[1])
    else:
        columns, rows = np.divmod(np.flatnonzero(matrix.T), matrix.shape[0])
    return rows, columns


def _take_scratch(size: int) -> Integers:
    """Return memory for products that was used before, where there is some: fresh memory takes longer than they do."""
    try:
        scratch = _scratch().get_nowait()
    except queue.Empty:
        return np.empty(size, np.int32)
    return scratch if len(scratch) >= size else np.empty(size, np.int32)


@functools.cache
def _scratch() -> "queue.SimpleQueue[Integers]":
    return queue.SimpleQueue()
