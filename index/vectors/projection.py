"""Project vectors onto few components, which are faster to scan, with a bound for the error.

The variance of an encoder's embeddings is usually concentrated in a few dozen directions, around one mean. With an
orthonormal basis B, whose first direction is that of the mean, and P = BBᵀ, the Cauchy–Schwarz inequality gives

    ⟨q, x⟩ = ⟨Bᵀq, Bᵀx⟩ + ⟨q − Pq, x − Px⟩ ≤ ⟨Bᵀq, Bᵀx⟩ + ‖q − Pq‖ ‖x − Px‖.

The right side is an inner product of vectors with one more component. The mean of the vectors' first component,
`level`, adds the same to every product with a query, and is subtracted. The remainder is small and the query's first
component is not; the one is multiplied and the other divided by `scale`, so that both have a similar size. Shorter
vectors have smaller errors when they are encoded (`imagekin.index.vectors.codes`).
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from imagekin.index.vectors import brute_force
from imagekin.types import Vector

# Candidates for the width of a code in bytes, one of which is its margin; multiples suit 8-bit vector instructions.
_WIDTHS = (32, 48, 64, 96, 128, 192, 256)
_SAMPLED, _SAMPLED_COMPONENTS = 8192, 1 << 24
_ASKED = 64
_NEIGHBOURS = 10
# Rounds of subspace iteration towards the principal directions; fewer loosen the bound, but never invalidate it.
_TURNS = 3
_SMALLEST = 1e-3
# Estimated error of a code, relative to the lengths of query and vector.
_CODING_ERROR = 0.008
# Estimated mean absolute component, relative to the largest.
_SPREAD = 0.3
# Cost of a search, in components of codes scanned: per vector besides its code; per candidate, and per component of a
# candidate; and per component of a vector when the search is repeated without codes. The values lie between those
# measured with 4 and with 64 queries.
_ROW_COST, _CANDIDATE_COST, _SCORING_COST, _PLAIN_COST = 100, 10_000, 60, 5
# A projection with a higher share of the cost of plain codes does not justify its memory.
_WORTH_IT = 0.7
_FAISS: Any = faiss


class Projection:
    """A projection of unit vectors. Any number of threads may use it.

    Args:
        basis: float32 [m, D], m orthonormal vectors.
        level: subtracted from the first component of the vectors to search.
        scale: factor of the difference.
        usual: largest residual length ‖x − Px‖ of the vectors that the projection was computed from.

    Attributes:
        width: number of components of a projected vector, m + 1.
        error: bound of the rounding error: an inner product of projections may be below that of the vectors by this
            much, absolutely and relative to the product of the projections' lengths.
    """

    def __init__(self, basis: Vector, level: float, scale: float, usual: float) -> None:
        components, dim = basis.shape
        self.width = components + 1
        # A rotation makes components similar in size, as suits a common step, and leaves inner products unchanged.
        random = np.random.default_rng(0).standard_normal((self.width, self.width))
        mixing = np.linalg.qr(random)[0].astype(np.float32)
        self.error = _precision(self.width, dim) + 4.0 * (_defect(basis) + _defect(mixing))
        self._level, self._scale, self._usual = np.float32(level), np.float32(scale), np.float32(usual)
        self._reducing, self._mixing = _transform(basis), _transform(mixing)

    def of_vectors(self, vectors: Vector) -> Vector:
        """Project the vectors to search, float32 [n, D] of unit length, C-contiguous, to float32 [n, width]."""
        projected = self._reduced(vectors)
        projected[:, 0] = (projected[:, 0] - self._level) * self._scale
        return _applied(self._mixing, projected)

    def of_queries(self, queries: Vector) -> tuple[Vector, NDArray[np.float64]]:
        """Project queries likewise; also return the constant to add to each query's inner products, float64 [N]."""
        projected = self._reduced(queries)
        lacking = projected[:, 0] * np.float64(self._level)
        projected[:, 0] /= self._scale
        return _applied(self._mixing, projected), lacking

    def are_foreign(self, queries: Vector) -> NDArray[np.bool_]:
        """Return which queries have a larger residual than the vectors, so that bounds are loose, bool [N]."""
        foreign: NDArray[np.bool_] = self._reduced(queries)[:, -1] > self._usual
        return foreign

    def _reduced(self, vectors: Vector) -> Vector:
        within = _applied(self._reducing, vectors)
        left = np.einsum("nd,nd->n", vectors, vectors) - np.einsum("nd,nd->n", within, within)
        left = np.sqrt(np.maximum(left, 0.0) + np.float32(self.error))
        return np.concatenate([within, left[:, None]], axis=1)


