"""Write ONNX models of a single `MatMulInteger` node, without the `onnx` package.

That package is not a dependency of serving, and the models have only about a hundred bytes. The numbers below are the
field numbers of ONNX's protobuf messages.
"""

_UINT8, _INT8, _INT32 = 2, 3, 6  # element types
_EXTERNAL = 1
_IR_VERSION, _OPSET = 8, 13
LEFT, RIGHT, PRODUCTS = "left", "right", "products"
_ZERO = "zero"


def multiplication(zero: int, right: tuple[int, int] | None = None) -> bytes:
    """Return a model of `products = (left - zero) @ right`, with left uint8 [n, D] and right int8 [D, N].

    Args:
        zero: zero point of the left side.
        right: shape of the right side, if it is a constant that the session gets as an external initialiser; None if
            it is an input.
    """
    names = (*((1, name) for name in (LEFT, RIGHT, _ZERO)), (2, PRODUCTS), (4, "MatMulInteger"))
    graph = _part(1, b"".join(_text(*name) for name in names)) + _text(2, "products")
    graph += _part(5, _number(2, _UINT8) + _text(8, _ZERO) + _part(9, bytes([zero])))
    if right is not None:
        outside = _part(13, _text(1, "location") + _text(2, "memory")) + _number(14, _EXTERNAL)
        graph += _part(5, b"".join(_number(1, size) for size in right) + _number(2, _INT8) + _text(8, RIGHT) + outside)
    else:
        graph += _part(11, _value(RIGHT, _INT8))
    graph += _part(11, _value(LEFT, _UINT8)) + _part(12, _value(PRODUCTS, _INT32))
    return _number(1, _IR_VERSION) + _part(7, graph) + _part(8, _text(1, "") + _number(2, _OPSET))


def _value(name: str, kind: int) -> bytes:
    """Return the description of a matrix of any size."""
    shape = b"".join(_part(1, _text(2, f"{name}-{axis}")) for axis in range(2))
    return _text(1, name) + _part(2, _part(1, _number(1, kind) + _part(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _part(field, value.encode())


def _part(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
