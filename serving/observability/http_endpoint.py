"""Serve /metrics over HTTP for Prometheus, in threads, with the server's certificate and tokens if there are any."""

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from imagekin.addresses import split_address
from imagekin.errors import FailedPreconditionError, ImagekinError, UnauthenticatedError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger("imagekin.serving")

PATH = "/metrics"

# A stalled scraper holds its thread for this long; scrapers beyond the last thread are refused.
_STALL_SECONDS = 10.0
_MAX_SCRAPERS = 16


class Exposition:
    """The /metrics endpoint of a server.

    Args:
        address: `HOST:PORT` to listen on; port 0 takes a free one.
        registry: the metrics.
        context: for TLS; None speaks plain HTTP.
        check: raises an ImagekinError unless the value of the Authorization header allows reading; None allows all.

    Attributes:
        port: the port that it listens on.

    Raises:
        FailedPreconditionError: the address cannot be listened on.
    """

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        context: ssl.SSLContext | None = None,
        check: Callable[[str], object] | None = None,
    ) -> None:
        host, port = split_address(address)
        self._show = make_wsgi_app(registry)
        self._check = check
        try:
            family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = _HttpServer((str(target[0]), int(target[1])), family, context)
        except OSError as error:
            reason = (error.strerror or "no such host").lower()
            raise FailedPreconditionError(
                f"cannot serve metrics on {address} ({reason}): choose another address", field="metrics_address"
            ) from None
        self._server.set_app(self._answer)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Blocks for a moment."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ.get("PATH_INFO") != PATH or environ.get("REQUEST_METHOD") != "GET":
            return _plain(start_response, "404 Not Found", f"GET {PATH}\n")
        if self._check is not None:
            try:
                self._check(str(environ.get("HTTP_AUTHORIZATION", "")))
            except UnauthenticatedError as error:
                return _plain(start_response, "401 Unauthorized", f"{error}\n", ("WWW-Authenticate", "Bearer"))
            except ImagekinError as error:
                return _plain(start_response, "403 Forbidden", f"{error}\n")
        shown: Iterable[bytes] = self._show(environ, start_response)
        return shown


class _Handler(WSGIRequestHandler):
    timeout = _STALL_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class has this name)
        """Keep scrapes out of the log."""


class _HttpServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily, context: ssl.SSLContext | None) -> None:
        self.address_family = family
        self._context = context
        self._places = threading.Semaphore(_MAX_SCRAPERS)
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; the handshake waits for the connection's own thread."""
        connection, peer = super().get_request()
        if self._context is None:
            return connection, peer
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; close the connection when all threads are busy."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one scraper."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a scraper that failed or went away."""
        log.debug("a scrape from %s failed", client_address, exc_info=True)


def _plain(start_response: "StartResponse", status: str, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
    return [text.encode()]
