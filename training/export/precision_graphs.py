"""Convert an artifact's graph to lower precision: int8 for CPUs with VNNI or AMX, float16 for GPUs.

Only the part between the first and the last layer with weights changes. Normalisation, the first layer (whose three
channels are too few for integer kernels), pooling, the L2 norm and a linear head stay in float32.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder.graph_contract import EMBEDDING, PIXELS

if TYPE_CHECKING:
    import onnx

_CALIBRATION_BATCH = 16
_CALIBRATION_PIXELS = _CALIBRATION_BATCH * 224 * 224
"""Most pixels of a batch.

All values between layers are kept until their ranges are known, and those of attention grow with the square of the
number of an image's pixels.
"""
_LAYERS = frozenset({"Conv", "MatMul", "Gemm"})
# Nodes that are integer as well, between integer layers. This avoids conversions back and forth, and ranges that the
# next node cuts down: a convolution's output is many times wider before ReLU6, a Clip, than after it.
_BETWEEN = frozenset({"Add", "Clip", "Relu", "MaxPool"})


def to_int8(model: "onnx.ModelProto", calibration: NDArray[np.uint8], float_share: float = 0.0) -> "onnx.ModelProto":
    """Return the graph with its layers in int8, with QuantizeLinear and DequantizeLinear around them (QDQ).

    Weights are signed with one scale for each output channel, activations unsigned: ONNX Runtime's CPU kernels fuse
    this pair of types. Activation ranges are means over batches of each batch's minimum and maximum.

    Args:
        model: an artifact's graph in float32; not changed.
        calibration: uint8 [N, H, W, 3], real images.
        float_share: share of the layers, from the first, that stay in float32, 0 to 1; at least the first one does.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    named = _named(model)
    kept = set(_float_nodes(named, float_share))
    _pool_before_relu(named.graph, kept)
    transformer = any(node.op_type == "Softmax" for node in named.graph.node)
    # Sums in a transformer's residual stream have outliers too large for eight bits.
    kinds = _LAYERS if transformer else _LAYERS | _BETWEEN
    with tempfile.TemporaryDirectory() as folder, _hushed():
        out = Path(folder) / "int8.onnx"
        quantize_static(
            named,
            out,
            _reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(kinds),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(kept),
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
            extra_options={"CalibMovingAverage": True},
        )
        return _load(out)


def to_float16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return the graph with weights and activations in float16; pixels stay uint8 and the embedding float32.

    The converter rounds all values between nodes, the embedding's components included: lengths are 1 to within 1e-3.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    named = _named(model)
    with _hushed():
        converted = convert_float_to_float16(
            named, keep_io_types=True, node_block_list=_outside(named), disable_shape_infer=False
        )
    result: onnx.ModelProto = converted
    return result


def _named(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return a copy in which every node has a unique name, for the converters' lists of exceptions."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        node.name = f"{node.op_type}_{number}"
    return copy


def _pool_before_relu(graph: "onnx.GraphProto", among: set[str]) -> None:
    """Swap max-pooling and the ReLU in front of it, where both are among these nodes; the result is the same.

    Otherwise ONNX Runtime would pool bytes: it moves a conversion to int8 in front of a pooling, but not past a ReLU,
    and its kernel for pooling bytes takes twenty times as long as the one for floats, a quarter of a ResNet-18's time.
    """
    makers = {output: node for node in graph.node for output in node.output}
    users = Counter(name for node in graph.node for name in node.input)
    nodes = list(graph.node)
    for pool in [node for node in nodes if node.op_type == "MaxPool" and node.name in among]:
        relu = makers.get(pool.input[0])
        if relu is None or relu.op_type != "Relu" or relu.name not in among or users[relu.output[0]] > 1:
            continue
        whole, between, pooled = relu.input[0], relu.output[0], pool.output[0]
        pool.input[0], pool.output[0], relu.input[0], relu.output[0] = whole, between, between, pooled
        here, there = nodes.index(relu), nodes.index(pool)
        nodes[here], nodes[there] = pool, relu
        for noted in [info for info in graph.value_info if info.name == between]:
            graph.value_info.remove(noted)  # its shape is the pooled one now
    del graph.node[:]
    graph.node.extend(nodes)


def _layers(model: "onnx.ModelProto") -> list[str]:
    """Return the names of the encoder's layers, the nodes that multiply by weights, in execution order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    after = _after_embedding(model)
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _LAYERS and node.name not in after and weights & set(node.input[1:])
    ]


def _after_embedding(model: "onnx.ModelProto") -> set[str]:
    """Return the names of the nodes that the embedding feeds: a linear head."""
    fed, names = {EMBEDDING}, set()
    for node in model.graph.node:
        if fed & set(node.input):
            fed |= set(node.output)
            names.add(node.name)
    return names


def _outside(model: "onnx.ModelProto") -> list[str]:
    """Return the names of the nodes in front of the first layer and behind the last: normalisation, norm, head."""
    layers = _layers(model)
    order = [node.name for node in model.graph.node]
    first = min((order.index(name) for name in layers), default=0)
    last = max((order.index(name) for name in layers), default=len(order))
    # Nodes after the last layer but in its block (its ReLU, its sum) may be of low precision; the others may not.
    kinds = {node.name: node.op_type for node in model.graph.node}
    behind = [name for name in order[last + 1 :] if kinds[name] not in _BETWEEN]
    return [*order[:first], *behind]


def _float_nodes(model: "onnx.ModelProto", share: float) -> list[str]:
    """Return the names of the nodes that int8 leaves alone."""
    layers = _layers(model)
    order = [node.name for node in model.graph.node]
    count = min(len(layers), max(1, round(share * len(layers))))
    start = order.index(layers[count]) if count < len(layers) else len(order)
    # Products of two activations, as in attention, are no layers: they stay in float32 as well.
    products = [n.name for n in model.graph.node if n.op_type in _LAYERS and n.name not in set(layers[count:])]
    front = [name for name in order[:start] if name not in set(layers[count:])]
    return [*front, *products, *_outside(model)]


def _reader(pixels: NDArray[np.uint8]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    count = min(_CALIBRATION_BATCH, max(1, _CALIBRATION_PIXELS // (pixels.shape[1] * pixels.shape[2])))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, NDArray[np.uint8]]] = iter(
                {PIXELS: pixels[start : start + count]} for start in range(0, len(pixels), count)
            )

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(self._batches, None)

    return Reader()


def _load(path: Path) -> "onnx.ModelProto":
    import onnx

    model: onnx.ModelProto = onnx.load(path)
    return model


@contextmanager
def _hushed() -> Iterator[None]:
    """Suppress the converters' advice about preparing models, which is not meant for users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
