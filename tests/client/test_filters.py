"""Filters, updates, facets, groups and examples reach a real store through both clients and the command."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagekin import Client, Examples, Item, ItemUpdate
from imagekin.cli import main as cli
from imagekin.errors import InvalidArgumentError
from imagekin.serving.settings import Settings
from imagekin.types import FacetCount
from imagekin.v1 import common_pb2
from tests.client.twins import Blocking
from tests.serving.running import running

DIM = 8


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("data")
    with running(Settings(address="127.0.0.1:0", data_dir=data)) as server:
        yield f"127.0.0.1:{server.server.port}"


@pytest.fixture(params=[Client, Blocking])
def client(request: pytest.FixtureRequest, served: str) -> Iterator[Any]:
    with request.param(served) as made:
        made.create_collection("shop", space="mine", dim=DIM)
        random = np.random.default_rng(0)
        items = [
            Item(f"k{n}", vector=random.standard_normal(DIM), label="ab"[n % 2], payload={"n": n, "shelf": n % 3})
            for n in range(12)
        ]
        made.upsert("shop", items)
        yield made
        made.drop_collection("shop")


def test_a_client_filters_everything(client: Any) -> None:
    condition = 'label = "a" AND payload.n < 6'
    tree = common_pb2.Condition(
        comparison=common_pb2.Comparison(
            field="payload.n",
            operator=common_pb2.Comparison.OPERATOR_LESS,
            values=[common_pb2.Value(int_value=2)],
        )
    )
    assert client.count("shop", filter=condition) == 3
    assert client.count("shop", filter=tree) == 2
    assert [item.key for item in client.scroll("shop", filter=condition, page_size=2)] == ["k0", "k2", "k4"]
    (found,) = client.search(keys=["k0"], collection="shop", filter=condition)
    assert sorted(one.key for one in found) == ["k2", "k4"]
    (prediction,) = client.classify(keys=["k0"], collection="shop", filter='label = "b"')
    assert prediction.label == "b"
    assert client.delete("shop", filter=condition) == 3
    assert client.count("shop") == 9
    with pytest.raises(InvalidArgumentError, match="column 9"):
        client.count("shop", filter="label < ")


def test_a_client_updates_and_counts_values(client: Any) -> None:
    updates = [ItemUpdate(f"k{n}", label="c", payload={}) for n in range(4)] + [ItemUpdate("none", label="x")]
    result = client.update("shop", updates)
    assert (result.updated, result.missing) == (4, ("none",))
    assert client.facet("shop", "label") == [FacetCount("a", 4), FacetCount("b", 4), FacetCount("c", 4)]
    assert client.facet("shop", "payload.shelf", filter='label != "c"', limit=1) == [FacetCount(1, 3)]
    (item,) = client.get("shop", ["k0"])
    assert (item.label, item.payload) == ("c", None)


def test_a_client_groups_diversifies_and_asks_by_examples(client: Any) -> None:
    (found,) = client.search(keys=["k0"], collection="shop", group_by="payload.shelf", group_size=2, with_payload=True)
    assert sorted(one.payload["shelf"] for one in found) == [0, 0, 1, 1, 2, 2]
    (diverse,) = client.search(keys=["k0"], collection="shop", k=3, diversity=1.0)
    assert len(diverse) == 3
    examples = Examples(positive_keys=["k1", "k2"], negative_keys=["k3"], negative_vectors=[np.ones(DIM)])
    (like,) = client.search(examples=examples, collection="shop", k=12)
    assert sorted(one.key for one in like) == sorted(f"k{n}" for n in range(12) if n not in (1, 2, 3))
    assert len(client.search(examples=[examples, examples], collection="shop")) == 2
    with pytest.raises(InvalidArgumentError, match="at least one positive"):
        client.search(examples=Examples(negative_keys=["k1"]), collection="shop")
    with pytest.raises(InvalidArgumentError, match="exactly one of"):
        client.search(examples=examples, keys=["k1"], collection="shop")


def test_the_command_counts_facets_scrolls_and_deletes(
    client: Any, served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from imagekin.index import types
    from imagekin.index.local.catalog import Catalog

    with Catalog(tmp_path) as catalog:
        local = catalog.create("shop", space="mine", dim=DIM)
        local.upsert(
            [
                types.VectorItem(item.key, item.vector, item.label, item.payload)
                for item in client.scroll("shop", with_vector=True)
            ]
        )

    def answer(*arguments: str) -> Any:
        assert cli.run(["collection", *arguments, *place, "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    for place in (["--data-dir", str(tmp_path)], ["--address", served]):
        few = ["--filter", "payload.n >= 9"]
        assert answer("count", "shop") == {"count": 12}
        assert answer("count", "shop", *few) == {"count": 3}
        assert answer("facet", "shop", "label", *few)["counts"] == [
            {"value": "b", "count": 2},
            {"value": "a", "count": 1},
        ]
        assert [item["key"] for item in answer("scroll", "shop", *few)["items"]] == ["k9", "k10", "k11"]
        assert cli.run(["collection", "delete", "shop", *few, *place]) == 2
        assert "3 items" in capsys.readouterr().err
        assert cli.run(["collection", "delete", "shop", *place]) == 2
        capsys.readouterr()
        assert answer("delete", "shop", *few, "--yes") == {"deleted": 3}
        assert answer("delete", "shop", "--key", "k0", "--key", "none") == {"deleted": 1}
        assert cli.run(["collection", "count", "shop", *place]) == 0
        assert capsys.readouterr().out == "8\n"
        assert cli.run(["collection", "count", "shop", "--filter", "n = 1", *place]) == 2
        assert "column 1" in capsys.readouterr().err
