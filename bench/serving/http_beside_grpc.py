"""Measure HTTP beside gRPC: the server's processor time of a search over each, in turn, and that of thumbnails.

    python bench/serving/http_beside_grpc.py [--model model.onnx --photos SOURCE]

A search by key and one by vector of ten neighbours in 10,000 items of 128 components go to one server process, some
hundred at a time over one connection each; with a model, also a search by picture. With photos, decoding for the model
is compared with decoding for the model and a thumbnail of 160 pixels.
"""

import argparse
import http.client
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np

from imagekin.encoder.decoding.decode import load_pixels
from imagekin.encoder.decoding.thumbnail import load_with_thumbnail
from imagekin.encoder.metadata import Preprocess
from imagekin.encoder.runtime.tuning import open_for_files
from imagekin.index.local.catalog import Catalog
from imagekin.index.types import VectorItem
from imagekin.sources.open import open_sources
from imagekin.v1 import common_pb2, searcher_pb2, searcher_pb2_grpc

ITEMS, DIM, K = 10_000, 128, 10


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has taken."""
    # In nanoseconds, where /proc/PID/stat counts ticks of ten milliseconds.
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def server(folder: Path, model: Path | None) -> Iterator[tuple[int, int, int]]:
    """Start a server; yields its process, its port and the one of HTTP."""
    ports = folder / "port", folder / "http"
    command = [sys.executable, "-c", "from imagekin.cli.main import main; main()", "serve"]
    command += ["--data-dir", str(folder / "data"), "--address", "127.0.0.1:0", "--port-file", str(ports[0])]
    command += ["--http-address", "127.0.0.1:0", "--http-port-file", str(ports[1])]
    command += [] if model is None else ["--model", str(model)]
    process = subprocess.Popen(command)
    try:
        while not all(port.exists() for port in ports):
            time.sleep(0.05)
            assert process.poll() is None
        yield process.pid, int(ports[0].read_text()), int(ports[1].read_text())
    finally:
        process.terminate()
        process.wait(60)


def compare(
    pid: int, count: int, rounds: int, first: Callable[[], object], second: Callable[[], object]
) -> list[float]:
    """Return the server's microseconds a call of each, the medians of several rounds in turn."""
    found: tuple[list[float], list[float]] = ([], [])
    for call in (first, second):
        for _ in range(count // 4):
            call()
    for _ in range(rounds):
        for place, call in enumerate((first, second)):
            before = cpu_seconds(pid)
            for _ in range(count):
                call()
            found[place].append((cpu_seconds(pid) - before) / count * 1e6)
    return [statistics.median(each) for each in found]


def measure(model: Path | None, picture: bytes, count: int, rounds: int) -> dict[str, list[float]]:
    """Measure the searches."""
    metadata = None if model is None else open_for_files(model, "cpu").metadata
    dim, space = (DIM, "s") if metadata is None else (metadata.dim, metadata.space)
    vectors = np.random.default_rng(0).standard_normal((ITEMS, dim)).astype(np.float32)
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with Catalog(folder / "data") as catalog:
            shop = catalog.create("shop", space=space, dim=dim)
            for start in range(0, ITEMS, 1_000):
                rows = enumerate(vectors[start : start + 1_000], start)
                shop.upsert([VectorItem(f"k{number}", vector, f"label {number % 50}") for number, vector in rows])
        with server(folder, model) as (pid, port, http_port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = searcher_pb2_grpc.SearcherStub(channel)
            connection = http.client.HTTPConnection("127.0.0.1", http_port)

            def over_http(path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
                headers = {} if body is None else {"content-type": kind}
                connection.request("GET" if body is None else "POST", f"/v1/collections/shop/{path}", body, headers)
                answer = connection.getresponse()
                assert answer.status == 200
                return answer.read()

            def over_grpc(query: common_pb2.Query) -> object:
                return stub.Search(searcher_pb2.SearchRequest(collection="shop", queries=[query], k=K))

            numbers = itertools.cycle(range(ITEMS))
            key: Callable[[], common_pb2.Query] = lambda: common_pb2.Query(key=f"k{next(numbers)}")  # noqa: E731
            figures["key"] = compare(
                pid,
                count,
                rounds,
                lambda: over_grpc(key()),
                lambda: over_http(f"search?key=k{next(numbers)}&k={K}"),
            )
            vector = vectors[0]
            query = common_pb2.Query(vector=common_pb2.Vector(data=vector.tobytes(), dim=dim))
            body = json.dumps({"queries": [{"vector": vector.tolist()}], "k": K}).encode()
            figures["vector as an array"] = compare(
                pid, count, rounds, lambda: over_grpc(query), lambda: over_http("search", body)
            )
            if model is not None:
                image = common_pb2.Query(image=common_pb2.Image(data=picture))
                figures["picture"] = compare(
                    pid,
                    count // 10,
                    rounds,
                    lambda: over_grpc(image),
                    lambda: over_http(f"search?k={K}", picture, "image/jpeg"),
                )
            connection.close()
    return figures


def thumbnails(files: list[bytes], rounds: int) -> list[float]:
    """Return the milliseconds of processor time a photo without and with a thumbnail, in turn."""
    preprocess = Preprocess(height=224, width=224)

    def alone(data: bytes) -> object:
        return load_pixels(data, preprocess)

    def both(data: bytes) -> object:
        return load_with_thumbnail(data, preprocess, 160)

    found: dict[Callable[[bytes], object], list[float]] = {alone: [], both: []}
    for _ in range(rounds):
        for load, times in found.items():
            before = time.process_time()
            for data in files:
                load(data)
            times.append((time.process_time() - before) / len(files) * 1e3)
    return [statistics.median(times) for times in found.values()]


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--photos")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    records = itertools.islice(open_sources([given.photos]), 100) if given.photos else ()
    files = [record.data for record in records if isinstance(record.data, bytes)]
    figures = measure(given.model if files else None, files[0] if files else b"", given.count, given.rounds)
    for name, (first, second) in figures.items():
        print(f"{name}: gRPC {first:,.0f} µs, HTTP {second:,.0f} µs, {second / first:.2f}×")
    if files:
        figures["thumbnail"] = pair = thumbnails(files, 3)
        more = (pair[1] - pair[0]) * 10
        print(f"decoding {pair[0]:.2f} ms, with a thumbnail {pair[1]:.2f} ms: {more:.1f} s more per 10,000")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
