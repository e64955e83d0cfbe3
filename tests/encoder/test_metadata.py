"""The metadata of an artifact: written and read back whole, refused by name when wrong."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagekin.encoder.metadata import _MAX_JSON_CHARACTERS, Metadata, Preprocess
from imagekin.errors import InvalidArgumentError

NAMES = st.text(st.characters(categories=("L", "N", "P")), max_size=20)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)
PREPROCESS = st.builds(
    Preprocess,
    height=st.integers(1, 4096),
    width=st.integers(1, 4096),
    resize=st.sampled_from(["squash", "crop", "pad"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box"]),
    background=st.tuples(*[st.integers(0, 255)] * 3),
    crop_fraction=st.floats(0.01, 1),
)
METADATA = st.builds(
    Metadata,
    space=NAMES.filter(lambda name: 0 < len(name.encode()) <= 128),
    dim=st.integers(1, 65_536),
    preprocess=PREPROCESS,
    class_names=st.lists(NAMES, unique=True, max_size=4).map(tuple),
    objective=NAMES,
    dataset=NAMES,
    training=st.dictionaries(NAMES, JSON_VALUES, max_size=3),
    scores=st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    precision=st.sampled_from(["float32", "float16", "int8"]),
    imagekin_version=NAMES,
)

PLAIN: dict[str, Any] = {"space": "ik1-0", "dim": 4, "preprocess": {"height": 8, "width": 9}}


def with_value(path: str, value: object) -> str:
    """Return PLAIN as JSON with one value changed; a dot in the path goes into an object."""
    changed = json.loads(json.dumps(PLAIN))
    *parents, last = path.split(".")
    target = changed
    for parent in parents:
        target = target[parent]
    target[last] = value
    return json.dumps(changed)


@given(METADATA)
def test_what_is_written_is_read_back(metadata: Metadata) -> None:
    assert Metadata.from_json(metadata.to_json()) == metadata


def test_missing_fields_take_their_defaults() -> None:
    metadata = Metadata.from_json(json.dumps(PLAIN))
    assert metadata == replace(Metadata("ik1-0", 4, Preprocess(8, 9)), imagekin_version="unknown")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("space", ""),
        ("space", "x" * 129),
        ("space", "a\nb"),
        ("space", 7),
        ("dim", 0),
        ("dim", 65_537),
        ("dim", True),
        ("dim", 4.0),
        ("preprocess", []),
        ("preprocess.height", 0),
        ("preprocess.width", 4097),
        ("preprocess.resize", "stretch"),
        ("preprocess.resize", ["crop"]),
        ("preprocess.interpolation", None),
        ("preprocess.background", [0, 0]),
        ("preprocess.background", [0, 0, 256]),
        ("preprocess.background", "white"),
        ("preprocess.crop_fraction", 0),
        ("preprocess.crop_fraction", 1.5),
        ("preprocess.rotate", 90),
        ("class_names", "cat"),
        ("class_names", ["cat", "cat"]),
        ("class_names", ["cat", 1]),
        ("class_names", [str(number) for number in range(65_537)]),
        ("objective", 1),
        ("dataset", "x" * 2000),
        ("training", []),
        ("training", 3),
        ("scores", {"accuracy": "high"}),
        ("scores", {"accuracy": True}),
        ("scores", []),
        ("precision", "float8"),
        ("imagekin_version", 1),
        ("surprise", 1),
    ],
)
def test_a_wrong_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Metadata.from_json(with_value(field, value))
    assert caught.value.field == field
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["space", "dim", "preprocess", "preprocess.height", "preprocess.width"])
def test_a_missing_value_is_refused_by_name(field: str) -> None:
    values = json.loads(json.dumps(PLAIN))
    parent, _, last = field.rpartition(".")
    del (values[parent] if parent else values)[last]
    with pytest.raises(InvalidArgumentError, match=f"'{field}' is missing"):
        Metadata.from_json(json.dumps(values))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        '"text"',
        "\ud800",
        "{" * 100_000,
        "[" * 100_000,
        '{"dim": ' + "9" * 10_000 + "}",
        '{"dim": NaN}',
        '{"dim": 1, "dim": 2}',
        '{"scores": {"a": 1e999}, "space": "s", "dim": 1, "preprocess": {"height": 1, "width": 1}}',
        with_value("training", json.loads('{"a":' * 40 + "1" + "}" * 40)),
        " " * (_MAX_JSON_CHARACTERS + 1),
    ],
    ids=lambda text: f"{text[:20]!r}… of {len(text)}",
)
def test_hostile_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Metadata.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_cannot_hold_are_refused_when_made(value: float) -> None:
    with pytest.raises(InvalidArgumentError):
        Metadata("s", 1, Preprocess(1, 1), scores={"a": value})
    with pytest.raises(InvalidArgumentError):
        Metadata("s", 1, Preprocess(1, 1), training={"a": [value]})
