"""`imagekin demo`."""

from pathlib import Path
from typing import Annotated

import typer

from imagekin.command_options import AsJson


def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder for all that the demo makes; replaced when it is its own."
        ),
    ] = Path("imagekin-demo"),
    as_json: AsJson = False,
) -> None:
    """Show the whole way on handwritten digits: train, export, index, serve, query. Takes about a minute."""
    from imagekin.cli.demo_run import run

    run(out, as_json=as_json)
