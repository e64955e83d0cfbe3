"""The RPCs of the contract, and long series of members cut into messages that the server accepts. Pure.

A `Call` is one RPC. A `Series` is an RPC over many members (images, queries, items): how a member becomes a message,
how messages become a request, and how the answer becomes one result per member.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value

from imagekin.client import conversions
from imagekin.errors import ImagekinError, InternalError, InvalidArgumentError
from imagekin.types import (
    FilterLike,
    ImageLike,
    Item,
    ItemUpdate,
    Method,
    Neighbour,
    Outcome,
    Prediction,
    UpdateResult,
    UpsertResult,
    Vector,
)
from imagekin.v1 import collections_pb2 as collections
from imagekin.v1 import common_pb2 as common
from imagekin.v1 import embedder_pb2 as embedder
from imagekin.v1 import searcher_pb2 as searcher

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Part = TypeVar("Part", bound=Message)
Result = TypeVar("Result")
Member = TypeVar("Member")

# A page of keys or items; the server takes 10,000, but a page of 2,048-component vectors should stay below 16 MiB.
PAGE = 1000
# Thumbnails of one call, as many as items of one message.
MOST_THUMBNAILS = 256
# Neighbours of one answer, all its queries together: what a server allows by default.
NEIGHBOURS = 100_000


@dataclass(frozen=True, slots=True)
class Call(Generic[Request, Response]):
    """One unary RPC.

    Attributes:
        path: its full name on the wire.
        response: class of its answer.
        idempotent: doing it twice leaves the same state as doing it once.
    """

    path: str
    request: type[Request]
    response: type[Response]
    idempotent: bool = True


# grpc.health.v1.HealthCheckResponse is encoded as an Int32Value, with its status in field 1, and a HealthCheckRequest
# for the whole server is empty. So the client does without the package that defines them.
HEALTH = Call("/grpc.health.v1.Health/Check", Empty, Int32Value)
SERVING = 1
EMBED = Call("/imagekin.v1.Embedder/Embed", embedder.EmbedRequest, embedder.EmbedResponse)
LIST_MODELS = Call("/imagekin.v1.Embedder/ListModels", embedder.ListModelsRequest, embedder.ListModelsResponse)
SEARCH = Call("/imagekin.v1.Searcher/Search", searcher.SearchRequest, searcher.SearchResponse)
CLASSIFY = Call("/imagekin.v1.Searcher/Classify", searcher.ClassifyRequest, searcher.ClassifyResponse)
UPSERT = Call("/imagekin.v1.Collections/Upsert", collections.UpsertRequest, collections.UpsertResponse)
DELETE = Call("/imagekin.v1.Collections/Delete", collections.DeleteRequest, collections.DeleteResponse)
GET = Call("/imagekin.v1.Collections/Get", collections.GetRequest, collections.GetResponse)
GET_THUMBNAILS = Call(
    "/imagekin.v1.Collections/GetThumbnails", collections.GetThumbnailsRequest, collections.GetThumbnailsResponse
)
SCROLL = Call("/imagekin.v1.Collections/Scroll", collections.ScrollRequest, collections.ScrollResponse)
UPDATE = Call("/imagekin.v1.Collections/Update", collections.UpdateRequest, collections.UpdateResponse)
FACET = Call("/imagekin.v1.Collections/Facet", collections.FacetRequest, collections.FacetResponse)
COUNT = Call("/imagekin.v1.Collections/Count", collections.CountRequest, collections.CountResponse)
LIST_COLLECTIONS = Call(
    "/imagekin.v1.Collections/ListCollections", collections.ListCollectionsRequest, collections.ListCollectionsResponse
)
DESCRIBE_COLLECTION = Call(
    "/imagekin.v1.Collections/DescribeCollection",
    collections.DescribeCollectionRequest,
    collections.DescribeCollectionResponse,
)
# A repeated create or drop is answered ALREADY_EXISTS or NOT_FOUND, which would hide that the first one succeeded.
CREATE_COLLECTION = Call(
    "/imagekin.v1.Collections/CreateCollection",
    collections.CreateCollectionRequest,
    collections.CreateCollectionResponse,
    idempotent=False,
)
SNAPSHOT = Call(
    "/imagekin.v1.Collections/Snapshot",
    collections.SnapshotRequest,
    collections.SnapshotResponse,
    idempotent=False,
)
DROP_COLLECTION = Call(
    "/imagekin.v1.Collections/DropCollection",
    collections.DropCollectionRequest,
    collections.DropCollectionResponse,
    idempotent=False,
)


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """Limits of one message, below those of a server's defaults.

    Attributes:
        items: members of a batch.
        bytes: of all its members together; a single larger member travels alone.
    """

    items: int = 64
    bytes: int = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Series(Generic[Member, Part, Request, Response, Result]):
    """An RPC over many members.

    Attributes:
        call: the RPC.
        noun: what a member is called in an error.
        part: makes a member's message; an error that it raises is that member's result.
        build: makes a request of some parts.
        read: reads an answer as one result or error per part, in order.
        most: members of one message, where the size of the answers requires fewer than the limits allow.
    """

    call: Call[Request, Response]
    noun: str
    part: Callable[[Member], Part]
    build: Callable[[Sequence[Part]], Request]
    read: Callable[[Response], Sequence[Result | ImagekinError]]
    most: int = 2**31


@dataclass(frozen=True, slots=True)
class Batch(Generic[Part]):
    """Members that travel in one message.

    Attributes:
        slots: each member's part or its error.
        is_last: no further batch follows.
    """

    slots: list[Part | ImagekinError]
    is_last: bool = False

    @property
    def parts(self) -> list[Part]:
        """Parts that travel."""
        return [slot for slot in self.slots if not isinstance(slot, ImagekinError)]


def cut(
    series: Series[Member, Part, Request, Response, Result], members: Iterable[Member], limits: MessageLimits
) -> Iterator[Batch[Part]]:
    """Cut members into batches within the limits, reading no further ahead than one batch and one member."""
    most = max(1, min(limits.items, series.most))
    slots: list[Part | ImagekinError] = []
    size = 0
    for member in members:
        slot: Part | ImagekinError
        try:
            slot = series.part(member)
            weight = slot.ByteSize()
        except ImagekinError as error:
            slot, weight = error, 0
        except UnicodeEncodeError as error:
            # For example a file name in another encoding, used as a key.
            slot, weight = InvalidArgumentError(f"{error.object[:200]!r} cannot be written as UTF-8"), 0
        if slots and (len(slots) >= most or size + weight > limits.bytes):
            yield Batch(slots)
            slots, size = [], 0
        slots.append(slot)
        size += weight
    if slots:
        yield Batch(slots, is_last=True)


def placed(batch: Batch[Part], results: Sequence[Result | ImagekinError]) -> list[Result | ImagekinError]:
    """Return one result per member of the batch: the server's, or the error for which it was not sent."""
    if len(results) != len(batch.parts):
        raise InternalError(f"the server answered {len(results)} of {len(batch.parts)} members of a batch")
    answers = iter(results)
    return [slot if isinstance(slot, ImagekinError) else next(answers) for slot in batch.slots]


