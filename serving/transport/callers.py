"""Tell callers apart, by their tokens, else by the addresses that they call from, and count their calls."""

import functools
import ipaddress
from contextvars import ContextVar
from typing import NamedTuple
from urllib.parse import unquote

from imagekin.errors import ResourceExhaustedError
from imagekin.serving.transport.access import Token

# Of an IPv6 address this much names the network that a subscriber gets (RFC 6177); a host may have all the rest.
_NETWORK_BITS = 64


class Caller(NamedTuple):
    """Maker of a call.

    Attributes:
        name: the token's name, else the host's address.
        connection: the address and port that the call comes from.
        token: its token, None without.
    """

    name: str = ""
    connection: str = ""
    token: Token | None = None

    def may_see(self, collection: str) -> bool:
        """Return whether the caller is let know of a collection."""
        return self.token is None or self.token.allows(collection)


# Set for the length of a call; work outside of calls has the nameless caller.
CALLER: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 (a tuple never changes)


def most_of_one(whole: int) -> int:
    """Return how much of a whole one caller may have: it leaves a quarter to the others."""
    return whole - whole // 4


def caller(peer: str, token: Token | None) -> Caller:
    """Return who makes a call.

    Args:
        peer: gRPC's name of the other end, as `ipv4:127.0.0.1:54321`.
        token: the call's token, None without.
    """
    return Caller(_host(peer.rpartition(":")[0]) if token is None else f"token {token.name}", peer, token)


@functools.lru_cache(maxsize=1024)
def _host(address: str) -> str:
    """Return the part of an address, as `ipv6:%5B::1%5D`, that is the same for all connections of a host."""
    host = unquote(address.partition(":")[2]).strip("[]").partition("%")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host or "unix"
    return str(found if found.version == 4 else ipaddress.ip_network((found, _NETWORK_BITS), strict=False))


class CallsInProgress:
    """Count calls, all together and of each caller, and limit both. For the event loop only.

    Args:
        most: calls at one time.

    Attributes:
        count: calls in progress.
    """

    def __init__(self, most: int) -> None:
        self.count = 0
        self._most = most
        self._most_of_one = most_of_one(most)
        self._of_each: dict[str, int] = {}

    def enter(self, caller: Caller) -> None:
        """Count a call.

        Raises:
            ResourceExhaustedError: there are too many, of all callers or of this one.
        """
        if self.count >= self._most:
            raise ResourceExhaustedError("too many calls at one time: try again later", retry_after=1.0)
        own = self._of_each.get(caller.name, 0)
        if own >= self._most_of_one:
            raise ResourceExhaustedError("too many calls of yours at one time: try again later", retry_after=1.0)
        self._of_each[caller.name] = own + 1
        self.count += 1

    def leave(self, caller: Caller) -> None:
        """Count a call no more."""
        self.count -= 1
        self._of_each[caller.name] -= 1
        if not self._of_each[caller.name]:
            del self._of_each[caller.name]
