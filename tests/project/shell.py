"""Run the commands of README and docs as a reader's shell would."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.processes import quiet_environment


def run_bash(script: str, folder: Path, settings: Mapping[str, str], *, traced: bool = False) -> tuple[int, str]:
    """Run a script, stopping at the first failure; return its status and what it said.

    Args:
        script: the commands.
        folder: where they run.
        settings: what their environment has beside the tests' own, without the user's settings.
        traced: whether each command is said before it runs.
    """
    environment = quiet_environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | dict(settings)
    end = "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n"
    process = subprocess.Popen(
        ["bash", "-euxo" if traced else "-euo", "pipefail", "-c", end + script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=900)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, said