def located(error: ImagekinError, noun: str, place: int) -> ImagekinError:
    """Return a copy of a member's error whose message names the member."""
    copied = copy.copy(error)
    copied.args = (f"{noun}[{place}]: {error}",)
    return copied


EmbedSeries = Series[Member, common.Image, embedder.EmbedRequest, embedder.EmbedResponse, Vector]
SearchSeries = Series[Member, common.Query, searcher.SearchRequest, searcher.SearchResponse, list[Neighbour]]
ClassifySeries = Series[Member, common.Query, searcher.ClassifyRequest, searcher.ClassifyResponse, Prediction]
UpsertSeries = Series[Item, common.Item, collections.UpsertRequest, collections.UpsertResponse, tuple[Outcome, int]]


def embed_series(model: str) -> EmbedSeries[ImageLike | ImagekinError]:
    """Return the series that embeds images."""
    return Series(
        EMBED,
        "images",
        conversions.image_message,
        lambda images: embedder.EmbedRequest(images=images, model=model),
        conversions.embeddings_from,
    )


@dataclass(frozen=True, slots=True)
class SearchParameters:
    """Parameters of a search beside its queries, see imagekin.v1.SearchRequest."""

    collection: str
    k: int
    filter: FilterLike | None = None
    min_similarity: float | None = None
    with_payload: bool = False
    with_vector: bool = False
    group_by: str = ""
    group_size: int = 0
    diversity: float = 0.0


