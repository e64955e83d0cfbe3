"""Settings are refused before anything is opened, and say which one is wrong."""

from pathlib import Path

import pytest

from imagekin.errors import InvalidArgumentError
from imagekin.serving.settings import Limits, Settings, parse_model

MODELS = (("tiny", Path("tiny.onnx")),)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:1", "[::1]:50051", "127.9.9.9:50051"])
def test_loopback_needs_no_permission(address: str) -> None:
    assert Settings(address=address, models=MODELS).address == address


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:1", "example.com:80", "localhost.a:1"])
def test_an_address_open_to_others_needs_permission(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--allow-insecure"):
        Settings(address=address, models=MODELS)
    assert Settings(address=address, models=MODELS, allow_insecure=True).address == address


@pytest.mark.parametrize("address", ["", "127.0.0.1", ":1", "host:", "host:70000", "host:-1", "::1:5", "unix:"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="HOST:PORT"):
        Settings(address=address, models=MODELS)


def test_a_unix_socket_needs_no_permission() -> None:
    assert Settings(address="unix:/run/imagekin/socket", models=MODELS).address == "unix:/run/imagekin/socket"
    over_http = Settings(address="127.0.0.1:0", http_address="unix:/run/imagekin/http", models=MODELS)
    assert over_http.http_address == "unix:/run/imagekin/http"


def test_a_server_serves_something() -> None:
    with pytest.raises(InvalidArgumentError, match="nothing to serve"):
        Settings()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"models": (("a b", Path("x")),)}, "models"),
        ({"models": (*MODELS, *MODELS)}, "models"),
        ({"device": "tpu"}, "device"),
        ({"index_device": "tpu"}, "index_device"),
        ({"decode_workers": -1}, "decode_workers"),
        ({"drain_seconds": float("nan")}, "drain_seconds"),
        ({"encoder_batch": -1}, "encoder_batch"),
    ],
)
def test_a_setting_out_of_range_is_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        Settings(**{"models": MODELS, **changes})  # type: ignore[arg-type]
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_k": 0}, "max_k"),
        ({"max_queue": 10}, "max_queue"),
        ({"max_queue_bytes": 1}, "max_queue_bytes"),
    ],
)
def test_a_limit_out_of_range_is_named(changes: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        Limits(**changes)
    assert refused.value.field == field


def test_a_model_is_named_after_its_file_unless_told_otherwise() -> None:
    assert parse_model("runs/model.onnx") == ("model", Path("runs/model.onnx"))
    assert parse_model("shop=runs/model.onnx") == ("shop", Path("runs/model.onnx"))
    for text in ("", "=x", "x="):
        with pytest.raises(InvalidArgumentError, match="NAME=PATH"):
            parse_model(text)
