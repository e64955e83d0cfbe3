"""Generate `openapi.json` from the protos and their comments: `python protos/openapi.py [OUT]`.

The routes are those of `serving/http/routes.py`, the forms of JSON those of `serving/http/forms.py`; the comments are
read from the protos. OUT is by default `serving/http/openapi.json`, where the file is checked in and served from.
`tests/serving/http/test_openapi.py` runs it and compares.
"""

import json
import re
import sys
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import google.rpc
import grpc_tools  # type: ignore[import-untyped]
from google.protobuf.descriptor import Descriptor, EnumDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from imagekin.errors import error_classes
from imagekin.serving.http.forms import Form, Kind, enum_names, forms
from imagekin.serving.http.maps import PATH as POINTS
from imagekin.serving.http.pictures import PATH as THUMBNAIL
from imagekin.serving.http.reviews import MEDIA_TYPE as LINES
from imagekin.serving.http.reviews import PATH as REVIEW
from imagekin.serving.http.routes import ROUTES, Route
from imagekin.version import installed_version

PROTOS = Path(__file__).resolve().parent
OUT = PROTOS.parent / "serving" / "http" / "openapi.json"
_ERROR = {"$ref": "#/components/schemas/Error"}
_VECTOR = {
    "description": "Numbers, or their little-endian float32 in base64.",
    "oneOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string", "format": "byte"}],
}
_SIMPLE: dict[Kind, dict[str, Any]] = {
    Kind.TEXT: {"type": "string"},
    Kind.INTEGER: {"type": "integer", "format": "int64"},
    Kind.NUMBER: {"type": "number"},
    Kind.BOOLEAN: {"type": "boolean"},
    Kind.OBJECT: {"type": "object", "additionalProperties": True},
    Kind.HEX: {"type": "string", "pattern": "^([0-9a-f]{64})?$"},
    Kind.BYTES: {"type": "string", "format": "byte"},
    Kind.IMAGE: {"type": "string", "format": "byte"},
    Kind.TIME: {"type": "string", "format": "date-time"},
    Kind.VECTOR: _VECTOR,
    Kind.RAW_VECTOR: _VECTOR,
    Kind.ITEM_ERROR: _ERROR,
    Kind.VALUE: {"type": ["string", "number", "boolean"]},
}
# In a query an object is its JSON, and a filter its text.
_IN_QUERY: dict[Kind, dict[str, Any]] = {
    Kind.OBJECT: {"type": "string", "contentMediaType": "application/json"},
    Kind.FILTER: {"type": "string"},
}
_FILE = {"type": "string", "format": "binary"}
_VECTORS = "VectorForm"
# Media types that generators of clients know; `image/jpeg` and its like are taken as well.
_PICTURE_BODIES: dict[str, dict[str, Any]] = {
    "application/octet-stream": {"schema": _FILE},
    "multipart/form-data": {"schema": {"$ref": "#/components/schemas/ImageFiles"}},
}


def comments() -> dict[str, str]:
    """Return the comments of the protos by the full names of what they stand above."""
    found: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        target = Path(folder) / "protos.bin"
        well_known = resources.files(grpc_tools) / "_proto"
        google_rpc = Path(next(iter(google.rpc.__path__))).parent.parent
        sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "imagekin" / "v1").glob("*.proto"))
        flags = [f"-I{PROTOS}", f"-I{well_known}", f"-I{google_rpc}", "--include_source_info", f"-o{target}"]
        if protoc.main(["protoc", *flags, *sources]) != 0:
            raise RuntimeError("protoc refused a file, see above")
        files = FileDescriptorSet.FromString(target.read_bytes()).file
    for file in files:
        for location in file.source_code_info.location:
            if location.leading_comments:
                name = _name(file, list(location.path))
                found[f"{file.package}.{name}"] = " ".join(location.leading_comments.split())
    return found


