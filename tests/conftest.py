"""What holds for every test: it speaks to no server but its own, and no process that it starts outlives the run."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.reaper import VARIABLE

# Other work on the machine makes an example slow; that is no fault of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parents[1]
# The port that a user's own server listens on.
DEFAULT_PORT = 50051


def _refuse_the_users_server(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.bind", "socket.connect"):
        address = arguments[1]
        if isinstance(address, tuple) and address[1] == DEFAULT_PORT:
            raise AssertionError(f"a test uses port {DEFAULT_PORT}, which may be a user's server: take a free one")


sys.addaudithook(_refuse_the_users_server)


@pytest.fixture(scope="session", autouse=True)
def _nothing_outlives_the_run() -> Iterator[None]:
    """Start a process that kills what is left of this one's children when it ends, be it by SIGKILL."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "tests.reaper", mark]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True):
        os.environ[VARIABLE] = mark
        yield
        del os.environ[VARIABLE]


@pytest.fixture(autouse=True)
def _no_channel_to_the_users_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse channels of gRPC, whose sockets Python does not see, to the port that a user's server has."""
    import grpc

    for module in (grpc, grpc.aio):
        for name in ("insecure_channel", "secure_channel"):
            monkeypatch.setattr(module, name, _guarded(getattr(module, name)))


def _guarded(make: Any) -> Any:
    def guarded(target: str, *arguments: Any, **options: Any) -> Any:
        assert not target.endswith(f":{DEFAULT_PORT}"), f"a test calls {target}, which may be a user's server"
        return make(target, *arguments, **options)

    return guarded
