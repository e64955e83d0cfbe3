"""Measure a server whose data folder holds thousands of collections, with 1,024 file descriptors.

    python bench/many_collections.py [--collections 5000] [--items 20]

The collections are written first, one of them is then damaged. A real `imagekin serve`, which may not have more than
1,024 descriptors, starts, lists them, answers a search in each, takes a write in a thousand of them, is ended by
SIGTERM and started again. Expected: start, restart and list ≤ 3 s each, descriptors below the limit.
"""

import argparse
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, report, resident_megabytes
from bench.searching.common import unit_vectors
from bench.serving.load import cpu_seconds
from bench.serving.process import imagekin
from imagekin import Client, Item
from imagekin.errors import ImagekinError
from imagekin.index.local.catalog import Catalog
from imagekin.index.types import VectorItem

DIM = 64
DESCRIPTORS = 1024
SECONDS = 3.0
WRITES = 1000


def fill(folder: Path, collections: int, items: int) -> None:
    """Write the collections, and spoil the file of the first one."""
    catalog = Catalog(folder)
    for number in range(collections):
        vectors = unit_vectors(items, DIM, seed=number)
        collection = catalog.create(f"c{number:05}", space="vectors", dim=DIM)
        collection.upsert([VectorItem(f"k{place}", vector=vector) for place, vector in enumerate(vectors)])
    catalog.close()
    (broken,) = folder.glob("**/c00000/*.sqlite")
    broken.write_bytes(b"not a database" * 1000)


def serve(folder: Path, data: Path, collections: int) -> dict[str, float]:
    """Start a server, use every collection, end the server, and return what that took."""
    figures: dict[str, float] = {}
    begun = time.perf_counter()
    with imagekin(folder, "many", ["--data-dir", str(data)]) as served:
        figures["start_seconds"] = time.perf_counter() - begun
        figures["start_cpu_seconds"] = cpu_seconds((served.pid,))
        with Client(served.address) as client:
            begun, used = time.perf_counter(), cpu_seconds((served.pid,))
            listed = client.collections()
            figures |= {
                "list_seconds": time.perf_counter() - begun,
                "list_cpu_seconds": cpu_seconds((served.pid,)) - used,
            }
            figures["listed"] = len(listed)
            times, refused = [], set[str]()
            query = np.ones(DIM, np.float32)
            for number in range(collections):
                begun = time.perf_counter()
                try:
                    assert client.search(vectors=[query], collection=f"c{number:05}", k=3)[0]
                except ImagekinError as error:
                    refused.add(f"{number}: {error}")
                times.append(time.perf_counter() - begun)
            figures |= {"search_milliseconds": 1000 * statistics.median(times), "refused": len(refused)}
            assert len(refused) == 1, refused
            begun = time.perf_counter()
            for number in range(1, min(WRITES, collections)):
                client.upsert(f"c{number:05}", [Item("new", vector=query)])
            figures["write_milliseconds"] = 1000 * (time.perf_counter() - begun) / (min(WRITES, collections) - 1)
        figures["descriptors"] = len(os.listdir(f"/proc/{served.pid}/fd"))
        figures["megabytes"] = resident_megabytes(str(served.pid))
        os.kill(served.pid, signal.SIGTERM)
        begun = time.perf_counter()
        while Path(f"/proc/{served.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        figures["stop_seconds"] = time.perf_counter() - begun
    return figures


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", type=int, default=5000)
    parser.add_argument("--items", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder / "data", given.collections, given.items)
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        runs = [serve(folder, folder / "data", given.collections) for _ in range(2)]
    rows = [[name, *(f"{run[name]:.4g}" for run in runs)] for name in runs[0]]
    targets = [
        Target(f"{name}, {when}", run[name], bound, at_least=False)
        for run, when in zip(runs, ("first", "again"), strict=True)
        for name, bound in (("start_seconds", SECONDS), ("list_seconds", SECONDS), ("descriptors", DESCRIPTORS))
    ]
    title = f"{given.collections} collections of {given.items} items"
    report(title, ["", "first", "again"], rows, targets, {"first": runs[0], "again": runs[1]})


if __name__ == "__main__":
    main()
