"""What deletes goes by the database, whatever the files that are made from it say."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagekin.errors import DataLossError
from imagekin.index.filters.conditions import AnyOf, Comparison, Not, Operator
from imagekin.index.filters.parser import parse
from imagekin.index.local.catalog import Catalog
from imagekin.index.open import open_collections
from imagekin.index.storage import reads
from imagekin.index.types import VectorItem

COUNT, DIM, LABELS = 3000, 8, 7


def items(count: int) -> list[VectorItem]:
    vectors = np.random.default_rng(1).standard_normal((count, DIM)).astype(np.float32)
    return [VectorItem(f"k{n}", vector, f"l{n % LABELS}", {"n": n}) for n, vector in enumerate(vectors)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data folder with a sealed collection."""
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=DIM)
        collection.upsert(items(COUNT))
        collection.seal()
    return tmp_path


def zero(data: Path, column: str) -> None:
    """Zero two pages of a segment's file, as a disk might."""
    (path,) = data.rglob(column)
    with path.open("r+b") as file:
        file.seek(4096 if path.stat().st_size > 4096 else 0)
        file.write(bytes(min(8192, path.stat().st_size - file.tell())))


@pytest.mark.parametrize("column", ["labels", "sequences", "keys", "key-ends"])
@pytest.mark.parametrize("text", ['label = "l0"', 'NOT label = "l0"', 'label = "l0" OR payload.n < 100', 'key = "k7"'])
def test_a_filter_deletes_what_matches_in_the_database(data: Path, column: str, text: str) -> None:
    condition = parse(text)
    with Catalog(data, read_only=True) as catalog:
        right = catalog.open("shop").count(condition)
        all_keys = {item.key for item in catalog.open("shop").scroll(0, COUNT)}
        matching = {item.key for item in catalog.open("shop").scroll(0, COUNT, condition)}
    zero(data, column)
    with Catalog(data) as catalog:
        assert catalog.open("shop").delete_matching(condition).deleted == right
    with Catalog(data) as catalog:
        left = {item.key for item in catalog.open("shop").items()}
    assert left == all_keys - matching


def test_items_that_are_written_while_matching_ones_are_looked_for_are_deleted_too(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_rows, late = reads.check_rows, np.ones(DIM, np.float32)
    with Catalog(data) as catalog:
        shop = catalog.open("shop")

        def written_meanwhile(*arguments: Any) -> None:
            check_rows(*arguments)
            # A new item that matches, one that matches no more, and one that was written anew and still does.
            shop.upsert([VectorItem("late", late, "l0"), VectorItem("k0", late, "l1"), VectorItem("k7", late, "l0")])

        monkeypatch.setattr(reads, "check_rows", written_meanwhile)
        before = shop.count(parse('label = "l0"'))
        assert shop.delete_matching(parse('label = "l0"')).deleted == before
        assert shop.get(["late", "k7"]) == [None, None]
        assert shop.get(["k0"]) != [None]
        assert shop.count() == COUNT + 1 - before


def test_a_command_does_not_rely_on_a_damaged_segment(data: Path) -> None:
    zero(data, "labels")
    with open_collections(data, read_only=True, check_first=True) as catalog:
        collection = catalog.open("shop")
        assert collection.count(parse('label = "l0"')) == len(range(0, COUNT, LABELS))
        assert {one.count for one in collection.facet("label")} <= {COUNT // LABELS, COUNT // LABELS + 1}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE item SET label = 'l0' WHERE key = 'k1'",
        "UPDATE item SET payload = '{\"n\": 5}' WHERE key = 'k1'",
        "UPDATE vector SET data = zeroblob(32) WHERE sequence = 1",
    ],
)
def test_nothing_is_deleted_when_a_row_is_damaged(data: Path, change: str) -> None:
    (path,) = data.rglob("items.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    with Catalog(data) as catalog:
        collection = catalog.open("shop")
        with pytest.raises(DataLossError, match=r"'k[01]'"):
            collection.delete_matching(parse('label = "l0" OR payload.n = 5'))
        assert collection.count() == COUNT


def test_a_value_with_a_nul_equals_no_shorter_one(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=DIM)
        one = items(1)[0].vector
        names = ("victim", "mine", "other")
        collection.upsert([VectorItem(name, one, name, {"at": name, "odd": f"{name}\0x"}) for name in names])
        for field in ("key", "label", "payload.at"):
            wanted = Comparison(field, Operator.IN, ("victim\0x", "mine"))
            assert collection.count(wanted) == 1
            assert collection.count(Not(wanted)) == 2
            assert collection.count(Comparison(field, Operator.IN, ("victim\0x",))) == 0
            assert collection.count(AnyOf((wanted, Comparison(field, Operator.EQUAL, ("other\0",))))) == 1
        assert collection.count(Comparison("payload.odd", Operator.IN, ("victim\0x", "mine"))) == 1
        assert collection.delete_matching(Comparison("key", Operator.IN, ("victim\0x", "mine"))).deleted == 1
        assert [item.key for item in collection.items()] == ["victim", "other"]
        assert collection.delete_matching(Not(Comparison("payload.at", Operator.IN, ("victim\0x",)))).deleted == 2
