"""Search with and without its more intricate parts, on real embeddings.

    python bench/complexity.py --embeddings EMBEDDINGS.npy [--rounds N] [--slices N] [--seconds S]

Packed codes (`index/vectors/int8_products.py`) and scanning beside multiplying (`index/search/coded_top_k.py`): each
way answers the same queries in turn, in processor time. Search priority (`index/storage/search_priority.py`): one
query after the other while two writers replace items, in slices with it, without one of its two halves and without
both, by the clock. Every tenth embedding is asked for and not stored. What gains a third stays.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, ratio, report
from bench.searching.common import OURS, Vectors, fill
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.search import coded_top_k
from imagekin.index.storage.search_priority import SearchPriority
from imagekin.index.types import VectorItem
from imagekin.index.vectors.codes import Codes, encode_vectors, packed, with_short_codes
from imagekin.index.vectors.int8_products import integer_products

K = 10
COUNTS = (1, 2, 3, 4, 8, 16, 32, 64)
WORTH_IT = 4 / 3
PRIORITIES = ("as it is", "bulk writes in turn alone", "yields alone", "neither")
_WRITERS, _WRITTEN_AT_ONCE = 2, 100
_SETTLED_AFTER = 0.3
_ALWAYS, _NEVER = 0, 10**9


@dataclass(frozen=True, slots=True)
class Way:
    """One way to search.

    Attributes:
        codes: the codes that it goes by.
        multiplied_from: how many queries it multiplies instead of scanning for each.
    """

    codes: Codes
    multiplied_from: int

    def seconds(self, queries: Vectors, vectors: Vectors) -> float:
        """Return the processor time of one batch."""
        with patch.object(coded_top_k, "_MULTIPLIED_FROM", self.multiplied_from):
            start = time.process_time()
            coded_top_k.top_k(queries, vectors, self.codes, K)
            return time.process_time() - start


def ways_of(vectors: Vectors) -> dict[str, Way]:
    """Return the ways to compare: as it is, without packed codes, and with one of two kernels alone."""
    as_they_are = with_short_codes(replace(encode_vectors(vectors), integers=integer_products()), vectors)
    quick, usual = packed(as_they_are), coded_top_k._MULTIPLIED_FROM
    return {
        "as it is": Way(quick, usual),
        "multiplied, not packed": Way(as_they_are, _ALWAYS),
        "scanned": Way(quick, _NEVER),
        "multiplied": Way(quick, _ALWAYS),
    }


def batches(vectors: Vectors, asked: Vectors, rounds: int) -> dict[int, dict[str, float]]:
    """Return the median milliseconds of every way by the number of queries, interleaved batch by batch."""
    ways, random = ways_of(vectors), np.random.default_rng(0)
    found: dict[int, dict[str, float]] = {}
    for count in COUNTS:
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            queries = np.ascontiguousarray(asked[random.integers(0, len(asked), count)])
            for name in random.permutation(list(ways)).tolist():
                times[name].append(1e3 * ways[name].seconds(queries, vectors))
        found[count] = {name: statistics.median(values) for name, values in times.items()}
    return found


def unlocked(priority: SearchPriority, items: int) -> AbstractContextManager[object]:
    """Let bulk writes run beside each other: `SearchPriority.writing` without its lock."""
    return nullcontext()


def patches(name: str) -> ExitStack:
    """Return the context in which search priority is one of `PRIORITIES`."""
    stack = ExitStack()
    if name in ("bulk writes in turn alone", "neither"):
        stack.enter_context(patch.object(SearchPriority, "yield_processor", lambda self: None))
    if name in ("yields alone", "neither"):
        stack.enter_context(patch.object(SearchPriority, "writing", unlocked))
    return stack


@dataclass(slots=True)
class Writers:
    """Threads that replace items without a pause while they are let.

    Attributes:
        written: number of items written so far, by thread.
        let: set while they shall write.
    """

    collection: LocalCollection
    vectors: Vectors
    written: list[int] = field(default_factory=lambda: [0] * _WRITERS)
    let: threading.Event = field(default_factory=threading.Event)
    stopped: bool = False

    def write(self, writer: int) -> None:
        """Write until stopped."""
        random = np.random.default_rng(writer)
        while self.let.wait() and not self.stopped:
            numbers = set(random.integers(0, len(self.vectors), _WRITTEN_AT_ONCE).tolist())
            self.collection.upsert([VectorItem(str(number), self.vectors[number]) for number in numbers])
            self.written[writer] += len(numbers)


@dataclass(slots=True)
class Slices:
    """Times of single queries, slice by slice.

    Attributes:
        median: milliseconds.
        p99: milliseconds.
        items: items written per second meanwhile.
    """

    median: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    items: list[float] = field(default_factory=list)

    def add(self, writers: Writers, queries: Vectors, seconds: float) -> None:
        """Ask one query after the other for a slice of time."""
        before, start = sum(writers.written), time.perf_counter()
        times: list[float] = []
        while (begin := time.perf_counter()) < start + seconds:
            row = len(times) % len(queries)
            writers.collection.search(queries[row : row + 1], OURS)
            times.append(1e3 * (time.perf_counter() - begin))
        self.median.append(statistics.median(times))
        self.p99.append(float(np.percentile(times, 99)))
        self.items.append((sum(writers.written) - before) / (time.perf_counter() - start))


def beside_writers(vectors: Vectors, asked: Vectors, slices: int, seconds: float) -> dict[str, Slices]:
    """Return times of single queries, idle and beside two writers, by search priority."""
    found = {name: Slices() for name in ("idle", *PRIORITIES)}
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, Catalog(Path(folder)) as catalog:
        collection = fill(catalog, vectors)
        collection.seal()
        writers = Writers(collection, vectors)
        with ThreadPoolExecutor(_WRITERS) as pool:
            for writer in range(_WRITERS):
                pool.submit(writers.write, writer)
            try:
                for _ in range(slices):
                    for name in random.permutation(list(found)).tolist():
                        writers.let.clear() if name == "idle" else writers.let.set()
                        with patches(name):
                            time.sleep(_SETTLED_AFTER)
                            found[name].add(writers, asked, seconds)
            finally:
                writers.stopped = True
                writers.let.set()
    return found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description="Search with and without its more intricate parts, on real embeddings."
    )
    parser.add_argument("--embeddings", type=Path, required=True, help="float32 [n, D] of unit length in a .npy file")
    parser.add_argument("--rounds", type=int, default=40, help="batches of each size and way")
    parser.add_argument("--slices", type=int, default=12, help="slices of each kind beside writers")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a slice")
    options = parser.parse_args()
    embeddings = np.load(options.embeddings)
    held_out = np.arange(len(embeddings)) % 10 == 9
    vectors, asked = np.ascontiguousarray(embeddings[~held_out]), np.ascontiguousarray(embeddings[held_out])
    found = batches(vectors, asked, options.rounds)
    beside = beside_writers(vectors, asked, options.slices, options.seconds)
    rows = [
        (f"{count} queries, {name}", f"{value:.2f} ms") for count, ways in found.items() for name, value in ways.items()
    ]
    for name, slices in beside.items():
        p50, p99, items = (statistics.median(values) for values in (slices.median, slices.p99, slices.items))
        rows.append((f"1 query beside writers, {name}", f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, {items:,.0f} items/s"))
    unpacked = {count: min(ways["multiplied, not packed"], ways["scanned"]) for count, ways in found.items()}
    targets = [
        Target("packed codes, 8 queries", unpacked[8] / found[8]["as it is"], WORTH_IT, True),
        Target("scanning, 1 query", found[1]["multiplied"] / found[1]["as it is"], WORTH_IT, True),
        Target("multiplying, 16 queries", found[16]["scanned"] / found[16]["as it is"], WORTH_IT, True),
        Target("search priority, p99", ratio(beside["neither"].p99, beside["as it is"].p99), WORTH_IT, True),
        *(
            Target(f"{name}, p99", ratio(beside["neither"].p99, beside[name].p99), WORTH_IT, True)
            for name in PRIORITIES[1:3]
        ),
    ]
    title = f"complexity: {len(vectors)} × {vectors.shape[1]}, k = {K}"
    figures = {"batches": found, "beside writers": {name: asdict(slices) for name, slices in beside.items()}}
    report(title, ("what", "figure"), rows, targets, figures, ("onnxruntime", "faiss-cpu", "numpy"))


if __name__ == "__main__":
    main()
