"""What people do with curl: pictures as they are, forms, keys in the query, and answers as JSON."""

import base64
import gzip
import json
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest

from tests.serving.http.calling import Caller, calling
from tests.serving.running import Running, png, vector

# A key that no path could hold.
STRANGE = "a/b?c#d%41 é\u2028&e=f"


@pytest.fixture(scope="module")
def shop(server: Running) -> str:
    """A collection of four items, filled over HTTP."""
    with calling(server.server.http_port) as call:
        assert call("POST", "/v1/collections", {"name": "shop"}).json["collection"]["dim"] == 16
        for position, label in enumerate(("cat", "cat", "dog")):
            query = urlencode({"key": f"k{position}", "label": label, "payload": json.dumps({"price": position})})
            answer = call("POST", f"/v1/collections/shop/items?{query}", png(position), "image/png")
            assert answer.json["results"] == [{"outcome": "inserted"}]
        query = urlencode({"key": STRANGE})
        assert call("POST", f"/v1/collections/shop/items?{query}", png(9), "application/octet-stream").status == 200
    return "/v1/collections/shop"


def form(*parts: tuple[str, str, bytes]) -> tuple[bytes, str]:
    """Return a multipart body of (name, file name or empty, contents), and its type."""
    boundary = "----x1y2"
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        + (f'; filename="{file}"\r\nContent-Type: image/png'.encode() if file else b"")
        + b"\r\n\r\n"
        + contents
        + b"\r\n"
        for name, file, contents in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def test_a_picture_finds_itself(call: Caller, shop: str) -> None:
    answer = call("POST", f"{shop}/search?k=1&with_payload=true", png(2), "image/png").json
    (found,) = answer["results"][0]["neighbours"]
    assert (found["key"], found["label"], found["payload"]) == ("k2", "dog", {"price": 2})
    assert found["similarity"] == pytest.approx(1, abs=1e-5)


def test_a_form_is_a_picture_with_parameters(call: Caller, shop: str) -> None:
    body, kind = form(("image", "q.png", png(1)), ("k", "", b"1"), ("filter", "", b'label = "cat"'))
    answer = call("POST", f"{shop}/search", body, kind).json
    assert [one["key"] for one in answer["results"][0]["neighbours"]] == ["k1"]


def test_a_form_of_several_pictures_names_the_items_by_their_files(call: Caller, server: Running) -> None:
    call("POST", "/v1/collections", {"name": "forms"})
    body, kind = form(("a", "one.png", png(1)), ("b", "two.png", png(2)), ("label", "", b"cat"))
    answer = call("POST", "/v1/collections/forms/items", body, kind).json
    assert [one["outcome"] for one in answer["results"]] == ["inserted", "inserted"]
    stored = call("GET", "/v1/collections/forms/items?key=one.png&key=two.png").json["items"]
    assert [(one["key"], one["label"]) for one in stored] == [("one.png", "cat"), ("two.png", "cat")]


def test_a_key_of_any_characters_goes_in_the_query(call: Caller, shop: str) -> None:
    (item,) = call("GET", f"{shop}/items?key={quote(STRANGE, safe='')}").json["items"]
    assert item["key"] == STRANGE
    assert call("GET", f"{shop}/search?key={quote(STRANGE, safe='')}&k=3").json["results"][0]["neighbours"]
    assert call("DELETE", f"{shop}/items?key={quote(STRANGE, safe='')}").json["deleted"] == 1
    assert call("GET", f"{shop}/items?key={quote(STRANGE, safe='')}").json["missing_keys"] == [STRANGE]


def test_a_picture_is_classified(call: Caller, shop: str) -> None:
    prediction = call("POST", f"{shop}/classify?k=1", png(2), "image/png").json["results"][0]["prediction"]
    assert prediction["label"] == "dog"
    assert prediction["votes"] == [{"label": "dog", "share": 1.0}]
    assert call("GET", f"{shop}/classify?key=k0&method=prototype").json["results"][0]["prediction"]["label"]


