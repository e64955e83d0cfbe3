"""What the client takes and gives back; frozen dataclasses, arrays and KindredErrors, never protobuf messages."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from encoder.errors import KindredError
from index.types import (
    CollectionInfo,
    FacetCount,
    ItemUpdate,
    Neighbour,
    Outcome,
    Prediction,
    UpdateResult,
    Vector,
)

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from kindred.v1.common_pb2 import Condition

__all__ = [
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
    "Prediction",
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
# Where a class comes from, see kindred.v1.ClassifyRequest.Method.
Method = Literal["knn", "prototype", "linear"]


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
    """What became of the items of an upsert.

    Attributes:
        outcomes: one for each item, in order; an error only with `errors="return"`.
        sequence: sequence number of the last write: a reader that sees it sees these items.
    """

    outcomes: tuple[Outcome | KindredError, ...]
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
