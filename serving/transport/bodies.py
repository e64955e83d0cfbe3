"""Read request bodies: limit the bytes, decompress within that limit, and count the fields before parsing.

gRPC itself has one limit for all methods and decompresses up to it before a call can be refused. So it hands compressed
messages over as they are (`imagekin.serving.transport.listening`), and they are decompressed here, up to the limit of
their method. Parsing time grows with the number of fields, not of bytes: the fields of a large message are counted
before it is parsed. Large bodies are read in a thread.
"""

import asyncio
import functools
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from imagekin.errors import InvalidArgumentError, ResourceExhaustedError
from imagekin.serving.settings import Limits
from imagekin.serving.transport.callers import CALLER, most_of_one

# Requests of names, numbers and short lists, for methods that are not named below.
_SMALL_BYTES = 64 * 1024
# A filter of 1,000 keys of 512 bytes, and as much again.
_FILTER_BYTES = 2**20
_KEY_BYTES = 520

# Of so many bytes a message of nothing but fields is parsed within a millisecond.
_PARSED_HERE_BYTES = 32 * 1024
_MOST_FIELDS = 50_000
# A packed number costs a small part of a field.
_PACKED_PER_FIELD = 64
# Names and payloads have far less, and each is an error of its own that says so.
_MOST_TEXT_BYTES = 2**20

# Text shrinks to a tenth, embeddings and images hardly at all; a higher ratio is an attack.
_MOST_UNPACKED = 32
_ALWAYS_UNPACKED_BYTES = 2**20

# zlib's code for gzip's framing, and gzip's first bytes. No message begins with them: 7 is no wire type.
_GZIP_FRAMING = 31
_GZIP = b"\x1f\x8b"

_FILTERING = ("Scroll", "Count", "Facet")
_BY_KEYS = ("Get", "GetThumbnails", "Delete")
_BULKY = ("Embed", "EmbedStream", "Search", "Classify", "Locate", "Upsert", "UpsertStream", "Update", "ModelInfer")

Reader = Callable[[bytes, int], object | None]


class Body(NamedTuple):
    """A request that has been read.

    Attributes:
        message: the request.
        size: its bytes, decompressed; to be passed to `Bodies.release`.
    """

    message: Any
    size: int


class Bodies:
    """Convert request bodies to messages. For the event loop only.

    Args:
        limits: ceilings.
        readers: by method, a function that reads requests in the plain form: called with the bytes and the largest
            number of members of a batch; returns None for any other form.
    """

    def __init__(self, limits: Limits, readers: Mapping[str, Reader] = MappingProxyType({})) -> None:
        self._limits = limits
        self._held = 0
        self._held_by: dict[str, int] = {}
        self._ceilings: dict[str, int] = {}
        self._readers = readers
        # Only two, which limits the large messages that are decompressed at one time.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="body")

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown()

    def ceiling(self, method: str) -> int:
        """Return the largest size in bytes of a method's request, as received and decompressed."""
        if (known := self._ceilings.get(method)) is None:
            known = self._ceilings[method] = self._ceiling(method)
        return known

    def _ceiling(self, method: str) -> int:
        most, name = self._limits.max_message_bytes, method.rpartition("/")[2]
        if method.startswith("/grpc.") or name not in (*_FILTERING, *_BY_KEYS, *_BULKY):
            return min(_SMALL_BYTES, most)
        if name in _BULKY:
            return most
        keys = _KEY_BYTES * self._limits.max_keys if name in _BY_KEYS else 0
        return min(_FILTER_BYTES + keys, most)

    async def read(self, method: str, parser: Callable[[bytes], Any], data: bytes) -> Body:
        """Parse a request's body, and count its bytes until they are released.

        Args:
            method: `/package.Service/Method`.
            parser: `FromString` of the method's request.
            data: the body, perhaps in gzip.

        Raises:
            InvalidArgumentError: it is too large, holds too many fields, or is no such message.
            ResourceExhaustedError: the requests in progress are too large together.
        """
        size = len(data)
        self.take(size)
        try:
            plain = await self._unpack(method, data)
            self.take(len(plain) - size)
            size = len(plain)
            return Body(await self._parse(method, parser, plain), size)
        except BaseException:
            self.release(size)
            raise

    def release(self, size: int) -> None:
        """Stop counting a request's bytes, those of the caller that they were taken for."""
        self._held -= size
        name = CALLER.get().name
        if left := self._held_by.get(name, 0) - size:
            self._held_by[name] = left
        else:
            self._held_by.pop(name, None)

    async def parse(self, method: str, parser: Callable[[bytes], Any], data: bytes) -> Any:
        """Parse a body without counting its bytes; raises as `read` does for its contents."""
        return await self._parse(method, parser, await self._unpack(method, data))

    async def _unpack(self, method: str, data: bytes) -> bytes:
        most = self.ceiling(method)
        if len(data) > most:
            raise InvalidArgumentError(f"a message of {len(data)} bytes is over the limit of {most}", field="request")
        if not data.startswith(_GZIP):
            return data
        return await asyncio.get_running_loop().run_in_executor(self._threads, unpack, data, most)

    async def _parse(self, method: str, parser: Callable[[bytes], Any], data: bytes) -> Any:
        reader = self._readers.get(method)
        if reader is not None and (found := reader(data, self._limits.max_batch_items)) is not None:
            return found
        if len(data) <= _PARSED_HERE_BYTES:
            return _parse(parser, data)
        return await asyncio.get_running_loop().run_in_executor(self._threads, _parse_counted, parser, data)

    def take(self, size: int) -> None:
        """Count bytes of a request until they are released.

        Raises:
            ResourceExhaustedError: the requests in progress are too large together.
        """
        # A single request always has room.
        if self._held and self._held + size > self._limits.max_held_bytes:
            raise ResourceExhaustedError(
                "the requests in flight are too large together: try again later", retry_after=1
            )
        name = CALLER.get().name
        own = self._held_by.get(name, 0)
        if own and own + size > most_of_one(self._limits.max_held_bytes):
            raise ResourceExhaustedError(
                "your requests in flight are too large together: try again later", retry_after=1
            )
        self._held += size
        self._held_by[name] = own + size


