"""Save a map as a file of the collection's folder, and find the positions of the items that a snapshot holds.

An item is recognised by its sequence number, or, when it was written again since, by its key and its vector: an item
whose label changed stays where it is. The file belongs to one collection by its random id. It is derived: whatever is
wrong with it, `imagekin map` makes it again.
"""

import hashlib
import json
import threading
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import DataLossError
from imagekin.index.maps.archives import read_arrays, write_arrays
from imagekin.index.storage.columns import ColumnSnapshot, Mask, Slots

FILE = "map.npz"
NEIGHBOURS = "map-neighbours.npz"
# Positions are 0 to SIDE; UNPLACED is that of an item without one.
SIDE, UNPLACED = 65_534, 65_535

_KINDS: dict[str, type[np.generic]] = {
    "about": np.uint8,
    "sequences": np.int64,
    "keys": np.uint64,
    "vectors": np.uint32,
    "positions": np.uint16,
}
_DAMAGED = "the map is damaged: `imagekin map` makes it again"

Positions = NDArray[np.uint16]


@dataclass(frozen=True, slots=True, eq=False)
class SavedMap:
    """The positions of items.

    Attributes:
        collection: id of the collection.
        fitted: number of items when the map was last made from all of them.
        sequences: int64 [n], the items' sequence numbers, ascending.
        keys: uint64 [n], a hash of each key.
        vectors: uint32 [n], the CRC-32 of each vector.
        positions: uint16 [n, 2], 0 to SIDE.
    """

    collection: str
    fitted: int
    sequences: NDArray[np.int64]
    keys: NDArray[np.uint64]
    vectors: NDArray[np.uint32]
    positions: Positions

    @property
    def stamp(self) -> str:
        """Short name of what it holds."""
        digest = hashlib.sha256(self.sequences.tobytes())
        digest.update(self.positions.tobytes())
        return digest.hexdigest()[:12]


def fingerprints(snapshot: ColumnSnapshot, slots: Slots) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Return a hash of each slot's key, and the CRC-32 of its vector."""
    keys = [hashlib.blake2b(snapshot.key_utf8(slot), digest_size=8).digest() for slot in slots.tolist()]
    vectors = [zlib.crc32(snapshot.vectors[slot]) for slot in slots.tolist()]
    return np.frombuffer(b"".join(keys), np.uint64), np.array(vectors, np.uint32)


def of_slots(collection: str, fitted: int, snapshot: ColumnSnapshot, slots: Slots, positions: Positions) -> SavedMap:
    """Return the map of slots, in ascending order, with their positions."""
    keys, vectors = fingerprints(snapshot, slots)
    return SavedMap(collection, fitted, snapshot.sequences[slots], keys, vectors, positions)


