"""Many copies of the same picture neither fill the memory nor hide the other pictures."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from imagekin.index.local.catalog import Catalog
from imagekin.index.search import nearest
from imagekin.index.search.nearest import NearestSlots
from imagekin.index.search.recall import first_copies
from imagekin.index.storage.columns import Columns, ColumnSnapshot
from imagekin.index.types import SearchOptions, VectorItem
from imagekin.types import Vector
from tests.index.reference import unit


def snapshot_of(vectors: Vector) -> ColumnSnapshot:
    columns = Columns(vectors.shape[1], len(vectors))
    count = len(vectors)
    columns.append(
        np.arange(1, count + 1),
        [f"k{n:06}".encode() for n in reversed(range(count))],
        [None] * count,
        [None] * count,
        vectors,
    )
    return columns.snapshot(count)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("live_share", [1.0, 0.3])
def test_queries_amid_copies_take_no_copy_of_the_collection(queries: int, live_share: float) -> None:
    rows, dim = 30_000, 128
    picture = unit(np.random.default_rng(0).standard_normal((1, dim)).astype(np.float32))
    snapshot = snapshot_of(np.repeat(picture, rows, axis=0))
    mask = None if live_share == 1.0 else np.arange(rows) < live_share * rows
    tracemalloc.start()
    answers = nearest.nearest(snapshot, np.repeat(picture, queries, axis=0), 5, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All vectors are 15 MB, and 45 with their copy in float64.
    assert peak < 14e6 + 1.2e6 * queries
    last = rows if mask is None else int(np.count_nonzero(mask))
    for answer in answers:
        assert isinstance(answer, NearestSlots)
        assert answer.slots.tolist() == list(range(last - 1, last - 6, -1))  # ties by key


def copies(rows: int, dim: int, share: float, pictures: int) -> Vector:
    random = np.random.default_rng(1)
    vectors = unit(random.standard_normal((rows, dim)).astype(np.float32))
    many = random.random(rows) < share
    vectors[many] = vectors[random.integers(0, pictures, int(many.sum()))]
    return vectors


@pytest.mark.parametrize(("share", "pictures"), [(0.5, 1), (0.9, 7), (0.0, 1)])
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_copies_do_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, share: float, pictures: int
) -> None:
    monkeypatch.setattr(nearest, "_APPROXIMATE_FROM", 1000)
    vectors = copies(6000, 24, share, pictures)
    queries = unit(np.random.default_rng(2).standard_normal((100, 24)).astype(np.float32))
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=24, index_kind=kind)
        collection.upsert([VectorItem(f"k{n}", vector) for n, vector in enumerate(vectors)])
        collection.build_index()
        info = collection.info()
        assert info.index_kind == ("ivf" if share else kind)
        assert info.recall is not None
        truth = np.sort(queries @ vectors.T, axis=1)[:, :-11:-1]
        found = collection.search(queries, SearchOptions(k=10))
        hits = [
            np.count_nonzero(np.array([one.similarity for one in answer]) >= true[-1] - 1e-5) / 10
            for answer, true in zip(found, truth, strict=True)
        ]
        assert np.mean(hits) >= 0.95
        assert abs(float(np.mean(hits)) - info.recall) < 0.04
    with Catalog(tmp_path) as catalog:
        # The same index is used again.
        collection = catalog.open("shop")
        before = (tmp_path / "collections" / "shop" / "segments" / "index-data").stat()
        collection.build_index()
        assert collection.info().index_kind == info.index_kind
        assert (tmp_path / "collections" / "shop" / "segments" / "index-data").stat().st_mtime_ns == before.st_mtime_ns


def test_copies_are_counted_bit_by_bit() -> None:
    random = np.random.default_rng(3)
    vectors = unit(random.standard_normal((50, 5)).astype(np.float32))
    order = random.integers(0, 50, 4000)
    snapshot = snapshot_of(np.ascontiguousarray(vectors[order]))
    firsts = first_copies(snapshot.vectors, 4000, lambda: False)
    assert firsts.tolist() == sorted(np.unique(order, return_index=True)[1].tolist())
