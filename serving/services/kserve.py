"""The KServe v2 inference protocol: stock Triton and KServe clients embed images without changes."""

# ruff: noqa: N802, D102 (the contract names and describes the methods)

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from imagekin.errors import ImagekinError, InvalidArgumentError, NotFoundError
from imagekin.kserve import inference_pb2 as pb
from imagekin.kserve import inference_pb2_grpc
from imagekin.serving.embedding.image_jobs import EmbeddedImage, Source
from imagekin.serving.embedding.models import Models, ServedModel
from imagekin.serving.messages import check_count
from imagekin.serving.settings import Limits
from imagekin.serving.transport.call_info import Context
from imagekin.version import installed_version

VERSION = "1"
INFER = "/inference.GRPCInferenceService/ModelInfer"
_LENGTH_BYTES = 4
# Raw contents of up to so many bytes are read faster than they are handed to a thread.
_READ_HERE_BYTES = 2**20
_MOST_SIDES = 4
_PIECE = 2**16

# The inputs: image files, and pixels that are decoded.
_DATATYPES = {"image": "BYTES", "pixels": "UINT8"}
# The parameter by which clients of Triton say that a tensor lies in memory shared with the server.
_SHARED_MEMORY = "shared_memory_region"
_NO_SHARED_MEMORY = "this server shares no memory: send tensors in the request, and take them from the answer"

Tensor = pb.ModelInferRequest.InferInputTensor
TensorMetadata = pb.ModelMetadataResponse.TensorMetadata


class InferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Embed images that come as tensors: BYTES [N] or [N, 1] of image files, or UINT8 [N, H, W, 3] of pixels.

    Args:
        models: the loaded models.
        limits: ceilings.
        is_ready: returns whether the server takes calls.
    """

    def __init__(self, models: Models, limits: Limits, is_ready: Callable[[], bool]) -> None:
        self._models = models
        self._limits = limits
        self._is_ready = is_ready

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        self._model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._is_ready())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="imagekin", version=installed_version())

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        model = self._model(request.name, request.version)
        side, classes = model.metadata.preprocess, model.metadata.class_names
        outputs = [TensorMetadata(name="embedding", datatype="FP32", shape=[-1, model.metadata.dim])]
        if classes:
            outputs.append(TensorMetadata(name="logits", datatype="FP32", shape=[-1, len(classes)]))
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=[VERSION],
            platform="onnxruntime_onnx",
            inputs=[
                TensorMetadata(name="image", datatype="BYTES", shape=[-1]),
                TensorMetadata(name="pixels", datatype="UINT8", shape=[-1, side.height, side.width, 3]),
            ],
            outputs=outputs,
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        model = self._model(request.model_name, request.model_version)
        wanted = _wanted(request, model)
        limit = self._limits.max_batch_items
        with model.pipeline.leased():
            if _is_small(request):
                images = _read_images(request, model, limit)
            else:
                # In a thread, because typed contents are millions of Python integers, and raw ones are copied.
                images = await asyncio.to_thread(_read_images, request, model, limit)
            outcomes = await model.pipeline.embed(images, timeout=context.time_remaining())
        embedded: list[EmbeddedImage] = []
        for position, outcome in enumerate(outcomes):
            if isinstance(outcome, ImagekinError):
                raise type(outcome)(f"image {position}: {outcome}", field=f"inputs[0][{position}]")
            embedded.append(outcome)
        response = pb.ModelInferResponse(model_name=model.name, model_version=VERSION, id=request.id)
        for name in wanted:
            rows = np.stack([_output(each, name) for each in embedded]).astype("<f4", copy=False)
            response.outputs.add(name=name, datatype="FP32", shape=rows.shape)
            response.raw_output_contents.append(rows.tobytes())
        return response

    def _model(self, name: str, version: str) -> ServedModel:
        if version not in ("", VERSION):
            raise NotFoundError(f"models have one version here, {VERSION}", field="model_version")
        return self._models.get(name)


def _is_small(request: pb.ModelInferRequest) -> bool:
    """Tell whether a request is read faster than it is handed to a thread; typed contents never are."""
    if not request.raw_input_contents or any(tensor.HasField("contents") for tensor in request.inputs):
        return False
    return request.ByteSize() <= _READ_HERE_BYTES


def _read_images(request: pb.ModelInferRequest, model: ServedModel, limit: int) -> Sequence[Source]:
    """Read the images of a request: files, or pixels uint8 [H, W, 3].

    Args:
        request: the request.
        model: the model that it asks.
        limit: images of one request.

    Raises:
        InvalidArgumentError: not exactly one tensor, of a type, shape or length that cannot be.
    """
    if len(request.inputs) != 1:
        raise InvalidArgumentError("give exactly one input: image or pixels", field="inputs")
    tensor, raw = request.inputs[0], _raw(request)
    if _SHARED_MEMORY in tensor.parameters:
        raise InvalidArgumentError(_NO_SHARED_MEMORY, field="inputs[0].parameters")
    if raw is not None and tensor.HasField("contents"):
        raise InvalidArgumentError("give an input's elements once", field="raw_input_contents")
    if len(tensor.shape) > _MOST_SIDES or any(side < 1 for side in tensor.shape):
        raise InvalidArgumentError(f"a shape holds up to {_MOST_SIDES} sides of at least 1", field="inputs[0].shape")
    if tensor.datatype not in _DATATYPES.values():
        raise InvalidArgumentError("datatype must be BYTES (image files) or UINT8 (pixels)", field="inputs[0].datatype")
    if tensor.name not in _DATATYPES:
        raise InvalidArgumentError(
            f"no input {tensor.name[:64]!r}: there are image (BYTES) and pixels (UINT8)", field="inputs[0].name"
        )
    if tensor.datatype != _DATATYPES[tensor.name]:
        raise InvalidArgumentError(
            f"the input {tensor.name} is {_DATATYPES[tensor.name]}, not {tensor.datatype}", field="inputs[0].datatype"
        )
    return _read_files(tensor, raw, limit) if tensor.name == "image" else _read_pixels(tensor, raw, model, limit)


def _raw(request: pb.ModelInferRequest) -> bytes | None:
    """Return the elements of a request's only tensor, None when they are not raw."""
    raw = request.raw_input_contents
    if len(raw) > 1:
        raise InvalidArgumentError("give an input's elements once", field="raw_input_contents")
    return raw[0] if raw else None


