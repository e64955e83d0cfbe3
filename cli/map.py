"""`imagekin map`."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

from imagekin.cli.shared import options
from imagekin.command_options import AsJson, with_options
from imagekin.counting import counted
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.index.maps.settings import MapSettings


@with_options
def make(
    collection: options.Name,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", "-d", metavar="DIR", help="Folder of the collections, opened here.")
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Make it anew; else items that are on it already stay where they are.")
    ] = False,
    *,
    settings: MapSettings,
    as_json: AsJson = False,
) -> None:
    """Lay the items out in two dimensions, the alike near one another, to be looked at on the server's page.

    A server may have the collection open meanwhile. What was stopped goes on where it was when it is run again.
    """
    from imagekin.cli.shared import console
    from imagekin.index.local.catalog import Catalog
    from imagekin.progress import progress

    if data_dir is None or not data_dir.is_dir():
        raise InvalidArgumentError(
            "say --data-dir: a map is made in the folder of the collections"
            if data_dir is None
            else f"no folder {data_dir}",
            field="data_dir",
        )
    # Before the long work, so that a missing part is known at once.
    importlib.import_module("umapers")
    with Catalog(data_dir, read_only=True, check_first=True) as catalog:
        opened = catalog.open(collection)
        with progress("map", opened.count()) as advance:
            try:
                report = opened.make_map(settings, anew=anew, advance=advance)
            except FileNotFoundError:
                raise FailedPreconditionError(f"collection {collection!r} was dropped meanwhile") from None
    if as_json:
        console.print_json(
            {"collection": collection, "items": report.items, "laid_out": report.laid_out, "placed": report.placed}
        )
    else:
        said = f"{report.laid_out:,} laid out, " if report.laid_out else ""
        print(f"map of {counted(report.items, 'item')}: {said}{report.placed:,} placed by their neighbours")
