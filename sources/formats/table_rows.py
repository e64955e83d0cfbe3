"""Find path, key, label and payload among the columns of a manifest or a Parquet file."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from imagekin.errors import InvalidArgumentError
from imagekin.sources.formats.text_lines import json_object
from imagekin.sources.records import label_text
from imagekin.types import JSON

# The first column that exists is used; several names are those of other tools.
PATH_COLUMNS = ("path", "file_name", "filename", "file", "image", "url")
KEY_COLUMNS = ("key", "__key__", "id")
LABEL_COLUMNS = ("label", "labels", "class", "cls")
_SPLIT_COLUMNS = frozenset(("split", "subset", "partition", "dataset_split", "data_split", "set", "data_set", "usage"))
PAYLOAD_COLUMN = "payload"


class RowMetadata(NamedTuple):
    """The columns of a row beside its pixels."""

    label: str | None
    payload: Mapping[str, JSON] | None


def first_of(names: Collection[str], wanted: tuple[str, ...]) -> str | None:
    """Return the first of the wanted names that exists; None for none."""
    return next((name for name in wanted if name in names), None)


def is_split_column(name: str) -> bool:
    """Return whether a column says to which split an image belongs."""
    return name.strip().lower().replace(" ", "_") in _SPLIT_COLUMNS


def row_metadata(values: Mapping[str, JSON], label_column: str | None, used: Collection[str]) -> RowMetadata:
    """Return the label and the payload of a row.

    Args:
        values: the row's values by column; None for empty ones.
        label_column: name of the label's column; None when there is none.
        used: columns that are not part of the payload. The column `payload` is a JSON object; others become members.

    Raises:
        InvalidArgumentError: the label or the payload is invalid.
    """
    label = label_text(values.get(label_column)) if label_column else None
    payload: dict[str, JSON] = {}
    whole = values.get(PAYLOAD_COLUMN)
    if isinstance(whole, str):
        try:
            payload |= json_object(whole)
        except ValueError as error:
            raise InvalidArgumentError(f"its payload cannot be used: {error}") from None
    elif isinstance(whole, Mapping):
        payload |= whole
    elif whole is not None:
        raise InvalidArgumentError("its payload cannot be used: it is no JSON object")
    for name, value in values.items():
        if name not in used and name != PAYLOAD_COLUMN and name != label_column and value is not None:
            payload[name] = value
    return RowMetadata(label, payload or None)
