"""`GET …/review`: lines of progress and then the findings, for those who may read; refusals before anything begins."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from imagekin import Client, Item
from imagekin.cli.review.driver import run
from imagekin.index.review.review import Course, Found, Options, Question
from imagekin.serving.http import reviews
from imagekin.serving.settings import Limits, Settings
from tests.serving.http.calling import Caller, calling
from tests.serving.running import Running, running


def reviewed(call: Caller, query: str = "") -> list[dict[str, Any]]:
    """Return the lines of a review."""
    answer = call("GET", f"/v1/collections/checked/review{query}")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in answer.body.splitlines()]


@pytest.fixture(scope="module")
def checked(server: Running) -> None:
    """A collection of two directions and 300 items, one with the other direction's label."""
    items = [
        Item(f"{n:03}", vector=[1.0, n * 1e-3] if n % 2 else [n * 1e-3, 1.0], label="ab"[n % 2]) for n in range(299)
    ]
    with Client(f"127.0.0.1:{server.server.port}") as client:
        client.create_collection("checked", space="s", dim=2)
        client.upsert("checked", [*items, Item("odd", vector=[1.0, 0.0005], label="a")])


def test_it_finds_what_the_command_finds(call: Caller, server: Running, checked: None) -> None:
    *progress, found = reviewed(call)
    assert all(0 <= line["done"] <= line["total"] == 300 for line in progress)
    assert progress == sorted(progress, key=lambda line: line["done"])
    assert (found["items"], found["complete"]) == (300, True)
    assert [(one["key"], one["proposed"]) for one in found["labels"]] == [("odd", "b")]
    with Client(f"127.0.0.1:{server.server.port}") as client:
        here = run(client, "checked", Options())
    assert [one.key for one in here.duplicates] == [one["key"] for one in found["duplicates"]]
    assert here.totals == found["totals"]
    few = reviewed(call, "?limit=3&duplicates=0.9999&neighbours=5&next=1")[-1]
    assert len(few["duplicates"]) == 3


def test_it_keeps_within_smaller_limits(tmp_path: Path) -> None:
    limits = Limits(max_batch_items=7, max_keys=6, max_neighbours=100)
    settings = Settings(address="127.0.0.1:0", http_address="127.0.0.1:0", data_dir=tmp_path, limits=limits)
    with running(settings) as small, Client(f"127.0.0.1:{small.server.port}") as client:
        client.create_collection("few", space="s", dim=2)
        for at in range(0, 20, 5):
            client.upsert("few", [Item(str(n), vector=[1.0, n * 1e-3], label="a") for n in range(at, at + 5)])
        with calling(small.server.http_port) as call:
            found = json.loads(call("GET", "/v1/collections/few/review").body.splitlines()[-1])
    assert (found["items"], found["complete"], len(found["duplicates"])) == (20, True, 20)


def test_the_callers_time_is_that_of_the_whole_review(
    call: Caller, checked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Course.answer

    def slow(course: Course, given: Any) -> Question | Found:
        time.sleep(0.3)
        return answer(course, given)

    monkeypatch.setattr(Course, "answer", slow)
    said = call("GET", "/v1/collections/checked/review", headers={"x-timeout-seconds": "0.2"}).body.splitlines()
    assert json.loads(said[-1])["error"]["code"] == "DEADLINE_EXCEEDED"


def test_a_connection_that_ends_with_it_is_no_error(
    server: Running, checked: None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with calling(server.server.http_port) as call:
            path = "/v1/collections/checked/review"
            assert call("GET", path, headers={"connection": "close"}).body.endswith(b"}\n")
    with calling(server.server.http_port) as call:
        assert call("GET", "/healthz").status == 200  # by now the server is done with those
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("checked/review?limit=0", 400, "limit must be"),
        ("checked/review?limit=a", 400, "limit must be"),
        ("checked/review?duplicates=nan", 400, "duplicates must be"),
        ("checked/review?duplicates=0.9&duplicates=0.8", 400, "given twice"),
        ("checked/review?colour=red", 400, "no parameter 'colour'"),
        ("nobody/review", 404, "nobody"),
    ],
)
def test_what_cannot_be_is_refused_before_it_begins(
    call: Caller, checked: None, path: str, status: int, said: str
) -> None:
    answer = call("GET", f"/v1/collections/{path}")
    assert answer.status == status
    assert said in answer.json["message"]


def test_only_so_many_run_at_one_time_even_of_those_that_begin_together(
    server: Running, checked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, refused = threading.Event(), threading.Semaphore(0)

    async def held(*_: object) -> AsyncIterator[dict[str, Any]]:
        await asyncio.to_thread(gate.wait, 20)
        yield {}

    def ask(_: int) -> int:
        with calling(server.server.http_port) as call:
            status = call("GET", "/v1/collections/checked/review").status
            if status == 429:
                refused.release()
            return status

    monkeypatch.setattr(reviews, "_review", held)
    for _ in range(2):  # what has ended leaves its place
        gate.clear()
        with ThreadPoolExecutor(10) as threads:
            asked = threads.map(ask, range(10))
            for _ in range(8):
                assert refused.acquire(timeout=20)
            gate.set()
            assert sorted(asked) == [200, 200, *[429] * 8]
