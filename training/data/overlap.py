"""Find test images that are training images, too, so that no score counts what was learnt by heart.

Three comparisons, from cheap to dear: hashes of the files' bytes, which find copies under other names; hashes of the
pixels of images that are prepared alike, which find copies in another file format or with other metadata; and, when
asked for, small pictures of all images, which find those that were compressed, resized or recoloured a little.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from imagekin.encoder.metadata import JSON
from imagekin.errors import InvalidArgumentError
from imagekin.training.data.images import ImageSet
from imagekin.training.views.colour import luma

NEAR = 0.98
"""Cosine from which two images are near-duplicates, see `find_near`."""
_SIDE = 16
_BLOCK = 2048
_SHOWN = 12

logger = logging.getLogger("imagekin.training")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Test images that are training images, too.

    Attributes:
        compared: test images that were compared with all training images.
        copies: (test key, training key) of each test image with the content of a training image.
        near: (test key, training key, cosine) of each other test image that nearly equals one; None when these were not
            looked for.
        counted: whether the score counts them all the same; otherwise they are left out.
    """

    compared: int
    copies: tuple[tuple[str, str], ...]
    near: tuple[tuple[str, str, float], ...] | None
    counted: bool

    def __len__(self) -> int:
        return len(self.copies) + len(self.near or ())

    @property
    def left_out(self) -> int:
        """Number of test images that the score leaves out."""
        return 0 if self.counted else len(self)

    def to_json(self) -> dict[str, JSON]:
        """Return counts and keys as a flat JSON object."""
        copies: list[JSON] = [{"test": test, "train": train} for test, train in self.copies]
        near: list[JSON] = [
            {"test": test, "train": train, "cosine": round(cosine, 4)} for test, train, cosine in self.near or ()
        ]
        return {
            "test_compared": self.compared,
            "test_copies": len(self.copies),
            "test_near_copies": None if self.near is None else len(self.near),
            "test_left_out": self.left_out,
            "copies": copies,
            "near_copies": None if self.near is None else near,
        }

    def describe(self) -> str:
        """Return one sentence on what was found, with the first keys."""
        parts = [test if test == train else f"{test} is {train}" for test, train in self.copies]
        parts += [f"{test} is nearly {train}" for test, train, _ in self.near or ()]
        shown = ", ".join(parts[:_SHOWN]) + (", …" if len(parts) > _SHOWN else "")
        return f"{len(self)} of {self.compared} test images are training images, too ({shown})"


def without_overlap(
    train: ImageSet,
    test: ImageSet,
    *,
    near: bool = False,
    allowed: bool = False,
    trained_on: Collection[str] = frozenset(),
    quiet: bool = False,
) -> tuple[ImageSet, Overlap]:
    """Return the test images that are no training images, and what was found; a warning names the others.

    Args:
        train: the training images.
        test: the test images.
        near: look for near-duplicates, too.
        allowed: keep the test images that overlap.
        trained_on: content hashes of further images that the model was trained on.
        quiet: log no warning, because one was logged before.

    Raises:
        InvalidArgumentError: no test image would be left.
    """
    copies = find_copies(train, test)
    if trained_on:
        rows = _rows_in(test.digests or test.pixel_digests(), trained_on)
        known = dict.fromkeys(rows, "an image that the model was trained on")
        copies = known | copies
    alike = find_near(train, test) if near else {}
    overlap = Overlap(
        compared=len(test),
        copies=tuple((test.keys[row], copies[row]) for row in sorted(copies)),
        near=tuple((test.keys[row], *alike[row]) for row in sorted(alike.keys() - copies)) if near else None,
        counted=allowed,
    )
    if not overlap:
        return test, overlap
    level = logging.DEBUG if quiet else logging.WARNING
    if allowed:
        logger.log(level, "%s; the scores count them, as asked", overlap.describe())
        return test, overlap
    if len(overlap) == len(test):
        raise InvalidArgumentError(
            f"{overlap.describe()}: a score on these says nothing; name other test images, or count them all the same "
            "(--allow-overlap)",
            field="test",
        )
    logger.log(level, "%s; the scores leave them out (--allow-overlap counts them)", overlap.describe())
    kept = sorted(set(range(len(test))) - copies.keys() - alike.keys())
    return test.take(np.array(kept, np.int64)), overlap


def find_copies(train: ImageSet, test: ImageSet) -> dict[int, str]:
    """Return the key of the training image of equal content for each row of `test` that has one."""
    found: dict[int, str] = {}
    if train.preprocess == test.preprocess:
        found |= _equal(train.pixel_digests(), test.pixel_digests(), train.keys)
    if train.digests and test.digests:
        found |= _equal(train.digests, test.digests, train.keys)
    return found


def find_near(train: ImageSet, test: ImageSet) -> dict[int, tuple[str, float]]:
    """Return the key of the most alike training image, and the cosine, for each row of `test` that nearly equals one.

    Images are compared as gray pictures of 16×16 pixels, less their mean, by cosine: brightness, contrast and colour do
    not count, compression and size hardly. Those of one shade have no such picture and are never near another.
    """
    wanted, best, place = _small(test), np.full(len(test), -1.0, np.float32), np.zeros(len(test), np.int64)
    for start in range(0, len(train), _BLOCK):
        cosines = wanted @ _small_part(train.pixels[start : start + _BLOCK]).T
        values, columns = (part.numpy() for part in cosines.max(1))
        better = values > best
        best[better], place[better] = values[better], columns[better] + start
    return {int(row): (train.keys[place[row]], min(1.0, float(best[row]))) for row in np.flatnonzero(best >= NEAR)}


def _equal(train: tuple[str, ...], test: tuple[str, ...], keys: tuple[str, ...]) -> dict[int, str]:
    # From the end, so that of several equal training images the first is named.
    known = dict(zip(reversed(train), reversed(keys), strict=True))
    return {row: known[digest] for row, digest in enumerate(test) if digest in known}


def _rows_in(digests: tuple[str, ...], known: Collection[str]) -> list[int]:
    return [row for row, digest in enumerate(digests) if digest in known]


def _small(images: ImageSet) -> torch.Tensor:
    """Return the small pictures of all images as unit vectors, float32 [N, S·S]."""
    starts = range(0, len(images), _BLOCK)
    return torch.cat([_small_part(images.pixels[start : start + _BLOCK]) for start in starts])


def _small_part(pixels: NDArray[np.uint8]) -> torch.Tensor:
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
    sides = [min(_SIDE, side) for side in planes.shape[2:]]
    small = functional.adaptive_avg_pool2d(luma(planes), (sides[0], sides[1])).flatten(1)
    small = small - small.mean(1, keepdim=True)
    # A deviation of less than one step of brightness is no picture.
    flat = small.std(1, correction=0) < 1
    return functional.normalize(small, dim=1).masked_fill(flat.unsqueeze(1), 0.0)
