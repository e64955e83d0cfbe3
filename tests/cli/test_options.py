"""Every option is a setting or its command's own, explains itself, and comes from flag, environment or file."""

import dataclasses
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer

from imagekin.cli import main as cli
from imagekin.cli.shared import settings_file
from imagekin.cli.shared.options import CollectionsPlace, ServerAddress
from imagekin.command_options import Given, with_options
from imagekin.index.types import EvaluateOptions
from imagekin.serving.settings import Limits, Settings
from imagekin.settings import option, parts_of, settings_of
from imagekin.training.evaluation.settings import JudgeSettings
from imagekin.training.settings import TrainSettings


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command that can be typed and its object, groups' subcommands too."""
    for name in cli.COMMANDS:
        command = cli.load_command(name)
        subcommands = getattr(command, "commands", {})
        yield from ((f"{name} {sub}", each) for sub, each in subcommands.items())
        if not subcommands:
            yield name, command


COMMANDS = dict(commands())


def settings_classes(function: Any) -> list[type]:
    """Return the settings classes that a command's function takes, and those inside them."""
    signature = inspect.signature(function)
    found = []
    for parameter in signature.parameters.values():
        wanted = parameter.annotation
        wanted = get_args(wanted)[0] if get_origin(wanted) is Given else wanted
        if dataclasses.is_dataclass(wanted):
            assert isinstance(wanted, type)
            found += [wanted, *parts_of(wanted).values()]
    return [part for one in found for part in (one, *parts_of(one).values())]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_a_setting_or_the_commands_own(name: str) -> None:
    command = COMMANDS[name]
    function = inspect.unwrap(command.callback)
    classes = settings_classes(function)
    settings = {one.key: one for cls in classes for one in settings_of(cls) if one.flag}
    own = {each for each, one in inspect.signature(function).parameters.items() if get_args(one.annotation)}
    options = {parameter.name: parameter for parameter in command.params if parameter.name != "help"}
    assert set(options) == set(settings) | {each for each in options if each in own}
    assert not set(settings) & own, "an option is defined twice"
    for key, one in settings.items():
        assert options[key].opts == [one.flag, *([one.short] if one.short else [])]
        assert (options[key].help, options[key].rich_help_panel) == (one.help, one.panel)
        assert options[key].metavar == one.metavar
        # A default that is nothing, or "off", would only be noise.
        default = None if one.default == () else one.default
        assert options[key].default == default
        assert options[key].show_default == (one.default_help or str(default) not in ("None", "False", ""))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_explains_itself(name: str) -> None:
    for parameter in COMMANDS[name].params:
        assert len(parameter.help) > 5, parameter.name
    assert COMMANDS[name].help


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("train", [TrainSettings]),
        ("evaluate", [JudgeSettings]),
        ("collection evaluate", [EvaluateOptions]),
        ("serve", [Settings, Limits]),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_command_has_all_settings_of_what_it_sets(name: str, classes: list[type]) -> None:
    keys = {parameter.name for parameter in COMMANDS[name].params}
    assert {one.key for cls in classes for one in settings_of(cls) if one.flag} <= keys


def test_what_matters_first_in_training_stands_above_the_groups() -> None:
    first = [one.opts[0] for one in COMMANDS["train"].params if getattr(one, "rich_help_panel", None) is None]
    assert {"--objective", "--epochs", "--batch-size", "--learning-rate", "--image-size", "--device"} <= set(first)
    assert len(first) <= 18


@dataclass(frozen=True, slots=True)
class Inside:
    """A setting inside another class."""

    depth: int = option(0, "How deep.")


@dataclass(frozen=True, slots=True)
class Every:
    """A setting of each kind."""

    text: str = option("default", "A text.")
    number: int = option(1, "A number.", flag="--how-many")
    rate: float = option(0.5, "A rate.")
    on: bool = option(False, "A switch.")
    off: bool = option(True, "A switch that is on.")
    path: Path | None = option(None, "A path.", metavar="FILE")
    choice: Literal["one", "two", "three", "four"] = option("one", "A choice.")
    maybe: int | None = option(None, "A number or none.")
    texts: tuple[str, ...] = option((), "Texts.", flag="--each")
    pairs: tuple[tuple[str, str], ...] = option((), "Pairs.", flag="--pair", parse=lambda text: (text[0], text[1:]))
    inside: Inside = field(default_factory=Inside)


