"""An encoder exported elsewhere is adopted, indexed, served and searched, by the real commands."""

import json
from pathlib import Path

from imagekin import Client
from tests.e2e.pictures import COLOURS, class_folders, picture
from tests.e2e.processes import run, running_server
from tests.foreign import ConvNet, export


def test_a_foreign_encoder_serves(tmp_path: Path) -> None:
    foreign = export(ConvNet(), tmp_path / "foreign.onnx", external=True)
    pictures = class_folders(tmp_path / "pictures", per_class=4)
    model, data = tmp_path / "model.onnx", tmp_path / "data"
    done = run("adopt", str(foreign), "--out", str(model), "--images", str(pictures), "--resize", "squash", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["dim"], figures["height"], figures["images"]) == (24, 32, 12)
    assert figures["adopt_max_abs_diff"] <= 1e-4
    indexed = run("index", "things", str(pictures), "--model", str(model), "--data-dir", str(data))
    assert indexed.returncode == 0, indexed.stderr
    with running_server(model, data) as server, Client(server.address) as client:
        for colour, rgb in COLOURS.items():
            (neighbours,) = client.search([picture(rgb, 999)], k=1, collection="things")
            assert neighbours[0].label == colour


def test_what_cannot_be_adopted_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    refused = run("adopt", str(tmp_path / "x.onnx"), "--out", str(tmp_path / "model.onnx"))
    assert (refused.returncode, refused.stderr) == (2, "imagekin: x.onnx is not an ONNX model\n")
    wrong = run("adopt", str(tmp_path / "x.onnx"), "--out", str(tmp_path / "model.onnx"), "--mean", "0.5")
    assert wrong.returncode == 2
    assert "three numbers" in wrong.stderr
    assert not (tmp_path / "model.onnx").exists()
