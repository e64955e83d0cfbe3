"""Indexing writes every image once, whatever happens on the way, and does nothing twice."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from encoder.errors import ImageError, InvalidArgumentError
from encoder.images import DecodeLimits
from encoder.session import Encoder
from index.batch import IndexInterruptedError, IndexReport, index_images
from index.intake import Conflict
from index.report import Finding
from index.types import Item, ItemUpdate, Outcome, StoredItem, UpsertResult
from sources.opening import open_source, open_sources
from sources.records import Record, SourceError
from sources.values import JSON
from tests.artifacts import tiny_artifact
from tests.data import shared_data
from tests.sources.pictures import png, write_files


class CountingModel:
    """A real model's interface; counts what it is asked for."""

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
        self.items: dict[str, Item] = {}
        self.page: list[StoredItem] = []
        self.writes: list[int] = []

    def content_hashes(self, keys: Sequence[str]) -> Mapping[str, bytes | None]:
        """Return those of the keys that exist."""
        return {key: self.items[key].content_hash for key in keys if key in self.items}

    def get(self, keys: Sequence[str]) -> list[StoredItem | None]:
        """Return the items."""
        return [self.stored(key) if key in self.items else None for key in keys]

    def stored(self, key: str) -> StoredItem:
        """Return an item as a collection would; a later one has a higher sequence number."""
        item = self.items[key]
        place = list(self.items).index(key) + 1
        return StoredItem(key, item.vector, item.label, item.payload, item.content_hash, place)

    def scroll(self, after_sequence: int, limit: int) -> list[StoredItem]:
        """Return a page, of what there was when the first one was asked for."""
        if after_sequence == 0:
            self.page = [self.stored(key) for key in self.items]
        return [item for item in self.page if item.sequence > after_sequence][:limit]

    def update(self, changes: Sequence[ItemUpdate]) -> None:
        """Change items."""
        for change in changes:
            item = self.items[change.key]
            self.items[change.key] = Item(
                change.key, item.vector, change.label or None, change.payload or None, item.content_hash
            )

    def delete(self, keys: Sequence[str]) -> None:
        """Delete items."""
        for key in keys:
            del self.items[key]

    def upsert(self, items: Sequence[Item]) -> UpsertResult:
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


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_every_image_is_stored_with_its_label_and_content_hash() -> None:
    sink, model = DictSink(), CountingModel()
    report = index_images(model, records(150), sink, batch_size=64)
    assert counts(report) == (150, 0, 0, 0)
    assert sink.writes == [64, 64, 22]
    for record in records(150):
        item = sink.items[record.key]
        digest = hashlib.sha256(record.data).digest() if isinstance(record.data, bytes) else b""
        assert item.content_hash == digest
        assert item.label == record.label
        np.testing.assert_array_equal(item.vector, np.frombuffer(digest[:12], np.uint8))


def test_the_payload_is_stored() -> None:
    sink = DictSink()
    index_images(CountingModel(), [Record("a", b"a", payload={"price": 3})], sink)
    assert sink.items["a"].payload == {"price": 3}


def test_a_second_run_decodes_and_embeds_nothing() -> None:
    sink = DictSink()
    index_images(CountingModel(), records(100), sink)
    model = CountingModel()
    assert counts(index_images(model, records(100), sink)) == (0, 0, 100, 0)
    assert (model.decoded, model.embedded) == ([], [])


def test_what_is_new_or_has_changed_is_embedded_in_full_batches() -> None:
    sink = DictSink()
    index_images(CountingModel(), records(100), sink)
    changed = [Record(record.key, b"other " + record.key.encode()) for record in records(100)[::4]]
    model = CountingModel()
    report = index_images(model, [*records(100)[1::2], *changed, *records(40, 100)], sink, batch_size=10)
    assert counts(report) == (65, 25, 50, 0)
    assert model.embedded == [10] * 6 + [5], "what is skipped leaves no gaps"
    assert sink.items["4.png"].content_hash == hashlib.sha256(b"other 4.png").digest()


def test_an_item_of_unknown_content_is_written_anew() -> None:
    sink = DictSink()
    sink.items["0.png"] = Item("0.png", np.ones(12, np.float32))
    assert counts(index_images(CountingModel(), records(1), sink)) == (1, 1, 0, 0)


def test_bad_files_are_listed_with_their_reasons_and_the_others_written() -> None:
    bad = [Record("b1", b"bad"), Record("b2", ImageError("cut off")), Record("b3", b"bad")]
    sink = DictSink()
    report = index_images(CountingModel(), [*bad[:1], *records(9), *bad[1:]], sink, batch_size=4)
    assert counts(report) == (9, 0, 0, 3)
    assert sorted(report.failed) == [("b1", "no image"), ("b2", "cut off"), ("b3", "no image")]
    assert len(sink.items) == 9


def test_only_bad_files_and_no_files_at_all() -> None:
    assert counts(index_images(CountingModel(), [Record("b", b"bad")], DictSink())) == (0, 0, 0, 1)
    assert counts(index_images(CountingModel(), [], DictSink())) == (0, 0, 0, 0)


