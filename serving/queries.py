"""Turns the queries of a search or a classification into vectors: images are embedded, keys are looked up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from encoder.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KindredError,
    NotFoundError,
    UnimplementedError,
)
from kindred.v1 import common_pb2
from serving.messages import Vector, read_vector
from serving.models import Model, Models
from serving.pipeline import Embedded
from serving.store import OpenCollection

# Vectors of more bytes are read in a thread, so that they do not hold up the event loop.
_LARGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Resolved:
    """A query as a vector.

    Attributes:
        vector: float32 [D], unit length.
        key: the item that the query is, None when it is none.
        content_hash: SHA-256 of the query's image, None when it is none or not known.
        logits: float32 [C] of an image, None when the model has no linear head.
    """

    vector: Vector
    key: str | None = None
    content_hash: bytes | None = None
    logits: Vector | None = None


Resolution = Resolved | KindredError


def model_for(entry: OpenCollection, models: Models) -> Model:
    """Return the model that embeds images for a collection.

    Raises:
        FailedPreconditionError: no loaded model embeds into the collection's space.
    """
    model = models.for_space(entry.space)
    if model is None:
        loaded = ", ".join(model.metadata.space for model in models.all) or "none"
        raise FailedPreconditionError(
            f"collection {entry.name} holds embeddings of the space {entry.space}, the server's models make those of "
            f"{loaded}: serve the model that made it, or send vectors",
            field="collection",
        )
    return model


async def resolve(
    queries: Sequence[common_pb2.Query], entry: OpenCollection, models: Models, *, timeout: float | None, hashes: bool
) -> list[Resolution]:
    """Turn queries into vectors.

    Args:
        queries: the queries.
        entry: the collection that is asked.
        models: the loaded models.
        timeout: seconds after which the caller stops waiting; None for never.
        hashes: fill in the content hashes of images.

    Returns:
        For each query its vector, or why there is none.

    Raises:
        FailedPreconditionError: no query can be served, because no loaded model embeds into the collection's space.
        ResourceExhaustedError: the queue is full.
    """
    found: list[Resolution | None] = [None] * len(queries)
    images: dict[int, bytes] = {}
    keys: dict[int, str] = {}
    vectors: dict[int, common_pb2.Vector] = {}
    for position, query in enumerate(queries):
        subject = query.WhichOneof("subject")
        if subject == "image":
            images[position] = query.image.data
        elif subject == "key":
            keys[position] = query.key
        elif subject == "vector":
            vectors[position] = query.vector
        elif subject == "examples":
            found[position] = UnimplementedError("queries by examples are not served yet by this version")
        else:
            found[position] = InvalidArgumentError(
                "the query is empty: set image, vector or key", field=f"queries[{position}]"
            )
    if vectors:
        large = sum(len(vector.data) for vector in vectors.values()) > _LARGE_BYTES
        given = await entry.read(_given, vectors, entry.dim) if large else _given(vectors, entry.dim)
        for position, resolution in given.items():
            found[position] = resolution
    if images:
        await _embed(images, found, entry, models, timeout, hashes)
    if keys:
        for position, item in zip(keys, await entry.read(entry.collection.get, list(keys.values())), strict=True):
            if item is None:
                name = keys[position][:200]
                found[position] = NotFoundError(f"no item {name!r} in {entry.name}", field=f"queries[{position}].key")
            else:
                found[position] = Resolved(item.vector, item.key, item.content_hash)
    return [resolution for resolution in found if resolution is not None]


def _given(vectors: Mapping[int, common_pb2.Vector], dim: int) -> dict[int, Resolution]:
    found: dict[int, Resolution] = {}
    for position, vector in vectors.items():
        try:
            found[position] = Resolved(read_vector(vector, dim, f"queries[{position}].vector"))
        except InvalidArgumentError as error:
            found[position] = error
    return found


async def _embed(
    images: dict[int, bytes],
    found: list[Resolution | None],
    entry: OpenCollection,
    models: Models,
    timeout: float | None,
    hashes: bool,
) -> None:
    try:
        model = model_for(entry, models)
    except FailedPreconditionError as error:
        if len(images) == len(found):
            raise
        for position in images:
            found[position] = error
        return
    outcomes = await model.pipeline.embed(list(images.values()), timeout=timeout, hashes=hashes)
    for position, outcome in zip(images, outcomes, strict=True):
        if isinstance(outcome, Embedded):
            found[position] = Resolved(outcome.vector, None, outcome.content_hash or None, outcome.logits)
        else:
            found[position] = outcome
