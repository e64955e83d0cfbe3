"""Lay neighbours out in two dimensions with UMAP."""

import numpy as np
from numpy.typing import NDArray

from imagekin.index.maps.neighbours import Distances, Ids
from imagekin.index.maps.settings import MapSettings
from imagekin.types import Vector

# As UMAP's authors do: small data need more epochs to settle.
_EPOCHS, _EPOCHS_OF_MANY, _MANY = 500, 200, 10_000
_FEW = 8


def lay_out(vectors: Vector, distances: Distances, ids: Ids, settings: MapSettings) -> NDArray[np.float64]:
    """Return a position for each vector; the same seed gives the same ones.

    Args:
        vectors: float32 [n, m].
        distances: float32 [n, k] to the neighbours, without itself.
        ids: int32 [n, k], the neighbours' numbers.
        settings: the map's settings.

    Returns:
        float64 [n, 2].

    Raises:
        ModuleNotFoundError: umapers is not installed.
    """
    rows = len(vectors)
    if rows < _FEW:
        angles = 2 * np.pi * np.arange(rows) / max(1, rows)
        return np.stack((np.cos(angles), np.sin(angles)), axis=1)
    from umapers import Umap

    model = Umap(
        n_neighbors=ids.shape[1],
        min_dist=settings.min_distance,
        n_epochs=_EPOCHS if rows <= _MANY else _EPOCHS_OF_MANY,
        random_seed=settings.seed,
        init="spectral",
    )
    found = model.fit_transform_with_knn(vectors, ids.astype(np.int64), distances)
    return np.nan_to_num(np.asarray(found, np.float64))
