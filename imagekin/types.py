"""The values that the client takes and returns: frozen dataclasses and arrays, never protobuf messages."""

import enum
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

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
    "UpsertResult",
    "Vector",
    "VectorLike",
]

# A path, the bytes of an image file, a Pillow image, or an array: uint8 [H, W], [H, W, 3] (RGB), [H, W, 4] (RGBA).
# Union, because `|` does not accept a forward reference: Pillow is not imported for this.
ImageLike: TypeAlias = Union[str, os.PathLike[str], bytes, bytearray, memoryview, NDArray[np.generic], "PillowImage"]
# [D] real numbers; they are sent as float32.
VectorLike: TypeAlias = NDArray[np.floating[Any]] | Sequence[float]
# The text form, for example `label = "shoe" AND payload.price < 10`, or the tree, which is safe for untrusted values.
FilterLike: TypeAlias = Union[str, "Condition"]
# `raise` raises the first error of a batch; `return` returns errors in the place of results.
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
    """A change of one item's label or payload.

    Attributes:
        key: the item's key.
        label: the new label; None keeps it, the empty string removes it.
        payload: the new payload; None keeps it, an empty mapping removes it.
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


@dataclass(slots=True, eq=False)  # frozen would make construction three times slower
class Neighbour:
    """An item and its similarity to the query.

    Attributes:
        key: the item's key.
        similarity: cosine similarity, -1 to 1.
        label: the item's label, None when unknown.
        payload: the item's payload if it was requested and exists.
        vector: the item's embedding, float32 [D] of unit length, if it was requested.
    """

    key: str
    similarity: float
    label: str | None = None
    payload: Payload | None = None
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted class and its confidence.

    Attributes:
        label: the class; None for unknown (no labelled items to compare with, or rejected by a threshold).
        confidence: share of the votes for the winning class, 0 to 1, even if it was rejected.
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
        disk_bytes: size on disk.
        created_at: time of creation, seconds since the epoch.
        recall: recall@10 of the index, measured with vectors before they were added; None when not measured.
        index_device: device that searches its sealed rows, `cpu` or `cuda`; empty when unknown.
        id: random; a collection that is made anew or restored under the same name has another one.
        thumbnail_size: pixels of the longer side of its thumbnails; 0 when it has none.
        error: why it cannot be read, when all the rest is empty but its name; empty when it can.
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
    id: str = ""
    error: str = ""
    thumbnail_size: int = 0


def unreadable(name: str, error: str) -> CollectionInfo:
    """Describe a collection that cannot be read."""
    return CollectionInfo(
        name=name,
        space="",
        dim=0,
        count=0,
        labelled=0,
        sequence=0,
        index_kind="",
        disk_bytes=0,
        created_at=0.0,
        error=error,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """An item to write: either an image, which the collection's model embeds, or a vector.

    Attributes:
        key: unique in its collection, 1 to 1,024 bytes of UTF-8 without control characters.
        image: a path, bytes, array or Pillow image.
        vector: [D] numbers of the collection's embedding space; the server scales them to unit length.
        label: the item's known class.
        payload: a JSON object of the caller's, at most 64 KiB.
        content_hash: SHA-256 of the image file, 32 bytes; for an item with an image, the server computes it.
        thumbnail: a small JPEG file beside a vector and a content hash, for a collection with thumbnails.
    """

    key: str
    image: ImageLike | None = None
    vector: VectorLike | None = None
    label: str | None = None
    payload: Mapping[str, Any] | None = None
    content_hash: bytes | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture of an item.

    Attributes:
        jpeg: a JPEG file.
        content_hash: SHA-256 of the image that it shows.
    """

    jpeg: bytes
    content_hash: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """A query by examples: the mean of the positive ones minus the mean of the negative ones.

    Attributes:
        positive_keys: stored items that the neighbours should resemble; they are left out of the result.
        negative_keys: stored items that they should not resemble; they are left out of the result.
        positive_vectors: vectors that the neighbours should resemble, [D] each.
        negative_vectors: vectors that they should not resemble, [D] each.
    """

    positive_keys: Sequence[str] = ()
    negative_keys: Sequence[str] = ()
    positive_vectors: Sequence[VectorLike] = ()
    negative_vectors: Sequence[VectorLike] = ()


@dataclass(frozen=True, slots=True, eq=False)
class StoredItem:
    """An item as stored by the server.

    Attributes:
        key: unique in its collection.
        label: its class, None when unknown.
        payload: its JSON object, None when it has none.
        content_hash: SHA-256 of the image file, None when unknown.
        sequence: sequence number of the item's last write.
        vector: float32 [D] of unit length; None unless requested.
    """

    key: str
    label: str | None
    payload: Mapping[str, Any] | None
    content_hash: bytes | None
    sequence: int
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """The result of an upsert.

    Attributes:
        outcomes: one for each item, in order; errors only from a client that was asked to return them.
        sequence: sequence number from which readers see the items; 0 when none was written.
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
        name: its name in requests.
        space: id of its embedding space.
        dim: number of components of its embeddings.
        image_height: height of its input in pixels.
        image_width: width of its input in pixels.
        class_names: class names of the linear head's logits; empty when it has none.
        metadata: the artifact's metadata: preprocessing, objective, data set, scores, versions.
    """

    name: str
    space: str
    dim: int
    image_height: int
    image_width: int
    class_names: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot of a collection.

    Attributes:
        name: `COLLECTION/TIME-SEQUENCE-ID`, relative to the data folder's `snapshots`.
        disk_bytes: size on disk.
        sequence: sequence number of the last write in it.
    """

    name: str
    disk_bytes: int
    sequence: int
