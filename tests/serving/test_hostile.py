"""Hostile input: each gets its own clear answer, none costs what it asked for, and the service answers on."""

import random
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagekin import Client
from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.encoder.runtime.session import Encoder, Outputs
from imagekin.errors import InvalidArgumentError
from imagekin.serving.server import SERVICES
from imagekin.serving.settings import Limits, Settings
from imagekin.v1 import collections_pb2, common_pb2, embedder_pb2, searcher_pb2
from imagekin.v1.common_pb2 import Image
from tests.data import shared_data
from tests.serving.abuse import bomb
from tests.serving.running import Running, code, details, image, png, retry_seconds, running
from tests.waiting import wait_until

BUGS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@pytest.fixture(autouse=True)
def still_answers(server: Running) -> Iterator[None]:
    """After every test of this file the service answers as it did before."""
    request = embedder_pb2.EmbedRequest(images=[image(1)])
    before = server.embedder.Embed(request, timeout=20)
    yield
    assert server.embedder.Embed(request, timeout=20) == before


def embed_codes(server: Running, *files: bytes) -> list[int]:
    """Embed files and return the code of each, 0 for an embedding."""
    request = embedder_pb2.EmbedRequest(images=[Image(data=file) for file in files])
    return [result.error.status.code for result in server.embedder.Embed(request, timeout=60).results]


def test_every_file_of_the_hostile_set_is_an_embedding_or_a_clear_error(server: Running) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    found: dict[int, int] = {}
    with tarfile.open(shared_data("hostile-images.tar")) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            data = file.read()
            if len(data) > 60 * 2**20:
                continue
            (status,) = embed_codes(server, data)
            assert status in (0, invalid), member.name
            found[status] = found.get(status, 0) + 1
    assert found.keys() == {0, invalid}


def test_a_bomb_is_refused_from_its_header(server: Running) -> None:
    assert embed_codes(server, *[bomb(20_000)] * 50) == [grpc.StatusCode.INVALID_ARGUMENT.value[0]] * 50


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=300), st.binary(max_size=40).map(lambda tail: png(1)[:-40] + tail)))
def test_garbage_is_a_clear_error(server: Running, data: bytes) -> None:
    assert embed_codes(server, data)[0] in (0, grpc.StatusCode.INVALID_ARGUMENT.value[0])


