"""Find the neighbours of a map's landmarks among themselves, and of other items among the landmarks.

A map shows who is near whom and not how near, so the vectors are projected onto their principal components, and above
some thousands searched by FAISS's inverted lists, which gives the same neighbours on every run.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from imagekin.errors import DataLossError
from imagekin.index.maps.archives import read_arrays, write_arrays
from imagekin.index.storage.columns import ColumnSnapshot, Slots
from imagekin.types import Vector

_COMPONENTS = 64
_SAMPLED = 20_000
_EXACT_TO = 10_000
_AT_ONCE = 4_096
_SAVE_SECONDS = 10.0
_FAISS: Any = faiss

Ids = NDArray[np.int32]
Distances = NDArray[np.float32]


class Landmarks:
    """The landmarks' vectors, projected and ready to be searched.

    Args:
        snapshot: the collection.
        slots: the landmarks.
        seed: which of them the components are computed from, where they are many.
    """

    def __init__(self, snapshot: ColumnSnapshot, slots: Slots, seed: int) -> None:
        self._snapshot = snapshot
        size = min(len(slots), _SAMPLED)
        sample = snapshot.vectors[np.sort(np.random.default_rng(seed).choice(slots, size, replace=False))]
        self._mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = sample - self._mean
        _, basis = np.linalg.eigh((centred.T @ centred).astype(np.float64))
        self._basis = np.ascontiguousarray(basis[:, ::-1][:, :_COMPONENTS], np.float32)
        self.vectors = self.project(slots)
        rows, width = self.vectors.shape
        self._index: Any = _FAISS.IndexFlatL2(width)
        if rows > _EXACT_TO:
            lists = int(4 * np.sqrt(rows))
            self._coarse = self._index  # FAISS keeps no reference to it
            self._index = _FAISS.IndexIVFFlat(self._coarse, width, lists)
            self._index.train(self.vectors)
            self._index.nprobe = max(16, lists // 40)
        self._index.add(self.vectors)

    def project(self, slots: Slots) -> Vector:
        """Return the principal components of slots, float32 [n, m]."""
        projected = np.empty((len(slots), self._basis.shape[1]), np.float32)
        for begin in range(0, len(slots), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            projected[part] = (self._snapshot.vectors[slots[part]] - self._mean) @ self._basis
        return projected

    def nearest(self, vectors: Vector, k: int) -> tuple[Distances, Ids]:
        """Return the `k` nearest landmarks of projected vectors by number, and their distances; `k` of them exist."""
        squares, ids = self._index.search(vectors, k)
        # The lists that were searched hold too few, as of vectors that are copies of one another.
        few = np.flatnonzero((ids < 0).any(axis=1))
        if len(few):
            squares[few], ids[few] = _FAISS.knn(vectors[few], self.vectors, k)
        distances: Distances = np.sqrt(np.maximum(squares, 0.0))
        return distances, ids.astype(np.int32)


def of_landmarks(
    landmarks: Landmarks, k: int, kept: Path, title: str, advance: Callable[[int], object]
) -> tuple[Distances, Ids]:
    """Return the `k` nearest other landmarks of each landmark.

    Args:
        landmarks: the landmarks.
        k: number of neighbours.
        kept: file that holds what has been found so far; a later run of the same title goes on from there.
        title: names the landmarks and how they are searched.
        advance: called with the number of landmarks done since the last call.
    """
    rows = len(landmarks.vectors)
    key = hashlib.sha256(f"{title}/{rows}/{k}".encode()).digest()
    distances, ids = np.zeros((rows, k), np.float32), np.zeros((rows, k), np.int32)
    done = _read_kept(kept, key, distances, ids)
    advance(done)
    saved = time.monotonic()
    for begin in range(done, rows, _AT_ONCE):
        part = slice(begin, min(begin + _AT_ONCE, rows))
        distances[part], ids[part] = _without_itself(*landmarks.nearest(landmarks.vectors[part], k + 1), begin)
        advance(part.stop - begin)
        if time.monotonic() - saved > _SAVE_SECONDS or part.stop == rows:
            done = part.stop
            write_arrays(kept, {"key": np.frombuffer(key, np.uint8), "distances": distances[:done], "ids": ids[:done]})
            saved = time.monotonic()
    return distances, ids


def _read_kept(kept: Path, key: bytes, distances: Distances, ids: Ids) -> int:
    """Fill in what an earlier run has found; return how many rows that are."""
    with contextlib.suppress(FileNotFoundError, DataLossError):
        held = read_arrays(kept, {"key": np.uint8, "distances": np.float32, "ids": np.int32})
        done = len(held["ids"])
        if held["key"].tobytes() == key and held["ids"].shape == held["distances"].shape == (done, ids.shape[1]):
            distances[:done], ids[:done] = held["distances"], held["ids"]
            return done
    return 0


def _without_itself(distances: Distances, ids: Ids, begin: int) -> tuple[Distances, Ids]:
    """Leave out each row's own number, or the last one where it is not among many equal vectors."""
    rows, width = ids.shape
    own = ids == np.arange(begin, begin + rows, dtype=np.int32)[:, None]
    own[~own.any(axis=1), width - 1] = True
    return distances[~own].reshape(rows, width - 1), ids[~own].reshape(rows, width - 1)
