"""A retriever's query is an image in any form, or a key; strangers' queries name neither files nor addresses."""

import base64
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from imagekin import Client
from imagekin.client.bridges.queries import By, nearest, told
from imagekin.errors import ImageError, InvalidArgumentError, NotFoundError, UnavailableError
from imagekin.types import Neighbour
from tests.client.bridges.shop import filled_shop

KEY = "red/0001.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("queries")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with filled_shop(folder) as client:
        yield client


@pytest.fixture(scope="module")
def address(client: Client, folder: Path) -> Iterator[str]:
    """Photos on a web server."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder / "photos"))

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(client: Client, query: Any, by: By = "image") -> list[Neighbour]:
    return nearest(client, query, by, "shop", 2, None, None)


def test_an_image_in_any_form_finds_itself(client: Client, folder: Path, address: str) -> None:
    path = folder / "photos" / KEY
    data = path.read_bytes()
    inline = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    for query in (path, str(path), data, inline, f"{address}/{KEY}"):
        assert ask(client, query)[0].key == KEY
    assert [ask(client, query, "data")[0].key for query in (data, inline)] == [KEY, KEY]
    assert {one.label for one in ask(client, KEY, "key")} == {"red"}


def test_what_is_no_image_is_said_in_a_line(client: Client, folder: Path, address: str) -> None:
    wrong: list[tuple[Any, By, type[Exception]]] = [
        ("none.png", "image", NotFoundError),
        (7, "image", InvalidArgumentError),
        ("data:image/png;base64,_", "image", ImageError),
        ("data:image/png;base64,é", "data", ImageError),
        ("data:image/png,plain", "data", ImageError),
        (f"{address}/none.png", "image", UnavailableError),
        (str(folder / "photos" / KEY), "data", InvalidArgumentError),
        (f"{address}/{KEY}", "data", InvalidArgumentError),
        ("none", "key", NotFoundError),
    ]
    for query, by, error in wrong:
        with pytest.raises(error):
            ask(client, query, by)


def test_the_text_of_an_item_is_its_caption_its_label_or_its_key() -> None:
    item = Neighbour("a/1.png", 0.5, "red", {"caption": "a rose", "price": 3})
    assert told(item, "caption") == (
        "a rose",
        {"caption": "a rose", "price": 3, "key": "a/1.png", "label": "red", "similarity": 0.5},
    )
    assert told(item, "price")[0] == "3"
    assert told(item, "title")[0] == told(item, "")[0] == "red"
    assert told(Neighbour("a/1.png", 0.5), "")[0] == "a/1.png"
