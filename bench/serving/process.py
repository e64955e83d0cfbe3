"""Start, await, measure and end server processes for `bench/serve.py`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.serving.load import Load, Outcome

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """A running server.

    Attributes:
        name: what it is called in the table.
        address: `HOST:PORT`.
        pid: its first process.
    """

    name: str
    address: str
    pid: int

    def pids(self) -> tuple[int, ...]:
        """Return its process and all below it."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError):
                    text = (entry / "stat").read_text()
                    parents.setdefault(int(text[text.rindex(")") + 2 :].split()[1]), []).append(int(entry.name))
        found, waiting = [], [self.pid]
        while waiting:
            found.append(waiting.pop())
            waiting += parents.get(found[-1], [])
        return tuple(found)


def environment() -> dict[str, str]:
    """Return this process's environment, from which the project's own modules are found."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(name: str, command: Sequence[str], port: int = 0, port_file: Path | None = None) -> Iterator[Served]:
    """Run a server for the length of a block; it is ready once its port file exists or its port answers.

    Raises:
        RuntimeError: it ended, or was not ready in time; the message has the last line of its standard error.
    """
    log = ROOT / "build" / f"bench-{name.replace(' ', '-').replace('/', '-')}-{os.getpid()}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment(), stdout=errors, stderr=errors, start_new_session=True, cwd=log.parent
        )
    try:
        end = time.monotonic() + _START_SECONDS
        while not _ready(port, port_file):
            if process.poll() is not None or time.monotonic() > end:
                lines = log.read_text(errors="replace").strip().splitlines() or ["no word"]
                raise RuntimeError(f"{name} did not start: {lines[-1][:200]}")
            time.sleep(0.02)
        found = int(port_file.read_text()) if port_file is not None else port
        yield Served(name, f"127.0.0.1:{found}", process.pid)
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.unlink(missing_ok=True)


def imagekin(folder: Path, name: str, arguments: Sequence[str]) -> contextlib.AbstractContextManager[Served]:
    """Run `imagekin serve` with these arguments for the length of a block."""
    port_file = folder / f"{name}.port"
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "imagekin", "serve", "--address", "127.0.0.1:0", "--port-file", str(port_file)]
    return started(name, [*command, *arguments], port_file=port_file)


def generate(load: Load) -> Outcome:
    """Run the load generator in its own process and return its outcome."""
    command = [sys.executable, "-m", "bench.serving.load"]
    done = subprocess.run(
        command, input=json.dumps(asdict(load)), text=True, stdout=subprocess.PIPE, check=True, env=environment()
    )
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def _ready(port: int, port_file: Path | None) -> bool:
    if port_file is not None:
        return port_file.exists()
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
