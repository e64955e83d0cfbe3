"""The description of HTTP: generated from the protos, as checked in, valid, and true."""

import json
import sys
from pathlib import Path
from typing import Any

from imagekin.serving.http.routes import ROUTES
from tests.serving.http.calling import Caller

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "serving" / "http" / "openapi.json"


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def test_it_is_what_the_protos_and_routes_make_of_it(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "protos"))
    try:
        import openapi  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(ROOT / "protos"))
    openapi.generate(tmp_path / "openapi.json")
    made = (tmp_path / "openapi.json").read_text(encoding="utf-8")
    assert made == FILE.read_text(encoding="utf-8"), "run `python protos/openapi.py`"


def references(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {str(value["$ref"])} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_route_is_described_and_every_reference_leads_somewhere() -> None:
    document = load()
    for route in ROUTES:
        operation = document["paths"][route.path][route.verb.lower()]
        assert operation["summary"], route
        assert all(one.get("description") for one in operation["parameters"]), route
    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= names
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name
        assert all(one.get("description") or "$ref" in one for one in schema["properties"].values()), name
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_the_server_shows_it(call: Caller) -> None:
    assert call("GET", "/openapi.json").json == load()
    page = call("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert b"Finds the nearest neighbours of each query." in page.body
    # Nothing from elsewhere, and nothing that runs.
    assert b"<script" not in page.body
    assert not any(sign in page.body for sign in (b"://", b"src=", b"href=", b"url("))
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_answers_have_only_the_fields_that_it_names(call: Caller) -> None:
    schemas = load()["components"]["schemas"]
    call("POST", "/v1/collections", {"name": "described", "space": "s", "dim": 2, "thumbnail_size": 32})
    call("POST", "/v1/collections/described/items", {"items": [{"key": "a", "vector": [1, 2], "label": "x"}]})
    collection = call("GET", "/v1/collections/described").json["collection"]
    assert set(collection) <= set(schemas["Collection"]["properties"])
    (item,) = call("GET", "/v1/collections/described/items?key=a&with_vector=true").json["items"]
    assert set(item) <= set(schemas["Item"]["properties"])
    answer = call("POST", "/v1/collections/described/search", {"queries": [{"vector": [1, 2]}, {}]}).json
    assert set(answer["results"][1]["error"]) <= set(schemas["Error"]["properties"])
    assert set(answer["results"][0]["neighbours"][0]) <= set(schemas["Neighbour"]["properties"])
