"""Report an error once among several processes (torchrun). Nothing here imports torch."""

import time

from imagekin.errors import FailedPreconditionError, ImagekinError
from imagekin.machine import is_first

HEAD_START_SECONDS = 1.0
"""The others give the first process so long to speak: when all fail alike, it is the one that does."""


class ElsewhereError(FailedPreconditionError):
    """Another process of this training failed and reports it: this one ends silently."""


class OneProcessError(FailedPreconditionError):
    """A process other than the first failed alone, so it has to report its error."""


def must_report(error: ImagekinError) -> bool:
    """Return whether this process has to report the error, so that it is reported once."""
    return not isinstance(error, ElsewhereError) and (is_first() or isinstance(error, OneProcessError))


def wait_for_report() -> None:
    """Wait for another process to report its error: torchrun ends all of them as soon as one has ended."""
    time.sleep(5 * HEAD_START_SECONDS)
