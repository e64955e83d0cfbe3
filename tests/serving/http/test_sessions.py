"""The page's session: a cookie that no script reads, worth no more than its token, and nothing to other pages."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imagekin.serving.settings import Settings
from tests.serving.http.calling import Caller, calling
from tests.serving.running import Running, running

READER, WRITER, ADMIN = (f"{scope}-token-{scope}-token" for scope in ("read", "write", "admin"))


def write_tokens(path: Path, *tokens: str) -> None:
    path.touch(mode=0o600)
    scopes = (token.partition("-")[0] for token in tokens)
    path.write_text(
        "".join(f'[[token]]\nname = "{s}"\nscope = "{s}"\ntoken = "{t}"\n' for s, t in zip(scopes, tokens, strict=True))
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    write_tokens(path, READER, WRITER, ADMIN)
    return path


@pytest.fixture(scope="module")
def protected(model_path: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = Settings(
        address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        http_root_path="/images",
        models=(("tiny", model_path),),
        data_dir=tmp_path_factory.mktemp("data"),
        tokens_file=tokens,
    )
    with running(settings) as server:
        yield server


@pytest.fixture
def call(protected: Running) -> Iterator[Caller]:
    with calling(protected.server.http_port) as caller:
        yield caller


def page(server: Running, **more: str) -> dict[str, str]:
    """Return the headers that the page sends."""
    return {"origin": f"http://127.0.0.1:{server.server.http_port}", "x-imagekin-page": "1", **more}


def begin(call: Caller, server: Running, token: str) -> str:
    """Begin a session and return its cookie, as a browser sends it."""
    answer = call("POST", "/v1/session", headers=page(server, authorization=f"Bearer {token}"))
    assert answer.status == 200
    cookie, *rest = answer.headers["set-cookie"].split("; ")
    assert {one.lower() for one in rest} == {"httponly", "samesite=strict", "path=/images/"}
    assert token not in cookie
    return cookie


def test_a_session_is_worth_its_token(call: Caller, protected: Running) -> None:
    shop = {"name": "shop", "space": "s", "dim": 2}
    for token, status in ((READER, 403), (WRITER, 200)):
        cookie = begin(call, protected, token)
        said = call("GET", "/v1/session", headers={"cookie": f"theme=dark; {cookie}; x={{y}}"})
        assert said.json == {"scope": token.partition("-")[0], "token": True}
        assert call("GET", "/v1/collections", headers={"cookie": cookie}).status == 200
        assert call("POST", "/v1/collections", shop, headers=page(protected, cookie=cookie)).status == status
    # An Authorization header comes before the cookie.
    assert call("GET", "/v1/collections", headers={"cookie": cookie, "authorization": "Bearer no"}).status == 401


@pytest.mark.parametrize(
    "changed",
    [
        {"origin": ""},
        {"origin": "http://elsewhere"},
        {"origin": "null"},
        {
            "origin": "http://[",
        },
        {"x-imagekin-page": ""},
    ],
)
def test_what_another_page_can_have_a_browser_send_changes_nothing(
    call: Caller, protected: Running, changed: dict[str, str]
) -> None:
    cookie = begin(call, protected, WRITER)
    headers = {name: value for name, value in (page(protected, cookie=cookie) | changed).items() if value}
    other = {"name": "other", "space": "s", "dim": 2}
    assert call("POST", "/v1/collections", other, headers=headers).status == 403
    assert call("DELETE", "/v1/collections/other", headers=headers).status == 403
    headers = {name: value for name, value in (page(protected) | changed).items() if value}
    refused = call("POST", "/v1/session", headers={**headers, "authorization": f"Bearer {WRITER}"})
    assert (refused.status, "set-cookie" in refused.headers) == (403, False)


def test_no_session_begins_without_a_token_that_is_known(call: Caller, protected: Running) -> None:
    for given in ({}, {"authorization": "Bearer unknown-unknown-unknown"}):
        refused = call("POST", "/v1/session", headers=page(protected, **given))
        assert (refused.status, "set-cookie" in refused.headers) == (401, False)
    for value in ("", "%%%", "a", "/w=="):
        cookie = f"imagekin-session-{protected.server.http_port}={value}"
        assert call("GET", "/v1/session", headers={"cookie": cookie}).status == 401


def test_servers_at_two_ports_of_a_host_have_sessions_of_their_own(call: Caller, protected: Running) -> None:
    def at(host: str, **more: str) -> dict[str, str]:
        return page(protected, **more) | {"host": host, "origin": f"http://{host}"}

    hosts = {
        "localhost": "imagekin-session",
        "localhost:8080": "imagekin-session-8080",
        "localhost:8081": "imagekin-session-8081",
        "[::1]:8082": "imagekin-session-8082",
        "[::1]": "imagekin-session",
    }
    for host, name in hosts.items():
        begun = call("POST", "/v1/session", headers=at(host, authorization=f"Bearer {READER}"))
        assert begun.status == 200
        cookie = begun.headers["set-cookie"].partition(";")[0]
        assert cookie.partition("=")[0] == name
        ended = call("DELETE", "/v1/session", headers=at(host, cookie=cookie))
        assert ended.headers["set-cookie"].partition("=")[0] == name
        known = {other for other in hosts if call("GET", "/v1/session", headers=at(other, cookie=cookie)).status == 200}
        assert known == {other for other in hosts if hosts[other] == name}


def test_over_tls_the_cookie_goes_over_tls_alone(call: Caller, protected: Running) -> None:
    headers = page(protected, authorization=f"Bearer {READER}")
    answer = call("POST", "/v1/session", headers={**headers, "origin": headers["origin"].replace("http", "https")})
    assert "secure" in answer.headers["set-cookie"].lower().split("; ")


def test_logging_out_removes_the_cookie(call: Caller, protected: Running) -> None:
    answer = call("DELETE", "/v1/session", headers=page(protected, cookie=begin(call, protected, READER)))
    assert answer.status == 204
    assert "max-age=0" in answer.headers["set-cookie"].lower()


def test_a_reload_without_the_token_ends_its_sessions(call: Caller, protected: Running, tokens: Path) -> None:
    reader, admin = begin(call, protected, READER), begin(call, protected, ADMIN)
    write_tokens(tokens, WRITER, ADMIN)
    try:
        assert call("POST", "/v1/reload", {}, headers=page(protected, cookie=admin)).status == 200
        assert call("GET", "/v1/collections", headers={"cookie": reader}).status == 401
        assert call("GET", "/v1/collections", headers={"cookie": admin}).status == 200
    finally:
        write_tokens(tokens, READER, WRITER, ADMIN)
        assert call("POST", "/v1/reload", {}, headers=page(protected, cookie=admin)).status == 200


def test_without_tokens_everybody_may_do_everything(model_path: Path, tmp_path: Path) -> None:
    models = (("tiny", model_path),)
    settings = Settings(address="127.0.0.1:0", http_address="127.0.0.1:0", models=models, data_dir=tmp_path)
    with running(settings) as server, calling(server.server.http_port) as call:
        assert call("GET", "/v1/session").json == {"scope": "admin", "token": False}
