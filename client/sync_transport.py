# Generated from async_transport.py by generate_sync.py: change that file and run `make client`.
"""Make calls with retries, keep several messages of a series in flight, and wait for a server to start."""

import time
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty

from imagekin.client import calls
from imagekin.client.backends import Backend, Pending
from imagekin.client.connection import Connection
from imagekin.errors import DeadlineExceededError, ImagekinError, UnavailableError
from imagekin.types import Errors

Result = TypeVar("Result")


class Transport:
    """Make the calls of a client."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._backend = Backend(connection)

    def close(self) -> None:
        """End the connection; calls under way end with CancelledError. Safe to call twice."""
        self._backend.close()

    def call(self, call: calls.Call[calls.Request, calls.Response], request: calls.Request) -> calls.Response:
        """Make a call, with retries by the retry policy; raises ImagekinError."""
        deadline = time.monotonic() + self._connection.timeout
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._backend.send(call, request, max(0.0, deadline - time.monotonic()))
            except ImagekinError as error:
                left = deadline - time.monotonic()
                delay = self._connection.retry.delay(error, attempt, idempotent=call.idempotent, left=left)
                if delay is None:
                    raise
            self._backend.pause(delay)

    def collect(
        self,
        series: calls.Series[calls.Member, calls.Part, calls.Request, calls.Response, Result],
        members: Iterable[calls.Member],
        errors: Errors,
    ) -> list[Result | ImagekinError]:
        """Return one result per member, in order; with `errors="raise"` none of them is an error."""
        found: list[Result | ImagekinError] = []
        results = self.results(series, members)
        with closing(results):
            for result in results:
                if errors == "raise" and isinstance(result, ImagekinError):
                    raise calls.located(result, series.noun, len(found))
                found.append(result)
        return found

    def results(
        self,
        series: calls.Series[calls.Member, calls.Part, calls.Request, calls.Response, Result],
        members: Iterable[calls.Member],
    ) -> Generator[Result | ImagekinError, None]:
        """Yield one result per member, in order, with a few messages in flight at once."""
        batches = calls.cut(series, members, self._connection.limits)
        under_way: deque[Pending[list[Result | ImagekinError]]] = deque()
        try:
            while (batch := self._backend.draw(batches)) is not None:
                if batch.is_last and not under_way:
                    # The common case, a single message, needs neither threads nor tasks.
                    for result in self._answer(series, batch):
                        yield result
                    return
                if len(under_way) >= self._connection.in_flight:
                    for result in self._backend.result(under_way.popleft()):
                        yield result
                under_way.append(self._backend.start(self._answer, series, batch))
            while under_way:
                for result in self._backend.result(under_way.popleft()):
                    yield result
        finally:
            self._backend.cancel(under_way)

    def is_serving(self, timeout: float | None = None) -> bool:
        """Ask the server's health check; raises ImagekinError when it does not answer."""
        answer = self._backend.send(calls.HEALTH, Empty(), timeout or self._connection.timeout)
        return answer.value == calls.SERVING

    def wait_ready(self, timeout: float) -> None:
        """Wait until the server is serving; raises UnavailableError when it is not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self.is_serving(left):
                    return
            except (UnavailableError, DeadlineExceededError):
                pass
            self._backend.pause(min(0.05, left))
        address = self._connection.address
        raise UnavailableError(f"{address} is not serving after {timeout:g} s: is `imagekin serve` running there?")

    def _answer(
        self,
        series: calls.Series[calls.Member, calls.Part, calls.Request, calls.Response, Result],
        batch: calls.Batch[calls.Part],
    ) -> list[Result | ImagekinError]:
        parts = batch.parts
        answers = series.read(self.call(series.call, series.build(parts))) if parts else []
        return calls.placed(batch, answers)
