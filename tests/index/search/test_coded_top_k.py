"""Searches by codes answer as those without: the same items in the same order, the same similarities bit by bit."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagekin.index.search import coded_top_k
from imagekin.index.search.nearest import nearest
from imagekin.index.types import StoppedError
from imagekin.index.vectors import brute_force, matmul_scan, projection
from imagekin.index.vectors import codes as coding
from imagekin.index.vectors.codes import MAX_CODE, Codes, encode_vectors, packed, with_settings_of, with_short_codes
from imagekin.index.vectors.int8_products import ZERO, IntegerProducts, integer_products
from imagekin.types import Vector
from tests.index.reference import unit
from tests.index.search.test_nearest import columns

Random = np.random.Generator
KINDS = ("random", "clustered", "flattish", "alike", "duplicated", "hardly different", "spiked", "flat")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_top_k, "MIN_ROWS", 256)
    monkeypatch.setattr(coded_top_k, "_ROWS_PER_NEIGHBOUR", 20)
    monkeypatch.setattr(coding, "_PACKED_FROM", 1)
    monkeypatch.setattr(coding, "_PACKED_BYTES", 1)  # blocks of 256 rows
    monkeypatch.setattr(projection, "_WIDTHS", (3, 8, 32))
    monkeypatch.setattr(projection, "_WORTH_IT", 1e9)  # always


def drawn(kind: str, count: int, dim: int, random: Random) -> Vector:
    """Return unit vectors that are easy or hard to tell apart by their codes, or by those of their projections."""
    noise = random.standard_normal((count, dim))
    if kind == "clustered":
        noise = random.standard_normal((7, dim))[random.integers(0, 7, count)] + 0.02 * noise
    elif kind == "flattish":
        noise *= 0.5 ** np.arange(dim)
    elif kind == "alike":
        noise = 9 * noise[:1] + noise
    elif kind == "duplicated":
        noise = noise[random.integers(0, min(9, count), count)]
    elif kind == "hardly different":
        noise = noise[:1] + 1e-5 * noise
    elif kind == "spiked":
        rows = random.random(count) < 0.02
        noise[rows] = np.eye(dim)[random.integers(0, dim, int(rows.sum()))]
    elif kind == "flat":
        noise = np.sign(noise)
    return unit(noise.astype(np.float32))


def with_integers(codes: Codes) -> Codes:
    integers = integer_products()
    assert integers is not None, "ONNX Runtime multiplies integers wherever the project is tested"
    return replace(codes, integers=integers)


def counted_scores(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of vectors whenever some are scored; to score all fails from now on."""
    scored: list[int] = []
    best_of = brute_force.best_of

    def counted(queries: Vector, vectors: Vector, rows: NDArray[np.int64], k: int) -> tuple[Vector, NDArray[np.int64]]:
        scored.append(int(np.count_nonzero(rows >= 0)))
        return best_of(queries, vectors, rows, k)

    monkeypatch.setattr(brute_force, "best_of", counted)
    monkeypatch.setattr(brute_force, "top_k", None)
    return scored


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    count=st.integers(300, 3000),
    dim=st.integers(1, 70),
    queries=st.sampled_from([1, 2, 3, 8, 130]),
    k=st.integers(1, 12),
    near=st.booleans(),
    dead=st.sampled_from([0.0, 0.3]),
    matching=st.sampled_from([None, 0.6, 0.95]),
    lacking=st.sampled_from([0, 40, 700]),
    unpacked=st.sampled_from([0, 300, 3000]),
    short=st.booleans(),
)
def test_a_search_by_codes_answers_as_one_without(
    seed: int,
    kind: str,
    count: int,
    dim: int,
    queries: int,
    k: int,
    near: bool,
    dead: float,
    matching: float | None,
    lacking: int,
    unpacked: int,
    short: bool,
) -> None:
    random = np.random.default_rng(seed)
    vectors = drawn(kind, count, dim, random)
    asked = vectors[random.integers(0, count, queries)] if near else drawn("random", queries, dim, random)
    plain = columns(vectors, np.flatnonzero(random.random(count) < dead))
    mask = None if matching is None else plain.alive() & (random.random(count) < matching)
    # Rows that are packed, rows that have codes, and rows that have none.
    codes = with_integers(encode_vectors(vectors[: max(1, count - lacking - unpacked)]))
    codes = packed(with_short_codes(codes, vectors) if short else codes)
    codes = encode_vectors(vectors[: max(1, count - lacking)], codes)
    codes = with_short_codes(codes, vectors) if short and unpacked > 300 else codes
    found = nearest(replace(plain, codes=codes), asked, k, mask)
    for one, other in zip(found, nearest(plain, asked, k, mask), strict=True):
        assert one.slots.tolist() == other.slots.tolist()
        assert one.similarities.tobytes() == other.similarities.tobytes()


