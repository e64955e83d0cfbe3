"""`kindred demo`."""

from pathlib import Path
from typing import Annotated

import typer

from kindred.commands import shared


def demo(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder for all that the demo makes; replaced when it is its own."),
    ] = Path("kindred-demo"),
    as_json: shared.AsJson = False,
) -> None:
    """Show the whole way on handwritten digits: train, export, index, serve, query. Takes about a minute."""
    from kindred.demo import run

    run(out, as_json=as_json)
