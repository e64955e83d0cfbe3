"""Addresses of servers, `HOST:PORT` and `unix:PATH`: one definition for those who listen and those who call."""

import ipaddress
import re
from pathlib import Path

from imagekin.errors import InvalidArgumentError

DEFAULT_PORT = 50051

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[^:\[\]/\s]+)):(?P<port>[0-9]{1,5})\Z")
_MOST_PORT = 65_535


def split_address(address: str, field: str = "address") -> tuple[str, int]:
    """Split `HOST:PORT` into host and port; an IPv6 address stands in brackets.

    Raises:
        InvalidArgumentError: it is not of that form.
    """
    match = _ADDRESS.match(address)
    if match is None or int(match["port"]) > _MOST_PORT:
        raise InvalidArgumentError(f"{address[:200]!r} is no address: give HOST:PORT", field=field)
    return match["six"] or match["host"], int(match["port"])


def complete_address(address: str) -> str:
    """Return the address of a server to call, with a port and without a scheme: `localhost` is `localhost:50051`.

    Raises:
        InvalidArgumentError: it is empty, of another scheme, or its port is no port.
    """
    bare = address.strip().removeprefix("grpc://").rstrip("/")
    if socket_path(bare) is not None or bare.startswith("dns:"):
        return bare
    if bare.count(":") > 1 and not bare.startswith("["):
        bare = f"[{bare}]"  # an IPv6 address by itself
    whole = bare if ":" in bare[bare.rfind("]") + 1 :] else f"{bare}:{DEFAULT_PORT}"
    try:
        host, port = split_address(whole)
    except InvalidArgumentError:
        host, port = "", 0
    # A number by itself is a port without a host, most likely.
    if not port or host.isdecimal():
        raise InvalidArgumentError(
            f"{address[:200]!r} is no address of a gRPC server: write HOST:PORT", field="address"
        )
    return whole


def socket_path(address: str) -> Path | None:
    """Return the path of a Unix socket's address `unix:PATH`, None for other addresses."""
    path = address.removeprefix("unix:")
    return Path(path) if path and path != address else None


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
