"""Two sections of bench/search.py: reads during writes, and the import of a Parquet file."""

import threading
import time
from pathlib import Path

import numpy as np

from bench.searching.common import OURS, Result, Vectors, fill, timed, unit_vectors
from imagekin.index.ingest.parquet import ParquetItems, import_items
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.types import VectorItem

WRITERS = 2
SECONDS = 8.0


def reads(folder: Path, scale: float) -> Result:
    """Measure single queries in sequence, alone and while items are replaced without a pause (and so compacted)."""
    result = Result()
    vectors, queries = unit_vectors(int(100_000 * max(scale, 0.2)), 128), unit_vectors(64, 128, 5)
    with Catalog(folder) as catalog:
        collection = fill(catalog, vectors)
        collection.seal()
        idle = _latencies(collection, queries)
        stop, written = threading.Event(), [0] * WRITERS

        def write(writer: int) -> None:
            random = np.random.default_rng(writer)
            while not stop.is_set():
                numbers = random.integers(0, len(vectors), 100)
                collection.upsert([VectorItem(str(number), vectors[number]) for number in set(numbers.tolist())])
                written[writer] += 100

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        busy = _latencies(collection, queries)
        stop.set()
        for thread in threads:
            thread.join()
    for name, seconds in (("idle", idle), ("while written", busy)):
        result.add(f"one query, {name}: median", 1e3 * float(np.percentile(seconds, 50)), "ms")
        result.add(f"one query, {name}: p99", 1e3 * float(np.percentile(seconds, 99)), "ms")
    result.add("items written meanwhile", sum(written) / SECONDS, "items/s")
    times = float(np.percentile(busy, 99) / np.percentile(idle, 99))
    result.add("one query, p99 while written over p99 idle", times, "×", 2, False)
    return result


def _latencies(collection: LocalCollection, queries: Vectors) -> list[float]:
    seconds, end, number = [], time.perf_counter() + SECONDS, 0
    while time.perf_counter() < end:
        query = queries[number % len(queries)][None]
        seconds.append(timed(lambda query=query: collection.search(query, OURS)))  # type: ignore[misc]
        number += 1
    return seconds


def imports(folder: Path, scale: float) -> Result:
    """Import a Parquet file, durably, and open the resulting collection."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    result = Result()
    count, path = int(1_000_000 * scale), folder / "items.parquet"
    fields = [
        pa.field("key", pa.string()),
        pa.field("label", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), 128)),
    ]
    with pq.ParquetWriter(path, pa.schema(fields), compression="zstd") as writer:
        for begin in range(0, count, 50_000):
            rows = unit_vectors(min(50_000, count - begin), 128, begin)
            numbers = range(begin, begin + len(rows))
            columns = [
                pa.array([str(number) for number in numbers]),
                pa.array([f"c{number % 100}" for number in numbers]),
                pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 128),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)))
    source = ParquetItems(path)
    with Catalog(folder / "data") as catalog:
        collection = catalog.create("bench", space="bench", dim=128)
        seconds = timed(lambda: import_items(source, collection.upsert))
        result.add(f"Parquet import of {count:,} × 128", count / seconds, "items/s", 30_000)
    source.close()
    return result