def test_few_queries_are_answered_as_many_are() -> None:
    random = np.random.default_rng(5)
    vectors, asked = drawn("random", 3000, 40, random), drawn("random", 9, 40, random)
    codes = with_integers(encode_vectors(vectors))
    for count, some in itertools.product(range(1, 10), (codes, packed(codes))):
        products, rows = coded_top_k.top_k(asked[:count], vectors, some, 10)
        expected = brute_force.top_k(asked[:count], vectors, 10)
        assert rows.tolist() == expected[1].tolist()
        np.testing.assert_allclose(products, expected[0], atol=1e-6)


@pytest.mark.parametrize("queries", [1, 8])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block_bytes", [None, 1, 100_000])
def test_large_parts_and_small_ones_find_the_same(
    monkeypatch: pytest.MonkeyPatch, queries: int, threads: int, block_bytes: int | None
) -> None:
    random = np.random.default_rng(queries)
    vectors, asked = drawn("random", 20_000, 40, random), drawn("random", queries, 40, random)
    # The worst order for a bar that rises on the way.
    vectors = np.ascontiguousarray(vectors[np.argsort(vectors @ asked[0])])
    codes = with_integers(encode_vectors(vectors))
    if block_bytes is not None:
        monkeypatch.setattr(coding, "_PACKED_BYTES", block_bytes)
        codes = packed(codes)
        assert codes.packed
    expected = brute_force.top_k(asked, vectors, 10)
    monkeypatch.setattr(brute_force, "THREADS", threads)
    monkeypatch.setattr(brute_force, "_READ_PER_THREAD", 1e3)
    for at_once in (1 << 22, 5000):
        monkeypatch.setattr(matmul_scan, "_PRODUCTS_AT_ONCE", at_once)
        monkeypatch.setattr(matmul_scan, "_BLOCK_BYTES", at_once)
        products, rows = coded_top_k.top_k(asked, vectors, codes, 10)
        assert rows.tolist() == expected[1].tolist()
        np.testing.assert_allclose(products, expected[0], atol=1e-6)


def test_only_few_vectors_are_scored_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors, asked = drawn("random", 20_000, 64, random), drawn("random", 64, 64, random)
    scored = counted_scores(monkeypatch)
    codes = with_integers(encode_vectors(vectors))
    for count, some in ((1, codes), (64, codes), (64, packed(codes))):
        coded_top_k.top_k(asked[:count], vectors[:19_968], some, 10)
        assert scored.pop() < 300 * count