def test_malformed_messages_are_never_a_bug_of_the_server(server: Running) -> None:
    rng = random.Random(0)  # noqa: S311 (not for secrets)
    seeds = [
        embedder_pb2.EmbedRequest(images=[image(1)]).SerializeToString(),
        searcher_pb2.SearchRequest(collection="none", k=3, queries=[common_pb2.Query(key="a")]).SerializeToString(),
        collections_pb2.UpsertRequest(
            collection="none", items=[common_pb2.Item(key="a", label="b")]
        ).SerializeToString(),
    ]
    pool = descriptor_pool.Default()
    seen = set()
    for service in SERVICES:
        for method in pool.FindServiceByName(service).methods:
            path = f"/{service}/{method.name}"
            streaming = method.name.endswith("Stream")
            call: Callable[..., object] = (
                (lambda data, path=path: list(server.channel.stream_stream(path)(iter([data]), timeout=20)))
                if streaming
                else (lambda data, path=path: server.channel.unary_unary(path)(data, timeout=20))
            )
            for _ in range(30):
                data = bytearray(rng.choice(seeds))
                for _ in range(rng.randint(1, 8)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                try:
                    call(bytes(data[: rng.randint(0, len(data))]))
                    seen.add(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    seen.add(code(error))
    assert grpc.StatusCode.INVALID_ARGUMENT in seen
    assert not seen & BUGS, seen


def test_text_that_is_no_utf8_is_a_clear_error(server: Running) -> None:
    call: Callable[..., object] = server.channel.unary_unary("/imagekin.v1.Collections/Count")
    with pytest.raises(grpc.RpcError) as failed:
        call(b"\x0a\x02\xff\xfe", timeout=20)
    assert code(failed.value) == grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_over_the_limit_is_told_from_a_full_queue(server: Running) -> None:
    batch = embedder_pb2.EmbedRequest(images=[Image(data=b"x" * (33 * 2**20))])
    for call in (
        lambda: server.embedder.Embed(batch, timeout=60),
        lambda: next(server.embedder.EmbedStream(iter([embedder_pb2.EmbedStreamRequest(batch=batch)]), timeout=60)),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert code(failed.value) == grpc.StatusCode.INVALID_ARGUMENT
        violations = error_details_pb2.BadRequest()
        assert details(failed.value).details[0].Unpack(violations)
        assert violations.field_violations[0].field == "request"
        assert f"bytes is over the limit of {32 * 2**20}" in details(failed.value).message


def test_what_grpc_itself_refuses_is_the_clients_invalid_argument(server: Running) -> None:
    request = embedder_pb2.EmbedRequest(images=[Image(data=b"x" * (65 * 2**20))])
    with pytest.raises(grpc.RpcError) as failed:
        server.embedder.Embed(request, timeout=60)
    assert code(failed.value) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_seconds(details(failed.value)) is None
    with (
        Client(f"127.0.0.1:{server.server.port}") as client,
        pytest.raises(InvalidArgumentError, match="takes no message of this size"),
    ):
        client.embed([b"x" * (65 * 2**20)])


def test_an_image_over_the_limit_is_an_error_in_its_place(server: Running) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert embed_codes(server, b"x" * (20 * 2**20 + 1), png(1)) == [invalid, 0]


class GatedEncoder:
    """A real encoder whose runs wait for the test; it counts the images that it was given."""

    gate = threading.Event()
    inferred = 0

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.metadata = encoder.metadata

    def load_pixels(self, data: bytes, limits: DecodeLimits) -> object:
        """Decode as the real one."""
        return self.encoder.load_pixels(data, limits)

    def run(self, pixels: object) -> Outputs:
        """Run as the real one, once the gate is open."""
        assert self.gate.wait(30)
        type(self).inferred += len(pixels)  # type: ignore[arg-type]
        return self.encoder.run(pixels)  # type: ignore[arg-type]


@pytest.fixture
def gated(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server with a queue of 32 images, whose inference waits for the test."""
    real_open = Encoder.open
    monkeypatch.setattr(Encoder, "open", lambda path, **options: GatedEncoder(real_open(path, **options)))
    # Open for the inference that every model begins with.
    GatedEncoder.gate.set()
    limits = Limits(max_queue=32, max_batch_items=32)
    models = (("tiny", model_path),)
    with running(
        Settings(address="127.0.0.1:0", models=models, limits=limits, encoder_sessions=1, encoder_batch=4)
    ) as server:
        GatedEncoder.gate.clear()
        GatedEncoder.inferred = 0
        yield server
        GatedEncoder.gate.set()


def test_a_full_queue_answers_at_once_and_recovers(gated: Running) -> None:
    request = embedder_pb2.EmbedRequest(images=[image(1)] * 32)
    first = gated.embedder.Embed.future(request, timeout=30)
    wait_until(lambda: gated.server.models.get("").pipeline.queued == 32)
    # At once: while the model still holds what is in the queue.
    with pytest.raises(grpc.RpcError) as failed:
        gated.embedder.Embed(request, timeout=30)
    assert GatedEncoder.inferred == 0
    status = details(failed.value)
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    seconds = retry_seconds(status)
    assert seconds is not None
    assert 0 < seconds <= 30
    GatedEncoder.gate.set()
    assert len(first.result().results) == 32
    assert len(gated.embedder.Embed(request, timeout=30).results) == 32


def test_too_many_calls_are_told_to_come_back_and_health_still_answers(
    model_path: Path,
) -> None:
    limits = Limits(max_concurrent_calls=3)
    with running(Settings(address="127.0.0.1:0", models=(("tiny", model_path),), limits=limits)) as server:
        release = threading.Event()

        def requests() -> Iterator[embedder_pb2.EmbedStreamRequest]:
            yield embedder_pb2.EmbedStreamRequest(batch=embedder_pb2.EmbedRequest(images=[image(1)]))
            release.wait(20)

        streams = [server.embedder.EmbedStream(requests(), timeout=20) for _ in range(3)]
        for stream in streams:
            next(stream)
        with pytest.raises(grpc.RpcError) as failed:
            server.embedder.ListModels(embedder_pb2.ListModelsRequest(), timeout=20)
        assert code(failed.value) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_seconds(details(failed.value))
        health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        release.set()
        assert [list(stream) for stream in streams] == [[], [], []]
        assert server.embedder.ListModels(embedder_pb2.ListModelsRequest(), timeout=20).models


def test_cancelled_and_expired_calls_in_the_queue_cost_no_inference(gated: Running) -> None:
    one = embedder_pb2.EmbedRequest(images=[image(1)])
    eight = embedder_pb2.EmbedRequest(images=[image(2)] * 8)
    pipeline = gated.server.models.get("").pipeline
    first = gated.embedder.Embed.future(one, timeout=30)
    wait_until(lambda: pipeline.queued == 1)
    cancelled = gated.embedder.Embed.future(eight, timeout=30)
    expired = gated.embedder.Embed.future(eight, timeout=1)
    wait_until(lambda: pipeline.queued == 17 or expired.done())
    cancelled.cancel()
    assert expired.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: all(work.is_dead() for work, _ in pipeline._small.files()))
    wait_until(lambda: all(image.work.is_dead() for image in list(pipeline._small.decoded)))
    GatedEncoder.gate.set()
    assert len(first.result().results) == 1
    assert len(gated.embedder.Embed(one, timeout=30).results) == 1
    assert GatedEncoder.inferred == 2


def test_abandoned_streams_leave_nothing_behind(server: Running) -> None:
    for _ in range(20):
        requests = (
            embedder_pb2.EmbedStreamRequest(batch=embedder_pb2.EmbedRequest(images=[image(1)] * 8)) for _ in range(50)
        )
        stream = server.embedder.EmbedStream(requests, timeout=20)
        next(stream)
        stream.cancel()
    pipeline = server.server.models.get("").pipeline
    wait_until(lambda: pipeline.queued == 0)


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "a\0b", "x" * 100_000, "\u202e", "con\nfig"])
def test_a_hostile_name_shows_no_path_and_makes_no_file(server: Running, name: str) -> None:
    data_dir = server.server.settings.data_dir
    assert data_dir is not None
    before = sorted(data_dir.rglob("*"))
    requests: list[Callable[[], object]] = [
        lambda: server.collections.CreateCollection(collections_pb2.CreateCollectionRequest(name=name)),
        lambda: server.collections.DescribeCollection(collections_pb2.DescribeCollectionRequest(name=name)),
        lambda: server.collections.DropCollection(collections_pb2.DropCollectionRequest(name=name)),
        lambda: server.embedder.Embed(embedder_pb2.EmbedRequest(images=[image(1)], model=name)),
    ]
    for call in requests:
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert code(failed.value) not in BUGS
        assert str(data_dir) not in str(failed.value)
    assert {path.name for path in sorted(data_dir.rglob("*"))} <= {path.name for path in before} | {".lock"}


def test_a_flat_tree_of_half_a_million_comparisons_is_refused_unread(server: Running) -> None:
    comparison = common_pb2.Comparison(
        field="payload.a",
        operator=common_pb2.Comparison.Operator.OPERATOR_EQUAL,
        values=[common_pb2.Value(int_value=1)],
    )
    whole = common_pb2.Filter()
    whole.condition.all.parts.extend([common_pb2.Condition(comparison=comparison)] * 500_000)
    count = collections_pb2.CountRequest(collection="none", filter=whole)
    search = searcher_pb2.SearchRequest(collection="none", filter=whole, queries=[common_pb2.Query(key="a")])
    for call, wanted in (
        (lambda: server.collections.Count(count, timeout=60), "over the limit of 1048576"),
        (lambda: server.searcher.Search(search, timeout=60), "at most 50,000 fields"),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert code(failed.value) == grpc.StatusCode.INVALID_ARGUMENT
        assert wanted in details(failed.value).message


def test_a_tree_of_too_many_nodes_is_refused_before_it_is_built(server: Running) -> None:
    whole = common_pb2.Filter()
    exists = common_pb2.Comparison(field="label", operator=common_pb2.Comparison.Operator.OPERATOR_EXISTS)
    whole.condition.all.parts.extend([common_pb2.Condition(comparison=exists)] * 10_000)
    with pytest.raises(grpc.RpcError) as failed:
        server.collections.Count(collections_pb2.CountRequest(collection="none", filter=whole), timeout=60)
    assert "at most 1,000 nodes" in details(failed.value).message
