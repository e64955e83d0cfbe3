"""Implement the interface of a collection on a folder of this machine."""

import contextlib
import functools
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.index import validation
from imagekin.index.classification import evaluate as evaluation
from imagekin.index.classification.classify import ClassSums, by_prototypes, by_votes, class_sums, slots_of_hash
from imagekin.index.filters.conditions import Condition, check
from imagekin.index.filters.selection import count_values, groups_of, select
from imagekin.index.filters.sql import matching_rows
from imagekin.index.local.replaced import Replaced, live_hashes
from imagekin.index.local.residence import Residence, Residents, Stay
from imagekin.index.local.store import LocalStore
from imagekin.index.maps import views
from imagekin.index.maps.job import MapReport, keep_live, make_map
from imagekin.index.maps.placing import place
from imagekin.index.maps.saved import KnownPlaces, Positions
from imagekin.index.maps.settings import MapSettings
from imagekin.index.search import duplicates
from imagekin.index.search.gpu.device_thread import DeviceThread
from imagekin.index.search.grouping import nearest_per_group, pool_size, select_diverse
from imagekin.index.search.nearest import NearestSlots, cut, excluding, neighbours
from imagekin.index.search.radius import search_radius
from imagekin.index.storage import reads, schema, scrolls, transactions, updates
from imagekin.index.storage.columns import ColumnSnapshot, Mask, Slots
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
    Payload,
    Prediction,
    Thumbnail,
    UpdateResult,
    UpsertResult,
    Vector,
)

T = TypeVar("T")
_PAGE = 1000
# Above this k, a search with a least similarity runs as a range search.
_MAX_NEAREST_K = 1000


