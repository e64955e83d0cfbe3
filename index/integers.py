"""Products of 8-bit integers, as many a second as the processor can: ONNX Runtime's `MatMulInteger`.

A float32 product of as many numbers takes up to four times as long where the processor has instructions for integers of
8 bits (VNNI). Without them, some processors add pairs of products in 16 bits, which overflow when both factors use all
of their bits; what is multiplied therefore stays within a bound that is found by trying.
"""

import functools
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("kindred.index")

Codes = NDArray[np.uint8]
Weights = NDArray[np.int8]
Integers = NDArray[np.int32]

_UINT8, _INT8, _INT32 = 2, 3, 6  # element types of ONNX
_IR_VERSION, _OPSET = 8, 13
_MOST = (127, 63)
_LENGTH = 64
# ONNX Runtime reads codes that are wider half as fast.
_READ_FAST = 256
# So many columns of weights take it as long as one.
_AS_ONE = 16
# Products that are made before they are added up: they stay in a core's cache.
_ADDED_AT_ONCE = 1 << 16


class IntegerProducts:
    """Multiplies codes by weights; any number of threads may do so at once, each on the thread that calls."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        session = onnxruntime.InferenceSession(_model(), options, providers=["CPUExecutionProvider"])
        self._session: Any = session
        self.most: int = next((most for most in _MOST if self._is_right(most)), 0)
        """Weights between minus this and this are multiplied without an overflow; 0 when there is no such bound."""

    def multiply(self, codes: Codes, weights: Weights, products: Integers) -> None:
        """Store `codes @ weights`.

        Args:
            codes: uint8 [n, D], C-contiguous.
            weights: int8 [D, N], C-contiguous.
            products: int32 [n, N], C-contiguous.
        """
        parts, rest = divmod(codes.shape[1], _READ_FAST)
        if rest == 0 and 1 < parts <= _AS_ONE // weights.shape[1]:
            self._multiply_parts(codes, weights, products, parts)
        else:
            self._multiply(codes, weights, products)

    def _multiply_parts(self, codes: Codes, weights: Weights, products: Integers, parts: int) -> None:
        """Multiply every part of a code by every part of the weights, and add up those that belong together.

        That is more products than are wanted, and twice as fast all the same (512 components, 3 or 4 columns).
        """
        rows, columns = products.shape
        side_by_side = np.hstack(np.split(weights, parts))
        at_once = max(1, _ADDED_AT_ONCE // (parts * parts * columns))
        made = np.empty((min(rows, at_once), parts, parts, columns), np.int32)
        for begin in range(0, rows, at_once):
            some = codes[begin : begin + at_once]
            of_some = made[: len(some)]
            self._multiply(
                some.reshape(-1, _READ_FAST), side_by_side, of_some.reshape(len(some) * parts, parts * columns)
            )
            total = products[begin : begin + at_once]
            np.add(of_some[:, 0, 0], of_some[:, 1, 1], out=total)
            for part in range(2, parts):
                total += of_some[:, part, part]

    def _multiply(self, codes: Codes, weights: Weights, products: Integers) -> None:
        binding = self._session.io_binding()
        binding.bind_input("codes", "cpu", 0, np.uint8, codes.shape, codes.ctypes.data)
        binding.bind_input("weights", "cpu", 0, np.int8, weights.shape, weights.ctypes.data)
        binding.bind_output("products", "cpu", 0, np.int32, products.shape, products.ctypes.data)
        self._session.run_with_iobinding(binding)

    def _is_right(self, most: int) -> bool:
        codes = np.full((_LENGTH, _LENGTH), 255, np.uint8)
        weights = np.full((_LENGTH, _LENGTH), most, np.int8)
        weights[:, 1::2] = -most
        products = np.empty((_LENGTH, _LENGTH), np.int32)
        self.multiply(codes, weights, products)
        return bool(np.array_equal(products, codes.astype(np.int32) @ weights.astype(np.int32)))


@functools.cache
def integer_products() -> IntegerProducts | None:
    """Return what multiplies integers; None where there is no ONNX Runtime, or it cannot be relied on."""
    try:
        products = IntegerProducts()
    except Exception as error:  # searches do without
        log.warning("searches multiply floats, ONNX Runtime cannot be used: %s", error)
        return None
    return products if products.most else None


def _model() -> bytes:
    """Return an ONNX model of one node; the `onnx` package is no part of what serves."""
    node = b"".join(_text(*one) for one in ((1, "codes"), (1, "weights"), (2, "products"), (4, "MatMulInteger")))
    graph = _part(1, node) + _text(2, "products")
    graph += _part(11, _value("codes", _UINT8)) + _part(11, _value("weights", _INT8))
    graph += _part(12, _value("products", _INT32))
    return _number(1, _IR_VERSION) + _part(7, graph) + _part(8, _text(1, "") + _number(2, _OPSET))


def _value(name: str, kind: int) -> bytes:
    """Return a description of a matrix of any size."""
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
