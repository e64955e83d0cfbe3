"""Snapshots: consistent copies of a collection, taken while it is served, and put back under a name.

    DATA_DIR/snapshots/NAME/TIME-SEQUENCE-ID/items.sqlite      the whole truth, as of one sequence number
    DATA_DIR/snapshots/NAME/TIME-SEQUENCE-ID/thumbs.sqlite     the thumbnails, if there are any
    DATA_DIR/snapshots/NAME/TIME-SEQUENCE-ID/map.npz           the map, if there is one
    DATA_DIR/snapshots/NAME/TIME-SEQUENCE-ID/snapshot.json     what it is, and the copy's SHA-256

Segments are not copied: they are made again from the database when a snapshot is restored.
"""

import contextlib
import hashlib
import json
import logging
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from imagekin import files
from imagekin.errors import DataLossError, InvalidArgumentError, NotFoundError, UnavailableError
from imagekin.index import validation
from imagekin.index.local import thumbnails
from imagekin.index.local.store import DATABASE
from imagekin.index.maps import saved as maps
from imagekin.index.storage.connection import connect
from imagekin.index.storage.schema import read_identity, read_state, storage_errors
from imagekin.index.types import SnapshotDescription

SNAPSHOTS = "snapshots"
_DESCRIPTION = "snapshot.json"
_PAGES_AT_ONCE = 2000
_TRIES = 200

log = logging.getLogger("imagekin.index")


def take(database: Path, collection: str, folder: Path) -> SnapshotDescription:
    """Take a snapshot of a collection, while writers may go on.

    Args:
        database: the collection's database.
        collection: its name.
        folder: the folder of all snapshots; created if it does not exist.

    Raises:
        DataLossError: the collection is damaged.
        ResourceExhaustedError: the disk is full; nothing is left behind.
    """
    created_at = time.time()
    parent = folder / collection
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors(collection))
        parent.mkdir(parents=True, exist_ok=True)
        temporary = stack.enter_context(files.new_folder(parent))
        with _moment(database, collection) as (source, pictures):
            identity, state = read_identity(source, collection), read_state(source, collection)
            _copy(source, temporary / DATABASE)
            if pictures is not None:
                _copy(pictures, temporary / thumbnails.FILE)
        mapped = maps.copy(database.parent, temporary, state.sequence)
        if not mapped and (database.parent / maps.FILE).exists():
            log.warning(
                "the map is damaged, and left out of the snapshot: `imagekin map %s` makes it again", collection
            )
        digest = _sha256(temporary / DATABASE)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(created_at))
        info = SnapshotDescription(
            name=f"{collection}/{stamp}-{state.sequence}-{secrets.token_hex(4)}",
            collection=collection,
            space=identity.space,
            dim=identity.dim,
            count=state.count,
            sequence=state.sequence,
            disk_bytes=sum(file.stat().st_size for file in temporary.iterdir()),
            created_at=created_at,
            sha256=digest,
            thumbnails_sha256=_sha256(temporary / thumbnails.FILE) if pictures is not None else "",
            map_sha256=_sha256(temporary / maps.FILE) if mapped else "",
        )
        files.write_text(temporary / _DESCRIPTION, json.dumps(asdict(info)))
        files.sync_file(temporary / DATABASE)
        if pictures is not None:
            files.sync_file(temporary / thumbnails.FILE)
        files.put_folder(temporary, folder / info.name)
        return info


@contextlib.contextmanager
def _moment(database: Path, collection: str) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection | None]]:
    """Open read transactions on the items and on their thumbnails that see one moment, so that no item lacks its own.

    Raises:
        UnavailableError: the collection is written so fast that there is no such moment.
    """
    for _ in range(_TRIES):
        with contextlib.ExitStack() as stack:
            source = _begin(stack, database)
            seen = read_identity(source, collection).id, read_state(source, collection).sequence
            pictures = stack.enter_context(thumbnails.reading(database.parent))
            if pictures is not None:
                # A write in between may have taken a thumbnail away that an item of the first still has.
                with contextlib.ExitStack() as look:
                    latest = _begin(look, database)
                    if (read_identity(latest, collection).id, read_state(latest, collection).sequence) != seen:
                        continue
            yield source, pictures
            return
    raise UnavailableError(f"collection {collection!r} is written too fast for a snapshot: try again")


