"""The server as a process: drain, reload, and certificates over HTTP."""

import contextlib
import http.client
import re
import signal
import ssl
import threading
from pathlib import Path

import pytest

from imagekin.serving.settings import Settings
from tests.serving.certificates import Authority
from tests.serving.http.calling import Answer, calling
from tests.serving.process import Hold, Process, serving
from tests.serving.running import png, running
from tests.waiting import wait_until

READER, OTHER = "reader-0123456789abcdef", "other-0123456789abcdef"


def http_port(process: Process) -> int:
    """Return the port that the server's second line says."""
    match = re.fullmatch(r"imagekin: http://127\.0\.0\.1:([0-9]+)/", process.line() or "")
    assert match is not None
    return int(match[1])


def test_a_signal_lets_a_call_in_flight_end_and_refuses_others(model_path: Path, tmp_path: Path) -> None:
    hold = Hold(tmp_path)
    models = f"models=(('tiny', Path({str(model_path)!r})),), http_address='127.0.0.1:0'"
    with serving(models, hold.prelude) as process:
        port = http_port(process)
        hold.begin()
        answers: list[Answer] = []

        def embed() -> None:
            with calling(port) as call:
                answers.append(call("POST", "/v1/embed", png(1), "image/png"))

        thread = threading.Thread(target=embed)
        thread.start()
        hold.wait()
        process.popen.send_signal(signal.SIGTERM)

        def refused() -> bool:
            with calling(port) as call:
                return call("GET", "/v1/models").status == 503

        wait_until(refused)
        with calling(port) as call:
            assert call("GET", "/healthz").status == 503
        assert not answers
        hold.release()
        thread.join(60)
        assert answers[0].status == 200
        assert process.popen.wait(60) == 0
        assert process.rest() == []


def test_a_reload_swaps_the_tokens(model_path: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"

    def write(token: str) -> None:
        tokens.touch(0o600)
        tokens.write_text(f'[[token]]\nname = "a"\nscope = "read"\ntoken = "{token}"\n')

    def status(token: str) -> int:
        with calling(port) as call:
            return call("GET", "/v1/models", headers={"authorization": f"Bearer {token}"}).status

    write(READER)
    models = f"models=(('tiny', Path({str(model_path)!r})),), tokens_file=Path({str(tokens)!r})"
    with serving(f"{models}, http_address='127.0.0.1:0'") as process:
        port = http_port(process)
        assert (status(READER), status(OTHER)) == (200, 401)
        write(OTHER)
        process.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: status(OTHER) == 200)
        assert status(READER) == 401


def test_tls_with_certificates_of_both_sides(model_path: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", "ca")
    pair, own = authority.issue("server"), authority.issue("client")
    settings = Settings(
        address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        models=(("tiny", model_path),),
        tls_cert=pair.certificate,
        tls_key=pair.key,
        tls_client_ca=authority.certificate,
    )
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with running(settings) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)), calling(server.server.http_port, context) as call:
            call("GET", "/healthz")
        context.load_cert_chain(own.certificate, own.key)
        with calling(server.server.http_port, context) as call:
            assert call("GET", "/healthz").status == 200
            assert call("POST", "/v1/embed", png(1), "image/png").status == 200
        with pytest.raises((http.client.HTTPException, ConnectionError)), calling(server.server.http_port) as call:
            call("GET", "/healthz")


def test_a_reload_swaps_the_certificate_and_leaves_open_connections(model_path: Path, tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "first", "first"), Authority(tmp_path / "second", "second")
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"

    def use(authority: Authority) -> ssl.SSLContext:
        pair = authority.issue("server")
        key.write_bytes(pair.key.read_bytes())
        key.chmod(0o600)
        certificate.write_bytes(pair.certificate.read_bytes())
        return ssl.create_default_context(cafile=str(authority.certificate))

    def trusted(context: ssl.SSLContext) -> bool:
        with contextlib.suppress(ssl.SSLError), calling(port, context) as call:
            return call("GET", "/healthz").status == 200
        return False

    old = use(first)
    models = f"models=(('tiny', Path({str(model_path)!r})),), http_address='127.0.0.1:0'"
    with serving(f"{models}, tls_cert=Path({str(certificate)!r}), tls_key=Path({str(key)!r})") as process:
        match = re.fullmatch(r"imagekin: https://127\.0\.0\.1:([0-9]+)/", process.line() or "")
        assert match is not None
        port = int(match[1])
        with calling(port, old) as kept:
            assert kept("GET", "/healthz").status == 200
            new = use(second)
            process.popen.send_signal(signal.SIGHUP)
            wait_until(lambda: trusted(new))
            assert not trusted(old)
            assert kept("POST", "/v1/embed", png(1), "image/png").status == 200
