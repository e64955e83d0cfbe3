"""What Prometheus reads: its own parser takes it, it counts what happened, and counting costs next to nothing."""

import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.serving.server import Server
from imagekin.serving.settings import Limits, Settings
from imagekin.v1 import collections_pb2, common_pb2, embedder_pb2, searcher_pb2
from tests.serving.running import Running, image, running, vector
from tests.waiting import wait_until

EMBED = "/imagekin.v1.Embedder/Embed"


@pytest.fixture
def measured(model_path: Path, tmp_path: Path) -> Iterator[Running]:
    """A server of its own, whose counters begin at zero."""
    settings = Settings(
        address="127.0.0.1:0",
        models=(("tiny", model_path),),
        data_dir=tmp_path,
        metrics_address="127.0.0.1:0",
        limits=Limits(max_queue=8, max_batch_items=8),
    )
    with running(settings) as server:
        yield server


def url(server: Running, path: str = "/metrics") -> str:
    return f"http://127.0.0.1:{server.server.metrics_port}{path}"


def scrape(server: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return all samples, by name and labels, as Prometheus' own parser reads them."""
    with urllib.request.urlopen(url(server), timeout=10) as answer:  # noqa: S310 (our own server)
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(server: Running, name: str, **labels: str) -> float | None:
    return scrape(server).get((name, frozenset(labels.items())))


def settled(server: Running, name: str, wanted: float, **labels: str) -> None:
    """Wait until a sample has a value: a call is counted right after its answer has left."""
    wait_until(lambda: value(server, name, **labels) == wanted)


def test_calls_stages_and_batches_are_counted(measured: Running) -> None:
    request = embedder_pb2.EmbedRequest(images=[image(1), image(2), common_pb2.Image(data=b"none")])
    for _ in range(5):
        measured.embedder.Embed(request)
    with pytest.raises(grpc.RpcError):
        measured.embedder.Embed(embedder_pb2.EmbedRequest(model="none", images=[image(1)]))
    settled(measured, "imagekin_calls_total", 5, method=EMBED, code="OK")
    settled(measured, "imagekin_calls_total", 1, method=EMBED, code="NOT_FOUND")
    settled(measured, "imagekin_call_seconds_count", 6, method=EMBED)
    for stage in ("queue", "decode", "batch"):
        assert value(measured, "imagekin_stage_seconds_count", stage=stage) == 10, "bad images are not decoded"
    assert value(measured, "imagekin_batch_size_sum", stage="inference") == 10
    assert value(measured, "imagekin_stage_seconds_count", stage="inference") == value(
        measured, "imagekin_batch_size_count", stage="inference"
    )
    assert value(measured, "imagekin_queued_images", model="tiny") == 0
    assert value(measured, "imagekin_calls_in_flight") == 0


def test_collections_and_models_are_described(measured: Running) -> None:
    measured.collections.CreateCollection(collections_pb2.CreateCollectionRequest(name="shop"))
    items = [common_pb2.Item(key=str(at), label="a" if at else None, vector=vector([at + 1.0] * 16)) for at in range(3)]
    measured.collections.Upsert(collections_pb2.UpsertRequest(collection="shop", items=items))
    query = common_pb2.Query(vector=vector([1.0] * 16))
    measured.searcher.Search(searcher_pb2.SearchRequest(collection="shop", queries=[query, query]))
    assert value(measured, "imagekin_collection_items", collection="shop") == 3
    assert value(measured, "imagekin_collection_labelled", collection="shop") == 2
    assert value(measured, "imagekin_collection_sequence", collection="shop") == 3
    assert value(measured, "imagekin_queued_searches", collection="shop") == 0
    settled(measured, "imagekin_batch_size_sum", 2, stage="search")
    for stage in ("search", "search_queue", "write"):
        assert value(measured, "imagekin_stage_seconds_count", stage=stage) == 1
    metadata = measured.server.models.get("").metadata
    labels = {"model": "tiny", "space": metadata.space, "dim": "16", "precision": "float32"}
    assert value(measured, "imagekin_model_info", **labels) == 1
    measured.collections.DropCollection(collections_pb2.DropCollectionRequest(name="shop"))
    assert value(measured, "imagekin_collection_items", collection="shop") is None


def test_what_is_refused_is_counted_by_reason(measured: Running) -> None:
    request = embedder_pb2.EmbedRequest(images=[image(seed) for seed in range(8)])
    calls = [measured.embedder.Embed.future(request) for _ in range(200)]
    refused = sum(call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED for call in calls)
    assert refused
    settled(measured, "imagekin_rejections_total", refused, reason="queue_full")
    settled(measured, "imagekin_calls_total", refused, method=EMBED, code="RESOURCE_EXHAUSTED")
    assert value(measured, "imagekin_rejections_total", reason="unauthenticated") == 0


def test_a_stream_that_is_cancelled_or_late_is_counted_by_its_end(measured: Running) -> None:
    def requests() -> Iterator[embedder_pb2.EmbedStreamRequest]:
        yield embedder_pb2.EmbedStreamRequest(batch=embedder_pb2.EmbedRequest(images=[image(1)]))
        release.wait(20)

    def ended(*codes: str) -> float:
        return sum(value(measured, "imagekin_calls_total", method=method, code=code) or 0 for code in codes)

    release = threading.Event()
    method = "/imagekin.v1.Embedder/EmbedStream"
    # gRPC reports a cancelled stream first as the end of its requests, now and then, and such a call ends as OK.
    for at in range(1, 6):
        stream = measured.embedder.EmbedStream(requests(), timeout=20)
        next(stream)
        stream.cancel()
        wait_until(lambda at=at: ended("CANCELLED", "OK") == at)  # type: ignore[misc]
        if ended("CANCELLED"):
            break
    assert ended("CANCELLED") == 1
    late = measured.embedder.EmbedStream(requests(), timeout=2)
    next(late)
    assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # Whether the server hears the client give up or its own clock first is a race; it is counted once either way.
    wait_until(lambda: ended("CANCELLED", "OK", "DEADLINE_EXCEEDED") == at + 1)
    assert value(measured, "imagekin_calls_in_flight") == 0
    release.set()


def test_there_is_nothing_else_than_metrics(measured: Running) -> None:
    for path in ("/", "/metrics/../etc", "/Metrics"):
        with pytest.raises(urllib.error.HTTPError) as failed:
            urllib.request.urlopen(url(measured, path), timeout=10)  # noqa: S310 (our own server)
        assert failed.value.code == 404
        failed.value.close()


def test_a_scraper_that_stalls_holds_up_nobody(measured: Running) -> None:
    with socket.create_connection(("127.0.0.1", measured.server.metrics_port)) as stalled:
        stalled.sendall(b"GET /met")
        assert value(measured, "imagekin_calls_in_flight") == 0


def test_many_scrapers_that_stall_take_few_threads(measured: Running) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", measured.server.metrics_port)))
        time.sleep(0.5)
        assert threading.active_count() - before <= 16
    wait_until(lambda: threading.active_count() <= before)
    assert value(measured, "imagekin_calls_in_flight") == 0


def test_a_token_is_needed_where_calls_need_one(model_path: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[[token]]\nname = "p"\nscope = "read"\ntoken = "prometheus-0123456789"\n')
    tokens.chmod(0o600)
    settings = Settings(
        address="127.0.0.1:0",
        models=(("tiny", model_path),),
        metrics_address="127.0.0.1:0",
        tokens_file=tokens,
    )
    with running(settings) as server:
        with pytest.raises(urllib.error.HTTPError) as failed:
            scrape(server)
        assert failed.value.code == 401
        failed.value.close()
        with pytest.raises(grpc.RpcError):
            server.embedder.Embed(embedder_pb2.EmbedRequest())
        request = urllib.request.Request(url(server))  # noqa: S310 (our own server)
        request.add_header("Authorization", "Bearer prometheus-0123456789")
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 (our own server)
            assert b'imagekin_rejections_total{reason="unauthenticated"} 1.0' in answer.read()


def test_an_address_open_to_others_needs_protection(model_path: Path) -> None:
    models = (("tiny", model_path),)
    with pytest.raises(InvalidArgumentError, match="--tokens-file") as refused:
        Settings(models=models, metrics_address="0.0.0.0:9090")
    assert refused.value.field == "metrics_address"
    assert Settings(models=models, metrics_address="0.0.0.0:9090", tokens_file=Path("t")).metrics_address


def test_a_taken_port_is_one_clear_error(model_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = Settings(address="127.0.0.1:0", models=(("tiny", model_path),), metrics_address=address)
        with pytest.raises(FailedPreconditionError, match="cannot serve metrics"), running(settings):
            pass


def test_without_an_address_nothing_is_measured(server: Running) -> None:
    assert isinstance(server.server, Server)
    assert server.server.metrics_port == 0
