"""Health and reflection: what load balancers and generic clients rely on."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # type: ignore[import-untyped]
    ProtoReflectionDescriptorDatabase,
)

from imagekin.serving.server import SERVICES
from imagekin.v1 import embedder_pb2
from tests.serving import http2
from tests.serving.running import Running, code, image, png, running

SERVING = health_pb2.HealthCheckResponse.SERVING


def test_every_service_has_its_own_health(server: Running) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    assert "imagekin.v1.Embedder" in SERVICES
    for name in ("", *SERVICES):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
    with pytest.raises(grpc.RpcError) as failed:
        stub.Check(health_pb2.HealthCheckRequest(service="imagekin.v1.None"))
    assert code(failed.value) == grpc.StatusCode.NOT_FOUND


def test_all_services_are_listed_with_their_health(server: Running) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    listed = stub.List(health_pb2.HealthListRequest(), timeout=20).statuses
    assert {name: status.status for name, status in listed.items()} == dict.fromkeys(("", *SERVICES), SERVING)


def test_a_watcher_sees_the_status_at_once(server: Running) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
    assert next(watch).status == SERVING
    watch.cancel()


def test_a_client_without_stubs_finds_and_calls_everything(server: Running) -> None:
    database = ProtoReflectionDescriptorDatabase(server.channel)
    assert set(SERVICES) < set(database.get_services())
    pool = descriptor_pool.DescriptorPool(database)
    for service in SERVICES:
        assert pool.FindServiceByName(service).methods
    method = pool.FindServiceByName("imagekin.v1.Embedder").FindMethodByName("Embed")
    request: Any = GetMessageClass(method.input_type)()
    request.images.add(data=png(1))
    call: Callable[..., bytes] = server.channel.unary_unary("/imagekin.v1.Embedder/Embed")
    answer = GetMessageClass(method.output_type).FromString(call(request.SerializeToString(), timeout=20))
    stubbed = server.embedder.Embed(embedder_pb2.EmbedRequest(images=[image(1)]))
    assert answer.SerializeToString() == stubbed.SerializeToString()


def test_both_versions_of_reflection_describe_the_same(server: Running) -> None:
    database = ProtoReflectionDescriptorDatabase(server.channel)
    names = set(database.get_services())
    assert {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"} < names
    pool = descriptor_pool.DescriptorPool(database)
    one = pool.FindServiceByName("grpc.reflection.v1.ServerReflection").FindMethodByName("ServerReflectionInfo")
    request = GetMessageClass(one.input_type)(list_services="")
    path = f"/{one.containing_service.full_name}/{one.name}"
    call: Any = server.channel.stream_stream(path)
    (answer,) = call(iter([request.SerializeToString()]), timeout=20)
    listed = GetMessageClass(one.output_type).FromString(answer).list_services_response.service  # type: ignore[attr-defined]
    assert {service.name for service in listed} == names


def test_an_unknown_method_is_unimplemented(server: Running) -> None:
    for method in ("/imagekin.v1.Embedder/None", "/none.None/None"):
        call: Callable[..., bytes] = server.channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as failed:
            call(b"", timeout=20)
        assert code(failed.value) == grpc.StatusCode.UNIMPLEMENTED


def test_health_goes_before_the_server_does(server: Running) -> None:
    settings = replace(server.server.settings, data_dir=None)
    with running(settings) as other:
        stub = health_pb2_grpc.HealthStub(other.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="imagekin.v1.Embedder"), timeout=10)
        assert next(watch).status == SERVING
        other.run(other.server.stop())
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as failed:
            next(watch)
        assert code(failed.value) == grpc.StatusCode.UNAVAILABLE
        assert not other.server.is_serving()


def test_keepalives_end_no_connection(server: Running) -> None:
    address = f"127.0.0.1:{server.server.port}"
    watch = http2.headers(address, "/grpc.health.v1.Health/Watch") + http2.frame(0x0, 1, 1, bytes(5))
    with http2.connected(address) as connection:
        connection.sendall(http2.hello() + watch)
        for _ in range(5):
            time.sleep(1.1)
            connection.sendall(http2.frame(http2.PING, 0, 0, bytes(8)))
        connection.settimeout(0.5)
        received = b""
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(65_536):
                received += part
        kinds = [kind for kind, _, _ in http2.frames(received)]
        assert kinds.count(http2.PING) >= 5
        assert http2.GOAWAY not in kinds
