"""Tell whether two small pictures show the same photo: one made smaller, packed harder, cropped a little or mirrored.

An encoder calls two photos of one apple as similar as a photo and its copy; their pixels do not. Each picture is kept
as a few small grey crops of its middle, 2 KB in all. Two pictures are alike when one as a whole correlates with a crop
of the other, straight or mirrored.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 24
# What is cut off at each side. A copy that was cropped by another share still correlates with the nearest of these.
_CUTS = (0.0, 0.025, 0.05, 0.075)
# A picture whose grey values deviate less from their mean has nothing to compare but this mean.
_FLAT = 1.0
_PAIRS_AT_ONCE = 512

# Grey crops of one picture: [len(_CUTS), SIDE, SIDE].
Crops = NDArray[np.uint8]


def crops(jpeg: bytes) -> Crops | None:
    """Return the grey crops of a thumbnail, None when it cannot be read."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            grey = image.convert("L")
    except (OSError, ValueError, SyntaxError):
        return None
    width, height = grey.size
    boxes = [(width * cut, height * cut, width - width * cut, height - height * cut) for cut in _CUTS]
    return np.stack([np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX, box=box)) for box in boxes])


def likeness(ones: Sequence[Crops], others: Sequence[Crops]) -> NDArray[np.float32]:
    """Return how alike the pictures of each pair are, from -1 to 1.

    Args:
        ones: the first picture of each pair.
        others: the second picture of each pair.

    Returns:
        Correlation of each pair's grey values, the largest over all crops, straight and mirrored.
    """
    found = [
        _likeness(np.stack(ones[at : at + _PAIRS_AT_ONCE]), np.stack(others[at : at + _PAIRS_AT_ONCE]))
        for at in range(0, len(ones), _PAIRS_AT_ONCE)
    ]
    return np.concatenate(found) if found else np.empty(0, np.float32)


def _likeness(ones: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float32]:
    (a, a_mean, a_flat), (b, b_mean, b_flat) = _normalised(ones), _normalised(others)
    best = np.full(len(a), -1, np.float32)
    for whole, cut in ((a[:, 0], b), (b[:, 0], a)):
        for turned in (whole, whole.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(len(whole), -1)):
            best = np.maximum(best, np.einsum("np,ncp->nc", turned, cut, optimize=True).max(axis=1))
    # Pictures of one grey correlate with nothing; they are alike when they are of the same grey.
    alike = 1 - np.abs(a_mean - b_mean) / 255
    return np.where(a_flat & b_flat, alike, np.where(a_flat | b_flat, np.float32(-1), best)).astype(np.float32)


def _normalised(
    pictures: NDArray[np.uint8],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return crops as vectors of mean 0 and length 1, each whole picture's mean grey and whether it is flat."""
    values = pictures.reshape(*pictures.shape[:2], -1).astype(np.float32)
    means = values.mean(axis=2, keepdims=True)
    values -= means
    lengths = np.linalg.norm(values, axis=2, keepdims=True)
    return values / np.maximum(lengths, 1e-6), means[:, 0, 0], lengths[:, 0, 0] < _FLAT * SIDE