def unpack(data: bytes, most: int) -> bytes:
    """Decompress a message from gzip.

    Raises:
        InvalidArgumentError: it has more than `most` bytes or more than 32 times those of `data`, or it is damaged.
            No more bytes than these are ever decompressed.
    """
    fair = min(most, max(_ALWAYS_UNPACKED_BYTES, _MOST_UNPACKED * len(data)))
    stream = zlib.decompressobj(_GZIP_FRAMING)
    try:
        plain = stream.decompress(data, fair + 1)
    except zlib.error:
        raise InvalidArgumentError("the request is no valid gzip", field="request") from None
    size = len(plain)
    if size > fair:
        # The error's traceback keeps this frame until the call has ended.
        del plain, stream
    if size > most:
        raise InvalidArgumentError(f"the unpacked message is over the limit of {most} bytes", field="request")
    if size > fair:
        raise InvalidArgumentError(
            f"the message is packed to less than 1/{_MOST_UNPACKED}: send it as it is", field="request"
        )
    if not stream.eof or stream.unused_data:
        raise InvalidArgumentError("the request is no valid gzip", field="request")
    return plain


def _parse(parser: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parser(data)
    except DecodeError:
        raise InvalidArgumentError("the request is no valid protobuf message of this method") from None


def _parse_counted(parser: Any, data: bytes) -> Any:
    # Bound to the class of the message, as generated code registers it.
    check_fields(data, parser.__self__.DESCRIPTOR, _MOST_FIELDS)
    return _parse(parser, data)


class _Shape(NamedTuple):
    """Length-delimited fields of a message type.

    Attributes:
        messages: by number, the types of its messages.
        texts: the numbers of its texts.
        packed: the numbers of fields that may hold packed numbers.
    """

    messages: Mapping[int, Descriptor]
    texts: frozenset[int]
    packed: frozenset[int]


@functools.lru_cache(maxsize=256)
def _shape(descriptor: Descriptor) -> _Shape:
    messages = {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}
    texts = frozenset(field.number for field in descriptor.fields if field.type == FieldDescriptor.TYPE_STRING)
    never_packed = (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE)
    packed = frozenset(field.number for field in descriptor.fields if field.cpp_type not in never_packed)
    return _Shape(messages, texts, packed)


def check_fields(data: bytes, descriptor: Descriptor, most: int) -> None:
    """Check that a message holds at most so many fields, those of the messages in it included, and no huge text.

    64 packed numbers count as a field. Where the bytes are no message, counting ends: to say so is the library's
    business.

    Raises:
        InvalidArgumentError: it holds more.
    """
    count = 0
    open_messages = [(0, len(data), descriptor)]
    while open_messages:
        at, end, kind = open_messages.pop()
        shape = _shape(kind)
        while at < end:
            count += 1
            key, at = _varint(data, at, end)
            number, wire = key >> 3, key & 7
            if wire == 0:
                _, at = _varint(data, at, end)
            elif wire == 2:
                length, at = _varint(data, at, end)
                if at + length > end:
                    return
                if number in shape.messages:
                    open_messages.append((at, at + length, shape.messages[number]))
                elif number in shape.packed:
                    count += length // _PACKED_PER_FIELD
                elif number in shape.texts and length > _MOST_TEXT_BYTES:
                    raise InvalidArgumentError(f"a text has at most {_MOST_TEXT_BYTES:,} bytes", field="request")
                at += length
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            elif wire not in (3, 4):
                return
            if count > most:
                raise InvalidArgumentError(f"a request holds at most {most:,} fields", field="request")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Read a number and return it with its end; one that is cut off ends with the message."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, end
