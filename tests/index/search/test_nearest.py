"""Search is exact: as NumPy in float64, whatever is dead, tied or left out, and however many queries come together."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagekin.index.search import nearest as search
from imagekin.index.search.nearest import nearest
from imagekin.index.storage.columns import Columns, ColumnSnapshot
from imagekin.index.storage.search_priority import SearchPriority
from imagekin.index.types import SearchOptions
from imagekin.index.vectors import brute_force
from imagekin.index.vectors.brute_force import top_k
from imagekin.types import Vector
from tests.index.reference import unit

ALL = 1 << 40


def columns(vectors: Vector, dead: NDArray[np.int64] | None = None) -> ColumnSnapshot:
    """Return items `0000`, `0001` … of these vectors; the slots `dead` have died."""
    filled = Columns(vectors.shape[1])
    count = len(vectors)
    keys = [f"{slot:06d}".encode() for slot in range(count)]
    filled.append(np.arange(1, count + 1), keys, [None] * count, [None] * count, vectors)
    if dead is not None and len(dead):
        filled.kill(dead + 1, count + 1 + np.arange(len(dead)))
    return filled.snapshot(2 * count + 1)


def expected(snapshot: ColumnSnapshot, query: Vector, k: int) -> tuple[list[int], NDArray[np.float32]]:
    slots = np.flatnonzero(snapshot.alive())
    exact = (snapshot.vectors[slots].astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = np.argsort(-exact, kind="stable")[:k]  # keys ascend with slots
    return slots[order].tolist(), np.clip(exact[order], -1, 1)


def assert_exact(snapshot: ColumnSnapshot, queries: Vector, k: int) -> None:
    found = nearest(snapshot, queries, k)
    assert len(found) == len(queries)
    for query, one in zip(queries, found, strict=True):
        slots, similarities = expected(snapshot, query, k)
        # Two ways of adding in float64 may differ in the last bit of float32, and then order two neighbours otherwise.
        np.testing.assert_allclose(one.similarities, similarities, atol=1.2e-7)
        if len(set(similarities.tolist())) == len(similarities) and np.all(-np.diff(similarities) > 3e-7):
            assert one.slots[:-1].tolist() == slots[:-1]
        assert len(one.slots) == min(k, snapshot.live)
        assert snapshot.alive()[one.slots].all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 400),
    dim=st.integers(1, 40),
    queries=st.integers(1, 20),
    k=st.integers(1, 500),
    dead_share=st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]),
)
def test_as_numpy_in_float64(seed: int, count: int, dim: int, queries: int, k: int, dead_share: float) -> None:
    random = np.random.default_rng(seed)
    vectors = unit(random.standard_normal((count, dim)).astype(np.float32))
    dead = np.flatnonzero(random.random(count) < dead_share)
    assert_exact(columns(vectors, dead), unit(random.standard_normal((queries, dim)).astype(np.float32)), k)


@pytest.mark.parametrize("queries", [1, 4, 5, 70])
def test_the_nearest_being_dead_hides_nothing(queries: int) -> None:
    random = np.random.default_rng(0)
    vectors = unit(random.standard_normal((3000, 16)).astype(np.float32))
    query = unit(random.standard_normal((queries, 16)).astype(np.float32))
    nearest_first = np.argsort(-(vectors @ query[0]))
    snapshot = columns(vectors, np.sort(nearest_first[:900]))
    assert_exact(snapshot, query, 10)
    assert nearest(snapshot, query, 10)[0].slots[0] == nearest_first[900]


@pytest.mark.parametrize("queries", [1, 8, 70])
@pytest.mark.parametrize("copies", [3, 30, 3000])
def test_equal_items_are_ordered_by_key_and_never_cut_at_random(copies: int, queries: int) -> None:
    random = np.random.default_rng(copies)
    vectors = unit(random.standard_normal((4000, 24)).astype(np.float32))
    same = np.sort(random.permutation(4000)[:copies])
    vectors[same] = vectors[same[0]]
    # The later the slot, the smaller the key.
    filled = Columns(24)
    filled.append(
        np.arange(1, 4001),
        [f"{4000 - slot:06d}".encode() for slot in range(4000)],
        [None] * 4000,
        [None] * 4000,
        vectors,
    )
    snapshot = filled.snapshot(4000)
    query = np.repeat(vectors[same[:1]], queries, axis=0)
    for one in nearest(snapshot, query, 10):
        tied = one.slots[one.similarities == one.similarities[0]]
        assert tied.tolist() == same[::-1][:10].tolist()


def test_an_answer_does_not_depend_on_its_company() -> None:
    random = np.random.default_rng(3)
    vectors = unit(random.standard_normal((5000, 32)).astype(np.float32))
    queries = unit(random.standard_normal((100, 32)).astype(np.float32))
    snapshot = columns(vectors, np.arange(0, 900))
    together = nearest(snapshot, queries, 20)
    for place in range(0, 100, 7):
        (alone,) = nearest(snapshot, queries[place : place + 1], 20)
        assert alone.slots.tolist() == together[place].slots.tolist()
        assert alone.similarities.tobytes() == together[place].similarities.tobytes()


def test_a_mask_is_answered_exactly() -> None:
    random = np.random.default_rng(4)
    snapshot = columns(unit(random.standard_normal((2000, 16)).astype(np.float32)), np.arange(100))
    queries = unit(random.standard_normal((9, 16)).astype(np.float32))
    for share in (0.001, 0.02, 0.6, 1.0):
        mask = (random.random(2000) < share) & snapshot.alive()
        for query, one in zip(queries, nearest(snapshot, queries, 10, mask), strict=True):
            slots = np.flatnonzero(mask)
            best = slots[np.argsort(-(snapshot.vectors[slots].astype(np.float64) @ query.astype(np.float64)))[:10]]
            assert one.slots.tolist() == best.tolist()


def test_blocks_and_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    snapshot = columns(unit(random.standard_normal((1000, 16)).astype(np.float32)), np.arange(0, 1000, 3))
    queries = unit(random.standard_normal((40, 16)).astype(np.float32))
    before = [one.slots.tolist() for one in nearest(snapshot, queries, 10)]
    monkeypatch.setattr(search, "_RESCORED_AT_ONCE", 1)
    assert [one.slots.tolist() for one in nearest(snapshot, queries, 10)] == before
    monkeypatch.setattr(search, "_GATHER_BELOW", 2.0)
    monkeypatch.setattr(search, "_COPIED_AT_ONCE", 200)
    assert [one.slots.tolist() for one in nearest(snapshot, queries, 10)] == before


def by_numpy(queries: Vector, vectors: Vector, k: int) -> NDArray[np.int64]:
    return np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("queries", [1, 2, 101])
def test_a_large_search_is_shared_out_and_stays_the_same(monkeypatch: pytest.MonkeyPatch, queries: int) -> None:
    random = np.random.default_rng(6)
    vectors = random.standard_normal((700, 16)).astype(np.float32)
    asked = random.standard_normal((queries, 16)).astype(np.float32)
    products, rows = top_k(asked, vectors, 5)
    monkeypatch.setattr(brute_force, "THREADS", 3)
    monkeypatch.setattr(brute_force, "_READ_PER_THREAD", 1)
    shared_products, shared_rows = top_k(asked, vectors, 5)
    np.testing.assert_allclose(products, shared_products, rtol=1e-5)
    assert rows.tolist() == shared_rows.tolist()
    assert rows.tolist() == by_numpy(asked, vectors, 5).tolist()
    for k in (699, 700):
        assert top_k(asked, vectors, k)[1].tolist() == by_numpy(asked, vectors, k).tolist()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("count", "queries", "k"), [(4096, 3, 1), (4097, 130, 64), (9999, 5, 10), (33_000, 64, 18)])
def test_a_tournament_finds_all_of_the_best(
    count: int, queries: int, k: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(count)
    vectors = unit(random.standard_normal((count, 24)).astype(np.float32))
    asked = unit(random.standard_normal((queries, 24)).astype(np.float32))
    # The worst order for whoever guesses a bound from what came first, and all of the best next to each other.
    vectors = np.ascontiguousarray(vectors[np.argsort(vectors @ asked[0])])
    monkeypatch.setattr(brute_force, "THREADS", threads)
    monkeypatch.setattr(brute_force, "_READ_PER_THREAD", 1e4)
    products, rows = top_k(asked, vectors, k)
    assert rows.tolist() == by_numpy(asked, vectors, k).tolist()
    np.testing.assert_allclose(products, np.take_along_axis(asked @ vectors.T, rows, axis=1), atol=1e-6)


def test_what_fails_on_another_thread_fails_the_call() -> None:
    def work(begin: int, end: int) -> None:
        if begin:
            raise MemoryError

    with pytest.raises(MemoryError):
        brute_force.run_parallel(work, 4, 2)


def test_the_bound_on_similarity_includes_itself(tmp_path: Path) -> None:
    snapshot = columns(np.eye(4, dtype=np.float32))
    query = unit(np.array([[0.6, 0.8, 0, 0]], np.float32))
    (found,) = search.neighbours(snapshot, query, SearchOptions(k=4, min_similarity=0.6))
    assert found.slots.tolist() == [1, 0]
    assert found.similarities.tolist() == [np.float32(0.8), np.float32(0.6)]


def test_similarity_stays_within_one() -> None:
    vectors = unit(np.random.default_rng(7).standard_normal((500, 333)).astype(np.float32))
    snapshot = columns(np.concatenate((vectors, -vectors)))
    for one in nearest(snapshot, vectors[:50], 1000):
        assert one.similarities[0] <= 1.0
        assert one.similarities[-1] >= -1.0


def test_a_snapshot_looks_back(tmp_path: Path) -> None:
    filled = Columns(2)
    for number in range(1, 6):
        filled.append(np.array([number]), [b"k%d" % number], ["a"], [None], np.array([[1, 0]], np.float32))
    filled.kill(np.array([2, 4]), np.array([6, 7]))
    latest = filled.snapshot(7)
    views = {sequence: latest.at(sequence) for sequence in range(8)}
    counts = {sequence: view.live for sequence, view in views.items()}
    assert counts == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 4, 7: 3}
    assert np.flatnonzero(views[6].alive()).tolist() == [0, 2, 3, 4]
    assert views[6].labelled == 4
    compacted = Columns.of_live(filled.snapshot(7), SearchPriority()).snapshot(7)
    assert (compacted.live, compacted.floor) == (3, 7)
