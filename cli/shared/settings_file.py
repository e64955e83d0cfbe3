"""Read defaults of the command's options from the environment and from TOML.

In the file, keys are the options' names. A key at the top of the file (or of a group's table) holds for every
subcommand that has the option, a key in a subcommand's table for that one only. A key that no option has is an error,
because a misspelt setting must not be ignored.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagekin.errors import InvalidArgumentError

_DEFAULT_FILE = Path("imagekin.toml")
# Options that mean the same in every subcommand: IMAGEKIN_ADDRESS holds for all of them.
_EVERYWHERE = frozenset(
    {
        "address",
        "ca",
        "cache_dir",
        "client_cert",
        "client_key",
        "data_dir",
        "data_root",
        "device",
        "model",
        "store",
        "tls",
        "token",
    }
)
# Other variables that the command or its parts read.
_VARIABLES = frozenset({"CONFIG", "DEBUG", "DATA", "STORE_TOKEN"})
# Options of a single call, which would be a trap in a file or in the environment.
_CALL_ONLY = frozenset({"help", "config", "show_views"})


def with_environment(command: Any, prefix: str) -> Any:
    """Read every option of a command, or of a group's subcommands, from the environment, too; return `command`."""
    for name, option in _options(command).items():
        suffix = name.upper()
        option.envvar = [f"{prefix}_{suffix}", *([f"IMAGEKIN_{suffix}"] if name in _EVERYWHERE else [])]
        option.show_envvar = False  # `imagekin --help` states the rule; a second name per option would bury the text
    for name, sub in getattr(command, "commands", {}).items():
        with_environment(sub, f"{prefix}_{name.upper()}")
    return command


def misspelt(environment: Mapping[str, str], root: Any, ctx: Any) -> Iterator[str]:
    """Yield a warning for each variable that no option has but that resembles one: a misspelt setting.

    Others are let be: Kubernetes, for one, sets IMAGEKIN_PORT where there is a service of that name.

    Args:
        environment: the process's variables.
        root: the group of all commands.
        ctx: its context.
    """
    common = {f"IMAGEKIN_{name.upper()}" for name in _EVERYWHERE | _VARIABLES}
    names = root.list_commands(ctx)
    unsure = {name for name in environment if name.startswith("IMAGEKIN_") and name not in common}
    # All commands are loaded only where something is wrong: that takes longer than a short command itself.
    for name in names:
        prefix = f"IMAGEKIN_{name.upper()}_"
        if any(variable.startswith(prefix) for variable in unsure):
            unsure.difference_update(_variables(root.get_command(ctx, name)))
    if not unsure:
        return
    known = common.union(*(_variables(root.get_command(ctx, name)) for name in names))
    suffixes = [name.removeprefix("IMAGEKIN_") for name in sorted(known)]
    for name in sorted(unsure):
        for near in difflib.get_close_matches(name.removeprefix("IMAGEKIN_"), suffixes, 1, cutoff=0.8):
            yield f"the environment's {name} is no setting and is ignored; did you mean IMAGEKIN_{near}?"


def load(path: Path | None, root: Any, ctx: Any) -> dict[str, Any] | None:
    """Read the settings file as the command-line library's map of defaults, None without a file.

    Args:
        path: the file that the user named; None takes ./imagekin.toml where there is one.
        root: the group of all commands.
        ctx: its context.

    Raises:
        InvalidArgumentError: the file cannot be read, is no TOML, or has a key that no option has.
    """
    chosen = path or _DEFAULT_FILE
    if path is None and not chosen.is_file():
        return None
    try:
        settings = tomllib.loads(chosen.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgumentError(f"{chosen}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidArgumentError(f"{chosen}: no TOML: {error}") from error
    commands = {name: root.get_command(ctx, name) for name in root.list_commands(ctx)}
    return defaults(settings, commands, str(chosen))


def defaults(settings: Mapping[str, Any], commands: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the defaults that the settings give each command (nested for groups), by parameter.

    Raises:
        InvalidArgumentError: a key that no option has; the message names the nearest one.
    """
    return _Filler(source).group(commands, settings, {}, "")


@dataclass(slots=True)
class _Filler:
    """Match settings with commands, and note which common keys some command has taken."""

    source: str
    taken: set[str] = field(default_factory=set)

    def group(
        self, commands: Mapping[str, Any], own: Mapping[str, Any], inherited: Mapping[str, Any], where: str
    ) -> dict[str, Any]:
        """Return the defaults of a group's subcommands."""
        names = {_key(name): name for name in commands}
        tables = {_key(key): value for key, value in own.items() if isinstance(value, Mapping)}
        common = {_key(key): value for key, value in own.items() if not isinstance(value, Mapping)}
        for key in tables.keys() - names.keys():
            raise self._unknown(f"table [{where}{key}]", key, names)
        filled: dict[str, Any] = {}
        for key, name in names.items():
            command, table = commands[name], tables.get(key, {})
            below = {**inherited, **common}
            subcommands = getattr(command, "commands", None)
            if subcommands:
                filled[name] = self.group(subcommands, table, below, f"{where}{name}.")
            else:
                filled[name] = self.leaf(command, table, below, f"{where}{name}")
        for key in common.keys() - self.taken:
            known = {option for command in commands.values() for option in _all_options(command)}
            raise self._unknown(f"key {key!r}" + (f" in [{where.rstrip('.')}]" if where else ""), key, known)
        return filled

    def leaf(self, command: Any, own: Mapping[str, Any], inherited: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the defaults of one command."""
        options = _options(command)
        named = {_key(key): value for key, value in own.items()}
        for key in named.keys() - options.keys():
            raise self._unknown(f"key {key!r} in [{where}]", key, options)
        self.taken.update(inherited.keys() & options.keys())
        values = {key: value for key, value in {**inherited, **named}.items() if key in options}
        return {options[key].name: value for key, value in values.items()}

    def _unknown(self, what: str, key: str, known: Any) -> InvalidArgumentError:
        near = difflib.get_close_matches(key, sorted(known), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return InvalidArgumentError(f"{self.source}: unknown {what}{hint}")


def _options(command: Any) -> dict[str, Any]:
    """Return a command's options by the name that the user knows, `--data-dir` as `data_dir`."""
    found = {}
    for parameter in command.params:
        flags = [flag for flag in getattr(parameter, "opts", ()) if flag.startswith("--")]
        if flags and _key(flags[0]) not in _CALL_ONLY:
            found[_key(flags[0])] = parameter
    return found


def _variables(command: Any) -> Iterator[str]:
    """Yield the environment's variables of a command's options, and of a group's subcommands."""
    for option in _options(command).values():
        yield from option.envvar
    for sub in getattr(command, "commands", {}).values():
        yield from _variables(sub)


def _all_options(command: Any) -> Iterator[str]:
    yield from _options(command)
    for sub in getattr(command, "commands", {}).values():
        yield from _all_options(sub)


def _key(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")
