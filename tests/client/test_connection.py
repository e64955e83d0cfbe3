"""An address may be as short as a host; what cannot be one is refused before anything is connected."""

import pytest

from imagekin.client.connection import complete_address
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
