"""Write the page of the HTTP routes from the OpenAPI document that the server answers with."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reference.markdown import code, prose, table

_DOCUMENT = Path(__file__).resolve().parents[1] / "serving" / "http" / "openapi.json"


def http_page() -> str:
    """Return the page of routes, parameters and JSON objects."""
    document = json.loads(_DOCUMENT.read_text(encoding="utf-8"))
    parts = ["# HTTP, route by route\n", _INTRODUCTION]
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            parts.extend(_operation(path, verb, operation))
    parts.append("## Objects\n")
    for name, schema in document["components"]["schemas"].items():
        parts.extend(_schema(name, schema))
    return "\n".join(parts)


_INTRODUCTION = """Generated from the document that the server answers at `/openapi.json`, and shows at `/docs`.
[HTTP and JSON](http.md) has examples and the rules.
"""


def _operation(path: str, verb: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {verb.upper()} {prose(path)}\n"
    yield prose(operation.get("summary", "")) + "\n"
    rows = [
        (
            code(one["name"]) + " (required)" * bool(one.get("required")),
            one["in"],
            _type(one["schema"]),
            prose(one.get("description", "")),
        )
        for one in operation.get("parameters", ())
    ]
    if rows:
        yield table(("parameter", "in", "type", "meaning"), rows)
    if body := operation.get("requestBody"):
        yield (
            "Body: " + "; ".join(f"{code(kind)} {_type(one['schema'])}" for kind, one in body["content"].items()) + "\n"
        )
    for kind, one in operation["responses"].get("200", {}).get("content", {}).items():
        yield f"Answer: {code(kind)} {_type(one['schema'])}\n"


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    yield prose(schema.get("description", "")) + "\n"
    rows = [
        (code(field), _type(one), prose(one.get("description", "")))
        for field, one in schema.get("properties", {}).items()
    ]
    if rows:
        yield table(("member", "type", "meaning"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    """Return a schema in a few words, with a link where it has a name."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("enum"):
        return ", ".join(code(str(one)) for one in choices)
    for key in ("oneOf", "anyOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[key]))
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    kind = schema.get("type", "")
    shown = " or ".join(kind) if isinstance(kind, list) else str(kind)
    form = schema.get("format")
    return f"{shown} ({form})" if form else shown
