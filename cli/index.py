"""`imagekin index`."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from imagekin.cli.shared import engines, options
from imagekin.command_options import AsJson, with_options
from imagekin.counting import counted
from imagekin.errors import FailedPreconditionError, ImageError, InvalidArgumentError, NotFoundError
from imagekin.index.local.thumbnails import check_size
from imagekin.machine import Device

if TYPE_CHECKING:
    from imagekin.encoder.runtime.session import Encoder
    from imagekin.index.ingest.embed_stage import LoadBoth
    from imagekin.index.ingest.pipeline import IndexReport, Sink
    from imagekin.sources.joined import JoinedReaders
    from imagekin.sources.records import VectorInfo

IndexKind = Literal["auto", "flat", "hnsw", "ivf", "pq"]
_THUMBNAIL_PIXELS = 160
Conflict = Literal["update", "skip", "replace", "error"]


@with_options
def index(
    ctx: typer.Context,
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="Made if there is none of that name.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files, folders, archives, tables, patterns, URLs or -; see docs/reference/sources.md.",
        ),
    ],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", metavar="FILE", help="The model artifact that embeds the images.")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option("--space", metavar="NAME", help="Embedding space of vectors that are indexed without a model."),
    ] = None,
    thumbnails: Annotated[
        int | None,
        typer.Option(
            "--thumbnails",
            metavar="PIXELS",
            help="Longer side of the small pictures that a collection made here keeps; 0 keeps none.",
            show_default="160",
        ),
    ] = None,
    *,
    place: options.CollectionsPlace,
    on_conflict: Annotated[
        Conflict | None,
        typer.Option(
            "--on-conflict",
            help="What to do when another image is stored under a key: replace it, skip the new one, or report it;"
            " update changes labels and payloads of the same images, and reports others. With --sync: replace.",
            show_default="update",
        ),
    ] = None,
    sync: Annotated[
        bool, typer.Option("--sync", help="Delete what the collection holds and the sources do not.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.parquet", help="Write failures, duplicates and deletions there."),
    ] = None,
    index_kind: Annotated[
        IndexKind, typer.Option("--index", help="Kind of index of a collection that is made; auto follows its size.")
    ] = "auto",
    label_from: options.LabelFrom = "folder",
    engine: engines.Engine,
    timeout: options.Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Embed images and store them in a collection; the label of an image is the folder that it lies in.

    Images that the collection already holds are skipped, so the same command again does only what is missing. Vectors
    from Parquet are stored as they are.
    """
    from imagekin.cli.shared import console
    from imagekin.cli.shared.batch_progress import pace
    from imagekin.index.ingest.pipeline import index_images
    from imagekin.progress import progress

    conflict = on_conflict or ("replace" if sync else "update")
    source = _open(collection, sources, label_from)
    typed = options.typed(ctx, "model")
    engine.refuse_idle(ctx)
    encoder, space, dim = _space_of(source.embedded, model, typed, space, engine.here)
    with (
        engine.started(),
        _opened(collection, space, dim, index_kind, place, timeout, _wanted(thumbnails, encoder)) as (sink, pixels),
        options.report_table(report) if report is not None else nullcontext() as table,
    ):
        console.say_plan(source.plan)
        total = source.count()
        load_both = _loader(encoder, pixels)
        left, records = engine.records(source, model, encoder, sink, conflict, load_both)
        with progress("index", total) as advance:
            done = index_images(
                left,
                records,
                sink,
                batch_size=engine.batch_size,
                workers=engine.workers or None,
                on_conflict=conflict,
                sync=sync,
                total=total,
                load_both=load_both,
                on_progress=pace(advance),
                on_finding=None if table is None else table.add,
            )
    console.list_failures(done.failed, done.failed_count)
    console.say_ignored(records.ignored)
    if as_json:
        console.print_json({**_figures(collection, done), **console.plan_json(source.plan, records.ignored)})
    else:
        print(_summary(collection, done))
    _judge(done, sync, sources)


def _open(collection: str, sources: list[str], label_from: str) -> "JoinedReaders":
    """Open the sources; the error for one that is not there names two arguments that were confused."""
    from imagekin.sources.open import open_sources

    try:
        return open_sources(sources, label_from=label_from)
    except NotFoundError as error:
        if len(sources) == 1 and Path(collection).exists():
            raise NotFoundError(
                f"{error}: the collection's name comes first, did you mean `imagekin index {sources[0]} {collection}`?"
            ) from None
        raise


