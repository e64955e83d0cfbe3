"""A collection: what it promises, whoever keeps it, and the one that keeps its items on this machine."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from encoder.errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError
from index import reads, validate, writes
from index.classify import ClassSums, by_prototypes, by_votes, class_sums, slots_of_hash
from index.columns import UNLABELLED, Slots, Snapshot
from index.filters import Condition
from index.search import Found, neighbours
from index.store import Store
from index.types import (
    ClassifyMethod,
    ClassifyOptions,
    CollectionInfo,
    DeleteResult,
    Item,
    Neighbour,
    Payload,
    Prediction,
    SearchOptions,
    StoredItem,
    UpsertResult,
    Vector,
)

_PAGE = 1000


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


class LocalCollection:
    """A collection in a folder of this machine; see `Collection` for what its methods promise.

    Args:
        folder: the collection's folder.
        name: its name.
        read_only: write nothing and take no lock; commits of the process that writes become visible.

    Raises:
        NotFoundError: there is no such collection.
        FailedPreconditionError: another process has it open for writing, or a newer version wrote it.
        DataLossError: it is damaged.
    """

    def __init__(self, folder: Path, name: str, *, read_only: bool = False) -> None:
        self._store = Store(folder, name, read_only=read_only)
        self._classes: tuple[int, ClassSums] | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self._store.name

    @property
    def space(self) -> str:
        """Id of the embedding space of its vectors."""
        return self._store.identity.space

    @property
    def dim(self) -> int:
        """Number of components of its vectors."""
        return self._store.identity.dim

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._store.closed

    def info(self) -> CollectionInfo:
        """Return the collection's state."""
        state = self._store.state
        index = self._store.snapshot().approximate
        return CollectionInfo(
            name=self.name,
            space=self.space,
            dim=self.dim,
            count=state.count,
            labelled=state.labelled,
            sequence=state.sequence,
            index_kind=index.description.kind if index is not None else "flat",
            disk_bytes=self._store.disk_bytes,
            created_at=self._store.identity.created_at,
            recall=index.description.recall if index is not None else None,
        )

    def check_space(self, space: str) -> None:
        """Raise FailedPreconditionError, naming both, unless `space` is the collection's embedding space."""
        if space != self.space:
            raise FailedPreconditionError(
                f"collection {self.name!r} holds embeddings of space {self.space!r}, not of {space!r}: use the model"
                " that made it, or index the images again into a new collection"
            )

    def upsert(self, items: Sequence[Item]) -> UpsertResult:
        """Insert items or replace those whose key exists; of equal keys the last one counts. Durable on return.

        Raises:
            InvalidArgumentError: an item cannot be stored; nothing is written.
        """
        batch = writes.prepare(items, self.dim)
        if not batch.rows:
            return UpsertResult((), 0)

        def change(transaction: writes.Transaction) -> UpsertResult:
            existed = transaction.upsert(batch)
            return UpsertResult(writes.outcomes(batch, existed), transaction.sequence)

        return self._store.write(change)

    def delete(self, keys: Sequence[str]) -> DeleteResult:
        """Delete items by key; keys that do not exist are ignored. Durable on return."""
        wanted = validate.keys(keys)

        def change(transaction: writes.Transaction) -> DeleteResult:
            deleted = transaction.delete(wanted)
            return DeleteResult(deleted, transaction.sequence if deleted else 0)

        return self._store.write(change) if wanted else DeleteResult(0, 0)

    def get(self, keys: Sequence[str]) -> list[StoredItem | None]:
        """Return the items of `keys` in their order, None for a key that does not exist."""
        wanted = validate.keys(keys)
        with self._store.reading() as (connection, _):
            items = reads.read_items(connection, wanted, self.dim, self.name)
        return [items.get(key) for key in keys]

    def content_hashes(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        """Return the content hash of each of `keys` that exists; None when it is not known."""
        wanted = validate.keys(keys)
        with self._store.reading() as (connection, _):
            return reads.read_hashes(connection, wanted)

    def scroll(self, after_sequence: int, limit: int) -> list[StoredItem]:
        """Return the first `limit` items with a sequence number above `after_sequence`, in its order."""
        if limit < 1:
            raise InvalidArgumentError(f"a page has 1 item or more, {limit} were asked for", field="page_size")
        with self._store.reading() as (connection, _):
            return reads.read_page(connection, after_sequence, limit, self.dim, self.name)

    def count(self) -> int:
        """Return the number of items."""
        return self._store.snapshot().live

    def search(self, queries: Vector, options: SearchOptions) -> list[list[Neighbour]]:
        """Return the neighbours of each query (float32 [N, D]), most similar first, ties by key.

        Raises:
            InvalidArgumentError: a query or an option is out of its range.
        """
        validate.neighbours(options.k)
        _refuse_filter(options.filter)
        _check_range("min_similarity", options.min_similarity, -1.0, 1.0)
        units = self._queries(queries)
        _check_per_query("exclude", options.exclude, len(units))
        if not options.with_payload:
            snapshot = self._store.snapshot()
            found = neighbours(snapshot, units, options)
            return [_neighbours(snapshot, one, {}, options.with_vector) for one in found]
        with self._store.reading() as (connection, snapshot):
            found = neighbours(snapshot, units, options)
            sequences = {int(sequence) for one in found for sequence in snapshot.sequences[one.slots]}
            payloads = reads.read_payloads(connection, list(sequences), self.name)
            return [_neighbours(snapshot, one, payloads, options.with_vector) for one in found]

    def classify(self, queries: Vector, options: ClassifyOptions) -> list[Prediction]:
        """Return the class of each query (float32 [N, D]).

        Raises:
            InvalidArgumentError: a query or an option is out of its range.
        """
        validate.neighbours(options.k)
        _refuse_filter(options.filter)
        _check_range("min_similarity", options.min_similarity, -1.0, 1.0)
        _check_range("min_confidence", options.min_confidence, 0.0, 1.0)
        if not (math.isfinite(options.temperature) and options.temperature > 0):
            raise InvalidArgumentError(
                f"temperature must be greater than 0, it is {options.temperature}", field="temperature"
            )
        units = self._queries(queries)
        _check_per_query("exclude_hashes", options.exclude_hashes, len(units))
        _check_per_query("exclude_keys", options.exclude_keys, len(units))
        snapshot, excluded = self._left_out(options, len(units))
        if options.method is ClassifyMethod.KNN:
            return by_votes(snapshot, units, options, None, excluded)
        return by_prototypes(snapshot, units, options, self._class_sums(snapshot), excluded)

    def items(self) -> Iterator[StoredItem]:
        """Yield all items as of now in the order of their last write, however long it takes and whatever is written."""
        with self._store.reading() as (connection, _):
            after = 0
            while page := reads.read_page(connection, after, _PAGE, self.dim, self.name):
                yield from page
                after = page[-1].sequence

    def seal(self) -> None:
        """Put what is in memory into segments, so that opening again is quick; also done by itself, now and then."""
        self._store.seal()

    def build_index(self) -> None:
        """Build the approximate index that its kind and size ask for; also done by itself, in the background."""
        self._store.build_index()

    def compact(self) -> None:
        """Leave out the dead slots in memory and in segments; also done by itself when they are many."""
        self._store.compact()

    def close(self) -> None:
        """Let go of the collection; it is safe to call this twice."""
        self._store.close()

    def _queries(self, queries: Vector) -> Vector:
        try:
            return validate.unit_vectors(
                np.asarray(queries).reshape(-1, self.dim) if not len(queries) else queries, self.dim
            )
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"query {error}", field="queries") from None

    def _left_out(self, options: ClassifyOptions, count: int) -> tuple[Snapshot, list[Slots]]:
        """Return a snapshot and, for each query, its slots that do not vote; no list when there are none at all."""
        hashes = options.exclude_hashes or [None] * count
        if not any(options.exclude_keys):
            snapshot = self._store.snapshot()
            by_key: list[Slots] = []
        else:
            with self._store.reading() as (connection, snapshot):
                by_key = [
                    snapshot.slots_of(reads.sequences_of(connection, list(keys))) for keys in options.exclude_keys
                ]
        if not by_key and not any(hashes):
            return snapshot, []
        by_hash = [slots_of_hash(snapshot, value) for value in hashes]
        return snapshot, [np.union1d(*pair) for pair in zip(by_hash, by_key or by_hash, strict=True)]

    def _class_sums(self, snapshot: Snapshot) -> ClassSums:
        known = self._classes
        if known is None or known[0] != snapshot.sequence:
            known = (snapshot.sequence, class_sums(snapshot, None))
            self._classes = known
        return known[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_filter(condition: Condition | None) -> None:
    if condition is not None:
        raise UnimplementedError("filters are not supported by this version", field="filter")


def _check_range(field: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidArgumentError(f"{field} must be {low:g} to {high:g}, it is {value:g}", field=field)


def _check_per_query(field: str, values: Sequence[object], queries: int) -> None:
    if len(values) not in (0, queries):
        raise InvalidArgumentError(
            f"{field} must have one entry per query ({queries}), it has {len(values)}", field=field
        )


def _neighbours(
    snapshot: Snapshot, found: Found, payloads: Mapping[int, Payload], with_vector: bool
) -> list[Neighbour]:
    sequences = snapshot.sequences[found.slots].tolist() if payloads else None
    return [
        Neighbour(
            key,
            similarity,
            None if code == UNLABELLED else snapshot.label_names[code],
            payloads.get(sequences[place]) if sequences is not None else None,
            snapshot.vectors[slot].copy() if with_vector else None,
        )
        for place, (slot, key, code, similarity) in enumerate(
            zip(
                found.slots.tolist(),
                snapshot.keys(found.slots),
                snapshot.labels[found.slots].tolist(),
                found.similarities.tolist(),
                strict=True,
            )
        )
    ]
