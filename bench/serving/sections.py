"""Sections of `bench/serve.py`; see there."""

import contextlib
import functools
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from bench.harness import Target, interleave, ratio
from bench.serving.bare import ideal_p99, plain_pixels, tight_loop, twelve_megapixels
from bench.serving.identity import EMBED, STREAM
from bench.serving.load import Load, Outcome
from bench.serving.payloads import Payloads
from bench.serving.process import ROOT, Served, free_port, generate, imagekin, started
from imagekin.encoder.decoding import decode
from imagekin.encoder.metadata import Preprocess
from imagekin.encoder.runtime.session import Encoder
from imagekin.machine import cores

CALLERS = 16
_TRIES = 20
SEARCH = "/imagekin.v1.Searcher/Search"


@dataclass(slots=True)
class Result:
    """Result of a section: rows of the table, targets, figures by name."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str, bound: float | None = None, at_least: bool = True) -> None:
        """Add a figure, with its target if it has one."""
        self.rows.append((name, f"{value:,.4g} {unit}".strip()))
        self.figures[name] = value
        if bound is not None:
            self.targets.append(Target(name, value, bound, at_least))

    def skip(self, name: str, why: str) -> None:
        """Record that something was not measured."""
        self.rows.append((name, f"not measured: {why}"))


@dataclass(frozen=True, slots=True)
class Bench:
    """Shared inputs of all sections.

    Attributes:
        folder: for files of this run.
        model: the float32 model artifact.
        int8: its int8 twin, None without.
        photos: real JPEG photos.
        gallery: more of them, to find neighbours among; may be empty.
        classes: the gallery's classes.
        seconds: length of one figure.
        rounds: figures of each contender.
        items: scale of the collections, 1 for what the targets say.
        peers: folder with a virtual environment for each peer, None without.
        embeddings: the model's own of many images, float32 [n, D], to search among; None for random vectors.
    """

    folder: Path
    model: Path
    int8: Path | None
    photos: list[bytes]
    gallery: list[bytes]
    classes: list[str]
    seconds: float
    rounds: int
    items: float
    peers: Path | None
    embeddings: Path | None = None

    @property
    def payloads(self) -> Payloads:
        """Ready-made requests."""
        return Payloads(self.folder, self.photos)


def ceiling(bench: Bench) -> Result:
    """Measure images/s and CPU per image beside a tight loop in one process, and beside other servers."""
    result, loads = Result(), {}
    one = bench.payloads
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(imagekin(bench.folder, "imagekin", ["--model", str(bench.model)]))
        loads["imagekin"] = (_load(ours, EMBED, one.embed(1)), 1)
        loads["imagekin, 16 a request"] = (_load(ours, EMBED, one.embed(16), 6), 16)
        loads["imagekin, stream of 16"] = (
            replace(_load(ours, STREAM, one.stream(16)), concurrency=2, streamed=True),
            16,
        )
        for name, method, kind, payloads in one.peers():
            try:
                peer = stack.enter_context(_peer(bench, name))
                _await(replace(_load(peer, method, payloads, 1), content_type=kind))
            except (RuntimeError, OSError) as error:
                result.skip(name, str(error))
                continue
            loads[name] = (replace(_load(peer, method, payloads), content_type=kind), 1)
        rates: dict[str, list[float]] = {}
        costs: dict[str, list[float]] = {}
        share: list[float] = []
        codes: dict[str, str] = {}

        def serve(name: str) -> float:
            load, count = loads[name]
            outcome = generate(replace(load, seconds=bench.seconds))
            codes[name] = ", ".join(f"{count} {code}" for code, count in outcome.codes.items())
            costs.setdefault(name, []).append(outcome.server_cpu / max(outcome.good * count, 1))
            if name.startswith("imagekin"):
                share.append(outcome.own_cpu / outcome.seconds / cores())
            return outcome.good * count / outcome.seconds

        def alone() -> float:
            rate, cost = tight_loop(bench.model, bench.photos, bench.seconds)
            costs.setdefault("in process", []).append(cost)
            return rate

        contenders: dict[str, Callable[[], float]] = {"in process": alone}
        contenders |= {name: lambda name=name: serve(name) for name in loads}  # type: ignore[misc]
        rates = interleave(contenders, bench.rounds)
    for name in [name for name, values in rates.items() if not all(values)]:
        result.skip(name, f"it gave {codes[name] or 'no answer'}")
        del rates[name], costs[name]
    costs = {name: values[1:] for name, values in costs.items()}
    for name, values in rates.items():
        result.add(f"{name}: images/s", statistics.median(values), "/s")
        result.add(f"{name}: CPU an image", 1e3 * statistics.median(costs[name]), "ms")
    best = max((name for name in rates if name.startswith("imagekin")), key=lambda name: statistics.median(rates[name]))
    result.add("images/s over the loop in process", ratio(rates[best], rates["in process"]), "×", 0.97)
    result.add("CPU an image over the same", ratio(costs[best], costs["in process"]), "×", 1.03, at_least=False)
    result.add("the load generator's share of the cores", statistics.median(share), "")
    for name in rates:
        if name in ("naive grpc.aio", "mosec", "LitServe", "PyTriton"):
            result.add(f"images/s over {name}, one a request", ratio(rates["imagekin"], rates[name]), "×", 1.0)
    return result


def best(bench: Bench) -> Result:
    """Measure the best setting, int8 and scaled decode, beside float32 ONNX Runtime and plain Pillow; compare both."""
    result = Result()
    if bench.int8 is None:
        result.skip("best setting", "give an int8 model with --int8")
        return result
    large = [twelve_megapixels(bench.photos[start : start + 4], 85) for start in range(0, 16, 4)]
    cases = (
        ("photos as they are", bench.photos, bench.payloads.embed(16), 16),
        ("12 MP", large, Payloads(bench.folder, large).embed(4), 4),
    )
    with imagekin(bench.folder, "int8", ["--model", str(bench.int8)]) as served:
        for what, photos, requests, count in cases:
            load = replace(_load(served, EMBED, requests, 6), seconds=bench.seconds)

            def ours(load: Load = load, count: int = count) -> float:
                outcome = generate(load)
                return outcome.good * count / outcome.seconds

            def plain(photos: list[bytes] = photos) -> float:
                return tight_loop(bench.model, photos, bench.seconds, scaled=False)[0]

            rates = interleave({"int8": ours, "plain": plain}, bench.rounds)
            result.add(f"int8 served, {what}: images/s", statistics.median(rates["int8"]), "/s")
            alone = statistics.median(rates["plain"])
            result.add(f"ONNX Runtime float32 + plain Pillow in process, {what}: images/s", alone, "/s")
            result.add(f"best setting over plain, {what}", ratio(rates["int8"], rates["plain"]), "×", 3.0)
    if bench.gallery:
        result.add("kNN agreement with float32 and the full decode", _agreement(bench), "", 0.99)
    return result


def identity(bench: Bench) -> Result:
    """Measure server CPU per call with a model that does nothing, beside a bare grpc.aio echo; 100 KB requests."""
    result = Result()
    one, many = bench.payloads.random(100_000)
    for dim, what in ((512, "answers of 2 KB"), (25_600, "answers of 100 KB")):
        with contextlib.ExitStack() as stack:
            served = {}
            for kind in ("imagekin", "echo"):
                file = bench.folder / f"{kind}-{dim}.port"
                command = [sys.executable, "-m", "bench.serving.identity", kind, str(file), str(dim)]
                served[kind] = stack.enter_context(started(f"identity-{kind}", command, port_file=file))
            for method, payload, streamed in ((EMBED, one, False), (STREAM, many, True)):
                loads = {
                    kind: replace(_load(each, method, (payload,)), streamed=streamed, seconds=bench.seconds / 2)
                    for kind, each in served.items()
                }
                contenders = {kind: lambda load=load: _cpu(generate(load)) for kind, load in loads.items()}
                costs = interleave(contenders, bench.rounds)
                form = "stream" if streamed else "unary"
                for kind, values in costs.items():
                    result.add(f"{kind}, {form}, {what}: CPU a call", 1e6 * statistics.median(values), "µs")
                over = ratio(costs["imagekin"], costs["echo"])
                result.add(f"service over echo, {form}, {what}", over, "×", 1.15, at_least=False)
    return result


def loaded(bench: Bench) -> Result:
    """Measure Poisson arrivals at 70 % of the peak, then at twice the peak with deadlines."""
    result = Result()
    port_file = bench.folder / "metrics.port"
    arguments = ["--model", str(bench.model), "--metrics-address", "127.0.0.1:0"]
    with imagekin(bench.folder, "loaded", [*arguments, "--metrics-port-file", str(port_file)]) as served:
        load = replace(_load(served, EMBED, bench.payloads.embed(1)), seconds=bench.seconds)
        full = generate(load)
        peak = full.good / full.seconds
        lone = generate(replace(load, concurrency=1))
        result.add("peak, 16 callers", peak, "/s")
        result.add("unloaded: p50", lone.percentile(0.5), "ms")
        busy = generate(replace(load, rate=0.7 * peak, concurrency=4, seconds=2 * bench.seconds))
        for share in (0.5, 0.99):
            result.add(f"at 70 % of the peak: p{share * 100:.0f}", busy.percentile(share), "ms")
        over = busy.percentile(0.99) / lone.percentile(0.5)
        result.add("p99 at 70 % over unloaded p50", over, "×", 3.0, at_least=False)
        result.add(f"the same of an ideal queue for {cores()} processors", ideal_p99(0.7, cores()), "×")
        floods = [_flood(load, int(port_file.read_text())) for _ in range(bench.rounds)]
    goodput = statistics.median(each.goodput for each in floods)
    result.add("at 2× overload: goodput over the peak of before and after", goodput, "×", 0.95)
    outcomes = [each.outcome for each in floods]
    if refused := [time for outcome in outcomes for time in outcome.refused_ms]:
        result.add("rejections: median", statistics.median(refused), "ms", 5.0, at_least=False)
    result.add("rejected", sum(outcome.codes.get("RESOURCE_EXHAUSTED", 0) for outcome in outcomes), "calls")
    result.add("expired", sum(outcome.codes.get("DEADLINE_EXCEEDED", 0) for outcome in outcomes), "calls")
    wasted = 1 - sum(outcome.total_good for outcome in outcomes) / max(sum(each.inferred for each in floods), 1)
    result.add("inference spent on expired calls", wasted, "", 0.01, at_least=False)
    return result


@dataclass(frozen=True, slots=True)
class _Flood:
    """Results at twice the peak: calls, images that were inferred, and good answers over the peak's."""

    outcome: Outcome
    inferred: int
    goodput: float


