"""Convert JSON to request messages; every error names the field that is at fault."""

import binascii
import json
import math
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from imagekin.errors import InvalidArgumentError
from imagekin.serving.http.forms import Form, Kind, enum_names, forms

# Values hold the interpreter while they are made, and an empty object of two bytes takes 64. The vectors of 256 items
# with 2,048 components each are half as many numbers.
_MOST_VALUES = 1_000_000
_MOST_CONTAINERS = 50_000
_MOST_LEVELS = 40
# The largest float32; what is larger would become infinite.
_LARGEST = float(np.finfo(np.float32).max)

AnyMessage = TypeVar("AnyMessage", bound=Message)


def parse(data: bytes) -> Any:
    """Parse JSON from outside.

    Raises:
        InvalidArgumentError: it is no JSON, or has too many values.
    """
    if data.count(b",") > _MOST_VALUES or data.count(b"{") + data.count(b"[") > _MOST_CONTAINERS:
        raise InvalidArgumentError(
            f"a body holds at most {_MOST_VALUES:,} values and {_MOST_CONTAINERS:,} arrays and objects: "
            "send vectors in base64, or less at a time",
            field="request",
        )
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, msgspec.DecodeError) else "nested too deeply or not UTF-8"
        raise InvalidArgumentError(f"the body is no valid JSON: {reason}", field="request") from None


def fill(message: AnyMessage, values: object) -> AnyMessage:
    """Fill a message from the parsed JSON object of its form.

    Raises:
        InvalidArgumentError: a field is unknown, or its value is none of its type.
    """
    _fill(message, values, "", 0)
    return message


def read_parameter(form: Form, texts: list[str]) -> Any:
    """Convert the texts of a parameter in the query to the JSON value of a field.

    Raises:
        InvalidArgumentError: they are none, or there are several for one value.
    """
    if form.repeated:
        if form.kind is not Kind.TEXT:
            raise InvalidArgumentError(f"{form.name} is too much for a parameter: send it as JSON", field=form.name)
        return texts
    if len(texts) != 1:
        raise InvalidArgumentError(f"{form.name} is given twice", field=form.name)
    text = texts[0]
    if form.kind in (Kind.TEXT, Kind.ENUM, Kind.FILTER, Kind.HEX):
        return text
    if form.kind is Kind.BOOLEAN:
        known = {"true": True, "1": True, "": True, "false": False, "0": False}
        if text.lower() not in known:
            raise InvalidArgumentError(f"{form.name} must be true or false", field=form.name)
        return known[text.lower()]
    if form.kind in (Kind.INTEGER, Kind.NUMBER):
        try:
            return int(text[:40]) if form.kind is Kind.INTEGER else float(text[:40])
        except ValueError:
            raise InvalidArgumentError(f"{form.name} must be a number", field=form.name) from None
    if form.kind is Kind.OBJECT:
        return parse(text.encode("utf-8", "replace"))
    raise InvalidArgumentError(f"{form.name} is too much for a parameter: send it as JSON", field=form.name)


def _fill(message: Message, values: object, path: str, level: int) -> None:
    if not isinstance(values, dict):
        raise _wrong(path, "must be an object")
    if level > _MOST_LEVELS:
        raise _wrong(path, "is nested too deeply")
    known = forms(message.DESCRIPTOR)
    chosen: dict[str, str] = {}
    for name, value in values.items():
        form = known.get(name)
        where = f"{path}.{name}" if path else name
        if form is None:
            near = ", ".join(known)
            raise InvalidArgumentError(f"no field {name[:80]!r} here: there is {near}", field=where[:200])
        if value is None:
            continue
        group = form.descriptor.containing_oneof
        # A field that is `optional` is the only one of a group of its own.
        if group is not None and len(group.fields) > 1:
            if group.name in chosen:
                raise _wrong(where, f"cannot be given together with {chosen[group.name]}")
            chosen[group.name] = name
        if form.repeated:
            _fill_array(message, form, value, where, level)
        else:
            _fill_one(message, form, value, where, level)


def _fill_array(message: Message, form: Form, values: object, path: str, level: int) -> None:
    if not isinstance(values, list):
        raise _wrong(path, "must be an array")
    target = getattr(message, form.proto_name)
    if form.descriptor.message_type is not None:
        for position, value in enumerate(values):
            _fill_message(target.add(), form.kind, value, f"{path}[{position}]", level)
        return
    read = _SCALARS[form.kind]
    try:
        target.extend([read(form.descriptor, value, path) for value in values])
    except (ValueError, TypeError):
        raise _wrong(path, "holds a value that does not fit") from None


