"""What may enter a collection: names, keys, labels, payloads, hashes and vectors, each checked once at the door.

Every function returns the value in the form in which it is stored, or raises InvalidArgumentError in one line.
"""

import re

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoder.errors import InvalidArgumentError
from index.types import Vector
from sources.values import MAX_PAYLOAD_BYTES as MAX_PAYLOAD_BYTES
from sources.values import key as key
from sources.values import keys as keys
from sources.values import label as label
from sources.values import payload_text as payload_text
from sources.values import text_bytes

MAX_SPACE_BYTES = 128
MAX_DIM = 65_536
MAX_K = 10_000
# … of a search that has a least similarity.
MAX_WITHIN = 1_000_000
INDEX_KINDS = ("auto", "flat", "hnsw", "ivf", "pq")

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_HASH_BYTES = 32
# A vector this close to unit length is stored bit for bit, so that what comes out can go in again unchanged.
_UNIT_TOLERANCE = 1e-6


def collection_name(name: str) -> str:
    """Return `name` when it can name a collection (and therefore can never lead out of the data folder)."""
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"{name[:80]!r} cannot name a collection: use 1 to 64 of a-z, 0-9, '_' and '-', beginning with a letter or"
            " digit",
            field="name",
        )
    return name


def content_hash(value: bytes | None) -> bytes | None:
    """Return the hash, None for an empty one; else it must be the 32 bytes of a SHA-256."""
    if not value:
        return None
    if len(value) != _HASH_BYTES:
        raise InvalidArgumentError(
            f"a content hash is the {_HASH_BYTES} bytes of a SHA-256, this one has {len(value)}", field="content_hash"
        )
    return bytes(value)


def space(value: str) -> str:
    """Return the id of an embedding space: 1 to 128 bytes of UTF-8 without control characters."""
    if not 1 <= text_bytes(value, "space") <= MAX_SPACE_BYTES:
        raise InvalidArgumentError(f"the id of an embedding space has 1 to {MAX_SPACE_BYTES} bytes", field="space")
    return value


def dim(value: int) -> int:
    """Return the number of components of a vector, 1 to 65,536."""
    if not 1 <= value <= MAX_DIM:
        raise InvalidArgumentError(f"dim must be 1 to {MAX_DIM}, it is {value}", field="dim")
    return value


def neighbours(k: int, most: int = MAX_K) -> int:
    """Return the number of neighbours to find, 1 to `most`."""
    if not 1 <= k <= most:
        raise InvalidArgumentError(f"k must be 1 to {most}, it is {k}", field="k")
    return k


def index_kind(value: str) -> str:
    """Return the kind of index to keep."""
    if value not in INDEX_KINDS:
        raise InvalidArgumentError(
            f"{value[:80]!r} is no kind of index here: use {' or '.join(INDEX_KINDS)}", field="index_kind"
        )
    return value


def unit_vectors(values: ArrayLike, dim: int) -> Vector:
    """Return vectors at unit length.

    Args:
        values: numbers of shape [N, D], or [D] for one vector.
        dim: the D that is expected.

    Returns:
        float32 [N, D], C-contiguous.

    Raises:
        InvalidArgumentError: another shape, a component that is not finite in float32, a zero vector.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            vectors = np.ascontiguousarray(np.atleast_2d(np.asarray(values, dtype=np.float32)))
        except (TypeError, ValueError):
            raise InvalidArgumentError(f"vectors must be numbers of shape [N, {dim}]", field="vector") from None
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise InvalidArgumentError(
                f"vectors must have {dim} components, these have shape {list(vectors.shape)}", field="vector"
            )
        # float64, so that neither large nor tiny components overflow or vanish in their squares.
        norms: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if bad.size:
        what = "is all zero" if norms[bad[0]] == 0 else "has a component that is not finite"
        raise InvalidArgumentError(f"vector {bad[0]} {what}", field="vector")
    off = np.flatnonzero(np.abs(norms - 1) > _UNIT_TOLERANCE)
    if off.size:
        vectors = vectors.copy()
        vectors[off] = vectors[off] / norms[off, None]
    return vectors
