"""Maintain collections: `imagekin collection verify|compact|duplicates|snapshot|snapshots|restore|export|import`."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagekin.cli.shared import options
from imagekin.command_options import AsJson, with_options
from imagekin.counting import counted
from imagekin.errors import DataLossError, InvalidArgumentError
from imagekin.types import Snapshot

if TYPE_CHECKING:
    from imagekin.index.types import IndexedItem


@with_options
def verify(
    name: options.Name,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Restore what can be restored, take out what cannot, and name it."),
    ] = False,
    *,
    folder: options.Folder,
    as_json: AsJson = False,
) -> None:
    """Check every row, checksum and segment of a collection, also while a server has it open."""
    from imagekin.cli.shared import console
    from imagekin.progress import progress

    started = time.perf_counter()
    with folder.open(read_only=not repair) as catalog, progress("checking", None) as advance:
        report = catalog.verify(name, repair=repair, on_progress=advance)
    seconds = time.perf_counter() - started
    console.list_failures([(key, "damaged") for key in report.damaged], len(report.damaged))
    for problem in report.problems:
        console.say(f"imagekin: {problem}")
    if report.missing_writes:
        console.say(f"imagekin: {counted(report.missing_writes, 'acknowledged write')} missing")
    if report.damaged_thumbnails:
        done = "removed" if report.repaired else "damaged"
        console.say(
            f"imagekin: {counted(report.damaged_thumbnails, 'thumbnail')} {done}:"
            " `imagekin thumbnails` makes them again"
        )
    if report.damaged_map:
        done = "removed" if report.repaired else "damaged"
        console.say(f"imagekin: the map is {done}: `imagekin map {name}` makes it again")
    if as_json:
        console.print_json(dataclasses.asdict(report) | {"intact": report.intact, "seconds": seconds})
    else:
        print(
            f"{counted(report.items, 'item')} intact, {len(report.damaged):,} damaged,"
            f" {len(report.restored):,} restored, segments: {report.segments}; {seconds:.1f} s"
        )
    if not report.intact and not report.repaired:
        raise DataLossError(f"collection {name!r} is damaged: restore a snapshot, or verify it with --repair")


@with_options
def compact(
    name: options.Name,
    folder: options.Folder,
    as_json: AsJson = False,
) -> None:
    """Free the space of deleted items."""
    from imagekin.cli.shared import console

    with folder.open() as catalog:
        before, after = catalog.compact(name)
    if as_json:
        console.print_json({"compacted": name, "bytes_before": before, "bytes_after": after})
    else:
        print(f"{name}: {before / 2**20:,.1f} MiB before, {after / 2**20:,.1f} MiB now")


@with_options
def duplicates(
    name: options.Name,
    min_similarity: Annotated[
        float, typer.Option("--min-similarity", metavar="0…1", help="Of two items, for them to be in one group.")
    ] = 0.98,
    *,
    place: options.CollectionsPlace,
    as_json: AsJson = False,
) -> None:
    """Report groups of nearly identical items, every pair compared exactly, also while a server has it open."""
    from imagekin.cli.collection.copies import whole_collection
    from imagekin.cli.shared import console
    from imagekin.progress import progress

    started = time.perf_counter()
    with whole_collection(place, name) as collection:
        items = collection.count()
        with progress("comparing", items) as advance:
            groups = collection.duplicates(min_similarity, advance)
    seconds = time.perf_counter() - started
    spare = sum(len(group) - 1 for group in groups)
    if as_json:
        found = [[dataclasses.asdict(one) for one in group] for group in groups]
        console.print_json({"items": items, "duplicates": spare, "groups": found, "seconds": seconds})
        return
    rows = [
        [str(number), one.key, one.label or "", f"{one.similarity:.4f}", "same file" if one.same_file else ""]
        for number, group in enumerate(groups, 1)
        for one in group
    ]
    if rows:
        console.print_table(["group", "key", "label", "similarity", ""], rows)
    print(
        f"{spare:,} of {counted(items, 'item')} nearly repeat another one, in {counted(len(groups), 'group')};"
        f" {seconds:.1f} s"
    )


@with_options
def snapshot(
    name: options.Name,
    place: options.CollectionsPlace,
    as_json: AsJson = False,
) -> None:
    """Copy a collection as of now into the data folder's snapshots, while it is served and written."""
    from imagekin.cli.shared import console

    if place.here is not None:
        with place.open() as catalog:
            taken: Snapshot = catalog.snapshot(name)
    else:
        with place.connect(timeout=3600.0) as client:
            taken = client.snapshot(name)
    if as_json:
        console.print_json({"snapshot": taken.name, "disk_bytes": taken.disk_bytes, "sequence": taken.sequence})
    else:
        print(f"snapshot {taken.name}, {taken.disk_bytes / 2**20:,.1f} MiB")


