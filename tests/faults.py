"""Fails, or kills the process, at the n-th call of the system that a piece of work makes."""

import builtins
import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from imagekin import files
from imagekin.errors import ImagekinError

_CALLS = [
    *((os, name) for name in ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "scandir", "listdir")),
    *((os, name) for name in ("write", "pwrite", "sendfile")),
    (files, "_exchange"),
    (io, "open"),
    (builtins, "open"),
]
_KILLED = 77


class Counter:
    """Counts calls of the system and does something at the `at`-th."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.left = at
        self.act = act
        self.process = os.getpid()

    @property
    def happened(self) -> bool:
        """Whether the call was reached."""
        return self.left < 0

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a call that is counted."""

        def counted(*arguments: Any, **options: Any) -> Any:
            if os.getpid() == self.process:
                self.left -= 1
                if self.left == -1:
                    self.act()
            return call(*arguments, **options)

        return counted


@contextlib.contextmanager
def _counting(counter: Counter) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, name in _CALLS:
            stack.enter_context(mock.patch.object(module, name, counter.wrapped(getattr(module, name))))
        yield


def failures(work: Callable[[], object], prepare: Callable[[], None], number: int = errno.ENOSPC) -> Iterator[int]:
    """Run `work` again and again, each time with another call failing, and yield after each failure.

    Args:
        work: makes the calls.
        prepare: makes the state that `work` finds, each time anew.
        number: errno of the failures.

    Yields:
        Which call failed. The work itself may have failed or not.
    """
    for at in range(10_000):
        prepare()

        def fail() -> None:
            raise OSError(number, os.strerror(number))

        counter = Counter(at, fail)
        with contextlib.suppress(OSError, ImagekinError), _counting(counter):
            work()
        if not counter.happened:
            return
        yield at


def kills(work: Callable[[], object], prepare: Callable[[], None]) -> Iterator[int]:
    """Run `work` in processes that are killed at each of its calls in turn, and yield after each death."""
    for at in range(10_000):
        prepare()
        child = os.fork()
        if not child:
            counter = Counter(at, lambda: os._exit(_KILLED))
            try:
                with _counting(counter):
                    work()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != _KILLED:
            return
        yield at
