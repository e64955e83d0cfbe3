"""The Collections service: what was written is read back, item by item errors, and what is not served says so."""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from imagekin.errors import FailedPreconditionError, ImagekinError
from imagekin.serving.collections.open_collections import CollectionStore
from imagekin.serving.settings import Limits, Settings
from imagekin.v1 import collections_pb2, common_pb2
from imagekin.v1.collections_pb2 import UpsertResult
from tests.index.limited import install, seal_at_once
from tests.serving.running import Running, details, fields, image, png, running, vector

pb = collections_pb2
INSERTED = UpsertResult.Outcome.OUTCOME_INSERTED
REPLACED = UpsertResult.Outcome.OUTCOME_REPLACED
_numbers = count()


@pytest.fixture
def name(server: Running) -> str:
    """A new collection of the default model."""
    name = f"shop-{next(_numbers)}"
    server.collections.CreateCollection(pb.CreateCollectionRequest(name=name))
    return name


def item(key: str, *, seed: int | None = None, **parts: Any) -> common_pb2.Item:
    """Return an item with a random vector."""
    rng = np.random.default_rng(abs(hash(key)) % 1000 if seed is None else seed)
    parts.setdefault("vector", vector(rng.normal(size=16)))
    return common_pb2.Item(key=key, **parts)


def upsert(server: Running, name: str, *items: common_pb2.Item) -> pb.UpsertResponse:
    return server.collections.Upsert(pb.UpsertRequest(collection=name, items=items), timeout=20)


def refused(call: Callable[[], object], code: grpc.StatusCode) -> Any:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    status = details(failed.value)
    assert status.code == code.value[0], status.message
    return status


def test_a_collection_is_made_described_listed_and_dropped(server: Running, name: str) -> None:
    upsert(server, name, item("a", label="x"), item("b"))
    described = server.collections.DescribeCollection(pb.DescribeCollectionRequest(name=name)).collection
    assert (described.name, described.dim, described.count, described.labelled) == (name, 16, 2, 1)
    assert described.created_at.seconds > 1_600_000_000
    assert described.sequence > 0
    assert described.disk_bytes > 0
    listed = server.collections.ListCollections(pb.ListCollectionsRequest()).collections
    assert described.space in {each.space for each in listed if each.name == name}
    assert server.collections.DropCollection(pb.DropCollectionRequest(name=name)).count == 2
    for call in (
        lambda: server.collections.DescribeCollection(pb.DescribeCollectionRequest(name=name)),
        lambda: server.collections.DropCollection(pb.DropCollectionRequest(name=name)),
        lambda: server.collections.Count(pb.CountRequest(collection=name)),
        lambda: upsert(server, name, item("a")),
    ):
        refused(call, grpc.StatusCode.NOT_FOUND)


def test_a_name_is_free_again_after_a_drop(server: Running, name: str) -> None:
    upsert(server, name, item("a"))
    server.collections.DropCollection(pb.DropCollectionRequest(name=name))
    server.collections.CreateCollection(pb.CreateCollectionRequest(name=name, space="mine", dim=3))
    assert server.collections.Count(pb.CountRequest(collection=name)).count == 0


@pytest.mark.parametrize("bad", ["", "../up", "a/b", "A", "x" * 65, "é", ".", "a\n"])
def test_a_name_that_cannot_be_is_refused(server: Running, bad: str) -> None:
    refused(
        lambda: server.collections.CreateCollection(pb.CreateCollectionRequest(name=bad)),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    with pytest.raises(grpc.RpcError) as failed:
        server.collections.Count(pb.CountRequest(collection=bad))
    assert details(failed.value).code in (grpc.StatusCode.NOT_FOUND.value[0], grpc.StatusCode.INVALID_ARGUMENT.value[0])


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CreateCollectionRequest(name="n", space="mine"), "dim"),
        (pb.CreateCollectionRequest(name="n", dim=3), "dim"),
        (pb.CreateCollectionRequest(name="n", space="mine", dim=65_537), "dim"),
        (pb.CreateCollectionRequest(name="n", space="s" * 129, dim=3), "space"),
        (pb.CreateCollectionRequest(name="n", index_kind="magic"), "index_kind"),
    ],
)
def test_what_no_collection_can_be_is_refused(
    server: Running, request_: pb.CreateCollectionRequest, field: str
) -> None:
    status = refused(lambda: server.collections.CreateCollection(request_), grpc.StatusCode.INVALID_ARGUMENT)
    assert fields(status) == [field]


