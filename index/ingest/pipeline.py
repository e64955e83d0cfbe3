"""Embed and store the images of a source, in a pipeline that may be stopped, or killed, and run again.

    read and hash ─▶ leave out what is known ─▶ decode (many threads) ─▶ embed ─▶ store (durable, batch by batch)

All stages work at the same time, a batch apart, so that memory does not depend on the source's size. What has been
stored is recognised by key and content hash before it is decoded: running the same again does only what is missing.
Vectors take the same way, past decoding and embedding.

A batch goes in pieces: while what is embedded of it is stored, the rest is embedded, so that the processors do not wait
for the disk; and what a kill can cost is one batch.
"""

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.errors import ImagekinError, InvalidArgumentError
from imagekin.index.ingest.embed_stage import MAX_BATCH_BYTES, Data, EmbeddingModel, EmbedSettings, embedded
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
from imagekin.sources.records import Record
from imagekin.types import Vector

__all__ = ["FailedRecord", "IndexInterruptedError", "IndexReport", "Progress", "Sink", "index_images"]

# Items looked at at once for those that are no longer in the source.
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
        batch_size: images that a kill can cost at most: that are being embedded, or embedded and not stored yet.
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
    options = _Options(batch_size, workers or cores(), limits or DecodeLimits(), on_conflict, sync)
    run = _Run(encoder, sink, options, IngestTally(total, on_progress, on_finding))
    return _await(run, records)


@dataclass(frozen=True, slots=True)
class _Options:
    batch_size: int
    workers: int
    limits: DecodeLimits
    on_conflict: Conflict
    sync: bool


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

    def __init__(self, encoder: EmbeddingModel | None, sink: Sink, options: _Options, tally: IngestTally) -> None:
        self.stop = threading.Event()
        self._encoder = encoder
        self._sink = sink
        self._options = options
        self._tally = tally

    def run(self, records: Iterable[Record]) -> IndexReport:
        """Run all stages to the end, to `stop` or to the first exception, and end their threads."""
        options = self._options
        pace = EmbedSettings(options.batch_size, options.workers, options.limits)
        with SeenKeys() as seen:
            embedding = embedded(self._encoder, self._new(records, seen), pace)
            try:
                for some in embedding:
                    if self.stop.is_set():
                        break
                    if items := self._good(some, seen):
                        self._tally.wrote(self._sink.upsert(items))
                if options.sync and not self.stop.is_set() and not self._tally.incomplete:
                    self._delete_vanished(seen)
            finally:
                self.stop.set()
                embedding.close()
        return self._tally.report()

    def _new(self, records: Iterable[Record], seen: SeenKeys) -> Generator[tuple[New, Data], None, None]:
        """Yield what is not known yet, and apart from it its data, which nobody needs once they are decoded."""
        intake = Intake(self._sink, self._options.on_conflict, seen, self._tally, self.stop)
        for new in intake.new(records, self._options.batch_size, MAX_BATCH_BYTES):
            yield new._replace(data=b""), new.data

    def _good(self, batch: list[tuple[New, Vector | ImagekinError]], seen: SeenKeys) -> list[VectorItem]:
        """Return the items of a batch, and count the images that are none."""
        items: list[VectorItem] = []
        for new, vector in batch:
            if isinstance(vector, ImagekinError):
                seen.forget(new.key)
                self._tally.failed(new.key, str(vector))
            else:
                items.append(VectorItem(new.key, vector, new.label, new.payload, new.content_hash))
        return items

    def _delete_vanished(self, seen: SeenKeys) -> None:
        """Delete what the source no longer holds; an empty source is rather a mistake than a wish."""
        after = 0
        while not seen.empty() and not self.stop.is_set() and (page := self._sink.scroll(after, _PAGE)):
            after = page[-1].sequence
            if gone := seen.missing([item.key for item in page]):
                self._sink.delete(gone)
                self._tally.deleted(gone)
