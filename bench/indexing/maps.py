"""Measure `imagekin map`: processor time, memory, what a browser loads, and how well neighbours stay together.

    python -m bench.indexing.maps [--vectors FILE.npy --labels LABELS.npy] --count N [--dim D] [--folder DIR]

Without a file, the vectors are those of clusters in D dimensions. More vectors than the file has are its vectors again,
each a little off. How well neighbours stay together is the share of an item's ten nearest that have its label, on
the map and among the vectors themselves, over 2,000 items.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from imagekin.index.local.catalog import Catalog
from imagekin.index.types import VectorItem
from imagekin.types import Vector

_AT_ONCE = 5_000
_ASKED = 2_000


def clusters(count: int, dim: int) -> tuple[Vector, NDArray[np.int64]]:
    """Return vectors of a hundred clusters, and their clusters."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(100, dim)).astype(np.float32)
    labels = random.integers(0, 100, count)
    vectors = centres[labels]
    for begin in range(0, count, _AT_ONCE):
        part = vectors[begin : begin + _AT_ONCE]
        part += random.normal(0, 0.6, part.shape).astype(np.float32)
    return vectors, labels


def grown(vectors: Vector, labels: NDArray[np.int64], count: int) -> tuple[Vector, NDArray[np.int64]]:
    """Return so many vectors: those given, and then the same a little off."""
    random = np.random.default_rng(0)
    places = np.arange(count) % len(vectors)
    found = vectors[places].astype(np.float32)
    scale = float(np.abs(vectors).mean()) * 0.3
    for begin in range(len(vectors), count, _AT_ONCE):
        part = found[begin : begin + _AT_ONCE]
        part += random.normal(0, scale, part.shape).astype(np.float32)
    return found, labels[places]


def agreement(vectors: Vector, labels: NDArray[np.int64]) -> float:
    """Return the share of the ten nearest that have an item's label, over some items."""
    rows = np.random.default_rng(1).choice(len(vectors), min(_ASKED, len(vectors)), replace=False)
    _, near = faiss.knn(np.ascontiguousarray(vectors[rows]), vectors, 11)
    return float(np.mean(labels[near[:, 1:]] == labels[rows][:, None]))


def measure(folder: Path, vectors: Vector, labels: NDArray[np.int64]) -> dict[str, float]:
    """Fill a collection, map it with the command, and return the figures."""
    with Catalog(folder) as catalog, catalog.create("m", space="s", dim=vectors.shape[1], index_kind="flat") as made:
        for begin in range(0, len(vectors), _AT_ONCE):
            part = range(begin, min(begin + _AT_ONCE, len(vectors)))
            made.upsert([VectorItem(f"k{n}", vectors[n], label=str(labels[n])) for n in part])
        made.seal()
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "imagekin", "map", "m", "--data-dir", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    said = json.loads(done.stdout.splitlines()[-1])
    with Catalog(folder, read_only=True) as catalog:
        began = time.process_time()
        view = catalog.open("m").map()
        looked = time.process_time() - began
    assert view is not None
    points = view.positions.astype(np.float32)
    return {
        "items": said["items"],
        "laid_out": said["laid_out"],
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "seconds": wall,
        "peak_mib": after.ru_maxrss / 1024,
        "body_bytes": view.positions.nbytes + view.codes.nbytes,
        "first_view_cpu_seconds": looked,
        "agreement_map": agreement(points, labels),
        "agreement_vectors": agreement(vectors, labels),
    }


def main() -> None:
    """Measure and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="where to keep the collection; a temporary folder if it is missing")
    given = parser.parse_args()
    if given.vectors:
        vectors, labels = grown(np.load(given.vectors, mmap_mode="r"), np.load(given.labels), given.count)
    else:
        vectors, labels = clusters(given.count, given.dim)
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(given.folder or Path(temporary), vectors, labels)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
