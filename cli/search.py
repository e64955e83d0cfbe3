"""`imagekin search`."""

import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagekin.cli.shared import options
from imagekin.command_options import AsJson, with_options
from imagekin.errors import InvalidArgumentError

if TYPE_CHECKING:
    from imagekin.cli.shared.terminal_pictures import Protocol
    from imagekin.client.sync_client import Client
    from imagekin.types import Neighbour

# Queries and neighbours of each whose pictures a terminal shows.
_STRIPS = 8
_STRIP_PICTURES = 12


@with_options
def search(
    collection: options.CollectionName,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="Files, folders, archives, tables, patterns, URLs or -; see docs/reference/sources.md.",
        ),
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", metavar="KEY", help="Ask by a stored item instead; may be repeated.")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Neighbours of each image.", min=1, max=100_000)] = 10,
    condition: options.Filter = None,
    min_similarity: Annotated[
        float | None, typer.Option("--min-similarity", help="Leave out less similar items.", min=-1, max=1)
    ] = None,
    with_payload: Annotated[bool, typer.Option("--with-payload", help="Show the neighbours' payloads.")] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="Show the neighbours' pictures on a page in the browser.")
    ] = False,
    pictures: Annotated[
        bool, typer.Option(help="Show them in the terminal too, if it is one that can (kitty, iTerm2, sixel).")
    ] = True,
    *,
    server: options.ServerOrFolder,
    timeout: options.Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Find the items of a collection that are most like an image."""
    from imagekin.cli.shared import console
    from imagekin.cli.shared.empty_answers import why_nothing_was_found
    from imagekin.cli.shared.image_sources import Named, Tally, answered, reading
    from imagekin.client.calls import SearchParameters

    if bool(images) == bool(key):
        raise InvalidArgumentError("name either images or stored items (--key)")
    if images:
        server.check_model()
    asked = SearchParameters(collection, k, condition, min_similarity, with_payload)
    tally = Tally()
    found_count = 0
    kept: list[dict[str, Any]] = []
    sheet: list[tuple[str, list[Neighbour]]] = []
    by = _protocol() if pictures and not as_json and sys.stdout.isatty() else None
    started = time.perf_counter()

    def show(query: str, neighbours: "list[Neighbour]") -> None:
        nonlocal found_count
        found_count += len(neighbours)
        if open_page or by is not None:
            sheet.append((query, neighbours))
        if as_json:
            kept.append({"query": query, "neighbours": [_as_json(one, with_payload) for one in neighbours]})
        for rank, one in enumerate(neighbours, 1):
            payload = [json.dumps(one.payload, ensure_ascii=False)] if with_payload else []
            rows.add(query, rank, one.key, one.similarity, one.label, *payload)

    headings = ["query", "rank", "key", "similarity", "label", *(["payload"] if with_payload else [])]
    with server.connect(timeout) as client:
        with console.Rows(headings, silent=as_json) as rows:
            if key:
                found = client.search(
                    keys=key,
                    collection=collection,
                    k=k,
                    filter=condition,
                    min_similarity=min_similarity,
                    with_payload=with_payload,
                )
                for name, neighbours in zip(key, found, strict=True):
                    tally.images += 1
                    show(Named(name, None).key, neighbours)
            else:
                with reading(images or [], "search", tally) as (records, advance):
                    for named, neighbours in answered(records, lambda i: client.iter_search(i, asked), tally, advance):
                        show(named.key, neighbours)
        if tally.served and not found_count:
            console.say(f"imagekin: {why_nothing_was_found(client, collection, condition, min_similarity)}")
        if by is not None:
            _draw(client, collection, sheet, by)
        if open_page:
            console.say(_open_page(client, collection, sheet))
    seconds = time.perf_counter() - started
    console.list_failures(tally.failed, tally.failed_count)
    console.say_ignored(tally.ignored)
    if as_json:
        console.print_json({"results": kept, **console.totals(tally, seconds)})
    else:
        console.say(console.summary("searched", tally, seconds))
    console.fail_if_nothing(tally, images or [])


def _protocol() -> "Protocol | None":
    # Loaded here, because it loads Pillow, which a search without pictures does not need.
    from imagekin.cli.shared import terminal_pictures

    return terminal_pictures.protocol(os.environ)


def _draw(client: "Client", collection: str, answers: "list[tuple[str, list[Neighbour]]]", by: "Protocol") -> None:
    """Print a strip of the neighbours' pictures for each of the first queries."""
    from imagekin.cli.shared import terminal_pictures

    # A cell of a terminal's font has some nine pixels of width.
    columns = 9 * shutil.get_terminal_size().columns
    for _, neighbours in answers[:_STRIPS]:
        keys = [one.key for one in neighbours[:_STRIP_PICTURES]]
        found = client.thumbnails(collection, keys) if keys else []
        strip = terminal_pictures.strip([one.jpeg for one in found if one is not None], columns)
        if strip is not None:
            print(terminal_pictures.drawn(strip, by))


def _open_page(client: "Client", collection: str, answers: "list[tuple[str, list[Neighbour]]]") -> str:
    """Write a page of the answers, open it, and return a line that says where it is."""
    from imagekin.cli.shared import contact_sheet

    keys = list(dict.fromkeys(one.key for _, neighbours in answers for one in neighbours))
    found = zip(keys, client.thumbnails(collection, keys), strict=True) if keys else ()
    page = contact_sheet.contact_sheet(answers, {key: one for key, one in found if one is not None})
    path, opened = contact_sheet.show(page)
    return f"imagekin: {path}" + ("" if opened else " (no browser was found: open it yourself)")


def _as_json(neighbour: "Neighbour", with_payload: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "key": neighbour.key,
        "similarity": neighbour.similarity,
        "label": neighbour.label,
    }
    return {**shown, "payload": neighbour.payload} if with_payload else shown