def _flood(load: Load, metrics_port: int) -> _Flood:
    """Send twice the peak, measured before and after, because the machine's speed changes meanwhile."""

    def peak() -> float:
        full = generate(load)
        return full.good / full.seconds

    first = peak()
    before = inferred(metrics_port)
    outcome = generate(replace(load, rate=2 * first, concurrency=4, timeout=1.0, seconds=2 * load.seconds, warm_up=3.0))
    time.sleep(2)
    spent = inferred(metrics_port) - before
    return _Flood(outcome, spent, outcome.good / outcome.seconds / statistics.mean((first, peak())))


def photos(bench: Bench) -> Result:
    """Measure a 12-megapixel JPEG photo: scaled decode beside plain Pillow, and the embeddings of both."""
    result = Result()
    encoder = Encoder.open(bench.model, device="cpu")
    for quality, noise in ((70, 0), (85, 0), (92, 0), (92, 6)):
        files = [twelve_megapixels(bench.photos[start : start + 4], quality, noise) for start in range(0, 16, 4)]
        times = interleave(
            {
                "plain": functools.partial(_reading, plain_pixels, files),
                "scaled": functools.partial(_reading, decode.load_pixels, files),
            },
            bench.rounds,
        )
        what = f"12 MP of {statistics.mean(map(len, files)) / 1e6:.1f} MB" + (", noisy" if noise else "")
        result.add(f"{what}: plain", 1e3 * statistics.median(times["plain"]) / 4, "ms")
        result.add(f"{what}: scaled", 1e3 * statistics.median(times["scaled"]) / 4, "ms")
        over = ratio(times["plain"], times["scaled"])
        result.add(f"plain over scaled, {what}", over, "×", 5.0)
        own = encoder.metadata.preprocess
        both = [np.stack([read(data, own) for data in files]) for read in (plain_pixels, decode.load_pixels)]
        cosines = (encoder.embed_pixels(both[0]) * encoder.embed_pixels(both[1])).sum(1)
        result.add(f"least cosine to the full decode, {what}", float(cosines.min()), "", 0.999)
    return result


