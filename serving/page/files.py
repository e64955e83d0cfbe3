"""Serve the page's files: from memory, packed, checked by the browser on every visit, under a strict policy."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from imagekin.serving.fixed_answers import FixedAnswer

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
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page_routes() -> list[BaseRoute]:
    """Return the routes of the page: `/`, `/page/NAME` and `/page/views/NAME`."""
    folder = files(__package__)
    found = {file.name: file for file in folder.iterdir()}
    found |= {f"{VIEWS}/{file.name}": file for file in (folder / VIEWS).iterdir()}
    held = {name: FixedAnswer(file.read_bytes(), _type(name)) for name, file in found.items() if _type(name)}

    async def index(request: Request) -> Response:
        return held[INDEX].to(request, _HEADERS)

    def route(name: str) -> Route:
        async def one(request: Request) -> Response:
            return held[name].to(request, _HEADERS)

        return Route(f"/page/{name}", one)

    return [Route("/", index), *(route(name) for name in sorted(held) if name != INDEX)]


def _type(name: str) -> str:
    return _TYPES.get("." + name.rpartition(".")[2], "")
