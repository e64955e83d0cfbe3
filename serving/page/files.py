"""Serve the page's files: from memory, packed, checked by the browser on every visit, under a strict policy."""

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

INDEX = "index.html"
VIEWS = "views"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Everything comes from this server. Pictures that were dropped and thumbnails are blobs of the page's own, and trusted
# types make every way from text to HTML an error, so that no label or key can become a program.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class _File:
    """A file of the page.

    Attributes:
        type: its media type.
        tag: names its contents.
        plain: the contents.
        packed: the contents by gzip.
    """

    type: str
    tag: str
    plain: bytes
    packed: bytes


def page_routes() -> list[BaseRoute]:
    """Return the routes of the page: `/`, `/page/NAME` and `/page/views/NAME`."""
    folder = files(__package__)
    found = {file.name: file for file in folder.iterdir()}
    found |= {f"{VIEWS}/{file.name}": file for file in (folder / VIEWS).iterdir()}
    held = {name: _read(file.read_bytes(), name) for name, file in found.items() if _type(name)}

    async def index(request: Request) -> Response:
        return _answer(request, held[INDEX])

    def route(name: str) -> Route:
        async def one(request: Request) -> Response:
            return _answer(request, held[name])

        return Route(f"/page/{name}", one)

    return [Route("/", index), *(route(name) for name in sorted(held) if name != INDEX)]


def _type(name: str) -> str:
    return _TYPES.get("." + name.rpartition(".")[2], "")


def _read(plain: bytes, name: str) -> _File:
    tag = f'"{hashlib.sha256(plain).hexdigest()[:32]}"'
    return _File(_type(name), tag, plain, gzip.compress(plain, 9, mtime=0))


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "etag": file.tag, "vary": "accept-encoding"}
    # A proxy may have weakened the tag when it packed the file anew.
    if file.tag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.packed, headers={**headers, "content-encoding": "gzip"}, media_type=file.type)
    return Response(file.plain, headers=headers, media_type=file.type)
