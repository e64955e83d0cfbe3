"""A request that is read as views means what the protobuf library says that it means, or is left to the library."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from imagekin.errors import InvalidArgumentError
from imagekin.serving.transport import wire
from imagekin.v1 import common_pb2, embedder_pb2

_images = st.lists(st.binary(max_size=300).map(lambda data: common_pb2.Image(data=data)), max_size=4)
_requests = st.builds(embedder_pb2.EmbedRequest, images=_images, model=st.text(max_size=5))
_streamed = st.builds(embedder_pb2.EmbedStreamRequest, batch=_requests, tag=st.integers(0, 2**64 - 1))


def contents(request: wire.AnyEmbed) -> tuple[list[bytes], str]:
    return [bytes(image.data) for image in request.images], request.model


@given(_requests)
def test_a_request_is_read_as_what_was_written(request: embedder_pb2.EmbedRequest) -> None:
    found = wire.read_embed(request.SerializeToString(), 4)
    assert isinstance(found, wire.EmbedView)
    assert contents(found) == contents(request)


@given(_streamed)
def test_a_message_of_a_stream_is_read_as_what_was_written(message: embedder_pb2.EmbedStreamRequest) -> None:
    found = wire.read_embed_stream(message.SerializeToString(), 4)
    assert isinstance(found, wire.EmbedStreamView)
    assert (contents(found.batch), found.tag) == (contents(message.batch), message.tag)


_results = st.lists(
    st.binary(max_size=50).map(lambda data: np.frombuffer(data[: len(data) // 4 * 4], "<f4"))
    | st.text(max_size=150).map(lambda text: common_pb2.ItemError(status={"code": 3, "message": text})),
    max_size=4,
)


@given(_results, st.integers(0, 2**32 - 1), st.text(max_size=200), st.integers(0, 2**64 - 1))
def test_an_answer_is_written_as_the_library_writes_it(
    results: list[wire.Result], dim: int, space: str, tag: int
) -> None:
    wanted = embedder_pb2.EmbedStreamResponse(tag=tag)
    wanted.batch.dim, wanted.batch.space = dim, space
    for result in results:
        if isinstance(result, np.ndarray):
            wanted.batch.results.add(vector=result.tobytes())
        else:
            wanted.batch.results.add(error=result)
    assert wire.write_embed(results, dim, space) == wanted.batch.SerializeToString()
    assert wire.write_embed_stream(results, dim, space, tag) == wanted.SerializeToString()


# Bytes that mean something to the format, so that what is drawn is often a message.
_pieces = st.lists(
    st.sampled_from([b"\x0a", b"\x12", b"\x10", b"\x80", b"\x00", b"\x01", b"\x02", b"\x03", b"\xff", b"\x18"]),
    max_size=12,
).map(b"".join)
_damaged = st.tuples(_streamed, st.integers(0, 40), _pieces).map(
    lambda drawn: (data := drawn[0].SerializeToString())[: drawn[1]] + drawn[2] + data[drawn[1] + 1 :]
)


@given(_pieces | _damaged)
def test_any_bytes_mean_what_the_library_says(data: bytes) -> None:
    for read, kind in (
        (wire.read_embed, embedder_pb2.EmbedRequest),
        (wire.read_embed_stream, embedder_pb2.EmbedStreamRequest),
    ):
        try:
            wanted = kind.FromString(data)
        except DecodeError:
            assert read(data, 100) is None
            continue
        found = read(data, 100)
        if found is None:
            continue  # the library reads it
        if isinstance(wanted, embedder_pb2.EmbedRequest):
            assert not isinstance(found, embedder_pb2.EmbedStreamRequest | wire.EmbedStreamView)
            assert contents(found) == contents(wanted)
        else:
            assert not isinstance(found, embedder_pb2.EmbedRequest | wire.EmbedView)
            assert (contents(found.batch), found.tag) == (contents(wanted.batch), wanted.tag)


def test_images_are_not_copied() -> None:
    data = embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=b"x" * 1000)]).SerializeToString()
    found = wire.read_embed(data, 1)
    assert found is not None
    (image,) = found.images
    assert image.data.obj is data


def test_images_beyond_the_limit_are_not_read() -> None:
    data = b"\x0a\x00" * 257
    with pytest.raises(InvalidArgumentError, match="1 to 256"):
        wire.read_embed(data, 256)
    found = wire.read_embed(data, 257)
    assert found is not None
    assert len(found.images) == 257