@pytest.mark.parametrize("count", [1, 4, 64])
def test_short_codes_leave_few_vectors_where_embeddings_hardly_leave_some_directions(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    random = np.random.default_rng(0)
    space = random.standard_normal((16, 256))
    noise = 0.2 * random.standard_normal((20_000, 256)) + 3.0
    some = unit((random.standard_normal((20_000, 16)) @ space + noise).astype(np.float32))
    asked, vectors = some[:count].copy(), some[count : count + 19_712].copy()
    codes = packed(with_short_codes(with_integers(encode_vectors(vectors)), vectors))
    assert codes.short is not None
    assert codes.short.room.shape[1] <= 32
    assert codes.short.packed
    assert not codes.packed
    expected = brute_force.top_k(asked, vectors, 10)
    scored = counted_scores(monkeypatch)
    assert coded_top_k.top_k(asked, vectors, codes, 10)[1].tolist() == expected[1].tolist()
    assert sum(scored) < 400 * count


@pytest.mark.parametrize("count", [1, 16])
def test_queries_unlike_the_vectors_go_on_to_codes_of_the_vectors(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    random = np.random.default_rng(0)
    vectors = drawn("flattish", 19_712, 64, random)
    codes = packed(with_short_codes(with_integers(encode_vectors(vectors)), vectors))
    asked = np.zeros((count, 64), np.float32)
    asked[:, 40:] = drawn("random", count, 24, random)  # where the vectors have next to nothing
    asked[:, 0] = 0.01
    asked = unit(asked)
    tried: list[tuple[int, list[bool]]] = []
    expected, answered = brute_force.top_k(asked, vectors, 10), coded_top_k._search

    def noted(queries: Vector, vectors: Vector, ways: Sequence[Codes], k: int) -> tuple[Vector, NDArray[np.int64]]:
        tried.append((len(queries), [way.projection is not None for way in ways]))
        return answered(queries, vectors, ways, k)

    monkeypatch.setattr(coded_top_k, "_search", noted)
    assert coded_top_k.top_k(asked, vectors, codes, 10)[1].tolist() == expected[1].tolist()
    assert tried[:2] == [(count, [True, False]), (count, [False])]


@pytest.mark.parametrize(("queries", "are_packed"), [(1, False), (8, False), (8, True)])
def test_a_query_amid_nearly_equal_vectors_is_answered_without_codes(
    monkeypatch: pytest.MonkeyPatch, queries: int, are_packed: bool
) -> None:
    vectors = drawn("hardly different", 5120, 32, np.random.default_rng(1))
    asked: list[int] = []
    top_k = brute_force.top_k

    def counted(queries: Vector, vectors: Vector, k: int) -> tuple[Vector, NDArray[np.int64]]:
        asked.append(len(queries))
        return top_k(queries, vectors, k)

    monkeypatch.setattr(brute_force, "top_k", counted)
    codes = with_integers(encode_vectors(vectors))
    coded_top_k.top_k(vectors[:queries], vectors, packed(codes) if are_packed else codes, 5)
    assert asked == [queries]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    dim=st.integers(1, 70),
    parts=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    louder=st.booleans(),
)
def test_no_vector_is_further_from_its_code_than_said(
    seed: int, kind: str, dim: int, parts: list[int], louder: bool
) -> None:
    random = np.random.default_rng(seed)
    vectors = drawn(kind, sum(parts), dim, random)
    if louder:
        vectors[-1] = np.eye(dim)[0]  # beyond the range of what was coded before
    known: Codes | None = None
    for end in np.cumsum(parts).tolist():
        known = encode_vectors(vectors[:end], known)
        assert known.rows == end
        stands_for = (known.room[:end, :dim].astype(np.float64) - ZERO) * known.step
        assert np.linalg.norm(vectors[:end] - stands_for, axis=1).max() <= known.error
        assert (known.room[:end, dim:] == ZERO).all()
        assert known.error <= 0.5 * known.step * np.sqrt(dim) * 1.001 + 1e-5  # nothing is cut off
    assert known is not None
    assert known.step <= 1.04 / MAX_CODE


def test_short_codes_follow_the_vectors_and_their_projection_is_looked_for_again_when_they_are_twice_as_many() -> None:
    vectors = drawn("flattish", 3000, 70, np.random.default_rng(0))
    first = with_short_codes(with_integers(encode_vectors(vectors[:1000])), vectors)
    assert first.short is not None
    assert (first.short.rows, first.considered) == (1000, 1000)
    assert first.short.integers is first.integers
    assert with_short_codes(first, vectors) is first
    more = with_short_codes(encode_vectors(vectors[:1900], first), vectors)
    assert more.short is not None
    assert more.short.rows == 1900
    assert more.short.projection is first.short.projection
    most = with_short_codes(encode_vectors(vectors, more), vectors)
    assert most.short is not None
    assert (most.short.rows, most.considered) == (3000, 3000)
    assert most.short.projection is not first.short.projection
    fewer = with_short_codes(with_settings_of(encode_vectors(vectors[1000:]), most), vectors[1000:])
    assert fewer.short is not None
    assert fewer.short.rows == 2000
    assert fewer.short.projection is most.short.projection


def test_short_codes_are_looked_for_once_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_WORTH_IT", 0.0)
    vectors = drawn("random", 3000, 70, np.random.default_rng(0))
    codes = with_short_codes(encode_vectors(vectors), vectors)
    assert codes.short is None
    assert with_short_codes(codes, vectors) is codes


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    count=st.integers(2, 600),
    dim=st.integers(3, 70),
    near=st.booleans(),
    short=st.booleans(),
    most=st.sampled_from([127, 63]),
)
def test_no_product_of_codes_is_below_the_inner_product_by_more_than_the_error(
    seed: int, kind: str, count: int, dim: int, near: bool, short: bool, most: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = drawn(kind, count, dim, random)
    queries = vectors[: min(count, 20)] if near else drawn("random", 20, dim, random)
    codes = encode_vectors(vectors[: count // 2 + 1])
    codes = with_short_codes(encode_vectors(vectors, with_short_codes(codes, vectors)), vectors)
    if short:
        assert codes.short is not None
        codes = codes.short
    asked = coded_top_k._encode_queries(queries, codes, most)
    products = asked.codes.astype(np.int64) @ (codes.room[:count].astype(np.int64) - ZERO).T
    bound = products * asked.scales[:, None] + (asked.offsets + asked.errors)[:, None]
    assert (bound >= queries.astype(np.float64) @ vectors.T.astype(np.float64)).all()


def test_coding_can_be_called_off() -> None:
    with pytest.raises(StoppedError):
        encode_vectors(np.eye(4, dtype=np.float32), stop=lambda: True)


def test_blocks_are_packed_once_and_as_long_as_their_codes_stay() -> None:
    vectors = drawn("random", 1000, 40, np.random.default_rng(2))
    first = packed(with_integers(encode_vectors(vectors[:600])))
    assert [len(block) for block in first.packed] == [256, 256]
    assert packed(first) is first
    more = packed(encode_vectors(vectors, first))
    assert more.packed[:2] == first.packed
    assert sum(map(len, more.packed)) == 768
    vectors[-1] = np.eye(40)[0]  # beyond the range of the step
    assert encode_vectors(vectors, first).packed == ()


def test_short_blocks_at_the_end_are_packed_anew_with_what_has_come_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "_PACKED_BYTES", 48 * 2048)
    vectors = drawn("random", 6000, 40, np.random.default_rng(2))
    codes, lengths = packed(with_integers(encode_vectors(vectors[:1600]))), []
    for rows in (1700, 1900, 2100, 2900, 3500, 6000):
        codes = packed(encode_vectors(vectors[:rows], codes))
        lengths.append([len(block) for block in codes.packed])
    assert lengths == [[1536], [1536, 256], [1536, 512], [1536, 1280], [1536, 1280, 512], [1536, 1280, 1536, 1536]]


def test_a_search_of_before_looks_at_no_later_row_of_a_packed_block() -> None:
    random = np.random.default_rng(3)
    vectors, asked = drawn("random", 3000, 40, random), drawn("random", 8, 40, random)
    codes = packed(with_integers(encode_vectors(vectors)))
    for rows in (2999, 1000, 600):
        expected = brute_force.top_k(asked, vectors[:rows], 5)
        assert coded_top_k.top_k(asked, vectors[:rows], codes, 5)[1].tolist() == expected[1].tolist()


def test_packing_can_be_called_off_between_two_blocks() -> None:
    codes = with_integers(encode_vectors(drawn("random", 1000, 40, np.random.default_rng(2))))
    answers = iter([False, True])
    with pytest.raises(StoppedError):
        packed(codes, lambda: next(answers))


def test_codes_that_cannot_be_packed_are_multiplied_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, codes: NDArray[np.uint8], most: int) -> None:
            raise RuntimeError("no memory")

    random = np.random.default_rng(4)
    vectors, asked = drawn("random", 3000, 40, random), drawn("random", 8, 40, random)
    monkeypatch.setattr("imagekin.index.vectors.int8_products.PackedCodes", Refused)
    integers = IntegerProducts()
    assert not integers.packs
    codes = packed(replace(encode_vectors(vectors), integers=integers))
    assert codes.packed == ()
    assert coded_top_k.top_k(asked, vectors, codes, 5)[1].tolist() == brute_force.top_k(asked, vectors, 5)[1].tolist()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 300) | st.integers(2000, 5000),
    dim=st.integers(1, 600) | st.sampled_from([512, 768, 1024]),
    count=st.integers(1, 130) | st.integers(1, 8),
    largest=st.booleans(),
)
def test_products_of_integers_are_exact(seed: int, rows: int, dim: int, count: int, largest: bool) -> None:
    random = np.random.default_rng(seed)
    integers = integer_products()
    assert integers is not None
    most = integers.max_weight
    codes = random.integers(1, 256, (rows, dim), np.uint8)
    weights = random.integers(-most, most + 1, (dim, count), np.int8)
    if largest:
        codes[:], weights[:] = 255, random.choice([-most, most], (dim, count))
    products = np.empty((rows, count), np.int32)
    integers.multiply(codes, weights, products)
    expected = (codes.astype(np.int32) - ZERO) @ weights.astype(np.int32)
    assert np.array_equal(products, expected)
    block = integers.pack(codes)
    assert block is not None
    codes[:] = 0  # what is packed is a copy
    transposed = np.empty((count, rows), np.int32)
    block.multiply(integers.lifted(np.ascontiguousarray(weights.T)), transposed)
    assert np.array_equal(transposed, expected.T)
