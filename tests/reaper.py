"""Ends what tests leave behind: every process that a test run has started, however the run itself ends.

    python -m tests.reaper MARK

It waits for the end of its standard input, which a test run holds open as long as it lives, and then kills every
process in whose environment the mark stands. That the mark is inherited makes servers that a shell started die as well.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

VARIABLE = "TEST_RUN_OF_IMAGEKIN"


def marked(mark: str) -> list[int]:
    """Return the processes, other than this one, that were started with the mark in their environment."""
    wanted, found = f"{VARIABLE}={mark}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        # A process may end meanwhile, or be another user's.
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def reap(mark: str) -> None:
    """Kill the marked processes, and those that they start meanwhile."""
    while pids := marked(mark):
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.read()
    reap(sys.argv[1])
