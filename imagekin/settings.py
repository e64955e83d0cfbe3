"""Define each setting once, as a field of a settings class with type, default, meaning and bounds.

    @dataclass(frozen=True, slots=True)
    class Training:
        epochs: int = option(100, "Passes over the data.", least=0)

        def __post_init__(self) -> None:
            check(self)

`imagekin.command_options` generates the option `--epochs` from it, which the environment and the settings file can also
set; `check` refuses values out of bounds from any source.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from imagekin.errors import InvalidArgumentError

Value = TypeVar("Value")

_METADATA = "setting"


@dataclass(frozen=True, slots=True)
class Bounds:
    """An interval of numbers: from `least` or above `above`, to `most` or below `below`."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Return whether a number lies inside; infinity and NaN do not."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.above is not None:
            return f"must be a number above {self.above:g}"
        if self.below is not None:
            return f"must be at least {self.least:g} and below {self.below:g}"
        if self.most is not None:
            return f"must be from {self.least:g} to {self.most:g}"
        if isinstance(self.least, float):
            return f"must be a number of at least {self.least:g}"
        return f"must be at least {self.least}" if self.least else "must not be negative"


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of a settings class, and the option that sets it.

    Attributes:
        default: the default value.
        help: the meaning, in a line.
        name: the field's name.
        kind: the field's type, such as `int`, `Path | None` or `Literal["in", "out"]`.
        flag: the option of the command line, such as `--image-size`; None derives it from the field's name, and an
            empty text is for a setting without an option.
        short: the option's one-letter form, such as `-o`; None for none.
        metavar: the form of the value in the help; None for the type.
        panel: title of the option's group in the help; None for the first group.
        default_help: description of the default in the help, if it is not always `default`.
        bounds: bounds of a number; None for none.
        parse: converts a text of the command line to the value; None for the type's conversion.
        exclusive: of a class's exclusive settings, only the one whose source has precedence is used.
    """

    default: Any
    help: str
    name: str = ""
    kind: Any = None
    flag: str | None = None
    short: str | None = None
    metavar: str | None = None
    panel: str | None = None
    default_help: str | None = None
    bounds: Bounds | None = None
    parse: Callable[[str], Any] | None = None
    exclusive: bool = False

    @property
    def key(self) -> str:
        """Name in the environment and the settings file: that of the flag, with underscores."""
        return (self.flag or "").removeprefix("--").replace("-", "_")

    @property
    def choices(self) -> tuple[Any, ...]:
        """Values of a `Literal` type; empty for other types."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()


def option(
    default: Value,
    help: str,  # noqa: A002  typer's word for it, too
    *,
    flag: str | None = None,
    short: str | None = None,
    metavar: str | None = None,
    panel: str | None = None,
    default_help: str | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    parse: Callable[[str], Any] | None = None,
    exclusive: bool = False,
) -> Value:
    """Define a setting as a dataclass field, with the attributes of `Setting` and of `Bounds`."""
    bounds = Bounds(least, above, most, below)
    setting = Setting(
        default,
        help,
        flag=flag,
        short=short,
        metavar=metavar,
        panel=panel,
        default_help=default_help,
        bounds=None if bounds == Bounds() else bounds,
        parse=parse,
        exclusive=exclusive,
    )
    return dataclasses.field(default=default, metadata={_METADATA: setting})


@functools.cache
def settings_of(cls: type) -> tuple[Setting, ...]:
    """Return the settings that a class's fields define, in their order, without other fields."""
    hints = get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        if (setting := field.metadata.get(_METADATA)) is not None:
            flag = "--" + field.name.replace("_", "-") if setting.flag is None else setting.flag
            found.append(dataclasses.replace(setting, name=field.name, kind=hints[field.name], flag=flag))
    return tuple(found)


@functools.cache
def parts_of(cls: type) -> Mapping[str, type]:
    """Return the nested settings classes of a settings class, by field."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if is_dataclass(hints[field.name])}


def check(settings: object) -> None:
    """Check that settings are within their bounds and among their choices.

    Raises:
        InvalidArgumentError: one is not; the message names the option, and the error's field the setting.
    """
    cls: type = type(settings)
    for one in settings_of(cls):
        value = getattr(settings, one.name)
        if one.choices and value not in one.choices:
            problem = f"must be one of {', '.join(one.choices)}"
        elif one.bounds is not None and value is not None and not one.bounds.hold(value):
            problem = str(one.bounds)
        else:
            continue
        raise InvalidArgumentError(f"{one.flag or one.name} {problem}", field=one.name)
