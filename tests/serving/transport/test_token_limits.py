"""A token may be for certain collections and a certain rate, and the audit log says who asked for what."""

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool

from imagekin import Client, Item
from imagekin.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from imagekin.serving.settings import Settings
from imagekin.serving.transport.access import read_tokens
from imagekin.serving.transport.subjects import _BY_NAME
from imagekin.v1 import admin_pb2, common_pb2, searcher_pb2
from imagekin.v1 import collections_pb2 as pb
from tests.serving.running import Running, code, image, png, running
from tests.waiting import wait_until

OPERATOR, SHOP, SLOW = "operator-0123456789abcdef", "shop-0123456789abcdefgh", "slow-0123456789abcdefgh"
TOKENS = f"""
[[token]]
name = "operator"
scope = "admin"
token = "{OPERATOR}"

[[token]]
name = "shop"
scope = "admin"
token = "{SHOP}"
collections = ["shop", "shop-*"]

[[token]]
name = "slow"
scope = "read"
token = "{SLOW}"
calls_per_second = 0.01
"""


@pytest.fixture
def server(model_path: Path, tmp_path: Path) -> Iterator[Running]:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS)
    tokens.chmod(0o600)
    settings = Settings(
        address="127.0.0.1:0",
        models=(("tiny", model_path),),
        data_dir=tmp_path / "data",
        tokens_file=tokens,
        audit_log=tmp_path / "audit.jsonl",
    )
    with running(settings) as server:
        yield server


def client(server: Running, token: str) -> Client:
    return Client(f"127.0.0.1:{server.server.port}", token=token, timeout=20)


def listed(server: Running, token: str) -> list[str]:
    request = pb.ListCollectionsRequest()
    return [one.name for one in server.collections.ListCollections(request, metadata=bearer(token)).collections]


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def test_a_token_for_certain_collections_sees_and_touches_no_other(server: Running) -> None:
    key, item = common_pb2.Query(key="k"), common_pb2.Item(key="k", image=image(2))
    upsert = pb.UpsertRequest(collection="secret", items=[item])
    with client(server, OPERATOR) as operator, client(server, SHOP) as shop:
        for name in ("shop", "shop-new", "secret"):
            operator.create_collection(name)
        operator.upsert("secret", [Item("k", image=png(1))])
        shop.upsert("shop-new", [Item("k", image=png(1))])
        assert len(shop.embed([png(1)])) == 1
        assert listed(server, SHOP) == ["shop", "shop-new"]
        assert len(listed(server, OPERATOR)) == 3
        stubs, mine = server.collections, bearer(SHOP)
        refused: list[Callable[[], object]] = [
            lambda: stubs.Get(pb.GetRequest(collection="secret", keys=["k"]), metadata=mine),
            lambda: stubs.Scroll(pb.ScrollRequest(collection="secret"), metadata=mine),
            lambda: stubs.DescribeCollection(pb.DescribeCollectionRequest(name="secret"), metadata=mine),
            lambda: stubs.Upsert(upsert, metadata=mine),
            lambda: next(stubs.UpsertStream(iter([pb.UpsertStreamRequest(batch=upsert)]), metadata=mine)),
            lambda: stubs.Delete(pb.DeleteRequest(collection="secret", keys=["k"]), metadata=mine),
            lambda: stubs.CreateCollection(pb.CreateCollectionRequest(name="other"), metadata=mine),
            lambda: stubs.DropCollection(pb.DropCollectionRequest(name="secret"), metadata=mine),
            lambda: stubs.Snapshot(pb.SnapshotRequest(collection="secret"), metadata=mine),
            lambda: server.searcher.Search(
                searcher_pb2.SearchRequest(collection="secret", queries=[key]), metadata=mine
            ),
            lambda: server.admin.Reload(admin_pb2.ReloadRequest(), metadata=mine),
            lambda: server.admin.Reload(admin_pb2.ReloadRequest(collections=["shop", "secret"]), metadata=mine),
        ]
        for call in refused:
            with pytest.raises(grpc.RpcError) as failed:
                call()
            assert code(failed.value) == grpc.StatusCode.PERMISSION_DENIED
        assert operator.count("secret") == 1
        assert listed(server, OPERATOR) == ["secret", "shop", "shop-new"]