class LocalCollection:
    """A collection in a folder of this machine; `imagekin.index.interface.Collection` specifies its methods.

    Args:
        folder: the collection's folder.
        name: its name.
        read_only: take no lock and write nothing; commits of another process become visible.
        device: the device that searches the sealed rows; None for the processor.
        residents: bounds how many collections are open at a time; None for no bound.

    Raises:
        NotFoundError: there is no such collection.
        FailedPreconditionError: another process has it open for writing, or a newer version wrote it.
        DataLossError: it is damaged.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        read_only: bool = False,
        device: DeviceThread | None = None,
        residents: Residents | None = None,
    ) -> None:
        def open_store() -> LocalStore:
            return LocalStore(folder, name, read_only=read_only, device=device)

        self._residence = Residence(name, open_store, residents)

    @property
    def name(self) -> str:
        """Name of the collection."""
        return self._residence.name

    @property
    def id(self) -> str:
        """Random id of what the collection has been since it was made or restored."""
        return self._residence.identity.id

    @property
    def space(self) -> str:
        """Id of the embedding space of its vectors."""
        return self._residence.identity.space

    @property
    def dim(self) -> int:
        """Number of components of its vectors."""
        return self._residence.identity.dim

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._residence.closed

    @property
    def is_open(self) -> bool:
        """True while it has files open; it opens them again when it is used."""
        return self._residence.is_open

    def is_current(self) -> bool:
        """Return whether its files are open and nobody has replaced it since."""
        return self._residence.is_current()

    def info(self) -> CollectionInfo:
        """Return the collection's state."""
        with self._residence.view(lambda store: contextlib.nullcontext((store.state, store.snapshot()))) as (stay, now):
            state, snapshot = now
            disk_bytes, identity = stay.store.disk_bytes, stay.store.identity
            size = stay.store.thumbnails.size
        index, resident = snapshot.approximate, snapshot.resident
        return CollectionInfo(
            name=self.name,
            space=identity.space,
            dim=identity.dim,
            count=state.count,
            labelled=state.labelled,
            sequence=state.sequence,
            index_kind=index.kind if index is not None else "flat",
            disk_bytes=disk_bytes,
            created_at=identity.created_at,
            recall=index.recall if index is not None else None,
            index_device="cpu" if resident is None or resident.failed else "cuda",
            id=identity.id,
            thumbnail_size=size,
        )

    def check_space(self, space: str) -> None:
        """Raise FailedPreconditionError, naming both, unless `space` is the collection's embedding space."""
        validation.same_space(self.name, self.space, space)

    def upsert(self, items: Sequence[VectorItem]) -> UpsertResult:
        """Insert items or replace those whose key exists; of equal keys the last one counts. Durable on return.

        Raises:
            InvalidArgumentError: an item cannot be stored; nothing is written.
        """
        with self._residence.use() as stay, stay.store.priority.writing(len(items)):
            batch = transactions.prepare(items, self.dim, stay.store.priority)
            if not batch.rows:
                return UpsertResult((), 0)

            thumbnails, replaced = stay.store.thumbnails, Replaced(stay.store)

            def change(transaction: transactions.Transaction) -> UpsertResult:
                replaced.note(transaction, [row.key for row in batch.rows])
                existed = transaction.upsert(batch)
                return UpsertResult(transactions.outcomes(batch, existed), transaction.sequence)

            given = {item.content_hash: item.thumbnail for item in items if item.content_hash and item.thumbnail}
            with thumbnails.kept(given):
                result = stay.store.write(change)
            replaced.forget()
            return result

    def delete(self, keys: Sequence[str]) -> DeleteResult:
        """Delete items by key; keys that do not exist are ignored. Durable on return."""
        wanted = validation.keys(keys)
        if not wanted:
            return DeleteResult(0, 0)
        with self._residence.use() as stay:
            return _delete(stay.store, lambda _: wanted)

    def update(self, changes: Sequence[ItemUpdate]) -> UpdateResult:
        """Change labels or payloads and leave the vectors alone. Durable on return.

        Raises:
            InvalidArgumentError: a change cannot be stored; nothing is written.
        """
        wanted = updates.prepare(changes)

        def change(transaction: transactions.Transaction) -> UpdateResult:
            return updates.apply(transaction, wanted, self.dim, self.name)

        return self._write(change) if wanted else UpdateResult(0, (), 0)

    def delete_matching(self, condition: Condition) -> DeleteResult:
        """Delete the items that meet a condition. Durable on return.

        Raises:
            InvalidArgumentError: the condition is invalid.
            DataLossError: an item that it may concern is damaged; nothing is deleted.
        """
        check(condition)
        # Only the database decides, never a column or a segment. Rows never change, so those that match now still do if
        # they exist. The transaction of the write only has to check the rows written since.
        with self._residence.use() as stay:
            with stay.store.reading() as (connection, snapshot):
                known = [sequence for sequence, _ in matching_rows(connection, condition, self.name)]
                reads.check_rows(connection, known, self.dim, self.name)
                last = snapshot.sequence

            def matching(transaction: transactions.Transaction) -> list[str]:
                since = matching_rows(transaction.connection, condition, self.name, last)
                return [*reads.keys_of(transaction.connection, known), *(key for _, key in since)]

            return _delete(stay.store, matching)

    def get(self, keys: Sequence[str]) -> list[IndexedItem | None]:
        """Return the items of `keys` in their order, None for a key that does not exist."""
        wanted = validation.keys(keys)
        with self._reading() as (_, connection, _):
            items = reads.read_items(connection, wanted, self.dim, self.name)
        return [items.get(key) for key in keys]

    def content_hashes(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        """Return the content hash of each of `keys` that exists; None when it is unknown."""
        wanted = validation.keys(keys)
        with self._reading() as (_, connection, _):
            return reads.read_hashes(connection, wanted)

    def thumbnail_size(self) -> int:
        """Return the pixels of the longer side of the collection's thumbnails, 0 when it has none."""
        with self._residence.use() as stay:
            return stay.store.thumbnails.size

    def thumbnails(self, keys: Sequence[str]) -> list[Thumbnail | None]:
        """Return the thumbnail of each item, None where there is no item or it has none."""
        known = self.content_hashes(keys)
        hashes = [known.get(key) for key in keys]
        with self._residence.use() as stay:
            found = stay.store.thumbnails.get(hashes)
        pairs = zip(hashes, found, strict=True)
        return [Thumbnail(jpeg, value) if jpeg and value else None for value, jpeg in pairs]

    def keep_thumbnails(self, size: int) -> None:
        """Keep thumbnails of that many pixels from now on; does nothing where the collection does already."""
        with self._residence.use() as stay:
            stay.store.thumbnails.make(size)

    def without_thumbnail(self, hashes: Sequence[bytes]) -> list[bytes]:
        """Return those of some content hashes that an item has, and that have no thumbnail."""
        with self._residence.use() as stay:
            return stay.store.thumbnails.missing(live_hashes(stay.store, hashes)) if hashes else []

    def add_thumbnails(self, thumbnails: Mapping[bytes, bytes]) -> None:
        """Store thumbnails, by content hash, of items that are there."""
        with self._residence.use() as stay, stay.store.thumbnails.kept(thumbnails):
            pass
        # An item may have gone since its thumbnail was made.
        with self._residence.use() as stay:
            stay.store.thumbnails.forget(thumbnails, functools.partial(live_hashes, stay.store))

    def scroll(self, after_sequence: int, limit: int, condition: Condition | None = None) -> list[IndexedItem]:
        """Return the first `limit` matching items after a sequence number, in the order of sequence numbers.

        Raises:
            InvalidArgumentError: the limit or the condition is invalid.
        """
        if limit < 1:
            raise InvalidArgumentError(f"a page has 1 item or more, {limit} were asked for", field="page_size")
        if condition is None:
            with self._reading() as (_, connection, _):
                return reads.read_page(connection, after_sequence, limit, self.dim, self.name)
        with self._selected(condition) as (_, connection, snapshot, mask):
            sequences = snapshot.sequences[mask]
            page = sequences[np.searchsorted(sequences, after_sequence, side="right") :][:limit]
            return reads.read_rows(connection, page.tolist(), self.dim, self.name)

    def page(self, place: Place | None, limit: int, condition: Condition | None = None) -> Page:
        """Return the next `limit` matching items of a scroll, None for the first ones; see `index.storage.scrolls`.

        Raises:
            InvalidArgumentError: the limit or the condition is invalid.
            FailedPreconditionError: the collection has been replaced, or has changed too much, since the scroll began.
        """
        if limit < 1:
            raise InvalidArgumentError(f"a page has 1 item or more, {limit} were asked for", field="page_size")
        with self._selected(condition) as (stay, connection, snapshot, mask):
            own = stay.store.identity.id
            if place is None:
                place = Place(own, snapshot.sequence, 0)
            if place.id != own:
                raise FailedPreconditionError(
                    f"collection {self.name!r} was replaced since this scroll began: begin again"
                )
            scrolls.check_kept(schema.read_state(connection, self.name), place.until, self.name)
            wanted = None if condition is None else mask
            found = scrolls.read_places(connection, snapshot, wanted, place.after, place.until, limit)
            items = scrolls.read_scrolled(connection, found, self.dim, self.name)
            return Page(items, [Place(own, place.until, at) for at, _ in found], len(found) < limit)

    def count(self, condition: Condition | None = None) -> int:
        """Return the number of items, or of those that match."""
        if condition is None:
            return self._snapshot().live
        with self._selected(condition) as (_, _, _, mask):
            return int(np.count_nonzero(mask))

    def facet(self, field: str, condition: Condition | None = None, limit: int = 100) -> list[FacetCount]:
        """Count the values of a field, the most frequent first, ties by value.

        Args:
            field: `label` or `payload.` and a dotted path; texts, numbers and truth values are counted.
            condition: condition that counted items meet; None for all items.
            limit: most values to return, 1 to 10,000.

        Raises:
            InvalidArgumentError: an argument is invalid.
        """
        if not 1 <= limit <= validation.MAX_K:
            raise InvalidArgumentError(f"limit must be 1 to {validation.MAX_K}, it is {limit}", field="limit")
        with self._selected(condition) as (stay, connection, snapshot, mask):
            return count_values(connection, snapshot, stay.fields, field, mask, limit)

    def search(self, queries: Vector, options: SearchOptions) -> list[list[Neighbour]]:
        """Return the neighbours of each query (float32 [N, D]), most similar first, ties by key.

        Raises:
            InvalidArgumentError: a query or an option is out of its range.
        """
        units = validation.search(queries, options, self.dim, validation.MAX_WITHIN)
        if options.filter is None and not (options.with_payload or options.group_by or options.diversity):
            stay, snapshot = self._residence.snapshot()
            stay.store.priority.note_search()
            found = _search(snapshot, units, options)
            return _neighbours(snapshot, found, {}, options.with_vector)
        with self._selected(options.filter) as (stay, connection, snapshot, mask):
            stay.store.priority.note_search()
            if options.group_by or options.diversity:
                found = self._search_dependent(stay, connection, snapshot, units, options, mask)
            else:
                found = _search(snapshot, units, options, None if options.filter is None else mask)
            payloads: dict[int, Payload] = {}
            if options.with_payload:
                sequences = {int(sequence) for one in found for sequence in snapshot.sequences[one.slots]}
                payloads = reads.read_payloads(connection, list(sequences), self.name)
            return _neighbours(snapshot, found, payloads, options.with_vector)

    def classify(self, queries: Vector, options: ClassifyOptions) -> list[Prediction]:
        """Return the class of each query (float32 [N, D]).

        Raises:
            InvalidArgumentError: a query or an option is out of its range.
        """
        units = validation.classification(queries, options, self.dim)
        snapshot, mask, excluded = self._excluded_slots(options, len(units))
        if options.method is ClassifyMethod.KNN:
            return by_votes(snapshot, units, options, mask, excluded)
        sums = self._class_sums(snapshot) if mask is None else class_sums(snapshot, mask)
        if mask is not None:
            excluded = [slots[mask[slots]] for slots in excluded]
        return by_prototypes(snapshot, units, options, sums, excluded)

    def evaluate(self, options: EvaluateOptions) -> Evaluation:
        """Classify the labelled items, each by the others, and measure the result.

        Raises:
            FailedPreconditionError: fewer than two classes have labelled items.
        """
        return evaluation.evaluate(self._snapshot(), options)

    def calibrate(self, options: EvaluateOptions) -> Evaluation:
        """Evaluate, and save temperature and similarity bound as defaults of classification; raises as `evaluate`."""
        snapshot = self._snapshot()
        found = evaluation.evaluate(snapshot, options)
        kept = Calibration(found.temperature, found.min_similarity, options.true_positive_rate, snapshot.sequence)

        def change(transaction: transactions.Transaction) -> None:
            evaluation.save(transaction.connection, options.method, kept)

        self._write(change)
        return found

    def calibration(self, method: ClassifyMethod) -> Calibration | None:
        """Return the defaults of classification that `calibrate` saved; None without any."""
        with self._reading() as (_, connection, _):
            return evaluation.read(connection, method)

    def duplicates(
        self, min_similarity: float = 0.98, on_progress: Callable[[int], object] | None = None
    ) -> list[Group]:
        """Return groups of near-duplicates, the largest first; see `duplicates.groups`.

        Raises:
            InvalidArgumentError: `min_similarity` is not within 0 to 1.
        """
        validation.in_range("min_similarity", min_similarity, 0.0, 1.0)
        return duplicates.groups(self._snapshot(), min_similarity, on_progress)

    def make_map(self, settings: MapSettings, *, anew: bool, advance: Callable[[int], object]) -> MapReport:
        """Make the map, or complete it; see `imagekin.index.maps.job`. It takes no lock, as the map is derived."""
        with self._residence.view(lambda store: contextlib.nullcontext(store.snapshot())) as (stay, snapshot):
            kept, own = stay.store.map, stay.store.identity.id
            with schema.storage_errors(self.name):
                return make_map(snapshot, kept.folder, own, settings, anew=anew, advance=advance)

    def map(self, field: str = "label", known: str = "") -> views.MapView | None:
        """Return where each item lies and its value of a field; None when that is the view of the version `known`.

        Raises:
            FailedPreconditionError: there is no map.
            InvalidArgumentError: values of the field cannot be told apart.
        """
        with self._reading() as (stay, connection, snapshot):
            places, own = self._places(stay), stay.store.identity.id
            return views.view(connection, snapshot, stay.fields, places, own, field, known)

    def map_keys(self, version: str, numbers: Sequence[int]) -> list[str]:
        """Return the keys of items by their numbers on a map; raises as `imagekin.index.maps.views.keys_of`."""
        with self._reading() as (stay, _, snapshot):
            return views.keys_of(snapshot, stay.store.identity.id, self.name, version, numbers)

    def locate(self, queries: Vector, keys: Sequence[str | None]) -> Positions:
        """Return a position for each query: that of the item whose key is given, else by its neighbours.

        Raises:
            FailedPreconditionError: there is no map.
        """
        with self._reading() as (stay, connection, snapshot):
            places = self._places(stay)
            views.complete(snapshot, np.flatnonzero(snapshot.alive()), places)
            found = place(snapshot, queries, places)
            for row, key in enumerate(keys):
                own, has = places.find(np.array([] if key is None else reads.sequences_of(connection, [key]), np.int64))
                if has.any():
                    found[row] = own[0]
            return found

    def items(self) -> Iterator[IndexedItem]:
        """Yield all items of one point in time, in the order of their last write; writers may go on meanwhile."""
        with self._reading() as (_, connection, _):
            after = 0
            while page := reads.read_page(connection, after, _PAGE, self.dim, self.name):
                yield from page
                after = page[-1].sequence

    def seal(self) -> None:
        """Write the columns to segments, so that opening again is fast; also done regularly in the background."""
        with self._residence.use() as stay:
            stay.store.seal()

    def check_segments(self) -> None:
        """Verify the segments now, unless they have been; a damaged one is no longer used.

        Raises:
            DataLossError: the database, read in its place, is damaged too.
        """
        with self._residence.use() as stay:
            stay.store.check_segments()

    def build_index(self) -> None:
        """Build the approximate index for the collection's kind and size; also done in the background."""
        with self._residence.use() as stay:
            stay.store.build_index()

    def compact(self) -> None:
        """Remove dead slots from memory and segments; also done in the background when they are many."""
        with self._residence.use() as stay:
            stay.store.compact()
            stay.store.thumbnails.sweep(functools.partial(live_hashes, stay.store))
            keep_live(stay.store.snapshot(), stay.store.map.folder, stay.store.identity.id)

    def close(self) -> None:
        """Close the collection; closing twice is safe."""
        self._residence.close()

    @property
    def _store(self) -> LocalStore:
        return self._residence.latest()

    def _places(self, stay: Stay) -> KnownPlaces:
        if (places := stay.store.map.places()) is None:
            raise FailedPreconditionError(
                f"collection {self.name!r} has no map yet: make it with `imagekin map {self.name}`"
            )
        return places

    def _snapshot(self) -> ColumnSnapshot:
        return self._residence.snapshot()[1]

    def _write(self, change: Callable[[transactions.Transaction], T]) -> T:
        with self._residence.use() as stay:
            return stay.store.write(change)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[Stay, sqlite3.Connection, ColumnSnapshot]]:
        """Open a read transaction with its snapshot."""
        with self._residence.view(LocalStore.reading) as (stay, (connection, snapshot)):
            yield stay, connection, snapshot

    @contextlib.contextmanager
    def _selected(self, condition: Condition | None) -> Iterator[tuple[Stay, sqlite3.Connection, ColumnSnapshot, Mask]]:
        """Open a read transaction with its snapshot, and select the live slots that meet a condition."""
        if condition is not None:
            check(condition)
        with self._reading() as (stay, connection, snapshot):
            if condition is None:
                yield stay, connection, snapshot, snapshot.alive()
            else:
                yield stay, connection, snapshot, select(connection, snapshot, stay.fields, condition)

    def _search_dependent(
        self,
        stay: Stay,
        connection: sqlite3.Connection,
        snapshot: ColumnSnapshot,
        queries: Vector,
        options: SearchOptions,
        mask: Mask,
    ) -> list[NearestSlots]:
        """Return grouped or diverse neighbours, see `imagekin.index.search.grouping`."""
        groups = groups_of(connection, snapshot, stay.fields, options.group_by) if options.group_by else None
        wanted = pool_size(options.k) if options.diversity else options.k
        answers = []
        for query, keys in zip(queries, options.exclude or [frozenset[str]()] * len(queries), strict=True):
            left = mask.copy()
            if keys:
                left[snapshot.slots_of(reads.sequences_of(connection, list(keys)))] = False
            if groups is None:
                (found,) = neighbours(snapshot, query[None], SearchOptions(wanted), left)
            else:
                found = nearest_per_group(snapshot, query, wanted, left, groups, options.group_size)
            found = cut(found, options.min_similarity)
            answers.append(
                select_diverse(snapshot, found, options.k, options.diversity) if options.diversity else found
            )
        return answers

    def _excluded_slots(self, options: ClassifyOptions, count: int) -> tuple[ColumnSnapshot, Mask | None, list[Slots]]:
        """Return a snapshot, the matching slots (None for all), and each query's slots that do not vote.

        The list is empty when no query has any.
        """
        hashes = options.exclude_hashes or [None] * count
        mask: Mask | None = None
        by_key: list[Slots] = []
        if options.filter is None and not any(options.exclude_keys):
            snapshot = self._snapshot()
        else:
            with self._selected(options.filter) as (_, connection, snapshot, matching):
                mask = None if options.filter is None else matching
                if any(options.exclude_keys):
                    by_key = [
                        snapshot.slots_of(reads.sequences_of(connection, list(keys))) for keys in options.exclude_keys
                    ]
        if not by_key and not any(hashes):
            return snapshot, mask, []
        by_hash = [slots_of_hash(snapshot, value) for value in hashes]
        return snapshot, mask, [np.union1d(*pair) for pair in zip(by_hash, by_key or by_hash, strict=True)]

    def _class_sums(self, snapshot: ColumnSnapshot) -> ClassSums:
        with self._residence.use() as stay:
            known = stay.classes
            # Compaction gives the labels of the same write other numbers, and a list of their own.
            if known is None or known[0] != snapshot.sequence or known[1] is not snapshot.label_names:
                known = stay.classes = (snapshot.sequence, snapshot.label_names, class_sums(snapshot, None))
            return known[2]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _search(
    snapshot: ColumnSnapshot, queries: Vector, options: SearchOptions, mask: Mask | None = None
) -> list[NearestSlots]:
    if options.min_similarity is None or options.k <= _MAX_NEAREST_K:
        return neighbours(snapshot, queries, options, mask)
    more = max((len(keys) for keys in options.exclude), default=0)
    answers = search_radius(snapshot, queries, options.k + more, options.min_similarity, mask)
    return excluding(snapshot, answers, options)


