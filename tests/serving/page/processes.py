"""A real server in a process of its own: the browser's event loop occupies this one."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import START_SECONDS, STOP_SECONDS, running_server


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        address: HOST:PORT of gRPC.
        port: of HTTP.
        data_dir: folder of its collections.
        kill: ends it at once.
        hang_up: has it load everything anew.
    """

    address: str
    port: int
    data_dir: Path
    kill: Callable[[], None]
    hang_up: Callable[[], None]


@contextmanager
def serving(model: Path, data_dir: Path, *options: str, port: int = 0) -> Iterator[Served]:
    """Run a server for the length of a block; port 0 takes a free one."""
    with running_server(model, data_dir, "--http-address", f"127.0.0.1:{port}", *options) as server:
        until = time.monotonic() + START_SECONDS
        while not (found := re.search(r"https?://127\.0\.0\.1:(\d+)/", "".join(server.log))):
            assert time.monotonic() < until, "the server did not say where its page is"
            time.sleep(0.02)

        def kill() -> None:
            server.process.kill()
            server.process.wait(STOP_SECONDS)

        yield Served(server.address, int(found[1]), data_dir, kill, lambda: server.process.send_signal(signal.SIGHUP))
