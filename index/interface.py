"""The interface of a collection, implemented by the local store and by Milvus."""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from imagekin.index.filters.conditions import Condition
from imagekin.index.maps.saved import Positions
from imagekin.index.maps.views import MapView
from imagekin.index.types import (
    Calibration,
    ClassifyMethod,
    ClassifyOptions,
    DeleteResult,
    EvaluateOptions,
    Evaluation,
    Group,
    IndexedItem,
    Page,
    Place,
    Progress,
    SearchOptions,
    SnapshotDescription,
    VectorItem,
    VerifyReport,
)
from imagekin.types import (
    CollectionInfo,
    FacetCount,
    ItemUpdate,
    Neighbour,
    Prediction,
    Thumbnail,
    UpdateResult,
    UpsertResult,
    Vector,
)


class Collection(Protocol):
    """A named set of items, all embedded by one model; any thread may call its methods."""

    @property
    def id(self) -> str:
        """Random id; a collection that is made anew or restored under the same name has another one."""

    @property
    def closed(self) -> bool:
        """True after `close`, and once one of another space has taken its place."""

    @property
    def is_open(self) -> bool:
        """True while it has files open; it opens them again when it is used."""

    def info(self) -> CollectionInfo:
        """Return the collection's state."""

    def check_space(self, space: str) -> None:
        """Raise FailedPreconditionError, naming both, unless `space` is the collection's embedding space."""

    def upsert(self, items: Sequence[VectorItem]) -> UpsertResult:
        """Insert items or replace those whose key exists; of equal keys the last one counts. Durable on return."""

    def update(self, changes: Sequence[ItemUpdate]) -> UpdateResult:
        """Change labels or payloads and leave the vectors alone. Durable on return."""

    def delete(self, keys: Sequence[str]) -> DeleteResult:
        """Delete items by key; keys that do not exist are ignored. Durable on return."""

    def delete_matching(self, condition: Condition) -> DeleteResult:
        """Delete the items that meet a condition. Durable on return."""

    def get(self, keys: Sequence[str]) -> list[IndexedItem | None]:
        """Return the items of `keys` in their order, None for a key that does not exist."""

    def content_hashes(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        """Return the content hash of each of `keys` that exists; None when it is unknown."""

    def thumbnail_size(self) -> int:
        """Return the pixels of the longer side of the collection's thumbnails, 0 when it has none."""

    def thumbnails(self, keys: Sequence[str]) -> list[Thumbnail | None]:
        """Return the thumbnail of each item, None where there is no item or it has none."""

    def scroll(self, after_sequence: int, limit: int, condition: Condition | None = None) -> list[IndexedItem]:
        """Return the first `limit` matching items after a sequence number, in the order of sequence numbers."""

    def page(self, place: Place | None, limit: int, condition: Condition | None = None) -> Page:
        """Return the next `limit` matching items of a scroll, None for the first ones; writes do not prolong it."""

    def count(self, condition: Condition | None = None) -> int:
        """Return the number of items, or of those that match."""

    def facet(self, field: str, condition: Condition | None = None, limit: int = 100) -> list[FacetCount]:
        """Count the values of a field, the most frequent first, ties by value."""

    def search(self, queries: Vector, options: SearchOptions) -> list[list[Neighbour]]:
        """Return the neighbours of each query (float32 [N, D]), most similar first, ties by key."""

    def classify(self, queries: Vector, options: ClassifyOptions) -> list[Prediction]:
        """Return the class of each query (float32 [N, D])."""

    def map(self, field: str = "label", known: str = "") -> MapView | None:
        """Return where each item lies and its value of a field; None when that is the view of the version `known`."""

    def map_keys(self, version: str, numbers: Sequence[int]) -> list[str]:
        """Return the keys of items by their numbers on a map."""

    def locate(self, queries: Vector, keys: Sequence[str | None]) -> Positions:
        """Return a position for each query: that of the item whose key is given, else by its neighbours."""

    def calibration(self, method: ClassifyMethod) -> Calibration | None:
        """Return the defaults of classification that `calibrate` saved; None without any."""

    def close(self) -> None:
        """Close the collection; closing twice is safe."""

    def __enter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the collection."""


class KeptCollection(Collection, Protocol):
    """A collection that this process has opened itself."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def space(self) -> str:
        """Id of the embedding space of its vectors."""

    @property
    def dim(self) -> int:
        """Number of components of its vectors."""

    def items(self) -> Iterator[IndexedItem]:
        """Yield all items of one point in time, in the order of their last write."""

    def evaluate(self, options: EvaluateOptions) -> Evaluation:
        """Classify the labelled items, each by the others, and measure the result."""

    def calibrate(self, options: EvaluateOptions) -> Evaluation:
        """Evaluate, and save temperature and similarity bound as defaults of classification."""

    def duplicates(
        self, min_similarity: float = 0.98, on_progress: Callable[[int], object] | None = None
    ) -> list[Group]:
        """Return groups of near-duplicates, the largest first."""


class Collections(Protocol):
    """The collections of one store; any thread may call its methods.

    A method that a store does not support raises FailedPreconditionError with an alternative.
    """

    def create(
        self, name: str, *, space: str, dim: int, index_kind: str = "auto", thumbnail_size: int = 0
    ) -> KeptCollection:
        """Create an empty collection and open it; of images it keeps thumbnails of that many pixels, 0 for none."""

    def open(self, name: str) -> KeptCollection:
        """Open a collection."""

    def names(self) -> list[str]:
        """Return the names of the collections, sorted."""

    def list(self) -> list[CollectionInfo]:
        """Return the state of every collection, by name; of one that cannot be read, the reason in `error`."""

    def describe(self, name: str) -> CollectionInfo:
        """Return the state of a collection without loading it."""

    def id_of(self, name: str) -> str:
        """Return the id that a collection of that name has now, without opening it."""

    def drop(self, name: str) -> int:
        """Delete a collection, and return the number of its items."""

    def verify(self, name: str, *, repair: bool = False, on_progress: Progress | None = None) -> VerifyReport:
        """Check everything that is stored of a collection, and optionally repair it."""

    def compact(self, name: str) -> tuple[int, int]:
        """Free the disk space of deleted items; return the bytes on disk before and after."""

    def snapshot(self, name: str) -> SnapshotDescription:
        """Take a snapshot of a collection."""

    def snapshots(self) -> tuple[SnapshotDescription, ...]:
        """Return all snapshots, the oldest first."""

    def restore(self, snapshot: str, name: str | None = None, *, replace: bool = False) -> CollectionInfo:
        """Create a collection from a snapshot."""

    def close(self) -> None:
        """Close everything; closing twice is safe."""

    def __enter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
