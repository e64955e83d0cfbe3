"""A setting is defined once: what is out of its bounds is refused by name, and what a field says is what counts."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagekin.errors import InvalidArgumentError
from imagekin.index.types import EvaluateOptions
from imagekin.serving.settings import Limits, Settings
from imagekin.settings import Bounds, check, option, parts_of, settings_of
from imagekin.training import presets
from imagekin.training.evaluation.settings import JudgeSettings
from imagekin.training.presets import recommended
from imagekin.training.settings import FOLLOWS, LABELLED, TrainSettings

CLASSES = (TrainSettings, JudgeSettings, EvaluateOptions, Settings, Limits)


@dataclass(frozen=True, slots=True)
class Inner:
    """Settings inside others."""

    depth: int = option(1, "Depth.", least=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class Outer:
    """A setting of each bound."""

    plain: int = 7
    rate: float = option(0.5, "Rate.", above=0)
    share: float = option(0.5, "Share.", least=0, most=1)
    decay: float = option(0.5, "Decay.", least=0, below=1)
    seconds: float = option(1.0, "Seconds.", least=0.0)
    size: int | None = option(None, "Size.", flag="--image-size", least=8)
    hidden: int = option(1, "Hidden.", flag="", least=1)
    form: Literal["in", "out"] = option("in", "Form.")
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check(self)


def test_a_class_has_its_settings_in_their_order_and_the_classes_inside_it() -> None:
    found = {one.name: (one.flag, one.key, one.choices) for one in settings_of(Outer)}
    assert list(found) == ["rate", "share", "decay", "seconds", "size", "hidden", "form"]
    assert found["rate"] == ("--rate", "rate", ())
    assert found["size"] == ("--image-size", "image_size", ())
    assert found["hidden"] == ("", "", ())
    assert found["form"] == ("--form", "form", ("in", "out"))
    assert parts_of(Outer) == {"inner": Inner}
    assert Outer() == Outer(plain=7, rate=0.5, size=None, form="in", inner=Inner(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "--rate must be a number above 0"),
        ({"rate": math.inf}, "--rate must be a number above 0"),
        ({"share": 1.1}, "--share must be from 0 to 1"),
        ({"share": -0.1}, "--share must be from 0 to 1"),
        ({"decay": 1.0}, "--decay must be at least 0 and below 1"),
        ({"seconds": math.nan}, "--seconds must be a number of at least 0"),
        ({"size": 7}, "--image-size must be at least 8"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"form": "aside"}, "--form must be one of in, out"),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused_by_the_name_that_users_know(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{message}$") as refused:
        Outer(**changes)
    assert refused.value.field == next(iter(changes))


def test_the_classes_inside_check_themselves() -> None:
    with pytest.raises(InvalidArgumentError, match="--depth must not be negative"):
        Outer(inner=Inner(-1))


@given(
    st.sampled_from([Bounds(least=0), Bounds(above=0), Bounds(least=-1, most=1), Bounds(least=0, below=1)]),
    st.sampled_from([-1.0, 0.0, 1.0]) | st.floats(allow_nan=True, allow_infinity=True),
)
def test_bounds_are_an_interval_of_numbers(bounds: Bounds, value: float) -> None:
    lower = bounds.least if bounds.above is None else math.nextafter(bounds.above, math.inf)
    upper = bounds.most if bounds.below is None else math.nextafter(bounds.below, -math.inf)
    assert lower is not None
    assert bounds.hold(value) == (math.isfinite(value) and lower <= value <= (math.inf if upper is None else upper))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_has_a_meaning_and_a_default_that_its_own_bounds_allow(cls: type) -> None:
    assert settings_of(cls)
    for one in settings_of(cls):
        assert one.help.endswith("."), one.name
        assert one.bounds is None or one.bounds.hold(one.default), one.name
        assert not one.choices or one.default in one.choices, one.name
    keys = [one.key for one in settings_of(cls) if one.flag]
    assert len(set(keys)) == len(keys)


def test_every_field_of_a_training_run_but_data_and_folder_is_a_setting() -> None:
    fields = {one.name for one in dataclasses.fields(TrainSettings)}
    assert fields - {one.name for one in settings_of(TrainSettings)} == {"data", "out"}


@pytest.mark.parametrize("setting", [one for one in settings_of(TrainSettings) if one.bounds], ids=lambda one: one.name)
def test_a_training_run_refuses_each_number_below_its_bounds(setting: Any) -> None:
    for value in (setting.default - 1e9, math.nan):
        changes: dict[str, Any] = {setting.name: value}
        with pytest.raises(InvalidArgumentError, match=f"^{setting.flag} must ") as refused:
            TrainSettings(data="digits", out=Path("run"), **changes)
        assert refused.value.field == setting.name


def test_the_help_says_of_a_default_that_it_follows_the_data_where_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "published_name", lambda path: None if path.name == "photos" else path.name)
    names = {one.name for one in settings_of(TrainSettings)}
    default = TrainSettings(data="x", out=Path("run"))
    varied = {
        name
        for data in ("digits", "mnist", "fashion-mnist", "cifar10", "photos")
        for objective in (*LABELLED, "simclr", "moco", "rotation", "jigsaw", "context", "exemplar", "deepcluster")
        for name in names - {"objective"}
        if getattr(recommended(data, Path("run"), objective), name) != getattr(default, name)
    }
    said = {one.name for one in settings_of(TrainSettings) if one.default_help == FOLLOWS}
    assert varied == said
