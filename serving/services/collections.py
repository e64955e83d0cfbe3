"""The Collections service: keep collections and their items."""

# ruff: noqa: N802, D102 (the contract names and describes the methods)

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

from imagekin.errors import InvalidArgumentError
from imagekin.index.types import Place
from imagekin.serving.collections.open_collections import CollectionStore
from imagekin.serving.collections.writes import Prepared, Writer
from imagekin.serving.embedding.models import Models
from imagekin.serving.messages import check_count, read_updates, write_collection, write_item
from imagekin.serving.searching.filters import given_filter, write_value
from imagekin.serving.settings import Limits
from imagekin.serving.transport.call_info import Context
from imagekin.serving.transport.callers import CALLER
from imagekin.serving.transport.streams import in_order
from imagekin.serving.transport.wire import join_members, write_members
from imagekin.v1 import collections_pb2 as pb
from imagekin.v1 import collections_pb2_grpc

DEFAULT_PAGE = 100
DEFAULT_FACETS = 100
# Id of the collection, sequence number at which the scroll began, place of the last item.
_TOKEN = re.compile(r"([0-9A-Za-z.+-]{0,40}):([0-9]{1,18}):([0-9]{1,18})")


class CollectionsService(collections_pb2_grpc.CollectionsServicer):
    """Create, fill, read and drop collections. Long answers are serialised, see `imagekin.serving.transport.wire`.

    Args:
        store: the collections.
        models: the loaded models.
        limits: ceilings.
    """

    def __init__(self, store: CollectionStore, models: Models, limits: Limits) -> None:
        self._store = store
        self._models = models
        self._limits = limits
        self._writer = Writer(store, models, limits)

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        space, dim = request.space, request.dim
        if space:
            if not dim:
                raise InvalidArgumentError("dim is required with space", field="dim")
        else:
            metadata = self._models.get(request.model).metadata
            if dim not in (0, metadata.dim):
                raise InvalidArgumentError(f"the model makes {metadata.dim} components, not {dim}", field="dim")
            space, dim = metadata.space, metadata.dim
        kind = request.index_kind or "auto"
        size = request.thumbnail_size
        info = await self._store.create(request.name, space=space, dim=dim, index_kind=kind, thumbnail_size=size)
        return pb.CreateCollectionResponse(collection=write_collection(info))

    async def ListCollections(  # type: ignore[override]
        self, request: pb.ListCollectionsRequest, context: Context
    ) -> bytes:
        caller = CALLER.get()
        infos = [info for info in await self._store.describe_all() if caller.may_see(info.name)]
        return await asyncio.to_thread(write_members, map(write_collection, infos))

    async def DescribeCollection(
        self, request: pb.DescribeCollectionRequest, context: Context
    ) -> pb.DescribeCollectionResponse:
        entry = await self._store.get(request.name)
        info = await entry.read(lambda: entry.collection.info())
        return pb.DescribeCollectionResponse(collection=write_collection(info))

    async def DropCollection(self, request: pb.DropCollectionRequest, context: Context) -> pb.DropCollectionResponse:
        return pb.DropCollectionResponse(count=await self._store.drop(request.name))

    async def Upsert(self, request: pb.UpsertRequest, context: Context) -> pb.UpsertResponse:
        prepared = await self._writer.prepare(request, timeout=context.time_remaining(), patient=False)
        return await self._writer.write(prepared)

    async def UpsertStream(
        self, request_iterator: AsyncIterator[pb.UpsertStreamRequest], context: Context
    ) -> AsyncIterator[pb.UpsertStreamResponse]:
        async def begin(request: pb.UpsertStreamRequest) -> tuple[int, asyncio.Future[Prepared]]:
            prepared = self._writer.prepare(request.batch, timeout=context.time_remaining(), patient=True)
            return request.tag, asyncio.ensure_future(prepared)

        async with contextlib.aclosing(in_order(request_iterator, begin)) as batches:
            async for tag, prepared in batches:
                # Written in order: of two batches with the same key the later one wins.
                yield pb.UpsertStreamResponse(batch=await self._writer.write(prepared), tag=tag)

    async def Update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        check_count(request.updates, self._limits.max_batch_items, "updates")
        self._store.check_writable()
        entry = await self._store.get(request.collection)
        changes = await entry.read(read_updates, request.updates)
        done = await entry.write(lambda: entry.collection.update(changes))
        return pb.UpdateResponse(updated=done.updated, missing_keys=done.missing, sequence=done.sequence)

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> pb.DeleteResponse:
        if bool(request.keys) == request.HasField("filter"):
            raise InvalidArgumentError("give exactly one of keys and filter", field="keys")
        condition = await given_filter(request)
        if condition is None:
            check_count(request.keys, self._limits.max_keys, "keys")
        self._store.check_writable()
        entry = await self._store.get(request.collection)
        if condition is not None:
            deleted, sequence = await entry.write(lambda: entry.collection.delete_matching(condition))
            return pb.DeleteResponse(deleted=deleted, sequence=sequence)
        keys = list(request.keys)
        deleted, sequence = await entry.write(lambda: entry.collection.delete(keys))
        return pb.DeleteResponse(deleted=deleted, sequence=sequence)

    async def Get(self, request: pb.GetRequest, context: Context) -> bytes:  # type: ignore[override]
        check_count(request.keys, self._limits.max_keys, "keys")
        entry = await self._store.get(request.collection)
        keys = list(request.keys)

        def get() -> bytes:
            found = entry.collection.get(keys)
            items = write_members(write_item(item, with_vector=request.with_vector) for item in found if item)
            missing = [key for key, item in zip(keys, found, strict=True) if item is None]
            return items + pb.GetResponse(missing_keys=missing).SerializeToString()

        return await entry.read(get)

    async def GetThumbnails(self, request: pb.GetThumbnailsRequest, context: Context) -> pb.GetThumbnailsResponse:
        check_count(request.keys, self._limits.max_batch_items, "keys")
        entry = await self._store.get(request.collection)
        keys = list(request.keys)
        found = await entry.read(lambda: entry.collection.thumbnails(keys))
        return pb.GetThumbnailsResponse(
            thumbnails=[
                pb.Thumbnail() if one is None else pb.Thumbnail(jpeg=one.jpeg, content_hash=one.content_hash)
                for one in found
            ]
        )

    async def Scroll(self, request: pb.ScrollRequest, context: Context) -> bytes:  # type: ignore[override]
        condition = await given_filter(request)
        size = request.page_size or DEFAULT_PAGE
        if size > self._limits.max_keys:
            raise InvalidArgumentError(f"page_size must be at most {self._limits.max_keys}", field="page_size")
        place = _read_token(request.page_token)
        entry = await self._store.get(request.collection)

        def page() -> bytes:
            items: list[bytes] = []
            left = self._limits.max_message_bytes // 2
            found = entry.collection.page(place, size, condition)
            for item in found.items:
                message = write_item(item, with_vector=request.with_vector).SerializeToString()
                left -= len(message)
                if items and left < 0:
                    break  # a page may be shorter than asked for, never larger than a message
                items.append(message)
            complete = found.complete and len(items) == len(found.items)
            token = "" if complete else _write_token(found.places[len(items) - 1])
            return join_members(items) + pb.ScrollResponse(next_page_token=token).SerializeToString()

        return await entry.read(page)

    async def Count(self, request: pb.CountRequest, context: Context) -> pb.CountResponse:
        condition = await given_filter(request)
        entry = await self._store.get(request.collection)
        return pb.CountResponse(count=await entry.read(lambda: entry.collection.count(condition)))

    async def Facet(self, request: pb.FacetRequest, context: Context) -> bytes:  # type: ignore[override]
        condition = await given_filter(request)
        limit = request.limit or DEFAULT_FACETS
        entry = await self._store.get(request.collection)

        def facet() -> bytes:
            found = entry.collection.facet(request.field, condition, limit)
            return write_members(pb.FacetCount(value=write_value(one.value), count=one.count) for one in found)

        return await entry.read(facet)

    async def GetMap(self, request: pb.GetMapRequest, context: Context) -> pb.GetMapResponse:
        field, known = request.field or "label", request.known_version
        entry = await self._store.get(request.collection)

        def look() -> pb.GetMapResponse:
            found = entry.collection.map(field, known)
            if found is None:
                return pb.GetMapResponse(version=known)
            return pb.GetMapResponse(
                version=found.version,
                count=len(found.codes),
                unplaced=found.unplaced,
                positions=found.positions.astype("<u2").tobytes(),
                codes=found.codes.tobytes(),
                values=[pb.FacetCount(value=write_value(one.value), count=one.count) for one in found.values],
            )

        return await entry.read(look)

    async def GetMapKeys(self, request: pb.GetMapKeysRequest, context: Context) -> pb.GetMapKeysResponse:
        check_count(request.numbers, self._limits.max_keys, "numbers")
        version, numbers = request.version, list(request.numbers)
        entry = await self._store.get(request.collection)
        return pb.GetMapKeysResponse(keys=await entry.read(lambda: entry.collection.map_keys(version, numbers)))

    async def Snapshot(self, request: pb.SnapshotRequest, context: Context) -> pb.SnapshotResponse:
        taken = await self._store.snapshot(request.collection)
        return pb.SnapshotResponse(name=taken.name, disk_bytes=taken.disk_bytes, sequence=taken.sequence)


def _write_token(place: Place) -> str:
    return f"{place.id}:{place.until}:{place.after}"


def _read_token(token: str) -> Place | None:
    if not token:
        return None
    # Endless numbers are refused before they are read, and so are other scripts' digits.
    if (found := _TOKEN.fullmatch(token)) is None:
        raise InvalidArgumentError("page_token is none that this server gave out", field="page_token")
    return Place(found[1], int(found[2]), int(found[3]))
