"""Search vectors in a device's memory, by way of the one thread that uses the device.

A device is less than FAISS on a processor: one thread alone may call it, it finds at most so many neighbours, knows
nothing of filters or dead slots, and its memory may run out. `imagekin.index.search.gpu.resident` makes good what it
lacks.
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


class Held(Protocol):
    """Vectors that a device holds; they never change."""

    def top_k(self, queries: Vector, k: int) -> tuple[Products, Rows]:
        """Return the `k` largest inner products of each query, largest first, and where they are.

        Args:
            queries: float32 [N, D], C-contiguous.
            k: 1 to the number of vectors and to what the device finds at most.

        Returns:
            Inner products, float32 [N, k], and rows of the vectors, int64 [N, k].

        Raises:
            RuntimeError: the device fails, or has no memory left to work in.
        """


class Device(Protocol):
    """A device; one thread alone may call it and what it holds."""

    @property
    def most(self) -> int:
        """The largest `k` that it finds."""

    def hold(self, vectors: Vector) -> Held:
        """Copy vectors, float32 [n, D], C-contiguous, into the device's memory.

        Raises:
            RuntimeError: the device fails, or its memory does not suffice.
        """


class DeviceThread:
    """The one thread that a device is called from.

    Args:
        opened: opens the device; called in that thread.

    Raises:
        RuntimeError: the device cannot be opened.
    """

    def __init__(self, opened: Callable[[], Device]) -> None:
        # A queue that may be put to from anywhere, also while Python collects garbage in the middle of a `put`.
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
        self.most = self.submit(lambda: self.device.most).result()

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

    def let_go(self, held: list[Held]) -> None:
        """Free objects on the device in the thread, and empty the list; from any thread, even after closing."""
        self._calls.put((held.clear, Future()))

    def close(self) -> None:
        """Finish what waits, and end the thread. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._calls.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (request := self._calls.get()) is not None:
            _answer(*request)
            del request  # else what it holds would live on until the next one


def _answer(call: Callable[[], Any], future: "Future[Any]") -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # it belongs to whoever waits
        # What the device holds must not live on in the frames, to be let go by another thread.
        traceback.clear_frames(error.__traceback__)
        future.set_exception(error)
