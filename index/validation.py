"""Validate names, keys, labels, payloads, hashes and vectors before they enter a collection.

Every function returns the value in the form in which it is stored, or raises InvalidArgumentError in one line.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.index.types import MAX_K as MAX_K
from imagekin.index.types import ClassifyOptions, SearchOptions
from imagekin.sources.values import MAX_PAYLOAD_BYTES as MAX_PAYLOAD_BYTES
from imagekin.sources.values import key as key
from imagekin.sources.values import keys as keys
from imagekin.sources.values import label as label
from imagekin.sources.values import payload_text as payload_text
from imagekin.sources.values import text_bytes
from imagekin.types import Vector

MAX_SPACE_BYTES = 128
MAX_DIM = 65_536
# Largest k of a search with a least similarity, in the local store.
MAX_WITHIN = 1_000_000
# Largest k of a search for diverse neighbours.
MAX_DIVERSE = 200
INDEX_KINDS = ("auto", "flat", "hnsw", "ivf", "pq")

COLLECTION_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_HASH_BYTES = 32
# A vector this close to unit length is stored unchanged, so that a vector read from a collection can be stored again.
_UNIT_TOLERANCE = 1e-6


def collection_name(name: str) -> str:
    """Return `name` if it is valid for a collection (and therefore a path inside the data folder)."""
    if not COLLECTION_NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"{name[:80]!r} cannot name a collection: use 1 to 64 of a-z, 0-9, '_' and '-', beginning with a letter or"
            " digit",
            field="name",
        )
    return name


def content_hash(value: bytes | None) -> bytes | None:
    """Return the hash, which must be the 32 bytes of a SHA-256; None for an empty one."""
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
    """Return the kind of index, one of `INDEX_KINDS`."""
    if value not in INDEX_KINDS:
        raise InvalidArgumentError(
            f"{value[:80]!r} is no kind of index here: use {' or '.join(INDEX_KINDS)}", field="index_kind"
        )
    return value


def unit_vectors(values: ArrayLike, dim: int) -> Vector:
    """Scale vectors to unit length.

    Args:
        values: numbers of shape [N, D], or [D] for one vector.
        dim: the expected D.

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
        # In float64, so that squares neither overflow nor underflow.
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


def search(values: Vector, options: SearchOptions, dim: int, most_within: int = MAX_K) -> Vector:
    """Check a search, and return its queries at unit length, float32 [N, dim].

    Args:
        values: the queries, [N, dim].
        options: the options to check.
        dim: number of components.
        most_within: largest k of a search with a least similarity.

    Raises:
        InvalidArgumentError: a query or an option is out of its range.
    """
    bounded = options.min_similarity is not None and not (options.group_by or options.diversity)
    neighbours(options.k, most_within if bounded else MAX_K)
    in_range("min_similarity", options.min_similarity, -1.0, 1.0)
    in_range("group_size", options.group_size, 1, 100)
    in_range("diversity", options.diversity, 0.0, 1.0)
    if options.diversity:
        in_range("k", options.k, 1, MAX_DIVERSE)
    units = queries(values, dim)
    _per_query("exclude", options.exclude, len(units))
    return units


def classification(values: Vector, options: ClassifyOptions, dim: int) -> Vector:
    """Check a classification, and return its queries at unit length, float32 [N, dim].

    Raises:
        InvalidArgumentError: a query or an option is out of its range.
    """
    neighbours(options.k)
    in_range("min_similarity", options.min_similarity, -1.0, 1.0)
    in_range("min_confidence", options.min_confidence, 0.0, 1.0)
    if not (math.isfinite(options.temperature) and options.temperature > 0):
        raise InvalidArgumentError(
            f"temperature must be greater than 0, it is {options.temperature}", field="temperature"
        )
    units = queries(values, dim)
    _per_query("exclude_hashes", options.exclude_hashes, len(units))
    _per_query("exclude_keys", options.exclude_keys, len(units))
    return units


def queries(values: Vector, dim: int) -> Vector:
    """Return queries at unit length, float32 [N, dim]; there may be none."""
    try:
        return unit_vectors(np.asarray(values).reshape(-1, dim) if not len(values) else values, dim)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"query {error}", field="queries") from None


def in_range(field: str, value: float | None, low: float, high: float) -> None:
    """Raise InvalidArgumentError unless a value is None, or from `low` to `high`."""
    if value is not None and not low <= value <= high:
        raise InvalidArgumentError(f"{field} must be {low:g} to {high:g}, it is {value:g}", field=field)


def same_space(collection: str, own: str, other: str) -> None:
    """Raise FailedPreconditionError, naming both, if a collection's embedding space is not the other one."""
    if other != own:
        raise FailedPreconditionError(
            f"collection {collection!r} holds embeddings of space {own!r}, not of {other!r}: use the model"
            " that made it, or index the images again into a new collection"
        )


def _per_query(field: str, values: Sequence[object], count: int) -> None:
    if len(values) not in (0, count):
        raise InvalidArgumentError(
            f"{field} must have one entry per query ({count}), it has {len(values)}", field=field
        )
