"""Makes folders of small pictures whose classes can be told apart by colour."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 220), "green": (50, 190, 70), "red": (220, 50, 40)}


def picture(colour: tuple[int, int, int], seed: int, *, side: int = 64, format: str = "PNG") -> bytes:  # noqa: A002
    """Return the file of a noisy square of one colour; every seed gives another picture."""
    noise = np.random.default_rng(seed).normal(0, 25, (side, side, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def class_folders(folder: Path, *, per_class: int, side: int = 64, first: int = 0) -> Path:
    """Write `per_class` pictures of each colour into FOLDER/COLOUR/NNNN.png, from number `first`; return the folder."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for at in range(first, first + per_class):
            (folder / name / f"{at:04}.png").write_bytes(picture(colour, 10_000 * number + at, side=side))
    return folder