def test_a_taken_name_is_refused(server: Running, name: str) -> None:
    refused(
        lambda: server.collections.CreateCollection(pb.CreateCollectionRequest(name=name)),
        grpc.StatusCode.ALREADY_EXISTS,
    )


def test_what_is_written_is_read_back(server: Running, name: str) -> None:
    payload = {"price": 9.5, "id": 2**60, "tags": ["a", "ü"], "none": None}
    sent = item("a/ü.jpg", label="shoe", payload_json=json.dumps(payload), content_hash=b"h" * 32)
    response = upsert(server, name, sent)
    assert [result.outcome for result in response.results] == [INSERTED]
    request = pb.GetRequest(collection=name, keys=["none", "a/ü.jpg"], with_vector=True)
    answer = server.collections.Get(request)
    assert list(answer.missing_keys) == ["none"]
    (found,) = answer.items
    assert (found.key, found.label, found.content_hash) == ("a/ü.jpg", "shoe", b"h" * 32)
    assert found.sequence == response.sequence
    assert json.loads(found.payload_json) == payload
    direction = np.frombuffer(sent.vector.data, "<f4")
    np.testing.assert_allclose(
        np.frombuffer(found.vector.data, "<f4"), direction / np.linalg.norm(direction), atol=1e-6
    )
    (plain,) = server.collections.Get(pb.GetRequest(collection=name, keys=["a/ü.jpg"])).items
    assert not plain.HasField("vector")


def test_an_image_is_embedded_and_hashed_by_the_server(server: Running, name: str) -> None:
    response = upsert(server, name, common_pb2.Item(key="a", image=image(3), content_hash=b"x" * 32), item("b"))
    assert [result.outcome for result in response.results] == [INSERTED, INSERTED]
    found = server.collections.Get(pb.GetRequest(collection=name, keys=["a"], with_vector=True)).items[0]
    assert found.content_hash == hashlib.sha256(png(3)).digest()
    assert np.linalg.norm(np.frombuffer(found.vector.data, "<f4")) == pytest.approx(1, abs=1e-5)


def test_a_second_write_replaces(server: Running, name: str) -> None:
    upsert(server, name, item("a", label="old"), item("b"))
    response = upsert(server, name, item("a", label="new"), item("c"), item("c", label="last"))
    assert response.results[0].outcome == REPLACED
    assert server.collections.Count(pb.CountRequest(collection=name)).count == 3
    found = server.collections.Get(pb.GetRequest(collection=name, keys=["a", "c"])).items
    assert [each.label for each in found] == ["new", "last"]


BAD_ITEMS = [
    (common_pb2.Item(key="x"), "items[1]"),
    (item(""), "items[1].key"),
    (item("a\nb"), "items[1].key"),
    (item("k" * 1025), "items[1].key"),
    (item("x", label="l" * 1025), "items[1].label"),
    (item("x", payload_json="[1]"), "items[1].payload_json"),
    (item("x", payload_json="{"), "items[1].payload_json"),
    (item("x", payload_json='{"a": NaN}'), "items[1].payload_json"),
    (item("x", payload_json='{"a": 1e999}'), "items[1].payload_json"),
    (item("x", payload_json='{"a":' * 5000 + "1" + "}" * 5000), "items[1].payload_json"),
    (item("x", payload_json='{"a": "' + "é" * 40_000 + '"}'), "items[1].payload_json"),
    (item("x", payload_json='{"a": ' + "9" * 5000 + "}"), "items[1].payload_json"),
    (item("x", content_hash=b"short"), "items[1].content_hash"),
    (item("x", vector=vector([1.0] * 15)), "items[1].vector"),
    (item("x", vector=common_pb2.Vector(data=b"\0" * 63, dim=16)), "items[1].vector"),
    (item("x", vector=common_pb2.Vector(dim=2**32 - 1)), "items[1].vector"),
    (item("x", vector=vector([0.0] * 16)), "items[1].vector"),
    (item("x", vector=vector([float("nan")] + [1.0] * 15)), "items[1].vector"),
    (item("x", vector=vector([float("inf")] + [1.0] * 15)), "items[1].vector"),
]