def _begin(stack: contextlib.ExitStack, database: Path) -> sqlite3.Connection:
    connection = stack.enter_context(contextlib.closing(connect(database, read_only=True)))
    connection.execute("BEGIN")
    return connection


def _copy(source: sqlite3.Connection, target: Path) -> None:
    """Copy a database as its connection's transaction sees it."""
    with contextlib.closing(sqlite3.connect(target)) as made:
        source.backup(made, pages=_PAGES_AT_ONCE, sleep=0.001)
    for log in target.parent.glob(f"{target.name}-*"):
        log.unlink()  # empty: everything has been moved into the database


def all_snapshots(folder: Path) -> list[SnapshotDescription]:
    """Return every snapshot whose description can be read, the oldest first."""
    found = []
    for path in folder.glob(f"[a-z0-9]*/[0-9]*/{_DESCRIPTION}"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(_described(path.parent))
    return sorted(found, key=lambda info: (info.created_at, info.name))


def find(folder: Path, name: str) -> SnapshotDescription:
    """Find a snapshot by its name, or a collection's latest one by the collection's.

    Raises:
        InvalidArgumentError: the name is invalid.
        NotFoundError: there is none of that name.
    """
    collection, _, own = name.partition("/")
    validation.collection_name(collection)
    if name == collection:
        if not (taken := [one for one in all_snapshots(folder) if one.name.startswith(f"{collection}/")]):
            raise NotFoundError(f"there is no snapshot of {collection!r}: see `imagekin collection snapshots`")
        return taken[-1]
    if not own or "/" in own or not own[0].isdigit():
        raise InvalidArgumentError(
            "a snapshot's name is COLLECTION/TIME-SEQUENCE-ID, as `imagekin collection snapshots` lists them;"
            " COLLECTION alone is its latest",
            field="snapshot",
        )
    try:
        return _described(folder / name)
    except (OSError, ValueError, TypeError):
        raise NotFoundError(f"there is no snapshot {name[:200]!r}: see `imagekin collection snapshots`") from None


def _described(folder: Path) -> SnapshotDescription:
    """Read the description of a snapshot, and name it by its folder, which may have been renamed since."""
    said = SnapshotDescription(**json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8")))
    return replace(said, name=f"{folder.parent.name}/{folder.name}", created_at=float(said.created_at))


def put_back(folder: Path, info: SnapshotDescription, target: Path) -> bool:
    """Copy a snapshot's files into a new folder, and verify their SHA-256; return whether its map is intact, if any.

    A damaged map is left out, because it can be made again from the items.

    Raises:
        DataLossError: the snapshot is damaged.
    """
    _put_back(folder / info.name / DATABASE, target, info.sha256, info.name)
    if info.thumbnails_sha256:
        _put_back(folder / info.name / thumbnails.FILE, target, info.thumbnails_sha256, info.name)
    map_is_intact = True
    if info.map_sha256:
        try:
            _put_back(folder / info.name / maps.FILE, target, info.map_sha256, info.name)
        except DataLossError:
            (target / maps.FILE).unlink(missing_ok=True)
            map_is_intact = False
    files.sync_folder(target)
    return map_is_intact


def _put_back(source: Path, target: Path, sha256: str, snapshot: str) -> None:
    copy = target / source.name
    try:
        shutil.copyfile(source, copy)
    except FileNotFoundError:
        raise DataLossError(
            f"snapshot {snapshot!r} is damaged: its {source.name} is missing; use another one"
        ) from None
    if _sha256(copy) != sha256:
        raise DataLossError(f"snapshot {snapshot!r} is damaged: {source.name} fails its SHA-256; use another one")
    files.sync_file(copy)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