def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    said = comments()
    schemas: dict[str, Any] = {
        "Error": {
            "type": "object",
            "description": "Why a request, or a member of a batch, was not served.",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string", "enum": sorted(error_classes()), "description": "Name of the gRPC code."},
                "message": {"type": "string", "description": "One line that says what to do."},
                "field": {"type": "string", "description": "Path of the field at fault, if one is."},
            },
        },
        "ImageFiles": {
            "type": "object",
            "description": "Image files; the name of each is its key where items are stored.",
            "required": ["image"],
            "properties": {"image": {"type": "array", "items": _FILE, "description": "The files."}},
        },
        _VECTORS: {
            "type": "string",
            "enum": ["arrays", "base64"],
            "description": "The form of vectors in the answer: arrays of numbers, or their float32 in base64.",
        },
    }
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.verb.lower()] = _operation(route, said, schemas)
    jpeg = {"image/jpeg": {"schema": _FILE}}
    paths[THUMBNAIL] = {
        "get": {
            "operationId": "thumbnail",
            "summary": "Returns the small picture of an item, with an ETag.",
            "parameters": [
                _parameter("collection", "path", {"type": "string"}, "The collection's name."),
                _parameter("key", "query", {"type": "string"}, "The item's key.", required=True),
            ],
            "responses": {"200": {"description": "A JPEG file.", "content": jpeg}, "default": _failed()},
        }
    }
    number = {"type": "number"}
    paths[REVIEW] = {
        "get": {
            "operationId": "review",
            "summary": "Finds likely wrong labels, near-duplicates, outliers and what to label next.",
            "parameters": [
                _parameter("collection", "path", {"type": "string"}, "The collection's name."),
                _parameter("duplicates", "query", number, "Likeness from which two items are near-duplicates."),
                _parameter("neighbours", "query", {"type": "integer"}, "Neighbours of each item that vote; 30."),
                _parameter("limit", "query", {"type": "integer"}, "Findings of each kind at most; 1,000."),
                _parameter("next", "query", {"type": "integer"}, "Items to label next at most; 50."),
            ],
            "responses": {
                "200": {
                    "description": "JSON on a line each: `done` of `total` items, and last the lists, or an `error`.",
                    "content": {LINES: {"schema": {"type": "string"}}},
                },
                "default": _failed(),
            },
        }
    }
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    paths[POINTS] = {
        "get": {
            "operationId": "map_points",
            "summary": "Returns the map as a browser draws it, with an ETag.",
            "parameters": [
                _parameter("collection", "path", {"type": "string"}, "The collection's name."),
                _parameter("field", "query", {"type": "string"}, said["imagekin.v1.GetMapRequest.field"]),
            ],
            "responses": {
                "200": {
                    "description": "The length of a JSON object as a little-endian uint32; the object, which is that of"
                    " GET …/map without positions and codes, filled up with spaces so that what follows begins at a"
                    " multiple of four bytes; the positions; the codes.",
                    "content": binary,
                },
                "default": _failed(),
            },
        }
    }
    for operations in paths.values():
        for operation in operations.values():
            # What has no method of its own is about the items of a collection.
            operation.setdefault("tags", ["Collections"])
    return {
        "openapi": "3.1.0",
        "info": {"title": "imagekin", "version": installed_version(), "description": _ABOUT},
        "tags": [{"name": one.name, "description": said[one.full_name]} for one in _services()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


_BODY = (
    "JSON; or an image file, as application/octet-stream or as its own type, such as image/jpeg, with the parameters "
    "in the query; or one or several image files in a form."
)
_ABOUT = "Finds which images are alike and what they are. Fields are those of the protos; see docs/reference/http.md."


def _operation(route: Route, said: dict[str, str], schemas: dict[str, Any]) -> dict[str, Any]:
    method = route.descriptor
    inputs = forms(method.input_type)
    in_path = re.findall(r"{(\w+)}", route.path)
    parameters = [
        _parameter(name, "path", _field(inputs[name], said, schemas), said.get(_full(inputs[name]), ""))
        for name in in_path
    ]
    query = [form for name, form in inputs.items() if name not in in_path and _is_scalar(form)]
    if route.member:
        members = forms(inputs[route.member].descriptor.message_type)  # type: ignore[arg-type]  # members are messages
        query += [members[name] for name in route.member_fields]
    for alias, name in route.aliases.items():
        schema = _field(inputs[name], said, schemas)
        parameters.append(_parameter(alias, "query", schema, said.get(_full(inputs[name]), "")))
    parameters += [
        _parameter(form.name, "query", _IN_QUERY.get(form.kind) or _field(form, said, schemas), said[_full(form)])
        for form in query
    ]
    if _holds_vectors(method.output_type):
        about = "The form of vectors in the answer."
        parameters.append(_parameter("vectors", "query", {"$ref": f"#/components/schemas/{_VECTORS}"}, about))
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "tags": [method.containing_service.name],
        "summary": said.get(method.full_name, ""),
        "parameters": parameters,
        "responses": {
            "200": {
                "description": said.get(method.output_type.full_name, "The answer."),
                "content": {"application/json": {"schema": _message(method.output_type, said, schemas)}},
            },
            "default": _failed(),
        },
    }
    if route.verb in ("POST", "PATCH"):
        content: dict[str, Any] = {
            "application/json": {"schema": _message(method.input_type, said, schemas, without=tuple(in_path))}
        }
        operation["requestBody"] = {"required": route.takes_pictures, "content": content}
        if route.takes_pictures:
            content |= _PICTURE_BODIES
            operation["requestBody"]["description"] = _BODY
    return operation


def _operation_id(route: Route) -> str:
    method = route.method.rpartition("/")[2]
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()
    if route.verb in ("POST", "PATCH") or len([one for one in ROUTES if one.method == route.method]) == 1:
        return name
    return f"{name}_by_key" if route.aliases or route.member_fields else f"{name}_by_query"


def _services() -> list[ServiceDescriptor]:
    """Return the services of the routes, each once, in their order."""
    return list(
        {route.descriptor.containing_service.name: route.descriptor.containing_service for route in ROUTES}.values()
    )


def _holds_vectors(descriptor: Descriptor) -> bool:
    """Return whether a message has a vector somewhere inside."""
    return any(
        form.kind in (Kind.VECTOR, Kind.RAW_VECTOR)
        or (form.kind is Kind.MESSAGE and _holds_vectors(form.descriptor.message_type))
        for form in forms(descriptor).values()
    )


def _message(
    descriptor: Descriptor, said: dict[str, str], schemas: dict[str, Any], without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a reference to a message's schema, which is added to the others."""
    name = descriptor.name
    if name not in schemas:
        schemas[name] = {}
        properties = {}
        for form in forms(descriptor).values():
            if form.name in without:
                continue
            comment = said.get(_full(form), "")
            properties[form.name] = {**_field(form, said, schemas), **({"description": comment} if comment else {})}
        schemas[name] = {
            "type": "object",
            "description": said.get(descriptor.full_name, ""),
            "properties": properties,
            "additionalProperties": False,
        }
    return {"$ref": f"#/components/schemas/{name}"}


def _field(form: Form, said: dict[str, str], schemas: dict[str, Any]) -> dict[str, Any]:
    schema = _value(form, said, schemas)
    return {"type": "array", "items": schema} if form.repeated else dict(schema)


def _value(form: Form, said: dict[str, str], schemas: dict[str, Any]) -> dict[str, Any]:
    kind, message = form.kind, form.descriptor.message_type
    if kind is Kind.ENUM and form.descriptor.enum_type is not None:
        return _enum(form.descriptor.enum_type, said, schemas)
    if message is None or kind in _SIMPLE:
        return _SIMPLE[kind]
    inner = {field.name: field.message_type for field in message.fields if field.message_type is not None}
    if kind is Kind.FILTER:
        return {"oneOf": [{"type": "string"}, _message(inner["condition"], said, schemas)]}
    if kind is Kind.CONDITIONS:
        return {"type": "array", "items": _message(inner["parts"], said, schemas)}
    return _message(message, said, schemas)


def _enum(descriptor: EnumDescriptor, said: dict[str, str], schemas: dict[str, Any]) -> dict[str, Any]:
    """Return a reference to an enum's schema, which is added to the others."""
    outer = descriptor.containing_type
    name = descriptor.name if outer is None else f"{outer.name}{descriptor.name}"
    names = [one for one, number in enum_names(descriptor).items() if number]
    schemas[name] = {"type": "string", "enum": names, "description": said[descriptor.full_name]}
    return {"$ref": f"#/components/schemas/{name}"}


def _is_scalar(form: Form) -> bool:
    return not form.repeated and (form.descriptor.message_type is None or form.kind is Kind.FILTER)


def _parameter(
    name: str, place: str, schema: dict[str, Any], comment: str, *, required: bool = False
) -> dict[str, Any]:
    found = {"name": name, "in": place, "required": required or place == "path", "schema": schema}
    return {**found, "description": comment} if comment else found


def _failed() -> dict[str, Any]:
    return {"description": "The request was not served.", "content": {"application/json": {"schema": _ERROR}}}


def _full(form: Form) -> str:
    return str(form.descriptor.full_name)


def _name(file: Any, path: list[int]) -> str:
    """Return the name, without its package, of what a path of numbers leads to (`SourceCodeInfo.Location.path`)."""
    names: list[str] = []
    here: Any = file
    for number, position in zip(path[::2], path[1::2], strict=False):
        field = here.DESCRIPTOR.fields_by_number[number]
        here = getattr(here, field.name)[position]
        names.append(here.name)
    return ".".join(names)


def generate(out: Path = OUT) -> None:
    """Write the document."""
    out.write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
