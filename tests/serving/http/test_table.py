"""Every method, scope and error over gRPC and over HTTP, with the same results."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagekin.index.local.catalog import Catalog
from imagekin.index.maps.settings import MapSettings
from imagekin.serving.http.routes import ROUTES, methods
from imagekin.serving.settings import Limits, Settings
from imagekin.serving.transport.access import SCOPES, Scope
from tests.serving.http.calling import Caller, calling, json_route, over_grpc, over_http
from tests.serving.running import Running, png, running

TOKENS = {
    "reader-0123456789abcdef": Scope.READ,
    "writer-0123456789abcdef": Scope.WRITE,
    "admin-0123456789abcdef": Scope.ADMIN,
}
ADMIN = {"authorization": "Bearer admin-0123456789abcdef"}
LIMITS = Limits(max_batch_items=4, max_k=50, max_keys=8, max_message_bytes=2**20, max_neighbours=100)

FILE = base64.b64encode(png(1)).decode()
VECTOR = [1.0, *[0.0] * 15]
SHOP = {"collection": "shop"}
QUERY = {**SHOP, "queries": [{"key": "a"}]}
CAT = {"comparison": {"field": "label", "operator": "in", "values": ["cat"]}}
ITEM = {"key": "new", "vector": VECTOR}

# A method, a request, and the code of its answer; whatever changes something is undone by a later row.
TABLE: list[tuple[str, dict[str, Any], str]] = [
    ("ListModels", {}, "OK"),
    ("Embed", {"images": [FILE, "bm8="]}, "OK"),
    ("Embed", {"images": [FILE], "model": "other"}, "OK"),
    ("Embed", {"images": [FILE], "model": "nobody"}, "NOT_FOUND"),
    ("Embed", {}, "INVALID_ARGUMENT"),
    ("Embed", {"images": [FILE] * 5}, "INVALID_ARGUMENT"),
    ("ListCollections", {}, "OK"),
    ("DescribeCollection", {"name": "shop"}, "OK"),
    ("DescribeCollection", {"name": "nobody"}, "NOT_FOUND"),
    ("CreateCollection", {"name": "shop"}, "ALREADY_EXISTS"),
    ("CreateCollection", {"name": "UPPER CASE"}, "INVALID_ARGUMENT"),
    ("CreateCollection", {"name": "x", "space": "s"}, "INVALID_ARGUMENT"),
    ("CreateCollection", {"name": "x", "index_kind": "best"}, "INVALID_ARGUMENT"),
    ("DropCollection", {"name": "nobody"}, "NOT_FOUND"),
    ("Search", {**QUERY, "k": 2, "with_payload": True, "with_vector": True}, "OK"),
    ("Search", {**SHOP, "queries": [{"image": FILE}, {"image": "bm8="}, {"vector": VECTOR}, {"vector": [1]}]}, "OK"),
    ("Search", {**SHOP, "queries": [{"examples": {"positive_keys": ["a"], "negative_vectors": [VECTOR]}}, {}]}, "OK"),
    ("Search", {**QUERY, "filter": 'label = "dog" OR payload.n > 1', "min_similarity": -1.0}, "OK"),
    ("Search", {**QUERY, "group_by": "label", "group_size": 1, "k": 3}, "OK"),
    ("Search", {**QUERY, "diversity": 0.5}, "OK"),
    ("Search", {**QUERY, "collection": "foreign"}, "OK"),
    ("Search", {"collection": "foreign", "queries": [{"image": FILE}]}, "FAILED_PRECONDITION"),
    ("Search", {**QUERY, "collection": "nobody"}, "NOT_FOUND"),
    ("Search", {**QUERY, "k": 51}, "INVALID_ARGUMENT"),
    ("Search", {**QUERY, "filter": "label ="}, "INVALID_ARGUMENT"),
    ("Search", {**QUERY, "diversity": 2.0}, "INVALID_ARGUMENT"),
    ("Search", {**QUERY, "group_size": 2}, "INVALID_ARGUMENT"),
    ("Search", {**QUERY, "min_similarity": 1.5}, "INVALID_ARGUMENT"),
    ("Search", {**SHOP, "queries": [{"key": "a"}] * 5}, "INVALID_ARGUMENT"),
    ("Classify", {**QUERY, "k": 3, "leave_one_out": True}, "OK"),
    ("Classify", {**QUERY, "method": "prototype"}, "OK"),
    ("Classify", {**QUERY, "method": "linear"}, "FAILED_PRECONDITION"),
    ("Classify", {**QUERY, "min_confidence": 2.0}, "INVALID_ARGUMENT"),
    ("Classify", {**QUERY, "temperature": -1.0}, "INVALID_ARGUMENT"),
    ("Get", {**SHOP, "keys": ["b", "nobody", "a"], "with_vector": True}, "OK"),
    ("Get", {**SHOP, "keys": []}, "INVALID_ARGUMENT"),
    ("Get", {**SHOP, "keys": ["a"] * 9}, "INVALID_ARGUMENT"),
    ("GetThumbnails", {**SHOP, "keys": ["a", "nobody"]}, "OK"),
    ("GetThumbnails", {**SHOP, "keys": []}, "INVALID_ARGUMENT"),
    ("GetThumbnails", {"collection": "nobody", "keys": ["a"]}, "NOT_FOUND"),
    ("CreateCollection", {"name": "x", "thumbnail_size": 5}, "INVALID_ARGUMENT"),
    ("GetMap", SHOP, "FAILED_PRECONDITION"),
    ("GetMap", {"collection": "mapped"}, "OK"),
    ("GetMap", {"collection": "mapped", "field": "payload.n"}, "OK"),
    ("GetMap", {"collection": "mapped", "field": "key"}, "INVALID_ARGUMENT"),
    ("GetMap", {"collection": "nobody"}, "NOT_FOUND"),
    ("GetMapKeys", {"collection": "mapped", "version": "x", "numbers": [0]}, "INVALID_ARGUMENT"),
    ("GetMapKeys", {"collection": "mapped", "version": "x:1:0123456789ab:0", "numbers": [0]}, "FAILED_PRECONDITION"),
    ("GetMapKeys", {"collection": "mapped", "version": "x", "numbers": []}, "INVALID_ARGUMENT"),
    ("Locate", QUERY, "FAILED_PRECONDITION"),
    ("Locate", {"collection": "mapped", "queries": [{"key": "a"}, {"key": "nobody"}, {"image": FILE}, {}]}, "OK"),
    ("Locate", {"collection": "mapped", "queries": [{"key": "a"}] * 5}, "INVALID_ARGUMENT"),
    ("Scroll", {**SHOP, "page_size": 2}, "OK"),
    (
        "Scroll",
        {**SHOP, "page_size": 8, "filter": {"comparison": {"field": "label", "operator": "in", "values": ["cat"]}}},
        "OK",
    ),
    ("Scroll", {**SHOP, "page_token": "x"}, "INVALID_ARGUMENT"),
    ("Scroll", {**SHOP, "page_size": 9}, "INVALID_ARGUMENT"),
    ("Count", SHOP, "OK"),
    ("Count", {**SHOP, "filter": {"comparison": {"field": "payload.n", "operator": "greater", "values": [0.5]}}}, "OK"),
    ("Count", {**SHOP, "filter": {"comparison": {"field": "label"}}}, "INVALID_ARGUMENT"),
    ("Facet", {**SHOP, "field": "payload.n"}, "OK"),
    ("Facet", {**SHOP, "field": "nothing"}, "INVALID_ARGUMENT"),
    ("Update", {**SHOP, "updates": [{"key": "nobody"}]}, "OK"),
    ("Update", {**SHOP, "updates": []}, "INVALID_ARGUMENT"),
    ("Update", {**SHOP, "updates": [{"key": ""}]}, "INVALID_ARGUMENT"),
    ("Upsert", {**SHOP, "items": []}, "INVALID_ARGUMENT"),
    ("Upsert", {**SHOP, "items": [{"key": "x"}, {"key": "x", "vector": [1]}, {"key": "x", "image": "bm8="}]}, "OK"),
    ("Upsert", {**SHOP, "items": [{**ITEM, "label": "x" * 2_000}, {**ITEM, "payload": {"x": "y" * 70_000}}]}, "OK"),
    ("Delete", {**SHOP, "keys": ["nobody"]}, "OK"),
    ("Delete", SHOP, "INVALID_ARGUMENT"),
    ("Delete", {**SHOP, "filter": "label ="}, "INVALID_ARGUMENT"),
    ("Snapshot", {"collection": "nobody"}, "NOT_FOUND"),
    ("Reload", {"models": ["nobody"]}, "NOT_FOUND"),
    ("Reload", {"models": ["tiny"]}, "OK"),
]


@pytest.fixture(scope="module")
def both(model_path: Path, other_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that asks for tokens, with two collections and small limits."""
    folder = tmp_path_factory.mktemp("both")
    tokens = folder / "tokens.toml"
    tokens.touch(0o600)
    entry = '[[token]]\nname = "{0}"\nscope = "{0}"\ntoken = "{1}"\n'
    tokens.write_text("".join(entry.format(scope.name.lower(), token) for token, scope in TOKENS.items()))
    settings = Settings(
        address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        models=(("tiny", model_path), ("other", other_path)),
        data_dir=folder / "data",
        tokens_file=tokens,
        limits=LIMITS,
    )
    with running(settings) as server:
        items = [
            {"key": key, "image": base64.b64encode(png(n)).decode(), "label": label, "payload": {"n": n}}
            for n, (key, label) in enumerate((("a", "cat"), ("b", "cat"), ("c", "dog"), ("d", "dog")))
        ]
        over_grpc(server, "CreateCollection", {"name": "shop", "thumbnail_size": 32}, ADMIN)
        over_grpc(server, "Upsert", {**SHOP, "items": items}, ADMIN)
        over_grpc(server, "CreateCollection", {"name": "mapped"}, ADMIN)
        over_grpc(server, "Upsert", {"collection": "mapped", "items": items}, ADMIN)
        with Catalog(folder / "data", read_only=True) as catalog:
            catalog.open("mapped").make_map(MapSettings(), anew=False, advance=lambda count: None)
        over_grpc(server, "CreateCollection", {"name": "foreign", "space": "elsewhere", "dim": 4}, ADMIN)
        over_grpc(server, "Upsert", {"collection": "foreign", "items": [{"key": "a", "vector": [1, 2, 3, 4]}]}, ADMIN)
        yield server


