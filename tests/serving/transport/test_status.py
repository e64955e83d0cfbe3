"""Every error reaches the caller with its own code; a bug reaches it as an id that the log has too."""

# ruff: noqa: N802 (what stands in for a real class has its method names)

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import cast

import grpc
import grpc.aio
import pytest

from imagekin.errors import ImageError, ImagekinError, InternalError, ResourceExhaustedError
from imagekin.serving.settings import Limits
from imagekin.serving.transport.call_info import Context
from imagekin.serving.transport.calls import Calls
from imagekin.serving.transport.status import item_error, public_error, to_status
from imagekin.v1 import embedder_pb2, embedder_pb2_grpc
from tests.serving.running import code, details, fields, retry_seconds


def every_error() -> list[type[ImagekinError]]:
    """Return every class of error, however deep."""
    found: list[type[ImagekinError]] = []
    open_kinds = [ImagekinError]
    while open_kinds:
        kind = open_kinds.pop()
        found.append(kind)
        open_kinds += kind.__subclasses__()
    return sorted(found, key=lambda kind: kind.__name__)


class Failing(embedder_pb2_grpc.EmbedderServicer):
    """Fails with the error that it was last told."""

    error: BaseException = ImagekinError("not set")

    async def Embed(self, request: embedder_pb2.EmbedRequest, context: Context) -> embedder_pb2.EmbedResponse:
        raise self.error

    async def EmbedStream(
        self, request_iterator: AsyncIterator[embedder_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[embedder_pb2.EmbedStreamResponse]:
        async for request in request_iterator:
            yield embedder_pb2.EmbedStreamResponse(tag=request.tag)
            raise self.error

    async def ListModels(
        self, request: embedder_pb2.ListModelsRequest, context: Context
    ) -> embedder_pb2.ListModelsResponse:
        return embedder_pb2.ListModelsResponse(models=[embedder_pb2.Model(name="x" * 2000)])


@pytest.fixture(scope="module")
def failing() -> Iterator[tuple[Failing, embedder_pb2_grpc.EmbedderStub]]:
    """A service that fails, behind the real wrapper and a real socket."""
    servicer = Failing()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server, calls = grpc.aio.server(), Calls(Limits(max_message_bytes=1000, max_concurrent_calls=10))
        embedder_pb2_grpc.add_EmbedderServicer_to_server(servicer, cast(grpc.aio.Server, calls))
        server.add_generic_rpc_handlers((calls,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, embedder_pb2_grpc.EmbedderStub(channel)
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def call(stub: embedder_pb2_grpc.EmbedderStub, streamed: bool) -> None:
    if streamed:
        list(stub.EmbedStream(iter([embedder_pb2.EmbedStreamRequest(tag=1)])))
    else:
        stub.Embed(embedder_pb2.EmbedRequest())


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
def test_every_error_keeps_its_code_message_and_field(
    failing: tuple[Failing, embedder_pb2_grpc.EmbedderStub], kind: type[ImagekinError], streamed: bool
) -> None:
    servicer, stub = failing
    servicer.error = kind("what to do", field="images[3]")
    with pytest.raises(grpc.RpcError) as failed:
        call(stub, streamed)
    status = details(failed.value)
    assert code(failed.value).name == kind.code
    assert status.message == "what to do"
    assert fields(status) == ["images[3]"]
    assert retry_seconds(status) is None


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
def test_a_bug_is_an_id_that_the_log_has_too(
    failing: tuple[Failing, embedder_pb2_grpc.EmbedderStub], streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    servicer, stub = failing
    servicer.error = OSError(2, "secret", "/srv/secret/path")
    with caplog.at_level(logging.ERROR, "imagekin.serving"), pytest.raises(grpc.RpcError) as failed:
        call(stub, streamed)
    status = details(failed.value)
    assert code(failed.value) == grpc.StatusCode.INTERNAL
    assert "secret" not in str(failed.value)
    assert "Traceback" not in str(failed.value)
    match = re.search(r"internal error ([0-9a-f]{12})", status.message)
    assert match is not None
    assert match[1] in caplog.text
    assert "/srv/secret/path" in caplog.text


def test_an_answer_that_is_too_large_says_so(failing: tuple[Failing, embedder_pb2_grpc.EmbedderStub]) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        failing[1].ListModels(embedder_pb2.ListModelsRequest())
    status = details(failed.value)
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "ask for less" in status.message


def test_a_full_queue_says_when_to_come_back() -> None:
    assert retry_seconds(to_status(ResourceExhaustedError("full", retry_after=2.5))) == 2.5


def test_a_long_message_fits_into_the_headers() -> None:
    status = to_status(ImageError("é" * 10_000, field="x" * 10_000))
    assert len(status.SerializeToString()) < 4096
    assert status.message.endswith("…")


def test_an_item_carries_the_same_status() -> None:
    error = ImageError("not an image", field="images[0]")
    assert item_error(error).status == to_status(error)


def test_a_users_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = ImageError("not an image")
    assert public_error(error, "here") is error
    assert isinstance(public_error(ValueError("bug"), "here"), InternalError)
    assert len(caplog.records) == 1