def _defect(basis: Vector) -> float:
    """Return the deviation of vectors from being orthonormal, ‖BᵀB − I‖."""
    exact = basis.astype(np.float64)
    return float(np.linalg.norm(exact @ exact.T - np.eye(len(basis)), 2))


def _transform(basis: Vector) -> Any:
    transform = _FAISS.LinearTransform(basis.shape[1], len(basis), False)
    _FAISS.copy_array_to_vector(np.ascontiguousarray(basis).reshape(-1), transform.A)
    transform.is_trained = True
    return transform


def _applied(transform: Any, vectors: Vector) -> Vector:
    _FAISS.omp_set_num_threads(1)  # applies to this thread only
    applied = np.empty((len(vectors), transform.d_out), np.float32)
    transform.apply_noalloc(len(vectors), _FAISS.swig_ptr(vectors), _FAISS.swig_ptr(applied))
    return applied


def projection_for(vectors: Vector) -> Projection | None:
    """Compute a projection that makes searching vectors much faster; None if there is none.

    The number of components is chosen by the estimated cost of searching a sample for neighbours of its own vectors:
    a scan of the projections, and the scoring of the candidates that remain.

    Args:
        vectors: float32 [n, D] of unit length, C-contiguous.
    """
    n, dim = vectors.shape
    if dim < _WIDTHS[0] or not n:
        return None
    sample = vectors[np.linspace(0, n - 1, min(n, _SAMPLED, _SAMPLED_COMPONENTS // dim)).astype(np.int64)]
    asked = slice(None, None, -(-len(sample) // _ASKED))
    products = sample[asked] @ sample.T
    if not np.isfinite(products).all():  # damaged on disk, and not verified yet
        return None
    # A query is its own nearest neighbour; a sample has fewer of the others.
    place = min(len(sample), 1 + max(1, round(_NEIGHBOURS * len(sample) / n)))
    thresholds = np.partition(products, -place, axis=1)[:, -place, None]
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
            costs[width] = _cost(width, dim, bounds >= thresholds - precision)
    width = min(costs, key=lambda width: costs[width])
    # The step of codes of the vectors themselves depends on the largest component alone.
    off = np.float32(2.0 * _CODING_ERROR * _SPREAD * np.sqrt(dim) * np.abs(sample).max())
    if costs[width] > _WORTH_IT * _cost(dim, dim, products >= thresholds - off):
        return None
    basis, within = basis[: width - 2], components[:, : width - 2]
    usual = float(np.sqrt(max(1.0 - np.square(within).sum(axis=1).min(), 0.0) + _precision(width, dim)))
    return Projection(basis, level, scale, usual)


def _basis(sample: Vector, size: int) -> Vector:
    """Return orthonormal vectors, float32 [size, D]: the mean's direction, then the principal ones."""
    mean = sample.mean(axis=0, dtype=np.float64)
    mean = mean / max(float(np.linalg.norm(mean)), _SMALLEST)
    random = np.random.default_rng(0).standard_normal((sample.shape[1], size - 1))

    def turned(directions: NDArray[np.float64]) -> NDArray[np.float64]:
        orthonormal, lengths = np.linalg.qr(np.concatenate([mean[:, None], directions], axis=1))
        return orthonormal * np.where(np.diag(lengths) < 0, -1.0, 1.0)  # the first one must not be opposite to the mean

    directions = turned(random)
    for _ in range(_TURNS):
        others = sample.T @ (sample @ directions[:, 1:].astype(np.float32))
        directions = turned(others.astype(np.float64))
    varying = sample @ directions[:, 1:].astype(np.float32)
    order = np.linalg.eigh((varying.T @ varying).astype(np.float64))[1][:, ::-1]
    return turned(directions[:, 1:] @ order).T.astype(np.float32)


def _bounds(components: Vector, asked: slice, level: float, scale: float, precision: np.float32) -> Vector:
    """Estimate the upper bounds of inner products that codes will give, float32 [Q, m].

    Args:
        components: components of unit vectors in a basis, float32 [m, components].
        asked: the vectors that are queries.
        level: as for `Projection`.
        scale: likewise.
        precision: its approximate `error`.
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
    """Return a bound for the rounding error of inner products of projections."""
    return 6.0 * float(np.sqrt(width)) * brute_force.rounding(dim)


def _cost(width: int, dim: int, candidates: NDArray[np.bool_]) -> float:
    """Estimate the cost of a search, in components a vector, from a sample's candidates [Q, m]."""
    shares = candidates.mean(axis=1)
    scoring = shares * (_SCORING_COST * dim + _CANDIDATE_COST)
    after = np.where(shares > brute_force.MAX_CANDIDATE_SHARE, _PLAIN_COST * dim, scoring)
    return width + _ROW_COST + float(after.mean())
