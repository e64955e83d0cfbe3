"""Give searches priority over bulk writes and background work.

A thread that becomes runnable while every processor is busy waits for the next scheduler tick, 4 ms on many servers:
several times the duration of a search. While a collection is being searched, its bulk writes therefore run one at a
time, and threads with long work yield the processor about every millisecond. Without searches, bulk writes run
concurrently to share commits, and nothing yields: on a machine that other processes keep busy, a thread that yields
gets less than its fair share.
"""

import contextlib
import os
import threading
import time

# Writes of at least this many items are bulk writes.
BULK_FROM = 32
# Searching is taken to go on for this long after the last search.
ACTIVE_SECONDS = 0.1


class SearchPriority:
    """The search priority of one collection; any number of threads may use it."""

    def __init__(self) -> None:
        self._until = 0.0
        self._bulk = threading.Lock()

    @property
    def is_active(self) -> bool:
        """True while there are searches."""
        return time.monotonic() < self._until

    def note_search(self) -> None:
        """Note that a search begins."""
        self._until = time.monotonic() + ACTIVE_SECONDS

    def yield_processor(self) -> None:
        """Yield the processor to a waiting thread, while there are searches."""
        if not self.is_active:
            return
        if hasattr(os, "sched_yield"):
            os.sched_yield()
        else:
            time.sleep(0)

    def writing(self, items: int) -> contextlib.AbstractContextManager[object]:
        """Return the context manager to run a write of so many items in."""
        return self._bulk if items >= BULK_FROM and self.is_active else contextlib.nullcontext()
