"""A few integers say nearly as well who is near as all components do, where the vectors lie that way."""

from pathlib import Path

import numpy as np
import pytest

from imagekin.index.local.catalog import Catalog
from imagekin.index.search import ann, nearest
from imagekin.index.types import SearchOptions, VectorItem
from imagekin.index.vectors.ann_coordinates import fit_coordinates
from imagekin.types import Vector
from tests.index.reference import unit

DIM = 96
COUNT = 6000


def flat_vectors(count: int, seed: int, noise: float = 0.02) -> Vector:
    """Return vectors that differ along 12 directions, and little along all others, far from the origin."""
    plane = np.random.default_rng(7).standard_normal((13, DIM))
    random = np.random.default_rng(seed)
    along = random.standard_normal((count, 12)) @ plane[:12] * 0.3
    return unit((plane[12] + along + noise * random.standard_normal((count, DIM))).astype(np.float32))


def test_they_are_few_small_integers_that_keep_distances() -> None:
    values = flat_vectors(COUNT, 0)
    coordinates = fit_coordinates(values)
    assert coordinates is not None
    assert coordinates.width == 16
    found = coordinates.of(values)
    assert (found == np.rint(found)).all()
    assert np.abs(found).max() <= 127
    pairs = np.random.default_rng(1).integers(0, COUNT, (2, 500))
    near = np.linalg.norm(found[pairs[0]] - found[pairs[1]], axis=1)
    true = np.linalg.norm(values[pairs[0]] - values[pairs[1]], axis=1)
    assert np.corrcoef(near, true)[0, 1] > 0.99


def test_what_lies_beyond_all_that_was_seen_is_cut_not_wrapped() -> None:
    values = flat_vectors(COUNT, 0)
    coordinates = fit_coordinates(values)
    assert coordinates is not None
    assert np.abs(coordinates.of(-100 * values)).max() == 127


@pytest.mark.parametrize("dim", [8, 24, DIM])
def test_vectors_that_differ_in_every_direction_have_none(dim: int) -> None:
    values = unit(np.random.default_rng(0).standard_normal((2000, dim)).astype(np.float32))
    assert fit_coordinates(values) is None


def test_vectors_that_are_all_the_same_are_no_trouble() -> None:
    coordinates = fit_coordinates(np.repeat(flat_vectors(1, 0), 1000, axis=0))
    assert coordinates is not None
    assert np.isfinite(coordinates.of(flat_vectors(10, 1))).all()


def test_an_index_that_goes_by_them_finds_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "BUILD_FROM", 1000)
    monkeypatch.setattr(nearest, "_APPROXIMATE_FROM", 500)
    values, queries = flat_vectors(COUNT, 0), flat_vectors(200, 1)
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=DIM, index_kind="ivf")
        collection.upsert([VectorItem(f"k{n:05d}", vector) for n, vector in enumerate(values)])
        collection.build_index()
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        collection._store._maintenance._update_index(lambda: False)
        index = collection._store.snapshot().approximate
        assert isinstance(index, ann.Approximate)
        assert index._coordinates is not None
        assert index._coordinates.width == 16
        gone = {f"k{n:05d}" for n in range(0, COUNT, 3)}
        collection.delete(sorted(gone))
        hits = 0
        similarities = queries @ values.T
        similarities[:, ::3] = -2
        for query, best, found in zip(
            queries,
            np.argsort(-similarities, axis=1)[:, :10],
            collection.search(queries, SearchOptions(k=10)),
            strict=True,
        ):
            keys = [one.key for one in found]
            assert len(keys) == 10
            assert not gone & set(keys)
            hits += len({f"k{n:05d}" for n in best} & set(keys))
            for one in found:
                assert one.similarity == pytest.approx(float(query @ values[int(one.key[1:])]), abs=2e-6)
        assert hits / 2000 > 0.95
