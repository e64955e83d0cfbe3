"""Search vectors in a device's memory, by way of the one thread that uses the device.

A device has limits that FAISS on a processor does not have: only one thread may call it, it finds a limited number of
neighbours, ignores filters and dead slots, and its memory may run out. `imagekin.index.search.gpu.resident` works
around them.
"""

import logging
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from imagekin.index.vectors.brute_force import Products, Rows
from imagekin.types import Vector

T = TypeVar("T")
log = logging.getLogger("imagekin.index")


class DeviceVectors(Protocol):
    """Constant vectors in a device's memory."""

    def top_k(self, queries: Vector, k: int) -> tuple[Products, Rows]:
        """Return the `k` largest inner products of each query, largest first, and their rows.

        Args:
            queries: float32 [N, D], C-contiguous.
            k: 1 to the number of vectors, and at most the device's `max_k`.

        Returns:
            Inner products, float32 [N, k], and rows of the vectors, int64 [N, k].

        Raises:
            RuntimeError: the device fails, or its memory does not suffice.
        """


class Device(Protocol):
    """A device; only one thread may call it and the vectors that it holds."""

    @property
    def max_k(self) -> int:
        """The largest `k` that it finds."""

    def hold(self, vectors: Vector) -> DeviceVectors:
        """Copy vectors, float32 [n, D], C-contiguous, into the device's memory.

        Raises:
            RuntimeError: the device fails, or its memory does not suffice.
        """


class DeviceThread:
    """The only thread that calls a device.

    Args:
        opened: opens the device; called in that thread.

    Raises:
        RuntimeError: the device cannot be opened.
    """

    def __init__(self, opened: Callable[[], Device]) -> None:
        # SimpleQueue.put is reentrant: the garbage collector may call `release` during a `put`.
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
        self._thread.start()
        try:
            self.device = self.submit(opened).result()
        except BaseException:
            self.close()
            raise
        self.max_k = self.submit(lambda: self.device.max_k).result()

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Run a function in the thread; the future has its result or its error.

        Raises:
            RuntimeError: the device was closed.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("it is closed")
            self._calls.put((call, future))
        return future

    def release(self, held: list[DeviceVectors]) -> None:
        """Free objects on the device in the thread, and empty the list; from any thread, even after closing."""
        self._calls.put((held.clear, Future()))

    def close(self) -> None:
        """Finish the waiting calls, and end the thread; closing twice is safe."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._calls.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (request := self._calls.get()) is not None:
            _answer(*request)
            del request  # do not keep its objects alive until the next request


def _answer(call: Callable[[], Any], future: "Future[Any]") -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # raised in the thread that waits
        # Frames must not keep device objects alive, which another thread would then release.
        traceback.clear_frames(error.__traceback__)
        future.set_exception(error)
