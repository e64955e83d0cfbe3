"""Read, check and write model artifacts: one ONNX file with its metadata inside.

The graph has the input `pixels` uint8 [N, H, W, 3], the output `embedding` float32 [N, D] of unit length, and
optionally the output `logits` float32 [N, C]; N is dynamic, and normalisation is part of the graph. Only `write` and
`load_graph` need the onnx package; reading uses ONNX Runtime, which serving depends on anyway.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from imagekin import files
from imagekin.encoder.metadata import METADATA_KEY, Metadata
from imagekin.errors import ImagekinError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    import onnx


def new_space_id(state: Iterable[tuple[str, bytes]]) -> str:
    """Return the embedding space id of a set of weights: `ik1-` and 32 hex digits of a SHA-256.

    Args:
        state: name and raw bytes of each weight. The order does not matter.
    """
    digest = hashlib.sha256()
    for name, data in sorted(state):
        # With lengths, the boundaries are part of the digest: ("a", "bc") and ("ab", "c") differ.
        digest.update(f"{len(name)}:{name}:{len(data)}:".encode())
        digest.update(data)
    return f"ik1-{digest.hexdigest()[:32]}"


def read_metadata(path: Path) -> Metadata:
    """Read the metadata of a model artifact.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is no artifact, or its graph does not match its metadata.
    """
    from imagekin.encoder.runtime.session import Encoder

    return Encoder.open(path, device="cpu", threads=1).metadata


def load_graph(path: Path) -> "onnx.ModelProto":
    """Read an ONNX file; needs the onnx package.

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
    """Write a model artifact, a graph with metadata inside; needs the onnx package.

    The file is written completely or not at all, and only if ONNX Runtime can open it and the graph matches the
    metadata. Other entries of `metadata_props` are kept.

    Args:
        model: the graph; it is not changed.
        metadata: the metadata to write.
        path: the file; an existing one is replaced.

    Returns:
        `path`.

    Raises:
        InvalidArgumentError: the graph does not match the metadata.
    """
    import onnx

    from imagekin.encoder.runtime.session import Encoder

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = {entry.key: entry.value for entry in copy.metadata_props if entry.key != METADATA_KEY}
    onnx.helper.set_model_props(copy, {**kept, METADATA_KEY: metadata.to_json()})
    with files.replacing(path) as temporary:
        onnx.save(copy, temporary)
        try:
            Encoder.open(temporary, device="cpu", threads=1)
        except ImagekinError as error:
            # The message must not contain the temporary name.
            raise type(error)(str(error).replace(temporary.name, path.name), field=error.field) from None
    return path
