"""Connections that are slow, malformed, too large or abandoned, and what pages of other origins may do."""

import json
import socket
import time
from pathlib import Path

import pytest

from imagekin.encoder.runtime.session import Encoder
from imagekin.serving.http import connections
from imagekin.serving.settings import Settings
from imagekin.v1.embedder_pb2 import ListModelsRequest
from tests.serving.http import malformed
from tests.serving.http.calling import Caller, calling
from tests.serving.running import Running, png, running
from tests.waiting import wait_until

JSON = {"content-type": "application/json"}


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of a fraction of a second."""
    for name in ("_HEAD_SECONDS", "_WINDOW_SECONDS", "_LINGER_SECONDS"):
        monkeypatch.setattr(connections, name, 0.3)
    monkeypatch.setattr(connections, "_TICK_SECONDS", 0.05)


def connect(server: Running, receive_buffer: int = 0) -> socket.socket:
    made = socket.socket()
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.settimeout(30)
    made.connect(("127.0.0.1", server.server.http_port))
    return made


def rest(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    found = b""
    try:
        while data := connection.recv(2**16):
            found += data
    except ConnectionResetError:
        pass
    return found


HEAD = b"POST /v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
SLOW = {
    "nothing": b"",
    "half a header": b"GET /v1/models HTTP/1.1\r\nhost: loc",
    "half a second header": b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea",
    "half a body": HEAD + b"content-length: 1000\r\n\r\nabc",
    "half a chunk": HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
    "no body where it is refused": b"POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n",
}


@pytest.mark.usefixtures("hurried")
def test_connections_that_wait_for_ever_are_closed_while_others_are_served(server: Running) -> None:
    slow = []
    for sent in [*SLOW.values()] * 20:
        slow.append(connect(server))
        slow[-1].sendall(sent)
    with calling(server.server.http_port) as call:
        assert call("GET", "/healthz").status == 200
        assert server.embedder.ListModels(ListModelsRequest(), timeout=20).models
    for connection in slow:
        rest(connection)
        connection.close()


@pytest.mark.usefixtures("hurried")
def test_a_caller_that_does_not_read_its_answer_is_closed(server: Running) -> None:
    with calling(server.server.http_port) as call:
        call("POST", "/v1/collections", {"name": "long", "space": "s", "dim": 64})
        items = [{"key": f"{n}", "vector": [1.0] * 64, "payload": {"t": "x" * 30_000}} for n in range(200)]
        assert call("POST", "/v1/collections/long/items", {"items": items}).status == 200
    with connect(server, receive_buffer=4096) as connection:
        connection.sendall(b"GET /v1/collections/long/scroll?page_size=200 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        state = server.server._http._state  # type: ignore[union-attr]
        wait_until(lambda: any(one.flow.write_paused for one in list(state.connections)))
        wait_until(lambda: not state.connections)


def test_a_body_at_a_steady_pace_is_taken_however_long_it_takes(server: Running, hurried: None) -> None:
    picture = png(1)
    with connect(server) as connection:
        connection.sendall(HEAD + f"content-length: {len(picture) + 200_000}\r\n\r\n".encode() + picture)
        for _ in range(5):
            time.sleep(0.15)
            connection.sendall(b"\0" * 40_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_too_large_a_body_is_refused_before_it_is_sent(server: Running) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD + b"content-length: 99999999999\r\nexpect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_too_large_a_chunked_body_is_refused_at_its_ceiling(model_path: Path) -> None:
    from imagekin.serving.settings import Limits

    limits = Limits(max_message_bytes=2**20)
    settings = Settings(address="127.0.0.1:0", http_address="127.0.0.1:0", models=(("t", model_path),), limits=limits)
    with running(settings) as server, connect(server) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(17):
            connection.sendall(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
        wait_until(lambda: server.server._calls.bodies._held == 0)


def test_a_header_of_a_mebibyte_is_refused(server: Running) -> None:
    with connect(server) as connection:
        try:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 2**20)
            answer = rest(connection)
        except (BrokenPipeError, ConnectionResetError):
            return
        assert not answer or answer.startswith(b"HTTP/1.1 400")


def test_what_is_no_http_gets_an_error_in_json(server: Running) -> None:
    for sent in (b"\x16\x03\x01\x02\x00", b"GET /\r\n", b"GET  x HTTP/9.9\r\n"):
        with connect(server) as connection:
            connection.sendall(sent + b"\r\n\r\n")
            head, _, body = rest(connection).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400"), (sent, head)
            assert json.loads(body)["code"] == "INVALID_ARGUMENT"


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    one = b"GET %s HTTP/1.1\r\nhost: localhost\r\n%s\r\n"
    requests = one % (b"/v1/models", b""), one % (b"/healthz", b""), one % (b"/v1/no", b"connection: close\r\n")
    with connect(server) as connection:
        connection.sendall(b"".join(requests))
        answers = rest(connection)
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"404"]


def test_work_for_a_caller_that_went_away_is_cancelled(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = Encoder.run

    def slow(*arguments: object) -> object:
        seen.append(1)
        time.sleep(0.3)
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "run", slow)
    before = metric(server, 'imagekin_calls_total{code="CANCELLED",method="/imagekin.v1.Embedder/Embed"}')
    with connect(server) as connection:
        picture = png(1)
        connection.sendall(HEAD + f"content-length: {len(picture)}\r\n\r\n".encode() + picture)
        wait_until(lambda: bool(seen))
    name = 'imagekin_calls_total{code="CANCELLED",method="/imagekin.v1.Embedder/Embed"}'
    wait_until(lambda: metric(server, name) == before + 1)
    wait_until(lambda: server.server._calls.in_flight == 0 and server.server._calls.bodies._held == 0)


def metric(server: Running, name: str) -> float:
    with calling(server.server.http_port) as call:
        lines = call("GET", "/metrics").body.decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


def test_a_deadline_of_the_caller_is_kept(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Encoder.run

    def slow(*arguments: object) -> object:
        time.sleep(0.5)
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "run", slow)
    answer = call("POST", "/v1/embed", png(3), "image/png", {"x-timeout-seconds": "0.1"})
    assert (answer.status, answer.json["code"]) == (504, "DEADLINE_EXCEEDED")
    assert call("POST", "/v1/embed", png(3), "image/png", {"x-timeout-seconds": "-1"}).status == 400


def test_malformed_requests_are_never_an_internal_error(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Requests that are valid but for a few bytes, of the connection or of the JSON."""
    malformed.prepare(server.server.http_port)
    statuses = malformed.send(server.server.http_port, 1_500, 5)
    assert {"200", "400"} <= statuses.keys()
    assert "Traceback" not in caplog.text
