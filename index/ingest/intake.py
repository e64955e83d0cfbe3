"""Decide which records of a source have to be embedded and stored."""

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from imagekin.errors import ImagekinError
from imagekin.index.ingest.report import IngestTally
from imagekin.index.ingest.seen_keys import Seen, SeenKeys
from imagekin.index.types import VectorItem
from imagekin.sources.records import OTHER_IMAGE, OTHER_LABEL, Record, SourceError
from imagekin.types import ItemUpdate, Payload, UpsertResult, Vector

Conflict: TypeAlias = Literal["update", "skip", "replace", "error"]


class KnownMetadata(Protocol):
    """The metadata of a stored item."""

    @property
    def key(self) -> str:
        """Key of the item."""
        ...

    @property
    def label(self) -> str | None:
        """Label of the item."""
        ...

    @property
    def payload(self) -> Payload | None:
        """Payload of the item."""
        ...

    @property
    def content_hash(self) -> bytes | None:
        """SHA-256 of the image or vector that it was made from; None when unknown."""
        ...

    @property
    def sequence(self) -> int:
        """Sequence number of its last write."""
        ...


class Sink(Protocol):
    """The destination of items: a local collection or a client of a server, called from two threads at once."""

    def content_hashes(self, keys: Sequence[str]) -> Mapping[str, bytes | None]:
        """Return the content hashes of those of the keys that exist."""
        ...

    def get(self, keys: Sequence[str]) -> Sequence[KnownMetadata | None]:
        """Return the items of `keys` in their order, None for a key that does not exist."""
        ...

    def scroll(self, after_sequence: int, limit: int) -> Sequence[KnownMetadata]:
        """Return the first `limit` items after a sequence number, in the order of sequence numbers."""
        ...

    def upsert(self, items: Sequence[VectorItem]) -> UpsertResult:
        """Store items whose keys are all different, durably."""
        ...

    def update(self, changes: Sequence[ItemUpdate]) -> object:
        """Change labels or payloads and leave the vectors alone, durably."""
        ...

    def delete(self, keys: Sequence[str]) -> object:
        """Delete items by key, durably."""
        ...


class New(NamedTuple):
    """A record that has to be stored; data is a file's bytes or a vector, which may come with a thumbnail."""

    key: str
    data: bytes | Vector
    label: str | None
    payload: Payload | None
    content_hash: bytes
    thumbnail: bytes | None = None


class Intake:
    """A filter that passes on the records to store, and counts the rest.

    Args:
        sink: the destination, asked which records it holds.
        on_conflict: action for a record whose key exists with other content.
        seen: the keys of this run.
        tally: the counts of this run.
        stop: ends the reading when it is set.
    """

    def __init__(
        self, sink: Sink, on_conflict: Conflict, seen: SeenKeys, tally: IngestTally, stop: threading.Event
    ) -> None:
        self._sink = sink
        self._on_conflict = on_conflict
        self._seen = seen
        self._tally = tally
        self._stop = stop

    def new(self, records: Iterable[Record], at_once: int, max_bytes: int) -> Iterator[New]:
        """Yield the records to store; asks the sink about at most `at_once` records, of `max_bytes`, at a time."""
        chunk: list[New] = []
        size = 0
        for record in self._readable(records):
            chunk.append(record)
            size += len(record.data) if isinstance(record.data, bytes) else record.data.nbytes
            if len(chunk) == at_once or size >= max_bytes:
                yield from self._unknown(chunk)
                chunk, size = [], 0
        yield from self._unknown(chunk)

    def _readable(self, records: Iterable[Record]) -> Iterator[New]:
        for record in records:
            if self._stop.is_set():
                return
            data = record.data
            if isinstance(data, ImagekinError):
                self._tally.failed(record.key, str(data), incomplete=isinstance(data, SourceError))
                continue
            yield New(record.key, data, record.label, record.payload, content_hash(record), record.thumbnail)

    def _unknown(self, chunk: list[New]) -> Iterator[New]:
        """Yield the records of a chunk that have to be stored."""
        if not chunk:
            return
        held = self._sink.content_hashes([record.key for record in chunk])
        stored: list[New] = []
        skipped = 0
        met = self._seen.meet([(record.key, record.content_hash, record.label) for record in chunk])
        for record, (before, other) in zip(chunk, met, strict=True):
            if before is Seen.OTHER_CONTENT:
                self._tally.failed(record.key, OTHER_IMAGE)
                continue
            if before is Seen.OTHER_LABEL:
                self._tally.failed(record.key, OTHER_LABEL)
                continue
            if before is Seen.SAME:
                skipped += 1
                continue
            if other is not None:
                self._tally.duplicate(record.key, other)
            if record.key not in held:
                yield record
            elif held[record.key] == record.content_hash:
                stored.append(record)
            elif self._on_conflict == "replace":
                yield record
            elif self._on_conflict == "skip":
                skipped += 1
            else:
                self._tally.failed(record.key, "the key exists with other content", conflict=True)
        skipped += self._update_metadata(stored)
        if skipped:
            self._tally.skipped(skipped)

    def _update_metadata(self, records: list[New]) -> int:
        """Update changed labels and payloads of records stored with the same content; return how many are unchanged."""
        if self._on_conflict == "skip" or not records:
            return len(records)
        found = self._sink.get([record.key for record in records])
        changed = [record for record, item in zip(records, found, strict=True) if item and _differs(record, item)]
        if self._on_conflict == "error":
            for record in changed:
                self._tally.failed(record.key, "the key exists with another label or payload", conflict=True)
        elif changed:
            self._sink.update([ItemUpdate(new.key, new.label or "", new.payload or {}) for new in changed])
            self._tally.updated(len(changed))
        return len(records) - len(changed)


def content_hash(record: Record) -> bytes:
    """Return the SHA-256 of a record's content that the source states, else that of its image or vector."""
    data = record.data
    assert not isinstance(data, ImagekinError)  # noqa: S101
    return record.content_hash or hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).digest()


def _differs(record: New, item: KnownMetadata) -> bool:
    return (item.label or None, item.payload or None) != (record.label or None, record.payload or None)
