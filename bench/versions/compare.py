"""Measure this version beside another one, each part in turn, on real embeddings and real models.

    python bench/versions/compare.py --other CHECKOUT --name PACKAGE --embeddings EMBEDDINGS.npy --model MODEL.onnx
        --other-model MODEL.onnx --images FOLDER [--sections search,store,serve,index,train] [--rounds N]

PACKAGE is the name of the other version's command and proto package. Both models are one network, as each saves it.
Both versions run in this environment, each from its own checkout, in processes that stay open or are run anew every
round, one after the other in an order that changes. A figure above 1 means that this version takes longer. Processor
time, where given, is that of all threads, and says more than the clock on a machine that does other things.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.harness import report
from bench.serving.load import cpu_seconds
from imagekin.v1 import common_pb2, embedder_pb2, searcher_pb2

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("search", "store", "serve", "index", "train")
_SLICE_SECONDS = 1.5
_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Version:
    """A version to measure.

    Attributes:
        checkout: its root.
        package: name of its command and of its proto package.
        model: the encoder, as it saves it.
    """

    checkout: Path
    package: str
    model: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which its own modules are found first."""
        return os.environ | {"PYTHONPATH": str(self.checkout)}

    def command(self, *arguments: str | Path) -> list[str]:
        """Return its command line with arguments."""
        return [sys.executable, "-m", self.package, *map(str, arguments)]


@dataclass(slots=True)
class Figures:
    """Processor time and time by the clock of one part, seconds, one figure per round and version."""

    cpu: dict[str, list[float]] = field(default_factory=lambda: {"this": [], "other": []})
    clock: dict[str, list[float]] = field(default_factory=lambda: {"this": [], "other": []})

    def add(self, who: str, cpu: float, clock: float) -> None:
        """Add a round's figures."""
        self.cpu[who].append(cpu)
        self.clock[who].append(clock)


Measure = Callable[[str], tuple[float, float]]


def in_turn(parts: Mapping[str, Measure], rounds: int) -> dict[str, Figures]:
    """Run each part of both versions once a round, after one uncounted round; return their figures by part."""
    found = {name: Figures() for name in parts}
    for number in range(rounds + 1):
        for name, measure in parts.items():
            for who in random.sample(("this", "other"), 2):
                cpu, clock = measure(who)
                if number:
                    found[name].add(who, cpu, clock)
    return found


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Yield a process and end it."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def store_parts(
    versions: Mapping[str, Version], embeddings: Path, folder: Path, stack: contextlib.ExitStack, *, search: bool
) -> dict[str, Measure]:
    """Open a collection in a process of each version; return parts that search it or write to it."""
    workers = {}
    for who, version in versions.items():
        script = Path(__file__).with_name("store_worker.py")
        home = folder / f"store-{who}-{search}"
        home.mkdir()
        command = [sys.executable, "-P", str(script), str(home), str(embeddings)]
        worker = subprocess.Popen(
            command, env=version.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        workers[who] = stack.enter_context(ended(worker))
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"

    def part(task: str) -> Measure:
        def measure(who: str) -> tuple[float, float]:
            given, answers = workers[who].stdin, workers[who].stdout
            assert given is not None
            assert answers is not None
            given.write(f"{task}\n")
            given.flush()
            cpu, clock = json.loads(answers.readline())
            return cpu, clock

        return measure

    if search:
        return {f"exact search, {n} queries at once": part(f"search {n}") for n in (1, 8, 64)}
    return {
        "replace 1,000 items, 100 at once": part("replace 100"),
        "replace 20 items, one by one": part("single 1"),
        "open and search once": part("reopen 1"),
    }


def run_part(versions: Mapping[str, Version], folder: Path, arguments: Callable[[Version, Path], list[str]]) -> Measure:
    """Return a part that runs a command to its end, with a folder of its own."""

    def measure(who: str) -> tuple[float, float]:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            command = arguments(versions[who], Path(own))
            clock = time.perf_counter()
            log = Path(own) / "log"
            with log.open("w") as out:
                process = subprocess.Popen(command, cwd=own, env=versions[who].environment, stdout=out, stderr=out)
                _, status, used = os.wait4(process.pid, 0)
            if status:
                raise RuntimeError(f"{' '.join(command)}: {log.read_text()}")
            return used.ru_utime + used.ru_stime, time.perf_counter() - clock

    return measure


def serve_parts(
    versions: Mapping[str, Version], embeddings: Path, images: Path, folder: Path, stack: contextlib.ExitStack
) -> dict[str, Measure]:
    """Start a server of each version, with a collection; return parts that send it requests."""
    vectors = np.load(embeddings)
    photos = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))[:100]]
    queries = vectors[:100].astype("<f4")
    embed = [embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=photo)]).SerializeToString() for photo in photos]
    search = []
    for query in queries:
        vector = common_pb2.Vector(data=query.tobytes(), dim=len(query))
        request = searcher_pb2.SearchRequest(collection="bench", queries=[common_pb2.Query(vector=vector)], k=10)
        search.append(request.SerializeToString())
    servers: dict[str, tuple[int, str]] = {}
    for who, version in versions.items():
        home, port_file = folder / f"served-{who}", folder / f"port-{who}"
        home.mkdir()
        worker = [sys.executable, "-P", str(Path(__file__).with_name("store_worker.py")), str(home), str(embeddings)]
        subprocess.run(worker, env=version.environment, input="", text=True, capture_output=True, check=True)
        command = version.command(
            "serve", "--address", "127.0.0.1:0", "--port-file", port_file, "--data-dir", home,
            "--model", f"model={version.model}",
        )  # fmt: skip
        log = stack.enter_context((folder / f"log-{who}").open("w"))
        # -m looks in the current folder first.
        process = subprocess.Popen(
            command, cwd=version.checkout, env=version.environment, stdout=log, stderr=log, text=True
        )
        stack.enter_context(ended(process))
        end = time.monotonic() + _START_SECONDS
        while not port_file.exists() or not port_file.read_text().strip():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((folder / f"log-{who}").read_text())
            time.sleep(0.05)
        servers[who] = (process.pid, f"127.0.0.1:{port_file.read_text().strip()}")

    def part(method: str, payloads: list[bytes], callers: int) -> Measure:
        def measure(who: str) -> tuple[float, float]:
            pid, address = servers[who]
            path = f"/{versions[who].package}.v1.{method}"
            before = cpu_seconds((pid,))
            answered, seconds = asyncio.run(send(address, path, payloads, callers))
            return (cpu_seconds((pid,)) - before) / answered, seconds / answered

        return measure

    return {
        f"serve {name}, {callers} callers": part(method, payloads, callers)
        for name, method, payloads in (("embed", "Embedder/Embed", embed), ("search", "Searcher/Search", search))
        for callers in (1, 8)
    }


