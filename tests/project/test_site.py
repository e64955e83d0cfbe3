"""The documentation site builds without a warning, needs no other origin, and its generated reference is complete."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from imagekin.cli.main import COMMANDS, load_command
from imagekin.errors import error_classes
from imagekin.v1 import collections_pb2, searcher_pb2

ROOT = Path(__file__).resolve().parents[2]
# What a browser fetches by itself; an <a> is fetched only when a reader follows it.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    for module in ("mkdocs", "material", "mkdocstrings", "matplotlib", "grpc_tools", "jupytext"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        # As `make docs` runs it; with -m the folder would be where modules are looked for.
        [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout
    return folder


class Fetched(HTMLParser):
    """Addresses that a page's HTML makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if (attribute := FETCHED.get(tag)) and (value := dict(attrs).get(attribute)):
            self.found.append(value)


def test_no_page_fetches_anything_from_another_origin(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.found
        for address in parser.found:
            assert not re.match(r"(https?:)?//", address), f"{page.relative_to(site)} fetches {address}"
            local = address.partition("?")[0].partition("#")[0]
            base = site if page.name == "404.html" else page.parent
            assert (base / local.lstrip("/")).exists(), f"{page.relative_to(site)}: there is no {address}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"""(@import|url\()\s*["']?(https?:)?//""", sheet.read_text(encoding="utf-8"))


def test_the_search_of_the_site_needs_no_server(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    for page in ("tutorials/first-search", "reference/commands/imagekin-train", "explanation/durability"):
        assert f"{page}.html" in index


def test_every_option_of_every_command_has_its_line(site: Path) -> None:
    for name in COMMANDS:
        page = (site / "reference" / "commands" / f"imagekin-{name}.html").read_text(encoding="utf-8")
        command = load_command(name)
        for one in getattr(command, "commands", {name: command}).values():
            options = [option for option in one.params if option.param_type_name == "option" and not option.hidden]
            missing = [option.opts[0] for option in options if f"<code>{option.opts[0]}" not in page]
            assert not missing, f"imagekin {name}"


def test_every_command_is_in_the_list_of_commands(site: Path) -> None:
    page = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    assert "<h1" in page
    assert ">Commands" in page
    assert all(page.count(f'"imagekin-{name}.html"') >= 2 for name in COMMANDS), "in the navigation and in the table"


def test_the_contract_the_routes_and_the_errors_are_told(site: Path) -> None:
    reference = site / "reference"
    grpc = (reference / "grpc.html").read_text(encoding="utf-8")
    for file in (searcher_pb2, collections_pb2):
        for message in file.DESCRIPTOR.message_types_by_name.values():
            assert all(f"<code>{field.name}</code>" in grpc for field in message.fields), message.name
    assert "GET /v1/collections/{collection}/search" in (reference / "http-routes.html").read_text(encoding="utf-8")
    errors = (reference / "errors.html").read_text(encoding="utf-8")
    assert all(f"<code>{kind.__name__}</code>" in errors for kind in error_classes().values())
    client = (reference / "python-client.html").read_text(encoding="utf-8")
    assert "create_collection" in client
