"""A browser's fetch from pages of other origins, with a token and without, and Node's fetch."""

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagekin.serving.settings import Settings
from tests.serving.http.calling import calling
from tests.serving.page.browser import browsing
from tests.serving.running import Running, png, running

TOKEN = "everything-0123456789abcdef"
SECONDS = 60.0
# Calls the server as an application would, and returns status, body and headers of each answer, or why there is none.
CALLS = """
async function calls(address, token, picture) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const bytes = Uint8Array.from(atob(picture), (one) => one.charCodeAt(0));
  const file = new Blob([bytes], { type: "image/png" });
  const form = new FormData();
  form.append("image", file, "from a form.png");
  form.append("label", "form");
  const of = `${address}/v1/collections/fetched`;
  const asked = [
    ["GET", `${address}/v1/models`],
    ["POST", `${address}/v1/collections`, JSON.stringify({ name: "fetched", thumbnail_size: 32 }), "application/json"],
    ["POST", `${of}/items?key=${encodeURIComponent("a/ü b")}`, file],
    ["POST", `${of}/items`, form],
    ["POST", `${of}/search?k=2&with_payload=true`, file],
    ["PATCH", `${of}/items`, JSON.stringify({ updates: [{ key: "a/ü b", label: "x" }] }), "application/json"],
    ["GET", `${of}/thumbnail?key=${encodeURIComponent("a/ü b")}`],
    ["GET", `${of}/items?key=nobody&k=1`],
    ["DELETE", of],
  ];
  const answers = [];
  for (const [method, url, body, type] of asked) {
    try {
      const all = { ...headers, "X-Timeout-Seconds": "20", ...(type ? { "Content-Type": type } : {}) };
      const response = await fetch(url, { method, body, headers: all });
      const text = await response.text();
      const named = ["content-type", "etag", "x-request-id"].map((name) => [name, response.headers.get(name)]);
      answers.push([response.status, text.slice(0, 300), Object.fromEntries(named)]);
    } catch (error) {
      answers.push([0, String(error), {}]);
    }
  }
  return answers;
}
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_request(self, *_: object) -> None:
        pass


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[int]:
    """Give the port of an empty page, which is one origin at 127.0.0.1 and another one at localhost."""
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><title>An application</title>")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(60)


@contextmanager
def guarded(model: Path, folder: Path, *origins: str) -> Iterator[Running]:
    """Run a server that asks for a token and takes pages of some origins."""
    tokens = folder / "tokens.toml"
    tokens.touch(0o600)
    tokens.write_text(f'[[token]]\nname = "application"\nscope = "admin"\ntoken = "{TOKEN}"\n')
    settings = Settings(
        address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        models=(("tiny", model),),
        data_dir=folder / "data",
        tokens_file=tokens,
        cors_origin=origins,
    )
    with running(settings) as server:
        yield server


def check(answers: list[list[Any]]) -> None:
    """Check the answers to `CALLS` with a token."""
    statuses = [status for status, _, _ in answers]
    assert statuses == [200, 200, 200, 200, 200, 200, 200, 400, 200], answers
    assert all(headers["x-request-id"] for _, _, headers in answers[:6])
    found = json.loads(answers[4][1])["results"][0]["neighbours"]
    assert {one["key"] for one in found} == {"a/ü b", "from a form.png"}
    assert answers[6][2]["content-type"] == "image/jpeg"
    assert answers[6][2]["etag"]
    wrong = json.loads(answers[7][1])
    assert (wrong["code"], wrong["field"]) == ("INVALID_ARGUMENT", "k")


def picture() -> str:
    """Return an image file in base64."""
    from base64 import b64encode

    return b64encode(png(1, 48)).decode()


def test_a_browser_lets_pages_of_allowed_origins_call_and_no_others(
    model_path: Path, tmp_path: Path, pages: int
) -> None:
    allowed, other = f"http://127.0.0.1:{pages}", f"http://localhost:{pages}"
    with guarded(model_path, tmp_path, allowed) as server, browsing() as browser:
        address = f"http://127.0.0.1:{server.server.http_port}"

        def fetched(origin: str, token: str) -> list[list[Any]]:
            page = browser.new_page()
            page.set_default_timeout(SECONDS * 1_000)
            page.goto(origin)
            arguments = json.dumps([address, token, picture()])
            answers: list[list[Any]] = page.evaluate(f"async () => {{ {CALLS} return calls(...{arguments}); }}")
            page.close()
            return answers

        check(fetched(allowed, TOKEN))
        without = fetched(allowed, "")
        assert {status for status, _, _ in without} == {401}
        assert json.loads(without[0][1])["code"] == "UNAUTHENTICATED"
        # The browser keeps the answers, and asks before it sends anything that needs more than a plain form's rights.
        assert {status for status, _, _ in fetched(other, TOKEN)} == {0}
        with calling(server.server.http_port) as call:
            kept = call("GET", "/v1/collections", headers={"authorization": f"Bearer {TOKEN}"}).json
            assert not kept.get("collections")


def test_nodes_fetch_calls_everything(model_path: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here: install Node 18 or later")
    with guarded(model_path, tmp_path) as server:
        address = f"http://127.0.0.1:{server.server.http_port}"
        program = f"{CALLS} console.log(JSON.stringify(await calls(...process.argv.slice(1))));"
        done = subprocess.run(
            [node, "--input-type=module", "-e", program, "--", address, TOKEN, picture()],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        check(json.loads(done.stdout))
