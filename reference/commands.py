"""Write a page for each subcommand from the definitions of its options."""

import enum
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from imagekin.cli.main import COMMANDS, load_command
from reference.markdown import code, prose, table

_KINDS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
_HEADER = ("option", "default", "meaning")


def command_names() -> tuple[str, ...]:
    """Return the names of the subcommands, in the order of `imagekin --help`."""
    return tuple(COMMANDS)


def page_name(name: str) -> str:
    """Return the file name of a subcommand's page; a page index.md would be that of the whole folder."""
    return f"imagekin-{name}.md"


def commands_page() -> str:
    """Return the page that lists the subcommands."""
    rows = [(f"[{code(name)}]({page_name(name)})", prose(_first_line(load_command(name)))) for name in COMMANDS]
    return (
        "# Commands\n\nEvery option may also stand in the environment or in `imagekin.toml`: see"
        " [settings](../settings.md). Exit statuses are in the table of [errors](../errors.md).\n\n"
        + table(("command", "does"), rows)
    )


def command_page(name: str) -> str:
    """Return the page of a subcommand; those of a group have a section each."""
    return f"# imagekin {name}\n\n" + "\n".join(_described(load_command(name), f"imagekin {name}", level=2))


def _described(command: Any, path: str, level: int) -> Iterator[str]:
    yield prose(inspect.cleandoc(command.help or "")) + "\n"
    subcommands: dict[str, Any] = getattr(command, "commands", {})
    if subcommands:
        for name, sub in subcommands.items():
            yield f"{'#' * level} {path.removeprefix('imagekin ')} {name}\n"
            yield from _described(sub, f"{path} {name}", level + 1)
        return
    shown = [one for one in command.params if not getattr(one, "hidden", False) and one.name != "help"]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    usage = " ".join([path, "[OPTIONS]", *(_usage(one) for one in arguments)])
    yield f"```text\n{usage}\n```\n"
    if arguments:
        yield table(("argument", "meaning"), [(code(_metavar(one)), prose(one.help or "")) for one in arguments])
    panels: dict[str, list[Any]] = {}
    for one in shown:
        if one.param_type_name != "argument":
            panels.setdefault(one.rich_help_panel or "", []).append(one)
    for title, options in panels.items():
        if title:
            yield f"**{title}**\n"
        yield table(_HEADER, [_row(one) for one in options])


def _usage(argument: Any) -> str:
    name = _metavar(argument)
    return name if argument.required else f"[{name}]"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _row(option: Any) -> tuple[str, str, str]:
    names = [*option.opts, *option.secondary_opts]
    names.sort(key=lambda name: (name in option.secondary_opts, not name.startswith("--")))
    value = "" if option.is_flag else f" {_value(option)}"
    flags = ", ".join(code(name + (value if at == 0 else "")) for at, name in enumerate(names))
    return flags, _default(option), prose(option.help or "")


def _value(option: Any) -> str:
    """Return the form of an option's value, such as FILE or `in|out`."""
    if option.metavar:
        return str(option.metavar)
    kind = option.type_descriptor.annotation
    kinds = [one for one in (get_args(kind) or (kind,)) if one is not type(None)]
    if all(isinstance(one, str) for one in kinds):
        return "|".join(kinds)
    if isinstance(kinds[0], type) and issubclass(kinds[0], enum.Enum):
        return "|".join(str(one.value) for one in kinds[0])
    return _KINDS.get(kinds[0], "VALUE")


def _default(option: Any) -> str:
    """Return the default as the command's help shows it."""
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return prose(option.show_default)
    value = option.default
    if isinstance(value, enum.Enum):
        value = value.value
    if option.is_flag:
        return "on" if value else "off"
    if value is None or value == "" or (isinstance(value, (list, tuple)) and not value) or callable(value):
        return ""
    return code(value.as_posix() if isinstance(value, Path) else str(value))


def _first_line(command: Any) -> str:
    return inspect.cleandoc(command.help or "").split("\n\n")[0]
