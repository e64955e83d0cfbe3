"""Run the server process: start, announce that it is ready, and drain on a signal."""

import asyncio
import contextlib
import gc
import logging
import signal
import ssl
import sys
import threading
from typing import cast

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from imagekin import files, machine
from imagekin.addresses import socket_path
from imagekin.errors import ImagekinError, PermissionDeniedError
from imagekin.kserve import inference_pb2, inference_pb2_grpc
from imagekin.serving.collections.data_folder import DataFolder
from imagekin.serving.collections.open_collections import CollectionStore
from imagekin.serving.embedding.models import Models
from imagekin.serving.http.app import build
from imagekin.serving.http.listener import Listener
from imagekin.serving.observability import logs
from imagekin.serving.observability.audit import AuditLog
from imagekin.serving.observability.http_endpoint import Exposition
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.observability.tracing import Tracer
from imagekin.serving.reload import Reloader
from imagekin.serving.services.admin import AdminService
from imagekin.serving.services.collections import CollectionsService
from imagekin.serving.services.embedder import EMBED, READERS, EmbedderService
from imagekin.serving.services.health import Health
from imagekin.serving.services.kserve import INFER, InferenceService
from imagekin.serving.services.reflection import add_reflection
from imagekin.serving.services.searcher import SearcherService
from imagekin.serving.settings import Settings
from imagekin.serving.transport import listening
from imagekin.serving.transport.access import Guard, Scope
from imagekin.serving.transport.calls import Calls
from imagekin.serving.transport.tls import Certificates
from imagekin.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    collections_pb2,
    collections_pb2_grpc,
    embedder_pb2,
    embedder_pb2_grpc,
    searcher_pb2,
    searcher_pb2_grpc,
)

log = logging.getLogger("imagekin.serving")

_PACKAGES = (embedder_pb2, searcher_pb2, collections_pb2, admin_pb2, inference_pb2)
SERVICES = tuple(service.full_name for module in _PACKAGES for service in module.DESCRIPTOR.services_by_name.values())

# Time for the last answers to be sent, and for which calls are held back before that.
_FLUSH_SECONDS = 0.5
_HOLD_SECONDS = 0.1

# How long a thread may hold the interpreter's lock while another one waits for it; Python's own default is five times
# as long, and made probes wait for 200 ms beside a large classification.
_SWITCH_SECONDS = 0.001

# How often a replica looks for collections that the writer has dropped or made anew.
_FOLLOW_SECONDS = 1.0


