"""What was deleted leaves the memory and the disk."""

from pathlib import Path

import numpy as np
import pytest

from imagekin.index.filters.parser import parse
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.types import ClassifyMethod, ClassifyOptions, VectorItem
from imagekin.types import ItemUpdate

ITEMS, ROUNDS = 400, 31
VECTORS = np.random.default_rng(0).standard_normal((ITEMS, 4)).astype(np.float32)


def kept_texts(collection: LocalCollection) -> tuple[int, int]:
    """Return how many labels and how many texts of a filtered field are in memory."""
    with collection._residence.use() as stay:
        values = max((len(column.values) for column in stay.fields._columns.values()), default=0)
        return len(stay.store.snapshot().label_names), values


def test_labels_and_texts_that_nothing_has_are_not_kept(tmp_path: Path) -> None:
    """All items get new labels and texts again and again, as in a review that goes on for weeks."""
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=4)
        collection.upsert([VectorItem(f"k{n}", VECTORS[n], f"l{n}", {"t": f"t{n}"}) for n in range(ITEMS)])
        most = 0
        for turn in range(ROUNDS):
            collection.update([ItemUpdate(f"k{n}", f"l{turn}-{n}", {"t": f"t{turn}-{n}"}) for n in range(ITEMS)])
            assert collection.count(parse(f'payload.t = "t{turn}-7" AND label = "l{turn}-7"')) == 1
            assert collection.count(parse(f'payload.t = "t{turn - 1}-7" OR label = "l{turn - 1}-7"')) == 0
            most = max(most, *kept_texts(collection))
        # As many as items, and those of slots that died since they were last compacted.
        assert most <= 2 * 1024
        last = {f"l{ROUNDS - 1}-{n}" for n in range(ITEMS)}
        assert {one.value for one in collection.facet("label", limit=10_000)} == last
        options = ClassifyOptions(method=ClassifyMethod.PROTOTYPE)
        assert collection.classify(VECTORS[5:6], options)[0].label == f"l{ROUNDS - 1}-5"
        collection.compact()
        assert collection.classify(VECTORS[5:6], options)[0].label == f"l{ROUNDS - 1}-5"
        assert kept_texts(collection)[0] == ITEMS
        assert collection.count(parse(f'payload.t STARTS WITH "t{ROUNDS - 1}-"')) == ITEMS
        assert kept_texts(collection) == (ITEMS, ITEMS)
        assert {one.value for one in collection.facet("payload.t", limit=10_000)} == {
            f"t{ROUNDS - 1}-{n}" for n in range(ITEMS)
        }
    with Catalog(tmp_path) as catalog:
        assert kept_texts(catalog.open("shop"))[0] == ITEMS
        assert {one.value for one in catalog.open("shop").facet("label", limit=10_000)} == last


def files_with(folder: Path, text: bytes) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_compaction_leaves_nothing_of_what_was_deleted_on_disk(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=4)
        collection.upsert([VectorItem(f"secret-key-{n}", VECTORS[n], "secret-label") for n in range(20)])
        collection.upsert([VectorItem("plain", VECTORS[0], "plain", {"a": "secret-text"})])
        collection.seal()
        collection.delete([f"secret-key-{n}" for n in range(20)])
        collection.update([ItemUpdate("plain", payload={"a": "b"})])
        assert files_with(tmp_path, b"secret")
        catalog.compact("shop")
        catalog.open("shop")
        assert files_with(tmp_path, b"secret") == []
        assert catalog.open("shop").count() == 1


@pytest.mark.parametrize("reader", [False, True])
def test_a_clean_stop_leaves_an_empty_log(tmp_path: Path, reader: bool) -> None:
    with Catalog(tmp_path, read_only=True) as other:
        with Catalog(tmp_path) as catalog:
            collection = catalog.create("shop", space="ik1-a", dim=4)
            collection.upsert([VectorItem(f"k{n}", VECTORS[n]) for n in range(ITEMS)])
            collection.get(["k1"])  # opens a connection that reads
            if reader:
                assert other.open("shop").count() == ITEMS
            log = tmp_path / "collections" / "shop" / "items.sqlite-wal"
            assert log.stat().st_size > 0
        assert not log.exists() or log.stat().st_size == 0
        if reader:
            assert other.open("shop").get(["k399"])[0] is not None
