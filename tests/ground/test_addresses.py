"""An address may be as short as a host; what cannot be one is refused before anything is connected."""

from pathlib import Path

import pytest

from imagekin.addresses import complete_address, is_loopback, socket_path, split_address
from imagekin.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ("localhost", "localhost:50051"),
        ("localhost:9", "localhost:9"),
        (" shop.example.com\n", "shop.example.com:50051"),
        ("grpc://shop:70/", "shop:70"),
        ("::1", "[::1]:50051"),
        ("[::1]", "[::1]:50051"),
        ("[::1]:9", "[::1]:9"),
        ("fe80::1%eth0", "[fe80::1%eth0]:50051"),
        ("dns:///shop:9", "dns:///shop:9"),
        ("unix:/run/imagekin.sock", "unix:/run/imagekin.sock"),
    ],
)
def test_an_address_gets_what_it_lacks(given: str, completed: str) -> None:
    assert complete_address(given) == completed


@pytest.mark.parametrize(
    "given", ["", " ", "http://localhost:8080", "localhost:port", "localhost:", "localhost:0", "h:65536", "a/b"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InvalidArgumentError, match="no address of a gRPC server: write HOST:PORT") as refused:
        complete_address(given)
    assert refused.value.field == "address"


def test_an_address_to_listen_on_is_split() -> None:
    assert split_address("[::1]:7") == ("::1", 7)
    assert split_address("localhost:50051") == ("localhost", 50051)
    assert split_address("127.0.0.1:0") == ("127.0.0.1", 0)
    assert socket_path("unix:/run/imagekin.sock") == Path("/run/imagekin.sock")
    assert socket_path("unix:") is None
    assert socket_path("unix.example.com:80") is None
    with pytest.raises(InvalidArgumentError, match="give HOST:PORT") as refused:
        split_address("localhost", "http_address")
    assert refused.value.field == "http_address"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.9.9.9", True), ("::1", True), ("localhost", True), ("128.0.0.1", False), ("example.com", False)],
)
def test_only_this_machine_reaches_a_loopback_address(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
