"""The browser, a server with a collection to look at, and a page on it."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser

from imagekin import Client
from tests.serving.http.calling import calling
from tests.serving.page.browser import Visit, browsing, visiting
from tests.serving.page.processes import Served, serving
from tests.serving.running import png


# Of a module only, because its event loop counts as running in this thread as long as it is there.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server over gRPC and HTTP, in a process of its own."""
    with serving(model_path, tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture
def shop(server: Served) -> Iterator[str]:
    """A collection of six items: three cats, two dogs and one without a label."""
    with calling(server.port) as call:
        call("POST", "/v1/collections", {"name": "shop"})
        for position, label in enumerate(("cat", "cat", "cat", "dog", "dog", "")):
            query = urlencode({"key": f"k{position}", "label": label, "payload": json.dumps({"price": position})})
            assert call("POST", f"/v1/collections/shop/items?{query}", png(position), "image/png").status == 200
        yield "shop"
        call("DELETE", "/v1/collections/shop")


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture
def visit(browser: Browser, server: Served) -> Iterator[Visit]:
    """A page at the server, not opened yet."""
    with visiting(browser, server.port) as visit:
        yield visit
