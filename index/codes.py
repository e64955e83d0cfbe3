"""8-bit codes of vectors, a quarter of their bytes, and how far a code may be from its vector.

The code of a component is its multiple of a step that is the same for the whole collection, so that products of codes
compare as they are. With x̂ = step × code, one bound holds for all of them: `error` ≥ ‖x − x̂‖.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from index import flat
from index.errors import StoppedError
from index.integers import ZERO, IntegerProducts, PackedCodes
from index.types import Vector

MOST = 127
# FAISS scans codes of such a width with the processor's vector instructions; the rest is filled up with zeros.
_WIDTH = 16
_CODED_AT_ONCE = 1024
# A step leaves so much room above the largest component: components that are a little larger come without coding all of
# them anew, of which there is an end (none is above 1).
_ROOM = 1.03
_SMALLEST = 1e-6
# For the rounding of the errors themselves.
_SLACK = 1.0 + 1e-4
# Shorter codes are multiplied as quickly as they are.
_PACKED_FROM = 256
# What is packed together: larger blocks take longer to pack, smaller ones longer to multiply, one call after the other.
_PACKED_BYTES = 8 << 20
# Blocks of codes are of a multiple of so many rows.
EVEN = 256


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """The codes of a collection's first slots.

    Attributes:
        room: uint8 [capacity, width], the codes, each plus `ZERO`, and behind them room for more.
        rows: number of codes.
        step: what a code of one stands for.
        error: the largest distance of a vector from what its code stands for.
        integers: what multiplies codes; None where nothing does, or not yet.
        packed: the first codes once more, as they are multiplied more quickly, in blocks of a multiple of 256.
    """

    room: NDArray[np.uint8]
    rows: int
    step: float
    error: float
    integers: IntegerProducts | None = None
    packed: tuple[PackedCodes, ...] = ()


def width_of(dim: int) -> int:
    """Return the bytes of a code."""
    return -(-dim // _WIDTH) * _WIDTH


def coded(vectors: Vector, known: Codes | None = None, stop: Callable[[], bool] = lambda: False) -> Codes:
    """Return codes of vectors, float32 [n, D] of unit length.

    Args:
        vectors: the vectors.
        known: codes of the first of them, whose room is used where it is large enough. What is packed stays so as long
            as the step stays the same.
        stop: asked now and then whether to give up.

    Raises:
        StoppedError: `stop` said so.
    """
    if known is not None and _largest(vectors[known.rows :]) <= MOST * known.step:
        return _coded(vectors, known, stop)
    step = float(np.float32(_ROOM * max(_largest(vectors), _SMALLEST) / MOST))
    integers = known.integers if known is not None else None
    return _coded(vectors, Codes(_new_room(vectors, 0), 0, step, 0.0, integers), stop)


def packed(codes: Codes, stop: Callable[[], bool] = lambda: False) -> Codes:
    """Return codes that are packed but for the last 255 or fewer, where that makes multiplying quicker.

    Args:
        codes: the codes. Blocks that are packed already stay as they are, but for short ones at the end, which are
            packed anew with what has come since when that is more.
        stop: asked between two blocks whether to give up.

    Raises:
        StoppedError: `stop` said so.
    """
    width, end, blocks = codes.room.shape[1], codes.rows // EVEN * EVEN, list(codes.packed)
    begin = sum(map(len, blocks))
    if codes.integers is None or width < _PACKED_FROM or begin >= end:
        return codes
    most = _PACKED_BYTES // width
    while blocks and len(blocks[-1]) <= min(end - begin, most // 2):
        begin -= len(blocks.pop())
    for first, last in itertools.pairwise(edges(end - begin, threads_for(1, (end - begin) * width), most)):
        if stop():
            raise StoppedError
        block = codes.integers.pack(codes.room[begin + first : begin + last])
        if block is None:
            return codes
        blocks.append(block)
    return replace(codes, packed=tuple(blocks))


def threads_for(queries: int, size: int) -> int:
    """Return among how many threads so many bytes of codes are worth sharing out: vectors have four times as many."""
    return flat.threads_for(queries, size // 4)


def edges(rows: int, threads: int, most: int) -> list[int]:
    """Return where blocks of at most about so many rows begin and end, as many for each thread, multiples of 256."""
    parts = min(rows // EVEN, threads * -(-rows // (threads * max(most, EVEN))))
    return [rows // EVEN * part // parts * EVEN for part in range(parts + 1)]


def _coded(vectors: Vector, known: Codes, stop: Callable[[], bool]) -> Codes:
    rows, dim, room, error = len(vectors), vectors.shape[1], known.room, known.error
    if len(room) < rows:
        room = _new_room(vectors, rows)
        room[: known.rows] = known.room[: known.rows]
    for begin in range(known.rows, rows, _CODED_AT_ONCE):
        if stop():
            raise StoppedError
        part = vectors[begin : begin + _CODED_AT_ONCE]
        rounded = np.rint(part * np.float32(1 / known.step))
        room[begin : begin + len(part), :dim] = rounded + ZERO
        room[begin : begin + len(part), dim:] = ZERO
        rounded *= np.float32(known.step)
        rounded -= part
        largest = float(np.einsum("nd,nd->n", rounded, rounded).max())
        error = max(error, float(np.sqrt(largest)) * _SLACK + 1e-6)
    return replace(known, room=room, rows=rows, error=error)


def _largest(vectors: Vector) -> float:
    parts = (vectors[begin : begin + _CODED_AT_ONCE] for begin in range(0, len(vectors), _CODED_AT_ONCE))
    return max((max(float(part.max()), -float(part.min())) for part in parts), default=0.0)


def _new_room(vectors: Vector, rows: int) -> NDArray[np.uint8]:
    """Return room for what there is and half as much again: pages that are not yet touched take no memory."""
    return np.empty((max(len(vectors), rows) * 3 // 2, width_of(vectors.shape[1])), np.uint8)
