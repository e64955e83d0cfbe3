"""The load generator of `bench/serve.py`: send ready-made requests from its own process and time the answers.

    python -m bench.serving.load < SPECIFICATION.json

Closed loop: `concurrency` callers, each sends the next request when the last one is answered. Open loop: requests are
sent at the times of a Poisson process of `rate` a second whether answers come or not, and an answer's time counts from
the moment at which its request was due. Bytes go out as they are, so that next to no time is spent here. The last line
of standard output is the `Outcome` as JSON.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
import numpy as np

_TICK = os.sysconf("SC_CLK_TCK")
# Requests on their way in one stream; more would only wait in the server.
_STREAM_WINDOW = 4


@dataclass(frozen=True, slots=True)
class Load:
    """Load to send.

    Attributes:
        address: `HOST:PORT`.
        method: a gRPC method's path, or `http:PATH` for HTTP/1.1 POST.
        payloads: files, each the bytes of one request; sent in turn.
        seconds: length of the measured window.
        warm_up: seconds before it.
        concurrency: callers of the closed loop, or connections of the open one.
        rate: requests a second of the open loop; 0 for the closed loop.
        timeout: deadline of each call in seconds; 0 for none.
        content_type: of an HTTP request.
        streamed: send on bidirectional streams, one per caller.
        pids: the server's processes, whose CPU time is read around the window.
        cpus: logical processors of the generator; empty for any.
    """

    address: str
    method: str
    payloads: tuple[str, ...]
    seconds: float
    warm_up: float = 1.0
    concurrency: int = 1
    rate: float = 0.0
    timeout: float = 0.0
    content_type: str = "application/octet-stream"
    streamed: bool = False
    pids: tuple[int, ...] = ()
    cpus: tuple[int, ...] = ()


@dataclass(slots=True)
class Outcome:
    """Results within the measured window.

    Attributes:
        seconds: the window's length.
        good: answers that were right.
        total_good: right answers of the whole run, before and after the window included.
        codes: ends of calls by gRPC code or HTTP status.
        good_ms: milliseconds to each right answer, sorted.
        refused_ms: milliseconds to each RESOURCE_EXHAUSTED, sorted.
        server_cpu: CPU seconds of the server's processes.
        own_cpu: CPU seconds of the generator.
    """

    seconds: float = 0.0
    good: int = 0
    total_good: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    good_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    server_cpu: float = 0.0
    own_cpu: float = 0.0

    def percentile(self, share: float) -> float:
        """Return the milliseconds within which this share of the right answers came; not a number without any."""
        if not self.good_ms:
            return float("nan")
        return self.good_ms[min(int(share * len(self.good_ms)), len(self.good_ms) - 1)]


def cpu_seconds(pids: tuple[int, ...]) -> float:
    """Return the CPU seconds that processes have used, those of their children that have ended included."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        total += sum(int(number) for number in text[text.rindex(")") + 2 :].split()[11:15])
    return total / _TICK


class Sender(Protocol):
    """Send one request and return the name of its status code."""

    async def __call__(self, payload: bytes, caller: int) -> str:
        """Return the name of a status code."""