def test_what_is_wrong_with_the_only_picture_is_the_status(call: Caller, shop: str) -> None:
    answer = call("POST", f"{shop}/search", b"no picture", "image/jpeg")
    assert answer.status == 400
    assert answer.json["code"] == "INVALID_ARGUMENT"
    assert call("GET", f"{shop}/search?key=nobody").status == 404
    assert call("GET", f"{shop}/search?key=nobody").json["field"] == "queries[0].key"


def test_of_several_queries_each_has_its_own_error(call: Caller, shop: str) -> None:
    answer = call("POST", f"{shop}/search", {"queries": [{"key": "nobody"}, {"key": "k0"}], "k": 1})
    assert answer.status == 200
    first, second = answer.json["results"]
    assert (first["error"]["code"], first["error"]["field"]) == ("NOT_FOUND", "queries[0].key")
    assert len(second["neighbours"]) == 1


def test_vectors_are_arrays_or_base64(call: Caller, shop: str, server: Running) -> None:
    arrays = call("POST", "/v1/embed", png(1), "image/png").json["results"][0]["vector"]
    packed = call("POST", "/v1/embed?vectors=base64", {"images": [base64.b64encode(png(1)).decode()]}).json
    unpacked = np.frombuffer(base64.b64decode(packed["results"][0]["vector"]), "<f4")
    assert np.array_equal(np.float32(arrays), unpacked)
    for given in (arrays, packed["results"][0]["vector"]):
        answer = call("POST", f"{shop}/search", {"queries": [{"vector": given}], "k": 1, "with_vector": True}).json
        (found,) = answer["results"][0]["neighbours"]
        assert found["key"] == "k1"
        assert np.array_equal(np.float32(found["vector"]), np.float32(arrays))
    assert vector(arrays).data == base64.b64decode(packed["results"][0]["vector"])


def test_a_filter_is_a_text_or_a_tree(call: Caller, shop: str) -> None:
    cheap = {"comparison": {"field": "payload.price", "operator": "less", "values": [1]}}
    for given in ("payload.price < 1", cheap, {"all": [cheap, {"not": {"not": cheap}}]}):
        assert call("POST", f"{shop}/count", {"filter": given}).json == {"count": 1}
    assert call("GET", f"{shop}/count?filter={quote('payload.price < 1')}").json == {"count": 1}
    assert call("GET", f"{shop}/facets?field=payload.price&limit=2").json["counts"][0] == {"value": 0, "count": 1}


def test_pages_follow_one_another(call: Caller, shop: str) -> None:
    keys, token = [], ""
    while True:
        page = call("GET", f"{shop}/scroll?page_size=2&page_token={token}").json
        keys += [item["key"] for item in page["items"]]
        if not (token := page["next_page_token"]):
            break
    assert sorted(keys)[:3] == ["k0", "k1", "k2"]


def test_labels_and_payloads_change_and_numbers_keep_their_precision(call: Caller, shop: str) -> None:
    large = 123456789012345678901234567890
    update = {"key": "k0", "label": "", "payload": {"n": large, "x": 0.1, "deep": [{"y": None}]}}
    assert call("PATCH", f"{shop}/items", {"updates": [update]}).json["updated"] == 1
    (item,) = call("GET", f"{shop}/items?key=k0").json["items"]
    assert item["payload"] == update["payload"]
    assert "label" not in item
    assert call("PATCH", f"{shop}/items", {"updates": [{"key": "k0", "label": "cat", "payload": {}}]}).status == 200
    assert "payload" not in call("GET", f"{shop}/items?key=k0").json["items"][0]


