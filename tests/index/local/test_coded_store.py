"""Codes of a collection's vectors are made, sealed, mapped and healed by themselves, and never change an answer."""

import gc
import hashlib
import json
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imagekin.index.local import maintenance
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.search import coded_top_k
from imagekin.index.storage import segments
from imagekin.index.types import SearchOptions, VectorItem
from imagekin.index.vectors import codes as coding
from imagekin.index.vectors import projection
from imagekin.index.vectors.codes import Codes

Answers = list[list[tuple[str, float]]]
DIM, COUNT = 40, 3000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_top_k, "MIN_ROWS", 512)
    monkeypatch.setattr(coding, "_PACKED_FROM", 1)
    monkeypatch.setattr(coding, "_PACKED_BYTES", 1)
    monkeypatch.setattr(maintenance, "_ENCODE_FROM", 200)
    monkeypatch.setattr(maintenance, "_SCRUB_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(maintenance, "_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(maintenance, "_REST_FACTOR", 0.0)


def items(first: int, last: int) -> list[VectorItem]:
    vectors = np.random.default_rng(first).standard_normal((last - first, DIM)).astype(np.float32)
    return [VectorItem(f"k{first + n}", vector) for n, vector in enumerate(vectors)]


def answers(collection: LocalCollection) -> Answers:
    queries = np.random.default_rng(9).standard_normal((9, DIM)).astype(np.float32)
    found = [collection.search(queries[:1], SearchOptions(k=7)), collection.search(queries, SearchOptions(k=7))]
    return [[(one.key, one.similarity) for one in answer] for part in found for answer in part]


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def codes_of(collection: LocalCollection) -> Codes | None:
    return collection._store.snapshot().codes


def ready(collection: LocalCollection) -> bool:
    codes = codes_of(collection)
    return codes is not None and all_packed(codes)


def all_packed(codes: Codes) -> bool:
    return sum(map(len, codes.packed)) == codes.rows // 256 * 256


def without_codes(folder: Path, aside: Path) -> Answers:
    """Return what the database alone answers, by NumPy."""
    copy = aside / "collections" / folder.name
    copy.mkdir(parents=True)
    shutil.copy(folder / "items.sqlite", copy)
    with Catalog(aside, read_only=True) as catalog:
        collection = catalog.open(folder.name)
        assert codes_of(collection) is None
        return answers(collection)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a sealed collection with dead slots and codes."""
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=DIM)
        collection.upsert(items(0, COUNT))
        eventually(lambda: ready(collection))
        collection.delete([f"k{n}" for n in range(300)])
        collection.seal()
        collection.upsert(items(COUNT, COUNT + 50))
        collection.seal()
    return tmp_path / "collections" / "shop"


def reopened(folder: Path, read_only: bool = False) -> Catalog:
    return Catalog(folder.parent.parent, read_only=read_only)


@pytest.mark.parametrize("read_only", [False, True])
def test_sealed_codes_are_mapped_and_answer_alike(folder: Path, tmp_path: Path, read_only: bool) -> None:
    expected = without_codes(folder, tmp_path / "plain")
    with reopened(folder, read_only) as catalog:
        collection = catalog.open("shop")
        codes = codes_of(collection)
        assert codes is not None
        assert codes.rows == COUNT + 50
        assert answers(collection) == expected  # by scanning alone, if it comes before what multiplies
        eventually(lambda: ready(collection))
        assert answers(collection) == expected
        if not read_only:
            collection.upsert(items(COUNT + 50, COUNT + 700))
            collection.seal()
            eventually(lambda: ready(collection))
    with reopened(folder) as catalog:
        assert answers(catalog.open("shop")) == without_codes(folder, tmp_path / "more")


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 0x40
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:-5])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut", "removed"])
def test_damaged_codes_are_made_again(folder: Path, tmp_path: Path, how: str) -> None:
    expected = without_codes(folder, tmp_path / "plain")
    (path,) = folder.glob("segments/rows-*/codes")
    damaged(path, how)
    with reopened(folder) as catalog:
        collection = catalog.open("shop")
        keeper = collection._store._maintenance
        eventually(lambda: keeper._unchecked is None)
        with keeper._work_lock:
            assert answers(collection) == expected
        collection.seal()
        sealed = collection._store.sealed
        assert sealed is not None
        assert sealed.step > 0
        assert collection._store.segments.scrub(sealed)
        assert codes_of(collection) is not None
        assert answers(collection) == expected


def test_segments_of_before_there_were_codes_are_opened_and_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(coded_top_k, "MIN_DIM", DIM + 1)
        with Catalog(tmp_path) as catalog:
            catalog.create("shop", space="ik1-a", dim=DIM).upsert(items(0, COUNT))
    folder = tmp_path / "collections" / "shop"
    manifest = folder / "segments" / "manifest"
    fields = json.loads(manifest.read_bytes().rpartition(b"\n")[0])
    assert (fields.pop("step"), fields.pop("error")) == (0.0, 0.0)
    text = json.dumps(fields).encode()
    manifest.write_bytes(text + b"\n" + hashlib.sha256(text).hexdigest().encode())
    monkeypatch.setattr("imagekin.index.local.store.load", None)  # not every row is read
    with reopened(folder) as catalog:
        collection = catalog.open("shop")
        eventually(lambda: ready(collection))
        expected = answers(collection)
        eventually(lambda: collection._store.sealed is not None and collection._store.sealed.step > 0)
    with reopened(folder) as catalog:
        codes = codes_of(catalog.open("shop"))
        assert codes is not None
        assert codes.rows == COUNT
        assert answers(catalog.open("shop")) == expected
    monkeypatch.undo()
    assert without_codes(folder, tmp_path / "plain") == expected


def test_vectors_out_of_range_get_a_larger_step(folder: Path, tmp_path: Path) -> None:
    with reopened(folder) as catalog:
        collection = catalog.open("shop")
        eventually(lambda: ready(collection))
        before = codes_of(collection)
        collection.upsert([VectorItem(f"axis{n}", np.eye(DIM, dtype=np.float32)[n]) for n in range(DIM)])
        collection.seal()
        after = codes_of(collection)
        assert before is not None
        assert after is not None
        assert after.step > before.step
        (found,) = collection.search(np.eye(DIM, dtype=np.float32)[:1], SearchOptions(k=2))
        assert found[0].key == "axis0"
        expected = answers(collection)
        eventually(lambda: ready(collection))
        assert answers(collection) == expected
    assert without_codes(folder, tmp_path / "plain") == expected
    with reopened(folder) as catalog:
        assert answers(catalog.open("shop")) == expected


def test_compacted_slots_have_codes_at_once(folder: Path, tmp_path: Path) -> None:
    with reopened(folder) as catalog:
        collection = catalog.open("shop")
        eventually(lambda: ready(collection))
        collection.compact()
        codes = codes_of(collection)
        assert codes is not None
        assert codes.rows == COUNT - 300 + 50
        assert all_packed(codes)
        assert answers(collection) == without_codes(folder, tmp_path / "plain")


@pytest.mark.parametrize("how", ["compacted", "closed"])
def test_what_was_packed_goes_with_its_codes(folder: Path, how: str) -> None:
    with reopened(folder) as catalog:
        collection = catalog.open("shop")
        eventually(lambda: ready(collection))
        codes = codes_of(collection)
        assert codes is not None
        blocks = [weakref.ref(block) for block in codes.packed]
        assert blocks
        del codes
        collection.compact() if how == "compacted" else collection.close()
        gc.collect()
        assert not any(block() for block in blocks)


def test_embeddings_of_few_directions_get_short_codes_that_follow_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "_WORTH_IT", 0.9)  # the neighbours themselves are a large share of so few
    random = np.random.default_rng(1)
    space = random.standard_normal((6, 128))

    def drawn(count: int) -> NDArray[np.float32]:
        vectors = random.standard_normal((count, 6)) @ space + 0.1 * random.standard_normal((count, 128)) + 2.0
        return vectors.astype(np.float32)

    def has_short_codes(rows: int) -> bool:
        codes = codes_of(collection)
        return codes is not None and codes.short is not None and codes.short.rows == codes.rows == rows

    def answered() -> list[list[str]]:
        return [[one.key for one in found] for found in collection.search(queries, SearchOptions(k=7))]

    queries, vectors = drawn(9), drawn(1800)
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=128)
        collection.upsert([VectorItem(f"k{number}", vector) for number, vector in enumerate(vectors[:1500])])
        eventually(lambda: has_short_codes(1500))
        codes = codes_of(collection)
        assert codes is not None
        assert codes.short is not None
        assert codes.short.room.shape[1] == 32
        collection.upsert([VectorItem(f"k{1500 + number}", vector) for number, vector in enumerate(vectors[1500:])])
        collection.seal()
        eventually(lambda: has_short_codes(1800))
        collection.delete([f"k{number}" for number in range(200)])
        collection.compact()
        assert has_short_codes(1600)
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        eventually(lambda: has_short_codes(1600))
        found = answered()
        monkeypatch.setattr(coded_top_k, "MIN_ROWS", 10**9)
        assert found == answered()


def test_only_collections_that_are_searched_exactly_have_codes(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        small = catalog.create("small", space="ik1-a", dim=DIM)
        small.upsert(items(0, 500))
        approximate = catalog.create("approximate", space="ik1-a", dim=DIM, index_kind="ivf")
        approximate.upsert(items(0, 6000))
        for collection in (small, approximate):
            collection.seal()
            assert codes_of(collection) is None
            assert collection._store.sealed is not None
            assert collection._store.sealed.step == 0
    assert not list(tmp_path.glob(f"collections/*/{segments.FOLDER}/*/codes"))
