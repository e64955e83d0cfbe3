"""The section `approximate` of bench/search.py: recall, rate and memory of our index kinds, hnswlib and usearch."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import interleave
from bench.searching.common import CORES, OURS, K, Result, Vectors, fill, timed, unit_vectors
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.search import nearest

ASKED = 512
BATCH = 64
GOOD = 0.95
EFFORTS = (10, 16, 32, 64, 128, 256)
PEERS = ("hnswlib", "usearch")


def approximate(folder: Path, scale: float, kinds: list[str], embeddings: Path | None, graph: Path | None) -> Result:
    """Measure batches of 64.

    Args:
        folder: where the collections go.
        scale: 1 is a million vectors around a thousand centres.
        kinds: kinds of index.
        embeddings: float32 [n, D] in a .npy file to use instead; the last 512 are the queries.
        graph: hnswlib's index of the same vectors, made before; it is made (M 16, ef_construction 100) when None.
    """
    result = Result()
    if embeddings is not None:
        every = np.load(embeddings)
        vectors, queries = np.ascontiguousarray(every[:-ASKED]), np.ascontiguousarray(every[-ASKED:])
    else:
        count = int(1_000_000 * scale)
        vectors, queries = unit_vectors(count, 128, clusters=1000), unit_vectors(ASKED, 128, 5, clusters=1000)
    asks: dict[str, Callable[[], list[list[int]]]] = {}
    made: list[Catalog] = []
    truth: list[set[int]] = []
    for kind in kinds:
        made.append(Catalog(folder / kind))
        collection = fill(made[-1], vectors, kind)
        if not truth:
            truth = [set(found.slots.tolist()) for found in nearest.nearest(_exact(collection), queries, K)]
        seconds = timed(collection.build_index)
        asks[kind] = lambda collection=collection: _ours(collection, queries)  # type: ignore[misc]
        info = collection.info()
        size = (folder / kind / "collections").rglob("index-data")
        result.add(f"{kind}: building", seconds, "s")
        result.add(f"{kind}: index beside the vectors", sum(one.stat().st_size for one in size) / vectors.nbytes, "×")
        if info.recall is not None:
            result.add(f"{kind}: recall@10 as info says", info.recall, "")
    asks |= _hnswlib(result, vectors, queries, graph) | _usearch(result, vectors, queries)
    recalls = {
        name: statistics.mean(len(best & set(one)) / K for best, one in zip(truth, ask(), strict=True))
        for name, ask in asks.items()
    }
    seconds_of = interleave({name: lambda ask=ask: timed(ask) for name, ask in asks.items()}, 5)  # type: ignore[misc]
    rates = {name: ASKED / statistics.median(seconds) for name, seconds in seconds_of.items()}
    for name, rate in rates.items():
        bound = GOOD if name in kinds else None
        result.add(f"{name}: recall@10", recalls[name], "", bound)
        result.add(f"{name}: batches of {BATCH}", rate, "queries/s")
    ours = [name for name in kinds if recalls[name] >= GOOD]
    for peer in PEERS:
        curve = sorted((recalls[name], rates[name]) for name in rates if name.startswith(peer))
        if curve and ours:
            best = max(rates[name] / _rate_at(curve, recalls[name]) for name in ours)
            result.add(f"times {peer} at equal recall", best, "×", 1)
            cheapest = max((rate for recall, rate in curve if recall >= GOOD), default=0.0)
            if cheapest:
                result.add(f"times {peer}'s fastest at ≥ {GOOD}", max(rates[n] for n in ours) / cheapest, "×")
    for catalog in made:
        catalog.close()
    return result


def _exact(collection: LocalCollection) -> Any:
    return collection._store.snapshot()


def _ours(collection: LocalCollection, queries: Vectors) -> list[list[int]]:
    parts = [collection.search(queries[begin : begin + BATCH], OURS) for begin in range(0, ASKED, BATCH)]
    return [[int(one.key) for one in found] for part in parts for found in part]


def _hnswlib(
    result: Result, vectors: Vectors, queries: Vectors, known: Path | None
) -> dict[str, Callable[[], list[list[int]]]]:
    try:
        import hnswlib
    except ImportError:
        print("hnswlib: left out, it is not installed")
        return {}
    graph = hnswlib.Index(space="ip", dim=vectors.shape[1])
    if known is not None:
        graph.load_index(str(known))
    else:
        graph.init_index(max_elements=len(vectors), ef_construction=100, M=16)
        graph.set_num_threads(CORES)
        result.add("hnswlib: building", timed(lambda: graph.add_items(vectors)), "s")
    graph.set_num_threads(CORES)

    def ask(effort: int) -> list[list[int]]:
        graph.set_ef(effort)
        found = [graph.knn_query(queries[begin : begin + BATCH], K)[0] for begin in range(0, ASKED, BATCH)]
        return [[int(one) for one in row] for part in found for row in part]

    return {f"hnswlib ef {effort}": lambda effort=effort: ask(effort) for effort in EFFORTS}  # type: ignore[misc]


def _usearch(result: Result, vectors: Vectors, queries: Vectors) -> dict[str, Callable[[], list[list[int]]]]:
    try:
        from usearch.index import Index
    except ImportError:
        print("usearch: left out, it is not installed")
        return {}
    graph: Any = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=100)
    places = np.arange(len(vectors))
    result.add("usearch: building", timed(lambda: graph.add(places, vectors, threads=CORES)), "s")

    def ask(effort: int) -> list[list[int]]:
        graph.expansion_search = effort
        parts = (queries[begin : begin + BATCH] for begin in range(0, ASKED, BATCH))
        return [[int(one) for one in row] for part in parts for row in graph.search(part, K, threads=CORES).keys]

    return {f"usearch ef {effort}": lambda effort=effort: ask(effort) for effort in EFFORTS}  # type: ignore[misc]


def _rate_at(curve: list[tuple[float, float]], recall: float) -> float:
    """Return a peer's rate at a recall, interpolated linearly between measured points; the nearest end beyond them."""
    return float(np.interp(recall, [point for point, _ in curve], [rate for _, rate in curve]))
