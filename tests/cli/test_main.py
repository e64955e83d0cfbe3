"""The command as its user meets it: quick, one line for an error, an exit status that tells, JSON on the last line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagekin.cli import main as cli
from imagekin.errors import NotFoundError
from imagekin.version import VERSION
from tests.artifacts import tiny_artifact
from tests.client.scripted import BAD, Script, embedding, scripted_server

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "faiss", "onnxruntime", "onnx", "sklearn", "grpc"}


def python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IMAGEKIN_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment | {"PYTHONPATH": str(ROOT)} | options,
    )


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("IMAGEKIN_"):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    with scripted_server(script) as bound:
        yield bound


@pytest.fixture
def photos(folder: Path) -> Path:
    for name, data in {"shoe/a.png": b"a", "shoe/b.png": b"odd", "hat/c.png": b"c", "hat/d.png": BAD}.items():
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name).write_bytes(data)
    return folder / "photos"


def answer(captured: pytest.CaptureFixture[str]) -> Any:
    return json.loads(captured.readouterr().out.splitlines()[-1])


def test_help_of_every_command_loads_nothing_heavy() -> None:
    code = """
import sys
from imagekin.cli import main as cli
for name in [[], *([command] for command in cli.COMMANDS), ["collection", "info"]]:
    assert cli.run([*name, "--help"]) == 0, name
