"""What was acknowledged is kept, whatever kills the process; what is damaged is named; one process writes."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from imagekin.errors import DataLossError, FailedPreconditionError, ResourceExhaustedError, UnavailableError
from imagekin.index.local.catalog import Catalog
from imagekin.index.storage.columns import Columns
from imagekin.index.storage.schema import storage_error
from imagekin.index.types import SearchOptions, VectorItem
from tests.index.reference import unit

DIM = 8
REPOSITORY = Path(__file__).resolve().parents[3]

# Upserts, replaces and deletes without end, and says on standard output what was acknowledged.
WRITER = textwrap.dedent(
    """
    import sys
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    import numpy as np
    from imagekin.index.local.catalog import Catalog
    from imagekin.index.types import VectorItem

    catalog = Catalog(Path(sys.argv[1]))
    collection = catalog.open("shop")

    def work(worker):
        number = 0
        while True:
            key = f"{worker}-{number}"
            vector = np.random.default_rng(number).standard_normal(8).astype(np.float32)
            collection.upsert([VectorItem(key, vector, label=str(number), payload={"number": number})])
            sys.stdout.write(f"+ {key}\\n")
            if number % 3 == 0:
                sys.stdout.write(f"? {key}\\n")
                collection.delete([key])
                sys.stdout.write(f"- {key}\\n")
            sys.stdout.flush()
            number += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    """
)


@contextlib.contextmanager
def run(source: str, folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """Run a program on a data folder; it is killed at the end of the block at the latest."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", source, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def make(folder: Path, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    vectors = np.random.default_rng(1).standard_normal((count, DIM)).astype(np.float32)
    with Catalog(folder) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=DIM)
        collection.upsert(
            [
                VectorItem(f"item-{place:03d}", vector, "a label", {"place": place})
                for place, vector in enumerate(vectors)
            ]
        )
    return vectors


@pytest.mark.parametrize("acknowledged", [40, 333])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    Catalog(tmp_path).create("shop", space="ik1-a", dim=DIM).close()
    with run(WRITER, tmp_path) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(acknowledged)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
    whole = [line.split() for line in lines if line.endswith("\n")]
    there = {key for sign, key in whole if sign == "+"}
    uncertain = {key for sign, key in whole if sign == "?"}
    gone = {key for sign, key in whole if sign == "-"}
    assert len(there) >= acknowledged / 3
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        stored = {item.key: item for item in collection.scroll(0, 100_000)}
        assert there - uncertain <= stored.keys()
        assert not gone & stored.keys()
        assert len(stored) == collection.count()
        # At most one write of each worker was under way.
        assert len(stored.keys() - there) <= 4
        for key, item in stored.items():
            number = int(key.split("-")[1])
            expected = np.random.default_rng(number).standard_normal(DIM).astype(np.float32)
            np.testing.assert_allclose(item.vector, unit(expected)[0], atol=1e-6)
            assert item.payload == {"number": number}
            assert collection.search(item.vector[None], SearchOptions(k=1))[0][0].similarity > 0.999999


def test_a_second_writer_is_told_what_to_do(tmp_path: Path) -> None:
    make(tmp_path, 3)
    holder = "import sys, time; from pathlib import Path; from imagekin.index.local.catalog import Catalog\n"
    holder += "c = Catalog(Path(sys.argv[1])).open('shop'); print('open', flush=True); time.sleep(60)"
    with run(holder, tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with Catalog(tmp_path) as catalog:
            with pytest.raises(FailedPreconditionError, match="--address"):
                catalog.open("shop")
            with pytest.raises(FailedPreconditionError, match="--address"):
                catalog.drop("shop")
            assert [info.count for info in catalog.list()] == [3]
        with Catalog(tmp_path, read_only=True) as reader:
            assert reader.open("shop").count() == 3
        other.kill()
    # The lock of a killed process is no obstacle.
    with Catalog(tmp_path) as catalog:
        assert catalog.open("shop").count() == 3


def test_one_catalog_opens_a_collection_once(tmp_path: Path) -> None:
    make(tmp_path, 3)
    with Catalog(tmp_path) as catalog:
        assert catalog.open("shop") is catalog.open("shop")
        with Catalog(tmp_path) as another, pytest.raises(FailedPreconditionError, match="open for writing"):
            another.open("shop")
        catalog.open("shop").close()
        assert catalog.open("shop").count() == 3


def flip(path: Path, what: bytes) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(what)
    data[place + len(what) // 2] ^= 0x10
    path.write_bytes(data)


def flip_vector(path: Path, vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    flip(path, unit(vectors[7])[0].tobytes())


def flip_key(path: Path, _: object) -> None:
    # The key stands twice: in its row and in the index of keys; the row's is the longer run of text.
    flip(path, b"item-007a label")


def truncate(path: Path, _: object) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path, _: object) -> None:
    path.write_bytes(b"")


def foreign(path: Path, _: object) -> None:
    path.write_bytes(b"not a database at all" * 1000)


def another_database(path: Path, _: object) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE item (key)")
    connection.close()


def remove(path: Path, _: object) -> None:
    path.unlink()


def lose_a_row(path: Path, _: object) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM item WHERE key = 'item-007'")
        connection.execute("DELETE FROM vector WHERE sequence = 8")
    connection.close()


def change_the_space(path: Path, _: object) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = 'ik1-b' WHERE name = 'space'")
    connection.close()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip_vector, "item-007"),
        (flip_key, "fails its checksum"),
        (truncate, "shop"),
        (empty, "shop"),
        (foreign, "shop"),
        (another_database, "shop"),
        (remove, "missing"),
        (lose_a_row, "50 items, 49"),
        (change_the_space, "description"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path, object], None], named: str, read_only: bool) -> None:
    vectors = make(tmp_path, 50)
    damage(tmp_path / "collections" / "shop" / "items.sqlite", vectors)
    with Catalog(tmp_path, read_only=read_only) as catalog, pytest.raises(DataLossError, match=named) as caught:
        catalog.open("shop")
    assert "'shop'" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_payload_is_named_when_it_is_read(tmp_path: Path) -> None:
    make(tmp_path, 50)
    flip(tmp_path / "collections" / "shop" / "items.sqlite", b'{"place":7}')
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        assert collection.get(["item-008"])
        with pytest.raises(DataLossError, match="payload of item 'item-007'"):
            collection.get(["item-007"])