def _read_files(tensor: Tensor, raw: bytes | None, limit: int) -> Sequence[bytes | memoryview]:
    if len(tensor.shape) not in (1, 2) or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
        raise InvalidArgumentError("image files come as [N] or [N, 1]", field="inputs[0].shape")
    files = tensor.contents.bytes_contents if raw is None else _split_bytes(raw, limit)
    check_count(files, limit, "inputs")
    if len(files) != tensor.shape[0]:
        raise InvalidArgumentError(f"the shape says {tensor.shape[0]} images, there are {len(files)}", field="inputs")
    return list(files)


def _split_bytes(raw: bytes, limit: int) -> list[memoryview]:
    """Split a raw BYTES tensor into its elements: each is its length as little-endian uint32, then its bytes.

    Raises:
        InvalidArgumentError: it is cut off, or has more than `limit` elements.
    """
    elements: list[memoryview] = []
    view, at = memoryview(raw), 0
    while at < len(raw):
        start = at + _LENGTH_BYTES
        end = start + int.from_bytes(raw[at:start], "little")
        if end > len(raw) or start > len(raw):
            raise InvalidArgumentError("the BYTES tensor is cut off", field="raw_input_contents")
        if len(elements) == limit:
            raise InvalidArgumentError(f"at most {limit} images at a time", field="raw_input_contents")
        elements.append(view[start:end])
        at = end
    return elements


def _read_pixels(tensor: Tensor, raw: bytes | None, model: ServedModel, limit: int) -> Sequence[Source]:
    side = model.metadata.preprocess
    wanted = [side.height, side.width, 3]
    if list(tensor.shape[1:]) != wanted:
        raise InvalidArgumentError(f"pixels come as [N, {side.height}, {side.width}, 3]", field="inputs[0].shape")
    if tensor.shape[0] > limit:
        raise InvalidArgumentError(f"at most {limit} images at a time", field="inputs[0].shape")
    numbers = tensor.contents.uint_contents
    size = len(numbers) if raw is None else len(raw)
    if size != tensor.shape[0] * side.height * side.width * 3:
        raise InvalidArgumentError(f"the shape needs another number of bytes than {size}", field="inputs")
    if raw is None:
        try:
            # In pieces, because each is one call that lets no other thread in. `bytes` refuses what is above 255.
            raw = b"".join(bytes(numbers[at : at + _PIECE]) for at in range(0, size, _PIECE))
        except ValueError:
            raise InvalidArgumentError("a UINT8 is at most 255", field="inputs[0].contents") from None
    return list(np.frombuffer(raw, np.uint8).reshape(-1, side.height, side.width, 3))


def _wanted(request: pb.ModelInferRequest, model: ServedModel) -> list[str]:
    known = ["embedding", "logits"] if model.metadata.class_names else ["embedding"]
    for position, output in enumerate(request.outputs):
        if _SHARED_MEMORY in output.parameters:
            raise InvalidArgumentError(_NO_SHARED_MEMORY, field=f"outputs[{position}].parameters")
    wanted = list(dict.fromkeys(output.name for output in request.outputs)) or known
    for name in wanted:
        if name not in known:
            raise InvalidArgumentError(f"no output {name[:64]!r}: there is {', '.join(known)}", field="outputs")
    return wanted


def _output(embedded: EmbeddedImage, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if name == "embedding" or embedded.logits is None:
        return embedded.vector
    return embedded.logits
