"""Read and write a model artifact's metadata: preprocessing, embedding space and origin.

The artifact holds one JSON object under one key of the ONNX `metadata_props`. The file is not trusted, so the text is
parsed strictly: sizes are bounded, and every field is checked and named in errors.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn, TypeAlias, get_args

from imagekin.errors import InvalidArgumentError
from imagekin.version import installed_version

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Resize = Literal["squash", "crop", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]
Precision = Literal["float32", "float16", "int8"]

METADATA_KEY = "imagekin"
_MAX_JSON_CHARACTERS = 4 * 2**20
_MAX_DEPTH = 16
_MAX_SIDE = 4096
_MAX_DIM = 65_536
_MAX_CLASSES = 65_536
_MAX_TEXT_BYTES = 1024
_MAX_SPACE_BYTES = 128


@dataclass(frozen=True, slots=True)
class Preprocess:
    """The steps that turn an upright RGB image into the model's input.

    Attributes:
        height: rows of the input, 1 to 4,096 pixels.
        width: columns of the input, 1 to 4,096 pixels.
        resize: `squash` ignores the aspect ratio; `crop` scales the image to cover the input, and crops the excess
            equally on both sides; `pad` scales it to fit inside, and fills the rest with `background`.
        interpolation: resampling filter, antialiased except for `nearest`.
        background: RGB colour, 0 to 255 each, behind transparent pixels and around padded images.
        crop_fraction: for `crop`, the fraction of the sides that is kept, above 0 and at most 1. For models trained
            with "resize to 256, crop 224" it is 0.875.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    height: int
    width: int
    resize: Resize = "crop"
    interpolation: Interpolation = "bilinear"
    background: tuple[int, int, int] = (255, 255, 255)
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        _check_int("preprocess.height", self.height, 1, _MAX_SIDE)
        _check_int("preprocess.width", self.width, 1, _MAX_SIDE)
        _check_choice("preprocess.resize", self.resize, get_args(Resize))
        _check_choice("preprocess.interpolation", self.interpolation, get_args(Interpolation))
        if not isinstance(self.background, tuple) or len(self.background) != 3:
            _fail("preprocess.background", "must be three numbers: red, green, blue")
        for part in self.background:
            _check_int("preprocess.background", part, 0, 255)
        if not _is_number(self.crop_fraction) or not 0 < self.crop_fraction <= 1:
            _fail("preprocess.crop_fraction", "must be above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata of a model artifact.

    Attributes:
        space: id of the embedding space, 1 to 128 bytes, which identifies the weights; embeddings of different spaces
            cannot be compared.
        dim: number of components of an embedding, 1 to 65,536.
        preprocess: preprocessing of images.
        class_names: names of the linear head's classes in the order of its logits; empty when there is no head.
        objective: objective of pretraining, for example `supcon`; empty when unknown.
        dataset: data set of pretraining; empty when unknown.
        training: settings of the training run, any JSON object.
        scores: finite figures by name, for example `knn_accuracy`.
        precision: number format of the weights.
        imagekin_version: version of imagekin that wrote the artifact.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    space: str
    dim: int
    preprocess: Preprocess
    class_names: tuple[str, ...] = ()
    objective: str = ""
    dataset: str = ""
    training: Mapping[str, JSON] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    precision: Precision = "float32"
    imagekin_version: str = field(default_factory=installed_version)

    def __post_init__(self) -> None:
        _check_text("space", self.space, _MAX_SPACE_BYTES)
        if not self.space:
            _fail("space", "must not be empty")
        _check_int("dim", self.dim, 1, _MAX_DIM)
        if not isinstance(self.preprocess, Preprocess):
            _fail("preprocess", "must be an object")
        if not isinstance(self.class_names, tuple) or len(self.class_names) > _MAX_CLASSES:
            _fail("class_names", f"must be a list of at most {_MAX_CLASSES} names")
        for name in self.class_names:
            _check_text("class_names", name)
        if len(set(self.class_names)) != len(self.class_names):
            _fail("class_names", "must not repeat a name")
        _check_text("objective", self.objective)
        _check_text("dataset", self.dataset)
        _check_choice("precision", self.precision, get_args(Precision))
        _check_text("imagekin_version", self.imagekin_version)
        _check_json("training", self.training)
        if not isinstance(self.scores, Mapping):
            _fail("scores", "must be an object")
        for name, score in self.scores.items():
            _check_text("scores", name)
            if not _is_number(score) or not math.isfinite(score):
                _fail("scores", f"must be finite numbers, {name[:64]!r} is not")

    def to_json(self) -> str:
        """Return the metadata as one JSON object, on one line, with keys in the order of the fields."""
        plain = {part.name: getattr(self, part.name) for part in fields(self)}
        plain["preprocess"] = {part.name: getattr(self.preprocess, part.name) for part in fields(Preprocess)}
        plain["training"] = dict(self.training)
        plain["scores"] = dict(self.scores)
        return json.dumps(plain, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Metadata":
        """Parse the JSON object that `to_json` returns.

        Args:
            text: one JSON object, at most 4 Mi characters.

        Raises:
            InvalidArgumentError: it is invalid; the message names the field.
        """
        values = _parse_object(text)
        _check_names("", values, cls)
        preprocess = values["preprocess"]
        if not isinstance(preprocess, dict):
            _fail("preprocess", "must be an object")
        _check_names("preprocess.", preprocess, Preprocess)
        # The constructors check every type.
        prepared: dict[str, Any] = {name: _tuple(value) for name, value in preprocess.items()}
        known: dict[str, Any] = {"imagekin_version": "unknown", **values, "preprocess": Preprocess(**prepared)}
        return cls(**{**known, "class_names": _tuple(known.get("class_names", ()))})


def _parse_object(text: str) -> dict[str, JSON]:
    if len(text) > _MAX_JSON_CHARACTERS:
        _fail("", f"is longer than {_MAX_JSON_CHARACTERS} characters")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        _fail("", "is not valid JSON")
    if not isinstance(value, dict):
        _fail("", "is not a JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _unique(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    """Build an object; a repeated name is an error, because JSON parsers differ in the value that they use."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("repeated name")
    return value


def _check_names(prefix: str, values: Mapping[str, JSON], kind: type[Metadata] | type[Preprocess]) -> None:
    """Refuse missing and unknown names, because ignoring one could change the preprocessing."""
    known = {part.name for part in fields(kind)}
    for name in values:
        if name not in known:
            _fail(prefix + name[:64], "is unknown; the model may come from a newer imagekin")
    required = ("height", "width") if kind is Preprocess else ("space", "dim", "preprocess")
    for name in required:
        if name not in values:
            _fail(prefix + name, "is missing")


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _fail(name: str, problem: str) -> NoReturn:
    subject = f"model metadata {name!r}" if name else "model metadata"
    raise InvalidArgumentError(f"{subject} {problem}", field=name)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        _fail(name, f"must be a whole number from {low} to {high}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        _fail(name, f"must be one of {', '.join(choices)}")


def _check_text(name: str, value: object, limit: int = _MAX_TEXT_BYTES) -> None:
    if not isinstance(value, str) or not value.isprintable() or len(value.encode("utf-8", "replace")) > limit:
        _fail(name, f"must be text of at most {limit} bytes without control characters")


def _check_json(name: str, value: object, depth: int = 0) -> None:
    """Check that a value is a JSON object of bounded depth with finite numbers."""
    if depth > _MAX_DEPTH:
        _fail(name, f"is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for key, part in value.items():
            if not isinstance(key, str):
                _fail(name, "must have text as keys")
            _check_json(name, part, depth + 1)
    elif depth == 0:
        _fail(name, "must be an object")
    elif isinstance(value, list | tuple):
        for part in value:
            _check_json(name, part, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            _fail(name, "must hold finite numbers only")
    elif value is not None and not isinstance(value, str | int | bool):
        _fail(name, f"must be plain JSON, not {type(value).__name__}")
