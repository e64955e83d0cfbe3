"""Wait with asyncio or by blocking a thread: the only difference between the async and the sync client.

Everything else is written for asyncio, and `generate_sync` turns it into the sync client. The two classes have the same
methods, except that those of `AsyncBackend` are awaited.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeAlias, TypeVar

import grpc
from grpc import aio

from imagekin.client.calls import Call, Request, Response
from imagekin.client.connection import CHANNEL_OPTIONS, Connection
from imagekin.client.retries import rpc_error
from imagekin.errors import CancelledError, FailedPreconditionError

T = TypeVar("T")
# A result still to come.
AsyncPending: TypeAlias = asyncio.Task[T]
Pending: TypeAlias = futures.Future[T]


class AsyncBackend:
    """Wait with asyncio. The event loop of the first call is that of all further calls."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._closed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: aio.Channel | None = None

    async def close(self) -> None:
        """Close the channel; calls under way end with CancelledError."""
        if self._channel is not None:
            self._check_loop()
        self._closed.set()
        if self._channel is not None:
            await self._channel.close()

    async def send(self, call: Call[Request, Response], request: Request, timeout: float) -> Response:
        """Make a call once; raises ImagekinError."""
        rpc = self._open_channel().unary_unary(call.path, call.request.SerializeToString, call.response.FromString)
        try:
            return await rpc(request, timeout=timeout, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise rpc_error(error, self._connection.address) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed.is_set() and task is not None and not task.cancelling():
                raise _closed() from None
            raise

    async def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the client is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    async def draw(self, batches: Iterator[T]) -> T | None:
        """Return the next batch, None at the end; files are read and arrays encoded off the event loop."""
        return await asyncio.to_thread(next, batches, None)

    def start(self, work: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> AsyncPending[T]:
        """Start a call whose result is needed later."""
        return asyncio.create_task(work(*arguments))

    async def result(self, pending: AsyncPending[T]) -> T:
        """Wait for a result; raises what the call raises."""
        return await pending

    async def cancel(self, pending: Iterable[AsyncPending[T]]) -> None:
        """Cancel calls whose results are no longer needed."""
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def _open_channel(self) -> aio.Channel:
        if self._closed.is_set():
            raise _closed()
        if self._channel is None:
            # Not in __init__: a client may be made before its event loop runs.
            self._loop = asyncio.get_running_loop()
            credentials = self._connection.credentials
            self._channel = (
                aio.insecure_channel(self._connection.address, CHANNEL_OPTIONS)
                if credentials is None
                else aio.secure_channel(self._connection.address, credentials, CHANNEL_OPTIONS)
            )
        self._check_loop()
        return self._channel

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise FailedPreconditionError(
                "this AsyncClient was first used in another event loop and cannot follow into this one: "
                "make a client in each event loop (in each asyncio.run)"
            )


class Backend:
    """Block the calling thread. Safe to share between threads."""

    def __init__(self, connection: Connection) -> None:
        credentials = connection.credentials
        self._connection = connection
        self._channel = (
            grpc.insecure_channel(connection.address, CHANNEL_OPTIONS)
            if credentials is None
            else grpc.secure_channel(connection.address, credentials, CHANNEL_OPTIONS)
        )
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._threads: futures.ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Close the channel; calls under way end with CancelledError."""
        with self._lock:
            self._closed.set()
            self._channel.close()
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)

    def send(self, call: Call[Request, Response], request: Request, timeout: float) -> Response:
        """Make a call once; raises ImagekinError."""
        self._check_open()
        rpc = self._channel.unary_unary(call.path, call.request.SerializeToString, call.response.FromString)
        try:
            return rpc(request, timeout=timeout, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise rpc_error(error, self._connection.address) from error
        except ValueError:
            # gRPC raises this for a channel that another thread has just closed.
            self._check_open()
            raise

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the client is closed."""
        self._closed.wait(seconds)

    def draw(self, batches: Iterator[T]) -> T | None:
        """Return the next batch, None at the end."""
        return next(batches, None)

    def start(self, work: Callable[..., T], *arguments: object) -> Pending[T]:
        """Start a call whose result is needed later."""
        with self._lock:
            self._check_open()
            if self._threads is None:
                self._threads = futures.ThreadPoolExecutor(self._connection.in_flight, "imagekin-client")
            return self._threads.submit(work, *arguments)

    def result(self, pending: Pending[T]) -> T:
        """Wait for a result; raises what the call raises."""
        try:
            return pending.result()
        except futures.CancelledError:
            raise _closed() from None

    def cancel(self, pending: Iterable[Pending[T]]) -> None:
        """Cancel calls whose results are no longer needed."""
        for future in pending:
            future.cancel()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise _closed()


def _closed() -> CancelledError:
    return CancelledError("the client is closed")
