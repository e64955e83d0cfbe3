"""Reads, checks and writes model artifacts: one ONNX file with its metadata inside.

The graph's promise: input `pixels` uint8 [N, H, W, 3], output `embedding` float32 [N, D] of unit length, optional
output `logits` float32 [N, C]; N is dynamic and normalisation is part of the graph. Only `write` and `load_graph` need
the onnx package; reading goes through ONNX Runtime, which serving has anyway.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from encoder.errors import InvalidArgumentError, KindredError, NotFoundError
from encoder.metadata import METADATA_KEY, Metadata

if TYPE_CHECKING:
    import onnx

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


def new_space_id(state: Iterable[tuple[str, bytes]]) -> str:
    """Return the embedding space id of a set of weights: `ks1-` and 32 hex digits of a SHA-256.

    Args:
        state: name and raw bytes of each weight. The order does not matter.
    """
    digest = hashlib.sha256()
    for name, data in sorted(state):
        # Lengths make the boundaries part of the digest: ("a", "bc") and ("ab", "c") differ.
        digest.update(f"{len(name)}:{name}:{len(data)}:".encode())
        digest.update(data)
    return f"ks1-{digest.hexdigest()[:32]}"


def read_metadata(path: Path) -> Metadata:
    """Return the metadata of a model artifact.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is no artifact, or its graph is not what the metadata say.
    """
    from encoder.session import Encoder

    return Encoder.open(path, device="cpu", threads=1).metadata


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


def load_graph(path: Path) -> "onnx.ModelProto":
    """Return an ONNX file's graph. Needs the onnx package.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is no ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise NotFoundError(f"no model file {path}")
    try:
        return onnx.load(path)
    except (DecodeError, ValueError, OSError, onnx.checker.ValidationError):
        raise InvalidArgumentError(f"{path.name} is not an ONNX model") from None


def write(model: "onnx.ModelProto", metadata: Metadata, path: Path) -> Path:
    """Write a model artifact: the graph with the metadata inside. Needs the onnx package.

    The file appears complete or not at all, and only when ONNX Runtime can open it and the graph is what the metadata
    say. Other entries of `metadata_props` stay.

    Args:
        model: the graph; not changed.
        metadata: what to write into it.
        path: where to write; an existing file is replaced.

    Returns:
        `path`.

    Raises:
        InvalidArgumentError: the graph is not what the metadata say.
    """
    import onnx

    from encoder.session import Encoder

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = {entry.key: entry.value for entry in copy.metadata_props if entry.key != METADATA_KEY}
    onnx.helper.set_model_props(copy, {**kept, METADATA_KEY: metadata.to_json()})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        onnx.save(copy, temporary)
        Encoder.open(temporary, device="cpu", threads=1)
        _sync(temporary)
        temporary.replace(path)
    except KindredError as error:
        # The temporary name means nothing to the caller.
        raise type(error)(str(error).replace(temporary.name, path.name), field=error.field) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
