"""Whoever embeds, this process or the workers of a Ray cluster: the same is stored, counted, refused and reported."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imagekin.errors import ImageError
from imagekin.index.ingest.intake import Conflict
from imagekin.index.ingest.pipeline import index_images
from imagekin.index.ingest.report import Finding
from imagekin.index.types import VectorItem
from imagekin.sources.records import Record, SourceError
from imagekin.types import JSON
from tests.index.ingest.batching import CountingModel, DictSink, Engine, LocalEngine, RayEngine, counts, records
from tests.index.ingest.cluster import local_cluster

# Ray Data copies its own settings one by one, deprecated ones included.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\.context")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    pytest.importorskip("ray", reason="ray is one of the dev extras")
    with local_cluster():
        yield


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "local":
        return LocalEngine()
    request.getfixturevalue("cluster")
    return RayEngine(tmp_path / "embedded")


def filled(source: list[Record]) -> DictSink:
    """Return a sink that holds what is good of a source."""
    sink = DictSink()
    index_images(CountingModel() if source else None, source, sink)
    return sink


def test_every_image_is_stored_with_its_label_payload_and_content_hash(engine: Engine) -> None:
    sink = DictSink()
    source = [*records(149), Record("a", b"a", payload={"price": 3, "tags": ["x", None]})]
    report = engine.index(source, sink, batch_size=64)
    assert counts(report) == (150, 0, 0, 0)
    assert sum(sink.writes) == 150
    assert set(sink.writes) <= {32, 64, 22, 54}, "of pieces of 32, what is embedded by then; a batch of two at most"
    for record in source:
        item = sink.items[record.key]
        digest = hashlib.sha256(record.data).digest() if isinstance(record.data, bytes) else b""
        assert item.content_hash == digest
        assert (item.label, item.payload) == (record.label, record.payload)
        np.testing.assert_array_equal(item.vector, np.frombuffer(digest[:12], np.uint8))


def test_a_second_run_decodes_and_embeds_nothing(engine: Engine) -> None:
    sink = filled(records(100))
    assert counts(engine.index(records(100), sink)) == (0, 0, 100, 0)
    assert engine.embedded == []


def test_what_is_new_or_has_changed_is_embedded_alone(engine: Engine) -> None:
    sink = filled(records(100))
    changed = [Record(record.key, b"other " + record.key.encode()) for record in records(100)[::4]]
    report = engine.index([*records(100)[1::2], *changed, *records(40, 100)], sink, batch_size=10)
    assert counts(report) == (65, 25, 50, 0)
    assert sum(engine.embedded) == 65
    assert sink.items["4.png"].content_hash == hashlib.sha256(b"other 4.png").digest()


def test_an_item_of_unknown_content_is_written_anew(engine: Engine) -> None:
    sink = DictSink()
    sink.items["0.png"] = VectorItem("0.png", np.ones(12, np.float32))
    assert counts(engine.index(records(1), sink)) == (1, 1, 0, 0)


def test_bad_files_are_listed_with_their_reasons_and_the_others_written(engine: Engine) -> None:
    bad = [Record("b1", b"bad"), Record("b2", ImageError("cut off")), Record("b3", b"bad")]
    sink = DictSink()
    report = engine.index([*bad[:1], *records(9), *bad[1:]], sink, batch_size=4)
    assert counts(report) == (9, 0, 0, 3)
    assert sorted(report.failed) == [("b1", "no image"), ("b2", "cut off"), ("b3", "no image")]
    assert len(sink.items) == 9


def test_only_bad_files_and_no_files_at_all(engine: Engine) -> None:
    assert counts(engine.index([Record("b", b"bad")], DictSink())) == (0, 0, 0, 1)
    assert counts(engine.index([], DictSink())) == (0, 0, 0, 0)


def test_a_key_that_comes_twice_counts_once(engine: Engine) -> None:
    """The first stays; other content under its key is reported, because it is another image."""
    same, other = Record("twice", b"first"), Record("twice", b"second")
    sink = DictSink()
    report = engine.index([same, *records(90), same, *records(90, 500), other], sink, batch_size=8)
    assert counts(report) == (181, 0, 1, 1)
    assert report.failed[0].key == "twice"
    assert "same key" in report.failed[0].reason
    assert sink.items["twice"].content_hash == hashlib.sha256(b"first").digest()
    again = engine.index([same, same, other], sink)
    assert counts(again) == (0, 0, 2, 1), "the second run agrees with the first"


def described(*pairs: tuple[str, str | None, dict[str, JSON] | None]) -> list[Record]:
    return [Record(key, key.encode(), label, payload) for key, label, payload in pairs]


def test_a_changed_label_or_payload_is_updated_without_embedding_again(engine: Engine) -> None:
    before = described(("a", "x", {"p": 1}), ("b", "x", None), ("c", None, None), ("d", "x", None))
    after = described(("a", "y", {"p": 1}), ("b", "x", {"p": 2}), ("c", "z", None), ("d", "x", None))
    sink = filled(before)
    report = engine.index(after, sink)
    assert counts(report) == (0, 0, 1, 0)
    assert report.updated == 3
    assert engine.embedded == []
    assert {key: (item.label, item.payload) for key, item in sink.items.items()} == {
        record.key: (record.label, record.payload) for record in after
    }
    index_images(CountingModel(), before, sink)
    assert (sink.items["c"].label, sink.items["b"].payload) == (None, None), "what is gone from the source is removed"


@pytest.mark.parametrize(
    ("on_conflict", "expected"), [("replace", (1, 1, 1, 0)), ("skip", (0, 0, 3, 0)), ("error", (0, 0, 1, 2))]
)
def test_other_content_under_a_key_replaces_is_skipped_or_is_an_error(
    engine: Engine, on_conflict: Conflict, expected: tuple[int, int, int, int]
) -> None:
    sink = filled(records(3))
    changed = [Record("0.png", b"new", "even"), Record("1.png", b"1", "odd"), *records(1, 2)]
    found: list[Finding] = []
    report = engine.index(changed, sink, on_conflict=on_conflict, on_finding=found.append)
    assert sum(engine.embedded) == expected[1], "what is not stored is not embedded"
    assert counts(report) == expected
    assert report.conflicts == len(found) == expected[3]
    assert {one.status for one in found} <= {"conflict"}
    if on_conflict != "replace":
        assert sink.items["0.png"].content_hash == hashlib.sha256(b"0").digest()
        assert sink.items["1.png"].label is None


def test_duplicates_by_content_are_stored_and_reported(engine: Engine) -> None:
    sink = DictSink()
    found: list[Finding] = []
    source = [Record("a", b"same"), Record("b", b"other"), Record("c", b"same")]
    report = engine.index(source, sink, on_finding=found.append)
    assert (report.written, report.duplicates) == (3, 1)
    assert found == [Finding("c", "duplicate", "a")]
    assert index_images(CountingModel(), source, sink).duplicates == 1, "also when they are stored already"


def test_sync_deletes_what_is_gone_and_leaves_the_same_as_a_fresh_run(engine: Engine) -> None:
    sink = filled(records(2500))
    source = [*records(1000, 1200), Record("2.png", b"changed", "z"), Record("7.png", b"bad now"), *records(10, 3000)]
    report = engine.index(source, sink, sync=True)
    fresh = filled(source)
    assert report.deleted == 2500 - 1000 - 1
    assert sink.items.keys() == fresh.items.keys()
    for key, item in fresh.items.items():
        assert (sink.items[key].label, sink.items[key].content_hash) == (item.label, item.content_hash)
        np.testing.assert_array_equal(sink.items[key].vector, item.vector)


@pytest.mark.parametrize(
    "source", [[], [Record("0.png", ImageError("x"))], [*records(1), Record("x", SourceError("unreadable"))]]
)
def test_sync_deletes_nothing_when_the_source_is_empty_or_was_not_read_whole(
    engine: Engine, source: list[Record]
) -> None:
    sink = filled(records(5))
    assert engine.index(source, sink, sync=True).deleted == 0
    assert len(sink.items) == 5


def test_vectors_are_stored_without_a_model(engine: Engine) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    digest = hashlib.sha256(b"image").digest()
    source = [Record(f"{n}", vector, "x", None, digest if n == 0 else None) for n, vector in enumerate(vectors)]
    sink = DictSink()
    assert counts(engine.index([*source, Record("i", b"image")], sink)) == (5, 0, 0, 1)
    np.testing.assert_array_equal(sink.items["3"].vector, vectors[3])
    assert sink.items["0"].content_hash == digest
    assert counts(index_images(None, source, sink)) == (0, 0, 5, 0)
