"""Define and check the inputs and outputs of a model artifact's graph.

Input `pixels` uint8 [N, H, W, 3], output `embedding` float32 [N, D] of unit length, optional output `logits` float32
[N, C]; N is dynamic and normalisation is part of the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from imagekin.encoder.metadata import Metadata
from imagekin.errors import InvalidArgumentError

PIXELS = "pixels"


EMBEDDING = "embedding"


LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a graph.

    Attributes:
        name: its name.
        dtype: element type in ONNX Runtime's spelling, for example `tensor(uint8)`.
        shape: the sides: a number if fixed, a name or None if dynamic.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def check_graph(metadata: Metadata, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Check that a graph's inputs and outputs match its metadata.

    Raises:
        InvalidArgumentError: they do not; the message states the difference.
    """
    side = metadata.preprocess
    if [tensor.name for tensor in inputs] != [PIXELS]:
        raise InvalidArgumentError(f"model must have exactly one input, named {PIXELS!r}")
    _check_tensor(inputs[0], "tensor(uint8)", (side.height, side.width, 3))
    named = {tensor.name: tensor for tensor in outputs}
    if EMBEDDING not in named:
        raise InvalidArgumentError(f"model has no output named {EMBEDDING!r}")
    _check_tensor(named[EMBEDDING], "tensor(float)", (metadata.dim,))
    if LOGITS in named and not metadata.class_names:
        raise InvalidArgumentError("model has an output 'logits' but its metadata name no classes")
    if metadata.class_names:
        if LOGITS not in named:
            raise InvalidArgumentError("model metadata name classes but there is no output 'logits'")
        _check_tensor(named[LOGITS], "tensor(float)", (len(metadata.class_names),))


def _check_tensor(tensor: Tensor, dtype: str, sides: tuple[int, ...]) -> None:
    """Check type and sides; dynamic sides are checked when the model runs."""
    if tensor.dtype != dtype:
        raise InvalidArgumentError(f"model's {tensor.name!r} must be {dtype}, not {tensor.dtype}")
    wanted = f"[N, {', '.join(map(str, sides))}]"
    if len(tensor.shape) != len(sides) + 1:
        raise InvalidArgumentError(f"model's {tensor.name!r} must have the shape {wanted}")
    if isinstance(tensor.shape[0], int):
        raise InvalidArgumentError(f"model's {tensor.name!r} has a fixed batch size; export it with a dynamic one")
    for actual, side in zip(tensor.shape[1:], sides, strict=True):
        if isinstance(actual, int) and actual != side:
            raise InvalidArgumentError(f"model's {tensor.name!r} must have the shape {wanted}")
