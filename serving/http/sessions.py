"""Keep a caller's token in a cookie of the page's browser that no script can read.

`POST /v1/session` with a token sets the cookie, `DELETE` removes it, and `GET` says what the caller may do. A request
with the cookie and without an `Authorization` header counts as one with the cookie's token. So the session ends with
the browser, on `DELETE`, and with a reload of the tokens that no longer has its own; after a restart and at another
replica it goes on.

A browser sends cookies along with what other pages make it ask for. `SameSite=Strict` keeps it from doing so, and a
request that may change something must name this server as its `Origin` and carry the page's own header, which a page of
another origin cannot send.
"""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from imagekin.errors import ImagekinError, PermissionDeniedError
from imagekin.serving.http.endpoint import error_response
from imagekin.serving.transport.access import Guard, Scope

PATH = "/v1/session"
_COOKIE = "imagekin-session"
PAGE_HEADER = "x-imagekin-page"
_MAX_DIGITS = 5
_SAFE = ("GET", "HEAD", "OPTIONS")
_NOT_STORED = {"cache-control": "no-store"}

ASGI = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]


class Sessions:
    """Turn the session's cookie of a request into its `Authorization` header; other requests pass as they are."""

    def __init__(self, app: ASGI) -> None:
        self._app = app

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        cookies = [value for name, value in scope["headers"] if name == b"cookie"]
        if cookies:
            headers = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
            token = _token(b";".join(cookies), _cookie(headers))
            if token and not any(name == b"authorization" for name, _ in headers):
                if scope["method"] not in _SAFE and (refusal := _refusal(dict(headers))):
                    await error_response(refusal, "")(scope, receive, send)
                    return
                headers.append((b"authorization", b"Bearer " + token))
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def session_routes(guard: Guard | None, root: str) -> list[BaseRoute]:
    """Return the routes of the session.

    Args:
        guard: the tokens, None without.
        root: path below which a proxy serves the page, to which the cookie is confined.
    """

    async def describe(request: Request) -> Response:
        if guard is None:
            return JSONResponse({"scope": Scope.ADMIN.name.lower(), "token": False}, headers=_NOT_STORED)
        try:
            token = guard.check_header(request.headers.get("authorization", ""), Scope.READ)
        except ImagekinError as error:
            return error_response(error, "")
        return JSONResponse({"scope": token.scope.name.lower(), "token": True}, headers=_NOT_STORED)

    async def begin(request: Request) -> Response:
        refusal = _refusal(dict(request.headers.raw))
        if refusal is not None:
            return error_response(refusal, "")
        answer = await describe(request)
        if answer.status_code == 200 and guard is not None:
            given = urlsafe_b64encode(request.headers["authorization"].partition(" ")[2].strip().encode()).decode()
            # A proxy may have taken TLS off; the browser says under which scheme it sees the page.
            secure = request.headers["origin"].lower().startswith("https://")
            answer.set_cookie(
                _cookie(request.headers.raw), given, path=f"{root}/", secure=secure, httponly=True, samesite="strict"
            )
        return answer

    async def end(request: Request) -> Response:
        answer = Response(status_code=204, headers=_NOT_STORED)
        answer.delete_cookie(_cookie(request.headers.raw), path=f"{root}/", httponly=True, samesite="strict")
        return answer

    return [
        Route(PATH, describe, methods=["GET"]),
        Route(PATH, begin, methods=["POST"]),
        Route(PATH, end, methods=["DELETE"]),
    ]


def _refusal(headers: dict[bytes, bytes]) -> ImagekinError | None:
    """Return why a request that may change something is none of this server's page, None when it is one.

    The origin, which is only asked for here, has been compared with the server's by then.
    """
    if headers.get(b"origin") and headers.get(PAGE_HEADER.encode()):
        return None
    return PermissionDeniedError(
        f"a session is for this server's page alone, which sends its Origin and {PAGE_HEADER}: "
        "send the token as `Authorization: Bearer`",
        field="origin",
    )


def _cookie(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the cookie's name at the port that the browser sees.

    A browser has one cookie of a name for all ports of a host: logging in to one server would log out of another.
    """
    host = next((value for name, value in headers if name == b"host"), b"")
    port = host.rpartition(b":")[2]
    return f"{_COOKIE}-{port.decode()}" if b":" in host and port.isdigit() and len(port) <= _MAX_DIGITS else _COOKIE


def _token(cookies: bytes, wanted: str) -> bytes:
    """Return the token of the session, empty when there is none or it cannot be read."""
    for cookie in cookies.split(b";"):
        name, _, value = cookie.strip().partition(b"=")
        if name.decode("latin-1") == wanted:
            try:
                return urlsafe_b64decode(value)
            except binascii.Error:
                return b""
    return b""
