"""Convert the queries of a search or a classification to vectors: embed images, look up keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imagekin.errors import FailedPreconditionError, ImagekinError, InvalidArgumentError, NotFoundError
from imagekin.index.interface import Collection
from imagekin.index.search.grouping import combine_examples
from imagekin.serving.collections.open_collections import OpenCollection
from imagekin.serving.embedding.image_jobs import EmbeddedImage
from imagekin.serving.embedding.models import Models, ServedModel
from imagekin.serving.messages import Vector, located, read_vector
from imagekin.v1 import common_pb2

# Vectors of more bytes are read in a thread, so that they do not hold up the event loop.
_LARGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Resolved:
    """A query as a vector.

    Attributes:
        vector: float32 [D], unit length.
        keys: keys of the stored items that the query names.
        content_hash: SHA-256 of the query's image; None when the query is no image, or its hash is not known.
        logits: float32 [C] of the query's image, None when the model has no linear head.
    """

    vector: Vector
    keys: frozenset[str] = frozenset()
    content_hash: bytes | None = None
    logits: Vector | None = None


Resolution = Resolved | ImagekinError


def model_for(entry: OpenCollection, models: Models) -> ServedModel:
    """Return the model that embeds images for a collection.

    Raises:
        FailedPreconditionError: no loaded model embeds into the collection's space.
    """
    model = models.for_space(entry.space)
    if model is None:
        loaded = ", ".join(model.metadata.space for model in models.all) or "none"
        raise FailedPreconditionError(
            f"collection {entry.name} holds embeddings of the space {entry.space}, what is loaded makes those of "
            f"{loaded}: give the model that made it, or vectors",
            field="collection",
        )
    return model


async def resolve(
    queries: Sequence[common_pb2.Query], entry: OpenCollection, models: Models, *, timeout: float | None, hashes: bool
) -> list[Resolution]:
    """Convert queries to vectors.

    Args:
        queries: the queries.
        entry: the collection that is asked.
        models: the loaded models.
        timeout: seconds after which the caller stops waiting; None for never.
        hashes: fill in the content hashes of images.

    Returns:
        The vector or the error of each query.

    Raises:
        FailedPreconditionError: no query can be served, because no loaded model embeds into the collection's space.
        ResourceExhaustedError: the queue is full.
    """
    found: list[Resolution | None] = [None] * len(queries)
    images: dict[int, bytes] = {}
    keys: dict[int, str] = {}
    vectors: dict[int, common_pb2.Vector] = {}
    examples: dict[int, common_pb2.Examples] = {}
    for position, query in enumerate(queries):
        subject = query.WhichOneof("subject")
        if subject == "image":
            images[position] = query.image.data
        elif subject == "key":
            keys[position] = query.key
        elif subject == "vector":
            vectors[position] = query.vector
        elif subject == "examples":
            examples[position] = query.examples
        else:
            found[position] = InvalidArgumentError(
                "the query is empty: set image, vector, key or examples", field=f"queries[{position}]"
            )
    if vectors:
        large = sum(len(vector.data) for vector in vectors.values()) > _LARGE_BYTES
        given = await entry.read(_given, vectors, entry.dim) if large else _given(vectors, entry.dim)
        for position, resolution in given.items():
            found[position] = resolution
    if examples:
        for position, resolution in (await entry.read(_read_examples, examples, entry.collection, entry.dim)).items():
            found[position] = resolution
    if images:
        await _embed(images, found, entry, models, timeout, hashes)
    if keys:
        wanted = list(keys.values())
        stored = await entry.read(lambda: entry.collection.get(wanted))
        for position, item in zip(keys, stored, strict=True):
            if item is None:
                name = keys[position][:200]
                found[position] = NotFoundError(f"no item {name!r} in {entry.name}", field=f"queries[{position}].key")
            else:
                found[position] = Resolved(item.vector, frozenset((item.key,)), item.content_hash)
    return [resolution for resolution in found if resolution is not None]


def _given(vectors: Mapping[int, common_pb2.Vector], dim: int) -> dict[int, Resolution]:
    found: dict[int, Resolution] = {}
    for position, vector in vectors.items():
        try:
            found[position] = Resolved(read_vector(vector, dim, f"queries[{position}].vector"))
        except InvalidArgumentError as error:
            found[position] = error
    return found


# Examples of one query; each costs reading a vector.
_MOST_EXAMPLES = 1000


def _read_examples(
    queries: Mapping[int, common_pb2.Examples], collection: Collection, dim: int
) -> dict[int, Resolution]:
    """Combine each set of examples into one query, or return its error."""
    found: dict[int, Resolution] = {}
    for position, examples in queries.items():
        field = f"queries[{position}].examples"
        keys = frozenset((*examples.positive_keys, *examples.negative_keys))
        given = len(examples.positive_vectors) + len(examples.negative_vectors)
        try:
            if len(keys) + given > _MOST_EXAMPLES:
                raise InvalidArgumentError(f"a query has at most {_MOST_EXAMPLES} examples", field=field)
            stored = {item.key: item.vector for item in collection.get(sorted(keys)) if item is not None}
            if missing := keys - stored.keys():
                raise NotFoundError(f"no item {min(missing)[:200]!r} in the collection", field=field)
            sides = []
            for side, names, vectors in (
                ("positive", examples.positive_keys, examples.positive_vectors),
                ("negative", examples.negative_keys, examples.negative_vectors),
            ):
                where = f"{field}.{side}_vectors"
                rows = [stored[name] for name in names] + [read_vector(one, dim, where) for one in vectors]
                sides.append(np.stack(rows) if rows else np.empty((0, dim), np.float32))
            with located(field):
                found[position] = Resolved(combine_examples(*sides), keys)
        except (InvalidArgumentError, NotFoundError) as error:
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
    with model.pipeline.leased():
        outcomes = await model.pipeline.embed(list(images.values()), timeout=timeout, hashes=hashes)
    for position, outcome in zip(images, outcomes, strict=True):
        if isinstance(outcome, EmbeddedImage):
            found[position] = Resolved(outcome.vector, frozenset(), outcome.content_hash or None, outcome.logits)
        else:
            found[position] = outcome
