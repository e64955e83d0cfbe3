"""Build encoders by name: timm's, torchvision's, EfficientNet-Lite, a user's own (see `names` for the forms).

Every source gives a backbone without its classifier, and the data configuration that the model was trained with.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from imagekin.encoder.metadata import Interpolation, Preprocess, Resize
from imagekin.errors import FailedPreconditionError, ImagekinError, InvalidArgumentError
from imagekin.training.models import efficientnet_lite
from imagekin.training.models.encoders import IMAGENET_NORMALISATION, Backbone, Normalisation
from imagekin.training.models.names import Name
from imagekin.training.models.weights import LoadedWeights, State, load_part, part_for, read_state

RANDOM = "random"
"""Instead of a file of weights: none."""

DEFAULT_SIDE = 224
_FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """Images as a model expects them.

    Attributes:
        size: side of its square input.
        normalisation: of pixels scaled to [0, 1].
        interpolation: see `Preprocess`.
        crop_fraction: see `Preprocess`.
        resize: see `Preprocess`.
    """

    size: int = DEFAULT_SIDE
    normalisation: Normalisation = IMAGENET_NORMALISATION
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 0.875
    resize: Resize = "crop"

    def preprocess(self) -> Preprocess:
        """Return the rule by which files become the model's input."""
        fraction = self.crop_fraction if self.resize == "crop" else 1.0
        return Preprocess(self.size, self.size, self.resize, self.interpolation, crop_fraction=fraction)


class NamedBackbone(Backbone):
    """A model from elsewhere that maps images to features.

    Args:
        body: float [N, 3, H, W] to [N, D], or to [N, D, H', W'], of which the mean over places is taken.
        size: side of its input.

    Raises:
        InvalidArgumentError: it fails to, as tried with two black images.
    """

    def __init__(self, body: nn.Module, size: int) -> None:
        super().__init__()
        self.body = body
        training = body.training
        body.eval()
        with torch.no_grad():
            self.feature_dim = _check_features(self, size)
        body.train(training)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float [N, 3, H, W], to features, float [N, D]."""
        features: Tensor = self.body(images)
        return features.mean((2, 3)) if features.ndim == 4 else features


@dataclass(frozen=True, slots=True)
class NamedEncoder:
    """An encoder from elsewhere with its weights.

    Attributes:
        name: its name.
        backbone: without its classifier.
        images: images as it expects them.
        weights: result of loading a file of weights; None for those of its own source, or random ones.
    """

    name: Name
    backbone: NamedBackbone
    images: ImageConfig
    weights: LoadedWeights | None = None


def build_named(name: Name, image_size: int = 0) -> tuple[NamedBackbone, ImageConfig]:
    """Build an encoder with random weights; an image size of 0 is its own.

    Raises:
        InvalidArgumentError: its source has none of that name, or it is no image encoder.
        FailedPreconditionError: its source cannot be reached.
    """
    body, images = _build(name, image_size)
    return NamedBackbone(body, images.size), images


def takes_size(backbone: NamedBackbone, size: int) -> bool:
    """Return whether an encoder also runs on images of another size; transformers often do not."""
    training = backbone.training
    try:
        with torch.no_grad():
            _check_features(backbone.eval(), size)
    except InvalidArgumentError:
        return False
    finally:
        backbone.train(training)
    return True


def load_named(name: Name, *, weights: Path | None = None, image_size: int = 0) -> NamedEncoder:
    """Build an encoder with the weights of its source, of a file, or random ones (`random` in place of a file).

    Raises:
        InvalidArgumentError: as in `build_named`; or the file holds another model's weights.
        FailedPreconditionError: its source cannot be reached, or has no weights.
        NotFoundError: there is no such file.
        DataLossError: the file is damaged, or holds more than weights.
    """
    if weights is not None and str(weights) == RANDOM:
        return NamedEncoder(name, *build_named(name, image_size))
    if weights is None and name.kind in ("timm", "torchvision", "hf-hub"):
        body, images = _build(name, image_size, pretrained=True)
        return NamedEncoder(name, NamedBackbone(body, images.size), images)
    body, images = _build(name, image_size)
    report = None
    if weights is not None:
        report = _load_file(body, weights)
    elif name.kind == "efficientnet-lite":
        report = efficientnet_lite.load(body, name.rest)
    elif name.kind == "folder":
        report = _load_file(body, _folder_weights(Path(name.rest)))
    # A model from a user's own function has its weights already.
    return NamedEncoder(name, NamedBackbone(body, images.size), images, report)


def _build(name: Name, image_size: int, *, pretrained: bool = False) -> tuple[nn.Module, ImageConfig]:
    with _one_line(name):
        if name.kind == "torchvision":
            return _build_torchvision(name.rest, image_size, pretrained=pretrained)
        if name.kind == "function":
            return _build_function(name.rest, image_size)
        source = {
            "timm": name.rest,
            "hf-hub": f"hf-hub:{name.rest}",
            "folder": f"local-dir:{name.rest}",
            "efficientnet-lite": efficientnet_lite.timm_name(name.rest),
        }[name.kind]
        return _build_timm(source, image_size, pretrained=pretrained)


def _build_timm(source: str, image_size: int, *, pretrained: bool) -> tuple[nn.Module, ImageConfig]:
    import timm

    options: dict[str, Any] = {"num_classes": 0}
    body = timm.create_model(source, pretrained=pretrained and not image_size, **options)
    config: Any = body.pretrained_cfg
    if image_size:
        if config.get("fixed_input_size"):
            options["img_size"] = image_size
        body = timm.create_model(source, pretrained=pretrained, **options)
    return body, _of_config(config, image_size)


def _of_config(config: Mapping[str, Any], image_size: int) -> ImageConfig:
    """Return the image configuration of a timm model's `pretrained_cfg`."""
    from timm.data.config import resolve_data_config

    data = resolve_data_config(pretrained_cfg=dict(config))  # type: ignore[no-untyped-call]
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise InvalidArgumentError(f"its input is {channels}×{height}×{width}; only square RGB inputs can be taken")
    return ImageConfig(
        image_size or height,
        Normalisation(_triple(data["mean"]), _triple(data["std"])),
        data["interpolation"] if data["interpolation"] in get_args(Interpolation) else "bicubic",
        min(1.0, float(data["crop_pct"])),
        "squash" if data.get("crop_mode") == "squash" else "crop",
    )


