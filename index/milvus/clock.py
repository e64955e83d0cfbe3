"""Generate sequence numbers without coordination, for many servers that write to one collection.

A number is the time in microseconds and, in its last 12 bits, the writer: 63 bits together, enough until 2095. The
numbers of a writer are unique and ascending, and a replaced item's new number is greater than its old one. Numbers of
different writers follow their clocks, which have to be synchronised.
"""

import secrets
import threading
import time

_EPOCH = 1_704_067_200_000_000  # 2024 began, in microseconds since 1970
_WRITER_BITS = 12


class Clock:
    """A source of sequence numbers, for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writer = secrets.randbits(_WRITER_BITS)
        self._last = 0

    def take(self, count: int, above: int = 0) -> list[int]:
        """Return `count` ascending numbers, all greater than those returned before and than `above`."""
        with self._lock:
            now = time.time_ns() // 1000 - _EPOCH
            first = max(now, self._last + 1, (above >> _WRITER_BITS) + 1)
            self._last = first + count - 1
        return [(first + step) << _WRITER_BITS | self._writer for step in range(count)]
