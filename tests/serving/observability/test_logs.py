"""Logs: one JSON object a line, ids that tie a call to its log, and no line for a call that went well."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import grpc
import pytest

from imagekin.serving.embedding.pipeline import Pipeline
from imagekin.serving.observability import logs
from imagekin.v1 import embedder_pb2, embedder_pb2_grpc
from tests.serving.process import started
from tests.serving.running import Running, image


@pytest.fixture
def errors(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Gives what was written to standard error; the logging of this process is put back afterwards."""
    root, own = logging.getLogger(), logging.getLogger("imagekin")
    before = (root.handlers[:], root.level, own.level)
    yield lambda: capsys.readouterr().err
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


def sent_id(server: Running, metadata: tuple[tuple[str, str], ...]) -> str:
    """Return the id that an answer carries."""
    _, call = server.embedder.Embed.with_call(
        embedder_pb2.EmbedRequest(images=[image(1)]), metadata=metadata, timeout=20
    )
    (found,) = [value for key, value in call.trailing_metadata() or () if key == "x-request-id"]
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("given", ["abc-123", "0b5e9a1c-66b0-4b0c-8d0d-1f6a2f2d9c11", "a" * 128, "trace/1:2=3+4"])
def test_the_callers_id_is_kept(server: Running, given: str) -> None:
    assert sent_id(server, (("x-request-id", given),)) == given


@pytest.mark.parametrize("given", ["a" * 129, "a b", '"}', "-a", "a\\n", ""])
def test_an_id_that_is_not_sane_is_replaced(server: Running, given: str) -> None:
    found = sent_id(server, (("x-request-id", given),))
    assert found != given
    assert len(found) == 16


def test_each_call_has_an_id_of_its_own(server: Running) -> None:
    assert len({sent_id(server, ()) for _ in range(10)}) == 10


def test_an_id_comes_with_an_error_and_with_a_stream(server: Running) -> None:
    metadata = (("x-request-id", "mine"),)
    with pytest.raises(grpc.RpcError) as failed:
        server.embedder.Embed(embedder_pb2.EmbedRequest(), metadata=metadata, timeout=20)
    assert dict(cast(grpc.Call, failed.value).trailing_metadata() or ())["x-request-id"] == "mine"
    stream = server.embedder.EmbedStream(iter(()), metadata=metadata, timeout=20)
    assert list(stream) == []
    assert dict(stream.trailing_metadata() or ())["x-request-id"] == "mine"


def test_a_bugs_id_is_the_requests_and_the_json_log_has_it_with_the_trace(
    server: Running, errors: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    logs.configure("info", "json")
    monkeypatch.setattr(Pipeline, "embed", broken)
    with pytest.raises(grpc.RpcError) as failed:
        server.embedder.Embed(
            embedder_pb2.EmbedRequest(images=[image(1)]), metadata=(("x-request-id", "mine"),), timeout=20
        )
    assert "internal error mine" in str(failed.value)
    assert "secret" not in str(failed.value)
    (line,) = errors().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["request_id"], entry["method"]) == ("error", "mine", "/imagekin.v1.Embedder/Embed")
    assert "ZeroDivisionError: secret" in entry["trace"]
    assert entry["time"].endswith("Z")


def test_a_call_is_a_line_only_at_the_finest_level(server: Running, errors: Callable[[], str]) -> None:
    logs.configure("info", "json")
    sent_id(server, ())
    assert errors() == ""
    logs.configure("debug", "json")
    sent_id(server, (("x-request-id", "mine"),))
    logs.configure("debug", "text")
    sent_id(server, (("x-request-id", "yours"),))
    first, second = errors().splitlines()
    entry = json.loads(first)
    assert (entry["message"], entry["request_id"], entry["code"]) == ("/imagekin.v1.Embedder/Embed", "mine", "OK")
    assert 0 < entry["seconds"] < 20
    assert "request_id=yours code=OK" in second


def test_what_a_line_holds_cannot_break_the_line() -> None:
    record = logging.LogRecord("imagekin", logging.ERROR, "", 0, 'a\n{"level": %s', ("\u2028",), None)
    text = logs.JsonFormatter().format(record)
    assert "\n" not in text
    assert json.loads(text)["message"] == 'a\n{"level": \u2028'


def test_every_line_of_a_json_log_is_json_from_the_first_on(model_path: Path) -> None:
    arguments = f"address='127.0.0.1:0', models=(('tiny', Path({str(model_path)!r})),), log_format='json'"
    with started(arguments) as process:
        ready = json.loads(process.line() or "")
        assert ready["message"].startswith("serving on 127.0.0.1:")
        port = ready["message"].rpartition(":")[2]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = embedder_pb2_grpc.EmbedderStub(channel)
            stub.Embed(embedder_pb2.EmbedRequest(images=[image(1)]), wait_for_ready=True, timeout=20)
        process.popen.terminate()
        assert process.popen.wait(20) == 0
        assert process.rest() == []
