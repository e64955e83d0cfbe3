"""A real server on a real socket inside the test process, and what tests send to it."""

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import NDArray
from PIL import Image

from imagekin.kserve import inference_pb2_grpc
from imagekin.serving.server import Server
from imagekin.serving.settings import Settings
from imagekin.v1 import admin_pb2_grpc, collections_pb2_grpc, common_pb2, embedder_pb2_grpc, searcher_pb2_grpc

CALL_SECONDS = 20.0


@dataclass
class Running:
    """A running server and a channel to it."""

    server: Server
    loop: asyncio.AbstractEventLoop
    channel: grpc.Channel

    @cached_property
    def embedder(self) -> embedder_pb2_grpc.EmbedderStub:
        return embedder_pb2_grpc.EmbedderStub(self.channel)

    @cached_property
    def searcher(self) -> searcher_pb2_grpc.SearcherStub:
        return searcher_pb2_grpc.SearcherStub(self.channel)

    @cached_property
    def collections(self) -> collections_pb2_grpc.CollectionsStub:
        return collections_pb2_grpc.CollectionsStub(self.channel)

    @cached_property
    def admin(self) -> admin_pb2_grpc.AdminStub:
        return admin_pb2_grpc.AdminStub(self.channel)

    @cached_property
    def inference(self) -> inference_pb2_grpc.GRPCInferenceServiceStub:
        return inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(CALL_SECONDS)


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """Run a server for the length of a block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()

    async def start() -> Server:
        server = Server(settings)
        await server.start()
        return server

    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
            yield Running(server, loop, channel)
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def png(seed: int = 0, size: int = 16) -> bytes:
    """Return a PNG of smooth noise, so that it looks the same at any size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def image(seed: int = 0) -> common_pb2.Image:
    """Return an image message."""
    return common_pb2.Image(data=png(seed))


def vector(values: NDArray[Any] | list[float]) -> common_pb2.Vector:
    """Return a vector message."""
    array = np.asarray(values, "<f4")
    return common_pb2.Vector(data=array.tobytes(), dim=len(array))


def details(error: grpc.RpcError) -> status_pb2.Status:
    """Return the google.rpc.Status of a failed call, which must agree with what gRPC itself carries."""
    call = cast(grpc.Call, error)
    status = status_pb2.Status(code=call.code().value[0], message=call.details() or "")
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            rich = status_pb2.Status.FromString(cast(bytes, value))
            assert (rich.code, rich.message) == (status.code, status.message)
            return rich
    return status


def code(error: grpc.RpcError) -> grpc.StatusCode:
    """Return the status code of a failed call."""
    return cast(grpc.Call, error).code()


def fields(status: status_pb2.Status) -> list[str]:
    """Return the request's fields that a status finds fault with."""
    found: list[str] = []
    for detail in status.details:
        request = error_details_pb2.BadRequest()
        if detail.Unpack(request):
            found += [violation.field for violation in request.field_violations]
    return found


def retry_seconds(status: status_pb2.Status) -> float | None:
    """Return after how many seconds a status says to try again; None when it does not say so."""
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToNanoseconds() / 1e9)
    return None
