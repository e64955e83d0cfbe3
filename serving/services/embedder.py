"""The Embedder service: embed images."""

# ruff: noqa: N802, D102 (the contract names and describes the methods)

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from imagekin.encoder.metadata import Metadata
from imagekin.errors import ImagekinError
from imagekin.serving.embedding.image_jobs import EmbedOutcome
from imagekin.serving.embedding.models import Models, ServedModel
from imagekin.serving.messages import check_count
from imagekin.serving.settings import Limits
from imagekin.serving.transport.call_info import Context
from imagekin.serving.transport.status import item_error
from imagekin.serving.transport.streams import in_order
from imagekin.serving.transport.wire import (
    AnyEmbed,
    AnyEmbedStream,
    Result,
    read_embed,
    read_embed_stream,
    write_embed,
    write_embed_stream,
)
from imagekin.v1 import embedder_pb2, embedder_pb2_grpc

EMBED = "/imagekin.v1.Embedder/Embed"
# Readers of the methods' requests.
READERS = {EMBED: read_embed, "/imagekin.v1.Embedder/EmbedStream": read_embed_stream}


class EmbedderService(embedder_pb2_grpc.EmbedderServicer):
    """Embed images. Answers that hold vectors are returned serialised, see `imagekin.serving.transport.wire`.

    Args:
        models: the loaded models.
        limits: ceilings.
    """

    def __init__(self, models: Models, limits: Limits) -> None:
        self._models = models
        self._limits = limits

    async def Embed(self, request: AnyEmbed, context: Context) -> bytes:  # type: ignore[override]
        images = self._images(request)
        model = self._models.get(request.model)
        with model.pipeline.leased():
            outcomes = await model.pipeline.embed(images, timeout=context.time_remaining())
        return write_embed(_results(outcomes), model.metadata.dim, model.metadata.space)

    async def EmbedStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[AnyEmbedStream], context: Context
    ) -> AsyncIterator[bytes]:
        async def begin(request: AnyEmbedStream) -> tuple[tuple[int, Metadata], asyncio.Future[list[EmbedOutcome]]]:
            images = self._images(request.batch)
            model = self._models.get(request.batch.model)
            with model.pipeline.leased():
                outcomes = await model.pipeline.begin(images, timeout=context.time_remaining(), patient=True)
            return (request.tag, model.metadata), outcomes

        async with contextlib.aclosing(in_order(request_iterator, begin)) as answers:
            async for (tag, metadata), outcomes in answers:
                yield write_embed_stream(_results(outcomes), metadata.dim, metadata.space, tag)

    async def ListModels(
        self, request: embedder_pb2.ListModelsRequest, context: Context
    ) -> embedder_pb2.ListModelsResponse:
        return embedder_pb2.ListModelsResponse(models=[_describe(model) for model in self._models.all])

    def _images(self, request: AnyEmbed) -> list[bytes | memoryview]:
        check_count(request.images, self._limits.max_batch_items, "images")
        return [image.data for image in request.images]


def _results(outcomes: Sequence[EmbedOutcome]) -> list[Result]:
    return [item_error(outcome) if isinstance(outcome, ImagekinError) else outcome.vector for outcome in outcomes]


def _describe(model: ServedModel) -> embedder_pb2.Model:
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
