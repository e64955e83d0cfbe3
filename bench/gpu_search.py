"""Measure exact search with sealed rows on a GPU, beside the same collection on the processor.

    python bench/gpu_search.py                              1,000,000 × 128 and × 512
    python bench/gpu_search.py --rows 200000 --dims 128     smaller

Without a GPU that FAISS can use it says "not measured". It needs NumPy, rich and faiss-gpu with the CUDA libraries that
this asks for, SQLite from the standard library, and no network. The answers are compared, too: keys and similarities
must be equal for whole batches and single queries, filters of 1, 10 and 50 %, k = 5,000, after deletions of the nearest
neighbours, and from eight threads; a difference ends it with an error. "Device alone" is
FAISS's own search of the same rows on the same GPU, without what a collection adds.
"""

import argparse
import contextlib
import json
import logging
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import hardware, interleave, ratio, report
from bench.searching.common import FAISS, Result, Vectors
from imagekin.errors import FailedPreconditionError
from imagekin.index.filters.parser import parse
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.search.gpu.open import open_device
from imagekin.index.search.gpu.resident import Resident
from imagekin.index.storage.columns import Columns
from imagekin.index.storage.schema import read_identity, row_checksum
from imagekin.index.storage.segments import Segments
from imagekin.index.types import SearchOptions, VectorItem
from imagekin.index.vectors.codes import encode_vectors
from imagekin.machine import cores

_NAME = "rows"
_K = SearchOptions(10)
_FILTERS = {"1 %": 'label = "c7"', "10 %": 'label STARTS WITH "c3"', "50 %": 'key STARTS WITH "a"'}
_CHUNK = 50_000
_SECONDS = 0.3


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, measure and report."""
    parser = argparse.ArgumentParser(description="Exact search on a GPU beside the processor.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=3, help="figures of each contender")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        device = open_device("cuda")
    except FailedPreconditionError as error:
        print(f"not measured: {error}")
        print(json.dumps({"bench": "gpu_search", "figures": None, "targets": [], "hardware": hardware()}))
        return
    if device is not None:
        device.close()
    begun = time.perf_counter()
    result = Result()
    with tempfile.TemporaryDirectory(dir=_roomy(3 * options.rows * 4 * sum(options.dims))) as place:
        folders = [Path(place) / str(dim) for dim in options.dims]
        with ProcessPoolExecutor(len(folders), get_context("spawn")) as pool:
            list(pool.map(make, folders, [options.rows] * len(folders), options.dims))
        note("collections made and sealed", begun)
        for folder, dim in zip(folders, options.dims, strict=True):
            measure(folder, options.rows, dim, options.rounds, result)
    result.add("all of it", time.perf_counter() - begun, "s")
    packages = ("faiss-gpu", "faiss-cpu", "numpy", "nvidia-cublas-cu12")
    title = f"gpu_search: {options.rows:,} rows"
    report(title, ("what", "figure"), result.rows, result.targets, result.figures, packages)


def make(folder: Path, rows: int, dim: int) -> None:
    """Make a sealed collection of random unit vectors."""
    fill(folder, random_units(rows, dim, 0))


def measure(folder: Path, rows: int, dim: int, rounds: int, result: Result) -> None:
    """Compare and time a collection that was made.

    Raises:
        AssertionError: the answers differ.
    """
    start = time.perf_counter()
    with Catalog(folder, device="cuda") as writer, Catalog(folder, read_only=True) as reader:
        on_gpu, on_cpu = writer.open(_NAME), reader.open(_NAME)
        on_gpu.build_index()
        for one in (on_gpu, on_cpu):
            # What is done by itself within seconds must not run beside what is measured.
            one._store._maintenance._update_codes(lambda: False)
        held = on_gpu._store.snapshot().resident
        assert held is not None, "nothing is on the GPU"
        assert held.rows == rows, f"{held.rows:,} of {rows:,} rows are on the GPU"
        note("copied to the GPU", start)
        queries = random_units(1024, dim, 1)
        start = time.perf_counter()
        compare(on_gpu, on_cpu, queries)
        note("answers compared", start)
        start = time.perf_counter()
        name, count = f"{rows:,} × {dim}", min(len(queries), max(64, rows // 100))
        for batch in (1, 64, count):
            part = queries[:batch]
            contenders = {
                "CPU": lambda part=part: rate(on_cpu, part),
                "GPU": lambda part=part: rate(on_gpu, part),
                "device alone": lambda part=part: alone(on_gpu, part),
            }
            rates = interleave(contenders, rounds)
            for contender, values in rates.items():
                result.add(f"{name}, {batch} at a time: {contender}", sorted(values)[len(values) // 2], "queries/s")
            for other in ("CPU", "device alone"):
                faster = ratio(rates["GPU"], rates[other])
                result.add(f"{name}, {batch} at a time: GPU over {other}", faster, "×")
        note("measured", start)
        changed(on_gpu, on_cpu, queries[:64], dim)
        held = on_gpu._store.snapshot().resident
        assert held is not None, "the GPU was given up"
        assert not held.failed, "the GPU failed"


def compare(on_gpu: LocalCollection, on_cpu: LocalCollection, queries: Vectors) -> None:
    """Send the same requests to both.

    Raises:
        AssertionError: the answers differ.
    """
    same(on_gpu, on_cpu, queries, _K, "a large batch")
    same(on_gpu, on_cpu, queries[:64], SearchOptions(100), "k = 100")
    same(on_gpu, on_cpu, queries[:4], SearchOptions(5000), "k = 5000")
    for name, text in _FILTERS.items():
        for batch in (1, 64):
            options = SearchOptions(10, filter=parse(text))
            same(on_gpu, on_cpu, queries[:batch], options, f"{name} match, {batch} at a time")
    with ThreadPoolExecutor(8) as pool:
        singles = list(pool.map(lambda query: on_gpu.search(query[None], _K)[0], queries[:64]))
    wanted = on_cpu.search(queries[:64], _K)
    assert [answers(one) for one in singles] == [answers(one) for one in wanted], "8 threads at a time: answers differ"


def changed(on_gpu: LocalCollection, on_cpu: LocalCollection, queries: Vectors, dim: int) -> None:
    """Delete the nearest neighbours, write new ones, and compare once more."""
    nearest = {one.key for found in on_gpu.search(queries, SearchOptions(3)) for one in found}
    on_gpu.delete(sorted(nearest))
    on_gpu.upsert([VectorItem(f"new-{n}", row, "c7") for n, row in enumerate(random_units(500, dim, 2))])
    on_gpu.upsert([VectorItem(f"equal-{n}", queries[0], "c7") for n in range(20)])
    same(on_gpu, on_cpu, queries, _K, "after deletions and writes")
    for text in _FILTERS.values():
        same(on_gpu, on_cpu, queries, SearchOptions(10, filter=parse(text)), "after deletions and writes")
    found = on_gpu.search(queries, _K)
    assert not nearest & {one.key for each in found for one in each}, "what was deleted is found"
    assert [one.key for one in found[0]] == sorted(f"equal-{n}" for n in range(20))[:10], "ties are not by key"


def same(on_gpu: LocalCollection, on_cpu: LocalCollection, queries: Vectors, options: SearchOptions, what: str) -> None:
    """Raise AssertionError unless keys, similarities and labels are equal."""
    for number, (one, other) in enumerate(
        zip(on_gpu.search(queries, options), on_cpu.search(queries, options), strict=True)
    ):
        assert answers(one) == answers(other), f"{what}: the answers to query {number} differ"
        assert len(one) == options.k, f"{what}: {len(one)} neighbours instead of {options.k}"


def answers(found: Sequence[object]) -> list[tuple[str, float, str | None]]:
    """Return the parts of neighbours that are compared."""
    return [(one.key, one.similarity, one.label) for one in found]  # type: ignore[attr-defined]


def rate(collection: LocalCollection, queries: Vectors) -> float:
    """Return queries a second: one call after the other for a moment."""
    return _rate(lambda: collection.search(queries, _K), len(queries))


def alone(collection: LocalCollection, queries: Vectors) -> float:
    """Return queries a second of the device's own search for as many neighbours."""
    held = collection._store.snapshot().resident
    thread = collection._store.device
    assert isinstance(held, Resident)
    assert thread is not None
    return _rate(lambda: thread.submit(lambda: held.parts[0].held[0].top_k(queries, _K.k)).result(), len(queries))


