"""Measure the store's searches and writes, beside FAISS with its defaults and embedded vector databases.

    python bench/search.py                       every section, 1,000,000 × 128 where the target says so (some minutes)
    python bench/search.py --short               every section on a twentieth of the data (about a minute)
    python bench/search.py --sections exact,open

    python bench/search.py --sections exact,approximate --embeddings FILE.npy     real ones as well; instead of clusters

Sections: exact, clients, fresh, writes, open, reads, import, approximate. Peers (pip install lancedb qdrant-client
milvus-lite pymilvus hnswlib) that are not installed are left out. Random unit vectors, except `approximate`: 1,000
clusters. Ratios are taken round by round, interleaved, and their median is reported. Every section runs in its own
process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, interleave, ratio, report
from bench.searching import approximate, load, peers
from bench.searching.common import (
    BLAS_DEFAULT,
    CORES,
    FAISS,
    OURS,
    K,
    Result,
    Vectors,
    as_people_call_it,
    fill,
    sgemm_for,
    sgemm_peak,
    synced,
    timed,
    unit_vectors,
)
from imagekin.index.filters.parser import parse
from imagekin.index.local.catalog import Catalog
from imagekin.index.search import nearest
from imagekin.index.types import SearchOptions, VectorItem


def exact(folder: Path, scale: float, embeddings: Path | None = None) -> Result:
    """Measure exact batches of 64; also among real embeddings, the last 64 of which are the queries."""
    result = Result()
    sets: list[tuple[str, Vectors, Vectors]] = []
    for dim, count in ((128, int(100_000 * max(scale, 0.2))), (512, int(50_000 * max(scale, 0.2)))):
        sets.append(("", unit_vectors(count, dim), unit_vectors(64, dim, 5)))
    if embeddings is not None:
        every = np.load(embeddings)
        sets.append((", real", np.ascontiguousarray(every[:-64]), np.ascontiguousarray(every[-64:])))
    for number, (what, vectors, queries) in enumerate(sets):
        count, dim = vectors.shape
        index = FAISS.IndexFlatIP(dim)
        index.add(vectors)
        with Catalog(folder / str(number)) as catalog:
            collection = fill(catalog, vectors)
            same = as_people_call_it(index, queries).tolist() == [
                [int(one.key) for one in found] for found in collection.search(queries, OURS)
            ]
            times = interleave(
                {
                    "imagekin": lambda c=collection, q=queries: timed(lambda: c.search(q, OURS)),  # type: ignore[misc]
                    "faiss": lambda i=index, q=queries: timed(lambda: as_people_call_it(i, q)),  # type: ignore[misc]
                },
                9,
            )
        ours = statistics.median(times["imagekin"])
        shape = f"64 × {count:,} × {dim}{what}"
        result.add(f"exact {shape}: imagekin", 1e3 * ours, "ms")
        result.add(f"exact {shape}: faiss default", 1e3 * statistics.median(times["faiss"]), "ms")
        result.add(f"exact {shape}: same ids", float(same), "", 1)
        result.add(f"exact {shape}: times faiss default", ratio(times["faiss"], times["imagekin"]), "×", 5)
        rate = 2 * 64 * count * dim / ours / 1e9
        result.add(f"exact {shape}: share of SGEMM peak", rate / sgemm_peak(), "", 0.7)
        result.add(f"exact {shape}: share of SGEMM of this shape", rate / sgemm_for(queries, vectors), "")
    return result


def clients(folder: Path, scale: float) -> Result:
    """Measure eight clients with one query at a time each."""
    result = Result()
    vectors, queries = unit_vectors(int(100_000 * max(scale, 0.2)), 128), unit_vectors(512, 128, 5)
    index = FAISS.IndexFlatIP(128)
    index.add(vectors)

    def rate(ask: Callable[[Vectors], object], count: int) -> float:
        with ThreadPoolExecutor(8) as pool:
            return count / timed(lambda: list(pool.map(lambda n: ask(queries[n : n + 1]), range(count))))

    def naive(query: Vectors) -> None:
        FAISS.omp_set_num_threads(CORES)
        index.search(query, K)

    def naive_rate() -> float:
        FAISS.cvar.distance_compute_blas_threshold = BLAS_DEFAULT
        try:
            return rate(naive, 64)
        finally:
            FAISS.cvar.distance_compute_blas_threshold = 1

    with Catalog(folder) as catalog:
        collection = fill(catalog, vectors)
        rates = interleave(
            {
                "imagekin": lambda: rate(lambda query: collection.search(query, OURS), 512),
                "faiss": naive_rate,
            },
            5,
        )
    result.add("8 clients: imagekin", statistics.median(rates["imagekin"]), "queries/s")
    result.add("8 clients: faiss a request", statistics.median(rates["faiss"]), "queries/s")
    result.add("8 clients: times faiss", ratio(rates["imagekin"], rates["faiss"]), "×", 10)
    return result


def fresh(folder: Path, scale: float) -> Result:
    """Measure one query right after a write, on 20,000 × 128."""
    result = Result()
    vectors, queries, extra = unit_vectors(20_000, 128), unit_vectors(100, 128, 5), unit_vectors(100, 128, 6)
    found = {name: peers.opened(name, kind, folder, vectors) for name, kind in peers.present(list(peers.PEERS)).items()}
    others = {name: peer for name, peer in found.items() if peer is not None}
    with Catalog(folder) as catalog:
        collection = fill(catalog, vectors)
        turn = dict.fromkeys(("imagekin", *others), 0)

        def ours() -> float:
            number = turn["imagekin"] = turn["imagekin"] + 1
            collection.upsert([VectorItem(str(20_000 + number), extra[number])])
            return timed(lambda: collection.search(queries[number : number + 1], OURS))

        def theirs(name: str) -> float:
            number = turn[name] = turn[name] + 1
            others[name].add(20_000 + number, extra[number : number + 1])
            return timed(lambda: others[name].search(queries[number], K))

        contenders: dict[str, Callable[[], float]] = {"imagekin": ours}
        contenders |= {name: lambda name=name: theirs(name) for name in others}  # type: ignore[misc]
        times = interleave(contenders, 15)
    bounds = {"qdrant": 1, "lancedb": 10, "milvus-lite": 100}
    for name, seconds in times.items():
        result.add(f"query after a write: {name}", 1e3 * statistics.median(seconds), "ms")
    for name in others:
        result.add(f"query after a write: times {name}", ratio(times[name], times["imagekin"]), "×", bounds[name])
    return result


def writes(folder: Path, scale: float) -> Result:
    """Measure durable single upserts of 32 writers, one delete among many items, and import."""
    result = Result()
    dim, count = 128, int(500_000 * scale)
    vectors = unit_vectors(count, dim)
    with Catalog(folder) as catalog:
        collection = catalog.create("bench", space="bench", dim=dim)
        items = [VectorItem(str(n), vectors[n], f"c{n % 100}") for n in range(count)]
        seconds = timed(lambda: [collection.upsert(items[begin : begin + 4096]) for begin in range(0, count, 4096)])
        result.add(f"import of {count:,} × {dim}", count / seconds, "items/s", 30_000)
        random = np.random.default_rng(0)
        keys = [str(n) for n in random.permutation(count)[:200]]
        deletes = [timed(lambda key=key: collection.delete([key])) for key in keys]  # type: ignore[misc]
        result.add("4 KiB appended and synced: the disk alone", 1e3 * synced(folder / "synced"), "ms")
        result.add(f"one delete among {count:,}: imagekin", 1e3 * statistics.median(deletes), "ms", 0.25, False)
        index = FAISS.IndexIDMap2(FAISS.IndexFlatIP(dim))
        index.add_with_ids(vectors, np.arange(count))
        removes = [timed(lambda n=n: index.remove_ids(np.array([n]))) for n in range(5, 500, 100)]  # type: ignore[misc]
        times = statistics.median(removes) / statistics.median(deletes)
        result.add(f"one delete among {count:,}: times IDMap2", times, "×", 100)

        def upserts(upsert: Callable[[int], object], writers: int, each: int) -> float:
            with ThreadPoolExecutor(writers) as pool:
                return writers * each / timed(lambda: list(pool.map(upsert, range(writers * each))))

        single = catalog.create("single", space="bench", dim=dim)
        ours = upserts(lambda n: single.upsert([VectorItem(str(n), vectors[n])]), 32, 60)
        result.add("32 writers, single upserts: imagekin", ours, "items/s")
    for name, kind in peers.present(["lancedb"]).items():
        peer = peers.opened(name, kind, folder, vectors[:1])
        lock = threading.Lock()  # its tables refuse concurrent commits

        def add(n: int, peer: Any = peer, lock: threading.Lock = lock) -> None:
            with lock:
                peer.add(n, vectors[n : n + 1])

        theirs = upserts(add, 32, 4)
        result.add(f"32 writers, single upserts: {name}", theirs, "items/s")
        result.add(f"32 writers, single upserts: times {name}", ours / theirs, "×", 10)
    return result


OPENING = """
import json, sys, time
from pathlib import Path
import numpy as np
import faiss
from imagekin.index.local.catalog import Catalog
from imagekin.index.types import SearchOptions
def resident():
    return {line.split()[0]: int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("Rss")}
