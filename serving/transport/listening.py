"""Listen: channel options, credentials, and a clear error for an address that cannot be used."""

import asyncio
import contextlib
import errno
import importlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio

from imagekin.addresses import socket_path, split_address
from imagekin.errors import FailedPreconditionError
from imagekin.serving.settings import Limits

# Room for the framing of a message of exactly the largest size.
_FRAMING_BYTES = 64 * 1024
# gRPC refuses a large message with the status of a full queue and without details. So it accepts messages a little over
# the limit, which the service refuses with a clear error, and refuses only those that would take too much memory.
_RECEIVED = 1.25
_MOST_RECEIVED = 2**31 - 1
# Identity and gzip; gRPC refuses other compressions. The bits are those of `grpc_compression_algorithm`.
_ENCODINGS = 0b101
# Load balancers send keepalives every 10 s, some more often; gRPC would end their connections below five minutes.
_LEAST_PING_MILLISECONDS = 1_000


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop: uvloop's where it is installed, which takes less CPU a call."""
    try:
        loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    except ImportError:
        return asyncio.new_event_loop()
    return loop


def options(limits: Limits, connection_age: float = 0.0, grace: float = 0.0) -> list[tuple[str, int]]:
    """Return the options of the gRPC server.

    Args:
        limits: ceilings.
        connection_age: seconds after which a connection takes no more calls; 0 is never.
        grace: seconds that the calls in progress on it get then.
    """
    aging = [
        ("grpc.max_connection_age_ms", round(1000 * connection_age)),
        ("grpc.max_connection_age_grace_ms", round(1000 * grace)),
    ]
    return [
        *(aging if connection_age else ()),
        ("grpc.max_receive_message_length", min(round(_RECEIVED * limits.max_message_bytes), _MOST_RECEIVED)),
        # Decompressed by `imagekin.serving.transport.bodies`, which has a limit for each method.
        ("grpc.per_message_decompression", 0),
        ("grpc.compression_enabled_algorithms_bitset", _ENCODINGS),
        ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MILLISECONDS),
        ("grpc.keepalive_permit_without_calls", 1),
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
    path = socket_path(address)
    if path is None:
        _try_to_bind(address)
    else:
        make_way(path)
    try:
        with private_sockets():
            if credentials is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise FailedPreconditionError(f"cannot listen on {address}: choose another address", field="address") from None


@contextlib.contextmanager
def private_sockets() -> Iterator[None]:
    """Make Unix sockets, in the block, to which only their owner and group can connect."""
    mask = os.umask(0o007)
    try:
        yield
    finally:
        os.umask(mask)


def _try_to_bind(address: str) -> None:
    """Bind a socket and close it, because gRPC gives the reason of a failure on standard error only."""
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


def make_way(path: Path, field: str = "address") -> None:
    """Check that a Unix socket can be made at a path, where a killed server may have left one.

    Raises:
        FailedPreconditionError: another program uses it, or it is another kind of file, or there is no such folder.
    """
    reason = None
    if not path.parent.is_dir():
        reason = "no such folder"
    elif path.exists() and not path.is_socket():
        reason = "there is another file"
    elif path.exists():
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # a busy server may not take connections at the moment
            error = probe.connect_ex(str(path))
        if error in (0, errno.EAGAIN):
            reason = "a server listens there"
        elif error not in (errno.ECONNREFUSED, errno.ENOENT):
            # Not a socket that was left: another user's, or of another kind.
            reason = os.strerror(error).lower()
    if reason is not None:
        raise FailedPreconditionError(f"cannot listen on unix:{path} ({reason}): choose another address", field=field)
