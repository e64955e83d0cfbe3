"""Reduce vectors to a few 8-bit integers, for approximate indexes.

Most of the variance of embeddings lies along a few principal components. Distances along these alone, rounded to 8
bits, find candidates in less time; candidates are then scored exactly. Vectors that vary in every direction gain
nothing and are not reduced.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from imagekin.types import Vector

# FAISS multiplies 8-bit codes of a multiple of this width as integers.
_WIDTH = 16
# The principal components of longer vectors would take too long to compute.
_LONGEST = 2048
# Reducing pays when at most this share of the components is left.
_WORTH_IT = 0.75
# Share of the variance that may be dropped.
_LEFT_OUT = 0.03
_FITTED_TO = 8_192
_MOST = 127
# Room for coordinates that are slightly larger than those of the sample; larger ones are clipped.
_ROOM = 1.03
_SMALLEST = 1e-6
# FAISS's own type hints are incomplete.
_FAISS: Any = faiss


@dataclass(frozen=True, slots=True, eq=False)
class Coordinates:
    """A quantiser of vectors to integers from -127 to 127.

    Attributes:
        transform: FAISS's linear transform to the components kept, in units of one step.
    """

    transform: Any

    @property
    def width(self) -> int:
        """Number of integers of a vector."""
        return int(self.transform.d_out)

    def of(self, vectors: Vector) -> Vector:
        """Return the integers of vectors, float32 [n, width]."""
        found = np.empty((len(vectors), self.width), np.float32)
        self.transform.apply_noalloc(len(vectors), _FAISS.swig_ptr(vectors), _FAISS.swig_ptr(found))
        np.rint(found, out=found)
        return np.clip(found, -_MOST, _MOST, out=found)


def fit_coordinates(vectors: Vector) -> Coordinates | None:
    """Fit coordinates to vectors, float32 [n, D]; None when reducing does not pay."""
    dim = vectors.shape[1]
    if dim > _LONGEST:
        return None
    sample = vectors[:: max(1, len(vectors) // _FITTED_TO)].astype(np.float64)
    mean = sample.mean(axis=0)
    sample -= mean
    variances, directions = np.linalg.eigh(sample.T @ sample)
    # Variances are ascending: the components to drop come first.
    left_out = min(int(np.count_nonzero(np.cumsum(variances) <= _LEFT_OUT * variances.sum())), dim - 1)
    width = -(-(dim - left_out) // _WIDTH) * _WIDTH
    if width > _WORTH_IT * dim:
        return None
    # The largest variances come last.
    directions = directions[:, -width:]
    largest = max(float(np.abs(sample @ directions).max()), _SMALLEST)
    matrix = directions.T * (_MOST / (_ROOM * largest))
    transform = _FAISS.LinearTransform(dim, width, True)
    _FAISS.copy_array_to_vector(matrix.astype(np.float32).reshape(-1), transform.A)
    _FAISS.copy_array_to_vector((-matrix @ mean).astype(np.float32), transform.b)
    transform.is_trained = True
    return Coordinates(transform)
