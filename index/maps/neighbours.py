"""Find the neighbours of a map's landmarks among themselves, and of other items among the landmarks.

Above some thousands, FAISS's inverted lists over the first principal components propose neighbours, and the vectors
themselves decide among them. Both give the same neighbours on every run, in one thread or several.
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

_COMPONENTS = 128
_SAMPLED, _TURNS = 8_192, 4
_EXACT_TO = 10_000
_AT_ONCE = 4_096
# Neighbours that the components propose for each that is wanted, and how many rows are compared at a time.
_PROPOSED, _COMPARED_AT_ONCE = 3, 64
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
        self.slots = slots
        random = np.random.default_rng(seed)
        sample = snapshot.vectors[np.sort(random.choice(slots, min(len(slots), _SAMPLED), replace=False))]
        self._mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._basis = _principal_components(sample - self._mean, random)
        self._whole = self._basis.shape[1] == snapshot.vectors.shape[1]
        self.vectors = self._project(slots)
        rows, width = self.vectors.shape
        self._index: Any = _FAISS.IndexFlatL2(width)
        if rows > _EXACT_TO:
            lists = int(4 * np.sqrt(rows))
            self._coarse = self._index  # FAISS keeps no reference to it
            self._index = _FAISS.IndexIVFFlat(self._coarse, width, lists)
            self._index.cp.min_points_per_centroid = 1
            self._index.train(self.vectors)
            self._index.nprobe = max(16, lists // 16)
        self._index.add(self.vectors)

    def nearest(self, slots: Slots, k: int) -> tuple[Distances, Ids]:
        """Return the `k` nearest landmarks of slots by number, and their distances; so many exist."""
        vectors = self._project(slots)
        wanted = k if self._whole else min(_PROPOSED * k, len(self.slots))
        squares, ids = self._index.search(vectors, wanted)
        # The lists that were searched hold too few, as of vectors that are copies of one another.
        few = np.flatnonzero((ids < 0).any(axis=1))
        if len(few):
            squares[few], ids[few] = _FAISS.knn(vectors[few], self.vectors, wanted)
        if not self._whole:
            squares, ids = self._compare(slots, ids, k)
        return np.sqrt(np.maximum(squares, 0.0)).astype(np.float32), ids.astype(np.int32)

    def _compare(self, slots: Slots, ids: NDArray[np.int64], k: int) -> tuple[Distances, NDArray[np.int64]]:
        """Return the `k` nearest of the proposed landmarks by the vectors themselves, and their squared distances."""
        vectors = self._snapshot.vectors
        squares, found = np.empty((len(ids), k), np.float32), np.empty((len(ids), k), np.int64)
        for begin in range(0, len(ids), _COMPARED_AT_ONCE):
            part = slice(begin, begin + _COMPARED_AT_ONCE)
            others = np.take(vectors, self.slots[ids[part]], axis=0)
            apart = 2.0 - 2.0 * np.einsum("nmd,nd->nm", others, vectors[slots[part]])
            order = np.argsort(apart, axis=1, kind="stable")[:, :k]
            squares[part] = np.take_along_axis(apart, order, axis=1)
            found[part] = np.take_along_axis(ids[part], order, axis=1)
        return squares, found

    def _project(self, slots: Slots) -> Vector:
        """Return the principal components of slots, float32 [n, m]."""
        projected = np.empty((len(slots), self._basis.shape[1]), np.float32)
        for begin in range(0, len(slots), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            projected[part] = (self._snapshot.vectors[slots[part]] - self._mean) @ self._basis
        return projected


def _principal_components(centred: Vector, random: np.random.Generator) -> Vector:
    """Return an orthonormal basis of the directions of most variance, float32 [D, m], by subspace iteration."""
    dim = centred.shape[1]
    if dim <= _COMPONENTS:
        return np.eye(dim, dtype=np.float32)
    basis = random.normal(size=(dim, _COMPONENTS)).astype(np.float32)
    for _ in range(_TURNS):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    return np.ascontiguousarray(basis, np.float32)


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
        distances[part], ids[part] = _without_itself(*landmarks.nearest(landmarks.slots[part], k + 1), begin)
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
