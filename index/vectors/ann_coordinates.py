"""Vectors as few small integers, close enough to propose neighbours by.

Embeddings seldom use all of their components: most of what sets them apart lies along a few directions (principal
components), the more so the better they were trained. Distances along those alone, rounded to 8 bits, name candidates
in less time; candidates are scored exactly. Vectors that differ in every direction gain nothing, and have no such
coordinates.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from imagekin.types import Vector

# FAISS multiplies 8-bit codes of such a width as integers.
_WIDTH = 16
# Longer vectors would take too long to analyse.
_LONGEST = 2048
# As many integers as this share of the components, or fewer, are worth it.
_WORTH_IT = 0.75
# Share of the variance that may be left out.
_LEFT_OUT = 0.03
_FITTED_TO = 8_192
_MOST = 127
# A little larger coordinates than were seen keep their value; those beyond are cut.
_ROOM = 1.03
_SMALLEST = 1e-6
# FAISS's own type hints lack much of what is used here.
_FAISS: Any = faiss


@dataclass(frozen=True, slots=True, eq=False)
class Coordinates:
    """A quantiser of vectors to integers from -127 to 127.

    Attributes:
        transform: FAISS's linear transform to as many components as are kept, in units of one step.
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


def fitted(vectors: Vector) -> Coordinates | None:
    """Return coordinates for vectors that resemble those given, float32 [n, D]; None when they are not worth it."""
    dim = vectors.shape[1]
    if dim > _LONGEST:
        return None
    sample = vectors[:: max(1, len(vectors) // _FITTED_TO)].astype(np.float64)
    mean = sample.mean(axis=0)
    sample -= mean
    variances, directions = np.linalg.eigh(sample.T @ sample)
    # Ascending: what may be left out comes first.
    left_out = min(int(np.count_nonzero(np.cumsum(variances) <= _LEFT_OUT * variances.sum())), dim - 1)
    width = -(-(dim - left_out) // _WIDTH) * _WIDTH
    if width > _WORTH_IT * dim:
        return None
    # The largest variances last, as many as there is room for.
    directions = directions[:, -width:]
    largest = max(float(np.abs(sample @ directions).max()), _SMALLEST)
    matrix = directions.T * (_MOST / (_ROOM * largest))
    transform = _FAISS.LinearTransform(dim, width, True)
    _FAISS.copy_array_to_vector(matrix.astype(np.float32).reshape(-1), transform.A)
    _FAISS.copy_array_to_vector((-matrix @ mean).astype(np.float32), transform.b)
    transform.is_trained = True
    return Coordinates(transform)