def test_a_newer_format_is_not_touched(tmp_path: Path) -> None:
    make(tmp_path, 1)
    with sqlite3.connect(tmp_path / "collections" / "shop" / "items.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with Catalog(tmp_path) as catalog, pytest.raises(FailedPreconditionError, match="upgrade"):
        catalog.open("shop")


def test_a_full_disk_undoes_the_write_and_says_so(tmp_path: Path) -> None:
    make(tmp_path, 20)
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        # SQLite's own page limit fails as a full disk does.
        collection.upsert([VectorItem("before", np.ones(DIM, np.float32))])
        limited(collection)
        with pytest.raises(ResourceExhaustedError, match="free some space"):
            collection.upsert(
                [VectorItem(f"k{n}", np.ones(DIM, np.float32), payload={"x": "y" * 10_000}) for n in range(100)]
            )
        assert collection.count() == 21
        assert collection.get(["before", "k0"])[1] is None
        assert collection.delete(["before"]).deleted == 1
    with Catalog(tmp_path) as catalog:
        assert catalog.open("shop").count() == 20


def limited(collection: object) -> None:
    """Allow the database no page more than it has."""
    store = collection._store  # type: ignore[attr-defined]
    store.write(lambda transaction: transaction.connection.execute("PRAGMA max_page_count = 1"))


def test_every_failure_of_sqlite_has_its_error() -> None:
    error = sqlite3.OperationalError("unheard of")
    assert isinstance(storage_error(error, "shop"), DataLossError)


def test_a_write_that_is_on_disk_and_not_in_memory_is_the_last_one_until_the_collection_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = make(tmp_path, 3)
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Columns, "append", interrupted)
            with pytest.raises(KeyboardInterrupt):
                collection.upsert([VectorItem("new", vectors[0])])
        for _ in range(2):
            with pytest.raises(UnavailableError, match="must be opened again"):
                collection.upsert([VectorItem("newer", vectors[1])])
    with Catalog(tmp_path) as catalog:
        collection = catalog.open("shop")
        collection.upsert([VectorItem("newer", vectors[1])])
        assert [item is not None for item in collection.get(["item-000", "new", "newer"])] == [True] * 3
        assert collection.count() == 5


@pytest.mark.parametrize("change", ["content_hash = x'00'", "content_hash = NULL", "label = NULL", "label = 'another'"])
def test_a_changed_column_of_an_item_fails_its_checksum(tmp_path: Path, change: str) -> None:
    vectors = make(tmp_path, 3)
    with Catalog(tmp_path) as catalog:
        catalog.open("shop").upsert([VectorItem("hashed", vectors[0], "a label", content_hash=bytes(range(32)))])
    with contextlib.closing(sqlite3.connect(tmp_path / "collections" / "shop" / "items.sqlite")) as connection:
        connection.execute(f"UPDATE item SET {change} WHERE key = 'hashed'")  # noqa: S608
        connection.commit()
    shutil.rmtree(tmp_path / "collections" / "shop" / "segments", ignore_errors=True)
    with Catalog(tmp_path) as catalog, pytest.raises(DataLossError, match="hashed"):
        catalog.open("shop").get(["hashed"])
