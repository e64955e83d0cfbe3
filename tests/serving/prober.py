"""Asks a server's health over and over from a process of its own, and says how long the longest answers took.

    python -m tests.serving.prober HOST:PORT

Asks until its standard input ends. For each line that it reads there it prints the seconds that probes took since the
line before, as JSON: `{"probes": N, "worst": S, "p999": S, "median": S}`.
"""

import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

_PAUSE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Waits:
    """How long probes waited for their answers.

    Attributes:
        probes: how many there were.
        worst: seconds of the longest.
        p999: seconds within which 99.9 % were answered.
        median: seconds within which half were answered.
    """

    probes: int
    worst: float
    p999: float
    median: float


class Prober:
    """A running prober."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def waits(self) -> Waits:
        """Return how long the probes since the last call waited."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Waits(**json.loads(self._process.stdout.readline()))


@contextmanager
def probing(address: str) -> Iterator[Prober]:
    """Probe a server for the length of a block."""
    command = [sys.executable, "-m", "tests.serving.prober", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        prober = Prober(process)
        prober.waits()
        try:
            yield prober
        finally:
            assert process.stdin is not None
            process.stdin.close()


async def _probe(address: str) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest())
        wanted = asyncio.ensure_future(lines.readline())
        seconds: list[float] = []
        while True:
            start = time.perf_counter()
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
            seconds.append(time.perf_counter() - start)
            if wanted.done():
                if not wanted.result():
                    return
                seconds.sort()
                waits = Waits(len(seconds), seconds[-1], _quantile(seconds, 0.999), _quantile(seconds, 0.5))
                print(json.dumps(dataclasses.asdict(waits)), flush=True)
                seconds = []
                wanted = asyncio.ensure_future(lines.readline())
            await asyncio.sleep(_PAUSE_SECONDS)


def _quantile(ascending: list[float], share: float) -> float:
    return ascending[int(share * (len(ascending) - 1))]


if __name__ == "__main__":
    asyncio.run(_probe(sys.argv[1]))
