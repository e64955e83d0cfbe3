"""Encode vectors as 8-bit codes, a quarter of their bytes, with a bound for the error of a code.

A code is a component divided by a step, rounded. The step is the same for the whole collection, so products of codes
can be compared directly. With x̂ = step × code, one bound holds for all vectors: `error` ≥ ‖x − x̂‖.

Codes of projections hold a bound of their own in an additional component, the margin. If q̂ is the decoded code of a
query,

    ⟨q, x⟩ ≤ ⟨q̂, x̂⟩ + ‖q − q̂‖ ‖x̂‖ + ‖q‖ ‖x − x̂‖ ≤ ⟨q̂, x̂⟩ + max(‖q − q̂‖ / share, ‖q‖) (share ‖x̂‖ + ‖x − x̂‖),

where the last factor is the margin. The right side is again an inner product, and never below that of the vectors.
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

MAX_CODE = 127
# FAISS scans codes of a multiple of this width with vector instructions; codes are padded with zeros.
_WIDTH = 16
_CODED_AT_ONCE = 1024
# Typical error of a query's code, relative to its length. Any value gives a valid bound, this one a close bound.
ERROR_SHARE = 0.008
# The step leaves this much room above the largest component, so that slightly larger components do not require encoding
# all vectors again. Since no component exceeds 1, that can happen only a limited number of times.
_ROOM = 1.03
_SMALLEST = 1e-6
# The same room for the lengths of projections.
_LONGER = 1.1
# Covers the rounding of the lengths themselves.
_SLACK = 1.0 + 1e-4
# Packing does not make shorter codes faster.
_PACKED_FROM = 256
# Size of a packed block: larger blocks take longer to pack, smaller ones longer to multiply, for the number of calls.
_PACKED_BYTES = 8 << 20
# A new projection is computed when the number of vectors has grown by this factor.
_CONSIDERED_AGAIN = 2
# The number of rows of a block is a multiple of this.
BLOCK_MULTIPLE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """The codes of a collection's first slots.

    Attributes:
        room: uint8 [capacity, width], the codes, each plus `ZERO`, followed by spare capacity.
        rows: number of codes.
        step: the component that a code of 1 stands for.
        error: the largest distance of a vector from its decoded code; codes of projections have margins instead.
        integers: multiplier of codes; None if there is none (yet).
        packed: a copy of the first codes, laid out for faster multiplication, in blocks of a multiple of 256 rows.
        longest: upper bound of the projections' lengths.
        margin: the length that a margin of 1 stands for; 0 for codes without margins.
        projection: the projection of vectors before encoding; None for none.
        short: codes of the vectors' projections, which searches use first; None when there are none that help.
        considered: number of vectors when a projection was last computed.
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
    """Return the number of bytes of a code."""
    return -(-dim // _WIDTH) * _WIDTH


def encode_vectors(vectors: Vector, known: Codes | None = None, stop: Callable[[], bool] = lambda: False) -> Codes:
    """Encode vectors, float32 [n, D] of unit length.

    Args:
        vectors: the vectors.
        known: codes of the first of them. They are kept as long as the step suits all vectors; their spare capacity
            and their projection are used again.
        stop: asked between two parts whether to stop.

    Raises:
        StoppedError: `stop` returned True.
    """
    known = known if known is not None else _none(vectors)
    if known.rows:
        largest, longest = _extent(_parts(vectors, known, stop))
        if largest <= MAX_CODE * known.step and (known.projection is None or longest <= known.longest):
            return _coded(vectors, known, stop)
    fresh = replace(_none(vectors, known.projection), integers=known.integers)
    largest, longest = _extent(_parts(vectors, fresh, stop))
    fresh = replace(fresh, step=float(np.float32(_ROOM * max(largest, _SMALLEST) / MAX_CODE)))
    if fresh.projection is not None:
        off, longest = _most_off(fresh), _LONGER * longest
        fresh = replace(fresh, longest=longest, margin=(ERROR_SHARE * (longest + off) + off) / MAX_CODE)
    return replace(_coded(vectors, fresh, stop), short=known.short, considered=known.considered)


def with_short_codes(codes: Codes, vectors: Vector, stop: Callable[[], bool] = lambda: False) -> Codes:
    """Add short codes for all coded vectors, if those make searches faster.

    Args:
        codes: codes of the first vectors. Their short codes are kept.
        vectors: float32 [n, D] of unit length, C-contiguous.
        stop: asked between two parts whether to stop.

    Raises:
        StoppedError: `stop` returned True.
    """
    vectors = vectors[: codes.rows]
    if codes.rows >= _CONSIDERED_AGAIN * max(codes.considered, 1):
        projection = projection_for(vectors)
        short = None if projection is None else replace(_none(vectors, projection), integers=codes.integers)
        codes = replace(codes, short=short, considered=codes.rows)
    if codes.short is None or codes.short.rows == codes.rows:
        return codes
    return replace(codes, short=encode_vectors(vectors, codes.short, stop))


def with_settings_of(codes: Codes, known: Codes) -> Codes:
    """Return codes with the multiplier and the projection of other codes, whose vectors are at other rows."""
    short = None if known.short is None else replace(known.short, rows=0, packed=())
    return replace(codes, integers=known.integers, short=short, considered=known.considered)


def packed(codes: Codes, stop: Callable[[], bool] = lambda: False) -> Codes:
    """Pack codes, all but the last 255 or fewer, if that makes searches faster.

    Args:
        codes: the codes. Packed blocks are kept, except for small ones at the end, which are packed again together
            with the codes added since. If there are short codes, only these are packed, as most searches use them.
        stop: asked between two blocks whether to stop.

    Raises:
        StoppedError: `stop` returned True.
    """
    if codes.short is not None:
        short = packed(codes.short, stop)
        return codes if short is codes.short and not codes.packed else replace(codes, short=short, packed=())
    width, end, blocks = codes.room.shape[1], codes.rows // BLOCK_MULTIPLE * BLOCK_MULTIPLE, list(codes.packed)
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
    """Return the number of threads that pays for so many bytes of codes (vectors have four times as many)."""
    return brute_force.threads_for(queries, size // 4)


def edges(rows: int, threads: int, most: int) -> list[int]:
    """Return the edges of blocks of about `most` rows or fewer: multiples of 256, as many blocks for each thread."""
    parts = min(rows // BLOCK_MULTIPLE, threads * -(-rows // (threads * max(most, BLOCK_MULTIPLE))))
    return [rows // BLOCK_MULTIPLE * part // parts * BLOCK_MULTIPLE for part in range(parts + 1)]


def _none(vectors: Vector, projection: Projection | None = None) -> Codes:
    """Allocate room for codes; pages that were never written take no memory."""
    width = width_of(vectors.shape[1] if projection is None else projection.width + 1)
    return Codes(np.empty((len(vectors) * 3 // 2, width), np.uint8), 0, 0.0, 0.0, projection=projection)


def _parts(vectors: Vector, codes: Codes, stop: Callable[[], bool]) -> Iterator[Vector]:
    """Yield the vectors that have no code yet in parts, projected if the codes are of projections."""
    for begin in range(codes.rows, len(vectors), _CODED_AT_ONCE):
        if stop():
            raise StoppedError
        part = vectors[begin : begin + _CODED_AT_ONCE]
        yield part if codes.projection is None else codes.projection.of_vectors(part)


def _extent(parts: Iterable[Vector]) -> tuple[float, float]:
    """Return the largest absolute component, and an upper bound of the vectors' lengths."""
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
        with np.errstate(invalid="ignore"):  # vectors may be damaged on disk before they have been verified
            room[begin:end, :dim] = rounded + ZERO
            room[begin:end, dim:] = ZERO
            rounded *= np.float32(known.step)
            off = _lengths(rounded - part)
            if known.projection is not None:
                margins = (ERROR_SHARE * _lengths(rounded) + off) / known.margin
                room[begin:end, dim] = np.ceil(margins) + ZERO
        error, begin = max(error, float(off.max())), end
    return replace(known, room=room, rows=len(vectors), error=error)


def _most_off(codes: Codes) -> float:
    """Return the largest possible error of a code: half a step in every component."""
    return 0.5 * codes.step * float(np.sqrt(codes.room.shape[1])) * _SLACK + 1e-6


def _lengths(vectors: Vector) -> Vector:
    """Return upper bounds of the vectors' lengths, float32 [n]."""
    lengths: Vector = np.sqrt(np.einsum("nd,nd->n", vectors, vectors)) * np.float32(_SLACK) + np.float32(1e-6)
    return lengths
