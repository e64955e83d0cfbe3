"""Show the progress of runs over many images."""

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagekin.index.ingest.report import Progress
    from imagekin.progress import Advance

_WINDOW_SECONDS = 10.0


def pace(advance: "Advance") -> "Progress":
    """Convert running totals to steps of a progress bar, with the rate of the last ten seconds."""
    done = 0
    marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def tell(seen: int, total: int | None, failed: int) -> None:
        nonlocal done
        now = time.monotonic()
        marks.append((now, seen))
        while len(marks) > 2 and marks[0][0] < now - _WINDOW_SECONDS:
            marks.popleft()
        seconds = now - marks[0][0]
        rate = f"{(seen - marks[0][1]) / seconds:,.0f}/s" if seconds > 0 else ""
        advance(seen - done, f"{rate}, {failed:,} failed" if failed else rate)
        done = seen

    return tell