def _build_torchvision(name: str, image_size: int, *, pretrained: bool) -> tuple[nn.Module, ImageConfig]:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise InvalidArgumentError(f"torchvision has no image classifier {name!r}", field="encoder")
    weights = models.get_model_weights(name).DEFAULT
    body = models.get_model(name, weights=None)
    if pretrained:
        body.load_state_dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    wanted = weights.transforms()
    (crop,), (resized,) = wanted.crop_size, wanted.resize_size
    images = ImageConfig(
        image_size or crop,
        Normalisation(_triple(wanted.mean), _triple(wanted.std)),
        wanted.interpolation.value,
        min(1.0, crop / resized),
    )
    return _without_classifier(body), images


def _without_classifier(body: nn.Module) -> nn.Module:
    """Replace the last linear layer of a classifier, which is the one to its classes."""
    last = [path for path, module in body.named_modules() if isinstance(module, nn.Linear)]
    if not last:
        return body
    parent, _, child = last[-1].rpartition(".")
    setattr(body.get_submodule(parent), child, nn.Identity())
    return body


def _build_function(path: str, image_size: int) -> tuple[nn.Module, ImageConfig]:
    """Call the user's function; its module may hold the image configuration, as timm's `pretrained_cfg` does."""
    module_name, function = path.split(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        # A checkpoint may name such a function, too, and must not call one of Python's own.
        raise InvalidArgumentError(f"{module_name} is a module of Python itself", field="encoder")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise InvalidArgumentError(f"{path} cannot be imported: {error}", field="encoder") from error
    body = found()
    if not isinstance(body, nn.Module):
        raise InvalidArgumentError(f"{path} returned {type(body).__name__}, not a torch module", field="encoder")
    config: Any = getattr(body, "pretrained_cfg", None)
    return body, _of_config(config, image_size) if config else ImageConfig(image_size or DEFAULT_SIDE)


def _load_file(body: nn.Module, path: Path) -> LoadedWeights:
    """Load a file of weights, translated by timm where it knows the names of the model's authors."""
    state = read_state(path)
    translated = _translated(body, state)
    try:
        return load_part(body, state, path.name)
    except InvalidArgumentError:
        if translated is None:
            raise
        return load_part(body, translated, path.name)


def _translated(body: nn.Module, state: State) -> State | None:
    """Rename weights of a model's authors to timm's names; None if timm does not know them."""
    translate = getattr(sys.modules.get(type(body).__module__), "checkpoint_filter_fn", None)
    if translate is None or not type(body).__module__.startswith("timm."):
        return None
    try:
        return dict(translate(part_for(state, body.state_dict()), body))
    except Exception:  # the functions raise anything for files that they were not written for
        return None


def _folder_weights(folder: Path) -> Path:
    for name in _FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InvalidArgumentError(f"{folder} holds no weights ({', '.join(_FOLDER_WEIGHTS)})", field="encoder")


def _check_features(backbone: NamedBackbone, size: int) -> int:
    try:
        features = backbone(torch.zeros(2, 3, size, size))
    except Exception as error:  # a model for other inputs may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InvalidArgumentError(
            f"it does not run on images of {size}×{size} pixels: {reason}", field="encoder"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InvalidArgumentError(f"it gives {shape} for two images; an encoder gives [2, D]", field="encoder")
    return features.shape[1]


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


@contextmanager
def _one_line(name: Name) -> Iterator[None]:
    """Convert any exception of a library to one line that names the encoder."""
    try:
        yield
    except ImagekinError as error:
        raise type(error)(f"{name.shown}: {error}", field="encoder") from None
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each library has its own exceptions for unknown names, no network and no weights
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise FailedPreconditionError(
            f"{name.shown} cannot be built: {reason}{_near(name)}", field="encoder"
        ) from error


def _near(name: Name) -> str:
    """Return a question after the library's encoder of the most similar name, empty where there is none."""
    if name.kind != "timm":
        return ""
    import difflib

    import timm

    near = difflib.get_close_matches(name.rest, timm.list_models(), 1)
    return f"; did you mean timm:{near[0]}?" if near and near[0] != name.rest.partition(".")[0] else ""
