"""Images that wait to be decoded and inferred: small ones and large ones apart, decoded by threads of their own.

Decoding cannot be interrupted. Were large pictures decoded by the same threads as small ones, a caller with a few of
them would hold all threads at once, for seconds. And the threads that decode them give way to all others, so that what
is quick stays so on the same processors.
"""

import os
import sys
import threading
from collections import deque
from queue import SimpleQueue

from imagekin.serving.embedding.image_jobs import DecodedImage, File
from imagekin.serving.transport.turns import Path, Turns

# Longer than many small requests take, which are so served one after the other, and too short to hold others up.
_TURN_SECONDS = 0.1
# Added to the niceness of threads: beside another thread they get a quarter of a processor, and all of an idle one.
_NICER = 5


class Lane:
    """Images that wait, and the threads that wait for files. Call all but `wait` with the pipeline's lock held.

    Attributes:
        waiting: number of files.
        decoded: images that wait for inference.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.decoded: deque[DecodedImage] = deque()
        self._files: Turns[File] = Turns(_TURN_SECONDS)
        self._idle = 0
        # An idle thread waits for a token; `wake` puts one in for each thread that it wakes.
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def push(self, path: Path, file: File, cost: float) -> None:
        """Add a file of a caller."""
        self._files.push(path, file, cost)
        self.waiting += 1

    def pop(self) -> File:
        """Take the file whose caller has the turn; there must be one."""
        self.waiting -= 1
        return self._files.pop()[0]

    def files(self) -> list[File]:
        """Return the files, in no particular order."""
        return list(self._files)

    def wake(self, count: int) -> None:
        """Wake up to `count` idle threads."""
        count = min(count, self._idle)
        self._idle -= count
        for _ in range(count):
            self._tokens.put(None)

    def rest(self) -> None:
        """Count this thread as idle; it must `wait` then, without the lock."""
        self._idle += 1

    def wait(self) -> None:
        """Wait until this thread is woken."""
        self._tokens.get()


def give_way() -> None:
    """Leave the processor to other threads first, from now on; for threads that are busy for long at a time."""
    if sys.platform == "linux":  # elsewhere niceness is that of the process
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + _NICER, 19))
