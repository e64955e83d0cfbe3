"""Rows of named values, from a manifest or a Parquet file: which of them are the path, key, label and payload."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from imagekin.errors import InvalidArgumentError
from imagekin.sources.formats.text_lines import json_object
from imagekin.sources.records import label_text
from imagekin.types import JSON

# The first of these that there is counts; several are what other tools write.
PATH_COLUMNS = ("path", "file_name", "filename", "file", "image", "url")
KEY_COLUMNS = ("key", "__key__", "id")
LABEL_COLUMNS = ("label", "class", "cls")
PAYLOAD_COLUMN = "payload"


class RowMetadata(NamedTuple):
    """The columns of a row beside its pixels."""

    label: str | None
    payload: Mapping[str, JSON] | None


def first_of(names: Collection[str], wanted: tuple[str, ...]) -> str | None:
    """Return the first of the wanted names that there is."""
    return next((name for name in wanted if name in names), None)


def described(values: Mapping[str, JSON], label_column: str | None, used: Collection[str]) -> RowMetadata:
    """Return the label and the payload of a row.

    Args:
        values: the row; None for what is empty.
        label_column: name of the label's column, None when there is none.
        used: columns that are no part of the payload. Column `payload` is a JSON object; the others are its members.

    Raises:
        InvalidArgumentError: the label or the payload cannot be used.
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
