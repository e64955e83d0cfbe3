"""Training sees the layouts of docs/reference/your-images.md as their table says, and one of them is trained on.

All by the command itself, for a step: `python -m tests.training.layouts`.
"""

import re
from pathlib import Path

import pytest

from imagekin.training.data.images import ImageSet, has_split, load_images
from tests.sources.layouts import layouts
from tests.training.layouts import check, expected, written

FILES = {re.sub(r"[(].*?[)]", "", name): files for name, files, *_ in layouts()}


def labels(images: ImageSet) -> dict[str, str | None]:
    """Return the class of each image by its key."""
    names = images.class_names
    return {key: names[label] if label >= 0 else None for key, label in zip(images.keys, images.labels, strict=True)}


@pytest.mark.parametrize("name", FILES)
def test_the_training_and_the_test_images_of_a_layout(name: str, tmp_path: Path) -> None:
    root = written(tmp_path / "set", FILES[name])
    wanted = expected(root)
    assert labels(load_images(str(root), size=8)) == wanted.train
    assert has_split(str(root)) == bool(wanted.test)
    if wanted.test:
        assert labels(load_images(str(root), size=8, split="test")) == wanted.test


def test_the_command_trains_on_a_layout_and_judges_on_its_other_split(tmp_path: Path) -> None:
    (name,) = (name for name in FILES if name.startswith("splits inside the classes"))
    assert check(FILES[name], tmp_path) == "cross-entropy: 6 images of 2 classes, judged on 6"
