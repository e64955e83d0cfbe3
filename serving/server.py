"""The server process: starts, says when it is ready, and drains when it is told to stop."""

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from encoder.errors import FailedPreconditionError
from kindred.kserve import inference_pb2, inference_pb2_grpc
from kindred.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    collections_pb2,
    collections_pb2_grpc,
    embedder_pb2,
    embedder_pb2_grpc,
    searcher_pb2,
    searcher_pb2_grpc,
)
from serving.interceptor import CallInterceptor
from serving.models import Models
from serving.services.admin import Admin
from serving.services.collections import Collections
from serving.services.embedder import Embedder
from serving.services.kserve import Inference
from serving.services.searcher import Searcher
from serving.settings import Settings, split_address
from serving.store import Store

log = logging.getLogger("kindred.serving")

_PACKAGES = (embedder_pb2, searcher_pb2, collections_pb2, admin_pb2, inference_pb2)
SERVICES = tuple(service.full_name for module in _PACKAGES for service in module.DESCRIPTOR.services_by_name.values())

# Room for the framing of a message that is just small enough.
_FRAMING_BYTES = 64 * 1024

# How long the last answers get to leave, and how long calls are held back before.
_FLUSH_SECONDS = 0.5
_HOLD_SECONDS = 0.1


class Server:
    """A server on the running event loop.

    Args:
        settings: what to serve, and where.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = 0
        self._serving = False
        self._hurry = asyncio.Event()
        self._health = health.aio.HealthServicer()
        self._calls = CallInterceptor(settings.limits.max_message_bytes, settings.limits.max_concurrent_calls)

    async def start(self) -> None:
        """Load models and collections, listen, and become healthy.

        Raises:
            KindredError: a model or the data folder cannot be used.
            FailedPreconditionError: the address cannot be listened on.
        """
        settings = self.settings
        self.models = Models(())
        self.store = Store(settings)
        try:
            self.models = await asyncio.get_running_loop().run_in_executor(None, Models.open, settings)
            await self.store.open_all()
            await self._listen()
        except BaseException:
            await self._close()
            raise

    async def _listen(self) -> None:
        settings = self.settings
        self._server = grpc.aio.server(
            interceptors=(self._calls,),
            options=_options(settings),
        )
        self._add_services()
        self.port = _bind(self._server, settings.address)
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._serving = True

    async def stop(self) -> None:
        """Say NOT_SERVING, take no new calls, finish those in flight within `drain_seconds`, close everything."""
        self._serving = False
        await self._health.enter_graceful_shutdown()
        drained = asyncio.ensure_future(self._calls.drain())
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait((drained, hurry), timeout=self.settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if drained.done():
            await self._calls.hold(_HOLD_SECONDS)
        drained.cancel()
        await self._server.stop(_FLUSH_SECONDS)
        await self._close()

    def cut_short(self) -> None:
        """Let `stop` wait no longer for calls in flight."""
        self._hurry.set()

    def is_serving(self) -> bool:
        """Return whether the server takes calls."""
        return self._serving

    def _add_services(self) -> None:
        limits = self.settings.limits
        server = self._server
        embedder_pb2_grpc.add_EmbedderServicer_to_server(Embedder(self.models, limits), server)
        searcher_pb2_grpc.add_SearcherServicer_to_server(Searcher(self.store, self.models, limits), server)
        collections_pb2_grpc.add_CollectionsServicer_to_server(Collections(self.store, self.models, limits), server)
        admin_pb2_grpc.add_AdminServicer_to_server(Admin(), server)
        inference = Inference(self.models, limits, self.is_serving)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    async def _close(self) -> None:
        await self.store.close()
        await asyncio.get_running_loop().run_in_executor(None, self.models.close)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *SERVICES):
            await self._health.set(name, status)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. A second signal cuts the drain short.

    One line on standard error, `kindred: serving on HOST:PORT`, says that the server is ready.

    Raises:
        KindredError: the server cannot start; the message says what to do.
    """
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = Server(settings)
    await server.start()
    _announce(settings, server.port)
    await stopping.wait()
    stopping.clear()
    draining = asyncio.create_task(server.stop())
    hurry = asyncio.create_task(stopping.wait())
    await asyncio.wait((draining, hurry), return_when=asyncio.FIRST_COMPLETED)
    if draining.done():
        hurry.cancel()
    else:
        server.cut_short()
    await draining


def _announce(settings: Settings, port: int) -> None:
    if settings.port_file is not None:
        write_atomically(settings.port_file, f"{port}\n")
    host = settings.address.rpartition(":")[0]
    print(f"kindred: serving on {host}:{port}", file=sys.stderr, flush=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file that a reader sees whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _options(settings: Settings) -> list[tuple[str, int]]:
    limits = settings.limits
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes + _FRAMING_BYTES),
        ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
        # Without this a second server on the same port would silently take half of the connections.
        ("grpc.so_reuseport", 0),
    ]


def _bind(server: grpc.aio.Server, address: str) -> int:
    """Listen on an address and return the port."""
    _try_to_bind(address)
    try:
        return server.add_insecure_port(address)
    except RuntimeError:
        raise FailedPreconditionError(f"cannot listen on {address}: choose another address", field="address") from None


def _try_to_bind(address: str) -> None:
    """Bind once and let go, because gRPC says on standard error, and not to us, why it cannot."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        reason = (error.strerror or "no such host").lower()
        raise FailedPreconditionError(
            f"cannot listen on {address} ({reason}): choose another address", field="address"
        ) from None
