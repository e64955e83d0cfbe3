"""Convert Python values to protobuf messages, and the messages of an answer to Python values. Pure."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagekin.client.image_inputs import image_bytes
from imagekin.client.retries import item_error
from imagekin.errors import ImagekinError, InternalError, InvalidArgumentError
from imagekin.types import (
    CollectionInfo,
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
    StoredItem,
    Thumbnail,
    Vector,
)
from imagekin.v1 import collections_pb2, common_pb2, embedder_pb2, searcher_pb2

_METHODS = {
    "knn": searcher_pb2.ClassifyRequest.METHOD_KNN,
    "prototype": searcher_pb2.ClassifyRequest.METHOD_PROTOTYPE,
    "linear": searcher_pb2.ClassifyRequest.METHOD_LINEAR,
}
_OUTCOMES = {
    collections_pb2.UpsertResult.OUTCOME_INSERTED: Outcome.INSERTED,
    collections_pb2.UpsertResult.OUTCOME_REPLACED: Outcome.REPLACED,
}


# Requests.


def image_message(image: ImageLike | ImagekinError) -> common_pb2.Image:
    """Return the message of an image; raises as `imagekin.client.image_inputs.image_bytes` does."""
    return common_pb2.Image(data=image_bytes(image))


def vector_message(vector: Any) -> common_pb2.Vector:
    """Return the message of a vector, [D] of any real type; raises InvalidArgumentError when it is no vector."""
    try:
        array = np.asarray(vector, dtype="<f4")
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"no vector of numbers: {error}", field="vector") from error
    if array.ndim != 1 or array.size == 0:
        raise InvalidArgumentError(f"an array of shape {list(array.shape)} is no vector [D]", field="vector")
    if not np.isfinite(array).all():
        raise InvalidArgumentError("the vector has components that are not finite", field="vector")
    return common_pb2.Vector(data=array.tobytes(), dim=array.size)


def image_query(image: ImageLike | ImagekinError) -> common_pb2.Query:
    """Return the query by an image."""
    return common_pb2.Query(image=image_message(image))


def vector_query(vector: Any) -> common_pb2.Query:
    """Return the query by a vector [D]."""
    return common_pb2.Query(vector=vector_message(vector))


def key_query(key: str) -> common_pb2.Query:
    """Return the query by the key of a stored item."""
    return common_pb2.Query(key=key)


def examples_query(examples: Examples) -> common_pb2.Query:
    """Return the query by examples; raises InvalidArgumentError when there is no positive one."""
    if not examples.positive_keys and not len(examples.positive_vectors):
        raise InvalidArgumentError("examples need at least one positive one", field="examples")
    return common_pb2.Query(
        examples=common_pb2.Examples(
            positive_keys=examples.positive_keys,
            positive_vectors=[vector_message(vector) for vector in examples.positive_vectors],
            negative_keys=examples.negative_keys,
            negative_vectors=[vector_message(vector) for vector in examples.negative_vectors],
        )
    )


def update_message(update: ItemUpdate) -> collections_pb2.ItemUpdate:
    """Return the message of a change: an empty label or payload removes it, None leaves it alone."""
    payload = update.payload
    return collections_pb2.ItemUpdate(
        key=update.key,
        label=update.label,
        payload_json=None if payload is None else payload_json(payload) if payload else "",
    )


def item_message(item: Item) -> common_pb2.Item:
    """Return the message of an item to write; raises InvalidArgumentError unless it has one of image and vector."""
    if (item.image is None) == (item.vector is None):
        raise InvalidArgumentError(f"item {item.key!r} needs an image or a vector, and not both", field="content")
    return common_pb2.Item(
        key=item.key,
        image=None if item.image is None else image_message(item.image),
        vector=None if item.vector is None else vector_message(item.vector),
        label=item.label,
        payload_json=payload_json(item.payload),
        content_hash=item.content_hash or b"",
        thumbnail=item.thumbnail or b"",
    )


def payload_json(payload: Mapping[str, Any] | None) -> str:
    """Return a payload as JSON, empty for none; raises InvalidArgumentError when JSON cannot hold it."""
    if payload is None:
        return ""
    try:
        return json.dumps(dict(payload), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"the payload is no JSON object: {error}", field="payload_json") from error


def filter_message(condition: FilterLike | None) -> common_pb2.Filter | None:
    """Return the message of a filter, None for none."""
    if condition is None or condition == "":
        return None
    if isinstance(condition, str):
        return common_pb2.Filter(text=condition)
    return common_pb2.Filter(condition=condition)


def classify_method(method: Method) -> searcher_pb2.ClassifyRequest.Method.ValueType:
    """Return the method's number; raises InvalidArgumentError for an unknown name."""
    if method not in _METHODS:
        raise InvalidArgumentError(f"no method {method!r}: choose one of {', '.join(_METHODS)}", field="method")
    return _METHODS[method]


