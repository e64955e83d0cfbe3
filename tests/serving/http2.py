"""Speaks HTTP/2 by hand, to send what no client library would: packed floods, halves of calls, resets."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

EMBED = "/imagekin.v1.Embedder/Embed"
# Kinds of frames, and a flag (RFC 9113, section 6).
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
END_STREAM = 0x1
# What a stream may carry before the server asks for more (RFC 9113, section 6.9.2).
WINDOW_BYTES = 65_535
_FRAME_BYTES = 16_384


def connected(address: str) -> socket.socket:
    """Connect to `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def hello() -> bytes:
    """Return what a client says first: the preface and empty settings."""
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")


def headers(address: str, path: str = EMBED, stream: int = 1, **more: str) -> bytes:
    """Return the headers of a call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": address,
        "te": "trailers",
        "content-type": "application/grpc",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    # HPACK, literal fields without indexing and with new names (RFC 7541, section 6.2.2).
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(HEADERS, 0x4, stream, block)


def begun_message(length: int, stream: int = 1) -> bytes:
    """Return the beginning of a call's only message of `length` bytes."""
    start = b"\0" + struct.pack(">I", length)
    return struct.pack(">I", length + 5)[1:] + struct.pack(">BBI", 0, 0, stream) + start


def packed_message(packed: bytes, stream: int = 1) -> bytes:
    """Return the frames of a call's only message, which is packed and fits into the window."""
    whole = b"\1" + struct.pack(">I", len(packed)) + packed
    assert len(whole) <= WINDOW_BYTES
    places = range(0, len(whole), _FRAME_BYTES)
    parts = [whole[place : place + _FRAME_BYTES] for place in places]
    return b"".join(frame(DATA, part is parts[-1], stream, part) for part in parts)


def flood(address: str, path: str, packed: bytes, at_once: int) -> list[bytes]:
    """Call a method several times at once with a packed message, and return how the calls ended."""
    call = hello() + headers(address, path, grpc_encoding="gzip") + packed_message(packed)
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(address)) for _ in range(at_once)]
        for connection in connections:
            connection.sendall(call)
        return [end for connection in connections for end in ended(connection, 1)]


def reset(stream: int) -> bytes:
    """Return the frame that cancels a call."""
    return frame(RESET, 0, stream, struct.pack(">I", 8))


def frames(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield kind, flags and payload of the frames that have come whole."""
    at = 0
    while len(received) >= at + 9 and len(received) >= (end := at + 9 + int.from_bytes(received[at : at + 3], "big")):
        yield received[at + 3], received[at + 4], received[at + 9 : end]
        at = end


def ended(connection: socket.socket, calls: int) -> list[bytes]:
    """Read until so many calls have ended, and return the last headers of each, as they came."""
    received, found = b"", list[bytes]()
    while len(found) < calls and (part := connection.recv(65_536)):
        received += part
        found = [
            body for kind, flags, body in frames(received) if kind == RESET or (kind == HEADERS and flags & END_STREAM)
        ]
    return found
