"""FiftyOne's samples get the embeddings, labels and predictions of a collection."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.client.bridges.mongo import replace_mongo
from tests.client.bridges.shop import filled_shop


def test_samples_get_fields_from_a_collection(tmp_path: Path) -> None:
    for library in ("fiftyone", "mongomock"):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed: python -m tests.client.bridges")
    replace_mongo()
    import fiftyone as fo

    from imagekin.client.bridges.fiftyone import add_to_samples

    with filled_shop(tmp_path) as client:
        photos = tmp_path / "photos"
        client.delete("shop", keys=["red/0002.png"])
        dataset = fo.Dataset.from_dir(str(photos), dataset_type=fo.types.ImageClassificationDirectoryTree)
        assert add_to_samples(dataset, client, "shop", photos) == 11
        stored = client.get("shop", ["blue/0000.png"], with_vector=True)[0]
        assert stored is not None
        first = dataset.first()
        assert first.imagekin_key == "blue/0000.png"
        assert first.imagekin_embedding.tolist() == pytest.approx(stored.vector)
        assert (first.imagekin_label.label, first.imagekin_prediction.label) == ("blue", "blue")
        assert 0 < first.imagekin_prediction.confidence <= 1
        other = next(one for one in dataset if one.filepath.endswith("red/0002.png"))
        assert other.imagekin_key is other.imagekin_embedding is other.imagekin_prediction is None
        found = client.search(photos / "red" / "0002.png", collection="shop", k=3)[0]
        view = dataset.select_by("imagekin_key", [one.key for one in found], ordered=True)
        assert [Path(one).relative_to(photos).as_posix() for one in view.values("filepath")] == [
            one.key for one in found
        ]
        client.delete("shop", filter='label = "red"')
        assert add_to_samples(dataset, client, "shop", photos) == 8
        assert sum(key is None for key in dataset.values("imagekin_key")) == 4
