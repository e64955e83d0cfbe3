"""Batch concurrent calls of many threads into one.

The first call runs at once, alone. Calls that arrive while it runs are queued; the thread whose turn is next runs all
of them as one batch. For searches this is cheap, because most of the time goes into reading the vectors, once a batch.

Clients that send one call after another are answered together and so call again together. The next batch waits for as
many calls as the last one had, for at most a quarter of that batch's duration, and not at all for a single client.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")

_MAX_BATCH = 64
# Longest wait for clients that have just been answered, as a share of their batch's duration.
_LINGER = 0.25


@dataclass(slots=True, eq=False)
class _Call(Generic[Request, Result]):
    """A call and its result; `ready` is set when it is done, or when its thread has to run the next batch."""

    request: Request
    ready: threading.Event = field(default_factory=threading.Event)
    done: bool = False
    result: Result | None = None
    error: BaseException | None = None


class Combiner(Generic[Request, Result]):
    """A function of a batch of requests that threads call with one request each.

    Args:
        function: returns the results of a batch of requests, in their order.
        concurrency: batches that run at the same time.
        max_batch: largest size of a batch.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Request]], Sequence[Result]],
        concurrency: int = 1,
        max_batch: int = _MAX_BATCH,
    ) -> None:
        self._function = function
        self._max_batch = max_batch
        self._lock = threading.Lock()
        self._free = concurrency
        self._waiting: list[_Call[Request, Result]] = []
        # Size of the last batch, and until when the next one waits for as many calls.
        self._expected = 1
        self._until = 0.0
        self._complete = threading.Event()

    def call(self, request: Request) -> Result:
        """Return the result of a request; raises what the function raised for its batch."""
        own: _Call[Request, Result] = _Call(request)
        with self._lock:
            begin = self._free > 0
            if begin:
                self._free -= 1
            else:
                self._waiting.append(own)
                if len(self._waiting) + 1 >= self._expected:
                    self._complete.set()
        if not begin:
            self._wait(own)
        if not own.done:
            self._run_batch(own)
        if own.error is not None:
            raise own.error
        assert own.result is not None  # noqa: S101  the function returns a result for every request
        return own.result

    def _wait(self, own: _Call[Request, Result]) -> None:
        try:
            own.ready.wait()
        except BaseException:  # Ctrl-C
            with self._lock:
                left = own in self._waiting
                if left:
                    self._waiting.remove(own)
            if not left:
                # It is part of a running batch, or has to run the next one, for which others wait.
                own.ready.wait()
                if not own.done:
                    self._run_batch(own)
            raise

    def _run_batch(self, own: _Call[Request, Result]) -> None:
        """Run a batch of the own call and all that wait, then wake the thread that runs the next batch."""
        self._linger()
        with self._lock:
            others = self._waiting[: self._max_batch - 1]
            del self._waiting[: self._max_batch - 1]
        batch = [own, *others]
        begun = time.perf_counter()
        try:
            results = self._function([call.request for call in batch])
            for call, result in zip(batch, results, strict=True):
                call.result = result
        except BaseException as error:
            for call in batch:
                call.error = error
        ended = time.perf_counter()
        with self._lock:
            self._expected = min(len(batch) + len(self._waiting), self._max_batch)
            self._until = ended + _LINGER * (ended - begun)
            following = self._waiting.pop(0) if self._waiting else None
            self._free += following is None
        if following is not None:
            following.ready.set()
        for call in batch:
            call.done = True
            call.ready.set()

    def _linger(self) -> None:
        """Wait for clients that have just been answered to call again."""
        with self._lock:
            left = self._until - time.perf_counter()
            if left <= 0 or len(self._waiting) + 1 >= self._expected:
                return
            self._complete.clear()
        self._complete.wait(left)
