"""The mistakes of somebody new, made in a folder of their own: one line says what to do."""

import re
import shutil
from pathlib import Path

import pytest

from imagekin.cli.main import run
from tests.artifacts import tiny_artifact
from tests.e2e.pictures import class_folders, picture

HERE = ["-d", "data", "-m", "model.onnx"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos of three classes and of none, collections of both, models, and files that are none."""
    folder = tmp_path_factory.mktemp("newcomer")
    class_folders(folder / "photos", per_class=2)
    for name in ("flat", "one/red"):
        (folder / name).mkdir(parents=True)
        for n in range(2):
            (folder / name / f"{n}.png").write_bytes(picture((220, 50, 40), n))
    tiny_artifact(folder / "model.onnx")
    tiny_artifact(folder / "other.onnx", seed=1)
    (folder / "run").mkdir()
    shutil.copy(folder / "model.onnx", folder / "run" / "model.onnx")
    (folder / "empty").mkdir()
    (folder / "fake.jpg").write_text("no image")
    (folder / "notes.txt").write_text("hello")
    (folder / "weights.pt").write_bytes(b"PK\x03\x04")
    (folder / "broken.toml").write_text("[serve\n")
    (folder / "misspelt.toml").write_text("[search]\ncolection = 'shop'\n")
    for name, mode, token in (("short.toml", 0o600, "short"), ("open.toml", 0o644, "a" * 30)):
        (folder / name).write_text(f'[[token]]\nname = "me"\nscope = "read"\ntoken = "{token}"\n')
        (folder / name).chmod(mode)
    (folder / "photo.jpg").write_bytes(picture((220, 50, 40), 9, format="JPEG"))
    for name, source in (("shop", "photos"), ("bare", "flat")):
        arguments = ["index", name, str(folder / source), "-m", str(folder / "model.onnx")]
        assert run([*arguments, "-d", str(folder / "data")]) == 0
    return folder


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["index", "photos", "shop", *HERE], 1, "did you mean `imagekin index shop photos`?"),
        (["index", "Shop", "photos", *HERE], 2, "use 1 to 64 of a-z, 0-9, '_' and '-'"),
        (["index", "shop", "empty", *HERE], 1, "there are no images in empty"),
        (["index", "shop", "notes.txt", *HERE], 2, "its lines name no images beside it"),
        (["index", "shop", "photos", "-m", "weights.pt", "-d", "data"], 2, "`imagekin adopt` makes an artifact"),
        (["index", "shop", "photos", "-m", "run", "-d", "data"], 1, "run is a folder, name run/model.onnx"),
        (["index", "shop", "photos", "-m", "other.onnx", "-d", "data"], 1, "use the model that made it"),
        (["index", "shop", "photos", "-m", "model.onnx", "-d", "photo.jpg"], 1, "choose another one"),
        (["index", "shop", "photos", "--datadir", "data"], 2, "--data-dir"),
        (["search", "photo.jpg", "-c", "shop", "-d", "data"], 2, "with --data-dir give --model FILE"),
        (["search", "photo.jpg", "-d", "data"], 2, "Missing option '--collection'"),
        (["search", "photo.jpg", "-c", "shop", "-a", "50051"], 2, "write HOST:PORT"),
        (["search", "photo.jpg", "-c", "shop", "-d", "data", "--min-similarity", "80"], 2, "less than or equal to 1"),
        (["classify", "photo.jpg", "-c", "shop", "-d", "data"], 2, "with --data-dir give --model FILE"),
        (["embed", "photo.jpg", "-m", "model.onnx", "-o", "vectors.csv"], 2, "FILE.parquet"),
        (["collection", "info", "shoq", "-d", "data"], 1, "there is no collection 'shoq'; did you mean 'shop'?"),
        (["collection", "info", "zebra", "-d", "data"], 1, "there is no collection 'zebra': make it first"),
        (
            ["search", "--key", "a", "-c", "shpo", "-d", "data"],
            1,
            "did you mean 'shop'?",
        ),
        (["collection", "count", "shop", "-d", "data", "-f", "label = red"], 2, 'write "red" with its quotation marks'),
        (["collection", "count", "shop", "-d", "data", "-f", 'label == "red"'], 2, "equality is a single ="),
        (["collection", "count", "shop", "-d", "data", "-f", "price < 3"], 2, "did you mean payload.price?"),
        (["collection", "facet", "shop", "colour", "-d", "data"], 2, "use key, label or payload."),
        (["collection", "drop", "shop", "-d", "data"], 2, "say --yes"),
        (["collection", "delete", "shop", "-d", "data"], 2, "name either a condition (--filter) or items (--key)"),
        (["collection", "restore", "monday", "-d", "data"], 1, "no snapshot of 'monday': see"),
        (["collection", "restore", "data/snapshots/shop/1", "-d", "data"], 2, "COLLECTION/TIME-SEQUENCE-ID"),
        (["collection", "export", "shop", "-d", "data", "-o", "shop.csv"], 2, "--out names a .parquet file"),
        (["collection", "evaluate", "bare", "-d", "data"], 1, "an evaluation needs two classes"),
        (["review", "shop", "-d", "data", "--apply", "none.csv"], 1, "there is no file none.csv"),
        (["serve", "-m", "weights.pt"], 2, "`imagekin adopt` makes an artifact"),
        (["serve", "-m", "model.onnx", "--http-address", "8080"], 2, "give HOST:PORT"),
        (["serve", "-m", "model.onnx", "--tokens-file", "short.toml"], 2, "20 to 512 printable ASCII characters"),
        (["serve", "-m", "model.onnx", "--tokens-file", "open.toml"], 2, "run chmod 600 open.toml"),
        (["--config", "broken.toml", "version"], 2, "no TOML"),
        (["--config", "misspelt.toml", "version"], 2, "did you mean 'collection'?"),
        (["train", "flat", "--out", "new"], 2, "put the images into one folder for each class"),
        (["train", "one", "--out", "new"], 2, "supcon needs two"),
        (["train", "empty", "--out", "new"], 2, "it holds none"),
        (["adapt", "model.onnx", "flat", "--out", "better.onnx"], 2, "in one folder for each"),
        (["adopt", "efficientnet", "--out", "new.onnx"], 2, "did you mean efficientnet-lite0?"),
        (["adopt", "efficentnet-lite0", "--out", "new.onnx"], 2, "did you mean efficientnet-lite0?"),
        (["adopt", "resnet18", "--out", "new.onnx"], 2, "`imagekin models '*resnet18*'` looks for names"),
        (["adopt", "efficientnet-lite0", "--out", "run"], 2, "run is a folder: name a file in it"),
        (["adapt", "model.onnx", "photos", "--out", "run"], 2, "run is a folder: name a file in it"),
        (["adopt", "timm:resnet1800", "--out", "new.onnx"], 1, "did you mean timm:resnet18"),
        (["report", "photos"], 2, "photos is no training run"),
        (["export", "model.onnx", "--int8"], 2, "--images SOURCE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_by_what_to_do(
    arguments: list[str],
    status: int,
    message: str,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(prepared)
    assert run(arguments) == status
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert said[-1].startswith("imagekin: ")
    assert not (prepared / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["search", "--key", "red/0000.png", "-c", "shop", "-f", "label = 0"], 'labels are texts: write "0"'),
        (["search", "--key", "red/0000.png", "-c", "shop", "-f", 'label = "rde"'], 'did you mean "red"?'),
        (["search", "--key", "red/0000.png", "-c", "shop", "-f", 'label = "zebra"'], "its labels are blue, green, red"),
        (["search", "photo.jpg", "-c", "shop", "--min-similarity", "1", "-m", "model.onnx"], "leave --min-similarity"),
        (["classify", "photo.jpg", "-c", "bare", "-m", "model.onnx"], "no item of bare has a label"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_empty_answer_is_explained(
    arguments: list[str],
    reason: str,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(prepared)
    assert run([*arguments, "-d", "data"]) == 0
    assert re.search(rf"^imagekin: .*{re.escape(reason)}", capsys.readouterr().err, re.MULTILINE)


def test_help_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", "collection", "list"]) == 0
    assert "Usage: imagekin collection list" in capsys.readouterr().out
    assert run(["help"]) == 0
    assert "Usage: imagekin" in capsys.readouterr().out
