"""How the async client waits: the twin of `imagekin.client.sync_transport` on asyncio."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import TypeVar

from grpc import aio

from imagekin.client import calls, channel, retries
from imagekin.errors import CancelledError, ImagekinError, UnavailableError

Result = TypeVar("Result")


class AsyncTransport:
    """A connection that makes calls, for one event loop."""

    def __init__(self, connection: channel.Connection) -> None:
        self._connection = connection
        options = channel.channel_options()
        self._channel = (
            aio.insecure_channel(connection.address, options)
            if connection.credentials is None
            else aio.secure_channel(connection.address, connection.credentials, options)
        )
        self._closed = False

    async def close(self) -> None:
        """End the connection; calls under way end with CancelledError. Safe to call twice."""
        self._closed = True
        await self._channel.close()

    async def call(self, call: calls.Call[calls.Request, calls.Response], request: calls.Request) -> calls.Response:
        """Make a call, trying again as the retry policy says; raises ImagekinError."""
        self._check_open()
        rpc = self._channel.unary_unary(call.path, call.request.SerializeToString, call.response.FromString)
        deadline = time.monotonic() + self._connection.timeout
        for attempt in itertools.count(1):
            left = max(0.0, deadline - time.monotonic())
            try:
                return await rpc(request, timeout=left, metadata=self._connection.metadata)
            except aio.AioRpcError as error:
                failure = self._failure(error)
                left = deadline - time.monotonic()
                delay = self._connection.retry.delay(failure, attempt, idempotent=call.idempotent, left=left)
                if delay is None or self._closed:
                    raise failure.error from error
            await asyncio.sleep(delay)
        raise AssertionError("the loop above has no end")

    async def results(
        self,
        series: calls.Series[calls.Member, calls.Part, calls.Request, calls.Response, Result],
        members: Iterable[calls.Member],
    ) -> AsyncGenerator[Result | ImagekinError, None]:
        """Yield one result per member, in order, with a few messages under way at once."""
        batches = calls.cut(series, members, self._connection.limits)
        waiting: deque[asyncio.Task[list[Result | ImagekinError]]] = deque()
        try:
            # Files are read and arrays encoded off the event loop.
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                if len(waiting) >= self._connection.in_flight:
                    for result in await waiting.popleft():
                        yield result
                waiting.append(asyncio.create_task(self._answer(series, batch)))
            while waiting:
                for result in await waiting.popleft():
                    yield result
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def healthy(self, timeout: float | None = None) -> bool:
        """Return whether the server says that it is serving; raises ImagekinError when it does not answer."""
        self._check_open()
        check = self._channel.unary_unary(channel.HEALTH_CHECK, bytes, bytes)
        try:
            answer = await check(b"", timeout=timeout or self._connection.timeout, metadata=self._connection.metadata)
        except aio.AioRpcError as error:
            raise self._failure(error).error from error
        return answer == channel.SERVING

    async def wait_ready(self, timeout: float) -> None:
        """Wait until the server is serving; raises UnavailableError when it is not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                if await self.healthy(left):
                    return
            except UnavailableError:
                pass
            await asyncio.sleep(min(0.05, left))
        raise channel.not_ready(self._connection.address, timeout)

    async def _answer(
        self,
        series: calls.Series[calls.Member, calls.Part, calls.Request, calls.Response, Result],
        batch: calls.Batch[calls.Part],
    ) -> list[Result | ImagekinError]:
        parts = batch.parts
        answers = series.read(await self.call(series.call, series.build(parts))) if parts else []
        return calls.placed(batch, answers)

    def _failure(self, error: aio.AioRpcError) -> retries.Failure:
        trailing = [(key, value) for key, value in error.trailing_metadata()]
        return retries.call_failure(error.code().name, error.details() or "", trailing, self._connection.address)

    def _check_open(self) -> None:
        if self._closed:
            raise CancelledError("the client is closed")


async def unwrap(results: AsyncIterator[Result | ImagekinError], noun: str) -> AsyncIterator[Result]:
    """Yield the results; raises the first error, with the member's place in its message."""
    place = 0
    async for result in results:
        for unwrapped in calls.unwrap([result], noun, place):
            yield unwrapped
        place += 1
