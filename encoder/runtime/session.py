"""Run a model artifact with ONNX Runtime: pixels in, embeddings out.

An `Encoder` is opened once and shared by all threads. Opening checks everything that can be checked without real
images, including a trial run, so that a wrong file is refused before serving begins.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from imagekin.encoder.decoding import decode
from imagekin.encoder.graph_contract import EMBEDDING, LOGITS, PIXELS, Tensor, check_graph
from imagekin.encoder.metadata import METADATA_KEY, Metadata
from imagekin.encoder.runtime.fixed_batches import Bucketed
from imagekin.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imagekin.machine import Device

logger = logging.getLogger("imagekin.encoder")


# Pixels of one inference: 64 images of 224×224, enough to use the processor fully. Larger calls are split, which bounds
# the memory of intermediate results.
_CHUNK_PIXELS = 64 * 224 * 224
_MAX_CHUNK = 1024
# With weights of lower precision, lengths deviate from 1 by more than the rounding of float32.
_UNIT_TOLERANCE = 1e-2
# Endings of files that hold weights without a graph.
_WEIGHTS = {".bin", ".pkl", ".pt", ".pth", ".safetensors"}
_SILENT = 4  # ONNX Runtime's severity "fatal": its errors are raised as well, and reported in one line


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a model for N images.

    Attributes:
        embeddings: float32 [N, D], unit length.
        logits: float32 [N, C], None when the model has no linear head.
    """

    embeddings: NDArray[np.float32]
    logits: NDArray[np.float32] | None


