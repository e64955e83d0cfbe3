"""Shared parts of the sections of bench/search.py: vectors, collections, FAISS with its defaults, and results."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

# What FAISS does when nobody sets it; imagekin.index.vectors.brute_force does.
FAISS: Any = faiss
BLAS_DEFAULT = FAISS.cvar.distance_compute_blas_threshold
CORES = FAISS.omp_get_max_threads()

from bench.harness import Target  # noqa: E402
from imagekin.index.local.catalog import Catalog  # noqa: E402
from imagekin.index.local.collection import LocalCollection  # noqa: E402
from imagekin.index.types import SearchOptions, VectorItem  # noqa: E402

Vectors = NDArray[np.float32]
K = 10
OURS = SearchOptions(k=K)


@dataclass(slots=True)
class Result:
    """Result of a section: rows of the table, targets, figures by name."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str, bound: float | None = None, at_least: bool = True) -> None:
        """Add a figure, with its target if it has one."""
        self.rows.append((name, f"{value:,.4g} {unit}".strip()))
        self.figures[name] = value
        if bound is not None:
            self.targets.append(Target(name, value, bound, at_least))


def unit_vectors(count: int, dim: int, seed: int = 0, clusters: int = 0) -> Vectors:
    """Return random vectors of unit length, float32 [count, dim], around so many centres."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, dim), dtype=np.float32)
    if clusters:
        centres = np.random.default_rng(99).standard_normal((clusters, dim), dtype=np.float32)
        vectors *= 0.6
        vectors += centres[random.integers(0, clusters, count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def fill(
    catalog: Catalog, vectors: Vectors, kind: str = "flat", name: str = "bench", space: str = "bench"
) -> LocalCollection:
    """Return a collection of vectors under the keys `0`, `1` …."""
    collection = catalog.create(name, space=space, dim=vectors.shape[1], index_kind=kind)
    for begin in range(0, len(vectors), 5000):
        rows = vectors[begin : begin + 5000]
        collection.upsert([VectorItem(str(begin + n), row, f"c{(begin + n) % 100}") for n, row in enumerate(rows)])
    return collection


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def as_people_call_it(index: Any, queries: Vectors) -> Any:
    """Search FAISS with its own defaults."""
    FAISS.cvar.distance_compute_blas_threshold = BLAS_DEFAULT
    FAISS.omp_set_num_threads(CORES)
    try:
        return index.search(queries, K)[1]
    finally:
        FAISS.cvar.distance_compute_blas_threshold = 1


def synced(path: Path) -> float:
    """Return the seconds that the disk takes to append and sync 4 KiB, the least time of any durable write."""
    with path.open("wb", buffering=0) as file:

        def append() -> None:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())

        return statistics.median(timed(append) for _ in range(200))


def sgemm_peak() -> float:
    """Return this machine's float32 rate for large matrices, in GFLOP/s."""
    side = 3072
    one, other = unit_vectors(side, side), unit_vectors(side, side, 1)
    seconds = min(timed(lambda: one @ other) for _ in range(6))
    return 2 * side**3 / seconds / 1e9


def sgemm_for(queries: Vectors, vectors: Vectors) -> float:
    """Return the GFLOP/s of the same multiplication alone, in NumPy's best block size on this machine."""
    columns, best = np.ascontiguousarray(queries.T), 0.0
    for rows in (1024, 4096, 16_384, len(vectors)):
        products = np.empty((rows, len(queries)), np.float32)

        def multiply(rows: int = rows, products: Vectors = products) -> None:
            for begin in range(0, len(vectors) - rows + 1, rows):
                np.matmul(vectors[begin : begin + rows], columns, out=products)

        done = len(vectors) // rows * rows * 2 * queries.size
        best = max(best, done / min(timed(multiply) for _ in range(6)) / 1e9)
    return best
