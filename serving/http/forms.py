"""Define the JSON form of messages: names as in the protos, and the plain form of what JSON has words of its own for.

| in the protos | in JSON |
|---|---|
| `Image` | its file in base64 |
| `Vector`, and bytes that are a vector | an array of numbers, or little-endian float32 in base64 |
| `payload_json`, `metadata_json` | `payload`, `metadata`: the JSON object itself |
| `content_hash` | 64 hexadecimal digits |
| other bytes | base64 |
| `Filter` | its text form as a string, or its tree as an object |
| `Conditions` | an array of its parts |
| `Value` | a string, number or boolean |
| an enum such as `METHOD_KNN` | the last part of its name in lower case: `knn` |
| `ItemError` | `{"code": "NOT_FOUND", "message": "…", "field": "…"}` |
| `Timestamp` | a text as of RFC 3339 |
"""

import enum
import functools
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

JSON_SUFFIX = "_json"
_VECTORS = frozenset({"imagekin.v1.EmbedResult.vector"})


class Kind(enum.Enum):
    """JSON form of one value of a field."""

    TEXT = enum.auto()
    INTEGER = enum.auto()
    NUMBER = enum.auto()
    BOOLEAN = enum.auto()
    ENUM = enum.auto()
    OBJECT = enum.auto()
    HEX = enum.auto()
    BYTES = enum.auto()
    RAW_VECTOR = enum.auto()
    IMAGE = enum.auto()
    VECTOR = enum.auto()
    FILTER = enum.auto()
    CONDITIONS = enum.auto()
    VALUE = enum.auto()
    ITEM_ERROR = enum.auto()
    TIME = enum.auto()
    MESSAGE = enum.auto()


_MESSAGES = {
    "imagekin.v1.Image": Kind.IMAGE,
    "imagekin.v1.Vector": Kind.VECTOR,
    "imagekin.v1.Filter": Kind.FILTER,
    "imagekin.v1.Conditions": Kind.CONDITIONS,
    "imagekin.v1.Value": Kind.VALUE,
    "imagekin.v1.ItemError": Kind.ITEM_ERROR,
    "google.protobuf.Timestamp": Kind.TIME,
}
_INTEGERS = frozenset(
    {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT32}
) | {FieldDescriptor.CPPTYPE_UINT64}
_NUMBERS = frozenset({FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE})


class Form(NamedTuple):
    """JSON form of a field.

    Attributes:
        name: its name in JSON.
        proto_name: its name in the protos.
        kind: form of its value, or of each value of a repeated field.
        repeated: whether it is an array of such values.
        optional: whether it may be absent although its value is no message.
        descriptor: the field.
    """

    name: str
    proto_name: str
    kind: Kind
    repeated: bool
    optional: bool
    descriptor: FieldDescriptor


@functools.cache
def forms(descriptor: Descriptor) -> dict[str, Form]:
    """Return the forms of a message's fields by their names in JSON."""
    return {form.name: form for form in map(_form, descriptor.fields)}


def kind_of_message(descriptor: Descriptor) -> Kind:
    """Return the form of a message."""
    return _MESSAGES.get(descriptor.full_name, Kind.MESSAGE)


@functools.cache
def enum_names(descriptor: EnumDescriptor) -> dict[str, int]:
    """Return the numbers of an enum's values by their names in JSON."""
    prefix = len(_common_prefix([value.name for value in descriptor.values]))
    return {value.name[prefix:].lower(): value.number for value in descriptor.values}


@functools.cache
def enum_texts(descriptor: EnumDescriptor) -> dict[int, str]:
    """Return the names of an enum's values in JSON by their numbers."""
    return {number: name for name, number in enum_names(descriptor).items()}


def json_path(field: str) -> str:
    """Return the path of a field that an error names, as it is in JSON."""
    return field.replace("payload_json", "payload")


def _form(field: FieldDescriptor) -> Form:
    name = field.name
    if name.endswith(JSON_SUFFIX) and field.type == FieldDescriptor.TYPE_STRING:
        name = name.removesuffix(JSON_SUFFIX)
    optional = field.has_presence and field.message_type is None
    return Form(name, field.name, _kind(field), bool(field.is_repeated), optional, field)


def _kind(field: FieldDescriptor) -> Kind:
    if field.message_type is not None:
        return kind_of_message(field.message_type)
    if field.enum_type is not None:
        return Kind.ENUM
    if field.type == FieldDescriptor.TYPE_BYTES:
        if field.full_name in _VECTORS:
            return Kind.RAW_VECTOR
        return Kind.HEX if field.name == "content_hash" else Kind.BYTES
    if field.cpp_type in _INTEGERS:
        return Kind.INTEGER
    if field.cpp_type in _NUMBERS:
        return Kind.NUMBER
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return Kind.BOOLEAN
    return Kind.OBJECT if field.name.endswith(JSON_SUFFIX) else Kind.TEXT


def _common_prefix(names: list[str]) -> str:
    """Return the words, each with its underscore, with which all names begin."""
    shortest = min(names)
    while shortest and not all(name.startswith(shortest) for name in names):
        shortest = shortest[:-1]
    return shortest[: shortest.rfind("_") + 1]