class _Grpc:
    def __init__(self, load: Load) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self.channels = [grpc.aio.insecure_channel(load.address, options) for _ in range(min(load.concurrency, 4))]
        self._calls: list[Any] = [channel.unary_unary(load.method) for channel in self.channels]
        self._timeout = load.timeout or None

    async def __call__(self, payload: bytes, caller: int) -> str:
        try:
            await self._calls[caller % len(self._calls)](payload, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"


class _Http:
    def __init__(self, load: Load) -> None:
        self._host, _, port = load.address.rpartition(":")
        self._port = int(port)
        kind = f"Content-Type: {load.content_type}"
        self._head = f"POST {load.method[5:]} HTTP/1.1\r\nHost: {self._host}\r\n{kind}\r\n"
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __call__(self, payload: bytes, caller: int) -> str:
        connection = self._free.pop() if self._free else await asyncio.open_connection(self._host, self._port)
        reader, writer = connection
        writer.write(f"{self._head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
        self._free.append(connection)
        status = head.split()[1]
        return "OK" if status == "200" else status


class _Window:
    """Count calls that end within the measured window."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.outcome = Outcome()
        self.began = time.perf_counter() + load.warm_up
        self.ends = self.began + load.seconds
        self._codes: Counter[str] = Counter()

    def over(self) -> bool:
        return time.perf_counter() >= self.ends

    def note(self, code: str, due: float) -> None:
        now = time.perf_counter()
        self.outcome.total_good += code == "OK"
        if not self.began <= now < self.ends:
            return
        self._codes[code] += 1
        if code == "OK":
            self.outcome.good += 1
            self.outcome.good_ms.append((now - due) * 1e3)
        elif code in ("RESOURCE_EXHAUSTED", "429", "503"):
            self.outcome.refused_ms.append((now - due) * 1e3)

    async def watch(self) -> None:
        """Read CPU times at both ends of the window."""
        await asyncio.sleep(self.began - time.perf_counter())
        start, server, own = time.perf_counter(), cpu_seconds(self.load.pids), time.process_time()
        await asyncio.sleep(self.ends - time.perf_counter())
        self.outcome.seconds = time.perf_counter() - start
        self.outcome.server_cpu = cpu_seconds(self.load.pids) - server
        self.outcome.own_cpu = time.process_time() - own

    def result(self) -> Outcome:
        self.outcome.codes = dict(self._codes)
        self.outcome.good_ms.sort()
        self.outcome.refused_ms.sort()
        return self.outcome


async def _closed(load: Load, payloads: list[bytes], send: Sender, window: _Window) -> None:
    async def caller(number: int) -> None:
        turn = number
        while not window.over():
            due = time.perf_counter()
            window.note(await send(payloads[turn % len(payloads)], number), due)
            turn += load.concurrency

    await asyncio.gather(*(caller(number) for number in range(load.concurrency)))


async def _open(load: Load, payloads: list[bytes], send: Sender, window: _Window) -> None:
    chance = np.random.default_rng(0)
    calls: set[asyncio.Task[None]] = set()

    async def one(turn: int, due: float) -> None:
        window.note(await send(payloads[turn % len(payloads)], turn % load.concurrency), due)

    due, turn = time.perf_counter(), 0
    while due < window.ends:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        calls.add(task := asyncio.create_task(one(turn, due)))
        task.add_done_callback(calls.discard)
        due, turn = due + chance.exponential(1 / load.rate), turn + 1
    await asyncio.wait(calls, timeout=10)


async def _streamed(load: Load, payloads: list[bytes], channel: Any, window: _Window) -> None:
    async def caller(number: int) -> None:
        places, sent = asyncio.Semaphore(_STREAM_WINDOW), list[float]()

        async def requests() -> AsyncIterator[bytes]:
            turn = number
            while not window.over():
                await places.acquire()
                sent.append(time.perf_counter())
                yield payloads[turn % len(payloads)]
                turn += load.concurrency

        async for _ in channel.stream_stream(load.method)(requests()):
            window.note("OK", sent.pop(0))
            places.release()

    await asyncio.gather(*(caller(number) for number in range(load.concurrency)))


async def generate(load: Load) -> Outcome:
    """Send the load and return its outcome."""
    if load.cpus:
        os.sched_setaffinity(0, load.cpus)
    payloads = [Path(path).read_bytes() for path in load.payloads]
    send: _Grpc | _Http = _Http(load) if load.method.startswith("http:") else _Grpc(load)
    window = _Window(load)
    run: Callable[[], Awaitable[None]]
    if load.streamed and isinstance(send, _Grpc):
        channel = send.channels[0]
        run = lambda: _streamed(load, payloads, channel, window)  # noqa: E731
    else:
        loop = _open if load.rate else _closed
        run = lambda: loop(load, payloads, send, window)  # noqa: E731
    await asyncio.gather(run(), window.watch())
    return window.result()


def main() -> None:
    """Read the specification from standard input and write the outcome to standard output."""
    read: dict[str, Any] = json.load(sys.stdin)
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}
    load = Load(**plain)
    print(json.dumps(asdict(asyncio.run(generate(load)))))


if __name__ == "__main__":
    main()
