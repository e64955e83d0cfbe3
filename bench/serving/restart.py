"""The section `restart` of `bench/serve.py`: a writer is killed under load and started again, a replica beside it."""

import os
import signal
import statistics
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from bench.searching.common import fill, unit_vectors
from bench.serving.load import Load, Outcome
from bench.serving.process import Served, generate, imagekin
from bench.serving.sections import SEARCH, Bench, Result
from imagekin import Client, Item
from imagekin.client.retries import RetryPolicy
from imagekin.errors import ImagekinError
from imagekin.index.local.catalog import Catalog
from imagekin.v1 import common_pb2, searcher_pb2, searcher_pb2_grpc

DIM = 128
# Searches a second on each server, and items of one upsert: enough that calls are under way whenever the kill comes.
_RATE = 20.0
_ITEMS = 16
_WRITERS = 4
_BEFORE_KILL_SECONDS = 2.0
_LOAD_SECONDS = 5.0


@dataclass
class _Writers:
    """Threads that upsert until the server is gone, with the keys that it has acknowledged."""

    address: str
    number: int
    acknowledged: list[str] = field(default_factory=list)
    broken: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, writer: int) -> None:
        """Write until the first failure."""
        vectors = unit_vectors(_ITEMS, DIM, 1000 * self.number + writer)
        with Client(self.address, timeout=20, retry=RetryPolicy(attempts=1)) as client:
            for turn in range(1_000_000):
                keys = [f"round {self.number}, {writer}-{turn}-{each}" for each in range(_ITEMS)]
                try:
                    client.upsert("bench", [Item(key, vector=row) for key, row in zip(keys, vectors, strict=True)])
                except ImagekinError:
                    self.broken += 1
                    return
                self.acknowledged += keys


def restart(bench: Bench) -> Result:
    """Kill a writer of a million vectors under reads and writes, start it again, and check that nothing is lost.

    A read-only replica of the same folder answers searches all the time. What is counted: calls to the replica that
    fail, acknowledged items that are gone, and the time from the start of the new process to its first answer.
    """
    count, data = int(1_000_000 * bench.items), bench.folder / "million"
    with Catalog(data) as catalog:
        fill(catalog, unit_vectors(count, DIM))
    payload = bench.folder / "vector.bin"
    payload.write_bytes(_request().SerializeToString())
    seconds, idle, lost, broken = [], [], 0, 0
    outcomes: list[Outcome] = []
    written = 0
    replica_options = ["--data-dir", str(data), "--read-only"]
    for number in range(bench.rounds):
        with (
            imagekin(bench.folder, f"writer{number}", ["--data-dir", str(data)]) as writer,
            imagekin(bench.folder, f"replica{number}", replica_options) as replica,
            ThreadPoolExecutor() as pool,
        ):
            kept, watched = _kill_under_load(pool, writer, replica, payload, number)
            began = time.perf_counter()
            with imagekin(bench.folder, f"again{number}", ["--data-dir", str(data)]) as again:
                _first_answer(again.address)
                seconds.append(time.perf_counter() - began)
                with Client(again.address, timeout=60) as client:
                    found = {item.key for item in client.get("bench", kept.acknowledged) if item is not None}
            outcomes.append(watched.result())
            lost += len(set(kept.acknowledged) - found)
            broken += kept.broken
            written += len(kept.acknowledged)
        began = time.perf_counter()
        with imagekin(bench.folder, f"idle{number}", ["--data-dir", str(data)]) as alone:
            _first_answer(alone.address)
            idle.append(time.perf_counter() - began)
    result = Result()
    what = f"{count:,} × {DIM}"
    result.add(f"killed under load: restart to first answer, {what}", statistics.median(seconds), "s", 2.0, False)
    result.add(f"nothing else at work: start to first answer, {what}", statistics.median(idle), "s", 2.0, False)
    result.add("acknowledged before the kills", written, "items")
    result.add("… of them gone afterwards", lost, "items", 0, False)
    result.add("writing calls that the kills broke", broken, "calls")
    failed = sum(count for each in outcomes for code, count in each.codes.items() if code != "OK")
    result.add("searches of the replica meanwhile", sum(each.good for each in outcomes), "calls")
    result.add("… of them failed", failed, "calls", 0, False)
    return result


def _kill_under_load(
    pool: ThreadPoolExecutor, writer: Served, replica: Served, payload: Path, number: int
) -> tuple[_Writers, Future[Outcome]]:
    """Put load on both and kill the writer; return the keys it has acknowledged, and the replica's outcome."""
    load = Load(replica.address, SEARCH, (str(payload),), _LOAD_SECONDS, warm_up=0.5, concurrency=4, rate=_RATE)
    watched = pool.submit(generate, load)
    pool.submit(generate, replace(load, address=writer.address))
    writers = _Writers(writer.address, number)
    running = [pool.submit(writers.run, each) for each in range(_WRITERS)]
    time.sleep(_BEFORE_KILL_SECONDS)
    os.kill(writer.pid, signal.SIGKILL)
    for each in running:
        each.result()
    return writers, watched


def _request() -> searcher_pb2.SearchRequest:
    vector = common_pb2.Vector(data=unit_vectors(1, DIM, 9).astype("<f4").tobytes(), dim=DIM)
    return searcher_pb2.SearchRequest(collection="bench", queries=[common_pb2.Query(vector=vector)])


def _first_answer(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        answer = searcher_pb2_grpc.SearcherStub(channel).Search(_request(), wait_for_ready=True, timeout=60)
    if len(answer.results[0].neighbours) != 10:
        raise RuntimeError("the restarted server gives another answer")
