"""The description of HTTP: generated from the protos, as checked in, valid, and true."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from imagekin.serving.http.routes import ROUTES
from tests.serving.http import generated
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
        assert all(one.get("description") or "$ref" in one for one in schema.get("properties", {}).values()), name
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_generators_of_clients_find_nothing_that_they_warn_about() -> None:
    """The generators themselves are run by `python -m tests.serving.http.generated`, which needs their registries."""
    document = load()
    known = {"application/json", "application/octet-stream", "multipart/form-data"}
    tags = {one["name"] for one in document["tags"]}
    for path in document["paths"].values():
        for operation in path.values():
            assert set(operation["tags"]) <= tags
            assert set(operation.get("requestBody", {"content": ()})["content"]) <= known
            # Of an object in a query, each generator makes something else.
            for one in operation["parameters"]:
                assert not {"object", None} & {one["schema"].get("type", one["schema"].get("$ref"))}, one
    # An enum inside another schema gets a name from wherever it is met first.
    schemas = document["components"]["schemas"]
    nested = [name for name, one in schemas.items() if '"enum"' in json.dumps(one.get("properties", {}))]
    assert nested == ["Error"]


def test_a_client_that_a_stock_generator_makes_works(tmp_path: Path) -> None:
    tool = shutil.which("openapi-python-client")
    if tool is None:
        pytest.skip("no openapi-python-client here: `python -m tests.serving.http.generated` installs and runs it")
    python = Path(Path(tool).read_text(encoding="utf-8").splitlines()[0].removeprefix("#!"))
    with generated.serving(tmp_path) as (address, picture):
        (tmp_path / "python").mkdir()
        generated.use_python(tmp_path / "python", Path(tool), python, address, picture)


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
