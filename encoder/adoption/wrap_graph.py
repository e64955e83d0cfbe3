"""Wrap a foreign image encoder into one ONNX graph from uint8 pixels to a unit-length embedding.

Transpose, cast and normalisation are added before it; cast, pooling over tokens or positions and L2 norm after it.
Every added node exists in the foreign graph's opset. Needs the onnx package.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from imagekin.encoder.adoption.foreign_models import opset_of
from imagekin.encoder.adoption.inner_values import expose
from imagekin.encoder.graph_contract import EMBEDDING, PIXELS
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import InvalidArgumentError

if TYPE_CHECKING:
    import onnx

Layout = Literal["nchw", "nhwc"]
Pool = Literal["none", "cls", "mean"]
Triple = tuple[float, float, float]

_AXES_ARE_INPUTS = 18  # opset from which on axes are inputs of ReduceL2 and ReduceMean instead of attributes
_EPSILON = 1e-12
_PREFIX = "adopted/"
_NAMES = {1: "float32", 10: "float16"}


@dataclass(frozen=True, slots=True)
class Port:
    """The foreign graph's image input and the output that becomes the embedding.

    Attributes:
        input: name of the input.
        output: name of the output.
        layout: order of the input's sides.
        half: True when the input is float16.
        sides: height and width; None where they are dynamic.
        fixed_batch: True when the graph's batch size is fixed to one image.
    """

    input: str
    output: str
    layout: Layout
    half: bool
    sides: tuple[int | None, int | None]
    fixed_batch: bool


def find_port(model: "onnx.ModelProto", *, input_name: str, output_name: str, layout: Layout | None) -> Port:
    """Find the image input and the embedding output of a foreign graph.

    Args:
        model: a model from `load_foreign`.
        input_name: name of the input; empty for the only one.
        output_name: name of the output; empty for the only one.
        layout: order of the input's sides; None to detect it by the side of 3 channels, or else `nchw`.

    Raises:
        InvalidArgumentError: there are several and none is named, or it is no image input or no float output.
    """
    inputs = [entry.name for entry in model.graph.input]
    if len(inputs) != 1:
        raise InvalidArgumentError(
            f"the model has {len(inputs)} inputs ({_list_names(inputs)});"
            " only encoders with one image input can be adopted"
        )
    if input_name and input_name != inputs[0]:
        raise InvalidArgumentError(f"the model has no input {input_name!r}; its input is {inputs[0]!r}", field="input")
    entry = model.graph.input[0].type.tensor_type
    if entry.elem_type not in _NAMES:
        raise InvalidArgumentError("the model's input must be float32 or float16 pixels", field="input")
    shape = [side.dim_value or None for side in entry.shape.dim]
    if len(shape) != 4:
        raise InvalidArgumentError(f"the model's input has {len(shape)} sides, an image batch has 4", field="input")
    layout = layout or ("nhwc" if shape[3] == 3 and shape[1] != 3 else "nchw")
    batch, *sides = shape
    if batch not in (None, 1):
        raise InvalidArgumentError(f"the model takes {batch} images at once; export it with a dynamic batch size")
    channels, rows, columns = sides if layout == "nchw" else (sides[2], sides[0], sides[1])
    if channels not in (3, None):
        raise InvalidArgumentError(f"the model's input has {channels} channels as {layout}, RGB has 3", field="layout")
    output = _find_output(model, output_name)
    return Port(inputs[0], output, layout, entry.elem_type != 1, (rows, columns), batch is not None)


def _find_output(model: "onnx.ModelProto", name: str) -> str:
    known = name == "" or expose(model, name)
    outputs = {entry.name: entry.type.tensor_type for entry in model.graph.output}
    if not known:
        raise InvalidArgumentError(
            f"the model has no output {name!r}, and no value of that name inside; it has {_list_names(list(outputs))}",
            field="output",
        )
    if not name and len(outputs) != 1:
        raise InvalidArgumentError(
            f"the model has several outputs ({_list_names(list(outputs))}); name one with --output", field="output"
        )
    name = name or next(iter(outputs))
    if outputs[name].elem_type not in _NAMES:
        raise InvalidArgumentError(f"the model's output {name!r} is not float32 or float16", field="output")
    return name


def wrap(
    model: "onnx.ModelProto", port: Port, preprocess: Preprocess, mean: Triple, std: Triple, *, rank: int, pool: Pool
) -> "onnx.ModelProto":
    """Return the complete graph from `pixels` to `embedding`, with a dynamic batch size.

    Args:
        model: the foreign graph; it is not changed.
        port: its input and output.
        preprocess: the preprocessing, which has the size of the input.
        mean: mean of each channel, of pixels scaled to [0, 1].
        std: standard deviation of each channel, likewise.
        rank: number of sides of the output: 2 [N, D], 3 [N, T, D] or 4 [N, D, H, W].
        pool: reduction of sides beyond two: `cls` for the first token, `mean` for the mean of all.
    """
    import onnx
    from onnx import TensorProto, helper

    adopted = onnx.compose.add_prefix(model, _PREFIX)
    adopted.ir_version = max(adopted.ir_version, 8)
    graph = adopted.graph
    entry, leave = _PREFIX + port.input, _PREFIX + port.output
    build = _Builder(opset_of(model))
    build.node("Transpose", [PIXELS], "imagekin/planes", perm=[0, 3, 1, 2] if port.layout == "nchw" else [0, 1, 2, 3])
    build.node("Cast", ["imagekin/planes"], "imagekin/float", to=TensorProto.FLOAT)
    shape = (1, 3, 1, 1) if port.layout == "nchw" else (1, 1, 1, 3)
    scale, shift = 1 / (255 * np.array(std)), -np.array(mean) / np.array(std)
    build.weight("imagekin/scale", scale.reshape(shape).astype(np.float32))
    build.weight("imagekin/shift", shift.reshape(shape).astype(np.float32))
    build.node("Mul", ["imagekin/float", "imagekin/scale"], "imagekin/scaled")
    build.node("Add", ["imagekin/scaled", "imagekin/shift"], "imagekin/normalised" if port.half else entry)
    if port.half:
        build.node("Cast", ["imagekin/normalised"], entry, to=TensorProto.FLOAT16)
    front = build.take()
    _add_pooling_and_norm(build, leave, rank, pool)
    nodes = [*front, *graph.node, *build.take()]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(build.weights)
    # The exporter's shapes of intermediate values are valid only for its own batch size.
    del graph.value_info[:]
    del graph.input[:]
    del graph.output[:]
    side = [preprocess.height, preprocess.width, 3]
    graph.input.append(helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["N", *side]))
    graph.output.append(helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["N", None]))
    graph.name = "imagekin"
    graph.ClearField("doc_string")
    adopted.ClearField("doc_string")
    del adopted.metadata_props[:]
    return adopted


def _add_pooling_and_norm(build: "_Builder", source: str, rank: int, pool: Pool) -> None:
    """Add pooling and the L2 norm."""
    from onnx import TensorProto

    build.node("Cast", [source], "imagekin/features", to=TensorProto.FLOAT)
    features = "imagekin/features"
    if rank == 3 and pool == "cls":
        build.weight("imagekin/first", np.array(0, np.int64))
        build.node("Gather", [features, "imagekin/first"], "imagekin/pooled", axis=1)
        features = "imagekin/pooled"
    elif rank > 2:
        build.reduce("ReduceMean", features, "imagekin/pooled", [1] if rank == 3 else [2, 3], keep=False)
        features = "imagekin/pooled"
    build.reduce("ReduceL2", features, "imagekin/length", [1], keep=True)
    build.weight("imagekin/least", np.array(_EPSILON, np.float32))
    build.node("Max", ["imagekin/length", "imagekin/least"], "imagekin/divisor")
    build.node("Div", [features, "imagekin/divisor"], EMBEDDING)


class _Builder:
    """A builder of nodes and weights for one opset."""

    def __init__(self, opset: int) -> None:
        self.weights: list[onnx.TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._opset = opset

    def node(self, kind: str, inputs: list[str], output: str, **attributes: int | list[int]) -> None:
        from onnx import helper

        node = helper.make_node(kind, inputs, [output], name=f"imagekin/node/{output}")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)

    def weight(self, name: str, value: "np.typing.NDArray[np.generic]") -> None:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(value, name))

    def reduce(self, kind: str, source: str, output: str, axes: list[int], *, keep: bool) -> None:
        if self._opset < _AXES_ARE_INPUTS:
            self.node(kind, [source], output, axes=axes, keepdims=int(keep))
        else:
            self.weight(f"{output}/axes", np.array(axes, np.int64))
            self.node(kind, [source, f"{output}/axes"], output, keepdims=int(keep))

    def take(self) -> "list[onnx.NodeProto]":
        nodes, self._nodes = self._nodes, []
        return nodes


def _list_names(names: list[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:6]) + (", …" if len(names) > 6 else "")
