"""Run a generator in its own thread, a bounded number of results ahead of its consumer."""

import threading
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """A generator that runs in its own thread.

    The generator's exception is raised here, after what it yielded before. Once abandoned, the generator is closed at
    its next result and there are no more; threads that wait on either side wake up.

    Args:
        stage: the generator; runs, and is closed, in the new thread only.
        depth: how many results may wait to be taken.
        name: of the thread.
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
        """End it: nobody wants more."""
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
        except BaseException as raised:  # handed to the reader, whatever it is
            error = raised
        with self._changed:
            self._error = error
            self._finished = True
            self._changed.notify_all()

    def _put(self, result: T) -> bool:
        """Hand over a result; False when nobody wants it."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or len(self._ready) < self._depth)
            if self._finished:
                return False
            self._ready.append(result)
            self._changed.notify_all()
            return True
