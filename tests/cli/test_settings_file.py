"""Flags come first, then the environment, then the file, then the default; a key that nothing has is an error."""

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from imagekin.cli import main as cli
from imagekin.cli.shared import settings_file
from imagekin.errors import InvalidArgumentError


def options_of(
    command: str, monkeypatch: pytest.MonkeyPatch, *after: str, before: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Run a command line as far as the subcommand's function and return what that was given, and the status."""
    seen: dict[str, Any] = {}

    def classify(
        address: Annotated[str, typer.Option("--address")] = "default:1",
        k: Annotated[int, typer.Option("--k")] = 1,
        data_dir: Annotated[Path | None, typer.Option("--data-dir")] = None,
        as_json: Annotated[bool, typer.Option("--json")] = False,
        model: Annotated[list[str] | None, typer.Option("--model")] = None,
    ) -> None:
        seen.update(address=address, k=k, data_dir=data_dir, as_json=as_json, model=model)

    app = typer.Typer()
    app.command("list")(classify)
    app.command("other")(lambda: None)
    targets = {"classify": classify, "collection": app}
    monkeypatch.setattr(cli, "COMMANDS", targets)
    monkeypatch.setattr(cli, "load_command", lambda name: cli.build_command(name, targets[name]))
    return {"status": cli.run([*before, *command.split(), *after]), **seen}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("IMAGEKIN_ADDRESS", "IMAGEKIN_CONFIG", "IMAGEKIN_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_each_source_of_a_setting_gives_way_to_the_one_before_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def address(*arguments: str) -> Any:
        return options_of("classify", monkeypatch, *arguments)["address"]

    assert address() == "default:1"
    (folder / "imagekin.toml").write_text('address = "top:1"')
    assert address() == "top:1"
    (folder / "imagekin.toml").write_text('address = "top:1"\n[classify]\naddress = "table:1"')
    assert address() == "table:1"
    monkeypatch.setenv("IMAGEKIN_ADDRESS", "everywhere:1")
    assert address() == "everywhere:1"
    monkeypatch.setenv("IMAGEKIN_CLASSIFY_ADDRESS", "here:1")
    assert address() == "here:1"
    assert address("--address", "flag:1") == "flag:1"


def test_another_file_may_be_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "imagekin.toml").write_text("k = 2")
    (folder / "other.toml").write_text('data-dir = "d"\nmodel = ["a", "b"]\n[classify]\nk = 3\njson = true')
    expected = {"k": 3, "data_dir": Path("d"), "as_json": True, "model": ["a", "b"]}
    seen = options_of("classify", monkeypatch, before=("--config", "other.toml"))
    assert {name: seen[name] for name in expected} == expected
    monkeypatch.setenv("IMAGEKIN_CONFIG", "other.toml")
    assert options_of("classify", monkeypatch)["k"] == 3


def test_a_group_hands_its_settings_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "imagekin.toml").write_text("[collection]\nk = 5")
    assert options_of("collection list", monkeypatch)["k"] == 5
    (folder / "imagekin.toml").write_text("[collection]\nk = 5\n[collection.list]\nk = 6")
    assert options_of("collection list", monkeypatch)["k"] == 6
    monkeypatch.setenv("IMAGEKIN_COLLECTION_LIST_K", "7")
    assert options_of("collection list", monkeypatch)["k"] == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adress = 'x'", "unknown key 'adress'; did you mean 'address'?"),
        ("[classify]\nkk = 1", "unknown key 'kk' in [classify]; did you mean 'k'?"),
        ("[clasify]\nk = 1", "unknown table [clasify]; did you mean 'classify'?"),
        ("[collection.lst]\nk = 1", "unknown table [collection.lst]; did you mean 'list'?"),
        ("[collection.other]\nk = 1", "unknown key 'k' in [collection.other]"),
        ("k = ", "no TOML"),
        ("[classify]\nk = 'many'", "Invalid value for '--k'"),
    ],
)
def test_a_setting_that_means_nothing_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (folder / "imagekin.toml").write_text(text)
    assert options_of("classify", monkeypatch)["status"] == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_file_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_of("classify", monkeypatch, before=("--config", "none.toml"))["status"] == 2
    with pytest.raises(InvalidArgumentError, match=r"none\.toml: cannot be read"):
        settings_file.load(Path("none.toml"), None, None)
