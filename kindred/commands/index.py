"""`kindred index`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from encoder.errors import ImageError
from kindred.commands import shared

if TYPE_CHECKING:
    from encoder.session import Encoder
    from index.batch import IndexReport, Progress, Sink
    from training.progress import Advance

Device = Literal["auto", "cpu", "cuda"]
IndexKind = Literal["auto", "flat", "hnsw", "ivf", "pq"]


def index(
    ctx: typer.Context,
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="Made if there is none of that name.")],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Files, folders, archives, tables, patterns, URLs or - (see README)."),
    ],
    model: Annotated[Path, typer.Option("--model", metavar="FILE", help="The model artifact that embeds the images.")],
    data_dir: shared.DataDir = None,
    address: shared.RemoteAddress = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images embedded and stored at once.", min=1)] = 64,
    workers: Annotated[int, typer.Option("--workers", help="Threads that decode; 0 is one per core.", min=0)] = 0,
    index_kind: Annotated[
        IndexKind, typer.Option("--index", help="Kind of index of a collection that is made; auto follows its size.")
    ] = "auto",
    device: Annotated[Device, typer.Option("--device", help="Where the model runs.")] = "auto",
    token: shared.Token = None,
    tls: shared.TlsFlag = False,
    ca: shared.CaFile = None,
    timeout: shared.Timeout = 60.0,
    as_json: shared.AsJson = False,
) -> None:
    """Embed images and store them in a collection; the label of an image is the folder that it lies in.

    What the collection holds already is left out, so the same command again does only what is missing.
    """
    data_dir, address = shared.place(ctx, data_dir, address)
    from encoder.session import Encoder
    from index.batch import index_images
    from kindred import console
    from sources.opening import open_sources
    from training.progress import progress

    source = open_sources(sources)
    encoder = Encoder.open(model, device=device)
    with _opened(collection, encoder, index_kind, data_dir, address, token, tls, ca, timeout) as sink:
        total = source.count()
        with progress("index", total) as advance:
            report = index_images(
                encoder,
                source,
                sink,
                batch_size=batch_size,
                workers=workers or None,
                total=total,
                on_progress=_steps(advance),
            )
    console.list_failures(report.failed, report.failed_count)
    if source.ignored:
        console.say(f"kindred: passed over {source.ignored:,} files that are no images by their names")
    if as_json:
        console.print_json(_figures(collection, report))
    else:
        print(_summary(collection, report))
    if not report.seen:
        raise ImageError("no images there")
    if report.failed_count == report.seen:
        raise ImageError(f"none of the {report.seen:,} images could be indexed")


@contextmanager
def _opened(
    name: str,
    encoder: "Encoder",
    index_kind: str,
    data_dir: Path | None,
    address: str | None,
    token: str | None,
    tls: bool,
    ca: Path | None,
    timeout: float,
) -> Iterator["Sink"]:
    """Yield the collection, made if there is none, whose embedding space is the model's."""
    space, dim = encoder.metadata.space, encoder.metadata.dim
    if address is not None:
        from kindred.sink import ClientSink, remote_collection

        with shared.connect(address, token, tls, ca, timeout) as client:
            remote_collection(client, name, space=space, dim=dim, index_kind=index_kind)
            yield ClientSink(client, name)
        return
    assert data_dir is not None  # noqa: S101  place() has seen to it
    from encoder.errors import NotFoundError
    from index.catalog import Catalog

    with Catalog(data_dir) as catalog:
        try:
            collection = catalog.open(name)
        except NotFoundError:
            collection = catalog.create(name, space=space, dim=dim, index_kind=index_kind)
        with collection:
            collection.check_space(space)
            yield collection


def _steps(advance: "Advance") -> "Progress":
    """Return what turns running totals into steps of a progress bar."""
    done = 0

    def tell(seen: int, total: int | None, failed: int) -> None:
        nonlocal done
        advance(seen - done, f"{failed:,} failed" if failed else "")
        done = seen

    return tell


def _figures(collection: str, report: "IndexReport") -> dict[str, object]:
    from kindred.console import failures_json

    return {
        "collection": collection,
        "seen": report.seen,
        "written": report.written,
        "replaced": report.replaced,
        "skipped": report.skipped,
        "failed_count": report.failed_count,
        "failed": failures_json(report.failed),
        "seconds": report.seconds,
        "images_per_second": report.images_per_second,
    }


def _summary(collection: str, report: "IndexReport") -> str:
    parts = [f"{report.written:,} images written to {collection}"]
    if report.replaced:
        parts.append(f"{report.replaced:,} of them replaced others")
    if report.skipped:
        parts.append(f"{report.skipped:,} already there")
    if report.failed_count:
        parts.append(f"{report.failed_count:,} failed")
    return f"{', '.join(parts)}; {report.seconds:.1f} s ({report.images_per_second:,.0f} images/s)"
