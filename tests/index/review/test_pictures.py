"""Copies of a photo are told from other photos by their pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from imagekin.index.review.duplicates import BY_PIXELS, Pairs
from imagekin.index.review.pictures import Crops, crops, likeness
from imagekin.types import Neighbour


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Make a picture of soft shapes, as photos are."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def kept(image: Image.Image, quality: int = 75) -> Crops:
    """Return the crops of a picture's thumbnail."""
    file, small = io.BytesIO(), image.copy()
    small.thumbnail((160, 160))
    small.save(file, "JPEG", quality=quality)
    made = crops(file.getvalue())
    assert made is not None
    return made


def cut(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    return image.crop((int(width * share), int(height * share), int(width * (1 - share)), int(height * (1 - share))))


COPIES = {
    "smaller": lambda image: kept(image.resize((160, 120))),
    "packed harder": lambda image: kept(image, quality=20),
    "cropped": lambda image: kept(cut(image, 0.05)),
    "mirrored": lambda image: kept(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "mirrored and cropped": lambda image: kept(cut(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.05)),
    "darker": lambda image: kept(image.point(lambda value: value * 0.8)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_told_from_another_photo_whichever_comes_first(how: str) -> None:
    original, copy, other = kept(photo(1)), COPIES[how](photo(1)), kept(photo(2))
    alike = likeness([original, copy, original, copy], [copy, original, other, other])
    assert alike[:2].min() >= BY_PIXELS
    assert alike[0] == pytest.approx(alike[1])
    assert alike[2:].max() < 0.8


def test_pictures_of_one_colour_are_alike_when_it_is_the_same() -> None:
    white, black = (kept(Image.new("RGB", (100, 100), colour)) for colour in ("white", "black"))
    assert likeness([white, white, white], [white, black, kept(photo(3))]).tolist() == pytest.approx([1, 0, -1])


def test_what_is_no_picture_has_no_crops() -> None:
    assert crops(b"") is None
    assert crops(b"\xff\xd8\xff\xe0 no picture") is None


def test_pairs_are_judged_by_pixels_and_without_pictures_by_embeddings() -> None:
    pairs = Pairs(None)
    near = [Neighbour("copy", 0.9), Neighbour("other", 0.999)]
    pairs.add("original", "apple", near)
    pairs.add("bare", "", [Neighbour("original", 0.975), Neighbour("copy", 0.96)])
    pictures = {"original": kept(photo(1)), "copy": kept(cut(photo(1), 0.05)), "other": kept(photo(2))}
    found = pairs.findings(pictures)
    assert [one.key for one in found] == ["bare", "copy", "original"]
    assert (pairs.by_pixels, pairs.by_embeddings) == (2, 2)
    # Without any picture, the similarities decide.
    assert [one.key for one in pairs.findings({})] == ["bare", "original", "other"]
