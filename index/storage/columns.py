"""The items in memory: growing columns with one slot an item, and the immutable snapshots that readers hold.

Slots are in the order of their sequence numbers. Only one thing about a slot ever changes: `died`, the sequence number
at which its item was replaced or deleted. A snapshot of sequence number S sees the slots that were written up to S and
did not die up to S, so a writer may append to, and mark, the same arrays that readers use.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from imagekin.index.storage.combiner import Combiner
from imagekin.index.storage.search_priority import SearchPriority
from imagekin.index.vectors.codes import Codes
from imagekin.types import Vector

ALIVE = np.iinfo(np.int64).max
UNLABELLED = -1
_FIRST_CAPACITY = 1024
_COPIED_AT_ONCE = 2048

Slots = NDArray[np.int64]
Mask = NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)


class Proposer(Protocol):
    """An approximate index over the first slots, as built by `index.search.ann`; columns only hold a reference."""

    @property
    def rows(self) -> int:
        """Number of slots that it holds, from the first on."""

    @property
    def kind(self) -> str:
        """Kind of index: `hnsw`, `ivf` or `pq`."""

    @property
    def recall(self) -> float:
        """Measured share of the true neighbours that it finds."""

    def proposals(self, k: int) -> int:
        """Return how many slots are proposed for `k` neighbours."""

    def propose(self, queries: Vector, k: int, bits: NDArray[np.uint8] | None) -> NDArray[np.int64]:
        """Return slots that may be among the `k` nearest, int64 [N, …]; -1 where fewer were found."""

    def bits(self, snapshot: "ColumnSnapshot", mask: Mask | None) -> NDArray[np.uint8] | None:
        """Return which slots may be proposed, as a bitmap; None for all of them."""


class DeviceRows(Protocol):
    """The first slots in a device's memory, as in `index.search.gpu.resident`; columns only hold a reference."""

    @property
    def failed(self) -> bool:
        """True once the device has failed and can no longer be used."""

    @property
    def rows(self) -> int:
        """Number of slots that it holds, from the first on."""

    @property
    def max_k(self) -> int:
        """The largest `k` that can be asked for."""

    def top_k(self, queries: Vector, vectors: Vector, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Return the `k` largest inner products of each query and their slots; None when the device has failed."""


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSnapshot:
    """A collection as of one sequence number.

    Attributes:
        vectors: float32 [n, D], the slots' embeddings.
        sequences: int64 [n], ascending.
        died: int64 [n], sequence number of the slot's death, ALIVE for none.
        labels: int32 [n], index into `label_names`, or UNLABELLED.
        hashes: uint64 [n], short form of the content hash (`short_hash`), 0 for none.
        key_ends: int64 [n], where each key ends in `key_bytes` (it begins where the one before ends).
        key_bytes: uint8, all keys in UTF-8.
        label_names: every label that a slot has, dead ones included.
        sequence: sequence number of the snapshot.
        floor: the earliest sequence number that `at` accepts; slots that died before it have been dropped.
        live: number of slots that this snapshot sees.
        labelled: how many of those have a label.
        combiner: batches the single searches of all threads; None when they are not batched.
        approximate: an index that proposes neighbours among the first slots; None when search is exhaustive.
        resident: the first slots in the memory of a device that scans them; None when the processor does.
        codes: 8-bit codes of the first slots (and maybe of later ones), which make scanning faster.
    """

    vectors: Vector
    sequences: NDArray[np.int64]
    died: NDArray[np.int64]
    labels: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    key_ends: NDArray[np.int64]
    key_bytes: NDArray[np.uint8]
    label_names: list[str]
    sequence: int
    floor: int
    live: int
    labelled: int
    approximate: Proposer | None = None
    resident: DeviceRows | None = None
    combiner: Combiner[Any, Any] | None = None
    codes: Codes | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    def alive(self) -> Mask:
        """Return which slots this snapshot sees, bool [n]."""
        return self.died > self.sequence

    def key_utf8(self, slot: int) -> bytes:
        """Return the slot's key in UTF-8."""
        begin = self.key_ends[slot - 1] if slot else 0
        return self.key_bytes[begin : self.key_ends[slot]].tobytes()

    def key(self, slot: int) -> str:
        """Return the slot's key."""
        return self.key_utf8(slot).decode()

    def keys(self, slots: Slots) -> list[str]:
        """Return the keys of slots."""
        text, lengths = self.keys_utf8(slots)
        whole, ends = text.tobytes(), np.cumsum(lengths).tolist()
        spans = zip([0, *ends], ends, strict=False)
        if whole.isascii():
            letters = whole.decode()
            return [letters[begin:end] for begin, end in spans]
        return [whole[begin:end].decode() for begin, end in spans]

    def label(self, slot: int) -> str | None:
        """Return the slot's label, None when it has none."""
        code = self.labels[slot]
        return None if code == UNLABELLED else self.label_names[code]

    def slots_of(self, sequences: NDArray[np.int64]) -> Slots:
        """Return the slots of the given sequence numbers; those that have no slot are left out."""
        return np.searchsorted(self.sequences, sequences[self.holds(sequences)])

    def holds(self, sequences: NDArray[np.int64]) -> Mask:
        """Return which of the sequence numbers have a slot, bool [n]."""
        if not len(self):
            return np.zeros(len(sequences), np.bool_)
        slots = np.minimum(np.searchsorted(self.sequences, sequences), len(self) - 1)
        held: Mask = self.sequences[slots] == sequences
        return held

    def keys_utf8(self, slots: Slots) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the keys of slots, concatenated in UTF-8, and the length of each in bytes."""
        ends = self.key_ends[slots]
        begins = np.where(slots > 0, self.key_ends[slots - 1], 0)
        lengths = ends - begins
        places = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
        return self.key_bytes[places], lengths

    def at(self, sequence: int) -> "ColumnSnapshot":
        """Return the snapshot of an earlier sequence number, at least `floor`."""
        if sequence == self.sequence:
            return self
        end = int(np.searchsorted(self.sequences, sequence, side="right"))
        alive = self.died[:end] > sequence
        return ColumnSnapshot(
            vectors=self.vectors[:end],
            sequences=self.sequences[:end],
            died=self.died[:end],
            labels=self.labels[:end],
            hashes=self.hashes[:end],
            key_ends=self.key_ends[:end],
            key_bytes=self.key_bytes,
            label_names=self.label_names,
            sequence=sequence,
            floor=self.floor,
            live=int(np.count_nonzero(alive)),
            labelled=int(np.count_nonzero(alive & (self.labels[:end] != UNLABELLED))),
            approximate=self.approximate,
            resident=self.resident,
            combiner=self.combiner,
            codes=self.codes,
        )


class Columns:
    """The growing columns. One thread at a time may change them; any thread may use snapshots."""

    def __init__(self, dim: int, capacity: int = 0, label_names: Sequence[str] = ()) -> None:
        size = max(capacity, _FIRST_CAPACITY)
        self._size = 0
        self._floor = 0
        self._dead = 0
        self._labelled = 0
        self._vectors: Vector = np.empty((size, dim), np.float32)
        self._sequences = np.empty(size, np.int64)
        self._died = np.empty(size, np.int64)
        self._labels = np.empty(size, np.int32)
        self._hashes = np.empty(size, np.uint64)
        self._key_ends = np.empty(size, np.int64)
        self._key_size = 0
        self._key_bytes = np.empty(size * 16, np.uint8)
        self._label_names: list[str] = list(label_names)
        self._label_codes = {name: code for code, name in enumerate(self._label_names)}
        self.approximate: Proposer | None = None
        self.resident: DeviceRows | None = None
        self.combiner: Combiner[Any, Any] | None = None
        self.codes: Codes | None = None

    @classmethod
    def sealed(
        cls,
        sequence: int,
        rows: int,
        key_size: int,
        *,
        vectors: Vector,
        sequences: NDArray[np.int64],
        labels: NDArray[np.int32],
        hashes: NDArray[np.uint64],
        key_ends: NDArray[np.int64],
        key_bytes: NDArray[np.uint8],
        label_names: list[str],
        dead: Slots,
        labelled: int,
        codes: Codes | None = None,
    ) -> "Columns":
        """Make columns of arrays that already hold `rows` rows, as of `sequence`, of which the slots `dead` are dead.

        The columns take over the arrays; what follows the first `rows` rows is spare capacity.
        """
        columns = cls(vectors.shape[1], 0, label_names)
        columns._size, columns._key_size, columns._floor = rows, key_size, sequence
        columns._dead, columns._labelled = len(dead), labelled
        columns._vectors, columns._sequences = vectors, sequences
        columns._labels, columns._hashes = labels, hashes
        columns._key_ends, columns._key_bytes = key_ends, key_bytes
        columns._died = np.empty(len(sequences), np.int64)
        columns._died[:rows] = ALIVE
        columns._died[dead] = sequence
        columns.codes = codes
        return columns

    def reserve(self, items: int, key_bytes: int) -> None:
        """Allocate room, so that the next `append` of as much cannot run out of memory."""
        if self._size + items > len(self._sequences):
            # Doubling costs little: pages that were never written take no memory.
            capacity = max(2 * len(self._sequences), self._size + items)
            self._vectors = _grown(self._vectors, self._size, capacity)
            self._sequences = _grown(self._sequences, self._size, capacity)
            self._died = _grown(self._died, self._size, capacity)
            self._labels = _grown(self._labels, self._size, capacity)
            self._hashes = _grown(self._hashes, self._size, capacity)
            self._key_ends = _grown(self._key_ends, self._size, capacity)
        if self._key_size + key_bytes > len(self._key_bytes):
            capacity = max(2 * len(self._key_bytes), self._key_size + key_bytes)
            self._key_bytes = _grown(self._key_bytes, self._key_size, capacity)

    def append(
        self,
        sequences: NDArray[np.int64],
        keys: list[bytes],
        labels: list[str | None],
        hashes: list[bytes | None],
        vectors: Vector,
    ) -> None:
        """Append items with ascending sequence numbers, above all present ones; existing snapshots do not see them."""
        text = b"".join(keys)
        self.reserve(len(keys), len(text))
        new = slice(self._size, self._size + len(keys))
        self._vectors[new] = vectors
        self._sequences[new] = sequences
        self._died[new] = ALIVE
        self._labels[new] = [self._label_code(label) for label in labels]
        self._hashes[new] = np.array([short_hash(value) for value in hashes], np.uint64)
        self._key_ends[new] = self._key_size + np.cumsum([len(key) for key in keys], dtype=np.int64)
        self._key_bytes[self._key_size : self._key_size + len(text)] = np.frombuffer(text, np.uint8)
        self._key_size += len(text)
        self._size += len(keys)
        self._labelled += int(np.count_nonzero(self._labels[new] != UNLABELLED))

    def kill(self, sequences: NDArray[np.int64], at: NDArray[np.int64]) -> None:
        """Mark the slots of `sequences` as dead from the sequence numbers `at` on."""
        slots = np.searchsorted(self._sequences[: self._size], sequences)
        self._died[slots] = at
        self._dead += len(slots)
        self._labelled -= int(np.count_nonzero(self._labels[slots] != UNLABELLED))

    def holds(self, sequences: NDArray[np.int64]) -> Mask:
        """Return which of the sequence numbers have a slot, bool [n]."""
        return self.snapshot(0).holds(sequences)

    def forget_before(self, sequence: int) -> None:
        """Set the earliest sequence number for snapshots, because slots that died before it are missing."""
        self._floor = sequence

    def snapshot(self, sequence: int) -> ColumnSnapshot:
        """Return the snapshot of `sequence`, the latest one appended or killed."""
        size = self._size
        return ColumnSnapshot(
            vectors=self._vectors[:size],
            sequences=self._sequences[:size],
            died=self._died[:size],
            labels=self._labels[:size],
            hashes=self._hashes[:size],
            key_ends=self._key_ends[:size],
            key_bytes=self._key_bytes[: self._key_size],
            label_names=self._label_names,
            sequence=sequence,
            floor=self._floor,
            live=size - self._dead,
            labelled=self._labelled,
            approximate=self.approximate,
            resident=self.resident,
            combiner=self.combiner,
            codes=self.codes,
        )

    @property
    def dead_share(self) -> float:
        """Share of the slots that are dead."""
        return self._dead / self._size if self._size else 0.0

    @property
    def dim(self) -> int:
        """Number of components of a vector."""
        return int(self._vectors.shape[1])

    @property
    def size(self) -> int:
        """Number of slots, dead ones included."""
        return self._size

    @classmethod
    def of_live(cls, view: ColumnSnapshot, priority: SearchPriority) -> "Columns":
        """Copy the live slots of a snapshot into new columns; `catch_up` adds what is written later."""
        live = np.flatnonzero(view.alive())
        fresh = cls(view.vectors.shape[1], len(live))  # labels that no slot has any more are left behind
        fresh.forget_before(view.sequence)
        fresh._copy(view, live, priority)
        return fresh

    def catch_up(self, view: ColumnSnapshot, since: int, priority: SearchPriority) -> None:
        """Copy the writes after `since`, the sequence number of these columns, from a snapshot of other columns."""
        self._copy(view, np.arange(np.searchsorted(view.sequences, since, side="right"), len(view)), priority)
        died = np.flatnonzero((view.died > since) & (view.died <= view.sequence))
        self.kill(view.sequences[died], view.died[died])

    def _copy(self, view: ColumnSnapshot, slots: Slots, priority: SearchPriority) -> None:
        """Append slots of other columns as live ones."""
        names = view.label_names
        codes = np.full(len(names) + 1, UNLABELLED, np.int32)  # the last one is for UNLABELLED itself
        for code in np.unique(view.labels[slots]).tolist():
            if code != UNLABELLED:
                codes[code] = self._label_code(names[code])
        for begin in range(0, len(slots), _COPIED_AT_ONCE):
            self._copy_some(view, slots[begin : begin + _COPIED_AT_ONCE], codes)
            priority.yield_processor()

    def _copy_some(self, view: ColumnSnapshot, slots: Slots, codes: NDArray[np.int32]) -> None:
        """Append slots of other columns; `codes` maps their label codes to the codes here."""
        text, lengths = view.keys_utf8(slots)
        self.reserve(len(slots), len(text))
        new = slice(self._size, self._size + len(slots))
        self._vectors[new] = view.vectors[slots]
        self._sequences[new] = view.sequences[slots]
        self._died[new] = ALIVE
        self._labels[new] = codes[view.labels[slots]]
        self._hashes[new] = view.hashes[slots]
        self._key_ends[new] = self._key_size + np.cumsum(lengths)
        self._key_bytes[self._key_size : self._key_size + len(text)] = text
        self._key_size += len(text)
        self._size += len(slots)
        self._labelled += int(np.count_nonzero(self._labels[new] != UNLABELLED))

    def _label_code(self, label: str | None) -> int:
        if label is None:
            return UNLABELLED
        code = self._label_codes.get(label)
        if code is None:
            code = self._label_codes[label] = len(self._label_names)
            self._label_names.append(label)
        return code


def short_hash(value: bytes | None) -> int:
    """Return a content hash shortened to 64 bits, as it is kept in memory; 0 for none."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "big") if value else 0


def _grown(array: NDArray[Scalar], used: int, capacity: int) -> NDArray[Scalar]:
    larger = np.empty((capacity, *array.shape[1:]), array.dtype)
    larger[:used] = array[:used]
    return larger
