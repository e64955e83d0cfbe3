"""Work of more than a second draws a bar, on a terminal only."""

import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = """
import time
from imagekin.progress import progress
with progress("counting", 20) as advance:
    for _ in range(20):
        time.sleep({pause})
        advance(1, note="on and on")
"""


def drawn_on_a_terminal(pause: float) -> str:
    ours, theirs = pty.openpty()
    code = WORK.format(pause=pause)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=environment)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        drawn += part
    os.close(ours)
    assert process.wait() == 0
    return drawn.decode()


def test_more_than_a_second_of_work_draws_a_bar() -> None:
    drawn = drawn_on_a_terminal(0.1)
    assert "counting" in drawn
    assert "on and on" in drawn
    assert "/20" in drawn


def test_quick_work_leaves_the_terminal_alone() -> None:
    assert drawn_on_a_terminal(0.0) == ""


def test_nothing_is_drawn_elsewhere() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = WORK.format(pause=0.06)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stderr == done.stdout == b""
