"""The server as a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import resource, sys
from pathlib import Path
# As high as can be, so that the server has nothing to raise and to tell.
resource.setrlimit(resource.RLIMIT_NOFILE, 2 * resource.getrlimit(resource.RLIMIT_NOFILE)[1:])
from imagekin.serving.server import serve
from imagekin.serving.settings import Settings
{prelude}
serve(Settings({arguments}))
"""
# Holds every inference while a file is there, having made another one that says so.
HOLDING = """
import time
from imagekin.encoder.runtime.session import Encoder
infer = Encoder.run
def held(encoder, pixels):
    if Path({hold!r}).exists():
        Path({holds!r}).touch()
    while Path({hold!r}).exists():
        time.sleep(0.005)
    return infer(encoder, pixels)
Encoder.run = held
"""


@dataclass(frozen=True)
class Hold:
    """Keeps a server's inference waiting until the test lets go.

    Attributes:
        folder: for two files.
    """

    folder: Path

    @property
    def prelude(self) -> str:
        """The program that the server runs first."""
        return HOLDING.format(hold=str(self.folder / "hold"), holds=str(self.folder / "holds"))

    def begin(self) -> None:
        """Hold every inference from now on."""
        (self.folder / "hold").touch()

    def wait(self) -> None:
        """Return once an inference is held."""
        wait_until((self.folder / "holds").exists)

    def release(self) -> None:
        """Let all go on."""
        (self.folder / "hold").unlink()


@dataclass
class Process:
    """A server process, the lines of its standard error, and its port."""

    popen: subprocess.Popen[str]
    lines: "Queue[str | None]"
    port: int = 0

    def line(self) -> str | None:
        """Return the next line of standard error, None at its end."""
        return self.lines.get(timeout=60)

    def rest(self) -> list[str]:
        """Return the lines of standard error up to its end."""
        return list(iter(self.line, None))


@contextmanager
def started(arguments: str, prelude: str = "") -> Iterator[Process]:
    """Start a server process with the given arguments of `Settings`; it is killed at the end of the block.

    Args:
        arguments: of `Settings`.
        prelude: a program that it runs first.
    """
    program = PROGRAM.format(arguments=arguments, prelude=prelude)
    popen = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    process = Process(popen, Queue())

    def read() -> None:
        assert popen.stderr is not None
        for line in popen.stderr:
            process.lines.put(line.rstrip("\n"))
        process.lines.put(None)

    reader = Thread(target=read)
    reader.start()
    try:
        yield process
    finally:
        popen.kill()
        popen.wait(60)
        reader.join(60)
        assert popen.stderr is not None
        popen.stderr.close()


@contextmanager
def serving(arguments: str, prelude: str = "") -> Iterator[Process]:
    """Start a server process on a free port and wait until it says that it is ready."""
    with started(f"address='127.0.0.1:0', {arguments}", prelude) as process:
        first = process.line()
        match = re.fullmatch(r"imagekin: serving on 127\.0\.0\.1:([0-9]+)", first or "")
        assert match is not None, [first, *process.rest()]
        process.port = int(match[1])
        yield process