print("\\n" + " ".join({module.split(".")[0] for module in sys.modules}))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.splitlines()[-1].split()) & HEAVY
    for name in cli.COMMANDS:
        assert f"Usage: imagekin {name} " in done.stdout


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("onnxruntime", ["index", "c", ".", "--model", "m.onnx", "--data-dir", "d"], "cpu"),
        ("faiss", ["serve", "--model", "m.onnx", "--data-dir", "d"], "cpu"),
        ("grpc_health", ["serve", "--model", "m.onnx", "--data-dir", "d"], "cpu"),
        ("torch", ["train", "digits"], "train"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_brings_it(
    missing: str, arguments: list[str], extra: str
) -> None:
    hidden = f"import sys; sys.modules[{missing!r}] = None"
    code = f"{hidden}; from imagekin.cli import main as cli; sys.exit(cli.run({arguments!r}))"
    done = python(code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"imagekin: this needs {missing}")
    assert f"pip install '.[{extra}]' in the checkout" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--colour"], 2, "No such option: --colour"),
        (["serach"], 2, "No such command 'serach'. Did you mean 'search'? See 'imagekin --help'"),
        (["collection", "lst"], 2, "Did you mean 'list'?"),
        (["search", "--colection", "c", "a.png"], 2, "--collection"),
        (["search", "-c", "c", "a.png", "-a", "http://localhost:8080"], 2, "write HOST:PORT"),
        (["search", "-c", "c", "a.png", "-a", "localhost:port"], 2, "write HOST:PORT"),
        (["search", "-c", "c", "-k", "0", "a.png"], 2, "'-k'"),
        (["health", "-a", "127.0.0.1:1"], 1, "is `imagekin serve` running there?"),
        (["index"], 2, "Missing argument 'COLLECTION'"),
        (["index", "shop"], 2, "Missing argument 'SOURCE...' of `imagekin index COLLECTION SOURCE...`"),
        (["index", "shop", ".", "-d", "d"], 2, "give --model FILE"),
        (["index", "shop", "nowhere", "-m", "m.onnx", "-d", "d"], 1, "no file or folder nowhere"),
        (["index", "shop", ".", "-m", "m.onnx"], 2, "either --data-dir"),
        (["index", "shop", ".", "-m", "m.onnx", "-d", "d", "-a", "h"], 2, "give --data-dir or --address, not both"),
        (["collection", "drop", "shop", "-d", "none"], 2, "no folder none"),
        (["serve"], 2, "nothing to serve"),
        (["serve", "-m", "none.onnx"], 1, "no model file none.onnx"),
        (["serve", "-m", "m.onnx", "-a", "127.0.0.1:999999"], 2, "no address: give HOST:PORT"),
        (["serve", "-m", "m.onnx", "--tls-cert", "c.pem"], 2, "TLS needs both a certificate and its key"),
        (["train"], 2, "name what to train on"),
        (["train", "nowhere"], 1, "no file or folder nowhere"),
        (["train", "digits", "--objective", "supkon"], 2, "there is no objective 'supkon'; choose one of: supcon"),
        (["train", "digits", "--epochs", "ten"], 2, "--epochs"),
        (["train", "digits", "--epochs", "-1"], 2, "--epochs must not be negative"),
        (["report", "nowhere"], 2, "nowhere is no training run"),
        (["export", "nowhere"], 1, "nowhere/checkpoint.pt"),
        (["adopt", "none.onnx", "-o", "x.onnx"], 1, "no model file none.onnx"),
        (["adopt", "resnet18", "-o", "x.onnx"], 2, "there is no encoder 'resnet18'; name timm:NAME"),
        (["--config", "none.toml", "health"], 2, "none.toml: cannot be read"),
        (["search", "--k", "ten", "--collection", "c", "a.png"], 2, "--k"),
        (["search", "--collection", "c"], 2, "name either images or stored items"),
        (["classify", "a.png"], 2, "--collection"),
        (
            ["serve", "--device", "tpu"],
            2,
            "Invalid value for '--device': 'tpu' is not one of 'auto', 'cpu', 'cuda'; see",
        ),
        (["serve", "--model", "m.onnx", "--decode-workers", "-1"], 2, "--decode-workers must not be negative"),
        (["classify", "--collection", "c", "--method", "forest", "a.png"], 2, "knn, prototype, linear"),
        (["classify", "--collection", "c", "none.png", "--address", "127.0.0.1:1"], 1, "no file or folder none.png"),
        (["collection", "list"], 2, "either --data-dir"),
        (["collection", "list", "--data-dir", "none"], 2, "no folder none"),
        (["index", "c", ".", "--model", "none.onnx", "--data-dir", "d"], 1, "none.onnx"),
        (["serve", "--address", "127.0.0.1:0"], 2, "nothing to serve"),
        (["serve", "--address", "0.0.0.0:1", "--model", "m.onnx"], 2, "--allow-insecure"),
        (["evaluate", "none.onnx", "--train", "digits", "--test", "digits"], 1, "none.onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_and_failure_are_one_line_and_a_status(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("imagekin: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_json_is_the_last_line_on_failure_too(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status, code in (
        (["classify", "a.png", "--json"], 2, "INVALID_ARGUMENT"),
        (["classify", "-c", "c", "none.png", "-a", "127.0.0.1:1", "--json"], 1, "NOT_FOUND"),
        (["health", "-a", "127.0.0.1:1", "--json"], 1, "UNAVAILABLE"),
    ):
        assert cli.run(arguments) == status
        captured = capsys.readouterr()
        error = json.loads(captured.out.splitlines()[-1])["error"]
        assert error["code"] == code
        assert captured.err == f"imagekin: {error['message']}\n"


def test_help_and_version_have_the_usual_names(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["-h"], ["search", "-h"], ["collection", "list", "-h"]):
        assert cli.run(arguments) == 0
        assert "Usage: imagekin" in capsys.readouterr().out
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"imagekin {VERSION}\n"


def test_a_misspelt_variable_is_named_and_foreign_ones_are_let_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGEKIN_TOKN", "secret")
    monkeypatch.setenv("IMAGEKIN_SERVE_MODLE", "m.onnx")
    monkeypatch.setenv("IMAGEKIN_PORT", "tcp://10.0.0.1:50051")
    monkeypatch.setenv("IMAGEKIN_PORT_50051_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("IMAGEKIN_CLASSIFY_K", "3")
    assert cli.run(["version"]) == 0
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2
    assert any("IMAGEKIN_TOKN is no setting" in line and "did you mean IMAGEKIN_TOKEN?" in line for line in warned)
    assert any("did you mean IMAGEKIN_SERVE_MODEL?" in line for line in warned)
    assert "secret" not in str(warned)


@pytest.mark.parametrize(
    ("shell", "variables", "wanted"),
    [
        ("bash", {"COMP_WORDS": "imagekin cl", "COMP_CWORD": "1"}, "classify"),
        ("bash", {"COMP_WORDS": "imagekin search --min", "COMP_CWORD": "2"}, "--min-similarity"),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "imagekin collection sna"}, "snapshots"),
        (
            "fish",
            {"_TYPER_COMPLETE_ARGS": "imagekin search --coll", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
            "--collection",
        ),
    ],
)
def test_shells_complete_commands_and_options(shell: str, variables: dict[str, str], wanted: str) -> None:
    code = "import sys; from imagekin.cli import main as cli; sys.exit(cli.run([]))"
    done = python(code, _IMAGEKIN_COMPLETE=f"complete_{shell}", **variables)
    assert wanted in done.stdout, done.stderr


def test_an_unforeseen_error_is_one_line_unless_its_trace_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(cli, "load_command", broken)
    assert cli.run(["version"]) == 1
    assert capsys.readouterr().err == "imagekin: ZeroDivisionError: two lines (a bug; IMAGEKIN_DEBUG=1 shows where)\n"
    monkeypatch.setenv("IMAGEKIN_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.run(["version"])


def test_ctrl_c_is_one_line_and_130() -> None:
    command = [sys.executable, "-m", "imagekin", "health", "--wait", "60", "--address", "127.0.0.1:1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "imagekin: stopped\n")


def test_a_reader_that_has_enough_ends_the_command_quietly(address: str, folder: Path) -> None:
    (folder / "many").mkdir()
    for number in range(2000):
        (folder / "many" / f"{number}.png").write_bytes(b"x" * (number + 1))
    command = (
        f"{sys.executable} -m imagekin embed many --address {address} 2> errors | head -n 1; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[1] == "141"
    assert (folder / "errors").read_text() == ""


def test_version_names_the_engines(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["version", "--json"]) == 0
    assert "numpy" in answer(capsys)["engines"]
    assert cli.run(["version"]) == 0
    assert capsys.readouterr().out.startswith("imagekin ")


def test_health_answers_by_its_status(address: str, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["health", "--address", address]) == 0
    assert "is serving" in capsys.readouterr().out
    script.serving = False
    assert cli.run(["health", "--address", address]) == 1
    assert "not serving" in capsys.readouterr().err


def test_embed_writes_the_vectors_of_what_it_could_read(
    address: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["embed", str(photos), "--address", address, "--out", "v.npy", "--json"]) == 0
    figures = answer(capsys)
    assert (figures["images"], figures["failed_count"]) == (4, 1)
    assert figures["failed"] == [{"key": "hat/d.png", "reason": "no image"}]
    vectors = np.load("v.npy")
    assert Path("v.keys").read_text().splitlines() == ["hat/c.png", "shoe/a.png", "shoe/b.png"]
    np.testing.assert_array_equal(vectors, np.stack([embedding(data) for data in (b"c", b"a", b"odd")]))
    assert not list(Path().glob(".v*"))


def test_classify_states_the_accuracy_when_folders_name_classes(
    address: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["classify", str(photos), "--collection", "c", "--address", address, "--json"]) == 0
    figures = answer(capsys)
    assert [(one["key"], one["label"]) for one in figures["predictions"]] == [
        ("hat/c.png", "shoe"),
        ("hat/d.png", "shoe"),
        ("shoe/a.png", "shoe"),
        ("shoe/b.png", None),
    ]
    assert (figures["accuracy"], figures["correct"], figures["labelled"], figures["unknown"]) == (0.25, 1, 4, 1)
    assert figures["images_per_second"] > 0
    (photos / "shoe").rename(photos / "holiday")
    assert cli.run(["classify", str(photos), "--collection", "c", "--address", address, "--json"]) == 0
    assert answer(capsys)["accuracy"] is None


def test_search_shows_tab_separated_rows_off_a_terminal(
    address: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["search", "--collection", "c", "--address", address, "--k", "1"]
    assert cli.run([*ask, str(photos / "shoe" / "a.png")]) == 0
    assert capsys.readouterr().out == "a.png\t1\tnear a\t0.5000\tshoe\n"
    assert cli.run([*ask, "--key", "x", "--json"]) == 0
    assert answer(capsys)["results"][0]["neighbours"][0] == {"key": "near x", "similarity": 0.5, "label": "shoe"}


def test_nothing_served_is_a_failure(address: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["embed", str(photos / "hat" / "d.png"), "--address", address]) == 1
    assert "of 1 image, none could be served" in capsys.readouterr().err
    (photos / "empty").mkdir()
    assert cli.run(["embed", str(photos / "empty"), "--address", address]) == 1
    assert "there are no images in " in capsys.readouterr().err


@pytest.fixture
def pictures(folder: Path) -> Path:
    for number in range(6):
        path = folder / "pictures" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 40, 20, 20)).save(path)
    (folder / "pictures" / "class0" / "bad.png").write_bytes(b"bad")
    return folder / "pictures"


@pytest.mark.parametrize("where", ["folder", "server"])
def test_index_does_what_is_missing_and_lists_what_it_could_not(
    where: str, address: str, script: Script, pictures: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_artifact(folder / "model.onnx")
    place = ["--data-dir", "data"] if where == "folder" else ["--address", address]
    command = ["index", "shop", str(pictures), "--model", str(model), *place, "--json"]
    for written, skipped in ((6, 0), (0, 6)):
        assert cli.run(command) == 0
        captured = capsys.readouterr()
        figures = json.loads(captured.out.splitlines()[-1])
        assert (figures["written"], figures["skipped"], figures["failed_count"]) == (written, skipped, 1)
        assert figures["failed"][0]["key"] == "class0/bad.png"
        assert "class0/bad.png" in captured.err
    if where == "server":
        assert script.items["class1/1.png"].label == "class1"
        assert len(script.items["class1/1.png"].content_hash) == 32
    else:
        assert cli.run(["collection", "info", "shop", "--data-dir", "data", "--json"]) == 0
        assert answer(capsys)["labelled"] == 6
        assert cli.run(["collection", "scroll", "shop", "--data-dir", "data", "--limit", "2", "--json"]) == 0
        assert len(answer(capsys)["items"]) == 2
        assert cli.run(["collection", "drop", "shop", "--data-dir", "data"]) == 2
        assert "--yes" in capsys.readouterr().err
        assert cli.run(["collection", "drop", "shop", "--data-dir", "data", "--yes"]) == 0
        assert cli.run(["collection", "info", "shop", "--data-dir", "data"]) == 1
    only_bad = ["index", "other", str(pictures / "class0" / "bad.png"), "--model", str(model), *place]
    assert cli.run(only_bad) == 1


def test_a_place_on_the_command_line_wins_over_one_from_the_environment(
    address: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGEKIN_ADDRESS", address)
    (folder / "data").mkdir()
    assert cli.run(["collection", "list", "--data-dir", "data", "--json"]) == 0
    assert answer(capsys) == {"collections": []}
    monkeypatch.setenv("IMAGEKIN_DATA_DIR", "data")
    assert cli.run(["collection", "list"]) == 2
    assert "not both" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["folder", "server"])
def test_index_refuses_a_collection_of_another_model(
    where: str, address: str, pictures: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--data-dir", "data"] if where == "folder" else ["--address", address]
    for seed, status in ((0, 0), (1, 1)):
        model = tiny_artifact(folder / f"{seed}.onnx", seed=seed)
        assert cli.run(["index", "shop", str(pictures), "--model", str(model), *place]) == status
    assert "space" in capsys.readouterr().err


def test_errors_of_a_lazy_name_are_plain() -> None:
    import imagekin

    assert imagekin.errors.NotFoundError is NotFoundError
    assert "Client" in dir(imagekin)
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = imagekin.nothing_such
