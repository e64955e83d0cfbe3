"""Embed and EmbedStream: the same embedding as in process, item by item, in order."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from imagekin.encoder.runtime.session import Encoder
from imagekin.v1 import embedder_pb2 as pb
from imagekin.v1.common_pb2 import Image
from tests.serving.conftest import CLASSES
from tests.serving.running import Running, details, fields, image, png


def embed(server: Running, *images: Image, model: str = "") -> pb.EmbedResponse:
    return server.embedder.Embed(pb.EmbedRequest(images=images, model=model), timeout=20)


def vectors(response: pb.EmbedResponse) -> list[list[float]]:
    return [np.frombuffer(result.vector, "<f4").tolist() for result in response.results]


def test_the_embeddings_are_those_of_the_model_in_process(server: Running, model_path: Path) -> None:
    encoder = Encoder.open(model_path, device="cpu", threads=1)
    expected = encoder.embed([png(seed) for seed in range(5)])
    response = embed(server, *(image(seed) for seed in range(5)))
    assert response.dim == encoder.metadata.dim
    assert response.space == encoder.metadata.space
    np.testing.assert_allclose(vectors(response), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors(response), axis=1), 1, atol=1e-5)


def test_one_bad_image_is_one_error_in_its_place(server: Running) -> None:
    response = embed(server, image(0), Image(data=b"not an image"), image(1), Image())
    outcomes = [result.WhichOneof("outcome") for result in response.results]
    assert outcomes == ["vector", "error", "vector", "error"]
    for result in (response.results[1], response.results[3]):
        assert result.error.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert result.error.status.message
    assert vectors(embed(server, image(0)))[0] == pytest.approx(vectors(response)[0], abs=1e-6)


@pytest.mark.parametrize("count", [0, 257])
def test_a_batch_of_a_wrong_size_is_refused(server: Running, count: int) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        embed(server, *[Image(data=b"x")] * count)
    status = details(failed.value)
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert fields(status) == ["images"]
    assert "1 to 256" in status.message


def test_models_are_listed_default_first_and_chosen_by_name(server: Running) -> None:
    models = server.embedder.ListModels(pb.ListModelsRequest()).models
    assert [model.name for model in models] == ["tiny", "other"]
    assert tuple(models[1].class_names) == CLASSES
    assert (models[0].image_height, models[0].image_width, models[0].dim) == (8, 8, 16)
    assert json.loads(models[0].metadata_json)["space"] == models[0].space
    assert embed(server, image(0)).space == models[0].space
    assert embed(server, image(0), model="other").space == models[1].space
    with pytest.raises(grpc.RpcError) as failed:
        embed(server, image(0), model="none")
    assert details(failed.value).code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "tiny, other" in details(failed.value).message


def test_a_stream_answers_in_order_with_its_tags(server: Running) -> None:
    sizes = [3, 1, 7, 2, 5, 1, 1, 4] * 3
    requests = (
        pb.EmbedStreamRequest(batch=pb.EmbedRequest(images=[image(tag)] * size), tag=1000 + tag)
        for tag, size in enumerate(sizes)
    )
    responses = list(server.embedder.EmbedStream(requests, timeout=20))
    assert [response.tag for response in responses] == [1000 + tag for tag in range(len(sizes))]
    assert [len(response.batch.results) for response in responses] == sizes
    assert vectors(responses[2].batch)[0] == pytest.approx(vectors(embed(server, image(2)))[0], abs=1e-6)


def test_a_stream_answers_each_batch_before_the_next_one_is_sent(server: Running) -> None:
    answered = threading.Event()

    def requests() -> Iterator[pb.EmbedStreamRequest]:
        for tag in range(3):
            yield pb.EmbedStreamRequest(batch=pb.EmbedRequest(images=[image(tag)]), tag=tag)
            assert answered.wait(10)
            answered.clear()

    tags = []
    for response in server.embedder.EmbedStream(requests(), timeout=20):
        tags.append(response.tag)
        answered.set()
    assert tags == [0, 1, 2]


def test_a_bad_batch_ends_the_stream_after_those_before_it(server: Running) -> None:
    good, empty = pb.EmbedRequest(images=[image(0)]), pb.EmbedRequest()
    requests = [pb.EmbedStreamRequest(batch=batch, tag=tag) for tag, batch in enumerate((good, good, empty, good))]
    responses = server.embedder.EmbedStream(iter(requests), timeout=20)
    assert [next(responses).tag, next(responses).tag] == [0, 1]
    with pytest.raises(grpc.RpcError) as failed:
        next(responses)
    assert details(failed.value).code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_a_stream_of_nothing_ends_well(server: Running) -> None:
    assert list(server.embedder.EmbedStream(iter([]), timeout=20)) == []