def _neighbours(
    snapshot: ColumnSnapshot, answers: Sequence[NearestSlots], payloads: Mapping[int, Payload], with_vector: bool
) -> list[list[Neighbour]]:
    """Return the neighbours of each answer, with keys and labels looked up for all of them at once."""
    if not answers:
        return []
    slots = np.concatenate([found.slots for found in answers])
    vectors = list(snapshot.vectors[slots]) if with_vector else itertools.repeat(None)
    names = [*snapshot.label_names, None]  # the last one is for UNLABELLED, which is -1
    if payloads:
        stored: Iterable[Payload | None] = map(payloads.get, snapshot.sequences[slots].tolist())
    else:
        stored = itertools.repeat(None)
    every = map(
        Neighbour,
        snapshot.keys(slots),
        np.concatenate([found.similarities for found in answers]).tolist(),
        [names[code] for code in snapshot.labels[slots].tolist()],
        stored,
        vectors,
    )
    return [list(itertools.islice(every, len(found.slots))) for found in answers]


def _delete(store: LocalStore, keys_of: Callable[[transactions.Transaction], Sequence[str]]) -> DeleteResult:
    """Delete the items of keys that a function finds within the write, and thumbnails that no item needs any more."""
    replaced = Replaced(store)

    def change(transaction: transactions.Transaction) -> DeleteResult:
        keys = keys_of(transaction)
        replaced.note(transaction, keys)
        deleted = transaction.delete(keys)
        return DeleteResult(deleted, transaction.sequence if deleted else 0)

    result = store.write(change)
    replaced.forget()
    return result
