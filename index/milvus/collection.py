"""Implement the interface of a collection on Milvus."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.index import validation
from imagekin.index.classification.classify import ClassSums, by_prototypes, class_sums, vote
from imagekin.index.filters.conditions import MISSING, Condition, value_at
from imagekin.index.filters.payload_columns import Column
from imagekin.index.filters.selection import facet_order, payload_path
from imagekin.index.maps.saved import Positions
from imagekin.index.maps.views import MapView
from imagekin.index.milvus.clock import Clock
from imagekin.index.milvus.connection import MilvusConnection
from imagekin.index.milvus.expressions import among, both, expression, has_value
from imagekin.index.milvus.nearest import Hits, nearest
from imagekin.index.milvus.rows import (
    ALL_COLUMNS,
    MAX_ROWS,
    ROWS_PER_CALL,
    MilvusRows,
    payload_columns,
    payload_of,
    rows_of,
    stored_item,
)
from imagekin.index.search.grouping import pool_size, select_diverse
from imagekin.index.search.nearest import NearestSlots
from imagekin.index.storage import transactions, updates
from imagekin.index.storage.columns import Columns, ColumnSnapshot
from imagekin.index.storage.search_priority import SearchPriority
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
    SearchOptions,
    VectorItem,
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

_LABELLED = 'label != ""'
_MAX_ITEMS_FOR_MEANS = 1_000_000


class MilvusCollection:
    """A collection in Milvus; `imagekin.index.interface.Collection` specifies its methods.

    Up to 400 items of one call are one write in Milvus; with more, a failure may leave the first ones written.

    Args:
        connection: connection to Milvus.
        table: its name in Milvus.
        name: its name in this project.
        space: id of the embedding space of its vectors.
        dim: number of components of its vectors.
        created_at: time of creation, seconds since the epoch.
        id: its id.
        clock: source of sequence numbers.
        read_only: refuse every write.
    """

    def __init__(
        self,
        connection: MilvusConnection,
        table: str,
        *,
        name: str,
        space: str,
        dim: int,
        created_at: float,
        id: str,  # noqa: A002
        clock: Clock,
        read_only: bool = False,
    ) -> None:
        self.name = name
        self.space = space
        self.dim = dim
        self.id = id
        self.closed = False
        self._created_at = created_at
        self._connection = connection
        self._table = table
        self._rows = MilvusRows(connection, table)
        self._clock = clock
        self._read_only = read_only
        self._sequence = 0
        self._means: tuple[int, list[str], ClassSums] | None = None

    @property
    def is_open(self) -> bool:
        """True until it is closed: it has no files."""
        return not self.closed

    def info(self) -> CollectionInfo:
        """Return the collection's state; `disk_bytes` is 0, because Milvus does not report it."""
        self._sequence = self._rows.last_sequence(self._sequence)
        return CollectionInfo(
            name=self.name,
            space=self.space,
            dim=self.dim,
            count=self._rows.count(""),
            labelled=self._rows.count(_LABELLED),
            sequence=self._sequence,
            index_kind="flat",
            disk_bytes=0,
            created_at=self._created_at,
            id=self.id,
        )

    def check_space(self, space: str) -> None:
        """Raise FailedPreconditionError, naming both, unless `space` is the collection's embedding space."""
        validation.same_space(self.name, self.space, space)

    def upsert(self, items: Sequence[VectorItem]) -> UpsertResult:
        """Insert items or replace those whose key exists; of equal keys the last one counts. Durable on return.

        Raises:
            InvalidArgumentError: an item cannot be stored; nothing is written.
        """
        batch = transactions.prepare(items, self.dim, SearchPriority())
        if not batch.rows:
            return UpsertResult((), 0)
        known = self._rows.by_key([row.key for row in batch.rows], ["sequence"])
        sequences = self._take(len(batch.rows), [int(row["sequence"]) for row in known.values()])
        self._upsert(rows_of(batch, sequences))
        outcomes = transactions.outcomes(batch, [row.key in known for row in batch.rows])
        return UpsertResult(outcomes, self._wrote(sequences[-1]))

    def update(self, changes: Sequence[ItemUpdate]) -> UpdateResult:
        """Change labels or payloads and leave the vectors alone. Durable on return.

        Raises:
            InvalidArgumentError: a change cannot be stored; nothing is written.
        """
        wanted = updates.prepare(changes)
        if not wanted:
            return UpdateResult(0, (), 0)
        known = self._rows.by_key(list(wanted), ["sequence"])
        missing = tuple(key for key in wanted if key not in known)
        if not known:
            return UpdateResult(0, missing, 0)
        sequences = self._take(len(known), [int(row["sequence"]) for row in known.values()])
        rows: list[dict[str, Any]] = []
        for key, sequence in zip((key for key in wanted if key in known), sequences, strict=True):
            change = wanted[key]
            row: dict[str, Any] = {"key": key, "sequence": sequence}
            if change.label is not None:
                row["label"] = validation.label(change.label) or ""
            if change.payload is not None:
                row |= payload_columns(key, validation.payload_text(change.payload))
            rows.append(row)
        # Rows of one call must have the same columns.
        for columns in {tuple(row) for row in rows}:
            self._upsert([row for row in rows if tuple(row) == columns], partial_update=True)
        return UpdateResult(len(rows), missing, self._wrote(sequences[-1]))

    def delete(self, keys: Sequence[str]) -> DeleteResult:
        """Delete items by key; keys that do not exist are ignored. Durable on return."""
        wanted = validation.keys(keys)
        self._check_writable()
        return self._delete(list(self._rows.by_key(wanted, ["key"]))) if wanted else DeleteResult(0, 0)

    def delete_matching(self, condition: Condition) -> DeleteResult:
        """Delete the items that meet a condition. Durable on return.

        Raises:
            InvalidArgumentError: the condition is invalid, or Milvus cannot evaluate it exactly.
        """
        self._check_writable()
        return self._delete([row["key"] for row in self._rows.scan(expression(condition), ["key"])])

    def get(self, keys: Sequence[str]) -> list[IndexedItem | None]:
        """Return the items of `keys` in their order, None for a key that does not exist."""
        rows = self._rows.by_key(validation.keys(keys), ALL_COLUMNS)
        return [stored_item(rows[key]) if key in rows else None for key in keys]

    def thumbnail_size(self) -> int:
        """Return 0: there are no thumbnails in Milvus."""
        return 0

    def thumbnails(self, keys: Sequence[str]) -> list[Thumbnail | None]:
        """Return None for each item."""
        return [None] * len(keys)

    def map(self, field: str = "label", known: str = "") -> MapView | None:
        """Raise FailedPreconditionError: there are no maps in Milvus."""
        raise FailedPreconditionError("collections in Milvus have no map: keep the collection in a folder to have one")

    def map_keys(self, version: str, numbers: Sequence[int]) -> list[str]:
        """Raise FailedPreconditionError, likewise."""
        raise FailedPreconditionError("collections in Milvus have no map: keep the collection in a folder to have one")

    def locate(self, queries: Vector, keys: Sequence[str | None]) -> Positions:
        """Raise FailedPreconditionError, likewise."""
        raise FailedPreconditionError("collections in Milvus have no map: keep the collection in a folder to have one")

    def content_hashes(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        """Return the content hash of each of `keys` that exists; None when it is unknown."""
        rows = self._rows.by_key(validation.keys(keys), ["content_hash"])
        return {key: bytes.fromhex(row["content_hash"]) or None for key, row in rows.items()}

    def scroll(self, after_sequence: int, limit: int, condition: Condition | None = None) -> list[IndexedItem]:
        """Return the first `limit` matching items after a sequence number, in the order of sequence numbers.

        Raises:
            InvalidArgumentError: the limit or the condition is invalid.
        """
        if limit < 1:
            raise InvalidArgumentError(f"a page has 1 item or more, {limit} were asked for", field="page_size")
        return list(map(stored_item, self._rows.page(after_sequence, limit, _text(condition), ALL_COLUMNS)))

    def page(self, place: Place | None, limit: int, condition: Condition | None = None) -> Page:
        """Return the next `limit` matching items of a scroll, None for the first ones.

        Milvus does not know which row an item had before: one that is written again before its page is left out.

        Raises:
            InvalidArgumentError: the limit or the condition is invalid.
            FailedPreconditionError: the collection has been replaced since the scroll began.
        """
        if place is None:
            self._sequence = self._rows.last_sequence(self._sequence)
            place = Place(self.id, self._sequence, 0)
        if place.id != self.id:
            raise FailedPreconditionError(f"collection {self.name!r} was replaced since this scroll began: begin again")
        if limit < 1:
            raise InvalidArgumentError(f"a page has 1 item or more, {limit} were asked for", field="page_size")
        test = both(_text(condition), f"sequence <= {place.until}")
        items = list(map(stored_item, self._rows.page(place.after, limit, test, ALL_COLUMNS)))
        return Page(items, [Place(self.id, place.until, item.sequence) for item in items], len(items) < limit)

    def count(self, condition: Condition | None = None) -> int:
        """Return the number of items, or of those that match."""
        return self._rows.count(_text(condition))

    def facet(self, field: str, condition: Condition | None = None, limit: int = 100) -> list[FacetCount]:
        """Count the values of a field, the most frequent first, ties by value.

        Milvus cannot count values, so those of all matching items are read.

        Raises:
            InvalidArgumentError: an argument is invalid.
        """
        validation.in_range("limit", limit, 1, validation.MAX_K)
        column = _source(field, "field")
        values = [_value(row, field) for row in self._rows.scan(_text(condition), [column])]
        found = sorted(_column(values).counts(np.ones(len(values), np.bool_)), key=facet_order)
        return [FacetCount(value, count) for value, count in found[:limit]]

    def search(self, queries: Vector, options: SearchOptions) -> list[list[Neighbour]]:
        """Return the neighbours of each query (float32 [N, D]), most similar first, ties by key.

        Raises:
            InvalidArgumentError: a query or an option is out of its range.
            FailedPreconditionError: the search would need more items than Milvus returns.
        """
        units = validation.search(queries, options, self.dim)
        columns = ["label", *(["payload"] if options.with_payload else [])]
        exclude = options.exclude or [frozenset[str]()] * len(units)
        test = _text(options.filter)
        if options.group_by or options.diversity:
            if options.group_by:
                columns = list(dict.fromkeys([*columns, _source(options.group_by, "group_by")]))
            every = [self._search_dependent(*pair, options, test, columns) for pair in zip(units, exclude, strict=True)]
        else:
            every = [_cut(hits, options) for hits in self._nearest(units, options.k, exclude, test, columns)]
        return [_neighbours(hits, options) for hits in every]

    def classify(self, queries: Vector, options: ClassifyOptions) -> list[Prediction]:
        """Return the class of each query (float32 [N, D]).

        Raises:
            InvalidArgumentError: a query or an option is out of its range.
            FailedPreconditionError: class means of more than a million items are needed.
        """
        units = validation.classification(queries, options, self.dim)
        test = both(_text(options.filter), _LABELLED)
        excluded = self._excluded_keys(options, len(units))
        if options.method is ClassifyMethod.PROTOTYPE:
            return self._by_prototypes(units, options, test, excluded)
        found = self._nearest(units, options.k, excluded, test, ["label"])
        return [vote([row["label"] for row in hits.rows], hits.similarities, options) for hits in found]

    def calibration(self, method: ClassifyMethod) -> Calibration | None:
        """Return None, because a collection in Milvus cannot be calibrated."""
        return None

    def evaluate(self, options: EvaluateOptions) -> Evaluation:
        """Raise FailedPreconditionError, because this needs all vectors in memory."""
        raise _unsupported("evaluate")

    def calibrate(self, options: EvaluateOptions) -> Evaluation:
        """Raise FailedPreconditionError, because this needs all vectors in memory."""
        raise _unsupported("calibrate")

    def duplicates(
        self, min_similarity: float = 0.98, on_progress: Callable[[int], object] | None = None
    ) -> list[Group]:
        """Raise FailedPreconditionError, because this needs all vectors in memory."""
        raise _unsupported("compare every pair of")

    def items(self) -> Iterator[IndexedItem]:
        """Yield all items that were written until now, in the order of their last write."""
        until = self._sequence = self._rows.last_sequence(self._sequence)
        yield from map(stored_item, self._rows.scan("", ALL_COLUMNS, until))

    def close(self) -> None:
        """Close the collection; closing twice is safe."""
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, count: int, replaced: Sequence[int]) -> list[int]:
        self._check_writable()
        return self._clock.take(count, max(replaced, default=0))

    def _wrote(self, sequence: int) -> int:
        self._sequence = max(self._sequence, sequence)
        return sequence

    def _check_writable(self) -> None:
        if self._read_only:
            raise FailedPreconditionError("the store is open for reading only: open it for writing")

    def _upsert(self, rows: list[dict[str, Any]], **options: bool) -> None:
        for begin in range(0, len(rows), ROWS_PER_CALL):
            self._connection.write("upsert", self._table, rows[begin : begin + ROWS_PER_CALL], **options)

    def _delete(self, keys: Sequence[str]) -> DeleteResult:
        for begin in range(0, len(keys), ROWS_PER_CALL):
            self._connection.write("delete", self._table, filter=among("key", keys[begin : begin + ROWS_PER_CALL]))
        return DeleteResult(len(keys), self._wrote(self._clock.take(1, self._sequence)[0]) if keys else 0)

    def _nearest(
        self, units: Vector, k: int, excluded: Sequence[frozenset[str]], test: str, columns: Sequence[str]
    ) -> list[Hits]:
        """Return the k nearest rows of each query, without its excluded keys."""
        if not len(units):
            return []
        more = max(map(len, excluded), default=0)
        if k + more > MAX_ROWS:
            raise InvalidArgumentError(
                f"k and the excluded keys are at most {MAX_ROWS:,} together in Milvus", field="k"
            )
        found = nearest(self._connection, self._table, units, k + more, test, columns)
        return [
            left.part(range(min(k, len(left.rows))))
            for left in (hits.without(keys) for hits, keys in zip(found, excluded, strict=True))
        ]

    def _search_dependent(
        self, unit: Vector, exclude: frozenset[str], options: SearchOptions, test: str, columns: Sequence[str]
    ) -> Hits:
        """Return grouped or diverse neighbours, see `imagekin.index.search.grouping`."""
        wanted = pool_size(options.k) if options.diversity else options.k
        if options.group_by:
            found = self._grouped(unit, wanted, exclude, options, test, columns)
        else:
            (found,) = self._nearest(unit[None], wanted, [exclude], test, columns)
        found = _cut(found, options)
        if not options.diversity:
            return found
        snapshot = _snapshot([row["key"] for row in found.rows], [None] * len(found.rows), found.vectors)
        chosen = select_diverse(
            snapshot, NearestSlots(np.arange(len(found.rows)), found.similarities), options.k, options.diversity
        )
        return found.part(chosen.slots.tolist())

    def _grouped(
        self, unit: Vector, k: int, exclude: frozenset[str], options: SearchOptions, test: str, columns: Sequence[str]
    ) -> Hits:
        """Return the nearest neighbours, skipping those of full groups."""
        test, look_at = both(test, has_value(options.group_by)), 4 * k
        most = MAX_ROWS // 2  # leaves room to request more in case of ties
        while True:
            look_at = min(look_at, most)
            (found,) = self._nearest(unit[None], look_at, [exclude], test, columns)
            groups = _column([_value(row, options.group_by) for row in found.rows]).scalars().tolist()
            room: dict[int, int] = {}
            places: list[int] = []
            for place, group in enumerate(groups):
                if group >= 0 and len(places) < k and room.setdefault(group, options.group_size):
                    room[group] -= 1
                    places.append(place)
            if len(places) == k or len(found.rows) < look_at:
                return found.part(places)
            if look_at == most:
                raise FailedPreconditionError(
                    f"the nearest {look_at:,} items are of too few groups, and Milvus answers with no more: raise"
                    " group_size or narrow the search with a filter"
                )
            look_at *= 4

    def _excluded_keys(self, options: ClassifyOptions, count: int) -> list[frozenset[str]]:
        """Return for each query the keys that do not vote."""
        by_key = options.exclude_keys or [frozenset[str]()] * count
        hashes = [value.hex() if value else "" for value in options.exclude_hashes or [None] * count]
        wanted = sorted(set(hashes) - {""})
        owners: dict[str, list[str]] = {}
        for begin in range(0, len(wanted), ROWS_PER_CALL):
            test = among("content_hash", wanted[begin : begin + ROWS_PER_CALL])
            for row in self._rows.scan(test, ["key", "content_hash"]):
                owners.setdefault(row["content_hash"], []).append(row["key"])
        return [keys.union(owners.get(value, ())) for keys, value in zip(by_key, hashes, strict=True)]

    def _by_prototypes(
        self, units: Vector, options: ClassifyOptions, test: str, excluded: Sequence[frozenset[str]]
    ) -> list[Prediction]:
        names, sums = self._class_sums(test, options.filter is None)
        keys = sorted(frozenset[str]().union(*excluded))
        rows = [row for row in self._rows.by_key(keys, ["vector", "label"]).values() if row["label"]]
        if rows and options.filter is not None:
            matching = {row["key"] for row in self._rows.scan(both(test, among("key", keys)), ["key"])}
            rows = [row for row in rows if row["key"] in matching]
        left_out = [row["key"] for row in rows]
        vectors = np.array([row["vector"] for row in rows], np.float32).reshape(len(rows), self.dim)
        snapshot = _snapshot(left_out, [row["label"] for row in rows], vectors, names)
        slots = [np.array([left_out.index(key) for key in each if key in left_out], np.int64) for each in excluded]
        return by_prototypes(snapshot, units, options, sums, slots)

    def _class_sums(self, test: str, all_items: bool) -> tuple[list[str], ClassSums]:
        """Return the names and the sums of the classes; sums of all items are cached until the next write."""
        self._sequence = self._rows.last_sequence(self._sequence)
        count = self._rows.count(test)
        known = self._means
        if all_items and known is not None and known[0] == self._sequence and int(known[2].counts.sum()) == count:
            return known[1], known[2]
        if count > _MAX_ITEMS_FOR_MEANS:
            raise FailedPreconditionError(
                f"class means of {count:,} items in Milvus take too long: classify with knn, or narrow it with a filter"
            )
        columns = Columns(self.dim, count)
        rows = self._rows.scan(test, ["vector", "label"])
        while part := list(itertools.islice(rows, ROWS_PER_CALL)):
            vectors = np.array([row["vector"] for row in part], np.float32)
            sequences = np.array([int(row["sequence"]) for row in part])
            columns.append(sequences, [b""] * len(part), [row["label"] for row in part], [None] * len(part), vectors)
        snapshot = columns.snapshot(2**62)
        sums = class_sums(snapshot, None)
        if all_items:
            self._means = (self._sequence, list(snapshot.label_names), sums)
        return list(snapshot.label_names), sums