def test_bodies_and_answers_may_be_packed(call: Caller, shop: str) -> None:
    body = gzip.compress(json.dumps({"queries": [{"key": "k0"}] * 60, "k": 1}).encode())
    headers = {"content-encoding": "gzip", "accept-encoding": "gzip"}
    answer = call("POST", f"{shop}/search", body, headers=headers)
    assert answer.headers["content-encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(answer.body))["results"]) == 60


def test_a_request_keeps_its_id(call: Caller) -> None:
    assert call("GET", "/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert len(call("GET", "/v1/models").headers["x-request-id"]) == 16


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "field"),
    [
        ("POST", "/v1/embed", b"{", 400, "request"),
        ("POST", "/v1/embed", b"[]", 400, "request"),
        ("POST", "/v1/embed", b'"\xff"', 400, "request"),
        ("POST", "/v1/embed", b"[" * 3_000, 400, "request"),
        ("POST", "/v1/embed", {"image": []}, 400, "image"),
        ("POST", "/v1/embed", {"images": {}}, 400, "images"),
        ("POST", "/v1/embed", {"images": ["%%"]}, 400, "images[0]"),
        ("POST", "/v1/embed?modle=x", {"images": []}, 400, "modle"),
        ("POST", "/v1/embed?model=a&model=b", {"images": []}, 400, "model"),
        ("POST", "/v1/embed?vectors=hex", {"images": []}, 400, "vectors"),
        ("POST", "/v1/collections", {"name": 1}, 400, "name"),
        ("POST", "/v1/collections", {"name": "x", "dim": 2**40, "space": "s"}, 400, "dim"),
        ("POST", "/v1/collections", {"name": "x", "dim": True}, 400, "dim"),
        ("POST", "/v1/collections", {"name": "\ud800"}, 400, "request"),
        ("POST", "/v1/collections/shop/search", {"collection": "other"}, 400, "collection"),
        ("POST", "/v1/collections/shop/search?k=x", {}, 400, "k"),
        ("POST", "/v1/collections/shop/search", {"queries": [{"key": "a", "vector": [1]}]}, 400, "queries[0].vector"),
        ("POST", "/v1/collections/shop/search", {"queries": [{"vector": [1e99]}]}, 400, "queries[0].vector"),
        ("POST", "/v1/collections/shop/search", {"queries": [{"vector": [1, "2"]}]}, 400, "queries[0].vector"),
        ("POST", "/v1/collections/shop/search?key=a", {"queries": []}, 400, "queries"),
        ("GET", "/v1/collections/shop/search?diversity=nan&key=a", None, 400, "diversity"),
        ("POST", "/v1/collections/shop/classify", {"method": "guess"}, 400, "method"),
        ("POST", "/v1/collections/shop/count", {"filter": {"all": [{"any": 1}]}}, 400, "filter.all[0].any"),
        ("PATCH", "/v1/collections/shop/items", {"updates": [{"payload": "x"}]}, 400, "updates[0].payload"),
        ("GET", "/v1/nothing", None, 404, ""),
        ("GET", "/v1/collections/shop/", None, 404, ""),
        ("PUT", "/v1/models", {}, 405, ""),
    ],
)
def test_what_is_wrong_is_named(
    call: Caller, shop: str, verb: str, path: str, body: object, status: int, field: str
) -> None:
    answer = call(verb, path, body)
    assert (answer.status, answer.json.get("field", "")) == (status, field), answer.json
    assert set(answer.json) <= {"code", "message", "field"}


def test_other_types_of_bodies_are_refused(call: Caller, shop: str) -> None:
    answer = call("POST", f"{shop}/search", b"a=b", "application/x-www-form-urlencoded")
    assert (answer.status, answer.json["field"]) == (415, "content-type")
    assert call("PATCH", f"{shop}/items", png(1), "image/png").status == 415
    assert call("POST", f"{shop}/search", b"{}", headers={"content-encoding": "br"}).status == 415
    assert call("POST", f"{shop}/search", b"no form", "multipart/form-data").status == 400
    assert call("POST", f"{shop}/search", b"no form", "multipart/form-data; boundary=x").status == 400


