"""The sync client: what an application calls to embed, search, classify and keep images on an imagekin server.

Everything but the waiting is shared with `imagekin.client.async_client`: messages, batches, errors and retries are pure
functions.
"""

from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from imagekin.client import calls, channel, conversions, query_inputs, retries
from imagekin.client.image_inputs import as_images
from imagekin.client.sync_transport import Transport
from imagekin.errors import ImagekinError
from imagekin.types import (
    CollectionInfo,
    Errors,
    Examples,
    FacetCount,
    FilterLike,
    ImageLike,
    Item,
    ItemUpdate,
    Method,
    Model,
    Neighbour,
    Outcome,
    Prediction,
    Snapshot,
    StoredItem,
    UpdateResult,
    Upserted,
    Vector,
)
from imagekin.v1 import collections_pb2, embedder_pb2


class Client:
    """A connection to an imagekin server. Safe to share between threads; close it or use it as a context manager.

    Series of any length are cut into messages that the server takes, several of which are under way at once; results
    come in the order of the members. With `errors="raise"` the first member that was not served raises its error; with
    `errors="return"` the error stands in its place. A call that fails as a whole always raises.

    Every method raises ImagekinErrors only: UnavailableError when there is no server, DeadlineExceededError after
    `timeout`, InvalidArgumentError, NotFoundError, FailedPreconditionError, … as the server answers.
    """

    def __init__(
        self,
        address: str = "localhost:50051",
        *,
        token: str | None = None,
        tls: channel.TlsLike = False,
        timeout: float = 60.0,
        in_flight: int = 4,
        limits: calls.Limits | None = None,
        retry: retries.RetryPolicy | None = None,
    ) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            address: HOST:PORT.
            token: bearer token, sent with every call; use it with `tls` beyond the own machine.
            tls: True for the system's certificates, a PEM file of certificates to trust, or `imagekin.Tls`.
            timeout: seconds that one message may take, tries after a failure included.
            in_flight: messages of one series that are under way at once.
            limits: what one message may hold.
            retry: when a failed call is tried again.
        """
        connection = channel.connection(address, token, tls, timeout, in_flight, limits, retry)
        self.address = connection.address
        self._transport = Transport(connection)

    def __repr__(self) -> str:
        return f"Client({self.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls under way end with CancelledError. Safe to call twice."""
        self._transport.close()

    # Embed.

    @overload
    def embed(
        self, images: ImageLike | Iterable[ImageLike], *, model: str = "", errors: Literal["raise"] = "raise"
    ) -> Vector: ...
    @overload
    def embed(
        self, images: ImageLike | Iterable[ImageLike], *, model: str = "", errors: Literal["return"]
    ) -> list[Vector | ImagekinError]: ...
    def embed(
        self, images: ImageLike | Iterable[ImageLike], *, model: str = "", errors: Errors = "raise"
    ) -> Vector | list[Vector | ImagekinError]:
        """Embed images.

        Args:
            images: a series of paths, bytes, arrays or Pillow images, or a single one.
            model: the model's name; empty takes the server's default model.
            errors: see the class.

        Returns:
            float32 [N, D], unit length, in order ([0, 0] for no images); with `errors="return"` a list of N, each a
            float32 [D] or the image's error.
        """
        results = self.iter_embed(images, model=model)
        if errors == "return":
            return list(results)
        rows = list(calls.unwrap(results, "images"))
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    def iter_embed(
        self, images: ImageLike | Iterable[ImageLike | ImagekinError], *, model: str = ""
    ) -> Generator[Vector | ImagekinError, None, None]:
        """Yield the embedding (float32 [D]) or the error of each image, holding only a few batches in memory.

        An error among the images comes out in its place.
        """
        return self._transport.results(calls.embed_series(model), as_images(images))

    # Search and classify.

    @overload
    def search(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        examples: Examples | Iterable[Examples] | None = None,
        k: int = 10,
        filter: FilterLike | None = None,
        min_similarity: float | None = None,
        with_payload: bool = False,
        with_vector: bool = False,
        group_by: str = "",
        group_size: int = 0,
        diversity: float = 0.0,
        errors: Literal["raise"] = "raise",
    ) -> list[list[Neighbour]]: ...
    @overload
    def search(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        examples: Examples | Iterable[Examples] | None = None,
        k: int = 10,
        filter: FilterLike | None = None,
        min_similarity: float | None = None,
        with_payload: bool = False,
        with_vector: bool = False,
        group_by: str = "",
        group_size: int = 0,
        diversity: float = 0.0,
        errors: Literal["return"],
    ) -> list[list[Neighbour] | ImagekinError]: ...
    def search(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        examples: Examples | Iterable[Examples] | None = None,
        k: int = 10,
        filter: FilterLike | None = None,  # noqa: A002
        min_similarity: float | None = None,
        with_payload: bool = False,
        with_vector: bool = False,
        group_by: str = "",
        group_size: int = 0,
        diversity: float = 0.0,
        errors: Errors = "raise",
    ) -> list[list[Neighbour]] | list[list[Neighbour] | ImagekinError]:
        """Find the nearest neighbours of each query. Exactly one of images, vectors, keys and examples is given.

        Args:
            images: images that the collection's model embeds first.
            collection: the collection's name.
            vectors: embeddings of the collection's space, [N, D] or [D].
            keys: keys of stored items, each of which is left out of its own answer.
            examples: stored items and vectors that the answer should resemble, and others that it should not.
            k: neighbours per query, 1 to 10,000, with `min_similarity` (and neither groups nor diversity) to 100,000;
                fewer only when fewer match.
            filter: only items that match are found, for example `label = "shoe" AND payload.price < 10`.
            min_similarity: leaves out neighbours that are less similar, −1 to 1.
            with_payload: fill in the neighbours' payloads.
            with_vector: fill in the neighbours' vectors.
            group_by: `label` or `payload.` and a path: at most `group_size` neighbours for each of its values.
            group_size: neighbours of one group, 1 to 100; 0 means 1.
            diversity: from 0 (only similarity) to 1 (only diversity), by maximal marginal relevance; k is then at most
                200.
            errors: see the class.

        Returns:
            For each query its neighbours, most similar first; with `errors="return"` or its error.
        """
        asked = calls.SearchParameters(
            collection, k, filter, min_similarity, with_payload, with_vector, group_by, group_size, diversity
        )
        noun, part, members = query_inputs.choose(images, vectors, keys, examples)
        results = self._transport.results(calls.search_series(noun, part, asked), members)
        return list(results) if errors == "return" else list(calls.unwrap(results, noun))

    def iter_search(
        self, images: Iterable[ImageLike | ImagekinError], asked: calls.SearchParameters
    ) -> Generator[list[Neighbour] | ImagekinError, None, None]:
        """Yield the neighbours or the error of each image, holding only a few batches in memory."""
        return self._transport.results(calls.search_series("images", conversions.image_query, asked), images)

    @overload
    def classify(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        method: Method = "knn",
        k: int = 0,
        temperature: float = 0.0,
        min_similarity: float | None = None,
        min_confidence: float = 0.0,
        filter: FilterLike | None = None,
        leave_one_out: bool = False,
        errors: Literal["raise"] = "raise",
    ) -> list[Prediction]: ...
    @overload
    def classify(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        method: Method = "knn",
        k: int = 0,
        temperature: float = 0.0,
        min_similarity: float | None = None,
        min_confidence: float = 0.0,
        filter: FilterLike | None = None,
        leave_one_out: bool = False,
        errors: Literal["return"],
    ) -> list[Prediction | ImagekinError]: ...
    def classify(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        method: Method = "knn",
        k: int = 0,
        temperature: float = 0.0,
        min_similarity: float | None = None,
        min_confidence: float = 0.0,
        filter: FilterLike | None = None,  # noqa: A002
        leave_one_out: bool = False,
        errors: Errors = "raise",
    ) -> list[Prediction] | list[Prediction | ImagekinError]:
        """Name the class of each query. Exactly one of images, vectors and keys is given.

        Args:
            images: images that the collection's model embeds first.
            collection: the collection whose labelled items decide.
            vectors: embeddings of the collection's space, [N, D] or [D].
            keys: keys of stored items, which do not vote for themselves.
            method: `knn` (votes of the nearest labelled items), `prototype` (nearest class mean) or `linear` (the
                model's own head; images only).
            k: neighbours that vote, 0 for the server's default of 20.
            temperature: softmax temperature, 0 for the server's default.
            min_similarity: answer "unknown" when the nearest labelled item is less similar, −1 to 1.
            min_confidence: answer "unknown" when the confidence is lower, 0 to 1.
            filter: only items that match vote.
            leave_one_out: items that are the query image itself do not vote.
            errors: see the class.

        Returns:
            For each query a Prediction, whose label is None for "unknown"; with `errors="return"` or its error.
        """
        asked = calls.ClassifyParameters(
            collection, method, k, temperature, min_similarity, min_confidence, filter, leave_one_out
        )
        noun, part, members = query_inputs.choose(images, vectors, keys)
        results = self._transport.results(calls.classify_series(noun, part, asked), members)
        return list(results) if errors == "return" else list(calls.unwrap(results, noun))

    def iter_classify(
        self, images: Iterable[ImageLike | ImagekinError], asked: calls.ClassifyParameters
    ) -> Generator[Prediction | ImagekinError, None, None]:
        """Yield the prediction or the error of each image, holding only a few batches in memory."""
        return self._transport.results(calls.classify_series("images", conversions.image_query, asked), images)

    # Items.

    def upsert(self, collection: str, items: Iterable[Item], *, errors: Errors = "raise") -> Upserted:
        """Insert items, or replace those whose key exists; on disk when it returns.

        Args:
            collection: the collection's name.
            items: the items, each with an image or a vector.
            errors: see the class. With `raise` the items of other messages may have been written all the same.
        """
        results = self._transport.results(calls.upsert_series(collection), items)
        written = results if errors == "return" else calls.unwrap(results, "items")
        outcomes: list[Outcome | ImagekinError] = []
        sequence = 0
        for result in written:
            if isinstance(result, ImagekinError):
                outcomes.append(result)
            else:
                outcomes.append(result[0])
                sequence = max(sequence, result[1])
        return Upserted(tuple(outcomes), sequence)

    def update(self, collection: str, updates: Iterable[ItemUpdate]) -> UpdateResult:
        """Change labels or payloads and leave the vectors alone; on disk when it returns.

        Args:
            collection: the collection's name.
            updates: the changes. Those that come before one that is refused may have been made.
        """
        requests = calls.update_requests(collection, updates)
        return calls.updated(self._transport.call(calls.UPDATE, request) for request in requests)

    def delete(self, collection: str, keys: Iterable[str] | None = None, *, filter: FilterLike | None = None) -> int:  # noqa: A002
        """Delete items by key or by filter and return how many existed."""
        requests = calls.delete_requests(collection, keys, filter)
        return sum(self._transport.call(calls.DELETE, request).deleted for request in requests)

    def get(self, collection: str, keys: Iterable[str], *, with_vector: bool = False) -> list[StoredItem | None]:
        """Return the item of each key in order, None where there is none."""
        found: list[StoredItem | None] = []
        for page in calls.pages(keys):
            request = collections_pb2.GetRequest(collection=collection, keys=page, with_vector=with_vector)
            found += conversions.found_from(self._transport.call(calls.GET, request), page)
        return found

    def scroll(
        self,
        collection: str,
        *,
        filter: FilterLike | None = None,  # noqa: A002
        with_vector: bool = False,
        page_size: int = calls.PAGE,
    ) -> Iterator[StoredItem]:
        """Yield all items in the order of their last write, fetching a page at a time."""
        conversions.bounded("page_size", page_size, 1, 10_000)
        request = collections_pb2.ScrollRequest(
            collection=collection,
            page_size=page_size,
            filter=conversions.filter_message(filter),
            with_vector=with_vector,
        )
        while True:
            page = self._transport.call(calls.SCROLL, request)
            yield from map(conversions.stored_from, page.items)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def count(self, collection: str, *, filter: FilterLike | None = None) -> int:  # noqa: A002
        """Return the number of items, or of those that match."""
        request = collections_pb2.CountRequest(collection=collection, filter=conversions.filter_message(filter))
        return self._transport.call(calls.COUNT, request).count

    def facet(
        self,
        collection: str,
        field: str,
        *,
        filter: FilterLike | None = None,  # noqa: A002
        limit: int = 100,
    ) -> list[FacetCount]:
        """Return how often each value of a field occurs, the most frequent first.

        Args:
            collection: the collection's name.
            field: `label` or `payload.` and a dotted path; texts, numbers and truth values are counted.
            filter: only items that match are counted.
            limit: at most so many values, 1 to 10,000.
        """
        request = calls.facet_request(collection, field, filter, limit)
        return conversions.facets_from(self._transport.call(calls.FACET, request))

    # Collections and models.

    def collections(self) -> list[CollectionInfo]:
        """Return all collections, by name."""
        answer = self._transport.call(calls.LIST_COLLECTIONS, collections_pb2.ListCollectionsRequest())
        return [conversions.collection_from(one) for one in answer.collections]

    def collection(self, name: str) -> CollectionInfo:
        """Return one collection; raises NotFoundError when there is none of that name."""
        request = collections_pb2.DescribeCollectionRequest(name=name)
        return conversions.collection_from(self._transport.call(calls.DESCRIBE_COLLECTION, request).collection)

    def create_collection(
        self, name: str, *, model: str = "", space: str = "", dim: int = 0, index_kind: str = ""
    ) -> CollectionInfo:
        """Make an empty collection.

        Args:
            name: 1 to 64 of a–z, 0–9, `_` and `-`, beginning with a letter or digit.
            model: the model whose embeddings it holds; empty takes the server's default model.
            space: for vectors of a model that the server does not have: the id of their embedding space.
            dim: their number of components; required with `space`.
            index_kind: `auto`, `flat`, `hnsw`, `ivf` or `pq`; empty means `auto`.
        """
        conversions.bounded("dim", dim, 0, 65_536)
        request = collections_pb2.CreateCollectionRequest(
            name=name, model=model, space=space, dim=dim, index_kind=index_kind
        )
        return conversions.collection_from(self._transport.call(calls.CREATE_COLLECTION, request).collection)

    def drop_collection(self, name: str) -> int:
        """Remove a collection for good and return how many items it held."""
        return self._transport.call(calls.DROP_COLLECTION, collections_pb2.DropCollectionRequest(name=name)).count

    def snapshot(self, name: str) -> Snapshot:
        """Let the server copy a collection as of now into its snapshot folder, while it is served."""
        answer = self._transport.call(calls.SNAPSHOT, collections_pb2.SnapshotRequest(collection=name))
        return Snapshot(answer.name, answer.disk_bytes, answer.sequence)

    def models(self) -> list[Model]:
        """Return the models that the server has loaded, the default one first."""
        answer = self._transport.call(calls.LIST_MODELS, embedder_pb2.ListModelsRequest())
        return [conversions.model_from(one) for one in answer.models]

    # Health.

    def health(self) -> bool:
        """Return whether the server says that it is serving; raises UnavailableError when it cannot be reached."""
        return self._transport.healthy()

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server is serving; raises UnavailableError when it is not within `timeout` seconds."""
        self._transport.wait_ready(timeout)
