"""What tests of batch indexing share: a model that counts, a sink in memory, records, and the engines that embed."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.errors import ImageError
from imagekin.index.ingest.intake import Conflict
from imagekin.index.ingest.pipeline import index_images
from imagekin.index.ingest.ray_known_items import known_items
from imagekin.index.ingest.report import Finding, IndexReport
from imagekin.index.types import IndexedItem, VectorItem
from imagekin.sources.ignored import Ignored
from imagekin.sources.pieces import Piece
from imagekin.sources.records import Record, VectorInfo
from imagekin.types import ItemUpdate, Outcome, UpsertResult


class CountingModel:
    """A real model's interface; counts what it is asked for."""

    sessions = 1

    def __init__(self) -> None:
        self.decoded: list[bytes] = []
        self.embedded: list[int] = []

    def load_pixels(self, data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
        """Take the first four bytes for the pixels."""
        if data.startswith(b"bad"):
            raise ImageError("no image")
        self.decoded.append(data)
        return np.frombuffer(hashlib.sha256(data).digest()[:12], np.uint8).reshape(2, 2, 3)

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Take the pixels for the embedding."""
        self.embedded.append(len(pixels))
        return pixels.reshape(len(pixels), -1).astype(np.float32)


class DictSink:
    """Keeps items in memory, and the sizes of the writes."""

    def __init__(self) -> None:
        self.items: dict[str, VectorItem] = {}
        self.page: list[IndexedItem] = []
        self.writes: list[int] = []

    def content_hashes(self, keys: Sequence[str]) -> Mapping[str, bytes | None]:
        """Return those of the keys that exist."""
        return {key: self.items[key].content_hash for key in keys if key in self.items}

    def get(self, keys: Sequence[str]) -> list[IndexedItem | None]:
        """Return the items."""
        return [self.stored(key) if key in self.items else None for key in keys]

    def stored(self, key: str) -> IndexedItem:
        """Return an item as a collection would; a later one has a higher sequence number."""
        item = self.items[key]
        place = list(self.items).index(key) + 1
        return IndexedItem(key, item.vector, item.label, item.payload, item.content_hash, place)

    def scroll(self, after_sequence: int, limit: int) -> list[IndexedItem]:
        """Return a page, of what there was when the first one was asked for."""
        if after_sequence == 0:
            self.page = [self.stored(key) for key in self.items]
        return [item for item in self.page if item.sequence > after_sequence][:limit]

    def update(self, changes: Sequence[ItemUpdate]) -> None:
        """Change items."""
        for change in changes:
            item = self.items[change.key]
            self.items[change.key] = VectorItem(
                change.key, item.vector, change.label or None, change.payload or None, item.content_hash
            )

    def delete(self, keys: Sequence[str]) -> None:
        """Delete items."""
        for key in keys:
            del self.items[key]

    def upsert(self, items: Sequence[VectorItem]) -> UpsertResult:
        """Keep the items."""
        keys = [item.key for item in items]
        assert len(set(keys)) == len(keys)
        outcomes = tuple(Outcome.REPLACED if key in self.items else Outcome.INSERTED for key in keys)
        self.items.update(zip(keys, items, strict=True))
        self.writes.append(len(items))
        return UpsertResult(outcomes, len(self.writes))


def records(count: int, start: int = 0) -> list[Record]:
    return [Record(f"{n}.png", b"%d" % n, "even" if n % 2 == 0 else None) for n in range(start, start + count)]


def counts(report: IndexReport) -> tuple[int, int, int, int]:
    """Return written, replaced, skipped, failed, having checked that they add up."""
    assert report.seen == report.written + report.updated + report.skipped + report.failed_count
    return report.written, report.replaced, report.skipped, report.failed_count


class Engine(Protocol):
    """Who embeds.

    Attributes:
        embedded: how many images the model was given at once, since the engine was made.
    """

    @property
    def embedded(self) -> list[int]:
        """See the class."""
        ...

    def index(
        self,
        source: Sequence[Record],
        sink: DictSink,
        *,
        batch_size: int = 64,
        on_conflict: Conflict = "replace",
        sync: bool = False,
        on_finding: Callable[[Finding], None] | None = None,
    ) -> IndexReport:
        """Index records with a `CountingModel`; vectors without one."""
        ...


def are_images(source: Sequence[Record]) -> bool:
    """Return whether a model is needed."""
    return not any(isinstance(record.data, np.ndarray) for record in source)


class LocalEngine:
    """This process."""

    def __init__(self) -> None:
        self._model = CountingModel()

    @property
    def embedded(self) -> list[int]:
        """See `Engine`."""
        return self._model.embedded

    def index(
        self,
        source: Sequence[Record],
        sink: DictSink,
        *,
        batch_size: int = 64,
        on_conflict: Conflict = "replace",
        sync: bool = False,
        on_finding: Callable[[Finding], None] | None = None,
    ) -> IndexReport:
        """See `Engine`."""
        return index_images(
            self._model if are_images(source) else None,
            source,
            sink,
            batch_size=batch_size,
            on_conflict=on_conflict,
            sync=sync,
            on_finding=on_finding,
        )


@dataclass(frozen=True)
class OpenLogging:
    """Opens a `CountingModel` in another process, which writes down what it is asked for."""

    log: Path

    def __call__(self) -> "LoggingModel":
        """Open it."""
        return LoggingModel(self.log)


class LoggingModel(CountingModel):
    """Appends the number of images of each call to a file."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Take the pixels for the embedding."""
        with self._log.open("a") as file:
            file.write(f"{os.getpid()} {len(pixels)}\n")
        return super().embed_pixels(pixels)


class ListSource:
    """Records in memory as a source of one piece each."""

    ignored = Ignored()
    embedded: VectorInfo | None = None

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __iter__(self) -> Iterator[Record]:
        """Yield the records."""
        return iter(self._records)

    def pieces(self) -> Iterator[Piece]:
        """Yield the records one by one."""
        return ((record,) for record in self._records)

    def count(self) -> int:
        """Return how many there are."""
        return len(self._records)


class RayEngine:
    """Workers of the cluster that this process is connected to.

    Args:
        log: a file for what the workers do.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        log.touch()

    @property
    def embedded(self) -> list[int]:
        """See `Engine`."""
        return [int(line.split()[1]) for line in self._log.read_text().splitlines()]

    def index(
        self,
        source: Sequence[Record],
        sink: DictSink,
        *,
        batch_size: int = 64,
        on_conflict: Conflict = "replace",
        sync: bool = False,
        on_finding: Callable[[Finding], None] | None = None,
    ) -> IndexReport:
        """See `Engine`."""
        from imagekin.index.ingest.ray_engine import RayRecords, RayWorkers

        records = RayRecords(
            ListSource(source),
            OpenLogging(self._log) if are_images(source) else None,
            known_items(sink, on_conflict),
            on_conflict=on_conflict,
            workers=RayWorkers(count=1),
            batch_size=batch_size,
        )
        return index_images(
            None, records, sink, batch_size=batch_size, on_conflict=on_conflict, sync=sync, on_finding=on_finding
        )
