"""Make the map of a collection, or complete the one that it has."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import DataLossError, FailedPreconditionError
from imagekin.index.maps import saved as maps
from imagekin.index.maps.layout import lay_out
from imagekin.index.maps.neighbours import Landmarks, of_landmarks
from imagekin.index.maps.placing import NEIGHBOURS, weighted_means
from imagekin.index.maps.settings import MapSettings
from imagekin.index.storage.columns import ColumnSnapshot, Slots

_AT_ONCE = 8_192
# Share of the map's side that stays empty around it.
_MARGIN = 0.02


@dataclass(frozen=True, slots=True)
class MapReport:
    """Numbers of items that were mapped.

    Attributes:
        items: number of items on it.
        laid_out: how many of them UMAP has placed now; 0 when the map that there was has been completed.
        placed: how many of them were placed by their neighbours now.
    """

    items: int
    laid_out: int
    placed: int


def make_map(
    snapshot: ColumnSnapshot,
    folder: Path,
    collection: str,
    settings: MapSettings,
    *,
    anew: bool,
    advance: Callable[[int], object],
) -> MapReport:
    """Make the map of a snapshot's items and save it; items that a saved map knows stay where they are.

    Args:
        snapshot: the collection.
        folder: its folder.
        collection: its id.
        settings: the settings of a map that is made.
        anew: make it even if there is one. It also is when more items are new than known.
        advance: called with the number of items done since the last call.

    Raises:
        FailedPreconditionError: there are no items.
        ModuleNotFoundError: umapers is not installed.
    """
    live = np.flatnonzero(snapshot.alive())
    if not len(live):
        raise FailedPreconditionError("the collection is empty: a map needs items")
    known, positions = (
        (np.empty(0, np.int64), np.empty((0, 2), np.uint16)) if anew else _known(snapshot, folder, collection, live)
    )
    fresh = np.setdiff1d(live, known, assume_unique=True)
    laid_out = 0
    if len(fresh) > len(known):
        known = _choose(live, settings)
        landmarks = Landmarks(snapshot, known, settings.seed)
        positions = _lay_out(landmarks, snapshot.sequences[known], folder, collection, settings, advance)
        fresh, laid_out = np.setdiff1d(live, known, assume_unique=True), len(known)
    elif len(fresh):
        landmarks = Landmarks(snapshot, known, settings.seed)
        advance(len(known))
    if len(fresh):
        placed = _place(landmarks, positions, fresh, advance)
        order = np.argsort(np.concatenate((known, fresh)), kind="stable")
        known, positions = np.concatenate((known, fresh))[order], np.concatenate((positions, placed))[order]
    maps.write(folder, maps.of_slots(collection, laid_out or len(known), snapshot, known, positions))
    maps.forget(folder)
    return MapReport(len(known), laid_out, len(fresh))


def keep_live(snapshot: ColumnSnapshot, folder: Path, collection: str) -> None:
    """Write the saved map again without the items that no longer are; remove what cannot be read."""
    maps.forget(folder)
    known, positions = _known(snapshot, folder, collection, np.flatnonzero(snapshot.alive()))
    if len(known):
        maps.write(folder, maps.of_slots(collection, len(known), snapshot, known, positions))
    else:
        (folder / maps.FILE).unlink(missing_ok=True)


def _known(snapshot: ColumnSnapshot, folder: Path, collection: str, live: Slots) -> tuple[Slots, maps.Positions]:
    """Return the live slots that the saved map knows, and their positions."""
    try:
        saved = maps.read(folder)
    except DataLossError:
        saved = None
    if saved is None or saved.collection != collection:
        return np.empty(0, np.int64), np.empty((0, 2), np.uint16)
    places = maps.KnownPlaces(saved)
    places.recognise(snapshot, live[~places.find(snapshot.sequences[live])[1]])
    positions, has = places.find(snapshot.sequences[live])
    return live[has], positions[has]


def _choose(live: Slots, settings: MapSettings) -> Slots:
    """Return the landmarks: all items, or as many of them as the settings say."""
    if len(live) <= settings.landmarks:
        return live
    return np.sort(np.random.default_rng(settings.seed).choice(live, settings.landmarks, replace=False))


def _lay_out(
    landmarks: Landmarks,
    sequences: NDArray[np.int64],
    folder: Path,
    collection: str,
    settings: MapSettings,
    advance: Callable[[int], object],
) -> maps.Positions:
    """Return the positions of the landmarks."""
    k = min(settings.neighbours, len(sequences) - 1)
    title = f"{collection}/{settings.seed}/{hashlib.sha256(sequences.tobytes()).hexdigest()}"
    distances, ids = of_landmarks(landmarks, k, folder / maps.NEIGHBOURS, title, advance)
    found = lay_out(landmarks.vectors, distances, ids, settings)
    low, high = found.min(axis=0), found.max(axis=0)
    middle, side = (low + high) / 2, max(float((high - low).max()), 1e-9) / (1 - 2 * _MARGIN)
    positions: maps.Positions = (
        np.rint(((found - middle) / side + 0.5) * maps.SIDE).clip(0, maps.SIDE).astype(np.uint16)
    )
    return positions


def _place(
    landmarks: Landmarks, positions: maps.Positions, fresh: Slots, advance: Callable[[int], object]
) -> maps.Positions:
    """Return positions of slots by their neighbours among the landmarks."""
    placed = np.empty((len(fresh), 2), np.uint16)
    where = positions.astype(np.float64)
    for begin in range(0, len(fresh), _AT_ONCE):
        part = slice(begin, min(begin + _AT_ONCE, len(fresh)))
        distances, ids = landmarks.nearest(fresh[part], min(NEIGHBOURS, len(positions)))
        means, _ = weighted_means(distances, where[ids], np.ones(ids.shape, np.bool_))
        placed[part] = np.rint(means).astype(np.uint16)
        advance(part.stop - begin)
    return placed
