"""Write items: check each, embed the images, and write the valid ones together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.encoder.decoding.thumbnail import thumbnail
from imagekin.errors import FailedPreconditionError, ImagekinError, InvalidArgumentError
from imagekin.index import validation
from imagekin.index.local.thumbnails import MOST_PIXELS
from imagekin.index.types import VectorItem
from imagekin.serving.collections.open_collections import CollectionStore, OpenCollection
from imagekin.serving.embedding.models import Models
from imagekin.serving.messages import check_count, located, read_payload, read_vector
from imagekin.serving.searching.queries import model_for
from imagekin.serving.settings import Limits
from imagekin.serving.transport.status import item_error
from imagekin.types import Outcome
from imagekin.v1 import collections_pb2 as pb
from imagekin.v1 import common_pb2

_THUMBNAIL_LIMITS = DecodeLimits(max_bytes=256 * 1024, max_pixels=MOST_PIXELS**2, formats=frozenset({"JPEG"}))
_OUTCOMES = {
    Outcome.INSERTED: pb.UpsertResult.Outcome.OUTCOME_INSERTED,
    Outcome.REPLACED: pb.UpsertResult.Outcome.OUTCOME_REPLACED,
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch that is ready to be written.

    Attributes:
        entry: the collection.
        items: each item of the request, ready to be written, or its error.
    """

    entry: OpenCollection
    items: Sequence[VectorItem | ImagekinError]


class Writer:
    """Check and write batches of items.

    Args:
        store: the collections.
        models: the loaded models.
        limits: ceilings.
    """

    def __init__(self, store: CollectionStore, models: Models, limits: Limits) -> None:
        self._store = store
        self._models = models
        self._limits = limits

    async def prepare(self, request: pb.UpsertRequest, *, timeout: float | None, patient: bool) -> Prepared:
        """Check the items and embed the images among them.

        Args:
            request: the batch.
            timeout: seconds after which the caller stops waiting; None for never.
            patient: wait for room in the queue instead of failing.

        Raises:
            InvalidArgumentError: the batch is empty or too large.
            NotFoundError: there is no such collection.
            FailedPreconditionError: the server does not write, or no item can be written because no loaded model
                embeds into the collection's space.
            ResourceExhaustedError: the queue is full.
        """
        self._store.check_writable()
        check_count(request.items, self._limits.max_batch_items, "items")
        entry = await self._store.get(request.collection)
        # In a thread, because parsing 256 payloads of 64 KiB would stall the event loop.
        checked = await entry.read(_check_all, request.items, entry)
        images = {
            position: request.items[position].image.data
            for position, item in enumerate(checked)
            if isinstance(item, VectorItem) and request.items[position].WhichOneof("content") == "image"
        }
        if images:
            await self._embed(images, checked, entry, timeout=timeout, patient=patient)
        return Prepared(entry, checked)

    async def write(self, prepared: Prepared) -> pb.UpsertResponse:
        """Write the valid items of a batch; they are on disk when this returns."""
        entry = prepared.entry
        good = [item for item in prepared.items if isinstance(item, VectorItem)]
        if not good:
            errors = [item_error(item) for item in prepared.items if isinstance(item, ImagekinError)]
            return pb.UpsertResponse(results=[pb.UpsertResult(error=error) for error in errors])
        written = await entry.write(lambda: entry.collection.upsert(good))
        outcomes = (outcome for outcome in written.outcomes if isinstance(outcome, Outcome))
        results = [
            pb.UpsertResult(error=item_error(item))
            if isinstance(item, ImagekinError)
            else pb.UpsertResult(outcome=_OUTCOMES[next(outcomes)])
            for item in prepared.items
        ]
        return pb.UpsertResponse(results=results, sequence=written.sequence)

    async def _embed(
        self,
        images: Mapping[int, bytes],
        checked: list[VectorItem | ImagekinError],
        entry: OpenCollection,
        *,
        timeout: float | None,
        patient: bool,
    ) -> None:
        """Fill in the vectors of the items at the images' positions."""
        try:
            model = model_for(entry, self._models)
        except FailedPreconditionError as error:
            if len(images) == len(checked):
                raise
            checked[:] = [error if position in images else item for position, item in enumerate(checked)]
            return
        files = list(images.values())
        size = await entry.read(lambda: entry.collection.thumbnail_size())
        with model.pipeline.leased():
            outcomes = await model.pipeline.embed(files, timeout=timeout, hashes=True, thumbnail=size, patient=patient)
        for position, outcome in zip(images, outcomes, strict=True):
            item = checked[position]
            if isinstance(outcome, ImagekinError):
                checked[position] = outcome
            elif isinstance(item, VectorItem):
                checked[position] = replace(
                    item, vector=outcome.vector, content_hash=outcome.content_hash, thumbnail=outcome.thumbnail
                )


def _check_all(messages: Sequence[common_pb2.Item], entry: OpenCollection) -> list[VectorItem | ImagekinError]:
    size = entry.collection.thumbnail_size() if any(message.thumbnail for message in messages) else 0
    return [_check(message, position, entry.dim, size) for position, message in enumerate(messages)]


def _check(message: common_pb2.Item, position: int, dim: int, size: int) -> VectorItem | ImagekinError:
    """Check an item; return it, with an image's vector still to be filled in, or its error.

    A thumbnail is made anew from the one that came, so that nothing else of the caller's file is kept.
    """
    where = f"items[{position}]"
    content = message.WhichOneof("content")
    try:
        with located(f"{where}.key"):
            key = validation.key(message.key)
        with located(f"{where}.label"):
            label = validation.label(message.label)
        with located(f"{where}.payload_json"):
            payload = read_payload(message.payload_json)
        with located(f"{where}.content_hash"):
            content_hash = validation.content_hash(message.content_hash)
        picture = None
        if content == "vector" and size and content_hash and message.thumbnail:
            with located(f"{where}.thumbnail"):
                picture = thumbnail(message.thumbnail, size, _THUMBNAIL_LIMITS)
        if content == "vector":
            vector = read_vector(message.vector, dim, f"{where}.vector")
        elif content == "image":
            vector = np.empty(0, np.float32)
        else:
            raise InvalidArgumentError("the item is empty: set image or vector", field=where)
    except InvalidArgumentError as error:
        return error
    return VectorItem(key, vector, label, payload, content_hash, thumbnail=picture)
