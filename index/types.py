"""The values that a collection takes and returns.

Vectors are float32 of shape [D]. Those given to a collection may have any length; those that it returns have unit
length. Everything here is plain data: neither FAISS nor SQLite is imported.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from imagekin.index.filters.conditions import Condition
from imagekin.settings import check, option
from imagekin.types import Payload, Snapshot, Vector

MAX_K = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class VectorItem:
    """An item to be stored in a collection.

    Attributes:
        key: unique in its collection, 1 to 1,024 bytes of UTF-8 without control characters.
        vector: the embedding, float32 [D], finite and not all zero.
        label: the item's known class, at most 1,024 bytes; None when unknown.
        payload: a JSON object of the caller's, at most 64 KiB as text; None for none.
        content_hash: SHA-256 of the image file (32 bytes), None when unknown.
        thumbnail: the image as a small JPEG file, stored by its content hash in a collection that has thumbnails.
    """

    key: str
    vector: Vector
    label: str | None = None
    payload: Payload | None = None
    content_hash: bytes | None = None
    thumbnail: bytes | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class IndexedItem(VectorItem):
    """An item as stored in a collection; its vector has unit length.

    Attributes:
        sequence: sequence number of the item's last write.
    """

    sequence: int = 0


class DeleteResult(NamedTuple):
    """The number of items deleted, and the sequence number of the write (0 when none existed)."""

    deleted: int
    sequence: int


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        k: neighbours per query, 1 to 10,000; fewer are returned only when fewer match. With `min_similarity`, and
            without groups and diversity, up to 1,000,000: the search is then an exact range search.
        min_similarity: least similarity of a neighbour, -1 to 1; None for no bound.
        with_payload: return the neighbours' payloads.
        with_vector: return the neighbours' vectors.
        exclude: for each query the keys to leave out of its neighbours; empty when no query has any.
        filter: condition that the neighbours meet; None for all items.
        group_by: return at most `group_size` neighbours for each value of this field (`label`, or `payload.` and a
            path), and no items without a value; empty for no grouping.
        group_size: neighbours of one group, 1 to 100.
        diversity: weight of diversity when choosing by maximal marginal relevance among the 10 × k (at least 100)
            nearest: 0 is similarity alone, 1 diversity alone. If it is not 0, k is at most 200.
    """

    k: int = 10
    min_similarity: float | None = None
    with_payload: bool = False
    with_vector: bool = False
    exclude: Sequence[frozenset[str]] = ()
    filter: Condition | None = None
    group_by: str = ""
    group_size: int = 1
    diversity: float = 0.0


