"""Define what the graph of a model artifact looks like from outside: its inputs and outputs, and the check of them.

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
        shape: sides; an int when fixed, a name or None when dynamic.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def check_graph(metadata: Metadata, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Check that a graph's inputs and outputs are what its metadata promise.

    Raises:
        InvalidArgumentError: they are not; the message says what is wrong.
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
    """Check type and sides; a dynamic side is taken on trust here and checked again when the model runs."""
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
