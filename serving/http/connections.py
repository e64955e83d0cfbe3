"""Speak HTTP/1.1 on one connection: uvicorn's protocol on h11, with deadlines and a ceiling of connections.

The work for a caller that went away is cancelled. uvicorn itself waits for ever for the rest of a header or a body,
and for a caller that does not read its answer.
"""

import asyncio
import time
from email.utils import formatdate
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

HEAD_BYTES = 32 * 1024
# Between two requests; load balancers keep a connection for a minute.
KEEP_ALIVE_SECONDS = 75
# To send a header, and the window in which a body or an answer must have moved by the least number of bytes.
_HEAD_SECONDS = 8.0
_WINDOW_SECONDS = 8.0
_LEAST_MOVED_BYTES = 32 * 1024
# For the rest of a body that nobody reads, after its request was refused.
_LINGER_SECONDS = 2.0
_TICK_SECONDS = 1.0
_MOST_CONNECTIONS = 4_096
_MALFORMED = b'{"code":"INVALID_ARGUMENT","message":"the request is no valid HTTP/1.1, or its header is too large"}'


class State(ServerState):
    """All connections of one listener, and the headers that every answer has."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._second = 0
        self._watching: asyncio.TimerHandle | None = None

    def protocol(self) -> "Connection":
        """Make the protocol of a new connection."""
        return Connection(self.config, self, {})

    def refresh(self) -> None:
        """Bring the headers that every answer has up to date."""
        if (now := int(time.time())) != self._second:
            self._second = now
            date = formatdate(now, usegmt=True).encode()
            self.default_headers = [(b"date", date), (b"x-content-type-options", b"nosniff")]

    def watch(self) -> None:
        """Look for overdue connections from now on, as long as there are any."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._watching = None
        now = time.monotonic()
        for connection in list(self.connections):
            if isinstance(connection, Connection) and connection.is_overdue(now):
                connection.transport.abort()
        if self.connections:
            self.watch()


class Connection(H11Protocol):
    """One connection."""

    server_state: State

    def __init__(self, config: Config, state: State, app_state: dict[str, Any]) -> None:
        super().__init__(config, state, app_state)
        self._inner: Any = self.app
        self.app = self._run
        self._running: asyncio.Task[Any] | None = None
        # Since when the other side is expected to do something, and how far it was then.
        self._since = time.monotonic()
        self._phase = ""
        self._moved = 0
        self._received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
            return
        self.server_state.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and end the work on the request that nobody waits for any more."""
        super().connection_lost(exc)
        if self._running is not None:
            self._running.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        self._received += len(data)
        self.server_state.refresh()
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer to what is no HTTP, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        headers = [("content-type", "application/json"), ("connection", "close")]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=_MALFORMED), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def is_overdue(self, now: float) -> bool:
        """Return whether the other side has kept the connection waiting for too long. Called about every second."""
        phase, moved = self._state()
        if phase != self._phase:
            self._phase, self._moved, self._since = phase, moved, now
            return False
        waited = now - self._since
        if phase in ("reading", "writing"):
            if waited < _WINDOW_SECONDS:
                return False
            if moved - self._moved < _LEAST_MOVED_BYTES:
                return True
            self._moved, self._since = moved, now
            return False
        return waited > {"head": _HEAD_SECONDS, "lingering": _LINGER_SECONDS}.get(phase, float("inf"))

    def _state(self) -> tuple[str, int]:
        """Name what is going on, with a number that grows by the bytes that the other side moves meanwhile."""
        transport: Any = self.transport
        if self.flow.write_paused or transport.is_closing():
            # Only one answer is in the buffer, so it shrinks by what is read.
            return "writing", -int(transport.get_write_buffer_size())
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy and self.conn.their_state is h11.SEND_BODY:
            return ("working" if self.flow.read_paused else "reading"), self._received
        if busy:
            return "working", 0
        if self.conn.their_state is h11.SEND_BODY:
            return "lingering", 0
        if self.cycle is None or self.conn.trailing_data[0]:
            return "head", 0
        return "idle", 0

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the application for one request; it is cancelled when the connection is lost."""
        # The connection's next request may begin before this has ended, as soon as its answer is complete.
        cycle, task = self.cycle, asyncio.current_task()
        self._running = task
        try:
            await self._inner(scope, receive, send)
        except asyncio.CancelledError:
            if not (cycle.disconnected or cycle.response_complete):
                raise
        finally:
            if self._running is task:
                self._running = None