@pytest.mark.parametrize(("bad", "field"), BAD_ITEMS)
def test_a_bad_item_is_an_error_in_its_place(server: Running, name: str, bad: common_pb2.Item, field: str) -> None:
    response = upsert(server, name, item("a"), bad, item("c"))
    assert [result.outcome for result in response.results] == [INSERTED, 0, INSERTED]
    status = response.results[1].error.status
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert fields(status) == [field]
    assert server.collections.Count(pb.CountRequest(collection=name)).count == 2


def test_a_batch_of_only_bad_items_writes_nothing(server: Running, name: str) -> None:
    response = upsert(server, name, common_pb2.Item(key="a", image=common_pb2.Image(data=b"no image")))
    assert response.sequence == 0
    assert response.results[0].error.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_a_stream_of_batches_is_acknowledged_in_order(server: Running, name: str) -> None:
    def batches() -> Iterator[pb.UpsertStreamRequest]:
        for tag in range(10):
            items = [item("same", seed=tag, label=str(tag)), common_pb2.Item(key=f"i{tag}", image=image(tag))]
            yield pb.UpsertStreamRequest(batch=pb.UpsertRequest(collection=name, items=items), tag=tag)

    responses = list(server.collections.UpsertStream(batches(), timeout=20))
    assert [response.tag for response in responses] == list(range(10))
    sequences = [response.batch.sequence for response in responses]
    assert sequences == sorted(set(sequences))
    assert server.collections.Count(pb.CountRequest(collection=name)).count == 11
    assert server.collections.Get(pb.GetRequest(collection=name, keys=["same"])).items[0].label == "9"


def test_deleted_items_are_gone(server: Running, name: str) -> None:
    upsert(server, name, item("a"), item("b"), item("c"))
    answer = server.collections.Delete(pb.DeleteRequest(collection=name, keys=["a", "c", "none"]))
    assert answer.deleted == 2
    assert answer.sequence > 0
    assert server.collections.Count(pb.CountRequest(collection=name)).count == 1
    assert server.collections.Delete(pb.DeleteRequest(collection=name, keys=["a"])).sequence == 0


def test_scrolling_visits_every_item_once(server: Running, name: str) -> None:
    keys = [f"k{number:03}" for number in range(25)]
    for start in range(0, 25, 5):
        upsert(server, name, *(item(key) for key in keys[start : start + 5]))
    seen, token, pages = [], "", 0
    while True:
        page = server.collections.Scroll(pb.ScrollRequest(collection=name, page_token=token, page_size=7))
        seen += [each.key for each in page.items]
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == keys
    assert pages == 4


def test_a_scroll_that_changes_what_it_reads_ends(server: Running, name: str) -> None:
    keys = [f"k{number:03}" for number in range(25)]
    upsert(server, name, *(item(key) for key in keys))
    seen, token = [], ""
    while True:
        page = server.collections.Scroll(pb.ScrollRequest(collection=name, page_token=token, page_size=4))
        seen += [each.key for each in page.items]
        changes = [pb.ItemUpdate(key=key, label=f"seen-{len(seen)}") for key in keys]
        server.collections.Update(pb.UpdateRequest(collection=name, updates=changes))
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == keys


def test_a_scroll_ends_with_its_collection(server: Running, name: str) -> None:
    upsert(server, name, *(item(f"k{number}") for number in range(5)))
    token = server.collections.Scroll(pb.ScrollRequest(collection=name, page_size=2)).next_page_token
    described = server.collections.DescribeCollection(pb.DescribeCollectionRequest(name=name)).collection
    server.collections.DropCollection(pb.DropCollectionRequest(name=name))
    server.collections.CreateCollection(pb.CreateCollectionRequest(name=name, space=described.space, dim=described.dim))
    upsert(server, name, *(item(f"k{number}") for number in range(5)))
    request = pb.ScrollRequest(collection=name, page_token=token)
    refused(lambda: server.collections.Scroll(request), grpc.StatusCode.FAILED_PRECONDITION)


