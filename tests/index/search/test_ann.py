"""An approximate index changes how quickly neighbours are found, and little else."""

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from imagekin.index.local import maintenance
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.search import ann, nearest
from imagekin.index.types import ClassifyOptions, SearchOptions, VectorItem
from imagekin.types import Vector
from tests.index.reference import assert_agree, unit

DIM = 16
COUNT = 6000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "BUILD_FROM", 1000)
    monkeypatch.setattr(nearest, "_APPROXIMATE_FROM", 500)
    monkeypatch.setattr(maintenance, "_SCRUB_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(maintenance, "_REST_FACTOR", 0.0)


def vectors(count: int = COUNT, seed: int = 0) -> Vector:
    centres = np.random.default_rng(99).standard_normal((60, DIM))
    random = np.random.default_rng(seed)
    values = centres[random.integers(0, 60, count)] + 0.5 * random.standard_normal((count, DIM))
    return unit(values.astype(np.float32))


def items(values: Vector, first: int = 0) -> list[VectorItem]:
    return [VectorItem(f"k{first + n:05d}", vector, f"c{n % 3}") for n, vector in enumerate(values)]


def make(folder: Path, kind: str) -> None:
    with Catalog(folder) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=DIM, index_kind=kind)
        collection.upsert(items(vectors()))
        collection.build_index()


def recall(collection: LocalCollection, stored: dict[str, Vector], k: int = 10) -> float:
    queries = vectors(100, seed=3)
    keys, matrix = list(stored), np.stack(list(stored.values()))
    truth = np.argsort(-(queries @ matrix.T), axis=1)[:, :k]
    found = collection.search(queries, SearchOptions(k=k))
    assert all(len(one) == k for one in found)
    for query, one in zip(queries, found, strict=True):
        for neighbour in one:
            # Whatever is proposed, its similarity is exact.
            assert neighbour.similarity == pytest.approx(float(query @ stored[neighbour.key]), abs=2e-6)
    hits = [len({one.key for one in row} & {keys[n] for n in best}) for row, best in zip(found, truth, strict=True)]
    return float(np.mean(hits)) / k


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "pq"])
def test_it_finds_what_is_there_after_writes_and_reopenings(tmp_path: Path, kind: str) -> None:
    make(tmp_path, kind)
    stored = {item.key: item.vector for item in items(vectors())}
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        collection._store._maintenance._update_index(lambda: False)
        info = collection.info()
        assert info.index_kind == kind
        assert info.recall is not None
        assert info.recall > 0.9
        assert recall(collection, stored) > 0.9
        # Replaced, deleted, new: found, gone, found.
        changed = items(vectors(300, seed=5), first=COUNT - 150)
        collection.upsert(changed)
        collection.delete([f"k{n:05d}" for n in range(500)])
        stored |= {item.key: item.vector for item in changed}
        stored = {key: vector for key, vector in stored.items() if key >= "k00500"}
        assert recall(collection, stored) > 0.9
        for item in changed[::20]:
            assert collection.search(item.vector[None], SearchOptions(k=1))[0][0].key == item.key
        old = vectors()[:20]
        assert not {one.key for found in collection.search(old, SearchOptions(k=50)) for one in found} & {
            f"k{n:05d}" for n in range(500)
        }
        assert collection.classify(old, ClassifyOptions(k=5))[0].label in ("c0", "c1", "c2")
    with Catalog(tmp_path, read_only=True) as catalog:
        assert catalog.describe("shop").index_kind == kind
        reading = catalog.open("shop")
        reading._store._maintenance._update_index(lambda: False)
        assert reading.info().index_kind == kind
        assert recall(reading, stored) > 0.9


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "pq"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_a_mask_is_kept_and_nothing_is_missing(tmp_path: Path, kind: str, share: float) -> None:
    make(tmp_path, kind)
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        collection._store._maintenance._update_index(lambda: False)
        snapshot = collection._store.snapshot()
        assert snapshot.approximate is not None
        mask = np.random.default_rng(0).random(len(snapshot)) < share
        queries = vectors(50, seed=3)
        exact = np.argsort(-np.where(mask, queries @ snapshot.vectors.T, -2), axis=1)[:, :10]
        hits = 0
        for best, found in zip(exact, nearest.nearest(snapshot, queries, 10, mask), strict=True):
            assert len(found.slots) == 10
            assert mask[found.slots].all()
            hits += len(np.intersect1d(best, found.slots))
        assert hits / 500 > 0.85