@pytest.fixture
def call(both: Running) -> Iterator[Caller]:
    with calling(both.server.http_port) as caller:
        yield caller


@pytest.mark.parametrize(("method", "request_values", "expected"), TABLE)
def test_both_ways_give_the_same(
    both: Running, call: Caller, method: str, request_values: dict[str, Any], expected: str
) -> None:
    first = over_grpc(both, method, request_values, ADMIN)
    second = over_http(call, method, request_values, ADMIN)
    # gRPC counts the images of a request before it has read them all, so its message has no number.
    same = second[::2] == first[::2] if method == "Embed" and isinstance(first, tuple) else second == first
    assert same, (first, second)
    assert (first[0] if isinstance(first, tuple) else "OK") == expected


def test_every_unary_method_is_in_the_table_and_has_a_route() -> None:
    unary = {name for name, method in methods().items() if not method.client_streaming}
    assert {route.method for route in ROUTES} == unary
    assert {method for method, _, _ in TABLE} == {name.rpartition("/")[2] for name in unary}


@pytest.mark.parametrize("token", ["", "wrong-0123456789abcdef", *TOKENS])
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.verb} {route.path}")
def test_a_scope_lets_in_the_same_over_both(both: Running, call: Caller, route: Any, token: str) -> None:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    # Too little or too much for every method, so that whoever is let in does no harm.
    names = {"name": "nobody", "collection": "nobody"}
    verb_takes_body = route.verb in ("POST", "PATCH")
    answer = call(route.verb, route.path.format(**names), b"[]" if verb_takes_body else None, headers=headers)
    needed = SCOPES[route.method]
    assert needed is not None
    if token not in TOKENS:
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    elif TOKENS[token] < needed:
        assert answer.status == 403
    else:
        assert answer.status not in (401, 403)
    if answer.status in (401, 403):
        method = route.method.rpartition("/")[2]
        refused = over_grpc(both, method, {}, headers)
        assert refused[:2] == (answer.json["code"], answer.json["message"])


