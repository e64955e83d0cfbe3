"""A replica goes on with what takes a collection's place, and a server serves beside collections that are broken."""

import logging
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from imagekin.index.local.catalog import Catalog
from imagekin.index.types import VectorItem
from imagekin.serving.collections import open_collections
from imagekin.serving.settings import Settings
from imagekin.v1 import collections_pb2 as pb
from tests.serving.running import Running, running

ONE = np.ones(4, np.float32)
_PATIENCE = 20.0


def items(label: str, dim: int = 4) -> list[VectorItem]:
    return [VectorItem(f"k{n}", np.ones(dim, np.float32), label) for n in range(5)]


def labels(replica: Running) -> set[str]:
    page = replica.collections.Scroll(pb.ScrollRequest(collection="shop"))
    return {item.label for item in page.items}


def test_a_replica_follows_what_takes_the_place(tmp_path: Path) -> None:
    with Catalog(tmp_path) as writer:
        writer.create("shop", space="ik1-a", dim=4).upsert(items("old"))
        taken = writer.snapshot("shop")
        with running(Settings(address="127.0.0.1:0", data_dir=tmp_path, read_only=True)) as replica:
            assert labels(replica) == {"old"}
            token = replica.collections.Scroll(pb.ScrollRequest(collection="shop", page_size=2)).next_page_token
            writer.open("shop").upsert(items("new"))
            assert labels(replica) == {"new"}
            writer.restore(taken.name, replace=True)
            assert labels(replica) == {"old"}
            with pytest.raises(grpc.RpcError) as refused:
                replica.collections.Scroll(pb.ScrollRequest(collection="shop", page_token=token))
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            writer.drop("shop")
            with pytest.raises(grpc.RpcError) as missing:
                labels(replica)
            assert missing.value.code() is grpc.StatusCode.NOT_FOUND
            writer.create("shop", space="ik1-b", dim=7).upsert(items("other", 7))
            end = time.monotonic() + _PATIENCE
            while True:
                try:
                    assert labels(replica) == {"other"}
                    break
                except grpc.RpcError:
                    assert time.monotonic() < end
            described = replica.collections.DescribeCollection(pb.DescribeCollectionRequest(name="shop")).collection
            assert (described.id, described.dim) == (writer.id_of("shop"), 7)


@pytest.mark.parametrize("opened_at_start", [0, 16])
def test_a_broken_collection_is_listed_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, opened_at_start: int
) -> None:
    monkeypatch.setattr(open_collections, "_OPENED_AT_START", opened_at_start)
    with Catalog(tmp_path) as writer:
        for name in ("a", "broken", "shop"):
            writer.create(name, space="ik1-a", dim=4).upsert(items(name))
    (tmp_path / "collections" / "broken" / "items.sqlite").write_bytes(b"nothing of the kind" * 500)
    with caplog.at_level(logging.ERROR), running(Settings(address="127.0.0.1:0", data_dir=tmp_path)) as server:
        found = server.collections.ListCollections(pb.ListCollectionsRequest()).collections
        assert [(one.name, one.count, bool(one.error)) for one in found] == [
            ("a", 5, False),
            ("broken", 0, True),
            ("shop", 5, False),
        ]
        assert labels(server) == {"shop"}
        with pytest.raises(grpc.RpcError) as refused:
            server.collections.Count(pb.CountRequest(collection="broken"))
        assert refused.value.code() is grpc.StatusCode.DATA_LOSS
