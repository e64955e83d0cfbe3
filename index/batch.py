"""Embeds the images of a source and stores them: a pipeline that may be stopped, or killed, and run again.

    read and hash ─▶ leave out what is known ─▶ decode (many threads) ─▶ embed ─▶ store (durable, batch by batch)

Each stage works while the others do, a few batches apart, so that memory does not depend on the source's size. What
has been stored is recognised by key and content hash before it is decoded: running the same again does only what is
missing.
"""

import hashlib
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from encoder.errors import ImageError, InvalidArgumentError, KindredError
from encoder.images import DecodeLimits
from index.prefetch import Prefetch
from index.report import Failure, IndexInterruptedError, IndexReport, Progress, Tally
from index.seen import Seen, SeenKeys
from index.types import Item, Payload, UpsertResult
from sources.records import Record

__all__ = ["Failure", "IndexInterruptedError", "IndexReport", "Progress", "Sink", "available_cores", "index_images"]

# A batch is cut short when its files grow to this size together, so that large photos cannot fill the memory.
_MAX_BATCH_BYTES = 32 * 2**20
# Batches read and being decoded ahead of the one that is being embedded; embedded ones ahead of the one being stored.
_READ_AHEAD = 2
_EMBED_AHEAD = 1


class Model(Protocol):
    """What turns an image file into an embedding; `encoder.session.Encoder` is one. Both methods run in threads."""

    def load_pixels(self, data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
        """Return an image file's pixels, uint8 [H, W, 3]; raises ImageError."""
        ...

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings of uint8 [N, H, W, 3], float32 [N, D]."""
        ...


class Sink(Protocol):
    """Where items go: a local collection, or a client of a server. Its methods are called from two threads at once."""

    def content_hashes(self, keys: Sequence[str]) -> Mapping[str, bytes | None]:
        """Return the content hashes of those of the keys that exist."""
        ...

    def upsert(self, items: Sequence[Item]) -> UpsertResult:
        """Store items whose keys are all different, durably."""
        ...


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def index_images(
    encoder: Model,
    records: Iterable[Record],
    sink: Sink,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    total: int | None = None,
    limits: DecodeLimits | None = None,
    on_progress: Progress | None = None,
) -> IndexReport:
    """Embed and store the images that the sink does not hold yet.

    A record whose key exists with the same content is skipped, one with other content replaces it. A key that comes
    twice in one run: the first counts; the second is skipped when its content is the same, and reported otherwise,
    because two sources then use one key for two images.

    Args:
        encoder: turns files into embeddings.
        records: the images; read by one thread.
        sink: where the items go.
        batch_size: images that are embedded, and stored, at once.
        workers: threads that decode; None takes one for each core.
        total: number of records when it is known, for `on_progress` alone.
        limits: what is refused as an image.
        on_progress: called whenever records are dealt with, never by two threads at once, not by the caller's thread.

    Raises:
        IndexInterruptedError: Ctrl-C was pressed; the batch in hand has been stored.
        InvalidArgumentError: batch_size or workers is less than 1.
        Exception: whatever the encoder, the records, the sink or on_progress raises; all threads have ended then.
    """
    if batch_size < 1:
        raise InvalidArgumentError("batch size must be at least 1", field="batch_size")
    if workers is not None and workers < 1:
        raise InvalidArgumentError("workers must be at least 1", field="workers")
    options = _Options(batch_size, workers or available_cores(), limits or DecodeLimits())
    run = _Run(encoder, sink, options, Tally(total, on_progress))
    return _await(run, records)


@dataclass(frozen=True, slots=True)
class _Options:
    batch_size: int
    workers: int
    limits: DecodeLimits


class _Loading(NamedTuple):
    """A record on its way to being an item; without its bytes, which are not needed once decoded."""

    key: str
    label: str | None
    payload: Payload | None
    content_hash: bytes
    pixels: Future[NDArray[np.uint8]]


def _await(run: "_Run", records: Iterable[Record]) -> IndexReport:
    """Run in another thread, so that Ctrl-C meets a thread that only waits, and never one in the middle of a write."""
    done: Future[IndexReport] = Future()

    def work() -> None:
        try:
            done.set_result(run.run(records))
        except BaseException as error:  # handed to the caller, whatever it is
            done.set_exception(error)

    threading.Thread(target=work, name="index", daemon=True).start()
    try:
        return done.result()
    except KeyboardInterrupt:
        if done.done():
            raise
        run.stop.set()
    raise IndexInterruptedError(done.result())


class _Run:
    """The stages of one run. Each looks at `stop` before it begins with a batch."""

    def __init__(self, encoder: Model, sink: Sink, options: _Options, tally: Tally) -> None:
        self.stop = threading.Event()
        self._encoder = encoder
        self._sink = sink
        self._options = options
        self._tally = tally

    def run(self, records: Iterable[Record]) -> IndexReport:
        """Run all stages to the end, to `stop` or to the first exception, and end their threads."""
        with ThreadPoolExecutor(self._options.workers, thread_name_prefix="decode") as pool:
            loading = Prefetch(self._load(records, pool), _READ_AHEAD, "read")
            embedded = Prefetch(self._embed(loading), _EMBED_AHEAD, "embed")
            try:
                for items in embedded:
                    self._tally.wrote(self._sink.upsert(items))
            finally:
                self.stop.set()
                for stage in (loading, embedded):
                    stage.abandon()
                for stage in (loading, embedded):
                    stage.join()
                pool.shutdown(cancel_futures=True)
        return self._tally.report()

    def _load(self, records: Iterable[Record], pool: ThreadPoolExecutor) -> Generator[list[_Loading], None, None]:
        """Yield full batches of what is not known yet, being decoded already."""
        batch: list[_Loading] = []
        size = 0
        with SeenKeys() as seen:
            for chunk in _chunks(self._readable(records), self._options.batch_size):
                for record, data, digest in self._unknown(chunk, seen):
                    pixels = pool.submit(self._encoder.load_pixels, data, self._options.limits)
                    batch.append(_Loading(record.key, record.label, record.payload, digest, pixels))
                    size += len(data)
                    if len(batch) == self._options.batch_size or size >= _MAX_BATCH_BYTES:
                        yield batch
                        batch, size = [], 0
        if batch:
            yield batch

    def _readable(self, records: Iterable[Record]) -> Iterator[tuple[Record, bytes]]:
        for record in records:
            if self.stop.is_set():
                return
            if isinstance(record.data, bytes):
                yield record, record.data
            elif isinstance(record.data, KindredError):
                self._tally.failed(record.key, str(record.data))
            else:
                self._tally.failed(record.key, "it is a vector, and an image is needed")

    def _unknown(self, chunk: list[tuple[Record, bytes]], seen: SeenKeys) -> Iterator[tuple[Record, bytes, bytes]]:
        """Yield the records that have to be embedded, their bytes and their content hashes."""
        known = self._sink.content_hashes([record.key for record, _ in chunk])
        skipped = 0
        for record, data in chunk:
            digest = hashlib.sha256(data).digest()
            before = seen.add(record.key, digest)
            if before is Seen.OTHER_CONTENT:
                self._tally.failed(record.key, "another image of this run has the same key; give each its own path")
            elif before is Seen.SAME_CONTENT or known.get(record.key) == digest:
                skipped += 1
            else:
                yield record, data, digest
        if skipped:
            self._tally.skipped(skipped)

    def _embed(self, batches: Iterable[list[_Loading]]) -> Generator[list[Item], None, None]:
        for batch in batches:
            good: list[_Loading] = []
            pixels: list[NDArray[np.uint8]] = []
            for loading in batch:
                try:
                    pixels.append(loading.pixels.result())
                    good.append(loading)
                except ImageError as error:
                    self._tally.failed(loading.key, str(error))
            if self.stop.is_set():
                return
            if good:
                vectors = self._encoder.embed_pixels(np.stack(pixels))
                yield [_item(loading, vector) for loading, vector in zip(good, vectors, strict=True)]


def _item(loading: _Loading, vector: NDArray[np.float32]) -> Item:
    return Item(loading.key, vector, loading.label, loading.payload, loading.content_hash)


def _chunks(records: Iterable[tuple[Record, bytes]], count: int) -> Iterator[list[tuple[Record, bytes]]]:
    """Group records into lists of at most `count`, fewer when they are large."""
    chunk: list[tuple[Record, bytes]] = []
    size = 0
    for record, data in records:
        chunk.append((record, data))
        size += len(data)
        if len(chunk) == count or size >= _MAX_BATCH_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
