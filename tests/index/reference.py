"""What a collection must answer, said in a dictionary and NumPy: the reference that the tests compare with."""

from collections.abc import Mapping

import numpy as np

from imagekin.index.types import VectorItem
from imagekin.types import Neighbour, Vector


def unit(vectors: Vector) -> Vector:
    """Return vectors of unit length, float32 [N, D]."""
    wide = np.atleast_2d(vectors).astype(np.float64)
    units: Vector = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
    return units


def nearest(items: Mapping[str, VectorItem], query: Vector, k: int) -> list[tuple[str, float]]:
    """Return keys and similarities of the k nearest items, ties by key."""
    keys = sorted(items)
    if not keys:
        return []
    vectors = unit(np.stack([items[key].vector for key in keys])).astype(np.float64)
    similarities = (vectors @ unit(query)[0].astype(np.float64)).astype(np.float32)
    return [(keys[place], float(similarities[place])) for place in np.argsort(-similarities, kind="stable")[:k]]


def assert_agree(found: list[Neighbour], expected: list[tuple[str, float]]) -> None:
    """Assert that an answer is the expected one; only what rounding cannot tell apart may change places."""
    np.testing.assert_allclose([one.similarity for one in found], [value for _, value in expected], atol=2e-6)
    for one, (key, value) in zip(found, expected, strict=True):
        close = {other for other, near in expected if abs(near - value) <= 4e-6}
        last = abs(value - expected[-1][1]) <= 4e-6
        assert one.key == key or one.key in close or last