def _fill_one(message: Message, form: Form, value: object, path: str, level: int) -> None:
    if form.descriptor.message_type is not None:
        part = getattr(message, form.proto_name)
        # So that a message without any field counts as given.
        part.SetInParent()
        _fill_message(part, form.kind, value, path, level)
        return
    scalar = _SCALARS[form.kind](form.descriptor, value, path)
    try:
        setattr(message, form.proto_name, scalar)
    except (ValueError, TypeError):
        raise _wrong(path, "has a value that does not fit") from None


def _fill_message(message: Any, kind: Kind, value: object, path: str, level: int) -> None:
    if kind is Kind.IMAGE:
        message.data = _base64(value, path)
    elif kind is Kind.VECTOR:
        message.data = _vector(value, path)
        message.dim = len(message.data) // 4
    elif kind is Kind.FILTER:
        if isinstance(value, str):
            message.text = _text(message.DESCRIPTOR.fields_by_name["text"], value, path)
        else:
            message.condition.SetInParent()
            _fill(message.condition, value, path, level + 1)
    elif kind is Kind.CONDITIONS:
        if not isinstance(value, list):
            raise _wrong(path, "must be an array")
        if level > _MOST_LEVELS:
            raise _wrong(path, "is nested too deeply")
        for position, part in enumerate(value):
            _fill(message.parts.add(), part, f"{path}[{position}]", level + 1)
    elif kind is Kind.VALUE:
        _fill_value(message, value, path)
    else:
        _fill(message, value, path, level + 1)


def _fill_value(message: Any, value: object, path: str) -> None:
    kinds: Mapping[type, str] = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}
    name = kinds.get(type(value))
    if name is None:
        raise _wrong(path, "must be a string, a number or a boolean")
    try:
        setattr(message, name, value)
    except (ValueError, TypeError):
        raise _wrong(path, "does not fit: integers have 64 bits") from None


def _text(field: FieldDescriptor, value: object, path: str) -> str:
    if not isinstance(value, str):
        raise _wrong(path, "must be a string")
    return value


def _integer(field: FieldDescriptor, value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(path, "must be an integer")
    least = 0 if field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64) else -(2**63)
    if value < least:
        raise _wrong(path, "must not be negative")
    return value


def _number(field: FieldDescriptor, value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(path, "must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # A parameter may say nan or inf, which no number in JSON can be.
    if not abs(number) <= _LARGEST:
        raise _wrong(path, "must be a finite number")
    return number


def _boolean(field: FieldDescriptor, value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(path, "must be true or false")
    return value


def _enum(field: FieldDescriptor, value: object, path: str) -> int:
    names = enum_names(field.enum_type) if field.enum_type is not None else {}
    if not isinstance(value, str) or value not in names:
        raise _wrong(path, f"must be one of {', '.join(name for name, number in names.items() if number)}")
    return names[value]


def _object(field: FieldDescriptor, value: object, path: str) -> str:
    if not isinstance(value, dict):
        raise _wrong(path, "must be an object")
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise _wrong(path, "is no valid object") from None


def _hex(field: FieldDescriptor, value: object, path: str) -> bytes:
    try:
        return binascii.unhexlify(_text(field, value, path))
    except ValueError:
        raise _wrong(path, "must be hexadecimal digits") from None


def _base64(value: object, path: str) -> bytes:
    if not isinstance(value, str):
        raise _wrong(path, "must be base64 in a string")
    try:
        return b64decode(value, validate=True)
    except ValueError:
        raise _wrong(path, "is no valid base64") from None


def _vector(value: object, path: str) -> bytes:
    if isinstance(value, str):
        data = _base64(value, path)
        if len(data) % 4:
            raise _wrong(path, "is cut off: a component takes four bytes")
        return data
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float}:
        raise _wrong(path, "must be an array of numbers, or little-endian float32 in base64")
    try:
        wide = np.array(value, np.float64)
    except OverflowError:
        raise _wrong(path, "must hold finite numbers") from None
    if wide.size and not np.abs(wide).max() <= _LARGEST:
        raise _wrong(path, "must hold finite numbers")
    return wide.astype("<f4").tobytes()


_SCALARS: Mapping[Kind, Callable[[FieldDescriptor, object, str], Any]] = {
    Kind.TEXT: _text,
    Kind.INTEGER: _integer,
    Kind.NUMBER: _number,
    Kind.BOOLEAN: _boolean,
    Kind.ENUM: _enum,
    Kind.OBJECT: _object,
    Kind.HEX: _hex,
    Kind.BYTES: lambda field, value, path: _base64(value, path),
    Kind.RAW_VECTOR: lambda field, value, path: _vector(value, path),
}


def _wrong(path: str, what: str) -> InvalidArgumentError:
    where = path or "the body"
    return InvalidArgumentError(f"{where[:200]} {what}", field=path[:200] or "request")
