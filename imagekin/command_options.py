"""Generate a command's options from the settings classes that it takes.

    @with_options
    def train(given: Given[TrainSettings], place: Place, as_json: AsJson = False) -> None: ...

A parameter of a settings class (see `imagekin.settings`) becomes one option for each of its settings and those of
nested settings classes; the function gets an instance. A parameter `Given[…]` gets only the values that the user gave.
Other parameters are typer's as usual.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin

import typer

from imagekin.errors import InvalidArgumentError
from imagekin.settings import Setting, parts_of, settings_of

Settings = TypeVar("Settings")

AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on the last line.")]

# Sources of a value, by descending precedence.
_SOURCES = ("COMMANDLINE", "PROMPT", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")


@dataclass(frozen=True, slots=True)
class Given(Generic[Settings]):
    """The settings of a class that the user gave; the command determines the others.

    Attributes:
        values: the values by field.
    """

    values: Mapping[str, Any]


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a function for typer, with options in place of its settings classes."""
    asked = inspect.signature(function, eval_str=True).parameters
    settings = {name: one.annotation for name, one in asked.items() if is_dataclass(_origin(one.annotation))}
    own = {name: one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, one in asked.items()}
    context = next((name for name, one in own.items() if one.annotation is typer.Context), "ctx")
    own.setdefault(context, inspect.Parameter(context, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    parameters: list[inspect.Parameter] = []
    for name, one in own.items():
        options = _options(_class_of(one.annotation)) if name in settings else ()
        parameters += [_parameter(each) for each in options] if name in settings else [one]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        filled = {name: _fill(annotation, values, values[context]) for name, annotation in settings.items()}
        function(**{name: values[name] for name in asked.keys() - settings.keys()}, **filled)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def rank(ctx: typer.Context, name: str) -> int:
    """Return the precedence of a parameter's source: 0 for the command line, then environment, file, default."""
    source = ctx.get_parameter_source(name)
    return _SOURCES.index(source.name) if source is not None else len(_SOURCES)


def _origin(annotation: Any) -> Any:
    return get_origin(annotation) or annotation


def _class_of(annotation: Any) -> type:
    found: type = get_args(annotation)[0] if _origin(annotation) is Given else annotation
    return found


def _options(cls: type) -> Iterator[Setting]:
    """Yield the settings of a class that have an option, and those of nested settings classes."""
    yield from (setting for setting in settings_of(cls) if setting.flag)
    for part in parts_of(cls).values():
        yield from _options(part)


def _parameter(setting: Setting) -> inspect.Parameter:
    """Return the function parameter from which typer makes the option."""
    kind, default, flag = setting.kind, setting.default, setting.flag or ""
    if setting.parse is not None or _origin(kind) is tuple:
        element: Any = str if setting.parse is not None else get_args(kind)[0]
        kind, default = (list[element] if _origin(kind) is tuple else element) | None, default or None
    if kind is bool:
        # To turn off what a file or the environment has turned on.
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    shown = not (default is None or default is False or default == "")
    info = typer.Option(
        flag,
        *([setting.short] if setting.short else []),
        help=setting.help,
        metavar=setting.metavar,
        rich_help_panel=setting.panel,
        show_default=setting.default_help or shown,
    )
    return inspect.Parameter(
        setting.key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _fill(annotation: Any, values: Mapping[str, Any], ctx: typer.Context) -> Any:
    """Make an instance of a settings class from the options' values; see `with_options`."""
    cls = _class_of(annotation)
    settings = [setting for setting in settings_of(cls) if setting.flag]
    ranks = {setting.key: rank(ctx, setting.key) for setting in settings}
    rivals = [setting.key for setting in settings if setting.exclusive and values[setting.key] is not None]
    winners = [key for key in rivals if ranks[key] == min(ranks[rival] for rival in rivals)]
    if len(winners) > 1:
        options = " or ".join("--" + key.replace("_", "-") for key in winners)
        raise InvalidArgumentError(f"give {options}, not {'both' if len(winners) == 2 else 'all'}", field=winners[0])
    found = {
        setting.name: None if setting.key in rivals and setting.key not in winners else _value(setting, values)
        for setting in settings
    }
    if _origin(annotation) is Given:
        default = _SOURCES.index("DEFAULT")
        return Given({setting.name: found[setting.name] for setting in settings if ranks[setting.key] < default})
    return cls(**found, **{name: _fill(part, values, ctx) for name, part in parts_of(cls).items()})


def _value(setting: Setting, values: Mapping[str, Any]) -> Any:
    value = values[setting.key]
    parse = setting.parse or (lambda text: text)
    if _origin(setting.kind) is tuple:
        return tuple(parse(each) for each in value or ())
    return value if value is None else parse(value)
