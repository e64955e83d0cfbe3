"""HTTP on a Unix socket: for its owner and group, beside gRPC's, and gone with its server."""

import http.client
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from tests.serving.process import started
from tests.serving.running import png


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


def test_a_socket_serves_its_owner_and_group_beside_grpc_and_is_removed(model_path: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "http.sock", tmp_path / "grpc.sock"
    # A server that was killed has left one.
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    models = f"models=(('tiny', Path({str(model_path)!r})),)"
    with started(f"{models}, address='unix:{other}', http_address='unix:{path}'") as process:
        assert process.line() == f"imagekin: serving on unix:{other}"
        assert process.line() == f"imagekin: http on unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
        connection = UnixConnection(path)
        connection.request("POST", "/v1/embed", png(1), {"content-type": "image/png"})
        assert connection.getresponse().status == 200
        connection.close()
        with started(f"{models}, address='127.0.0.1:0', http_address='unix:{path}'") as second:
            assert "a server listens there" in "".join(filter(None, [second.line(), *second.rest()]))
            assert second.popen.wait(30) != 0
        if curl := shutil.which("curl"):
            command = [curl, "-s", "--unix-socket", str(path), "http://localhost/healthz"]
            assert subprocess.run(command, capture_output=True, timeout=30, check=True).stdout == b"ok\n"
        process.popen.terminate()
        assert process.popen.wait(30) == 0
        assert not path.exists()


def test_a_file_is_never_taken_for_a_socket(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    models = f"models=(('tiny', Path({str(model_path)!r})),)"
    with started(f"{models}, address='127.0.0.1:0', http_address='unix:{path}'") as process:
        assert "another file" in "".join(filter(None, [process.line(), *process.rest()]))
        assert process.popen.wait(30) != 0
    assert path.read_text() == "data"
