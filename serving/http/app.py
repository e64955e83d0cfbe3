"""Assemble the application: routes, the checks of `Host` and `Origin`, and what web pages of other origins may do."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute

from imagekin.addresses import is_loopback, socket_path, split_address
from imagekin.errors import ImagekinError, NotFoundError, PermissionDeniedError, UnimplementedError
from imagekin.serving.http.described import description_routes
from imagekin.serving.http.endpoint import TIMEOUT, Endpoint, error_response, packed
from imagekin.serving.http.kserve import kserve_routes
from imagekin.serving.http.maps import points_route
from imagekin.serving.http.pictures import thumbnail_route
from imagekin.serving.http.reviews import review_route
from imagekin.serving.http.routes import ROUTES
from imagekin.serving.http.sessions import Sessions, session_routes
from imagekin.serving.observability.logs import REQUEST_ID
from imagekin.serving.page.files import page_routes
from imagekin.serving.settings import Settings
from imagekin.serving.transport.access import Guard
from imagekin.serving.transport.calls import Calls
from imagekin.serving.transport.status import public_error

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SAFE = ("GET", "HEAD", "OPTIONS")
_VERBS = ("GET", "POST", "PATCH", "DELETE")
_ALLOWED_HEADERS = ("authorization", "content-type", "content-encoding", TIMEOUT, REQUEST_ID)
_EXPOSED_HEADERS = (REQUEST_ID, "retry-after", "etag")
_PREFLIGHT_SECONDS = 3_600


class MethodNotAllowedError(UnimplementedError):
    """The path is there, but not with this verb."""

    http_status = 405


def build(
    settings: Settings,
    calls: Calls,
    is_serving: Callable[[], bool],
    registry: CollectorRegistry | None,
    check_reader: Callable[[str], None],
    guard: Guard | None = None,
) -> App:
    """Assemble the application.

    Args:
        settings: the server's settings, with an address for HTTP.
        calls: makes the calls.
        is_serving: returns whether the server takes calls.
        registry: the metrics, None for none.
        check_reader: raises an ImagekinError unless the value of an Authorization header allows reading.
        guard: the tokens, None without.
    """

    async def health(request: Request) -> Response:
        ready = is_serving()
        return PlainTextResponse("ok\n" if ready else "not serving\n", 200 if ready else 503)

    async def metrics(request: Request) -> Response:
        try:
            check_reader(request.headers.get("authorization", ""))
            if registry is None:
                raise NotFoundError("nothing is measured")
        except ImagekinError as error:
            return error_response(error, "")
        text = await asyncio.to_thread(generate_latest, registry)
        body, headers = packed(request, text)
        return Response(body, media_type=CONTENT_TYPE_LATEST, headers=headers)

    routes: list[BaseRoute] = [
        StarletteRoute(route.path, _endpoint(Endpoint(route, calls)), methods=[route.verb]) for route in ROUTES
    ]
    routes += [StarletteRoute("/healthz", health), StarletteRoute("/metrics", metrics)]
    routes += [
        thumbnail_route(calls),
        review_route(calls, settings.limits),
        points_route(calls),
        *description_routes(),
        *kserve_routes(calls),
        *page_routes(),
    ]
    routes += session_routes(guard, settings.http_root_path)
    app: App = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})
    app.router.redirect_slashes = False  # type: ignore[attr-defined]
    app = Sessions(app)
    if settings.cors_origin:
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origin,
            allow_methods=_VERBS,
            allow_headers=_ALLOWED_HEADERS,
            expose_headers=_EXPOSED_HEADERS,
            max_age=_PREFLIGHT_SECONDS,
        )
    address = settings.http_address or settings.address
    # No page reaches a Unix socket.
    is_local = socket_path(address) is None and is_loopback(split_address(address)[0])
    hosts = {name.lower() for name in settings.http_host} if is_local else None
    return Gate(app, hosts, settings.cors_origin, settings.http_root_path)


class Gate:
    """Refuse requests that a web page of somebody else makes in its visitor's name, and strip the root path.

    A page can have its own name resolved to this machine's loopback address, which makes this server part of its
    origin: so the names by which a loopback address may be called are known. And a page can send simple requests to any
    server, whose answers it only cannot read: so what changes anything needs the same origin, or one that was allowed.

    Args:
        app: the application.
        hosts: names by which callers may call, besides those of this machine; None for any.
        origins: origins of pages that may call.
        root: path below which a proxy serves the application, whether the proxy strips it or not.
    """

    def __init__(self, app: App, hosts: Collection[str] | None, origins: Collection[str], root: str) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins
        self._root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if self._root and (scope["path"] + "/").startswith(self._root + "/"):
            scope["path"] = scope["path"][len(self._root) :] or "/"
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await error_response(refusal, "")(scope, receive, send)

    def _refusal(self, scope: Scope) -> ImagekinError | None:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and host and not self._is_known(host):
            return PermissionDeniedError(
                f"{host[:100]!r} is no name of this server: call it localhost, or start it with --http-host",
                field="host",
            )
        origin = headers.get(b"origin")
        if origin is None or scope["method"] in _SAFE:
            return None
        given = origin.decode("latin-1")
        if given in self._origins or "*" in self._origins or (given != "null" and _netloc(given) == host.lower()):
            return None
        return PermissionDeniedError(
            f"pages of {given[:100]!r} may not call: start the server with --cors-origin {given[:100]}", field="origin"
        )

    def _is_known(self, host: str) -> bool:
        name = _hostname(host)
        return is_loopback(name) or (self._hosts is not None and name in self._hosts)


def _endpoint(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    # A function, because Starlette takes other callables for applications.
    async def answer(request: Request) -> Response:
        return await endpoint(request)

    return answer


async def _refused(request: Request, error: Exception) -> Response:
    """Answer where there is no route, or none with the verb."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = _allowed(request)
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"allow": allowed})
        refusal = error_response(MethodNotAllowedError(f"{request.method} is not for this path: {allowed} are"), "")
        refusal.headers["allow"] = allowed
        return refusal
    return error_response(NotFoundError("there is nothing at this path: see /openapi.json"), "")


def _allowed(request: Request) -> str:
    """Return the verbs of all routes of a request's path."""
    path = request.scope["path"]
    verbs = {
        verb
        for route in request.app.router.routes
        if isinstance(route, StarletteRoute) and route.path_regex.match(path)
        for verb in route.methods or ()
    }
    return ", ".join(sorted({*verbs, "OPTIONS"}))


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(public_error(error, request.url.path), "")


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