@pytest.mark.parametrize("apart", [1, 5, 200])
def test_a_key_that_comes_twice_counts_once(apart: int) -> None:
    """The first stays; other content under its key is reported, because it is another image."""
    same, other = Record("twice", b"first"), Record("twice", b"second")
    sink = DictSink()
    report = index_images(
        CountingModel(), [same, *records(apart), same, *records(apart, 500), other], sink, batch_size=8
    )
    assert counts(report) == (1 + 2 * apart, 0, 1, 1)
    assert report.failed[0].key == "twice"
    assert "same key" in report.failed[0].reason
    assert sink.items["twice"].content_hash == hashlib.sha256(b"first").digest()
    again = index_images(CountingModel(), [same, same, other], sink)
    assert counts(again) == (0, 0, 2, 1), "the second run agrees with the first"


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

    def upsert(self, items: Sequence[Item]) -> UpsertResult:
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
        def upsert(self, items: Sequence[Item]) -> UpsertResult:
            time.sleep(0.005)
            sink.writes.append(len(items))
            return super().upsert(items)

    index_images(CountingModel(), source(), SlowSink(), batch_size=8)
    assert highest <= 8 * 9


def test_large_files_make_smaller_batches() -> None:
    large = [Record(f"{n}", bytes(12 * 2**20)) for n in range(7)]
    model = CountingModel()
    index_images(model, large, DictSink(), batch_size=64)
    assert model.embedded == [3, 3, 1]


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
    assert counts(report) == (2, 0, 1, 1)


def test_hostile_files_are_embedded_or_listed(encoder: Encoder) -> None:
    source = open_source(shared_data("hostile-images.tar"))
    sink = DictSink()
    report = index_images(encoder, source, sink)
    assert report.written == len(sink.items) > 100
    assert report.failed_count == len(report.failed) > 10
    assert report.seen + source.ignored == 651


def described(*pairs: tuple[str, str | None, dict[str, JSON] | None]) -> list[Record]:
    return [Record(key, key.encode(), label, payload) for key, label, payload in pairs]


def test_a_changed_label_or_payload_is_updated_without_embedding_again() -> None:
    sink = DictSink()
    before = described(("a", "x", {"p": 1}), ("b", "x", None), ("c", None, None), ("d", "x", None))
    after = described(("a", "y", {"p": 1}), ("b", "x", {"p": 2}), ("c", "z", None), ("d", "x", None))
    index_images(CountingModel(), before, sink)
    model = CountingModel()
    report = index_images(model, after, sink)
    assert counts(report) == (0, 0, 1, 0)
    assert report.updated == 3
    assert model.embedded == []
    assert {key: (item.label, item.payload) for key, item in sink.items.items()} == {
        record.key: (record.label, record.payload) for record in after
    }
    index_images(model, before, sink)
    assert (sink.items["c"].label, sink.items["b"].payload) == (None, None), "what is gone from the source is removed"


@pytest.mark.parametrize(
    ("on_conflict", "expected"), [("replace", (1, 1, 1, 0)), ("skip", (0, 0, 3, 0)), ("error", (0, 0, 1, 2))]
)
def test_other_content_under_a_key_replaces_is_skipped_or_is_an_error(
    on_conflict: Conflict, expected: tuple[int, int, int, int]
) -> None:
    sink = DictSink()
    index_images(CountingModel(), records(3), sink)
    changed = [Record("0.png", b"new", "even"), Record("1.png", b"1", "odd"), *records(1, 2)]
    found: list[Finding] = []
    report = index_images(CountingModel(), changed, sink, on_conflict=on_conflict, on_finding=found.append)
    assert counts(report) == expected
    assert report.conflicts == len(found) == expected[3]
    assert {one.status for one in found} <= {"conflict"}
    if on_conflict != "replace":
        assert sink.items["0.png"].content_hash == hashlib.sha256(b"0").digest()
        assert sink.items["1.png"].label is None


def test_duplicates_by_content_are_stored_and_reported() -> None:
    sink = DictSink()
    found: list[Finding] = []
    source = [Record("a", b"same"), Record("b", b"other"), Record("c", b"same")]
    report = index_images(CountingModel(), source, sink, on_finding=found.append)
    assert (report.written, report.duplicates) == (3, 1)
    assert found == [Finding("c", "duplicate", "a")]
    assert index_images(CountingModel(), source, sink).duplicates == 1, "also when they are stored already"


def test_sync_deletes_what_is_gone_and_leaves_the_same_as_a_fresh_run() -> None:
    sink, fresh = DictSink(), DictSink()
    index_images(CountingModel(), records(2500), sink)
    source = [*records(1000, 1200), Record("2.png", b"changed", "z"), Record("7.png", b"bad now"), *records(10, 3000)]
    report = index_images(CountingModel(), source, sink, sync=True)
    index_images(CountingModel(), source, fresh)
    assert report.deleted == 2500 - 1000 - 1
    assert sink.items.keys() == fresh.items.keys()
    for key, item in fresh.items.items():
        assert (sink.items[key].label, sink.items[key].content_hash) == (item.label, item.content_hash)
        np.testing.assert_array_equal(sink.items[key].vector, item.vector)


@pytest.mark.parametrize(
    "source", [[], [Record("0.png", ImageError("x"))], [*records(1), Record("x", SourceError("unreadable"))]]
)
def test_sync_deletes_nothing_when_the_source_is_empty_or_was_not_read_whole(source: list[Record]) -> None:
    sink = DictSink()
    index_images(CountingModel(), records(5), sink)
    assert index_images(CountingModel(), source, sink, sync=True).deleted == 0
    assert len(sink.items) == 5


def test_vectors_are_stored_without_a_model() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    digest = hashlib.sha256(b"image").digest()
    source = [Record(f"{n}", vector, "x", None, digest if n == 0 else None) for n, vector in enumerate(vectors)]
    sink = DictSink()
    assert counts(index_images(None, [*source, Record("i", b"image")], sink)) == (5, 0, 0, 1)
    np.testing.assert_array_equal(sink.items["3"].vector, vectors[3])
    assert sink.items["0"].content_hash == digest
    assert counts(index_images(None, source, sink)) == (0, 0, 5, 0)