def _rate(call: Callable[[], object], queries: int) -> float:
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < _SECONDS:
        call()
        calls += 1
    return calls * queries / (time.perf_counter() - start)


def random_units(count: int, dim: int, seed: int) -> Vectors:
    """Return random vectors of unit length, float32 [count, dim], made by all cores."""
    vectors = np.empty((count, dim), np.float32)

    def make(begin: int) -> None:
        part = vectors[begin : begin + _CHUNK]
        np.random.default_rng((seed, begin)).standard_normal(out=part, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(make, range(0, count, _CHUNK)))
    return vectors


def fill(folder: Path, vectors: Vectors) -> None:
    """Make a sealed collection of vectors by what lies beneath it: it is searching that is measured here.

    Half of the keys begin with `a`; a hundred labels, `c0` to `c99`, of which `c7` has 1 % and those with `c3` 11 %.
    """
    count, dim = vectors.shape
    with Catalog(folder) as catalog:
        catalog.create(_NAME, space="bench", dim=dim, index_kind="flat")
    place = next(folder.rglob("items.sqlite"))
    with contextlib.closing(sqlite3.connect(place, isolation_level=None)) as connection:
        identity = read_identity(connection, _NAME)
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        columns = Columns(dim, count)
        for begin in range(0, count, _CHUNK):
            numbers = range(begin, min(begin + _CHUNK, count))
            keys = [f"{'ab'[number % 2]}{number}" for number in numbers]
            labels = [f"c{number // 2 % 100}" for number in numbers]
            data = memoryview(vectors[begin : numbers[-1] + 1].tobytes())
            blobs = [data[at : at + 4 * dim] for at in range(0, len(data), 4 * dim)]
            sums = [
                row_checksum(key.encode(), label.encode(), None, blob)
                for key, label, blob in zip(keys, labels, blobs, strict=True)
            ]
            sequences = [number + 1 for number in numbers]
            connection.executemany(
                "INSERT INTO item VALUES (?, ?, ?, NULL, ?, NULL, NULL)",
                zip(sequences, keys, labels, sums, strict=True),
            )
            connection.executemany("INSERT INTO vector VALUES (?, ?)", zip(sequences, blobs, strict=True))
            columns.append(
                np.array(sequences, np.int64),
                [key.encode() for key in keys],
                list(labels),
                [None] * len(keys),
                vectors[begin : numbers[-1] + 1],
            )
        connection.execute("UPDATE state SET sequence = ?, count = ?, labelled = ?", (count, count, count))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    snapshot = columns.snapshot(count)
    Segments(place.parent, identity).seal(replace(snapshot, codes=encode_vectors(snapshot.vectors, None)), None)


def note(what: str, start: float) -> None:
    """Print a finished step on standard error, with its time."""
    print(f"{what}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def _roomy(size: int) -> Path | None:
    """Return a folder in memory when there is room for so many bytes; None for the usual one."""
    memory = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > size else None


if __name__ == "__main__":
    FAISS.omp_set_num_threads(cores())
    main()
