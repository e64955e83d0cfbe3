"""Runs pieces of work side by side on a CPU, each of them on one thread."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


class WorkerThreads:
    """As many threads as torch works with; what runs in one of them does not spread to the others.

    That suits long rows of small operations. Shared out between threads, each single one would end with a wait for the
    slowest of them, which on a busy machine is one that is not running at all.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def run(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Do all tasks, in any order, and return when they are done; raises what one of them raised.

        A single task has all of torch's threads.
        """
        threads = torch.get_num_threads()
        if threads == 1 or len(tasks) == 1:
            for task in tasks:
                task()
            return
        if self._pool is None:
            self._pool = _start(threads)
        for done in [self._pool.submit(task) for task in tasks]:
            done.result()


def _start(threads: int) -> ThreadPoolExecutor:
    """Start that many threads, each of which torch takes for the only one."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="one-thread")
    everyone = Barrier(threads)

    def begin() -> None:
        everyone.wait()  # so that no thread comes here twice
        torch.get_num_threads()  # a thread's first use of torch gives it the common number: let that be over
        torch.set_num_threads(1)

    for begun in [pool.submit(begin) for _ in range(threads)]:
        begun.result()
    torch.set_num_threads(threads)  # the common number, which theirs has replaced
    return pool
