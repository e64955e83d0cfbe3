"""Abuses a real server process in every way that a client can, and checks that it serves on as if nothing had been.

    python -m tests.serving.abuse [--calls 10000] [--messages 100000] [--idle 1000] [--readers 16] [--seed 0]

Good, bad, cancelled, expired and half-sent calls at once; malformed messages to every method; decompression bombs;
floods that are packed small, to every method; clients that ask and never read, that send their requests byte by byte,
or take all their calls back at once; a client that takes all it can; connections that say nothing. Meanwhile and
afterwards good calls get the very answer that they got before, no answer is INTERNAL or UNKNOWN, and memory and file
descriptors come back to where they were.
Prints one JSON line; its exit status is 1 when a promise is broken.
"""

import argparse
import asyncio
import contextlib
import gzip
import io
import json
import os
import random
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from PIL import Image as Picture

from imagekin.machine import raise_open_files
from imagekin.serving.server import SERVICES
from imagekin.serving.services.reflection import REFLECTION
from imagekin.v1 import collections_pb2, common_pb2, embedder_pb2, searcher_pb2
from tests.artifacts import tiny_artifact
from tests.e2e.processes import Server, running_server
from tests.serving import http2
from tests.serving.running import image

EMBED = http2.EMBED
SEARCH = "/imagekin.v1.Searcher/Search"
LIST = "/imagekin.v1.Collections/ListCollections"
RELOAD = "/imagekin.v1.Admin/Reload"
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
BUGS = ("INTERNAL", "UNKNOWN")
ITEMS = 64
AT_ONCE = 48
# What the allocator and Python keep of a burst, beside a tenth.
SLACK_MEGABYTES = 24.0
# What they keep of a connection that is closed.
CONNECTION_MEGABYTES = 0.016
SPARE_DESCRIPTORS = 8
READER_REQUESTS = 2000
BOMBS = 50
BOMB_SECONDS = 0.005
BOMB_MEGABYTES = 1.0
FLOODS = 10
FLOOD_MEGABYTES = 64.0


