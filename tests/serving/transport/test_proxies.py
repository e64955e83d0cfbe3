"""The configuration of docs/how-to/proxies.md works: nginx passes calls, large batches, streams, and whole photos."""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imagekin import Client, Item, Tls
from tests.artifacts import tiny_artifact
from tests.e2e.processes import running_server
from tests.serving.certificates import Authority
from tests.serving.process import ROOT
from tests.serving.running import png
from tests.waiting import wait_until

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed here: apt-get install nginx-light")


def documented() -> str:
    """Return nginx's configuration as the page gives it."""
    page = (ROOT / "docs" / "how-to" / "proxies.md").read_text(encoding="utf-8")
    block = re.search(r"## nginx\n\n((?:    .*\n|\n)+)", page)
    assert block is not None
    return re.sub(r"^    ", "", block[1], flags=re.MULTILINE)


def free_port() -> int:
    """Return a port that nobody listens on; nginx itself cannot choose one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[str, Tls]]:
    """A server behind nginx: the address of nginx, and the authority of its certificate."""
    assert NGINX is not None
    authority = Authority(tmp_path / "certificates", "authority")
    pair = authority.issue("nginx")
    port = free_port()
    model = tiny_artifact(tmp_path / "model.onnx", size=8)
    with running_server(model, tmp_path / "data") as server:
        text = documented()
        for old, new in (
            ("server 10.0.0.11:50051;", f"server {server.address};"),
            ("    server 10.0.0.12:50051;\n", ""),
            ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl http2;"),
            ("/etc/nginx/imagekin.crt", str(pair.certificate)),
            ("/etc/nginx/imagekin.key", str(pair.key)),
        ):
            assert old in text, old
            text = text.replace(old, new)
        # In place of `http2 on`, which nginx knows since 1.25.1.
        text = re.sub(r"http2 on;.*", "", text)
        folders = "".join(
            f"{kind}_temp_path {tmp_path};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration = tmp_path / "nginx.conf"
        configuration.write_text(
            f"daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log;\n"
            f"events {{}}\nhttp {{ access_log off; {folders}\n{text}\n}}\n"
        )
        tested = [NGINX, "-p", str(tmp_path), "-c", str(configuration), "-e", str(tmp_path / "error.log")]
        with subprocess.Popen(tested, stderr=subprocess.PIPE) as nginx:
            try:
                wait_until(lambda: nginx.poll() is not None or reachable(port))
                assert nginx.poll() is None, nginx.stderr and nginx.stderr.read().decode()
                yield f"localhost:{port}", Tls(ca=authority.certificate)
            finally:
                nginx.send_signal(signal.SIGQUIT)
                try:
                    nginx.wait(20)
                except subprocess.TimeoutExpired:
                    nginx.kill()


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_calls_and_batches_of_many_megabytes_pass_through_nginx(proxied: tuple[str, Tls]) -> None:
    address, tls = proxied
    with Client(address, tls=tls) as client:
        small = client.embed([png(1)])
        # Far more than the megabyte that nginx takes by itself: a picture with bytes behind its end.
        large = client.embed([png(1) + bytes(5 * 2**20)] * 4)
        assert np.allclose(large, np.repeat(small, 4, axis=0))
        client.create_collection("shop")
        client.upsert("shop", [Item(f"k{number}", image=png(number)) for number in range(300)])
        assert client.count("shop") == 300
