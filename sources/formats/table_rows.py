"""Find path, key, label, split and payload among the columns of a manifest or a Parquet file.

Columns are found by the names that people and exporters give them, in any case and with spaces or hyphens.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from imagekin.errors import InvalidArgumentError
from imagekin.sources.formats.text_lines import json_object
from imagekin.sources.records import label_text
from imagekin.sources.splits import Split, split_named
from imagekin.types import JSON

# The first name that is there is used.
PATH_COLUMNS = (
    *("path", "file_name", "filename", "file", "filepath", "file_path", "filepaths", "image_path", "img_path"),
    *("image_file", "image_filename", "image_name", "img_name", "relative_path", "rel_path", "image", "img", "images"),
    *("photo", "picture", "url", "image_url", "uri", "image_uri", "image_id", "img_id", "imageid"),
)
KEY_COLUMNS = ("key", "__key__", "id")
# A column of names goes before one of numbers.
LABEL_COLUMNS = (
    *("label_name", "class_name", "category_name", "label_names", "class_names", "label_text"),
    *("label", "labels", "class", "classes", "cls", "category", "categories", "target", "targets", "classname"),
    *("ground_truth", "annotation", "tag", "choice", "breed", "species", "variety", "diagnosis", "dx"),
    *("kategorie", "klasse", "catégorie", "classe", "categoría", "clase", "categoria", "etiqueta", "etichetta"),
    *("label_id", "class_id", "category_id", "target_id", "class_label", "label_idx", "class_idx", "class_index", "y"),
)
_SPLIT_COLUMNS = (
    "split",
    "subset",
    "partition",
    "dataset_split",
    "data_split",
    "data_set",
    "set",
    "image_set",
    "img_set",
    "phase",
    "usage",
    "fold_name",
)
# Columns of truth values: the splits of true and of false. fast.ai's tables have `is_valid`.
_SPLIT_FLAGS: dict[str, tuple[Split, Split]] = {
    **dict.fromkeys(("is_valid", "is_val", "is_validation"), ("validation", "train")),
    "is_test": ("test", "train"),
    **dict.fromkeys(("is_train", "is_training", "is_training_image"), ("train", "test")),
}
PAYLOAD_COLUMN = "payload"
NO_NAME = "column"
"""Beginning of the name of a column without one."""
# Columns that are no labels, even when there is no other: texts, measures and numbers.
_NO_LABELS = frozenset(
    [
        *("caption", "captions", "text", "title", "description", "prompt", "comment", "comments", "note", "notes"),
        *("url", "source", "license", "author", "photographer", "date", "time", "timestamp", "year"),
        *("width", "height", "size", "bytes", "md5", "sha1", "sha256", "hash", "price", "score", "lat", "lon"),
    ]
)
_MAX_LABEL, _MAX_WORDS = 40, 4
_FEW_ROWS = 10
_TRUE, _FALSE = frozenset(("1", "1.0", "true")), frozenset(("0", "0.0", "false", ""))


class Row(NamedTuple):
    """A row of a manifest, or a message why it is invalid."""

    number: int
    values: Mapping[str, JSON] | str


class RowMetadata(NamedTuple):
    """The columns of a row beside its pixels."""

    label: str | None
    payload: Mapping[str, JSON] | None


def first_of(names: Collection[str], wanted: Sequence[str]) -> str | None:
    """Return the column with the first of the wanted names that exists; None for none."""
    plain = {_plain(name): name for name in reversed(list(names))}
    return next((plain[name] for name in wanted if name in plain), None)


def path_column(names: Collection[str]) -> str | None:
    """Return the column of paths; `id` is one where there is no other."""
    return first_of(names, (*PATH_COLUMNS, "id"))


def split_column(names: Collection[str]) -> str | None:
    """Return the column that says to which split an image belongs; None for none."""
    return first_of(names, (*_SPLIT_COLUMNS, *_SPLIT_FLAGS))


def split_in(values: Mapping[str, JSON], column: str | None) -> Split | None:
    """Return the split that a row's cell in a column of splits names; None for none."""
    cell = None if column is None else values.get(column)
    flags = _SPLIT_FLAGS.get(_plain(column or ""))
    if flags is None:
        return split_named(cell)
    flag = None if cell is None else _flag(cell)
    return None if flag is None else flags[0] if flag else flags[1]


def is_named(name: str) -> bool:
    """Return whether a column has one of the names that mean something."""
    return _plain(name) in (*PATH_COLUMNS, *KEY_COLUMNS, *LABEL_COLUMNS)


def one_hot_columns(rows: Sequence[Mapping[str, JSON]], used: Collection[str | None]) -> tuple[str, ...]:
    """Return the columns that are classes: all unused ones, when each row has 1 in some and 0 in the others."""
    if not rows:
        return ()
    names = tuple(name for name in rows[0] if name not in used)
    cells = [[_flag(row.get(name)) for name in names] for row in rows]
    is_one_hot = len(names) >= 2 and all(None not in row and any(row) for row in cells)
    return names if is_one_hot else ()


def only_label(rows: Sequence[Mapping[str, JSON]], used: Collection[str | None]) -> str | None:
    """Return the only column besides those that are used, when it looks like labels: short texts that repeat."""
    names = rows[0] if rows else ()
    others = [name for name in names if name not in used and not _plain(name).startswith((NO_NAME, "unnamed"))]
    if len(others) != 1 or _plain(others[0]) in (*_NO_LABELS, *_SPLIT_COLUMNS, PAYLOAD_COLUMN):
        return None
    values = [value for row in rows if (value := row.get(others[0])) is not None]
    are_labels = all(isinstance(value, int) or (isinstance(value, str) and _is_short(value)) for value in values)
    repeat = len(values) < _FEW_ROWS or len(set(map(str, values))) < len(values)
    return others[0] if values and are_labels and repeat else None


def class_of(row: Mapping[str, JSON], classes: Sequence[str]) -> str | None:
    """Return the first of the columns whose cell is 1."""
    return next((name for name in classes if _flag(row.get(name))), None)


def row_metadata(values: Mapping[str, JSON], label_column: str | None, used: Collection[str | None]) -> RowMetadata:
    """Return the label and the payload of a row.

    Args:
        values: the row's values by column; None for empty ones.
        label_column: name of the label's column; None when there is none.
        used: columns that are not part of the payload. The column `payload` is a JSON object; others become members.

    Raises:
        InvalidArgumentError: the label or the payload is invalid.
    """
    label = one_label(values.get(label_column)) if label_column else None
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


def one_label(value: object) -> str | None:
    """Return the label in a cell: of a list, its first one, because an image has one label.

    Raises:
        InvalidArgumentError: it is neither a text nor a whole number.
    """
    if isinstance(value, list):
        value = next(iter(value), None)
    if isinstance(value, Mapping):
        value = next((value[name] for name in ("label", "name", "choices") if name in value), None)
        return one_label(value) if isinstance(value, list) else label_text(value)
    return label_text(value.strip() if isinstance(value, str) else value)


def _is_short(text: str) -> bool:
    return len(text) <= _MAX_LABEL and len(text.split()) <= _MAX_WORDS and "://" not in text and "/" not in text


@lru_cache(maxsize=1024)  # a table's cells have the names of few columns
def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _flag(cell: JSON) -> bool | None:
    """Return whether a cell is 1 or 0; None for anything else."""
    text = str(cell if cell is not None else "").strip().lower()
    return True if text in _TRUE else False if text in _FALSE else None
