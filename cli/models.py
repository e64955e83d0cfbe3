"""`imagekin models`."""

import dataclasses
import sys
from typing import Annotated

import typer

from imagekin.command_options import AsJson
from imagekin.errors import NotFoundError

MOST_DESCRIBED = 40
"""Of more names than this only the names are shown: to know an encoder's size, it has to be built."""


def models(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Such as 'timm:resnet*' or '*dinov2*'; a few known ones without.")
    ] = "",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure how many images/s this CPU embeds with each, and remember it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List encoders that `adopt` and `train` know by name: size, dimension and, once measured, speed."""
    from imagekin.cli.shared.console import Rows, print_json
    from imagekin.progress import progress
    from imagekin.training import catalogue

    names = catalogue.matching(pattern)
    if not names:
        raise NotFoundError(f"no encoder's name matches {pattern!r}", field="pattern")
    if len(names) > MOST_DESCRIBED and not measure:
        if as_json:
            print_json({"models": [{"name": name} for name in names]})
            return
        print("\n".join(names))
        print(f"{len(names)} names; a narrower pattern also shows sizes", file=sys.stderr)
        return
    found = []
    with progress("measuring" if measure else "building", len(names)) as advance:
        for name in names:
            if measure:
                catalogue.measure(name)
            found.append(catalogue.describe(name))
            advance(1)
    if as_json:
        print_json({"models": [dataclasses.asdict(one) for one in found]})
        return
    with Rows(["name", "parameters", "dim", "pixels", "images/s"]) as rows:
        for one in found:
            speed = None if one.images_per_second is None else f"{one.images_per_second:.0f}"
            rows.add(one.name, f"{one.parameters / 1e6:.1f} M", str(one.dim), str(one.size), speed)
