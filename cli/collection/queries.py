"""Query and evaluate collections: `imagekin collection count|facet|delete|evaluate`."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from imagekin.cli.shared import options
from imagekin.command_options import AsJson, with_options
from imagekin.counting import counted
from imagekin.errors import InvalidArgumentError
from imagekin.index.types import EvaluateOptions

if TYPE_CHECKING:
    from imagekin.client.sync_client import Client
    from imagekin.index.filters.conditions import Condition
    from imagekin.index.interface import KeptCollection


@with_options
def count(
    name: options.Name,
    condition: options.Filter = None,
    *,
    place: options.CollectionsPlace,
    as_json: AsJson = False,
) -> None:
    """Count a collection's items, or those that match."""
    from imagekin.cli.shared import console

    with _opened(place, name) as opened:
        if isinstance(opened, _Remote):
            found = opened.client.count(name, filter=condition)
        else:
            found = opened.count(parsed(condition))
    if as_json:
        console.print_json({"count": found})
    else:
        print(found)


@with_options
def facet(
    name: options.Name,
    field: Annotated[str, typer.Argument(metavar="FIELD", help="label, or payload. and a dotted path.")],
    condition: options.Filter = None,
    limit: Annotated[int, typer.Option("--limit", help="Values to show at most.", min=1, max=10_000)] = 100,
    *,
    place: options.CollectionsPlace,
    as_json: AsJson = False,
) -> None:
    """Count a collection's items by the values of a field, the most frequent first."""
    from imagekin.cli.shared import console

    with _opened(place, name) as opened:
        if isinstance(opened, _Remote):
            found = opened.client.facet(name, field, filter=condition, limit=limit)
        else:
            found = opened.facet(field, parsed(condition), limit)
    if as_json:
        console.print_json({"counts": [{"value": one.value, "count": one.count} for one in found]})
    else:
        console.print_table(["value", "items"], [[str(one.value), f"{one.count:,}"] for one in found])


@with_options
def delete(
    name: options.Name,
    condition: options.Filter = None,
    key: Annotated[list[str] | None, typer.Option("--key", metavar="KEY", help="An item; may be repeated.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    *,
    place: options.CollectionsPlace,
    as_json: AsJson = False,
) -> None:
    """Delete items by key, or all that match."""
    import sys

    from imagekin.cli.shared import console

    if bool(condition) == bool(key):
        raise InvalidArgumentError("name either a condition (--filter) or items (--key)")
    with _opened(place, name, writing=True) as opened:
        if condition and not yes:
            if isinstance(opened, _Remote):
                matching = opened.client.count(name, filter=condition)
            else:
                matching = opened.count(parsed(condition))
            if not sys.stdin.isatty():
                raise InvalidArgumentError(f"this deletes {counted(matching, 'item')} of {name} for good: say --yes")
            typer.confirm(f"Delete {counted(matching, 'item')} of {name} for good?", abort=True, err=True)
        if isinstance(opened, _Remote):
            deleted = opened.client.delete(name, key or None, filter=condition)
        elif (tree := parsed(condition)) is not None:
            deleted = opened.delete_matching(tree).deleted
        else:
            deleted = opened.delete(key or []).deleted
    if as_json:
        console.print_json({"deleted": deleted})
    else:
        print(f"deleted {counted(deleted, 'item')} of {name}")


@with_options
def evaluate(
    name: options.Name,
    place: options.CollectionsPlace,
    judged: EvaluateOptions,
    save: Annotated[bool, typer.Option("--save", help="Classify with this temperature and bound from now on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Classify a collection's labelled items, each by the others: accuracy, calibration, confusion."""
    import dataclasses
    import time

    from imagekin.cli.collection.copies import whole_collection
    from imagekin.cli.shared import console

    if save and place.here is None:
        raise InvalidArgumentError("--save goes with --data-dir: of a server's collection a copy is evaluated")
    started = time.perf_counter()
    with whole_collection(place, name, read_only=not save) as collection:
        found = collection.calibrate(judged) if save else collection.evaluate(judged)
    seconds = time.perf_counter() - started
    if as_json:
        confusion = [{"label": a, "answer": b, "count": count} for a, b, count in found.confusion]
        how = {"saved": save, "method": judged.method, "seconds": seconds}
        console.print_json({**dataclasses.asdict(found), "confusion": confusion, **how})
        return
    rows = [
        ["items, each left out", f"{found.items:,}"],
        ["classes", f"{found.classes:,}"],
        ["accuracy", f"{found.accuracy:.4f}"],
        ["calibration error", f"{found.ece:.4f}"],
        ["temperature", f"{found.temperature:.4f}"],
        [f"similarity that {judged.true_positive_rate:.0%} reach", f"{found.min_similarity:.4f}"],
    ]
    console.print_table(["", ""], rows)
    wrong = sorted((pair for pair in found.confusion if pair[0] != pair[1]), key=lambda pair: -pair[2])[:10]
    if wrong:
        console.print_table(["taken for", "is", "times"], [[b or "(unknown)", a, f"{n:,}"] for a, b, n in wrong])
    console.say(f"evaluated in {seconds:.1f} s" + (", saved" if save else "; --save lets classifications use it"))


def register(app: typer.Typer) -> None:
    """Add the commands to `imagekin collection`."""
    app.command("count")(count)
    app.command("facet")(facet)
    app.command("delete")(delete)
    app.command("evaluate")(evaluate)


def parsed(condition: str | None) -> "Condition | None":
    """Parse a filter; None when it is empty."""
    from imagekin.index.filters.parser import parse

    return parse(condition) if condition else None


class _Remote:
    """A collection on a server."""

    def __init__(self, client: "Client") -> None:
        self.client = client


@contextlib.contextmanager
def _opened(
    place: options.CollectionsPlace, name: str, *, writing: bool = False
) -> "Iterator[_Remote | KeptCollection]":
    if place.here is None:
        with place.connect(timeout=60.0) as client:
            yield _Remote(client)
        return
    with place.open(read_only=not writing) as collections:
        yield collections.open(name)
