"""`imagekin collection count|facet|delete|evaluate`: asks about items, deletes them, judges how they classify."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagekin.cli.shared import options as shared
from imagekin.errors import InvalidArgumentError

if TYPE_CHECKING:
    from imagekin.client.channel import TlsLike
    from imagekin.client.sync_client import Client
    from imagekin.index.filters.conditions import Condition
    from imagekin.index.interface import KeptCollection

Name = Annotated[str, typer.Argument(metavar="NAME", help="The collection's name.")]


def count(
    ctx: typer.Context,
    name: Name,
    condition: shared.Filter = None,
    data_dir: shared.DataDir = None,
    store: shared.Store = None,
    address: shared.RemoteAddress = None,
    token: shared.Token = None,
    tls: shared.TlsFlag = False,
    ca: shared.CaFile = None,
    client_cert: shared.ClientCert = None,
    client_key: shared.ClientKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """Count a collection's items, or those that match."""
    from imagekin.cli.shared import console

    secured = shared.encryption(tls, ca, client_cert, client_key)
    with _opened(ctx, name, data_dir, store, address, token, secured) as place:
        if isinstance(place, _Remote):
            found = place.client.count(name, filter=condition)
        else:
            found = place.count(parsed(condition))
    if as_json:
        console.print_json({"count": found})
    else:
        print(found)


def facet(
    ctx: typer.Context,
    name: Name,
    field: Annotated[str, typer.Argument(metavar="FIELD", help="label, or payload. and a dotted path.")],
    condition: shared.Filter = None,
    limit: Annotated[int, typer.Option("--limit", help="Values to show at most.", min=1, max=10_000)] = 100,
    data_dir: shared.DataDir = None,
    store: shared.Store = None,
    address: shared.RemoteAddress = None,
    token: shared.Token = None,
    tls: shared.TlsFlag = False,
    ca: shared.CaFile = None,
    client_cert: shared.ClientCert = None,
    client_key: shared.ClientKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """Count a collection's items by the values of a field, the most frequent first."""
    from imagekin.cli.shared import console

    secured = shared.encryption(tls, ca, client_cert, client_key)
    with _opened(ctx, name, data_dir, store, address, token, secured) as place:
        if isinstance(place, _Remote):
            found = place.client.facet(name, field, filter=condition, limit=limit)
        else:
            found = place.facet(field, parsed(condition), limit)
    if as_json:
        console.print_json({"counts": [{"value": one.value, "count": one.count} for one in found]})
    else:
        console.print_table(["value", "items"], [[str(one.value), f"{one.count:,}"] for one in found])


def delete(
    ctx: typer.Context,
    name: Name,
    condition: shared.Filter = None,
    key: Annotated[list[str] | None, typer.Option("--key", metavar="KEY", help="An item; may be repeated.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: shared.DataDir = None,
    store: shared.Store = None,
    address: shared.RemoteAddress = None,
    token: shared.Token = None,
    tls: shared.TlsFlag = False,
    ca: shared.CaFile = None,
    client_cert: shared.ClientCert = None,
    client_key: shared.ClientKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """Delete items by key, or all that match."""
    import sys

    from imagekin.cli.shared import console

    if bool(condition) == bool(key):
        raise InvalidArgumentError("name either a condition (--filter) or items (--key)")
    secured = shared.encryption(tls, ca, client_cert, client_key)
    with _opened(ctx, name, data_dir, store, address, token, secured, writing=True) as place:
        if condition and not yes:
            if isinstance(place, _Remote):
                matching = place.client.count(name, filter=condition)
            else:
                matching = place.count(parsed(condition))
            if not sys.stdin.isatty():
                raise InvalidArgumentError(f"this deletes {matching:,} items of {name} for good: say --yes")
            typer.confirm(f"Delete {matching:,} items of {name} for good?", abort=True, err=True)
        if isinstance(place, _Remote):
            deleted = place.client.delete(name, key or None, filter=condition)
        elif (tree := parsed(condition)) is not None:
            deleted = place.delete_matching(tree).deleted
        else:
            deleted = place.delete(key or []).deleted
    if as_json:
        console.print_json({"deleted": deleted})
    else:
        print(f"deleted {deleted:,} items of {name}")


def evaluate(
    ctx: typer.Context,
    name: Name,
    data_dir: shared.DataDir = None,
    store: shared.Store = None,
    method: Annotated[str, typer.Option("--method", metavar="knn|prototype", help="Where a class comes from.")] = "knn",
    k: Annotated[int, typer.Option("--k", help="Neighbours that vote.", min=1, max=10_000)] = 20,
    sample: Annotated[int, typer.Option("--sample", help="Labelled items to classify at most.", min=2)] = 10_000,
    true_positive_rate: Annotated[
        float, typer.Option("--true-positive-rate", help="Share of known items to keep when rejecting.", min=0, max=1)
    ] = 0.95,
    save: Annotated[bool, typer.Option("--save", help="Classify with this temperature and bound from now on.")] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Classify a collection's labelled items, each by the others: accuracy, calibration, confusion."""
    import dataclasses
    import time

    from imagekin.cli.shared import console
    from imagekin.index.types import ClassifyMethod, EvaluateOptions

    if method not in list(ClassifyMethod):
        raise InvalidArgumentError(f"no method {method!r}: choose {' or '.join(ClassifyMethod)}", field="method")
    place = shared.kept_here(ctx, data_dir, store)
    options = EvaluateOptions(ClassifyMethod(method), k, sample, true_positive_rate)
    started = time.perf_counter()
    with shared.collections(place, read_only=not save) as catalog, catalog.open(name) as collection:
        found = collection.calibrate(options) if save else collection.evaluate(options)
    seconds = time.perf_counter() - started
    if as_json:
        confusion = [{"label": a, "answer": b, "count": count} for a, b, count in found.confusion]
        console.print_json(
            {**dataclasses.asdict(found), "confusion": confusion, "saved": save, "method": method, "seconds": seconds}
        )
        return
    rows = [
        ["items, each left out", f"{found.items:,}"],
        ["classes", f"{found.classes:,}"],
        ["accuracy", f"{found.accuracy:.4f}"],
        ["calibration error", f"{found.ece:.4f}"],
        ["temperature", f"{found.temperature:.4f}"],
        [f"similarity that {true_positive_rate:.0%} reach", f"{found.min_similarity:.4f}"],
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
    """Return the condition that a text states, None for none."""
    from imagekin.index.filters.parser import parse

    return parse(condition) if condition else None


class _Remote:
    """A server that keeps the collection."""

    def __init__(self, client: "Client") -> None:
        self.client = client


@contextlib.contextmanager
def _opened(
    ctx: typer.Context,
    name: str,
    data_dir: Path | None,
    store: str | None,
    address: str | None,
    token: str | None,
    tls: "TlsLike",
    *,
    writing: bool = False,
) -> "Iterator[_Remote | KeptCollection]":
    kept, address = shared.place(ctx, data_dir, address, store)
    if kept is None:
        with shared.connect(address or "", token, tls, timeout=60.0) as client:
            yield _Remote(client)
        return
    with shared.collections(kept, read_only=not writing) as collections:
        yield collections.open(name)
