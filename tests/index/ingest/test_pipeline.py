"""Indexing writes every image once, whatever happens on the way, and does nothing twice."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import InvalidArgumentError
from imagekin.index.ingest import report as ingest_report
from imagekin.index.ingest.intake import Intake
from imagekin.index.ingest.pipeline import IndexInterruptedError, index_images
from imagekin.index.ingest.report import IngestTally
from imagekin.index.ingest.seen_keys import Seen, SeenKeys
from imagekin.index.types import VectorItem
from imagekin.sources.open import open_source, open_sources
from imagekin.sources.records import Record, SourceError
from imagekin.types import UpsertResult
from tests.artifacts import tiny_artifact
from tests.data import shared_data
from tests.index.ingest.batching import CountingModel, DictSink, counts, records
from tests.sources.pictures import png, write_files


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_progress_rises_to_the_end_one_call_at_a_time() -> None:
    calls: list[tuple[int, int | None, int]] = []
    source = [*records(50), Record("b", b"bad"), *records(50)]
    report = index_images(
        CountingModel(), source, DictSink(), batch_size=7, total=101, on_progress=lambda *call: calls.append(call)
    )
    assert calls == sorted(calls)
    assert calls[-1] == (report.seen, 101, 1)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}])
def test_wrong_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        index_images(CountingModel(), [], DictSink(), **options)  # type: ignore[arg-type]


class Broken(Exception):  # noqa: N818
    """What a stage raises in a test."""


class TroubledModel(CountingModel):
    """Raises at the third batch or at the 20th image."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def load_pixels(self, data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
        """Raise at the 20th image."""
        if self.where == "decode" and data == b"20":
            raise Broken
        return super().load_pixels(data, limits)

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raise at the third batch."""
        if self.where == "embed" and len(self.embedded) == 2:
            raise Broken
        return super().embed_pixels(pixels)


class TroubledSink(DictSink):
    """Raises at the third batch."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def content_hashes(self, keys: Sequence[str]) -> Mapping[str, bytes | None]:
        """Raise when the 20th image is asked for."""
        if self.where == "look up" and "20.png" in keys:
            raise Broken
        return super().content_hashes(keys)

    def upsert(self, items: Sequence[VectorItem]) -> UpsertResult:
        """Raise at the third batch."""
        if self.where == "write" and len(self.writes) == 2:
            raise Broken
        return super().upsert(items)


def endless(where: str) -> Iterator[Record]:
    """Yield records for ever, or until the 20th raises."""
    n = 0
    while True:
        if where == "read" and n == 20:
            raise Broken
        yield from records(1, n)
        n += 1


@pytest.mark.parametrize("where", ["read", "look up", "decode", "embed", "write", "progress"])
def test_an_exception_anywhere_ends_the_run_and_all_its_threads(where: str) -> None:
    """The source is endless: a stage that went on after the exception would never end."""

    def on_progress(seen: int, total: int | None, failed: int) -> None:
        if where == "progress" and seen >= 16:
            raise Broken

    sink = TroubledSink(where)
    with pytest.raises(Broken):
        index_images(TroubledModel(where), endless(where), sink, batch_size=8, on_progress=on_progress)
    stored = len(sink.items)
    assert stored <= 24
    sink.where = ""
    assert counts(index_images(CountingModel(), records(30), sink)) == (30 - stored, 0, stored, 0)


def test_memory_holds_a_few_batches_however_long_the_source() -> None:
    """The reader waits when the writer does."""
    read = 0
    highest = 0
    sink = DictSink()

    def source() -> Iterator[Record]:
        nonlocal read, highest
        for record in records(400):
            read += 1
            highest = max(highest, read - sum(sink.writes))
            yield record

    class SlowSink(DictSink):
        def upsert(self, items: Sequence[VectorItem]) -> UpsertResult:
            time.sleep(0.005)
            sink.writes.append(len(items))
            return super().upsert(items)

    index_images(CountingModel(), source(), SlowSink(), batch_size=8)
    assert highest <= 8 * 9


@pytest.mark.parametrize("apart", [1, 5, 200])
def test_a_key_that_comes_twice_counts_once_however_far_apart(apart: int) -> None:
    same, other, sink = Record("twice", b"first"), Record("twice", b"second"), DictSink()
    source = [same, *records(apart), same, *records(apart, 500), other]
    assert counts(index_images(CountingModel(), source, sink, batch_size=8)) == (1 + 2 * apart, 0, 1, 1)
    assert counts(index_images(CountingModel(), [same, same, other], sink)) == (0, 0, 2, 1)


def test_large_files_make_smaller_batches() -> None:
    large = [Record(f"{n}", bytes(12 * 2**20)) for n in range(7)]
    model = CountingModel()
    index_images(model, large, DictSink(), batch_size=64)
    assert model.embedded == [3, 3, 1]


class WatchedSink(DictSink):
    """Stores slowly, and notes each time what a kill would cost then: images that are embedded and not stored yet."""

    def __init__(self, model: CountingModel, seconds: float) -> None:
        super().__init__()
        self.unstored: list[int] = []
        self._model, self._seconds = model, seconds

    def upsert(self, items: Sequence[VectorItem]) -> UpsertResult:
        time.sleep(self._seconds)
        self.unstored.append(sum(self._model.embedded) - len(self.items))
        return super().upsert(items)