@with_options
def list_snapshots(
    folder: options.Folder,
    as_json: AsJson = False,
) -> None:
    """List the snapshots of a data folder."""
    from imagekin.cli.shared import console

    with folder.open(read_only=True) as catalog:
        found = catalog.snapshots()
    if as_json:
        console.print_json({"snapshots": [dataclasses.asdict(one) for one in found]})
        return
    rows = [[one.name, f"{one.count:,}", f"{one.disk_bytes / 2**20:,.1f} MiB", one.space] for one in found]
    console.print_table(["snapshot", "items", "on disk", "space"], rows)


@with_options
def restore(
    snapshot: Annotated[
        str, typer.Argument(metavar="SNAPSHOT", help="The snapshot, see `snapshots`; a collection's name: its latest.")
    ],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name of the collection; default that of the copied one.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a collection that exists.")] = False,
    *,
    folder: options.Folder,
    as_json: AsJson = False,
) -> None:
    """Create a collection from a snapshot."""
    from imagekin.cli.shared import console

    with folder.open() as catalog:
        info = catalog.restore(snapshot, name, replace=replace)
    if as_json:
        console.print_json({"restored": info.name, "count": info.count, "sequence": info.sequence})
    else:
        print(f"restored {info.name} with {counted(info.count, 'item')}")


@with_options
def export_collection(
    name: options.Name,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.parquet", help="The file to write.")],
    *,
    folder: options.Folder,
    as_json: AsJson = False,
) -> None:
    """Write a collection to a Parquet file: key, label, payload, content_hash, vector, and its thumbnails."""
    if out.suffix != ".parquet":
        raise InvalidArgumentError(f"--out names a .parquet file, not {out}")
    from imagekin.index.ingest.parquet import export_items
    from imagekin.progress import progress

    started = time.perf_counter()
    with (
        folder.open(read_only=True) as catalog,
        catalog.open(name) as collection,
        progress("writing", collection.count()) as advance,
    ):

        def counted() -> Iterator["IndexedItem"]:
            for item in collection.items():
                yield item
                advance(1)

        count = export_items(
            counted(),
            out,
            space=collection.space,
            dim=collection.dim,
            pixels=collection.thumbnail_size(),
            thumbnails=collection.thumbnails,
        )
    _say_rate("exported", name, count, time.perf_counter() - started, as_json)


@with_options
def import_collection(
    name: options.Name,
    file: Annotated[Path, typer.Argument(metavar="FILE.parquet", help="Columns key and vector; others optional.")],
    space: Annotated[
        str | None, typer.Option("--space", metavar="ID", help="Embedding space; default the one that the file names.")
    ] = None,
    *,
    folder: options.Folder,
    as_json: AsJson = False,
) -> None:
    """Upsert the rows of a Parquet file into a collection, created if it does not exist."""
    from imagekin.errors import NotFoundError
    from imagekin.index.ingest.parquet import ParquetItems, import_items
    from imagekin.progress import progress

    source = ParquetItems(file)
    space = space or source.space
    if not space:
        raise InvalidArgumentError("the file names no embedding space: say --space", field="space")
    started = time.perf_counter()
    with folder.open(create=True) as catalog, progress("importing", source.count) as advance:
        try:
            collection = catalog.open(name)
        except NotFoundError:
            collection = catalog.create(name, space=space, dim=source.dim, thumbnail_size=source.pixels)
        with collection:
            collection.check_space(space)
            count = import_items(source, collection.upsert, advance)
    _say_rate("imported", name, count, time.perf_counter() - started, as_json)


def register(app: typer.Typer) -> None:
    """Add the commands to `imagekin collection`."""
    app.command("verify")(verify)
    app.command("compact")(compact)
    app.command("duplicates")(duplicates)
    app.command("snapshot")(snapshot)
    app.command("snapshots")(list_snapshots)
    app.command("restore")(restore)
    app.command("export")(export_collection)
    app.command("import")(import_collection)


def _say_rate(done: str, name: str, count: int, seconds: float, as_json: bool) -> None:
    from imagekin.cli.shared import console

    if as_json:
        rate = console.rate(count, seconds)
        console.print_json({done: name, "count": count, "seconds": seconds, "items_per_second": rate})
    else:
        per_second = console.rate(count, seconds)
        print(f"{done} {counted(count, 'item')} of {name} in {seconds:.1f} s ({per_second:,.0f} items/s)")
