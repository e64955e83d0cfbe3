"""Give searches priority over bulk writes and background work.

A thread that becomes runnable while every processor is busy waits for the next tick of one of them, 4 ms on many a
server: several times what a search takes. So while there are searches, bulk writes are worked on one after the other,
instead of getting in one another's way as well; and whoever works for long offers its processor every millisecond or
so. Without searches they share commits, and offer nothing: on a machine that other processes keep busy, whoever offers
its processor gets less than a fair share of it.
"""

import contextlib
import os
import threading
import time

# Items from which on a write is a bulk write.
BULK_FROM = 32
# Searches that come so soon one after the other are as good as one.
MOMENT = 0.1


class Turns:
    """The search priority of one collection; any number of threads may use it."""

    def __init__(self) -> None:
        self._until = 0.0
        self._bulk = threading.Lock()

    @property
    def is_searched(self) -> bool:
        """True while there are searches."""
        return time.monotonic() < self._until

    def note_search(self) -> None:
        """Take note that a search begins."""
        self._until = time.monotonic() + MOMENT

    def give_way(self) -> None:
        """Yield the processor to a waiting thread, while there are searches."""
        if not self.is_searched:
            return
        if hasattr(os, "sched_yield"):
            os.sched_yield()
        else:
            time.sleep(0)

    def of_write(self, items: int) -> contextlib.AbstractContextManager[object]:
        """Return the context manager to run a write of so many items in."""
        return self._bulk if items >= BULK_FROM and self.is_searched else contextlib.nullcontext()
