"""Embeds the images of a source and stores them: a pipeline that may be stopped, or killed, and run again.

    read and hash ─▶ leave out what is known ─▶ decode (many threads) ─▶ embed ─▶ store (durable, batch by batch)

Reading and decoding go on while a batch is embedded and stored, a few batches ahead, so that memory does not depend on
the source's size. What has been stored is recognised by key and content hash before it is decoded: running the same
again does only what is missing. Vectors take the same way, past decoding and embedding.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from encoder.errors import ImageError, InvalidArgumentError
from encoder.images import DecodeLimits
from index.intake import Conflict, Intake, New, Sink
from index.prefetch import Prefetch
from index.report import Failure, Finding, IndexInterruptedError, IndexReport, Progress, Tally
from index.seen import SeenKeys
from index.types import Item, Vector
from sources.records import Record

__all__ = ["Failure", "IndexInterruptedError", "IndexReport", "Progress", "Sink", "available_cores", "index_images"]

# A batch is cut short when its files grow to this size together, so that large photos cannot fill the memory.
_MAX_BATCH_BYTES = 32 * 2**20
# Files that one task decodes, one after the other: handing over small ones one by one costs more than decoding them.
_DECODED_AT_ONCE = 16
_DECODED_BYTES_AT_ONCE = 128 * 1024
# Batches read and being decoded ahead of the one that is being embedded. A batch is stored before the next is embedded,
# so that a kill costs at most one; the processors decode meanwhile.
_READ_AHEAD = 2
# Items looked at at once for those that are no longer in the source.
_PAGE = 1000

Decoded = list[NDArray[np.uint8] | ImageError]


class Model(Protocol):
    """What turns an image file into an embedding; `encoder.session.Encoder` is one. Both methods run in threads."""

    def load_pixels(self, data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
        """Return an image file's pixels, uint8 [H, W, 3]; raises ImageError."""
        ...

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings of uint8 [N, H, W, 3], float32 [N, D]."""
        ...


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def index_images(
    encoder: Model | None,
    records: Iterable[Record],
    sink: Sink,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    on_conflict: Conflict = "replace",
    sync: bool = False,
    total: int | None = None,
    limits: DecodeLimits | None = None,
    on_progress: Progress | None = None,
    on_finding: Callable[[Finding], None] | None = None,
) -> IndexReport:
    """Embed and store the images that the sink does not hold yet, and store vectors as they are.

    A record whose key exists with the same content is not embedded again; its label and payload are updated when they
    have changed. A key that comes twice in one run: the first counts; the second is skipped when its content is the
    same, and reported otherwise, because two sources then use one key for two images.

    Args:
        encoder: turns files into embeddings; None when the records are vectors.
        records: the images or vectors; read by one thread.
        sink: where the items go.
        batch_size: images that are embedded, and stored, at once.
        workers: threads that decode; None takes one for each core.
        on_conflict: what becomes of a record whose key exists with other content: it replaces that, is skipped (as are
            changes of label and payload), or is an error.
        sync: delete what the sink holds and the source does not. Only done when the whole source could be read, and
            something was in it.
        total: number of records when it is known, for `on_progress` alone.
        limits: what is refused as an image.
        on_progress: called whenever records are dealt with, never by two threads at once, not by the caller's thread.
        on_finding: called with every record that failed, is a duplicate or was deleted, likewise.

    Raises:
        IndexInterruptedError: Ctrl-C was pressed; the batch in hand has been stored.
        InvalidArgumentError: batch_size or workers is less than 1.
        Exception: whatever the encoder, the records, the sink or on_progress raises; all threads have ended then.
    """
    if batch_size < 1:
        raise InvalidArgumentError("batch size must be at least 1", field="batch_size")
    if workers is not None and workers < 1:
        raise InvalidArgumentError("workers must be at least 1", field="workers")
    options = _Options(batch_size, workers or available_cores(), limits or DecodeLimits(), on_conflict, sync)
    run = _Run(encoder, sink, options, Tally(total, on_progress, on_finding))
    return _await(run, records)


@dataclass(frozen=True, slots=True)
class _Options:
    batch_size: int
    workers: int
    limits: DecodeLimits
    on_conflict: Conflict
    sync: bool


class _Batch:
    """Records on their way to being items; without their bytes, which are not needed once decoded."""

    def __init__(self) -> None:
        self.records: list[New] = []
        self.size = 0
        self.tasks: list[Future[Decoded]] = []
        self._files: list[bytes] = []
        self._files_size = 0

    def add(self, new: New) -> None:
        """Take a record; its file waits for others that are decoded with it."""
        self.size += len(new.data) if isinstance(new.data, bytes) else new.data.nbytes
        if isinstance(new.data, bytes):
            self._files.append(new.data)
            self._files_size += len(new.data)
            new = new._replace(data=b"")
        self.records.append(new)

    def decode(self, decode: Callable[[list[bytes]], Future[Decoded]], *, last: bool) -> None:
        """Hand the files over to be decoded when there are enough of them."""
        enough = len(self._files) >= _DECODED_AT_ONCE or self._files_size >= _DECODED_BYTES_AT_ONCE
        if self._files and (enough or last):
            self.tasks.append(decode(self._files))
            self._files, self._files_size = [], 0


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

    def __init__(self, encoder: Model | None, sink: Sink, options: _Options, tally: Tally) -> None:
        self.stop = threading.Event()
        self._encoder = encoder
        self._sink = sink
        self._options = options
        self._tally = tally

    def run(self, records: Iterable[Record]) -> IndexReport:
        """Run all stages to the end, to `stop` or to the first exception, and end their threads."""
        pool = ThreadPoolExecutor(self._options.workers, thread_name_prefix="decode")
        with SeenKeys() as seen, pool:
            loading = Prefetch(self._load(records, pool, seen), _READ_AHEAD, "read")
            try:
                for items in self._embed(loading, seen):
                    self._tally.wrote(self._sink.upsert(items))
                if self._options.sync and not self.stop.is_set() and not self._tally.incomplete:
                    self._delete_vanished(seen)
            finally:
                self.stop.set()
                loading.abandon()
                loading.join()
                pool.shutdown(cancel_futures=True)
        return self._tally.report()

    def _load(
        self, records: Iterable[Record], pool: ThreadPoolExecutor, seen: SeenKeys
    ) -> Generator[_Batch, None, None]:
        """Yield full batches of what is not known yet, being decoded already."""
        intake = Intake(self._sink, self._options.on_conflict, seen, self._tally, self.stop)
        batch = _Batch()
        for new in intake.new(records, self._options.batch_size, _MAX_BATCH_BYTES):
            if self._encoder is None and isinstance(new.data, bytes):
                self._tally.failed(new.key, "it is an image, and no model was given to embed it")
                continue
            batch.add(new)
            full = len(batch.records) == self._options.batch_size or batch.size >= _MAX_BATCH_BYTES
            batch.decode(lambda files: pool.submit(self._decode, files), last=full)
            if full:
                yield batch
                batch = _Batch()
        if batch.records:
            batch.decode(lambda files: pool.submit(self._decode, files), last=True)
            yield batch

    def _decode(self, files: list[bytes]) -> Decoded:
        assert self._encoder is not None  # noqa: S101  _load has seen to it
        decoded: Decoded = []
        for data in files:
            try:
                decoded.append(self._encoder.load_pixels(data, self._options.limits))
            except ImageError as error:
                decoded.append(error)
        return decoded

    def _embed(self, batches: Iterable[_Batch], seen: SeenKeys) -> Generator[list[Item], None, None]:
        for batch in batches:
            decoded = iter([one for task in batch.tasks for one in task.result()])
            good: list[New] = []
            pixels: list[NDArray[np.uint8]] = []
            for new in batch.records:
                image = next(decoded) if isinstance(new.data, bytes) else None
                if isinstance(image, ImageError):
                    seen.forget(new.key)
                    self._tally.failed(new.key, str(image))
                    continue
                good.append(new)
                if image is not None:
                    pixels.append(image)
            if self.stop.is_set():
                return
            if good:
                made = iter(self._encoder.embed_pixels(np.stack(pixels)) if pixels and self._encoder else ())
                yield [_item(new, new.data if isinstance(new.data, np.ndarray) else next(made)) for new in good]

    def _delete_vanished(self, seen: SeenKeys) -> None:
        """Delete what the source no longer holds; an empty source is rather a mistake than a wish."""
        after = 0
        while not seen.empty() and not self.stop.is_set() and (page := self._sink.scroll(after, _PAGE)):
            after = page[-1].sequence
            if gone := seen.missing([item.key for item in page]):
                self._sink.delete(gone)
                self._tally.deleted(gone)


def _item(new: New, vector: Vector) -> Item:
    return Item(new.key, vector, new.label, new.payload, new.content_hash)
