"""Convert messages to the project's own types and back, and check all values that can be checked without state."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, NoReturn

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError
from imagekin.index import validation
from imagekin.index.types import IndexedItem
from imagekin.sources.values import CheckedPayload
from imagekin.types import CollectionInfo, ItemUpdate, Neighbour, Payload, Prediction
from imagekin.v1 import collections_pb2, common_pb2, searcher_pb2

Vector = NDArray[np.float32]


def read_vector(message: common_pb2.Vector, dim: int, field: str) -> Vector:
    """Read a vector as float32 [D] of unit length.

    Args:
        message: the vector.
        dim: number of components that it must have.
        field: the request's field, for the error.

    Raises:
        InvalidArgumentError: it has another dimension, is cut off, is not finite or is all zero.
    """
    if message.dim != dim:
        raise InvalidArgumentError(f"the vector has dim {message.dim}, the collection has {dim}", field=field)
    if len(message.data) != 4 * dim:
        wanted = f"{dim} float32 components take {4 * dim} bytes"
        raise InvalidArgumentError(f"{wanted}, the vector has {len(message.data)}", field=field)
    with located(field):
        vector: Vector = validation.unit_vectors(np.frombuffer(message.data, "<f4"), dim)[0]
    return vector


def _write_vector(vector: Vector) -> common_pb2.Vector:
    """Return float32 [D] as a message."""
    return common_pb2.Vector(data=vector.astype("<f4", copy=False).tobytes(), dim=len(vector))


def read_payload(text: str) -> CheckedPayload | None:
    """Check the JSON object of a payload; None when it is empty.

    Raises:
        InvalidArgumentError: it is too long or no JSON object.
    """
    if not text:
        return None
    if len(text.encode()) > validation.MAX_PAYLOAD_BYTES:
        raise InvalidArgumentError(f"the payload is longer than {validation.MAX_PAYLOAD_BYTES} bytes")
    try:
        payload = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        raise InvalidArgumentError("the payload is no valid JSON (RFC 8259)") from None
    if not isinstance(payload, dict):
        raise InvalidArgumentError("the payload is no JSON object")
    checked = validation.payload_text(payload)
    return None if checked is None else CheckedPayload(checked)


def _write_payload(payload: Mapping[str, Any] | None) -> str:
    """Return a payload as JSON text, empty when there is none."""
    if isinstance(payload, CheckedPayload):
        return payload.text
    return "" if payload is None else json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


def write_item(item: IndexedItem, *, with_vector: bool) -> common_pb2.Item:
    """Return a stored item as a message."""
    return common_pb2.Item(
        key=item.key,
        vector=_write_vector(item.vector) if with_vector else None,
        label=item.label,
        payload_json=_write_payload(item.payload),
        content_hash=item.content_hash or b"",
        sequence=item.sequence,
    )


def write_collection(info: CollectionInfo) -> collections_pb2.Collection:
    """Return a collection's state as a message."""
    created = Timestamp()
    created.FromNanoseconds(round(info.created_at * 1e9))
    return collections_pb2.Collection(
        name=info.name,
        space=info.space,
        dim=info.dim,
        count=info.count,
        sequence=info.sequence,
        index_kind=info.index_kind,
        disk_bytes=info.disk_bytes,
        created_at=created,
        recall=info.recall,
        labelled=info.labelled,
        index_device=info.index_device,
        thumbnail_size=info.thumbnail_size,
        id=info.id,
        error=info.error,
    )


def write_neighbour(neighbour: Neighbour) -> searcher_pb2.Neighbour:
    """Return a neighbour as a message."""
    return searcher_pb2.Neighbour(
        key=neighbour.key,
        similarity=neighbour.similarity,
        label=neighbour.label,
        payload_json=_write_payload(neighbour.payload),
        vector=None if neighbour.vector is None else _write_vector(neighbour.vector),
    )


def write_prediction(prediction: Prediction) -> searcher_pb2.Prediction:
    """Return a prediction as a message."""
    return searcher_pb2.Prediction(
        label=prediction.label,
        confidence=prediction.confidence,
        nearest_similarity=prediction.nearest_similarity,
        votes=[searcher_pb2.Vote(label=label, share=share) for label, share in prediction.votes],
    )


@contextlib.contextmanager
def located(field: str) -> Iterator[None]:
    """Add the field's place in the request to an InvalidArgumentError raised in the block."""
    try:
        yield
    except InvalidArgumentError as error:
        raise InvalidArgumentError(str(error), field=field) from None


def check_count(items: Sized, limit: int, field: str) -> None:
    """Check that a batch holds 1 to `limit` members.

    Raises:
        InvalidArgumentError: it does not.
    """
    if not 1 <= len(items) <= limit:
        raise InvalidArgumentError(f"{field} must hold 1 to {limit} members, not {len(items)}", field=field)


def check_range(value: float, low: float, high: float, field: str) -> float:
    """Check that a number lies in [low, high] and return it.

    Raises:
        InvalidArgumentError: it does not, or is not a number.
    """
    if not low <= value <= high:
        raise InvalidArgumentError(f"{field} must be {low:g} to {high:g}", field=field)
    return value


def read_updates(messages: Sequence[collections_pb2.ItemUpdate]) -> list[ItemUpdate]:
    """Read and check the changes that a request asks for.

    Raises:
        InvalidArgumentError: one cannot be made.
    """
    changes = []
    for position, message in enumerate(messages):
        with located(f"updates[{position}].key"):
            validation.key(message.key)
        label = message.label if message.HasField("label") else None
        with located(f"updates[{position}].label"):
            validation.label(label)
        payload: Payload | None = None
        if message.HasField("payload_json"):
            with located(f"updates[{position}].payload_json"):
                payload = read_payload(message.payload_json) or {}
        changes.append(ItemUpdate(message.key, label, payload))
    return changes


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
