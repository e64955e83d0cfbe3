"""A map's points over HTTP: one body for a browser, known again by its tag."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imagekin.index.local.catalog import Catalog
from imagekin.index.maps.settings import MapSettings
from imagekin.index.types import VectorItem
from imagekin.serving.settings import Settings
from tests.serving.http.calling import Answer, Caller, calling
from tests.serving.running import running

pytest.importorskip("umapers", reason="maps need umapers: pip install '.[map]'")

HOSTILE = '<img src=x onerror="alert(1)">\u202e'


@pytest.fixture
def call(model_path: Path, tmp_path: Path) -> Iterator[Caller]:
    """A server with a collection `shop` of 40 items that has a map, and `bare` that has none."""
    with Catalog(tmp_path) as catalog:
        for name in ("shop", "bare"):
            made = catalog.create(name, space="s", dim=4)
            vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
            made.upsert([VectorItem(f"k{n}", row, label=HOSTILE if n < 30 else None) for n, row in enumerate(vectors)])
        catalog.open("shop").make_map(MapSettings(), anew=False, advance=lambda count: None)
    settings = Settings(
        address="127.0.0.1:0", http_address="127.0.0.1:0", models=(("tiny", model_path),), data_dir=tmp_path
    )
    with running(settings) as server, calling(server.server.http_port) as caller:
        yield caller


def read(answer: Answer) -> tuple[dict[str, object], "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]", bytes]:
    """Read a body as the page does."""
    (length,) = struct.unpack_from("<I", answer.body)
    about = json.loads(answer.body[4 : 4 + length])
    begin, count = 4 + length, about["count"]
    assert begin % 4 == 0
    assert len(answer.body) == begin + 5 * count
    return about, np.frombuffer(answer.body, "<u2", 2 * count, begin).reshape(-1, 2), answer.body[begin + 4 * count :]


def test_a_map_is_five_bytes_an_item_and_known_by_its_tag(call: Caller) -> None:
    first = call("GET", "/v1/collections/shop/map/points")
    about, positions, codes = read(first)
    assert (about["count"], about["unplaced"], about["values"]) == (40, 0, [{"value": HOSTILE, "count": 30}])
    assert positions.max() <= 65_534
    assert codes == b"\x01" * 30 + b"\x00" * 10
    tag = {"if-none-match": first.headers["etag"]}
    again = call("GET", "/v1/collections/shop/map/points?field=label", headers=tag)
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
    # What is no tag is not known again, and gets the whole map.
    for given in (tag["if-none-match"].strip('"'), f'"other", {tag["if-none-match"]}x', tag["if-none-match"][:-1]):
        whole = call("GET", "/v1/collections/shop/map/points", headers={"if-none-match": given})
        assert (whole.status, whole.body) == (200, first.body)
    # Another field is another map to look at.
    other = call("GET", "/v1/collections/shop/map/points?field=payload.n", headers=tag)
    assert (other.status, read(other)[2]) == (200, b"\x00" * 40)
    keys = call("POST", "/v1/collections/shop/map/keys", {"version": about["version"], "numbers": [39, 0]}).json
    assert keys == {"keys": ["k39", "k0"]}
    place = call("GET", "/v1/collections/shop/map/places?key=k39").json["results"][0]
    assert [place["x"], place["y"]] == positions[39].tolist()
    assert call("PATCH", "/v1/collections/shop/items", {"updates": [{"key": "k39", "label": "new"}]}).status == 200
    changed = call("GET", "/v1/collections/shop/map/points", headers=tag)
    assert changed.status == 200
    # Written last, it has the last number, and stays where it was.
    assert read(changed)[1][-1].tolist() == positions[39].tolist()


def test_what_is_not_there_is_said(call: Caller) -> None:
    refused = call("GET", "/v1/collections/bare/map/points")
    assert refused.json["code"] == "FAILED_PRECONDITION"
    assert "`imagekin map bare`" in refused.json["message"]
    assert call("GET", "/v1/collections/nobody/map/points").status == 404
    assert call("GET", "/v1/collections/shop/map/points?field=key").status == 400
    assert call("GET", "/v1/collections/shop/map/points?fields=label").status == 400
