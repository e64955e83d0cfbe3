"""Look inside a foreign graph: values before its output, class scores, and a normalisation of its own.

Needs the onnx package.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError

if TYPE_CHECKING:
    import onnx

CLASS_COUNTS = frozenset({10, 100, 200, 365, 1000, 1001, 10450, 11221, 11821, 21841, 21843})
"""Outputs of classifiers of CIFAR, Places and the versions of ImageNet."""

_SHOWN = 6
_FLOATS = (1, 10)
_SUM_ERROR = 1e-2
_SIMPLE = {"Sub": np.subtract, "Add": np.add, "Div": np.divide, "Mul": np.multiply}
_MOVES = ("Cast", "Transpose", "Identity")
_WIDEST = 8.0


def expose(model: "onnx.ModelProto", name: str) -> bool:
    """Make an inner value an output; return whether the graph has a value of that name."""
    if name in {entry.name for entry in model.graph.output}:
        return True
    if not any(name in node.output for node in model.graph.node):
        return False
    entry = _shapes(model).get(name)
    if entry is None:
        import onnx

        entry = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    model.graph.output.append(entry)
    return True


def candidates(model: "onnx.ModelProto", output: str) -> list[tuple[str, list[int | str]]]:
    """Return inner values that may be an encoder's features, the latest first: their names and shapes.

    Args:
        model: a foreign graph.
        output: the value that is looked behind.
    """
    shapes = _shapes(model)
    found: list[tuple[str, list[int | str]]] = []
    seen: set[tuple[int | str, ...]] = set()
    for name in _before(model, output):
        entry = shapes.get(name)
        if entry is None or entry.type.tensor_type.elem_type not in _FLOATS:
            continue
        shape: list[int | str] = [side.dim_value or side.dim_param or "?" for side in entry.type.tensor_type.shape.dim]
        # A vector of an image, or one of each token; the first of several of a shape is the last one computed.
        wide = isinstance(shape[-1], int) and shape[-1] >= 8 if shape else False
        if len(shape) in (2, 3) and wide and tuple(shape) not in seen:
            seen.add(tuple(shape))
            found.append((name, shape))
        if len(found) == _SHOWN:
            break
    return found


def check_no_scores(model: "onnx.ModelProto", output: str, raw: NDArray[np.floating[Any]]) -> None:
    """Raise InvalidArgumentError when an output looks like a classifier's, and name the values before it.

    Args:
        model: the foreign graph.
        output: name of the output.
        raw: the output for some images, [N, D].
    """
    if raw.ndim != 2:
        return
    values = raw.astype(np.float64)
    shares = bool((values >= 0).all()) and float(np.abs(values.sum(1) - 1).max()) < _SUM_ERROR
    logits = values.shape[1] in CLASS_COUNTS and _ends_linear(model, output)
    if not shares and not logits:
        return
    kind = "shares of classes (softmax)" if shares else "scores of classes"
    offered = [f"{name} {_written(shape)}" for name, shape in candidates(model, output)]
    offered = [each for each in offered if f"{values.shape[1]}]" not in each] or offered
    named = f": {', '.join(offered)}" if offered else ""
    raise InvalidArgumentError(
        f"the output {output!r} [N, {values.shape[1]}] looks like {kind}, and features lie before them; take one with "
        f"--output{named}; or --output {output} as it is",
        field="output",
    )


def own_range(model: "onnx.ModelProto", source: str) -> float | None:
    """Return the greatest pixel value that a graph expects if it normalises its input itself: 1, 255, or None.

    It does when its first computations add, subtract, multiply or divide by constants of one or three values.

    Args:
        model: a foreign graph.
        source: name of its input.
    """
    constants = _constants(model)
    name, ends, found = source, (np.zeros(3), np.full(3, 255.0)), False
    while True:
        users = [node for node in model.graph.node if name in node.input]
        if len(users) != 1:
            break
        node = users[0]
        if node.op_type in _SIMPLE:
            others = [constants.get(each) for each in node.input if each != name]
            if len(others) != 1 or others[0] is None or others[0].size not in (1, 3) or node.input[0] != name:
                break
            constant = others[0].astype(np.float64).reshape(-1)
            low, high = (_SIMPLE[node.op_type](end, constant) for end in ends)
            ends, found = (low, high), True
        elif node.op_type not in _MOVES:
            break
        name = node.output[0]
    if not found:
        return None
    return 255.0 if float(np.abs(ends[1] - ends[0]).max()) <= _WIDEST else 1.0


def _ends_linear(model: "onnx.ModelProto", output: str) -> bool:
    """Return whether an output comes out of a matrix product, perhaps with a bias."""
    made = {name: node for node in model.graph.node for name in node.output}
    node = made.get(output)
    while node is not None and node.op_type in ("Add", "Identity", "Cast", "Reshape", "Squeeze", "Flatten"):
        node = next((made[name] for name in node.input if name in made), None)
    return node is not None and node.op_type in ("Gemm", "MatMul", "Conv")


def _before(model: "onnx.ModelProto", output: str) -> list[str]:
    """Return the values that an output depends on, the latest first, without itself."""
    needed, found = {output}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            found += [name for name in node.output if name != output]
            needed.update(node.input)
    return found


def _shapes(model: "onnx.ModelProto") -> "Mapping[str, onnx.ValueInfoProto]":
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # it raises anything for graphs that it cannot follow
        inferred = model
    return {entry.name: entry for entry in (*inferred.graph.value_info, *model.graph.output)}


def _constants(model: "onnx.ModelProto") -> dict[str, NDArray[Any]]:
    from onnx import numpy_helper

    found = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            found[node.output[0]] = node.attribute[0].t
    small = {name: each for name, each in found.items() if int(np.prod(each.dims)) in (1, 3)}
    return {name: np.asarray(numpy_helper.to_array(each)) for name, each in small.items()}


def _written(shape: list[int | str]) -> str:
    return f"[{', '.join(['N', *map(str, shape[1:])])}]"
