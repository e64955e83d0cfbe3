"""How the server listens: channel options, credentials, and a clear error for an address that cannot be had."""

import asyncio
import importlib
import socket

import grpc
import grpc.aio

from imagekin.errors import FailedPreconditionError
from imagekin.serving.settings import Limits, split_address

# Room for the framing of a message that is just small enough.
_FRAMING_BYTES = 64 * 1024
# gRPC refuses a large message with the status of a full queue and without details. So it lets in messages of up to
# twice the limit, for which the service has a better answer, and refuses only what would take too much memory.
_RECEIVED = 2
_MOST_RECEIVED = 2**31 - 1


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop to serve on: uvloop's where it is installed, which takes less CPU a call."""
    try:
        loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    except ImportError:
        return asyncio.new_event_loop()
    return loop


def options(limits: Limits) -> list[tuple[str, int]]:
    """Return the options of the gRPC server."""
    return [
        ("grpc.max_receive_message_length", min(_RECEIVED * limits.max_message_bytes, _MOST_RECEIVED)),
        ("grpc.max_send_message_length", limits.max_message_bytes + _FRAMING_BYTES),
        ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
        # Without this a second server on the same port would silently take half of the connections.
        ("grpc.so_reuseport", 0),
    ]


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Listen on an address and return the port; without credentials in plain text.

    Raises:
        FailedPreconditionError: the address cannot be listened on.
    """
    _try_to_bind(address)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise FailedPreconditionError(f"cannot listen on {address}: choose another address", field="address") from None


def _try_to_bind(address: str) -> None:
    """Bind once and let go, because gRPC says on standard error, and not to us, why it cannot."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        reason = (error.strerror or "no such host").lower()
        raise FailedPreconditionError(
            f"cannot listen on {address} ({reason}): choose another address", field="address"
        ) from None
