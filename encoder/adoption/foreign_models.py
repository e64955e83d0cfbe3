"""Read ONNX files from other exporters, which are not trusted.

The result is one message with all weights, valid, and with only those operators that are part of ONNX Runtime. Weights
in separate files are read only from the model's folder. Needs the onnx package.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from imagekin.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    import onnx

_MAX_BYTES = 2**31 - 2**26
"""Largest size of a model with its weights: a protobuf message has at most 2 GiB, and the added nodes need some."""

_MIN_OPSET = 9
# The standard operators, and ONNX Runtime's own.
_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})


def load_foreign(path: Path) -> "onnx.ModelProto":
    """Read and check an ONNX model, with all its weights in one message.

    Raises:
        NotFoundError: the file, or a file of its weights, is missing.
        InvalidArgumentError: it is no ONNX model, is too large, invalid, needs custom operators or an old opset, or
            its weights are outside its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise NotFoundError(f"no model file {path}", field="model")
    if path.stat().st_size > _MAX_BYTES:
        raise _too_large(path)
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError):
        raise InvalidArgumentError(f"{path.name} is not an ONNX model", field="model") from None
    if not model.graph.node or not model.opset_import:
        raise InvalidArgumentError(f"{path.name} is not an ONNX model", field="model")
    _embed_weights(model, path)
    _check_operators(model, path.name)
    _drop_listed_weights(model)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "").strip()[:200]
        raise InvalidArgumentError(f"{path.name} is not a valid ONNX model: {reason}", field="model") from None
    return model


def opset_of(model: "onnx.ModelProto") -> int:
    """Return a model's version of the standard operators."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _check_operators(model: "onnx.ModelProto", name: str) -> None:
    """Refuse operators that ONNX Runtime lacks, with a clearer message than its own."""
    if opset_of(model) < _MIN_OPSET:
        raise InvalidArgumentError(
            f"{name} is written in opset {opset_of(model)}; export it again with opset {_MIN_OPSET} or newer",
            field="model",
        )
    own = {(function.domain, function.name) for function in model.functions}
    graphs = [model.graph.node, *(function.node for function in model.functions)]
    for node in (node for nodes in graphs for node in _all_nodes(nodes)):
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
            operator = f"{node.domain}:{node.op_type}"[:80]
            raise InvalidArgumentError(f"{name} needs the custom operator {operator}", field="model")


def _all_nodes(nodes: "object") -> "Iterator[onnx.NodeProto]":
    """Yield nodes and those of their subgraphs, whose depth the parser limits."""
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def _drop_listed_weights(model: "onnx.ModelProto") -> None:
    """Remove weights from the list of inputs, where old exporters put them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [entry for entry in model.graph.input if entry.name not in weights]
    if len(kept) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
    # The first version in which weights need not be inputs as well.
    model.ir_version = max(model.ir_version, 4)


def _embed_weights(model: "onnx.ModelProto", path: Path) -> None:
    """Read weights in separate files into the model; files outside the model's folder are refused."""
    import onnx

    total = path.stat().st_size
    for tensor in _all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = _weights_file(path, entries.get("location", ""))
        size = file.stat().st_size
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries["length"]) if "length" in entries else size - offset
        except ValueError:
            raise _damaged(path) from None
        if offset < 0 or length < 0 or offset + length > size:
            raise _damaged(path)
        total += length
        if total > _MAX_BYTES:
            raise _too_large(path)
        with file.open("rb") as weights:
            weights.seek(offset)
            tensor.raw_data = weights.read(length)
        del tensor.external_data[:]
        tensor.ClearField("data_location")


def _all_tensors(model: "onnx.ModelProto") -> "Iterator[onnx.TensorProto]":
    """Yield every tensor whose values may be in another file."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    yield from _graph_tensors(model.graph)
    for node in _all_nodes(nodes):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)


def _graph_tensors(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _weights_file(model: Path, location: str) -> Path:
    """Return the path of a model's file of weights, which must be in the model's folder or below."""
    parts = PurePosixPath(location).parts
    shown = location[:80]
    outside = not location or "\\" in location or "\0" in location or location.startswith("/") or ".." in parts
    folder = model.resolve().parent
    file = folder.joinpath(*parts)
    if outside or not file.resolve().is_relative_to(folder):
        raise InvalidArgumentError(
            f"{model.name} keeps weights at {shown!r}, outside its own folder; put them beside it and export it again",
            field="model",
        )
    if not file.is_file():
        raise NotFoundError(f"{model.name} keeps weights in {shown!r}, which is not beside it", field="model")
    return file


def _too_large(path: Path) -> InvalidArgumentError:
    return InvalidArgumentError(f"{path.name} with its weights is larger than {_MAX_BYTES >> 20} MiB", field="model")


def _damaged(path: Path) -> InvalidArgumentError:
    return InvalidArgumentError(f"{path.name} names weights that its file of weights does not hold", field="model")
