"""A client that has no stubs finds out by reflection what the server offers, and calls it."""

import io
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # type: ignore[import-untyped]
    ProtoReflectionDescriptorDatabase,
)
from PIL import Image

from tests.artifacts import tiny_artifact
from tests.e2e.processes import running_server


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """A raw channel to a running server."""
    folder = tmp_path_factory.mktemp("server")
    with (
        running_server(tiny_artifact(folder / "model.onnx", dim=16), folder / "data") as server,
        grpc.insecure_channel(server.address) as raw,
    ):
        yield raw


def call(channel: grpc.Channel, service: str, method: str, fields: dict[str, object]) -> Message:
    """Call a unary method knowing only its name."""
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    described = pool.FindServiceByName(service).FindMethodByName(method)
    request = message_factory.GetMessageClass(described.input_type)(**fields)
    answer = message_factory.GetMessageClass(described.output_type)
    unary = channel.unary_unary(
        f"/{service}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    reply = unary(request, timeout=30)
    assert isinstance(reply, Message)
    return reply


def test_reflection_lists_every_service_of_the_contract(channel: grpc.Channel) -> None:
    assert set(ProtoReflectionDescriptorDatabase(channel).get_services()) == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "imagekin.v1.Admin",
        "imagekin.v1.Collections",
        "imagekin.v1.Embedder",
        "imagekin.v1.Searcher",
    }


def test_an_image_is_embedded_without_any_stub(channel: grpc.Channel) -> None:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(file, "PNG")
    reply = call(channel, "imagekin.v1.Embedder", "Embed", {"images": [{"data": file.getvalue()}]})
    (result,) = reply.results  # type: ignore[attr-defined]
    vector = np.frombuffer(result.vector, "<f4")
    assert vector.shape == (16,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_health_is_serving_for_the_whole_and_for_each_service(channel: grpc.Channel) -> None:
    for service in ("", "imagekin.v1.Embedder", "imagekin.v1.Searcher", "imagekin.v1.Collections"):
        reply = call(channel, "grpc.health.v1.Health", "Check", {"service": service})
        assert reply.status == 1, service  # type: ignore[attr-defined]
