"""Floods that are packed small cost a server neither memory nor its answers, whatever method they are for."""

import gzip
import re
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from imagekin import Client
from imagekin.serving.server import SERVICES
from imagekin.serving.services.reflection import REFLECTION
from tests.artifacts import tiny_artifact
from tests.e2e.processes import Server, running_server
from tests.serving import http2
from tests.serving.running import png

# 60 KB on the wire, which fit into a stream's first window.
ZEROS = gzip.compress(bytes(60 * 2**20))
AT_ONCE = 10
MOST_MEGABYTES = 64
TOKEN = "a token of more than twenty letters".replace(" ", "-")


def peak_megabytes(server: Server) -> float:
    """Return the most memory that the process has had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


@pytest.mark.parametrize("protected", [True, False], ids=["tokens", "open"])
def test_packed_zeros_to_any_method_cost_next_to_nothing(tmp_path: Path, protected: bool) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[[token]]\nname = "me"\nscope = "read"\ntoken = "{TOKEN}"\n')
    tokens.chmod(0o600)
    options = ("--tokens-file", str(tokens)) if protected else ()
    model = tiny_artifact(tmp_path / "model.onnx", size=8)
    pool = descriptor_pool.Default()
    methods = [
        f"/{name}/{method.name}"
        for name in (*SERVICES, "grpc.health.v1.Health", *REFLECTION)
        for method in pool.FindServiceByName(name).methods
    ]
    # Reload would answer, as it does.
    methods.remove("/imagekin.v1.Admin/Reload")
    with running_server(model, tmp_path / "data", *options) as server:
        with Client(server.address, token=TOKEN if protected else None) as client:
            expected = client.embed([png(1)])
            before = peak_megabytes(server)
            for method in methods:
                if method.endswith("Watch"):
                    continue
                assert len(http2.flood(server.address, method, ZEROS, AT_ONCE)) == AT_ONCE, method
            growth = peak_megabytes(server) - before
            assert (client.embed([png(1)]) == expected).all()
        assert growth < MOST_MEGABYTES
        assert server.stop() == 0
        assert not [line for line in server.log if "Traceback" in line]
