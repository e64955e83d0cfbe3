"""Callers are told apart by their tokens, else by the network that they call from."""

import pytest

from imagekin.errors import ResourceExhaustedError
from imagekin.serving.transport.access import Scope, Token
from imagekin.serving.transport.callers import Caller, CallsInProgress, caller

SHOP = Token("shop", Scope.READ, b"")


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("ipv4:10.0.0.1:1000", "ipv4:10.0.0.1:2000"),
        ("ipv6:%5B2001:db8::1%5D:1000", "ipv6:%5B2001:db8::ffff:2%5D:1000"),
        ("ipv6:[fe80::1%25eth0]:1000", "ipv6:[fe80::2%25eth0]:1000"),
        ("ipv4:10.0.0.1:1000", "http:10.0.0.1:2000"),
        ("ipv6:%5B::1%5D:1000", "http:::1:2000"),
        ("unix:", "unix:"),
        ("unix:/run/a", "unix:/run/a"),
    ],
)
def test_one_host_is_one_caller_however_many_connections_it_has(one: str, another: str) -> None:
    assert caller(one, None).name == caller(another, None).name


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("ipv4:10.0.0.1:1000", "ipv4:10.0.0.2:1000"),
        ("ipv6:%5B2001:db8::1%5D:1000", "ipv6:%5B2001:db8:0:1::1%5D:1000"),
        ("ipv4:10.0.0.1:1000", "unix:"),
    ],
)
def test_hosts_are_different_callers(one: str, another: str) -> None:
    assert caller(one, None).name != caller(another, None).name


def test_a_token_is_one_caller_wherever_it_calls_from() -> None:
    assert caller("ipv4:10.0.0.1:1000", SHOP).name == caller("ipv4:10.0.0.2:1000", SHOP).name
    assert (
        caller("ipv4:10.0.0.1:1000", Token("10.0.0.1", Scope.READ, b"")).name != caller("ipv4:10.0.0.1:1000", None).name
    )


def test_connections_of_a_caller_are_told_apart() -> None:
    assert caller("ipv4:10.0.0.1:1000", SHOP) != caller("ipv4:10.0.0.1:2000", SHOP)
    assert caller("what is this", None).connection == "what is this"


def test_a_caller_leaves_a_quarter_of_the_calls_to_others() -> None:
    calls, me, you = CallsInProgress(8), Caller("me", "a"), Caller("you", "b")
    for _ in range(6):
        calls.enter(me)
    with pytest.raises(ResourceExhaustedError, match="of yours"):
        calls.enter(Caller("me", "another connection"))
    calls.enter(you)
    calls.enter(you)
    with pytest.raises(ResourceExhaustedError, match="too many calls at one time"):
        calls.enter(you)
    for caller_of in (me, you) * 2 + (me,) * 4:
        calls.leave(caller_of)
    assert calls.count == 0
    assert not calls._of_each
