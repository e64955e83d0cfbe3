"""Multiply matrices of 8-bit integers with ONNX Runtime's `MatMulInteger`.

On processors with 8-bit dot products (VNNI) this is up to four times as fast as float32. Without these instructions,
some processors add pairs of products in 16 bits, which overflow when both factors use all of their bits; the weights
therefore stay within a bound that is found by a trial.

ONNX Runtime packs both sides of a product into a layout that suits the processor in every call, which takes several
times as long as multiplying wide codes by a few weights. It packs a constant right side only once: `PackedCodes` are
such constants.
"""

import functools
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagekin.index.vectors.int8_graphs import LEFT, PRODUCTS, RIGHT, multiplication

log = logging.getLogger("imagekin.index")

Codes = NDArray[np.uint8]
_Weights = NDArray[np.int8]
Integers = NDArray[np.int32]

# Zero point of codes, which are unsigned.
ZERO = 128
_MOST = (127, 63)
_LENGTH = 64


class IntegerProducts:
    """A multiplier of codes by weights, for any number of threads at once; each works on the calling thread.

    Attributes:
        max_weight: largest absolute weight that is multiplied without an overflow; 0 when there is none.
        packs: True when codes can be packed.
    """

    def __init__(self) -> None:
        self._session = _session(multiplication(ZERO))
        self.max_weight: int = next((most for most in _MOST if self._is_right(most)), 0)
        self.packs = True
        self.packs = self._packs_right()

    def multiply(self, codes: Codes, weights: _Weights, products: Integers) -> None:
        """Store `(codes - ZERO) @ weights`.

        Args:
            codes: uint8 [n, D], C-contiguous.
            weights: int8 [D, N], C-contiguous.
            products: int32 [n, N], C-contiguous.
        """
        binding = self._session.io_binding()
        binding.bind_input(LEFT, "cpu", 0, np.uint8, codes.shape, codes.ctypes.data)
        binding.bind_input(RIGHT, "cpu", 0, np.int8, weights.shape, weights.ctypes.data)
        binding.bind_output(PRODUCTS, "cpu", 0, np.int32, products.shape, products.ctypes.data)
        self._session.run_with_iobinding(binding)

    def pack(self, codes: Codes) -> "PackedCodes | None":
        """Return a copy of codes, uint8 [n, D], in a layout for faster multiplication; None when packing fails."""
        if not self.packs:
            return None
        try:
            return PackedCodes(codes, self.max_weight)
        except Exception as error:  # searches work without
            log.warning("codes are multiplied as they are, ONNX Runtime cannot pack them: %s", error)
            self.packs = False
            return None

    def lifted(self, weights: _Weights) -> Codes:
        """Return weights of any shape in the unsigned form that `PackedCodes.multiply` takes."""
        return (weights.astype(np.int16) + self.max_weight).astype(np.uint8)

    def _is_right(self, most: int) -> bool:
        codes = np.full((_LENGTH, _LENGTH), 255, np.uint8)
        products = np.empty((_LENGTH, _LENGTH), np.int32)
        self.multiply(codes, _extreme_weights(most), products)
        return bool(np.array_equal(products, (codes.astype(np.int32) - ZERO) @ _extreme_weights(most).astype(np.int32)))

    def _packs_right(self) -> bool:
        codes = np.resize(np.array([255, 1], np.uint8), (_LENGTH, _LENGTH))
        weights = np.ascontiguousarray(_extreme_weights(self.max_weight).T)
        products = np.empty((_LENGTH, _LENGTH), np.int32)
        packed = self.pack(codes)
        if packed is None:
            return False
        packed.multiply(self.lifted(weights), products)
        return bool(np.array_equal(products, weights.astype(np.int32) @ (codes.astype(np.int32) - ZERO).T))


class PackedCodes:
    """Constant codes in the layout that the processor multiplies; any number of threads may use them.

    Args:
        codes: uint8 [n, D].
        max_weight: largest absolute weight.
    """

    def __init__(self, codes: Codes, most: int) -> None:
        from onnxruntime import OrtValue

        signed = np.empty((codes.shape[1], len(codes)), np.int8)
        np.bitwise_xor(codes.T, ZERO, out=signed.view(np.uint8))
        # ONNX Runtime drops an external initialiser once it is packed, but would keep one inside the model.
        self._session = _session(multiplication(most, signed.shape), {RIGHT: OrtValue.ortvalue_from_numpy(signed)})
        self._rows = len(codes)

    def __len__(self) -> int:
        return self._rows

    def multiply(self, weights: Codes, products: Integers) -> None:
        """Store `weights @ (codes - ZERO)`.

        Args:
            weights: uint8 [N, D], C-contiguous, as `IntegerProducts.lifted` returns them.
            products: int32 [N, n], C-contiguous.
        """
        binding = self._session.io_binding()
        binding.bind_input(LEFT, "cpu", 0, np.uint8, weights.shape, weights.ctypes.data)
        binding.bind_output(PRODUCTS, "cpu", 0, np.int32, products.shape, products.ctypes.data)
        self._session.run_with_iobinding(binding)


@functools.cache
def integer_products() -> IntegerProducts | None:
    """Return a multiplier of integers; None without ONNX Runtime, or where its results are not exact."""
    try:
        products = IntegerProducts()
    except Exception as error:  # searches work without
        log.warning("searches multiply floats, ONNX Runtime cannot be used: %s", error)
        return None
    return products if products.max_weight else None


def _session(model: bytes, constants: dict[str, Any] | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if constants:
        options.add_external_initializers(list(constants), list(constants.values()))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _extreme_weights(most: int) -> _Weights:
    """Return weights, int8 [64, 64], that produce the largest intermediate sums."""
    weights = np.full((_LENGTH, _LENGTH), most, np.int8)
    weights[:, 1::2] = -most
    return weights
