"""Limit the rate of calls: a bucket that fills at a steady rate and holds a second's worth."""

import time
from collections.abc import Callable

from imagekin.errors import ResourceExhaustedError


class Rate:
    """Rate of one token's calls. For the event loop only.

    Args:
        per_second: calls per second; as many, and at least one, may come at once.
        clock: returns the time in seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = max(per_second, 1.0)
        self._clock = clock
        self._left = self._most
        self._since = clock()

    def take(self) -> None:
        """Count a call.

        Raises:
            ResourceExhaustedError: it comes too soon; the error says after how long it would not.
        """
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._since) * self._per_second)
        self._since = now
        if self._left < 1:
            wait = (1 - self._left) / self._per_second
            raise ResourceExhaustedError(
                f"the token may make {self._per_second:g} calls a second: try again later", retry_after=wait
            )
        self._left -= 1
