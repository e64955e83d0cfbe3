"""Describe HTTP: `/openapi.json`, and a plain page of it at `/docs` that loads nothing and runs nothing."""

import html
import json
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from imagekin.serving.fixed_answers import FixedAnswer

_FILE = "openapi.json"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}code{font-family:ui-monospace,monospace}h2{font-size:1rem;margin:2rem 0 .3rem}dt{font-weight:600}"
    "dd{margin:0 0 .3rem 1.5rem}"
)


def description_routes() -> list[BaseRoute]:
    """Return the routes of the description and of its page."""
    text = (resources.files("imagekin") / "serving" / "http" / _FILE).read_bytes()
    description = FixedAnswer(text, "application/json")
    page = FixedAnswer(_page(json.loads(text)).encode(), "text/html")

    async def document(request: Request) -> Response:
        return description.to(request)

    async def readable(request: Request) -> Response:
        return page.to(request, {"content-security-policy": _POLICY})

    return [Route(f"/{_FILE}", document), Route("/docs", readable)]


def _page(document: dict[str, Any]) -> str:
    parts = [f"<h1>{_text(document['info']['title'])}</h1><p>{_text(document['info']['description'])}</p>"]
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            parts.append(f"<h2><code>{verb.upper()} {_text(path)}</code></h2><p>{_text(operation['summary'])}</p>")
            parts.append(_list({one["name"]: one.get("description", "") for one in operation["parameters"]}))
    parts.append("<h1>JSON</h1>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"<h2><code>{_text(name)}</code></h2><p>{_text(schema['description'])}</p>")
        parts.append(_list({one: field.get("description", "") for one, field in schema.get("properties", {}).items()}))
    title = _text(document["info"]["title"])
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f"{head}<body>{''.join(parts)}</body></html>"


def _list(entries: dict[str, str]) -> str:
    found = "".join(f"<dt><code>{_text(name)}</code><dd>{_text(said)}" for name, said in entries.items())
    return f"<dl>{found}</dl>" if found else ""


def _text(text: str) -> str:
    return html.escape(text)
