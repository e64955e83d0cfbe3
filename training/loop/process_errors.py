"""Which of several processes (torchrun) says what; nothing here imports torch."""

import time

from imagekin.errors import FailedPreconditionError, ImagekinError
from imagekin.machine import is_first

HEAD_START_SECONDS = 1.0
"""The others give the first process so long to speak: when all fail alike, it is the one that does."""


class ElsewhereError(FailedPreconditionError):
    """Another process of this training failed, and says why: this one ends without a word."""


class OneProcessError(FailedPreconditionError):
    """A process that is not the first failed alone, so it has to say why."""


def has_to_say(error: ImagekinError) -> bool:
    """Say whether it is up to this process to print the error, so that it is printed once."""
    return not isinstance(error, ElsewhereError) and (is_first() or isinstance(error, OneProcessError))


def stand_back() -> None:
    """Wait while another process says what went wrong: torchrun ends all of them as soon as one has ended."""
    time.sleep(5 * HEAD_START_SECONDS)
