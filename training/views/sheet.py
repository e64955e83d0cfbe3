"""Draw a sheet of views: one row per image, first the image itself, then views of it."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imagekin import files
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.training.data.images import ImageSet, has_split, load_images
from imagekin.training.data.run_data import measure_normalisation
from imagekin.training.loop.seeds import generator
from imagekin.training.settings import TrainSettings
from imagekin.training.views.views import Views, check_views

ROWS = 8
COLUMNS = 8
"""Views of each image."""
LEAST_SIDE = 96
"""Small views are enlarged to this many pixels at least, by whole factors, so that they can be seen."""
GAP = 4


def save_view_sheet(settings: TrainSettings, path: Path) -> None:
    """Write a sheet of views of a few training images, drawn by the settings' preset.

    Args:
        settings: of a run: the data, sizes, preset and seed. Nothing is written to its folder.
        path: of the picture; its suffix is the format.

    Raises:
        InvalidArgumentError: the data cannot be used, there is no such preset, or no such format.
        NotFoundError: there are no such data.
        FailedPreconditionError: the picture cannot be written.
    """
    form = Image.registered_extensions().get(path.suffix.lower())
    if form not in Image.SAVE:
        raise InvalidArgumentError(f"{path.name} is no name of a picture; end it in .png", field="show_views")
    check_views(settings)
    train = load_images(
        settings.data,
        split="train" if has_split(settings.data, settings.label_from) else "all",
        limit=min(settings.limit or ROWS, ROWS),
        preprocess=settings.training_preprocess(),
        label_from=settings.label_from,
    )
    views = Views.named(settings.views, settings.view_side, measure_normalisation(train))
    sheet = Image.fromarray(view_sheet(train, views, settings.seed))
    encoded = io.BytesIO()
    sheet.save(encoded, form)
    try:
        files.write_bytes(path, encoded.getvalue())
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be written: {error.strerror}", field="show_views") from error


def view_sheet(images: ImageSet, views: Views, seed: int) -> NDArray[np.uint8]:
    """Draw the sheet: uint8 [height, width, 3], with a white gap between the cells.

    Args:
        images: images from which the seed draws those of the rows.
        views: draws the views.
        seed: of all draws.
    """
    draws = generator(seed, "view sheet")
    rows = torch.randperm(len(images), generator=draws)[:ROWS].sort().values.numpy()
    pixels = np.ascontiguousarray(images.pixels[rows])
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    columns = [_enlarge(pixels)]
    for _ in range(COLUMNS):
        drawn = views.draw(planes, draws).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        columns.append(_enlarge(drawn.permute(0, 2, 3, 1).numpy()))
    side = max(column.shape[1] for column in columns)
    step = side + GAP
    sheet = np.full((len(rows) * step + GAP, len(columns) * step + GAP, 3), 255, np.uint8)
    for across, column in enumerate(columns):
        for down, cell in enumerate(column):
            top, left = GAP + down * step, GAP + across * step
            sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet


def _enlarge(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = -(-LEAST_SIDE // images.shape[1])
    return images.repeat(factor, axis=1).repeat(factor, axis=2)
