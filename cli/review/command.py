"""`imagekin review`."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagekin.cli.shared import options
from imagekin.command_options import AsJson, with_options
from imagekin.counting import counted
from imagekin.errors import InvalidArgumentError

if TYPE_CHECKING:
    from imagekin.client.sync_client import Client
    from imagekin.index.review.review import Options
    from imagekin.types import StoredItem

_LISTED = 20


@with_options
def review(
    collection: options.Name,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The table to write, COLLECTION-review.csv by default.", metavar="FILE"),
    ] = None,
    neighbours: Annotated[
        int, typer.Option("--neighbours", help="Neighbours of each item that vote.", min=1, max=200)
    ] = 30,
    duplicates: Annotated[
        float | None,
        typer.Option(
            "--duplicates",
            help="Likeness from which two items are near-duplicates: by default 0.95 of pixels where there are "
            "thumbnails, else 0.97 of embeddings.",
            min=0,
            max=1,
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Findings of each kind at most.", min=1)] = 1_000,
    questions: Annotated[int, typer.Option("--next", help="Items to label next at most.", min=0)] = 50,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="Apply the decisions of this table instead.", metavar="FILE")
    ] = None,
    undo: Annotated[Path | None, typer.Option("--undo", help="Take back what this file says.", metavar="FILE")] = None,
    undo_file: Annotated[
        Path | None, typer.Option("--undo-file", help="With --apply: where to keep what undoes it.", metavar="FILE")
    ] = None,
    *,
    server: options.ServerOrFolder,
    timeout: options.Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Find likely wrong labels, near-duplicates, outliers and what to label next; apply what was decided."""
    from imagekin.cli.shared import console
    from imagekin.index.review.review import Options

    if apply and undo:
        raise InvalidArgumentError("give either --apply or --undo")
    with server.connect(timeout, write=bool(apply or undo)) as client:
        if apply:
            kept = undo_file or _free_undo_file(apply)
            said = _apply(client, collection, apply, kept)
        elif undo:
            said = _undo(client, collection, undo)
        else:
            table = out or Path(f"{collection}-review.csv")
            wanted = Options(neighbours, duplicates, limit, questions)
            said = _find(client, collection, table, wanted, silent=as_json)
    if as_json:
        console.print_json(said)
    else:
        console.say(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in said.items()))
        console.say(_next_step(collection, server.data_dir, said))


def _free_undo_file(table: Path) -> Path:
    """Return a name beside the table that no file has: an earlier one may be the only copy of what was deleted."""
    first = table.with_name(f"{table.name}.undo.jsonl")
    others = (table.with_name(f"{table.name}.undo-{number}.jsonl") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())


def _next_step(collection: str, folder: Path | None, said: dict[str, object]) -> str:
    """Advise on the next step after a review, or after its decisions were applied or taken back."""
    if table := said.get("written"):
        return (
            f"next: write relabel, delete or keep first under decision in {table}, then `imagekin review {collection} "
            f"{'' if folder is None else f'--data-dir {folder} '}--apply {table}`"
        )
    return "files and folders are as they were: `imagekin index` takes labels from them, or from a table beside them"


def _find(client: "Client", collection: str, table: Path, options: "Options", *, silent: bool) -> dict[str, object]:
    """Write the findings, and show the first of them."""
    from imagekin.cli.review.decisions import write_table
    from imagekin.cli.review.driver import run
    from imagekin.cli.shared import console

    found = run(client, collection, options)
    kinds = (found.labels, found.duplicates, found.outliers, found.next)
    write_table(table, [one for findings in kinds for one in findings])
    with console.Rows(["kind", "key", "label", "proposed", "score", "nearest"], silent=silent) as rows:
        for findings in kinds:
            for one in findings[:_LISTED]:
                rows.add(one.kind, one.key, one.label, one.proposed, one.score, one.nearest)
    if found.by_embeddings and not silent:
        console.say(
            f"compared {counted(found.by_embeddings, 'pair')} by their embeddings, for want of thumbnails: "
            "imagekin thumbnails makes them, and pixels tell copies more surely"
        )
    return {
        "items": found.items,
        **found.totals,
        "next": len(found.next),
        "pairs_by_pixels": found.by_pixels,
        "pairs_by_embeddings": found.by_embeddings,
        "written": str(table),
    }


def _apply(client: "Client", collection: str, table: Path, kept: Path) -> dict[str, object]:
    """Apply the decisions of a table to the items that are still as they were when it was made."""
    from imagekin.cli.review.decisions import read_table, write_undo
    from imagekin.types import ItemUpdate

    changes = read_table(table)
    keys = [*changes.labels, *changes.deleted]
    if not keys:
        raise InvalidArgumentError(f"{table} decides nothing: write relabel, delete or keep first under decision")
    now = {item.key: item for item in client.get(collection, keys, with_vector=True) if item is not None}
    same = {key: item for key, item in now.items() if (item.label or "") == changes.expected[key]}
    relabelled = [(same[key], label) for key, label in changes.labels.items() if key in same]
    deleted = [same[key] for key in changes.deleted if key in same]
    if relabelled or deleted:
        pictures = client.thumbnails(collection, [item.key for item in deleted]) if deleted else []
        write_undo(kept, collection, relabelled, list(zip(deleted, pictures, strict=True)))
    if relabelled:
        client.update(collection, [ItemUpdate(item.key, label=label) for item, label in relabelled])
    if deleted:
        client.delete(collection, keys=[item.key for item in deleted])
    skipped = len(keys) - len(relabelled) - len(deleted)
    return {
        "relabelled": len(relabelled),
        "deleted": len(deleted),
        "changed_meanwhile_and_left_alone": skipped,
        "undo": str(kept) if relabelled or deleted else "nothing to undo",
    }


def _undo(client: "Client", collection: str, kept: Path) -> dict[str, object]:
    """Restore labels that are still those that were applied, and deleted items whose key is still free."""
    from imagekin.cli.review.decisions import read_undo
    from imagekin.types import ItemUpdate

    labels, items = read_undo(kept, collection)
    now = _present(client, collection, [*labels, *(item.key for item in items)])
    back = [
        ItemUpdate(key, label=before)
        for key, (before, applied) in labels.items()
        if key in now and (now[key].label or "") == applied
    ]
    missing = [item for item in items if item.key not in now]
    if back:
        client.update(collection, back)
    if missing:
        client.upsert(collection, missing)
    left = len(labels) + len(items) - len(back) - len(missing)
    return {"labels_restored": len(back), "items_restored": len(missing), "changed_meanwhile_and_left_alone": left}


def _present(client: "Client", collection: str, keys: list[str]) -> "dict[str, StoredItem]":
    return {item.key: item for item in client.get(collection, keys) if item is not None} if keys else {}
