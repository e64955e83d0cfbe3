"""The values that go into a collection and come out of it.

Vectors are float32 of shape [D]. They need not be of unit length on the way in (the collection normalises them) and are
on the way out. Everything here is plain data: neither FAISS nor SQLite is imported.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from imagekin.index.filters.conditions import Condition
from imagekin.settings import check, option
from imagekin.types import Outcome, Payload, Vector

MAX_K = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class VectorItem:
    """One member of a collection.

    Attributes:
        key: unique in its collection, 1 to 1,024 bytes of UTF-8 without control characters.
        vector: the embedding, float32 [D], finite and not all zero.
        label: the class that the item is known to belong to, at most 1,024 bytes; None when unknown.
        payload: a JSON object of the caller's own, at most 64 KiB as text; None when there is none.
        content_hash: SHA-256 of the image file (32 bytes), None when unknown.
    """

    key: str
    vector: Vector
    label: str | None = None
    payload: Payload | None = None
    content_hash: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class IndexedItem(VectorItem):
    """An item as a collection holds it: its vector has unit length.

    Attributes:
        sequence: the collection's sequence number at which the item was last written.
    """

    sequence: int = 0


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """The result of an upsert.

    Attributes:
        outcomes: one per item, in the order given.
        sequence: a reader that sees this sequence number sees the items; 0 when there were none.
    """

    outcomes: tuple[Outcome, ...]
    sequence: int


class DeleteResult(NamedTuple):
    """The number of items deleted, and the sequence number of the write (0 when none existed)."""

    deleted: int
    sequence: int


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        k: neighbours per query, 1 to 10,000; fewer are returned only when fewer match. With `min_similarity`, and
            neither groups nor diversity, up to 1,000,000: then everything so similar is found, exactly.
        min_similarity: leaves out less similar neighbours, -1 to 1; None means no bound.
        with_payload: fill in the neighbours' payloads.
        with_vector: fill in the neighbours' vectors.
        exclude: for each query the keys that its answer leaves out; empty when no query has any.
        filter: only items that match are found; None means all.
        group_by: at most `group_size` neighbours for each value of this field (`label` or `payload.` and a path), and
            none that has no such value; empty means no grouping.
        group_size: neighbours of one group, 1 to 100.
        diversity: choose by maximal marginal relevance among the 10 × k (at least 100) nearest: 0 is only similarity,
            1 only diversity. With it, k is at most 200.
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
        min_similarity: answer "unknown" when the nearest labelled item or prototype is less similar; None means never.
        min_confidence: answer "unknown" when the confidence is lower, 0 to 1.
        exclude_hashes: for each query the SHA-256 whose items do not vote, or None; empty when no query has any.
        exclude_keys: for each query the keys that do not vote; empty when no query has any.
        filter: only items that match vote; None means all labelled items.
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
        temperature: softmax temperature at which confidence tells how often an answer is right.
        min_similarity: a query is unknown when the nearest labelled item or prototype is less similar.
        true_positive_rate: share of the collection's own items, each left out in turn, that this bound keeps.
        sequence: the collection's sequence number when this was measured.
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

    method: ClassifyMethod = option(ClassifyMethod.KNN, "Where a class comes from.")
    k: int = option(20, "Neighbours that vote; only for knn.", least=1, most=MAX_K)
    sample: int = option(10_000, "Labelled items to classify at most, drawn evenly.", least=2)
    true_positive_rate: float = option(0.95, "Share of known items to keep when rejecting.", least=0, most=1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The accuracy of a collection on its own items, each left out in turn.

    Attributes:
        items: how many were classified.
        classes: how many classes the collection has.
        accuracy: share of right answers, nothing rejected.
        ece: expected calibration error in 15 bins; the temperature was fitted on other items than those it is of.
        temperature: the calibrated softmax temperature, fitted on all of them.
        min_similarity: similarity of the nearest labelled item that the stated share of the items reaches.
        confusion: true class, answer (None for no vote) and how often, by true class, the most frequent answer first.
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
    """An item of a group.

    Attributes:
        key: its key.
        label: its label, None when unknown.
        similarity: to the group's first item; may be below the bound, when others lie between the two.
        same_file: its content hash is that of an item before it in the group.
    """

    key: str
    label: str | None
    similarity: float
    same_file: bool


Group = tuple[Duplicate, ...]


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot.

    Attributes:
        name: `COLLECTION/TIME-SEQUENCE`, below the data folder's `snapshots`.
        collection: name of the collection that was copied.
        space: id of the embedding space of its vectors.
        dim: number of components of its vectors.
        count: number of items.
        sequence: sequence number of the last write that it holds.
        disk_bytes: bytes that it takes on disk.
        created_at: when it was taken, seconds since the epoch.
        sha256: of the database file.
    """

    name: str
    collection: str
    space: str
    dim: int
    count: int
    sequence: int
    disk_bytes: int
    created_at: float
    sha256: str


# Called with how many rows were looked at.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        items: rows that were read and are intact (or were restored).
        damaged: keys whose rows are damaged and cannot be restored; bytes that are no text are shown as `�`.
        restored: keys whose vectors came back from a segment.
        problems: what else is wrong with the database, one line each; the first 20.
        segments: `intact`, `damaged` or `none`.
        missing_writes: acknowledged writes that the database does not reach.
        repaired: whether a repair was asked for, and what is damaged has been dealt with.
    """

    items: int = 0
    damaged: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    segments: str = "none"
    missing_writes: int = 0
    repaired: bool = False

    @property
    def intact(self) -> bool:
        """True when the database is intact (segments are derived from it and rebuilt by themselves)."""
        return not (self.damaged or self.restored or self.problems or self.missing_writes)


class StoppedError(Exception):
    """Work in the background was called off."""
