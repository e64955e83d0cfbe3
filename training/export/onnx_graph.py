"""Convert a trained encoder to an ONNX graph that goes from pixels to the unit-length embedding."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imagekin.encoder.graph_contract import EMBEDDING, LOGITS, PIXELS
from imagekin.errors import FailedPreconditionError
from imagekin.training.export.parity import EPSILON
from imagekin.training.models.encoders import Normalisation

if TYPE_CHECKING:
    import onnx

_OPSET = 18
"""The opset that the exporter's own translations are written in; any later one is a conversion on top."""


class ServedEncoder(nn.Module):
    """Function of the artifact: pixels to a unit-length embedding, and to logits when there is a linear head.

    Args:
        encoder: normalised float [N, 3, H, W] to features [N, D].
        normalisation: of pixels scaled to [0, 1].
        head: embedding [N, D] to logits [N, C]; None for no logits.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: nn.Module, normalisation: Normalisation, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        mean = torch.tensor(normalisation.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(normalisation.std, dtype=torch.float64).view(1, 3, 1, 1)
        # (pixel / 255 - mean) / std, as one product and one sum.
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map uint8 [N, H, W, 3] to embeddings float32 [N, D], and with a head also to logits float32 [N, C]."""
        # Transposed as bytes, with a quarter of the memory traffic of float32.
        images = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift
        features = self.encoder(images).float()
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        embedding: Tensor = features / length.clamp_min(EPSILON)
        return embedding if self.head is None else (embedding, self.head(embedding))


def to_onnx(module: ServedEncoder, pixels: NDArray[np.uint8]) -> "onnx.ModelProto":
    """Convert to an ONNX graph with a dynamic batch, everything in one message.

    Args:
        module: in evaluation mode on the CPU.
        pixels: uint8 [N, H, W, 3], N >= 2; gives the input's size.

    Raises:
        FailedPreconditionError: the exporter cannot convert the encoder.
    """
    # Two images, because the exporter treats a batch size of one as a constant.
    example = torch.tensor(pixels[:2])
    names = [EMBEDDING] if module.head is None else [EMBEDDING, LOGITS]
    with _silent():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes={"pixels": {0: torch.export.Dim("N")}},
                input_names=[PIXELS],
                output_names=names,
                opset_version=_OPSET,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise FailedPreconditionError(f"this encoder cannot be converted to ONNX: {reason}") from error
    if program is None:
        raise FailedPreconditionError("this encoder cannot be converted to ONNX: the exporter gave nothing")
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    return model


def _strip(model: "onnx.ModelProto") -> None:
    """Remove the exporter's notes, which hold stack traces and file names of the training machine."""
    graph = model.graph
    graph.name = "imagekin"
    del model.metadata_props[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    del graph.metadata_props[:]


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the exporter: it warns of its own deprecated calls and logs every package that it does not find."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