@dataclass(slots=True)
class Findings:
    """What the abuse found.

    Attributes:
        codes: by kind of call, how often it ended with each status code.
        broken: promises that were not kept, in words.
        figures: what was measured.
    """

    codes: dict[str, Counter[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def ended(self, kind: str, code: str, allowed: frozenset[str]) -> None:
        """Count the end of a call; a code that it may not have is a broken promise."""
        counter = self.codes.setdefault(kind, Counter())
        counter[code] += 1
        if code not in allowed and counter[code] == 1:
            self.broken.append(f"{kind}: ended with {code}")

    def expect(self, holds: bool, promise: str) -> None:
        """Note a promise that was not kept."""
        if not holds:
            self.broken.append(promise)


class Abuser:
    """Speaks to one server, well and badly.

    Args:
        server: the process.
        channel: to it.
        seed: of everything random.
    """

    def __init__(self, server: Server, channel: grpc.aio.Channel, seed: int) -> None:
        self.server = server
        self.channel: Any = channel  # raw bytes go through it, which its types do not foresee
        self.random = random.Random(seed)  # noqa: S311 (not for secrets)
        self.findings = Findings()
        self.good = embedder_pb2.EmbedRequest(images=[image(1), image(2)]).SerializeToString()
        self.search = searcher_pb2.SearchRequest(
            collection="shop", k=5, queries=[common_pb2.Query(image=image(3))]
        ).SerializeToString()
        self.expected: dict[str, bytes] = {}

    async def prepare(self) -> None:
        """Fill a collection, and note the answers that good calls get."""
        create = collections_pb2.CreateCollectionRequest(name="shop")
        await self._call("/imagekin.v1.Collections/CreateCollection", create.SerializeToString())
        items = [common_pb2.Item(key=f"k{number}", label="a", image=image(number)) for number in range(ITEMS)]
        upsert = collections_pb2.UpsertRequest(collection="shop", items=items)
        await self._call("/imagekin.v1.Collections/Upsert", upsert.SerializeToString())
        self.expected = {EMBED: await self._call(EMBED, self.good), SEARCH: await self._call(SEARCH, self.search)}

    async def check_answers(self, when: str) -> None:
        """Good calls get the answers that they always got."""
        for path, request in ((EMBED, self.good), (SEARCH, self.search)):
            try:
                same = await self._call(path, request) == self.expected[path]
            except grpc.aio.AioRpcError as error:
                same = False
                self.findings.broken.append(f"{when}: {path} ended with {error.code().name}")
            self.findings.expect(same, f"{when}: {path} answers differently")

    async def mixed(self, calls: int) -> None:
        """Good, bad, cancelled, expired and half-sent calls, many at once."""
        kinds: tuple[Callable[[], Awaitable[None]], ...] = (
            self._good,
            self._searching,
            self._bad,
            self._cancelled,
            self._expired,
            self._half_sent,
        )
        await self._many(calls, lambda: self.random.choice(kinds)())

    async def fuzz(self, messages: int) -> None:
        """Send malformed messages to every method of every service."""
        pool = descriptor_pool.Default()
        paths = [
            (f"/{service}/{method.name}", method.name.endswith("Stream"))
            for service in SERVICES
            for method in pool.FindServiceByName(service).methods
        ]
        seeds = (self.good, *_seed_messages())
        await self._many(messages, lambda: self._malformed(*self.random.choice(paths), seeds))

    async def bombs(self) -> None:
        """Send pictures that are small on the wire and huge in memory; each is refused by its header alone."""
        request = embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=bomb(20_000))]).SerializeToString()
        await self._call(EMBED, request)
        before, seconds = self.server.resident_megabytes(), []
        for _ in range(BOMBS):
            start = time.perf_counter()
            answer = embedder_pb2.EmbedResponse.FromString(await self._call(EMBED, request))
            seconds.append(time.perf_counter() - start)
            refused = answer.results[0].error.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            self.findings.expect(refused, "a decompression bomb was decoded")
        growth = self.server.resident_megabytes() - before
        self.findings.figures |= {"bomb_milliseconds": 1000 * statistics.median(seconds), "bomb_megabytes": growth}
        self.findings.expect(growth < BOMB_MEGABYTES, f"{BOMBS} bombs cost {growth:.1f} MB")

    async def slow_readers(self, readers: int) -> None:
        """Streams that send on and on and read nothing: the server stops reading them and serves others."""
        message = embedder_pb2.EmbedStreamRequest(batch=embedder_pb2.EmbedRequest.FromString(self.good))
        before = self.server.resident_megabytes()
        channels: list[Any] = [
            grpc.aio.insecure_channel(self.server.address, _own_connection(place)) for place in range(readers)
        ]
        data = message.SerializeToString()

        async def requests() -> AsyncIterator[bytes]:
            for _ in range(READER_REQUESTS):
                yield data

        calls = [channel.stream_stream("/imagekin.v1.Embedder/EmbedStream")(requests()) for channel in channels]
        await asyncio.sleep(2)
        await self.check_answers("while others do not read")
        growth = self.server.resident_megabytes() - before
        self.findings.figures["slow_readers_megabytes"] = growth
        self.findings.expect(growth < SLACK_MEGABYTES + 2 * readers, f"{readers} slow readers cost {growth:.0f} MB")
        for call in calls:
            call.cancel()
        await asyncio.gather(*(channel.close() for channel in channels))

    async def idle_connections(self, count: int) -> None:
        """Connections that say hello and then nothing: others are served meanwhile."""
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(http2.connected(self.server.address)).sendall(http2.hello())
            await asyncio.sleep(0.5)
            self.findings.figures["descriptors_with_idle"] = _descriptors(self.server)
            await self.check_answers(f"with {count} idle connections")

    async def floods(self) -> None:
        """Send 60 MiB of zeros, packed into 60 KB, to every method, several at once; each costs next to nothing."""
        pool, packed = descriptor_pool.Default(), gzip.compress(bytes(60 * 2**20))
        names = (*SERVICES, "grpc.health.v1.Health", *REFLECTION)
        paths = [f"/{name}/{method.name}" for name in names for method in pool.FindServiceByName(name).methods]
        before = self.server.resident_megabytes()
        for path in paths:
            if path == RELOAD or path.endswith("Watch"):
                continue  # these answer, as they do
            ends = await asyncio.to_thread(http2.flood, self.server.address, path, packed, FLOODS)
            self.findings.expect(len(ends) == FLOODS, f"{path} left packed floods without an answer")
        growth = self.server.resident_megabytes() - before
        self.findings.figures["floods_megabytes"] = growth
        self.findings.expect(growth < FLOOD_MEGABYTES, f"packed floods cost {growth:.0f} MB")
        await self.check_answers("after packed floods")

    async def slow_bodies(self, count: int) -> None:
        """Send requests byte by byte: others are served meanwhile."""
        whole = http2.hello() + http2.headers(self.server.address) + http2.begun_message(len(self.good))
        with ExitStack() as stack:
            connections = [stack.enter_context(http2.connected(self.server.address)) for _ in range(count)]
            for connection in connections:
                connection.sendall(whole)
            for byte in self.good[:10]:
                for connection in connections:
                    connection.sendall(bytes([byte]))
                await asyncio.sleep(0.05)
            await self.check_answers(f"beside {count} slow bodies")

    async def rapid_reset(self, calls: int) -> None:
        """Begin calls and take each back at once, on one connection, which may end for it (CVE-2023-44487)."""
        call = b"".join(
            http2.headers(self.server.address, stream=2 * number + 1) + http2.reset(2 * number + 1)
            for number in range(calls)
        )
        with http2.connected(self.server.address) as connection, contextlib.suppress(OSError):
            connection.sendall(http2.hello())
            await asyncio.to_thread(connection.sendall, call)
        await self.check_answers(f"after {calls} calls that were taken back")

    async def unfair(self) -> None:
        """Ask for many large pictures in one call: a client with small ones is answered beside it, not behind it.

        Behind it, no more than one small call is answered meanwhile, however many pictures there are. A quick machine
        may be through with a few before a second one is asked, so more are tried then.
        """
        alone = [await self._seconds() for _ in range(20)]
        for images in (64, 128, 256):
            start = time.perf_counter()
            beside = await self._beside(images)
            if len(beside) > 1:
                break
        self.findings.figures |= {
            "unfair_images": images,
            "unfair_seconds": time.perf_counter() - start,
            "small_alone_milliseconds": 1000 * statistics.median(alone),
            "small_beside_milliseconds": 1000 * statistics.median(beside) if beside else 0.0,
            "small_beside_longest_milliseconds": 1000 * max(beside, default=0.0),
            "small_beside_calls": len(beside),
        }
        self.findings.expect(len(beside) > 1, "small calls waited for all the large pictures of another client")

    async def _beside(self, images: int) -> list[float]:
        """Return the seconds that each small call took that began while the large one was held."""
        large = embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=large_png())] * images)
        beside: list[float] = []
        async with grpc.aio.insecure_channel(self.server.address, _own_connection(-1)) as channel:
            other: Any = channel
            bulk = asyncio.ensure_future(other.unary_unary(EMBED)(large.SerializeToString(), timeout=600))
            await asyncio.sleep(0.2)
            while not bulk.done():
                beside.append(await self._seconds())
                await asyncio.sleep(0.02)
            await bulk
        return beside

    async def _seconds(self) -> float:
        start = time.perf_counter()
        await self._same(EMBED, self.good, "a small call beside a large one")
        return time.perf_counter() - start

    async def settle(self) -> tuple[float, int]:
        """Drop what malformed messages have made, wait for descriptors; return memory in MiB and descriptors."""
        listed = collections_pb2.ListCollectionsResponse.FromString(await self._call(LIST, b""))
        for collection in listed.collections:
            if collection.name != "shop":
                request = collections_pb2.DropCollectionRequest(name=collection.name)
                await self._call("/imagekin.v1.Collections/DropCollection", request.SerializeToString())
        lowest = _descriptors(self.server)
        for _ in range(20):
            await asyncio.sleep(0.25)
            now = _descriptors(self.server)
            if now >= lowest:
                break
            lowest = now
        return self.server.resident_megabytes(), _descriptors(self.server)

    async def _many(self, count: int, one: Callable[[], Awaitable[None]]) -> None:
        left = iter(range(count))

        async def worker() -> None:
            for _ in left:
                await one()

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    async def _call(self, path: str, data: bytes, timeout: float = 60.0) -> bytes:
        answer: bytes = await self.channel.unary_unary(path)(data, timeout=timeout)
        return answer

    async def _good(self) -> None:
        code = await self._code(self._same(EMBED, self.good, "a good call"))
        self.findings.ended("good", code, frozenset({"OK"}))

    async def _searching(self) -> None:
        code = await self._code(self._same(SEARCH, self.search, "a good search"))
        self.findings.ended("search", code, frozenset({"OK"}))

    async def _same(self, path: str, data: bytes, kind: str) -> None:
        self.findings.expect(await self._call(path, data) == self.expected[path], f"{kind} got another answer")

    async def _bad(self) -> None:
        data = self.random.randbytes(self.random.randint(0, 2000))
        request = embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=data)])
        try:
            answer = embedder_pb2.EmbedResponse.FromString(await self._call(EMBED, request.SerializeToString()))
            code = _NAMES[answer.results[0].error.status.code]
        except grpc.aio.AioRpcError as error:
            code = f"call {error.code().name}"
        self.findings.ended("bad", code, frozenset({"INVALID_ARGUMENT"}))

    async def _cancelled(self) -> None:
        call = self.channel.unary_unary(EMBED)(self.good)
        await asyncio.sleep(self.random.random() * 0.005)
        call.cancel()
        code = await self._code(call)
        self.findings.ended("cancelled", code, frozenset({"OK", "CANCELLED"}))

    async def _expired(self) -> None:
        code = await self._code(self._call(EMBED, self.good, timeout=self.random.random() * 0.005))
        # The last one: refused at once, because the answer would have come too late.
        allowed = frozenset({"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
        self.findings.ended("expired", code, allowed)

    async def _half_sent(self) -> None:
        """Begin a call on a connection of its own, and hang up in the middle of it."""
        whole = (
            http2.hello() + http2.headers(self.server.address) + http2.begun_message(len(self.good)) + self.good[:100]
        )
        host, _, port = self.server.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(whole[: self.random.randint(1, len(whole))])
        await asyncio.sleep(self.random.random() * 0.005)
        writer.transport.abort()
        self.findings.ended("half-sent", "hung up", frozenset({"hung up"}))

    async def _malformed(self, path: str, streamed: bool, seeds: tuple[bytes, ...]) -> None:
        if path == RELOAD and self.random.random() > 0.002:
            path = EMBED  # an empty message is a good reload, which takes its time
        data = _mutated(self.random, self.random.choice(seeds))
        if streamed:
            code = await self._code(_drain(self.channel.stream_stream(path)(_one(data), timeout=60)))
        else:
            code = await self._code(self._call(path, data))
        self.findings.codes.setdefault("malformed", Counter())[code] += 1
        if code in BUGS:
            self.findings.broken.append(f"malformed: {path} ended with {code}: {data[:40].hex()}")

    async def _code(self, call: Awaitable[object]) -> str:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        except asyncio.CancelledError:
            return "CANCELLED"
        return "OK"


async def abuse(server: Server, *, calls: int, messages: int, idle: int, readers: int, seed: int = 0) -> Findings:
    """Do all of it to a server, and say what was found."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        abuser = Abuser(server, channel, seed)
        await abuser.prepare()
        # Once in small, so that what is kept for good (threads, pools, compiled code) is there before the account.
        await abuser.mixed(max(200, calls // 10))
        await abuser.fuzz(max(200, messages // 50))
        await abuser.slow_readers(readers)
        await abuser.floods()
        await abuser.unfair()
        memory, descriptors = await abuser.settle()
        await abuser.bombs()
        await abuser.mixed(calls)
        await abuser.check_answers("after mixed calls")
        mixed, _ = await abuser.settle()
        await abuser.fuzz(messages)
        await abuser.check_answers("after malformed messages")
        malformed, _ = await abuser.settle()
        await abuser.slow_readers(readers)
        await abuser.floods()
        await abuser.slow_bodies(max(10, idle // 10))
        await abuser.rapid_reset(max(1000, calls // 2))
        await abuser.unfair()
        await abuser.idle_connections(idle)
        first, _ = await abuser.settle()
        await abuser.idle_connections(idle)
        # The allocator gives back what a burst has left over only when there is work again.
        await abuser.mixed(max(200, calls // 10))
        await abuser.check_answers("at the end")
        after, left = await abuser.settle()
    findings = abuser.findings
    findings.figures |= {
        "megabytes_before": memory,
        "megabytes_after_mixed": mixed,
        "megabytes_after_malformed": malformed,
        "megabytes_after_idle": first,
        "megabytes_after": after,
        "descriptors_before": descriptors,
        "descriptors_after": left,
    }
    for level in (mixed, malformed):
        findings.expect(level < 1.1 * memory + SLACK_MEGABYTES / 2, f"memory rose from {memory:.0f} to {level:.0f} MB")
    most = 1.1 * memory + SLACK_MEGABYTES + CONNECTION_MEGABYTES * idle
    findings.expect(after < most, f"memory rose from {memory:.0f} to {after:.0f} MB")
    # What is kept of the first idle connections serves the second ones.
    findings.expect(after < 1.1 * first + SLACK_MEGABYTES, f"memory rose from {first:.0f} to {after:.0f} MB")
    findings.expect(left <= descriptors + SPARE_DESCRIPTORS, f"descriptors rose from {descriptors} to {left}")
    findings.expect(server.process.poll() is None, "the server ended")
    return findings


def bomb(side: int) -> bytes:
    """Return a small PNG that says it has side × side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def large_png() -> bytes:
    """Return a PNG of four megapixels, which takes a tenth of a second to decode."""
    file = io.BytesIO()
    Picture.linear_gradient("L").resize((2000, 2000)).convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()


def _seed_messages() -> tuple[bytes, ...]:
    """Return good messages for others to be made of, all about a collection that may come to harm."""
    victim, query = "victim", common_pb2.Query(image=image(4))
    messages = (
        collections_pb2.CreateCollectionRequest(name=victim),
        collections_pb2.UpsertRequest(collection=victim, items=[common_pb2.Item(key="z", label="b", image=image(4))]),
        collections_pb2.CountRequest(collection=victim, filter=common_pb2.Filter(text='label = "b" AND key < "zz"')),
        collections_pb2.ScrollRequest(collection=victim, page_size=3),
        searcher_pb2.SearchRequest(collection=victim, k=3, queries=[query]),
        searcher_pb2.ClassifyRequest(collection=victim, queries=[query]),
    )
    return tuple(message.SerializeToString() for message in messages)


def _mutated(rng: random.Random, message: bytes) -> bytes:
    """Return the message with some bytes changed, doubled or cut away."""
    data = bytearray(message)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(data)) if data else 0
        match rng.randrange(4):
            case 0 if data:
                data[place] = rng.randrange(256)
            case 1:
                data[place:place] = rng.randbytes(rng.randint(1, 8))
            case 2 if data:
                del data[place : place + rng.randint(1, 8)]
            case _:
                data[place:place] = data[: rng.randint(0, 32)]
    return bytes(data[: rng.randint(0, len(data))]) if rng.random() < 0.2 else bytes(data)


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _drain(call: AsyncIterator[bytes]) -> None:
    async for _ in call:
        pass


def _own_connection(number: int) -> list[tuple[str, int]]:
    """Return options that keep the channel from sharing another one's connection."""
    return [("grpc.use_local_subchannel_pool", 1), ("imagekin.number", number)]


def _descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000, help="mixed calls")
    parser.add_argument("--messages", type=int, default=100_000, help="malformed messages")
    parser.add_argument("--idle", type=int, default=1_000, help="idle connections")
    parser.add_argument("--readers", type=int, default=16, help="streams that are not read")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    # Each idle connection is a file here, too.
    raise_open_files()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_artifact(folder / "model.onnx", size=8)
        with running_server(model, folder / "data") as server:
            found = asyncio.run(
                abuse(
                    server,
                    calls=given.calls,
                    messages=given.messages,
                    idle=given.idle,
                    readers=given.readers,
                    seed=given.seed,
                )
            )
            traces = sum("Traceback" in line for line in server.log)
    found.expect(traces == 0, f"the log has {traces} traces")
    figures = {name: round(value, 3) for name, value in found.figures.items()}
    print(json.dumps({"codes": found.codes, "figures": figures, "broken": found.broken}))
    return 1 if found.broken else 0


if __name__ == "__main__":
    sys.exit(main())
