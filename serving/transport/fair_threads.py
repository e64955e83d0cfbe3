"""Run the work of calls in threads, in which their callers take turns."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from imagekin.serving.transport.callers import CALLER
from imagekin.serving.transport.turns import Turns

P = ParamSpec("P")
R = TypeVar("R")


class FairThreads(Executor):
    """Run what is submitted in threads: callers take turns, and so do the connections of each. Thread-safe.

    Who submits is told by `CALLER`. What has begun is not interrupted, so that a caller waits for as much of others as
    there are threads, however much they have submitted.

    Args:
        workers: threads.
        name: their names' beginning.
    """

    def __init__(self, workers: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._lock = threading.Lock()
        # Every call counts as much as any other: what it takes is known only once it is done.
        self._waiting: Turns[tuple[Future[Any], Callable[[], Any]]] = Turns(1.0)

    def submit(self, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run a call when its caller has its turn; return its future."""
        future: Future[R] = Future()
        with self._lock:
            self._waiting.push(CALLER.get()[:2], (future, partial(call, *args, **kwargs)), 1.0)
        # A place in the queue of the threads, which is taken by whoever has the turn then.
        self._threads.submit(self._run_next)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the threads once all that was submitted has run, or with `cancel_futures` all that has begun."""
        if cancel_futures:
            with self._lock:
                for future, _ in self._waiting:
                    future.cancel()
        self._threads.shutdown(wait)

    def _run_next(self) -> None:
        with self._lock:
            (future, call), _ = self._waiting.pop()
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
            # Else the traceback would refer to this frame, and the frame to the future that holds the error.
            del future
        else:
            future.set_result(result)