@pytest.mark.parametrize(("batch_size", "sessions"), [(1, 1), (1, 2), (7, 1), (7, 2), (9, 4)])
def test_what_a_kill_can_cost_is_no_more_when_a_batch_does_not_divide(batch_size: int, sessions: int) -> None:
    model = CountingModel()
    model.sessions = sessions
    sink = WatchedSink(model, 0.005)
    index_images(model, records(40), sink, batch_size=batch_size)
    assert 1 <= max(sink.unstored) <= batch_size
    assert len(sink.items) == 40


@pytest.mark.parametrize("sessions", [1, 2, 5])
def test_what_a_kill_can_cost_is_one_batch(sessions: int) -> None:
    """However slow the sink is, and however many runs of the model go on."""
    model = CountingModel()
    model.sessions = sessions
    sink = WatchedSink(model, 0.01)
    index_images(model, records(300), sink, batch_size=20)
    assert max(sink.unstored) == 20, "the rest of the batch is embedded meanwhile, and no more"
    assert set(model.embedded) == {10 // sessions}, "what is skipped leaves no gaps"
    assert list(sink.items) == [record.key for record in records(300)]


def test_a_slow_source_does_not_keep_back_what_is_embedded() -> None:
    """The first piece is stored before the source has yielded enough for a batch."""
    sink = DictSink()
    stored = []

    def source() -> Iterator[Record]:
        yield from records(30)
        deadline = time.monotonic() + 10
        while len(sink.items) < 10 and time.monotonic() < deadline:
            time.sleep(0.001)
        stored.append(len(sink.items))

    index_images(CountingModel(), source(), sink, batch_size=20)
    assert stored[0] >= 10


def test_ctrl_c_stops_after_the_batch_in_hand_and_says_how_far_it_came(request: pytest.FixtureRequest) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    sink = DictSink()

    def on_progress(seen: int, total: int | None, failed: int) -> None:
        if seen == 32:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(IndexInterruptedError, match="go on") as caught:
        index_images(CountingModel(), slowly(endless("")), sink, batch_size=16, on_progress=on_progress)
    report = caught.value.report
    assert counts(report) == (len(sink.items), 0, 0, 0)
    assert 32 <= report.written <= 32 + 16 * 6
    whole = records(300)
    assert counts(index_images(CountingModel(), whole, sink)) == (300 - report.written, 0, report.written, 0)


@pytest.mark.parametrize("of", ["known items", "files that cannot be read"])
def test_a_run_that_is_stopped_reads_no_further_though_it_finds_nothing_to_embed(of: str) -> None:
    sink, stop, read = DictSink(), threading.Event(), 0
    index_images(CountingModel(), records(8), sink)

    def source() -> Iterator[Record]:
        nonlocal read
        while read < 10_000:
            read += 1
            if read == 20:
                stop.set()
            yield records(1, read % 8)[0] if of == "known items" else Record(f"{read}", SourceError("cannot be read"))

    intake = Intake(sink, "update", SeenKeys(), IngestTally(None, None), stop)
    assert list(intake.new(source(), 4, 1_000)) == []
    assert read <= 21


def test_a_run_that_was_stopped_deletes_nothing() -> None:
    sink = DictSink()
    index_images(CountingModel(), records(300), sink)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def source() -> Iterator[Record]:
        yield from records(10)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        yield from records(100_000, 10)

    try:
        with pytest.raises(IndexInterruptedError):
            index_images(CountingModel(), source(), sink, batch_size=4, sync=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert set(sink.items) >= {record.key for record in records(300)}


def slowly(source: Iterable[Record]) -> Iterator[Record]:
    for record in source:
        time.sleep(0.0005)
        yield record


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.open(tiny_artifact(tmp_path_factory.mktemp("model") / "model.onnx"), threads=1)


def test_two_sources_with_the_same_names_do_not_overwrite_each_other_silently(tmp_path: Path, encoder: Encoder) -> None:
    first = write_files(tmp_path / "first", {"a/1.png": png(1), "a/2.png": png(2)})
    second = write_files(tmp_path / "second", {"a/1.png": png(1), "a/2.png": png(3)})
    sink = DictSink()
    report = index_images(encoder, open_sources([first, second]), sink)
    assert counts(report) == (4, 0, 0, 0)


def test_hostile_files_are_embedded_or_listed(encoder: Encoder) -> None:
    source = open_source(shared_data("hostile-images.tar"))
    sink = DictSink()
    report = index_images(encoder, source, sink)
    assert report.written == len(sink.items) > 100
    assert report.failed_count == len(report.failed) > 10
    assert report.seen + source.ignored.total == 651


def test_no_payload_and_an_empty_one_are_the_same() -> None:
    sink = DictSink()
    index_images(CountingModel(), [Record("none", b"1"), Record("empty", b"2", payload={})], sink)
    again = [Record("none", b"1", payload={}), Record("empty", b"2")]
    report = index_images(CountingModel(), again, sink)
    assert (report.written, report.updated, report.skipped) == (0, 0, 2)


def test_a_record_that_comes_again_after_it_failed_is_no_duplicate_of_itself() -> None:
    with SeenKeys() as seen:
        for _ in range(2):
            ((before, other),) = seen.meet([("a", b"content", None)])
            assert (before, other) == (Seen.NEW, None)
            seen.forget("a")


def test_a_report_lists_some_failed_records_and_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_report, "_MAX_LISTED", 5)
    tally = IngestTally(None, None)
    for number in range(9):
        tally.failed(f"{number}", "cannot be read")
    found = tally.report()
    assert (found.failed_count, len(found.failed)) == (9, 5)
