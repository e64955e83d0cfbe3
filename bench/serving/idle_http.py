"""Measure what an HTTP listener that nobody calls costs the calls over gRPC, beside a server without one, in turn.

    python -m bench.serving.idle_http [--rounds 12]

With HTTP, calls are counted for Prometheus as well, so that a third server has only that. Searches by key of ten
neighbours in 10,000 items of 128 components, of one caller and of eight.
"""

import argparse
import random
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench.harness import Target, ratio, report
from bench.serving.load import Load
from bench.serving.process import Served, generate, imagekin
from imagekin.index.local.catalog import Catalog
from imagekin.index.types import VectorItem
from imagekin.v1 import common_pb2, searcher_pb2

ITEMS, DIM, K = 10_000, 128, 10
SERVERS = {
    "neither": (),
    "HTTP": ("--http-address", "127.0.0.1:0"),
    "metrics": ("--metrics-address", "127.0.0.1:0"),
}
_SECONDS = 2.0


def fill(folder: Path) -> None:
    """Make a data folder with a collection."""
    vectors = np.random.default_rng(0).standard_normal((ITEMS, DIM)).astype(np.float32)
    with Catalog(folder) as catalog:
        shop = catalog.create("shop", space="s", dim=DIM)
        for start in range(0, ITEMS, 1_000):
            rows = enumerate(vectors[start : start + 1_000], start)
            shop.upsert([VectorItem(f"k{number}", vector, "label") for number, vector in rows])


def payloads(folder: Path) -> tuple[str, ...]:
    """Write the requests and return their files."""
    paths = []
    for number in range(200):
        query = common_pb2.Query(key=f"k{number}")
        path = folder / f"request-{number}"
        path.write_bytes(searcher_pb2.SearchRequest(collection="shop", queries=[query], k=K).SerializeToString())
        paths.append(str(path))
    return tuple(paths)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    cpu: dict[tuple[int, str], list[float]] = {}
    rate: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        servers: dict[str, Served] = {}
        for who, arguments in SERVERS.items():
            fill(folder / who)
            data = ("--data-dir", str(folder / who))
            servers[who] = stack.enter_context(imagekin(folder, who, (*data, *arguments)))
        requests = payloads(folder)
        for number in range(options.rounds + 1):
            for callers in (1, 8):
                for who in random.sample(list(SERVERS), len(SERVERS)):
                    served = servers[who]
                    load = Load(
                        served.address,
                        "/imagekin.v1.Searcher/Search",
                        requests,
                        _SECONDS,
                        warm_up=0.3,
                        concurrency=callers,
                        pids=served.pids(),
                    )
                    found = generate(load)
                    if number:
                        cpu.setdefault((callers, who), []).append(1e6 * found.server_cpu / found.good)
                        rate.setdefault((callers, who), []).append(found.good / found.seconds)
    rows, targets, figures = [], [], {}
    for (callers, who), values in cpu.items():
        over = ratio(values, cpu[callers, "neither"])
        speed = ratio(rate[callers, who], rate[callers, "neither"])
        figures[f"{who}, {callers} callers"] = [float(np.median(values)), over, speed]
        rows.append([f"{callers}", who, f"{np.median(values):,.0f} µs", f"{over:.3f}×", f"{speed:.3f}×"])
        if who == "HTTP":
            targets.append(Target(f"processor time with HTTP, {callers} callers", over, 1.02, at_least=False))
    columns = ["callers", "with", "server's processor time a call", "over neither", "calls a second, over neither"]
    report("gRPC beside an idle HTTP listener", columns, rows, targets, figures, ("grpcio", "uvicorn"))


if __name__ == "__main__":
    main()