def bounded(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise InvalidArgumentError unless low ≤ value ≤ high, before protobuf raises a less clear error."""
    if not low <= value <= high:
        raise InvalidArgumentError(f"{name} must be between {low:g} and {high:g}, not {value}", field=name)


# Answers.


def vector_from(data: bytes, dim: int) -> Vector:
    """Return packed little-endian float32 as float32 [dim]; raises InternalError when cut off."""
    if len(data) != 4 * dim:
        raise InternalError(f"the answer holds a vector of {len(data)} bytes where {4 * dim} were promised")
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def embeddings_from(response: embedder_pb2.EmbedResponse) -> list[Vector | ImagekinError]:
    """Return float32 [D] or the error of each image."""
    return [
        item_error(result.error) if result.HasField("error") else vector_from(result.vector, response.dim)
        for result in response.results
    ]


def neighbours_from(response: searcher_pb2.SearchResponse) -> list[list[Neighbour] | ImagekinError]:
    """Return the neighbours or the error of each query."""
    return [
        item_error(result.error) if result.HasField("error") else [neighbour_from(one) for one in result.neighbours]
        for result in response.results
    ]


def neighbour_from(message: searcher_pb2.Neighbour) -> Neighbour:
    """Return one neighbour."""
    return Neighbour(
        key=message.key,
        similarity=message.similarity,
        label=message.label if message.HasField("label") else None,
        payload=_payload_from(message.payload_json),
        vector=vector_from(message.vector.data, message.vector.dim) if message.HasField("vector") else None,
    )


def predictions_from(response: searcher_pb2.ClassifyResponse) -> list[Prediction | ImagekinError]:
    """Return the prediction or the error of each query."""
    return [
        item_error(result.error) if result.HasField("error") else _prediction_from(result.prediction)
        for result in response.results
    ]


def _prediction_from(message: searcher_pb2.Prediction) -> Prediction:
    """Return one prediction."""
    return Prediction(
        label=message.label if message.HasField("label") else None,
        confidence=message.confidence,
        nearest_similarity=message.nearest_similarity,
        votes=tuple((vote.label, vote.share) for vote in message.votes),
    )


def outcomes_from(response: collections_pb2.UpsertResponse) -> list[tuple[Outcome, int] | ImagekinError]:
    """Return the outcome of each item with the sequence number of the write, or the item's error."""
    return [
        item_error(result.error) if result.HasField("error") else (_outcome(result.outcome), response.sequence)
        for result in response.results
    ]


def _outcome(number: collections_pb2.UpsertResult.Outcome.ValueType) -> Outcome:
    if number not in _OUTCOMES:
        raise InternalError(f"the answer holds an outcome that this version does not know ({number})")
    return _OUTCOMES[number]


def facets_from(response: collections_pb2.FacetResponse) -> list[FacetCount]:
    """Return the values with their counts."""
    found = []
    for one in response.counts:
        kind = one.value.WhichOneof("kind")
        if kind is None:
            raise InternalError("the answer counts a value without a kind")
        found.append(FacetCount(getattr(one.value, kind), one.count))
    return found


def stored_from(message: common_pb2.Item) -> StoredItem:
    """Return one stored item."""
    return StoredItem(
        key=message.key,
        label=message.label if message.HasField("label") else None,
        payload=_payload_from(message.payload_json),
        content_hash=message.content_hash or None,
        sequence=message.sequence,
        vector=vector_from(message.vector.data, message.vector.dim) if message.HasField("vector") else None,
    )


def found_from(response: collections_pb2.GetResponse, keys: Sequence[str]) -> list[StoredItem | None]:
    """Return the item of each of `keys`, None where there is none."""
    found = {message.key: stored_from(message) for message in response.items}
    return [found.get(key) for key in keys]


def thumbnails_from(response: collections_pb2.GetThumbnailsResponse) -> list[Thumbnail | None]:
    """Return the thumbnails, None where there is none."""
    return [Thumbnail(one.jpeg, one.content_hash) if one.jpeg else None for one in response.thumbnails]


def collection_from(message: collections_pb2.Collection) -> CollectionInfo:
    """Return the description of a collection."""
    return CollectionInfo(
        name=message.name,
        space=message.space,
        dim=message.dim,
        count=message.count,
        labelled=message.labelled,
        sequence=message.sequence,
        index_kind=message.index_kind,
        disk_bytes=message.disk_bytes,
        created_at=message.created_at.seconds + message.created_at.nanos / 1e9,
        recall=message.recall if message.HasField("recall") else None,
        index_device=message.index_device,
        id=message.id,
        error=message.error,
        thumbnail_size=message.thumbnail_size,
    )


def model_from(message: embedder_pb2.Model) -> Model:
    """Return the description of a loaded model."""
    return Model(
        name=message.name,
        space=message.space,
        dim=message.dim,
        image_height=message.image_height,
        image_width=message.image_width,
        class_names=tuple(message.class_names),
        metadata=_payload_from(message.metadata_json) or {},
    )


def _payload_from(text: str) -> dict[str, Any] | None:
    """Return a payload's JSON object, None for an empty text; raises InternalError when it is none."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InternalError(f"the answer holds a payload that is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InternalError("the answer holds a payload that is no JSON object")
    return value
