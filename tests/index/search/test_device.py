"""Searching on a device gives the answers of the processor, whatever the device cannot do."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.index.filters.parser import parse
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.search.gpu import faiss_gpu, resident
from imagekin.index.search.gpu.open import open_device
from imagekin.index.types import SearchOptions, VectorItem
from imagekin.types import Neighbour, Vector
from tests.index.limited import MOST, LimitedDevice, install
from tests.index.reference import unit

DIM, ROWS = 16, 12_000


def vectors(count: int, seed: int = 0, dim: int = DIM) -> Vector:
    found: Vector = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return found


def items(count: int, seed: int = 0, prefix: str = "k") -> list[VectorItem]:
    return [
        VectorItem(f"{prefix}{n}", vector, f"c{n % 100}", {"n": n % 1000})
        for n, vector in enumerate(vectors(count, seed))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection with sealed rows, dead slots, equal vectors and rows that are not sealed."""
    folder = tmp_path_factory.mktemp("device")
    with Catalog(folder) as catalog:
        collection = catalog.create("many", space="s", dim=DIM, index_kind="flat")
        collection.upsert(items(ROWS))
        collection.upsert([VectorItem(f"same-{n}", np.ones(DIM, np.float32)) for n in range(30)])
        collection.seal()
        collection.delete([f"k{n}" for n in range(0, ROWS, 11)])
        collection.upsert(items(500, 1, "new"))
    return folder


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[LimitedDevice]]:
    opened = install(monkeypatch)
    yield opened
    assert all(not device.strangers for device in opened), opened[0].strangers


def on_device(catalog: Catalog) -> LocalCollection:
    collection = catalog.open("many")
    collection._store._maintenance._update_resident(lambda: False)
    assert collection._store.snapshot().resident is not None
    return collection


def same(one: list[list[Neighbour]], other: list[list[Neighbour]]) -> None:
    as_tuples = [[[(each.key, each.similarity, each.label) for each in row] for row in rows] for rows in (one, other)]
    assert as_tuples[0] == as_tuples[1]


FILTERS = {
    "all": None,
    "half": "payload.n < 500",
    "tenth": "payload.n < 100",
    "one in fifty": 'label IN ("c1", "c2")',
    "few": "payload.n = 3",
    "ties": 'key STARTS WITH "same" OR payload.n < 100',
}


def test_the_answers_are_those_of_the_processor(folder: Path, devices: list[LimitedDevice]) -> None:
    queries = np.concatenate((vectors(8, 7), np.ones((1, DIM), np.float32)))
    with Catalog(folder, read_only=True) as apart, Catalog(folder, read_only=True, device="cuda") as catalog:
        plain, collection = apart.open("many"), on_device(catalog)
        for text in FILTERS.values():
            condition = None if text is None else parse(text)
            for k in (1, 10, 300, 5000):
                options = SearchOptions(k, filter=condition)
                for few in (queries[:1], queries[-1:], queries):
                    same(collection.search(few, options), plain.search(few, options))
        assert MOST // 4 < max(k for _, k in devices[0].asked) <= MOST


@pytest.mark.parametrize(("text", "asked"), [("all", True), ("tenth", True), ("few", False)])
def test_few_matches_are_gathered_and_many_are_proposed(
    folder: Path, devices: list[LimitedDevice], text: str, asked: bool
) -> None:
    wanted = FILTERS[text]
    condition = None if wanted is None else parse(wanted)
    with Catalog(folder, read_only=True, device="cuda") as catalog:
        collection = on_device(catalog)
        before = len(devices[0].asked)
        collection.search(vectors(3, 8), SearchOptions(10, filter=condition))
        assert collection.info().index_device == "cuda"
        assert (len(devices[0].asked) > before) == asked


def test_matches_that_are_far_from_the_query_are_found(tmp_path: Path, devices: list[LimitedDevice]) -> None:
    near = unit(vectors(1, 3))[0]
    rows = unit(vectors(12_000, 4) * 0.1 + near)
    rows[:1500] = unit(vectors(1500, 5) * 0.1 - near)  # an eighth, all of it on the other side
    with Catalog(tmp_path, device="cuda") as catalog:
        collection = catalog.create("many", space="s", dim=DIM)
        collection.upsert([VectorItem(f"{n}", row, "far" if n < 1500 else "near") for n, row in enumerate(rows)])
        collection.seal()
        on_device(catalog)
        (found,) = collection.search(near[None], SearchOptions(10, filter=parse('label = "far"')))
        exact = rows[:1500].astype(np.float64) @ near.astype(np.float64)
        assert [one.key for one in found] == [str(n) for n in np.argsort(-exact)[:10]]
        assert [k for _, k in devices[0].asked][-3:] == [152, 608, 2048]


