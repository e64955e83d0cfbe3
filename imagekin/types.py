"""The values that the client takes and returns: frozen dataclasses and arrays, never protobuf messages."""

import enum
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import ImagekinError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from imagekin.v1.common_pb2 import Condition

__all__ = [
    "JSON",
    "CollectionInfo",
    "Errors",
    "Examples",
    "FacetCount",
    "FilterLike",
    "ImageLike",
    "Item",
    "ItemUpdate",
    "Method",
    "Model",
    "Neighbour",
    "Outcome",
    "Payload",
    "Prediction",
    "Snapshot",
    "StoredItem",
    "UpdateResult",
    "Upserted",
    "Vector",
    "VectorLike",
]

# A path, the bytes of an image file, a Pillow image, or an array: uint8 [H, W], [H, W, 3] (RGB), [H, W, 4] (RGBA).
# Union, because `|` takes no name that is only known to the type checker: Pillow is not loaded for this.
ImageLike: TypeAlias = Union[str, os.PathLike[str], bytes, bytearray, memoryview, NDArray[np.generic], "PillowImage"]
# [D] real numbers; float32 is what travels.
VectorLike: TypeAlias = NDArray[np.floating[Any]] | Sequence[float]
# The text form, for example `label = "shoe" AND payload.price < 10`, or the tree for untrusted values.
FilterLike: TypeAlias = Union[str, "Condition"]
# `raise` fails on the first member of a batch that was not served; `return` puts the error in its place.
Errors = Literal["raise", "return"]
# Where a class comes from, see imagekin.v1.ClassifyRequest.Method.
Method = Literal["knn", "prototype", "linear"]


JSON: TypeAlias = bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"] | None


Payload: TypeAlias = Mapping[str, JSON]
Vector: TypeAlias = NDArray[np.float32]


class Outcome(enum.Enum):
    """The effect of writing an item."""

    INSERTED = 1
    REPLACED = 2


@dataclass(frozen=True, slots=True)
class ItemUpdate:
    """A change to one item that leaves its vector alone.

    Attributes:
        key: the item's key.
        label: the new label; None leaves it alone, the empty string removes it.
        payload: the new payload; None leaves it alone, an empty mapping removes it.
    """

    key: str
    label: str | None = None
    payload: Payload | None = None


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The result of an update: number of items changed, keys that do not exist, sequence number (or 0)."""

    updated: int
    missing: tuple[str, ...]
    sequence: int


@dataclass(slots=True, eq=False)  # not frozen: that makes it three times slower to make, and answers are made of it
class Neighbour:
    """An item and how similar it is to the query.

    Attributes:
        key: the item's key.
        similarity: cosine similarity, -1 to 1.
        label: the item's label, None when unknown.
        payload: the item's payload when it was asked for and there is one.
        vector: the item's embedding, float32 [D] of unit length, when it was asked for.
    """

    key: str
    similarity: float
    label: str | None = None
    payload: Payload | None = None
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class and how sure the collection is.

    Attributes:
        label: the class; None means unknown (nothing labelled to compare with, or rejected by a threshold).
        confidence: share of the votes of the winning class, 0 to 1; also stated when the label was rejected.
        nearest_similarity: similarity of the nearest labelled item or prototype, 0 when there is none.
        votes: shares of the leading classes, at most 10, largest first, ties by label.
    """

    label: str | None
    confidence: float
    nearest_similarity: float
    votes: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class FacetCount:
    """The number of items that have a value of a field."""

    value: str | int | float | bool
    count: int


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection and its state.

    Attributes:
        name: its name.
        space: id of the embedding space of its vectors.
        dim: number of components of its vectors.
        count: number of items.
        labelled: number of items that have a label.
        sequence: sequence number of the last write, 0 for none.
        index_kind: kind of the index in use, for example `flat`.
        disk_bytes: bytes that it takes on disk.
        created_at: when it was made, seconds since the epoch.
        recall: recall@10 of the index, measured with vectors that it did not hold then; None when not measured.
        index_device: where its sealed rows are searched, `cpu` or `cuda`; empty when that is not known.
    """

    name: str
    space: str
    dim: int
    count: int
    labelled: int
    sequence: int
    index_kind: str
    disk_bytes: int
    created_at: float
    recall: float | None = None
    index_device: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """An item to write: either an image, which the collection's model embeds, or a vector.

    Attributes:
        key: unique in its collection, 1 to 1,024 bytes of UTF-8 without control characters.
        image: a path, bytes, array or Pillow image.
        vector: [D] numbers of the collection's embedding space; the server makes them unit length.
        label: the class that the item is known to belong to.
        payload: a JSON object of the caller's own, at most 64 KiB.
        content_hash: SHA-256 of the image file, 32 bytes; the server computes it for an item sent as `image`.
    """

    key: str
    image: ImageLike | None = None
    vector: VectorLike | None = None
    label: str | None = None
    payload: Mapping[str, Any] | None = None
    content_hash: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """A query for more like these and less like those: mean of the positive minus mean of the negative ones.

    Attributes:
        positive_keys: stored items that the answer should resemble; they are left out of it.
        negative_keys: stored items that it should not resemble; they are left out of it.
        positive_vectors: vectors that the answer should resemble, [D] each.
        negative_vectors: vectors that it should not resemble, [D] each.
    """

    positive_keys: Sequence[str] = ()
    negative_keys: Sequence[str] = ()
    positive_vectors: Sequence[VectorLike] = ()
    negative_vectors: Sequence[VectorLike] = ()


@dataclass(frozen=True, slots=True, eq=False)
class StoredItem:
    """An item as the server holds it.

    Attributes:
        key: unique in its collection.
        label: its class, None when unknown.
        payload: its JSON object, None when it has none.
        content_hash: SHA-256 of the image file, None when unknown.
        sequence: the collection's sequence number at which the item was last written.
        vector: float32 [D] of unit length; None unless asked for.
    """

    key: str
    label: str | None
    payload: Mapping[str, Any] | None
    content_hash: bytes | None
    sequence: int
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class Upserted:
    """The result of an upsert.

    Attributes:
        outcomes: one for each item, in order; an error only with `errors="return"`.
        sequence: sequence number of the last write: a reader that sees it sees these items.
    """

    outcomes: tuple[Outcome | ImagekinError, ...]
    sequence: int

    @property
    def inserted(self) -> int:
        """Number of items whose key was new."""
        return sum(outcome is Outcome.INSERTED for outcome in self.outcomes)

    @property
    def replaced(self) -> int:
        """Number of items whose key existed."""
        return sum(outcome is Outcome.REPLACED for outcome in self.outcomes)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the server has loaded.

    Attributes:
        name: by which requests choose it.
        space: id of its embedding space.
        dim: number of components of its embeddings.
        image_height: height in pixels of the image that it sees.
        image_width: width in pixels.
        class_names: names of the linear head's logits, empty when it has none.
        metadata: the artifact's metadata: preprocessing, objective, data set, scores, versions.
    """

    name: str
    space: str
    dim: int
    image_height: int
    image_width: int
    class_names: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Snapshot(NamedTuple):
    """A copy of a collection: its name in the server's snapshot folder, its bytes, the last write that it holds."""

    name: str
    disk_bytes: int
    sequence: int