# Of each kind: field, then key, TOML, environment, command line, and what each of these three means.
KINDS: list[tuple[str, str, str, str, list[str], tuple[Any, Any, Any]]] = [
    ("text", "text", '"file"', "environment", ["--text", "typed"], ("file", "environment", "typed")),
    ("number", "how-many", "2", "3", ["--how-many", "4"], (2, 3, 4)),
    ("rate", "rate", "0.25", "1e-3", ["--rate", "4"], (0.25, 1e-3, 4.0)),
    ("on", "on", "true", "no", ["--on"], (True, False, True)),
    ("off", "off", "false", "yes", ["--no-off"], (False, True, False)),
    ("path", "path", '"a/b"', "c/d", ["--path", "e"], (Path("a/b"), Path("c/d"), Path("e"))),
    ("choice", "choice", '"two"', "three", ["--choice", "four"], ("two", "three", "four")),
    ("maybe", "maybe", "0", "3", ["--maybe", "4"], (0, 3, 4)),
    ("texts", "each", '["a", "b"]', "c d", ["--each", "e", "--each", "f"], (("a", "b"), ("c", "d"), ("e", "f"))),
    ("pairs", "pair", '["ab"]', "cd", ["--pair", "ef"], ((("a", "b"),), (("c", "d"),), (("e", "f"),))),
    ("inside", "depth", "2", "3", ["--depth", "4"], (Inside(2), Inside(3), Inside(4))),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("IMAGEKIN_CONFIG", "IMAGEKIN_DEBUG", "IMAGEKIN_ADDRESS", "IMAGEKIN_DATA_DIR", "IMAGEKIN_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


class Tried:
    """Runs `imagekin try …` with commands that only keep what they are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, Any] = {}

        @with_options
        def whole(settings: Every, place: ServerAddress) -> None:
            self.seen.update(settings=settings, place=place)

        @with_options
        def some(ctx: typer.Context, given: Given[Every]) -> None:
            self.seen.update(given=given.values, name=ctx.command.name)

        @with_options
        def where(place: CollectionsPlace) -> None:
            self.seen.update(place=place)

        targets = {"whole": whole, "some": some, "where": where}
        monkeypatch.setattr(cli, "COMMANDS", targets)
        monkeypatch.setattr(cli, "load_command", lambda name: cli.build_command(name, targets[name]))

    def __call__(self, *arguments: str) -> dict[str, Any]:
        self.seen.clear()
        return {"status": cli.run(arguments), **self.seen}


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Tried:
    return Tried(monkeypatch)


@pytest.mark.parametrize(
    ("name", "key", "toml", "environment", "flags", "meant"), KINDS, ids=lambda each: str(each)[:9]
)
def test_each_kind_of_value_comes_from_the_flag_then_the_environment_then_the_file(
    name: str,
    key: str,
    toml: str,
    environment: str,
    flags: list[str],
    meant: tuple[Any, Any, Any],
    folder: Path,
    tried: Tried,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def value(*arguments: str) -> Any:
        whole, some = tried("whole", *arguments), tried("some", *arguments)
        found = getattr(whole["settings"], name)
        if name != "inside":
            # The command that asks for what was given alone hears of the same value, or of none.
            assert some["given"] == ({} if found == getattr(Every(), name) and not arguments else {name: found})
        return found

    assert value() == getattr(Every(), name)
    (folder / "imagekin.toml").write_text(f"{key} = {toml}")
    assert value() == meant[0]
    variable = key.upper().replace("-", "_")
    for command in ("WHOLE", "SOME"):
        monkeypatch.setenv(f"IMAGEKIN_{command}_{variable}", environment)
    heard = tried("whole")["settings"]
    assert getattr(heard, name) == meant[1]
    assert value(*flags) == meant[2]


def test_what_the_file_turns_on_the_command_line_turns_off(folder: Path, tried: Tried) -> None:
    (folder / "imagekin.toml").write_text("on = true")
    assert tried("whole", "--no-on")["settings"].on is False
    assert tried("some", "--no-on")["given"] == {"on": False}


def test_a_default_that_is_given_counts_as_given(tried: Tried) -> None:
    assert tried("some", "--text", "default")["given"] == {"text": "default"}
    assert tried("some")["given"] == {}
    assert tried("some")["name"] == "some"


def test_the_place_that_was_given_most_directly_counts(
    folder: Path, tried: Tried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def where(*arguments: str) -> tuple[Any, Any, Any]:
        place = tried("where", *arguments)["place"]
        return place.data_dir, place.store, place.address

    (folder / "imagekin.toml").write_text('data-dir = "file"')
    assert where() == (Path("file"), None, None)
    monkeypatch.setenv("IMAGEKIN_STORE", "milvus://host:1")
    assert where() == (None, "milvus://host:1", None)
    assert where("--address", "host:2") == (None, None, "host:2")
    for arguments, message in (
        (("--address", "host:2", "--data-dir", "here"), "give --data-dir or --address, not both"),
        (("--address", "a:1", "--data-dir", "b", "--store", "c"), "give --data-dir or --store or --address, not all"),
    ):
        assert tried("where", *arguments) == {"status": 2}
        assert message in capsys.readouterr().err
    (folder / "imagekin.toml").unlink()
    monkeypatch.delenv("IMAGEKIN_STORE")
    assert tried("where") == {"status": 2}
    assert "give either --data-dir" in capsys.readouterr().err


def test_names_of_settings_are_those_of_file_and_environment() -> None:
    for name, command in COMMANDS.items():
        known = settings_file._options(command)
        for cls in settings_classes(inspect.unwrap(command.callback)):
            for one in settings_of(cls):
                assert not one.flag or known[one.key].name == one.key, (name, one.flag)