class Server:
    """A server on the running event loop.

    Args:
        settings: what to serve, and where.

    Attributes:
        port: the port of the services, 0 before the start.
        http_port: the port of HTTP, 0 before the start or without.
        metrics_port: the port of /metrics, 0 before the start or without.

    Raises:
        ImagekinError: the certificates or tokens cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = 0
        self._serving = False
        self._hurry = asyncio.Event()
        self._health = Health()
        self.http_port = 0
        self.metrics_port = 0
        self._http: Listener | None = None
        self._exposition: Exposition | None = None
        self._following: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._has_data = True
        self._certificates: Certificates | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self._certificates = Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        self._guard = None if settings.tokens_file is None else Guard(settings.tokens_file)
        # Nothing is measured where nothing is scraped.
        scraped = settings.metrics_address is not None or settings.http_address is not None
        self._metrics = Metrics() if scraped else None
        limits = settings.limits
        self._tracer = None if settings.otlp_endpoint is None else Tracer(settings.otlp_endpoint)
        self._calls = Calls(limits, self._guard, self._metrics, self._tracer, READERS)
        self._audit = None if settings.audit_log is None else AuditLog(settings.audit_log)
        self._calls.write_audit(self._audit)
        self.models = Models(())
        self.store = CollectionStore(settings, self._metrics)
        self._reloader = self._make_reloader()

    async def start(self) -> None:
        """Load models and collections, listen, and become healthy.

        Raises:
            ImagekinError: a model or the data folder cannot be used.
            FailedPreconditionError: the address cannot be listened on.
        """
        settings = self.settings
        loop = asyncio.get_running_loop()
        try:
            self.models = await loop.run_in_executor(None, Models.open, settings, self._metrics)
            self._reloader = self._make_reloader()
            await self.store.open_all()
            await self._listen()
        except BaseException:
            await self._close()
            raise

    async def _listen(self) -> None:
        settings = self.settings
        options = listening.options(settings.limits, settings.max_connection_age, settings.drain_seconds)
        self._server = grpc.aio.server(options=options)
        self._add_services()
        credentials = None if self._certificates is None else self._certificates.credentials()
        self.port = listening.bind(self._server, settings.address, credentials)
        self._expose()
        await self._listen_for_http()
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._serving = True
        if settings.data_dir is not None:
            self._watching = asyncio.create_task(DataFolder(settings.data_dir).watch(self._data_folder_changed))
        # Other processes may drop and create collections, too.
        if self.settings.store is not None or (self.settings.read_only and self.settings.data_dir is not None):
            self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Report NOT_SERVING, refuse new calls, finish those in flight within `drain_seconds` and close everything."""
        self._serving = False
        for task in (self._following, self._watching):
            if task is not None:
                task.cancel()
        await self._health.enter_graceful_shutdown()
        drained = asyncio.ensure_future(self._calls.drain())
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait((drained, hurry), timeout=self.settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if drained.done():
            await self._calls.hold(_HOLD_SECONDS)
        drained.cancel()
        closing = asyncio.ensure_future(self._close_http())
        # Awaited at once, not in a task: the server must shut down before the calls that were held are answered, or
        # their callers' next calls arrive meanwhile and are answered CANCELLED.
        await self._server.stop(_FLUSH_SECONDS)
        await closing
        await self._close()

    async def reload(self) -> None:
        """Reload everything from disk, see `serving.reload`; what cannot be loaded stays as it was and is logged."""
        if not self._serving:
            return
        try:
            await self._reloader.reload()
        except ImagekinError as error:
            log.error("reload: %s", error)

    def cut_short(self) -> None:
        """Stop waiting for calls in flight."""
        self._hurry.set()

    def is_serving(self) -> bool:
        """Return whether the server takes calls, and has its data folder."""
        return self._serving and self._has_data

    def _add_services(self) -> None:
        limits, server = self.settings.limits, cast(grpc.aio.Server, self._calls)
        embedder_pb2_grpc.add_EmbedderServicer_to_server(EmbedderService(self.models, limits), server)
        searcher_pb2_grpc.add_SearcherServicer_to_server(SearcherService(self.store, self.models, limits), server)
        collections_pb2_grpc.add_CollectionsServicer_to_server(
            CollectionsService(self.store, self.models, limits), server
        )
        admin_pb2_grpc.add_AdminServicer_to_server(AdminService(self._reloader), server)
        inference = InferenceService(self.models, limits, self.is_serving)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        add_reflection((*SERVICES, health.SERVICE_NAME), server)
        for method in (EMBED, INFER):
            self._calls.check_admission(method, self.models)
        self._server.add_generic_rpc_handlers((self._calls,))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_SECONDS)
            await self.store.follow()

    def _make_reloader(self) -> Reloader:
        return Reloader(self.settings, self.models, self.store, self._certificates, self._guard, self._metrics)

    def _expose(self) -> None:
        if self._metrics is None:
            return
        self._metrics.watch(lambda: self.models.all, lambda: self.store.all, lambda: self._calls.in_flight)
        if self.settings.metrics_address is None:
            return
        registry, context = self._metrics.registry, self._ssl_context()
        self._exposition = Exposition(self.settings.metrics_address, registry, context, self._check_reader)
        self.metrics_port = self._exposition.port

    async def _listen_for_http(self) -> None:
        address = self.settings.http_address
        if address is None:
            return
        registry = None if self._metrics is None else self._metrics.registry
        app = build(self.settings, self._calls, self.is_serving, registry, self._check_reader, self._guard)
        self._http = await Listener.open(address, app, self._ssl_context())
        self.http_port = self._http.port

    async def _close_http(self) -> None:
        if self._http is not None:
            await self._http.close(_FLUSH_SECONDS)
            self._http = None

    def _ssl_context(self) -> ssl.SSLContext | None:
        return None if self._certificates is None else self._certificates.context

    def _check_reader(self, header: str) -> None:
        """Raise an ImagekinError unless the value of an Authorization header allows reading."""
        if self._guard is not None:
            token = self._guard.check_header(header, Scope.READ)
            if token.collections:
                raise PermissionDeniedError("the token is for certain collections: this tells of all")

    async def _close(self) -> None:
        await self._close_http()
        if self._exposition is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._exposition.close)
        await self._reloader.finish()
        await self.store.close()
        self._calls.close()
        await asyncio.get_running_loop().run_in_executor(None, self.models.close)
        if self._audit is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._audit.close)
        if self._tracer is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._tracer.close)

    async def _data_folder_changed(self, fault: str | None) -> None:
        """Tell load balancers to leave this server out while it cannot reach its data."""
        self._has_data = fault is None
        if fault is None:
            log.warning("the data folder is back: healthy again")
            await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        else:
            log.error("the data folder %s cannot be had (%s): not healthy", self.settings.data_dir, fault)
            await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *SERVICES):
            await self._health.set(name, status)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. A second signal cuts the drain short.

    SIGHUP loads models, collections, certificates and tokens anew. One line on standard error, `imagekin: serving on
    HOST:PORT`, says that the server is ready; in the JSON log it is an entry with that message. With HTTP, a second
    line says its address.

    Raises:
        ImagekinError: the server cannot start; the message says what to do.
    """
    logs.configure(settings.log_level, settings.log_format)
    # Modules are never freed; a collection that looks through them would stall all calls for tens of milliseconds.
    gc.collect()
    gc.freeze()
    # A search in Python's own code lets the event loop in only so often, and a call needs several turns of it.
    sys.setswitchinterval(_SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=listening.new_event_loop) as runner:
        runner.run(_serve(settings, machine.raise_open_files()))


async def _serve(settings: Settings, raised: tuple[int, int] | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    # Until there is something to reload, a signal to do so must not end the process.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    server = Server(settings)
    if not await _started(server, stopping):
        return
    if settings.stop_with_parent:
        watch = threading.Thread(target=_await_end_of_input, args=(loop, stopping), name="imagekin-parent", daemon=True)
        watch.start()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        reloads.add(task := asyncio.create_task(server.reload()))
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    _announce(server)
    if raised is not None:
        log.info("raised the limit of open files from %s to %s", *raised)
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


def _await_end_of_input(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    """Set an event when standard input ends, which it does when its writer has ended, however that came about."""
    while sys.stdin.buffer.read(4096):
        pass
    with contextlib.suppress(RuntimeError):  # the loop has been closed
        loop.call_soon_threadsafe(stopping.set)


async def _started(server: Server, stopping: asyncio.Event) -> bool:
    """Start a server and return whether it serves; a signal to stop that comes sooner ends it without an error."""
    starting = asyncio.create_task(server.start())
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if starting.done():
        await starting
        return True
    # It closes what it has opened so far; a model that is being read is read to its end.
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError, ImagekinError):
        await starting
    return False


def _announce(server: Server) -> None:
    settings = server.settings
    if settings.metrics_port_file is not None:
        files.write_text(settings.metrics_port_file, f"{server.metrics_port}\n")
    if settings.http_port_file is not None:
        files.write_text(settings.http_port_file, f"{server.http_port}\n")
    if settings.port_file is not None:
        files.write_text(settings.port_file, f"{server.port}\n")
    address = settings.address
    if socket_path(address) is None:
        address = f"{address.rpartition(':')[0]}:{server.port}"
    lines = [f"serving on {address}"]
    if settings.http_address is not None:
        scheme = "http" if settings.tls_cert is None else "https"
        if socket_path(settings.http_address) is None:
            host = settings.http_address.rpartition(":")[0]
            lines.append(f"{scheme}://{host}:{server.http_port}{settings.http_root_path}/")
        else:
            lines.append(f"{scheme} on {settings.http_address}")
    for line in lines:
        if settings.log_format == "json":
            logs.announce(line)
        else:
            print(f"imagekin: {line}", file=sys.stderr, flush=True)
