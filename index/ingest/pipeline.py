"""Embed and store the images of a source, in a pipeline that may be stopped, or killed, and run again.

    read and hash ─▶ skip stored items ─▶ decode (many threads) ─▶ embed ─▶ store (durable, batch by batch)

All stages run at the same time, a batch apart, so that memory does not depend on the source's size. Stored items are
recognised by key and content hash before decoding: a second run does only what is missing. Vectors skip decoding and
embedding.

A batch is divided into pieces: while some are stored, others are embedded, so that the processors do not wait for the
disk. A killed run loses at most one batch of work.
"""

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.errors import ImagekinError, InvalidArgumentError
from imagekin.index.ingest.embed_stage import MAX_BATCH_BYTES, Data, EmbeddingModel, EmbedSettings, LoadBoth, embedded
from imagekin.index.ingest.intake import Conflict, Intake, New, Sink
from imagekin.index.ingest.report import (
    FailedRecord,
    Finding,
    IndexInterruptedError,
    IndexReport,
    IngestTally,
    Progress,
)
from imagekin.index.ingest.seen_keys import SeenKeys
from imagekin.index.types import VectorItem
from imagekin.machine import cores
from imagekin.sources.ignored import Ignored
from imagekin.sources.records import Record
from imagekin.types import Vector

__all__ = ["FailedRecord", "IndexInterruptedError", "IndexReport", "Progress", "Sink", "index_images"]

# Items per page when looking for those that are no longer in the source.
_PAGE = 1000


def index_images(
    encoder: EmbeddingModel | None,
    records: Iterable[Record],
    sink: Sink,
    *,
    batch_size: int = 128,
    workers: int | None = None,
    on_conflict: Conflict = "replace",
    sync: bool = False,
    total: int | None = None,
    limits: DecodeLimits | None = None,
    load_both: LoadBoth | None = None,
    on_progress: Progress | None = None,
    on_finding: Callable[[Finding], None] | None = None,
) -> IndexReport:
    """Embed and store the images that the sink does not hold yet, and store vectors unchanged.

    A record whose key exists with the same content is not embedded again; its label and payload are updated if they
    have changed. If a key occurs twice in one run, the first record is stored. The second one is skipped if it has the
    same content, and an error otherwise, because one key then stands for two images.

    Args:
        encoder: turns files into embeddings; None when the records are vectors.
        records: the images or vectors; read by one thread.
        sink: destination of the items.
        batch_size: most images that are being embedded, or embedded and not stored yet; a killed run loses no more.
        workers: threads that decode; None for one per core.
        on_conflict: action for a record whose key exists with other content: replace the item, skip the record (and
            changes of label and payload), or report an error.
        sync: delete the sink's items that the source does not hold, provided that the whole source could be read and
            is not empty.
        total: number of records if it is known, passed to `on_progress`.
        limits: limits of image files.
        load_both: loads a file's pixels for the encoder together with its thumbnail; None makes no thumbnails.
        on_progress: called as records are processed, by one thread at a time, but not the caller's.
        on_finding: called with every record that failed, is a duplicate or was deleted, likewise.

    Raises:
        IndexInterruptedError: Ctrl-C was pressed; the current batch has been stored.
        InvalidArgumentError: batch_size or workers is less than 1.
        Exception: an exception of the encoder, the records, the sink or a callback, after all threads have ended.
    """
    if batch_size < 1:
        raise InvalidArgumentError("batch size must be at least 1", field="batch_size")
    if workers is not None and workers < 1:
        raise InvalidArgumentError("workers must be at least 1", field="workers")
    options = _Options(batch_size, workers or cores(), limits or DecodeLimits(), on_conflict, sync, load_both)
    run = _Run(encoder, sink, options, IngestTally(total, on_progress, on_finding))
    return _await(run, records)


@dataclass(frozen=True, slots=True)
class _Options:
    batch_size: int
    workers: int
    limits: DecodeLimits
    on_conflict: Conflict
    sync: bool
    load_both: LoadBoth | None


def _await(run: "_Run", records: Iterable[Record]) -> IndexReport:
    """Run in another thread, so that Ctrl-C interrupts a thread that only waits, and never a write."""
    done: Future[IndexReport] = Future()

    def work() -> None:
        try:
            done.set_result(run.run(records))
        except BaseException as error:  # raised in the caller's thread
            done.set_exception(error)

    thread = threading.Thread(target=work, name="index", daemon=True)
    try:
        thread.start()  # within: it waits for the thread, which may already be at work when Ctrl-C comes
        return done.result()
    except KeyboardInterrupt:
        if done.done():
            raise
        run.stop.set()
    raise IndexInterruptedError(done.result())


class _Run:
    """The stages of one run, each of which checks `stop` before it begins a batch."""

    def __init__(self, encoder: EmbeddingModel | None, sink: Sink, options: _Options, tally: IngestTally) -> None:
        self.stop = threading.Event()
        self._encoder = encoder
        self._sink = sink
        self._options = options
        self._tally = tally

    def run(self, records: Iterable[Record]) -> IndexReport:
        """Run all stages until the end, `stop` or the first exception, and end their threads."""
        options = self._options
        pace = EmbedSettings(options.batch_size, options.workers, options.limits, options.load_both)
        with SeenKeys() as seen:
            embedding = embedded(self._encoder, self._new(records, seen), pace)
            try:
                for some in embedding:
                    if self.stop.is_set():
                        break
                    if items := self._good(some, seen):
                        self._tally.wrote(self._sink.upsert(items))
                if isinstance(ignored := getattr(records, "ignored", None), Ignored):
                    self._tally.left_out(ignored.unread_images)
                if options.sync and not self._tally.incomplete:
                    self._delete_vanished(seen)
            finally:
                self.stop.set()
                embedding.close()
        return self._tally.report()

    def _new(self, records: Iterable[Record], seen: SeenKeys) -> Generator[tuple[New, Data], None, None]:
        """Yield the records to store, each separate from its data, so that the data can be freed after decoding."""
        intake = Intake(self._sink, self._options.on_conflict, seen, self._tally, self.stop)
        for new in intake.new(records, self._options.batch_size, MAX_BATCH_BYTES):
            yield new._replace(data=b""), new.data

    def _good(self, batch: list[tuple[New, Vector | ImagekinError, bytes | None]], seen: SeenKeys) -> list[VectorItem]:
        """Return the items of a batch, and count the failed ones."""
        items: list[VectorItem] = []
        for new, vector, thumbnail in batch:
            if isinstance(vector, ImagekinError):
                seen.forget(new.key)
                self._tally.failed(new.key, str(vector))
            else:
                picture = thumbnail or new.thumbnail
                items.append(VectorItem(new.key, vector, new.label, new.payload, new.content_hash, thumbnail=picture))
        return items

    def _delete_vanished(self, seen: SeenKeys) -> None:
        """Delete the items that the source no longer holds, but none if it is empty, which is likely a mistake."""
        after = 0
        while not seen.empty() and not self.stop.is_set() and (page := self._sink.scroll(after, _PAGE)):
            after = page[-1].sequence
            if gone := seen.missing([item.key for item in page]):
                self._sink.delete(gone)
                self._tally.deleted(gone)