def test_one_thread_asks_the_device_however_many_search(
    tmp_path: Path, devices: list[LimitedDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagekin.index.local.maintenance.RESIDENT_FROM", 1)
    monkeypatch.setattr(resident, "PART_BYTES", 1000 * DIM * 4)
    rows = vectors(4000, 9)
    with Catalog(tmp_path, device="cuda") as catalog, ThreadPoolExecutor(8) as pool:
        collection = catalog.create("many", space="s", dim=DIM)
        collection.upsert([VectorItem(f"{n}", row) for n, row in enumerate(rows[:2000])])
        collection.build_index()
        stop = threading.Event()

        def ask(seed: int) -> int:
            random, count = np.random.default_rng(seed), 0
            while not stop.is_set():
                number = int(random.integers(2000))
                (found,) = collection.search(rows[number][None], SearchOptions(3))
                assert found[0].key == str(number)
                count += 1
            return count

        asking = [pool.submit(ask, seed) for seed in range(4)]
        for begin in range(2000, 4000, 500):
            collection.upsert([VectorItem(f"{n}", rows[n]) for n in range(begin, begin + 500)])
            collection.build_index()
        collection.compact()
        collection.build_index()
        stop.set()
        assert all(each.result() for each in asking)
        index = collection._store.snapshot().resident
        assert index is not None
        assert index.rows == 4000
        del index
        # What an older snapshot held has been let go: the device holds every vector once.
        assert collection.search(rows[:1], SearchOptions(1))
        assert devices[0].held == 4000


def test_what_does_not_fit_is_searched_on_the_processor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = install(monkeypatch, memory=5_000)
    monkeypatch.setattr(resident, "PART_BYTES", 2_000 * DIM * 4)
    queries = vectors(5, 11)
    with Catalog(folder, read_only=True) as apart, Catalog(folder, read_only=True, device="cuda") as catalog:
        collection = on_device(catalog)
        part = collection._store.snapshot().resident
        assert part is not None
        assert part.rows == opened[0].held == 4_000
        for _ in range(3):  # no more than one attempt
            collection._store._maintenance._update_resident(lambda: False)
        same(collection.search(queries, SearchOptions(10)), apart.open("many").search(queries, SearchOptions(10)))
        assert len([one for one in caplog.records if "do not fit" in one.message]) == 1
        assert "out of memory" in caplog.text
        assert "gpu.cu" not in caplog.text


def test_where_an_index_is_built_by_itself_a_part_on_the_device_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagekin.index.search.ann.AUTO_FROM", 5_000)
    install(monkeypatch)
    with Catalog(tmp_path, device="cuda") as catalog:
        collection = catalog.create("many", space="s", dim=DIM)
        collection.upsert(items(ROWS))
        collection.build_index()
        assert collection._store.snapshot().resident is not None
        assert collection.info().index_kind == "flat"
    install(monkeypatch, memory=5_000)
    with Catalog(tmp_path, device="cuda") as catalog:
        collection = catalog.open("many")
        collection.build_index()
        assert collection._store.snapshot().resident is None
        assert collection.info().index_kind == "ivf"


def test_a_device_that_fails_is_not_asked_again(
    folder: Path, devices: list[LimitedDevice], caplog: pytest.LogCaptureFixture
) -> None:
    queries = vectors(5, 12)
    with Catalog(folder, read_only=True) as apart, Catalog(folder, read_only=True, device="cuda") as catalog:
        collection = on_device(catalog)
        devices[0].broken = True
        for _ in range(3):
            same(collection.search(queries, SearchOptions(10)), apart.open("many").search(queries, SearchOptions(10)))
        assert len([one for one in caplog.records if "the GPU fails" in one.message]) == 1
        devices[0].broken = False
        for _ in range(2):
            collection._store._maintenance._update_resident(lambda: False)
        assert collection._store.snapshot().resident is None


def test_a_device_that_computes_roughly_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, noise=1e-3)  # as products of 10-bit fractions are
    with Catalog(folder, read_only=True, device="cuda") as catalog:
        collection = catalog.open("many")
        collection._store._maintenance._update_resident(lambda: False)
        assert collection._store.snapshot().resident is None
        assert collection.info().index_device == "cpu"
        assert "is not used" in caplog.text


@pytest.mark.skipif(faiss_gpu.is_built() and faiss_gpu.gpu_count() > 0, reason="there is a GPU here")
@pytest.mark.parametrize("built", [True, False])
def test_without_a_gpu(
    tmp_path: Path, built: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_device("cpu") is None
    monkeypatch.setattr(faiss_gpu, "is_built", lambda: built)
    monkeypatch.setattr(faiss_gpu, "gpu_count", lambda: 0)
    with caplog.at_level(logging.INFO, logger="imagekin.index"):
        assert open_device("auto") is None
    assert ("searched on the processor: FAISS sees no GPU" in caplog.text) is built  # an ordinary install has no news
    with pytest.raises(FailedPreconditionError, match="--index-device cpu"):
        Catalog(tmp_path, device="cuda")
    with pytest.raises(InvalidArgumentError, match="auto, cpu, cuda"):
        Catalog(tmp_path, device="tpu")


@hypothesis.given(st.lists(st.integers(1, 3000), min_size=1, max_size=60), st.integers(50, 5000))
def test_parts_are_few_and_follow_each_other(steps: list[int], most: int) -> None:
    runs: list[tuple[int, int]] = []
    rows = copied = 0
    for step in steps:
        rows += step
        kept, more = resident.plan_parts(runs, rows, resident.PART_BYTES // most)
        limit = resident.PART_BYTES // (resident.PART_BYTES // most)
        copied += sum(end - begin for begin, end in more)
        runs = [*runs[:kept], *more]
        assert [begin for begin, _ in runs] == [0, *(end for _, end in runs[:-1])]
        assert runs[-1][1] == rows
        assert all(0 < end - begin <= limit for begin, end in runs)
    assert len(runs) <= 2 * rows / most + np.log2(rows) + 2
    assert copied <= rows * (np.log2(rows) + 1)