def test_more_than_an_index_proposes_is_answered_exactly(tmp_path: Path) -> None:
    make(tmp_path, "ivf")
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        collection._store._maintenance._update_index(lambda: False)
        values = unit(vectors())
        query = vectors(1, seed=8)
        (found,) = collection.search(query, SearchOptions(k=3000))
        products = (values.astype(np.float64) @ query[0].astype(np.float64)).astype(np.float32)
        order = np.argsort(-products, kind="stable")[:3000]
        assert_agree(found, [(f"k{n:05d}", float(products[n])) for n in order])


def test_what_the_index_lacks_is_found_even_behind_the_dead(tmp_path: Path) -> None:
    make(tmp_path, "ivf")
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        collection._store._maintenance._update_index(lambda: False)
        query = vectors(1, seed=8)
        noise = np.random.default_rng(1).standard_normal((300, DIM)).astype(np.float32)
        near = unit(query + np.float32(0.02) * noise)
        collection.upsert(items(near, first=COUNT))
        order = [f"k{COUNT + n:05d}" for n in np.argsort(-(near @ query[0]), kind="stable")]
        for gone in (0, 100, 200):
            collection.delete(order[:gone])
            (found,) = collection.search(query, SearchOptions(k=10))
            assert [one.key for one in found] == order[gone : gone + 10]
        snapshot = collection._store.snapshot()
        assert snapshot.approximate is not None
        assert snapshot.approximate.rows == COUNT
        collection.build_index()
        rebuilt = collection._store.snapshot().approximate
        assert rebuilt is not None
        assert rebuilt.rows == COUNT + 300


def test_a_damaged_index_is_built_again(tmp_path: Path) -> None:
    make(tmp_path, "ivf")
    path = tmp_path / "collections" / "shop" / "segments" / "index-data"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert ann.load(path.parent) is None
    with Catalog(tmp_path, read_only=True) as catalog:
        catalog.open("shop")._store._maintenance._update_index(lambda: False)
        assert catalog.open("shop").info().index_kind == "flat"
    with Catalog(tmp_path) as catalog:
        catalog.open("shop")._store._maintenance._update_index(lambda: False)
        assert catalog.open("shop").info().index_kind == "ivf"
    assert ann.load(path.parent) is not None


def test_the_kind_follows_the_size() -> None:
    assert ann.kind_for("auto", 1999) == "flat"
    assert ann.kind_for("auto", ann.AUTO_FROM) == "ivf"
    assert ann.kind_for("hnsw", 999) == "flat"
    assert ann.kind_for("hnsw", 1000) == "hnsw"
    assert ann.kind_for("flat", 10**9) == "flat"


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_the_recall_that_info_states_is_that_of_new_queries(tmp_path: Path, kind: str) -> None:
    # Without clusters, where what a graph was made around is found far more easily than what it was not.
    values = unit(np.random.default_rng(1).standard_normal((COUNT + 500, 24)).astype(np.float32))
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=24, index_kind=kind)
        collection.upsert(items(values[:COUNT]))
        collection.build_index()
        stated = collection.info().recall
        found = collection.search(values[COUNT:], SearchOptions(k=10))
    truth = np.argsort(-(values[COUNT:] @ values[:COUNT].T), axis=1)[:, :10]
    hits = [len({one.key for one in row} & {f"k{n:05d}" for n in best}) for row, best in zip(found, truth, strict=True)]
    assert stated == pytest.approx(float(np.mean(hits)) / 10, abs=0.012)


@hypothesis.given(st.integers(1, 60), st.sets(st.integers(0, 59), max_size=20))
def test_slots_that_came_in_last_are_found_at_their_places(rows: int, last: set[int]) -> None:
    late = tuple(sorted(slot for slot in last if slot < rows))
    index = ann.Approximate(None, ann.Description("hnsw", "", rows, 1, 1.0, 1.0, "", late))
    order = [slot for slot in range(rows) if slot not in late] + list(late)
    assert index._slots[np.arange(-1, rows)].tolist() == [-1, *order]
    mask = np.random.default_rng(rows).random(rows) < 0.5
    bits = np.unpackbits(index._packed(mask), bitorder="little")[:rows]
    assert bits.tolist() == mask[order].tolist()
