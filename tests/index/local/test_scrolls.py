"""A scroll shows each item once, however much is written meanwhile, and ends."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.index.filters.parser import parse
from imagekin.index.local import store
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.types import Page, Place, VectorItem
from imagekin.types import ItemUpdate

ONE = np.ones(4, np.float32)
# What is written between two pages: upserts, updates and deletions of keys.
WRITES = st.lists(st.tuples(st.sampled_from(["upsert", "update", "delete"]), st.integers(0, 14)), max_size=8)


def item(number: int, label: str = "new") -> VectorItem:
    return VectorItem(f"k{number}", ONE, label, {"n": number})


def pages(collection: LocalCollection, limit: int, condition: str | None = None) -> list[str]:
    tree = None if condition is None else parse(condition)
    found, place = [], None
    while True:
        page = collection.page(place, limit, tree)
        found += [one.key for one in page.items]
        if page.complete:
            return found
        place = page.places[-1]


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.integers(0, 9), min_size=1),
    st.integers(1, 5),
    st.lists(WRITES, max_size=12),
    st.sampled_from([None, "payload.n < 7"]),
)
def test_each_item_comes_once_as_it_is_now(
    numbers: set[int], limit: int, between: list[list[tuple[str, int]]], condition: str | None
) -> None:
    with TemporaryDirectory() as folder, Catalog(Path(folder)) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=4)
        collection.upsert([item(number, "old") for number in sorted(numbers)])
        lives = {f"k{number}" for number in numbers}  # those that were there at the start and have not been deleted
        seen: dict[str, str] = {}
        tree = None if condition is None else parse(condition)
        place: Place | None = None
        rounds = iter(between)
        while True:
            page: Page = collection.page(place, limit, tree)
            assert len(page.items) <= limit
            for one in page.items:
                assert one.key in lives
                assert one.key not in seen
                assert one == collection.get([one.key])[0] or one.sequence == collection.get([one.key])[0].sequence  # type: ignore[union-attr]
                seen[one.key] = one.label or ""
            if page.complete:
                break
            place = page.places[-1]
            for what, number in next(rounds, []):
                key = f"k{number}"
                if what == "upsert":
                    collection.upsert([item(number)])
                elif what == "update":
                    collection.update([ItemUpdate(key, label="changed")])
                else:
                    collection.delete([key])
                    lives.discard(key)
        wanted = {key for key in lives if condition is None or int(key[1:]) < 7}
        assert wanted <= seen.keys()


def test_a_scroll_that_updates_what_it_shows_ends(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=4)
        collection.upsert([item(number) for number in range(50)])
        for condition in (None, "payload.n < 30"):
            seen: list[str] = []
            place: Place | None = None
            while True:
                page = collection.page(place, 7, None if condition is None else parse(condition))
                seen += [one.key for one in page.items]
                for turn in range(3):
                    collection.update([ItemUpdate(f"k{number}", label=f"{turn}") for number in range(50)])
                if page.complete:
                    break
                place = page.places[-1]
            assert sorted(seen) == sorted(f"k{number}" for number in range(50 if condition is None else 30))


def test_a_scroll_goes_on_after_reopening_while_its_items_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=4)
        collection.upsert([item(number) for number in range(10)])
        first = collection.page(None, 4)
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        collection.update([ItemUpdate(f"k{number}", label="x") for number in range(10)])
        rest = collection.page(first.places[-1], 100)
        assert {one.key for one in (*first.items, *rest.items)} == {f"k{number}" for number in range(10)}
        assert rest.complete
    monkeypatch.setattr(store, "KEPT_TOMBSTONES", 3)
    with Catalog(tmp_path) as catalog:
        with pytest.raises(FailedPreconditionError, match="begin again"):
            catalog.open("shop").page(first.places[-1], 100)
        with pytest.raises(InvalidArgumentError):
            catalog.open("shop").page(None, 0)


def test_a_scroll_does_not_go_on_in_another_collection(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        catalog.create("shop", space="ik1-a", dim=4).upsert([item(number) for number in range(10)])
        place = catalog.open("shop").page(None, 4).places[-1]
        taken = catalog.snapshot("shop")
        catalog.restore(taken.name, replace=True)
        with pytest.raises(FailedPreconditionError, match="replaced"):
            catalog.open("shop").page(place, 4)


def test_pages_of_a_collection_made_before_tombstones_were_indexed(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=4)
        collection.upsert([item(number) for number in range(10)])
        collection._store.write(lambda transaction: transaction.connection.execute("DROP INDEX tombstone_dead"))
    with Catalog(tmp_path) as catalog:
        assert pages(catalog.open("shop"), 3) == [f"k{number}" for number in range(10)]
        names = [
            name
            for (name,) in catalog.open("shop")._store.write(
                lambda transaction: transaction.connection.execute("SELECT name FROM sqlite_schema").fetchall()
            )
        ]
        assert "tombstone_dead" in names
