"""Show a progress bar on standard error, if that is a terminal, for work of more than a second.

Of several processes, only the first one shows it.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imagekin.machine import is_first

Advance = Callable[..., None]
"""`advance(n, note="")` adds n to the work done; the note is shown at the end of the bar."""

_SHOW_AFTER_SECONDS = 1.0


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Advance]:
    """Yield a function that reports work done; with `total` None, the bar has no end."""
    if not sys.stderr.isatty() or not is_first():
        yield lambda count, note="": None
        return
    bar = _Bar(description, total)
    try:
        yield bar.advance
    finally:
        bar.stop()


class _Bar:
    """A progress bar that appears after its first second, so that quick work leaves the terminal alone."""

    def __init__(self, description: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(description, total=total, note="")
        self._started = time.monotonic()
        self._shown = False

    def advance(self, count: int, note: str = "") -> None:
        self._progress.update(self._task, advance=count, note=note)
        if not self._shown and time.monotonic() - self._started > _SHOW_AFTER_SECONDS:
            self._progress.start()
            self._shown = True

    def stop(self) -> None:
        if self._shown:
            self._progress.stop()
