"""A trained head, from the training images to the class that the server answers."""

import json
from pathlib import Path

import pytest

from imagekin import Client
from imagekin.cli import main as cli
from tests.e2e.pictures import COLOURS, class_folders, picture
from tests.e2e.processes import run, running_server


def test_the_server_classifies_by_a_head_that_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, folder, data = class_folders(tmp_path / "pictures", per_class=8), tmp_path / "run", tmp_path / "data"
    small = ["--image-size", "16", "--epochs", "0", "--threads", "1", "--device", "cpu"]
    assert cli.run(["train", str(pictures), "--out", str(folder), *small]) == 0
    test = class_folders(tmp_path / "test", per_class=3, first=100)
    assert cli.run(["export", str(folder), "--head", "linear", "--test", str(test), "--no-report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["head_accuracy"] == 1.0
    model = folder / "model.onnx"
    assert run("index", "things", str(pictures), "--model", str(model), "--data-dir", str(data)).returncode == 0
    with running_server(model, data) as server, Client(server.address) as client:
        for colour, rgb in COLOURS.items():
            (answer,) = client.classify([picture(rgb, 777)], collection="things", method="linear")
            assert answer.label == colour
            assert sorted(name for name, _ in answer.votes) == sorted(COLOURS)
