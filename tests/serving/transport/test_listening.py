"""A server listens on a unix socket as on a port, and asks old connections to be made anew."""

import socket
import stat
import time
from pathlib import Path

import pytest

from imagekin import Client
from imagekin.errors import FailedPreconditionError
from imagekin.serving.settings import Settings
from imagekin.serving.transport.listening import make_way
from tests.serving import http2
from tests.serving.process import started
from tests.serving.running import png, running


def test_a_unix_socket_serves_its_owner_and_group_and_is_removed(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "imagekin.sock"
    with started(f"models=(('tiny', Path({str(model_path)!r})),), address='unix:{path}'") as process:
        assert process.line() == f"imagekin: serving on unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
        with Client(f"unix:{path}") as client:
            assert client.embed([png(1)]).shape == (1, 16)
        with pytest.raises(FailedPreconditionError, match="a server listens there"):
            make_way(path)
        process.popen.terminate()
        assert process.popen.wait(30) == 0
        assert not path.exists()


def test_the_socket_of_a_server_that_was_killed_is_no_hindrance(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "imagekin.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with started(f"models=(('tiny', Path({str(model_path)!r})),), address='unix:{path}'") as process:
        assert process.line() == f"imagekin: serving on unix:{path}"


def test_a_file_is_never_taken_for_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(FailedPreconditionError, match="another file"):
        make_way(path)
    assert path.read_text() == "data"
    with pytest.raises(FailedPreconditionError, match="no such folder"):
        make_way(tmp_path / "missing" / "socket")


def test_the_socket_that_another_program_uses_is_left_to_it(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        busy.bind(str(tmp_path / "busy"))
        busy.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "busy"))
            # No more connections are taken until that one is.
            with pytest.raises(FailedPreconditionError, match="a server listens there"):
                make_way(tmp_path / "busy")
        other.bind(str(tmp_path / "other"))
        with pytest.raises(FailedPreconditionError, match="wrong type"):
            make_way(tmp_path / "other")


def test_an_old_connection_is_told_to_go_and_its_client_notices_nothing(model_path: Path) -> None:
    settings = Settings(models=(("tiny", model_path),), address="127.0.0.1:0", max_connection_age=0.5)
    with running(settings) as server:
        address = f"127.0.0.1:{server.server.port}"
        with http2.connected(address) as connection:
            connection.sendall(http2.hello())
            received = b""
            while part := connection.recv(65_536):
                received += part
                if http2.GOAWAY in {kind for kind, _, _ in http2.frames(received)}:
                    break
            assert http2.GOAWAY in {kind for kind, _, _ in http2.frames(received)}
        with Client(address) as client:
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                assert client.embed([png(1)]).shape == (1, 16)