def _judge(done: "IndexReport", sync: bool, sources: list[str]) -> None:
    """Raise an error if the run failed as a whole."""
    if not done.seen:
        from imagekin.cli.shared.console import no_images

        raise no_images(sources)
    if done.failed_count == done.seen and not done.conflicts:
        raise ImageError(f"of {counted(done.seen, 'image')}, none could be indexed")
    if sync and done.incomplete:
        raise FailedPreconditionError("nothing was deleted, because part of the source could not be read: see above")
    if done.conflicts:
        raise FailedPreconditionError(
            f"{counted(done.conflicts, 'key')} had other content before: use --on-conflict skip or replace, or index"
            " sources of equal names by one command, which puts the names of their folders into the keys"
        )


def _space_of(
    embedded: "VectorInfo | None", model: Path | None, typed: bool, space: str | None, device: Device
) -> tuple["Encoder | None", str, int]:
    """Return the encoder (None for vectors), the embedding space and the number of components."""
    if embedded is None:
        if model is None:
            raise InvalidArgumentError("give --model FILE, which embeds the images", field="model")
        if space is not None:
            raise InvalidArgumentError("--space is for vectors; the space of images is their model's", field="space")
        from imagekin.encoder.runtime.tuning import open_for_files

        encoder = open_for_files(model, device)
        return encoder, encoder.metadata.space, encoder.metadata.dim
    if typed:
        raise InvalidArgumentError("these are vectors, which no model embeds: leave out --model", field="model")
    if space and embedded.space and space != embedded.space:
        raise InvalidArgumentError(f"the file says that its vectors are of space {embedded.space}", field="space")
    if not (space or embedded.space):
        raise InvalidArgumentError("name the embedding space of these vectors with --space NAME", field="space")
    return None, space or embedded.space, embedded.dim


@contextmanager
def _opened(
    name: str, space: str, dim: int, kind: str, place: options.CollectionsPlace, timeout: float, pixels: int
) -> Iterator[tuple["Sink", int]]:
    """Open the collection, or create it for the vectors to come; yield it with the size of its thumbnails."""
    if place.here is None:
        from imagekin.cli.shared.remote_sink import ClientSink, remote_collection

        with place.connect(timeout) as client:
            info = remote_collection(client, name, space=space, dim=dim, index_kind=kind, thumbnail_size=pixels)
            _check_dim(info.dim, dim)
            yield ClientSink(client, name), info.thumbnail_size
        return
    from imagekin.errors import NotFoundError

    with place.open(create=True) as catalog:
        try:
            collection = catalog.open(name)
        except NotFoundError:
            collection = catalog.create(name, space=space, dim=dim, index_kind=kind, thumbnail_size=pixels)
        with collection:
            collection.check_space(space)
            _check_dim(collection.dim, dim)
            yield collection, collection.thumbnail_size()


def _loader(encoder: "Encoder | None", pixels: int) -> "LoadBoth | None":
    """Make the function that loads an image with its thumbnail, None where there are no thumbnails."""
    if encoder is None or not pixels:
        return None
    from imagekin.encoder.decoding.thumbnail import LoadWithThumbnail

    return LoadWithThumbnail(encoder.metadata.preprocess, pixels)


def _wanted(thumbnails: int | None, encoder: "Encoder | None") -> int:
    """Return the size of the thumbnails of a collection that is made; vectors have none."""
    if thumbnails is None:
        return 0 if encoder is None else _THUMBNAIL_PIXELS
    return check_size(thumbnails)


def _check_dim(has: int, given: int) -> None:
    if has != given:
        raise FailedPreconditionError(f"the collection's vectors have {has} components, these {given}")


def _figures(collection: str, done: "IndexReport") -> dict[str, object]:
    from imagekin.cli.shared.console import failures_json

    return {
        "collection": collection,
        "seen": done.seen,
        "written": done.written,
        "replaced": done.replaced,
        "updated": done.updated,
        "skipped": done.skipped,
        "deleted": done.deleted,
        "duplicates": done.duplicates,
        "conflicts": done.conflicts,
        "failed_count": done.failed_count,
        "failed": failures_json(done.failed),
        "seconds": done.seconds,
        "images_per_second": done.images_per_second,
    }


def _summary(collection: str, done: "IndexReport") -> str:
    parts = [f"{counted(done.written, 'image')} written to {collection}"]
    if done.replaced:
        parts.append(f"{done.replaced:,} of them replaced others")
    if done.updated:
        parts.append(f"{done.updated:,} with a new label or payload")
    if done.skipped:
        parts.append(f"{done.skipped:,} already there")
    if done.deleted:
        parts.append(f"{done.deleted:,} deleted")
    if done.duplicates:
        parts.append(f"{counted(done.duplicates, 'duplicate')} by content")
    if done.failed_count:
        parts.append(f"{done.failed_count:,} failed")
    return f"{', '.join(parts)}; {done.seconds:.1f} s ({done.images_per_second:,.0f} images/s)"
