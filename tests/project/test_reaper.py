"""A test run that is killed takes every process with it that it has started, and those that these have started."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.reaper import VARIABLE, marked

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import os, subprocess, sys, time
mark = "a-run-that-is-killed"
subprocess.Popen([sys.executable, "-m", "tests.reaper", mark], stdin=subprocess.PIPE, start_new_session=True)
os.environ["{variable}"] = mark
subprocess.Popen(["bash", "-c", "sleep 600 & wait"], start_new_session=True)
print("started", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_nothing_outlives_a_run_that_is_killed() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN.format(variable=VARIABLE)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "started\n"
        end = time.monotonic() + 60
        while len(marked("a-run-that-is-killed")) < 2:  # the shell and what it started
            assert time.monotonic() < end
            time.sleep(0.02)
        run.kill()
    while marked("a-run-that-is-killed"):
        assert time.monotonic() < end
        time.sleep(0.02)
