"""Every kind of source becomes the items that it holds, each once, in a folder here and in a server.

`test_ray_engine` reads all of them by workers; all on all: `python -m tests.index.ingest.container_runs`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.artifacts import tiny_artifact
from tests.e2e.processes import running_server
from tests.index.ingest.container_runs import Destination, check
from tests.index.ingest.containers import KINDS, PICTURES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Destination]:
    with running_server(model, tmp_path_factory.mktemp("server")) as running:
        yield Destination(model, address=running.address)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_becomes_its_items_here_and_in_a_server(
    kind: str, model: Path, server: Destination, tmp_path: Path
) -> None:
    given = KINDS[kind](tmp_path, PICTURES)
    check(Destination(model, tmp_path / "data"), kind, given)
    check(server, kind, given)
