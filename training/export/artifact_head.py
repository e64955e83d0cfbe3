"""Give any artifact a linear head: fitted to its own embeddings of labelled images, appended to its graph.

The embedding stays as it is, and with it the space: collections made before serve on. How sure the head must be is
measured on a fifth of the images that it was not fitted to: below `min_confidence` lie `REJECTED` of the answers to
images of known classes, so at that bound an image of no known class is mostly said to be unknown, at a stated price.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imagekin import files
from imagekin.encoder import artifact
from imagekin.encoder.graph_contract import EMBEDDING, LOGITS, PIXELS
from imagekin.encoder.metadata import JSON
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.machine import Device
from imagekin.progress import progress
from imagekin.training.data.images import ImageSet
from imagekin.training.evaluation.evaluate import check_prepared, embed
from imagekin.training.evaluation.unknown import REJECTED
from imagekin.training.export.linear_head import fit_head
from imagekin.training.export.parity import check_logits

if TYPE_CHECKING:
    import onnx

HELD_OUT = 0.2
_SAMPLE_COUNT = 256


@dataclass(frozen=True, slots=True)
class HeadReport:
    """Results of giving an artifact a head.

    Attributes:
        model: the new artifact.
        space: id of its embedding space, the old one's.
        class_count: classes of the head.
        head_accuracy: share of held-out images that a head fitted to the others classifies correctly; None when no
            class has two images.
        min_confidence: bound of confidence below which `REJECTED` of the held-out images' answers lie; None likewise.
        rejected: that share, as measured; None likewise.
        train_count: images that the head was fitted to.
    """

    model: Path
    space: str
    class_count: int
    head_accuracy: float | None
    min_confidence: float | None
    rejected: float | None
    train_count: int

    def to_json(self) -> dict[str, JSON]:
        """Return the report as one flat JSON object."""
        return {**dataclasses.asdict(self), "model": str(self.model)}


def add_head(model: Path, images: ImageSet, out: Path, *, device: Device = "auto", seed: int = 0) -> HeadReport:
    """Write a copy of an artifact that also classifies; a head that it has is replaced.

    Args:
        model: the artifact.
        images: labelled, and prepared as the artifact says; those without a class are left out.
        out: the file; one that exists is replaced.
        device: where the images are embedded.
        seed: of the splits.

    Raises:
        NotFoundError: there is no such model.
        InvalidArgumentError: it is no artifact, or the images are of fewer than two classes.
        FailedPreconditionError: the file's logits are not the head's.
    """
    encoder = Encoder.open(model, device=device)
    check_prepared(encoder, images)
    rows = np.flatnonzero(images.labels >= 0)
    if len(np.unique(images.labels[rows])) < 2:
        raise InvalidArgumentError(
            f"a linear head needs images of at least two classes; {images.name} has fewer", field="images"
        )
    images = images.take(rows)
    present, labels = np.unique(images.labels, return_inverse=True)
    names = tuple(images.class_names[label] for label in present)
    with progress("embedding", len(images)) as advance:
        x = embed(encoder, images.pixels, advance)
    held_out = held_out_rows(labels, seed)
    accuracy, bound, rejected = _measure(x, labels, held_out, seed) if len(held_out) else (None, None, None)
    head, _ = fit_head(x, labels, seed=seed)
    figures = {"head_held_out": accuracy, "head_min_confidence": bound, "head_rejected": rejected}
    metadata = dataclasses.replace(
        encoder.metadata,
        class_names=names,
        scores={**encoder.metadata.scores, **{name: value for name, value in figures.items() if value is not None}},
    )
    some = np.linspace(0, len(images) - 1, min(len(images), _SAMPLE_COUNT)).astype(np.int64)
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.new_folder(out.parent) as folder:
        unchecked = artifact.write(with_logits(artifact.load_graph(model), head), metadata, folder / out.name)
        given = Encoder.open(unchecked, device=device).run(np.ascontiguousarray(images.pixels[some]))
        if given.logits is None or float(np.abs(given.embeddings - x[some]).max()) > 1e-4:
            raise FailedPreconditionError(f"the embeddings of {out.name} are not {model.name}'s; nothing was written")
        check_logits(head, x[some], given.logits)
        files.put_file(unchecked, out)
    return HeadReport(out, metadata.space, len(names), accuracy, bound, rejected, len(images))


def head_path(model: Path) -> Path:
    """Return the path of the artifact with a head: `model-linear.onnx` beside `model.onnx`."""
    return model.with_name(f"{model.stem}-linear{model.suffix}")


def with_logits(model: "onnx.ModelProto", head: nn.Linear) -> "onnx.ModelProto":
    """Return a copy of an artifact's graph with the output `logits`, a linear map of its embedding."""
    import onnx
    from onnx import helper, numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made = onnx.utils.Extractor(copy).extract_model([PIXELS], [EMBEDDING])
    weight, bias = (part.detach().numpy() for part in (head.weight, head.bias))
    made.graph.initializer.append(numpy_helper.from_array(weight.T.copy(), "imagekin/head/weight"))
    made.graph.initializer.append(numpy_helper.from_array(bias, "imagekin/head/bias"))
    made.graph.node.append(helper.make_node("MatMul", [EMBEDDING, "imagekin/head/weight"], ["imagekin/head/product"]))
    made.graph.node.append(helper.make_node("Add", ["imagekin/head/product", "imagekin/head/bias"], [LOGITS]))
    made.graph.output.append(helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, ["N", len(bias)]))
    return made


def held_out_rows(labels: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """Choose a fifth of every class that has at least two images, ascending, int64 [M]."""
    draws = np.random.default_rng(seed)
    chosen = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        rows = draws.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            chosen.append(rows[: max(1, round(HELD_OUT * len(rows)))])
    return np.sort(np.concatenate(chosen))


def _measure(
    x: NDArray[np.float32], labels: NDArray[np.integer], held_out: NDArray[np.int64], seed: int
) -> tuple[float, float, float]:
    """Return accuracy, bound of confidence and share below it on held-out rows, by a head fitted to the others."""
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    head, _ = fit_head(x[rest], labels[rest], seed=seed)
    with torch.inference_mode():
        shares = torch.softmax(head(torch.from_numpy(x[held_out])).double(), 1).numpy()
    confidence = shares.max(1)
    # Rounded down to what a user types, and the share is that of the rounded bound.
    bound = float(np.floor(np.quantile(confidence, REJECTED) * 1000) / 1000)
    return float(np.mean(shares.argmax(1) == labels[held_out])), bound, float(np.mean(confidence < bound))