def test_a_misspelt_name_is_answered_by_the_nearest_that_the_caller_may_see(server: Running) -> None:
    with client(server, OPERATOR) as operator, client(server, SHOP) as shop:
        for name in ("shop-red", "shoq-new"):
            operator.create_collection(name)
        with pytest.raises(NotFoundError, match=r"there is no collection 'shop-new'; did you mean 'shop-red'\?"):
            shop.count("shop-new")
        with pytest.raises(NotFoundError, match=r"there is no collection 'shop-new'; did you mean 'shoq-new'\?"):
            operator.count("shop-new")
        with pytest.raises(NotFoundError, match="there is no collection 'zebra': make it first"):
            operator.drop_collection("zebra")


def test_every_request_that_names_a_collection_is_known_to_do_so() -> None:
    names = {"collection", "collections", "batch"}
    for service in ("Searcher", "Collections", "Admin"):
        for method in descriptor_pool.Default().FindServiceByName(f"imagekin.v1.{service}").methods:
            if method.name == "ListCollections":
                continue
            request = method.input_type
            assert names & set(request.fields_by_name) or request.name in _BY_NAME, method.full_name


def test_a_token_over_its_rate_is_told_when_to_come_back(server: Running) -> None:
    with Client(f"127.0.0.1:{server.server.port}", token=SLOW, timeout=2) as slow:
        slow.embed([png(1)])
        with pytest.raises(ResourceExhaustedError, match=r"0\.01 calls a second"):
            slow.embed([png(1)])


def test_the_audit_log_says_who_asked_for_what_and_how_many(server: Running) -> None:
    path = server.server.settings.audit_log
    assert path is not None
    with client(server, OPERATOR) as operator, client(server, SHOP) as shop:
        operator.create_collection("secret")
        operator.upsert("secret", [Item(f"k{number}", vector=np.ones(16)) for number in range(3)])
        with pytest.raises(PermissionDeniedError):
            shop.get("secret", ["k1", "k2"])
    with client(server, "unknown-0123456789abcdef") as stranger, pytest.raises(UnauthenticatedError):
        stranger.embed([png(1)])

    def entries() -> list[tuple[object, ...]]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            (line["who"], line["method"].rpartition("/")[2], line.get("collection"), line.get("count"), line["code"])
            for line in lines
        ]

    wanted = {
        ("operator", "CreateCollection", "secret", 0, "OK"),
        ("operator", "Upsert", "secret", 3, "OK"),
        ("shop", "Get", "secret", 2, "PERMISSION_DENIED"),
        (None, "Embed", None, None, "UNAUTHENTICATED"),
    }
    wait_until(lambda: wanted <= set(entries()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert OPERATOR not in path.read_text()


def test_an_audit_log_that_was_moved_away_is_followed_by_a_new_one(server: Running, tmp_path: Path) -> None:
    path = server.server.settings.audit_log
    assert path is not None
    path.rename(tmp_path / "audit.jsonl.1")
    listed(server, OPERATOR)
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("collections = []", "is empty"),
        ("collections = 'shop'", "list of names"),
        ("collections = [1]", "list of names"),
        ("calls_per_second = true", "must be a number"),
        ("calls_per_second = -1", "must be a number"),
        ("calls_per_second = 'many'", "must be a number"),
        ("colections = ['shop']", "other keys"),
    ],
)
def test_a_limit_that_makes_no_sense_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(f'[[token]]\nname = "shop"\nscope = "read"\ntoken = "{SHOP}"\n{line}\n')
    path.chmod(0o600)
    with pytest.raises(InvalidArgumentError, match=message):
        read_tokens(path)
