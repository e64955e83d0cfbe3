"""A device for machines without one: a real FAISS index, with the limits of a GPU's imposed on it.

One thread alone may call it and let go of what it holds, it finds at most 2,048 neighbours, knows nothing of filters or
dead slots, and its memory may run out.
"""

import threading
from typing import Any

import faiss
import numpy as np
import pytest

from imagekin.index.local.maintenance import Maintenance
from imagekin.index.search.gpu.device_thread import DeviceVectors
from imagekin.index.vectors.brute_force import Products, Rows
from imagekin.types import Vector

MOST = 2048
# FAISS's own type hints lack much of what is used here.
_FAISS: Any = faiss


class LimitedDevice:
    """See `imagekin.index.search.gpu.device_thread.Device`; made in the thread that may call it.

    Args:
        memory: vectors that it has room for.
        noise: how far its inner products are off.
    """

    max_k = MOST

    def __init__(self, memory: int = 1 << 30, noise: float = 0.0) -> None:
        self.thread = threading.get_ident()
        self.memory = memory
        self.noise = noise
        self.held = 0
        self.asked: list[tuple[int, int]] = []
        self.strangers: list[str] = []
        self.broken = False

    def hold(self, vectors: Vector) -> DeviceVectors:
        self.check("hold")
        if self.held + len(vectors) > self.memory:
            raise RuntimeError("Error in cudaMalloc at gpu.cu:1: Error: 'err == cudaSuccess' failed: out of memory")
        return LimitedVectors(self, vectors)

    def check(self, what: str) -> None:
        if threading.get_ident() != self.thread:
            self.strangers.append(what)


class LimitedVectors:
    """See `imagekin.index.search.gpu.device_thread.DeviceVectors`."""

    def __init__(self, device: LimitedDevice, vectors: Vector) -> None:
        self._device = device
        self._index = _FAISS.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)
        device.held += len(vectors)

    def top_k(self, queries: Vector, k: int) -> tuple[Products, Rows]:
        self._device.check("top_k")
        if k > MOST:
            raise RuntimeError(f"GPU index only supports min/max-K selection up to {MOST} (requested {k})")
        if self._device.broken:
            raise RuntimeError("CUDA error 700 an illegal memory access was encountered")
        self._device.asked.append((len(queries), k))
        products, rows = self._index.search(queries, k)
        noise = np.random.default_rng(0).uniform(-self._device.noise, self._device.noise, products.shape)
        order = np.argsort(-(products + noise), axis=1, kind="stable")
        return np.take_along_axis((products + noise).astype(np.float32), order, axis=1), np.take_along_axis(
            rows, order, axis=1
        )

    def __del__(self) -> None:
        self._device.check("let go")
        self._device.held -= self._index.ntotal


def install(patch: pytest.MonkeyPatch, memory: int = 1 << 30, noise: float = 0.0) -> list[LimitedDevice]:
    """Let `device="cuda"` be such a device; return those that are opened, as they are."""
    opened: list[LimitedDevice] = []

    def open_gpu() -> LimitedDevice:
        opened.append(LimitedDevice(memory, noise))
        return opened[-1]

    patch.setattr("imagekin.index.search.gpu.faiss_gpu.open_gpu", open_gpu)
    return opened


def seal_at_once(patch: pytest.MonkeyPatch) -> None:
    """Let every other write be followed by sealing, and however little is sealed be searched on the device."""
    patch.setattr("imagekin.index.local.maintenance.RESIDENT_FROM", 1)

    def consider(upkeep: Maintenance, sequence: int) -> None:
        if sequence % 2:
            upkeep.seal()
            upkeep._update_resident(lambda: False)

    patch.setattr(Maintenance, "consider", consider)