@pytest.mark.parametrize("token", ["x", "-1", "1" * 30, "١", "1.5", " ", "12", "a:1:-1", "a:1:" + "1" * 30, "a:١:1"])
def test_a_foreign_page_token_is_refused(server: Running, name: str, token: str) -> None:
    request = pb.ScrollRequest(collection=name, page_token=token)
    status = refused(lambda: server.collections.Scroll(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert fields(status) == ["page_token"]


def test_limits_on_keys_and_pages(server: Running, name: str) -> None:
    for call in (
        lambda: server.collections.Get(pb.GetRequest(collection=name)),
        lambda: server.collections.Get(pb.GetRequest(collection=name, keys=["k"] * 10_001)),
        lambda: server.collections.Delete(pb.DeleteRequest(collection=name)),
        lambda: server.collections.Delete(pb.DeleteRequest(collection=name, keys=["k"] * 10_001)),
        lambda: server.collections.Scroll(pb.ScrollRequest(collection=name, page_size=10_001)),
        lambda: upsert(server, name),
        lambda: upsert(server, name, *(item(f"{number}") for number in range(257))),
    ):
        refused(call, grpc.StatusCode.INVALID_ARGUMENT)


def test_a_snapshot_is_taken_while_it_is_served(server: Running, name: str) -> None:
    upsert(server, name, item("a"))
    taken = server.collections.Snapshot(pb.SnapshotRequest(collection=name))
    assert taken.name.startswith(f"{name}/")
    assert taken.sequence == 1
    assert taken.disk_bytes > 4096
    refused(lambda: server.collections.Snapshot(pb.SnapshotRequest(collection="missing")), grpc.StatusCode.NOT_FOUND)


def test_labels_and_payloads_are_updated(server: Running, name: str) -> None:
    upsert(server, name, item("a", label="x", payload_json='{"n":1}'), item("b", label="x"))
    updates = [
        pb.ItemUpdate(key="a", label="y"),
        pb.ItemUpdate(key="b", label="", payload_json='{"n":2}'),
        pb.ItemUpdate(key="none", label="z"),
    ]
    done = server.collections.Update(pb.UpdateRequest(collection=name, updates=updates))
    assert (done.updated, list(done.missing_keys)) == (2, ["none"])
    found = server.collections.Get(pb.GetRequest(collection=name, keys=["a", "b"], with_vector=True)).items
    assert [(one.label, one.payload_json, one.HasField("label")) for one in found] == [
        ("y", '{"n":1}', True),
        ("", '{"n":2}', False),
    ]
    assert found[0].vector.dim == 16
    assert found[0].sequence <= done.sequence
    for wrong, field in (
        (pb.ItemUpdate(key="", label="a"), "updates[0].key"),
        (pb.ItemUpdate(key="a", label="a\n"), "updates[0].label"),
        (pb.ItemUpdate(key="a", payload_json="[1]"), "updates[0].payload_json"),
    ):
        request = pb.UpdateRequest(collection=name, updates=[wrong])
        status = refused(lambda request=request: server.collections.Update(request), grpc.StatusCode.INVALID_ARGUMENT)  # type: ignore[misc]
        assert fields(status) == [field]


def test_a_filter_counts_pages_facets_and_deletes(server: Running, name: str) -> None:
    items = [
        item(f"{n}", label="ab"[n % 2], payload_json=f'{{"n":{n},"even":{str(n % 2 == 0).lower()}}}') for n in range(9)
    ]
    upsert(server, name, *items)
    some = common_pb2.Filter(text='payload.n >= 3 AND label = "a"')
    assert server.collections.Count(pb.CountRequest(collection=name, filter=some)).count == 3
    found, token = [], ""
    while True:
        page = server.collections.Scroll(pb.ScrollRequest(collection=name, filter=some, page_size=2, page_token=token))
        found += [one.key for one in page.items]
        token = page.next_page_token
        if not token:
            break
    assert found == ["4", "6", "8"]
    facets = server.collections.Facet(pb.FacetRequest(collection=name, field="payload.even")).counts
    assert [(one.value.bool_value, one.count) for one in facets] == [(True, 5), (False, 4)]
    facets = server.collections.Facet(pb.FacetRequest(collection=name, field="payload.n", filter=some, limit=1)).counts
    assert [(one.value.int_value, one.count) for one in facets] == [(4, 1)]
    status = refused(
        lambda: server.collections.Facet(pb.FacetRequest(collection=name, field="n")), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert fields(status) == ["field"]
    assert server.collections.Delete(pb.DeleteRequest(collection=name, filter=some)).deleted == 3
    assert server.collections.Count(pb.CountRequest(collection=name)).count == 6


def test_a_server_without_a_data_folder_says_so(model_path: Path) -> None:
    with running(Settings(address="127.0.0.1:0", models=(("tiny", model_path),))) as server:
        for call in (
            lambda: server.collections.ListCollections(pb.ListCollectionsRequest()),
            lambda: server.collections.CreateCollection(pb.CreateCollectionRequest(name="a")),
            lambda: upsert(server, "a", item("a")),
        ):
            status = refused(call, grpc.StatusCode.FAILED_PRECONDITION)
            assert "--data-dir" in status.message


def test_items_outlive_the_server_and_a_replica_reads_but_never_writes(model_path: Path, tmp_path: Path) -> None:
    models = (("tiny", model_path),)
    with running(Settings(address="127.0.0.1:0", models=models, data_dir=tmp_path)) as server:
        server.collections.CreateCollection(pb.CreateCollectionRequest(name="shop"))
        upsert(server, "shop", item("a"))
    replica_settings = Settings(address="127.0.0.1:0", data_dir=tmp_path, read_only=True)
    with running(replica_settings) as replica:
        assert replica.collections.Count(pb.CountRequest(collection="shop")).count == 1
        for call in (
            lambda: replica.collections.CreateCollection(pb.CreateCollectionRequest(name="b", space="s", dim=2)),
            lambda: upsert(replica, "shop", item("b")),
            lambda: replica.collections.Delete(pb.DeleteRequest(collection="shop", keys=["a"])),
            lambda: replica.collections.DropCollection(pb.DropCollectionRequest(name="shop")),
        ):
            assert "read-only" in refused(call, grpc.StatusCode.FAILED_PRECONDITION).message


def test_a_page_is_never_larger_than_a_message(tmp_path: Path) -> None:
    limits = Limits(max_message_bytes=64 * 1024)
    with running(Settings(address="127.0.0.1:0", data_dir=tmp_path, limits=limits)) as server:
        server.collections.CreateCollection(pb.CreateCollectionRequest(name="big", space="s", dim=16))
        payload = json.dumps({"text": "x" * 20_000})
        for number in range(6):
            upsert(server, "big", item(str(number), payload_json=payload))
        status = refused(
            lambda: server.collections.Get(pb.GetRequest(collection="big", keys=[str(n) for n in range(6)])),
            grpc.StatusCode.INVALID_ARGUMENT,
        )
        assert "ask for less" in status.message
        seen, token = [], ""
        while True:
            page = server.collections.Scroll(pb.ScrollRequest(collection="big", page_token=token))
            seen += [each.key for each in page.items]
            token = page.next_page_token
            if not token:
                break
        assert seen == [str(number) for number in range(6)]


def test_a_data_folder_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    with (
        pytest.raises(ImagekinError),
        running(Settings(address="127.0.0.1:0", data_dir=file)),
    ):
        pass


def test_a_collection_tells_where_it_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch)
    seal_at_once(monkeypatch)
    settings = Settings(address="127.0.0.1:0", data_dir=tmp_path, index_device="cuda")
    with running(settings) as server:
        server.collections.CreateCollection(pb.CreateCollectionRequest(name="shop", space="s", dim=16))
        describe = pb.DescribeCollectionRequest(name="shop")
        assert server.collections.DescribeCollection(describe).collection.index_device == "cpu"
        for key in ("a", "b"):
            server.collections.Upsert(pb.UpsertRequest(collection="shop", items=[item(key)]))
        assert server.collections.DescribeCollection(describe).collection.index_device == "cuda"
    assert opened
    assert not opened[0].strangers
    monkeypatch.undo()
    with pytest.raises(FailedPreconditionError, match="--index-device cpu"):
        CollectionStore(settings)
