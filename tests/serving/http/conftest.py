"""Servers with HTTP that the tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imagekin.serving.settings import Settings
from tests.serving.http.calling import Caller, calling
from tests.serving.running import Running, running


@pytest.fixture(scope="module")
def server(model_path: Path, other_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with two models and an empty data folder, over gRPC and HTTP."""
    settings = Settings(
        address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        models=(("tiny", model_path), ("other", other_path)),
        data_dir=tmp_path_factory.mktemp("data"),
    )
    with running(settings) as server:
        yield server


@pytest.fixture
def call(server: Running) -> Iterator[Caller]:
    """A connection to it."""
    with calling(server.server.http_port) as caller:
        yield caller
