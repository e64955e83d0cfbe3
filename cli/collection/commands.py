"""`imagekin collection list|info|scroll|drop`, for collections here or on a server."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from imagekin.cli.collection import maintenance, queries
from imagekin.cli.shared import options
from imagekin.command_options import AsJson, with_options
from imagekin.counting import counted
from imagekin.errors import InvalidArgumentError

if TYPE_CHECKING:
    from imagekin.types import CollectionInfo, StoredItem

app = typer.Typer(add_completion=False, help="Look after collections, in a folder here or on a server.")
_PAGE = 1000


class _Collections(Protocol):
    """Collections, here or on a server."""

    def infos(self) -> "list[CollectionInfo]":
        """Describe all collections."""

    def info(self, name: str) -> "CollectionInfo":
        """Describe one collection."""

    def items(self, name: str, condition: str | None = None) -> "Iterator[StoredItem]":
        """Yield all items, or those that match, in the order of their last write."""

    def drop(self, name: str) -> int:
        """Remove a collection and return how many items it held."""

    def close(self) -> None:
        """Close the connection."""


@app.command("list")
@with_options
def list_collections(
    place: options.CollectionsPlace,
    as_json: AsJson = False,
) -> None:
    """List the collections."""
    from imagekin.cli.shared import console

    collections = _collections_at(place)
    try:
        infos = collections.infos()
    finally:
        collections.close()
    if as_json:
        console.print_json({"collections": [dataclasses.asdict(info) for info in infos]})
        return
    headings = ["name", "items", "labelled", "dim", "index", "space"]
    rows = [
        [one.name, f"{one.count:,}", f"{one.labelled:,}", str(one.dim), one.index_kind, one.space]
        for one in infos
        if not one.error
    ]
    console.print_table(headings, rows)
    for one in infos:
        if one.error:
            console.say(f"{one.name}: {one.error}")


@app.command("info")
@with_options
def show_collection(
    name: options.Name,
    place: options.CollectionsPlace,
    as_json: AsJson = False,
) -> None:
    """Describe one collection."""
    from imagekin.cli.shared import console

    collections = _collections_at(place)
    try:
        info = collections.info(name)
    finally:
        collections.close()
    if as_json:
        console.print_json(dataclasses.asdict(info))
        return
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(info.created_at))
    rows = [
        ["name", info.name],
        ["space", info.space],
        ["components", str(info.dim)],
        ["items", f"{info.count:,}"],
        ["labelled", f"{info.labelled:,}"],
        ["index", info.index_kind + (" on the GPU" if info.index_device == "cuda" else "")],
        ["recall", "not measured" if info.recall is None else f"{info.recall:.4f}"],
        ["on disk", f"{info.disk_bytes / 2**20:,.1f} MiB"],
        ["last write", f"number {info.sequence:,}"],
        ["made", made],
        ["id", info.id],
    ]
    console.print_table(["", ""], rows)


@app.command("scroll")
@with_options
def scroll_items(
    name: options.Name,
    limit: Annotated[int, typer.Option("--limit", help="Items to show; 0 is all.", min=0)] = 20,
    condition: options.Filter = None,
    *,
    place: options.CollectionsPlace,
    as_json: AsJson = False,
) -> None:
    """Show a collection's items in the order of their last write."""
    from imagekin.cli.shared import console

    collections = _collections_at(place)
    kept: list[dict[str, Any]] = []
    try:
        with console.Rows(["sequence", "key", "label", "payload"], silent=as_json) as rows:
            for item in itertools.islice(collections.items(name, condition), limit or None):
                payload = dict(item.payload) if item.payload else None
                rows.add(item.sequence, item.key, item.label, payload)
                if as_json:
                    kept.append({"key": item.key, "label": item.label, "payload": payload, "sequence": item.sequence})
    finally:
        collections.close()
    if as_json:
        console.print_json({"items": kept})


@app.command("drop")
@with_options
def drop_collection(
    name: options.Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    *,
    place: options.CollectionsPlace,
    as_json: AsJson = False,
) -> None:
    """Remove a collection and all its items for good."""
    import sys

    from imagekin.cli.shared import console

    collections = _collections_at(place)
    try:
        info = collections.info(name)
        if not yes:
            if not sys.stdin.isatty():
                raise InvalidArgumentError(
                    f"this removes {name} and its {counted(info.count, 'item')} for good: say --yes"
                )
            typer.confirm(f"Remove {name} and its {counted(info.count, 'item')} for good?", abort=True, err=True)
        count = collections.drop(name)
    finally:
        collections.close()
    if as_json:
        console.print_json({"dropped": name, "count": count})
    else:
        print(f"dropped {name} with {counted(count, 'item')}")


queries.register(app)
maintenance.register(app)


def _collections_at(place: options.CollectionsPlace) -> _Collections:
    """Return the collections of a folder, of Milvus or of a server."""
    return _RemoteCollections(place) if place.here is None else _LocalCollections(place)


class _LocalCollections:
    """Collections in a folder or in Milvus.

    In a folder only `drop` takes the writer's lock, so that everything else works while a server runs.
    """

    def __init__(self, place: options.CollectionsPlace) -> None:
        self._place = place

    def infos(self) -> "list[CollectionInfo]":
        with self._place.open(read_only=True) as catalog:
            return catalog.list()

    def info(self, name: str) -> "CollectionInfo":
        with self._place.open(read_only=True) as catalog, catalog.open(name) as collection:
            return collection.info()

    def items(self, name: str, condition: str | None = None) -> "Iterator[StoredItem]":
        from imagekin.types import StoredItem

        tree = queries.parsed(condition)
        with self._place.open(read_only=True) as catalog, catalog.open(name) as collection:
            page = collection.page(None, _PAGE, tree)
            while page.items:
                for item in page.items:
                    yield StoredItem(item.key, item.label, item.payload, item.content_hash, item.sequence)
                page = collection.page(page.places[-1], _PAGE, tree)

    def drop(self, name: str) -> int:
        with self._place.open() as catalog:
            return catalog.drop(name)

    def close(self) -> None:
        """Do nothing: no connection stays open between calls."""


class _RemoteCollections:
    """Collections of a server."""

    def __init__(self, place: options.CollectionsPlace) -> None:
        self._client = place.connect(timeout=60.0)

    def infos(self) -> "list[CollectionInfo]":
        return self._client.collections()

    def info(self, name: str) -> "CollectionInfo":
        return self._client.collection(name)

    def items(self, name: str, condition: str | None = None) -> "Iterator[StoredItem]":
        return self._client.scroll(name, filter=condition)

    def drop(self, name: str) -> int:
        return self._client.drop_collection(name)

    def close(self) -> None:
        self._client.close()
