"""The real command with TLS, tokens, metrics and a JSON log, as it would run where others can reach it."""

import json
import ssl
import urllib.request
from pathlib import Path

import pytest

from imagekin import Client, Tls
from imagekin.errors import PermissionDeniedError, UnauthenticatedError
from tests.artifacts import tiny_artifact
from tests.e2e.pictures import COLOURS, picture
from tests.e2e.processes import run, running_server
from tests.serving.certificates import Authority

READER, WRITER = "reader-0123456789abcdef", "writer-0123456789abcdef"


def test_an_open_address_is_served_with_certificate_token_metrics_and_json_log(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", "ca")
    own = authority.issue("server")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        f'[[token]]\nname = "r"\nscope = "read"\ntoken = "{READER}"\n'
        f'[[token]]\nname = "w"\nscope = "write"\ntoken = "{WRITER}"\n'
    )
    tokens.chmod(0o600)
    port_file, metrics_file = tmp_path / "port", tmp_path / "metrics-port"
    options = {
        "--address": "0.0.0.0:0",
        "--tls-cert": own.certificate,
        "--tls-key": own.key,
        "--tokens-file": tokens,
        "--metrics-address": "0.0.0.0:0",
        "--port-file": port_file,
        "--metrics-port-file": metrics_file,
        "--log-format": "json",
    }
    flat = [str(part) for option in options.items() for part in option]
    model = tiny_artifact(tmp_path / "model.onnx")
    tls = Tls(ca=authority.certificate)
    with running_server(model, tmp_path / "data", *flat) as server:
        address = f"localhost:{port_file.read_text().strip()}"
        with Client(address, tls=tls, token=WRITER) as client:
            client.create_collection("shop")
        with Client(address, tls=tls, token=READER) as client:
            assert client.embed([picture(COLOURS["red"], 1)]).shape == (1, 16)
            with pytest.raises(PermissionDeniedError):
                client.create_collection("other")
        with Client(address, tls=tls) as client, pytest.raises(UnauthenticatedError):
            client.collections()
        ca = str(authority.certificate)
        assert run("health", "--address", address, "--ca", ca).returncode == 0, "a probe has no token"
        assert run("health", "--address", address).returncode == 1
        shown = run("collection", "list", "--address", address, "--ca", ca, "--token", READER)
        assert shown.returncode == 0, shown.stderr
        request = urllib.request.Request(f"https://localhost:{metrics_file.read_text().strip()}/metrics")
        request.add_header("Authorization", f"Bearer {READER}")
        context = ssl.create_default_context(cafile=ca)
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:  # noqa: S310
            assert b'imagekin_collection_items{collection="shop"} 0.0' in answer.read()
        assert server.stop() == 0
        assert [json.loads(line)["level"] for line in server.log] == ["info"]
