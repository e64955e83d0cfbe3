"""A search with a bound and a large k finds everything so similar, as NumPy does, whatever is dead or tied."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError
from imagekin.index.filters.parser import parse
from imagekin.index.local import collection
from imagekin.index.local.catalog import Catalog
from imagekin.index.search import nearest, radius
from imagekin.index.search.radius import search_radius
from imagekin.index.storage.columns import Columns, ColumnSnapshot
from imagekin.index.types import SearchOptions, VectorItem
from imagekin.index.vectors import brute_force
from imagekin.types import Vector
from tests.index.reference import unit


def columns(vectors: Vector, dead: NDArray[np.int64]) -> ColumnSnapshot:
    """Return items of these vectors, the later the smaller the key."""
    filled = Columns(vectors.shape[1])
    count = len(vectors)
    keys = [b"%06d" % (count - slot) for slot in range(count)]
    filled.append(np.arange(1, count + 1), keys, [None] * count, [None] * count, vectors)
    filled.kill(dead + 1, count + 1 + np.arange(len(dead)))
    return filled.snapshot(2 * count)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 3000),
    queries=st.integers(1, 70),
    k=st.sampled_from([1, 40, 10**6]),
    bound=st.sampled_from([-1.0, 0.0, 0.5, 1.0]),
    copies=st.booleans(),
)
def test_as_numpy_in_float64(seed: int, count: int, queries: int, k: int, bound: float, copies: bool) -> None:
    random = np.random.default_rng(seed)
    vectors = unit(random.standard_normal((count, 6)).astype(np.float32))
    if copies and count:
        vectors = vectors[random.integers(0, count, count)]
    dead = np.flatnonzero(random.random(count) < 0.3)
    snapshot = columns(vectors, dead)
    asked = unit(random.standard_normal((queries, 6)).astype(np.float32))
    mask = snapshot.alive() & (random.random(count) < 0.8) if seed % 2 else None
    left = np.flatnonzero(snapshot.alive() if mask is None else mask)
    found = search_radius(snapshot, asked, k, bound, mask)
    for query, one in zip(asked, found, strict=True):
        exact = np.clip(vectors[left].astype(np.float64) @ query.astype(np.float64), -1, 1).astype(np.float32)
        order = sorted(
            (place for place in range(len(left)) if exact[place] >= np.float32(bound)),
            key=lambda place: (-exact[place], snapshot.key(int(left[place]))),
        )[:k]
        # Two ways of adding may differ in the last bit, and then order two neighbours, or the bound, otherwise.
        assert abs(len(one.slots) - len(order)) <= 1
        np.testing.assert_allclose(one.similarities[: len(order)], exact[order][: len(one.slots)], atol=2e-7)
        gaps = -np.diff(exact[order])
        if len(order) == len(one.slots) and np.all((gaps > 3e-7) | (gaps == 0)):
            assert one.slots[:-1].tolist() == left[order][:-1].tolist()


def test_pieces_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    snapshot = columns(unit(random.standard_normal((3000, 16)).astype(np.float32)), np.arange(0, 3000, 7))
    asked = unit(random.standard_normal((9, 16)).astype(np.float32))
    before = [one.slots.tolist() for one in search_radius(snapshot, asked, 10**6, 0.1)]
    monkeypatch.setattr(radius, "_PRODUCTS_AT_ONCE", 6000)
    monkeypatch.setattr(nearest, "_COPIED_AT_ONCE", 1600)
    monkeypatch.setattr(brute_force, "THREADS", 3)
    monkeypatch.setattr(brute_force, "_READ_PER_THREAD", 1)
    assert [one.slots.tolist() for one in search_radius(snapshot, asked, 10**6, 0.1)] == before
    assert min(len(slots) for slots in before) > 500


def test_a_collection_finds_everything_so_similar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "_MAX_NEAREST_K", 20)
    random = np.random.default_rng(1)
    query = random.standard_normal(8).astype(np.float32)
    items = [
        VectorItem(f"k{n:03d}", query + 2 * random.standard_normal(8).astype(np.float32), "ab"[n % 2])
        for n in range(400)
    ]
    with Catalog(tmp_path) as catalog:
        shop = catalog.create("shop", space="ik1-a", dim=8)
        shop.upsert(items)
        every = shop.search(query[None], SearchOptions(k=10_000))[0]
        wanted = [one.key for one in every if one.similarity >= 0.4]
        assert len(wanted) > 40

        def keys(options: SearchOptions) -> list[str]:
            return [one.key for one in shop.search(query[None], options)[0]]

        assert keys(SearchOptions(k=1_000_000, min_similarity=0.4)) == wanted
        assert keys(SearchOptions(k=30, min_similarity=0.4)) == wanted[:30]
        without = frozenset(wanted[:3])
        assert keys(SearchOptions(k=30, min_similarity=0.4, exclude=[without])) == wanted[3:33]
        labelled = [one.key for one in every if one.similarity >= 0.4 and one.label == "a"]
        assert keys(SearchOptions(k=50_000, min_similarity=0.4, filter=parse('label = "a"'))) == labelled
        for refused in (
            SearchOptions(k=1_000_001, min_similarity=0.4),
            SearchOptions(k=10_001),
            SearchOptions(k=10_001, min_similarity=0.4, group_by="label"),
        ):
            with pytest.raises(InvalidArgumentError, match="k must be 1 to"):
                shop.search(query[None], refused)
