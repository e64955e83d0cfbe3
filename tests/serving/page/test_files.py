"""The page's files: whole in any install, small, of this server alone, and under a strict policy."""

import gzip
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.serving.http.calling import Caller, calling
from tests.serving.page.processes import Served

FOLDER = Path(str(files("imagekin.serving.page")))
SCRIPTS = sorted(FOLDER.rglob("*.js"))


@pytest.fixture
def call(server: Served) -> Iterator[Caller]:
    with calling(server.port) as caller:
        yield caller


def test_every_file_is_answered_packed_and_by_its_tag(call: Caller) -> None:
    served = [file for file in FOLDER.rglob("*") if file.suffix in (".js", ".css", ".svg")]
    paths = ["/", *(f"/page/{file.relative_to(FOLDER)}" for file in served)]
    packed = 0
    for path in paths:
        name = path.removeprefix("/page/") if path != "/" else "index.html"
        answer = call("GET", path, headers={"accept-encoding": "gzip"})
        assert answer.status == 200, path
        packed += len(answer.body)
        assert gzip.decompress(answer.body) == call("GET", path).body == (FOLDER / name).read_bytes()
        again = call("GET", path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
    assert packed < 120 * 1024


@pytest.mark.parametrize("path", ["/", "/page/app.js"])
def test_the_policy_lets_nothing_in_from_elsewhere(call: Caller, path: str) -> None:
    policy = dict(part.split(" ", 1) for part in call("GET", path).headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert not re.search(r"unsafe|https?:|\*", " ".join(policy.values()))
    assert call("GET", path).headers["x-content-type-options"] == "nosniff"


def test_the_page_needs_no_token_and_nothing_else_is_in_its_folder(call: Caller) -> None:
    for path in ("/page/files.py", "/page/", "/page/../app.py", "/page/index.html", "/page/%2e%2e/files.py"):
        assert call("GET", path).status == 404, path


def test_the_scripts_are_short_and_write_no_html() -> None:
    assert sum(len(script.read_text().splitlines()) for script in SCRIPTS) <= 2_500
    for script in SCRIPTS:
        text = script.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            script
        )
        assert len(text.splitlines()) <= 400, script


def test_the_files_name_no_other_origin() -> None:
    for file in FOLDER.rglob("*"):
        if file.suffix in (".js", ".css", ".html"):
            addresses = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"'`]*", file.read_text()))
            assert addresses <= {"http://www.w3.org/2000/svg"}, file
