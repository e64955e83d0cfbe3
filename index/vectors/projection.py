"""Project vectors onto few components, which are faster to scan, with a bound for the error.

Embeddings of an encoder hardly leave some dozens of directions of their space, and many lie about one mean. With an
orthonormal basis B, whose first direction is that of the mean, and P = BBᵀ, Cauchy and Schwarz say that

    ⟨q, x⟩ = ⟨Bᵀq, Bᵀx⟩ + ⟨q − Pq, x − Px⟩ ≤ ⟨Bᵀq, Bᵀx⟩ + ‖q − Pq‖ ‖x − Px‖.

The right side is an inner product of vectors of one component more. What all vectors have in common of the first
component, `level`, adds the same to every product with a query, and is left out; the rest of it is small, while the
query's is not, so that one is multiplied and the other divided by `scale` until both are of a size. Short vectors make
for small errors when they are coded (`imagekin.index.vectors.codes`).
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from imagekin.index.vectors import brute_force
from imagekin.types import Vector

# Bytes of a code to choose from, one of which is its margin: what integers of 8 bits are multiplied in.
_WIDTHS = (32, 48, 64, 96, 128, 192, 256)
_SAMPLED, _SAMPLED_COMPONENTS = 8192, 1 << 24
_ASKED = 64
_NEIGHBOURS = 10
# Directions are turned towards the principal ones so often; what they lack then, the bound pays for.
_TURNS = 3
_SMALLEST = 1e-3
# By how much the code of one vector is off, as a share of the lengths of both; an estimate. The step of those that are
# searched among suits the longest.
_CODING_ERROR = 0.008
# … and in that of the components, by how much of the largest one they are on average.
_SPREAD = 0.3
# What a search costs, in components of codes that it looks at: every vector besides its code, and those that are scored
# after all, each and by their own components; when they are so many, it goes on without codes, at so much a component.
# Between what was measured of 4 queries and of 64.
_ROW_COST, _CANDIDATE_COST, _SCORING_COST, _PLAIN_COST = 100, 10_000, 60, 5
# A projection that saves less of it is not worth its memory.
_WORTH_IT = 0.7
_FAISS: Any = faiss


class Projection:
    """A projection of unit vectors. Any number of threads may use it.

    Args:
        basis: float32 [m, D], m orthonormal vectors.
        level: what is subtracted from the first component of vectors that are searched among.
        scale: what that is multiplied by.
        usual: what the vectors that it was made for have at most outside of the basis, a length.

    Attributes:
        width: number of components of a projected vector, m + 1.
        error: for want of precision, an inner product of projections may be below that of the vectors nevertheless: by
            this, and by this share of both projections' lengths.
    """

    def __init__(self, basis: Vector, level: float, scale: float, usual: float) -> None:
        components, dim = basis.shape
        self.width = components + 1
        # One step of codes suits components that are alike: they are mixed, which no product notices.
        random = np.random.default_rng(0).standard_normal((self.width, self.width))
        mixing = np.linalg.qr(random)[0].astype(np.float32)
        self.error = _precision(self.width, dim) + 4.0 * (_defect(basis) + _defect(mixing))
        self._level, self._scale, self._usual = np.float32(level), np.float32(scale), np.float32(usual)
        self._reducing, self._mixing = _transform(basis), _transform(mixing)

    def of_vectors(self, vectors: Vector) -> Vector:
        """Return projections, float32 [n, width], of vectors to search among, unit float32 [n, D], C-contiguous."""
        projected = self._reduced(vectors)
        projected[:, 0] = (projected[:, 0] - self._level) * self._scale
        return _applied(self._mixing, projected)

    def of_queries(self, queries: Vector) -> tuple[Vector, NDArray[np.float64]]:
        """Return projections of queries, as `of_vectors`, and what all their inner products with those lack, [N]."""
        projected = self._reduced(queries)
        lacking = projected[:, 0] * np.float64(self._level)
        projected[:, 0] /= self._scale
        return _applied(self._mixing, projected), lacking

    def are_foreign(self, queries: Vector) -> NDArray[np.bool_]:
        """Return of which queries more is outside of the basis than is usual, so that it says little of them, [N]."""
        foreign: NDArray[np.bool_] = self._reduced(queries)[:, -1] > self._usual
        return foreign

    def _reduced(self, vectors: Vector) -> Vector:
        within = _applied(self._reducing, vectors)
        left = np.einsum("nd,nd->n", vectors, vectors) - np.einsum("nd,nd->n", within, within)
        left = np.sqrt(np.maximum(left, 0.0) + np.float32(self.error))
        return np.concatenate([within, left[:, None]], axis=1)


def _defect(basis: Vector) -> float:
    """Return how far vectors are from being orthonormal."""
    exact = basis.astype(np.float64)
    return float(np.linalg.norm(exact @ exact.T - np.eye(len(basis)), 2))


def _transform(basis: Vector) -> Any:
    transform = _FAISS.LinearTransform(basis.shape[1], len(basis), False)
    _FAISS.copy_array_to_vector(np.ascontiguousarray(basis).reshape(-1), transform.A)
    transform.is_trained = True
    return transform


def _applied(transform: Any, vectors: Vector) -> Vector:
    _FAISS.omp_set_num_threads(1)  # counts for this thread alone
    applied = np.empty((len(vectors), transform.d_out), np.float32)
    transform.apply_noalloc(len(vectors), _FAISS.swig_ptr(vectors), _FAISS.swig_ptr(applied))
    return applied


def projection_for(vectors: Vector) -> Projection | None:
    """Return a projection by which vectors are searched much more quickly, None where there is none.

    How many components are best is found by what a sample's vectors, asked for their neighbours in it, would leave to
    be looked at: a pass over the projections, and whoever they cannot rule out.

    Args:
        vectors: float32 [n, D] of unit length, C-contiguous.
    """
    n, dim = vectors.shape
    if dim < _WIDTHS[0] or not n:
        return None
    sample = vectors[np.linspace(0, n - 1, min(n, _SAMPLED, _SAMPLED_COMPONENTS // dim)).astype(np.int64)]
    asked = slice(None, None, -(-len(sample) // _ASKED))
    products = sample[asked] @ sample.T
    if not np.isfinite(products).all():  # they are damaged on disk, and not found out yet
        return None
    # A query is its own nearest neighbour; of the next ones there are fewer in a sample.
    place = min(len(sample), 1 + max(1, round(_NEIGHBOURS * len(sample) / n)))
    bars = np.partition(products, -place, axis=1)[:, -place, None]
    basis = _basis(sample, min(_WIDTHS[-1], dim) - 2)
    components = sample @ basis.T
    level = float(components[:, 0].mean())
    spread = float(np.sqrt(np.square(components[:, 0] - level).mean()))
    scale = float(np.sqrt(max(level, spread, _SMALLEST) / max(spread, _SMALLEST)))
    costs = {}
    for width in _WIDTHS:
        if width <= dim:
            precision = np.float32(_precision(width, dim))
            bounds = _bounds(components[:, : width - 2], asked, level, scale, precision)
            costs[width] = _cost(width, dim, bounds >= bars - precision)
    width = min(costs, key=lambda width: costs[width])
    # Codes of the vectors themselves have the step of the largest component, however little the others need it.
    off = np.float32(2.0 * _CODING_ERROR * _SPREAD * np.sqrt(dim) * np.abs(sample).max())
    if costs[width] > _WORTH_IT * _cost(dim, dim, products >= bars - off):
        return None
    basis, within = basis[: width - 2], components[:, : width - 2]
    usual = float(np.sqrt(max(1.0 - np.square(within).sum(axis=1).min(), 0.0) + _precision(width, dim)))
    return Projection(basis, level, scale, usual)


def _basis(sample: Vector, size: int) -> Vector:
    """Return orthonormal vectors, float32 [size, D]: along the mean, and then as the sample varies most."""
    mean = sample.mean(axis=0, dtype=np.float64)
    mean = mean / max(float(np.linalg.norm(mean)), _SMALLEST)
    random = np.random.default_rng(0).standard_normal((sample.shape[1], size - 1))

    def turned(directions: NDArray[np.float64]) -> NDArray[np.float64]:
        orthonormal, lengths = np.linalg.qr(np.concatenate([mean[:, None], directions], axis=1))
        return orthonormal * np.where(np.diag(lengths) < 0, -1.0, 1.0)  # not against the mean

    directions = turned(random)
    for _ in range(_TURNS):
        others = sample.T @ (sample @ directions[:, 1:].astype(np.float32))
        directions = turned(others.astype(np.float64))
    varying = sample @ directions[:, 1:].astype(np.float32)
    order = np.linalg.eigh((varying.T @ varying).astype(np.float64))[1][:, ::-1]
    return turned(directions[:, 1:] @ order).T.astype(np.float32)


def _bounds(components: Vector, asked: slice, level: float, scale: float, precision: np.float32) -> Vector:
    """Return about what codes will say of inner products at the most, float32 [Q, m].

    Args:
        components: of unit vectors by a basis, float32 [m, components].
        asked: those that are queries.
        level: as of a `Projection`.
        scale: likewise.
        precision: about its `error`.
    """
    squares = np.square(components)
    left = np.sqrt(np.maximum(1.0 - squares.sum(axis=1), 0.0) + precision)
    others = squares[:, 1:].sum(axis=1) + np.square(left)
    lengths = np.sqrt(others + np.square(np.float32(scale) * (components[:, 0] - np.float32(level))))
    off = np.float32(_CODING_ERROR) * (lengths + lengths.max())
    queries = np.sqrt(others + squares[:, 0] / np.float32(scale**2))[asked]
    bounds: Vector = components[asked] @ components.T + left[asked, None] * left + queries[:, None] * off
    return bounds


def _precision(width: int, dim: int) -> float:
    """Return how far inner products of projections may be off for want of precision."""
    return 6.0 * float(np.sqrt(width)) * brute_force.rounding(dim)


def _cost(width: int, dim: int, candidates: NDArray[np.bool_]) -> float:
    """Estimate the cost of a search, in components a vector, from a sample's candidates [Q, m]."""
    shares = candidates.mean(axis=1)
    after = np.where(shares > brute_force.CROWD, _PLAIN_COST * dim, shares * (_SCORING_COST * dim + _CANDIDATE_COST))
    return width + _ROW_COST + float(after.mean())
