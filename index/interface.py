"""What a collection promises, whoever keeps it."""

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from index.filters import Condition
from index.types import (
    Calibration,
    ClassifyMethod,
    ClassifyOptions,
    CollectionInfo,
    DeleteResult,
    FacetCount,
    Item,
    ItemUpdate,
    Neighbour,
    Prediction,
    SearchOptions,
    StoredItem,
    UpdateResult,
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

    def update(self, changes: Sequence[ItemUpdate]) -> UpdateResult:
        """Change labels or payloads and leave the vectors alone. Durable on return."""

    def delete(self, keys: Sequence[str]) -> DeleteResult:
        """Delete items by key; keys that do not exist are ignored. Durable on return."""

    def delete_matching(self, condition: Condition) -> DeleteResult:
        """Delete the items that meet a condition. Durable on return."""

    def get(self, keys: Sequence[str]) -> list[StoredItem | None]:
        """Return the items of `keys` in their order, None for a key that does not exist."""

    def content_hashes(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        """Return the content hash of each of `keys` that exists; None when it is not known."""

    def scroll(self, after_sequence: int, limit: int, condition: Condition | None = None) -> list[StoredItem]:
        """Return the first `limit` items, or of those that match, above a sequence number and in its order."""

    def count(self, condition: Condition | None = None) -> int:
        """Return the number of items, or of those that match."""

    def facet(self, field: str, condition: Condition | None = None, limit: int = 100) -> list[FacetCount]:
        """Return how often each value of a field occurs, the most frequent first, ties by value."""

    def search(self, queries: Vector, options: SearchOptions) -> list[list[Neighbour]]:
        """Return the neighbours of each query (float32 [N, D]), most similar first, ties by key."""

    def classify(self, queries: Vector, options: ClassifyOptions) -> list[Prediction]:
        """Return the class of each query (float32 [N, D])."""

    def calibration(self, method: ClassifyMethod) -> Calibration | None:
        """Return what classifications leave open, as `calibrate` saved it; None when it never did."""

    def close(self) -> None:
        """Let go of the collection; it is safe to call this twice."""

    def __enter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the collection."""
