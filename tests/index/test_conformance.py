"""The local store and Milvus' embedded engine keep the same promises: see `tests/index/conformance.py`."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagekin.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from imagekin.index.filters.conditions import Comparison, Operator
from imagekin.index.filters.parser import parse
from imagekin.index.interface import Collections
from imagekin.index.local.catalog import Catalog
from imagekin.index.milvus.clock import Clock
from imagekin.index.milvus.connection import StoreAddress, parse_store
from imagekin.index.milvus.expressions import expression
from imagekin.index.open import open_collections
from imagekin.index.types import SearchOptions, VectorItem
from tests.index.conformance import DIM, SPACE, Place, Promises, shop
from tests.index.limited import install, seal_at_once
from tests.index.reference import assert_agree, nearest

ONE = np.ones(DIM, np.float32)


class Impatient:
    """The module `time`, whose sleeps end soon."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, _: float) -> None:
        """Wait hardly at all."""
        time.sleep(0.01)


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    pytest.importorskip("milvus_lite", reason="milvus-lite is one of the dev extras")
    folder = tmp_path_factory.mktemp("milvus")
    with pytest.MonkeyPatch.context() as patch:
        # pymilvus first looks half a second after it asked for an index whether it is made; a collection has four.
        patch.setattr("pymilvus.client.grpc_handler.time", Impatient())
        place = Place(lambda read_only: open_collections(f"milvus-lite://{folder}/test.db", read_only=read_only))
        yield place
        place.collections.close()


class TestLocal(Promises):
    """The local store."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        def opened(read_only: bool) -> Collections:
            return open_collections(tmp_path, read_only=read_only)

        place = Place(opened)
        assert isinstance(place.collections, Catalog)
        yield place
        place.collections.close()


class TestDevice(Promises):
    """The local store, most rows of it on a device."""

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
        opened = install(monkeypatch)
        seal_at_once(monkeypatch)
        place = Place(lambda read_only: open_collections(tmp_path, read_only=read_only, device="cuda"))
        yield place
        place.collections.close()
        assert not any(device.strangers for device in opened)


class TestMilvus(Promises):
    """Milvus, its embedded engine."""

    @pytest.fixture
    def place(self, lite: Place) -> Place:
        return lite


def test_what_milvus_does_otherwise_is_refused_with_what_does_it(lite: Place) -> None:
    name = lite.new().name
    for call, said in (
        (lambda: lite.collections.snapshot(name), "milvus-backup"),
        (lambda: lite.collections.restore("x"), "milvus-backup"),
        (lambda: lite.collections.snapshots(), "milvus-backup"),
        (lambda: lite.collections.verify(name), "birdwatcher"),
        (lambda: lite.collections.compact(name), "by itself"),
        (lambda: lite.collections.open(name).duplicates(), "export"),
    ):
        with pytest.raises(FailedPreconditionError, match=said):
            call()
    for dim, kind in ((1, "flat"), (40_000, "flat"), (8, "hnsw")):
        with pytest.raises(InvalidArgumentError, match="Milvus"):
            lite.collections.create("other", space=SPACE, dim=dim, index_kind=kind)
    collection = lite.collections.open(name)
    for text in ("payload.n = 9007199254740992", "payload.n < -1e300", 'payload.t = "a\\u0000b"'):
        with pytest.raises(InvalidArgumentError, match="Milvus"):
            collection.count(parse(text))
    with pytest.raises(InvalidArgumentError, match="Milvus"):
        collection.upsert(
            [VectorItem("good", ONE), VectorItem("many", ONE, payload={f"f{n}": None for n in range(4097)})]
        )
    assert collection.count() == 0


def test_more_rows_than_milvus_answers_with_at_once(lite: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rows", "nearest", "collection"):
        monkeypatch.setattr(f"imagekin.index.milvus.{module}.MAX_ROWS", 16)
    collection, items = lite.new(), shop()
    collection.upsert(list(reversed(items)))  # Milvus answers in the order of keys
    last = collection.upsert(items[30:40]).sequence
    order = [item.key for item in (*reversed(items[40:]), *reversed(items[:30]), *items[30:40])]
    for limit in (1, 7, 25, 100):
        assert [one.key for one in collection.scroll(0, limit)] == order[:limit]
    assert [one.key for one in collection.items()] == order
    assert lite.collections.describe(collection.name).sequence == last
    assert collection.delete_matching(parse("payload.price < 15")).deleted == 24
    (found,) = collection.search(items[50].vector[None], SearchOptions(8))
    assert_agree(found, nearest({one.key: one for one in collection.items()}, items[50].vector, 8))
    with pytest.raises(InvalidArgumentError, match="16"):
        collection.search(ONE[None], SearchOptions(17))
    collection.upsert([VectorItem(f"same-{n:02}", ONE) for n in range(30)])
    with pytest.raises(FailedPreconditionError, match="equally similar"):
        collection.search(ONE[None], SearchOptions(10))
    with pytest.raises(FailedPreconditionError, match="groups"):
        collection.search(items[50].vector[None], SearchOptions(6, group_by="label"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("milvus://localhost:19530", StoreAddress("http://localhost:19530")),
        ("milvus://milvus:19530/images", StoreAddress("http://milvus:19530", "images")),
        ("milvus://[::1]:19530", StoreAddress("http://[::1]:19530")),
        ("milvus-lite:///data/k.db", StoreAddress("/data/k.db", embedded=True)),
    ],
)
def test_a_stores_address(text: str, address: StoreAddress) -> None:
    assert parse_store(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data",
        "http://localhost:19530",
        "milvus://localhost",
        "milvus://localhost:x",
        "milvus://:19530",
        "milvus://h:1/a/b",
        "milvus://h:1/?x=1",
        "milvus://user:secret@h:1",
        "milvus-lite://data/k.db",
        "milvus-lite:///data/k",
    ],
)
def test_what_is_no_stores_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        parse_store(text)
    assert "secret" not in str(raised.value)


def test_a_server_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymilvus", reason="pymilvus is one of the scale extras")
    monkeypatch.setattr("imagekin.index.milvus.connection._SECONDS", 1.0)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"):
        open_collections("milvus://127.0.0.1:9")


def test_sequence_numbers_grow_whatever_the_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    first = clock.take(3)
    monkeypatch.setattr("time.time_ns", lambda: 0)
    later = [*first, *clock.take(2), *clock.take(1, above=2**62)]
    assert later == sorted(set(later))
    assert 2**62 < later[-1] < 2**63


def test_not_is_asked_of_the_tests_alone() -> None:
    assert expression(parse('NOT (label = "a" AND payload.n < 2)')) == (
        '(not (label in ["a"])) or ((not (array_contains(tags, "n:n"))) or (facts["n"] >= 2.0))'
    )
    hostile = Comparison('payload."a\\"] or true or facts[\\"b"', Operator.EQUAL, ('"] or sequence >= 0 or "" in ["',))
    found = expression(hostile)
    assert found.count('"') - found.count('\\"') == 6


def test_the_local_store_imports_no_milvus(tmp_path: Path) -> None:
    program = (
        "import sys, json, pathlib\nfrom imagekin.index.open import open_collections\n"
        f"open_collections(pathlib.Path({str(tmp_path)!r})).close()\n"
        "print(json.dumps([name for name in sys.modules if name.startswith(('pymilvus', 'milvus_lite', 'pandas'))]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
