"""Run a generator in its own thread, a bounded number of results ahead of its consumer."""

import threading
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """A generator that runs in its own thread.

    An exception of the generator is raised by `take`, after the results before it. After `abandon`, the generator is
    closed at its next result, and waiting threads on both sides wake up.

    Args:
        stage: the generator; it runs, and is closed, in the new thread only.
        depth: most results that wait to be taken.
        name: name of the thread.
    """

    def __init__(self, stage: Generator[T, None, None], depth: int, name: str) -> None:
        self._ready: deque[T] = deque()
        self._depth = depth
        self._changed = threading.Condition()
        self._finished = False
        self._error: BaseException | None = None
        # A daemon, so that a second Ctrl-C can end a process whose source or sink hangs.
        self._thread = threading.Thread(target=self._run, args=(stage,), name=name, daemon=True)
        self._thread.start()

    def take(self, *, wait: bool) -> T | None:
        """Return the next result; None when there are no more, or none is ready and `wait` is false."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._ready or self._finished)
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def abandon(self) -> None:
        """Stop the generator, and drop the results that have not been taken."""
        with self._changed:
            self._finished = True
            self._ready.clear()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _run(self, stage: Generator[T, None, None]) -> None:
        error: BaseException | None = None
        try:
            with closing(stage):
                for result in stage:
                    if not self._put(result):
                        return
        except BaseException as raised:  # raised by `take`
            error = raised
        with self._changed:
            self._error = error
            self._finished = True
            self._changed.notify_all()

    def _put(self, result: T) -> bool:
        """Add a result when there is room; False after `abandon`."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or len(self._ready) < self._depth)
            if self._finished:
                return False
            self._ready.append(result)
            self._changed.notify_all()
            return True
