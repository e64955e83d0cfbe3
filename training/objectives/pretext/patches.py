"""Cut patches from a 3×3 grid of an image, for jigsaw and context prediction."""

import torch
from torch import Tensor

from imagekin.training.views.geometry import crop_resize

_GRID = 3
CELLS = _GRID * _GRID
PATCH_SHARE = 2 / 3
"""Side of a patch in parts of its cell's: 96 of 144 pixels (Doersch et al. 2015).

Its place is drawn within the gap, half a patch. With the 64 of 75 of Noroozi and Favaro (2016) the patches of an image
of 32 pixels move by 1.6 of them, and the encoder learns the images by heart instead.
"""


def patch_side(image_size: int, share: float) -> int:
    """Return the side in pixels of a patch as shown to an encoder for images of that size, at least 8.

    It is the patch's side in such an image, so that objects have the same size as when the encoder is served.

    Args:
        image_size: that the encoder is for.
        share: side of a patch in parts of the cell's side.
    """
    return max(8, round(image_size * share / _GRID))


def cut_patches(images: Tensor, cells: Tensor, share: float, size: int, generator: torch.Generator) -> Tensor:
    """Cut patches out of cells of the grid, each at a random place within its cell.

    A patch is smaller than its cell, so that no edge continues from one to the next, and its place is random, so that
    the gap does not reveal positions either (Noroozi and Favaro 2016; Doersch et al. 2015).

    Args:
        images: uint8 [B, 3, H, W].
        cells: int64 [B, T], cells from 0 (top left) to 8, by rows.
        share: side of a patch in parts of the cell's side, 0 to 1.
        size: S, side of the result in pixels.
        generator: of the places.

    Returns:
        Float [B·T, 3, S, S] in [0, 1], the patches of an image together.
    """
    count, each = cells.shape
    places = torch.rand(2, count, each, generator=generator, device=generator.device) * (1 - share)
    top = (cells.div(_GRID, rounding_mode="floor") + places[0]) / _GRID
    left = (cells % _GRID + places[1]) / _GRID
    side = torch.full_like(top, share / _GRID)
    boxes = torch.stack((top, left, side, side), dim=-1).view(-1, 4)
    return crop_resize(images.repeat_interleave(each, 0), boxes, size).div_(255)
