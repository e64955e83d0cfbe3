"""The abuse of `python -m tests.serving.abuse` in small: a real process keeps every promise under all of it at once."""

import asyncio
from pathlib import Path

import pytest

from tests.artifacts import tiny_artifact
from tests.e2e.processes import running_server
from tests.serving.abuse import BUGS, Findings, abuse


def test_a_server_serves_on_through_every_kind_of_abuse(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "model.onnx", size=8)
    with running_server(model, tmp_path / "data") as server:
        found = asyncio.run(abuse(server, calls=300, messages=1000, idle=200, readers=4))
        assert server.stop() == 0
        log = "".join(server.log)
        assert "Traceback" not in log, log
    assert found.broken == []
    assert {"good", "search", "bad", "cancelled", "expired", "half-sent", "malformed"} <= found.codes.keys()
    assert found.codes["malformed"]["INVALID_ARGUMENT"] > 500
    assert not set(BUGS) & set(found.codes["malformed"])


def test_an_end_that_is_not_allowed_is_a_broken_promise_once() -> None:
    found = Findings()
    for _ in range(3):
        found.ended("good", "INTERNAL", frozenset({"OK"}))
    assert found.broken == ["good: ended with INTERNAL"]
    assert found.codes["good"]["INTERNAL"] == 3


@pytest.mark.parametrize("holds", [True, False])
def test_a_promise_is_broken_only_when_it_does_not_hold(holds: bool) -> None:
    found = Findings()
    found.expect(holds, "memory stays level")
    assert (found.broken == []) is holds
