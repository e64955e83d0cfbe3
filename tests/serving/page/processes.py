"""A real server in a process of its own: the browser's event loop occupies this one."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import START_SECONDS, running_server


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        address: HOST:PORT of gRPC.
        port: of HTTP.
    """

    address: str
    port: int


@contextmanager
def serving(model: Path, data_dir: Path, *options: str) -> Iterator[Served]:
    """Run a server for the length of a block."""
    with running_server(model, data_dir, "--http-address", "127.0.0.1:0", *options) as server:
        until = time.monotonic() + START_SECONDS
        while not (found := re.search(r"https?://127\.0\.0\.1:(\d+)/", "".join(server.log))):
            assert time.monotonic() < until, "the server did not say where its page is"
            time.sleep(0.02)
        yield Served(server.address, int(found[1]))
