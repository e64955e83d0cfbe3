"""Read requests to embed without copying their images, and write answers with one copy of their vectors.

The protobuf library copies every `bytes` field twice, which is most of the cost of a request with large images. Clients
write these requests in one plain form, which is read here as views into the received bytes. Messages in any other form,
malformed or not, are left to the library, so that it alone decides what a message means.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError
from imagekin.v1 import common_pb2, embedder_pb2

# Keys of fields: number and wire type. Field 1, length-delimited, is that of EmbedRequest (images), Image (data),
# EmbedStreamRequest (batch), of their answers (results, batch) and of EmbedResult (vector).
_FIRST = 0x0A
_MODEL = 0x12
_ERROR = 0x12
_DIM = 0x10
_SPACE = 0x1A
_TAG = 0x10
_MAX_LENGTH_BYTES = 5
_MAX_NAME_BYTES = 1024
_MAX_NUMBER_BYTES = 10


class ImageView(NamedTuple):
    """An `imagekin.v1.Image` as a view of the bytes that hold it."""

    data: memoryview


class EmbedView(NamedTuple):
    """An `imagekin.v1.EmbedRequest` whose images are views."""

    images: list[ImageView]
    model: str


class EmbedStreamView(NamedTuple):
    """An `imagekin.v1.EmbedStreamRequest` whose images are views."""

    batch: EmbedView
    tag: int


AnyEmbed: TypeAlias = embedder_pb2.EmbedRequest | EmbedView
AnyEmbedStream: TypeAlias = embedder_pb2.EmbedStreamRequest | EmbedStreamView


# Answer for one image: its vector or its error.
Result: TypeAlias = NDArray[np.float32] | common_pb2.ItemError


class _OtherFormError(Exception):
    """A message is not in the plain form."""


def read_embed(data: bytes, most: int) -> EmbedView | None:
    """Read an EmbedRequest as views; return None when it is not in the plain form.

    Raises:
        InvalidArgumentError: it has more than `most` images.
    """
    try:
        return _embed(data, 0, len(data), most)
    except (_OtherFormError, IndexError):
        return None


def read_embed_stream(data: bytes, most: int) -> EmbedStreamView | None:
    """Read an EmbedStreamRequest likewise."""
    try:
        return _embed_stream(data, most)
    except (_OtherFormError, IndexError):
        return None


def write_embed(results: Sequence[Result], dim: int, space: str) -> bytes:
    """Serialise an EmbedResponse."""
    return b"".join(_response(results, dim, space))


def write_embed_stream(results: Sequence[Result], dim: int, space: str, tag: int) -> bytes:
    """Serialise an EmbedStreamResponse."""
    batch = _response(results, dim, space)
    head = _number(_FIRST, sum(map(len, batch)))
    return b"".join((head, *batch, _number(_TAG, tag) if tag else b""))


def write_members(members: Iterable[Message]) -> bytes:
    """Return messages as the field with number 1 of an answer, serialised; further fields can be put behind it.

    To serialise an answer of many members in one call would hold the interpreter's lock, and with it the event loop,
    for as long as that takes, also from another thread.
    """
    return join_members(member.SerializeToString() for member in members)


def join_members(members: Iterable[bytes]) -> bytes:
    """Return messages that are serialised already as the field with number 1 of an answer."""
    parts: list[bytes] = []
    for member in members:
        parts += (_number(_FIRST, len(member)), member)
    return b"".join(parts)


def _response(results: Sequence[Result], dim: int, space: str) -> list[bytes | memoryview]:
    """Return the parts of a serialised EmbedResponse."""
    parts: list[bytes | memoryview] = []
    for result in results:
        content: bytes | memoryview
        if isinstance(result, np.ndarray):
            content = np.ascontiguousarray(result, "<f4").data.cast("B")
            parts += (_head(_FIRST, len(content)), content)
        else:
            content = result.SerializeToString()
            parts += (_head(_ERROR, len(content)), content)
    parts.append(_tail(dim, space))
    return parts


# Cached, because all vectors of a model have the same length.
@functools.lru_cache(maxsize=64)
def _head(key: int, length: int) -> bytes:
    """Return the bytes in front of a result's content: the keys and lengths of the result and of its field."""
    field = _number(key, length)
    return _number(_FIRST, len(field) + length) + field


@functools.lru_cache(maxsize=64)
def _tail(dim: int, space: str) -> bytes:
    """Return the fields after the results."""
    text = space.encode()
    return (_number(_DIM, dim) if dim else b"") + (_number(_SPACE, len(text)) + text if text else b"")


def _number(key: int, value: int) -> bytes:
    """Encode a field's key and a number: its value, or the length of its content."""
    encoded = bytearray((key,))
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _embed_stream(data: bytes, most: int) -> EmbedStreamView:
    start, end = _field(data, 0, len(data), _FIRST)
    batch, tag = _embed(data, start, end, most), 0
    if end < len(data):
        if data[end] != _TAG:
            raise _OtherFormError
        tag, end = _varint(data, end + 1, _MAX_NUMBER_BYTES)
        if end != len(data) or tag >= 2**64:
            raise _OtherFormError
    return EmbedStreamView(batch, tag)


def _embed(data: bytes, at: int, end: int, most: int) -> EmbedView:
    images: list[ImageView] = []
    view = memoryview(data)
    while at < end and data[at] == _FIRST:
        start, at = _field(data, at, end, _FIRST)
        inner = start
        if start < at:
            inner, last = _field(data, start, at, _FIRST)
            if last != at:
                raise _OtherFormError
        if len(images) == most:
            # Stop here: a message has room for millions of empty images.
            raise InvalidArgumentError(f"images must hold 1 to {most} members", field="images")
        images.append(ImageView(view[inner:at]))
    model = ""
    if at < end:
        start, at = _field(data, at, end, _MODEL)
        if at != end or end - start > _MAX_NAME_BYTES:
            raise _OtherFormError
        try:
            model = data[start:end].decode()
        except UnicodeDecodeError:
            raise _OtherFormError from None
    return EmbedView(images, model)


def _field(data: bytes, at: int, end: int, key: int) -> tuple[int, int]:
    """Return the start and the end of the content of the field that begins here."""
    if data[at] != key:
        raise _OtherFormError
    length, start = _varint(data, at + 1, _MAX_LENGTH_BYTES)
    if start + length > end:
        raise _OtherFormError
    return start, start + length


def _varint(data: bytes, at: int, most: int) -> tuple[int, int]:
    """Read a number in its shortest encoding, and return it with its end."""
    value = 0
    for index in range(most):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if not byte and index:
                raise _OtherFormError
            return value, at + index + 1
    raise _OtherFormError
