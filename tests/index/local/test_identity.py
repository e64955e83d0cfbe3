"""What takes a collection's place is another collection: readers, snapshots and caches go by its id."""

import threading
from pathlib import Path

import numpy as np
import pytest

from imagekin.errors import FailedPreconditionError, ImagekinError, NotFoundError
from imagekin.index.filters.parser import parse
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.types import ClassifyMethod, ClassifyOptions, SearchOptions, VectorItem

DIM = 8
VECTORS = np.random.default_rng(0).standard_normal((64, DIM)).astype(np.float32)


def items(label: str, count: int = 40) -> list[VectorItem]:
    return [VectorItem(f"k{n}", VECTORS[n], label, {"of": label}) for n in range(count)]


def seen(collection: LocalCollection) -> set[str | None]:
    """Return the labels that a reader sees in every way of reading."""
    found = {item.label for item in collection.scroll(0, 100)}
    found |= {item.label for item in collection.get(["k0", "k39"]) if item is not None}
    found |= {one.label for one in collection.search(VECTORS[:1], SearchOptions(k=5))[0]}
    found |= {str(one.value) for one in collection.facet("payload.of")}
    options = ClassifyOptions(method=ClassifyMethod.PROTOTYPE)
    return found | {name for name, _ in collection.classify(VECTORS[:1], options)[0].votes}


def test_ids_are_of_one_life(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        first = catalog.create("shop", space="ik1-a", dim=DIM).id
        assert len(first) == 16
        assert catalog.describe("shop").id == catalog.open("shop").info().id == catalog.id_of("shop") == first
        taken = catalog.snapshot("shop")
        assert catalog.restore(taken.name, "copy").id not in ("", first)
        assert catalog.restore(taken.name, replace=True).id != first
        catalog.drop("shop")
        assert catalog.create("shop", space="ik1-a", dim=DIM).id != first
    with Catalog(tmp_path) as catalog:
        assert len({info.id for info in catalog.list()}) == 2


def test_two_snapshots_within_a_second_are_two(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        for label in ("one", "two"):
            catalog.create("shop", space="ik1-a", dim=DIM).upsert(items(label))
            catalog.snapshot("shop")
            catalog.snapshot("shop")
            catalog.drop("shop")
        names = [info.name for info in catalog.snapshots()]
        assert len(set(names)) == 4
        for place, label in enumerate(("one", "one", "two", "two")):
            catalog.restore(names[place], "back", replace=place > 0)
            assert seen(catalog.open("back")) == {label}


@pytest.mark.parametrize("sealed", [False, True])
def test_a_reader_follows_what_takes_the_place(tmp_path: Path, sealed: bool) -> None:
    with Catalog(tmp_path) as writing, Catalog(tmp_path, read_only=True) as reading:
        writing.create("shop", space="ik1-a", dim=DIM).upsert(items("old"))
        if sealed:
            writing.open("shop").seal()
        reader = reading.open("shop")
        assert seen(reader) == {"old"}
        taken = writing.snapshot("shop")
        writing.open("shop").upsert(items("new"))
        assert seen(reader) == {"new"}
        writing.restore(taken.name, replace=True)
        assert seen(reader) == {"old"}
        assert reader.id == writing.id_of("shop")
        writing.open("shop").upsert(items("newer"))
        assert seen(reader) == {"newer"}
        assert {reader.count(parse('payload.of = "newer"')), reader.count()} == {40}
        writing.drop("shop")
        with pytest.raises(NotFoundError):
            reader.count()
        # As many writes as before: the numbers of the writes do not tell one from the other.
        writing.create("shop", space="ik1-a", dim=DIM).upsert(items("again"))
        assert seen(reader) == {"again"}
        writing.drop("shop")
        writing.create("shop", space="ik1-b", dim=DIM + 1)
        with pytest.raises(FailedPreconditionError, match="replaced"):
            reader.count()
        assert reader.closed
        assert reading.open("shop").space == "ik1-b"


def test_a_reader_amid_restores_never_sees_two_at_once(tmp_path: Path) -> None:
    with Catalog(tmp_path) as writing, Catalog(tmp_path, read_only=True) as reading:
        names = []
        for label in ("one", "two"):
            writing.create("shop", space="ik1-a", dim=DIM).upsert(items(label))
            names.append(writing.snapshot("shop").name)
            writing.drop("shop")
        writing.restore(names[0])
        reader = reading.open("shop")
        stop = threading.Event()
        wrong: list[object] = []

        def read() -> None:
            while not stop.is_set():
                try:
                    labels = {item.label for item in reader.items()}
                    found = {one.label for one in reader.search(VECTORS[:1], SearchOptions(k=40))[0]}
                    by_filter = {item.label for item in reader.scroll(0, 100, parse("payload.of EXISTS"))}
                except ImagekinError as error:
                    wrong.append(error)
                    continue
                wrong.extend(one for one in (labels, found, by_filter) if len(one) != 1)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for thread in readers:
            thread.start()
        for turn in range(20):
            writing.restore(names[turn % 2], replace=True)
        writing.open("shop").upsert(items("last"))
        stop.set()
        for thread in readers:
            thread.join()
        assert not wrong
        assert seen(reader) == {"last"}
