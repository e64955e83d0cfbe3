"""Write the page of the gRPC services from the protos and their comments."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from imagekin.v1 import admin_pb2, collections_pb2, common_pb2, embedder_pb2, searcher_pb2
from reference.markdown import code, prose, table

_FILES = (embedder_pb2, searcher_pb2, collections_pb2, admin_pb2, common_pb2)


def grpc_page() -> str:
    """Return the page of services, methods, messages and enums."""
    # A script of a folder without a package, so that its google/ hides nothing.
    comments: Mapping[str, str] = importlib.import_module("protos.openapi").comments()
    return "\n".join(["# gRPC, method by method\n", _INTRODUCTION, *_services(comments), *_messages(comments)])


_INTRODUCTION = """The package is `imagekin.v1`; its protos lie in `protos/imagekin/v1` and need nothing else.
[The service](service.md) says how calls behave, [errors](errors.md) which statuses there are. Beside these services the
server answers `grpc.health.v1.Health`, reflection and KServe's `inference.GRPCInferenceService`.
"""


def _services(comments: Mapping[str, str]) -> Iterator[str]:
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            yield f"## {service.name}\n"
            yield prose(comments.get(service.full_name, "")) + "\n"
            rows = []
            for method in service.methods:
                asked = f"{'stream of ' * method.client_streaming}{_link(method.input_type)}"
                answered = f"{'stream of ' * method.server_streaming}{_link(method.output_type)}"
                rows.append((code(method.name), asked, answered, prose(comments.get(method.full_name, ""))))
            yield table(("method", "request", "answer", "does"), rows)


def _messages(comments: Mapping[str, str]) -> Iterator[str]:
    yield "## Messages\n"
    for file in _FILES:
        for message in file.DESCRIPTOR.message_types_by_name.values():
            yield from _message(message, comments)
        for one in file.DESCRIPTOR.enum_types_by_name.values():
            yield from _enum(one, comments)


def _message(message: Any, comments: Mapping[str, str]) -> Iterator[str]:
    yield f"### {_name(message)}\n"
    yield prose(comments.get(message.full_name, "")) + "\n"
    rows = [
        (code(field.name), _type(field), prose(comments.get(field.full_name, "")))
        for field in sorted(message.fields, key=lambda field: int(field.number))
    ]
    if rows:
        yield table(("field", "type", "meaning"), rows)
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            yield from _message(nested, comments)
    for one in message.enum_types:
        yield from _enum(one, comments)


def _enum(one: Any, comments: Mapping[str, str]) -> Iterator[str]:
    yield f"### {_name(one)}\n"
    yield prose(comments.get(one.full_name, "")) + "\n"
    rows = []
    for value in one.values:
        # A value's full name lies beside its enum's, not below it.
        said = comments.get(f"{one.full_name}.{value.name}") or comments.get(value.full_name, "")
        rows.append((code(value.name), str(value.number), prose(said)))
    yield table(("value", "number", "meaning"), rows)


def _type(field: Any) -> str:
    repeated = "repeated " * bool(field.is_repeated)
    target = field.message_type or field.enum_type
    if target is None:
        kinds = {number: name.removeprefix("TYPE_").lower() for name, number in _kinds().items()}
        return repeated + code(kinds[field.type])
    return repeated + (_link(target) if target.full_name.startswith("imagekin.") else code(target.full_name))


def _kinds() -> dict[str, int]:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    return dict(FieldDescriptorProto.Type.items())


def _link(target: Any) -> str:
    if not target.full_name.startswith("imagekin."):
        return code(target.full_name)
    return f"[{code(_name(target))}](#{_name(target).lower().replace('.', '')})"


def _name(target: Any) -> str:
    return str(target.full_name).removeprefix("imagekin.v1.")
