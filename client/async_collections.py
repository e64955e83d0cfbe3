"""The part of the async client that keeps collections, and lists the models."""

from collections.abc import AsyncGenerator, Iterable

from imagekin.client import calls, conversions
from imagekin.client.async_transport import AsyncTransport
from imagekin.types import (
    CollectionInfo,
    Errors,
    FacetCount,
    FilterLike,
    Item,
    ItemUpdate,
    Model,
    Snapshot,
    StoredItem,
    Thumbnail,
    UpdateResult,
    UpsertResult,
)
from imagekin.v1 import collections_pb2, embedder_pb2


class AsyncCollectionCalls:
    """Methods of the client that read and write collections; see `AsyncClient`."""

    _transport: AsyncTransport

    # Items.

    async def upsert(self, collection: str, items: Iterable[Item], *, errors: Errors = "raise") -> UpsertResult:
        """Insert items, or replace those whose key exists; on disk when it returns.

        Args:
            collection: the collection's name.
            items: the items, each with an image or a vector.
            errors: see the class. With `raise` the items of other messages may have been written all the same.
        """
        results = await self._transport.collect(calls.upsert_series(collection), items, errors)
        return calls.upserted(results)

    async def update(self, collection: str, updates: Iterable[ItemUpdate]) -> UpdateResult:
        """Change labels or payloads and leave the vectors alone; on disk when it returns.

        Args:
            collection: the collection's name.
            updates: the changes. Those that come before one that is refused may have been made.
        """
        requests = calls.update_requests(collection, updates)
        answers = [await self._transport.call(calls.UPDATE, request) for request in requests]
        return calls.updated(answers)

    async def delete(
        self,
        collection: str,
        keys: Iterable[str] | None = None,
        *,
        filter: FilterLike | None = None,  # noqa: A002
    ) -> int:
        """Delete items by key or by filter and return how many existed."""
        requests = calls.delete_requests(collection, keys, filter)
        answers = [await self._transport.call(calls.DELETE, request) for request in requests]
        return sum(answer.deleted for answer in answers)

    async def get(self, collection: str, keys: Iterable[str], *, with_vector: bool = False) -> list[StoredItem | None]:
        """Return the item of each key in order, None where there is none."""
        found: list[StoredItem | None] = []
        for page in calls.pages(keys):
            request = collections_pb2.GetRequest(collection=collection, keys=page, with_vector=with_vector)
            found += conversions.found_from(await self._transport.call(calls.GET, request), page)
        return found

    async def thumbnails(self, collection: str, keys: Iterable[str]) -> list[Thumbnail | None]:
        """Return a small picture of each item in order, None where there is no item or it has none."""
        found: list[Thumbnail | None] = []
        for page in calls.pages(keys, calls.MOST_THUMBNAILS):
            request = collections_pb2.GetThumbnailsRequest(collection=collection, keys=page)
            found += conversions.thumbnails_from(await self._transport.call(calls.GET_THUMBNAILS, request))
        return found

    async def scroll(
        self,
        collection: str,
        *,
        filter: FilterLike | None = None,  # noqa: A002
        with_vector: bool = False,
        page_size: int = calls.PAGE,
    ) -> AsyncGenerator[StoredItem, None]:
        """Yield all items in the order of their last write, fetching a page at a time."""
        conversions.bounded("page_size", page_size, 1, 10_000)
        request = collections_pb2.ScrollRequest(
            collection=collection,
            page_size=page_size,
            filter=conversions.filter_message(filter),
            with_vector=with_vector,
        )
        while True:
            page = await self._transport.call(calls.SCROLL, request)
            for item in page.items:
                yield conversions.stored_from(item)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def count(self, collection: str, *, filter: FilterLike | None = None) -> int:  # noqa: A002
        """Return the number of items, or of those that match."""
        request = collections_pb2.CountRequest(collection=collection, filter=conversions.filter_message(filter))
        answer = await self._transport.call(calls.COUNT, request)
        return answer.count

    async def facet(
        self,
        collection: str,
        field: str,
        *,
        filter: FilterLike | None = None,  # noqa: A002
        limit: int = 100,
    ) -> list[FacetCount]:
        """Count how often each value of a field occurs, the most frequent first.

        Args:
            collection: the collection's name.
            field: `label` or `payload.` and a dotted path; texts, numbers and truth values are counted.
            filter: only items that match are counted.
            limit: at most so many values, 1 to 10,000.
        """
        request = calls.facet_request(collection, field, filter, limit)
        return conversions.facets_from(await self._transport.call(calls.FACET, request))

    # Collections and models.

    async def collections(self) -> list[CollectionInfo]:
        """Return all collections, by name."""
        answer = await self._transport.call(calls.LIST_COLLECTIONS, collections_pb2.ListCollectionsRequest())
        return [conversions.collection_from(one) for one in answer.collections]

    async def collection(self, name: str) -> CollectionInfo:
        """Return one collection; raises NotFoundError when there is none of that name."""
        request = collections_pb2.DescribeCollectionRequest(name=name)
        answer = await self._transport.call(calls.DESCRIBE_COLLECTION, request)
        return conversions.collection_from(answer.collection)

    async def create_collection(
        self,
        name: str,
        *,
        model: str = "",
        space: str = "",
        dim: int = 0,
        index_kind: str = "",
        thumbnail_size: int = 0,
    ) -> CollectionInfo:
        """Create an empty collection.

        Args:
            name: 1 to 64 of a–z, 0–9, `_` and `-`, beginning with a letter or digit.
            model: the model whose embeddings it holds; empty takes the server's default model.
            space: for vectors of a model that the server does not have: the id of their embedding space.
            dim: their number of components; required with `space`.
            index_kind: `auto`, `flat`, `hnsw`, `ivf` or `pq`; empty means `auto`.
            thumbnail_size: pixels of the longer side of the thumbnails that it keeps of images; 0 keeps none.
        """
        conversions.bounded("dim", dim, 0, 65_536)
        conversions.bounded("thumbnail_size", thumbnail_size, 0, 1_024)
        request = collections_pb2.CreateCollectionRequest(
            name=name, model=model, space=space, dim=dim, index_kind=index_kind, thumbnail_size=thumbnail_size
        )
        answer = await self._transport.call(calls.CREATE_COLLECTION, request)
        return conversions.collection_from(answer.collection)

    async def drop_collection(self, name: str) -> int:
        """Remove a collection for good and return how many items it held."""
        answer = await self._transport.call(calls.DROP_COLLECTION, collections_pb2.DropCollectionRequest(name=name))
        return answer.count

    async def snapshot(self, name: str) -> Snapshot:
        """Copy a collection as of now into the server's snapshot folder; it is served and written meanwhile."""
        answer = await self._transport.call(calls.SNAPSHOT, collections_pb2.SnapshotRequest(collection=name))
        return Snapshot(name=answer.name, disk_bytes=answer.disk_bytes, sequence=answer.sequence)

    async def models(self) -> list[Model]:
        """Return the models that the server has loaded, the default one first."""
        answer = await self._transport.call(calls.LIST_MODELS, embedder_pb2.ListModelsRequest())
        return [conversions.model_from(one) for one in answer.models]
