"""Servers that the tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imagekin.serving.settings import Settings
from tests.artifacts import tiny_artifact
from tests.serving.running import Running, running

CLASSES = ("cat", "dog", "eel")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a linear head."""
    return tiny_artifact(tmp_path_factory.mktemp("models") / "tiny.onnx")


@pytest.fixture(scope="session")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a linear head, of another embedding space."""
    return tiny_artifact(tmp_path_factory.mktemp("models") / "other.onnx", seed=1, classes=CLASSES)


@pytest.fixture(scope="module")
def server(model_path: Path, other_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with two models and an empty data folder."""
    models = (("tiny", model_path), ("other", other_path))
    settings = Settings(address="127.0.0.1:0", models=models, data_dir=tmp_path_factory.mktemp("data"))
    with running(settings) as server:
        yield server
