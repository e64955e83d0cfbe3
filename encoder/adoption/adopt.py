"""Make a model artifact of an image encoder that was exported elsewhere: torchvision, timm, DINOv2, a CLIP tower.

The artifact and the foreign model are run on the same images, for the foreign model one at a time and normalised by
other code. The artifact is only kept if both agree. Needs the onnx package.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from imagekin.encoder import artifact
from imagekin.encoder.adoption.foreign_models import load_foreign
from imagekin.encoder.adoption.inner_values import check_no_scores, own_range
from imagekin.encoder.adoption.wrap_graph import Layout, Pool, Port, Triple, find_port, wrap
from imagekin.encoder.metadata import Interpolation, Metadata, Preprocess, Resize
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    import onnx

PresetName = Literal["imagenet", "clip", "dinov2", "half", "unit", "bytes"]

_MAX_DIFFERENCE = 1e-4
_MAX_HALF_DIFFERENCE = 5e-3  # with weights in float16, whose sums depend on the order of addition
_DEFAULT_SIDE = 224
_SAME = 1e-6
_FIXED = "its batch size is fixed; export it with a dynamic one"


@dataclass(frozen=True, slots=True)
class PreprocessPreset:
    """The preprocessing that a family of encoders expects.

    Attributes:
        mean: mean of each channel, red, green, blue, of pixels scaled to [0, 1].
        std: standard deviation of each channel, likewise.
        interpolation: resampling filter.
        crop_fraction: see `Preprocess`.
    """

    mean: Triple
    std: Triple
    interpolation: Interpolation
    crop_fraction: float


_IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PRESETS: dict[PresetName, PreprocessPreset] = {
    # torchvision's and timm's: resize to 256, crop 224.
    "imagenet": PreprocessPreset(*_IMAGENET, "bilinear", 0.875),
    # openai/CLIP, clip.py: resize to 224 (bicubic), crop 224.
    "clip": PreprocessPreset((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic", 1.0),
    # facebookresearch/dinov2, data/transforms.py, make_classification_eval_transform.
    "dinov2": PreprocessPreset(*_IMAGENET, "bicubic", 0.875),
    # From -1 to 1: Inception, MobileNets of TensorFlow, many ViTs of timm, SigLIP.
    "half": PreprocessPreset((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 0.875),
    # From 0 to 1, and from 0 to 255: graphs that normalise their input themselves.
    "unit": PreprocessPreset((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", 0.875),
    "bytes": PreprocessPreset((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), "bilinear", 0.875),
}


@dataclass(frozen=True, slots=True)
class AdoptSettings:
    """Settings for adopting a foreign encoder: its preprocessing, and which output is the embedding.

    Attributes:
        mean: mean of each channel, red, green, blue, of pixels scaled to [0, 1].
        std: standard deviation of each channel, likewise, above 0.
        size: side of the square input; 0 for the graph's own size or, if that is dynamic, 224.
        resize: see `Preprocess`.
        interpolation: see `Preprocess`.
        crop_fraction: see `Preprocess`.
        layout: layout of the input; None to detect it.
        pool: pooling of tokens [N, T, D] (`cls`, `mean`) or positions [N, D, H, W] (`mean`).
        input: name of the input; empty for the only one.
        output: name of the output; empty for the only one.
    """

    mean: Triple
    std: Triple
    size: int = 0
    resize: Resize = "crop"
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 1.0
    layout: Layout | None = None
    pool: Pool = "none"
    input: str = ""
    output: str = ""

    def __post_init__(self) -> None:
        """Check the normalisation; raises InvalidArgumentError."""
        if not np.isfinite([*self.mean, *self.std]).all() or min(self.std) <= 0:
            raise InvalidArgumentError("mean and std must be finite, and std above 0", field="std")


@dataclass(frozen=True, slots=True)
class Adopted:
    """The result of adopting a foreign encoder.

    Attributes:
        model: the artifact.
        metadata: the artifact's metadata.
        max_abs_diff: largest absolute difference of a component from the foreign model's embeddings.
        images: number of images that both were run on.
    """

    model: Path
    metadata: Metadata
    max_abs_diff: float
    images: int


class Adoption:
    """A foreign encoder to be adopted, read and checked but not yet written.

    Args:
        path: the foreign ONNX file.
        settings: its preprocessing and its output.

    Attributes:
        preprocess: the preprocessing of images for `write`.
        own_range: greatest pixel value, 1 or 255, that the model expects because it normalises its input itself; None
            when it does not, so that `settings` must.

    Raises:
        NotFoundError: the file, or a file of its weights, is missing.
        InvalidArgumentError: it cannot be adopted; the message states the reason.
    """

    def __init__(self, path: Path, settings: AdoptSettings) -> None:
        self._name = path.name
        self._settings = settings
        self._foreign = load_foreign(path)
        self._port = find_port(
            self._foreign, input_name=settings.input, output_name=settings.output, layout=settings.layout
        )
        self.preprocess = _preprocess(settings, self._port)
        self.own_range = own_range(self._foreign, self._port.input)

    def write(self, pixels: NDArray[np.uint8], out: Path) -> Adopted:
        """Write the artifact if its embeddings of these images are those of the foreign model.

        Args:
            pixels: uint8 [N, H, W, 3], N >= 2, different images prepared by `preprocess`.
            out: the file; an existing one is replaced.

        Raises:
            InvalidArgumentError: the model does not run, its output is no embedding, or its batch size is fixed.
            FailedPreconditionError: the artifact's embeddings differ from the foreign model's.
        """
        if len(pixels) < 2:
            raise InvalidArgumentError("an adoption is checked on images; give at least two")
        raw, rank, dim = self._features(pixels)
        reference = _reference(raw, self._settings.pool)
        wrapped = wrap(
            self._foreign,
            self._port,
            self.preprocess,
            self._settings.mean,
            self._settings.std,
            rank=rank,
            pool=self._settings.pool,
        )
        wrapped.graph.output[0].type.tensor_type.shape.dim[1].dim_value = dim
        metadata = Metadata(
            self._space(),
            dim,
            self.preprocess,
            objective="adopted",
            training={"adopted_from": self._name[:200], "pool": self._settings.pool},
            precision="float16" if self._port.half else "float32",
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unchecked-", dir=out.parent) as folder:
            unchecked = Path(folder) / out.name
            try:
                artifact.write(wrapped, metadata, unchecked)
                difference = self._check(Encoder.open(unchecked, device="cpu"), reference, pixels)
            except InvalidArgumentError as error:
                reason = _FIXED if self._port.fixed_batch else str(error)
                raise InvalidArgumentError(f"{self._name} cannot be adopted: {reason}", field="model") from None
            unchecked.replace(out)
        return Adopted(out, metadata, difference, len(pixels))

    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the foreign model's own embeddings of images, float32 [N, D] of unit length; errors as for `write`."""
        return _reference(self._features(pixels)[0], self._settings.pool)

    def _features(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.floating[Any]], int, int]:
        """Return the foreign outputs, their number of sides and the embedding's dimension."""
        raw = self._run_foreign(pixels)
        rank, dim = _check_output(raw, self._settings.pool)
        if not self._settings.output:
            check_no_scores(self._foreign, self._port.output, raw)
        return raw, rank, dim

    def _space(self) -> str:
        """Return the id of the embedding space, derived from the graph with its weights and from the preprocessing."""
        settings = self._settings
        shown = [settings.mean, settings.std, settings.pool, self._port.layout, self._port.output]
        prepared = repr(self.preprocess)
        graph = self._foreign.graph.SerializeToString(deterministic=True)
        return artifact.new_space_id([("graph", graph), ("shown", json.dumps([*shown, prepared]).encode())])

    def _run_foreign(self, pixels: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        """Run the unchanged foreign graph on one image at a time, as a fixed batch size of one requires."""
        session = _open(self._foreign, self._name)
        wanted = np.float16 if self._port.half else np.float32
        mean, std = np.array(self._settings.mean), np.array(self._settings.std)
        parts = []
        for image in pixels:
            normalised = ((image / 255.0 - mean) / std).astype(wanted)
            batch = (normalised if self._port.layout == "nhwc" else normalised.transpose(2, 0, 1))[None]
            try:
                (part,) = session.run([self._port.output], {self._port.input: np.ascontiguousarray(batch)})
            except Exception as error:  # its exceptions have no other common base class
                raise InvalidArgumentError(
                    f"{self._name} does not run on one RGB image of {image.shape[0]}×{image.shape[1]} pixels as "
                    f"{self._port.layout} ({type(error).__name__}); check --size and --layout",
                    field="model",
                ) from None
            parts.append(part)
        if len({part.shape for part in parts}) > 1 or parts[0].ndim == 0 or len(parts[0]) != 1:
            raise InvalidArgumentError(
                f"{self._name} gives the shape {list(parts[0].shape)} for one image; an encoder gives [1, D]"
            )
        return np.concatenate(parts)

    def _check(self, encoder: Encoder, reference: NDArray[np.float32], pixels: NDArray[np.uint8]) -> float:
        """Compare the artifact's embeddings of all images in one batch with the foreign model's of single images."""
        allowed = _MAX_HALF_DIFFERENCE if self._port.half else _MAX_DIFFERENCE
        difference = float(np.abs(encoder.embed_pixels(pixels) - reference).max())
        if not difference <= allowed:
            alone = np.concatenate([encoder.embed_pixels(image[None]) for image in pixels])
            if float(np.abs(alone - reference).max()) <= allowed:
                raise InvalidArgumentError(_FIXED)
            raise FailedPreconditionError(
                f"the adopted model is not {self._name}: embeddings differ by {difference:.2g}, allowed is "
                f"{allowed:.0e}; nothing was written"
            )
        if float(np.ptp(reference, axis=0).max()) < _SAME:
            raise InvalidArgumentError("it gives the same embedding for different images; check --output and --pool")
        return difference


def _preprocess(settings: AdoptSettings, port: Port) -> Preprocess:
    height, width = (side or settings.size or _DEFAULT_SIDE for side in port.sides)
    if settings.size and (height, width) != (settings.size, settings.size):
        raise InvalidArgumentError(f"the model's input is fixed to {height}×{width} pixels; drop --size", field="size")
    return Preprocess(
        height, width, settings.resize, settings.interpolation, (255, 255, 255), crop_fraction=settings.crop_fraction
    )


def _open(model: "onnx.ModelProto", name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no other common base class
        raise InvalidArgumentError(f"ONNX Runtime cannot run {name} ({type(error).__name__})", field="model") from None


def _check_output(raw: NDArray[np.floating[Any]], pool: Pool) -> tuple[int, int]:
    """Check the output's shape; return its number of sides and the embedding's dimension."""
    shape = list(raw.shape[1:])
    shown = f"the output is [N, {', '.join(map(str, shape))}]"
    if len(shape) == 1 and pool == "none":
        return 2, shape[0]
    if len(shape) == 1:
        raise InvalidArgumentError(f"{shown} already; drop --pool", field="pool")
    if len(shape) == 2 and pool != "none":
        return 3, shape[1]
    if len(shape) == 2:
        raise InvalidArgumentError(f"{shown}, a vector for each token; add --pool cls or mean", field="pool")
    if len(shape) == 3 and (pool == "mean" or shape[1:] == [1, 1]):
        return 4, shape[0]
    if len(shape) == 3 and pool == "none":
        raise InvalidArgumentError(f"{shown}, a vector for each place; add --pool mean", field="pool")
    raise InvalidArgumentError(f"{shown}; an encoder gives [N, D], [N, T, D] or [N, D, H, W]")


def _reference(raw: NDArray[np.floating[Any]], pool: Pool) -> NDArray[np.float32]:
    """Pool and normalise the foreign outputs in NumPy, independently of the graph."""
    features = raw.astype(np.float64)
    if features.ndim == 3:
        features = features[:, 0] if pool == "cls" else features.mean(1)
    elif features.ndim == 4:
        features = features.mean((2, 3))
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12), dtype=np.float32)
