"""Convert answers to JSON: a converter is compiled once for each type of message, because answers have many of them."""

import functools
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2

from imagekin.serving.http.forms import Form, Kind, enum_texts, forms, json_path, kind_of_message
from imagekin.v1 import common_pb2

Convert = Callable[[Any], Any]
Put = Callable[[Any, dict[str, Any]], None]


def to_json(message: Message, *, base64: bool) -> bytes:
    """Return a message as JSON.

    Args:
        message: an answer.
        base64: write vectors in base64 instead of as arrays.
    """
    return msgspec.json.encode(_converter(message.DESCRIPTOR, base64)(message))


def item_error(message: common_pb2.ItemError) -> dict[str, str]:
    """Return the error of a batch's member in the form that errors of whole requests have."""
    status = message.status
    written = {"code": code_pb2.Code.Name(status.code), "message": status.message}
    for detail in status.details:
        request = error_details_pb2.BadRequest()
        if detail.Unpack(request) and request.field_violations:
            written["field"] = json_path(request.field_violations[0].field)
    return written


@functools.cache
def _converter(descriptor: Descriptor, base64: bool) -> Convert:
    """Compile the conversion of a message to what msgspec encodes."""
    kind = kind_of_message(descriptor)
    vector = _base64 if base64 else _array
    if kind is Kind.VECTOR:
        return lambda message: vector(message.data)
    if kind is Kind.VALUE:
        return lambda message: getattr(message, message.WhichOneof("kind") or "string_value")
    if kind is Kind.ITEM_ERROR:
        return item_error
    if kind is Kind.TIME:
        return lambda message: message.ToJsonString()
    puts = [_put(form, base64) for form in forms(descriptor).values()]

    def convert(message: Any) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for put in puts:
            put(message, written)
        return written

    return convert


def _put(form: Form, base64: bool) -> Put:
    """Compile the conversion of a field: a function that puts it into an object, unless it is absent."""
    name, proto_name = form.name, form.proto_name
    convert = _value_converter(form, base64)

    def put(message: Any, written: dict[str, Any]) -> None:
        written[name] = getattr(message, proto_name)

    def put_converted(message: Any, written: dict[str, Any]) -> None:
        written[name] = convert(getattr(message, proto_name))  # type: ignore[misc]  # it is None where this is not used

    def put_present(message: Any, written: dict[str, Any]) -> None:
        if message.HasField(proto_name):
            (put if convert is None else put_converted)(message, written)

    def put_filled(message: Any, written: dict[str, Any]) -> None:
        if getattr(message, proto_name):
            put_converted(message, written)

    def put_array(message: Any, written: dict[str, Any]) -> None:
        values = getattr(message, proto_name)
        written[name] = list(values) if convert is None else [convert(value) for value in values]

    if form.repeated:
        return put_array
    if form.kind in (Kind.OBJECT, Kind.HEX, Kind.BYTES, Kind.ENUM):
        return put_filled
    if form.descriptor.has_presence:
        return put_present
    return put if convert is None else put_converted


def _value_converter(form: Form, base64: bool) -> Convert | None:
    """Return the conversion of one value of a field, None where there is none to make."""
    if form.descriptor.message_type is not None:
        return _converter(form.descriptor.message_type, base64)
    if form.kind is Kind.OBJECT:
        return lambda text: msgspec.Raw(text.encode())
    if form.kind is Kind.HEX:
        return lambda data: data.hex()
    if form.kind is Kind.BYTES:
        return _base64
    if form.kind is Kind.RAW_VECTOR:
        return _base64 if base64 else _array
    if form.kind is Kind.ENUM and form.descriptor.enum_type is not None:
        texts = enum_texts(form.descriptor.enum_type)
        return lambda number: texts.get(number, str(number))
    return None


def _array(data: bytes) -> list[float]:
    values: list[float] = np.frombuffer(data, "<f4").tolist()
    return values


def _base64(data: bytes) -> str:
    return b64encode(data).decode()