def test_a_read_only_server_refuses_writes_over_both(both: Running, tmp_path: Path, model_path: Path) -> None:
    folder = both.server.settings.data_dir
    settings = Settings(
        address="127.0.0.1:0", http_address="127.0.0.1:0", models=(("t", model_path),), data_dir=folder, read_only=True
    )
    with running(settings) as replica, calling(replica.server.http_port) as call:
        for method, values in (
            ("Upsert", {**SHOP, "items": [ITEM]}),
            ("Update", {**SHOP, "updates": [{"key": "a"}]}),
            ("Delete", {**SHOP, "keys": ["a"]}),
            ("CreateCollection", {"name": "x"}),
            ("DropCollection", {"name": "shop"}),
        ):
            first, second = over_grpc(replica, method, values), over_http(call, method, values)
            assert first == second
            assert first[0] == "FAILED_PRECONDITION"


def test_the_routes_of_a_metrics_scrape_and_json_tell_what_was_called(both: Running, call: Caller) -> None:
    assert call("GET", "/metrics").status == 401
    text = call("GET", "/metrics", headers=ADMIN).body.decode()
    for method in ("Searcher/Search", "Collections/Upsert"):
        assert f'imagekin_calls_total{{code="OK",method="/imagekin.v1.{method}"}}' in text
    assert call("GET", "/healthz").status == 200
    assert json_route("Get").verb == "POST"