query = np.random.default_rng(5).standard_normal((1, 128)).astype(np.float32)
before = sum(resident().values())
start = time.perf_counter()
if sys.argv[1] == "faiss":
    faiss.read_index(sys.argv[2]).search(query, 10)
else:
    collection = Catalog(Path(sys.argv[2])).open("bench")
    collection.search(query, SearchOptions(k=10))
seconds = time.perf_counter() - start
if sys.argv[1] != "faiss":
    for _ in range(20):
        collection.search(query, SearchOptions(k=10))
print(json.dumps({"seconds": seconds, "kib": sum(resident().values()) - before}))
"""


def opening(folder: Path, scale: float) -> Result:
    """Measure the time from opening to the first answer, in fresh processes; memory; a search among 1 % of items."""
    result = Result()
    count = int(1_000_000 * scale)
    vectors = unit_vectors(count, 128)
    with Catalog(folder) as catalog:
        fill(catalog, vectors)
    index = FAISS.IndexFlatIP(128)
    index.add(vectors)
    FAISS.write_index(index, str(folder / "faiss"))

    def ask(what: str, place: Path) -> dict[str, float]:
        command = [sys.executable, "-c", OPENING, what, str(place)]
        answer: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return answer

    times = interleave(
        {
            "imagekin": lambda: ask("imagekin", folder)["seconds"],
            "faiss": lambda: ask("faiss", folder / "faiss")["seconds"],
        },
        5,
    )
    shape = f"{count:,} × 128"
    result.add(f"open to first answer, {shape}: imagekin", 1e3 * statistics.median(times["imagekin"]), "ms", 100, False)
    result.add(f"open to first answer, {shape}: faiss", 1e3 * statistics.median(times["faiss"]), "ms")
    result.add(f"open to first answer, {shape}: times faiss", ratio(times["faiss"], times["imagekin"]), "×", 10)
    memory = ask("imagekin", folder)["kib"] * 1024 / vectors.nbytes
    result.add(f"memory serving flat, {shape}: times its vectors", memory, "×", 1.15, False)
    with Catalog(folder) as catalog:
        collection = catalog.open("bench")
        snapshot = collection._store.snapshot()
        queries = unit_vectors(1, 128, 5)
        code = snapshot.label_names.index("c7")

        def among() -> float:
            return timed(lambda: nearest.nearest(snapshot, queries[:1], K, snapshot.labels == code))

        pair = interleave({"1 %": among, "all": lambda: timed(lambda: nearest.nearest(snapshot, queries[:1], K))}, 9)
        result.add(f"exact query among 1 % of {shape}", 1e3 * statistics.median(pair["1 %"]), "ms")
        result.add(f"exact query among 1 % of {shape}: times all", ratio(pair["all"], pair["1 %"]), "×", 3)
        filtered = SearchOptions(k=K, filter=parse('label = "c7"'))
        for name, kind in peers.present(["lancedb"]).items():
            peer = peers.opened(name, kind, folder, vectors)
            times = interleave(
                {
                    "imagekin": lambda: timed(lambda: collection.search(queries, filtered)),
                    name: lambda peer=peer: timed(lambda: peer.search(queries[0], K, "number % 100 = 7")),  # type: ignore[misc]
                },
                9,
            )
            ours = 1e3 * statistics.median(times["imagekin"])
            result.add(f"query with a filter on 1 % of {shape}: imagekin", ours, "ms")
            result.add(f"query with a filter on 1 % of {shape}: {name}", 1e3 * statistics.median(times[name]), "ms")
            result.add(f"query with a filter: times {name}", ratio(times[name], times["imagekin"]), "×", 5)
    return result


SECTIONS: dict[str, Callable[[Path, float], Result]] = {
    "exact": exact,
    "clients": clients,
    "fresh": fresh,
    "writes": writes,
    "open": opening,
    "reads": load.reads,
    "import": load.imports,
}
APPROXIMATE = "approximate"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="The store beside FAISS and embedded vector databases.")
    parser.add_argument("--sections", default=",".join([*SECTIONS, APPROXIMATE]), help="comma-separated")
    parser.add_argument("--short", action="store_true", help="a twentieth of the data")
    parser.add_argument("--scale", type=float, default=None, help="share of the data, 1 by default")
    parser.add_argument("--folder", type=Path, default=None, help="where the data go; default a temporary folder")
    parser.add_argument("--kinds", default="ivf,hnsw,pq", help="of index, for `approximate`")
    parser.add_argument("--embeddings", type=Path, default=None, help="float32 [n, D], for `exact` and `approximate`")
    parser.add_argument("--graph", type=Path, default=None, help="hnswlib's index of them, made before")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    scale = options.scale or (0.05 if options.short else 1.0)
    if options.one:
        if options.one == APPROXIMATE:
            kinds = options.kinds.split(",")
            found = approximate.approximate(options.folder, scale, kinds, options.embeddings, options.graph)
        elif options.one == "exact":
            found = exact(options.folder, scale, options.embeddings)
        else:
            found = SECTIONS[options.one](options.folder, scale)
        targets = [(one.name, one.value, one.bound, one.at_least) for one in found.targets]
        print(json.dumps({"rows": found.rows, "targets": targets, "figures": found.figures}))
        return
    whole = Result()
    for name in options.sections.split(","):
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            command = [sys.executable, __file__, "--one", name, "--scale", str(scale), "--folder", temporary]
            command += ["--kinds", options.kinds]
            for option in ("embeddings", "graph"):
                if getattr(options, option) is not None:
                    command += [f"--{option}", str(getattr(options, option).resolve())]
            root = str(Path(__file__).resolve().parents[1])
            paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})
        *said, last = run.stdout.splitlines() or [""]
        print(*said, sep="\n", end="\n" if said else "")
        if run.returncode:
            print(f"{name}: failed, see above")
            continue
        answer = json.loads(last)
        whole.rows += [tuple(row) for row in answer["rows"]]
        whole.targets += [Target(*target) for target in answer["targets"]]
        whole.figures |= answer["figures"]
    packages = ["faiss-cpu", "numpy", "lancedb", "qdrant-client", "milvus-lite", "hnswlib"]
    report(f"search, scale {scale:g}", ("what", "figure"), whole.rows, whole.targets, whole.figures, packages)


if __name__ == "__main__":
    main()
