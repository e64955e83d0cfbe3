"""Starts and stops the real `imagekin` processes that the end-to-end tests talk to."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

IMAGEKIN = [sys.executable, "-m", "imagekin"]
START_SECONDS = 60
STOP_SECONDS = 30


@dataclass
class Server:
    """A running `imagekin serve`.

    Attributes:
        process: the process itself.
        address: HOST:PORT that it listens on.
        log: everything that it has written on standard error so far, line by line.
    """

    process: subprocess.Popen[str]
    address: str
    log: list[str] = field(default_factory=list)

    def resident_megabytes(self) -> float:
        """Return the resident memory of the process in MiB."""
        return resident_megabytes(self.process.pid)

    def stop(self) -> int:
        """Ask it to finish as an operator would, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def resident_megabytes(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


@contextlib.contextmanager
def running_server(model: Path, data_dir: Path, *options: str) -> Iterator[Server]:
    """Start `imagekin serve` on a free port, and kill what is left of it afterwards."""
    command = [*IMAGEKIN, "serve", "--model", str(model), "--data-dir", str(data_dir), "--address", "127.0.0.1:0"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=quiet_environment())
    server = Server(process, "")
    ready = threading.Event()

    def follow() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.log.append(line)
            if match := re.search(r"serving on (\S+:\d+)", line):
                server.address = match[1]
                ready.set()
        ready.set()

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    try:
        assert ready.wait(START_SECONDS), "the server did not say that it is ready"
        assert server.address, f"the server ended: {''.join(server.log)}"
        yield server
    finally:
        process.kill()
        process.wait(STOP_SECONDS)
        reader.join(STOP_SECONDS)
        assert process.stderr is not None
        process.stderr.close()


def run(
    *arguments: str, cwd: Path | None = None, timeout: float = 300, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `imagekin ARGUMENTS`, with settings in its environment, to its end, whatever its exit status."""
    return subprocess.run(
        [*IMAGEKIN, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env=quiet_environment() | dict(settings or {}),
    )


def quiet_environment() -> dict[str, str]:
    """Return this process's environment without settings of the user's own, and with the project importable."""
    root = str(Path(__file__).resolve().parents[2])
    own = {name: value for name, value in os.environ.items() if not name.startswith("IMAGEKIN_")}
    return own | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
