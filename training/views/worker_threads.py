"""Run tasks side by side on a CPU, each on one thread."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


class WorkerThreads:
    """As many threads as torch uses; a task in one of them does not spread to the others.

    This suits long sequences of small operations. Divided among threads, each operation would wait for the slowest
    thread, which on a busy machine may not be running at all.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def run(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run all tasks, in any order, and return when they are done; raises what one of them raised.

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
    """Start that many threads, in each of which torch uses a single thread."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="one-thread")
    everyone = Barrier(threads)

    def begin() -> None:
        everyone.wait()  # so that each thread runs this once
        torch.get_num_threads()  # a thread's first use of torch sets it to the common number, so do that first
        torch.set_num_threads(1)

    for begun in [pool.submit(begin) for _ in range(threads)]:
        begun.result()
    torch.set_num_threads(threads)  # restore the common number, which theirs has replaced
    return pool
