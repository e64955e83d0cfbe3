"""The Embedder service: images in, embeddings out."""

# ruff: noqa: N802, D102 (the contract names and describes the methods)

import contextlib
from collections.abc import AsyncIterator

from encoder.errors import KindredError
from kindred.v1 import embedder_pb2, embedder_pb2_grpc
from serving.interceptor import Context
from serving.messages import check_count
from serving.models import Model, Models
from serving.pipeline import Outcome
from serving.settings import Limits
from serving.status import item_error
from serving.streams import in_order


class Embedder(embedder_pb2_grpc.EmbedderServicer):
    """Embeds images.

    Args:
        models: the loaded models.
        limits: ceilings.
    """

    def __init__(self, models: Models, limits: Limits) -> None:
        self._models = models
        self._limits = limits

    async def Embed(self, request: embedder_pb2.EmbedRequest, context: Context) -> embedder_pb2.EmbedResponse:
        return await self._embed(request, timeout=context.time_remaining(), patient=False)

    async def EmbedStream(
        self, request_iterator: AsyncIterator[embedder_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[embedder_pb2.EmbedStreamResponse]:
        async def prepare(request: embedder_pb2.EmbedStreamRequest) -> embedder_pb2.EmbedResponse:
            return await self._embed(request.batch, timeout=context.time_remaining(), patient=True)

        async with contextlib.aclosing(in_order(request_iterator, prepare)) as answers:
            async for request, response in answers:
                yield embedder_pb2.EmbedStreamResponse(batch=response, tag=request.tag)

    async def ListModels(
        self, request: embedder_pb2.ListModelsRequest, context: Context
    ) -> embedder_pb2.ListModelsResponse:
        return embedder_pb2.ListModelsResponse(models=[_describe(model) for model in self._models.all])

    async def _embed(
        self, request: embedder_pb2.EmbedRequest, *, timeout: float | None, patient: bool
    ) -> embedder_pb2.EmbedResponse:
        check_count(request.images, self._limits.max_batch_items, "images")
        images = [image.data for image in request.images]
        with self._models.use(request.model) as model:
            outcomes = await model.pipeline.embed(images, timeout=timeout, patient=patient)
        return embedder_pb2.EmbedResponse(
            results=[_result(outcome) for outcome in outcomes], dim=model.metadata.dim, space=model.metadata.space
        )


def _result(outcome: Outcome) -> embedder_pb2.EmbedResult:
    if isinstance(outcome, KindredError):
        return embedder_pb2.EmbedResult(error=item_error(outcome))
    return embedder_pb2.EmbedResult(vector=outcome.vector.astype("<f4", copy=False).tobytes())


def _describe(model: Model) -> embedder_pb2.Model:
    metadata = model.metadata
    return embedder_pb2.Model(
        name=model.name,
        space=metadata.space,
        dim=metadata.dim,
        image_height=metadata.preprocess.height,
        image_width=metadata.preprocess.width,
        class_names=metadata.class_names,
        metadata_json=metadata.to_json(),
    )