def search_series(noun: str, part: Callable[[Member], common.Query], asked: SearchParameters) -> SearchSeries[Member]:
    """Return the series that searches; fewer queries travel together when their answers are large."""
    conversions.bounded("k", asked.k, 1, 10_000 if asked.min_similarity is None else NEIGHBOURS)
    conversions.bounded("group_size", asked.group_size, 0, 100)
    condition = conversions.filter_message(asked.filter)
    answer = asked.k * (64 + 4096 * asked.with_vector + 1024 * asked.with_payload)

    def build(queries: Sequence[common.Query]) -> searcher.SearchRequest:
        return searcher.SearchRequest(
            collection=asked.collection,
            queries=queries,
            k=asked.k,
            filter=condition,
            min_similarity=asked.min_similarity,
            with_payload=asked.with_payload,
            with_vector=asked.with_vector,
            group_by=asked.group_by,
            group_size=asked.group_size,
            diversity=asked.diversity,
        )

    most = max(1, min(MessageLimits().bytes // answer, NEIGHBOURS // asked.k))
    return Series(SEARCH, noun, part, build, conversions.neighbours_from, most)


@dataclass(frozen=True, slots=True)
class ClassifyParameters:
    """Parameters of a classification beside its queries, see imagekin.v1.ClassifyRequest."""

    collection: str
    method: Method = "knn"
    k: int = 0
    temperature: float = 0.0
    min_similarity: float | None = None
    min_confidence: float = 0.0
    filter: FilterLike | None = None
    leave_one_out: bool = False


def classify_series(
    noun: str, part: Callable[[Member], common.Query], asked: ClassifyParameters
) -> ClassifySeries[Member]:
    """Return the series that classifies."""
    conversions.bounded("k", asked.k, 0, 10_000)
    method = conversions.classify_method(asked.method)
    condition = conversions.filter_message(asked.filter)

    def build(queries: Sequence[common.Query]) -> searcher.ClassifyRequest:
        return searcher.ClassifyRequest(
            collection=asked.collection,
            queries=queries,
            method=method,
            k=asked.k,
            temperature=asked.temperature,
            min_similarity=asked.min_similarity,
            min_confidence=asked.min_confidence,
            filter=condition,
            leave_one_out=asked.leave_one_out,
        )

    return Series(CLASSIFY, noun, part, build, conversions.predictions_from)


def upsert_series(collection: str) -> UpsertSeries:
    """Return the series that writes items."""
    return Series(
        UPSERT,
        "items",
        conversions.item_message,
        lambda items: collections.UpsertRequest(collection=collection, items=items),
        conversions.outcomes_from,
    )


def delete_requests(
    collection: str, keys: Iterable[str] | None, condition: FilterLike | None
) -> list[collections.DeleteRequest]:
    """Return the requests that delete by key, in pages, or by filter."""
    if (keys is None) == (condition is None):
        raise InvalidArgumentError("delete needs keys or a filter, and not both", field="keys")
    if keys is None:
        return [collections.DeleteRequest(collection=collection, filter=conversions.filter_message(condition))]
    return [collections.DeleteRequest(collection=collection, keys=page) for page in pages(keys)]


def update_requests(collection: str, updates: Iterable[ItemUpdate]) -> Iterator[collections.UpdateRequest]:
    """Yield the requests that change labels and payloads, as many changes in each as a message holds."""
    series: list[collections.ItemUpdate] = []
    size = 0
    limits = MessageLimits()
    for update in updates:
        message = conversions.update_message(update)
        if series and (len(series) >= limits.items or size + message.ByteSize() > limits.bytes):
            yield collections.UpdateRequest(collection=collection, updates=series)
            series, size = [], 0
        series.append(message)
        size += message.ByteSize()
    if series:
        yield collections.UpdateRequest(collection=collection, updates=series)


def upserted(results: Iterable[tuple[Outcome, int] | ImagekinError]) -> UpsertResult:
    """Return the outcomes of items that took several messages, with the sequence number of the last write."""
    outcomes: list[Outcome | ImagekinError] = []
    sequence = 0
    for result in results:
        if isinstance(result, ImagekinError):
            outcomes.append(result)
        else:
            outcomes.append(result[0])
            sequence = max(sequence, result[1])
    return UpsertResult(tuple(outcomes), sequence)


def updated(answers: Iterable[collections.UpdateResponse]) -> UpdateResult:
    """Return the result of updates that took several messages."""
    count, sequence = 0, 0
    missing: list[str] = []
    for answer in answers:
        count += answer.updated
        missing += answer.missing_keys
        sequence = max(sequence, answer.sequence)
    return UpdateResult(count, tuple(missing), sequence)


def facet_request(collection: str, field: str, condition: FilterLike | None, limit: int) -> collections.FacetRequest:
    """Return the request that counts the values of a field."""
    conversions.bounded("limit", limit, 1, 10_000)
    return collections.FacetRequest(
        collection=collection, field=field, filter=conversions.filter_message(condition), limit=limit
    )


def pages(keys: Iterable[str], size: int = PAGE) -> list[list[str]]:
    """Cut keys into pages; a single string is one key."""
    series = [keys] if isinstance(keys, str) else list(keys)
    return [series[start : start + size] for start in range(0, len(series), size)]
