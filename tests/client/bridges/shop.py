"""A collection for the tests of the bridges: pictures of three colours in folders of their names."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from imagekin import Client, Item
from tests.artifacts import tiny_artifact
from tests.e2e.pictures import class_folders


@contextlib.contextmanager
def filled_shop(folder: Path, *, per_class: int = 4) -> Iterator[Client]:
    """Index `photos` of a folder into the collection `shop`, and yield a client; keys are paths, prices numbers."""
    class_folders(folder / "photos", per_class=per_class)
    tiny_artifact(folder / "model.onnx")
    files = sorted((folder / "photos").rglob("*.png"))
    with Client.local(folder / "data", model=folder / "model.onnx") as client:
        client.create_collection("shop")
        client.upsert(
            "shop",
            [
                Item(
                    path.relative_to(folder / "photos").as_posix(),
                    image=path,
                    label=path.parent.name,
                    payload={"price": number, "caption": f"number {number}"},
                )
                for number, path in enumerate(files)
            ],
        )
        yield client