class ClassifyMethod(enum.StrEnum):
    """The ways to determine a class."""

    KNN = "knn"
    PROTOTYPE = "prototype"


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """Options of a classification.

    Attributes:
        method: weighted kNN (Wu et al. 2018) or the nearest class mean.
        k: neighbours that vote, 1 to 10,000; only for kNN.
        temperature: softmax temperature, greater than 0.
        min_similarity: return "unknown" when the nearest labelled item or prototype is less similar; None for never.
        min_confidence: return "unknown" when the confidence is lower, 0 to 1.
        exclude_hashes: for each query the SHA-256 whose items do not vote, or None; empty when no query has any.
        exclude_keys: for each query the keys that do not vote; empty when no query has any.
        filter: condition that the voters meet; None for all labelled items.
    """

    method: ClassifyMethod = ClassifyMethod.KNN
    k: int = 20
    temperature: float = 0.07
    min_similarity: float | None = None
    min_confidence: float = 0.0
    exclude_hashes: Sequence[bytes | None] = ()
    exclude_keys: Sequence[frozenset[str]] = ()
    filter: Condition | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The defaults of a collection's classification, as measured by `calibrate`.

    Attributes:
        temperature: softmax temperature at which confidence matches accuracy.
        min_similarity: a query is unknown when the nearest labelled item or prototype is less similar.
        true_positive_rate: share of the collection's own items, each left out in turn, that `min_similarity` keeps.
        sequence: the collection's sequence number at the time of the measurement.
    """

    temperature: float
    min_similarity: float
    true_positive_rate: float
    sequence: int


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """Options of evaluating a collection by its own items.

    Raises:
        InvalidArgumentError: a number is out of its bounds.
    """

    method: ClassifyMethod = option(ClassifyMethod.KNN, "Way to determine a class.")
    k: int = option(20, "Neighbours that vote; only for knn.", least=1, most=MAX_K)
    sample: int = option(10_000, "Labelled items to classify at most, drawn evenly.", least=2)
    true_positive_rate: float = option(0.95, "Share of known items to keep when rejecting.", least=0, most=1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The accuracy of a collection on its own items, each left out in turn.

    Attributes:
        items: number of items classified.
        classes: number of classes of the collection.
        accuracy: share of right predictions, without rejection.
        ece: expected calibration error in 15 bins, cross-validated: no item's temperature was fitted on that item.
        temperature: the calibrated softmax temperature, fitted on all items.
        min_similarity: the nearest labelled item's similarity that `true_positive_rate` of the items reach.
        confusion: true class, predicted class (None for no vote) and count; by true class, largest count first.
    """

    items: int
    classes: int
    accuracy: float
    ece: float
    temperature: float
    min_similarity: float
    confusion: tuple[tuple[str, str | None, int], ...]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An item of a group of near-duplicates.

    Attributes:
        key: its key.
        label: its label, None when unknown.
        similarity: to the group's first item; may be below the threshold when they are linked by other items.
        same_file: True when an earlier item of the group has the same content hash.
    """

    key: str
    label: str | None
    similarity: float
    same_file: bool


Group = tuple[Duplicate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDescription(Snapshot):
    """A snapshot with what it takes to restore it.

    Attributes:
        collection: name of the collection.
        space: id of the embedding space of its vectors.
        dim: number of components of its vectors.
        count: number of items.
        created_at: time of creation, seconds since the epoch.
        sha256: SHA-256 of the database file.
        thumbnails_sha256: SHA-256 of the file of thumbnails, empty when the collection has none.
        map_sha256: SHA-256 of the file of the map, likewise.
    """

    collection: str
    space: str
    dim: int
    count: int
    created_at: float
    sha256: str
    thumbnails_sha256: str = ""
    map_sha256: str = ""


# Called with the number of rows checked so far.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a scroll, from which the next page goes on.

    Attributes:
        id: the collection's id.
        until: sequence number at which the scroll began.
        after: place of the last item seen, a sequence number.
    """

    id: str
    until: int
    after: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a scroll.

    Attributes:
        items: the items, as they are now, in the order of their last write when the scroll began.
        places: the place of each.
        complete: True when no items follow.
    """

    items: list[IndexedItem]
    places: list[Place]
    complete: bool


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        items: number of rows that are intact (or were restored).
        damaged: keys of rows that are damaged beyond repair; invalid UTF-8 is shown as `�`.
        restored: keys of rows whose vectors were restored from a segment.
        problems: other faults of the database, one line each; the first 20.
        segments: `intact`, `damaged` or `none`.
        missing_writes: number of acknowledged writes that the database lacks.
        repaired: True after a repair.
        damaged_thumbnails: number of thumbnails that are damaged, or were removed by the repair.
        damaged_map: True when the map is damaged, or was removed by the repair.
    """

    items: int = 0
    damaged: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    segments: str = "none"
    missing_writes: int = 0
    repaired: bool = False
    damaged_thumbnails: int = 0
    damaged_map: bool = False

    @property
    def intact(self) -> bool:
        """True when the database is intact (segments are derived from it and rebuilt by themselves)."""
        lost = self.damaged or self.restored or self.problems or self.missing_writes
        return not (lost or self.damaged_thumbnails or self.damaged_map)


class StoppedError(Exception):
    """Background work was cancelled."""