def search(bench: Bench) -> Result:
    """Measure search by image beside Embed alone, in a collection of 100,000."""
    result = Result()
    from bench.searching.common import fill, unit_vectors
    from imagekin.index.local.catalog import Catalog

    metadata = Encoder.open(bench.model, device="cpu").metadata
    count = int(100_000 * bench.items)
    vectors = unit_vectors(count, metadata.dim) if bench.embeddings is None else np.load(bench.embeddings)[:count]
    count, data = len(vectors), bench.folder / "data"
    with Catalog(data) as catalog:
        fill(catalog, vectors, space=metadata.space)
    with imagekin(bench.folder, "search", ["--model", str(bench.model), "--data-dir", str(data)]) as served:
        requests = bench.payloads
        loads = {
            "Embed": replace(_load(served, EMBED, requests.embed(1)), seconds=bench.seconds),
            "Search": replace(_load(served, SEARCH, requests.search()), seconds=bench.seconds),
        }
        found: dict[str, list[Outcome]] = {}

        def measure(name: str) -> float:
            outcome = generate(loads[name])
            found.setdefault(name, []).append(outcome)
            return outcome.seconds / max(outcome.good, 1)

        times = interleave({name: lambda name=name: measure(name) for name in loads}, bench.rounds)  # type: ignore[misc]
    for name, values in times.items():
        result.add(f"{name}: images/s", 1 / statistics.median(values), "/s")
    result.add(f"Search by image over Embed, {count:,} items", ratio(times["Search"], times["Embed"]), "×", 1.1, False)
    costs = {name: [_cpu(outcome) for outcome in outcomes[1:]] for name, outcomes in found.items()}
    result.add("the same in server CPU", ratio(costs["Search"], costs["Embed"]), "×")
    return result