def read(folder: Path) -> SavedMap | None:
    """Read the map in a folder, None where there is none.

    Raises:
        DataLossError: it is damaged.
    """
    try:
        held = read_arrays(folder / FILE, _KINDS)
        about = json.loads(held["about"].tobytes())
        saved = SavedMap(
            str(about["collection"]),
            int(about["fitted"]),
            held["sequences"],
            held["keys"],
            held["vectors"],
            held["positions"],
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise DataLossError(_DAMAGED) from None
    rows = saved.sequences.shape
    if saved.positions.shape != (*rows, 2) or not saved.keys.shape == saved.vectors.shape == rows or len(rows) != 1:
        raise DataLossError(_DAMAGED)
    return saved


def write(folder: Path, saved: SavedMap) -> None:
    """Write a map whole, or leave the one that is there; raises as `imagekin.files.replacing` does."""
    about = json.dumps({"collection": saved.collection, "fitted": saved.fitted}).encode()
    parts = {name: getattr(saved, name) for name in _KINDS if name != "about"}
    write_arrays(folder / FILE, {"about": np.frombuffer(about, np.uint8), **parts})


def copy(folder: Path, target: Path, sequence: int) -> bool:
    """Copy the map of a collection as of a sequence number; return whether there is one that can be read."""
    try:
        saved = read(folder)
    except DataLossError:
        return False
    if saved is None:
        return False
    # Numbers after it will be other items' in what becomes of the copy.
    end = int(np.searchsorted(saved.sequences, sequence, side="right"))
    parts = {name: getattr(saved, name)[:end] for name in ("sequences", "keys", "vectors", "positions")}
    write(target, replace(saved, **parts))
    return True


def give_id(folder: Path, collection: str) -> None:
    """Bind the map in a folder to a collection, if there is one."""
    if (saved := read(folder)) is not None:
        write(folder, replace(saved, collection=collection))


def is_damaged(folder: Path, *, repair: bool) -> bool:
    """Return whether the map in a folder is damaged; with `repair`, remove it then."""
    try:
        read(folder)
    except DataLossError:
        if repair:
            (folder / FILE).unlink(missing_ok=True)
        return True
    return False


def forget(folder: Path) -> None:
    """Remove what an unfinished `imagekin map` has left in a folder."""
    (folder / NEIGHBOURS).unlink(missing_ok=True)


class KnownPlaces:
    """Positions by sequence number: those of a saved map, and those found since. Thread-safe.

    Args:
        saved: the map.
    """

    def __init__(self, saved: SavedMap) -> None:
        self._lock = threading.Lock()
        self._by_key = np.argsort(saved.keys, kind="stable")
        self._found = saved.sequences, saved.positions
        self.saved = saved
        self.stamp = saved.stamp

    def __len__(self) -> int:
        return len(self._found[0])

    def find(self, sequences: NDArray[np.int64]) -> tuple[Positions, Mask]:
        """Return the position of each sequence number, uint16 [n, 2], and which of them have one, bool [n]."""
        known, positions = self._found
        if not len(known):
            return np.full((len(sequences), 2), UNPLACED, np.uint16), np.zeros(len(sequences), np.bool_)
        places = np.minimum(np.searchsorted(known, sequences), len(known) - 1)
        has: Mask = known[places] == sequences
        found = positions[places]
        found[~has] = UNPLACED
        return found, has

    def recognise(self, snapshot: ColumnSnapshot, slots: Slots) -> Slots:
        """Note the positions of items that were written again with the same vector; return the slots of the others."""
        if not len(slots):
            return slots
        keys, vectors = fingerprints(snapshot, slots)
        order, saved = self._by_key, self.saved
        if not len(order):
            return slots
        places = order[np.minimum(np.searchsorted(saved.keys, keys, sorter=order), len(order) - 1)]
        same = (saved.keys[places] == keys) & (saved.vectors[places] == vectors)
        self.add(snapshot.sequences[slots[same]], saved.positions[places[same]])
        others: Slots = slots[~same]
        return others

    def add(self, sequences: NDArray[np.int64], positions: Positions) -> None:
        """Note positions."""
        with self._lock:
            known, before = self._found
            fresh = ~np.isin(sequences, known)
            if not fresh.any():
                return
            together = np.concatenate((known, sequences[fresh]))
            order = np.argsort(together, kind="stable")
            self._found = together[order], np.concatenate((before, positions[fresh]))[order]


class MapFile:
    """The map of one collection's folder, read when it is asked for and again when it has changed. Thread-safe.

    Args:
        folder: the collection's folder.
        collection: the collection's id.
    """

    def __init__(self, folder: Path, collection: str) -> None:
        self.folder = folder
        self._collection = collection
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int, int], KnownPlaces | None] | None = None

    def places(self) -> KnownPlaces | None:
        """Return the positions of the map, None where there is none of this collection, or it is damaged."""
        try:
            status = (self.folder / FILE).stat()
        except OSError:
            return None
        state = status.st_ino, status.st_mtime_ns, status.st_size
        with self._lock:
            if self._read is None or self._read[0] != state:
                try:
                    saved = read(self.folder)
                except DataLossError:
                    saved = None
                own = saved is not None and saved.collection == self._collection
                self._read = state, KnownPlaces(saved) if saved is not None and own else None
            return self._read[1]
