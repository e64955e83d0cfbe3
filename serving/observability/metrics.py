"""Measure the server for Prometheus: one registry per server, filled as calls pass and read when it is scraped.

The values of labels are bounded: methods, codes, stages and reasons are fixed, models and collections those served.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Literal, Protocol, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from imagekin.encoder.metadata import Metadata
from imagekin.errors import ImagekinError
from imagekin.types import CollectionInfo

Stage: TypeAlias = Literal["queue", "decode", "batch", "inference", "search_queue", "search", "write"]
Batch: TypeAlias = Literal["inference", "search"]
Reason: TypeAlias = Literal[
    "queue_full", "searches_full", "calls_full", "deadline", "draining", "unauthenticated", "permission_denied"
]

_STAGES: tuple[Stage, ...] = ("queue", "decode", "batch", "inference", "search_queue", "search", "write")
_BATCHES: tuple[Batch, ...] = ("inference", "search")
_REASONS: tuple[Reason, ...] = (
    "queue_full",
    "searches_full",
    "calls_full",
    "deadline",
    "draining",
    "unauthenticated",
    "permission_denied",
)
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class MeasuredModel(Protocol):
    """Model as a scrape sees it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def metadata(self) -> Metadata:
        """Metadata of its artifact."""

    @property
    def queued(self) -> int:
        """Number of images waiting or being processed."""

    @property
    def queued_bytes(self) -> int:
        """Bytes of these images."""


class ServedCollection(Protocol):
    """Collection as a scrape sees it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def queued(self) -> int:
        """Number of queries waiting."""

    def state(self) -> CollectionInfo:
        """Return its state."""


class Metrics:
    """Metrics of one server. Thread-safe.

    Attributes:
        registry: the registry that a scrape reads.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._calls = Counter("imagekin_calls", "Calls that ended.", ["method", "code"], registry=registry)
        self._call_seconds = Histogram(
            "imagekin_call_seconds",
            "Seconds from a call's request to its answer; streams not counted.",
            ["method"],
            registry=registry,
            buckets=_SECONDS,
        )
        stages = Histogram(
            "imagekin_stage_seconds",
            "Seconds in each stage: queue, decode, batch (waiting for the encoder) per image; inference per batch; "
            "search_queue per call; search and write per batch.",
            ["stage"],
            registry=registry,
            buckets=_SECONDS,
        )
        sizes = Histogram(
            "imagekin_batch_size",
            "Images of one inference, queries of one search.",
            ["stage"],
            registry=registry,
            buckets=_SIZES,
        )
        rejections = Counter("imagekin_rejections", "Calls refused, by reason.", ["reason"], registry=registry)
        self._reloads = Counter("imagekin_reloads", "Reloads, by result.", ["result"], registry=registry)
        # Children are looked up once: `labels` costs more than `observe`.
        self._observe: dict[Stage, Callable[[float], None]] = {name: stages.labels(name).observe for name in _STAGES}
        self._size: dict[Batch, Callable[[float], None]] = {name: sizes.labels(name).observe for name in _BATCHES}
        self._reject: dict[Reason, Callable[[], None]] = {name: rejections.labels(name).inc for name in _REASONS}
        self._ended: dict[tuple[str, str], Callable[[], None]] = {}
        self._took: dict[str, Callable[[float], None]] = {}
        ProcessCollector(registry=registry)

    def watch(
        self,
        models: Callable[[], Sequence[MeasuredModel]],
        collections: Callable[[], Sequence[ServedCollection]],
        in_flight: Callable[[], int],
    ) -> None:
        """Read the gauges from these at every scrape."""
        self.registry.register(_State(models, collections, in_flight))

    def stage(self, stage: Stage, seconds: float) -> None:
        """Record how long a stage took."""
        self._observe[stage](seconds)

    def batch(self, stage: Batch, size: int) -> None:
        """Record the size of a batch."""
        self._size[stage](size)

    def rejected(self, reason: Reason) -> None:
        """Count a call that was refused."""
        self._reject[reason]()

    def reloaded(self, *, well: bool) -> None:
        """Count a reload."""
        self._reloads.labels("ok" if well else "failed").inc()

    def ended(self, method: str, code: str, seconds: float | None) -> None:
        """Count the end of a call and record how long it took.

        Args:
            method: `/package.Service/Method`, one that exists.
            code: name of its status code.
            seconds: how long it took; None for a stream.
        """
        count = self._ended.get((method, code))
        if count is None:
            count = self._ended[method, code] = self._calls.labels(method, code).inc
        count()
        if seconds is None:
            return
        observe = self._took.get(method)
        if observe is None:
            observe = self._took[method] = self._call_seconds.labels(method).observe
        observe(seconds)


class CallOutcome:
    """Find the status code with which a `with` block ends.

    Attributes:
        code: name of the status code, once the block is left.
    """

    def __init__(self, is_late: Callable[[], bool]) -> None:
        self.code = "OK"
        self._is_late = is_late

    def __enter__(self) -> "CallOutcome":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ImagekinError):
            self.code = error.code
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.code = "DEADLINE_EXCEEDED" if self._is_late() else "CANCELLED"
        elif error is not None:
            self.code = "INTERNAL"


class _State(Collector):
    """Gauges that are read when they are scraped."""

    def __init__(
        self,
        models: Callable[[], Sequence[MeasuredModel]],
        collections: Callable[[], Sequence[ServedCollection]],
        in_flight: Callable[[], int],
    ) -> None:
        self._models = models
        self._collections = collections
        self._in_flight = in_flight

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        yield GaugeMetricFamily("imagekin_calls_in_flight", "Calls in flight.", value=self._in_flight())
        info = GaugeMetricFamily(
            "imagekin_model_info", "The models served; always 1.", labels=["model", "space", "dim", "precision"]
        )
        queued = GaugeMetricFamily("imagekin_queued_images", "Images waiting or being embedded.", labels=["model"])
        size = GaugeMetricFamily("imagekin_queued_bytes", "Bytes of these images.", labels=["model"])
        for model in self._models():
            described = model.metadata
            info.add_metric([model.name, described.space, str(described.dim), described.precision], 1)
            queued.add_metric([model.name], model.queued)
            size.add_metric([model.name], model.queued_bytes)
        items = GaugeMetricFamily("imagekin_collection_items", "Items of a collection.", labels=["collection"])
        labelled = GaugeMetricFamily("imagekin_collection_labelled", "Items with a label.", labels=["collection"])
        written = GaugeMetricFamily(
            "imagekin_collection_sequence", "Sequence number of the last write.", labels=["collection"]
        )
        waiting = GaugeMetricFamily("imagekin_queued_searches", "Queries waiting.", labels=["collection"])
        for collection in self._collections():
            try:
                state = collection.state()
            except ImagekinError:
                continue  # dropped or damaged; the log says so when it is used
            items.add_metric([collection.name], state.count)
            labelled.add_metric([collection.name], state.labelled)
            written.add_metric([collection.name], state.sequence)
            waiting.add_metric([collection.name], collection.queued)
        yield from (info, queued, size, items, labelled, written, waiting)
