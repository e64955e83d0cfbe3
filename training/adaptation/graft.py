"""Append a residual head to an artifact's graph."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from imagekin.encoder.graph_contract import EMBEDDING, PIXELS
from imagekin.training.adaptation.residual_head import ResidualHead
from imagekin.training.export.parity import EPSILON

if TYPE_CHECKING:
    import onnx

_PREFIX = "imagekin/adapted"
_AXES_ARE_INPUTS = 18
"""Since this opset ReduceL2 takes its axes as an input."""


def graft(model: "onnx.ModelProto", head: ResidualHead) -> "onnx.ModelProto":
    """Return a copy of the graph whose `embedding` is the head's, and which has no other output.

    A linear head of the old embedding is left behind, because it does not fit the new one.

    Args:
        model: an artifact's graph.
        head: of the same dimension.
    """
    import onnx
    from onnx import helper, numpy_helper

    dim, before = len(head.mean), f"{_PREFIX}/before"
    grafted = onnx.utils.Extractor(_copy(model)).extract_model([PIXELS], [EMBEDDING])
    graph = grafted.graph
    _make_room(graph)
    for node in graph.node:
        node.output[:] = [before if name == EMBEDDING else name for name in node.output]
        node.input[:] = [before if name == EMBEDDING else name for name in node.input]
    opset = next(each.version for each in grafted.opset_import if each.domain in ("", "ai.onnx"))

    def weight(name: str, value: NDArray[np.generic]) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{_PREFIX}/{name}"))
        return f"{_PREFIX}/{name}"

    def add(kind: str, inputs: list[str], output: str, **attributes: int | list[int]) -> str:
        made = output if output == EMBEDDING else f"{_PREFIX}/{output}"
        made_by = helper.make_node(kind, inputs, [made], name=f"{_PREFIX}/node/{output}")
        made_by.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        graph.node.append(made_by)
        return made

    centred = add("Sub", [before, weight("mean", head.mean.numpy())], "centred")
    change = centred
    layers = [each for each in head.modules() if isinstance(each, nn.Linear)]
    for place, layer in enumerate(layers):
        if place:
            change = add("Relu", [change], f"relu{place}")
        matrix = weight(f"weight{place}", layer.weight.detach().numpy().T.copy())
        change = add("MatMul", [change, matrix], f"product{place}")
        change = add("Add", [change, weight(f"bias{place}", layer.bias.detach().numpy())], f"sum{place}")
    features = add("Add", [centred, change], "features")
    if opset < _AXES_ARE_INPUTS:
        length = add("ReduceL2", [features], "length", axes=[1], keepdims=1)
    else:
        length = add("ReduceL2", [features, weight("axes", np.array([1], np.int64))], "length", keepdims=1)
    divisor = add("Max", [length, weight("least", np.array(EPSILON, np.float32))], "divisor")
    add("Div", [features, divisor], EMBEDDING)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(EMBEDDING, onnx.TensorProto.FLOAT, ["N", dim]))
    return grafted


def _copy(model: "onnx.ModelProto") -> "onnx.ModelProto":
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _make_room(graph: "onnx.GraphProto") -> None:
    """Rename the nodes and values of an earlier adaptation, so that an adapted model can be adapted again."""
    taken = [*(name for node in graph.node for name in node.output), *(each.name for each in graph.initializer)]
    if not any(name.startswith(_PREFIX) for name in taken):
        return

    def renamed(name: str) -> str:
        return f"earlier/{name}" if name.startswith(_PREFIX) else name

    for node in graph.node:
        node.name = renamed(node.name)
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for initializer in graph.initializer:
        initializer.name = renamed(initializer.name)
    for value in graph.value_info:
        value.name = renamed(value.name)
