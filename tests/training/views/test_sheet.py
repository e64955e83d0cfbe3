"""`imagekin train --show-views` draws what the run would see, and trains nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagekin.encoder.metadata import Preprocess
from imagekin.errors import InvalidArgumentError
from imagekin.training.data.images import ImageSet
from imagekin.training.models.encoders import Normalisation
from imagekin.training.settings import TrainSettings
from imagekin.training.views.sheet import COLUMNS, GAP, LEAST_SIDE, ROWS, save_view_sheet, view_sheet
from imagekin.training.views.views import Views
from tests.e2e.processes import quiet_environment

PLAIN = Normalisation((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


def image_set(count: int, size: int = 32) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    names = tuple(str(row) for row in range(count))
    return ImageSet(pixels, np.full(count, -1), (), names, "noise", Preprocess(size, size))


def cell(sheet: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    top, left = GAP + row * (side + GAP), GAP + column * (side + GAP)
    return sheet[top : top + side, left : left + side]


def test_the_first_column_is_the_image_and_every_view_is_another() -> None:
    images = image_set(3)
    sheet = view_sheet(images, Views.named("supcon", 32, PLAIN), seed=0)
    step = LEAST_SIDE + GAP
    assert sheet.shape == (3 * step + GAP, (1 + COLUMNS) * step + GAP, 3)
    for row in range(3):
        assert np.array_equal(cell(sheet, row, 0, LEAST_SIDE)[::3, ::3], images.pixels[row])
        assert len({cell(sheet, row, column, LEAST_SIDE).tobytes() for column in range(1 + COLUMNS)}) == 1 + COLUMNS
    assert np.array_equal(sheet, view_sheet(images, Views.named("supcon", 32, PLAIN), seed=0))


def test_unchanged_views_are_the_image() -> None:
    sheet = view_sheet(image_set(2), Views.named("none", 32, PLAIN), seed=0)
    assert np.array_equal(cell(sheet, 1, 0, LEAST_SIDE), cell(sheet, 1, COLUMNS, LEAST_SIDE))


def test_a_view_has_its_own_size() -> None:
    sheet = view_sheet(image_set(2, size=120), Views.named("photos", 64, PLAIN), seed=0)
    assert sheet.shape[0] == 2 * (128 + GAP) + GAP
    assert (cell(sheet, 0, 0, 128)[120:] == 255).all()


def test_the_command_writes_the_picture_and_no_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "imagekin", "train", "digits", "--out", "run", "--show-views", "views.png"]
    done = subprocess.run(command, cwd=tmp_path, env=quiet_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["views.png"]
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.size == ((1 + COLUMNS) * (LEAST_SIDE + GAP) + GAP, ROWS * (LEAST_SIDE + GAP) + GAP)


@pytest.mark.parametrize("name", ["views", "views.txt"])
def test_a_name_of_no_picture_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"end it in \.png"):
        save_view_sheet(TrainSettings(data="digits", out=tmp_path / "run"), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_views_of_the_sheet_are_those_of_the_preset() -> None:
    with pytest.raises(InvalidArgumentError, match="choose one of"):
        save_view_sheet(TrainSettings(data="digits", out=Path("run"), views="nonsense"), Path("views.png"))
