"""No vector is less similar by its projection than it is, and projections are used where they help."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagekin.index.vectors.projection import Projection, projection_for
from tests.index.reference import unit
from tests.index.search.test_coded_top_k import KINDS, drawn


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    dim=st.integers(1, 300),
    share=st.floats(0.0, 1.0),
    level=st.floats(-1.0, 1.0),
    scale=st.floats(0.1, 30.0),
)
def test_no_product_of_projections_is_below_that_of_the_vectors(
    seed: int, kind: str, dim: int, share: float, level: float, scale: float
) -> None:
    random = np.random.default_rng(seed)
    vectors, queries = drawn(kind, 200, dim, random), drawn(kind, 20, dim, random)
    basis = np.linalg.qr(random.standard_normal((dim, dim)))[0][: max(1, int(share * dim))].astype(np.float32)
    projection = Projection(basis, level, scale, 1.0)
    among = projection.of_vectors(vectors).astype(np.float64)
    asked, lacking = projection.of_queries(queries)
    products = asked.astype(np.float64) @ among.T + lacking[:, None]
    exact = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    lengths = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(among, axis=1)
    assert (products >= exact - projection.error * (1.0 + lengths)).all()
    if len(basis) == dim:
        np.testing.assert_allclose(products, exact, atol=3 * projection.error * (1.0 + lengths.max()))


def sampled(count: int, dim: int, rank: int, noise: float, mean: float) -> np.ndarray:
    """Return vectors that hardly leave `rank` directions about a mean."""
    random = np.random.default_rng(0)
    within = random.standard_normal((count, rank)) @ random.standard_normal((rank, dim))
    return unit((within / np.sqrt(rank) + noise * random.standard_normal((count, dim)) + mean).astype(np.float32))


@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize("dim", [256, 1024])
def test_few_components_are_taken_where_vectors_hardly_leave_some_directions(dim: int, mean: float) -> None:
    projection = projection_for(sampled(9000, dim, 20, 0.02, mean))
    assert projection is not None
    assert projection.width <= 64


@pytest.mark.parametrize("vectors", [sampled(9000, 256, 1, 1.0, 0.0), np.eye(16, dtype=np.float32)[:0], np.eye(16)])
def test_there_is_none_where_it_would_not_help(vectors: np.ndarray) -> None:
    assert projection_for(vectors.astype(np.float32)) is None


def test_there_is_none_of_vectors_that_are_damaged() -> None:
    vectors = sampled(9000, 256, 20, 0.02, 0.0)
    vectors[4000:6000, 7] = np.nan
    assert projection_for(vectors) is None


def test_queries_unlike_the_vectors_are_foreign() -> None:
    vectors = sampled(9000, 256, 20, 0.02, 1.0)
    projection = projection_for(vectors[100:])
    assert projection is not None
    queries = np.concatenate([vectors[:100], sampled(100, 256, 1, 1.0, 0.0)])
    assert projection.are_foreign(queries).tolist() == [False] * 100 + [True] * 100


def test_a_length_within_the_basis_is_measured_about_the_mean() -> None:
    """Vectors that are nearly alike are short once what they have in common is left out, and so are their errors."""
    vectors = sampled(9000, 256, 20, 0.02, 8.0)
    projection = projection_for(vectors)
    assert projection is not None
    assert np.linalg.norm(projection.of_vectors(vectors), axis=1).max() < 0.6
    assert np.linalg.norm(projection.of_queries(vectors[:50])[0], axis=1).max() < 0.6