class Encoder:
    """An opened model artifact; any number of threads may use it.

    Attributes:
        name: its name, by default the file's name without its extension.
        metadata: the artifact's metadata.
        device: device that it runs on, `cpu` or `cuda`.
        sessions: number of inferences that run at the same time; others wait.
    """

    def __init__(
        self, sessions: Sequence[ort.InferenceSession], metadata: Metadata, name: str, *, graphs: bool = False
    ) -> None:
        self.name = name
        self.metadata = metadata
        self.device: Literal["cpu", "cuda"] = "cuda" if sessions[0].get_providers()[0].startswith("CUDA") else "cpu"
        self.sessions = len(sessions)
        self._idle: SimpleQueue[ort.InferenceSession] = SimpleQueue()
        for session in sessions:
            self._idle.put(session)
        self._outputs = [EMBEDDING, LOGITS] if metadata.class_names else [EMBEDDING]
        side = metadata.preprocess
        self._bucketed: Bucketed | None = None
        if graphs and self.device == "cuda":
            size = (side.height, side.width)
            self._bucketed = Bucketed(sessions[0], PIXELS, self._outputs, size, "cuda", graphs=True)
        self._chunk = max(1, min(_MAX_CHUNK, _CHUNK_PIXELS // (side.height * side.width)))

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        sessions: int = 1,
        graphs: bool = False,
        name: str = "",
    ) -> "Encoder":
        """Open a model artifact.

        Args:
            path: the ONNX file.
            device: `cuda` requires a GPU, `auto` uses one if there is one.
            threads: CPU threads of an inference; None for all cores.
            sessions: number of inferences that run at the same time, each on its own threads; others wait.
            graphs: on a GPU, run batches of a few fixed sizes as CUDA graphs; not every model can be recorded.
            name: name of the model; empty for the file's name without its extension.

        Raises:
            NotFoundError: there is no such file.
            InvalidArgumentError: the file is no model artifact, or its graph does not match its metadata.
            FailedPreconditionError: `device` is `cuda`, and there is no usable GPU.
        """
        path = Path(path)
        if not path.is_file():
            hint = f": {path} is a folder" if path.is_dir() else ""
            hint += f", name {path / 'model.onnx'}" if (path / "model.onnx").is_file() else ""
            raise NotFoundError(f"no model file {path}{hint}", field="model")
        for value, field in ((threads, "threads"), (sessions, "sessions")):
            if value is not None and value < 1:
                raise InvalidArgumentError(f"{field} must be at least 1", field=field)
        session = _open_session(path, device, threads, graphs)
        metadata = _read_metadata(session, path.name)
        try:
            check_graph(metadata, _tensors(session.get_inputs()), _tensors(session.get_outputs()))
            # Single-threaded inferences run in the calling threads, so one session (one copy of the weights) suffices.
            alone = threads == 1 or sessions == 1
            others = [session if alone else _open_session(path, device, threads) for _ in range(sessions - 1)]
            encoder = cls([session, *others], metadata, name or path.stem, graphs=graphs)
            encoder._trial_run()
        except (InvalidArgumentError, FailedPreconditionError) as error:
            raise InvalidArgumentError(f"{path.name}: {error}", field="model") from None
        if metadata.precision == "float16" and encoder.device == "cpu" and device == "auto":
            logger.warning("%s is float16, which CPUs run slowly; serve the float32 or int8 model here", path.name)
        return encoder

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Compute the embeddings, and the logits of a model with a linear head.

        Args:
            pixels: uint8 [N, H, W, 3], RGB, of the size in `metadata.preprocess`; N may be 0.

        Raises:
            InvalidArgumentError: another type or shape.
            FailedPreconditionError: the model's outputs are not finite.
        """
        self._check(pixels)
        starts = range(0, max(len(pixels), 1), self._chunk)
        parts = [self._run_chunk(pixels[start : start + self._chunk]) for start in starts]
        joined = [np.concatenate(output) if len(output) > 1 else output[0] for output in zip(*parts, strict=True)]
        return Outputs(joined[0], joined[1] if len(joined) > 1 else None)

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the embeddings, float32 [N, D] of unit length; arguments and errors as for `run`."""
        return self.run(pixels).embeddings

    def load_pixels(self, data: bytes | memoryview, limits: decode.DecodeLimits | None = None) -> NDArray[np.uint8]:
        """Decode an image file to this model's input, uint8 [H, W, 3].

        Raises:
            ImageError: it is not a usable image.
        """
        return decode.load_pixels(bytes(data), self.metadata.preprocess, limits or decode.DecodeLimits())

    def embed(self, files: Sequence[bytes]) -> NDArray[np.float32]:
        """Embed image files to float32 [N, D] of unit length.

        Args:
            files: the files' bytes.

        Raises:
            ImageError: one of them is not a usable image.
        """
        parts = [
            self.embed_pixels(np.stack([self.load_pixels(data) for data in files[start : start + self._chunk]]))
            for start in range(0, len(files), self._chunk)
        ]
        return np.concatenate([np.empty((0, self.metadata.dim), np.float32), *parts])

    def _check(self, pixels: NDArray[np.uint8]) -> None:
        side = self.metadata.preprocess
        wanted = (side.height, side.width, 3)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
            raise InvalidArgumentError("pixels must be an array of uint8", field="pixels")
        if pixels.ndim != 4 or pixels.shape[1:] != wanted:
            shape = list(pixels.shape)
            raise InvalidArgumentError(f"pixels must have the shape [N, {wanted[0]}, {wanted[1]}, 3], not {shape}")

    def _run_chunk(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        if not len(pixels):
            sides = [self.metadata.dim, len(self.metadata.class_names)]
            return [np.empty((0, side), np.float32) for side in sides[: len(self._outputs)]]
        results: list[NDArray[np.float32]]
        if self._bucketed is not None:
            results = self._bucketed.run(pixels)
        else:
            session = self._idle.get()
            try:
                results = session.run(self._outputs, {PIXELS: np.ascontiguousarray(pixels)})
            finally:
                self._idle.put(session)
        if not all(np.isfinite(result).all() for result in results):
            raise FailedPreconditionError(f"model {self.name} gives numbers that are not finite; export it again")
        return results

    def _trial_run(self) -> None:
        """Run the model on two images of noise, and check the outputs' dynamic shapes and lengths."""
        side = self.metadata.preprocess
        noise = np.random.default_rng(0).integers(0, 256, (2, side.height, side.width, 3), np.uint8)
        outputs = _call_runtime(lambda: self.run(noise), "model does not run")
        if outputs.embeddings.shape != (2, self.metadata.dim):
            raise InvalidArgumentError(f"model's embeddings are not [N, {self.metadata.dim}] as its metadata say")
        if outputs.logits is not None and outputs.logits.shape != (2, len(self.metadata.class_names)):
            raise InvalidArgumentError("model's logits are not one per class of its metadata")
        if np.abs(np.linalg.norm(outputs.embeddings, axis=1) - 1).max() > _UNIT_TOLERANCE:
            raise InvalidArgumentError("model's embeddings are not of unit length; end its graph with an L2 norm")


def cuda_options(*, graphs: bool = False) -> dict[str, str]:
    """Return the options of ONNX Runtime's CUDA provider.

    The default algorithm search is repeated for every batch size; the heuristic's kernels are as fast. TF32 rounds
    factors to 10 bits, so that embeddings would differ from the CPU's in the same space; float16 models are the faster
    alternative.
    """
    return {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0", "enable_cuda_graph": str(int(graphs))}


def _open_session(path: Path, device: Device, threads: int | None, graphs: bool = False) -> ort.InferenceSession:
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidArgumentError(f"device must be auto, cpu or cuda, not {device!r}", field="device")
    ort.set_default_logger_severity(_SILENT)
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    # Idle threads that spin take the cores from decoding, which costs a pipeline more than a single call gains.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    available = ort.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in available:
        raise FailedPreconditionError("no CUDA here: install onnxruntime-gpu, or use --device cpu", field="device")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in available:
        providers.insert(0, ("CUDAExecutionProvider", cuda_options(graphs=graphs)))
        # Finds CUDA libraries that pip installed. It prints missing ones to standard output, which is for results.
        with redirect_stdout(StringIO()):
            ort.preload_dlls()
    session = _call_runtime(
        lambda: ort.InferenceSession(path, options, providers=providers),
        f"{path.name} is not an ONNX model, is damaged, or needs a newer ONNX Runtime; "
        + ("`imagekin adopt` makes an artifact of weights" if path.suffix in _WEIGHTS else "export it again"),
    )
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise FailedPreconditionError("no usable GPU here; use --device cpu", field="device")
    return session


def _call_runtime(call: Callable[[], Any], message: str) -> Any:
    """Call ONNX Runtime, and report errors in one line: its own messages have many lines and contain paths."""
    try:
        return call()
    except (InvalidArgumentError, FailedPreconditionError):
        raise
    except Exception as error:  # its exceptions have no other common base class
        raise InvalidArgumentError(f"{message} ({type(error).__name__})", field="model") from None


def _read_metadata(session: ort.InferenceSession, name: str) -> Metadata:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise InvalidArgumentError(
            f"{name} holds no imagekin metadata: adopt it first (imagekin adopt), or,"
            " when a version before 0.2 wrote it, export it again",
            field="model",
        )
    try:
        return Metadata.from_json(text)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{name}: {error}", field="model") from None


def _tensors(nodes: Sequence[Any]) -> list[Tensor]:
    return [Tensor(node.name, node.type, tuple(node.shape)) for node in nodes]
