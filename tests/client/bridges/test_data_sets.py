"""Data sets of Hugging Face and torch become items of a collection, or a file that every command reads."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagekin import Client, Item
from imagekin.client.bridges.data_sets import items_of, save_items
from imagekin.errors import ImageError, InvalidArgumentError
from imagekin.sources.open import open_source
from tests.artifacts import tiny_artifact
from tests.e2e.pictures import class_folders, picture

RED, BLUE = (220, 40, 40), (40, 60, 220)


def hugging_face_set() -> Any:
    """Return four photos of two breeds, the last without a breed."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: python -m tests.client.bridges")
    kinds = {
        "scan": datasets.Image(),
        "breed": datasets.ClassLabel(names=["cat", "dog"]),
        "price": datasets.Value("float32"),
        "name": datasets.Value("string"),
        "box": datasets.List(datasets.Value("float32")),
    }
    files = [picture(BLUE if number % 2 else RED, number, format="JPEG") for number in range(4)]
    columns = {
        "scan": [{"bytes": file, "path": None} for file in files],
        "breed": [0, 1, 0, None],
        "price": [0.0, 1.0, float("nan"), None],
        "name": [f"n{number}" for number in range(4)],
        "box": [[1.0, 2.0]] * 4,
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def with_lists(features: Any) -> Any:
    """Return the columns with a list of breeds for each photo."""
    import datasets

    return datasets.Features({**features, "breed": datasets.List(features["breed"])})


def test_a_data_set_of_hugging_face_keeps_files_classes_and_columns() -> None:
    dataset = hugging_face_set()
    for given in (dataset, dataset.to_iterable_dataset(), dataset.with_format("numpy")):
        items = list(items_of(given))
        assert [one.label for one in items] == ["cat", "dog", "cat", None]
        assert [one.key for one in items] == ["0", "1", "2", "3"]
        assert items[1].payload == {"price": 1.0, "name": "n1"}
        assert items[2].payload == {"name": "n2"}
        assert items[1].image == picture(BLUE, 1, format="JPEG")
    assert [one.key for one in items_of(dataset, key="name")] == ["n0", "n1", "n2", "n3"]
    assert next(items_of(dataset, label="name", key=lambda number: f"hub/{number}")).label == "n0"
    several = dataset.map(lambda row: {"breed": [1, 0]}, features=with_lists(dataset.features))
    assert {one.label for one in items_of(several)} == {"dog"}
    with pytest.raises(InvalidArgumentError, match="no column 'breeds'; it has scan, breed"):
        list(items_of(dataset, label="breeds"))
    with pytest.raises(InvalidArgumentError, match="one split of the data set: one of 'train'"):
        list(items_of({"train": dataset}))


def test_what_datasets_writes_is_read_without_it(tmp_path: Path) -> None:
    dataset = hugging_face_set()
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(tmp_path / "saved.parquet")
    for name in ("saved", "saved.parquet"):
        records = list(open_source(tmp_path / name))
        assert [one.label for one in records] == ["cat", "dog", "cat", None]
        assert records[1].data == picture(BLUE, 1, format="JPEG")
        assert records[1].payload == {"price": 1.0, "name": "n1"}


def test_images_that_datasets_has_as_paths_are_read_from_there(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: python -m tests.client.bridges")
    photos = class_folders(tmp_path / "photos", per_class=2)
    load = {"data_dir": str(photos), "split": "train", "cache_dir": str(tmp_path / "cache")}
    dataset = datasets.load_dataset("imagefolder", **load)
    dataset.to_parquet(tmp_path / "saved.parquet")
    files = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
    assert [record.data for record in open_source(tmp_path / "saved.parquet")] == files
    for given in (dataset, datasets.load_dataset("imagefolder", streaming=True, **load)):
        items = list(items_of(given))
        assert [Path(str(item.image)).read_bytes() for item in items] == files
        assert [item.label for item in items] == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2


class Pairs:
    """A data set in the form of torch's, which need not derive from it."""

    def __init__(self, members: list[Any], classes: list[str] | None = None) -> None:
        self.members = members
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> Any:
        return self.members[number % len(self.members)]  # without an end that plain iteration would find


def test_a_data_set_of_torch_gives_pictures_or_tensors_with_labels() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    whole = Image.fromarray(pixels)
    dataset = Pairs([(whole, 1), (planes, torch.tensor(0)), (planes / 255, -1), (planes[:1], "own")], ["cat", "dog"])
    for given in (dataset, torch.utils.data.Subset(dataset, [0, 1, 2, 3])):
        items = list(items_of(given))
        assert [one.label for one in items] == ["dog", "cat", None, "own"]
        assert items[0].image is whole
        for one in items[1:3]:
            np.testing.assert_array_equal(one.image, pixels)
        np.testing.assert_array_equal(items[3].image, pixels[:, :, :1])
    assert [one.label for one in items_of(Pairs([(whole, 1), whole]))] == ["1", None]
    assert [one.label for one in items_of(Pairs([(whole, 1)]), classes=["a", "b"])] == ["b"]
    assert next(items_of(dataset, key=lambda number: f"pets/{number}")).key == "pets/0"
    with pytest.raises(InvalidArgumentError, match="leave Normalize out"):
        list(items_of(Pairs([(planes / 255 - 0.5, 0)])))
    for label in (0.5, torch.tensor([0, 1])):
        with pytest.raises(InvalidArgumentError, match="a text or a whole number"):
            list(items_of(Pairs([(whole, label)])))
    (brain,) = items_of([torch.ones(3, 8, 8, dtype=torch.bfloat16)])
    assert np.all(brain.image == 255)
    for mistaken, options, problem in (
        ([(torch.ones(3, 8, 8), 2)], {"classes": ["cat", "dog"]}, "the label 2 has no name"),
        ([{"image": torch.ones(3, 8, 8)}], {}, "a pair of an image and a label"),
        ([torch.ones(3, 8, 8)], {"key": "id"}, "only data sets of datasets have columns"),
    ):
        with pytest.raises(InvalidArgumentError, match=problem):
            list(items_of(mistaken, **options))
    with pytest.raises(InvalidArgumentError, match=r"loader\.dataset"):
        list(items_of(torch.utils.data.DataLoader(dataset)))
    with pytest.raises(InvalidArgumentError, match="no data set"):
        list(items_of(3))


def test_the_items_of_a_data_set_are_searched_and_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    files = [picture(BLUE if number % 2 else RED, number) for number in range(6)]
    dataset = Pairs([(Image.open(io.BytesIO(file)), number % 2) for number, file in enumerate(files)], ["red", "blue"])
    with Client.local(tmp_path / "data", model=tiny_artifact(tmp_path / "model.onnx")) as client:
        client.create_collection("pets")
        assert len(client.upsert("pets", items_of(dataset)).outcomes) == 6
        assert client.search(files[3], collection="pets", k=1)[0][0].key == "3"
        assert client.classify(files[2], collection="pets")[0].label == "red"
    path = tmp_path / "pets.parquet"
    assert save_items(items_of(dataset), path) == 6
    assert open_source(path).plan.classes == {"red": 3, "blue": 3}
    assert [record.key for record in open_source(path)] == list("012345")
    with pytest.raises(ImageError, match="cannot be encoded"):
        save_items([Item("bad", image=np.zeros((2, 2), np.uint16)), Item("worse", image=Image.new("F", (0, 0)))], path)
    assert open_source(path).count() == 6
