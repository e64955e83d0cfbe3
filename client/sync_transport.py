"""How the sync client waits: calls with retries, series with several messages under way, the health check."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

import grpc

from imagekin.client import calls, channel, retries
from imagekin.errors import CancelledError, ImagekinError, UnavailableError

Result = TypeVar("Result")


class Transport:
    """A connection that makes calls. Safe to share between threads."""

    def __init__(self, connection: channel.Connection) -> None:
        self._connection = connection
        options = channel.channel_options()
        self._channel = (
            grpc.insecure_channel(connection.address, options)
            if connection.credentials is None
            else grpc.secure_channel(connection.address, connection.credentials, options)
        )
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the connection; calls under way end with CancelledError. Safe to call twice."""
        with self._lock:
            self._closed.set()
            self._channel.close()
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)

    def call(self, call: calls.Call[calls.Request, calls.Response], request: calls.Request) -> calls.Response:
        """Make a call, trying again as the retry policy says; raises ImagekinError."""
        self._check_open()
        rpc = self._channel.unary_unary(call.path, call.request.SerializeToString, call.response.FromString)
        deadline = time.monotonic() + self._connection.timeout
        for attempt in itertools.count(1):
            left = max(0.0, deadline - time.monotonic())
            try:
                return rpc(request, timeout=left, metadata=self._connection.metadata)
            except grpc.RpcError as error:
                failure = self._failure(error)
                left = deadline - time.monotonic()
                delay = self._connection.retry.delay(failure, attempt, idempotent=call.idempotent, left=left)
                if delay is None or self._closed.wait(delay):
                    raise failure.error from error
        raise AssertionError("the loop above has no end")

    def results(
        self,
        series: calls.Series[calls.Member, calls.Part, calls.Request, calls.Response, Result],
        members: Iterable[calls.Member],
    ) -> Generator[Result | ImagekinError, None, None]:
        """Yield one result per member, in order, with a few messages under way at once."""
        batches = calls.cut(series, members, self._connection.limits)
        head = list(itertools.islice(batches, 2))
        if len(head) < 2:  # the common case needs no threads
            for batch in head:
                yield from self._answer(series, batch)
            return
        waiting: deque[Future[list[Result | ImagekinError]]] = deque()
        try:
            for batch in itertools.chain(head, batches):
                if len(waiting) >= self._connection.in_flight:
                    yield from waiting.popleft().result()
                waiting.append(self._pool().submit(self._answer, series, batch))
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def healthy(self, timeout: float | None = None) -> bool:
        """Return whether the server says that it is serving; raises ImagekinError when it does not answer."""
        self._check_open()
        check = self._channel.unary_unary(channel.HEALTH_CHECK, bytes, bytes)
        try:
            answer = check(b"", timeout=timeout or self._connection.timeout, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise self._failure(error).error from error
        return answer == channel.SERVING

    def wait_ready(self, timeout: float) -> None:
        """Wait until the server is serving; raises UnavailableError when it is not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self.healthy(left):
                    return
            except UnavailableError:
                pass
            self._closed.wait(min(0.05, left))
        raise channel.not_ready(self._connection.address, timeout)

    def _answer(
        self,
        series: calls.Series[calls.Member, calls.Part, calls.Request, calls.Response, Result],
        batch: calls.Batch[calls.Part],
    ) -> list[Result | ImagekinError]:
        parts = batch.parts
        answers = series.read(self.call(series.call, series.build(parts))) if parts else []
        return calls.placed(batch, answers)

    def _failure(self, error: grpc.RpcError) -> retries.Failure:
        # What a call raises is a grpc.Call too; the two classes are declared apart.
        call = cast(grpc.Call, error)
        status = call.code().name, call.details() or "", call.trailing_metadata()
        return retries.call_failure(*status, self._connection.address)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise CancelledError("the client is closed")

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            self._check_open()
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._connection.in_flight, thread_name_prefix="imagekin-client")
            return self._threads
