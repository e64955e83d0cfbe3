"""Run a model on a GPU in batches of a few fixed sizes, with preallocated input and output memory.

Kernels are selected, and CUDA graphs recorded, for one shape. Batches are therefore padded to the next of a few sizes,
each of which is run once before the first request, with input and output at fixed addresses. Only the device's name is
specific to CUDA: the same code runs on a CPU, which is how it is tested.
"""

import threading
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_NO_GRAPH = -1


def bucket_for(count: int, buckets: Sequence[int] = BUCKETS) -> int:
    """Return the smallest size for so many images, or the largest size if none suffices."""
    return next((size for size in buckets if size >= count), buckets[-1])


class Bucketed:
    """A session whose batches have fixed sizes; any thread may use it, one at a time runs.

    Args:
        session: the session.
        pixels: name of its input, uint8 [N, H, W, 3].
        outputs: names of its outputs, float32 [N, …].
        side: height and width of an image.
        device: `cuda` or `cpu`.
        graphs: run each size as a CUDA graph of its own; the session must have been opened for that.
        buckets: the sizes, ascending.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        pixels: str,
        outputs: Sequence[str],
        side: tuple[int, int],
        device: str,
        *,
        graphs: bool = False,
        buckets: Sequence[int] = BUCKETS,
    ) -> None:
        self._session = session
        self._buckets = tuple(buckets)
        self._graphs = graphs
        self._lock = threading.Lock()
        self._inputs: dict[int, ort.OrtValue] = {}
        self._results: dict[int, list[ort.OrtValue]] = {}
        self._bindings: dict[int, ort.IOBinding] = {}
        for size in self._buckets:
            self._bind(size, pixels, outputs, side, device)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Sizes of batches, ascending."""
        return self._buckets

    def run(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Run the model on any number of images, uint8 [N, H, W, 3], N ≥ 1, and return its outputs."""
        largest = self._buckets[-1]
        parts = [self._part(pixels[start : start + largest]) for start in range(0, len(pixels), largest)]
        return [np.concatenate(each) if len(each) > 1 else each[0] for each in zip(*parts, strict=True)]

    def _bind(self, size: int, pixels: str, outputs: Sequence[str], side: tuple[int, int], device: str) -> None:
        """Allocate the memory of a size and run it once, to select kernels and record graphs."""
        blank = np.zeros((size, *side, 3), np.uint8)
        first = self._session.run(list(outputs), {pixels: blank}, _options(_NO_GRAPH))
        self._inputs[size] = ort.OrtValue.ortvalue_from_numpy(blank, device, 0)
        self._results[size] = [ort.OrtValue.ortvalue_from_numpy(result, device, 0) for result in first]
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(pixels, self._inputs[size])
        for name, result in zip(outputs, self._results[size], strict=True):
            binding.bind_ortvalue_output(name, result)
        self._bindings[size] = binding
        self._launch(size)

    def _launch(self, size: int) -> None:
        # Each size is a graph of its own.
        self._session.run_with_iobinding(self._bindings[size], _options(size if self._graphs else _NO_GRAPH))

    def _part(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        count = len(pixels)
        size = bucket_for(count, self._buckets)
        whole = np.zeros((size, *pixels.shape[1:]), np.uint8) if count < size else np.ascontiguousarray(pixels)
        if count < size:
            whole[:count] = pixels
        with self._lock:
            self._inputs[size].update_inplace(whole)
            self._launch(size)
            return [result.numpy()[:count].copy() for result in self._results[size]]


def _options(graph: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
