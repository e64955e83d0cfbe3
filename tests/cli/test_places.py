"""A collection answers alike, whether its folder is named or the server that keeps it."""

import json
from pathlib import Path

import numpy as np
import pytest

from imagekin.cli.main import run
from imagekin.index.local.catalog import Catalog
from imagekin.index.types import VectorItem
from imagekin.serving.settings import Settings
from tests.serving.running import running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a collection of two classes, of which some items are twice there, and one in the wrong class."""
    generator = np.random.default_rng(0)
    centres = {"red": generator.normal(size=8), "blue": generator.normal(size=8)}
    items = []
    for label, centre in centres.items():
        for n in range(600):
            vector = (centre + generator.normal(scale=0.3, size=8)).astype(np.float32)
            items.append(VectorItem(f"{label}/{n}", vector, label, {"n": n}, content_hash=bytes([n % 256] * 32)))
    items += [VectorItem(f"again/{n}", items[n].vector, "blue", content_hash=items[n].content_hash) for n in (3, 700)]
    with Catalog(tmp_path / "data") as catalog:
        catalog.create("shop", space="ik1-a", dim=8).upsert(items)
    return tmp_path / "data"


@pytest.mark.parametrize(
    "arguments",
    [
        ["collection", "count", "shop", "--filter", 'label = "red"'],
        ["collection", "facet", "shop", "label"],
        ["collection", "scroll", "shop", "--limit", "3"],
        ["collection", "duplicates", "shop", "--min-similarity", "0.999"],
        ["collection", "evaluate", "shop"],
        ["collection", "evaluate", "shop", "--method", "prototype", "--sample", "100"],
        ["search", "--key", "red/3", "--collection", "shop", "--k", "4"],
    ],
    ids=" ".join,
)
def test_a_folder_and_a_server_answer_alike(
    arguments: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = answer(capsys, *arguments, "--data-dir", str(data))
    with running(Settings(address="127.0.0.1:0", data_dir=data)) as server:
        there = answer(capsys, *arguments, "--address", f"127.0.0.1:{server.server.port}")
    assert here == there
    assert here


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """Run a command and return its JSON, without what was measured."""
    assert run([*arguments, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {name: value for name, value in found.items() if not name.endswith(("seconds", "_per_second"))}


def test_a_servers_collection_cannot_be_calibrated(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["collection", "evaluate", "shop", "--address", "127.0.0.1:1", "--save"]) == 2
    assert "--save goes with --data-dir" in capsys.readouterr().err
