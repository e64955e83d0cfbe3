"""Listen for HTTP in the event loop of the server, and end without cutting an answer off.

uvicorn's own server is not used: it would take the process's signals for itself, and wake ten times a second.
"""

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

from uvicorn.config import Config

from imagekin.addresses import socket_path, split_address
from imagekin.errors import FailedPreconditionError
from imagekin.serving.http.app import App
from imagekin.serving.http.connections import HEAD_BYTES, KEEP_ALIVE_SECONDS, State
from imagekin.serving.transport.listening import make_way, private_sockets

_BACKLOG = 1_024
_HANDSHAKE_SECONDS = 8.0
_POLL_SECONDS = 0.02


class Listener:
    """An HTTP server on the running event loop.

    Attributes:
        port: the port that it listens on, 0 for a Unix socket.
    """

    def __init__(self, server: asyncio.Server, state: State, port: int, file: "_SocketFile | None") -> None:
        self._server = server
        self._state = state
        self._file = file
        self.port = port

    @classmethod
    async def open(cls, address: str, app: App, context: ssl.SSLContext | None) -> "Listener":
        """Listen.

        Args:
            address: `HOST:PORT` or `unix:PATH`; port 0 takes a free one.
            app: answers the requests.
            context: for TLS; None speaks plain HTTP.

        Raises:
            FailedPreconditionError: the address cannot be listened on.
        """
        path = socket_path(address)
        listening = _bind(address) if path is None else _bind_file(path)
        config = Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
        config.load()
        state = State(config)
        loop = asyncio.get_running_loop()
        server = await (loop.create_server if path is None else loop.create_unix_server)(
            state.protocol,
            sock=listening,
            ssl=context,
            backlog=_BACKLOG,
            ssl_handshake_timeout=None if context is None else _HANDSHAKE_SECONDS,
        )
        if path is None:
            return cls(server, state, int(listening.getsockname()[1]), None)
        return cls(server, state, 0, _SocketFile(path))

    async def close(self, seconds: float) -> None:
        """Stop listening, and close every connection once its answer is sent, after that many seconds in any case."""
        self._server.close()
        if self._file is not None:
            self._file.remove()
        for connection in list(self._state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._state.connections:
                    await asyncio.sleep(_POLL_SECONDS)
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _SocketFile:
    """The file of a Unix socket, which another server may replace.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._id = _file_id(path)

    def remove(self) -> None:
        """Remove it, if it is still the same."""
        with contextlib.suppress(OSError):
            if _file_id(self._path) == self._id:
                self._path.unlink()


def _file_id(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _bind_file(path: Path) -> socket.socket:
    make_way(path, "http_address")
    listening = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        with private_sockets():
            listening.bind(str(path))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        reason = (error.strerror or str(error)).lower()
        raise FailedPreconditionError(
            f"cannot listen on unix:{path} ({reason}): choose another address", field="http_address"
        ) from None
    return listening


def _bind(address: str) -> socket.socket:
    host, port = split_address(address, "http_address")
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(target[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = (error.strerror or "no such host").lower()
        raise FailedPreconditionError(
            f"cannot listen on {address} ({reason}): choose another address", field="http_address"
        ) from None
