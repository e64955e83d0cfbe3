"""8-bit codes of vectors, a quarter of their bytes, and how far a code may be from its vector.

The code of a component is its multiple of a step that is the same for the whole collection, so that products of codes
compare as they are. With x̂ = step × code, one bound holds for all of them: `error` ≥ ‖x − x̂‖.

Codes of projections have their own bounds as one component more, their margin. With q̂ for what a query's code stands
for,

    ⟨q, x⟩ ≤ ⟨q̂, x̂⟩ + ‖q − q̂‖ ‖x̂‖ + ‖q‖ ‖x − x̂‖ ≤ ⟨q̂, x̂⟩ + max(‖q − q̂‖ / share, ‖q‖) (share ‖x̂‖ + ‖x − x̂‖),

where the last factor is the margin: again an inner product, so that no product of codes is below that of the vectors.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from imagekin.index.types import StoppedError
from imagekin.index.vectors import brute_force
from imagekin.index.vectors.int8_products import ZERO, IntegerProducts, PackedCodes
from imagekin.index.vectors.projection import Projection, projection_for
from imagekin.types import Vector

MOST = 127
# FAISS scans codes of such a width with the processor's vector instructions; the rest is filled up with zeros.
_WIDTH = 16
_CODED_AT_ONCE = 1024
# About the error of a query's code in its length. Any share makes for a bound, this one for a close one.
SHARE = 0.008
# A step leaves so much room above the largest component: components that are a little larger come without coding all of
# them anew, of which there is an end (none is above 1).
_ROOM = 1.03
_SMALLEST = 1e-6
# … and the same for the lengths of projections.
_LONGER = 1.1
# For the rounding of the lengths themselves.
_SLACK = 1.0 + 1e-4
# Shorter codes are multiplied as quickly as they are.
_PACKED_FROM = 256
# What is packed together: larger blocks take longer to pack, smaller ones longer to multiply, one call after the other.
_PACKED_BYTES = 8 << 20
# Projections are looked for once more when there are so many times as many vectors.
_CONSIDERED_AGAIN = 2
# Blocks of codes are of a multiple of so many rows.
EVEN = 256


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """The codes of a collection's first slots.

    Attributes:
        room: uint8 [capacity, width], the codes, each plus `ZERO`, and behind them room for more.
        rows: number of codes.
        step: what a code of one stands for.
        error: the largest distance of a vector from what its code stands for; codes of projections say their own.
        integers: what multiplies codes; None where nothing does, or not yet.
        packed: the first codes once more, as they are multiplied more quickly, in blocks of a multiple of 256.
        longest: no projection is longer.
        margin: what a margin of one stands for; 0 where codes have none.
        projection: what vectors are projected by before they are coded; None for not at all.
        short: codes of the vectors' projections, by which searches go first; None where there are none that help.
        considered: number of vectors that were considered when projections were last looked for.
    """

    room: NDArray[np.uint8]
    rows: int
    step: float
    error: float
    integers: IntegerProducts | None = None
    packed: tuple[PackedCodes, ...] = ()
    longest: float = 0.0
    margin: float = 0.0
    projection: Projection | None = None
    short: "Codes | None" = None
    considered: int = 0


def width_of(dim: int) -> int:
    """Return the bytes of a code."""
    return -(-dim // _WIDTH) * _WIDTH


def coded(vectors: Vector, known: Codes | None = None, stop: Callable[[], bool] = lambda: False) -> Codes:
    """Return codes of vectors, float32 [n, D] of unit length.

    Args:
        vectors: the vectors.
        known: codes of the first of them, whose room is used where it is large enough, and by whose projection they
            are coded. What is packed stays so as long as the step stays the same.
        stop: asked now and then whether to give up.

    Raises:
        StoppedError: `stop` said so.
    """
    known = known if known is not None else _none(vectors)
    if known.rows:
        largest, longest = _extent(_parts(vectors, known, stop))
        if largest <= MOST * known.step and (known.projection is None or longest <= known.longest):
            return _coded(vectors, known, stop)
    fresh = replace(_none(vectors, known.projection), integers=known.integers)
    largest, longest = _extent(_parts(vectors, fresh, stop))
    fresh = replace(fresh, step=float(np.float32(_ROOM * max(largest, _SMALLEST) / MOST)))
    if fresh.projection is not None:
        off, longest = _most_off(fresh), _LONGER * longest
        fresh = replace(fresh, longest=longest, margin=(SHARE * (longest + off) + off) / MOST)
    return replace(_coded(vectors, fresh, stop), short=known.short, considered=known.considered)


def shortened(codes: Codes, vectors: Vector, stop: Callable[[], bool] = lambda: False) -> Codes:
    """Return codes with short codes of as many vectors, where those make searches quicker.

    Args:
        codes: codes of the first vectors. Short codes that there are already are used again.
        vectors: float32 [n, D] of unit length, C-contiguous.
        stop: asked now and then whether to give up.

    Raises:
        StoppedError: `stop` said so.
    """
    vectors = vectors[: codes.rows]
    if codes.rows >= _CONSIDERED_AGAIN * max(codes.considered, 1):
        projection = projection_for(vectors)
        short = None if projection is None else replace(_none(vectors, projection), integers=codes.integers)
        codes = replace(codes, short=short, considered=codes.rows)
    if codes.short is None or codes.short.rows == codes.rows:
        return codes
    return replace(codes, short=coded(vectors, codes.short, stop))


def like(codes: Codes, known: Codes) -> Codes:
    """Return codes that are used as others are, which are of some of the same vectors in other places."""
    short = None if known.short is None else replace(known.short, rows=0, packed=())
    return replace(codes, integers=known.integers, short=short, considered=known.considered)


def packed(codes: Codes, stop: Callable[[], bool] = lambda: False) -> Codes:
    """Return codes that are packed but for the last 255 or fewer, where that makes searches quicker.

    Args:
        codes: the codes. Blocks that are packed already stay as they are, but for short ones at the end, which are
            packed anew with what has come since when that is more. Where there are short codes, they are packed: hardly
            a search goes by the others.
        stop: asked between two blocks whether to give up.

    Raises:
        StoppedError: `stop` said so.
    """
    if codes.short is not None:
        short = packed(codes.short, stop)
        return codes if short is codes.short and not codes.packed else replace(codes, short=short, packed=())
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
    return brute_force.threads_for(queries, size // 4)


def edges(rows: int, threads: int, most: int) -> list[int]:
    """Return where blocks of at most about so many rows begin and end, as many for each thread, multiples of 256."""
    parts = min(rows // EVEN, threads * -(-rows // (threads * max(most, EVEN))))
    return [rows // EVEN * part // parts * EVEN for part in range(parts + 1)]


def _none(vectors: Vector, projection: Projection | None = None) -> Codes:
    """Return no codes, but room for them: pages that are not yet touched take no memory."""
    width = width_of(vectors.shape[1] if projection is None else projection.width + 1)
    return Codes(np.empty((len(vectors) * 3 // 2, width), np.uint8), 0, 0.0, 0.0, projection=projection)


def _parts(vectors: Vector, codes: Codes, stop: Callable[[], bool]) -> Iterator[Vector]:
    """Yield the vectors that have no code yet, some of them at a time, as they are coded."""
    for begin in range(codes.rows, len(vectors), _CODED_AT_ONCE):
        if stop():
            raise StoppedError
        part = vectors[begin : begin + _CODED_AT_ONCE]
        yield part if codes.projection is None else codes.projection.of_vectors(part)


def _extent(parts: Iterable[Vector]) -> tuple[float, float]:
    """Return the largest component there is, and a length that no vector exceeds."""
    largest = longest = 0.0
    for part in parts:
        largest = max(largest, float(part.max()), -float(part.min()))
        longest = max(longest, float(_lengths(part).max()))
    return largest, longest


def _coded(vectors: Vector, known: Codes, stop: Callable[[], bool]) -> Codes:
    room, begin, error = known.room, known.rows, known.error
    if len(room) < len(vectors):
        room = _none(vectors, known.projection).room
        room[:begin] = known.room[:begin]
    for part in _parts(vectors, known, stop):
        end, dim = begin + len(part), part.shape[1]
        rounded = np.rint(part * np.float32(1 / known.step))
        with np.errstate(invalid="ignore"):  # of vectors that are damaged on disk, until that is found out
            room[begin:end, :dim] = rounded + ZERO
            room[begin:end, dim:] = ZERO
            rounded *= np.float32(known.step)
            off = _lengths(rounded - part)
            if known.projection is not None:
                margins = (SHARE * _lengths(rounded) + off) / known.margin
                room[begin:end, dim] = np.ceil(margins) + ZERO
        error, begin = max(error, float(off.max())), end
    return replace(known, room=room, rows=len(vectors), error=error)


def _most_off(codes: Codes) -> float:
    """Return by how much a code can be off: by half a step in every component."""
    return 0.5 * codes.step * float(np.sqrt(codes.room.shape[1])) * _SLACK + 1e-6


def _lengths(vectors: Vector) -> Vector:
    """Return lengths that vectors do not exceed, float32 [n]."""
    lengths: Vector = np.sqrt(np.einsum("nd,nd->n", vectors, vectors)) * np.float32(_SLACK) + np.float32(1e-6)
    return lengths