def inferred(port: int) -> int:
    """Return the number of images that a server has inferred, by its own metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    line = next(line for line in text.splitlines() if line.startswith('imagekin_batch_size_sum{stage="inference"}'))
    return int(float(line.rpartition(" ")[2]))


def _agreement(bench: Bench) -> float:
    """Return the share of photos whose nearest neighbour in the gallery is of the same class."""
    if bench.int8 is None:
        return float("nan")
    answers = []
    for path, read in ((bench.model, plain_pixels), (bench.int8, decode.load_pixels)):
        encoder = Encoder.open(path, device="cpu")
        rule = encoder.metadata.preprocess
        sides = [
            np.concatenate([encoder.embed_pixels(read(data, rule)[None]) for data in files])
            for files in (bench.gallery, bench.photos)
        ]
        answers.append(np.array(bench.classes)[(sides[1] @ sides[0].T).argmax(1)])
    return float((answers[0] == answers[1]).mean())


def _load(served: Served, method: str, payloads: tuple[str, ...], callers: int = CALLERS) -> Load:
    return Load(served.address, method, payloads, 2.0, concurrency=callers, pids=served.pids())


def _cpu(outcome: Outcome) -> float:
    return max(outcome.server_cpu, 1e-9) / max(outcome.good, 1)


def _reading(read: Callable[[bytes, Preprocess], object], files: list[bytes]) -> float:
    start = time.perf_counter()
    for data in files:
        read(data, Preprocess(224, 224))
    return time.perf_counter() - start


def _await(load: Load) -> None:
    """Wait until a server gives right answers: some load their model after they have begun to listen."""
    for _ in range(_TRIES):
        with contextlib.suppress(subprocess.CalledProcessError):
            if generate(replace(load, warm_up=0.0, seconds=1.0)).good:
                return
    raise RuntimeError("it gave no right answer")


@contextlib.contextmanager
def _peer(bench: Bench, name: str) -> Iterator[Served]:
    kind = "naive" if name == "naive grpc.aio" else name.lower()
    python = sys.executable
    if kind != "naive":
        if bench.peers is None:
            raise RuntimeError("give a folder of virtual environments with --peers")
        python = str(bench.peers / f"venv-{kind}" / "bin" / "python")
        if not os.access(python, os.X_OK):
            raise RuntimeError(f"no virtual environment {bench.peers / f'venv-{kind}'}")
    port = free_port()
    program = [python, str(ROOT / "bench" / "serving" / "peers.py"), kind, str(bench.model), str(port), str(cores())]
    with started(name, program, port=port) as served:
        yield served


def versions_of_peers(peers: Path | None) -> dict[str, str]:
    """Return the version of each peer that has a virtual environment."""
    found = {}
    for kind, package in (("mosec", "mosec"), ("litserve", "litserve"), ("pytriton", "nvidia-pytriton")):
        python = (peers or Path("none")) / f"venv-{kind}" / "bin" / "python"
        if python.exists():
            program = f"from importlib.metadata import version; print(version({package!r}))"
            done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
            found[package] = done.stdout.strip() or "absent"
    return found | {"onnxruntime": str(ort.__version__)}
