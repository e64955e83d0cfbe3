"""Wait for what has to come; how long that takes is nobody's business, and the limit only ends what hangs."""

import time
from collections.abc import Callable

PATIENCE = 60.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once a condition holds.

    Raises:
        AssertionError: it has not come to hold.
    """
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.005)