async def send(address: str, path: str, payloads: list[bytes], callers: int) -> tuple[int, float]:
    """Send requests for a while, one after the other from each caller; return the number of answers and the seconds."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        answered, start = 0, time.perf_counter()

        async def one(first: int) -> None:
            nonlocal answered
            number = first
            while time.perf_counter() < start + _SLICE_SECONDS:
                await call(payloads[number % len(payloads)], timeout=60)
                number += callers
                answered += 1

        await asyncio.gather(*(one(first) for first in range(callers)))
        return answered, time.perf_counter() - start


def all_parts(
    section: str,
    versions: Mapping[str, Version],
    options: argparse.Namespace,
    folder: Path,
    stack: contextlib.ExitStack,
) -> dict[str, Measure]:
    """Return the parts of a section."""
    if section in ("search", "store"):
        return store_parts(versions, options.embeddings, folder, stack, search=section == "search")
    if section == "serve":
        return serve_parts(versions, options.embeddings, options.images, folder, stack)
    if section == "index":

        def index(version: Version, own: Path, *more: str) -> list[str]:
            return version.command(
                "index", "bench", options.images, "--data-dir", own / "data", "--model", version.model, *more
            )

        # Versions before 0.2 make no thumbnails.
        none = ("--thumbnails", "0")
        return {
            "index images, whole command": run_part(versions, folder, index),
            "index images, this without thumbnails": run_part(
                versions, folder, lambda version, own: index(version, own, *(none if version.checkout == ROOT else ()))
            ),
        }
    return {
        "train an epoch, whole command": run_part(
            versions,
            folder,
            lambda version, own: version.command(
                "train", options.images, "--out", own / "run", "--cache-dir", own / "cache", "--encoder", "tiny",
                "--image-size", "32", "--epochs", "1", "--batch-size", "64", "--threads", "1",
            ),
        )
    }  # fmt: skip


def main() -> None:
    """Measure the chosen sections and report ratios of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, help="root of the other version's checkout")
    parser.add_argument("--name", default="imagekin", help="name of the other version's command and proto package")
    parser.add_argument("--embeddings", type=Path, required=True, help="float32 [N, D]")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--other-model", type=Path, required=True)
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of class folders of JPEG files; an archive for index"
    )
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for name in ("embeddings", "images"):
        setattr(options, name, getattr(options, name).resolve())
    versions = {
        "this": Version(ROOT, "imagekin", options.model.resolve()),
        "other": Version(options.other.resolve(), options.name, options.other_model.resolve()),
    }
    rows, figures = [], {}
    for section in options.sections.split(","):
        with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
            parts = all_parts(section, versions, options, Path(temporary), stack)
            for name, found in in_turn(parts, options.rounds).items():
                cells = [name]
                for kind, values in (("processor", found.cpu), ("clock", found.clock)):
                    this, other = (statistics.median(values[who]) for who in ("this", "other"))
                    figures[f"{name}, {kind}"] = [this, other]
                    cells.append(f"{1e3 * this:,.4g} / {1e3 * other:,.4g} ms: {this / other:.2f}")
                rows.append(cells)
                print("; ".join(cells), flush=True)
    report("this version / the other", ("part", "processor time", "by the clock"), rows, [], figures, ["numpy"])


if __name__ == "__main__":
    main()
