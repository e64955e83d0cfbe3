"""Write to a server as to a local collection, for batch indexing."""

from collections.abc import Iterator, Sequence
from itertools import islice

from imagekin import types
from imagekin.client.sync_client import Client
from imagekin.errors import FailedPreconditionError, InternalError, NotFoundError
from imagekin.index.types import VectorItem
from imagekin.types import CollectionInfo, ItemUpdate, UpdateResult, UpsertResult


class ClientSink:
    """Collection of a server with the interface of `imagekin.index.ingest.pipeline.Sink`.

    Args:
        client: connected to the server.
        collection: the collection's name.
    """

    def __init__(self, client: Client, collection: str) -> None:
        self._client = client
        self._collection = collection
        self._scrolled: Iterator[types.StoredItem] | None = None

    def content_hashes(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        """Return the content hash of each of `keys` that exists; None when it is not known."""
        found = self._client.get(self._collection, keys)
        return {item.key: item.content_hash for item in found if item is not None}

    def get(self, keys: Sequence[str]) -> list[types.StoredItem | None]:
        """Return the items of `keys` in their order, None for a key that does not exist."""
        return self._client.get(self._collection, keys)

    def scroll(self, after_sequence: int, limit: int) -> list[types.StoredItem]:
        """Return the next `limit` items; `after_sequence` 0 begins again."""
        if after_sequence == 0 or self._scrolled is None:
            self._scrolled = self._client.scroll(self._collection)
        return list(islice(self._scrolled, limit))

    def update(self, changes: Sequence[ItemUpdate]) -> UpdateResult:
        """Change labels and payloads; on the server's disk when it returns."""
        return self._client.update(
            self._collection, [types.ItemUpdate(change.key, change.label, change.payload) for change in changes]
        )

    def delete(self, keys: Sequence[str]) -> int:
        """Delete items; gone from the server's disk when it returns."""
        return self._client.delete(self._collection, keys)

    def upsert(self, items: Sequence[VectorItem]) -> UpsertResult:
        """Write items with their vectors; on the server's disk when it returns."""
        sent = (
            types.Item(
                key=item.key,
                vector=item.vector,
                label=item.label,
                payload=item.payload,
                content_hash=item.content_hash,
                thumbnail=item.thumbnail,
            )
            for item in items
        )
        written = self._client.upsert(self._collection, sent)
        if len(written.outcomes) != len(items):
            raise InternalError("the server did not say what became of every item")
        return written


def remote_collection(
    client: Client, name: str, *, space: str, dim: int, index_kind: str = "auto", thumbnail_size: int = 0
) -> CollectionInfo:
    """Return the server's collection, created if it does not exist.

    Raises:
        FailedPreconditionError: it holds the embeddings of another model.
    """
    try:
        info = client.collection(name)
    except NotFoundError:
        info = client.create_collection(
            name, space=space, dim=dim, index_kind=index_kind, thumbnail_size=thumbnail_size
        )
    check_space(info, space)
    return info


def check_space(info: CollectionInfo, space: str) -> None:
    """Raise FailedPreconditionError, naming both spaces, unless the collection is of `space`."""
    if info.space != space:
        raise FailedPreconditionError(
            f"collection {info.name!r} holds embeddings of space {info.space}, the model makes {space}: "
            "index with the model that it was made with, or choose another name"
        )