def _text(condition: Condition | None) -> str:
    return "" if condition is None else expression(condition)


def _unsupported(what: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"imagekin cannot {what} the items of a collection in Milvus: export it and import it into a local folder"
    )


def _source(field: str, of: str) -> str:
    """Return the column of Milvus with a field whose values are compared."""
    if field == "key":
        raise InvalidArgumentError("keys are unique: use label or payload. and a path", field=of)
    if field == "label":
        return "label"
    payload_path(field, of)
    return "payload"


def _value(row: dict[str, Any], field: str) -> Any:
    if field == "label":
        return row["label"] or MISSING
    return value_at(payload_of(row), payload_path(field))


def _column(values: Sequence[Any]) -> Column:
    """Return values as a column, which compares and counts them."""
    column = Column(np.arange(len(values)))
    column.fill(np.arange(len(values)), values)
    return column


def _snapshot(
    keys: Sequence[str], labels: Sequence[str | None], vectors: Vector, names: Sequence[str] = ()
) -> ColumnSnapshot:
    """Return a few items as a snapshot, for the local store's algorithms."""
    columns = Columns(vectors.shape[1], len(keys), names)
    columns.append(
        np.arange(1, len(keys) + 1), [key.encode() for key in keys], list(labels), [None] * len(keys), vectors
    )
    return columns.snapshot(len(keys))


def _cut(hits: Hits, options: SearchOptions) -> Hits:
    if options.min_similarity is None:
        return hits
    # Compared in float32, as the similarities are: an item exactly at the bound stays.
    return hits.part(range(int(np.count_nonzero(hits.similarities >= np.float32(options.min_similarity)))))


def _neighbours(hits: Hits, options: SearchOptions) -> list[Neighbour]:
    return [
        Neighbour(
            row["key"],
            similarity,
            row["label"] or None,
            payload_of(row) if options.with_payload else None,
            vector if options.with_vector else None,
        )
        for row, similarity, vector in zip(hits.rows, hits.similarities.tolist(), hits.vectors, strict=True)
    ]
