"""Near-identical items are reported as NumPy finds them, whoever is dead, and copies by the thousand take no memory."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagekin.cli import main as cli
from imagekin.errors import InvalidArgumentError
from imagekin.index.local.catalog import Catalog
from imagekin.index.search import duplicates
from imagekin.index.storage.columns import Columns, ColumnSnapshot
from imagekin.index.types import VectorItem
from imagekin.index.vectors import brute_force
from imagekin.types import Vector
from tests.index.reference import unit


def columns(vectors: Vector, dead: NDArray[np.int64], hashes: list[bytes | None] | None = None) -> ColumnSnapshot:
    filled = Columns(vectors.shape[1])
    count = len(vectors)
    keys = [b"%06d" % slot for slot in range(count)]
    filled.append(np.arange(1, count + 1), keys, [None] * count, hashes or [None] * count, vectors)
    filled.kill(dead + 1, count + 1 + np.arange(len(dead)))
    return filled.snapshot(2 * count)


def by_numpy(snapshot: ColumnSnapshot, bound: float) -> set[tuple[str, ...]]:
    """Return the groups that hang together, by visiting every neighbour of every item."""
    wide = snapshot.vectors.astype(np.float64)
    near = (wide @ wide.T).astype(np.float32) >= np.float32(bound)
    left, found = set(np.flatnonzero(snapshot.alive()).tolist()), set()
    while left:
        group, border = set(), {min(left)}
        while border:
            group |= border
            border = {int(other) for one in border for other in np.flatnonzero(near[one])} & left - group
        left -= group
        if len(group) > 1:
            found.add(tuple(snapshot.key(slot) for slot in sorted(group)))
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 700), bound=st.sampled_from([0.7, 0.9, 0.98]))
def test_groups_are_those_of_numpy(seed: int, count: int, bound: float) -> None:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // 3), 12))
    vectors = centres[random.integers(0, len(centres), count)] + 0.1 * random.standard_normal((count, 12))
    dead = np.flatnonzero(random.random(count) < 0.2)
    snapshot = columns(unit(vectors.astype(np.float32)), dead)
    found = duplicates.groups(snapshot, bound)
    assert {tuple(one.key for one in group) for group in found} == by_numpy(snapshot, bound)
    assert [len(group) for group in found] == sorted((len(group) for group in found), reverse=True)


def test_chains_hang_together_over_blocks_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", 64)
    monkeypatch.setattr(duplicates, "_BLOCK_ROWS", 100)
    monkeypatch.setattr(brute_force, "THREADS", 3)
    monkeypatch.setattr(brute_force, "_READ_PER_THREAD", 1)
    angles = np.deg2rad(np.random.default_rng(0).permutation(900) * 0.1)
    snapshot = columns(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), np.empty(0, np.int64))
    seen: list[int] = []
    (group,) = duplicates.groups(snapshot, float(np.cos(np.deg2rad(0.15))), seen.append)
    assert len(group) == 900
    assert min(one.similarity for one in group) < 0.9
    assert sum(seen) == 900


def test_thousands_of_copies_are_one_group_and_the_same_file_is_noted() -> None:
    vectors = np.repeat(unit(np.array([[1, 2, 3], [3, -2, 1]], np.float32)), 1500, axis=0)
    same = b"x" * 32
    first, second = duplicates.groups(columns(vectors, np.arange(0, 4), [None, same] * 1500), 0.98)
    assert (len(first), len(second)) == (1500, 1496)
    assert first[0].key == "001500"
    assert [one.same_file for one in second[:5]] == [False, False, False, True, False]


def test_the_command_reports_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Catalog(tmp_path) as catalog:
        shop = catalog.create("shop", space="ik1-a", dim=3)
        shop.upsert(
            [
                VectorItem(key, np.array(vector, np.float32), "c")
                for key, vector in (("a", [1, 0, 0]), ("b", [1, 0.01, 0]), ("c", [0, 1, 0]), ("d", [1, 0.5, 0]))
            ]
        )
        with pytest.raises(InvalidArgumentError, match="min_similarity must be 0 to 1"):
            shop.duplicates(1.5)
    arguments = ["collection", "duplicates", "shop", "--data-dir", str(tmp_path)]
    assert cli.run([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["items"], said["duplicates"]) == (4, 1)
    assert [one["key"] for one in said["groups"][0]] == ["a", "b"]
    assert cli.run([*arguments, "--min-similarity", "0.8"]) == 0
    assert "2 of 4 items nearly repeat another one, in 1 group" in capsys.readouterr().out
