"""A collection: what it promises, whoever keeps it."""

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from index.types import (
    ClassifyOptions,
    CollectionInfo,
    DeleteResult,
    Item,
    Neighbour,
    Prediction,
    SearchOptions,
    StoredItem,
    UpsertResult,
    Vector,
)


class Collection(Protocol):
    """A named set of items, all embedded by one model. Every method may be called from any thread."""

    def info(self) -> CollectionInfo:
        """Return the collection's state."""

    def check_space(self, space: str) -> None:
        """Raise FailedPreconditionError, naming both, unless `space` is the collection's embedding space."""

    def upsert(self, items: Sequence[Item]) -> UpsertResult:
        """Insert items or replace those whose key exists; of equal keys the last one counts. Durable on return."""

    def delete(self, keys: Sequence[str]) -> DeleteResult:
        """Delete items by key; keys that do not exist are ignored. Durable on return."""

    def get(self, keys: Sequence[str]) -> list[StoredItem | None]:
        """Return the items of `keys` in their order, None for a key that does not exist."""

    def content_hashes(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        """Return the content hash of each of `keys` that exists; None when it is not known."""

    def scroll(self, after_sequence: int, limit: int) -> list[StoredItem]:
        """Return the first `limit` items with a sequence number above `after_sequence`, in its order."""

    def count(self) -> int:
        """Return the number of items."""

    def search(self, queries: Vector, options: SearchOptions) -> list[list[Neighbour]]:
        """Return the neighbours of each query (float32 [N, D]), most similar first, ties by key."""

    def classify(self, queries: Vector, options: ClassifyOptions) -> list[Prediction]:
        """Return the class of each query (float32 [N, D])."""

    def close(self) -> None:
        """Let go of the collection; it is safe to call this twice."""

    def __enter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the collection."""
