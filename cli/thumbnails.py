"""`imagekin thumbnails`."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from imagekin.cli.shared import options
from imagekin.command_options import AsJson, with_options
from imagekin.counting import counted

if TYPE_CHECKING:
    from imagekin.sources.records import Record

_AT_ONCE = 64
_PIXELS = 160


@with_options
def thumbnails(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="A collection in the data folder.")],
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Where its images are from, as for imagekin index.")
    ],
    size: Annotated[
        int,
        typer.Option("--size", metavar="PIXELS", help="Longer side, for a collection that keeps no thumbnails yet."),
    ] = _PIXELS,
    *,
    place: options.CollectionsPlace,
    as_json: AsJson = False,
) -> None:
    """Make the small pictures that a collection lacks, from the images that it was made from.

    An image is recognised by its content: what has changed since, or is no longer there, gets none.
    """
    from concurrent.futures import ThreadPoolExecutor

    from imagekin.cli.shared import console
    from imagekin.encoder.decoding.thumbnail import thumbnail
    from imagekin.errors import FailedPreconditionError, ImageError, InvalidArgumentError
    from imagekin.index.local.collection import LocalCollection
    from imagekin.machine import cores
    from imagekin.progress import progress
    from imagekin.sources.open import open_sources

    if place.here is None:
        raise InvalidArgumentError(
            "a server makes thumbnails of images that are written to it; for those that it lacks, stop it and run this "
            "with its --data-dir",
            field="address",
        )
    source = open_sources(sources)
    made = failed = 0
    with (
        place.open() as catalog,
        catalog.open(collection) as opened,
        progress("thumbnails", source.count()) as advance,
    ):
        if not isinstance(opened, LocalCollection):
            raise FailedPreconditionError("collections in Milvus keep no thumbnails")
        opened.keep_thumbnails(size)
        pixels = opened.thumbnail_size()

        def make(data: bytes) -> bytes | None:
            try:
                return thumbnail(data, pixels)
            except ImageError:
                return None

        with ThreadPoolExecutor(cores(), thread_name_prefix="thumbnail") as threads:
            for records in _batches(source):
                files = {
                    hashlib.sha256(record.data).digest(): record.data
                    for record in records
                    if isinstance(record.data, bytes)
                }
                lacking = opened.without_thumbnail(list(files))
                pictures = dict(zip(lacking, threads.map(make, [files[value] for value in lacking]), strict=True))
                good = {value: jpeg for value, jpeg in pictures.items() if jpeg is not None}
                opened.add_thumbnails(good)
                made, failed = made + len(good), failed + len(pictures) - len(good)
                advance(len(records))
    if as_json:
        console.print_json({"collection": collection, "made": made, "failed": failed, "size": pixels})
    else:
        print(
            f"{counted(made, 'thumbnail')} of {pixels} pixels made"
            + (f", {counted(failed, 'image')} failed" if failed else "")
        )


def _batches(records: "Iterable[Record]") -> "Iterator[list[Record]]":
    series = iter(records)
    while batch := list(islice(series, _AT_ONCE)):
        yield batch
