"""Hold vectors in a GPU's memory and find the largest inner products, with `faiss-gpu`."""

from typing import Any

import faiss
import numpy as np

from imagekin.index.search.gpu.device_thread import DeviceVectors
from imagekin.index.vectors.brute_force import Products, Rows
from imagekin.types import Vector

# FAISS's own type hints are incomplete.
_FAISS: Any = faiss
_MAX_K = 2048


def is_built() -> bool:
    """Return True when the installed FAISS supports GPUs."""
    return hasattr(_FAISS, "StandardGpuResources")


def gpu_count() -> int:
    """Return the number of GPUs that FAISS finds; only for a FAISS built with GPU support."""
    return int(_FAISS.get_num_gpus())


def open_gpu() -> "Gpu":
    """Open the first GPU.

    Raises:
        RuntimeError: FAISS cannot use a GPU.
    """
    if not is_built():
        raise RuntimeError("FAISS was built without GPUs")
    if not gpu_count():
        raise RuntimeError("FAISS sees no GPU")
    return Gpu()


class Gpu:
    """The first GPU; implements `imagekin.index.search.gpu.device_thread.Device`."""

    max_k = _MAX_K

    def __init__(self) -> None:
        self._resources = _FAISS.StandardGpuResources()

    def hold(self, vectors: Vector) -> DeviceVectors:
        """Copy vectors into the GPU's memory, in float32."""
        config = _FAISS.GpuIndexFlatConfig()
        config.device = 0
        config.useFloat16 = False
        index = _FAISS.GpuIndexFlatIP(self._resources, vectors.shape[1], config)
        index.add(vectors)
        return _Flat(index)


class _Flat:
    def __init__(self, index: Any) -> None:
        self._index = index

    def top_k(self, queries: Vector, k: int) -> tuple[Products, Rows]:
        products, rows = self._index.search(queries, k)
        return products, rows.astype(np.int64, copy=False)
