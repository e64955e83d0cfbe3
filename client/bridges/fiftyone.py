"""Write what a collection knows of images onto the samples of a FiftyOne data set. Needs `fiftyone`."""

import os
from pathlib import Path
from typing import Any

import fiftyone as fo

from imagekin.client.sync_client import Client


def add_to_samples(
    samples: Any, client: Client, collection: str, root: str | os.PathLike[str], *, prefix: str = "imagekin"
) -> int:
    """Add fields to the samples whose images a collection holds, and return the number of these samples.

    The fields are `imagekin_key`, `imagekin_embedding`, `imagekin_label` (the item's own) and `imagekin_prediction`
    (that of its neighbours, itself left out). Samples of other images have None in them.

    Args:
        samples: a FiftyOne data set or view.
        client: a client of a server or, from `Client.local`, of a folder.
        collection: the collection's name.
        root: folder that the collection was indexed from; a sample's path below it is its key.
        prefix: begins the fields' names.
    """
    keys = [Path(os.path.relpath(path, os.path.abspath(root))).as_posix() for path in samples.values("filepath")]
    items = client.get(collection, keys, with_vector=True)
    held = [item.key for item in items if item is not None]
    told = dict(zip(held, client.classify(keys=held, collection=collection), strict=True)) if held else {}
    predictions = [told.get(item.key) if item else None for item in items]
    columns: dict[str, list[Any]] = {
        "key": [item.key if item else None for item in items],
        "embedding": [item.vector if item else None for item in items],
        "label": [fo.Classification(label=item.label) if item and item.label else None for item in items],
        "prediction": [
            fo.Classification(label=one.label, confidence=one.confidence) if one and one.label else None
            for one in predictions
        ],
    }
    for name, values in columns.items():
        field = f"{prefix}_{name}"
        # FiftyOne makes a field by its first value.
        if samples.has_sample_field(field) or any(value is not None for value in values):
            samples.set_values(field, values)
    return len(held)
