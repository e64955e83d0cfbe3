"""Take images out of data sets in memory, those of Hugging Face's `datasets` and of torch, as items of a collection.

Neither library is imported: what is given has been made by it, and is known by its attributes.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from imagekin import files
from imagekin.client.image_inputs import image_bytes
from imagekin.counting import counted
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.types import ImageLike, Item
from imagekin.version import install_command

_ROWS_AT_ONCE = 256


def items_of(
    dataset: Any,
    *,
    image: str = "",
    label: str = "",
    key: str | Callable[[int], str] = "",
    classes: Sequence[str] = (),
) -> Iterator[Item]:
    """Yield the images of a data set as items, one at a time, for `Client.upsert` or `save_items`.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`, whose images are not decoded, and whose columns of texts,
            numbers and truth values become payloads; or a `torch.utils.data.Dataset` of images, or of pairs of an
            image and a label. Images are Pillow images, or tensors [C, H, W] of uint8 or of floats from 0 to 1.
        image: the column of images; empty for the first one.
        label: the column of labels; empty for the first one of classes.
        key: the column of keys, or the function that returns the key of the image with a number; empty for numbers.
        classes: names of the labels 0, 1, …; empty for those that the data set names.

    Raises:
        InvalidArgumentError: the data set is not one of these, or its images have been normalised.
    """
    if isinstance(dataset, Mapping):
        raise InvalidArgumentError(f"give one split of the data set: one of {', '.join(map(repr, dataset))}")
    if hasattr(dataset, "batch_sampler"):
        raise InvalidArgumentError("give the data set itself, not a DataLoader of batches: loader.dataset")
    if hasattr(dataset, "cast_column"):
        return _from_columns(dataset, image, label, key, classes)
    if image or label or (key and isinstance(key, str)):
        raise InvalidArgumentError(
            "only data sets of datasets have columns: leave image and label out, and give a function as key"
        )
    return _from_members(dataset, key if callable(key) else str, classes or _class_names(dataset))


def save_items(items: Iterable[Item], path: str | Path) -> int:
    """Write items with images to a Parquet file, which every command reads, and return their number.

    Args:
        items: the items; the bytes of files stay as they are, other images become PNG or TIFF.
        path: the file; replaced when it exists.

    Raises:
        FailedPreconditionError: pyarrow is not installed.
        ImagekinError: an image cannot be read; the file is as it was.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise FailedPreconditionError(f"Parquet files need pyarrow: {install_command('parquet')}") from None

    schema = pa.schema({"key": pa.string(), "label": pa.string(), "payload": pa.string(), "image": pa.binary()})
    count, rest = 0, iter(items)
    with files.replacing(Path(path)) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while some := list(islice(rest, _ROWS_AT_ONCE)):
            rows = [
                {
                    "key": item.key,
                    "label": item.label,
                    "payload": json.dumps(item.payload) if item.payload else None,
                    "image": image_bytes(item.image) if item.image is not None else None,
                }
                for item in some
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


def _from_columns(
    dataset: Any, image: str, label: str, key: str | Callable[[int], str], classes: Sequence[str]
) -> Iterator[Item]:
    """Yield the rows of a data set of Hugging Face."""
    features = dataset.features or {}
    image = image or next((name for name, kind in features.items() if type(kind).__name__ == "Image"), "")
    label = label or next((name for name, kind in features.items() if _names(kind)), "")
    for column in filter(None, (image, label, key if isinstance(key, str) else "")):
        if column not in features:
            raise InvalidArgumentError(f"the data set has no column {column!r}; it has {', '.join(features) or 'none'}")
    if type(features.get(image)).__name__ != "Image":
        raise InvalidArgumentError("the data set has no column of images: make one with cast_column(…, Image())")
    classes = classes or _names(features.get(label))
    rows = dataset.with_format(None).cast_column(image, type(features[image])(decode=False))
    for number, row in enumerate(rows):
        stored = row.pop(image) or {}
        name = _label(row.pop(label, None), classes)
        own = str(row.pop(key)) if isinstance(key, str) and key else key(number) if callable(key) else str(number)
        payload = {column: value for column, value in row.items() if _is_plain(value)}
        yield Item(own, image=stored.get("bytes") or stored.get("path"), label=name, payload=payload or None)


def _from_members(dataset: Any, key: Callable[[int], str], classes: Sequence[str]) -> Iterator[Item]:
    """Yield the members of a data set of torch."""
    if not hasattr(dataset, "__iter__") and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise InvalidArgumentError(f"{type(dataset).__name__} is no data set of datasets or torch")
    members = dataset if hasattr(dataset, "__iter__") else (dataset[number] for number in range(len(dataset)))
    for number, member in enumerate(members):
        image, label = (*member, None)[:2] if isinstance(member, tuple | list) else (member, None)
        yield Item(key(number), image=_picture(image), label=_label(label, classes))


def _is_plain(value: Any) -> bool:
    """Return whether a value can be in a payload; one that is not a number (NaN) stands for a missing one."""
    return isinstance(value, str | int | float | bool) and not (isinstance(value, float) and math.isnan(value))


def _names(feature: Any) -> Sequence[str]:
    """Return the names of a column of classes, or of lists of them; of other columns none."""
    found = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return found or ()


def _class_names(dataset: Any) -> Sequence[str]:
    """Return the names of a torch data set's classes; of a subset, those of the whole."""
    while dataset is not None and not hasattr(dataset, "classes"):
        dataset = getattr(dataset, "dataset", None)
    return getattr(dataset, "classes", ())


def _label(label: Any, classes: Sequence[str]) -> str | None:
    """Return a label as text: a number by its class's name if there are names; a negative one is no label."""
    if isinstance(label, list):
        label = label[0] if label else None
    if label is None or isinstance(label, str):
        return label or None
    number = label.item() if getattr(label, "ndim", None) == 0 else label
    if not isinstance(number, int):
        raise InvalidArgumentError(f"a label is a text or a whole number, this one is {type(label).__name__}")
    if number < 0:
        return None
    if classes and number >= len(classes):
        raise InvalidArgumentError(f"the label {number} has no name: there are {counted(len(classes), 'class')}")
    return str(classes[number]) if classes else str(number)


def _picture(image: Any) -> ImageLike:
    """Return an image as the client takes it; of a tensor, its pixels as uint8 [H, W, C]."""
    if image is None or isinstance(image, Mapping):
        raise InvalidArgumentError("a member of a data set is an image, or a pair of an image and a label")
    if not hasattr(image, "permute"):
        return image  # type: ignore[no-any-return]
    pixels = np.asarray((image.float() if image.is_floating_point() else image).detach().cpu())
    pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    if np.issubdtype(pixels.dtype, np.floating):
        if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 1:
            raise InvalidArgumentError("the tensor's values are not from 0 to 1: leave Normalize out of the transform")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return pixels
