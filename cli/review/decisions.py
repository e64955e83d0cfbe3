"""Read and write the table of a review, and turn its decisions into changes that can be taken back.

| decision | does |
|---|---|
| empty, `ignore` | nothing |
| `relabel` | sets the label that stands under `proposed` |
| `delete` | deletes the item |
| `keep first` | deletes the other members of the item's group |
"""

import csv
import io
import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagekin.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imagekin.files import write_text
from imagekin.index.review.findings import Finding
from imagekin.types import Item, StoredItem, Thumbnail

COLUMNS = ("decision", "kind", "key", "label", "proposed", "score", "group", "nearest")
_DECISIONS = ("", "ignore", "relabel", "delete", "keep first")
# Spreadsheets of languages that write 0,5 put a semicolon between cells.
_SEPARATORS = (",", ";", "\t")
_UNDO = "imagekin review undo"


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes that a table decides on.

    Attributes:
        labels: the new label of each key.
        deleted: the keys to delete.
        expected: the label that each of these keys had when it was reviewed.
    """

    labels: dict[str, str]
    deleted: list[str]
    expected: dict[str, str]


def write_table(path: Path, findings: Iterable[Finding]) -> None:
    """Write findings as CSV in UTF-8, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for one in findings:
        row = ("", one.kind, one.key, one.label, one.proposed, f"{one.score:.4f}", one.group or "", one.nearest)
        writer.writerow(row)
    write_text(path, text.getvalue())


def read_table(path: Path) -> Changes:
    """Read the decisions of a table.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is no table of a review, or a decision is none; the message names the line.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = max(_SEPARATORS, key=text.partition("\n")[0].count)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgumentError(f"{path}: cannot be read as CSV ({error})") from None
    labels: dict[str, str] = {}
    deleted: dict[str, None] = {}
    expected: dict[str, str] = {}
    for line, row in enumerate(rows, 2):
        if not set(COLUMNS) - {"score", "nearest"} <= {name for name in row if isinstance(name, str)}:
            raise InvalidArgumentError(f"{path}: no table of a review: it needs the columns {', '.join(COLUMNS)}")
        decision = (row["decision"] or "").strip().lower()
        if decision not in _DECISIONS:
            known = ", ".join(_DECISIONS[1:])
            raise InvalidArgumentError(
                f"{path}, line {line}: no decision {decision[:40]!r}: there is {known}, or nothing"
            )
        key = row["key"] or ""
        if decision in ("", "ignore"):
            continue
        if not key:
            raise InvalidArgumentError(f"{path}, line {line}: the key is missing")
        if decision == "relabel":
            if not (row["proposed"] or "").strip():
                raise InvalidArgumentError(f"{path}, line {line}: write the new label under proposed")
            if labels.setdefault(key, row["proposed"].strip()) != row["proposed"].strip():
                raise InvalidArgumentError(f"{path}, line {line}: {key!r} is given two labels")
            expected[key] = row["label"] or ""
        elif decision == "delete":
            deleted[key] = None
            expected[key] = row["label"] or ""
        else:
            if not row["group"]:
                raise InvalidArgumentError(f"{path}, line {line}: only a group of duplicates has others than the first")
            for other in rows:
                if other["group"] == row["group"] and other["kind"] == "duplicate" and other["key"] != key:
                    deleted[other["key"]] = None
                    expected[other["key"]] = other["label"] or ""
    return Changes({key: label for key, label in labels.items() if key not in deleted}, list(deleted), expected)


def write_undo(
    path: Path,
    collection: str,
    relabelled: Iterable[tuple[StoredItem, str]],
    deleted: Sequence[tuple[StoredItem, Thumbnail | None]],
) -> None:
    """Write what is needed to take changes back, before they are made.

    Raises:
        FailedPreconditionError: there is such a file, which may be the only copy of something.
    """
    if path.exists():
        raise FailedPreconditionError(f"{path} exists and may be needed: move it away, or name another by --undo-file")
    lines: list[dict[str, Any]] = [{"what": _UNDO, "collection": collection}]
    lines += [{"key": item.key, "label": item.label or "", "applied": label} for item, label in relabelled]
    lines += [{"key": item.key, "deleted": _whole(item, picture)} for item, picture in deleted]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_undo(path: Path, collection: str) -> tuple[dict[str, tuple[str, str]], list[Item]]:
    """Return the labels to restore as key → (label before, label that was applied), and the items to bring back.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is no undo file, or that of another collection.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    try:
        first, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if first["what"] != _UNDO:
            raise ValueError("it says nothing of a review")
        labels = {line["key"]: (line["label"], line["applied"]) for line in lines if "applied" in line}
        items = [_item(line["key"], line["deleted"]) for line in lines if "deleted" in line]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidArgumentError(f"{path}: no undo file of a review ({error})") from None
    if first["collection"] != collection:
        raise InvalidArgumentError(f"{path} is about the collection {first['collection']!r}, not {collection!r}")
    return labels, items


def _whole(item: StoredItem, picture: Thumbnail | None) -> dict[str, Any]:
    return {
        "label": item.label,
        "payload": None if item.payload is None else dict(item.payload),
        "content_hash": None if item.content_hash is None else item.content_hash.hex(),
        "vector": b64encode(np.asarray(item.vector, "<f4").tobytes()).decode(),
        "thumbnail": None if picture is None else b64encode(picture.jpeg).decode(),
    }


def _item(key: str, whole: dict[str, Any]) -> Item:
    digest = whole["content_hash"]
    return Item(
        key,
        vector=np.frombuffer(b64decode(whole["vector"]), "<f4"),
        label=whole["label"],
        payload=whole["payload"],
        content_hash=None if digest is None else bytes.fromhex(digest),
        thumbnail=None if whole["thumbnail"] is None else b64decode(whole["thumbnail"]),
    )