def test_each_collection_has_its_own_of_several_models(call: Caller) -> None:
    spaces = {one["name"]: one["space"] for one in call("GET", "/v1/models").json["models"]}
    assert len(spaces) == 2
    for name in spaces:
        assert call("POST", "/v1/collections", {"name": f"of-{name}", "model": name}).status == 200
        of = f"/v1/collections/of-{name}"
        assert call("GET", of).json["collection"]["space"] == spaces[name]
        assert call("POST", f"{of}/items?key=a", png(4), "image/png").status == 200
        (found,) = call("POST", f"{of}/search?k=1", png(4), "image/png").json["results"]
        assert found["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    both = [
        call("POST", f"/v1/embed?model={name}", png(4), "image/png").json["results"][0]["vector"] for name in spaces
    ]
    assert both[0] != both[1]
    unknown = call("POST", "/v1/embed?model=none", png(4), "image/png")
    assert (unknown.status, unknown.json["code"]) == (404, "NOT_FOUND")


def test_a_path_says_its_verbs(call: Caller, shop: str) -> None:
    verbs = "DELETE, GET, HEAD, OPTIONS, PATCH, POST"
    answer = call("PUT", f"{shop}/items", {})
    assert (answer.status, answer.json["code"], answer.headers["allow"]) == (405, "UNIMPLEMENTED", verbs)
    answer = call("OPTIONS", f"{shop}/items")
    assert (answer.status, answer.body, answer.headers["allow"]) == (204, b"", verbs)
    assert (call("OPTIONS", "/v1/nothing").status, call("HEAD", shop).status) == (404, 200)


def test_what_a_path_describes_is_sent_once_and_packed(call: Caller) -> None:
    for path in ("/openapi.json", "/docs"):
        plain = call("GET", path)
        tag = {"if-none-match": plain.headers["etag"]}
        again = call("GET", path, headers=tag)
        assert (again.status, again.body) == (304, b"")
        packed = call("GET", path, headers={"accept-encoding": "gzip"})
        assert gzip.decompress(packed.body) == plain.body
        assert len(packed.body) < len(plain.body) / 2
        for refusing in ("gzip;q=0", "br, gzip; q=0.000", "identity"):
            assert call("GET", path, headers={"accept-encoding": refusing}).body == plain.body
        # One tag for other bytes may be weak only, and a cache must keep the two apart.
        assert packed.headers["etag"] == plain.headers["etag"]
        assert plain.headers["etag"].startswith('W/"')
        assert {answer.headers["vary"] for answer in (plain, packed, again)} == {"accept-encoding"}


def test_what_is_forgotten_is_said(call: Caller, shop: str) -> None:
    def said(*arguments: Any) -> str:
        answer = call(*arguments)
        assert answer.status in (400, 415)
        return str(answer.json["message"])

    form_of_curl = "application/x-www-form-urlencoded"
    assert "curl needs -H 'Content-Type: image/jpeg'" in said("POST", f"{shop}/items?key=a", png(1), form_of_curl)
    assert "curl needs -H 'Content-Type: application/json'" in said("PATCH", f"{shop}/items", b"{}", form_of_curl)
    assert said("POST", f"{shop}/items", png(1), "image/png").startswith("name the item: ?key=KEY")
    assert said("GET", f"{shop}/items").startswith("name the items: ?key=KEY")
    assert said("GET", f"{shop}/search?k=3").startswith("name an item: ?key=KEY")


def test_a_form_that_is_cut_off_stores_nothing(call: Caller, shop: str) -> None:
    body, kind = form(("image", "cut.png", png(1)), ("image", "off.png", png(2)))
    answer = call("POST", f"{shop}/items", body[:-20], kind)
    assert (answer.status, answer.json["message"]) == (400, "the form cannot be read: its last boundary is missing")
    assert call("GET", f"{shop}/items?key=cut.png").json["missing_keys"] == ["cut.png"]


def test_a_probe_and_a_scrape(call: Caller) -> None:
    assert call("GET", "/healthz").body == b"ok\n"
    assert call("HEAD", "/healthz").status == 200
    assert b"imagekin_calls_total" in call("GET", "/metrics").body
