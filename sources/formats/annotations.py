"""Read the rows of JSON files in which annotation tools list images and their classes.

- a list of objects, one for each image, as in a .jsonl manifest;
- COCO: `images`, `annotations` and `categories` (https://cocodataset.org/#format-data); Roboflow's export too;
- Label Studio: a list of tasks with `data` and `annotations`, or its short form "JSON-MIN"
  (https://labelstud.io/guide/export);
- an object of labels by file name, or StyleGAN's `dataset.json`: a list of pairs of these;
- FiftyOne: `labels.json` with `classes` and `labels`, or `samples.json`
  (https://docs.voxel51.com/user_guide/export_datasets.html).

An image has one label: of several, the first one.
"""

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from imagekin.encoder.decoding.formats import IMAGE_SUFFIXES
from imagekin.sources.formats.table_rows import Row
from imagekin.sources.ignored import suffix_of
from imagekin.types import JSON

MAX_BYTES = 512 * 2**20
"""A file is read as a whole; a larger one is refused."""
_JUDGED = 20


def json_rows(file: IO[bytes]) -> Iterator[Row]:
    """Yield the rows of an annotation file; a message when it is of no form that is known."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        yield Row(1, f"it has more than {MAX_BYTES:,} bytes; write it as .jsonl")
        return
    try:
        whole: Any = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        yield Row(1, f"it is no JSON ({str(error)[:200]})")
        return
    rows = _rows(whole)
    if rows is None:
        yield Row(1, "it is no list of images, and no export of COCO, Label Studio or FiftyOne")
        return
    try:
        for number, row in enumerate(rows, start=1):
            yield Row(number, row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Row(1, f"its entries are not as its form has them ({type(error).__name__}: {str(error)[:100]})")


def _rows(whole: Any) -> Iterator[Mapping[str, JSON]] | None:
    if isinstance(whole, Mapping):
        if isinstance(whole.get("images"), list) and isinstance(whole.get("annotations"), list):
            return _coco(whole)
        if isinstance(whole.get("labels"), Mapping):
            return _fiftyone_labels(whole)
        if isinstance(whole.get("samples"), list):
            return _fiftyone_samples(whole["samples"])
        pairs = whole["labels"] if isinstance(whole.get("labels"), list) else list(whole.items())
        return _pairs(pairs) if pairs and all(map(_is_pair, pairs[:_JUDGED])) else None
    if isinstance(whole, list) and whole and all(isinstance(one, Mapping) for one in whole):
        return _label_studio(whole) if "data" in whole[0] or {"image", "choice"} <= set(whole[0]) else iter(whole)
    return None


def _is_pair(pair: Any) -> bool:
    """Return whether something is the name of an image file and its label."""
    return (
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and isinstance(pair[0], str)
        and suffix_of(pair[0]) in IMAGE_SUFFIXES
        and isinstance(pair[1], (str, int, Mapping))
    )


def _pairs(pairs: Sequence[Any]) -> Iterator[Mapping[str, JSON]]:
    for name, label in pairs:
        yield {"path": name, "label": label}


def _coco(whole: Mapping[str, Any]) -> Iterator[Mapping[str, JSON]]:
    names = {one["id"]: str(one["name"]) for one in whole.get("categories", [])}
    label: dict[Any, str | None] = {}
    for one in whole["annotations"]:
        label.setdefault(one["image_id"], names.get(one.get("category_id")))
    for image in whole["images"]:
        yield {"path": image["file_name"], "label": label.get(image["id"])}


def _label_studio(tasks: list[Mapping[str, Any]]) -> Iterator[Mapping[str, JSON]]:
    for task in tasks:
        if "data" not in task:  # the short form
            yield {"path": str(task["image"]), "label": _first(task.get("choice"))}
            continue
        data = task["data"]
        image = data.get("image") or next(value for value in data.values() if isinstance(value, str))
        results = [result for one in task.get("annotations", []) for result in one.get("result", [])]
        choices = [result["value"]["choices"] for result in results if "choices" in result.get("value", {})]
        yield {"path": image, "label": _first(choices[0] if choices else None)}


def _fiftyone_labels(whole: Mapping[str, Any]) -> Iterator[Mapping[str, JSON]]:
    classes = whole.get("classes")
    for name, label in whole["labels"].items():
        value = label.get("label") if isinstance(label, Mapping) else label
        if isinstance(value, int) and isinstance(classes, list) and 0 <= value < len(classes):
            value = classes[value]
        yield {"path": name, "label": _first(value)}


def _fiftyone_samples(samples: list[Mapping[str, Any]]) -> Iterator[Mapping[str, JSON]]:
    for sample in samples:
        found = [value["label"] for value in sample.values() if isinstance(value, Mapping) and "label" in value]
        yield {"path": posixpath.normpath(sample["filepath"]), "label": _first(found)}


def _first(value: Any) -> JSON:
    if isinstance(value, Mapping):
        value = value.get("choices")
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else str(value)
